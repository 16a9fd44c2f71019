/* SPDX-License-Identifier: MIT */
/* What the terminal is like. */
#ifndef INSPECT_TERM_H
#define INSPECT_TERM_H

#include <stdbool.h>

enum { TERM_WIDTH_ELSEWHERE = 120 }; /* for what is no terminal */

unsigned term_width(void);  /* columns of standard output; COLUMNS goes before */
bool term_colour(void);     /* a terminal that has colours, and nobody said NO_COLOR */
bool term_utf8(void);       /* the locale's; setlocale was called */

#endif
