/* SPDX-License-Identifier: MIT */
/* Numbers for a collector. */
#ifndef INSPECT_PROMETHEUS_H
#define INSPECT_PROMETHEUS_H

#include "options.h"

int prometheus_run(const struct options *options); /* an exit status */

#endif
