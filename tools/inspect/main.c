/* SPDX-License-Identifier: MIT */
/* wharf-inspect: what a process that uses wharf is doing, seen from outside. */
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>

#include "doctor.h"
#include "look.h"
#include "options.h"
#include "prometheus.h"
#include "top.h"
#include "trace.h"

const struct command commands[] = {
	{ "list", look_list, COMMAND_JSON },
	{ "show", look_show, COMMAND_JSON | COMMAND_CORE },
	{ "rings", look_rings, COMMAND_JSON | COMMAND_CORE },
	{ "ports", look_ports, COMMAND_JSON | COMMAND_CORE },
	{ "chunks", look_chunks, COMMAND_JSON | COMMAND_CORE },
	{ "top", top_run, 0 },
	{ "trace", trace_run, COMMAND_NEEDS_PID | COMMAND_JSON },
	{ "prometheus", prometheus_run, 0 },
	{ "doctor", doctor_run, COMMAND_JSON },
	{ NULL, NULL, 0 },
};

int main(int argc, char **argv)
{
	struct options options;
	int status;

	setlocale(LC_CTYPE, "");
	status = options_parse(argc, argv, &options);
	if (status)
		return status;
	status = options.command->run(&options);
	free(options.pids);
	if (fflush(stdout) || ferror(stdout)) {
		complain("cannot write to standard output");
		status = EXIT_PROBLEM;
	}
	return status;
}
