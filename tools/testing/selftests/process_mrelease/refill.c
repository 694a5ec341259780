// SPDX-License-Identifier: GPL-2.0
/*
 * Test that nothing maps pages in memory that process_mrelease() has reaped.
 *
 * A second process refills the memory of the victim in a loop, from before the kill
 * until after the call has returned. A third process holds mm_users, so that the exit
 * of the victim does not free the refilled pages. The tests look for pages in the
 * page tables of the victim, and in the charge of a memory cgroup with only the
 * victim in it.
 */
#define _GNU_SOURCE
#include <stdatomic.h>

#include "util.h"

#define PAGES	16384L
#define CHUNK	(1024 * 1024L)	/* bytes for one UFFDIO_COPY, one page table at most */
#define MOVERS	8
#define MOVED	(2048 * 1024L)	/* bytes for one UFFDIO_MOVE: one page table */

/* Shared by the test, the victim and the refiller. */
struct area {
	char *start;		/* in the victim */
	long pages;
	int file;		/* for the victim to map */
	int uffd;		/* in the victim */
	int cpu;		/* of the refiller, and of threads that move pages */
	int pidfd;
	int mem;		/* /proc/PID/mem of the victim */
	char *source;		/* of UFFDIO_COPY */
	atomic_bool stop;
	atomic_long rounds;	/* of the refiller over all of the area */
	atomic_int error;	/* errno of the latest failure */
	atomic_long wrong;	/* pages without the contents that the victim wrote */
};

static int uffd;		/* the same in the refiller */

static void map_area(struct area *a, int flags, int fd)
{
	a->start = map_aligned(a->pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | flags, fd, 0);
}

static bool register_area(struct area *a, __u64 features, bool missing, bool minor)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };

	a->uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	return a->uffd >= 0 && !ioctl(a->uffd, UFFDIO_API, &api) &&
	       !uffd_register(a->uffd, a->start, a->pages * psize(), missing, false, minor);
}

/* Victims. */

static bool register_missing(const void *arg)
{
	struct area *a = (void *)arg;

	map_area(a, MAP_ANONYMOUS, -1);
	return register_area(a, UFFD_FEATURE_POISON, true, false);
}

static bool register_minor(const void *arg)
{
	struct area *a = (void *)arg;

	map_area(a, 0, a->file);
	return register_area(a, UFFD_FEATURE_MINOR_SHMEM, false, true);
}

/* Few pages, but all page tables. */
static bool map_sparse(const void *arg)
{
	struct area *a = (void *)arg;

	map_area(a, MAP_ANONYMOUS, -1);
	for (long i = 0; i < a->pages; i += psize() / sizeof(long))
		a->start[i * psize()] = 1;
	return true;
}

static bool map_modified(const void *arg)
{
	struct area *a = (void *)arg;

	map_area(a, 0, a->file);
	for (long i = 0; i < a->pages; i++)
		fill_page(a->start + i * psize(), i, 1);
	return true;
}

static struct area *moved;

static void *move_back_and_forth(void *arg)
{
	struct uffdio_move move = { .mode = UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES };
	__u64 from = (uintptr_t)moved->start + (long)arg * MOVED;
	__u64 to = from + moved->pages * psize() - MOVERS * MOVED;

	run_on_cpu(moved->cpu);
	for (;; moved->rounds++) {
		for (long done = 0; done < MOVED; done += move.move > 0 ? move.move : 0) {
			move.src = from + done;
			move.dst = to + done;
			move.len = MOVED - done;
			if (ioctl(moved->uffd, UFFDIO_MOVE, &move) && errno != EAGAIN)
				_exit(1);
		}
		move.src = from;
		from = to;
		to = move.src;
	}
}

/* mlock2() holds mmap_lock, for which UFFDIO_MOVE waits uninterruptibly. */
static void *lock_and_unlock(void *arg)
{
	const size_t len = moved->pages * psize();

	while (!syscall(__NR_mlock2, moved->start, len, MLOCK_ONFAULT) &&
	       !munlock(moved->start, len))
		;
	_exit(1);
}

/* Pages move between the ends of the area. Reaping the middle takes time. */
static bool move_pages(const void *arg)
{
	pthread_t thread;

	moved = (void *)arg;
	map_area(moved, MAP_ANONYMOUS, -1);
	memset(moved->start, 1, moved->pages * psize() - MOVERS * MOVED);
	if (!register_area(moved, UFFD_FEATURE_MOVE, true, false))
		return false;
	for (long i = 0; i < MOVERS; i++) {
		if (pthread_create(&thread, NULL, move_back_and_forth, (void *)i))
			return false;
	}
	return !pthread_create(&thread, NULL, lock_and_unlock, NULL);
}

/* Refillers: each tries to fill the area once. */

static void refill_copy(struct area *a)
{
	for (long done = 0; done < a->pages * psize(); done += CHUNK) {
		struct uffdio_copy range = {
			.src = (uintptr_t)a->source,
			.dst = (uintptr_t)a->start + done,
			.len = CHUNK,
		};

		if (ioctl(uffd, UFFDIO_COPY, &range))
			a->error = errno;
	}
}

static void refill_zeropage(struct area *a)
{
	for (long i = 0; i < a->pages; i++) {
		struct uffdio_zeropage zero = {
			.range = { (uintptr_t)a->start + i * psize(), psize() },
		};

		if (ioctl(uffd, UFFDIO_ZEROPAGE, &zero))
			a->error = errno;
	}
}

static void refill_poison(struct area *a)
{
	for (long i = 0; i < a->pages; i++) {
		struct uffdio_poison page = {
			.range = { (uintptr_t)a->start + i * psize(), psize() },
		};

		if (ioctl(uffd, UFFDIO_POISON, &page))
			a->error = errno;
	}
}

static void refill_continue(struct area *a)
{
	for (long i = 0; i < a->pages; i++) {
		struct uffdio_continue cont = {
			.range = { (uintptr_t)a->start + i * psize(), psize() },
		};

		if (ioctl(uffd, UFFDIO_CONTINUE, &cont))
			a->error = errno;
	}
}

static void refill_collapse(struct area *a)
{
	struct iovec range = { a->start, a->pages * psize() };

	if (syscall(__NR_process_madvise, a->pidfd, &range, 1, MADV_COLLAPSE, 0) < 0)
		a->error = errno;
}

static void refill_fault(struct area *a)
{
	char page[psize()];

	for (long i = 0; i < a->pages; i++) {
		if (pread(a->mem, page, psize(), (uintptr_t)a->start + i * psize()) < 0)
			a->error = errno;
		else if (!is_filled(page, i, 1))
			a->wrong++;
	}
}

/* The threads of the victim move pages. Preempt them for 5 ms. */
static void occupy_cpu(struct area *a)
{
	const struct sched_param fifo = { .sched_priority = 1 };
	const long end = now_us() + 5000;

	if (sched_setscheduler(0, SCHED_FIFO, &fifo))
		_exit(1);
	while (now_us() < end)
		;
	usleep(5000);
}

FIXTURE(refill) {
	struct env env;
	struct area *area;
};

FIXTURE_VARIANT(refill) {
	bool (*setup)(const void *arg);
	void (*refill)(struct area *a);
	bool memfd;		/* map a memfd, not a file on disk */
	long pages;
	int error;		/* in the end, or 0 for any */
	int tries;
};

FIXTURE_VARIANT_ADD(refill, uffdio_copy) {
	.setup = register_missing, .refill = refill_copy, .pages = PAGES, .error = ESRCH,
};

FIXTURE_VARIANT_ADD(refill, uffdio_zeropage) {
	.setup = register_missing, .refill = refill_zeropage, .pages = PAGES, .error = ESRCH,
};

FIXTURE_VARIANT_ADD(refill, uffdio_poison) {
	.setup = register_missing, .refill = refill_poison, .pages = PAGES, .error = ESRCH,
};

FIXTURE_VARIANT_ADD(refill, uffdio_continue) {
	.setup = register_minor, .refill = refill_continue, .memfd = true, .pages = PAGES,
	.error = ESRCH,
};

FIXTURE_VARIANT_ADD(refill, uffdio_move) {
	.setup = move_pages, .refill = occupy_cpu, .pages = PAGES, .tries = 30,
};

FIXTURE_VARIANT_ADD(refill, madv_collapse) {
	.setup = map_sparse, .refill = refill_collapse, .pages = PAGES,
};

FIXTURE_VARIANT_ADD(refill, file_fault) {
	.setup = map_modified, .refill = refill_fault, .pages = PAGES / 4, .error = EIO,
};

FIXTURE_SETUP(refill)
{
	struct area *a;

	if (!set_up(_metadata, &self->env, false, 0))
		return;
	a = mmap(NULL, sizeof(*a), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, a);
	self->area = a;
	a->pages = variant->pages;
	a->source = malloc(CHUNK);
	ASSERT_NE(NULL, a->source);
	memset(a->source, 1, CHUNK);
	if (!variant->memfd && variant->refill != refill_fault)
		return;
	a->file = variant->memfd ? memfd_create("mrelease", MFD_CLOEXEC) : open_scratch();
	if (a->file < 0)
		SKIP(return, NO_DISK);
	ASSERT_TRUE(write_pages(a->file, a->pages, 0));
}

FIXTURE_TEARDOWN(refill)
{
	tear_down(&self->env);
}

static long pages_left(int pagemap, const struct area *a)
{
	uint64_t entries[512];
	long left = 0;

	for (long i = 0; i < a->pages; i += ARRAY_SIZE(entries)) {
		const off_t at = ((uintptr_t)a->start / psize() + i) * sizeof(*entries);

		if (pread(pagemap, entries, sizeof(entries), at) != sizeof(entries))
			return -1;
		for (size_t j = 0; j < ARRAY_SIZE(entries); j++)
			left += !!(entries[j] & (PM_PRESENT | PM_SWAP));
	}
	return left;
}

static int open_proc(pid_t pid, const char *name, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	return open(path, flags | O_CLOEXEC);
}

/* Kill a victim while its memory is being refilled. */
static void kill_refilled(struct __test_metadata *_metadata, struct env *env,
			  const struct _fixture_variant_refill *variant, struct area *a,
			  unsigned int flags)
{
	const struct sched_param fifo = { .sched_priority = 1 }, other = { };
	pid_t victim, reader, refiller;
	int pagemap, pidfd;
	long rounds;

	/*
	 * The victim does not run before the reaping ends, so a call without the flag
	 * finds its mm, too.
	 */
	run_on_cpu(0);
	a->rounds = 0;
	a->error = 0;
	a->wrong = 0;
	a->stop = false;
	victim = start_child(env, variant->setup, a, &pidfd);
	if (victim < 0)
		SKIP(return, "needs userfaultfd with this feature");
	pagemap = open_proc(victim, "pagemap", O_RDONLY);
	ASSERT_GE(pagemap, 0);
	a->pidfd = pidfd;
	a->mem = open_proc(victim, "mem", O_RDONLY);
	reader = pin_mm(victim, &moved);
	if (reader < 0)
		SKIP(return, NO_PIN);

	refiller = fork();
	ASSERT_GE(refiller, 0);
	if (!refiller) {
		run_on_cpu(a->cpu);
		uffd = sys_pidfd_getfd(pidfd, a->uffd, 0);
		for (; !a->stop; a->rounds++)
			variant->refill(a);
		_exit(0);
	}
	/* Wait for a tenth of the area, or for a few rounds. */
	while (variant->refill == refill_fault || variant->refill == occupy_cpu ? a->rounds < 3 :
	       pages_left(pagemap, a) < a->pages / 10)
		usleep(100);
	if (variant->tries)
		usleep(rand() % 10000);

	ASSERT_EQ(0, sched_setscheduler(0, SCHED_FIFO, &fifo));
	if (!flags)
		ASSERT_EQ(0, kill(victim, SIGKILL));
	ASSERT_EQ(0, mrelease(pidfd, flags));
	ASSERT_EQ(0, sched_setscheduler(0, SCHED_OTHER, &other));
	rounds = a->rounds;
	while (a->rounds < rounds + 3)
		usleep(100);
	a->stop = true;
	waitpid(refiller, NULL, 0);

	EXPECT_EQ(0, pages_left(pagemap, a));
	EXPECT_LE(measure(env).charge, slack());
	EXPECT_EQ(0, a->wrong);
	if (variant->error)
		EXPECT_EQ(variant->error, a->error);
	kill(reader, SIGKILL);
	waitpid(reader, NULL, 0);
	EXPECT_EQ(SIGKILL, wait_termsig(victim));
	close(pagemap);
	close(a->mem);
	close(pidfd);
}

static void kill_many(struct __test_metadata *_metadata, struct _test_data_refill *self,
		      const struct _fixture_variant_refill *variant, int cpus, unsigned int flags)
{
	if (flags && !has_reap_kill())
		SKIP(return, NO_FLAG);
	self->area->cpu = cpus - 1;
	for (int i = 0; i < (variant->tries ?: 1); i++)
		kill_refilled(_metadata, &self->env, variant, self->area, flags);
}

TEST_F_TIMEOUT(refill, sigkill, TIMEOUT)
{
	kill_many(_metadata, self, variant, sysconf(_SC_NPROCESSORS_ONLN), 0);
}

TEST_F_TIMEOUT(refill, sigkill_one_cpu, TIMEOUT)
{
	kill_many(_metadata, self, variant, 1, 0);
}

TEST_F_TIMEOUT(refill, reap_kill, TIMEOUT)
{
	kill_many(_metadata, self, variant, sysconf(_SC_NPROCESSORS_ONLN),
		  PROCESS_MRELEASE_REAP_KILL);
}

TEST_F_TIMEOUT(refill, reap_kill_one_cpu, TIMEOUT)
{
	kill_many(_metadata, self, variant, 1, PROCESS_MRELEASE_REAP_KILL);
}

TEST_HARNESS_MAIN
