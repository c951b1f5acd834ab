/*
 * choice: which of the tunnels on one address a client gets into, by what is known of it. Pure.
 */
#ifndef PENSTOCK_CHOICE_H
#define PENSTOCK_CHOICE_H

#include "facts.h"
#include "tunnel_conf.h"

#include <stdbool.h>

enum choice_result {
	CHOICE_MADE,   /* *chosen is set */
	CHOICE_LOOK,   /* it hangs on the ClientHello, which nobody has looked for yet */
	CHOICE_NOBODY, /* none wants this client */
};

/* The first tunnel of the group that fits. `looked`: facts.begins_with_tls says whether there is a
 * ClientHello. O(group and its lists). */
enum choice_result choice_make(const struct tunnel_group *group, const struct facts *facts,
			       bool looked, const struct tunnel_conf **chosen);

/* Whether a name in small letters is what `pattern` ("a.example", "*.example", "*") says. */
bool choice_name_fits(const char *pattern, const char *name);

/* Whether the pattern `wide` fits every name that `narrow` fits. */
bool choice_name_covers(const char *wide, const char *narrow);

#endif
