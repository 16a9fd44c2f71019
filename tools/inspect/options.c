/* SPDX-License-Identifier: MIT */
/* The command line: parsing by argp, each mistake told in one line. */
#include "options.h"

#include <argp.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "names.h"
#include "term.h"
#include "unit.h"
#include "wharf.h"

enum {
	OPTION_CORE = 256,
	OPTION_OLDER,
	OPTION_PORT,
	OPTION_KINDS,
	OPTION_EVERY,
	OPTION_PCAPNG,
	OPTION_FOR,
	OPTION_POLICY,
	OPTION_ASCII,
	OPTION_COLOR,
	OPTION_WIDTH,

	WIDTH_MIN = 40,
	WIDTH_MAX = 1000,
};

static const char doc[] =
	"Looks into processes that use wharf, from outside: they are neither stopped nor asked, and may hang."
	"\vCommands: `list' shows all of them, `show' everything of one at once, `rings' what is between its loops and "
	"the kernel, `ports' who reads and who waits, `chunks' where memory is and who has it since when, `top' all of "
	"that live, `trace' what happens as it happens, `prometheus' numbers for a collector; `doctor' looks at this machine: what wharf pays for here, and what mends it.\n"
	"\n"
	"TIME is a number with ns, us, ms, s, m, h or d; seconds without.\n"
	"\n"
	"Exit status: 0; 1 nothing was found, or something could not be looked at, or costs; 2 bad options; 3 (doctor) wharf "
	"cannot run here.";

static const struct argp_option option_table[] = {
	{ "json", 'j', NULL, 0, "print JSON with exact values, schema wharf-inspect/1", 1 },
	{ "interval", 'i', "TIME", 0, "between the two looks that rates come from, or of top; 0: no rates", 1 },
	{ "core", OPTION_CORE, "FILE", 0, "show, ports, rings, chunks: look into a core dump", 1 },
	{ "older-than", OPTION_OLDER, "TIME", 0, "chunks: only what is lent or claimed for longer", 2 },
	{ "port", OPTION_PORT, "ID", 0, "ports, trace: only this one", 2 },
	{ "kinds", OPTION_KINDS, "NAME,...", 0, "trace: only these events", 3 },
	{ "every", OPTION_EVERY, NULL, 0, "trace: leave no event out, whatever that costs the process", 3 },
	{ "pcapng", OPTION_PCAPNG, "FILE", 0, "trace: write it for wireshark; - is standard output", 3 },
	{ "for", OPTION_FOR, "TIME", 0, "trace, top: end by itself", 3 },
	{ "policy", OPTION_POLICY, NULL, 0, "doctor: the system calls and operations that wharf needs", 3 },
	{ "ascii", OPTION_ASCII, NULL, 0, "no block characters, whatever the locale says", 4 },
	{ "color", OPTION_COLOR, "always|never|auto", 0, "default auto: on a terminal, without NO_COLOR", 4 },
	{ "width", OPTION_WIDTH, "COLUMNS", 0, "40 to 1000; default the terminal's", 4 },
	{ "help", 'h', NULL, 0, "print this and exit", -1 },
	{ "version", 'V', NULL, 0, "print the version and exit", -1 },
	{ NULL, 0, NULL, 0, NULL, 0 },
};

struct parser {
	struct options *options;
	bool told, width_given;
};

void complain(const char *format, ...)
{
	va_list arguments;

	fputs("wharf-inspect: ", stderr);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
}

/* One mistake is enough. */
#define REFUSE(parser, ...) ((parser)->told ? (void)0 : complain(__VA_ARGS__), (parser)->told = true, EINVAL)

static error_t parse_count(
	struct parser *parser, const char *name, const char *text, uint64_t min, uint64_t max, uint64_t *ret_count)
{
	char *end;
	unsigned long long number;

	errno = 0;
	number = strtoull(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || number < min || number > max)
		return REFUSE(parser, "%s: '%s' is not a number from %llu to %llu", name, text, (unsigned long long)min,
			(unsigned long long)max);
	*ret_count = number;
	return 0;
}

static error_t parse_time(struct parser *parser, const char *name, const char *text, uint64_t *ret_ns)
{
	if (!unit_parse_time(text, ret_ns))
		return REFUSE(parser, "--%s: '%s' is no time like 5s or 200ms", name, text);
	return 0;
}

static error_t parse_word(struct parser *parser, const char *word)
{
	struct options *options = parser->options;
	uint64_t pid;
	error_t error;

	if (!options->command) {
		for (const struct command *c = commands; c->name; c++)
			if (!strcmp(c->name, word))
				options->command = c;
		return options->command ? 0 : REFUSE(parser, "no such command: '%s'; see --help", word);
	}
	error = parse_count(parser, "PID", word, 1, INT_MAX, &pid);
	if (error)
		return error;
	options->pids = memory_grow(options->pids, options->n_pids, sizeof *options->pids);
	options->pids[options->n_pids++] = (pid_t)pid;
	return 0;
}

static error_t parse_kinds(struct parser *parser, const char *text)
{
	while (*text) {
		size_t n = strcspn(text, ",");
		uint32_t kind;

		if (!names_event_find(text, n, &kind))
			return REFUSE(parser, "--kinds: there is no event '%.*s'", (int)n, text);
		parser->options->kinds |= UINT32_C(1) << kind;
		text += n + (text[n] == ',');
	}
	return 0;
}

static error_t parse_colour(struct parser *parser, const char *word)
{
	if (!strcmp(word, "always") || !strcmp(word, "never"))
		parser->options->colour = *word == 'a';
	else if (strcmp(word, "auto") != 0)
		return REFUSE(parser, "--color: '%s' is neither 'always' nor 'never' nor 'auto'", word);
	return 0;
}

static error_t finish(struct parser *parser)
{
	struct options *o = parser->options;

	if (!o->command)
		return REFUSE(
			parser, "no command: list, show, rings, ports, chunks, top, trace, prometheus or doctor; see --help");
	if (o->core && !(o->command->flags & COMMAND_CORE))
		return REFUSE(parser, "--core is for show, ports, rings and chunks");
	if (o->core && o->n_pids)
		return REFUSE(parser, "--core or a PID, not both");
	if (o->json && !(o->command->flags & COMMAND_JSON))
		return REFUSE(parser, "%s has no JSON form", o->command->name);
	if (o->policy && strcmp(o->command->name, "doctor") != 0)
		return REFUSE(parser, "--policy is for doctor");
	if (o->command->flags & COMMAND_NEEDS_PID && o->n_pids != 1)
		return REFUSE(parser, "%s wants one PID", o->command->name);
	return 0;
}

static error_t parse_option(int key, char *argument, struct argp_state *state);
static const struct argp grammar = { option_table, parse_option, "COMMAND [PID...]", doc, NULL, NULL, NULL };

static error_t parse_option(int key, char *argument, struct argp_state *state)
{
	struct parser *parser = state->input;
	struct options *o = parser->options;
	uint64_t number;
	error_t error;

	switch (key) {
	case 'j':
		o->json = true;
		return 0;
	case 'i':
		o->interval_given = true;
		return parse_time(parser, "interval", argument, &o->interval_ns);
	case OPTION_CORE:
		o->core = argument;
		return 0;
	case OPTION_OLDER:
		return parse_time(parser, "older-than", argument, &o->older_than_ns);
	case OPTION_PORT:
		return parse_count(parser, "--port", argument, 1, UINT64_MAX, &o->port);
	case OPTION_KINDS:
		return parse_kinds(parser, argument);
	case OPTION_EVERY:
		o->every = true;
		return 0;
	case OPTION_PCAPNG:
		o->pcapng = argument;
		return 0;
	case OPTION_FOR:
		return parse_time(parser, "for", argument, &o->for_ns);
	case OPTION_POLICY:
		o->policy = true;
		return 0;
	case OPTION_ASCII:
		o->ascii = true;
		return 0;
	case OPTION_COLOR:
		return parse_colour(parser, argument);
	case OPTION_WIDTH:
		error = parse_count(parser, "--width", argument, WIDTH_MIN, WIDTH_MAX, &number);
		if (!error)
			o->width = (unsigned)number;
		return error;
	case 'h':
		argp_help(&grammar, stdout, ARGP_HELP_STD_HELP & ~ARGP_HELP_EXIT_OK, (char[]){ "wharf-inspect" });
		exit(EXIT_FINE);
	case 'V':
		printf("wharf-inspect %s\n", wharf_version());
		exit(EXIT_FINE);
	case ARGP_KEY_ARG:
		return parse_word(parser, argument);
	case ARGP_KEY_END:
		return finish(parser);
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int options_parse(int argc, char **argv, struct options *ret_options)
{
	struct options options = {
		.colour = term_colour(),
		.width = term_width(),
		.ascii = !term_utf8(),
		.interval_ns = 300000000,
	};
	struct parser parser = { .options = &options };
	int at = 0;

	/* argp's own messages take two lines, and without them its own --help is silent. */
	if (argp_parse(&grammar, argc, argv, ARGP_NO_ERRS | ARGP_NO_HELP, &at, &parser)) {
		/* The word before is the option when this one is its value. */
		at = at > 0 && at <= argc ? at - 1 : argc - 1;
		if (!parser.told)
			complain("bad option, or one without its value: '%s'; see --help", argv[at]);
		free(options.pids);
		return EXIT_USAGE;
	}
	*ret_options = options;
	return 0;
}
