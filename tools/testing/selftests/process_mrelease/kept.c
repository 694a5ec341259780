// SPDX-License-Identifier: GPL-2.0
/*
 * Test which pages process_mrelease(PROCESS_MRELEASE_REAP_KILL) does not free: dirty
 * folios, the only copy of data, and pages of other processes.
 *
 * The file is in $TMPDIR, or else in the current directory.
 */
#define _GNU_SOURCE
#include <sys/utsname.h>

#include "victim.h"

/*
 * Dirty folios kept cached, clean ones are evicted.
 */
FIXTURE(dirty) {
	struct env env;
};

FIXTURE_VARIANT(dirty) {
	struct spec spec;
	unsigned int changed;	/* every nth page of the file */
	long kept;		/* pages that stay cached, -1: any number */
	bool writeback;
};

FIXTURE_VARIANT_ADD(dirty, mapped) {
	.spec = { .file = PAGES, .prot = PROT_READ | PROT_WRITE, .dirty = 1 },
	.changed = 1,
	.kept = PAGES,
};

FIXTURE_VARIANT_ADD(dirty, mapped_some) {
	.spec = {
		.file = PAGES, .prot = PROT_READ | PROT_WRITE, .dirty = 16,
		.advice = MADV_RANDOM,
	},
	.changed = 16,
	.kept = PAGES / 16,
};

FIXTURE_VARIANT_ADD(dirty, large_folios_some) {
	.spec = {
		.file = PAGES, .prot = PROT_READ | PROT_WRITE, .dirty = 64,
		.advice = MADV_HUGEPAGE,
	},
	.changed = 64,
	.kept = -1,
};

FIXTURE_VARIANT_ADD(dirty, written) {
	.spec = { .file = PAGES, .dirty = 1, .by_write = true },
	.changed = 1,
	.kept = PAGES,
};

FIXTURE_VARIANT_ADD(dirty, written_some) {
	.spec = { .file = PAGES, .dirty = 16, .by_write = true, .advice = MADV_RANDOM },
	.changed = 16,
	.kept = PAGES / 16,
};

/* Any number of pages are under writeback when the call begins. */
FIXTURE_VARIANT_ADD(dirty, writeback) {
	.spec = { .file = PAGES, .prot = PROT_READ | PROT_WRITE, .dirty = 1 },
	.changed = 1,
	.kept = -1,
	.writeback = true,
};

/* The private copies are freed. The file's own pages under them are not mapped. */
FIXTURE_VARIANT_ADD(dirty, copied) {
	.spec = {
		.file = PAGES, .flags = MAP_PRIVATE, .prot = PROT_READ | PROT_WRITE,
		.dirty = 2,
	},
	.kept = -1,
};

FIXTURE_SETUP(dirty)
{
	set_up(_metadata, &self->env, true, PAGES);
}

FIXTURE_TEARDOWN(dirty)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(dirty, data_is_kept, TIMEOUT)
{
	int fd = self->env.fd;
	struct usage usage;
	struct victim v;

	spawn(_metadata, &self->env, &variant->spec, &v);
	if (variant->kept > 0)
		ASSERT_EQ(variant->kept, dirty(fd));
	if (variant->writeback)
		ASSERT_EQ(0, sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE));

	ASSERT_EQ(0, mrelease(v.proc.pidfd, PROCESS_MRELEASE_REAP_KILL));
	usage = measure(&self->env);
	if (variant->kept >= 0)
		EXPECT_EQ(variant->kept, usage.cache);
	/* The file system may attach data to each dirty page. */
	EXPECT_LE(usage.charge, slack() + usage.cache * (psize() + 256));

	/* A dirty page that was evicted would be read from disk with old contents. */
	ASSERT_TRUE(write_text(AT_FDCWD, "/proc/sys/vm/drop_caches", "3"));
	EXPECT_EQ(-1, wrong_page(fd, PAGES, variant->changed));
	EXPECT_EQ(SIGKILL, wait_termsig(v.proc.pid));
	make_cold(_metadata, fd);
	EXPECT_EQ(-1, wrong_page(fd, PAGES, variant->changed));
	close_victim(&v);
}

/*
 * A page stays if the page cache holds its only copy.
 */
FIXTURE(only_copy) {
	struct env env;
};

FIXTURE_VARIANT(only_copy) {
	int (*make)(void);
};

static int make_secret(void)
{
#ifdef __NR_memfd_secret
	return syscall(__NR_memfd_secret, O_CLOEXEC);
#else
	return -1;	/* 32-bit Arm does not have it. */
#endif
}

/* In a mount namespace of its own */
static int make_ramfs(void)
{
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("ramfs", "/dev", "ramfs", 0, NULL))
		return -1;
	return open("/dev/file", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
}

FIXTURE_VARIANT_ADD(only_copy, memfd) {
	.make = make_memfd,
};

FIXTURE_VARIANT_ADD(only_copy, hugetlb) {
	.make = make_hugetlb,
};

FIXTURE_VARIANT_ADD(only_copy, secret) {
	.make = make_secret,
};

FIXTURE_VARIANT_ADD(only_copy, ramfs) {
	.make = make_ramfs,
};

FIXTURE_SETUP(only_copy)
{
	if (!set_up(_metadata, &self->env, true, 0))
		return;
	self->env.fd = variant->make();
}

FIXTURE_TEARDOWN(only_copy)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(only_copy, stays_cached, TIMEOUT)
{
	const struct spec spec = {
		.anon = PAGES, .file = default_huge_page_size() / psize() ?: 512,
		.prot = PROT_READ | PROT_WRITE, .dirty = 1,
	};
	size_t len = spec.file * psize();
	struct victim v;
	char *p;

	if (self->env.fd < 0 || ftruncate(self->env.fd, len))
		SKIP(return, "no such memory");
	spawn(_metadata, &self->env, &spec, &v);
	ASSERT_EQ(0, mrelease(v.proc.pidfd, PROCESS_MRELEASE_REAP_KILL));
	EXPECT_LE(measure(&self->env).charge, slack() + (long)len);
	EXPECT_EQ(SIGKILL, wait_termsig(v.proc.pid));

	p = mmap(NULL, len, PROT_READ, MAP_SHARED, self->env.fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	for (long i = 0; i < spec.file; i++)
		ASSERT_TRUE(is_filled(p + i * psize(), i, 1));
	close_victim(&v);
}

/*
 * Another process uses the file.
 */
FIXTURE(shared_file) {
	struct env env;
};

FIXTURE_SETUP(shared_file)
{
	set_up(_metadata, &self->env, true, PAGES);
}

FIXTURE_TEARDOWN(shared_file)
{
	tear_down(&self->env);
}

/* Exactly the pages that another process maps stay cached. */
TEST_F_TIMEOUT(shared_file, mapped_by_other_process, TIMEOUT)
{
	const struct spec spec = { .file = PAGES, .advice = MADV_RANDOM };
	unsigned char resident[PAGES / 2];
	size_t half = PAGES / 2 * psize();
	struct victim v;
	char *p;

	p = mmap(NULL, half, PROT_READ, MAP_SHARED, self->env.fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	ASSERT_EQ(0, madvise(p, half, MADV_RANDOM));
	force_read_pages(p, PAGES / 2, psize());
	spawn(_metadata, &self->env, &spec, &v);
	check_memory_used(_metadata, &self->env, &spec);

	ASSERT_EQ(0, mrelease(v.proc.pidfd, PROCESS_MRELEASE_REAP_KILL));
	EXPECT_EQ(PAGES / 2, measure(&self->env).cache);
	ASSERT_EQ(0, mincore(p, half, resident));
	for (long i = 0; i < PAGES / 2; i++) {
		ASSERT_EQ(1, resident[i] & 1);
		ASSERT_TRUE(is_filled(p + i * psize(), i, 0));
	}
	EXPECT_EQ(SIGKILL, wait_termsig(v.proc.pid));
	EXPECT_EQ(-1, wrong_page(self->env.fd, PAGES, 0));
	close_victim(&v);
}

/* Another process keeps writing the file and reading it back. */
TEST_F_TIMEOUT(shared_file, written_by_other_process, TIMEOUT)
{
	const struct spec spec = { .file = 64, .advice = MADV_RANDOM };
	char buf[psize()];
	struct victim v;
	int status;
	pid_t pid;

	pid = fork();
	if (!pid) {
		for (unsigned int n = 1; getppid() != 1; n++) {
			for (long i = 0; i < spec.file; i++) {
				fill_page(buf, i, n);
				if (pwrite(self->env.fd, buf, psize(), i * psize()) != psize())
					_exit(2);
			}
			if (n % 2)
				sync_file_range(self->env.fd, 0, 0,
						SYNC_FILE_RANGE_WRITE |
						SYNC_FILE_RANGE_WAIT_AFTER);
			for (long i = 0; i < spec.file; i++) {
				if (pread(self->env.fd, buf, psize(), i * psize()) != psize() ||
				    !is_filled(buf, i, n))
					_exit(1);
			}
		}
		_exit(0);
	}
	for (int i = 0; i < 100; i++) {
		spawn(_metadata, &self->env, &spec, &v);
		ASSERT_EQ(0, mrelease(v.proc.pidfd, PROCESS_MRELEASE_REAP_KILL));
		ASSERT_EQ(SIGKILL, wait_termsig(v.proc.pid));
		close_victim(&v);
	}
	EXPECT_EQ(0, waitpid(pid, &status, WNOHANG)) {
		TH_LOG("wrong contents: %d", WEXITSTATUS(status));
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/*
 * The victim maps all of a file and touches one half of it or nothing. The test has
 * read the rest, which stays cached.
 */
FIXTURE(untouched) {
	struct env env;
};

FIXTURE_VARIANT(untouched) {
	long touched;		/* pages */
	bool mprotect;		/* a thread of the victim keeps calling mprotect() */
	int callers;
};

FIXTURE_VARIANT_ADD(untouched, half_one_caller) {
	.touched = PAGES / 2,
	.callers = 1,
};

FIXTURE_VARIANT_ADD(untouched, half_two_callers) {
	.touched = PAGES / 2,
	.callers = 2,
};

FIXTURE_VARIANT_ADD(untouched, half_mprotect) {
	.touched = PAGES / 2,
	.mprotect = true,
	.callers = 1,
};

FIXTURE_VARIANT_ADD(untouched, all_two_callers) {
	.callers = 2,
};

FIXTURE_VARIANT_ADD(untouched, all_mprotect) {
	.mprotect = true,
	.callers = 1,
};

FIXTURE_SETUP(untouched)
{
	set_up(_metadata, &self->env, true, PAGES);
}

FIXTURE_TEARDOWN(untouched)
{
	tear_down(&self->env);
}

static void *mprotect_loop(void *anon)
{
	for (int i = 0; ; i++)
		mprotect(anon, PAGES * psize(), i % 2 ? PROT_READ | PROT_WRITE : PROT_READ);
	return NULL;
}

struct toucher {
	int fd;
	long pages;
	bool mprotect;
};

static bool touch_pages(const void *arg)
{
	const struct toucher *t = arg;
	char *file = map_aligned(PAGES, PROT_READ, MAP_SHARED, t->fd, MADV_RANDOM);
	char *anon = map_aligned(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_t thread;

	force_read_pages(file, t->pages, psize());
	memset(anon, 1, PAGES * psize());
	return !t->mprotect || !pthread_create(&thread, NULL, mprotect_loop, anon);
}

TEST_F_TIMEOUT(untouched, stays_cached, TIMEOUT)
{
	const struct toucher toucher = {
		self->env.fd, variant->touched, variant->mprotect,
	};
	const long untouched = PAGES - variant->touched;
	const size_t first = variant->touched * psize(), len = untouched * psize();
	char *buf = malloc(len);
	pid_t pid, callers[2];
	int pidfd, go[2];
	char c;

	ASSERT_EQ(0, posix_fadvise(self->env.fd, 0, 0, POSIX_FADV_RANDOM));
	for (int i = 0; i < 20; i++) {
		make_cold(_metadata, self->env.fd);
		ASSERT_EQ((ssize_t)len, pread(self->env.fd, buf, len, first));
		pid = start_child(&self->env, touch_pages, &toucher, &pidfd);
		ASSERT_GT(pid, 0);
		ASSERT_EQ(PAGES, cached(self->env.fd));
		ASSERT_EQ(0, pipe(go));
		for (int j = 0; j < variant->callers; j++) {
			callers[j] = fork();
			if (!callers[j])
				_exit(read(go[0], &c, 1) == 1 ?
				      mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL) : -1);
		}
		ASSERT_EQ(variant->callers, write(go[1], "12", variant->callers));
		for (int j = 0; j < variant->callers; j++) {
			int status;

			ASSERT_EQ(callers[j], waitpid(callers[j], &status, 0));
			ASSERT_EQ(0, status);
		}
		EXPECT_LE(measure(&self->env).charge, slack());
		ASSERT_EQ(untouched, cached_in(self->env.fd, first, len)) {
			TH_LOG("in round %d", i);
		}
		ASSERT_EQ(untouched, cached(self->env.fd));
		ASSERT_EQ(SIGKILL, wait_termsig(pid));
		close(pidfd);
		close(go[0]);
		close(go[1]);
	}
	EXPECT_EQ(-1, wrong_page(self->env.fd, PAGES, 0));
}

#define FEW_PAGES	1024L

/*
 * Swapped shared memory is not evicted: the last reference to the file frees it.
 */
FIXTURE(swapped_shmem) {
	struct env env;
};

FIXTURE_VARIANT(swapped_shmem) {
	bool memfd;
};

FIXTURE_VARIANT_ADD(swapped_shmem, shared_anonymous) { };
FIXTURE_VARIANT_ADD(swapped_shmem, memfd) { .memfd = true };

FIXTURE_SETUP(swapped_shmem)
{
	if (!set_up(_metadata, &self->env, true, 0))
		return;
	self->env.fd = -1;
	if (variant->memfd) {
		self->env.fd = make_memfd();
		ASSERT_EQ(0, ftruncate(self->env.fd, FEW_PAGES * psize()));
	}
}

FIXTURE_TEARDOWN(swapped_shmem)
{
	tear_down(&self->env);
}

/* Swap all of it out and read some of it back. */
static bool swap_out(const void *arg)
{
	const int fd = *(const int *)arg;
	char *p = map_aligned(FEW_PAGES, PROT_READ | PROT_WRITE,
			      MAP_SHARED | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);

	for (long i = 0; i < FEW_PAGES; i++)
		fill_page(p + i * psize(), i, 0);
	page_out(p, FEW_PAGES * psize());
	force_read_pages(p, FEW_PAGES / 4, psize());
	return true;
}

/* Up to Linux 6.14 each CPU keeps up to 64 freed swap slots charged. */
static long freed_swap(void)
{
	struct utsname name;
	int major = 0, minor = 0;

	if (uname(&name) || sscanf(name.release, "%d.%d", &major, &minor) != 2 ||
	    major > 6 || (major == 6 && minor > 14))
		return 0;
	return 64 * psize() * sysconf(_SC_NPROCESSORS_ONLN);
}

TEST_F_TIMEOUT(swapped_shmem, is_kept, TIMEOUT)
{
	struct usage before, usage;
	int pidfd;
	pid_t pid;

	run_on_first_cpu();
	pid = start_child(&self->env, swap_out, &self->env.fd, &pidfd);
	ASSERT_GT(pid, 0);
	before = measure(&self->env);
	if (before.swap < FEW_PAGES / 2 * psize())
		SKIP(return, "no swap");

	ASSERT_EQ(0, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
	usage = measure(&self->env);
	if (variant->memfd)
		EXPECT_GE(usage.swap + freed_swap(), before.swap);
	EXPECT_EQ(SIGKILL, wait_termsig(pid));
	if (variant->memfd) {
		EXPECT_EQ(-1, wrong_page(self->env.fd, FEW_PAGES, 0));
		close(self->env.fd);
	}
	usage = measure(&self->env);
	EXPECT_LE(usage.swap, freed_swap());
	EXPECT_LE(usage.charge, slack());
	close(pidfd);
}

/*
 * Folios that cannot be evicted are marked as accessed, as by munmap().
 */
FIXTURE(accessed) {
	struct env env;
};

FIXTURE_VARIANT(accessed) {
	const char *type;	/* of the file system, NULL: a memfd */
	bool dirty;		/* written through the mapping, or else read only */
};

FIXTURE_VARIANT_ADD(accessed, memfd) { };
FIXTURE_VARIANT_ADD(accessed, memfd_dirty) { .dirty = true };
FIXTURE_VARIANT_ADD(accessed, tmpfs) { .type = "tmpfs" };
FIXTURE_VARIANT_ADD(accessed, ramfs) { .type = "ramfs" };
FIXTURE_VARIANT_ADD(accessed, disk_dirty) { .type = "", .dirty = true };

FIXTURE_SETUP(accessed)
{
	int dir;

	if (!set_up(_metadata, &self->env, false, variant->type && !*variant->type ? FEW_PAGES : 0))
		return;
	if (!variant->type) {
		self->env.fd = make_memfd();
	} else if (*variant->type) {
		dir = new_mount(variant->type, NULL);
		if (dir < 0) {
			tear_down(&self->env);
			SKIP(return, "no %s", variant->type);
		}
		self->env.fd = openat(dir, "file", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	}
	ASSERT_EQ(0, ftruncate(self->env.fd, FEW_PAGES * psize()));
}

FIXTURE_TEARDOWN(accessed)
{
	tear_down(&self->env);
}

struct accessor {
	int fd;
	bool dirty;
};

static bool access_file(const void *arg)
{
	const struct accessor *a = arg;
	/* Without MADV_RANDOM, which suppresses the marking. */
	char *p = map_aligned(FEW_PAGES, PROT_READ | PROT_WRITE, MAP_SHARED, a->fd, 0);

	force_read_pages(p, FEW_PAGES, psize());
	for (long i = 0; a->dirty && i < FEW_PAGES; i++)
		p[i * psize()] = 1;
	return true;
}

TEST_F_TIMEOUT(accessed, is_marked, TIMEOUT)
{
	const struct accessor accessor = { self->env.fd, variant->dirty };
	int pidfd;
	pid_t pid;

	if (has_generations())
		SKIP(return, "MGLRU has other marks");
	pid = start_child(&self->env, access_file, &accessor, &pidfd);
	ASSERT_GT(pid, 0);
	kill_with_flag(_metadata, pidfd);
	ASSERT_EQ(FEW_PAGES, cached(self->env.fd));
	EXPECT_EQ(SIGKILL, wait_termsig(pid));
	EXPECT_EQ(FEW_PAGES, count_accessed(self->env.fd, FEW_PAGES));
	close(pidfd);
}

TEST_HARNESS_MAIN
