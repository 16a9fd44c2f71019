/* SPDX-License-Identifier: MIT */
/* Listening and connecting: addresses, socket files, who is there. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "harness.h"
#include "pair.h"

static struct pair p;
static wharf_listener *listener;
static unsigned n_accepted, n_errors;
static struct wharf_peer who_came;
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

static void on_error(wharf_listener *l, int error, void *user)
{
	(void)l;
	(void)user;
	cr_assert_eq(error, EMFILE);
	n_errors++;
}

static const struct wharf_listener_ops ops = { .size = sizeof(ops), .on_accept = on_accept, .on_error = on_error };

static void start(const char *address)
{
	p = (struct pair){ 0 };
	p.a.pair = p.b.pair = &p;
	n_accepted = n_errors = 0;
	keep = true;
	cr_assert_eq(wharf_loop_new(NULL, &p.loop), 0);
	cr_assert_eq(wharf_listen(p.loop, address, WHARF_OPT(listener, .ops = &ops, .user = &p.b), &listener), 0);
}

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

Test(listener, a_stale_file_is_replaced_and_nothing_else)
{
	char directory[HARNESS_PATH_MAX], path[HARNESS_PATH_MAX + 8];
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct stat st;
	int fd;

	harness_dir_make(directory);
	snprintf(path, sizeof(path), "%s/s", directory);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	close(fd);
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
