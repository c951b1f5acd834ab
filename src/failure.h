/*
 * failure: why something did not work, in a form that needs no memory.
 *
 * A function that can fail returns 0/-1, or a pointer/NULL, and takes `struct failure *why` last;
 * on failure it has filled *why and released what it made. Nobody below the one who decides logs.
 */
#ifndef PENSTOCK_FAILURE_H
#define PENSTOCK_FAILURE_H

/* What a failure means for whoever decides; its text is for people. */
enum failure_kind {
	FAILURE_NONE,
	FAILURE_CONFIG,      /* the operator's file is wrong */
	FAILURE_MEMORY,      /* no memory for this one thing */
	FAILURE_DESCRIPTORS, /* no descriptor, or no other kernel object of a bounded number */
	FAILURE_REFUSED,     /* the target refused, or its address does not exist */
	FAILURE_UNREACHABLE, /* no route, network down */
	FAILURE_TIMEOUT,     /* a deadline of ours passed */
	FAILURE_RESET,       /* the peer reset, or its host is gone */
	FAILURE_TRUNCATED,   /* an end of stream before the protocol's own end mark */
	FAILURE_PROTOCOL,    /* bytes that are not what was agreed on */
	FAILURE_RESOLVE,     /* a host name has no address, or nobody answered */
	FAILURE_ADMISSION,   /* a cap, an allow or a deny said no */
	FAILURE_STOPPED,     /* the operator, a drain or a shutdown ended it */
	FAILURE_SYSTEM,      /* any other system call that failed */
	FAILURE_KINDS
};

struct failure {
	enum failure_kind kind;
	char text[232]; /* UTF-8, whatever was quoted and wherever it was cut */
};

/* Fills *why (may be NULL) and returns -1, so that the common line is one return. `why` and the
 * arguments may overlap: failure_set(why, kind, "while x: %s", why->text) is allowed. */
int failure_set(struct failure *why, enum failure_kind kind, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* As failure_set; kind and the end of the text follow from `error`, an errno value. Text is
 * "<message>: <strerror>". Never allocates. */
int failure_set_errno(struct failure *why, int error, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* One word for counters, logs and metrics: "config", "refused" ... Static. */
const char *failure_kind_name(enum failure_kind kind);

#endif
