/* SPDX-License-Identifier: MIT */
/* The benchmark's parts: sizes, statistics, contents of payloads, placements, memory, and the processes of a run. */
#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <wharf.h>

#include "../bench/crew.h"
#include "../bench/memory.h"
#include "../bench/placement.h"
#include "../bench/size.h"
#include "../bench/stats.h"
#include "../bench/touch.h"

static size_t parsed(const char *text)
{
	size_t size = 0;

	cr_assert_eq(size_parse(text, &size), 0, "%s", text);
	return size;
}

Test(size, units_are_powers_of_1024)
{
	cr_assert_eq(parsed("0"), 0);
	cr_assert_eq(parsed("64"), 64);
	cr_assert_eq(parsed("1k"), 1024);
	cr_assert_eq(parsed("16K"), 16384);
	cr_assert_eq(parsed("3m"), 3 << 20);
	cr_assert_eq(parsed("2g"), (size_t)2 << 30);
}

Test(size, what_is_no_size_is_refused_and_leaves_the_result_alone)
{
	static const char *const bad[] = { "", "k", " 1", "+1", "-1", "1kb", "1 k", "0x10", "1.5k", "64,", "1t" };
	size_t size = 7;

	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		cr_assert_eq(size_parse(bad[i], &size), -EINVAL, "'%s'", bad[i]);
	cr_assert_eq(size_parse("18446744073709551616", &size), -ERANGE);
	cr_assert_eq(size_parse("17179869184g", &size), -ERANGE);
	cr_assert_eq(size, 7);
}

Test(size, prints_the_shortest_form_that_reads_back)
{
	static const size_t sizes[] = { 0, 1, 64, 1023, 1024, 1025, 1536, 16384, 1 << 20, 3 << 20, (size_t)2048 << 30 };
	char text[SIZE_TEXT_MAX];

	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
		cr_assert_eq(parsed(size_print(sizes[i], text)), sizes[i], "%s", text);
	cr_assert_str_eq(size_print(16384, text), "16k");
	cr_assert_str_eq(size_print(1536, text), "1536");
	cr_assert_str_eq(size_print((size_t)2048 << 30, text), "2048g");
}

Test(size, lists_keep_their_order)
{
	struct size_list list;

	cr_assert_eq(size_list_parse("64,1m,1k,8", &list), 0);
	cr_assert_eq(list.n, 4);
	cr_assert_eq(list.sizes[0], 64);
	cr_assert_eq(list.sizes[1], 1 << 20);
	cr_assert_eq(list.sizes[2], 1024);
	cr_assert_eq(list.sizes[3], 8);
}

Test(size, lists_are_of_different_message_sizes)
{
	struct size_list list = { .n = 99 };
	char many[4 * (SIZE_LIST_MAX + 1) + 1] = "";

	cr_assert_eq(size_list_parse("", &list), -EINVAL);
	cr_assert_eq(size_list_parse("64,", &list), -EINVAL);
	cr_assert_eq(size_list_parse(",64", &list), -EINVAL);
	cr_assert_eq(size_list_parse("64;128", &list), -EINVAL);
	cr_assert_eq(size_list_parse("64,x", &list), -EINVAL);
	cr_assert_eq(size_list_parse("12", &list), -EINVAL);
	cr_assert_eq(size_list_parse("1k,64,1024", &list), -EINVAL);
	cr_assert_eq(size_list_parse("0", &list), -ERANGE);
	cr_assert_eq(size_list_parse("1g", &list), -ERANGE);
	for (int i = 0; i <= SIZE_LIST_MAX; i++)
		snprintf(many + strlen(many), sizeof many - strlen(many), "%s%d", i ? "," : "", 104 + 8 * i);
	cr_assert_eq(size_list_parse(many, &list), -E2BIG);
	cr_assert_eq(list.n, 99);
}

Test(stats, median_of_odd_and_even_numbers)
{
	double odd[] = { 3, 1, 2 }, even[] = { 4, 1, 3, 2 }, one[] = { 5 };
	struct spread spread;

	spread = stats_spread(odd, 3);
	cr_assert(spread.min == 1 && spread.median == 2 && spread.max == 3);
	spread = stats_spread(even, 4);
	cr_assert(spread.min == 1 && spread.median == 2.5 && spread.max == 4);
	spread = stats_spread(one, 1);
	cr_assert(spread.min == 5 && spread.median == 5 && spread.max == 5);
}

Test(stats, percentiles_are_samples_by_nearest_rank)
{
	uint32_t samples[1000];
	struct latency latency;

	for (uint32_t i = 0; i < 1000; i++)
		samples[i] = (i * 7919) % 1000 + 1; /* 1 to 1000, shuffled */
	latency = stats_latency(samples, 1000);
	cr_assert_eq(latency.p50_ns, 500);
	cr_assert_eq(latency.p99_ns, 990);
	cr_assert_eq(latency.p999_ns, 999);
	cr_assert_eq(latency.max_ns, 1000);
}

Test(stats, percentiles_of_few_samples)
{
	uint32_t one[] = { 42 }, four[] = { 10, 20, 30, 40 };
	struct latency latency = stats_latency(one, 1);

	cr_assert_eq(latency.p50_ns, 42);
	cr_assert_eq(latency.p999_ns, 42);
	cr_assert_eq(stats_percentile(four, 4, 0), 10);
	cr_assert_eq(stats_percentile(four, 4, 250), 10);
	cr_assert_eq(stats_percentile(four, 4, 251), 20);
	cr_assert_eq(stats_percentile(four, 4, 500), 20);
	cr_assert_eq(stats_percentile(four, 4, 1000), 40);
}

Test(touch, sums_are_as_expected)
{
	static const uint64_t counts[] = { 1, 2, 255, 256, 257, 1000 };
	static const size_t sizes[] = { 8, 16, 64, 120, 128, 136, 1024 };
	_Alignas(64) char payload[1024];

	for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
		for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
			uint64_t full = 0, first = 0;

			for (uint64_t seq = 0; seq < counts[c]; seq++) {
				touch_write(TOUCH_FULL, payload, sizes[s], seq);
				full += touch_read(TOUCH_FULL, payload, sizes[s]);
				cr_assert_eq(touch_seq(payload), seq);
				memset(payload, 0xee, sizeof payload);
				touch_write(TOUCH_FIRST, payload, sizes[s], seq);
				first += touch_read(TOUCH_FIRST, payload, sizes[s]);
			}
			cr_assert_eq(full, touch_expected(TOUCH_FULL, sizes[s], counts[c]));
			cr_assert_eq(first, touch_expected(TOUCH_FIRST, sizes[s], counts[c]));
		}
	}
}

Test(touch, every_byte_counts)
{
	_Alignas(64) char payload[328];
	uint64_t sum;

	touch_write(TOUCH_FULL, payload, sizeof payload, 77);
	sum = touch_read(TOUCH_FULL, payload, sizeof payload);
	for (size_t i = 0; i < sizeof payload; i++) {
		payload[i] ^= 1;
		cr_assert_neq(touch_read(TOUCH_FULL, payload, sizeof payload), sum, "byte %zu", i);
		payload[i] ^= 1;
	}
}

static void placement_fill(struct placement *placement, const double *rtts_ns, size_t n)
{
	placement_init(placement, 0);
	for (size_t i = 0; i < n; i++)
		cr_assert_eq(placement_add(placement, rtts_ns[i]), 0);
}

Test(placement, two_groups_are_split_between_them)
{
	static const double rtts_ns[] = { 460, 95, 101, 43, 455, 110, 98, 102, 130, 97, 448, 104 };
	struct placement placement;

	placement_fill(&placement, rtts_ns, sizeof rtts_ns / sizeof *rtts_ns);
	cr_assert(placement.found);
	cr_assert_gt(placement.threshold_ns, 130);
	cr_assert_lt(placement.threshold_ns, 448);
	cr_assert_eq(placement_of(&placement, 130, 43), PLACE_NEAR);
	cr_assert_eq(placement_of(&placement, 448, 460), PLACE_FAR);
	cr_assert_eq(placement_of(&placement, 101, 455), PLACE_MOVED);
	cr_assert_eq(placement_of(&placement, 455, 101), PLACE_MOVED);
	placement_fini(&placement);
}

Test(placement, two_groups_are_found_on_machines_with_other_distances)
{
	static const double rtts_ns[] = { 35, 700, 720, 38, 36, 690, 37 };
	struct placement placement;

	placement_fill(&placement, rtts_ns, sizeof rtts_ns / sizeof *rtts_ns);
	cr_assert(placement.found);
	cr_assert_gt(placement.threshold_ns, 38);
	cr_assert_lt(placement.threshold_ns, 690);
	placement_fini(&placement);
}

/* One visit to the far place among two groups of near round trips. */
Test(placement, the_widest_gap_counts_not_the_largest_groups)
{
	static const double rtts_ns[] = { 42, 111, 43, 120, 115, 477, 44, 118, 112, 117, 42, 119 };
	struct placement placement;

	placement_fill(&placement, rtts_ns, sizeof rtts_ns / sizeof *rtts_ns);
	cr_assert(placement.found);
	cr_assert_gt(placement.threshold_ns, 120);
	cr_assert_lt(placement.threshold_ns, 477);
	placement_fini(&placement);
}

Test(placement, one_placement_is_not_torn_apart)
{
	static const double near_ns[] = { 42, 44, 101, 130, 110, 98, 41, 104 }, far_ns[] = { 440, 460, 480, 455 };
	struct placement placement;

	placement_fill(&placement, near_ns, sizeof near_ns / sizeof *near_ns);
	cr_assert_not(placement.found);
	for (size_t i = 0; i < sizeof near_ns / sizeof *near_ns; i++)
		cr_assert_eq(placement_of(&placement, near_ns[i], near_ns[i]), PLACE_NEAR);
	placement_fini(&placement);

	placement_fill(&placement, far_ns, sizeof far_ns / sizeof *far_ns);
	cr_assert_not(placement.found);
	for (size_t i = 0; i < sizeof far_ns / sizeof *far_ns; i++)
		cr_assert_eq(placement_of(&placement, far_ns[i], far_ns[i]), PLACE_FAR);
	placement_fini(&placement);
}

Test(placement, a_disturbed_probe_does_not_draw_the_line)
{
	static const double rtts_ns[] = { 100, 450, 102, 99, 460, 3000000, 98, 101 };
	struct placement placement;

	placement_fill(&placement, rtts_ns, sizeof rtts_ns / sizeof *rtts_ns);
	cr_assert_eq(placement_of(&placement, 102, 102), PLACE_NEAR);
	cr_assert_eq(placement_of(&placement, 450, 460), PLACE_FAR);
	placement_fini(&placement);
}

Test(placement, a_given_threshold_stays)
{
	struct placement placement;

	placement_init(&placement, 70);
	cr_assert_eq(placement_add(&placement, 100), 0);
	cr_assert_eq(placement_add(&placement, 450), 0);
	cr_assert_not(placement.found);
	cr_assert(placement.threshold_ns == 70);
	cr_assert_eq(placement_of(&placement, 69, 69), PLACE_NEAR);
	cr_assert_eq(placement_of(&placement, 100, 100), PLACE_FAR);
	placement_fini(&placement);
}

Test(placement, without_a_probe_there_is_no_range)
{
	struct placement placement;
	double min_ns = 0, max_ns = 0;

	placement_init(&placement, 0);
	placement_range(&placement, &min_ns, &max_ns);
	cr_assert(isnan(min_ns) && isnan(max_ns));
	cr_assert_eq(placement_add(&placement, 450), 0);
	cr_assert_eq(placement_add(&placement, 100), 0);
	placement_range(&placement, &min_ns, &max_ns);
	cr_assert(min_ns == 100 && max_ns == 450);
	placement_fini(&placement);
}

Test(memory, descriptors_and_mappings_are_counted)
{
	struct memory before, after, each;
	void *mapped[4];
	int fds[4];

	memory_now(&before);
	for (int i = 0; i < 4; i++) {
		/* Of different protections: those alike would be joined. */
		mapped[i] = mmap(NULL, 1 << 20, i % 2 ? PROT_READ : PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			-1, 0);
		cr_assert_neq(mapped[i], MAP_FAILED);
		fds[i] = dup(0);
		cr_assert_geq(fds[i], 0);
	}
	memset(mapped[0], 1, 1 << 20);
	memory_now(&after);
	each = memory_each(&before, &after, 4);
	cr_assert(each.fds == 1, "%g", each.fds);
	cr_assert(each.mappings >= 1, "%g", each.mappings);
	cr_assert(each.rss_bytes >= 256 << 10, "%g", each.rss_bytes);
	for (int i = 0; i < 4; i++) {
		close(fds[i]);
		munmap(mapped[i], 1 << 20);
	}
}

/* Its layout is read as an inspector would: when that changes, this has to follow. */
Test(memory, control_memory_of_the_library_is_found)
{
	struct memory before, between, after;
	wharf_pool *first, *second;

	memory_now(&before);
	cr_assert(before.control_bytes == 0);
	cr_assert_eq(wharf_pool_new(NULL, &first), 0);
	memory_now(&between);
	cr_assert(between.control_bytes >= 64, "%g", between.control_bytes);
	cr_assert_eq(wharf_pool_new(NULL, &second), 0);
	memory_now(&after);
	cr_assert(after.control_bytes >= between.control_bytes + 64);
	wharf_pool_unref(second);
	wharf_pool_unref(first);
}

static struct outcome *shared_outcomes(size_t n)
{
	void *memory = mmap(NULL, n * sizeof(struct outcome), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	cr_assert_neq(memory, MAP_FAILED);
	return memory;
}

static int any_cpu(void)
{
	return sched_getcpu();
}

Test(crew, is_done_when_all_are)
{
	struct outcome *outcomes = shared_outcomes(3);
	struct crew crew = { .what = "test" };

	for (int i = 0; i < 3; i++) {
		pid_t pid = crew_fork(&crew, "member", any_cpu(), &outcomes[i]);

		if (!pid)
			crew_leave(&outcomes[i], 0);
		cr_assert_gt(pid, 0);
	}
	cr_assert_eq(crew_wait(&crew, 60000), 0);
	crew_fini(&crew);
	munmap(outcomes, 3 * sizeof *outcomes);
}

Test(crew, one_that_fails_ends_those_that_wait_for_it)
{
	struct outcome *outcomes = shared_outcomes(3);
	struct crew crew = { .what = "test" };

	for (int i = 0; i < 3; i++) {
		pid_t pid = crew_fork(&crew, "member", any_cpu(), &outcomes[i]);

		if (!pid && i == 1)
			crew_leave(&outcomes[i], outcome_fail(&outcomes[i], -EIO, "meant to"));
		while (!pid)
			pause();
		cr_assert_gt(pid, 0);
	}
	cr_assert_eq(crew_wait(&crew, 60000), -EIO);
	cr_assert(crew.members[0].killed && !crew.members[1].killed && crew.members[2].killed);
	cr_assert_str_eq(outcomes[1].error, "meant to");
	crew_fini(&crew);
	munmap(outcomes, 3 * sizeof *outcomes);
}

Test(crew, one_that_dies_without_a_word_has_failed)
{
	struct outcome *outcomes = shared_outcomes(1);
	struct crew crew = { .what = "test" };
	pid_t pid = crew_fork(&crew, "member", any_cpu(), &outcomes[0]);

	if (!pid)
		_exit(0);
	cr_assert_eq(crew_wait(&crew, 60000), -EIO);
	crew_fini(&crew);
	munmap(outcomes, sizeof *outcomes);
}

Test(outcome, the_first_line_stays)
{
	struct outcome outcome = { 0 };

	cr_assert_eq(outcome_fail(&outcome, -EPIPE, "the %s", "cause"), -EPIPE);
	cr_assert_eq(outcome_fail(&outcome, -EIO, "what came of it"), -EIO);
	cr_assert_str_eq(outcome.error, "the cause");
}
