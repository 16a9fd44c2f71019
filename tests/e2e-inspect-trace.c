/* SPDX-License-Identifier: MIT */
/* wharf-inspect trace, following two processes that are busy with each other: what it says, and when it stops. */
#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "inspect-process.h"
#include "wharf.h"

TestSuite(inspect_trace, .timeout = 120);

/* Criterion writes down each assertion, passed ones too: of thousands of events only what fails. */
#define REQUIRE(x, text) ((x) ? (void)0 : fail(#x, (text)))
static void fail(const char *expression, const char *text) { cr_assert_fail("%s is not so of: %s", expression, text); }

struct traffic {
	struct scene answerer, talker;
};

static void traffic_start(struct traffic *traffic)
{
	int fds[2];

	cr_assert_eq(wharf_pair(fds), 0);
	scene_start(&traffic->answerer, play_answerer, fds[0], 0);
	scene_start(&traffic->talker, play_talker, fds[1], 0);
}

static void traffic_end(struct traffic *traffic)
{
	scene_end(&traffic->talker);
	scene_end(&traffic->answerer);
}

static uint64_t clock_now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- Lines of JSON -------------------------------------------------------------------------------------------- */

struct events {
	struct json_object **all;
	size_t n;
};

/* Each line is an object; one that is not whole yet is left for later. */
static void events_parse(struct events *ret_events, const char *text)
{
	*ret_events = (struct events){ 0 };
	for (const char *end; (end = strchr(text, '\n')); text = end + 1) {
		char *line = strndup(text, (size_t)(end - text));

		ret_events->all = realloc(ret_events->all, (ret_events->n + 1) * sizeof *ret_events->all);
		ret_events->all[ret_events->n] = json_tokener_parse(line);
		REQUIRE(ret_events->all[ret_events->n], line);
		ret_events->n++;
		free(line);
	}
}

static void events_free(struct events *events)
{
	for (size_t i = 0; i < events->n; i++)
		json_object_put(events->all[i]);
	free(events->all);
}

static struct json_object *member(struct json_object *event, const char *name)
{
	struct json_object *value = NULL;

	if (!json_object_object_get_ex(event, name, &value))
		cr_assert_fail("no %s in %s", name, json_object_get_string(event));
	return value;
}

static uint64_t number(struct json_object *event, const char *name)
{
	return json_object_get_uint64(member(event, name));
}

static const char *kind(struct json_object *event) { return json_object_get_string(member(event, "event")); }
static bool is_kind(struct json_object *event, const char *name) { return !strcmp(kind(event), name); }

static size_t events_count(const struct events *events, const char *name)
{
	size_t n = 0;

	for (size_t i = 0; i < events->n; i++)
		n += is_kind(events->all[i], name);
	return n;
}

/* For so long that each kind is among them: a round of the talker's is a few of its turns. */
#define follow(traffic, said, ...) \
	inspect((said), "trace", "--for=1s", __VA_ARGS__, inspect_number((traffic)->talker.child.pid), NULL)

/* ---- What it says ----------------------------------------------------------------------------------------------- */

/* What its numbers must be, besides those that say themselves what they mean. */
static bool is_sane(struct json_object *e)
{
	bool of_loop = is_kind(e, "turn") || is_kind(e, "sleep") || is_kind(e, "skipped");

	if (json_object_is_type(member(e, "port"), json_type_null) != of_loop)
		return false;
	if (is_kind(e, "claim") || (is_kind(e, "send") && number(e, "type") == 7))
		return number(e, "bytes") == TRAFFIC_BYTES;
	if (is_kind(e, "again"))
		return number(e, "errno") == EAGAIN;
	if (is_kind(e, "frame-out"))
		return (number(e, "messages") << 32 | number(e, "bytes")) == number(e, "b");
	if (is_kind(e, "frame-in"))
		return number(e, "lag_ns") == number(e, "a");
	if (is_kind(e, "call") || is_kind(e, "stream"))
		return number(e, "id") && !number(e, "of_peer");
	if (is_kind(e, "call-end"))
		return number(e, "end") == WHARF_END_LAST;
	if (is_kind(e, "close"))
		return number(e, "close") == WHARF_CLOSE_VIOLATION;
	if (is_kind(e, "skipped"))
		return number(e, "n") > 0 && json_object_get_string(member(e, "of"));
	return true;
}

Test(inspect_trace, each_kind_of_event_is_told_with_its_numbers)
{
	static const char *const kinds[] = { "claim", "send", "again", "frame-out", "full", "frame-in", "receive", "return",
		"stream", "stream-end", "call", "call-end", "violation", "close", "turn", "sleep", "skipped" };
	uint64_t began = clock_now(CLOCK_MONOTONIC), wall = clock_now(CLOCK_REALTIME), ended;
	struct traffic traffic;
	struct events events;
	struct said said;

	traffic_start(&traffic);
	follow(&traffic, &said, "--json");
	ended = clock_now(CLOCK_MONOTONIC);
	cr_expect_eq(said.status, 0, "%s", said.errors);
	events_parse(&events, said.out);
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
		cr_expect_gt(events_count(&events, kinds[i]), 0, "no %s", kinds[i]);
	for (size_t i = 0; i < events.n; i++) {
		struct json_object *e = events.all[i];

		REQUIRE(number(e, "time_ns") >= began && number(e, "time_ns") <= ended, json_object_get_string(e));
		/* Two clocks, of which somebody may set one meanwhile, but not by a minute. */
		REQUIRE(llabs((int64_t)(number(e, "wall_ns") - wall) - (int64_t)(number(e, "time_ns") - began)) < 60000000000,
			json_object_get_string(e));
		REQUIRE(is_sane(e), json_object_get_string(e));
	}
	events_free(&events);
	said_free(&said);
	traffic_end(&traffic);
}

Test(inspect_trace, in_words)
{
	static const char *const words[] = { "600 bytes, type 7", "waits: the socket is full", "begins, ours", " is whole",
		": answered", "violation", "bytes, EAGAIN", "more of send in this turn", "after it was sent" };
	struct traffic traffic;
	struct said said;

	traffic_start(&traffic);
	follow(&traffic, &said, "--ascii");
	cr_expect_eq(said.status, 0, "%s", said.errors);
	for (size_t i = 0; i < sizeof words / sizeof *words; i++)
		expect_out(&said, words[i]);
	for (const char *line = said.out; *line; line = strchr(line, '\n') + 1) {
		unsigned hour, minute, second, micro;

		REQUIRE(strchr(line, '\n') && sscanf(line, "%2u:%2u:%2u.%6u ", &hour, &minute, &second, &micro) == 4, line);
	}
	said_free(&said);
	traffic_end(&traffic);
}

Test(inspect_trace, only_what_was_asked_for)
{
	struct traffic traffic;
	struct events events;
	struct said said;
	char option[48];
	uint64_t port = 0;

	traffic_start(&traffic);
	follow(&traffic, &said, "--json", "--kinds=full,send");
	events_parse(&events, said.out);
	cr_expect_gt(events_count(&events, "full"), 0);
	cr_expect_gt(events_count(&events, "send"), 0);
	for (size_t i = 0; i < events.n; i++) {
		struct json_object *e = events.all[i];

		/* What is left out of sends is said. */
		REQUIRE(is_kind(e, "full") || is_kind(e, "send") ||
				(is_kind(e, "skipped") && !strcmp(json_object_get_string(member(e, "of")), "send")),
			json_object_get_string(e));
		port = is_kind(e, "full") ? number(e, "port") : port;
	}
	cr_expect_gt(events_count(&events, "skipped"), 0);
	events_free(&events);
	said_free(&said);

	snprintf(option, sizeof option, "--port=%" PRIu64, port);
	follow(&traffic, &said, "--json", option);
	events_parse(&events, said.out);
	cr_expect_gt(events_count(&events, "full"), 0);
	cr_expect_eq(events_count(&events, "violation"), 0, "of another port");
	for (size_t i = 0; i < events.n; i++)
		REQUIRE(is_kind(events.all[i], "skipped") || number(events.all[i], "port") == port,
			json_object_get_string(events.all[i]));
	events_free(&events);
	said_free(&said);
	traffic_end(&traffic);
}

/* The most sends with one time: those between two turns. */
static size_t largest_burst(const struct events *events)
{
	uint64_t time_ns = 0;
	size_t n = 0, most = 0;

	for (size_t i = 0; i < events->n; i++) {
		if (!is_kind(events->all[i], "send") || number(events->all[i], "type") != 7)
			continue;
		n = number(events->all[i], "time_ns") == time_ns ? n + 1 : 1;
		time_ns = number(events->all[i], "time_ns");
		most = n > most ? n : most;
	}
	return most;
}

Test(inspect_trace, a_few_of_each_kind_in_a_turn_or_every_one)
{
	struct traffic traffic;
	struct events events;
	struct said said;

	traffic_start(&traffic);
	follow(&traffic, &said, "--json", "--kinds=send");
	events_parse(&events, said.out);
	cr_expect(largest_burst(&events) > 1 && largest_burst(&events) <= 16, "%zu", largest_burst(&events));
	for (size_t i = 0; i < events.n; i++)
		if (is_kind(events.all[i], "skipped"))
			REQUIRE(number(events.all[i], "n") <= TRAFFIC_BURST, json_object_get_string(events.all[i]));
	events_free(&events);
	said_free(&said);

	follow(&traffic, &said, "--json", "--kinds=send", "--every");
	events_parse(&events, said.out);
	cr_expect_eq(largest_burst(&events), TRAFFIC_BURST);
	events_free(&events);
	said_free(&said);
	traffic_end(&traffic);
}

Test(inspect_trace, nothing_happens_or_it_ends_meanwhile)
{
	struct inspector inspector;
	struct traffic traffic;
	struct scene scene;
	struct said said;
	char *text;

	scene_start(&scene, play_leaker, -1, 1);
	inspect_pid(&said, scene.child.pid, "trace", "--for=100ms");
	cr_expect_eq(said.status, 1);
	expect_one_line(&said);
	expect_error(&said, "no events");
	said_free(&said);
	scene_end(&scene);

	traffic_start(&traffic);
	inspect_start(&inspector, "trace", inspect_number(traffic.talker.child.pid), NULL);
	while (text = inspect_so_far(&inspector), !*text) {
		free(text);
		usleep(10000);
	}
	free(text);
	traffic_end(&traffic);
	inspect_finish(&inspector, &said);
	cr_expect_eq(said.status, 0);
	expect_one_line(&said);
	expect_error(&said, "it has exited");
	said_free(&said);
}

/* ---- A file for wireshark ------------------------------------------------------------------------------------------ */

/* As the format says, draft-ietf-opsawg-pcapng; and the packet as the manual does. */
enum { SECTION = 0x0a0d0d0a, INTERFACE = 1, PACKET = 6, BYTE_MAGIC = 0x1a2b3c4d, USER0 = 147, PACKET_BYTES = 56 };

struct capture {
	size_t n_sections, n_interfaces, n_packets, n_full;
	uint64_t began_ns, ended_ns; /* by the wall's clock: packets lie between */
	uint32_t pid;
};

static uint32_t word(const unsigned char *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof value);
	return value;
}

static uint64_t long_word(const unsigned char *at)
{
	uint64_t value;

	memcpy(&value, at, sizeof value);
	return value;
}

/* The value of an option, or NULL; each lies inside. */
static const unsigned char *option(const unsigned char *at, const unsigned char *end, unsigned code, size_t *ret_size)
{
	const unsigned char *found = NULL;

	for (;;) {
		uint16_t head[2];

		REQUIRE(at + sizeof head <= end, "an option");
		memcpy(head, at, sizeof head);
		at += sizeof head;
		if (!head[0])
			break;
		REQUIRE(head[1] <= end - at, "an option");
		if (head[0] == code) {
			found = at;
			*ret_size = head[1];
		}
		at += (head[1] + 3u) & ~3u;
	}
	REQUIRE(at == end, "the end of the options");
	return found;
}

static void check_packet(struct capture *c, const unsigned char *body, const unsigned char *end)
{
	uint64_t time_ns = (uint64_t)word(body + 4) << 32 | word(body + 8);
	const unsigned char *data = body + 20, *comment;
	size_t n = 0;

	REQUIRE(word(body) == 0 && word(body + 12) == PACKET_BYTES && word(body + 16) == PACKET_BYTES, "a packet block");
	REQUIRE(time_ns >= c->began_ns && time_ns <= c->ended_ns, "its time");
	comment = option(data + PACKET_BYTES, end, 1, &n);
	REQUIRE(comment && n > 5 && (!memcmp(comment, "port ", 5) || !memcmp(comment, "loop ", 5)), "its comment");
	REQUIRE(word(data) == 1 && word(data + 8) == c->pid && word(data + 12) == 0, "a packet");
	REQUIRE(long_word(data + 16) != 0, "its loop");
	REQUIRE(long_word(data + 24) < time_ns, "a machine younger than the epoch");
	REQUIRE((comment[0] == 'p') == (long_word(data + 48) != 0), "its port");
	c->n_full += memmem(comment, n, " full frame ", 12) != NULL;
	c->n_packets++;
}

static void check_block(struct capture *c, const unsigned char *at, uint32_t size)
{
	const unsigned char *body = at + 8, *end = at + size - 4, *value;
	size_t n = 0;

	switch (word(at)) {
	case SECTION:
		cr_assert_eq(c->n_sections++, 0);
		cr_assert_eq(word(body), BYTE_MAGIC);
		cr_assert_eq(word(body + 4), 1, "version 1.0");
		cr_assert_eq(long_word(body + 8), UINT64_MAX, "length not known");
		value = option(body + 16, end, 4, &n);
		cr_assert(n == strlen("wharf-inspect") && !memcmp(value, "wharf-inspect", n));
		break;
	case INTERFACE:
		cr_assert(c->n_sections == 1 && c->n_interfaces++ == 0);
		cr_assert_eq(word(body), USER0);
		value = option(body + 8, end, 9, &n);
		cr_assert(n == 1 && *value == 9, "nanoseconds");
		break;
	case PACKET:
		REQUIRE(c->n_interfaces == 1, "a packet");
		check_packet(c, body, end);
		break;
	default:
		cr_assert_fail("block of type %x", word(at));
	}
}

Test(inspect_trace, a_file_for_wireshark)
{
	static unsigned char bytes[1 << 24];
	struct capture capture = { .began_ns = clock_now(CLOCK_REALTIME) };
	char dir[HARNESS_PATH_MAX], path[HARNESS_PATH_MAX + 8], option_text[HARNESS_PATH_MAX + 24];
	struct traffic traffic;
	struct said said;
	size_t n;
	FILE *file;

	harness_dir_make(dir);
	snprintf(path, sizeof path, "%s/trace", dir);
	snprintf(option_text, sizeof option_text, "--pcapng=%s", path);
	traffic_start(&traffic);
	follow(&traffic, &said, option_text);
	cr_expect_eq(said.status, 0, "%s", said.errors);
	cr_expect_str_empty(said.out);
	said_free(&said);
	capture.ended_ns = clock_now(CLOCK_REALTIME);
	capture.pid = (uint32_t)traffic.talker.child.pid;
	traffic_end(&traffic);

	file = fopen(path, "re");
	cr_assert_not_null(file);
	n = fread(bytes, 1, sizeof bytes, file);
	cr_assert(feof(file));
	fclose(file);
	for (size_t at = 0; at < n;) {
		uint32_t size;

		REQUIRE(at + 12 <= n, "a block");
		size = word(bytes + at + 4);
		REQUIRE(size >= 12 && size % 4 == 0 && size <= n - at, "a block");
		REQUIRE(word(bytes + at + size - 4) == size, "the length at its end");
		check_block(&capture, bytes + at, size);
		at += size;
	}
	cr_expect_gt(capture.n_packets, 100);
	cr_expect_gt(capture.n_full, 0);
	harness_dir_remove(dir);
}

Test(inspect_trace, a_file_that_cannot_be_written)
{
	struct traffic traffic;
	struct said said;

	traffic_start(&traffic);
	follow(&traffic, &said, "--pcapng=/nowhere/trace");
	cr_expect_eq(said.status, 1);
	expect_one_line(&said);
	said_free(&said);
	follow(&traffic, &said, "--pcapng=/dev/full");
	cr_expect_eq(said.status, 1);
	expect_error(&said, "not written");
	said_free(&said);
	traffic_end(&traffic);
}

/* ---- Several readers, and none ------------------------------------------------------------------------------------ */

static bool is_traced(pid_t pid)
{
	struct said said;
	bool traced;

	inspect_pid(&said, pid, "rings", "--json", "--interval=0");
	traced = said_has_flag(&said, "/processes/0/loops/0/flags", "tracing") ||
		said_has_flag(&said, "/processes/0/loops/1/flags", "tracing");
	said_free(&said);
	return traced;
}

static bool has_event_after(const struct inspector *inspector, uint64_t time_ns)
{
	char *text = inspect_so_far(inspector);
	struct events events;
	bool has = false;

	events_parse(&events, text);
	for (size_t i = 0; i < events.n; i++)
		has |= number(events.all[i], "time_ns") > time_ns;
	events_free(&events);
	free(text);
	return has;
}

Test(inspect_trace, two_readers_have_what_each_asked_for)
{
	struct inspector first;
	struct traffic traffic;
	struct events events;
	struct said said;
	uint64_t now;

	traffic_start(&traffic);
	inspect_start(&first, "trace", "--json", "--kinds=full", inspect_number(traffic.talker.child.pid), NULL);
	while (!has_event_after(&first, 0))
		usleep(10000);
	follow(&traffic, &said, "--json", "--kinds=call");
	cr_expect_eq(said.status, 0, "%s", said.errors);
	events_parse(&events, said.out);
	cr_expect_gt(events.n, 0);
	cr_expect_eq(events_count(&events, "call"), events.n);
	events_free(&events);
	said_free(&said);

	/* The end of the second is not that of the first. */
	now = clock_now(CLOCK_MONOTONIC);
	while (!has_event_after(&first, now))
		usleep(10000);
	harness_child_signal(&first.child, SIGTERM);
	inspect_finish(&first, &said);
	cr_expect_eq(said.status, 0);
	events_parse(&events, said.out);
	cr_expect_eq(events_count(&events, "full"), events.n);
	events_free(&events);
	said_free(&said);
	traffic_end(&traffic);
}

Test(inspect_trace, a_reader_that_was_killed_leaves_nothing_switched_on)
{
	struct inspector reader;
	struct traffic traffic;

	traffic_start(&traffic);
	cr_expect(!is_traced(traffic.talker.child.pid));
	inspect_start(&reader, "trace", "--every", inspect_number(traffic.talker.child.pid), NULL);
	while (!is_traced(traffic.talker.child.pid))
		usleep(10000);
	harness_child_signal(&reader.child, SIGKILL);
	harness_child_wait(&reader.child, 10000);
	close(reader.out);
	close(reader.errors);
	while (is_traced(traffic.talker.child.pid))
		usleep(100000);
	traffic_end(&traffic);
}
