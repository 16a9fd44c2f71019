/* SPDX-License-Identifier: MIT */
/* wharf-inspect doctor, on machines that lack something: what it says, what it advises, and its exit status. */
#include <criterion/criterion.h>
#include <errno.h>
#include <json-c/json.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "filter.h"

TestSuite(doctor, .timeout = 60);

/* What the child does to itself before it becomes the doctor. */
struct ailment {
	int uring_errno;      /* io_uring_setup answers it; 0: as it is */
	int memfd_errno;
	rlim_t descriptors;   /* 0: as they are */
	const char *engine;   /* WHARF_ENGINE */
	bool one_cpu;
};

static void suffer(const struct ailment *a)
{
	struct rlimit limit;

	if (a->descriptors && getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = a->descriptors;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	if (a->one_cpu) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(0, &set);
		if (sched_setaffinity(0, sizeof(set), &set) < 0)
			_exit(91);
	}
	unsetenv("WHARF_ENGINE");
	if (a->engine)
		setenv("WHARF_ENGINE", a->engine, 1);
	if (a->uring_errno && filter_refuse(SYS_io_uring_setup, (uint32_t)a->uring_errno) < 0)
		_exit(90);
	if (a->memfd_errno && filter_refuse(SYS_memfd_create, (uint32_t)a->memfd_errno) < 0)
		_exit(90);
}

/* The exit status; its standard output in `text`. */
static int run(const struct ailment *a, const char *option, const char *second, char *text, size_t size)
{
	const char *path = getenv("WHARF_INSPECT");
	int out[2], status;
	size_t n = 0;
	ssize_t more;
	pid_t pid;

	cr_assert(path, "WHARF_INSPECT names the program");
	cr_assert_eq(pipe(out), 0);
	pid = fork();
	cr_assert_geq(pid, 0);
	if (!pid) {
		suffer(a);
		if (dup2(out[1], STDOUT_FILENO) < 0)
			_exit(92);
		close(out[0]);
		close(out[1]);
		execl(path, path, "doctor", option, second, (char *)NULL);
		_exit(93);
	}
	close(out[1]);
	while (n < size - 1 && (more = read(out[0], text + n, size - 1 - n)) > 0)
		n += (size_t)more;
	text[n] = 0;
	close(out[0]);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFEXITED(status), "it was killed by signal %d", WTERMSIG(status));
	return WEXITSTATUS(status);
}

static const char *text_of(struct json_object *object, const char *name)
{
	struct json_object *value;

	cr_assert(json_object_object_get_ex(object, name, &value), "no %s", name);
	return value ? json_object_get_string(value) : "";
}

/* The doctor's word about one thing; json is to be dropped. */
static struct json_object *examine(
	const struct ailment *a, int expected_status, const char *key, struct json_object **ret_json)
{
	static char text[1 << 16];
	struct json_object *json, *findings;
	int status = run(a, "--json", NULL, text, sizeof(text));

	cr_assert_eq(status, expected_status, "exit status %d, with %s", status, text);
	*ret_json = json = json_tokener_parse(text);
	cr_assert(json, "no JSON: %s", text);
	cr_assert_str_eq(text_of(json, "schema"), "wharf-inspect/1");
	cr_assert(json_object_object_get_ex(json, "findings", &findings));
	for (size_t i = 0; i < json_object_array_length(findings); i++) {
		struct json_object *one = json_object_array_get_idx(findings, i);

		if (!strcmp(text_of(one, "key"), key))
			return one;
	}
	cr_assert_fail("nothing is said of %s", key);
	return NULL;
}

static void expect(
	const struct ailment *a, int status, const char *key, const char *level, const char *cost, const char *mend)
{
	struct json_object *json, *one = examine(a, status, key, &json);

	cr_expect_str_eq(text_of(one, "level"), level);
	cr_expect(strstr(text_of(one, "cost"), cost), "%s: %s", key, text_of(one, "cost"));
	cr_expect(strstr(text_of(one, "mend"), mend), "%s: %s", key, text_of(one, "mend"));
	json_object_put(json);
}

Test(doctor, blames_the_filter_that_refuses_io_uring)
{
	static const int errors[] = { EPERM, ENOSYS };

	for (int i = 0; i < 2; i++) {
		struct ailment a = { .uring_errno = errors[i] };
		struct json_object *json, *one;

		expect(&a, 1, "io_uring", "costs", "seccomp", "seccomp");
		one = examine(&a, 1, "engine", &json);
		cr_expect(strstr(text_of(one, "value"), "epoll"), "%s", text_of(one, "value"));
		cr_expect(strstr(text_of(one, "value"), strerrorname_np(errors[i])), "%s", text_of(one, "value"));
		cr_expect_str_eq(text_of(json, "verdict"), "costs");
		json_object_put(json);
	}
}

Test(doctor, says_that_nothing_works_without_sealed_memory)
{
	struct ailment a = { .memfd_errno = EPERM };

	expect(&a, 3, "memfd", "broken", "EPERM", "");
}

Test(doctor, names_the_variable_that_decides)
{
	struct ailment epoll = { .engine = "epoll" }, nonsense = { .engine = "nonsense" };

	expect(&epoll, 1, "engine", "costs", "WHARF_ENGINE=epoll", "unset WHARF_ENGINE");
	expect(&nonsense, 3, "engine", "broken", "WHARF_ENGINE=nonsense", "unset WHARF_ENGINE");
}

Test(doctor, counts_the_ports_that_descriptors_allow)
{
	struct ailment few = { .descriptors = 40 };

	expect(&few, 1, "descriptors", "costs", "30 ports", "ulimit -n");
}

Test(doctor, warns_of_a_single_cpu)
{
	struct ailment a = { .one_cpu = true };

	expect(&a, 1, "cpus", "costs", "take turns", "taskset");
}

Test(doctor, has_a_command_for_all_that_costs_and_fits_its_columns)
{
	static char text[1 << 16];
	struct ailment a = { .uring_errno = EPERM, .descriptors = 40 };
	struct json_object *json, *findings;

	examine(&a, 1, "kernel", &json);
	json_object_object_get_ex(json, "findings", &findings);
	for (size_t i = 0; i < json_object_array_length(findings); i++) {
		struct json_object *one = json_object_array_get_idx(findings, i);
		bool ok = !strcmp(text_of(one, "level"), "ok");

		cr_expect_eq(ok, !*text_of(one, "cost"), "%s", text_of(one, "key"));
		cr_expect(ok || *text_of(one, "mend"), "%s", text_of(one, "key"));
	}
	json_object_put(json);
	run(&a, "--width=40", NULL, text, sizeof(text));
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
		/* A command stays in one piece, for the mouse. */
		cr_expect(strlen(line) <= 40 || strstr(line, "docker run") || strstr(line, "ulimit"), "%s", line);
}

Test(doctor, prints_a_fragment_that_a_container_runtime_reads)
{
	static const char *const needed[] = { "io_uring_setup", "io_uring_enter", "io_uring_register", "epoll_pwait2" };
	static char text[1 << 16];
	struct json_object *json, *rules, *names, *rule;

	cr_assert_eq(run(&(struct ailment){ 0 }, "--policy", NULL, text, sizeof(text)), 0);
	cr_expect(strstr(text, "io_uring_enter") && strstr(text, "SENDMSG"), "%s", text);
	cr_assert_eq(run(&(struct ailment){ 0 }, "--policy", "--json", text, sizeof(text)), 0);
	json = json_tokener_parse(text);
	cr_assert(json, "%s", text);
	cr_assert(json_object_object_get_ex(json, "syscalls", &rules));
	rule = json_object_array_get_idx(rules, 0);
	cr_expect_str_eq(text_of(rule, "action"), "SCMP_ACT_ALLOW");
	cr_assert(json_object_object_get_ex(rule, "names", &names));
	for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
		bool found = false;

		for (size_t k = 0; k < json_object_array_length(names); k++)
			found |= !strcmp(json_object_get_string(json_object_array_get_idx(names, k)), needed[i]);
		cr_expect(found, "%s", needed[i]);
	}
	json_object_put(json);
}
