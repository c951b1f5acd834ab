/*
 * limits_report: what the tree of limits (limits.h) is like now, for operators: one node, all of them page by
 * page, the busiest. Changes nothing that anybody waits for, and holds the lock for one page at a time.
 */
#ifndef PENSTOCK_LIMITS_REPORT_H
#define PENSTOCK_LIMITS_REPORT_H

#include "limits.h"

/* What a node is like now. */
struct limit_report {
	uintptr_t id, parent; /* tell nodes apart within one listing; parent 0 = a root */
	char name[65];        /* the limit's, cut off if longer */
	char key[260]; /* "10.0.0.0/24", "uid:1000", "www.example.org", "none"; "" = no key */
	uint16_t weight;
	uint32_t users; /* flows, nodes below, and those who hold it */
	bool is_only;   /* its limit depends on no key */
	struct limit_report_direction {
		uint64_t rate, burst;
		int64_t level;    /* tokens; below 0 = in debt */
		uint64_t passing; /* what could pass this moment: the least level up to the root */
		uint64_t total;   /* bytes since it was made or reset, less those given back */
		/* Bytes a second that passed since a report of the node was last made, to whomever, at least a
		 * second ago; of a younger one, since it was made. */
		uint64_t speed;
		uint32_t members; /* flows at this node and below it */
		uint32_t active;  /* those that were granted something in the last full second */
		uint32_t waiting; /* those that wait, for this node or another */
		bool is_short;    /* this node has too few tokens for whose turn it is */
	} direction[2];
};

/* While the flow waits: what the node is like that keeps it (see limits_waits_for). false: it does not wait. */
bool limits_report_waits_for(struct limit_flow *flow, uint64_t now_ns, struct limit_report *out);

/* What a flow could get at most if some node did not hold it up: the least rate of the others on its way. */
struct limit_bound {
	uint64_t rate; /* bytes a second; 0 = none of them has one */
	char name[65]; /* of that limit, cut off if longer */
};
/* Lowers the bound, zeroed at first, to what the flow's way allows but for the node of that id. O(depth). */
void limits_bound(struct limit_flow *flow, uintptr_t but, struct limit_bound *bound);

/* O(flows that were not short of anything lately), as is limits_list for its first page. */
void limits_report(struct limit_node *node, uint64_t now_ns, struct limit_report *out);

/* Lists all nodes, page by page: *cursor is 0 at first; 0 is returned at the end. `most` is at least 256.
 * A node that is there all the time is listed, twice at worst. One short lock a page. Any thread. */
size_t limits_list(struct limits *limits, size_t *cursor, uint64_t now_ns, struct limit_report *out,
		   size_t most);

/* As limits_list, but only nodes that have so much of something, up and down together; what is left out costs
 * next to nothing. *count is how many are given; false is returned when there is no more. */
enum limit_measure { LIMIT_BY_TOTAL, LIMIT_BY_ACTIVE, LIMIT_BY_WAITING, LIMIT_BY_SPEED };
/* By speed, the one node of a limit without keys has so much more: there are few of them, and all are told. */
#define LIMIT_SPEED_ONLY (UINT64_C(1) << 62)
bool limits_sift(struct limits *limits, size_t *cursor, uint64_t now_ns, enum limit_measure by,
		 uint64_t least, struct limit_report *out, size_t most, size_t *count);

#define LIMITS_TOP_MOST 10

/* Those nodes of one limit through which bytes pass fastest, up and down together; where they pass alike, those
 * with the largest totals. */
struct limit_top {
	struct limit *limit; /* held by the caller */
	size_t count;
	struct limit_top_node {
		char above
			[520]; /* keys of the nodes above it that have one, "outer inner"; cut off if longer */
		struct limit_report report;
	} nodes[LIMITS_TOP_MOST]; /* the largest first */
};

/* Fills `count` tops, empty at first, in the order of their limits' addresses, going through all nodes page by
 * page: *cursor is 0 at first; false is returned at the end. Nodes may change in between. One short lock a
 * page, far shorter than that of limits_list. Any thread. */
bool limits_top(struct limits *limits, size_t *cursor, uint64_t now_ns,
		struct limit_top *const *tops, size_t count);

#endif
