/* SPDX-License-Identifier: MIT */
/* An outcome: its clocks, and its one line. */
#include "outcome.h"

#include <stdarg.h>
#include <stdio.h>

#include "clock.h"

int outcome_fail(struct outcome *outcome, int error, const char *format, ...)
{
	va_list arguments;

	if (outcome->error[0])
		return error;
	outcome->error_ns = clock_ns();
	va_start(arguments, format);
	vsnprintf(outcome->error, OUTCOME_ERROR_MAX, format, arguments);
	va_end(arguments);
	return error;
}

void outcome_start(struct outcome *outcome, uint64_t system_calls)
{
	outcome->calls_start = system_calls;
	outcome->cpu_start_ns = clock_cpu_ns();
	outcome->start_ns = clock_ns();
}

void outcome_stop(struct outcome *outcome, uint64_t system_calls)
{
	outcome->end_ns = clock_ns();
	outcome->cpu_end_ns = clock_cpu_ns();
	outcome->calls_end = system_calls;
}
