/* SPDX-License-Identifier: MIT */
/* wharf-inspect doctor --policy: what the library asks of the kernel, for filters that forbid the rest. */
#include <stdio.h>
#include <string.h>

#include "doctor.h"
#include "json.h"
#include "needs.h"
#include "options.h"
#include "page.h"

static const struct {
	uint32_t flag;
	const char *key, *title;
} occasions[] = {
	{ WH_NEED_RUN, "run", "In any turn, on ports that are open and memory that is there" },
	{ WH_NEED_GROW, "grow", "Besides, when pools grow, a peer's memory is mapped, descriptors travel" },
	{ WH_NEED_SETUP, "setup", "Besides, for loops, ports, listeners; wharf_spawn needs what fork and exec need" },
};

enum { OCCASIONS = sizeof(occasions) / sizeof(occasions[0]) };

static void put_names(struct page *page, const struct wh_need *needs, uint32_t occasion)
{
	enum { INDENT = 2 };

	page->indent = INDENT;
	for (; needs->name; needs++)
		if (needs->flags & occasion)
			page_item(page, STYLE_PLAIN, "%s%s", needs->name,
				needs->flags & WH_NEED_URING ? "(u)" : needs->flags & WH_NEED_EPOLL ? "(e)" : "");
	page_end_line(page);
	page->indent = 0;
}

static void put_all(struct page *page, const char *title, const struct wh_need *needs)
{
	page_words(page, STYLE_BOLD, 0, "%s", title);
	put_names(page, needs, WH_NEED_RUN | WH_NEED_GROW | WH_NEED_SETUP);
}

static void print(const struct options *options)
{
	struct page page;

	page_init(&page, options->width, !options->ascii);
	page_words(&page, STYLE_BOLD, 0, "System calls; (u): with io_uring only, (e): with epoll only");
	for (unsigned i = 0; i < OCCASIONS; i++) {
		page_words(&page, STYLE_PLAIN, 0, "%s:", occasions[i].title);
		put_names(&page, wh_needs_calls, occasions[i].flag);
	}
	put_all(&page, "Operations of io_uring, to which each ring restricts itself", wh_needs_opcodes);
	put_all(&page, "Registrations of io_uring", wh_needs_registers);
	page_words(&page, STYLE_PLAIN, 0,
		"With --json: a fragment of a seccomp profile for containers, to be added to the `syscalls' of the "
		"runtime's own.");
	page_print(&page, stdout, options->colour);
	page_fini(&page);
}

/*
 * Runtimes allow the others already: what their profiles leave out are the rings. The whole list stands here for
 * profiles that are narrower than those.
 */
static void print_fragment(void)
{
	struct json_object *document = json_object_new_object();
	struct json_object *rule = json_add_element(json_add_array(document, "syscalls"));
	struct json_object *names = json_add_array(rule, "names");

	for (const struct wh_need *need = wh_needs_calls; need->name; need++)
		json_object_array_add(names, json_object_new_string(need->name));
	json_add_text(rule, "action", "SCMP_ACT_ALLOW");
	json_add_text(rule, "comment", "wharf, with io_uring and without");
	json_print(document, false);
}

int doctor_policy(const struct options *options)
{
	if (options->json)
		print_fragment();
	else
		print(options);
	return EXIT_FINE;
}
