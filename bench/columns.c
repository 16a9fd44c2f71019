/* SPDX-License-Identifier: MIT */
/* Columns: their lists, as people write them. */
#include "columns.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "fairness.h"

enum { PORTS_MAX = 1000000 };

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

int columns_make(struct options *options, const struct column_words *words, char ret_error[COLUMNS_ERROR_MAX])
{
	switch (options->mode) {
	case MODE_THROUGHPUT:
	case MODE_LATENCY:
		if (words->ports)
			return complain(ret_error, "--ports is for fanin");
		return make_transports(options, words->transports ? words->transports : "wharf,seqpacket,stream",
			ret_error);
	case MODE_FANIN:
		if (words->transports)
			return complain(ret_error, "--transport: fanin measures wharf");
		return make_ports(options, words->ports ? words->ports : "1,10,100,1000,10000", ret_error);
	case MODE_FAIRNESS:
		if (words->transports || words->ports)
			return complain(ret_error, "--transport, --ports: fairness measures three ports of wharf");
		for (unsigned scenario = 0; scenario < SCENARIOS; scenario++)
			add_column(options, fairness_scenarios[scenario])->scenario = scenario;
		return 0;
	case MODE_PROBE:
		return 0;
	}
	return -EINVAL;
}
