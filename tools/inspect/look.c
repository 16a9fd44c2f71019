/* SPDX-License-Identifier: MIT */
/* Commands that look and print: see look.h. */
#include "look.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "json.h"
#include "memory.h"
#include "views.h"

/* ---- Looking ---- */

void look_pause(uint64_t ns)
{
	struct timespec time = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };

	nanosleep(&time, NULL);
}

static void add(struct look *look, const struct subject *subject)
{
	look->subjects = memory_grow(look->subjects, look->n, sizeof *subject);
	look->subjects[look->n++] = *subject;
}

static bool is_there(const struct look *look, pid_t pid)
{
	for (size_t i = 0; i < look->n; i++)
		if (look->subjects[i].process.pid == pid)
			return true;
	return false;
}

void look_for_more(struct look *look, unsigned flags)
{
	size_t n;
	pid_t *pids = process_all(&n);

	look->n_hidden = 0;
	for (size_t i = 0; i < n; i++) {
		struct subject subject;
		char why[PROCESS_WHY_BYTES];
		int error;

		if (is_there(look, pids[i]))
			continue;
		error = subject_open(pids[i], &subject, why);
		if (!error) {
			add(look, &subject);
		} else if (error == -EACCES || error == -EPERM) {
			look->n_hidden++;
		} else if (error == -EPROTONOSUPPORT && !(flags & LOOK_QUIET)) {
			complain("%d: %s", pids[i], why);
			look->n_failed++;
		}
	}
	free(pids);
}

bool look_open(struct look *look, const struct options *options, unsigned flags)
{
	char why[PROCESS_WHY_BYTES];
	struct subject subject;

	*look = (struct look){ 0 };
	if (options->core) {
		if (subject_open_core(options->core, &subject, why)) {
			complain("%s: %s", options->core, why);
			look->n_failed++;
		} else {
			add(look, &subject);
		}
		return look->n;
	}
	look->all = !options->n_pids;
	if (look->all)
		look_for_more(look, flags);
	for (size_t i = 0; i < options->n_pids; i++) {
		if (subject_open(options->pids[i], &subject, why)) {
			complain("%d: %s", options->pids[i], why);
			look->n_failed++;
		} else {
			add(look, &subject);
		}
	}
	if (!look->n && look->all && !(flags & LOOK_QUIET)) {
		if (look->n_hidden)
			complain("no process that uses wharf; %zu may not be looked at by this user", look->n_hidden);
		else
			complain("no process that uses wharf");
	}
	return look->n;
}

void look_again(struct look *look, unsigned wants, unsigned flags)
{
	size_t n = 0;

	if (flags & (LOOK_SOCKETS | LOOK_SUSPECTS)) {
		if (look->diag_taken)
			sockdiag_fini(&look->diag);
		sockdiag_take(&look->diag);
		look->diag_taken = true;
	}
	for (size_t i = 0; i < look->n; i++) {
		struct subject *subject = &look->subjects[i];
		char why[PROCESS_WHY_BYTES];

		if (subject_look(subject, wants, why)) {
			/* Of all processes some end all the time. */
			if (!look->all) {
				complain("%d: %s", subject->process.pid, why);
				look->n_failed++;
			}
			subject_close(subject);
			continue;
		}
		if (flags & (LOOK_RINGS | LOOK_SOCKETS | LOOK_SUSPECTS))
			subject_look_at_fds(subject);
		if (flags & LOOK_RINGS)
			subject_look_at_rings(subject);
		if (flags & (LOOK_SOCKETS | LOOK_SUSPECTS))
			subject_look_at_sockets(subject, &look->diag, flags & LOOK_SUSPECTS);
		look->subjects[n++] = *subject;
	}
	look->n = n;
}

void look_close(struct look *look)
{
	for (size_t i = 0; i < look->n; i++)
		subject_close(&look->subjects[i]);
	if (look->diag_taken)
		sockdiag_fini(&look->diag);
	free(look->subjects);
}

/* Twice, if there are to be rates. */
static bool look_at(struct look *look, const struct options *options, unsigned wants, unsigned flags)
{
	if (!look_open(look, options, flags))
		return false;
	if (options->interval_ns && !options->core && wants & SNAPSHOT_STATS) {
		look_again(look, SNAPSHOT_STATS, 0);
		look_pause(options->interval_ns);
	}
	look_again(look, wants, flags);
	return look->n;
}

/* ---- Printing ---- */

static int print_json(struct look *look, const struct options *options, unsigned parts)
{
	struct json_object *processes, *report = json_report(options->command->name, &processes);

	if (!options->n_pids && !options->core)
		json_add_count(report, "hidden", look->n_hidden);
	for (size_t i = 0; i < look->n; i++)
		json_object_array_add(processes, json_subject(&look->subjects[i], parts, options->older_than_ns));
	json_print(report, false);
	return look->n_failed || !look->n ? EXIT_PROBLEM : EXIT_FINE;
}

static int print_page(struct look *look, const struct options *options,
	bool (*put)(const struct subject *subject, struct page *page, const struct options *options))
{
	struct page page;
	bool found = false;

	page_init(&page, options->width, !options->ascii);
	for (size_t i = 0; i < look->n; i++) {
		if (i)
			page_end_line(&page);
		found |= put(&look->subjects[i], &page, options);
	}
	page_print(&page, stdout, options->colour);
	page_fini(&page);
	return look->n_failed || !found ? EXIT_PROBLEM : EXIT_FINE;
}

/* ---- Commands ---- */

int look_list(const struct options *options)
{
	struct view_list *list = view_list_new();
	struct look look;
	struct page page;
	int status;

	if (!look_at(&look, options, SNAPSHOT_STATS | SNAPSHOT_POOLS, LOOK_SUSPECTS) && !options->json) {
		look_close(&look);
		view_list_free(list);
		return EXIT_PROBLEM;
	}
	if (options->json) {
		view_list_free(list);
		status = print_json(&look, options, 0);
		look_close(&look);
		return status;
	}
	for (size_t i = 0; i < look.n; i++)
		view_list_add(list, &look.subjects[i]);
	page_init(&page, options->width, !options->ascii);
	view_list_put(list, &page, 0);
	view_list_free(list);
	if (look.n_hidden)
		page_words(&page, STYLE_DIM, 0, "%zu process%s may not be looked at by this user", look.n_hidden,
			look.n_hidden == 1 ? "" : "es");
	page_print(&page, stdout, options->colour);
	page_fini(&page);
	status = look.n_failed ? EXIT_PROBLEM : EXIT_FINE;
	look_close(&look);
	return status;
}

static int run(const struct options *options, unsigned wants, unsigned flags, unsigned parts,
	bool (*put)(const struct subject *subject, struct page *page, const struct options *options))
{
	struct look look;
	int status = EXIT_PROBLEM;

	if (look_at(&look, options, wants, flags) || options->json)
		status = options->json ? print_json(&look, options, parts) : print_page(&look, options, put);
	look_close(&look);
	return status;
}

enum { PORTS_AT_ONCE = 20, RUNS_SHOWN = 12, RUNS_LISTED = 40 };

static void put_title(struct page *page, const char *title)
{
	page_end_line(page);
	page_put(page, STYLE_BOLD, "%s", title);
	page_end_line(page);
}

static bool put_show(const struct subject *subject, struct page *page, const struct options *options)
{
	const struct snapshot *s = &subject->now;

	(void)options;
	view_head(subject, page);
	if (s->n_loops) {
		put_title(page, "LOOPS");
		view_loops_table(subject, page);
	}
	if (s->n_ports) {
		put_title(page, "PORTS");
		view_ports_table(subject, page, PORTS_AT_ONCE);
	}
	if (s->n_pools) {
		put_title(page, "POOLS");
		view_pools_table(subject, page);
	}
	if (s->n_loops) {
		put_title(page, "RINGS");
		view_rings(subject, page);
	}
	if (s->n_ports && s->n_ports <= PORTS_AT_ONCE) {
		put_title(page, "EACH PORT");
		view_ports(subject, page, 0);
	}
	if (s->n_pools) {
		put_title(page, "CHUNKS");
		view_chunks(subject, page, true, RUNS_SHOWN, 0);
	}
	return true;
}

int look_show(const struct options *options)
{
	return run(options, SNAPSHOT_ALL, LOOK_RINGS | LOOK_SOCKETS, JSON_LOOPS | JSON_PORTS | JSON_POOLS | JSON_CHUNKS,
		put_show);
}

static bool put_rings(const struct subject *subject, struct page *page, const struct options *options)
{
	(void)options;
	view_head(subject, page);
	view_rings(subject, page);
	return true;
}

int look_rings(const struct options *options)
{
	return run(options, SNAPSHOT_STATS, LOOK_RINGS, JSON_LOOPS, put_rings);
}

static bool put_ports(const struct subject *subject, struct page *page, const struct options *options)
{
	view_head(subject, page);
	if (!options->port) {
		view_ports_table(subject, page, VIEW_ALL);
		if (subject->now.n_ports > PORTS_AT_ONCE)
			return true;
	}
	return view_ports(subject, page, options->port);
}

int look_ports(const struct options *options)
{
	return run(options, SNAPSHOT_STATS | SNAPSHOT_POOLS, LOOK_SOCKETS, JSON_PORTS, put_ports);
}

static bool put_chunks(const struct subject *subject, struct page *page, const struct options *options)
{
	size_t n;

	view_head(subject, page);
	n = view_chunks(subject, page, !options->older_than_ns, options->older_than_ns ? 0 : RUNS_LISTED,
		options->older_than_ns);
	if (options->older_than_ns && !n)
		page_words(page, STYLE_DIM, 0, "nothing is lent or claimed for longer");
	return !options->older_than_ns || n;
}

int look_chunks(const struct options *options)
{
	struct options once = *options;

	if (!options->interval_given)
		once.interval_ns = 0;
	return run(&once, SNAPSHOT_ALL, 0, JSON_POOLS | JSON_CHUNKS, put_chunks);
}
