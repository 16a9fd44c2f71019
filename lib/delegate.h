/* SPDX-License-Identifier: MIT */
/* A call that is answered through a port of its own: call.c's side of it. */
#ifndef WH_DELEGATE_H
#define WH_DELEGATE_H

#include "call.h"

/* Makes the answer port and sends the request. The call is new, on its own port. As wharf_call. */
int wh_call_delegate(struct wh_call *call, const struct wharf_out *request, const struct wharf_call_options *options);
/* The end of the call on the answer port is fixed: the application's id is stale. */
void wh_delegate_ended(struct wh_call *answered);
/* Its request has left whole: the end of the port is not its end. */
bool wh_delegate_outlives_port(const struct wh_call *call);
/* Of a port that has closed; NULL: no such call goes on. */
struct wh_call *wh_delegate_find(const struct wharf_port *port, uint64_t id);

#endif
