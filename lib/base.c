/* SPDX-License-Identifier: MIT */
/* The end of a failed assertion: the only place where the library writes to stderr or ends the process. */
#include "base.h"

#undef NDEBUG
#include <assert.h>

/* The C library's own last words (the LSB fixes the name): program, place, expression, then abort. */
_Noreturn void wh_assert_failed(const char *expression, const char *file, int line)
{
	__assert_fail(expression, file, (unsigned)line, "wharf");
}
