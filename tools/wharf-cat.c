/* SPDX-License-Identifier: MIT */
/* wharf-cat: a stream of bytes from one process to another on the same machine. */
#include "cat.h"

#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	OPTION_PLAIN = 256,
	OPTION_ANY_USER,
	WAIT_SECONDS_MAX = 1000000,
};

static const struct argp_option option_table[] = {
	{ .name = "listen", .key = 'l', .doc = "Receive: listen on ADDRESS, take one sender, write what it sends" },
	{ .name = "checksum", .key = 'c', .doc = "Compute SHA-256 and print it; given to the sender, both ends compare" },
	{ .name = "wait", .key = 'w', .arg = "SECONDS", .doc = "Wait so long for the other side to come" },
	{ .name = "quiet", .key = 'q', .doc = "No progress bar" },
	{ .name = "verbose", .key = 'v', .doc = "Tell who the other side is, and how long it took" },
	{ .name = "any-user", .key = OPTION_ANY_USER, .doc = "Accept another side that belongs to another user" },
	{ .name = "plain", .key = OPTION_PLAIN, .doc = "For comparison: an ordinary stream socket, without wharf" },
	{ 0 },
};

static error_t parse_wait(const char *text, int64_t *ret_ns)
{
	char *end;
	double seconds;

	errno = 0;
	seconds = strtod(text, &end);
	if (errno || end == text || *end || !(seconds >= 0 && seconds <= WAIT_SECONDS_MAX))
		return EINVAL;
	*ret_ns = (int64_t)(seconds * 1e9);
	return 0;
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
	struct cat_options *o = state->input;

	switch (key) {
	case 'l':
		o->listen = true;
		break;
	case 'c':
		o->checksum = true;
		break;
	case 'w':
		if (parse_wait(arg, &o->wait_ns) != 0)
			argp_error(state, "not a number of seconds: %s", arg);
		break;
	case 'q':
		o->quiet = true;
		break;
	case 'v':
		o->verbose = true;
		break;
	case OPTION_ANY_USER:
		o->any_user = true;
		break;
	case OPTION_PLAIN:
		o->plain = true;
		break;
	case ARGP_KEY_ARG:
		if (state->arg_num == 0)
			o->address = arg;
		else if (state->arg_num == 1)
			o->file = arg;
		else
			argp_error(state, "too many arguments: %s", arg);
		break;
	case ARGP_KEY_END:
		if (!o->address || !*o->address)
			argp_error(state, "no address given");
		if (o->plain && o->checksum)
			argp_error(state, "--plain carries bytes only, and no checksum");
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static void print_version(FILE *to, struct argp_state *state)
{
	(void)state;
	fprintf(to, "wharf-cat %s\n", wharf_version());
}

void (*argp_program_version_hook)(FILE *, struct argp_state *) = print_version;

static const struct argp argp = {
	.options = option_table,
	.parser = parse_option,
	.args_doc = "ADDRESS [FILE]",
	.doc = "Sends standard input, or FILE, to a wharf-cat --listen on this machine, which writes it to its standard "
	       "output, or FILE.\v"
	       "ADDRESS is the path of a socket, or a name in the abstract namespace with a leading @.\n\n"
	       "  wharf-cat --listen /tmp/dock > copy\n"
	       "  wharf-cat /tmp/dock < original\n\n"
	       "The exit status is 0 only if everything arrived and was written.",
};

/* A descriptor that we open must not land on 0, 1 or 2, where something else would be written into it. */
static void occupy_standard_fds(bool ret_was_closed[3])
{
	for (int fd = 0; fd < 3; fd++) {
		ret_was_closed[fd] = fcntl(fd, F_GETFD) < 0;
		if (ret_was_closed[fd] && open("/dev/null", O_RDWR) != fd)
			abort();
	}
}

static void on_diagnostic(const char *text, void *user)
{
	cat_say(user, "%s", text);
}

static int run_with_loop(struct cat *c)
{
	struct wharf_loop_options options;
	int r;

	WHARF_INIT(&options);
	options.diagnostic = c->options->verbose ? on_diagnostic : NULL;
	options.user = c;
	r = wharf_loop_new(&options, &c->loop);
	if (r == -EPERM || r == -EACCES || r == -ENOSYS)
		cat_fail(c, 0, "this system does not let us use io_uring: %s", strerror(-r));
	else if (r < 0)
		cat_fail(c, 0, "cannot start: %s", strerror(-r));
	if (r < 0)
		return cat_finish(c);
	if (wharf_loop_fd(c->loop) < 0) {
		cat_fail(c, 0, "cannot start: %s", strerror(-wharf_loop_fd(c->loop)));
		return cat_finish(c);
	}
	if (c->options->verbose)
		cat_say(c, "wharf %s, %s", wharf_version(), wharf_loop_engine(c->loop));
	cat_signals_wake(c->loop);
	r = c->options->listen ? cat_receive(c) : cat_send(c);
	cat_signals_wake(NULL);
	wharf_loop_free(c->loop);
	return r;
}

static int run(struct cat *c, const bool was_closed[3])
{
	if (!c->options->file && was_closed[c->options->listen ? STDOUT_FILENO : STDIN_FILENO])
		cat_fail(c, 0, "%s is closed", cat_file_name(c));
	if (c->options->checksum) {
		int r = cat_digest_start(&c->digest);

		if (r < 0)
			cat_fail(c, 0, "cannot compute a checksum: %s", strerror(-r));
	}
	if (*c->error)
		return cat_finish(c);
	if (c->options->plain)
		return c->options->listen ? cat_plain_receive(c) : cat_plain_send(c);
	return run_with_loop(c);
}

int main(int argc, char **argv)
{
	struct cat_options options = { .wait_ns = -1 };
	struct cat c = { .options = &options, .fd = -1 };
	bool was_closed[3];
	int r;

	occupy_standard_fds(was_closed);
	argp_err_exit_status = 2;
	argp_parse(&argp, argc, argv, 0, NULL, &options);
	cat_signals_install();
	cat_progress_init(&c.progress, !options.quiet, options.file ? -1 : options.listen ? STDOUT_FILENO : STDIN_FILENO);
	r = run(&c, was_closed);
	cat_digest_fini(&c.digest);
	if (cat_signal_caught()) {
		/* The caller shall see that it was the signal; SA_RESETHAND has made it deadly again. */
		raise(cat_signal_caught());
	}
	return r;
}
