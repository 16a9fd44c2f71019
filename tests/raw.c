/* SPDX-License-Identifier: MIT */
/* The peer made by hand: see raw.h. */
#include "raw.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

_Noreturn void raw_failed(const char *expression, const char *file, int line)
{
	fprintf(stderr, "%s:%d: failed: %s\n", file, line, expression);
	abort();
}

/* ---- Frames ---- */

uint64_t raw_consumed;

bool raw_send(int fd, const void *bytes, size_t size, const int *fds, size_t n_fds, bool credentials)
{
	static _Thread_local union {
		char bytes[CMSG_SPACE(sizeof(int) * WH_WIRE_FDS_MAX) + CMSG_SPACE(sizeof(struct ucred))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = size };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control };
	struct ucred me = { getpid(), getuid(), getgid() };
	struct cmsghdr *cmsg = &control.align;

	memset(&control, 0, sizeof(control));
	if (n_fds) {
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * n_fds);
		m.msg_controllen += CMSG_SPACE(sizeof(int) * n_fds);
		cmsg = (struct cmsghdr *)(void *)(control.bytes + m.msg_controllen);
	}
	if (credentials) {
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_CREDENTIALS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(me));
		memcpy(CMSG_DATA(cmsg), &me, sizeof(me));
		m.msg_controllen += CMSG_SPACE(sizeof(me));
	}
	if (!m.msg_controllen)
		m.msg_control = NULL;
	return sendmsg(fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)size;
}

struct wh_hello raw_hello(void)
{
	return (struct wh_hello){
		.version_min = WH_WIRE_VERSION,
		.version_max = WH_WIRE_VERSION,
		.frame_bytes_max = 32768,
		.fds_max = WH_WIRE_FDS_MAX,
		.segments_max = WH_WIRE_SLOTS_MAX,
		.mapped_bytes_max = 1 << 30,
		.message_bytes_max = 1 << 30,
		.window_frames = 16,
		.name = "by hand",
	};
}

bool raw_say_hello(int fd, const struct wh_hello *hello)
{
	struct wh_hello usual = hello ? *hello : raw_hello();
	struct raw_frame frame;

	raw_begin(&frame);
	RAW_REQUIRE(wh_encode_control(&frame.encoder, WH_RECORD_HELLO, &usual, 0));
	return raw_send(fd, frame.bytes, wh_encode_end(&frame.encoder, 0, 0), NULL, 0, true);
}

void raw_begin(struct raw_frame *frame) { wh_encode_begin(&frame->encoder, frame->bytes, sizeof(frame->bytes)); }

void raw_put_chunks(
	struct raw_frame *frame, uint32_t type, uint16_t slot, uint32_t first, unsigned n_chunks, uint32_t size)
{
	struct wh_run run = { .slot = slot, .n_chunks = (uint8_t)n_chunks, .first = first, .size = size };

	RAW_REQUIRE(wh_encode_run(&frame->encoder, type, &run));
}

void raw_put_bytes(struct raw_frame *frame, uint32_t type, const void *bytes, uint32_t size)
{
	struct wh_piece piece = { .bytes = bytes, .size = size };
	struct wh_message_out message = { .kind = WH_RECORD_MESSAGE, .flags = WH_RECORD_FIRST | WH_RECORD_LAST,
		.n_pieces = 1, .type = type, .pieces = &piece };

	RAW_REQUIRE(wh_encode_message(&frame->encoder, &message));
}

void raw_put_wake(struct raw_frame *frame)
{
	struct wh_record record;

	RAW_REQUIRE(wh_encode_control(&frame->encoder, WH_RECORD_WAKE, &record, 0));
}

void raw_put_retire(struct raw_frame *frame, uint16_t slot, bool acknowledged)
{
	struct wh_slot_record record = { .slot = slot, .acknowledged = acknowledged };

	RAW_REQUIRE(wh_encode_control(&frame->encoder, WH_RECORD_RETIRE, &record, 0));
}

void raw_put_bye(struct raw_frame *frame, uint32_t code)
{
	struct wh_bye bye = { .code = code, .app_code = 7, .text = "by hand" };

	RAW_REQUIRE(wh_encode_control(&frame->encoder, WH_RECORD_BYE, &bye, 0));
}

bool raw_end(int fd, struct raw_frame *frame, uint64_t consumed)
{
	return raw_send(fd, frame->bytes, wh_encode_end(&frame->encoder, 0, consumed), NULL, 0, false);
}

bool raw_chunks(int fd, uint16_t slot, uint32_t first, unsigned n_chunks, uint32_t size)
{
	struct raw_frame frame;

	raw_begin(&frame);
	raw_put_chunks(&frame, 1, slot, first, n_chunks, size);
	return raw_end(fd, &frame, raw_consumed);
}

bool raw_bytes(int fd, const void *bytes, uint32_t size)
{
	struct raw_frame frame;

	raw_begin(&frame);
	raw_put_bytes(&frame, 2, bytes, size);
	return raw_end(fd, &frame, raw_consumed);
}

bool raw_bye(int fd, uint32_t code)
{
	struct raw_frame frame;

	raw_begin(&frame);
	raw_put_bye(&frame, code);
	return raw_end(fd, &frame, raw_consumed);
}

bool raw_retire(int fd, uint16_t slot, bool acknowledged)
{
	struct raw_frame frame;

	raw_begin(&frame);
	raw_put_retire(&frame, slot, acknowledged);
	return raw_end(fd, &frame, raw_consumed);
}

bool raw_ask_again(int fd, uint16_t slot)
{
	struct wh_slot_record record = { .slot = slot };
	struct raw_frame frame;

	raw_begin(&frame);
	RAW_REQUIRE(wh_encode_control(&frame.encoder, WH_RECORD_ANNOUNCE_REQUEST, &record, 0));
	return raw_end(fd, &frame, raw_consumed);
}

bool raw_wake(int fd)
{
	struct raw_frame frame;

	raw_begin(&frame);
	raw_put_wake(&frame);
	return raw_end(fd, &frame, raw_consumed);
}

bool raw_report(int fd, uint64_t consumed)
{
	struct raw_frame frame;

	raw_begin(&frame);
	return raw_end(fd, &frame, consumed);
}

bool raw_announce(int fd, uint16_t slot, uint8_t chunk_shift, uint32_t n_chunks, int segment_fd, int release_fd)
{
	struct wh_announce announce = { .slot = slot, .chunk_shift = chunk_shift, .n_chunks = n_chunks };
	int fds[2] = { segment_fd, release_fd };
	struct raw_frame frame;

	raw_begin(&frame);
	RAW_REQUIRE(wh_encode_control(&frame.encoder, WH_RECORD_ANNOUNCE, &announce, 2));
	return raw_send(fd, frame.bytes, wh_encode_end(&frame.encoder, 0, raw_consumed), fds, 2, false);
}

bool raw_fds(int fd, const int *fds, size_t n_fds)
{
	struct wh_message_out message = { .kind = WH_RECORD_MESSAGE, .flags = WH_RECORD_FIRST | WH_RECORD_LAST,
		.n_fds = (uint16_t)n_fds, .type = 3 };
	struct raw_frame frame;

	raw_begin(&frame);
	RAW_REQUIRE(wh_encode_message(&frame.encoder, &message));
	return raw_send(fd, frame.bytes, wh_encode_end(&frame.encoder, 0, raw_consumed), fds, n_fds, false);
}

/* ---- Memory ---- */

int raw_memfd(size_t bytes, bool sparse, int seals)
{
	int fd = memfd_create("by hand", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	RAW_REQUIRE(fd >= 0);
	RAW_REQUIRE(ftruncate(fd, (off_t)bytes) == 0);
	if (!sparse && bytes)
		RAW_REQUIRE(fallocate(fd, 0, 0, (off_t)bytes) == 0);
	if (seals)
		RAW_REQUIRE(fcntl(fd, F_ADD_SEALS, seals) == 0);
	return fd;
}

void raw_segment_open(struct raw_segment *ret_segment, uint8_t chunk_shift, uint32_t n_chunks)
{
	uint32_t n_words = (n_chunks + 63) / 64;

	*ret_segment = (struct raw_segment){ .n_words = n_words, .n_chunks = n_chunks, .chunk_shift = chunk_shift };
	RAW_REQUIRE(wh_segment_open("by hand", 0, (size_t)n_chunks << chunk_shift, 0, &ret_segment->segment) == 0);
	RAW_REQUIRE(wh_release_map_open("by hand", 0, n_words, &ret_segment->map, &ret_segment->map_fd) == 0);
	for (uint32_t i = 0; i < n_chunks; i++)
		ret_segment->segment.base[(size_t)i << chunk_shift] = (char)i;
}

void raw_segment_close(struct raw_segment *segment)
{
	wh_release_map_close(segment->map, segment->n_words);
	close(segment->map_fd);
	wh_segment_close(&segment->segment);
}

bool raw_announce_segment(int fd, uint16_t slot, const struct raw_segment *s)
{
	return raw_announce(fd, slot, s->chunk_shift, s->n_chunks, s->segment.fd, s->map_fd);
}

/* ---- What the port says ---- */

bool raw_receive(int fd, struct raw_read *ret_read)
{
	union { char bytes[CMSG_SPACE(sizeof(int) * WH_WIRE_FDS_MAX)]; struct cmsghdr align; } control;
	struct iovec iov = { .iov_base = ret_read->bytes, .iov_len = sizeof(ret_read->bytes) };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	ret_read->n_fds = 0;
	if (n <= 0)
		return false;
	ret_read->size = (size_t)n;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		size_t n_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		int got[WH_WIRE_FDS_MAX];

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		memcpy(got, CMSG_DATA(c), n_fds * sizeof(int));
		for (size_t i = 0; i < n_fds; i++)
			if (ret_read->n_fds < 2)
				ret_read->fds[ret_read->n_fds++] = got[i];
			else
				close(got[i]);
	}
	return true;
}

static void drop_fds(const struct raw_read *read)
{
	for (size_t i = 0; i < read->n_fds; i++)
		close(read->fds[i]);
}

static unsigned n_records(const struct raw_read *read)
{
	return ((const struct wh_frame *)(const void *)read->bytes)->n_records;
}

const void *raw_find(const struct raw_read *read, enum wh_record_kind kind)
{
	const struct wh_record *r = wh_frame_first(read->bytes);

	for (unsigned n = n_records(read); n; n--, r = wh_record_next(r))
		if (r->kind == kind)
			return r;
	return NULL;
}

uint32_t raw_bye_code(int fd)
{
	struct raw_read read;

	while (raw_receive(fd, &read)) {
		const struct wh_bye *bye = raw_find(&read, WH_RECORD_BYE);
		drop_fds(&read);
		if (bye)
			return bye->code;
	}
	return 0;
}

static void hold_map(struct raw_holder *holder, const struct wh_announce *a, int fd)
{
	struct stat st;
	void *map;

	RAW_REQUIRE(fstat(fd, &st) == 0);
	map = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	RAW_REQUIRE(map != MAP_FAILED);
	holder->maps[a->slot] = map;
	holder->bytes[a->slot] = (size_t)st.st_size;
	holder->n_chunks[a->slot] = a->n_chunks;
}

static void hold_runs(struct raw_holder *holder, const struct wh_record *r)
{
	const struct wh_run *runs = wh_message_read(r).runs;

	holder->n_messages++;
	for (unsigned i = 0; i < r->n_items; i++)
		if (runs[i].n_chunks && holder->n_runs < sizeof(holder->runs) / sizeof(*holder->runs))
			holder->runs[holder->n_runs++] = runs[i];
}

void raw_hold(int fd, struct raw_holder *holder)
{
	struct raw_read read;

	while (raw_receive(fd, &read)) {
		const struct wh_record *r = wh_frame_first(read.bytes);
		bool data = false;

		for (unsigned n = n_records(&read); n; n--, r = wh_record_next(r)) {
			bool first = r->kind == WH_RECORD_ANNOUNCE &&
				!holder->maps[((const struct wh_announce *)r)->slot]; /* not asked for again */

			data |= first || r->kind == WH_RECORD_MESSAGE;
			if (first && read.n_fds == 2)
				hold_map(holder, (const struct wh_announce *)r, read.fds[1]);
			else if (r->kind == WH_RECORD_MESSAGE)
				hold_runs(holder, r);
		}
		holder->n_frames += data;
		drop_fds(&read);
	}
}

bool raw_release_all(struct raw_holder *holder)
{
	bool wake = false;

	for (; holder->n_runs; holder->n_runs--) {
		const struct wh_run *run = &holder->runs[holder->n_runs - 1];
		struct wh_release_map *map = holder->maps[run->slot];
		RAW_REQUIRE(map);
		atomic_fetch_or(&map->words[run->first / 64],
			(~UINT64_C(0) >> (64 - run->n_chunks)) << run->first % 64);
		wake |= atomic_exchange(&map->wanted, 0);
	}
	return wake;
}

void raw_holder_fini(struct raw_holder *holder)
{
	for (unsigned i = 0; i < WH_WIRE_SLOTS_MAX; i++)
		if (holder->maps[i])
			munmap(holder->maps[i], holder->bytes[i]);
}
