/* SPDX-License-Identifier: MIT */
/*
 * The outgoing side of a port, as its files share it: send.c (what the application sends), outbox.c (the queue),
 * outframe.c (frames).
 */
#ifndef WH_OUTBOX_H
#define WH_OUTBOX_H

#include "port.h"

static inline bool wh_window_open(const struct wharf_port *port)
{
	return port->frames_sent - port->frames_read_by_peer < port->window && port->bytes_unread < WH_WINDOW_BYTES;
}

static inline bool wh_open_has_records(const struct wharf_port *port)
{
	return port->open && !wh_encoder_empty(&port->open->encoder);
}

/* Until control records are added, all but an announcement are messages. */
static inline uint32_t wh_outframe_messages(const struct wh_outframe *frame)
{
	if (frame->handed)
		return frame->n_messages;
	return frame->data ? frame->encoder.n_records - (uint32_t)(frame->announces >= 0) : 0;
}

/* outframe.c */
bool wh_controls_due(const struct wharf_port *port);
void wh_port_retry_later(struct wharf_port *port); /* a flush after a growing pause */

/* outbox.c */
enum wh_encoded { ENCODED, FRAME_FULL, FAILED };
/*
 * Into the open frame, announcing segments before; on FAILED *ret_error says why. FRAME_FULL on an empty frame: it
 * never fits.
 */
enum wh_encoded wh_outbox_encode(struct wharf_port *port, const struct wh_message_out *message, const int *fds,
	uint64_t n_bytes, int *ret_error);
/* The open frame goes to the kernel, or behind those that wait for it. False: the queue is full, it stays. */
bool wh_outbox_turn_over(struct wharf_port *port);
bool wh_outbox_takes_frame(const struct wharf_port *port); /* would it? */
/* 0; -ENOMEM */
int wh_outbox_queue(struct wharf_port *port, const struct wh_message_out *message, const int *fds, uint64_t n_bytes);

#endif
