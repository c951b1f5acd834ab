/*
 * utf8: characters of more than one byte in texts that somebody else wrote. JSON and the service manager
 * take no text that is not UTF-8 throughout.
 */
#ifndef PENSTOCK_UTF8_H
#define PENSTOCK_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* The length of the character at `text`, ended by a zero byte, and *code; 0 if there is none (RFC 3629: no
 * overlong form, no surrogate, nothing above U+10FFFF). */
size_t utf8_character(const char *text, uint32_t *code);

/* Puts '?' in the place of each byte of `text` that is part of no character, as of one that was cut. */
void utf8_mend(char *text);

#endif
