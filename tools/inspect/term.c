/* SPDX-License-Identifier: MIT */
/* What the terminal is like: see term.h. */
#include "term.h"

#include <langinfo.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { COLUMNS_MAX = 1000 };

unsigned term_width(void)
{
	const char *said = getenv("COLUMNS");
	struct winsize size;

	if (said && atoi(said) > 0)
		return atoi(said) < COLUMNS_MAX ? (unsigned)atoi(said) : COLUMNS_MAX;
	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
		return size.ws_col;
	return TERM_WIDTH_ELSEWHERE;
}

bool term_colour(void)
{
	const char *term = getenv("TERM"), *no_color = getenv("NO_COLOR");

	return isatty(STDOUT_FILENO) && term && *term && strcmp(term, "dumb") != 0 && !(no_color && *no_color);
}

bool term_utf8(void) { return strcmp(nl_langinfo(CODESET), "UTF-8") == 0; }
