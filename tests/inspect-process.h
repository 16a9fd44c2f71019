/* SPDX-License-Identifier: MIT */
/* What the tests of wharf-inspect share: the program as a child process, and processes in known states to look at. */
#ifndef INSPECT_PROCESS_H
#define INSPECT_PROCESS_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "harness.h"

/* ---- The program ---------------------------------------------------------------------------------------------- */

struct said {
	int status;
	char *out, *errors;
	struct json_object *json; /* of its output, when --json was among its words */
};

/* Runs the program that WHARF_INSPECT of the environment names; ends with NULL. said_free is owed. */
void inspect(struct said *ret_said, ...) __attribute__((sentinel));
/* The same about one process: its number comes last. */
#define inspect_pid(said, pid, ...) inspect((said), __VA_ARGS__, inspect_number(pid), NULL)
const char *inspect_number(int64_t number); /* valid until the eighth call after this one */
void said_free(struct said *said);

/* Started, and left to itself; inspect_finish ends it or waits for it. */
struct inspector {
	struct harness_child child;
	const char *argv[16];
	int out, errors; /* descriptors of files without names */
};
void inspect_start(struct inspector *ret_inspector, ...) __attribute__((sentinel));
void inspect_finish(struct inspector *inspector, struct said *ret_said);
char *inspect_so_far(const struct inspector *inspector); /* what it has written; to be freed */

/* Members by JSON pointer: "/processes/0/ports/0/state". They fail the test where there is none. */
struct json_object *said_at(const struct said *said, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define said_count(said, ...) json_object_get_uint64(said_at((said), __VA_ARGS__))
#define said_text(said, ...) json_object_get_string(said_at((said), __VA_ARGS__))
#define said_length(said, ...) json_object_array_length(said_at((said), __VA_ARGS__))
bool said_has_flag(const struct said *said, const char *pointer, const char *flag);

#define expect_out(said, text) cr_expect(strstr((said)->out, (text)), "'%s' is not in:\n%s", (text), (said)->out)
#define expect_error(said, text) cr_expect(strstr((said)->errors, (text)), "'%s' is not in: %s", (text), (said)->errors)
#define expect_one_line(said) cr_expect(said_one_line(said), "said: %s", (said)->errors)
bool said_one_line(const struct said *said);
unsigned said_widest(const struct said *said); /* columns of its longest line */

/* ---- Scenes --------------------------------------------------------------------------------------------------- */

/* A process that plays a part: it says that it is where it was to come, and stays there until it is ended. */
struct scene {
	struct harness_child child;
	int (*play)(struct scene *scene);
	int ready[2];
	int fd;         /* an end of a pair, or -1 */
	int number;
};

/* Returns when it has said so. fd is closed here. */
void scene_start(struct scene *scene, int (*play)(struct scene *scene), int fd, int number);
/* The same in two steps. */
void scene_begin(struct scene *scene, int (*play)(struct scene *scene), int fd, int number);
void scene_await(struct scene *scene);
void scene_end(struct scene *scene);
void scene_stop(const struct scene *scene); /* SIGSTOP, and it has taken effect */
void scene_ready(struct scene *scene);      /* called by the part; once is enough */

/* Parts: receivers take `fd`, and so do senders. */
int play_keeper(struct scene *scene);   /* takes every message, and releases none */
int play_reader(struct scene *scene);   /* receives, and is done with each at once */
int play_hanger(struct scene *scene);   /* never returns from its first message's handler */
int play_lender(struct scene *scene);   /* sends `number` buffers of 3000 bytes */
int play_flooder(struct scene *scene);  /* when told by SIGUSR1, sends until it is refused */
int play_stuck(struct scene *scene);    /* its socket is full: the peer, in the same process, reads nothing more */
int play_leaker(struct scene *scene);   /* claims `number` buffers, and forgets them */
int play_crowd(struct scene *scene);    /* has `number` pairs of ports on one loop */
int play_victim(struct scene *scene);   /* its peer breaks the protocol */

/* inspect-traffic.c: ready when each kind of event has been there once. */
enum { TRAFFIC_BURST = 50, TRAFFIC_BYTES = 600 };
int play_talker(struct scene *scene);   /* with messages of type 7, streams, calls, a full socket, strangers */
int play_answerer(struct scene *scene); /* its peer: answers calls */

#endif
