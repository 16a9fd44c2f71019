/* SPDX-License-Identifier: MIT */
/*
 * The handshake that keeps an owner which waits for room from sleeping for ever, as a model: every interleaving of
 * the atomic steps of one owner and two releasing threads is walked through. The steps are those of wh_view_release
 * (view.h) and of wh_pool_room and wh_pool_want (room.c), which are sequentially consistent: there is nothing else.
 *
 * An owner that watches (wh_lease_watch, wh_lease_holds) does the same without a claim that failed first, while another
 * claim of its pool marks, takes back what was released and, being satisfied, stops waiting.
 *
 * The same walk finds the lost wake in handshakes that leave a step out, so it would find one here.
 */
#include <criterion/criterion.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { RELEASERS = 2, CHUNKS = 2 };

/* What may be left out. */
enum {
	WITHOUT_SECOND_LOOK = 1u << 0, /* mark, and sleep */
	LOOK_BEFORE_MARK = 1u << 1,    /* the second look comes first */
	WANTED_BEFORE_RELEASE = 1u << 2, /* the receiver looks at `wanted`, then releases */
	WANTED_LEFT = 1u << 3,         /* the receiver does not take the mark: a wake for each release */
	WANTED_NOT_RENEWED = 1u << 4,  /* an owner that was woken for too little does not mark again */
	UNWANTED_BY_OTHERS = 1u << 5,  /* whoever stops waiting takes the mark of those who watch away */
};

enum owner { OWNER_CLAIM, OWNER_MARK, OWNER_LOOK, OWNER_SLEEP, OWNER_DONE };
enum other { OTHER_MARK, OTHER_HARVEST, OTHER_UNMARK, OTHER_DONE };
enum releaser { RELEASER_RELEASE, RELEASER_LOOK, RELEASER_TAKE, RELEASER_WAKE, RELEASER_DONE };

/* Everything that another party can see, and where each party stands. */
struct state {
	uint8_t word;     /* of the release map: chunks released and not harvested */
	uint8_t lent, free; /* the owner's own */
	uint8_t wanted;
	uint8_t wakes;    /* on their way; delivered in order, never lost */
	uint8_t owner;
	uint8_t marked;   /* the owner believes that its mark stands */
	uint8_t other;
	uint8_t releaser[RELEASERS];
};

struct walk {
	unsigned broken;  /* what is left out */
	unsigned needs;   /* chunks without which the owner's claim fails, or for which it watches */
	bool watches;
	unsigned n_states, n_lost, n_done, wakes_max;
	struct state seen[1 << 16];
};

static unsigned count(uint8_t bits) { return (unsigned)__builtin_popcount(bits); }

static void walk(struct walk *w, struct state s);

static void harvest(struct state *s)
{
	s->free |= s->word;
	s->lent &= (uint8_t)~s->word;
	s->word = 0;
}

/* One atomic step of the owner. False: it sleeps, or is done. */
static bool owner_step(const struct walk *w, struct state *s)
{
	switch (s->owner) {
	case OWNER_CLAIM: /* wh_lease_harvest_word, then the claim that failed before */
		harvest(s);
		s->owner = count(s->free) >= w->needs ? OWNER_DONE : OWNER_MARK;
		if (w->broken & LOOK_BEFORE_MARK && s->owner == OWNER_MARK) {
			harvest(s);
			if (count(s->free) >= w->needs)
				s->owner = OWNER_DONE;
		}
		return true;
	case OWNER_MARK:
		if (!(w->broken & WANTED_NOT_RENEWED && s->marked))
			s->wanted = 1;
		s->marked = 1;
		s->owner = w->broken & (WITHOUT_SECOND_LOOK | LOOK_BEFORE_MARK) ? OWNER_SLEEP : OWNER_LOOK;
		return true;
	case OWNER_LOOK:
		harvest(s);
		s->owner = count(s->free) >= w->needs ? OWNER_DONE : OWNER_SLEEP;
		return true;
	case OWNER_SLEEP:
		if (!s->wakes)
			return false;
		s->wakes--;
		if (!(w->broken & WANTED_NOT_RENEWED))
			s->marked = 0; /* a peer may have taken its mark */
		s->owner = w->watches ? OWNER_MARK : OWNER_CLAIM;
		return true;
	default:
		return false;
	}
}

/* One atomic step of a claim that waits in the same pool, in another thread. */
static bool other_step(const struct walk *w, struct state *s)
{
	switch (s->other) {
	case OTHER_MARK:
		s->wanted = 1;
		s->other = OTHER_HARVEST;
		return true;
	case OTHER_HARVEST:
		harvest(s);
		s->other = OTHER_UNMARK;
		return true;
	case OTHER_UNMARK: /* wh_pool_unwant */
		if (w->broken & UNWANTED_BY_OTHERS)
			s->wanted = 0;
		s->other = OTHER_DONE;
		return true;
	default:
		return false;
	}
}

/* One atomic step of a releasing thread. */
static bool releaser_step(const struct walk *w, struct state *s, unsigned i)
{
	uint8_t bit = (uint8_t)(1u << i);

	switch (s->releaser[i]) {
	case RELEASER_RELEASE:
		if (w->broken & WANTED_BEFORE_RELEASE) {
			/* The look, and what it saw, come first: the release itself is the last step. */
			s->releaser[i] = s->wanted ? RELEASER_TAKE : RELEASER_LOOK;
			return true;
		}
		s->word |= bit;
		s->releaser[i] = RELEASER_LOOK;
		return true;
	case RELEASER_LOOK:
		if (w->broken & WANTED_BEFORE_RELEASE) {
			s->word |= bit;
			s->releaser[i] = RELEASER_DONE;
			return true;
		}
		s->releaser[i] = s->wanted ? RELEASER_TAKE : RELEASER_DONE;
		return true;
	case RELEASER_TAKE:
		if (w->broken & WANTED_BEFORE_RELEASE)
			s->word |= bit;
		s->releaser[i] = s->wanted ? RELEASER_WAKE : RELEASER_DONE;
		if (!(w->broken & WANTED_LEFT))
			s->wanted = 0;
		return true;
	case RELEASER_WAKE:
		s->wakes++;
		s->releaser[i] = RELEASER_DONE;
		return true;
	default:
		return false;
	}
}

static bool is_new(struct walk *w, const struct state *s)
{
	for (unsigned i = 0; i < w->n_states; i++)
		if (!memcmp(&w->seen[i], s, sizeof(*s)))
			return false;
	cr_assert_lt(w->n_states, sizeof(w->seen) / sizeof(*w->seen));
	w->seen[w->n_states++] = *s;
	return true;
}

static void walk(struct walk *w, struct state s)
{
	struct state next = s;
	bool moved;

	if (!is_new(w, &s))
		return;
	if (s.wakes > w->wakes_max)
		w->wakes_max = s.wakes;
	moved = owner_step(w, &next);
	if (moved)
		walk(w, next);
	next = s;
	if (other_step(w, &next)) {
		moved = true;
		walk(w, next);
	}
	for (unsigned i = 0; i < RELEASERS; i++) {
		next = s;
		if (releaser_step(w, &next, i)) {
			moved = true;
			walk(w, next);
		}
	}
	if (moved)
		return;
	/* Nothing will ever happen any more. Everything was released, so the claim must have succeeded. */
	if (s.owner == OWNER_DONE)
		w->n_done++;
	else
		w->n_lost++;
}

static const struct walk *walked_from(struct state start, unsigned broken, unsigned needs, bool watches)
{
	static struct walk w;

	memset(&w, 0, sizeof(w));
	w.broken = broken;
	w.needs = needs;
	w.watches = watches;
	start.lent = (1u << CHUNKS) - 1;
	walk(&w, start);
	cr_assert_gt(w.n_states, 20);
	return &w;
}

static const struct walk *walked(unsigned broken, unsigned needs)
{
	return walked_from((struct state){ .owner = OWNER_CLAIM, .other = OTHER_DONE }, broken, needs, false);
}

static const struct walk *watched(unsigned broken, unsigned needs)
{
	return walked_from((struct state){ .owner = OWNER_MARK, .other = OTHER_MARK }, broken, needs, true);
}

Test(release_model, no_wake_is_lost)
{
	for (unsigned needs = 1; needs <= CHUNKS; needs++) {
		const struct walk *w = walked(0, needs);
		cr_assert_eq(w->n_lost, 0, "%u of %u states", w->n_lost, w->n_states);
		cr_assert_gt(w->n_done, 0);
	}
}

Test(release_model, one_mark_brings_one_wake)
{
	/* The claim needs one chunk: it is woken once, though both threads release. */
	cr_assert_leq(walked(0, 1)->wakes_max, 1);
	cr_assert_gt(walked(WANTED_LEFT, 1)->wakes_max, 1, "without taking the mark there are more");
}

Test(release_model, the_walk_finds_the_wake_that_is_lost_without_the_second_look)
{
	cr_assert_gt(walked(WITHOUT_SECOND_LOOK, 1)->n_lost, 0);
	cr_assert_gt(walked(WITHOUT_SECOND_LOOK, 2)->n_lost, 0);
	cr_assert_gt(walked(LOOK_BEFORE_MARK, 1)->n_lost, 0, "before the mark it is no second look");
}

Test(release_model, the_walk_finds_the_wake_that_is_lost_by_looking_too_early)
{
	cr_assert_gt(walked(WANTED_BEFORE_RELEASE, 1)->n_lost, 0);
}

Test(release_model, the_walk_finds_the_owner_that_does_not_mark_again)
{
	cr_assert_eq(walked(WANTED_NOT_RENEWED, 1)->n_lost, 0, "one wake is enough for it");
	cr_assert_gt(walked(WANTED_NOT_RENEWED, 2)->n_lost, 0);
}

Test(release_model, whoever_watches_a_run_hears_when_it_is_back)
{
	for (unsigned needs = 1; needs <= CHUNKS; needs++) {
		const struct walk *w = watched(0, needs);
		cr_assert_eq(w->n_lost, 0, "%u of %u states", w->n_lost, w->n_states);
		cr_assert_gt(w->n_done, 0);
	}
}

Test(release_model, the_walk_finds_the_watcher_that_is_forgotten)
{
	cr_assert_gt(watched(UNWANTED_BY_OTHERS, 1)->n_lost, 0);
	cr_assert_gt(watched(WITHOUT_SECOND_LOOK, 1)->n_lost, 0);
	cr_assert_gt(watched(WANTED_NOT_RENEWED, 2)->n_lost, 0);
}
