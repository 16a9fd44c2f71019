/* SPDX-License-Identifier: MIT */
/* Sizes, times and counts for people: three digits and a unit. Exact values are in the JSON. */
#ifndef INSPECT_UNIT_H
#define INSPECT_UNIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { UNIT_BYTES = 24 };
typedef char unit_text[UNIT_BYTES];
#define UNIT ((unit_text){ 0 }) /* room for one, as long as the block */

const char *unit_size(uint64_t bytes, unit_text text);       /* "1.2M": powers of 1024 */
const char *unit_rate(double per_second, unit_text text);    /* "1.2M": powers of 1024; "-": not known (negative) */
const char *unit_count(double number, unit_text text);       /* "1.2M": powers of 1000; "-": not known (negative) */
const char *unit_time_or_dash(uint64_t ns, unit_text text);  /* "-": 0 */
const char *unit_time(uint64_t ns, unit_text text);          /* "1.2ms", "12s", "3m02s", "2h03m", "3d02h" */

/* "5s", "1.5ms", "2m", "500us", "1h", "100ns"; without a unit: seconds. */
bool unit_parse_time(const char *text, uint64_t *ret_ns);

/* Whatever a stranger wrote: what is not printable ASCII becomes '?', and it ends within size bytes. */
void unit_clean(char *text, size_t size);

#endif
