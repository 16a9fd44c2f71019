/* SPDX-License-Identifier: MIT */
/* A port that waits for its listener: port->connecting. */
#ifndef WH_CONNECT_H
#define WH_CONNECT_H

#include "port.h"

/*
 * Tries once more, unless the pause after the last try is not over. False: it has to wait longer. Else it may be
 * connected (port->connecting is NULL), or the port may have ended.
 */
bool wh_connect_again(struct wharf_port *port);
void wh_connect_stop(struct wharf_port *port); /* connected, or given up. Does nothing if it is neither */

#endif
