/* SPDX-License-Identifier: MIT */
/* Options: parsing by argp, each mistake told in one line. */
#include "options.h"

#include <argp.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "columns.h"
#include "process.h"
#include "wharf.h"

enum {
	EXIT_USAGE = 2,
	EXIT_SKIPPED = 77,

	OPTION_TOUCH = 256,
	OPTION_SECONDS,
	OPTION_CPUS,
	OPTION_NEAR_MAX,
	OPTION_PLACEMENT,
	OPTION_PATIENCE,
	OPTION_REQUIRE,
	OPTION_JSON,
	OPTION_SPIN,
	OPTION_WAIT,
	OPTION_INLINE_MAX,
	OPTION_POOL,
	OPTION_FRAME,
	OPTION_SNDBUF,
	OPTION_RX_BUFFERS,
	OPTION_PORTS,
	OPTION_SENDERS,
	OPTION_BURST,
	OPTION_FLOODS,
	OPTION_FLOOD_SIZE,
	OPTION_FLOOD_READS,
	OPTION_INFLIGHT,
	OPTION_REPLY_SIZE,
};

/* Calls: smaller payloads would be in chunks larger than themselves. */
enum { CALL_INLINE_MAX = 255 };

enum { SENDERS_MAX = 63, FLOODS_MAX = 1000, FLOOD_READS_MAX = 1000, BURST_MAX = 1 << 20 };

/* Tried from 208 KiB to 4 MiB: with less, large messages were slower; with more, nothing was clearly faster. */
enum { SNDBUF_DEFAULT = 1 << 20 };

static const char doc[] =
	"Measures message transports between processes on two CPUs, every message checked."
	"\vCommands: `throughput' sends as many messages as the transport takes; `latency' sends one at a time, to "
	"and fro, and times each round trip; `fanin' sends on many ports of wharf at once to one loop; `fairness' "
	"times round trips of small messages with a loop that large ones flood; `call' has many requests on their "
	"way at once, and times each until its reply has arrived; `probe' prints the round trip of a cache line "
	"between the two CPUs.\n"
	"\n"
	"Fan-in: every port sends the same number of messages, in bursts, by turns. Listed are their rate "
	"altogether; when the last port had all of its messages, in times of when the median port had; the fewest "
	"and the most that one port had when half of all had arrived, in times of the mean (few messages per port: "
	"this tells what lies in the pools, not who gets more; --seconds helps); and what a port costs the receiver, "
	"idle and used: heap, control memory (the library's, outside the heap), resident memory with shared "
	"segments, descriptors, mappings. The kernel's memory for sockets is not counted. All senders share one "
	"CPU. 640 MiB are shared by the pools of all ports, 64 KiB to 64 MiB each, if --pool does not say "
	"otherwise; every pool is gone through before the clocks start, and twice after that at least.\n"
	"\n"
	"Fairness: on two CPUs a flood takes time from the small port in two ways, by its processes' share of the "
	"CPUs and by its messages' share of the loop. So there are three scenarios: `quiet' has no flood; "
	"`elsewhere' has the same flood between the same CPUs, but into a loop of another process; `flood' has it "
	"in the same loop. The flood's ratio to `elsewhere' is what the loop does, the rest is what the scheduler "
	"does. A receiver that is faster than the sender has no flood to deal with: --flood-reads makes it slower.\n"
	"\n"
	"Calls: one process calls, the other one answers each request at once. With so many in flight the next "
	"request is made when a reply has arrived. A call's time runs from when its request, written, is given to "
	"the transport to when its reply was read; memory and buffers may let fewer be in flight than asked for: the "
	"mean is listed. Over sockets a request is one send behind a header of 16 bytes, and so is its reply; they "
	"come in order. What is compared has names like `wharf:16'; the ratio of a row is that of its calls per "
	"second to those of the first transport with as many in flight.\n"
	"\n"
	"Variants of wharf: `wharf/uring' and `wharf/epoll' run on that engine, whatever WHARF_ENGINE says; "
	"`wharf/blind' shows nothing to inspectors (WHARF_LOOP_UNSEEN); `wharf/traced' keeps its last events "
	"(WHARF_LOOP_TRACE). System calls per message are the sender's and the receiver's: those that send, receive "
	"and wait.\n"
	"\n"
	"SIZE is a number of bytes with an optional k, m or g. Message sizes are multiples of 8.\n"
	"\n"
	"The CPUs of a virtual machine move: near each other a cache line takes about 100 ns to and fro, far apart "
	"about 450. Each repetition is probed before and after, one during which they moved is repeated, and only "
	"like placements are compared. The ratio of a row is its median divided by the first one's: transport, "
	"number of ports, or scenario. Of calls see above; so it is for the ports of several variants.\n"
	"\n"
	"A requirement like `wharf/seqpacket>=30@64', `1000/1>=0.8@64', `flood/elsewhere<=3@64' or "
	"`wharf:16/seqpacket:16>=2@64' is about the ratio of two medians at a size (round trips: of their p50), in "
	"near placement if both were measured there, else in far placement. It can be given more than once.\n"
	"\n"
	"The form of the JSON is described in bench/json.c.\n"
	"\n"
	"Exit status: 0; 1 a transport failed, or a message was lost, changed or out of order; 2 bad options; 3 a "
	"requirement is not met, or was not measured; 77 there are no two CPUs, or a variant is not to be had here.";

static const struct argp_option option_table[] = {
	{ "sizes", 's', "SIZE,...", 0,
		"message sizes; default 64,256,1k,16k,1m; fanin 64,1k,16k; fairness 64, of the small messages; call "
		"64,1k,64k,1m, of requests", 1 },
	{ "transport", 't', "NAME,...", 0,
		"throughput, latency, call: of wharf, seqpacket, stream, and wharf/VARIANT; default the first three; "
		"fanin: of wharf and its variants", 1 },
	{ "inflight", OPTION_INFLIGHT, "N,...", 0, "call: requests on their way at once; default 1,16,256", 1 },
	{ "reply-size", OPTION_REPLY_SIZE, "SIZE", 0, "call: of replies; default that of the request", 1 },
	{ "ports", OPTION_PORTS, "N,...", 0, "fanin: numbers of ports; default 1,10,100,1000,10000", 1 },
	{ "senders", OPTION_SENDERS, "N", 0,
		"fanin: processes that share the ports; default as few as RLIMIT_NOFILE lets", 1 },
	{ "floods", OPTION_FLOODS, "N", 0, "fairness: flooding ports; default 1", 1 },
	{ "flood-size", OPTION_FLOOD_SIZE, "SIZE", 0, "fairness: messages of the flood; default 1m", 1 },
	{ "flood-reads", OPTION_FLOOD_READS, "N", 0,
		"fairness: times that a receiver reads each payload; default 1", 1 },
	{ "touch", OPTION_TOUCH, "full|first", 0, "write and read all of a payload (default) or its first word", 1 },
	{ "repeat", 'r', "N", 0, "repetitions of each size and transport, or the like; default 5", 1 },
	{ "seconds", OPTION_SECONDS, "S", 0, "length of a repetition, about; default 0.5", 1 },
	{ "spin", OPTION_SPIN, NULL, 0, "both sides poll instead of sleeping", 1 },
	{ "cpus", OPTION_CPUS, "A,B", 0, "the sender's and the receiver's CPU; default the first two", 2 },
	{ "near-max", OPTION_NEAR_MAX, "NS", 0, "cache line round trips below are near; default: found out", 2 },
	{ "placement", OPTION_PLACEMENT, "near|far|any", 0, "measure in this placement only; default any", 2 },
	{ "patience", OPTION_PATIENCE, "S", 0, "longest time to wait and repeat for placement; default 60", 2 },
	{ "require", OPTION_REQUIRE, "A/B>=X@SIZE", 0, "exit with status 3 if that is not so; <= as well", 3 },
	{ "json", OPTION_JSON, "FILE", OPTION_ARG_OPTIONAL, "print JSON, not a table; or write it to FILE as well", 3 },
	{ "help", 'h', NULL, 0, "print this and exit", -1 },
	{ "version", 'V', NULL, 0, "print the library's version and exit", -1 },
	{ "verbose", 'v', NULL, 0, "tell of each repetition on stderr", 3 },
	{ "inline-max", OPTION_INLINE_MAX, "SIZE", 0, "wharf: sizes up to this are sent as bytes; default 0, call 255", 4 },
	{ "pool", OPTION_POOL, "SIZE", 0, "wharf: the pool's bytes_max; default the library's", 4 },
	{ "rx-buffers", OPTION_RX_BUFFERS, "N", 0, "wharf: rx_buffers, a power of two; default the library's", 4 },
	{ "frame", OPTION_FRAME, "SIZE", 0, "wharf: frame_bytes_max; default the library's", 4 },
	{ "wait", OPTION_WAIT, "spin|block", 0, "wharf: what a sender without room does; default spin; call: blocks", 4 },
	{ "burst", OPTION_BURST, "N", 0,
		"fanin, fairness: messages to one port before the next has its turn; default 1024", 4 },
	{ "sndbuf", OPTION_SNDBUF, "SIZE", 0, "sockets: SO_SNDBUF; default 1m", 5 },
	{ NULL, 0, NULL, 0, NULL, 0 },
};

struct parser {
	struct options *options;
	const char *require[OPTIONS_REQUIREMENTS_MAX]; /* parsed last: they name sizes and transports */
	bool command, cpus, sizes, inline_max, told;
	struct column_words columns; /* likewise: which of them count depends on the command */
};

__attribute__((format(printf, 2, 3))) static error_t complain(struct parser *parser, const char *format, ...)
{
	va_list arguments;

	if (!parser->told) {
		fputs("wharf-bench: ", stderr);
		va_start(arguments, format);
		vfprintf(stderr, format, arguments);
		va_end(arguments);
		fputc('\n', stderr);
	}
	parser->told = true;
	return EINVAL;
}

const char *options_mode_name(enum mode mode)
{
	switch (mode) {
	case MODE_THROUGHPUT:
		return "throughput";
	case MODE_LATENCY:
		return "latency";
	case MODE_FANIN:
		return "fanin";
	case MODE_FAIRNESS:
		return "fairness";
	case MODE_CALL:
		return "call";
	case MODE_PROBE:
		return "probe";
	}
	return "unknown";
}

static error_t parse_command(struct parser *parser, const char *word)
{
	if (parser->command)
		return complain(parser, "one command at a time: '%s'", word);
	for (int mode = MODE_THROUGHPUT; mode <= MODE_PROBE; mode++) {
		if (!strcmp(word, options_mode_name((enum mode)mode))) {
			parser->options->mode = (enum mode)mode;
			parser->command = true;
			return 0;
		}
	}
	return complain(parser, "no such command: '%s'", word);
}

/* One of two words. */
static error_t parse_choice(struct parser *parser, const char *name, const char *word, const char *no, const char *yes,
	bool *ret_yes)
{
	if (strcmp(word, no) && strcmp(word, yes))
		return complain(parser, "--%s: '%s' is neither '%s' nor '%s'", name, word, no, yes);
	*ret_yes = !strcmp(word, yes);
	return 0;
}

/* Also takes what follows the number, when ret_end is given. */
static bool parse_number(const char *text, double min, double max, const char **ret_end, double *ret_number)
{
	char *end;
	double number = 0;

	if (!strchr("0123456789.", *text) || !*text)
		return false;
	number = strtod(text, &end);
	if (end == text || (!ret_end && *end) || !(number >= min && number <= max))
		return false;
	if (ret_end)
		*ret_end = end;
	*ret_number = number;
	return true;
}

static error_t parse_double(struct parser *parser, const char *name, const char *text, double min, double max,
	double *ret_number)
{
	if (!parse_number(text, min, max, NULL, ret_number))
		return complain(parser, "--%s: '%s' is not a number from %g to %g", name, text, min, max);
	return 0;
}

static error_t parse_count(struct parser *parser, const char *name, const char *text, size_t max, size_t *ret_count)
{
	double number = 0;
	error_t error = parse_double(parser, name, text, 1, (double)max, &number);

	if (!error && floor(number) < number)
		return complain(parser, "--%s: '%s' is not a whole number", name, text);
	if (!error)
		*ret_count = (size_t)number;
	return error;
}

/* From 2 on. */
static error_t parse_power(struct parser *parser, const char *name, const char *text, size_t max, size_t *ret_power)
{
	error_t error = parse_count(parser, name, text, max, ret_power);

	if (!error && (*ret_power < 2 || *ret_power & (*ret_power - 1)))
		return complain(parser, "--%s: '%s' is no power of two", name, text);
	return error;
}

static error_t parse_size(struct parser *parser, const char *name, const char *text, size_t min, size_t max,
	size_t *ret_size)
{
	char low[SIZE_TEXT_MAX], high[SIZE_TEXT_MAX];
	size_t size;

	if (size_parse(text, &size) < 0 || size < min || size > max)
		return complain(parser, "--%s: '%s' is not a size from %s to %s", name, text, size_print(min, low),
			size_print(max, high));
	*ret_size = size;
	return 0;
}

static error_t parse_message_size(struct parser *parser, const char *name, const char *text, size_t *ret_size)
{
	error_t error = parse_size(parser, name, text, 8, SIZE_MESSAGE_MAX, ret_size);

	return !error && *ret_size % 8 ? complain(parser, "--%s: no multiple of 8", name) : error;
}

static error_t parse_sizes(struct parser *parser, const char *text)
{
	char max[SIZE_TEXT_MAX];

	if (size_list_parse(text, &parser->options->sizes) < 0)
		return complain(parser, "--sizes: '%s' is not a list of up to %d different multiples of 8 from 8 to %s",
			text, SIZE_LIST_MAX, size_print(SIZE_MESSAGE_MAX, max));
	return 0;
}

/* What the command compares. */
static error_t make_columns(struct parser *parser)
{
	char error[COLUMNS_ERROR_MAX];

	return columns_make(parser->options, &parser->columns, error) < 0 ? complain(parser, "%s", error) : 0;
}

static void choose_sizes(struct options *options)
{
	static const struct size_list fanin = { { 64, 1024, 16384 }, 3 }, fairness = { { 64 }, 1 };
	static const struct size_list call = { { 64, 1024, 65536, 1 << 20 }, 4 };

	if (options->mode == MODE_FANIN)
		options->sizes = fanin;
	if (options->mode == MODE_FAIRNESS)
		options->sizes = fairness;
	if (options->mode == MODE_CALL)
		options->sizes = call;
}

static error_t parse_cpus(struct parser *parser, const char *text)
{
	int *cpus = parser->options->cpus, end = 0;

	if (sscanf(text, "%9d,%9d%n", &cpus[0], &cpus[1], &end) < 2 || text[end] || cpus[0] == cpus[1])
		return complain(parser, "--cpus: '%s' is not two different CPUs like 0,1", text);
	parser->cpus = true;
	return 0;
}

static error_t parse_placement(struct parser *parser, const char *word)
{
	struct options *options = parser->options;

	options->place_wanted = strcmp(word, "any") != 0;
	if (!options->place_wanted)
		return 0;
	for (int place = 0; place < PLACES; place++) {
		if (!strcmp(word, placement_name((enum place)place))) {
			options->place = (enum place)place;
			return 0;
		}
	}
	return complain(parser, "--placement: '%s' is neither 'near' nor 'far' nor 'any'", word);
}

/* Takes A/B off *text. Each may have a slash of its own: the one between them is where both sides are columns. */
static bool take_columns(const struct options *options, const char **text, size_t *ret_a, size_t *ret_b)
{
	const char *begin = *text, *end = begin + strcspn(begin, "<>");

	for (const char *p = begin; p < end; p++) {
		if (*p == '/' && columns_find(options, begin, (size_t)(p - begin), ret_a) &&
		    columns_find(options, p + 1, (size_t)(end - p - 1), ret_b)) {
			*text = end;
			return true;
		}
	}
	return false;
}

static error_t parse_requirement(struct parser *parser, const char *text)
{
	struct options *options = parser->options;
	struct requirement requirement = { .text = text };
	const char *p = text;
	size_t size;

	if (!take_columns(options, &p, &requirement.a, &requirement.b))
		return complain(parser, "--require: '%s' does not begin with two of what is compared, A/B", text);
	requirement.at_most = *p == '<';
	if (!*p || p[1] != '=' || !parse_number(p + 2, 0, 1e12, &p, &requirement.bound) || *p++ != '@' ||
	    size_parse(p, &size) < 0)
		return complain(parser, "--require: '%s' does not go on like >=1.5@64 or <=1.5@64", text);
	for (size_t i = 0; i < options->sizes.n; i++) {
		if (options->sizes.sizes[i] == size) {
			requirement.size = i;
			options->requirements[options->n_requirements++] = requirement;
			return 0;
		}
	}
	return complain(parser, "--require: '%s' is about a size that is not measured", text);
}

static error_t finish(struct parser *parser)
{
	struct plan *plan = &parser->options->plan;
	error_t error = 0;

	if (!parser->command)
		return complain(parser, "no command: throughput, latency, fanin, fairness, call or probe; see --help");
	if (!parser->sizes)
		choose_sizes(parser->options);
	if (plan->reply_size && parser->options->mode != MODE_CALL)
		return complain(parser, "--reply-size is for call");
	if (parser->options->mode == MODE_CALL) {
		plan->block = true;
		if (!parser->inline_max)
			plan->inline_max = CALL_INLINE_MAX;
	}
	error = make_columns(parser);
	for (size_t i = 0; !error && i < OPTIONS_REQUIREMENTS_MAX && parser->require[i]; i++)
		error = parse_requirement(parser, parser->require[i]);
	return error;
}

static error_t parse_option(int key, char *argument, struct argp_state *state);

static const struct argp grammar = {
	option_table, parse_option, "throughput|latency|fanin|fairness|call|probe", doc, NULL, NULL, NULL,
};

static error_t parse_option(int key, char *argument, struct argp_state *state)
{
	struct parser *parser = state->input;
	struct options *options = parser->options;
	bool yes = false;
	error_t error;

	switch (key) {
	case 's':
		parser->sizes = true;
		return parse_sizes(parser, argument);
	case 't':
		parser->columns.transports = argument;
		return 0;
	case OPTION_PORTS:
		parser->columns.ports = argument;
		return 0;
	case OPTION_INFLIGHT:
		parser->columns.inflight = argument;
		return 0;
	case OPTION_REPLY_SIZE:
		return parse_message_size(parser, "reply-size", argument, &options->plan.reply_size);
	case OPTION_SENDERS:
		return parse_count(parser, "senders", argument, SENDERS_MAX, &options->senders);
	case OPTION_BURST:
		return parse_count(parser, "burst", argument, BURST_MAX, &options->burst);
	case OPTION_FLOODS:
		return parse_count(parser, "floods", argument, FLOODS_MAX, &options->floods);
	case OPTION_FLOOD_SIZE:
		return parse_message_size(parser, "flood-size", argument, &options->flood_bytes);
	case OPTION_FLOOD_READS:
		return parse_count(parser, "flood-reads", argument, FLOOD_READS_MAX, &options->flood_reads);
	case 'r':
		return parse_count(parser, "repeat", argument, OPTIONS_REPEAT_MAX, &options->repeat);
	case 'h':
		argp_help(&grammar, stdout, ARGP_HELP_PRE_DOC | ARGP_HELP_USAGE | ARGP_HELP_LONG | ARGP_HELP_POST_DOC,
			state->name);
		exit(EXIT_SUCCESS);
	case 'V':
		puts(wharf_version());
		exit(EXIT_SUCCESS);
	case 'v':
		options->verbose = true;
		return 0;
	case OPTION_TOUCH:
		error = parse_choice(parser, "touch", argument, "full", "first", &yes);
		if (!error)
			options->plan.touch = yes ? TOUCH_FIRST : TOUCH_FULL;
		return error;
	case OPTION_SECONDS:
		return parse_double(parser, "seconds", argument, 0.001, 60, &options->seconds);
	case OPTION_SPIN:
		options->plan.spin = true;
		return 0;
	case OPTION_WAIT:
		return parse_choice(parser, "wait", argument, "spin", "block", &options->plan.block);
	case OPTION_CPUS:
		return parse_cpus(parser, argument);
	case OPTION_NEAR_MAX:
		return parse_double(parser, "near-max", argument, 1, 1e6, &options->near_max_ns);
	case OPTION_PLACEMENT:
		return parse_placement(parser, argument);
	case OPTION_PATIENCE:
		return parse_double(parser, "patience", argument, 0, 86400, &options->patience_s);
	case OPTION_REQUIRE:
		for (size_t i = 0; i < OPTIONS_REQUIREMENTS_MAX; i++) {
			if (!parser->require[i]) {
				parser->require[i] = argument;
				return 0;
			}
		}
		return complain(parser, "--require: more than %d", OPTIONS_REQUIREMENTS_MAX);
	case OPTION_JSON:
		options->json = !argument;
		options->json_path = argument;
		return 0;
	case OPTION_INLINE_MAX:
		parser->inline_max = true;
		return parse_size(parser, "inline-max", argument, 0, SIZE_MESSAGE_MAX, &options->plan.inline_max);
	case OPTION_POOL:
		return parse_size(parser, "pool", argument, 4096, (size_t)1 << 40, &options->plan.pool_bytes);
	case OPTION_FRAME:
		return parse_size(parser, "frame", argument, 4096, 65536, &options->plan.frame_bytes);
	case OPTION_RX_BUFFERS:
		return parse_power(parser, "rx-buffers", argument, 32768, &options->plan.rx_buffers);
	case OPTION_SNDBUF:
		return parse_size(parser, "sndbuf", argument, 4096, INT_MAX / 2, &options->plan.sndbuf);
	case ARGP_KEY_ARG:
		return parse_command(parser, argument);
	case ARGP_KEY_END:
		return finish(parser);
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int options_parse(int argc, char **argv, struct options *ret_options)
{
	struct options options = {
		.sizes = { { 64, 256, 1024, 16384, 1 << 20 }, 5 },
		.repeat = 5,
		.seconds = 0.5,
		.patience_s = 60,
		.plan = { .sndbuf = SNDBUF_DEFAULT },
		.burst = 1024,
		.floods = 1,
		.flood_bytes = 1 << 20,
		.flood_reads = 1,
	};
	struct parser parser = { .options = &options };
	int at = 0;

	/* argp's own messages take two lines, and without them its own --help is silent. */
	if (argp_parse(&grammar, argc, argv, ARGP_NO_ERRS | ARGP_NO_HELP, &at, &parser)) {
		/* The word before is the option when this one is its value. */
		at = at > 0 && at <= argc ? at - 1 : argc - 1;
		if (at > 1 && argv[at][0] != '-')
			at--;
		complain(&parser, "bad option, or one without its value: '%s'; see --help", argv[at]);
		return EXIT_USAGE;
	}
	if (!parser.cpus && process_cpus(options.cpus) < 0) {
		fputs("wharf-bench: skipped: needs two CPUs\n", stderr);
		return EXIT_SKIPPED;
	}
	for (int i = 0; i < 2; i++) {
		if (process_pin(options.cpus[1 - i]) < 0) {
			complain(&parser, "--cpus: no CPU %d here", options.cpus[1 - i]);
			return EXIT_USAGE;
		}
	}
	*ret_options = options;
	return 0;
}
