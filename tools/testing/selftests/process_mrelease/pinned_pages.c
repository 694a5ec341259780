// SPDX-License-Identifier: GPL-2.0
/*
 * Test that process_mrelease(PROCESS_MRELEASE_REAP_KILL) does not free pages that a
 * pipe, a socket, an io_uring or a perf event uses.
 *
 * The file is in $TMPDIR, or else in the current directory.
 */
#define _GNU_SOURCE
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "pages.h"

/*
 * Pages of the victim in a pipe or a socket.
 */
FIXTURE(sent) {
	struct env env;
	int ends[2];		/* to read from, to write to */
};

struct sender {
	int fd;
	int to;
};

FIXTURE_VARIANT(sent) {
	bool (*send)(const void *sender);
	bool anon;
	bool socket;
	bool tcp;
};

static bool splice_memory(int to, char *p)
{
	struct iovec iov = { p + bytes(FIRST), bytes(HELD) };

	return vmsplice(to, &iov, 1, 0) == (ssize_t)iov.iov_len;
}

static bool vmsplice_file(const void *arg)
{
	const struct sender *s = arg;
	char *p = map_file(s->fd, PROT_READ, MAP_SHARED);

	return p && splice_memory(s->to, p);
}

static bool vmsplice_anon(const void *arg)
{
	const struct sender *s = arg;
	char *p = map_anon(PAGES, MAP_PRIVATE);

	if (p == MAP_FAILED)
		return false;
	fill_pages(p, 0, PAGES, 0);
	return splice_memory(s->to, p);
}

static bool splice_file(const void *arg)
{
	const struct sender *s = arg;
	off64_t from = bytes(FIRST);
	size_t left = bytes(HELD);

	if (!map_file(s->fd, PROT_READ, MAP_SHARED))
		return false;
	while (left) {
		ssize_t n = splice(s->fd, &from, s->to, NULL, left, 0);

		if (n <= 0)
			return false;
		left -= n;
	}
	return true;
}

static bool send_file(const void *arg)
{
	const struct sender *s = arg;
	off_t from = bytes(FIRST);

	return map_file(s->fd, PROT_READ, MAP_SHARED) &&
	       sendfile(s->to, s->fd, &from, bytes(HELD)) == bytes(HELD);
}

static bool send_zerocopy(const void *arg)
{
	const struct sender *s = arg;
	char *p = map_file(s->fd, PROT_READ, MAP_SHARED);

	return p && send(s->to, p + bytes(FIRST), bytes(HELD), MSG_ZEROCOPY) ==
	       bytes(HELD);
}

FIXTURE_VARIANT_ADD(sent, vmsplice_file) {
	.send = vmsplice_file,
};

FIXTURE_VARIANT_ADD(sent, vmsplice_anon) {
	.send = vmsplice_anon,
	.anon = true,
};

FIXTURE_VARIANT_ADD(sent, splice) {
	.send = splice_file,
};

FIXTURE_VARIANT_ADD(sent, sendfile) {
	.send = send_file,
	.socket = true,
};

/* The pages that fit into the receiver's buffer have been copied. */
FIXTURE_VARIANT_ADD(sent, zerocopy) {
	.send = send_zerocopy,
	.socket = true,
	.tcp = true,
};

/* Connect to a socket with a small receive buffer. */
static bool connect_tcp(int ends[2])
{
	struct sockaddr_in addr = {
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int one = 1, small = 2048;
	socklen_t len = sizeof(addr);

	ends[0] = -1;
	ends[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (!setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)) &&
	    !bind(listener, (struct sockaddr *)&addr, sizeof(addr)) &&
	    !listen(listener, 1) &&
	    !getsockname(listener, (struct sockaddr *)&addr, &len) &&
	    !setsockopt(ends[1], SOL_SOCKET, SO_ZEROCOPY, &one, sizeof(one)) &&
	    !connect(ends[1], (struct sockaddr *)&addr, len))
		ends[0] = accept(listener, NULL, NULL);
	close(listener);
	return ends[0] >= 0;
}

FIXTURE_SETUP(sent)
{
	int size = 4 * bytes(HELD);

	if (!set_up(_metadata, &self->env, true, PAGES))
		return;
	if (variant->anon && !can_count_charged(&self->env)) {
		tear_down(&self->env);
		SKIP(return, NO_COUNT);
	}
	if (variant->tcp && !connect_tcp(self->ends)) {
		tear_down(&self->env);
		SKIP(return, "needs TCP with MSG_ZEROCOPY");
	}
	if (!variant->socket) {
		ASSERT_EQ(0, pipe(self->ends));
		return;
	}
	if (!variant->tcp)
		ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, self->ends));
	ASSERT_EQ(0, setsockopt(self->ends[1], SOL_SOCKET, SO_SNDBUFFORCE, &size,
				sizeof(size)));
}

FIXTURE_TEARDOWN(sent)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(sent, contents_are_received, TIMEOUT)
{
	const struct sender sender = { self->env.fd, self->ends[1] };
	char page[psize()];
	int pidfd;
	long wrong;
	pid_t pid;

	pid = start_child(&self->env, variant->send, &sender, &pidfd);
	ASSERT_GT(pid, 0);
	if (!variant->anon)
		ASSERT_EQ(PAGES, cached(self->env.fd));
	ASSERT_EQ(0, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
	wrong = variant->anon ? charged(&self->env, KPF_ANON) - HELD :
				misplaced(self->env.fd, FIRST, HELD);
	EXPECT_LE(0, wrong);
	EXPECT_GT(variant->tcp ? HELD : 1, wrong);
	EXPECT_EQ(SIGKILL, wait_termsig(pid));
	close(pidfd);

	for (long i = 0; i < HELD; i++) {
		for (size_t n = 0; n < psize();) {
			ssize_t got = read(self->ends[0], page + n, psize() - n);

			ASSERT_LT(0, got);
			n += got;
		}
		ASSERT_TRUE(is_filled(page, FIRST + i, 0)) TH_LOG("page %ld", i);
	}
	close(self->ends[0]);
	close(self->ends[1]);
	EXPECT_TRUE(wait_until(!variant->anon || !charged(&self->env, KPF_ANON)));
	EXPECT_TRUE(droppable(self->env.fd));
	EXPECT_EQ(-1, wrong_page(self->env.fd, PAGES, 0));
}

/*
 * An io_uring of the test.
 */
struct ring {
	int fd;
	struct io_uring_params params;
	char *queues;
	struct io_uring_sqe *sqes;
};

static size_t queues_size(const struct ring *ring)
{
	return ring->params.cq_off.cqes +
	       ring->params.cq_entries * sizeof(struct io_uring_cqe);
}

static size_t sqes_size(const struct ring *ring)
{
	return ring->params.sq_entries * sizeof(struct io_uring_sqe);
}

static bool map_ring(struct ring *ring)
{
	ring->queues = mmap(NULL, queues_size(ring), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQ_RING);
	ring->sqes = mmap(NULL, sqes_size(ring), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQES);
	return ring->queues != MAP_FAILED && ring->sqes != MAP_FAILED;
}

static bool open_ring(struct ring *ring)
{
	memset(ring, 0, sizeof(*ring));
	ring->fd = syscall(__NR_io_uring_setup, 4, &ring->params);
	return ring->fd >= 0 && ring->params.features & IORING_FEAT_SINGLE_MMAP &&
	       map_ring(ring);
}

static unsigned int *ring_word(const struct ring *ring, unsigned int offset)
{
	return (unsigned int *)(ring->queues + offset);
}

/* Submit an operation, wait for its completion, and return its result. */
static int ring_do(struct ring *ring, const struct io_uring_sqe *sqe)
{
	unsigned int *sq_tail = ring_word(ring, ring->params.sq_off.tail);
	unsigned int *cq_head = ring_word(ring, ring->params.cq_off.head);
	unsigned int sq = *sq_tail & (ring->params.sq_entries - 1);
	unsigned int cq = *cq_head & (ring->params.cq_entries - 1);
	struct io_uring_cqe *cqes = (void *)(ring->queues + ring->params.cq_off.cqes);
	int res;

	ring->sqes[sq] = *sqe;
	ring_word(ring, ring->params.sq_off.array)[sq] = sq;
	__atomic_store_n(sq_tail, *sq_tail + 1, __ATOMIC_RELEASE);
	if (syscall(__NR_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS,
		    NULL, 0) != 1 || cqes[cq].user_data != sqe->user_data)
		return -EIO;
	res = cqes[cq].res;
	__atomic_store_n(cq_head, *cq_head + 1, __ATOMIC_RELEASE);
	return res;
}

/*
 * Buffers that the victim has registered with a ring of the test.
 */
FIXTURE(registered) {
	struct env env;
	struct ring ring;
	int pipe[2];
	int fd;
	void *addr;		/* of the victim's memory, with the buffer in it */
	size_t size;
};

FIXTURE_VARIANT(registered) {
	int (*make)(void);	/* a file to map, NULL: the one on disk */
	int flags;
	bool huge;
};

struct registrant {
	int ring;
	int fd;
	char *addr;
	size_t size;
	int flags;
};

FIXTURE_VARIANT_ADD(registered, anon) {
	.flags = MAP_PRIVATE | MAP_ANONYMOUS,
};

/* A shared mapping of a file cannot be pinned long-term. */
FIXTURE_VARIANT_ADD(registered, copy_of_file) {
	.flags = MAP_PRIVATE,
};

FIXTURE_VARIANT_ADD(registered, memfd) {
	.make = make_memfd,
	.flags = MAP_SHARED,
};

FIXTURE_VARIANT_ADD(registered, hugetlb) {
	.make = make_hugetlb,
	.flags = MAP_SHARED,
	.huge = true,
};

FIXTURE_SETUP(registered)
{
	size_t huge = variant->huge ? default_huge_page_size() : 0;
	char *addr;

	if (!set_up(_metadata, &self->env, true, PAGES))
		return;
	self->fd = variant->make ? variant->make() : self->env.fd;
	if (!open_ring(&self->ring) || self->fd < 0 || !can_count_charged(&self->env)) {
		tear_down(&self->env);
		SKIP(return, "needs io_uring, a file of this kind, and /proc/kpagecgroup");
	}
	self->size = huge ?: (size_t)bytes(PAGES);
	if (variant->make)
		ASSERT_EQ(0, ftruncate(self->fd, self->size));
	addr = mmap(NULL, self->size + huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
		    -1, 0);
	ASSERT_NE(MAP_FAILED, addr);
	if (huge)
		addr = (char *)(((uintptr_t)addr + huge - 1) & -huge);
	self->addr = addr;
	ASSERT_EQ(0, pipe(self->pipe));
	ASSERT_LE(0, fcntl(self->pipe[1], F_SETPIPE_SZ, bytes(HELD)));
}

FIXTURE_TEARDOWN(registered)
{
	tear_down(&self->env);
}

static bool register_buffer(const void *arg)
{
	const struct registrant *r = arg;
	struct iovec iov = { r->addr + bytes(FIRST), bytes(HELD) };

	if (mmap(r->addr, r->size, PROT_READ | PROT_WRITE, r->flags | MAP_FIXED,
		 r->flags & MAP_ANONYMOUS ? -1 : r->fd, 0) == MAP_FAILED)
		return false;
	fill_pages(r->addr, 0, PAGES, 1);
	return !syscall(__NR_io_uring_register, r->ring, IORING_REGISTER_BUFFERS, &iov, 1);
}

/* The ring writes the buffer's contents to a pipe. */
static void check_buffer(struct __test_metadata *_metadata, struct ring *ring,
			 void *addr, const int pipe[2], unsigned int version)
{
	const struct io_uring_sqe sqe = {
		.opcode = IORING_OP_WRITE_FIXED, .fd = pipe[1], .off = -1,
		.addr = (uintptr_t)addr + bytes(FIRST), .len = bytes(HELD),
		.user_data = version,
	};
	char page[psize()];

	ASSERT_EQ(bytes(HELD), ring_do(ring, &sqe));
	for (long i = 0; i < HELD; i++) {
		ASSERT_EQ(psize(), read(pipe[0], page, psize()));
		ASSERT_TRUE(is_filled(page, FIRST + i, version)) TH_LOG("page %ld", i);
	}
}

TEST_F_TIMEOUT(registered, is_usable, TIMEOUT)
{
	const struct registrant registrant = {
		self->ring.fd, self->fd, self->addr, self->size, variant->flags,
	};
	const struct io_uring_sqe sqe = {
		.opcode = IORING_OP_READ_FIXED, .fd = self->pipe[0], .off = -1,
		.addr = (uintptr_t)self->addr + bytes(FIRST), .len = bytes(HELD),
		.user_data = 42,
	};
	char page[psize()], *p;
	int pidfd;
	pid_t pid;

	pid = start_child(&self->env, register_buffer, &registrant, &pidfd);
	ASSERT_GT(pid, 0);
	ASSERT_EQ(0, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
	if (variant->flags & MAP_PRIVATE)
		EXPECT_EQ(HELD, charged(&self->env, KPF_ANON));
	check_buffer(_metadata, &self->ring, self->addr, self->pipe, 1);
	EXPECT_EQ(SIGKILL, wait_termsig(pid));
	close(pidfd);

	/* The ring reads new contents into the buffer. */
	for (long i = 0; i < HELD; i++) {
		fill_page(page, FIRST + i, 2);
		ASSERT_EQ(psize(), write(self->pipe[1], page, psize()));
	}
	ASSERT_EQ(bytes(HELD), ring_do(&self->ring, &sqe));
	check_buffer(_metadata, &self->ring, self->addr, self->pipe, 2);
	if (variant->make) {
		p = mmap(NULL, self->size, PROT_READ, MAP_SHARED, self->fd, 0);
		ASSERT_NE(MAP_FAILED, p);
		EXPECT_TRUE(filled_pages(p, 0, FIRST, 1));
		EXPECT_TRUE(filled_pages(p + bytes(FIRST), FIRST, HELD, 2));
		EXPECT_TRUE(filled_pages(p + bytes(FIRST + HELD), FIRST + HELD,
					 PAGES - FIRST - HELD, 1));
		munmap(p, self->size);
	}

	ASSERT_EQ(0, syscall(__NR_io_uring_register, self->ring.fd,
			     IORING_UNREGISTER_BUFFERS, NULL, 0));
	close(self->fd);
	EXPECT_TRUE(wait_until(!charged(&self->env, KPF_ANON)));
	if (!variant->make)
		return;
	self->env.pages = 0;
	EXPECT_TRUE(wait_until(measure(&self->env).charge <= slack()));
}

/*
 * Driver memory that the victim and the test have mapped.
 */
FIXTURE(driver) {
	struct env env;
	struct ring ring;
	int perf;
};

FIXTURE_SETUP(driver)
{
	set_up(_metadata, &self->env, true, PAGES);
}

FIXTURE_TEARDOWN(driver)
{
	tear_down(&self->env);
}

static bool share_ring(const void *arg)
{
	struct ring ring = *(const struct ring *)arg;

	return map_ring(&ring);
}

TEST_F_TIMEOUT(driver, io_uring, TIMEOUT)
{
	struct io_uring_sqe nop = { .opcode = IORING_OP_NOP };
	int pidfd;
	pid_t pid;

	if (!open_ring(&self->ring))
		SKIP(return, "no io_uring");
	for (int i = 0; i < 50; i++) {
		pid = start_child(&self->env, share_ring, &self->ring, &pidfd);
		ASSERT_GT(pid, 0);
		kill_victim(_metadata, pid, pidfd);
		nop.user_data = i + 1;
		ASSERT_EQ(0, ring_do(&self->ring, &nop));
	}
}

#define PERF_PAGES	8

static void *map_perf(int fd)
{
	return mmap(NULL, bytes(1 + PERF_PAGES), PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_POPULATE, fd, 0);
}

static bool share_perf(const void *arg)
{
	return map_perf(*(const int *)arg) != MAP_FAILED;
}

TEST_F_TIMEOUT(driver, perf, TIMEOUT)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE, .config = PERF_COUNT_SW_DUMMY,
		.size = sizeof(attr), .mmap = 1, .mmap_data = 1, .sample_id_all = 1,
	};
	struct perf_event_mmap_page *control;
	struct perf_event_header *header;
	uint64_t head;
	int pidfd;
	pid_t pid;

	self->perf = syscall(__NR_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
	control = self->perf < 0 ? MAP_FAILED : map_perf(self->perf);
	if (control == MAP_FAILED)
		SKIP(return, "no perf events");
	for (int i = 0; i < 50; i++) {
		pid = start_child(&self->env, share_perf, &self->perf, &pidfd);
		ASSERT_GT(pid, 0);
		kill_victim(_metadata, pid, pidfd);

		/* mmap() is an event, which is written to the buffer. */
		head = control->data_head;
		munmap(mmap(NULL, psize(), PROT_READ, MAP_PRIVATE, self->env.fd, 0), psize());
		ASSERT_LT(head, control->data_head);
		header = (void *)((char *)control + control->data_offset +
				  head % control->data_size);
		ASSERT_EQ((__u32)PERF_RECORD_MMAP, header->type);
	}
}

TEST_HARNESS_MAIN
