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

static int make_transports(struct options *options, const char *text, char *error)
{
	size_t before;

	for (;;) {
		size_t length = strcspn(text, ",");
		const struct transport *transport = transport_find(text, length);

		if (!transport)
			return complain(error, "--transport: no such transport: '%.*s'", (int)length, text);
		if (columns_find(options, text, length, &before))
			return complain(error, "--transport: '%s' is there twice", transport->name);
		add_column(options, transport->name)->transport = transport;
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

static int make_ports(struct options *options, const char *text, char *error)
{
	for (;; text++) {
		char name[OPTIONS_COLUMN_NAME_MAX];
		size_t ports, before;

		if (!take_number(&text, PORTS_MAX, &ports))
			return complain(error, "--ports: '%s' is not a list of numbers from 1 to %d", text, PORTS_MAX);
		snprintf(name, sizeof name, "%zu", ports);
		if (columns_find(options, name, strlen(name), &before))
			return complain(error, "--ports: %s is there twice", name);
		if (options->n_columns == OPTIONS_COLUMNS_MAX)
			return complain(error, "--ports: more than %d", OPTIONS_COLUMNS_MAX);
		add_column(options, name)->ports = ports;
		if (!*text)
			return 0;
	}
}

/* Of each number in flight all transports, the first of them the base. */
static int add_calls(struct options *options, const struct column *of, size_t n_of, size_t inflight, char *error)
{
	size_t base = options->n_columns;

	for (size_t i = 0; i < n_of; i++) {
		char name[OPTIONS_COLUMN_NAME_MAX];
		struct column *column;
		size_t before;

		snprintf(name, sizeof name, "%.9s:%zu", of[i].name, inflight);
		if (columns_find(options, name, strlen(name), &before))
			return complain(error, "--inflight: %zu is there twice", inflight);
		if (options->n_columns == OPTIONS_COLUMNS_MAX)
			return complain(error, "--inflight: with the transports more than %d", OPTIONS_COLUMNS_MAX);
		column = add_column(options, name);
		column->transport = of[i].transport;
		column->inflight = inflight;
		column->base = base;
	}
	return 0;
}

static int make_calls(struct options *options, const struct column_words *words, char *error)
{
	const char *text = words->inflight ? words->inflight : "1,16,256";
	struct column of[OPTIONS_COLUMNS_MAX];
	size_t n_of;
	int r = make_transports(options, words->transports ? words->transports : all_transports, error);

	if (r < 0)
		return r;
	n_of = options->n_columns;
	memcpy(of, options->columns, sizeof of);
	for (options->n_columns = 0;; text++) {
		size_t inflight;

		if (!take_number(&text, INFLIGHT_MAX, &inflight))
			return complain(error, "--inflight: '%s' is not a list of numbers from 1 to %d", text,
				INFLIGHT_MAX);
		r = add_calls(options, of, n_of, inflight, error);
		if (r < 0 || !*text)
			return r;
	}
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
		if (words->transports)
			return complain(ret_error, "--transport: fanin measures wharf");
		return make_ports(options, words->ports ? words->ports : "1,10,100,1000,10000", ret_error);
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
