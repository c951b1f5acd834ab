/*
 * admin_answers: what internal:admin answers, and what it does when asked to.
 */
#ifndef PENSTOCK_ADMIN_ANSWERS_H
#define PENSTOCK_ADMIN_ANSWERS_H

#include "inquiry.h"

/* admin_answers.c */
extern const struct answer admin_answer_health;
extern const struct answer admin_answer_readiness;
extern const struct answer admin_answer_status;
extern const struct answer admin_answer_tunnels;
extern const struct answer admin_answer_targets;

/* admin_metrics.c */
extern const struct answer admin_answer_metrics;

/* admin_connections.c */
extern const struct answer admin_answer_connections;
extern const struct answer admin_answer_connection;

/* admin_actions.c */
extern const struct answer admin_answer_kill;
extern const struct answer admin_answer_drain;
extern const struct answer admin_answer_reload;
extern const struct answer admin_answer_log_level;

#endif
