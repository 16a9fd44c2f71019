/* SPDX-License-Identifier: MIT */
/*
 * A peer made by hand: a bare socket that speaks the wire format, well or badly. What fails in here ends the program:
 * Criterion is not needed.
 */
#ifndef RAW_H
#define RAW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "segment.h"
#include "wire.h"

#define RAW_REQUIRE(x) ((x) ? (void)0 : raw_failed(#x, __FILE__, __LINE__))
_Noreturn void raw_failed(const char *expression, const char *file, int line);

/* A datagram as it is. False: the socket takes it not, errno tells. */
bool raw_send(int fd, const void *bytes, size_t size, const int *fds, size_t n_fds, bool credentials);

/* A hello that every port accepts, to be changed at will. */
struct wh_hello raw_hello(void);
bool raw_say_hello(int fd, const struct wh_hello *hello); /* NULL: that one */

/* A frame under construction. */
struct raw_frame {
	struct wh_encoder encoder;
	_Alignas(64) unsigned char bytes[WH_FRAME_BYTES_MAX];
};
void raw_begin(struct raw_frame *frame);
void raw_put_chunks(
	struct raw_frame *frame, uint32_t type, uint16_t slot, uint32_t first, unsigned n_chunks, uint32_t size);
void raw_put_bytes(struct raw_frame *frame, uint32_t type, const void *bytes, uint32_t size);
void raw_put_wake(struct raw_frame *frame);
void raw_put_retire(struct raw_frame *frame, uint16_t slot, bool acknowledged);
void raw_put_bye(struct raw_frame *frame, uint32_t code);
bool raw_end(int fd, struct raw_frame *frame, uint64_t consumed); /* sends it */

/* One record in a frame of its own, which says that so many frames were read. */
extern uint64_t raw_consumed;
bool raw_chunks(int fd, uint16_t slot, uint32_t first, unsigned n_chunks, uint32_t size);
bool raw_bytes(int fd, const void *bytes, uint32_t size);
bool raw_bye(int fd, uint32_t code);
bool raw_retire(int fd, uint16_t slot, bool acknowledged);
bool raw_ask_again(int fd, uint16_t slot);
bool raw_wake(int fd);
bool raw_report(int fd, uint64_t consumed);
bool raw_announce(int fd, uint16_t slot, uint8_t chunk_shift, uint32_t n_chunks, int segment_fd, int release_fd);
/* A message without bytes, with descriptors. */
bool raw_fds(int fd, const int *fds, size_t n_fds);

/* A memfd of that size, allocated unless `sparse`. */
int raw_memfd(size_t bytes, bool sparse, int seals);
enum { RAW_SEALS = 0x2 | 0x4 | 0x1 }; /* SHRINK, GROW, SEAL */

/* An honest segment, with a view of what its receiver releases. */
struct raw_segment {
	struct wh_segment segment;
	struct wh_release_map *map;
	int map_fd;
	uint32_t n_words;
	uint32_t n_chunks;
	uint8_t chunk_shift;
};
void raw_segment_open(struct raw_segment *ret_segment, uint8_t chunk_shift, uint32_t n_chunks);
void raw_segment_close(struct raw_segment *segment);
bool raw_announce_segment(int fd, uint16_t slot, const struct raw_segment *segment);

/* Reads what has arrived, without waiting. *ret_fds gets up to two; others are closed. False: nothing, or the end. */
struct raw_read {
	_Alignas(64) unsigned char bytes[WH_FRAME_BYTES_MAX];
	size_t size;
	int fds[2];
	size_t n_fds;
};
bool raw_receive(int fd, struct raw_read *ret_read);
/* The first record of that kind in what was read; NULL: none. */
const void *raw_find(const struct raw_read *read, enum wh_record_kind kind);
/* The code of the next bye, and 0 if there is none. Everything before it is thrown away. */
uint32_t raw_bye_code(int fd);

/* What an honest receiver keeps: the release maps, and what was lent to it. */
struct raw_holder {
	struct wh_release_map *maps[WH_WIRE_SLOTS_MAX];
	size_t bytes[WH_WIRE_SLOTS_MAX];
	uint32_t n_chunks[WH_WIRE_SLOTS_MAX];
	struct wh_run runs[1024]; /* received and not released; more are forgotten */
	size_t n_runs;
	uint64_t n_frames;        /* data frames read */
	size_t n_messages;
};
void raw_hold(int fd, struct raw_holder *holder); /* reads all that waits */
/* Marks them as released. True: the owner wanted to be told. */
bool raw_release_all(struct raw_holder *holder);
void raw_holder_fini(struct raw_holder *holder);

#endif
