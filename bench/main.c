/* SPDX-License-Identifier: MIT */
/* wharf-bench: measures wharf and plain sockets side by side. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "options.h"
#include "process.h"
#include "report.h"
#include "result.h"
#include "runner.h"

enum {
	EXIT_OK = 0,
	EXIT_FAILED = 1,
	EXIT_NOT_MET = 3,
	EXIT_SKIPPED = 77,
};

static int complain(const char *what, int error)
{
	fprintf(stderr, "wharf-bench: %s: %s\n", what, strerror(-error));
	return EXIT_FAILED;
}

static int write_reports(const struct results *results, FILE *json)
{
	const struct options *options = results->options;
	int r = 0;

	if (json)
		r = report_json(results, json);
	if (r < 0)
		return complain(options->json ? "standard output" : options->json_path, r);
	if (!options->json)
		report_table(results, stdout);
	return fflush(stdout) == 0 ? EXIT_OK : complain("standard output", -errno);
}

static int judge(const struct results *results)
{
	for (size_t i = 0; i < results->options->n_requirements; i++)
		if (!results_judge(results, &results->options->requirements[i]).met)
			return EXIT_NOT_MET;
	return EXIT_OK;
}

static int measure(const struct options *options)
{
	FILE *json = options->json ? stdout : NULL;
	struct results results;
	int r, status = EXIT_FAILED;

	r = results_init(&results, options);
	if (r < 0)
		return complain("results", r);
	/* A path that cannot be written should not be found out after minutes. */
	if (options->json_path) {
		json = fopen(options->json_path, "we");
		if (!json) {
			status = complain(options->json_path, -errno);
			goto out;
		}
	}
	if (runner_run(&results) == 0)
		status = write_reports(&results, json);
	if (status == EXIT_OK)
		status = judge(&results);
	if (options->json_path && fclose(json) != 0 && status == EXIT_OK)
		status = complain(options->json_path, -errno);
out:
	results_fini(&results);
	return status;
}

/* An engine may be refused here: that is said before anything is measured. */
static int try_variants(const struct options *options)
{
	for (size_t i = 0; i < options->n_columns; i++) {
		const struct column *column = &options->columns[i];
		int r = column->variant ? variant_try(column->variant) : 0;

		if (r < 0) {
			fprintf(stderr, "wharf-bench: skipped: %s: %s\n", column->transport_name, strerror(-r));
			return EXIT_SKIPPED;
		}
	}
	return EXIT_OK;
}

int main(int argc, char **argv)
{
	struct options options;
	int status = options_parse(argc, argv, &options);

	if (status)
		return status;
	if (options.mode == MODE_PROBE)
		return runner_probe(&options) < 0 ? EXIT_FAILED : EXIT_OK;
	status = try_variants(&options);
	return status ? status : measure(&options);
}
