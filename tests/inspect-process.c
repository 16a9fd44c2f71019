/* SPDX-License-Identifier: MIT */
/* wharf-inspect as a child process. */
#include "inspect-process.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MS_ENOUGH = 60000 };

const char *inspect_number(int64_t number)
{
	static char texts[8][24];
	static unsigned n;
	char *text = texts[n++ % 8];

	snprintf(text, sizeof texts[0], "%" PRId64, number);
	return text;
}

static int exec_it(void *arg)
{
	struct inspector *inspector = arg;
	int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);

	HARNESS_REQUIRE(dup2(nothing, 0) == 0);
	HARNESS_REQUIRE(dup2(inspector->out, 1) == 1);
	HARNESS_REQUIRE(dup2(inspector->errors, 2) == 2);
	execv(inspector->argv[0], (char *const *)inspector->argv);
	perror(inspector->argv[0]);
	return 127;
}

static int unnamed(const char *name)
{
	int fd = memfd_create(name, MFD_CLOEXEC);

	cr_assert_geq(fd, 0);
	return fd;
}

static void start(struct inspector *inspector, va_list args)
{
	size_t n = 1;

	*inspector = (struct inspector){ .out = unnamed("out"), .errors = unnamed("errors") };
	inspector->argv[0] = getenv("WHARF_INSPECT");
	cr_assert(inspector->argv[0], "WHARF_INSPECT does not name the program");
	do
		cr_assert_lt(n, sizeof inspector->argv / sizeof *inspector->argv);
	while ((inspector->argv[n++] = va_arg(args, const char *)));
	harness_child_start(&inspector->child, exec_it, inspector);
}

void inspect_start(struct inspector *ret_inspector, ...)
{
	va_list args;

	va_start(args, ret_inspector);
	start(ret_inspector, args);
	va_end(args);
}

static char *content(int fd)
{
	struct stat status;
	char *text;

	cr_assert_eq(fstat(fd, &status), 0);
	text = calloc(1, (size_t)status.st_size + 1);
	cr_assert_eq(pread(fd, text, (size_t)status.st_size, 0), status.st_size);
	return text;
}

char *inspect_so_far(const struct inspector *inspector) { return content(inspector->out); }

static char *whole(int fd)
{
	char *text = content(fd);

	close(fd);
	return text;
}

void inspect_finish(struct inspector *inspector, struct said *ret_said)
{
	bool json = false;

	for (size_t i = 1; inspector->argv[i]; i++)
		json |= !strcmp(inspector->argv[i], "--json");
	*ret_said = (struct said){ .status = harness_child_wait(&inspector->child, MS_ENOUGH) };
	ret_said->out = whole(inspector->out);
	ret_said->errors = whole(inspector->errors);
	cr_expect(ret_said->status >= 0 && ret_said->status <= 2, "status %d: %s", ret_said->status, ret_said->errors);
	if (json && ret_said->status != 2 && strcmp(inspector->argv[1], "trace") != 0) {
		ret_said->json = json_tokener_parse(ret_said->out);
		cr_assert(ret_said->json, "no JSON: %s\n%s", ret_said->out, ret_said->errors);
		cr_assert_str_eq(said_text(ret_said, "/schema"), "wharf-inspect/1");
	}
}

void inspect(struct said *ret_said, ...)
{
	struct inspector inspector;
	va_list args;

	va_start(args, ret_said);
	start(&inspector, args);
	va_end(args);
	inspect_finish(&inspector, ret_said);
}

void said_free(struct said *said)
{
	json_object_put(said->json);
	free(said->out);
	free(said->errors);
}

struct json_object *said_at(const struct said *said, const char *format, ...)
{
	struct json_object *found = NULL;
	char pointer[128];
	va_list args;

	va_start(args, format);
	vsnprintf(pointer, sizeof pointer, format, args);
	va_end(args);
	cr_assert_eq(json_pointer_get(said->json, pointer, &found), 0, "no %s in %s\n%s", pointer, said->out,
		said->errors);
	return found;
}

bool said_has_flag(const struct said *said, const char *pointer, const char *flag)
{
	struct json_object *flags = said_at(said, "%s", pointer);

	for (size_t i = 0; i < json_object_array_length(flags); i++)
		if (!strcmp(json_object_get_string(json_object_array_get_idx(flags, i)), flag))
			return true;
	return false;
}

bool said_one_line(const struct said *said)
{
	const char *end = strchr(said->errors, '\n');

	return end && !end[1] && !strncmp(said->errors, "wharf-inspect: ", 15);
}

unsigned said_widest(const struct said *said)
{
	unsigned widest = 0, width = 0;

	for (const char *p = said->out; *p; p++) {
		width = *p == '\n' ? 0 : width + (((unsigned char)*p & 0xc0) != 0x80);
		widest = width > widest ? width : widest;
	}
	return widest;
}
