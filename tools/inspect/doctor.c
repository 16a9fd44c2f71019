/* SPDX-License-Identifier: MIT */
/* wharf-inspect doctor: what of this machine wharf pays for, and the one command that mends it. */
#include "doctor.h"

#include <stdio.h>

#include "json.h"
#include "options.h"
#include "page.h"

static const struct {
	const char *name;
	enum style style;
} levels[] = {
	[DOCTOR_OK] = { "ok", STYLE_GOOD },
	[DOCTOR_OFF] = { "off", STYLE_DIM },
	[DOCTOR_COSTS] = { "costs", STYLE_WARN },
	[DOCTOR_BROKEN] = { "broken", STYLE_BAD },
};

static enum doctor_level worst(const struct doctor_findings *all)
{
	enum doctor_level level = DOCTOR_OK;

	for (size_t i = 0; i < all->n; i++)
		if (all->findings[i].level > level)
			level = all->findings[i].level;
	return level;
}

static void put(const struct doctor_finding *f, struct page *page)
{
	enum { LEVEL_COLUMNS = 8, KEY_COLUMNS = 13 };
	bool narrow = page->width < 60;
	unsigned indent = narrow ? 2 : LEVEL_COLUMNS + KEY_COLUMNS;

	page_put(page, levels[f->level].style, "%-*s", LEVEL_COLUMNS, levels[f->level].name);
	page_put(page, STYLE_PLAIN, "%-*s", KEY_COLUMNS, f->key);
	if (narrow)
		page_end_line(page);
	page_words(page, STYLE_PLAIN, indent, "%s", f->value);
	if (f->cost[0])
		page_words(page, levels[f->level].style, indent, "%s", f->cost);
	if (!f->mend[0])
		return;
	/* In one piece, for the mouse. */
	page_blank(page, indent);
	page_put(page, STYLE_BOLD, "%s", f->mend);
	page_end_line(page);
}

static void print(const struct doctor_findings *all, const struct options *options)
{
	struct page page;

	page_init(&page, options->width, !options->ascii);
	for (size_t i = 0; i < all->n; i++)
		put(&all->findings[i], &page);
	page_print(&page, stdout, options->colour);
	page_fini(&page);
}

static void print_json(const struct doctor_findings *all)
{
	struct json_object *document = json_object_new_object(), *list;

	json_add_text(document, "schema", JSON_SCHEMA);
	json_add_text(document, "command", "doctor");
	json_add_text(document, "verdict", levels[worst(all)].name);
	list = json_add_array(document, "findings");
	for (size_t i = 0; i < all->n; i++) {
		const struct doctor_finding *f = &all->findings[i];
		struct json_object *one = json_add_element(list);

		json_add_text(one, "key", f->key);
		json_add_text(one, "level", levels[f->level].name);
		json_add_text(one, "value", f->value);
		json_add_text(one, "cost", f->cost[0] ? f->cost : NULL);
		json_add_text(one, "mend", f->mend[0] ? f->mend : NULL);
	}
	json_print(document, false);
}

int doctor_run(const struct options *options)
{
	static struct doctor_findings all;

	if (options->policy)
		return doctor_policy(options);
	doctor_look_at_engine(&all);
	doctor_look_at_memory(&all);
	doctor_look_at_limits(&all);
	doctor_look_at_cpus(&all);
	if (options->json)
		print_json(&all);
	else
		print(&all, options);
	switch (worst(&all)) {
	case DOCTOR_BROKEN:
		return EXIT_BROKEN;
	case DOCTOR_COSTS:
		return EXIT_PROBLEM;
	default:
		return EXIT_FINE;
	}
}
