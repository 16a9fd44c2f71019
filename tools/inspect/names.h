/* SPDX-License-Identifier: MIT */
/* Names for the numbers in control memory. None is NULL: what has no name is "?", or a number in `text`. */
#ifndef INSPECT_NAMES_H
#define INSPECT_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

const char *names_port_state(uint32_t state);
const char *names_phase(uint32_t phase);
const char *names_engine(uint32_t engine);
const char *names_request(unsigned kind); /* of WH_ARMED_KINDS; NULL: of none yet */
const char *names_event(uint32_t kind);   /* of a trace; NULL: no such */
bool names_event_find(const char *name, size_t length, uint32_t *ret_kind);
const char *names_port_flag(unsigned bit); /* NULL: none */
const char *names_loop_flag(unsigned bit);
const char *names_errno(int error);        /* "EPIPE"; "0": none */

/* "io_uring (defer)": engine and the step of its ladder. */
enum { NAMES_ENGINE_BYTES = 40 };
const char *names_engine_level(uint32_t engine, uint32_t rung, char text[NAMES_ENGINE_BYTES]);

#endif
