/*
 * config_foreign: words that other programs have for what is said here otherwise, so that who comes from them
 * is told the word, and not only that his own is unknown.
 */
#ifndef PENSTOCK_CONFIG_FOREIGN_H
#define PENSTOCK_CONFIG_FOREIGN_H

/* What to write in place of that word of stunnel, HAProxy, nginx or socat; NULL = it is none of theirs. Static.
 * O(words). */
const char *config_foreign_advice(const char *word);

#endif
