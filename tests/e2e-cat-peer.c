/* SPDX-License-Identifier: MIT */
/* wharf-cat with another program at the other end: what it believes, and what it does not. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "cat-process.h"
#include "wharf.h"

/* Pinned here once more: a wharf-cat of another release may be at the other end. */
enum { START = 1, DATA = 2, END = 3, DONE = 4 };

enum {
	ABORT_PROTOCOL = 0x10002,
	ABORT_LENGTH = 0x10003,
	ABORT_DIGEST = 0x10004,
};

static const struct start {
	uint32_t version, checksum;
	uint64_t bytes;
} plain = { 1, 0, 3 }, summed = { 1, 1, 3 }, version_2 = { 2, 0, 3 }, both = { 1, 2, 3 };

static const struct end {
	uint64_t bytes;
	uint8_t digest[32];
} end_of_3 = { 3, { 0 } }, end_of_4 = { 4, { 0 } };

static const char abc[3] = "abc";

struct saying {
	uint32_t type;
	const void *bytes;
	size_t size;
};

#define SAYING(type, what) { type, &(what), sizeof(what) }

struct stranger {
	const struct saying *says;
	bool then_closes;
	bool closes_at_end;
	uint32_t aborts_at_end; /* with this code */
	bool heard_done;
	bool closed;
	uint32_t code, app_code;
	wharf_port *port;
};

static void on_open(wharf_port *port, const struct wharf_peer *peer, void *user)
{
	struct stranger *s = user;

	(void)peer;
	for (const struct saying *say = s->says; say->type; say++)
		cr_assert_eq(wharf_send_bytes(port, say->type, say->bytes, say->size), 0);
	if (s->then_closes)
		cr_assert_eq(wharf_port_close(port, -1), 0);
}

static void on_message(wharf_port *port, const struct wharf_msg *msg, void *user)
{
	struct stranger *s = user;

	s->heard_done |= msg->type == DONE;
	if (msg->type == END && s->closes_at_end)
		cr_assert_eq(wharf_port_close(port, -1), 0);
	if (msg->type == END && s->aborts_at_end)
		cr_assert_eq(wharf_port_abort(port, s->aborts_at_end), 0);
}

static void on_close(wharf_port *port, const struct wharf_reason *reason, void *user)
{
	struct stranger *s = user;

	(void)port;
	s->closed = true;
	s->code = reason->code;
	s->app_code = reason->app_code;
}

static const struct wharf_port_ops ops = {
	.size = sizeof ops, .on_open = on_open, .on_message = on_message, .on_close = on_close,
};

static void on_accept(wharf_listener *listener, const struct wharf_peer *who, void *user)
{
	struct stranger *s = user;

	(void)who;
	cr_assert_eq(wharf_accept(listener, WHARF_OPT(port, .ops = &ops, .user = user), &s->port), 0);
}

static const struct wharf_listener_ops listener_ops = { .size = sizeof listener_ops, .on_accept = on_accept };

static void connect_and_talk(struct stranger *s, const char *address)
{
	struct timespec pause = { .tv_nsec = 5000000 };
	wharf_loop *loop;
	int r;

	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	while ((r = wharf_connect(loop, address, WHARF_OPT(port, .ops = &ops, .user = s), &s->port)) != 0) {
		cr_assert(r == -ENOENT || r == -ECONNREFUSED, "%s", strerror(-r));
		nanosleep(&pause, NULL);
	}
	while (!s->closed)
		cr_assert_geq(wharf_loop_step(loop, -1), 0);
	wharf_loop_free(loop);
}

/* Says all that to a wharf-cat that receives into the file "copy", until one of the two has had enough. */
static void talk(struct stranger *s, struct cat *receiver)
{
	cat_start(receiver, -1, -1, "-l", cat_dock, cat_path("copy"), NULL);
	connect_and_talk(s, cat_dock);
}

TestSuite(cat_peer, .init = cat_dir_make, .fini = cat_dir_remove, .timeout = 60);

Test(cat_peer, a_receiver_believes_what_a_sender_should_say)
{
	const struct saying says[] = { SAYING(START, plain), SAYING(DATA, abc), SAYING(END, end_of_3), { 0 } };
	struct stranger stranger = { .says = says };
	struct cat receiver;

	talk(&stranger, &receiver);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 0, "%s", receiver.said);
	cr_expect(stranger.heard_done);
	cr_expect_eq(stranger.code, WHARF_CLOSE_PEER);
	cat_text_write(cat_path("original"), "abc");
	cr_expect(cat_files_same(cat_path("original"), cat_path("copy")));
}

Test(cat_peer, a_receiver_refuses_what_no_wharf_cat_says)
{
	const struct saying unbegun[] = { SAYING(DATA, abc), { 0 } };
	const struct saying ended_unbegun[] = { SAYING(END, end_of_3), { 0 } };
	const struct saying begun_twice[] = { SAYING(START, plain), SAYING(START, plain), { 0 } };
	const struct saying short_start[] = { { START, &plain, sizeof plain - 1 }, { 0 } };
	const struct saying short_end[] = { SAYING(START, plain), { END, &end_of_3, 8 }, { 0 } };
	const struct saying empty[] = { SAYING(START, plain), { DATA, NULL, 0 }, { 0 } };
	const struct saying unknown[] = { SAYING(START, plain), { 99, NULL, 0 }, { 0 } };
	const struct saying later_version[] = { SAYING(START, version_2), { 0 } };
	const struct saying odd_checksum[] = { SAYING(START, both), { 0 } };
	const struct saying *const all[] = {
		unbegun, ended_unbegun, begun_twice, short_start, short_end, empty, unknown, later_version, odd_checksum,
	};

	for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
		struct stranger stranger = { .says = all[i] };
		struct cat receiver;

		talk(&stranger, &receiver);
		cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 1, "case %zu", i);
		cr_expect_str_eq(receiver.said,
			"wharf-cat: the sender said what wharf-cat does not understand: 0 bytes arrived\n", "case %zu: %s", i,
			receiver.said);
		cr_expect_eq(stranger.code, WHARF_CLOSE_PEER_ABORTED, "case %zu: %u", i, stranger.code);
		cr_expect_eq(stranger.app_code, ABORT_PROTOCOL);
	}
}

Test(cat_peer, a_lost_piece_is_noticed_by_the_length)
{
	const struct saying says[] = { SAYING(START, plain), SAYING(DATA, abc), SAYING(END, end_of_4), { 0 } };
	struct stranger stranger = { .says = says };
	struct cat receiver;

	talk(&stranger, &receiver);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 1);
	cr_expect_str_eq(receiver.said, "wharf-cat: the length differs: 4 bytes were sent: 3 bytes arrived\n");
	cr_expect(!stranger.heard_done);
	cr_expect_eq(stranger.app_code, ABORT_LENGTH);
}

Test(cat_peer, a_changed_byte_is_noticed_by_the_checksum)
{
	const struct saying says[] = { SAYING(START, summed), SAYING(DATA, abc), SAYING(END, end_of_3), { 0 } };
	struct stranger stranger = { .says = says };
	struct cat receiver;

	talk(&stranger, &receiver);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 1);
	cat_expect_said(&receiver, "wharf-cat: the checksum differs: sent sha256 0000");
	cat_expect_one_line(&receiver);
	cr_expect(!stranger.heard_done);
	cr_expect_eq(stranger.app_code, ABORT_DIGEST);
}

Test(cat_peer, a_polite_goodbye_is_not_an_end)
{
	const struct saying says[] = { SAYING(START, plain), SAYING(DATA, abc), { 0 } };
	struct stranger stranger = { .says = says, .then_closes = true };
	struct cat receiver;

	talk(&stranger, &receiver);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 1);
	cr_expect_str_eq(receiver.said, "wharf-cat: sender ended before the end: 3 bytes arrived\n");
}

Test(cat_peer, a_sender_of_another_user_is_turned_away_and_the_listener_goes_on)
{
	const struct saying says[] = { SAYING(START, plain), SAYING(DATA, abc), SAYING(END, end_of_3), { 0 } };
	struct stranger stranger = { .says = says }, friend = { .says = says };
	char name[HARNESS_PATH_MAX];
	struct cat receiver;

	if (geteuid() != 0)
		cr_skip_test("only root can be another user");
	harness_abstract_name(name);
	cat_start(&receiver, -1, -1, "-l", name, NULL);
	cr_assert_eq(seteuid(65534), 0);
	connect_and_talk(&stranger, name);
	cr_assert_eq(seteuid(0), 0);
	connect_and_talk(&friend, name);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 0);
	cr_expect_str_eq(receiver.said, "wharf-cat: turned away a sender of user 65534 (--any-user to accept it)\n");
	cr_expect(!stranger.heard_done);
	cr_expect(friend.heard_done);
}

Test(cat_peer, who_connects_and_leaves_does_not_end_the_listener)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct cat sender, receiver;

	cat_start(&receiver, -1, -1, "-l", cat_dock, NULL);
	cat_path_await(cat_dock);
	snprintf(address.sun_path, sizeof address.sun_path, "%s", cat_dock);
	for (int i = 0; i < 10; i++) {
		int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

		while (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
			cr_assert_eq(errno, ECONNREFUSED);
		close(fd);
	}
	cat_start(&sender, -1, -1, cat_dock, NULL);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 0, "%s", sender.said);
	cr_expect_eq(cat_done(&receiver, MS_ENOUGH), 0, "%s", receiver.said);
	cr_expect_str_empty(receiver.said);
}

/* The other way round: a stranger listens, and a wharf-cat sends. */
static void listen_and_talk(struct stranger *s, struct cat *sender)
{
	wharf_listener *listener;
	wharf_loop *loop;

	cr_assert_eq(wharf_loop_new(NULL, &loop), 0);
	cr_assert_eq(wharf_listen(loop, cat_dock, WHARF_OPT(listener, .ops = &listener_ops, .user = s), &listener), 0);
	cat_text_write(cat_path("original"), "abc");
	cat_start(sender, -1, -1, cat_dock, cat_path("original"), NULL);
	while (!s->closed)
		cr_assert_geq(wharf_loop_step(loop, -1), 0);
	wharf_listener_close(listener);
	wharf_loop_free(loop);
}

Test(cat_peer, a_sender_believes_only_what_a_receiver_should_say)
{
	const struct saying unknown[] = { { 99, NULL, 0 }, { 0 } };
	const struct saying nothing[] = { { 0 } };
	struct stranger odd = { .says = unknown }, polite = { .says = nothing, .then_closes = true };
	struct cat sender;

	listen_and_talk(&odd, &sender);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 1);
	cat_expect_said(&sender, "wharf-cat: the receiver answered what wharf-cat does not understand: ");
	cat_expect_one_line(&sender);

	listen_and_talk(&polite, &sender);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 1);
	cat_expect_said(&sender, "wharf-cat: receiver ended before the end: ");
	cat_expect_one_line(&sender);
}

Test(cat_peer, a_sender_is_content_only_when_the_receiver_is)
{
	const struct saying nothing[] = { { 0 } };
	struct stranger full = { .says = nothing, .aborts_at_end = ENOSPC };
	struct stranger silent = { .says = nothing, .closes_at_end = true };
	struct cat sender;

	listen_and_talk(&full, &sender);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 1);
	cr_expect_str_eq(sender.said, "wharf-cat: receiver gave up: No space left on device: 3 bytes sent\n");

	listen_and_talk(&silent, &sender);
	cr_expect_eq(cat_done(&sender, MS_ENOUGH), 1);
	cr_expect_str_eq(sender.said, "wharf-cat: receiver ended before the end: 3 bytes sent\n");
}
