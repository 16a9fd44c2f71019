/* SPDX-License-Identifier: MIT */
/* The process whose death is the peer's end: port->watch. */
#ifndef WH_WATCH_H
#define WH_WATCH_H

#include "port.h"

/* Instead of what is watched now; owns pidfd if it succeeds. `only`: see struct wh_watch. 0; -ENOMEM. */
int wh_watch_start(struct wharf_port *port, int pidfd, pid_t only);
void wh_watch_stop(struct wharf_port *port); /* does nothing if there is none */
void wh_watch_look(struct wharf_port *port); /* it is dead, or the peer has said who it is: the end? */

#endif
