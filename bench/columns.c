/* SPDX-License-Identifier: MIT */
/* Columns: their lists, as people write them. */
#include "columns.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "fairness.h"

enum { PORTS_MAX = 1000000, INFLIGHT_MAX = 65536 };

static const char all_transports[] = "wharf,seqpacket,stream";

__attribute__((format(printf, 2, 3))) static int complain(char error[COLUMNS_ERROR_MAX], const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(error, COLUMNS_ERROR_MAX, format, arguments);
	va_end(arguments);
	return -EINVAL;
}

static struct column *add_column(struct options *options, const char *name)
{
	struct column *column = &options->columns[options->n_columns++];

	*column = (struct column){ .transport = NULL };
	snprintf(column->name, sizeof column->name, "%s", name);
	return column;
}

bool columns_find(const struct options *options, const char *name, size_t name_length, size_t *ret_index)
{
	for (size_t i = 0; i < options->n_columns; i++) {
		const char *other = options->columns[i].name;

		if (strlen(other) == name_length && !memcmp(other, name, name_length)) {
			*ret_index = i;
			return true;
		}
	}
	return false;
}

/* A transport's name, or wharf/VARIANT. False: there is none of it. */
static bool find_transport(const char *word, size_t length, struct column *column)
{
	const char *slash = memchr(word, '/', length);
	size_t name_length = slash ? (size_t)(slash - word) : length;

	column->transport = transport_find(word, name_length);
	if (!slash)
		return column->transport;
	column->variant = variant_find(slash + 1, length - name_length - 1);
	return column->transport == &transport_wharf && column->variant;
}

static int make_transports(struct options *options, const char *text, char *error)
{
	for (;;) {
		size_t length = strcspn(text, ","), before;
		struct column found = { .transport = NULL }, *column;

		if (!find_transport(text, length, &found))
			return complain(error, "--transport: no such transport: '%.*s'", (int)length, text);
		if (columns_find(options, text, length, &before))
			return complain(error, "--transport: '%.*s' is there twice", (int)length, text);
		snprintf(found.transport_name, sizeof found.transport_name, "%.*s", (int)length, text);
		column = add_column(options, found.transport_name);
		memcpy(column->transport_name, found.transport_name, sizeof column->transport_name);
		column->transport = found.transport;
		column->variant = found.variant;
		if (!text[length])
			return 0;
		text += length + 1;
	}
}

/* Takes a number from 1 to max off *text, up to a comma or the end. */
static bool take_number(const char **text, size_t max, size_t *ret_number)
{
	const char *p = *text;
	size_t number = 0;

	for (; *p >= '0' && *p <= '9' && number <= max; p++)
		number = number * 10 + (size_t)(*p - '0');
	if (p == *text || !number || number > max || (*p && *p != ','))
		return false;
	*text = p;
	*ret_number = number;
	return true;
}

/* Of one number all of what was asked for. */
static int add_numbered(struct options *options, const struct column *of, size_t n_of, const char *option,
	size_t number, char *error)
{
	size_t base = options->n_columns;

	for (size_t i = 0; i < n_of; i++) {
		char name[OPTIONS_COLUMN_NAME_MAX];
		struct column *column;
		size_t before;
		bool choice = *of[i].transport_name;

		snprintf(name, sizeof name, "%.15s%s%zu", of[i].transport_name, choice ? ":" : "", number);
		if (columns_find(options, name, strlen(name), &before))
			return complain(error, "%s: %zu is there twice", option, number);
		if (options->n_columns == OPTIONS_COLUMNS_MAX)
			return complain(error, "%s: with the transports more than %d", option, OPTIONS_COLUMNS_MAX);
		column = &options->columns[options->n_columns++];
		*column = of[i];
		memcpy(column->name, name, sizeof name);
		if (options->mode == MODE_CALL)
			column->inflight = number;
		else
			column->ports = number;
		/* Without a choice of transports it is the numbers that are compared. */
		column->base = choice ? base : 0;
	}
	return 0;
}

/* Each number of the list with each of the columns that there are. */
static int make_numbered(struct options *options, const char *option, const char *text, size_t max, char *error)
{
	struct column of[OPTIONS_COLUMNS_MAX];
	size_t n_of = options->n_columns;

	memcpy(of, options->columns, sizeof of);
	for (options->n_columns = 0;; text++) {
		size_t number;
		int r;

		if (!take_number(&text, max, &number))
			return complain(error, "%s: '%s' is not a list of numbers from 1 to %zu", option, text, max);
		r = add_numbered(options, of, n_of, option, number, error);
		if (r < 0 || !*text)
			return r;
	}
}

static int make_calls(struct options *options, const struct column_words *words, char *error)
{
	const char *numbers = words->inflight ? words->inflight : "1,16,256";
	int r = make_transports(options, words->transports ? words->transports : all_transports, error);

	return r < 0 ? r : make_numbered(options, "--inflight", numbers, INFLIGHT_MAX, error);
}

static int make_ports(struct options *options, const struct column_words *words, char *error)
{
	const char *numbers = words->ports ? words->ports : "1,10,100,1000,10000";
	int r = 0;

	if (words->transports)
		r = make_transports(options, words->transports, error);
	else
		add_column(options, "")->transport = &transport_wharf;
	if (r < 0)
		return r;
	for (size_t i = 0; i < options->n_columns; i++)
		if (options->columns[i].transport != &transport_wharf)
			return complain(error, "--transport: fanin measures wharf");
	return make_numbered(options, "--ports", numbers, PORTS_MAX, error);
}

int columns_make(struct options *options, const struct column_words *words, char ret_error[COLUMNS_ERROR_MAX])
{
	if (words->ports && options->mode != MODE_FANIN)
		return complain(ret_error, "--ports is for fanin");
	if (words->inflight && options->mode != MODE_CALL)
		return complain(ret_error, "--inflight is for call");
	switch (options->mode) {
	case MODE_THROUGHPUT:
	case MODE_LATENCY:
		return make_transports(options, words->transports ? words->transports : all_transports, ret_error);
	case MODE_CALL:
		return make_calls(options, words, ret_error);
	case MODE_FANIN:
		return make_ports(options, words, ret_error);
	case MODE_FAIRNESS:
		if (words->transports)
			return complain(ret_error, "--transport: fairness measures ports of wharf");
		for (unsigned scenario = 0; scenario < SCENARIOS; scenario++)
			add_column(options, fairness_scenarios[scenario])->scenario = scenario;
		return 0;
	case MODE_PROBE:
		return 0;
	}
	return -EINVAL;
}
