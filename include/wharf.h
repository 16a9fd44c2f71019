/* SPDX-License-Identifier: MIT */
/*
 * wharf: messages between processes of one Linux machine, without copying their bulk data.
 *
 * The header is in the order in which a program meets things: returns, options, loop, pool and buffers, ports,
 * sending, receiving, closing, opening.
 *
 * Returns
 *   A function that can fail returns int: 0 or a documented positive condition is success, a negative errno is
 *   failure. (Those that make a message return a pointer, NULL for no memory.) After a failure the caller owns
 *   everything it passed, nothing was sent, no callback will fire, and `ret_` parameters are untouched. Success of a
 *   send means queued, not delivered: the reason given to on_close counts what was not sent.
 *   Any function answers -ECHILD in a forked child until wharf_fork_child() (others do nothing there, or give what the
 *   parent would have got), and -EINVAL for a NULL where an object is required, an options size of 0, unknown flag
 *   bits, a truth value other than 0 or 1, or non-zero reserved fields; -E2BIG for non-zero fields behind the options
 *   this library knows; -EOPNOTSUPP for an option that this release declares but does not have yet. Not repeated below.
 *
 * Units
 *   Sizes are bytes and times are nanoseconds: names say so (`_bytes`, `_ns`). Timeouts are relative; negative
 *   waits for ever, 0 does not wait.
 *
 * Threads
 *   | thread           | functions                                                                              |
 *   |------------------|----------------------------------------------------------------------------------------|
 *   | any              | wharf_buf_claim, _trim, _ref, _abandon; wharf_msg_ref, _release, _copy, _contiguous;   |
 *   |                  | wharf_pool_*; wharf_port_ref, _unref; wharf_loop_ref, _unref, _wake, _stop, _post;     |
 *   |                  | wharf_post and wharf_post_buf without waiting; wharf_pair, wharf_version,              |
 *   |                  | wharf_close_name, wharf_fork_child; wharf_msg_take_fd of a taken message, one thread   |
 *   |                  | at a time                                                                              |
 *   | any but a loop's | wharf_buf_claim_wait; wharf_post and wharf_post_buf with a timeout_ns                  |
 *   | the loop's       | everything else, wharf_msg_take included                                               |
 *   A loop belongs to the thread that first steps or flushes it; until then to any one thread at a time.
 *
 * Callbacks
 *   Fire only inside wharf_loop_step, wharf_loop_run and wharf_loop_free, never inside the call that caused them.
 *   Everything is allowed in them but stepping or freeing the loop and blocking helpers, which answer -EDEADLK. They
 *   return: no longjmp, exception or panic may cross them. A port's user pointer is last used in on_close, a
 *   listener's before wharf_listener_close returns; a call that fails never uses it.
 *
 * Processes
 *   The library never takes signals, never writes to stderr, never exits, never starts a thread. After fork() a
 *   child has neither the memory of its parent's loops, pools and ports nor their descriptors (those of vfork and of
 *   raw clone keep the descriptors until they exec or exit). Ends that were never opened, and descriptors travelling in
 *   messages, are inherited like others. exec needs nothing.
 *
 * Structures that only the library makes (peer, reason, message) grow at their end: never copy them by size.
 */
#ifndef WHARF_H
#define WHARF_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WHARF_VERSION_MAJOR 0
#define WHARF_VERSION_MINOR 1
#define WHARF_VERSION_PATCH 0

#define WHARF_API __attribute__((visibility("default")))
#define WHARF_CHECK __attribute__((warn_unused_result))

/* "0.1.0": the library in use, which may be newer than this header. Static. */
WHARF_API const char *wharf_version(void);

typedef struct wharf_loop wharf_loop;
typedef struct wharf_pool wharf_pool;
typedef struct wharf_port wharf_port;
typedef struct wharf_listener wharf_listener;

struct wharf_buf;
struct wharf_msg;
struct wharf_peer;
struct wharf_reason;

/*
 * Options
 *   Every options and callback structure begins with its own size, so that programs built against an older header
 *   keep working. Zero is each field's default. WHARF_OPT(port, .user = me) makes one in place; WHARF_INIT(&options)
 *   clears one and sets its size, in C++ too. A NULL options pointer means all defaults, except where a field is
 *   required. The structure is read during the call only, what its pointers name as well unless the field says
 *   otherwise.
 */
#define WHARF_INIT(options) (memset((options), 0, sizeof *(options)), (void)((options)->size = sizeof *(options)))
#ifndef __cplusplus
#define WHARF_OPT(noun, ...) \
	(&(struct wharf_##noun##_options){ .size = sizeof(struct wharf_##noun##_options), __VA_ARGS__ })
#endif

/* ---- The loop ------------------------------------------------------------------------------------------------- */

enum {
	WHARF_ENGINE_AUTO = 0,  /* what WHARF_ENGINE in the environment says; else io_uring, and epoll where that is refused */
	WHARF_ENGINE_URING = 1, /* or an error */
	WHARF_ENGINE_EPOLL = 2,
};

enum {
	/* An inspector does not see the loop and its ports, only the memory of their pools: for those who count each
	 * nanosecond. */
	WHARF_LOOP_UNSEEN = 1u << 0,
	WHARF_LOOP_TRACE = 1u << 1, /* keeps the last events from the start on, not only when an inspector asks. Not both */
};

struct wharf_loop_options {
	size_t size;
	uint32_t engine;          /* WHARF_ENGINE_* */
	/* frames that the kernel may fill ahead, all ports together; a power of two, default 64 */
	uint32_t rx_buffers;
	uint32_t frame_bytes_max; /* largest frame sent or received; 4096 to 65536, rounded down to 64; default 32768 */
	uint32_t flags;           /* WHARF_LOOP_* */
	uint64_t spin_ns;         /* a waiting step looks this long for work before it sleeps; default 0 */

	/* For loops, ports, queues and frames on their way out, never for payload received nor for what wharf_post queues.
	 * Called on the loop's thread, and by whoever drops a last reference. free takes NULL. */
	void *(*alloc)(size_t bytes, void *user);
	void (*free)(void *memory, void *user);

	/* What no return value can tell: text is one line without newline, valid during the call. Called on the
	 * loop's thread with no lock held; it must not call back into the library. */
	void (*diagnostic)(const char *text, void *user);

	/*
	 * Monotonic time for deadlines, instead of CLOCK_MONOTONIC: a test's clock. The kernel's sleeps are not scaled.
	 */
	uint64_t (*clock_ns)(void *user);
	void *user; /* for the four above */
};

/*
 * Makes a loop with one reference, the caller's. Its engine is chosen once, here; peers need not have the same.
 * The environment variable WHARF_ENGINE decides for programs that leave the choice open (WHARF_ENGINE_AUTO): auto,
 * uring or epoll; uring:1 and uring:2 do without what Linux 6.1 and 6.0 brought. Programs with more rights than who
 * started them do not read it.
 * io_uring counts as refused if the kernel has it not or is too old (-ENOSYS, -EOPNOTSUPP), if a filter or a setting
 * forbids it (-EPERM, -EACCES), or if RLIMIT_MEMLOCK is too low for the smallest ring (-ENOMEM). Other errors are not
 * a reason for another engine.
 * 0; -ENOMEM; -EMFILE or -ENFILE; -EINVAL: WHARF_ENGINE names no engine, too (said to diagnostic); with
 * WHARF_ENGINE_URING those that count as refused.
 */
WHARF_API WHARF_CHECK int wharf_loop_new(const struct wharf_loop_options *options, wharf_loop **ret_loop);

/*
 * Fails every port still open (WHARF_CLOSE_LOOP_FREED; their on_close fires inside), closes the listeners, whose
 * handles end here, and drops the caller's reference. Taken messages and claimed buffers stay valid; what a port of a
 * shared pool has lent comes back at once, so free its loop after its peers have closed. By the loop's
 * thread, or when that has ended. Returns NULL, and takes NULL: `loop = wharf_loop_free(loop)`. Inside a callback it
 * does nothing and returns the loop.
 */
WHARF_API wharf_loop *wharf_loop_free(wharf_loop *loop);

/* Counted reference for other threads; a loop that was freed answers -EPIPE. unref takes NULL and returns NULL. */
WHARF_API wharf_loop *wharf_loop_ref(wharf_loop *loop);
WHARF_API wharf_loop *wharf_loop_unref(wharf_loop *loop);

/*
 * One turn: sends what ports have queued, waits for events up to timeout_ns, runs their callbacks, sends again. A
 * turn's work is bounded, so a busy port cannot keep the loop from the others.
 * Positive: more work is waiting, or may be: step again soon, or when wharf_loop_fd is readable. 0: idle, woken, interrupted
 * by a signal, or the time is up. -EDEADLK: called in a callback. -EPERM: the loop belongs to another thread. Any
 * other negative: the engine is broken; free the loop, which ends its ports.
 */
WHARF_API int wharf_loop_step(wharf_loop *loop, int64_t timeout_ns);

/* Steps until wharf_loop_stop, or until no port, listener or task is left: 0. Negative as wharf_loop_step. */
WHARF_API int wharf_loop_run(wharf_loop *loop);

/* Makes wharf_loop_run return after its current turn, or the next call of it at once. Also from a signal handler. */
WHARF_API void wharf_loop_stop(wharf_loop *loop);

/* Makes a waiting step return. Also from a signal handler. 0; -EPIPE. */
WHARF_API int wharf_loop_wake(wharf_loop *loop);

/*
 * Work for the loop's thread, in storage that the caller brings: zero opaque before its first use, and leave the
 * structure alone while it is pending. run fires exactly once per post, in a turn: status 0, or -EPIPE inside
 * wharf_loop_free, before any on_close. From when it is called the task may be posted again, by run itself, too: that is
 * for the next turn; or its storage may go.
 */
struct wharf_task {
	void (*run)(struct wharf_task *task, int status);
	void *user;
	uint64_t opaque[4];
};

/*
 * Has task->run called by the loop, after all that was posted to it before, by whatever thread; wakes it if it sleeps.
 * wharf_loop_run does not return while a task is pending. Any thread, callbacks too, but no signal handler; no memory
 * is allocated. 0; -EALREADY: pending; -EPIPE: the loop was freed, and run is not called for it.
 */
WHARF_API int wharf_loop_post(wharf_loop *loop, struct wharf_task *task);

/*
 * Sends now what is queued, without running callbacks: a burst of sends leaves before the host comes round to the next
 * step. Before the first step, too: hellos leave, messages wait for the peer's. Never required. 0; negative as
 * wharf_loop_step.
 */
WHARF_API int wharf_loop_flush(wharf_loop *loop);

/*
 * One descriptor for epoll, poll, select, libuv, GLib or sd-event, level-triggered: readable when
 * wharf_loop_step(loop, 0) has something to do, deadlines and sends made outside a step included. The loop owns it;
 * valid until the loop is freed. Negative: errno. Do not read it.
 */
WHARF_API int wharf_loop_fd(wharf_loop *loop);

/*
 * The engine in use, and its feature level or why it is not the other: "io_uring", "io_uring (single shot)", "epoll
 * (io_uring: EPERM, Operation not permitted)", "epoll (io_uring: not asked for)". Valid as long as the loop.
 */
WHARF_API const char *wharf_loop_engine(const wharf_loop *loop);

/* What a loop has done since it was made. */
struct wharf_loop_info {
	size_t size;           /* set by the caller; no more is written */
	uint64_t turns;        /* of wharf_loop_step and wharf_loop_run */
	uint64_t system_calls; /* of its engine, by its thread: to send, to receive, to accept, to wait */
	uint64_t sleeps;       /* those of them that were ready to wait */
	uint64_t wakes;        /* turns that wharf_loop_wake or a post had asked for */
};
/* 0; -EPIPE; -EPERM: the loop belongs to another thread. */
WHARF_API int wharf_loop_info(const wharf_loop *loop, struct wharf_loop_info *ret_info);

/* ---- Pools and buffers ---------------------------------------------------------------------------------------- */

enum {
	WHARF_PREFAULT = 1u << 0, /* map every page when memory is reserved, not at its first touch */
	/* Try huge pages (MFD_HUGETLB) for large segments; wharf_pool_info tells what came of it. Only for peers that map
	 * them (WHARF_PORT_MAPS_HUGE); a private pool goes without for others. */
	WHARF_HUGE = 1u << 1,
};

struct wharf_pool_options {
	size_t size;
	uint32_t flags;      /* WHARF_PREFAULT, WHARF_HUGE */
	uint32_t shared;     /* 1: the pool of up to WHARF_POOL_PORTS_MAX ports. Every peer of it can read all of it, also
	                      * buffers that were not sent to it, and unsent ones */
	uint64_t bytes_max;  /* cap of its segments; default 64 MiB */
	const char *name;    /* up to 31 characters, copied; for the inspector */
};

enum { WHARF_POOL_PORTS_MAX = 1024 };

struct wharf_pool_info {
	size_t size;             /* set by the caller; no more is written */
	uint64_t bytes;          /* reserved in segments now */
	uint64_t bytes_max;
	uint64_t bytes_free;     /* claimable, fragmentation not considered */
	uint64_t bytes_lent;     /* with peers, and not yet known to be released */
	uint64_t bytes_huge;     /* on huge pages: what WHARF_HUGE got */
	uint64_t bytes_prefaulted; /* what WHARF_PREFAULT got */
	uint32_t segments;
	uint32_t reserved;
};

/*
 * A port makes its own pool when it gets none; make one to share it, to claim before a port exists, or to
 * choose its size. The caller gets one reference; ports, claimed buffers and lent chunks hold their own.
 * 0; -ENOMEM; -EMFILE.
 */
WHARF_API WHARF_CHECK int wharf_pool_new(const struct wharf_pool_options *options, wharf_pool **ret_pool);
WHARF_API wharf_pool *wharf_pool_ref(wharf_pool *pool);
WHARF_API wharf_pool *wharf_pool_unref(wharf_pool *pool); /* takes NULL, returns NULL */

/*
 * Reserves memory now, so that `total_bytes` of buffers of buf_bytes each can be claimed without growing. On the loop's
 * thread of a private pool, once that was stepped, they can be sent, too, without making anything that has a descriptor.
 * flags: WHARF_PREFAULT. 0; -ENOMEM; -EMFILE or -ENFILE; -EMSGSIZE: beyond bytes_max.
 */
WHARF_API WHARF_CHECK int wharf_pool_reserve(wharf_pool *pool, size_t buf_bytes, size_t total_bytes, uint32_t flags);

WHARF_API int wharf_pool_info(wharf_pool *pool, struct wharf_pool_info *ret_info);

/*
 * A claimed piece of a pool: contiguous, 64-aligned, writable, of exactly the size asked for. A small value; copy it
 * as you like, use one copy. Empty when data is NULL. It holds the pool, whatever happens to ports.
 */
struct wharf_buf {
	void *data;
	size_t size;
	uint64_t opaque[2];
};
#define WHARF_BUF_EMPTY { NULL, 0, { 0, 0 } }

/*
 * Claims size bytes; contents are undefined. Lock-free, never blocks on a peer; may reserve memory when the pool has
 * to grow.
 * 0. -EAGAIN: no room until a peer releases or a buffer is abandoned; every open port of the pool then gets one
 * on_writable as soon as a claim that failed would succeed (of several sizes, the smallest). -EMSGSIZE: can never
 * succeed (larger than bytes_max, or than 1 GiB). -EINVAL: size 0. -ENOMEM; -EMFILE or -ENFILE.
 */
WHARF_API WHARF_CHECK int wharf_buf_claim(wharf_pool *pool, size_t size, struct wharf_buf *ret_buf);

/*
 * The same, waiting for room instead of -EAGAIN. Also -ETIMEDOUT; -EPIPE: the pool has had ports, and all have closed;
 * -EDEADLK on a loop's thread.
 */
WHARF_API WHARF_CHECK int wharf_buf_claim_wait(wharf_pool *pool, size_t size, int64_t timeout_ns,
	struct wharf_buf *ret_buf);

/*
 * Makes it shorter where it is; whole chunks of the tail go back at once. 0; -EINVAL: empty, size 0 or larger than it
 * is.
 */
WHARF_API int wharf_buf_trim(struct wharf_buf *buf, size_t size);

/*
 * A second buffer on the same bytes, for another port of the same shared pool; each is sent or abandoned by itself.
 * Neither may be trimmed any more. 0; -EINVAL: empty; -EOVERFLOW: more than 65535 references; -ENOMEM.
 */
WHARF_API WHARF_CHECK int wharf_buf_ref(const struct wharf_buf *buf, struct wharf_buf *ret_buf);

/* Gives it back and empties *buf. Does nothing with an empty one or NULL. */
WHARF_API void wharf_buf_abandon(struct wharf_buf *buf);

/* ---- Ports ---------------------------------------------------------------------------------------------------- */

enum {
	/* wharf_port_close here; everything accepted was sent unless unsent_* says otherwise */
	WHARF_CLOSE_LOCAL = 1,
	WHARF_CLOSE_PEER = 2,       /* the peer closed in good order */
	WHARF_CLOSE_ABORTED = 3,    /* wharf_port_abort here */
	WHARF_CLOSE_PEER_ABORTED = 4, /* the peer's wharf_port_abort; app_code is its code */
	WHARF_CLOSE_PEER_GONE = 5,  /* the peer ended without a word: crashed, killed, or closed the socket */
	WHARF_CLOSE_VIOLATION = 6,  /* the peer broke the protocol; text says where */
	WHARF_CLOSE_PEER_REFUSED = 7, /* the peer says that we did, or that it does not accept us */
	WHARF_CLOSE_MISMATCH = 8,   /* no common version, or a feature one side requires and the other lacks */
	/* no hello within open_timeout_ns, no end of draining within close's timeout, or not connected within
	 * connect_timeout_ns: error is then EBUSY, ECONNREFUSED or ENOENT */
	WHARF_CLOSE_TIMEOUT = 9,
	WHARF_CLOSE_ERROR = 10,     /* the system refused; error says what */
	WHARF_CLOSE_LOOP_FREED = 11,
	WHARF_CLOSE_REFUSED = 12,   /* this end does not accept the peer: WHARF_PORT_SAME_USER */
};

/* Static name of a WHARF_CLOSE_* code, "unknown" for others. */
WHARF_API const char *wharf_close_name(uint32_t code);

enum { WHARF_NAME_MAX = 63 };

/*
 * Who is at the other end, as the kernel vouches for it: pid (0 in a pid namespace that this one cannot see), uid and
 * gid come from SCM_CREDENTIALS; name is its own word.
 */
struct wharf_peer {
	pid_t pid;
	uid_t uid;
	gid_t gid;
	uint32_t version;
	uint32_t features;
	uint32_t fds_max;         /* descriptors it takes per message */
	uint32_t bytes_max;       /* of one part given as bytes: a message with more of them travels in pieces */
	uint32_t reserved;
	uint64_t message_bytes_max; /* largest message it takes; UINT64_MAX if it has it delivered in pieces */
	char name[WHARF_NAME_MAX + 1];
};

struct wharf_reason {
	uint32_t code;   /* WHARF_CLOSE_* */
	int32_t error;   /* a positive errno, or 0 */
	uint32_t app_code; /* of wharf_port_abort, either side's */
	uint32_t reserved;
	const char *text; /* one line, never NULL; valid during the callback, as is peer */
	const struct wharf_peer *peer; /* never NULL; version 0 if it never said hello */
	uint64_t unsent_messages; /* accepted by a send or post and not handed to the kernel */
	uint64_t unsent_bytes;
};

struct wharf_port_ops {
	size_t size;

	/* The peer's hello arrived and fits ours. Sends made earlier were queued. */
	void (*on_open)(wharf_port *port, const struct wharf_peer *peer, void *user);

	/* A message, whole. Borrowed: what the handler does not take is released, and its descriptors closed, when it
	 * returns. Of a frame that breaks the protocol nothing is delivered, of earlier ones everything. While the
	 * descriptor table here is full, a message in new memory of the peer's waits, and those behind it. */
	void (*on_message)(wharf_port *port, const struct wharf_msg *msg, void *user);

	/*
	 * A send, post or claim that answered -EAGAIN would now succeed: of several the smallest, by bytes, by descriptors or
	 * by what it lends. Once for all until then.
	 */
	void (*on_writable)(wharf_port *port, void *user);

	/*
	 * The peer gave up a stream: its own, or one of ours that it does not want, even if that was sent to its end. The
	 * id is stale already; of a stream that arrives nothing more is delivered. Not called for what this end gives up.
	 */
	void (*on_stream_abort)(wharf_port *port, uint64_t stream, uint32_t why, uint32_t app_code, void *user);

	/* Exactly once, last. Every message that had arrived before was delivered, unless this end aborted, gave up waiting
	 * or failed, or its loop was freed. The handle ends when it returns, unless it was ref'd. */
	void (*on_close)(wharf_port *port, const struct wharf_reason *reason, void *user);
};

/*
 * What becomes of a plain message (wharf_send, _buf, _bytes) that a full port is given. Streams, calls, passed ends and
 * posts are refused with -EAGAIN, or wait, as they say, under each policy.
 */
enum {
	WHARF_POLICY_FAIL = 0, /* a full port answers -EAGAIN */
	WHARF_POLICY_DROP_NEWEST = 1, /* it takes the message, drops and counts it: WHARF_SENT_DROPPED */
	/*
	 * Plain messages, posted ones too, are values, named by type and key. The peer has at most unreleased_max of them: in
	 * frames or taken, until it has read and released them. The others wait here, in the order in which their names
	 * came to wait, and a newer value takes the place of the one that waits under its name: WHARF_SENT_REPLACED, counted.
	 * So a peer that stops costs what it has, and the latest of each name; it gets that when it goes on. What waits when
	 * the port closes is sent. tx_queued_bytes_max bounds what waits, which is to say the names: past it -EAGAIN. A
	 * value comes after older ones of its name; those of different names need not come in the order in which they were
	 * sent.
	 */
	WHARF_POLICY_KEEP_LATEST = 2,
};

enum {
	WHARF_PORT_MAPS_HUGE = 1u << 0, /* maps segments on huge pages, if the peer has any (WHARF_HUGE) */
	/* No shared memory, either way: all payload travels over the socket. Claimed buffers are sent by copy, and arrive
	 * 64-aligned all the same. */
	WHARF_PORT_INLINE = 1u << 1,
	/* Messages that travel in pieces (larger than a frame, and streams) are delivered piece by piece, of any length. */
	WHARF_PORT_PIECES = 1u << 2,
	/*
	 * The peer has to be root or of this process's effective uid. wharf_connect and wharf_accept ask the kernel at once
	 * (-EACCES); in any case the credentials of the peer's hello are checked, and nothing but our own hello has left
	 * before (WHARF_CLOSE_REFUSED).
	 */
	WHARF_PORT_SAME_USER = 1u << 3,
	WHARF_PORT_AWAIT_LISTENER = 1u << 4, /* connect_timeout_ns is also for nobody listening there, or no such path */
};

enum { /* why a stream was given up */
	WHARF_ABORT_SENDER = 1,    /* wharf_stream_abort of its sender, or it closes */
	WHARF_ABORT_READER = 2,    /* wharf_stream_abort of its reader */
	WHARF_ABORT_VIOLATION = 3, /* it broke the protocol */
	/* its reader has too much in pieces at once: rx_assembly_bytes_max, 253 descriptors; or no memory for it */
	WHARF_ABORT_ROOM = 4,
};

struct wharf_port_options {
	size_t size;
	const struct wharf_port_ops *ops; /* kept: must outlive the port. Required; each callback may be NULL */
	void *user;
	uint32_t flags;              /* WHARF_PORT_* */
	uint32_t policy;             /* WHARF_POLICY_* */
	wharf_pool *pool;            /* the port takes its own reference; NULL: a private one of pool_bytes_max */
	uint64_t pool_bytes_max;     /* default 64 MiB */
	/* for the peer's hello; default 10 s if accepted or spawned, else none; negative: none */
	int64_t open_timeout_ns;
	const char *name;            /* told to the peer, at most WHARF_NAME_MAX bytes; default: the program's name */

	/* What this end queues and lends: past it a send answers -EAGAIN, or does what the policy says. */
	/* payload and overhead that waits behind the first frame; default 4 MiB. Of one stream or call: a quarter of it,
	 * or one message. Of all of them: as much again, each counted for its quarter at most; when those whose readers are
	 * slow have used that up, the others still send what fits their credit. Of posts: as much again */
	uint64_t tx_queued_bytes_max;
	uint32_t tx_fds_max;          /* descriptors sent and not yet known to be read; default and most: 253 */
	uint32_t unreleased_max;      /* keep-latest: values with the peer; default 1. -EINVAL with another policy */

	/* What this end takes: told to the peer, and a violation if passed. */
	/* of the peer's segments mapped here, those that it takes back included until no taken message lies in them; default
	 * 1 GiB */
	uint64_t rx_mapped_bytes_max;
	uint64_t rx_bytes_max;        /* largest message; default 64 MiB. Binds none with WHARF_PORT_PIECES */
	uint64_t rx_assembly_bytes_max; /* of streams and calls whose pieces are put together; default twice rx_bytes_max */
	uint64_t rx_stream_bytes_max; /* of each stream or call: arrived, and not given back by the reader; default 4 MiB */
	uint32_t rx_streams_max;      /* at once; default 1024, at most 4096 */
	uint32_t rx_calls_max;        /* of the peer's, at once; default 1024, at most 65536 */
	uint32_t rx_fds_max;          /* descriptors per message; default 0: none, at most 253 */
	/* delivered before other ports have their turn, if not 1 MiB of payload comes first; whole frames; default 65536 */
	uint32_t rx_msgs_per_turn;
	uint32_t untrusted;           /* 1: deliver private copies, which the peer cannot change under the reader. No memory
	                               * for one ends the port: WHARF_CLOSE_ERROR, ENOMEM. One of a piece is at most a frame
	                               * and rx_mapped_bytes_max */
	uint32_t reserved;

	/*
	 * For wharf_connect to a listener whose backlog is full (and see WHARF_PORT_AWAIT_LISTENER): the port tries again
	 * from the loop until then, and what it is given to send waits. Negative: for ever. Default 0: -EBUSY.
	 */
	int64_t connect_timeout_ns;

	/*
	 * Claimed buffers with the peer or waiting for it, in whole chunks; default 0: as much as the pool has. A port with
	 * nothing there may send one message of any size; posts count, and are not held back. (How much memory, in how many
	 * segments, ever comes to be: bytes_max of the pool, and the peer's rx_mapped_bytes_max.)
	 */
	uint64_t tx_lent_bytes_max;
};

/*
 * A connected pair of ends, close-on-exec: open one with wharf_open and hand the other to a child, a thread, or
 * another loop. 0; -EMFILE; -ENFILE; -ENOMEM.
 */
WHARF_API WHARF_CHECK int wharf_pair(int ret_fds[2]);

/*
 * Opens one end of a connected AF_UNIX SOCK_SEQPACKET socket as a port: says hello, then carries messages both ways.
 * On success the port owns fd, and *ret_port (which may be NULL) is valid until on_close returns.
 * 0; -EBADF; -EPROTOTYPE, -ENOTCONN: not such a socket; -EBUSY: it was opened before, here or in another process (told
 * by SO_PRIORITY, which this sets to 5); -ENOMEM; -EMFILE; -EXDEV: a pool that is not shared and has a port already;
 * -EUSERS: a shared one that has WHARF_POOL_PORTS_MAX.
 */
WHARF_API WHARF_CHECK int wharf_open(wharf_loop *loop, int fd, const struct wharf_port_options *options,
	wharf_port **ret_port);

/*
 * Takes the death of this process for the peer's end, whoever else has inherited the socket: what has arrived is
 * delivered, then on_close says WHARF_CLOSE_PEER_GONE, as at the end of a socket. Duplicates pidfd; a later call replaces
 * an earlier one, and what wharf_spawn watches. 0; -EBADF: no pidfd; -EPIPE: the port is closed; -EMFILE; -ENOMEM.
 */
WHARF_API int wharf_port_watch(wharf_port *port, int pidfd);

/* Keeps the handle alive past on_close: it then answers -EPIPE. Any thread. unref takes NULL and returns NULL. */
WHARF_API wharf_port *wharf_port_ref(wharf_port *port);
WHARF_API wharf_port *wharf_port_unref(wharf_port *port);

/*
 * Ends it in good order: new sends answer -EPIPE, what is queued is sent, messages are delivered until the peer has
 * done the same or timeout_ns is over: WHARF_CLOSE_TIMEOUT, also if only the peer's word is missing (unsent_messages
 * tells). Buffers that the peer still reads stay lent until it releases them or is proved dead; a private pool goes
 * with its last port, its lent segments unwritten. 0; -EPIPE: closed already; -EALREADY: closing.
 */
WHARF_API int wharf_port_close(wharf_port *port, int64_t timeout_ns);

/* Ends it at once, also while it closes: queues are dropped, no more messages are delivered, the peer is told the code.
 * 0; -EPIPE. */
WHARF_API int wharf_port_abort(wharf_port *port, uint32_t app_code);

/*
 * Stops, and goes on with, delivering messages: none after pause returns, not even of the same turn. The peer feels it
 * as backpressure. While a port is paused on_close waits, except after an abort or a failure. 0; -EPIPE.
 */
WHARF_API int wharf_port_pause(wharf_port *port);
WHARF_API int wharf_port_resume(wharf_port *port);

WHARF_API wharf_pool *wharf_port_pool(wharf_port *port); /* borrowed, until on_close returns: NULL afterwards */
WHARF_API wharf_loop *wharf_port_loop(wharf_port *port); /* borrowed */
WHARF_API void *wharf_port_user(wharf_port *port);
WHARF_API const struct wharf_peer *wharf_port_peer(wharf_port *port); /* NULL before its hello; as long as the handle */

struct wharf_port_stats {
	size_t size; /* set by the caller; no more is written */
	uint64_t tx_messages, tx_bytes, tx_frames, tx_fds;
	uint64_t rx_messages, rx_bytes, rx_frames, rx_fds;
	uint64_t tx_queued_bytes;   /* now */
	uint64_t tx_lent_bytes;     /* now */
	uint64_t tx_unread_frames;  /* now: in the kernel or with the peer, not yet reported as read */
	uint64_t tx_again;          /* sends answered -EAGAIN */
	uint64_t tx_socket_full;    /* frames the kernel refused for want of room, and that waited */
	uint64_t wakes_sent, wakes_received; /* release-wakes */
	uint64_t rx_mapped_bytes;   /* of the peer's segments, now */
	uint64_t rx_stream_violations; /* streams ended because the peer broke their rules */
	uint64_t rx_stray_records;  /* of streams and calls that had ended: late replies, and what was on its way */
	uint64_t tx_dropped, tx_dropped_bytes; /* messages answered WHARF_SENT_DROPPED, and their payload */
	uint64_t tx_replaced;       /* values that waited, and were freed for newer ones */
};
/* 0; -EPIPE. */
WHARF_API int wharf_port_stats(wharf_port *port, struct wharf_port_stats *ret_stats);

/* ---- Sending -------------------------------------------------------------------------------------------------- */

/*
 * One piece of a message: either `buf`, the range [offset, offset + size) of a claimed buffer (size 0: to its end),
 * which the receiver reads in place; or `bytes`, memory of the caller that is copied during the call (size 0: nothing).
 * How a payload travels depends on which is given, never on its size. A message that does not fit a frame (claimed
 * buffers take 16 bytes of it, bytes as many as they are) goes in pieces, and is put together by the receiver: one slice,
 * whatever its parts were. Claimed buffers are the fast way.
 */
struct wharf_part {
	struct wharf_buf *buf;
	const void *bytes;
	size_t offset;
	size_t size;
	/*
	 * Set: `bytes` are not copied when the message is sent, but when it leaves, a piece at a time; they must stay as they
	 * are until done is called, once, in the loop's turn, whatever becomes of the message.
	 */
	void (*done)(const void *bytes, size_t size, void *user);
	void *user;
	uint64_t reserved[2];
};

enum {
	/* once accepted, wharf closes fds on every path; else it duplicates them during the call */
	WHARF_FDS_MOVE = 1u << 0,
	WHARF_LAST = 1u << 1,     /* of a stream or call: nothing follows */
};

struct wharf_out {
	uint32_t type;  /* the application's, all 32 bits */
	uint32_t flags; /* WHARF_FDS_MOVE, WHARF_LAST */
	const struct wharf_part *parts;
	size_t n_parts; /* up to 64; 0: a message without bytes */
	const int *fds;
	size_t n_fds;   /* up to 253, and up to what the peer takes */
	uint64_t key;   /* keep-latest: with the type, the name of the value; else 0 */
	uint64_t reserved[3];
};

/* Positive results of a send, on ports with a policy that brings them: buffers and descriptors are the port's, as with 0. */
enum {
	WHARF_SENT_REPLACED = 1, /* accepted; an older value of the same type and key, not yet sent, is freed */
	WHARF_SENT_DROPPED = 2,  /* this one was dropped and counted */
};

/*
 * Queues one message; messages of a port arrive whole and in order (but see WHARF_POLICY_KEEP_LATEST). On success its
 * buffers are emptied: they are the port's. It leaves with this turn's flush, or at once when a frame is full.
 * 0. WHARF_SENT_REPLACED, _DROPPED: the port's policy. -EAGAIN: a cap is reached; on_writable follows. -EPIPE: the port is
 * closing or closed. -EMSGSIZE: more bytes than the peer takes, or more descriptors than the peer or tx_fds_max allow: for
 * ever. -EINVAL: an empty buffer, one twice, or a range outside it; a key without that policy. -EXDEV: a buffer of another pool. -EBUSY: this buffer is with this
 * peer already. -EBADF: a descriptor. -EMFILE or -ENFILE: it could not be duplicated, or a segment not be announced.
 * -EOPNOTSUPP: it lies on huge pages, which the peer does not map. -ENOMEM. Before the peer's hello its limits are not
 * known: a message that turns out to exceed them then fails the port with WHARF_CLOSE_ERROR (EMSGSIZE).
 */
WHARF_API WHARF_CHECK int wharf_send(wharf_port *port, const struct wharf_out *out);

/* The same for the two most common messages: one whole buffer, and some bytes (copied; size may be 0). */
WHARF_API WHARF_CHECK int wharf_send_buf(wharf_port *port, uint32_t type, struct wharf_buf *buf);
WHARF_API WHARF_CHECK int wharf_send_bytes(wharf_port *port, uint32_t type, const void *bytes, size_t size);

/*
 * Sending from any thread that holds a reference to the port: the message is queued here, copied as far as it must be,
 * and sent in the loop's next turn. What one thread posts keeps its order, and its place among that thread's tasks
 * (wharf_loop_post); what the loop's thread sends itself has an order of its own. Posts that are in no frame yet have a
 * cap apart from what is sent: tx_queued_bytes_max and tx_fds_max once more, but an empty queue takes one of any size.
 * Past it timeout_ns says how long to wait, and threads are served in the order in which they came: the bounded blocking
 * send, for programs that are simple that way.
 * 0: the port's, on every path; what an end leaves unsent its reason counts, and `done` of parts by reference is called
 * on the loop's thread. -EAGAIN: timeout_ns is 0 and the cap is reached, or others wait; on_writable follows.
 * -ETIMEDOUT. -EDEADLK: a timeout_ns other than 0 on a loop's thread, even if there is room. -EPIPE: the port is
 * closing or closed, or closed meanwhile, or its loop was freed. -EMSGSIZE, -EINVAL, -EXDEV, -EBADF, -EMFILE, -ENFILE
 * and -ENOMEM as wharf_send, also for what the peer's hello shows only after the call. What wharf_send refuses with -EBUSY
 * or -EOPNOTSUPP because of a buffer, or for want of descriptors to announce it, is sent by copy.
 */
WHARF_API WHARF_CHECK int wharf_post(wharf_port *port, const struct wharf_out *out, int64_t timeout_ns);
WHARF_API WHARF_CHECK int wharf_post_buf(wharf_port *port, uint32_t type, struct wharf_buf *buf, int64_t timeout_ns);

/*
 * Passes an end that was never opened: it travels as a message of its own, with what its socket has queued, and the
 * receiver takes its descriptor (WHARF_MSG_PORT) and opens it. Two processes get a direct channel from a third so: it
 * passes one end of a wharf_pair to each. Always moved: on success wharf closes fd, after a failure it is the caller's.
 * As wharf_send; -EBUSY: it was opened, by whomever; -EPROTOTYPE, -ENOTCONN: as wharf_open; -EMSGSIZE: the peer takes no
 * descriptors (rx_fds_max).
 */
WHARF_API WHARF_CHECK int wharf_port_pass(wharf_port *port, uint32_t type, int fd);

/* ---- Receiving ------------------------------------------------------------------------------------------------ */

struct wharf_slice {
	const void *data;
	size_t size;
};

enum {
	/* at least one descriptor did not arrive (no room in the table here): it is -1 in fds */
	WHARF_MSG_FDS_LOST = 1u << 0,
	WHARF_MSG_TAKEN = 1u << 1,    /* made by wharf_msg_take: lives until released */
	WHARF_MSG_FRAGMENT = 1u << 2, /* a piece of a larger message, as it arrived: WHARF_PORT_PIECES */
	WHARF_MSG_LAST = 1u << 3,     /* its stream or call ends with it; a piece of a plain message: that message */
	WHARF_MSG_DELEGATED = 1u << 4, /* a request that is answered through its first descriptor: wharf_call_adopt */
	/* made by wharf_port_pass: no bytes, one descriptor, which wharf_open takes, of this or of another loop */
	WHARF_MSG_PORT = 1u << 5,
};

/*
 * A received message; made by the library only, and read only. A payload is a list of slices, possibly none: one for
 * each part as sent. Slices of claimed buffers are 64-aligned if the part began at a multiple of 64, slices of bytes
 * 8-aligned; copies are 64-aligned. Reading memory that an untrusted peer can still change invites double fetches: see
 * the option `untrusted`.
 */
struct wharf_msg {
	uint32_t type;
	uint32_t flags;
	uint64_t stream;  /* 0: none */
	size_t size;      /* of all slices together */
	const struct wharf_slice *slices;
	size_t n_slices;
	const int *fds;   /* borrowed; -1: lost or taken */
	size_t n_fds;
	uint64_t sent_ns; /* when the sender's turn began, by its clock: CLOCK_MONOTONIC unless its loop has another */
	uint64_t call;    /* 0: none */
	uint64_t total_bytes;    /* of the message that this is a piece of; WHARF_BYTES_UNKNOWN */
	uint64_t position_bytes; /* in that */
};

/*
 * Makes the message the caller's: bytes in shared memory stay where they are (and hold their sender's memory), inline
 * bytes are copied, so read the pointers again. It takes the descriptors too. Only inside the handler, and once: the
 * borrowed message stays readable until the handler returns. Of a taken message it is another reference. NULL: no
 * memory (msg is borrowed still), or taken before. The result is released from any thread, also after its port and
 * loop are gone.
 */
WHARF_API WHARF_CHECK struct wharf_msg *wharf_msg_take(const struct wharf_msg *msg);

/* Another reference to a taken message; each is released. */
WHARF_API struct wharf_msg *wharf_msg_ref(struct wharf_msg *msg);

/* Gives back a taken message (never a borrowed one): closes descriptors not taken, lets the sender use the memory again.
 * Takes NULL, returns NULL. */
WHARF_API struct wharf_msg *wharf_msg_release(struct wharf_msg *msg);

/* Takes fds[index]: returns it, and the caller closes it. -EBADF: lost or taken already; -ERANGE. */
WHARF_API int wharf_msg_take_fd(const struct wharf_msg *msg, size_t index);

/* Copies up to size bytes from offset on; returns how many. */
WHARF_API size_t wharf_msg_copy(const struct wharf_msg *msg, size_t offset, void *to, size_t size);

/*
 * The payload in one piece: in place when it is one slice, else copied once; valid as long as msg. NULL: no memory. An
 * empty payload gives a pointer that must not be read. For a message shared between threads call it before sharing.
 */
WHARF_API const void *wharf_msg_contiguous(const struct wharf_msg *msg);

/* ---- Streams -------------------------------------------------------------------------------------------------- */

/*
 * A stream is one message that its sender pushes in parts, as it comes to have them: larger than the pool, or of unknown
 * length. It has its own order and its own credit, so that one whose reader is slow stalls nothing else. The receiver
 * has it whole, in one slice, or, with WHARF_PORT_PIECES, in parts as they arrive; descriptors travel with the first.
 * Ids are the port's, never 0, and stale (-ESTALE) from the stream's end on.
 */
#define WHARF_BYTES_UNKNOWN UINT64_MAX

/*
 * Begins one of total_bytes, or WHARF_BYTES_UNKNOWN; nothing is sent before its first part. type is that of the message.
 * 0. -EAGAIN: the peer takes no more streams now; on_writable follows. -EMSGSIZE: larger than the peer takes; -EPIPE;
 * -ENOMEM.
 */
WHARF_API WHARF_CHECK int wharf_stream_begin(wharf_port *port, uint32_t type, uint64_t total_bytes,
	uint64_t *ret_stream);

/*
 * The next part, and with WHARF_LAST the last one (which may be empty). out->type is not looked at; the rest as for
 * wharf_send: parts by reference wait as long as their reader makes them.
 * 0. -EAGAIN: its credit is used up, or it has enough queued; the port's on_writable follows. -ESTALE: ended, aborted, or
 * no such stream. -EMSGSIZE: beyond its total, or more than the peer takes. -EINVAL: the last part, and less than the
 * total; descriptors behind the first part. Others as wharf_send.
 */
WHARF_API WHARF_CHECK int wharf_stream_send(wharf_port *port, uint64_t stream, const struct wharf_out *out);
WHARF_API WHARF_CHECK int wharf_stream_send_buf(wharf_port *port, uint64_t stream, struct wharf_buf *buf,
	uint32_t flags); /* WHARF_LAST */

/* Its last part, without bytes: never -EAGAIN. 0; -ESTALE; -EINVAL: less was sent than its total; -ENOMEM; -EPIPE. */
WHARF_API int wharf_stream_end(wharf_port *port, uint64_t stream);

/*
 * Gives a stream up, ours or the peer's: what is queued is dropped, nothing more of it is delivered, the peer is told
 * (on_stream_abort). 0; -ESTALE; -EPIPE.
 */
WHARF_API int wharf_stream_abort(wharf_port *port, uint64_t stream, uint32_t app_code);

/*
 * Stops, and goes on with, delivering a stream of the peer's; the port's other messages go on. Until it is resumed or
 * ends, what of it has arrived keeps on_close waiting, as wharf_port_pause does; of the descriptors that came with it, 253
 * at most are kept, all paused streams and calls together, others are lost (WHARF_MSG_FDS_LOST). 0; -ESTALE; -EINVAL:
 * ours; -EPIPE.
 */
WHARF_API int wharf_stream_pause(wharf_port *port, uint64_t stream);
WHARF_API int wharf_stream_resume(wharf_port *port, uint64_t stream);

/* ---- Calls ---------------------------------------------------------------------------------------------------- */

/*
 * A call is a request and its replies, each of one or several messages, with a credit of its own in each direction. Ids
 * are never 0, carry a generation, and are stale (-ESTALE) once on_end is due; an id that the peer began differs from
 * all of ours. on_end fires exactly once for each call, on both sides, after the last on_reply or on_message and before
 * the port's on_close; its callbacks fire in the loop's turn only.
 */
typedef uint64_t wharf_call_id;

enum { /* reason of a call's end */
	/* answered in full, and the last reply was delivered, even if its handler has ended the port; status is the
	 * answerer's */
	WHARF_END_LAST = 1,
	WHARF_END_DEADLINE = 2,  /* timeout_ns is over */
	WHARF_END_CANCEL = 3,    /* wharf_call_cancel here, or, for the answering side, the caller has given up */
	WHARF_END_PEER_GONE = 4, /* the peer ended without a word, or broke the protocol */
	WHARF_END_CLOSED = 5,    /* the port was closed, here or there */
	WHARF_END_NO_REPLY = 6,  /* the handler neither answered nor took it */
	WHARF_END_REFUSED = 7,   /* the answering side did not want it: app_code is its word */
	/* error says what; ENOBUFS: no room or memory here for its pieces, or for what waits of it while it is paused */
	WHARF_END_ERROR = 8,
};
/* Static name of a WHARF_END_*, "unknown" for others. */
WHARF_API const char *wharf_end_name(uint32_t reason);

enum { /* what is safe to repeat */
	WHARF_NOT_SEEN = 1,      /* it did not leave this process, or lies behind the last call that the peer's bye names */
	WHARF_MAYBE_SEEN = 2,
	WHARF_REPLIED = 3,       /* at least one reply arrived */
};

struct wharf_end {
	uint32_t reason;   /* WHARF_END_* */
	uint32_t progress; /* WHARF_NOT_SEEN, ...; the answering side: WHARF_REPLIED if it sent a reply, else MAYBE_SEEN */
	uint32_t status;   /* the application's, with WHARF_END_LAST */
	int32_t error;     /* a positive errno, or 0 */
	uint32_t app_code; /* of the cancel, abort or refusal that ended it */
	uint32_t reserved;
};

struct wharf_call_options {
	size_t size;
	/* A message of the answer. Borrowed, as in on_message. */
	void (*on_reply)(wharf_port *port, wharf_call_id id, const struct wharf_msg *msg, void *user);
	/* A wharf_call_send that answered -EAGAIN would now succeed. */
	void (*on_writable)(wharf_port *port, wharf_call_id id, void *user);
	void (*on_end)(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user);
	void *user;
	int64_t timeout_ns; /* until the end, from the call on; 0 or negative: none */
	uint32_t flags;     /* 0 */
	/* 1: the answer comes through a fresh pair, whose other end travels in the request, as its first descriptor */
	uint32_t delegate;
};

/*
 * Calls the peer. The request is complete if its flags have WHARF_LAST, else wharf_call_send goes on with it. Each send
 * is a message of its own. Without an on_reply replies are dropped.
 * 0, and on_end will fire. -EAGAIN: the peer takes no more calls now, or what wharf_send says so of; on_writable of the
 * port follows. Others as wharf_send; -EMFILE or -ENFILE also for the pair of a delegated call.
 */
WHARF_API WHARF_CHECK int wharf_call(wharf_port *port, const struct wharf_out *request,
	const struct wharf_call_options *options, wharf_call_id *ret_id);

/*
 * More of a request that has not had WHARF_LAST. 0; -EAGAIN: on_writable of the call follows; -ESTALE: no such call, or it
 * has ended; -EALREADY: the request is complete. Others as wharf_send.
 */
WHARF_API WHARF_CHECK int wharf_call_send(wharf_port *port, wharf_call_id id, const struct wharf_out *out);
WHARF_API WHARF_CHECK int wharf_call_send_buf(wharf_port *port, wharf_call_id id, struct wharf_buf *buf,
	uint32_t flags); /* WHARF_LAST */

/* Ends a call, ours: on_end follows, later replies are dropped, the peer hears of it. 0; -ESTALE; -EINVAL: the peer's;
 * -EPIPE. */
WHARF_API int wharf_call_cancel(wharf_port *port, wharf_call_id id);

/* Stops, and goes on with, the delivery of its replies, or, on the answering side, of its request. 0; -ESTALE;
 * -EPIPE. */
WHARF_API int wharf_call_pause(wharf_port *port, wharf_call_id id);
WHARF_API int wharf_call_resume(wharf_port *port, wharf_call_id id);

/* What the answering side is told of one request. */
struct wharf_answer_options {
	size_t size;
	/* the rest of the request, if its beginning had no WHARF_MSG_LAST */
	void (*on_message)(wharf_port *port, wharf_call_id id, const struct wharf_msg *msg, void *user);
	/* A wharf_reply that answered -EAGAIN would now succeed. */
	void (*on_writable)(wharf_port *port, wharf_call_id id, void *user);
	/* also when our own last reply was the end: it is in a frame then, and no message that the peer sends behind it was
	 * delivered yet */
	void (*on_end)(wharf_port *port, wharf_call_id id, const struct wharf_end *end, void *user);
	void *user;
};

/*
 * Takes a request, only inside the on_message that brings its beginning (msg->call is not 0): whoever takes it ends it,
 * with a reply that carries WHARF_LAST, or wharf_call_refuse. One that no handler takes ends with WHARF_END_NO_REPLY.
 * 0; -ENOENT: msg is no request, or not its beginning; -EALREADY: taken.
 */
WHARF_API WHARF_CHECK int wharf_call_take(wharf_port *port, const struct wharf_msg *msg,
	const struct wharf_answer_options *options, wharf_call_id *ret_id);

/* A message of the answer; with WHARF_LAST the last one, and status. Also while the port drains. As wharf_call_send. */
WHARF_API WHARF_CHECK int wharf_reply(wharf_port *port, wharf_call_id id, const struct wharf_out *out, uint32_t status);
WHARF_API WHARF_CHECK int wharf_reply_buf(wharf_port *port, wharf_call_id id, struct wharf_buf *buf, uint32_t status,
	uint32_t flags); /* WHARF_LAST */

/* Ends a request without an answer: WHARF_END_REFUSED for the caller; on_end follows here, too. 0; -ESTALE; -EPIPE. */
WHARF_API int wharf_call_refuse(wharf_port *port, wharf_call_id id, uint32_t app_code);

/*
 * Delegation. With `delegate` the first descriptor of the request is an end of a fresh pair (rx_fds_max does not count it):
 * whoever opens that and adopts the call answers it, this peer or one that the end was passed on to. Where the request
 * arrives it is a message like others, with WHARF_MSG_DELEGATED and no call to be taken; a handler that leaves its
 * descriptor closes it, and the call ends with WHARF_END_NO_REPLY, as when the end is closed by one who did not adopt.
 * The call goes on when the port that carried its request ends, once that has left; its callbacks and functions get that
 * port and the id of wharf_call all the same, after on_close too, until on_end returns. It counts against what the peer
 * takes in calls, and keeps wharf_loop_run. Its answer is subject to that port's rx_ options. The rest of its
 * request, if the beginning had no WHARF_LAST, goes to whoever adopts it, by copy whatever it lies in.
 *
 * wharf_call_adopt, on a port opened from such an end, before it has received a message: the caller's one call, as if
 * its request had arrived there. When the call has ended the caller closes the port.
 * 0; -EALREADY: adopted before; -ENOENT: the port has received messages already, or is ending; -ENOMEM.
 */
WHARF_API WHARF_CHECK int wharf_call_adopt(wharf_port *port, const struct wharf_answer_options *options,
	wharf_call_id *ret_id);

/* ---- Listening and connecting --------------------------------------------------------------------------------- */

/*
 * Addresses are paths, or names in the abstract namespace written with a leading '@'. Anybody in the network namespace
 * may connect to an abstract name, and may squat one.
 */
struct wharf_listener_ops {
	size_t size;
	/* A peer connected; nothing was read yet. Call wharf_accept here to keep it; else it is closed on return. who has
	 * the kernel's pid, uid and gid, and no more. */
	void (*on_accept)(wharf_listener *listener, const struct wharf_peer *who, void *user);
	/* Accepting failed (a positive errno: EMFILE, ...); it goes on by itself, after a pause. */
	void (*on_error)(wharf_listener *listener, int error, void *user);
	/* Instead of on_accept, of a peer whom the options do not allow. Nothing was read; it is closed on return. */
	void (*on_refuse)(wharf_listener *listener, const struct wharf_peer *who, void *user);
};

enum {
	WHARF_LISTEN_SAME_USER = 1u << 0, /* allows root, and who has this process's effective uid at that time */
};

struct wharf_listener_options {
	size_t size;
	const struct wharf_listener_ops *ops; /* kept. Required */
	void *user;
	uint32_t mode;    /* permissions of the socket file; default 0600 */
	uint32_t backlog; /* default 128 */
	uint32_t flags;   /* WHARF_LISTEN_* */
	uint32_t reserved;
	/*
	 * Users who may connect, besides those of WHARF_LISTEN_SAME_USER; copied. With neither on_accept alone decides: an
	 * abstract name has no permissions.
	 */
	const uid_t *allow_uids;
	size_t n_allow_uids;
};

/*
 * Listens on an address. A socket file that nobody listens on any more is replaced; one in use is not.
 * 0; -EADDRINUSE; -ENAMETOOLONG; -EEXIST: the path is something else than a socket; -EACCES, -ENOENT, ...: the path's;
 * -EMFILE; -ENOMEM.
 */
WHARF_API WHARF_CHECK int wharf_listen(wharf_loop *loop, const char *address,
	const struct wharf_listener_options *options,
	wharf_listener **ret_listener);

/*
 * Keeps the connection that on_accept tells of; inside it, until one call succeeds, else -EALREADY. 0; as wharf_open;
 * -EACCES: another user's (WHARF_PORT_SAME_USER).
 */
WHARF_API WHARF_CHECK int wharf_accept(wharf_listener *listener, const struct wharf_port_options *options,
	wharf_port **ret_port);

/*
 * Stops listening and removes the socket file if it is still this one's. Ports accepted stay. The handle ends, and no
 * callback of it follows; allowed in its own callbacks. Takes NULL, returns NULL.
 */
WHARF_API wharf_listener *wharf_listener_close(wharf_listener *listener);

/*
 * Opens a port to a listener. 0: connected, or on its way: on_open or on_close tells. -ECONNREFUSED: nobody listens;
 * -ENOENT: no such path; -EBUSY: the listener's backlog is full; each unless connect_timeout_ns is for that: it then
 * waits without blocking the loop, and what fails later is on_close's (WHARF_CLOSE_TIMEOUT, _ERROR, _REFUSED).
 * -EPROTOTYPE: it is no SOCK_SEQPACKET socket; -EACCES: the path's, or another user listens (WHARF_PORT_SAME_USER);
 * -ENAMETOOLONG; -EMFILE; -ENOMEM.
 */
WHARF_API WHARF_CHECK int wharf_connect(wharf_loop *loop, const char *address, const struct wharf_port_options *options,
	wharf_port **ret_port);

/* ---- Child processes ------------------------------------------------------------------------------------------ */

struct wharf_spawn_options {
	size_t size;
	const char *path;         /* default argv[0], looked up in PATH */
	char *const *argv;        /* required */
	char *const *envp;        /* default: this process's environment. WHARF_FD is added */
	const struct wharf_port_options *port; /* required */
	uint32_t flags;           /* 0 */
	uint32_t reserved;
};

/*
 * Starts a program with a port to it; the program opens its end with wharf_port_inherit. The caller owns *ret_pidfd
 * (which may be NULL) and reaps the child; closed is not dead. The child is watched (wharf_port_watch): its death ends
 * the port, unless the peer's hello came from another process, to which it has left its end. Descriptors without
 * close-on-exec are inherited as by any exec; the child starts with an empty signal mask. 0; as wharf_open; -ENOENT,
 * -EACCES, ... of the program itself; -ESRCH: where SIGCHLD is ignored, it ended before there was a pidfd to return.
 */
WHARF_API WHARF_CHECK int wharf_spawn(wharf_loop *loop, const struct wharf_spawn_options *options,
	wharf_port **ret_port,
	int *ret_pidfd);

/*
 * In the program started: opens the end it was given (WHARF_FD is its number, in decimal, and leaves the environment).
 * 0; as wharf_open; -ENOENT: started by something else; -EALREADY: done before.
 *
 * A process that makes no more loops, pools and ports may lock itself in (seccomp) once its peers have said hello. These
 * system calls are left, and those of malloc and of exit:
 *   io_uring_enter; or over epoll epoll_wait (epoll_pwait), epoll_pwait2, epoll_ctl, timerfd_settime, sendmsg,
 *     recvmsg, recvmmsg
 *   shutdown, close, clock_gettime where it is one; futex, write and read: other threads, and wharf_loop_fd
 *   sendto: ports that fail or are aborted; io_uring_register, sched_yield: wharf_loop_free
 *   fcntl, fstat (newfstatat), fstatfs, ioctl, mmap, madvise, munmap: the peer's memory, descriptors in messages
 *   memfd_create, ftruncate, fallocate: memory to lend, but for what wharf_pool_reserve has made
 *   getsockopt, getpeername: wharf_port_pass
 * A filter does not see what a ring does for the process: a ring therefore does what wharf does with it and nothing else
 * (Linux 5.10 and newer).
 */
WHARF_API WHARF_CHECK int wharf_port_inherit(wharf_loop *loop, const struct wharf_port_options *options,
	wharf_port **ret_port);

/*
 * The first call of a forked child that goes on to use the library itself, with loops and pools of its own; the
 * parent's handles must not be touched there. A child forked inside a callback must not return from it. 0, also where
 * there is nothing to do: not forked, or nothing used before the fork but wharf_pair; -ENOMEM.
 */
WHARF_API int wharf_fork_child(void);

#ifdef __cplusplus
}
#endif

#endif
