/* SPDX-License-Identifier: MIT */
/* What the engine takes for granted of io_uring. Where one of these fails, engine_uring*.c needs a change. */
#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

TestSuite(kernel_uring, .timeout = 60);

enum {
	COOP = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
	BEST = COOP | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
	CONTROL = CMSG_SPACE(sizeof(int) * 4) + CMSG_SPACE(sizeof(struct ucred)),
	HEADER = sizeof(struct io_uring_recvmsg_out) + CONTROL,
	BUFFER = HEADER + 64,
	BUFFERS = 4,
};

static struct msghdr receive_header = { .msg_controllen = CONTROL };

struct setup {
	struct io_uring ring;
	struct io_uring_buf_ring *buffers;
	unsigned char memory[BUFFERS][BUFFER];
	int fds[2];
};

static void open_ring(struct io_uring *ring, unsigned flags, unsigned cq_entries)
{
	struct io_uring_params params = { .flags = flags | IORING_SETUP_CQSIZE, .cq_entries = cq_entries };
	int r = io_uring_queue_init_params(cq_entries < 32 ? cq_entries : 32, ring, &params);

	if (r == -EPERM || r == -ENOSYS || r == -EACCES || r == -EINVAL)
		cr_skip_test("no such ring here: errno %d", -r);
	cr_assert_eq(r, 0);
}

static void give(struct setup *s, int index)
{
	io_uring_buf_ring_add(s->buffers, s->memory[index], BUFFER, (unsigned short)index, BUFFERS - 1, 0);
	io_uring_buf_ring_advance(s->buffers, 1);
}

static struct setup *set_up(unsigned flags, unsigned cq_entries, int n_buffers)
{
	static struct setup the_only; /* each test is a process */
	struct setup *s = &the_only;
	struct io_uring_buf_reg reg = { .ring_entries = BUFFERS };

	open_ring(&s->ring, flags, cq_entries);
	s->buffers = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	reg.ring_addr = (uintptr_t)s->buffers;
	cr_assert_eq(io_uring_register_buf_ring(&s->ring, &reg, 0), 0);
	io_uring_buf_ring_init(s->buffers);
	for (int i = 0; i < n_buffers; i++)
		give(s, i);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s->fds), 0);
	return s;
}

static void receive(struct setup *s)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&s->ring);

	io_uring_prep_recvmsg_multishot(sqe, s->fds[0], &receive_header, MSG_CMSG_CLOEXEC);
	sqe->flags |= IOSQE_BUFFER_SELECT;
	sqe->user_data = 1;
	cr_assert_eq(io_uring_submit(&s->ring), 1);
}

struct completion {
	uint64_t user_data;
	int res;
	uint32_t flags;
};

static struct completion next_done(struct io_uring *ring)
{
	struct __kernel_timespec patience = { .tv_sec = 20 };
	struct completion copy;
	struct io_uring_cqe *cqe;
	int r;

	do
		r = io_uring_wait_cqe_timeout(ring, &cqe, &patience);
	while (r == -EINTR);
	cr_assert_eq(r, 0, "no completion: errno %d", -r);
	copy = (struct completion){ cqe->user_data, cqe->res, cqe->flags };
	io_uring_cqe_seen(ring, cqe);
	return copy;
}

static bool waits_in_kernel(struct io_uring *ring)
{
	return *(volatile unsigned *)ring->sq.kflags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

static struct io_uring_recvmsg_out *out_of(struct setup *s, const struct completion *cqe)
{
	cr_assert(cqe->flags & IORING_CQE_F_BUFFER);
	return (struct io_uring_recvmsg_out *)(void *)s->memory[cqe->flags >> IORING_CQE_BUFFER_SHIFT];
}

static void put(struct setup *s, const char *text)
{
	cr_assert_eq(send(s->fds[1], text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

static bool is_readable(int fd, int timeout_ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	int n;

	do
		n = poll(&p, 1, timeout_ms);
	while (n < 0 && errno == EINTR);
	return n == 1;
}

/* ---- Sending ----------------------------------------------------------------------------------------------------- */

static void send_ends_while_it_is_submitted(unsigned flags)
{
	struct setup *s = set_up(flags, 64, 0);
	struct iovec iov = { .iov_base = (char[]){ "hello" }, .iov_len = 5 };
	struct msghdr header = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct io_uring_cqe *cqe;
	char bytes[8];
	int r;

	/* Until it is full, each of them: no GETEVENTS, no task work. */
	do {
		io_uring_prep_sendmsg(io_uring_get_sqe(&s->ring), s->fds[1], &header, MSG_DONTWAIT | MSG_NOSIGNAL);
		cr_assert_eq(io_uring_submit(&s->ring), 1);
		cr_assert_eq(io_uring_cq_ready(&s->ring), 1);
		cr_assert_eq(io_uring_peek_cqe(&s->ring, &cqe), 0);
		r = cqe->res;
		io_uring_cqe_seen(&s->ring, cqe);
	} while (r == 5);
	cr_assert_eq(r, -EAGAIN);
	cr_assert_eq(recv(s->fds[0], bytes, sizeof(bytes), MSG_DONTWAIT), 5);
}

Test(kernel_uring, send_without_waiting_ends_while_it_is_submitted) { send_ends_while_it_is_submitted(BEST); }
Test(kernel_uring, send_without_waiting_ends_while_it_is_submitted_coop) { send_ends_while_it_is_submitted(COOP); }

/* ---- Receiving --------------------------------------------------------------------------------------------------- */

Test(kernel_uring, multishot_recvmsg_puts_header_control_and_payload_at_fixed_places)
{
	struct setup *s = set_up(BEST, 64, BUFFERS);
	_Alignas(struct cmsghdr) unsigned char control[CMSG_SPACE(sizeof(int) * 2)] = { 0 };
	struct iovec iov = { .iov_base = (char[]){ "hello" }, .iov_len = 5 };
	struct msghdr header = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);
	struct io_uring_recvmsg_out *out;
	struct completion done;
	int fds[2] = { s->fds[1], s->fds[1] };

	cmsg->cmsg_len = CMSG_LEN(sizeof(fds));
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	memcpy(CMSG_DATA(cmsg), fds, sizeof(fds));
	receive(s);
	cr_assert_eq(sendmsg(s->fds[1], &header, 0), 5);
	done = next_done(&s->ring);
	out = out_of(s, &done);
	cr_assert(done.flags & IORING_CQE_F_MORE);
	cr_assert_eq(done.res, HEADER + 5);
	cr_assert_eq(out->namelen, 0);
	cr_assert_eq(out->payloadlen, 5);
	cr_assert_eq(out->flags & (MSG_TRUNC | MSG_CTRUNC), 0);
	cr_assert_eq(memcmp((char *)out + HEADER, "hello", 5), 0);
	cmsg = (struct cmsghdr *)(out + 1);
	cr_assert_eq(out->controllen, CMSG_SPACE(sizeof(fds)));
	cr_assert_eq(cmsg->cmsg_len, CMSG_LEN(sizeof(fds)));
	cr_assert_eq(cmsg->cmsg_type, SCM_RIGHTS);
	memcpy(fds, CMSG_DATA(cmsg), sizeof(fds));
	cr_assert(fcntl(fds[0], F_GETFD) & FD_CLOEXEC);
	cr_assert(fcntl(fds[1], F_GETFD) & FD_CLOEXEC);
}

Test(kernel_uring, buffers_are_taken_in_the_order_in_which_they_were_given)
{
	struct setup *s = set_up(BEST, 64, 0);
	const int order[] = { 2, 0, 3, 1 };

	for (int i = 0; i < 4; i++)
		give(s, order[i]);
	receive(s);
	for (int i = 0; i < 4; i++) {
		put(s, "x");
		cr_assert_eq(next_done(&s->ring).flags >> IORING_CQE_BUFFER_SHIFT, order[i]);
	}
}

Test(kernel_uring, too_large_a_datagram_is_cut_and_marked)
{
	struct setup *s = set_up(BEST, 64, BUFFERS);
	char bytes[65] = { 0 };
	struct completion done;

	receive(s);
	cr_assert_eq(send(s->fds[1], bytes, sizeof(bytes), 0), sizeof(bytes));
	done = next_done(&s->ring);
	cr_assert_eq(done.res, BUFFER);
	cr_assert(out_of(s, &done)->flags & MSG_TRUNC);
}

Test(kernel_uring, end_of_file_is_an_empty_completion_with_a_buffer_and_without_more)
{
	struct setup *s = set_up(BEST, 64, BUFFERS);
	struct completion done;

	receive(s);
	put(s, "last");
	close(s->fds[1]);
	done = next_done(&s->ring);
	cr_assert_eq(done.res, HEADER + 4);
	done = next_done(&s->ring);
	cr_assert_eq(done.res, HEADER);
	cr_assert(!(done.flags & IORING_CQE_F_MORE));
	cr_assert_eq(out_of(s, &done)->payloadlen, 0);
	cr_assert_eq(out_of(s, &done)->controllen, 0);
}

Test(kernel_uring, empty_datagram_differs_from_the_end_by_its_control_data_alone)
{
	struct setup *s = set_up(BEST, 64, BUFFERS);
	const int yes = 1;
	struct completion done;

	cr_assert_eq(setsockopt(s->fds[0], SOL_SOCKET, SO_PASSCRED, &yes, sizeof(yes)), 0);
	receive(s);
	cr_assert_eq(send(s->fds[1], "", 0, 0), 0);
	done = next_done(&s->ring);
	cr_assert_eq(done.res, HEADER);
	cr_assert(!(done.flags & IORING_CQE_F_MORE));
	cr_assert_gt(out_of(s, &done)->controllen, 0);
}

Test(kernel_uring, without_buffers_a_multishot_ends_and_the_datagram_stays)
{
	struct setup *s = set_up(BEST, 64, 1);
	struct completion done;

	receive(s);
	put(s, "one");
	put(s, "second");
	cr_assert_eq(next_done(&s->ring).res, HEADER + 3);
	done = next_done(&s->ring);
	cr_assert_eq(done.res, -ENOBUFS);
	cr_assert(!(done.flags & IORING_CQE_F_MORE));
	give(s, 0);
	receive(s);
	done = next_done(&s->ring);
	cr_assert_eq(done.res, HEADER + 6);
}

Test(kernel_uring, reset_comes_first_then_what_was_queued_then_the_end)
{
	struct setup *s = set_up(BEST, 64, BUFFERS);
	struct completion done;

	put(s, "queued");
	cr_assert_eq(send(s->fds[0], "unread", 6, 0), 6);
	close(s->fds[1]);
	receive(s);
	done = next_done(&s->ring);
	cr_assert_eq(done.res, -ECONNRESET);
	cr_assert(!(done.flags & IORING_CQE_F_MORE));
	receive(s);
	cr_assert_eq(next_done(&s->ring).res, HEADER + 6);
	cr_assert_eq(next_done(&s->ring).res, HEADER);
}

Test(kernel_uring, cancelled_multishot_leaves_what_comes_in_the_socket)
{
	struct setup *s = set_up(BEST, 64, BUFFERS);
	struct io_uring_sqe *sqe;
	struct completion done;
	bool cancelled = false, ended = false;
	char bytes[8];

	receive(s);
	sqe = io_uring_get_sqe(&s->ring);
	io_uring_prep_cancel64(sqe, 1, 0);
	sqe->user_data = 2;
	cr_assert_eq(io_uring_submit(&s->ring), 1);
	while (!cancelled || !ended) {
		done = next_done(&s->ring);
		cr_assert(!(done.flags & IORING_CQE_F_MORE));
		cr_assert_eq(done.res, done.user_data == 2 ? 0 : -ECANCELED);
		*(done.user_data == 2 ? &cancelled : &ended) = true;
	}
	put(s, "later");
	cr_assert_eq(recv(s->fds[0], bytes, sizeof(bytes), MSG_DONTWAIT), 5);
}

Test(kernel_uring, closing_a_socket_that_is_received_from_does_not_end_it)
{
	struct setup *s = set_up(BEST, 64, BUFFERS);
	char byte;

	receive(s);
	close(s->fds[0]);
	cr_assert_eq(recv(s->fds[1], &byte, 1, MSG_DONTWAIT), -1);
	cr_assert_eq(errno, EAGAIN);
}

/* ---- Accepting --------------------------------------------------------------------------------------------------- */

enum { CROWD = 100 };

static int listen_to_crowd(int n_clients)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX }; /* bind chooses a name */
	socklen_t length = sizeof(address);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof(sa_family_t)), 0);
	cr_assert_eq(listen(fd, CROWD), 0);
	cr_assert_eq(getsockname(fd, (struct sockaddr *)&address, &length), 0);
	for (int i = 0; i < n_clients; i++)
		cr_assert_eq(connect(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), (struct sockaddr *)&address,
				length), 0);
	return fd;
}

Test(kernel_uring, multishot_accept_takes_the_whole_backlog_while_it_is_submitted)
{
	struct setup *s = set_up(BEST, 4 * CROWD, 0);
	struct io_uring_sqe *sqe = io_uring_get_sqe(&s->ring);

	io_uring_prep_multishot_accept(sqe, listen_to_crowd(CROWD), NULL, NULL, SOCK_CLOEXEC);
	cr_assert_eq(io_uring_submit(&s->ring), 1);
	cr_assert_eq(io_uring_cq_ready(&s->ring), CROWD);
}

static void each_accept_takes_one(unsigned flags)
{
	enum { N = 8, CLIENTS = 3 };
	struct setup *s = set_up(flags, 64, 0);
	int fd = listen_to_crowd(CLIENTS), n_ended = 0;
	struct io_uring_sqe *sqe;

	for (uint64_t i = 0; i < N; i++) {
		sqe = io_uring_get_sqe(&s->ring);
		io_uring_prep_accept(sqe, fd, NULL, NULL, SOCK_CLOEXEC);
		sqe->user_data = 1;
	}
	cr_assert_eq(io_uring_submit(&s->ring), N);
	cr_assert_eq(io_uring_cq_ready(&s->ring), CLIENTS);
	for (int i = 0; i < CLIENTS; i++)
		cr_assert_geq(next_done(&s->ring).res, 0);
	/* One cancel ends all that sleep, and counts them. */
	sqe = io_uring_get_sqe(&s->ring);
	io_uring_prep_cancel64(sqe, 1, IORING_ASYNC_CANCEL_ALL);
	sqe->user_data = 2;
	cr_assert_eq(io_uring_submit(&s->ring), 1);
	for (int i = 0; i <= N - CLIENTS; i++) {
		struct completion done = next_done(&s->ring);

		cr_assert_eq(done.res, done.user_data == 2 ? N - CLIENTS : -ECANCELED);
		n_ended += done.user_data == 1;
	}
	cr_assert_eq(n_ended, N - CLIENTS);
}

Test(kernel_uring, each_accept_takes_one_and_one_cancel_ends_all) { each_accept_takes_one(BEST); }
Test(kernel_uring, each_accept_takes_one_and_one_cancel_ends_all_coop) { each_accept_takes_one(COOP); }

/* ---- Completions ------------------------------------------------------------------------------------------------- */

Test(kernel_uring, deferred_work_is_flagged_and_runs_in_enter)
{
	struct setup *s = set_up(BEST, 64, BUFFERS);

	receive(s);
	cr_assert(!waits_in_kernel(&s->ring));
	put(s, "x");
	cr_assert(waits_in_kernel(&s->ring));
	cr_assert_eq(io_uring_cq_ready(&s->ring), 0);
	cr_assert_geq(io_uring_get_events(&s->ring), 0);
	cr_assert_eq(io_uring_cq_ready(&s->ring), 1);
	cr_assert(!waits_in_kernel(&s->ring));
}

static void full_completion_queue_keeps_everything(unsigned flags)
{
	struct setup *s = set_up(flags, 2, BUFFERS);
	int sizes = 0;
	struct completion done;

	receive(s);
	put(s, "1");
	put(s, "22");
	put(s, "333");
	put(s, "4444");
	for (int i = 0; i < 4;) {
		done = next_done(&s->ring);
		if (done.res > 0)
			cr_assert_eq(done.res, HEADER + ++i);
		sizes += done.res > 0;
		if (!(done.flags & IORING_CQE_F_MORE))
			receive(s);
	}
	cr_assert_eq(sizes, 4);
}

Test(kernel_uring, full_completion_queue_keeps_everything_in_order) { full_completion_queue_keeps_everything(BEST); }
Test(kernel_uring, full_completion_queue_keeps_everything_in_order_coop)
{
	full_completion_queue_keeps_everything(COOP | IORING_SETUP_SINGLE_ISSUER);
}

Test(kernel_uring, overflow_is_flagged_until_it_is_fetched)
{
	struct io_uring ring;

	open_ring(&ring, BEST, 2);
	for (int i = 0; i < 3; i++) {
		io_uring_prep_nop(io_uring_get_sqe(&ring));
		cr_assert_eq(io_uring_submit(&ring), 1);
	}
	cr_assert_eq(io_uring_cq_ready(&ring), 2);
	cr_assert(io_uring_cq_has_overflow(&ring));
	io_uring_cq_advance(&ring, 2);
	cr_assert_geq(io_uring_get_events(&ring), 0);
	cr_assert_eq(io_uring_cq_ready(&ring), 1);
	cr_assert(!io_uring_cq_has_overflow(&ring));
}

Test(kernel_uring, multishot_poll_of_an_eventfd_fires_for_each_write_without_a_read)
{
	struct io_uring ring;
	struct completion done;
	int fd = eventfd(0, EFD_NONBLOCK);

	open_ring(&ring, BEST, 64);
	cr_assert_eq(eventfd_write(fd, 1), 0);
	io_uring_prep_poll_multishot(io_uring_get_sqe(&ring), fd, POLLIN);
	cr_assert_eq(io_uring_submit(&ring), 1);
	for (int i = 0; i < 5; i++) {
		done = next_done(&ring);
		cr_assert_eq(done.res, POLLIN);
		cr_assert(done.flags & IORING_CQE_F_MORE);
		cr_assert_geq(io_uring_get_events(&ring), 0);
		cr_assert_eq(io_uring_cq_ready(&ring), 0);
		cr_assert_eq(eventfd_write(fd, 1), 0);
	}
}

Test(kernel_uring, timeout_can_be_moved_and_a_skipped_success_posts_nothing)
{
	struct io_uring ring;
	struct io_uring_sqe *sqe;
	struct completion done;
	struct __kernel_timespec distant = { .tv_sec = INT64_C(1) << 40 }, past = { .tv_sec = 0, .tv_nsec = 1 };

	open_ring(&ring, BEST, 64);
	sqe = io_uring_get_sqe(&ring);
	io_uring_prep_timeout(sqe, &distant, 0, IORING_TIMEOUT_ABS);
	sqe->user_data = 1;
	sqe = io_uring_get_sqe(&ring);
	io_uring_prep_timeout_update(sqe, &past, 1, IORING_TIMEOUT_ABS);
	sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
	sqe->user_data = 2;
	cr_assert_eq(io_uring_submit(&ring), 2);
	done = next_done(&ring);
	cr_assert_eq(done.user_data, 1);
	cr_assert_eq(done.res, -ETIME);
	/* When there is none any more, it says so. */
	sqe = io_uring_get_sqe(&ring);
	io_uring_prep_timeout_update(sqe, &past, 1, IORING_TIMEOUT_ABS);
	sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
	sqe->user_data = 2;
	cr_assert_eq(io_uring_submit(&ring), 1);
	done = next_done(&ring);
	cr_assert_eq(done.user_data, 2);
	cr_assert_eq(done.res, -ENOENT);
}

/* ---- Threads and hosts ------------------------------------------------------------------------------------------- */

static int enable(struct io_uring *ring)
{
	return io_uring_register((unsigned)ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}

static void *enable_and_submit(void *arg)
{
	struct io_uring *ring = arg;

	cr_assert_eq(enable(ring), 0);
	io_uring_prep_nop(io_uring_get_sqe(ring));
	cr_assert_eq(io_uring_submit(ring), 1);
	return NULL;
}

Test(kernel_uring, ring_is_bound_to_the_thread_that_enables_it)
{
	struct io_uring ring;
	pthread_t thread;
	int fd = eventfd(0, 0);

	open_ring(&ring, BEST | IORING_SETUP_R_DISABLED, 64);
	cr_assert_eq(io_uring_enter((unsigned)ring.ring_fd, 1, 0, 0, NULL), -EBADFD);
	cr_assert_eq(io_uring_register_eventfd(&ring, fd), 0); /* registering is possible before */
	cr_assert_eq(pthread_create(&thread, NULL, enable_and_submit, &ring), 0);
	cr_assert_eq(pthread_join(thread, NULL), 0);
	io_uring_prep_nop(io_uring_get_sqe(&ring));
	cr_assert_eq(io_uring_submit(&ring), -EEXIST);
}

Test(kernel_uring, registered_eventfd_wakes_and_can_be_silenced)
{
	struct setup *s = set_up(BEST, 64, BUFFERS);
	int fd = eventfd(0, EFD_NONBLOCK);
	eventfd_t count;

	cr_assert_eq(io_uring_register_eventfd(&s->ring, fd), 0);
	receive(s);
	cr_assert_eq(io_uring_cq_eventfd_toggle(&s->ring, false), 0);
	put(s, "1");
	cr_assert(!is_readable(fd, 0));
	cr_assert_eq(io_uring_cq_eventfd_toggle(&s->ring, true), 0);
	cr_assert(!is_readable(fd, 0)); /* the past is not repeated */
	cr_assert(waits_in_kernel(&s->ring));
	next_done(&s->ring);
	eventfd_read(fd, &count);
	for (int i = 0; i < 3; i++) {
		give(s, 0);
		put(s, "2");
		cr_assert(is_readable(fd, 20000));
		next_done(&s->ring);
		cr_assert_eq(io_uring_cq_eventfd_toggle(&s->ring, false), 0);
		cr_assert_eq(eventfd_read(fd, &count), 0);
		cr_assert(!is_readable(fd, 0));
		cr_assert_eq(io_uring_cq_eventfd_toggle(&s->ring, true), 0);
	}
}

Test(kernel_uring, descriptors_of_rings_close_on_exec)
{
	struct io_uring ring;

	open_ring(&ring, BEST, 64);
	cr_assert(fcntl(ring.ring_fd, F_GETFD) & FD_CLOEXEC);
}
