/* SPDX-License-Identifier: MIT */
/* wharf-inspect, looking at processes whose state is known: values in its JSON, words in its text. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "inspect-process.h"
#include "wharf.h"

TestSuite(inspect, .timeout = 120);

/* A sender and a receiver that are each other's peers; ends in the order in which they are given. */
struct duo {
	struct scene receiver, sender;
};

static void duo_start(struct duo *duo, int (*receive)(struct scene *), int (*send)(struct scene *), int number)
{
	int fds[2];

	cr_assert_eq(wharf_pair(fds), 0);
	scene_start(&duo->receiver, receive, fds[0], 0);
	scene_start(&duo->sender, send, fds[1], number);
}

static void duo_end(struct duo *duo)
{
	scene_end(&duo->sender);
	scene_end(&duo->receiver);
}

/* ---- States --------------------------------------------------------------------------------------------------- */

Test(inspect, a_receiver_that_releases_nothing_is_seen_with_what_it_holds)
{
	struct duo duo;
	struct said said;
	size_t n_runs;

	duo_start(&duo, play_keeper, play_lender, 5);
	inspect_pid(&said, duo.sender.child.pid, "chunks", "--json");
	cr_expect_eq(said.status, 0, "%s", said.errors);
	n_runs = said_length(&said, "/processes/0/pools/0/runs");
	cr_expect_eq(n_runs, 5, "%s", said.out);
	for (size_t i = 0; i < n_runs; i++) {
		cr_expect_eq(said_count(&said, "/processes/0/pools/0/runs/%zu/peer_pid", i), (uint64_t)duo.receiver.child.pid);
		cr_expect_geq(said_count(&said, "/processes/0/pools/0/runs/%zu/bytes", i), 3000);
		cr_expect_eq(said_count(&said, "/processes/0/pools/0/runs/%zu/holders", i), 1);
		cr_expect_neq(said_at(&said, "/processes/0/pools/0/runs/%zu/lent_for_ns", i), NULL);
	}
	cr_expect_eq(said_count(&said, "/processes/0/pools/0/lent_bytes"),
		said_count(&said, "/processes/0/pools/0/leases/0/lent_bytes"));
	said_free(&said);

	/* What it says is true of it: nothing has been lent for an hour, everything for longer than nothing. */
	inspect_pid(&said, duo.sender.child.pid, "chunks", "--older-than=1h");
	cr_expect_eq(said.status, 1);
	expect_out(&said, "nothing is lent or claimed for longer");
	said_free(&said);
	inspect_pid(&said, duo.sender.child.pid, "chunks", "--older-than=1ns", "--ascii");
	cr_expect_eq(said.status, 0);
	expect_out(&said, inspect_number(duo.receiver.child.pid));
	said_free(&said);
	duo_end(&duo);
}

Test(inspect, the_map_of_a_segment_has_one_sign_for_each_chunk)
{
	struct duo duo;
	struct said said;
	const char *map;
	size_t n_lent = 0;

	duo_start(&duo, play_keeper, play_lender, 3);
	inspect_pid(&said, duo.sender.child.pid, "show", "--json");
	map = said_text(&said, "/processes/0/pools/0/segments/0/map");
	cr_expect_eq(strlen(map), said_count(&said, "/processes/0/pools/0/segments/0/chunks"));
	cr_expect_eq(strspn(map, ".o#&"), strlen(map));
	for (const char *p = map; *p; p++)
		n_lent += *p == '#';
	cr_expect_eq(n_lent * said_count(&said, "/processes/0/pools/0/segments/0/chunk_bytes"),
		said_count(&said, "/processes/0/pools/0/segments/0/lent_bytes"));
	said_free(&said);
	duo_end(&duo);
}

Test(inspect, both_ends_of_a_port_are_counted_alike)
{
	struct duo duo;
	struct said sender, receiver;

	duo_start(&duo, play_reader, play_lender, 9);
	inspect_pid(&sender, duo.sender.child.pid, "ports", "--json");
	inspect_pid(&receiver, duo.receiver.child.pid, "ports", "--json");
	cr_expect_eq(said_length(&sender, "/processes/0/ports"), 1);
	cr_expect_str_eq(said_text(&sender, "/processes/0/ports/0/state"), "open");
	cr_expect_eq(said_count(&sender, "/processes/0/ports/0/peer/pid"), (uint64_t)duo.receiver.child.pid);
	cr_expect_eq(said_count(&receiver, "/processes/0/ports/0/peer/pid"), (uint64_t)duo.sender.child.pid);
	cr_expect_eq(said_count(&sender, "/processes/0/ports/0/peer/uid"), geteuid());
	cr_expect_eq(said_count(&sender, "/processes/0/ports/0/tx_messages"), 9);
	cr_expect_eq(said_count(&receiver, "/processes/0/ports/0/rx_messages"), 9);
	cr_expect_eq(said_count(&receiver, "/processes/0/ports/0/rx_bytes"), 9 * 3000);
	cr_expect_eq(said_count(&sender, "/processes/0/ports/0/socket/unsent_bytes"), 0);
	said_free(&sender);
	said_free(&receiver);
	duo_end(&duo);
}

Test(inspect, a_stopped_peer_shows_on_both_sides)
{
	struct duo duo;
	struct said said;

	duo_start(&duo, play_reader, play_flooder, 0);
	scene_stop(&duo.receiver);
	harness_child_signal(&duo.sender.child, SIGUSR1);
	/* It is refused after as much as its queue and the socket take: then it says so. */
	for (int i = 0; i < 500; i++) {
		inspect_pid(&said, duo.sender.child.pid, "ports", "--json", "--interval=0");
		if (said_has_flag(&said, "/processes/0/ports/0/flags", "blocked"))
			break;
		said_free(&said);
	}
	cr_assert(said_has_flag(&said, "/processes/0/ports/0/flags", "blocked"), "%s", said.out);
	cr_expect_geq(said_count(&said, "/processes/0/ports/0/tx_queued_bytes"), 8192);
	cr_expect_geq(said_count(&said, "/processes/0/ports/0/tx_again"), 1);
	cr_expect_geq(said_count(&said, "/processes/0/ports/0/tx_unread_frames"), 1);
	cr_expect_gt(said_count(&said, "/processes/0/ports/0/blocked_for_ns"), 0);
	cr_expect_geq(said_count(&said, "/processes/0/ports/0/blocked_ns"),
		said_count(&said, "/processes/0/ports/0/longest_stall_ns"));
	cr_expect_gt(said_count(&said, "/processes/0/ports/0/socket/peer_unread_bytes"), 0);
	said_free(&said);

	inspect_pid(&said, duo.receiver.child.pid, "show", "--json");
	cr_expect_str_eq(said_text(&said, "/processes/0/state"), "T");
	said_free(&said);
	inspect_pid(&said, duo.receiver.child.pid, "list");
	expect_out(&said, "stopped");
	said_free(&said);
	duo_end(&duo);
}

Test(inspect, a_full_socket_is_told_from_a_slow_peer)
{
	struct scene scene;
	struct said said;
	size_t loop = 0, port = 0;
	char flags[48];

	scene_start(&scene, play_stuck, -1, 0);
	inspect_pid(&said, scene.child.pid, "show", "--json", "--interval=0");
	while (!said_count(&said, "/processes/0/ports/%zu/tx_messages", port))
		port++;
	while (said_count(&said, "/processes/0/loops/%zu/id", loop) != said_count(&said, "/processes/0/ports/%zu/loop", port))
		loop++;
	snprintf(flags, sizeof flags, "/processes/0/ports/%zu/flags", port);
	cr_expect(said_has_flag(&said, flags, "stuck"), "%s", said.out);
	cr_expect_geq(said_count(&said, "/processes/0/ports/%zu/tx_socket_full", port), 1);
	cr_expect_gt(said_count(&said, "/processes/0/ports/%zu/socket/peer_unread_bytes", port), 0);
	cr_expect_eq(said_count(&said, "/processes/0/loops/%zu/stuck", loop), 1);
	said_free(&said);
	inspect_pid(&said, scene.child.pid, "ports", "--interval=0");
	expect_out(&said, "  stuck\n");
	said_free(&said);
	scene_end(&scene);
}

Test(inspect, a_callback_that_hangs_is_named_with_its_port)
{
	struct duo duo;
	struct said said;
	int fds[2];

	cr_assert_eq(wharf_pair(fds), 0);
	/* The receiver is ready when it hangs, and the sender when it has sent. */
	scene_begin(&duo.receiver, play_hanger, fds[0], 0);
	scene_start(&duo.sender, play_lender, fds[1], 1);
	scene_await(&duo.receiver);
	inspect_pid(&said, duo.receiver.child.pid, "rings", "--json");
	cr_expect_str_eq(said_text(&said, "/processes/0/loops/0/phase"), "works");
	cr_expect_gt(said_count(&said, "/processes/0/loops/0/phase_for_ns"), 0);
	cr_expect_neq(said_count(&said, "/processes/0/loops/0/in_port"), 0);
	said_free(&said);
	duo_end(&duo);
}

Test(inspect, what_is_claimed_and_forgotten_is_no_loan_and_has_its_age)
{
	struct scene scene;
	struct said said;
	size_t leaky = 0;

	scene_start(&scene, play_leaker, -1, 12);
	inspect_pid(&said, scene.child.pid, "chunks", "--json");
	while (strcmp(said_text(&said, "/processes/0/pools/%zu/name", leaky), "leaky") != 0)
		leaky++;
	cr_expect_geq(said_count(&said, "/processes/0/pools/%zu/claimed_bytes", leaky), 12 * 1000);
	cr_expect_eq(said_count(&said, "/processes/0/pools/%zu/lent_bytes", leaky), 0);
	cr_expect_eq(said_length(&said, "/processes/0/pools/%zu/runs", leaky), 0);
	cr_expect_eq(said_length(&said, "/processes/0/pools/%zu/claims", leaky), 12, "%s", said.out);
	cr_expect_neq(said_at(&said, "/processes/0/pools/%zu/claims/0/claimed_for_ns", leaky), NULL);
	said_free(&said);
	inspect_pid(&said, scene.child.pid, "chunks", "--older-than=1ns");
	expect_out(&said, "CLAIMED FOR");
	said_free(&said);
	scene_end(&scene);
}

Test(inspect, a_violation_is_counted)
{
	struct scene scene;
	struct said said;

	scene_start(&scene, play_victim, -1, 0);
	inspect_pid(&said, scene.child.pid, "rings", "--json");
	cr_expect_eq(said_count(&said, "/processes/0/loops/0/violations"), 1);
	cr_expect_eq(said_count(&said, "/processes/0/loops/0/ports_closed"), 1);
	said_free(&said);
	scene_end(&scene);
}

Test(inspect, rings_are_seen_as_the_kernel_has_them)
{
	struct duo duo;
	struct said said;
	struct json_object *kernel;

	duo_start(&duo, play_reader, play_lender, 3);
	inspect_pid(&said, duo.receiver.child.pid, "rings", "--json");
	kernel = said_at(&said, "/processes/0/loops/0/kernel");
	if (!strcmp(said_text(&said, "/processes/0/loops/0/engine"), "io_uring")) {
		cr_expect_eq(said_count(&said, "/processes/0/loops/0/kernel/unsubmitted"), 0);
		cr_expect_eq(said_count(&said, "/processes/0/loops/0/kernel/unreaped"), 0);
		cr_expect_eq(said_count(&said, "/processes/0/loops/0/kernel/parked_sends"), 0);
		cr_expect_eq(said_count(&said, "/processes/0/loops/0/kernel/armed/recvmsg"),
			said_count(&said, "/processes/0/loops/0/armed/receive"));
	} else {
		cr_expect(json_object_object_get_ex(kernel, "epoll_descriptors", NULL));
	}
	cr_expect_geq(said_count(&said, "/processes/0/loops/0/system_calls"), 1);
	said_free(&said);
	duo_end(&duo);
}

Test(inspect, a_thousand_ports)
{
	struct scene scene;
	struct said said;
	const unsigned n = harness_raise_fds(2500) ? 500 : 50;

	scene_start(&scene, play_crowd, -1, (int)n);
	inspect_pid(&said, scene.child.pid, "ports", "--json");
	cr_expect_eq(said_length(&said, "/processes/0/ports"), 2 * n);
	cr_expect_eq(said_count(&said, "/processes/0/n_pools"), 2 * n);
	for (size_t i = 0; i < 2 * n; i += 97)
		cr_expect_str_eq(said_text(&said, "/processes/0/ports/%zu/state", i), "open");
	said_free(&said);
	inspect_pid(&said, scene.child.pid, "show", "--width=40");
	cr_expect_eq(said.status, 0);
	cr_expect_leq(said_widest(&said), 40, "%s", said.out);
	expect_out(&said, "and");
	said_free(&said);
	scene_end(&scene);
}

/* ---- Views ---------------------------------------------------------------------------------------------------- */

Test(inspect, every_view_fits_its_width)
{
	static const char *const views[] = { "list", "show", "rings", "ports", "chunks" };
	static const char *const widths[] = { "--width=40", "--width=60", "--width=80", "--width=200" };
	struct duo duo;
	struct said said;

	duo_start(&duo, play_keeper, play_lender, 8);
	for (size_t v = 0; v < sizeof views / sizeof *views; v++) {
		for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
			inspect_pid(&said, duo.sender.child.pid, views[v], widths[w], "--interval=1ms");
			cr_expect_eq(said.status, 0, "%s %s: %s", views[v], widths[w], said.errors);
			cr_expect_leq(said_widest(&said), (unsigned)atoi(widths[w] + 8), "%s %s:\n%s", views[v], widths[w],
				said.out);
			cr_expect(!strchr(said.out, '\033'), "colours where no terminal is");
			said_free(&said);
		}
	}
	duo_end(&duo);
}

Test(inspect, block_characters_only_where_the_locale_has_them)
{
	struct duo duo;
	struct said said;

	duo_start(&duo, play_keeper, play_lender, 2);
	setenv("LC_ALL", "C", 1);
	inspect_pid(&said, duo.sender.child.pid, "chunks");
	for (const char *p = said.out; *p; p++)
		cr_assert((unsigned char)*p < 0x80, "%s", said.out);
	expect_out(&said, "#");
	said_free(&said);
	setenv("LC_ALL", "C.UTF-8", 1);
	inspect_pid(&said, duo.sender.child.pid, "chunks");
	expect_out(&said, "\u2588");
	said_free(&said);
	inspect_pid(&said, duo.sender.child.pid, "chunks", "--color=always");
	expect_out(&said, "\033[33m");
	said_free(&said);
	duo_end(&duo);
}

Test(inspect, the_list_has_them_all_and_looks_need_no_help)
{
	struct duo duo;
	struct said said;
	int found = 0;

	duo_start(&duo, play_keeper, play_lender, 2);
	scene_stop(&duo.receiver);
	scene_stop(&duo.sender);
	inspect(&said, "list", "--json", NULL);
	for (size_t i = 0; i < said_length(&said, "/processes"); i++) {
		int pid = (int)said_count(&said, "/processes/%zu/pid", i);
		found += pid == duo.receiver.child.pid || pid == duo.sender.child.pid;
	}
	cr_expect_eq(found, 2);
	said_free(&said);
	duo_end(&duo);
}

/* In seconds. */
static double silent_for(const struct said *said)
{
	const char *sample = strstr(said->out, "\nwharf_port_peer_silent_seconds{");

	sample = sample ? strstr(sample, "} ") : NULL;
	cr_assert_not_null(sample);
	return strtod(sample + 2, NULL);
}

Test(inspect, a_peer_that_has_read_a_little_is_not_silent_to_a_collector)
{
	struct duo duo;
	struct said said;
	double silent = 0;

	/* It does not say that it has read so few; sooner or later it has. */
	duo_start(&duo, play_keeper, play_lender, 1);
	for (int i = 0; i < 100; i++) {
		inspect_pid(&said, duo.sender.child.pid, "prometheus");
		silent = silent_for(&said);
		said_free(&said);
		if (silent <= 0)
			break;
	}
	cr_expect_leq(silent, 0);
	duo_end(&duo);
}

Test(inspect, numbers_for_a_collector_name_each_metric_once)
{
	struct duo duo;
	struct said said;
	char pid[32];
	const char *first;

	duo_start(&duo, play_keeper, play_lender, 4);
	inspect_pid(&said, duo.sender.child.pid, "prometheus");
	cr_expect_eq(said.status, 0);
	snprintf(pid, sizeof pid, "pid=\"%d\"", duo.sender.child.pid);
	expect_out(&said, pid);
	expect_out(&said, "\nwharf_port_sent_messages_total{");
	expect_out(&said, "state=\"lent\"");
	first = strstr(said.out, "# TYPE wharf_port_sent_messages_total counter");
	cr_assert_not_null(first);
	cr_expect_null(strstr(first + 1, "# TYPE wharf_port_sent_messages_total "));
	said_free(&said);
	duo_end(&duo);
}
