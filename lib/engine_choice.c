/* SPDX-License-Identifier: MIT */
/* Which engine a loop gets, and why. */
#include "engine_core.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wharf.h"

static const struct {
	const char *word;
	uint32_t engine, rung;
} choices[] = {
	{ "auto", WHARF_ENGINE_AUTO, 0 },
	{ "uring", WHARF_ENGINE_URING, 0 },
	{ "uring:1", WHARF_ENGINE_URING, 1 },
	{ "uring:2", WHARF_ENGINE_URING, 2 },
	{ "epoll", WHARF_ENGINE_EPOLL, 0 },
};

int wh_engine_choose(struct wh_engine_config *config, const char **ret_word)
{
	const char *word = config->engine == WHARF_ENGINE_AUTO ? secure_getenv(WH_ENGINE_VARIABLE) : NULL;

	if (!word || !*word)
		return 0;
	for (size_t i = 0; i < wh_array_len(choices); i++)
		if (!strcmp(word, choices[i].word)) {
			config->engine = choices[i].engine;
			config->rung = choices[i].rung;
			return 0;
		}
	*ret_word = word;
	return -EINVAL;
}

static const char *or_unknown(const char *word) { return word ? word : "unknown"; }

int wh_engine_open(const struct wh_engine_config *config, struct wh_engine **ret_engine)
{
	struct wh_engine *engine;
	bool refused = false;
	int why = 0, error;

	if (config->engine != WHARF_ENGINE_EPOLL) {
		why = wh_uring_open(config, ret_engine, &refused);
		if (config->engine == WHARF_ENGINE_URING || !refused)
			return why;
	}
	error = wh_epoll_open(config, &engine);
	if (error)
		return error;
	if (why)
		snprintf(engine->name, sizeof(engine->name), "epoll (io_uring: %s, %s)", or_unknown(strerrorname_np(-why)),
			or_unknown(strerrordesc_np(-why)));
	*ret_engine = engine;
	return 0;
}
