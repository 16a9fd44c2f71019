/* SPDX-License-Identifier: MIT */
/* The live view. */
#ifndef INSPECT_TOP_H
#define INSPECT_TOP_H

#include "options.h"

int top_run(const struct options *options); /* an exit status */

#endif
