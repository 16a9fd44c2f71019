/* SPDX-License-Identifier: MIT */
/* Listening and connecting: addresses, socket files, who is there. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "harness.h"
#include "pair.h"

static struct pair p;
static wharf_listener *listener;
static unsigned n_accepted, n_refused, n_errors;
static struct wharf_peer who_came, who_was_refused;
static bool keep;

static void on_accept(wharf_listener *l, const struct wharf_peer *who, void *user)
{
	cr_assert_eq(l, listener);
	n_accepted++;
	who_came = *who;
	if (keep) {
		cr_assert_eq(wharf_accept(l, WHARF_OPT(port, .ops = &end_ops, .user = user), &p.b.port), 0);
		cr_assert_eq(wharf_accept(l, WHARF_OPT(port, .ops = &end_ops, .user = user), NULL), -EALREADY);
	}
}

static void on_refuse(wharf_listener *l, const struct wharf_peer *who, void *user)
{
	cr_assert_eq(wharf_accept(l, WHARF_OPT(port, .ops = &end_ops, .user = user), NULL), -EALREADY);
	n_refused++;
	who_was_refused = *who;
}

static void on_error(wharf_listener *l, int error, void *user)
{
	(void)l;
	(void)user;
	cr_assert_eq(error, EMFILE);
	n_errors++;
}

static const struct wharf_listener_ops ops = {
	.size = sizeof(ops), .on_accept = on_accept, .on_error = on_error, .on_refuse = on_refuse
};

static void start_with(const char *address, const struct wharf_listener_options *options)
{
	struct wharf_listener_options o = *options;

	p = (struct pair){ 0 };
	p.a.pair = p.b.pair = &p;
	n_accepted = n_refused = n_errors = 0;
	keep = true;
	o.ops = &ops;
	o.user = &p.b;
	cr_assert_eq(wharf_loop_new(NULL, &p.loop), 0);
	cr_assert_eq(wharf_listen(p.loop, address, &o, &listener), 0);
}

static void start(const char *address) { start_with(address, WHARF_OPT(listener, .flags = 0)); }

static int try_listen(const char *address)
{
	wharf_listener *l;
	int error = wharf_listen(p.loop, address, WHARF_OPT(listener, .ops = &ops), &l);

	if (!error)
		wharf_listener_close(l);
	return error;
}

static int try_connect(const char *address)
{
	return wharf_connect(p.loop, address, WHARF_OPT(port, .ops = &end_ops, .user = &p.a), &p.a.port);
}

static void talk(const char *address)
{
	cr_assert_eq(try_connect(address), 0);
	cr_assert_eq(wharf_send_bytes(p.a.port, 1, "hello", 5), 0);
	settle_until(p.loop, &p.b.n_open, 1);
	settle(p.loop);
	cr_assert_eq(n_accepted, 1);
	cr_assert_eq(who_came.pid, getpid());
	cr_assert_eq(who_came.uid, getuid());
	cr_assert_eq(p.b.n_messages, 1);
}

Test(listener, a_path_works_and_goes_with_the_listener)
{
	char directory[HARNESS_PATH_MAX], path[HARNESS_PATH_MAX + 8];
	struct stat st;

	harness_dir_make(directory);
	snprintf(path, sizeof(path), "%s/s", directory);
	start(path);
	cr_assert_eq(stat(path, &st), 0);
	cr_assert_eq(st.st_mode & 07777, 0600);
	talk(path);
	cr_assert_null(wharf_listener_close(listener));
	cr_assert_eq(stat(path, &st), -1);
	settle(p.loop);
	cr_assert_eq(p.a.n_closed, 0, "accepted ports stay");
	pair_free(&p);
	harness_dir_remove(directory);
}

Test(listener, an_abstract_name_works)
{
	char name[HARNESS_PATH_MAX];

	harness_abstract_name(name);
	start(name);
	talk(name);
	pair_free(&p);
}

static void leave_stale(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	close(fd);
}

Test(listener, a_stale_file_is_replaced_and_nothing_else)
{
	char directory[HARNESS_PATH_MAX], path[HARNESS_PATH_MAX + 8];
	struct stat st;
	int fd;

	harness_dir_make(directory);
	snprintf(path, sizeof(path), "%s/s", directory);
	leave_stale(path);
	start(path);
	talk(path);
	cr_assert_eq(try_listen(path), -EADDRINUSE, "somebody listens");
	wharf_listener_close(listener);
	fd = open(path, O_CREAT | O_WRONLY, 0600);
	cr_assert_geq(fd, 0);
	close(fd);
	cr_assert_eq(try_listen(path), -EEXIST);
	cr_assert_eq(stat(path, &st), 0, "the file is not ours to remove");
	pair_free(&p);
	harness_dir_remove(directory);
}

Test(listener, one_that_lost_its_file_does_not_remove_anothers)
{
	char directory[HARNESS_PATH_MAX], path[HARNESS_PATH_MAX + 8];
	struct stat st;
	wharf_listener *second;

	harness_dir_make(directory);
	snprintf(path, sizeof(path), "%s/s", directory);
	start(path);
	cr_assert_eq(unlink(path), 0);
	cr_assert_eq(wharf_listen(p.loop, path, WHARF_OPT(listener, .ops = &ops), &second), 0);
	wharf_listener_close(listener);
	cr_assert_eq(stat(path, &st), 0);
	wharf_listener_close(second);
	cr_assert_eq(stat(path, &st), -1);
	pair_free(&p);
	harness_dir_remove(directory);
}

Test(listener, the_file_has_the_mode_that_was_asked_for_whatever_the_umask)
{
	char directory[HARNESS_PATH_MAX], path[HARNESS_PATH_MAX + 8], name[HARNESS_PATH_MAX];
	wharf_listener *open;
	struct stat st;

	harness_dir_make(directory);
	snprintf(path, sizeof(path), "%s/s", directory);
	harness_abstract_name(name);
	start(name);
	umask(077);
	cr_assert_eq(wharf_listen(p.loop, path, WHARF_OPT(listener, .ops = &ops, .mode = 0666), &open), 0);
	cr_assert_eq(stat(path, &st), 0);
	cr_assert_eq(st.st_mode & 07777, 0666);
	wharf_listener_close(open);
	umask(0);
	cr_assert_eq(wharf_listen(p.loop, path, WHARF_OPT(listener, .ops = &ops), &open), 0);
	cr_assert_eq(stat(path, &st), 0);
	cr_assert_eq(st.st_mode & 07777, 0600);
	cr_assert_eq(wharf_listen(p.loop, path, WHARF_OPT(listener, .ops = &ops, .mode = 010000), &open), -EINVAL);
	pair_free(&p);
	harness_dir_remove(directory);
}

enum { RACERS = 4, RACES = 40 };

struct race {
	const char *path;
	int start[2], results[2], finish[2]; /* an end of file says go */
};

static int race_for_path(void *arg)
{
	struct race *race = arg;
	wharf_listener *l = NULL;
	wharf_loop *loop;
	char byte, won;

	close(race->start[1]);
	close(race->finish[1]);
	HARNESS_REQUIRE(wharf_fork_child() == 0 && wharf_loop_new(NULL, &loop) == 0);
	HARNESS_REQUIRE(read(race->start[0], &byte, 1) == 0);
	int error = wharf_listen(loop, race->path, WHARF_OPT(listener, .ops = &ops), &l);
	HARNESS_REQUIRE(!error || error == -EADDRINUSE);
	won = !error;
	HARNESS_REQUIRE(write(race->results[1], &won, 1) == 1);
	HARNESS_REQUIRE(read(race->finish[0], &byte, 1) == 0);
	/* Not closed: the file must be there for the parent to look at. */
	return 0;
}

Test(listener, of_those_that_replace_a_stale_file_together_one_wins_and_is_reached)
{
	char directory[HARNESS_PATH_MAX], path[HARNESS_PATH_MAX + 8], name[HARNESS_PATH_MAX];

	harness_dir_make(directory);
	snprintf(path, sizeof(path), "%s/s", directory);
	for (int round = 0; round < RACES; round++) {
		struct harness_child racers[RACERS];
		struct race race = { .path = path };
		int n_won = 0;

		unlink(path);
		leave_stale(path);
		cr_assert(!pipe(race.start) && !pipe(race.results) && !pipe(race.finish));
		for (int i = 0; i < RACERS; i++)
			harness_child_start(&racers[i], race_for_path, &race);
		close(race.start[0]);
		close(race.finish[0]);
		close(race.results[1]);
		close(race.start[1]);
		for (int i = 0; i < RACERS; i++) {
			char won;
			cr_assert_eq(read(race.results[0], &won, 1), 1);
			n_won += won;
		}
		cr_assert_eq(n_won, 1, "%d hold the path in round %d", n_won, round);
		harness_abstract_name(name);
		start(name);
		cr_assert_eq(try_connect(path), 0);
		pair_free(&p);
		close(race.finish[1]);
		close(race.results[0]);
		for (int i = 0; i < RACERS; i++)
			cr_assert_eq(harness_child_wait(&racers[i], 10000), 0);
	}
	harness_dir_remove(directory);
}

Test(listener, a_directory_locked_by_a_stranger_does_not_hold_it_up, .timeout = 20)
{
	char directory[HARNESS_PATH_MAX], path[HARNESS_PATH_MAX + 8];
	int fd;

	harness_dir_make(directory);
	snprintf(path, sizeof(path), "%s/s", directory);
	leave_stale(path);
	fd = open(directory, O_RDONLY | O_DIRECTORY);
	cr_assert_eq(flock(fd, LOCK_EX), 0);
	start(path);
	talk(path);
	pair_free(&p);
	close(fd);
	harness_dir_remove(directory);
}

Test(listener, addresses_that_cannot_be_are_named)
{
	char name[HARNESS_PATH_MAX], longer[200];

	harness_abstract_name(name);
	start(name);
	memset(longer, 'x', sizeof(longer));
	longer[sizeof(longer) - 1] = '\0';
	cr_assert_eq(try_connect(""), -EINVAL);
	cr_assert_eq(try_connect("@"), -EINVAL);
	cr_assert_eq(try_connect(longer), -ENAMETOOLONG);
	cr_assert_eq(try_connect("/nonexistent/socket"), -ENOENT);
	cr_assert_eq(try_connect("@nobody-listens-on-this-name"), -ECONNREFUSED);
	cr_assert_eq(try_connect("/dev/null"), -ECONNREFUSED);
	cr_assert_eq(try_listen("/nonexistent/socket"), -ENOENT);
	cr_assert_eq(try_listen(longer), -ENAMETOOLONG);
	cr_assert_eq(try_listen(name), -EADDRINUSE);
	pair_free(&p);
}

Test(listener, a_connection_that_is_not_kept_is_closed)
{
	char name[HARNESS_PATH_MAX];

	harness_abstract_name(name);
	start(name);
	keep = false;
	cr_assert_eq(try_connect(name), 0);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE);
	cr_assert_eq(wharf_accept(listener, WHARF_OPT(port, .ops = &end_ops), NULL), -EALREADY);
	pair_free(&p);
}

Test(listener, who_is_not_on_the_list_is_closed_before_a_byte_is_read)
{
	uid_t others[] = { getuid() + 1, getuid() + 2 }, with_us[] = { getuid() + 1, getuid() };
	char name[HARNESS_PATH_MAX];

	harness_abstract_name(name);
	start_with(name, WHARF_OPT(listener, .allow_uids = others, .n_allow_uids = 2));
	cr_assert_eq(try_connect(name), 0);
	settle_until(p.loop, &p.a.n_closed, 1);
	cr_assert_eq(p.a.reason.code, WHARF_CLOSE_PEER_GONE);
	cr_assert_eq(p.a.n_open, 0);
	cr_assert_eq(n_accepted, 0);
	cr_assert_eq(n_refused, 1);
	cr_assert_eq(who_was_refused.uid, getuid());
	cr_assert_eq(who_was_refused.pid, getpid());
	pair_free(&p);
	harness_abstract_name(name);
	start_with(name, WHARF_OPT(listener, .allow_uids = with_us, .n_allow_uids = 2));
	with_us[1] = getuid() + 1; /* it was copied */
	talk(name);
	cr_assert_eq(n_refused, 0);
	pair_free(&p);
}

struct client {
	const char *name;
	uid_t uid;
};

static int connect_as(void *arg)
{
	const struct client *client = arg;
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	size_t length = strlen(client->name);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	char byte;

	memcpy(address.sun_path + 1, client->name + 1, length - 1);
	HARNESS_REQUIRE(seteuid(0) == 0 && setresuid(client->uid, client->uid, client->uid) == 0);
	HARNESS_REQUIRE(connect(fd, (struct sockaddr *)&address,
		(socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)) == 0);
	HARNESS_REQUIRE(read(fd, &byte, 1) == 0); /* until it is closed there */
	return 0;
}

static void let_in(const char *name, uid_t uid, bool allowed)
{
	struct client client = { .name = name, .uid = uid };
	unsigned accepted = n_accepted, refused = n_refused;
	struct harness_child child;

	harness_child_start(&child, connect_as, &client);
	settle_until(p.loop, allowed ? &n_accepted : &n_refused, (allowed ? accepted : refused) + 1);
	cr_assert_eq(n_accepted + n_refused, accepted + refused + 1);
	cr_assert_eq((allowed ? who_came : who_was_refused).uid, uid);
	cr_assert_eq(harness_child_wait(&child, 10000), 0);
}

Test(listener, the_same_user_is_who_we_are_now_and_root)
{
	char name[HARNESS_PATH_MAX];

	if (geteuid())
		cr_skip_test("only root can be others");
	harness_abstract_name(name);
	start_with(name, WHARF_OPT(listener, .flags = WHARF_LISTEN_SAME_USER));
	keep = false;
	let_in(name, 65533, false);
	cr_assert_eq(seteuid(65533), 0);
	let_in(name, 65533, true);
	let_in(name, 65532, false);
	let_in(name, 0, true);
	cr_assert_eq(seteuid(0), 0);
	pair_free(&p);
}

Test(listener, a_policy_that_cannot_be_is_refused)
{
	char name[HARNESS_PATH_MAX], other[HARNESS_PATH_MAX];
	uid_t uid = 0;
	wharf_listener *l;

	harness_abstract_name(name);
	harness_abstract_name(other);
	start(name);
	cr_assert_eq(wharf_listen(p.loop, other, WHARF_OPT(listener, .ops = &ops, .flags = 2), &l), -EINVAL);
	cr_assert_eq(wharf_listen(p.loop, other, WHARF_OPT(listener, .ops = &ops, .allow_uids = &uid), &l), -EINVAL);
	cr_assert_eq(wharf_listen(p.loop, other, WHARF_OPT(listener, .ops = &ops, .n_allow_uids = 1), &l), -EINVAL);
	pair_free(&p);
}

static int survive_emfile(void *arg)
{
	struct rlimit old, few;
	int fds[64], n = 0;

	(void)arg;
	start("@wharf-test-emfile");
	HARNESS_REQUIRE(try_connect("@wharf-test-emfile") == 0);
	HARNESS_REQUIRE(getrlimit(RLIMIT_NOFILE, &old) == 0);
	few = old;
	few.rlim_cur = 40;
	HARNESS_REQUIRE(setrlimit(RLIMIT_NOFILE, &few) == 0);
	while (n < 64 && (fds[n] = dup(0)) >= 0)
		n++;
	for (int i = 0; i < 100 && !n_errors; i++)
		HARNESS_REQUIRE(wharf_loop_step(p.loop, 10000000) >= 0);
	HARNESS_REQUIRE(n_errors > 0 && n_accepted == 0);
	while (n)
		close(fds[--n]);
	for (int i = 0; i < 300 && !p.b.n_open; i++)
		HARNESS_REQUIRE(wharf_loop_step(p.loop, 10000000) >= 0);
	HARNESS_REQUIRE(p.b.n_open == 1);
	wharf_loop_free(p.loop);
	return 0;
}

Test(listener, survives_having_no_descriptors_left)
{
	cr_assert_eq(harness_run(survive_emfile, NULL, 10000), 0);
}
