/* SPDX-License-Identifier: MIT */
/* The header as C++ sees it: every structure and initialiser, and functions that link as C. */
#include <wharf.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <unistd.h>

static void on_open(wharf_port *, const wharf_peer *, void *) {}
static void on_message(wharf_port *, const wharf_msg *, void *) {}
static void on_writable(wharf_port *, void *) {}
static void on_close(wharf_port *, const wharf_reason *, void *) {}

template <typename T> static bool is_cleared()
{
	T options, expected;
	WHARF_INIT(&options);
	std::memset(static_cast<void *>(&expected), 0, sizeof expected);
	expected.size = sizeof expected;
	return std::memcmp(&options, &expected, sizeof expected) == 0;
}

int main()
{
	/* `struct`, because functions of the same name hide two of them. */
	bool good = is_cleared<struct wharf_loop_options>() && is_cleared<struct wharf_pool_options>() &&
		is_cleared<struct wharf_loop_info>() && is_cleared<struct wharf_pool_info>() &&
		is_cleared<struct wharf_port_ops>() &&
		is_cleared<struct wharf_port_options>() && is_cleared<struct wharf_port_stats>() &&
		is_cleared<struct wharf_listener_ops>() && is_cleared<struct wharf_listener_options>() &&
		is_cleared<struct wharf_spawn_options>();

	wharf_port_ops ops;
	WHARF_INIT(&ops);
	ops.on_open = on_open;
	ops.on_message = on_message;
	ops.on_writable = on_writable;
	ops.on_close = on_close;

	wharf_port_options options;
	WHARF_INIT(&options);
	options.ops = &ops;
	wharf_out out = wharf_out();
	wharf_part part = wharf_part();
	wharf_buf buf = WHARF_BUF_EMPTY;
	part.buf = &buf;
	out.parts = &part;
	out.n_parts = 1;

	int fds[2];
	good = good && wharf_pair(fds) == 0 && fds[0] >= 0 && fds[1] >= 0;
	good = good && wharf_open(nullptr, fds[0], &options, nullptr) == -EINVAL;
	good = good && wharf_send(nullptr, &out) == -EINVAL;
	wharf_buf_abandon(&buf);
	close(fds[0]);
	close(fds[1]);

	char version[32];
	std::snprintf(version, sizeof version, "%d.%d.%d", WHARF_VERSION_MAJOR, WHARF_VERSION_MINOR, WHARF_VERSION_PATCH);
	good = good && std::strcmp(wharf_version(), version) == 0;
	std::puts(good ? "1 passed, 0 failed, 0 skipped" : "0 passed, 1 failed, 0 skipped");
	return !good;
}
