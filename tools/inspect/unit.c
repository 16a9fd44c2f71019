/* SPDX-License-Identifier: MIT */
/* Sizes, times and counts for people: see unit.h. */
#include "unit.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NS_PER_SECOND 1000000000u

static const char *scaled(double number, double base, unit_text text)
{
	static const char units[] = " KMGTPE";
	size_t unit = 0;

	while (number >= 999.5 && unit + 2 < sizeof units) {
		number /= base;
		unit++;
	}
	if (!unit)
		snprintf(text, UNIT_BYTES, "%.0f", number);
	else
		snprintf(text, UNIT_BYTES, "%.*f%c", number < 9.95 ? 1 : 0, number, units[unit]);
	return text;
}

const char *unit_size(uint64_t bytes, unit_text text) { return scaled((double)bytes, 1024, text); }

static const char *known(double number, double base, unit_text text)
{
	if (number < 0 || !isfinite(number))
		return "-";
	return scaled(number, base, text);
}

const char *unit_rate(double per_second, unit_text text) { return known(per_second, 1024, text); }
const char *unit_count(double number, unit_text text) { return known(number, 1000, text); }

static const char *fraction(double number, const char *unit, unit_text text)
{
	snprintf(text, UNIT_BYTES, "%.*f%s", number < 9.95 ? 1 : 0, number, unit);
	return text;
}

const char *unit_time(uint64_t ns, unit_text text)
{
	uint64_t s = ns / NS_PER_SECOND;

	if (ns < 1000)
		snprintf(text, UNIT_BYTES, "%uns", (unsigned)ns);
	else if (ns < 999500)
		return fraction((double)ns / 1e3, "us", text);
	else if (ns < 999500000)
		return fraction((double)ns / 1e6, "ms", text);
	else if (s < 60)
		return fraction((double)ns / 1e9, "s", text);
	else if (s < 3600)
		snprintf(text, UNIT_BYTES, "%um%02us", (unsigned)(s / 60), (unsigned)(s % 60));
	else if (s < 86400)
		snprintf(text, UNIT_BYTES, "%uh%02um", (unsigned)(s / 3600), (unsigned)(s / 60 % 60));
	else
		snprintf(text, UNIT_BYTES, "%ud%02uh", (unsigned)(s / 86400), (unsigned)(s / 3600 % 24));
	return text;
}

const char *unit_time_or_dash(uint64_t ns, unit_text text) { return ns ? unit_time(ns, text) : "-"; }

bool unit_parse_time(const char *text, uint64_t *ret_ns)
{
	static const struct {
		const char *name;
		double ns;
	} units[] = { { "", 1e9 }, { "s", 1e9 }, { "ms", 1e6 }, { "us", 1e3 }, { "ns", 1 }, { "m", 60e9 },
		{ "min", 60e9 }, { "h", 3600e9 }, { "d", 86400e9 } };
	char *end;
	double number;

	if (!strchr("0123456789.", *text) || !*text)
		return false;
	errno = 0;
	number = strtod(text, &end);
	if (errno || end == text || !(number >= 0))
		return false;
	for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
		if (strcmp(end, units[i].name))
			continue;
		if (number * units[i].ns > 1e18)
			return false;
		*ret_ns = (uint64_t)(number * units[i].ns);
		return true;
	}
	return false;
}

void unit_clean(char *text, size_t size)
{
	text[size - 1] = '\0';
	for (; *text; text++)
		if (*text < ' ' || *text > '~')
			*text = '?';
}
