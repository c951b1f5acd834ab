/*
 * inquiry: one request to the admin service on its way through the threads. It begins at home, the worker
 * of the client that asks; its answer writes there, page by page, and in between has it visit the places
 * whose things it needs: another worker, or the control thread. Nobody waits for anybody.
 */
#ifndef PENSTOCK_INQUIRY_H
#define PENSTOCK_INQUIRY_H

#include "admin.h"
#include "counted.h"
#include "http.h"
#include "mailbox.h"
#include "page.h"

#include <stdatomic.h>

struct inquiry;

#define PLACE_CONTROL (-1)

/* Who goes through many things at a place stops after so long, to go on in a later turn of its loop. */
#define PLACE_NS (NS_PER_MS / 4)

enum answer_step {
	ANSWER_DONE,  /* all is written */
	ANSWER_MORE,  /* there is more; come again when this page is sent */
	ANSWER_VISIT, /* go to inquiry->place first, then come again */
};

/* A page is sent when it is this long. */
#define ANSWER_PAGE_BYTES ((size_t)32 * 1024)

/* A kind of answer. */
struct answer {
	const char *content_type;
	size_t state_bytes; /* of inquiry->state, zeroed before begin */

	/* At home. Takes from the request what it needs later; `argument` is what stands for "*" in the
	 * path. -1: inquiry_fail was called. NULL is allowed. */
	int (*begin)(struct inquiry *inquiry, const struct http_request *request,
		     const char *argument);

	/* At home. Appends to `page`; without memory for that the client gets no answer. May call inquiry_fail and be done, if it has written nothing before. */
	enum answer_step (*write)(struct inquiry *inquiry, struct page *page);

	/* At the place visited. false: inquiry_go_home will be called later, on that thread. */
	bool (*collect)(struct inquiry *inquiry);

	/* Frees what the state holds. Any thread. NULL is allowed. */
	void (*end)(struct inquiry *inquiry);
};

struct inquiry {
	struct message message; /* first */
	struct counted counted; /* the client and whoever has it under way */
	const struct answer *answer;
	const struct admin_control *control;
	unsigned int home;   /* worker */
	bool may_change;     /* the client has the right to */
	int place;           /* to be visited next: PLACE_CONTROL or a worker */
	int status;          /* of the answer, 200 at first */
	char failure[256];   /* if that is no good one: what is wrong */
	char log[192];       /* for the log: what was done, or in begin asked for; "" = none */
	atomic_bool is_left; /* nobody waits for it any more */
	void (*on_home)(struct inquiry *inquiry); /* at home, unless left */
	void *client;                             /* for on_home */
	void *state;                              /* the answer's */
};

/* NULL without memory. Held once. */
struct inquiry *inquiry_open(const struct answer *answer, const struct admin_control *control,
			     unsigned int home);
/* The client wants it no more: it may still be under way, but will not come home. */
void inquiry_leave(struct inquiry *inquiry);

/* Sends it to inquiry->place. At home. */
void inquiry_visit(struct inquiry *inquiry);
/* Sends it home, from where it is. */
void inquiry_go_home(struct inquiry *inquiry);

/* The answer is to be an error with that status and text. Returns -1. */
int inquiry_fail(struct inquiry *inquiry, int status, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* From now on whatever arrives somewhere is dropped there. Any thread. */
void inquiry_stop_all(void);

#endif
