/* SPDX-License-Identifier: MIT */
/*
 * Linked into a program that starts children: those, forked or spawned, get the engine that WHARF_TEST_PEER_ENGINE
 * names, and the program itself has no part in it.
 */
#include <pthread.h>
#include <stdlib.h>

static void become_peer(void)
{
	setenv("WHARF_ENGINE", getenv("WHARF_TEST_PEER_ENGINE"), 1);
}

__attribute__((constructor)) static void prepare(void)
{
	if (!getenv("WHARF_TEST_PEER_ENGINE"))
		return;
	/* Whoever was spawned has an end to inherit. */
	if (getenv("WHARF_FD"))
		become_peer();
	else
		pthread_atfork(NULL, NULL, become_peer);
}
