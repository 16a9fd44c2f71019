/* SPDX-License-Identifier: MIT */
/* What two looks at a process say about each second between them. */
#ifndef INSPECT_RATES_H
#define INSPECT_RATES_H

#include "subject.h"

/* Per second; negative: not known, because it was not there at the first look. */
struct rates_traffic {
	double tx_messages, tx_bytes, tx_frames;
	double rx_messages, rx_bytes, rx_frames;
	double again, drops; /* ports only */
};

struct rates_loop {
	struct rates_traffic traffic;
	double turns, sleeps, system_calls, completions, events;
	double busy;         /* share of the time, 0 to 1 */
};

/* 0: there were no two looks. */
double rates_seconds(const struct subject *subject);
void rates_of_port(const struct subject *subject, const struct snap_port *port, struct rates_traffic *ret_rates);
void rates_of_loop(const struct subject *subject, const struct snap_loop *loop, struct rates_loop *ret_rates);
void rates_of_process(const struct subject *subject, struct rates_loop *ret_rates);

#endif
