/*
 * admin_answers: what internal:admin answers, and what it does when asked to.
 */
#ifndef PENSTOCK_ADMIN_ANSWERS_H
#define PENSTOCK_ADMIN_ANSWERS_H

#include "inquiry.h"

/* admin_answers.c */
extern const struct answer admin_answers_health;
extern const struct answer admin_answers_readiness;
extern const struct answer admin_answers_status;
extern const struct answer admin_answers_tunnels;
extern const struct answer admin_answers_targets;

/* admin_page.c */
extern const struct answer admin_page_all;

/* admin_metrics.c */
extern const struct answer admin_metrics_all;

/* admin_connections.c */
extern const struct answer admin_connections_list;
extern const struct answer admin_connections_one;

/* admin_limits.c */
extern const struct answer admin_limits_list;
extern const struct answer admin_limits_change;

/* admin_actions.c */
extern const struct answer admin_actions_kill;
extern const struct answer admin_ends_all;
extern const struct answer admin_actions_drain;
extern const struct answer admin_actions_undrain;
extern const struct answer admin_actions_reload;
extern const struct answer admin_diff_all;
extern const struct answer admin_actions_log_level;

#endif
