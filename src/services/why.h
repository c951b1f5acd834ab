/*
 * why: one sentence in plain words about what holds a connection up. Pure: from a report to a text.
 */
#ifndef PENSTOCK_WHY_H
#define PENSTOCK_WHY_H

#include "connection_view.h"

#define WHY_TEXT 320

/* "the client reads slowly: 88 % of the last 10 s waiting to write to it". Returns text. */
const char *why_explain(const struct connection_report *report, char text[WHY_TEXT]);

/* What a flow waits for in the end, in words: "near readable", or `limit "customer"`, or what is behind a pair. */
const char *why_wait(const struct flow_report *flow, char text[WHY_TEXT]);

#endif
