/* SPDX-License-Identifier: MIT */
/* Events as a file for wireshark and its like. */
#ifndef INSPECT_PCAPNG_H
#define INSPECT_PCAPNG_H

#include <stdio.h>

#include "trace.h"

struct pcapng;

/* "-" is standard output. NULL, and why. */
struct pcapng *pcapng_open(const char *path, const struct process *process, char why[PROCESS_WHY_BYTES]);
void pcapng_add(struct pcapng *pcapng, const struct trace_event *event, int64_t wall_ns);
int pcapng_close(struct pcapng *pcapng); /* 0; -EIO: something could not be written */

#endif
