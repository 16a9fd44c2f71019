/* SPDX-License-Identifier: MIT */
/* The live view: the same pages as the other commands', drawn again and again. */
#include "top.h"

#include <curses.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "look.h"
#include "unit.h"
#include "views.h"

enum {
	INTERVAL_MIN_MS = 100,
	INTERVAL_MAX_MS = 60000,
	RESCAN_MS = 2000, /* of all processes: looks at each of their descriptors */
	RUNS = 50,
	KEY_ESCAPE = 27,
};

enum tab { TAB_PROCESSES, TAB_PORTS, TAB_RINGS, TAB_CHUNKS, TAB_HELP, TABS };

struct top {
	const struct options *options;
	struct look look;
	struct view_list *list;
	enum tab tab;
	enum view_order order;
	pid_t chosen; /* 0: none yet */
	int scroll;   /* first line that is shown */
	int interval_ms;
	int64_t next_ms, rescan_ms, end_ms;
	bool paused, quit;
	struct page page;
};

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- Looking ---- */

static const struct subject *chosen(const struct top *top)
{
	for (size_t i = 0; i < top->look.n; i++)
		if (top->look.subjects[i].process.pid == top->chosen)
			return &top->look.subjects[i];
	return NULL;
}

static void sample(struct top *top)
{
	static const unsigned wants[TABS] = {
		[TAB_PROCESSES] = SNAPSHOT_STATS | SNAPSHOT_POOLS,
		[TAB_PORTS] = SNAPSHOT_STATS | SNAPSHOT_POOLS,
		[TAB_RINGS] = SNAPSHOT_STATS,
		[TAB_CHUNKS] = SNAPSHOT_ALL,
		[TAB_HELP] = SNAPSHOT_STATS,
	};
	unsigned flags = LOOK_QUIET | LOOK_SUSPECTS | (top->tab == TAB_RINGS ? LOOK_RINGS : 0);

	if (top->look.all && now_ms() >= top->rescan_ms) {
		look_for_more(&top->look, flags);
		top->rescan_ms = now_ms() + RESCAN_MS;
	}
	look_again(&top->look, wants[top->tab] | SNAPSHOT_POOLS, flags);
	if (top->list)
		view_list_free(top->list);
	top->list = view_list_new();
	for (size_t i = 0; i < top->look.n; i++)
		view_list_add(top->list, &top->look.subjects[i]);
	view_list_sort(top->list, top->order);
	if (!chosen(top) && view_list_length(top->list))
		top->chosen = view_list_pid(top->list, 0);
}

/* ---- The page ---- */

static void put_help(struct page *page)
{
	static const char *const lines[][2] = {
		{ "1 p", "processes" },
		{ "2 o", "ports of the chosen one" },
		{ "3 r", "its rings" },
		{ "4 c", "its chunks" },
		{ "Tab", "the next of these" },
		{ "up down", "choose a process, or scroll" },
		{ "Enter", "look into the chosen one" },
		{ "left right", "the process before, or after" },
		{ "s", "sort processes by something else" },
		{ "+ -", "look more, or less often" },
		{ "space", "stand still" },
		{ "q", "end" },
	};

	for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
		page_put(page, STYLE_BOLD, "%-12s", lines[i][0]);
		page_put(page, STYLE_PLAIN, "%s", lines[i][1]);
		page_end_line(page);
	}
}

static void make_page(struct top *top)
{
	struct page *page = &top->page;
	const struct subject *subject = chosen(top);

	page_clear(page);
	page->width = (unsigned)(COLS > 0 ? COLS : 1);
	page->utf8 = !top->options->ascii;
	if (top->tab == TAB_HELP) {
		put_help(page);
		return;
	}
	if (!subject) {
		page_words(page, STYLE_DIM, 0, "no process that uses wharf; %zu may not be looked at by this user",
			top->look.n_hidden);
		return;
	}
	if (top->tab == TAB_PROCESSES) {
		view_list_put(top->list, page, top->chosen);
		return;
	}
	view_head(subject, page);
	page_end_line(page);
	if (top->tab == TAB_PORTS)
		view_ports_table(subject, page, VIEW_ALL);
	else if (top->tab == TAB_RINGS)
		view_rings(subject, page);
	else
		view_chunks(subject, page, true, RUNS, 0);
}

/* ---- The screen ---- */

static const attr_t plain_attributes[STYLES] = {
	[STYLE_DIM] = A_DIM,
	[STYLE_BOLD] = A_BOLD,
	[STYLE_BAD] = A_BOLD,
	[STYLE_HEAD] = A_UNDERLINE,
	[STYLE_FREE] = A_DIM,
	[STYLE_MARK] = A_REVERSE,
};
static const short colours[STYLES] = {
	[STYLE_GOOD] = COLOR_GREEN,
	[STYLE_WARN] = COLOR_YELLOW,
	[STYLE_BAD] = COLOR_RED,
	[STYLE_CLAIMED] = COLOR_CYAN,
	[STYLE_LENT] = COLOR_YELLOW,
	[STYLE_SEVERAL] = COLOR_MAGENTA,
};

static void choose_style(const struct top *top, unsigned style)
{
	attr_t attributes = plain_attributes[style];

	if (top->options->colour && has_colors() && colours[style])
		attributes |= (attr_t)COLOR_PAIR(style);
	attrset((int)attributes);
}

/* The lines from the one at `scroll` on. Returns how many there are. */
static int draw_page(const struct top *top, int first_row, int rows)
{
	const struct page *page = &top->page;
	int line = 0;

	move(first_row, 0);
	for (size_t i = 0; i < page->size; i++) {
		unsigned char c = (unsigned char)page->text[i];
		bool shown = line >= top->scroll && line < top->scroll + rows;

		if (c == '\n') {
			line++;
			if (line >= top->scroll && line < top->scroll + rows)
				move(first_row + line - top->scroll, 0);
		} else if (c >= PAGE_STYLE && c < PAGE_STYLE + STYLES) {
			choose_style(top, c - PAGE_STYLE);
		} else if (shown) {
			char text[5] = { (char)c };
			/* A character as a whole. */
			for (int n = 1;
				n < 4 && i + 1 < page->size && ((unsigned char)page->text[i + 1] & 0xc0) == 0x80; n++)
				text[n] = page->text[++i];
			addstr(text);
		}
	}
	attrset(A_NORMAL);
	return line;
}

static void draw_bar(const struct top *top)
{
	static const char *const tabs[] = { "1 processes", "2 ports", "3 rings", "4 chunks" };
	struct page bar;
	struct top fake = *top;

	page_init(&bar, (unsigned)(COLS > 0 ? COLS : 1), false);
	for (unsigned i = 0; i < TAB_HELP; i++) {
		const char *name = COLS < 60 ? tabs[i] + 2 : tabs[i];
		page_put(&bar, i == top->tab ? STYLE_MARK : STYLE_PLAIN, " %s ", name);
	}
	if (COLS >= 60) {
		page_put(&bar, STYLE_DIM, "  every %s", unit_time((uint64_t)top->interval_ms * 1000000, UNIT));
		if (top->tab == TAB_PROCESSES)
			page_put(&bar, STYLE_DIM, ", by %s", view_order_name(top->order));
	}
	if (top->paused)
		page_put(&bar, STYLE_WARN, " paused");
	fake.page = bar;
	fake.scroll = 0;
	draw_page(&fake, 0, 1);
	page_fini(&bar);
}

static void draw(struct top *top)
{
	int rows = LINES > 2 ? LINES - 2 : 1, lines;

	make_page(top);
	erase();
	draw_bar(top);
	lines = draw_page(top, 1, rows);
	if (top->scroll > 0 && top->scroll >= lines) {
		top->scroll = lines > 1 ? lines - 1 : 0;
		erase();
		draw_bar(top);
		draw_page(top, 1, rows);
	}
	if (LINES > 2) {
		attrset(A_DIM);
		mvaddnstr(LINES - 1, 0, lines - top->scroll > rows ? "more below  ? help  q end" : "? help  q end",
			COLS > 0 ? COLS - 1 : 0);
		attrset(A_NORMAL);
	}
	refresh();
}

/* ---- Keys ---- */

static void step(struct top *top, int by)
{
	size_t n = top->list ? view_list_length(top->list) : 0, at = 0;

	while (at < n && view_list_pid(top->list, at) != top->chosen)
		at++;
	if (!n)
		return;
	if (at == n)
		at = 0;
	else if (by < 0 ? at > 0 : at + 1 < n)
		at = by < 0 ? at - 1 : at + 1;
	top->chosen = view_list_pid(top->list, at);
}

static void show(struct top *top, enum tab tab)
{
	top->tab = tab;
	top->scroll = 0;
	if (!top->paused)
		sample(top); /* what was not asked for before */
}

static void faster(struct top *top, int percent)
{
	int ms = top->interval_ms * percent / 100;

	top->interval_ms = ms < INTERVAL_MIN_MS ? INTERVAL_MIN_MS : ms > INTERVAL_MAX_MS ? INTERVAL_MAX_MS : ms;
	top->next_ms = now_ms();
}

static void scroll_by(struct top *top, int lines)
{
	if (top->tab == TAB_PROCESSES && lines * lines == 1)
		step(top, lines);
	else
		top->scroll = top->scroll + lines > 0 ? top->scroll + lines : 0;
}

static void on_key(struct top *top, int key)
{
	switch (key) {
	case 'q':
		top->quit = true;
		break;
	case '1':
	case 'p':
	case KEY_ESCAPE:
		show(top, TAB_PROCESSES);
		break;
	case '2':
	case 'o':
		show(top, TAB_PORTS);
		break;
	case '3':
	case 'r':
		show(top, TAB_RINGS);
		break;
	case '4':
	case 'c':
		show(top, TAB_CHUNKS);
		break;
	case '\t':
		show(top, (enum tab)((top->tab + 1) % TAB_HELP));
		break;
	case '\n':
	case KEY_ENTER:
		if (top->tab == TAB_PROCESSES)
			show(top, TAB_PORTS);
		break;
	case '?':
	case 'h':
		show(top, TAB_HELP);
		break;
	case 's':
		top->order = (enum view_order)((top->order + 1) % VIEW_ORDERS);
		if (top->list)
			view_list_sort(top->list, top->order);
		break;
	case '+':
		faster(top, 50);
		break;
	case '-':
		faster(top, 200);
		break;
	case ' ':
		top->paused = !top->paused;
		top->next_ms = now_ms();
		break;
	case KEY_UP:
		scroll_by(top, -1);
		break;
	case KEY_DOWN:
		scroll_by(top, 1);
		break;
	case KEY_PPAGE:
		scroll_by(top, 3 - LINES);
		break;
	case KEY_NPAGE:
		scroll_by(top, LINES - 3);
		break;
	case KEY_LEFT:
		step(top, -1);
		break;
	case KEY_RIGHT:
		step(top, 1);
		break;
	default:
		break;
	}
}

static void run(struct top *top)
{
	while (!top->quit) {
		int64_t now = now_ms();

		if (!top->paused && now >= top->next_ms) {
			sample(top);
			top->next_ms = now_ms() + top->interval_ms;
		}
		draw(top);
		now = now_ms();
		if (top->end_ms && now >= top->end_ms)
			break;
		if (!top->look.all && !top->look.n)
			break;
		timeout(top->paused ? INTERVAL_MIN_MS : top->next_ms > now ? (int)(top->next_ms - now) : 0);
		on_key(top, getch());
	}
}

static bool screen_begin(const struct options *options)
{
	if (!isatty(STDOUT_FILENO) || !isatty(STDIN_FILENO) || !newterm(NULL, stdout, stdin)) {
		complain("top needs a terminal");
		return false;
	}
	cbreak();
	noecho();
	keypad(stdscr, TRUE);
	set_escdelay(25);
	curs_set(0);
	if (options->colour && has_colors()) {
		start_color();
		use_default_colors();
		for (short i = 0; i < STYLES; i++)
			if (colours[i])
				init_pair(i, colours[i], -1);
	}
	return true;
}

int top_run(const struct options *options)
{
	struct top top = {
		.options = options,
		.interval_ms = options->interval_given ? (int)(options->interval_ns / 1000000) : 1000,
	};
	int status = EXIT_FINE;

	if (top.interval_ms < INTERVAL_MIN_MS)
		top.interval_ms = INTERVAL_MIN_MS;
	if (top.interval_ms > INTERVAL_MAX_MS)
		top.interval_ms = INTERVAL_MAX_MS;
	if (!look_open(&top.look, options, LOOK_QUIET) && options->n_pids) {
		look_close(&top.look);
		return EXIT_PROBLEM;
	}
	if (!screen_begin(options)) {
		look_close(&top.look);
		return EXIT_PROBLEM;
	}
	if (options->for_ns)
		top.end_ms = now_ms() + (int64_t)(options->for_ns / 1000000);
	top.rescan_ms = now_ms() + RESCAN_MS;
	if (options->n_pids == 1)
		top.tab = TAB_PORTS;
	page_init(&top.page, (unsigned)COLS, !options->ascii);
	run(&top);
	endwin();
	if (options->n_pids && !top.look.n) {
		complain("nothing is left to look at");
		status = EXIT_PROBLEM;
	}
	page_fini(&top.page);
	if (top.list)
		view_list_free(top.list);
	look_close(&top.look);
	return status;
}
