// SPDX-License-Identifier: GPL-2.0
/*
 * Test that process_mrelease(PROCESS_MRELEASE_REAP_KILL) does not free pages that
 * are in use, and that it neither loses nor leaks a reference.
 *
 * Each victim has other pages as well, which must be freed: a call that does
 * nothing fails the test.
 *
 * The file is in $TMPDIR, or else in the current directory. Where a folio must be
 * locked or under I/O during the call, the file is on a FUSE file system of the
 * test's own, which answers on demand.
 */
#define _GNU_SOURCE
#include <linux/fuse.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>

#include <lib/test_hmm_uapi.h>

#include "hugepage_settings.h"
#include "mrelease_util.h"

/* Of a file or of memory: HELD pages in the middle stay. */
#define PAGES		64L
#define FIRST		24L
#define HELD		16L

#define PATIENCE	60	/* seconds, for something that takes no time */

#ifndef KPF_ANON
#define KPF_ANON	BIT_ULL(12)
#endif

/* Wait for a condition; return false if it does not become true in time. */
#define await(condition) ({						\
	time_t end = time(NULL) + PATIENCE;				\
	bool met;							\
	while (!(met = (condition)) && time(NULL) < end)		\
		usleep(1000);						\
	met;								\
})

static size_t bytes(long pages)
{
	return pages * psize();
}

static void *map_anon(long pages, int flags)
{
	return mmap(NULL, bytes(pages), PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags,
		    -1, 0);
}

static void fill_pages(char *p, long first, long nr, unsigned int version)
{
	for (long i = 0; i < nr; i++)
		fill(p + bytes(i), first + i, version);
}

static bool filled_pages(const char *p, long first, long nr, unsigned int version)
{
	for (long i = 0; i < nr; i++) {
		if (!filled(p + bytes(i), first + i, version))
			return false;
	}
	return true;
}

/* Map all of the file and read it into small folios. Return NULL on failure. */
static char *map_file(int fd, int prot, int flags)
{
	char *p = mmap(NULL, bytes(PAGES), prot, flags, fd, 0);

	if (p == MAP_FAILED || madvise(p, bytes(PAGES), MADV_RANDOM))
		return NULL;
	force_read_pages(p, PAGES, psize());
	return p;
}

/* Count the pages that are cached outside of the given range, or not within it. */
static long misplaced(int fd, long first, long nr)
{
	long wrong = 0;

	for (long i = 0; i < PAGES; i++)
		wrong += cache_in(fd, bytes(i), psize()).nr_cache !=
			 (i >= first && i < first + nr);
	return wrong;
}

/* Return true if all pages of the file can be dropped: no reference is left. */
static bool droppable(int fd)
{
	return await(!fsync(fd) && !posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) &&
		     !cached(fd));
}

/*
 * Count the pages charged to the cgroup of the test that have one of @flags, or
 * any if @flags is 0. Return -1 without /proc/kpagecgroup.
 */
static long charged(const struct env *env, uint64_t flags)
{
	enum { CHUNK = 8192 };
	int cgroups = open("/proc/kpagecgroup", O_RDONLY | O_CLOEXEC);
	int kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	static uint64_t cgroup[CHUNK], flag[CHUNK];
	/* Device memory may be at far higher addresses. */
	FILE *ram = fopen("/proc/iomem", "r");
	unsigned long long start, end;
	long count = -1;
	struct stat st;
	char line[256];

	fstat(env->cgroup_fd, &st);
	while (cgroups >= 0 && kpageflags >= 0 && ram && fgets(line, sizeof(line), ram)) {
		if (!strstr(line, ": System RAM") ||
		    sscanf(line, "%llx-%llx", &start, &end) != 2 || !end)
			continue;
		start /= psize();
		end /= psize();
		if (count < 0)
			count = 0;
		for (ssize_t nr; start <= end; start += nr) {
			size_t size = (end - start < CHUNK ? end - start + 1 : CHUNK) *
				      sizeof(*cgroup);

			nr = pread(cgroups, cgroup, size, start * sizeof(*cgroup)) /
			     (ssize_t)sizeof(*cgroup);
			if (nr <= 0 || pread(kpageflags, flag, size,
					     start * sizeof(*flag)) != (ssize_t)size)
				break;
			for (ssize_t i = 0; i < nr; i++)
				count += cgroup[i] == st.st_ino &&
					 (!flags || flag[i] & flags);
		}
	}
	if (ram)
		fclose(ram);
	close(cgroups);
	close(kpageflags);
	return count;
}

static bool can_count_charged(const struct env *env)
{
	return charged(env, 0) >= 0;
}

#define NO_COUNT	"needs /proc/kpagecgroup"

/* Call, and wait for the victim to die of SIGKILL. */
static void kill_victim(struct __test_metadata *_metadata, pid_t pid, int pidfd)
{
	ASSERT_EQ(0, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
	ASSERT_EQ(SIGKILL, died_of(pid));
	close(pidfd);
}

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
	       sendfile(s->to, s->fd, &from, bytes(HELD)) == (ssize_t)bytes(HELD);
}

static bool send_zerocopy(const void *arg)
{
	const struct sender *s = arg;
	char *p = map_file(s->fd, PROT_READ, MAP_SHARED);

	return p && send(s->to, p + bytes(FIRST), bytes(HELD), MSG_ZEROCOPY) ==
	       (ssize_t)bytes(HELD);
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

TEST_F_TIMEOUT(sent, is_received, TIMEOUT)
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
	EXPECT_EQ(SIGKILL, died_of(pid));
	close(pidfd);

	for (long i = 0; i < HELD; i++) {
		for (size_t n = 0; n < psize();) {
			ssize_t got = read(self->ends[0], page + n, psize() - n);

			ASSERT_LT(0, got);
			n += got;
		}
		ASSERT_TRUE(filled(page, FIRST + i, 0)) TH_LOG("page %ld", i);
	}
	close(self->ends[0]);
	close(self->ends[1]);
	EXPECT_TRUE(await(!variant->anon || !charged(&self->env, KPF_ANON)));
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
 * Buffers that the victim has registered with a ring that survives it.
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

static int make_memfd(void)
{
	return memfd_create("mrelease", MFD_CLOEXEC);
}

static int make_hugetlb(void)
{
	int fd = memfd_create("mrelease", MFD_CLOEXEC | MFD_HUGETLB);

	/* Fails without huge pages. */
	if (fd >= 0 && fallocate(fd, 0, 0, default_huge_page_size())) {
		close(fd);
		return -1;
	}
	return fd;
}

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
	self->size = huge ?: bytes(PAGES);
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
		ASSERT_TRUE(filled(page, FIRST + i, version)) TH_LOG("page %ld", i);
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
	EXPECT_EQ(SIGKILL, died_of(pid));
	close(pidfd);

	/* The ring reads new contents into the buffer. */
	for (long i = 0; i < HELD; i++) {
		fill(page, FIRST + i, 2);
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
	EXPECT_TRUE(await(!charged(&self->env, KPF_ANON)));
	if (!variant->make)
		return;
	self->env.pages = 0;
	EXPECT_TRUE(await(measure(&self->env).charge <= slack()));
}

/*
 * Memory of drivers, without page cache, which victim and test have mapped.
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
		ASSERT_EQ(PERF_RECORD_MMAP, ((struct perf_event_header *)((char *)control +
			  control->data_offset + head % control->data_size))->type);
	}
}

/*
 * A FUSE file system with a single file as its root, served by a thread of the
 * test. It is in shared memory: the victim sets .hold.
 */
struct server {
	int dev;
	int fd;			/* the file */
	int direct;		/* O_DIRECT */
	char *data;		/* the storage */
	atomic_uint hold;	/* the opcode of requests that are not answered */
	atomic_uint held;	/* number of .requests */
	struct fuse_in_header *requests[PAGES];
	int disk;		/* a file on another file system */
};

#define REQUEST_SIZE	(bytes(PAGES) + 2 * FUSE_MIN_READ_BUFFER)

static void reply(struct server *s, const struct fuse_in_header *in, int error,
		  const void *data, size_t len)
{
	struct fuse_out_header out = {
		.len = sizeof(out) + len, .error = -error, .unique = in->unique,
	};
	struct iovec iov[] = { { &out, sizeof(out) }, { (void *)data, len } };

	/* ENOENT: the request was interrupted. */
	if (writev(s->dev, iov, 2) < 0 && errno != ENOENT)
		perror("/dev/fuse");
}

static void answer(struct server *s, const struct fuse_in_header *in)
{
	const void *arg = in + 1;

	switch (in->opcode) {
	case FUSE_INIT: {
		struct fuse_init_out init = {
			.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION,
			.flags = FUSE_BIG_WRITES | FUSE_ASYNC_READ | FUSE_MAX_PAGES,
			.max_write = bytes(PAGES), .max_pages = PAGES,
			.max_background = PAGES, .congestion_threshold = PAGES,
		};

		reply(s, in, 0, &init, sizeof(init));
		break;
	}
	case FUSE_GETATTR: {
		struct fuse_attr_out attr = {
			.attr_valid = TIMEOUT,
			.attr = {
				.ino = FUSE_ROOT_ID, .size = bytes(PAGES), .nlink = 1,
				.mode = S_IFREG | 0600, .blksize = psize(),
			},
		};

		reply(s, in, 0, &attr, sizeof(attr));
		break;
	}
	case FUSE_OPEN: {
		struct fuse_open_out open = {
			.open_flags = FOPEN_KEEP_CACHE | FOPEN_NOFLUSH,
		};

		reply(s, in, 0, &open, sizeof(open));
		break;
	}
	case FUSE_READ: {
		const struct fuse_read_in *read = arg;

		reply(s, in, 0, s->data + read->offset, read->size);
		break;
	}
	case FUSE_WRITE: {
		const struct fuse_write_in *write = arg;
		struct fuse_write_out done = { .size = write->size };

		memcpy(s->data + write->offset, write + 1, write->size);
		reply(s, in, 0, &done, sizeof(done));
		break;
	}
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break;
	default:
		reply(s, in, ENOSYS, NULL, 0);
	}
}

static void *serve(void *arg)
{
	struct fuse_in_header *in;
	struct server *s = arg;
	ssize_t len;

	for (;;) {
		in = malloc(REQUEST_SIZE);
		len = read(s->dev, in, REQUEST_SIZE);
		if (len < 0 && errno == ENODEV)
			break;
		if (len > 0 && in->opcode == s->hold) {
			s->requests[s->held] = in;
			s->held++;
			continue;
		}
		if (len > 0)
			answer(s, in);
		free(in);
	}
	return NULL;
}

/* Answer the requests that have been held. */
static void answer_held(struct server *s)
{
	s->hold = 0;
	for (unsigned int i = 0; i < s->held; i++)
		answer(s, s->requests[i]);
}

/* The number of pages that the held requests are for. */
static long held_pages(struct server *s)
{
	size_t size = 0;

	for (unsigned int i = 0; i < s->held; i++) {
		/* FUSE_READ begins with the same fields. */
		const struct fuse_write_in *arg = (void *)(s->requests[i] + 1);

		size += arg->size;
	}
	return size / psize();
}

/* Return the descriptor of a mount that is not attached to any path, or -1. */
static int new_mount(const char *type, const char * const options[][2])
{
	int fs = syscall(__NR_fsopen, type, FSOPEN_CLOEXEC);
	int fd = -1;

	if (fs < 0)
		return -1;
	for (; (*options)[0]; options++) {
		if (syscall(__NR_fsconfig, fs, FSCONFIG_SET_STRING, (*options)[0],
			    (*options)[1], 0))
			goto out;
	}
	if (!syscall(__NR_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		fd = syscall(__NR_fsmount, fs, FSMOUNT_CLOEXEC, 0);
out:
	close(fs);
	return fd;
}

FIXTURE(held) {
	struct env env;
	struct server *server;
};

FIXTURE_SETUP(held)
{
	struct server *s = map_anon(1, MAP_SHARED);
	char dev[16];
	const char * const options[][2] = {
		{ "source", "mrelease" }, { "fd", dev }, { "rootmode", "100600" },
		{ "user_id", "0" }, { "group_id", "0" }, { },
	};
	pthread_t thread;
	struct stat st;
	int mount;

	ASSERT_NE(MAP_FAILED, s);
	self->server = s;
	if (!set_up(_metadata, &self->env, true, PAGES))
		return;
	s->disk = self->env.fd;
	s->dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	snprintf(dev, sizeof(dev), "%d", s->dev);
	mount = new_mount("fuse", options);
	if (mount < 0) {
		tear_down(&self->env);
		SKIP(return, "needs FUSE");
	}
	s->data = malloc(bytes(PAGES));
	fill_pages(s->data, 0, PAGES, 0);
	ASSERT_EQ(0, pthread_create(&thread, NULL, serve, s));
	s->fd = reopen(mount, O_RDWR);
	s->direct = reopen(mount, O_RDWR | O_DIRECT);
	ASSERT_LE(0, s->fd);
	ASSERT_LE(0, s->direct);
	close(mount);
	/* Get the file's size, which a fault does not. */
	ASSERT_EQ(0, fstat(s->fd, &st));
	ASSERT_EQ(bytes(PAGES), st.st_size);
}

FIXTURE_TEARDOWN(held)
{
	answer_held(self->server);
	tear_down(&self->env);
}

/* Check the contents of the pages in the middle, and of the others. */
static void check_file(struct __test_metadata *_metadata, int fd, unsigned int middle,
		       unsigned int others)
{
	char page[psize()];

	for (long i = 0; i < PAGES; i++) {
		bool in = i >= FIRST && i < FIRST + HELD;

		ASSERT_EQ(psize(), pread(fd, page, psize(), bytes(i)));
		ASSERT_TRUE(filled(page, i, in ? middle : others)) TH_LOG("page %ld", i);
	}
}

/* In the victim: close the server's end, so that the server ends with the test. */
static struct server *leave_server(const void *arg)
{
	struct server *s = (struct server *)arg;

	close(s->dev);
	return s;
}

static bool write_through_mapping(const void *arg)
{
	char *p = map_file(leave_server(arg)->fd, PROT_READ | PROT_WRITE, MAP_SHARED);

	if (p)
		fill_pages(p + bytes(FIRST), FIRST, HELD, 1);
	return p;
}

TEST_F_TIMEOUT(held, writeback, TIMEOUT)
{
	struct server *s = self->server;
	int pidfd;
	pid_t pid;

	pid = start_child(&self->env, write_through_mapping, s, &pidfd);
	ASSERT_GT(pid, 0);
	s->hold = FUSE_WRITE;
	ASSERT_EQ(0, sync_file_range(s->fd, 0, 0, SYNC_FILE_RANGE_WRITE));
	ASSERT_TRUE(await(held_pages(s) == HELD));
	ASSERT_EQ(HELD, cache_of(s->fd).nr_writeback);
	ASSERT_EQ(0, cache_of(s->fd).nr_dirty);
	ASSERT_EQ(PAGES, cached(s->fd));

	ASSERT_EQ(0, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
	EXPECT_EQ(0, misplaced(s->fd, FIRST, HELD));
	EXPECT_EQ(HELD, cache_of(s->fd).nr_writeback);
	/* A page that was evicted would have old contents. */
	check_file(_metadata, s->fd, 1, 0);
	answer_held(s);
	/* The exit waits for these requests. */
	EXPECT_EQ(SIGKILL, died_of(pid));
	close(pidfd);
	EXPECT_TRUE(droppable(s->fd));
	check_file(_metadata, s->fd, 1, 0);
}

static void *wait_for_page(void *p)
{
	FORCE_READ(*(char *)p);
	return NULL;
}

/* Read all but the middle, for which a thread waits. */
static bool read_ahead(const void *arg)
{
	struct server *s = leave_server(arg);
	char *p = mmap(NULL, bytes(PAGES), PROT_READ, MAP_SHARED, s->fd, 0);
	pthread_t thread;

	if (p == MAP_FAILED || madvise(p, bytes(PAGES), MADV_RANDOM))
		return false;
	force_read_pages(p, FIRST, psize());
	force_read_pages(p + bytes(FIRST + HELD), PAGES - FIRST - HELD, psize());
	s->hold = FUSE_READ;
	return !madvise(p + bytes(FIRST), bytes(HELD), MADV_WILLNEED) &&
	       !pthread_create(&thread, NULL, wait_for_page, p + bytes(FIRST));
}

TEST_F_TIMEOUT(held, read, TIMEOUT)
{
	struct server *s = self->server;
	int pidfd;
	pid_t pid;

	pid = start_child(&self->env, read_ahead, s, &pidfd);
	ASSERT_GT(pid, 0);
	ASSERT_TRUE(await(held_pages(s) == HELD));
	ASSERT_EQ(PAGES, cached(s->fd));

	kill_victim(_metadata, pid, pidfd);
	EXPECT_EQ(0, misplaced(s->fd, FIRST, HELD));
	answer_held(s);
	check_file(_metadata, s->fd, 0, 0);
	EXPECT_TRUE(droppable(s->fd));
}

static bool read_all(const void *arg)
{
	return map_file(leave_server(arg)->fd, PROT_READ, MAP_SHARED);
}

/* FUSE_NOTIFY_STORE from a page whose fault is held: the folio stays locked. */
struct store {
	int dev;
	char *page;
	ssize_t ret;
};

static void *store_page(void *arg)
{
	struct store *store = arg;
	struct fuse_notify_store_out where = {
		.nodeid = FUSE_ROOT_ID, .offset = bytes(FIRST), .size = psize(),
	};
	struct fuse_out_header out = {
		.len = sizeof(out) + sizeof(where) + psize(), .error = FUSE_NOTIFY_STORE,
	};
	struct iovec iov[] = {
		{ &out, sizeof(out) }, { &where, sizeof(where) }, { store->page, psize() },
	};

	store->ret = writev(store->dev, iov, 3);
	return NULL;
}

TEST_F_TIMEOUT(held, locked, TIMEOUT)
{
	struct server *s = self->server;
	struct store store = { s->dev, map_anon(1, MAP_PRIVATE) };
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_copy copy = { .len = psize() };
	char page[psize()];
	struct uffd_msg msg;
	pthread_t thread;
	int uffd, pidfd;
	pid_t pid;

	uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ||
	    uffd_register(uffd, store.page, psize(), true, false, false))
		SKIP(return, "needs userfaultfd");
	pid = start_child(&self->env, read_all, s, &pidfd);
	ASSERT_GT(pid, 0);
	ASSERT_EQ(PAGES, cached(s->fd));
	ASSERT_EQ(0, pthread_create(&thread, NULL, store_page, &store));
	ASSERT_EQ(sizeof(msg), read(uffd, &msg, sizeof(msg)));

	kill_victim(_metadata, pid, pidfd);
	EXPECT_EQ(0, misplaced(s->fd, FIRST, 1));
	fill(page, FIRST, 1);
	copy.dst = (uintptr_t)store.page;
	copy.src = (uintptr_t)page;
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_COPY, &copy));
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_LT(0, store.ret);
	ASSERT_EQ(psize(), pread(s->fd, page, psize(), bytes(FIRST)));
	EXPECT_TRUE(filled(page, FIRST, 1));
	EXPECT_TRUE(droppable(s->fd));
	check_file(_metadata, s->fd, 0, 0);
	close(uffd);
}

/* Direct I/O between the FUSE file and memory that is the file on disk. */
struct transfer {
	struct server *server;
	char *addr;
	int kind;
};

static void *transfer_directly(void *arg)
{
	struct transfer *t = arg;

	t->server->hold = t->kind;
	if (t->kind == FUSE_READ)
		pread(t->server->direct, t->addr, bytes(HELD), bytes(FIRST));
	else
		pwrite(t->server->direct, t->addr, bytes(HELD), bytes(FIRST));
	return NULL;
}

static bool start_transfer(const void *arg, int kind)
{
	static struct transfer transfer;
	pthread_t thread;
	char *p;

	transfer.server = leave_server(arg);
	transfer.kind = kind;
	p = map_file(transfer.server->disk, PROT_READ | PROT_WRITE, MAP_SHARED);
	transfer.addr = p + bytes(FIRST);
	return p && !pthread_create(&thread, NULL, transfer_directly, &transfer);
}

static bool read_directly(const void *arg)
{
	return start_transfer(arg, FUSE_READ);
}

static bool write_directly(const void *arg)
{
	return start_transfer(arg, FUSE_WRITE);
}

/* The folios are clean; only the pin keeps them. */
TEST_F_TIMEOUT(held, direct_read, TIMEOUT)
{
	struct server *s = self->server;
	int pidfd;
	pid_t pid;

	fill_pages(s->data + bytes(FIRST), FIRST, HELD, 1);
	pid = start_child(&self->env, read_directly, s, &pidfd);
	ASSERT_GT(pid, 0);
	ASSERT_TRUE(await(held_pages(s) == HELD));
	ASSERT_EQ(0, fsync(s->disk));
	ASSERT_EQ(0, cache_of(s->disk).nr_dirty);
	ASSERT_EQ(PAGES, cached(s->disk));

	ASSERT_EQ(0, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
	EXPECT_EQ(0, misplaced(s->disk, FIRST, HELD));
	answer_held(s);
	EXPECT_EQ(SIGKILL, died_of(pid));
	close(pidfd);
	check_file(_metadata, s->disk, 1, 0);
	EXPECT_TRUE(droppable(s->disk));
	check_file(_metadata, s->disk, 1, 0);
}

TEST_F_TIMEOUT(held, direct_write, TIMEOUT)
{
	struct server *s = self->server;
	int pidfd;
	pid_t pid;

	fill_pages(s->data, 0, PAGES, 1);
	pid = start_child(&self->env, write_directly, s, &pidfd);
	ASSERT_GT(pid, 0);
	ASSERT_TRUE(await(held_pages(s) == HELD));
	ASSERT_EQ(PAGES, cached(s->disk));

	ASSERT_EQ(0, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
	EXPECT_EQ(0, misplaced(s->disk, FIRST, HELD));
	answer_held(s);
	EXPECT_EQ(SIGKILL, died_of(pid));
	close(pidfd);
	EXPECT_TRUE(droppable(s->disk));
	check_file(_metadata, s->disk, 0, 0);
	check_file(_metadata, s->fd, 0, 1);
}

/*
 * Other processes use or change the same pages during the calls.
 */
FIXTURE(race) {
	struct env env;
	atomic_long *rounds;
};

FIXTURE_VARIANT(race) {
	bool (*act)(int fd, unsigned int version);
	int racers;
	long rounds;
};

#define RACE_PAGES	32L
#define RACE_KILLS	100

static bool race_map(int fd, int flags)
{
	char *p = mmap(NULL, bytes(RACE_PAGES), PROT_READ, flags, fd, 0);
	bool ok = p != MAP_FAILED && filled_pages(p, 0, RACE_PAGES, 0);

	munmap(p, bytes(RACE_PAGES));
	return ok;
}

static bool race_fault(int fd, unsigned int version)
{
	return race_map(fd, MAP_SHARED);
}

static bool race_populate(int fd, unsigned int version)
{
	return race_map(fd, MAP_PRIVATE | MAP_POPULATE);
}

static bool race_read(int fd, unsigned int version)
{
	return wrong_page(fd, RACE_PAGES, 0) == -1;
}

/* The pages are clean at the end, and so may be evicted. */
static bool race_refill(int fd, long first, unsigned int version)
{
	char page[psize()], zero[psize()];

	memset(zero, 0, sizeof(zero));
	for (long i = first; i < RACE_PAGES; i++) {
		if (pread(fd, page, psize(), bytes(i)) != psize() ||
		    memcmp(page, zero, psize()))
			return false;
		fill(page, i, version);
		if (pwrite(fd, page, psize(), bytes(i)) != psize())
			return false;
	}
	if (fdatasync(fd))
		return false;
	for (long i = first; i < RACE_PAGES; i++) {
		if (pread(fd, page, psize(), bytes(i)) != psize() ||
		    !filled(page, i, version))
			return false;
	}
	return true;
}

static bool race_truncate(int fd, unsigned int version)
{
	long first = version % RACE_PAGES;

	return !ftruncate(fd, bytes(first)) && !ftruncate(fd, bytes(RACE_PAGES)) &&
	       race_refill(fd, first, version);
}

static bool race_punch(int fd, unsigned int version)
{
	long first = version % RACE_PAGES;

	return !fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, bytes(first),
			  bytes(RACE_PAGES - first)) &&
	       race_refill(fd, first, version);
}

FIXTURE_VARIANT_ADD(race, fault) {
	.act = race_fault,
	.racers = 2,
	.rounds = 2000,
};

FIXTURE_VARIANT_ADD(race, populate) {
	.act = race_populate,
	.racers = 2,
	.rounds = 2000,
};

FIXTURE_VARIANT_ADD(race, read) {
	.act = race_read,
	.racers = 2,
	.rounds = 2000,
};

FIXTURE_VARIANT_ADD(race, truncate) {
	.act = race_truncate,
	.racers = 1,
	.rounds = 500,		/* each writes to the disk */
};

FIXTURE_VARIANT_ADD(race, punch_hole) {
	.act = race_punch,
	.racers = 1,
	.rounds = 500,		/* each writes to the disk */
};

FIXTURE_SETUP(race)
{
	if (!set_up(_metadata, &self->env, true, RACE_PAGES))
		return;
	self->rounds = map_anon(1, MAP_SHARED);
	ASSERT_NE(MAP_FAILED, self->rounds);
}

FIXTURE_TEARDOWN(race)
{
	tear_down(&self->env);
}

/* MADV_POPULATE_READ fails behind the end of the file, without a SIGBUS. */
static void *fault_in_again(void *p)
{
	for (;;) {
		for (long i = 0; i < RACE_PAGES; i++)
			madvise((char *)p + bytes(i), psize(), MADV_POPULATE_READ);
	}
	return NULL;
}

static bool race_victim(const void *arg)
{
	char *p = mmap(NULL, bytes(RACE_PAGES), PROT_READ, MAP_SHARED, *(const int *)arg, 0);
	pthread_t thread;

	return p != MAP_FAILED && !pthread_create(&thread, NULL, fault_in_again, p);
}

TEST_F_TIMEOUT(race, contents_are_right, TIMEOUT)
{
	pid_t pid, racers[2];
	int status, pidfd;

	if (!variant->act(self->env.fd, 1) && errno == EOPNOTSUPP)
		SKIP(return, "this file system cannot do that");
	for (int n = 0; n < variant->racers; n++) {
		racers[n] = fork();
		if (racers[n])
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (unsigned int round = 1; ; round++) {
			if (!variant->act(self->env.fd, round % 255 + 1))
				_exit(1);
			++*self->rounds;
		}
	}

	for (int i = 0; i < RACE_KILLS || *self->rounds < variant->rounds; i++) {
		pid = start_child(&self->env, race_victim, &self->env.fd, &pidfd);
		ASSERT_GT(pid, 0);
		usleep(i % 10 * 1000);
		kill_victim(_metadata, pid, pidfd);
		ASSERT_EQ(0, waitpid(-1, &status, WNOHANG)) {
			TH_LOG("wrong contents in round %ld", *self->rounds);
		}
	}
	for (int n = 0; n < variant->racers; n++) {
		kill(racers[n], SIGKILL);
		ASSERT_EQ(SIGKILL, died_of(racers[n]));
	}
	EXPECT_TRUE(droppable(self->env.fd));
}

/*
 * DAX: the mapped pages are the storage. The device is used only if it is not open
 * and blank.
 */
#define PMEM	"/dev/pmem0"

FIXTURE(dax) {
	struct env env;
	int dev;
	bool formatted;
};

FIXTURE_VARIANT(dax) {
	int flags;
};

FIXTURE_VARIANT_ADD(dax, shared) {
	.flags = MAP_SHARED,
};

FIXTURE_VARIANT_ADD(dax, private) {
	.flags = MAP_PRIVATE,
};

static bool is_blank(int fd)
{
	static char buf[1 << 20], zero[1 << 20];

	return pread(fd, buf, sizeof(buf), 0) == sizeof(buf) &&
	       !memcmp(buf, zero, sizeof(buf));
}

static void make_blank(int fd)
{
	static const char zero[1 << 20];

	if (pwrite(fd, zero, sizeof(zero), 0) == sizeof(zero))
		fsync(fd);
}

/* Mount the device and open a file on it. */
static int open_dax(void)
{
	const char * const options[][2] = { { "source", PMEM }, { "dax", "always" }, { } };
	int mount = new_mount("ext4", options);
	int fd = mount < 0 ? -1 : openat(mount, "file", O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	close(mount);
	return fd;
}

FIXTURE_SETUP(dax)
{
	char command[64];

	self->dev = open(PMEM, O_RDWR | O_EXCL | O_CLOEXEC);
	if (self->dev < 0 || !is_blank(self->dev))
		SKIP(return, "needs a blank " PMEM);
	if (!set_up(_metadata, &self->env, true, 0))
		return;
	self->formatted = true;
	close(self->dev);
	snprintf(command, sizeof(command), "mke2fs -F -b %u " PMEM " >/dev/null 2>&1", psize());
	if (!system(command))
		self->env.fd = open_dax();
}

FIXTURE_TEARDOWN(dax)
{
	tear_down(&self->env);
	if (!self->formatted)
		return;
	self->dev = open(PMEM, O_RDWR | O_CLOEXEC);
	make_blank(self->dev);
}

struct dax_victim {
	int fd;
	int flags;
};

static bool write_dax(const void *arg)
{
	const struct dax_victim *v = arg;
	char *p = map_file(v->fd, PROT_READ | PROT_WRITE, v->flags);

	if (p)
		fill_pages(p + bytes(FIRST), FIRST, HELD, 1);
	return p;
}

TEST_F_TIMEOUT(dax, is_storage, TIMEOUT)
{
	const struct dax_victim v = { self->env.fd, variant->flags };
	const unsigned int version = variant->flags == MAP_SHARED;
	int pidfd;
	char *p;
	pid_t pid;

	if (self->env.fd <= 0)
		SKIP(return, "needs mke2fs, and ext4 with DAX");
	ASSERT_TRUE(write_pages(self->env.fd, PAGES, 0));
	/* There is no page cache. */
	ASSERT_EQ(0, cached(self->env.fd));
	p = map_file(self->env.fd, PROT_READ, MAP_SHARED);
	ASSERT_NE(NULL, p);
	for (int i = 0; i < 20; i++) {
		pid = start_child(&self->env, write_dax, &v, &pidfd);
		ASSERT_GT(pid, 0);
		kill_victim(_metadata, pid, pidfd);
		ASSERT_TRUE(filled_pages(p, 0, FIRST, 0));
		ASSERT_TRUE(filled_pages(p + bytes(FIRST), FIRST, HELD, version));
	}
	munmap(p, bytes(PAGES));
	ASSERT_TRUE(put(AT_FDCWD, "/proc/sys/vm/drop_caches", "3"));
	check_file(_metadata, self->env.fd, version, 0);
	close(self->env.fd);
	self->env.fd = open_dax();
	ASSERT_LE(0, self->env.fd);
	check_file(_metadata, self->env.fd, version, 0);
	close(self->env.fd);
}

/*
 * Memory that a device mirrors, or that has been migrated to the device.
 */
#define MIRROR		"/dev/hmm_dmirror0"
#define MIRROR_FD	100	/* in the victim */
#define MIRROR_PAGES	2048L

FIXTURE(device) {
	struct env env;
	char *addr;		/* of the victim's memory */
};

FIXTURE_SETUP(device)
{
	if (access(MIRROR, R_OK | W_OK))
		SKIP(return, "needs CONFIG_TEST_HMM");
	if (!set_up(_metadata, &self->env, true, 0))
		return;
	self->addr = mmap(NULL, bytes(MIRROR_PAGES), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	ASSERT_NE(MAP_FAILED, self->addr);
}

FIXTURE_TEARDOWN(device)
{
	tear_down(&self->env);
}

static bool mirror(int fd, unsigned long request, char *addr, void *data, long pages)
{
	struct hmm_dmirror_cmd cmd = {
		.addr = (uintptr_t)addr, .ptr = (uintptr_t)data, .npages = pages,
	};

	return !ioctl(fd, request, &cmd) && cmd.cpages == (uint64_t)pages;
}

static bool write_mirrored(const void *arg)
{
	char *p = *(char * const *)arg;
	int fd = open(MIRROR, O_RDWR);

	if (fd < 0 || dup2(fd, MIRROR_FD) < 0 ||
	    mprotect(p, bytes(MIRROR_PAGES), PROT_READ | PROT_WRITE))
		return false;
	fill_pages(p, 0, MIRROR_PAGES, 1);
	close(fd);
	return true;
}

static bool move_to_device(const void *arg)
{
	char *data = map_anon(MIRROR_PAGES, MAP_PRIVATE);

	return write_mirrored(arg) && data != MAP_FAILED &&
	       mirror(MIRROR_FD, HMM_DMIRROR_MIGRATE_TO_DEV, *(char * const *)arg, data,
		      MIRROR_PAGES / 2) &&
	       mirror(MIRROR_FD, HMM_DMIRROR_EXCLUSIVE,
		      *(char * const *)arg + bytes(MIRROR_PAGES / 2), data,
		      MIRROR_PAGES / 2);
}

/* An MMU notifier may block, e.g. for the victim's exit: call again after EAGAIN. */
static int mrelease_again(int pidfd)
{
	int ret;

	await((ret = mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL)) != EAGAIN);
	return ret;
}

TEST_F_TIMEOUT(device, private_memory_is_free, TIMEOUT)
{
	int pidfd;
	pid_t pid;

	for (int i = 0; i < 10; i++) {
		pid = start_child(&self->env, move_to_device, &self->addr, &pidfd);
		ASSERT_GT(pid, 0);
		ASSERT_LE(bytes(MIRROR_PAGES), measure(&self->env).charge);
		ASSERT_EQ(0, mrelease_again(pidfd));
		EXPECT_GE(slack(), measure(&self->env).charge);
		EXPECT_EQ(SIGKILL, died_of(pid));
		close(pidfd);
	}
}

static bool share_memory(const void *arg)
{
	return true;
}

TEST_F_TIMEOUT(device, parents_memory_stays, TIMEOUT)
{
	int pidfd;
	pid_t pid;

	ASSERT_TRUE(move_to_device(&self->addr));
	for (int i = 0; i < 10; i++) {
		pid = start_child(&self->env, share_memory, NULL, &pidfd);
		ASSERT_GT(pid, 0);
		kill_victim(_metadata, pid, pidfd);
	}
	EXPECT_TRUE(filled_pages(self->addr, 0, MIRROR_PAGES, 1));
}

/*
 * The device reads, with the lock held that its notifier takes, on the last CPU and
 * only when that is idle. Until the notifier has taken it, the contents must be right.
 */
static void keep_reading(int fd, char *addr, int ready)
{
	char *data = map_anon(MIRROR_PAGES, MAP_PRIVATE);
	struct sched_param idle = { };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	run_on(true);
	if (sched_setscheduler(0, SCHED_IDLE, &idle) ||
	    !mirror(fd, HMM_DMIRROR_READ, addr, data, MIRROR_PAGES) ||
	    !filled_pages(data, 0, MIRROR_PAGES, 1) || write(ready, "", 1) != 1)
		_exit(1);
	while (mirror(fd, HMM_DMIRROR_READ, addr, data, MIRROR_PAGES)) {
		if (!filled_pages(data, 0, 1, 1))
			_exit(2);
	}
	/* The memory is gone. */
	pause();
}

/* What runs idle on the last CPU stops where it is, perhaps with a lock held. */
static void start_loops(pid_t *loops, int nr)
{
	while (nr--) {
		loops[nr] = fork();
		if (!loops[nr]) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			run_on(true);
			for (;;)
				;
		}
	}
}

static void end_loops(pid_t *loops, int nr)
{
	while (nr--) {
		kill(loops[nr], SIGKILL);
		waitpid(loops[nr], NULL, 0);
	}
}

static bool gone(int pidfd)
{
	siginfo_t info = { };

	return !waitid(P_PIDFD, pidfd, &info, WEXITED | WNOWAIT | WNOHANG) && info.si_pid;
}

TEST_F_TIMEOUT(device, notifier_would_block, TIMEOUT)
{
	int pidfd, ready[2], mirror_fd, ret;
	pid_t pid, reader, pin, loops[4];
	bool seen = false;
	char c;

	for (int i = 0; i < 50 && !seen; i++) {
		ASSERT_EQ(0, pipe(ready));
		pid = start_child(&self->env, write_mirrored, &self->addr, &pidfd);
		ASSERT_GT(pid, 0);
		mirror_fd = syscall(__NR_pidfd_getfd, pidfd, MIRROR_FD, 0);
		ASSERT_LE(0, mirror_fd);
		/* Hold mm_users, or else the exit may be quicker. */
		pin = pin_memory(pid, self->addr);
		if (pin < 0)
			SKIP(return, NO_PIN);
		reader = fork();
		if (!reader) {
			close(ready[0]);
			keep_reading(mirror_fd, self->addr, ready[1]);
		}
		close(ready[1]);
		ASSERT_EQ(1, read(ready[0], &c, 1));
		close(ready[0]);
		start_loops(loops, ARRAY_SIZE(loops));
		usleep(20000 + i * 100);

		ret = mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL);
		end_loops(loops, ARRAY_SIZE(loops));
		if (ret == EAGAIN) {
			seen = true;
			ASSERT_TRUE(await(gone(pidfd)));
			ret = mrelease_again(pidfd);
		}
		ASSERT_EQ(0, ret);
		EXPECT_GE(slack(), measure(&self->env).charge);

		EXPECT_EQ(0, waitpid(reader, NULL, WNOHANG)) TH_LOG("wrong contents");
		kill(reader, SIGKILL);
		waitpid(reader, NULL, 0);
		close(mirror_fd);
		kill(pin, SIGKILL);
		waitpid(pin, NULL, 0);
		EXPECT_EQ(SIGKILL, died_of(pid));
		close(pidfd);
	}
	EXPECT_TRUE(seen) TH_LOG("the notifier never blocked");
}

/*
 * After many kills, no page is left that any victim has used.
 */
#define COMM		"mrelease_gone"
#define EXACT_PAGES	512L
#define EXACT_KILLS	200

FIXTURE(exact) {
	struct env env;
	int memfd;
};

FIXTURE_SETUP(exact)
{
	if (!set_up(_metadata, &self->env, true, EXACT_PAGES))
		return;
	if (!can_count_charged(&self->env)) {
		tear_down(&self->env);
		SKIP(return, NO_COUNT);
	}
	self->memfd = make_memfd();
	ASSERT_EQ(0, ftruncate(self->memfd, bytes(EXACT_PAGES)));
}

FIXTURE_TEARDOWN(exact)
{
	tear_down(&self->env);
}

/* The kind of memory depends on the round. */
struct kind {
	int round;
	int fd;
	int memfd;
};

static bool use_memory(const void *arg)
{
	static const int advices[] = { MADV_NORMAL, MADV_RANDOM, MADV_HUGEPAGE };
	const struct kind *kind = arg;
	int advice = advices[kind->round % 3];
	bool dirty = kind->round / 3 % 2, lock = kind->round / 6 % 2;
	struct { int fd, flags; bool write; } maps[] = {
		{ -1, MAP_PRIVATE | MAP_ANONYMOUS, true },
		{ -1, MAP_SHARED | MAP_ANONYMOUS, true },
		{ kind->memfd, MAP_SHARED, true },
		{ kind->fd, MAP_SHARED, dirty },
		{ kind->fd, MAP_SHARED, false },
		{ kind->fd, MAP_PRIVATE, dirty },
	};

	prctl(PR_SET_NAME, COMM);
	for (size_t i = 0; i < sizeof(maps) / sizeof(*maps); i++) {
		char *p = mmap(NULL, bytes(EXACT_PAGES), PROT_READ | PROT_WRITE,
			       maps[i].flags, maps[i].fd, 0);

		if (p == MAP_FAILED)
			return false;
		/* Not every kind of memory supports every advice. */
		madvise(p, bytes(EXACT_PAGES), advice);
		force_read_pages(p, EXACT_PAGES, psize());
		for (long n = 0; maps[i].write && n < EXACT_PAGES; n += kind->round % 5 + 1)
			*(long *)(p + bytes(n)) = ~n;
		if (lock && mlock(p, bytes(EXACT_PAGES)))
			return false;
	}
	return true;
}

#define OWNERS		"/sys/kernel/debug/page_owner"

static bool has_owners(void)
{
	return !access(OWNERS, R_OK);
}

/* Count the pages that victims have allocated, for themselves or for a file. */
static long owned(void)
{
	FILE *owners = fopen(OWNERS, "r");
	char *line = NULL;
	bool ours = false;
	size_t size = 0;
	long count = 0;

	while (owners && getline(&line, &size, owners) > 0) {
		if (strstr(line, "allocated via"))
			ours = strstr(line, "(" COMM ")");
		else if (ours && !strncmp(line, "PFN", 3))
			count += !!strstr(line, "type Movable Block");
	}
	free(line);
	if (owners)
		fclose(owners);
	return count;
}

/* Return true if exactly so many pages are left. */
static bool all_gone_but(const struct env *env, long pages)
{
	return put(AT_FDCWD, "/proc/sys/vm/drop_caches", "3") &&
	       charged(env, 0) == pages && (!has_owners() || owned() == pages);
}

static bool lose_page(const void *arg)
{
	char *p = map_anon(1, MAP_PRIVATE);
	struct iovec iov = { p, 1 };

	if (p == MAP_FAILED)
		return false;
	prctl(PR_SET_NAME, COMM);
	fill(p, 0, 0);
	return vmsplice(*(const int *)arg, &iov, 1, 0) == 1;
}

TEST_F_TIMEOUT(exact, references, TIMEOUT)
{
	struct kind kind = { 0, self->env.fd, self->memfd };
	int pidfd, ends[2];
	pid_t pid;

	for (; kind.round < EXACT_KILLS; kind.round++) {
		pid = start_child(&self->env, use_memory, &kind, &pidfd);
		ASSERT_GT(pid, 0);
		kill_victim(_metadata, pid, pidfd);
	}
	/* One page stays in a pipe, to see that a single page is found. */
	ASSERT_EQ(0, pipe(ends));
	pid = start_child(&self->env, lose_page, &ends[1], &pidfd);
	ASSERT_GT(pid, 0);
	kill_victim(_metadata, pid, pidfd);

	close(self->memfd);
	ASSERT_EQ(0, fsync(self->env.fd));
	EXPECT_TRUE(await(all_gone_but(&self->env, 1))) {
		TH_LOG("%ld pages are charged, %ld owned", charged(&self->env, 0), owned());
	}
	close(ends[0]);
	close(ends[1]);
	EXPECT_TRUE(await(all_gone_but(&self->env, 0)));
}

TEST_HARNESS_MAIN
