// SPDX-License-Identifier: GPL-2.0
/*
 * Test what process_mrelease() returns, and what it has freed when it returns,
 * with PROCESS_MRELEASE_REAP_KILL and with flags == 0.
 *
 * The free memory is measured right after the call, before waitpid(): the victim's
 * exit would free it as well. It is measured as the charge of a memory cgroup with
 * only the victim in it, and by cachestat() on the victim's file.
 *
 * The file is in $TMPDIR, or else in the current directory. Tests that need it
 * are skipped on tmpfs, where the page cache holds the only copy.
 */
#define _GNU_SOURCE
#include <linux/audit.h>
#include <linux/netlink.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>

#include "hugepage_settings.h"
#include "mrelease_util.h"

#ifndef KILL_MRELEASE
#define KILL_MRELEASE			1
#endif

#define PAGES	4096L	/* of anonymous memory and of the file, by default */

/* The memory and the processes of a victim. */
struct spec {
	long anon;		/* pages of private memory, written */
	int anon_advice;
	long file;		/* pages of the file, mapped and read */
	int prot;		/* PROT_READ */
	int flags;		/* MAP_SHARED */
	int advice;
	unsigned int step;	/* read every nth page only */
	unsigned int dirty;	/* write every nth page, through the mapping ... */
	bool by_write;		/* ... or with pwrite() */
	bool read_only;		/* open the file O_RDONLY */
	bool twice;		/* map the file twice */
	bool lock;
	bool faulting;		/* the threads fault pages in all the time */
	int threads;
	int cpu;		/* to run on, from 1 */
	int sharer;		/* clone flags of another process with this mm */
};

/* A child of the test, which answers on a socket. */
struct proc {
	pid_t pid;
	int pidfd;
	int sock;
};

struct victim {
	struct proc proc;
	struct proc sharer;
	bool large;		/* the first folio of the file is */
};

struct hello {
	pid_t pid;
	bool large;
};

/* In the victim. */
static const struct spec *me;
static struct {
	char *anon;
	char *file[2];
	int sock[2];
} my;

static void touch_file(char *file)
{
	for (long i = 0; i < me->file; i += me->step ?: 1)
		FORCE_READ(file[i * psize()]);
}

/* One word of each page tells whether the page is intact. */
static void write_anon(void)
{
	for (long i = 0; i < me->anon; i++)
		*(long *)(my.anon + i * psize()) = ~i;
}

static bool anon_intact(void)
{
	for (long i = 0; i < me->anon; i++) {
		if (*(long *)(my.anon + i * psize()) != ~i)
			return false;
	}
	return true;
}

static void make_anon(void)
{
	size_t len = me->anon * psize();

	my.anon = map(me->anon, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, me->anon_advice);
	write_anon();
	if (me->anon_advice == MADV_PAGEOUT)
		page_out(my.anon, len);
	if (me->lock && mlock(my.anon, len))
		_exit(1);
}

static void make_file(int fd)
{
	char path[32], buf[psize()];

	if (me->read_only) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		fd = open(path, O_RDONLY);
	}
	for (int n = 0; n <= me->twice; n++) {
		my.file[n] = map(me->file, me->prot ?: PROT_READ, me->flags ?: MAP_SHARED,
				 fd, me->advice);
		touch_file(my.file[n]);
		if (me->advice == MADV_HUGEPAGE)
			keep_khugepaged_away(my.file[n], me->file * psize());
		if (me->lock && mlock(my.file[n], me->file * psize()))
			_exit(1);
	}
	for (long i = 0; me->dirty && i < me->file; i += me->dirty) {
		fill(me->by_write ? buf : my.file[0] + i * psize(), i, 1);
		if (me->by_write && pwrite(fd, buf, psize(), i * psize()) != psize())
			_exit(1);
	}
}

static void *thread_main(void *unused)
{
	while (!me->faulting)
		pause();
	for (;;) {
		if (me->anon) {
			madvise(my.anon, me->anon * psize(), MADV_DONTNEED);
			write_anon();
		}
		if (me->file) {
			madvise(my.file[0], me->file * psize(), MADV_DONTNEED);
			touch_file(my.file[0]);
		}
	}
	return NULL;
}

static void serve(int sock)
{
	struct hello hello = {
		.pid = getpid(),
		.large = me->file && is_large(my.file[0]),
	};
	char c;

	if (write(sock, &hello, sizeof(hello)) != sizeof(hello))
		_exit(1);
	while (read(sock, &c, 1) == 1) {
		c = anon_intact();
		if (write(sock, &c, 1) != 1)
			break;
	}
	_exit(0);
}

static int sharer_main(void *unused)
{
	serve(my.sock[1]);
	return 0;
}

static void victim_main(const struct spec *spec, int fd)
{
	pthread_t thread;
	cpu_set_t cpus;
	char *stack;

	me = spec;
	if (spec->cpu) {
		CPU_ZERO(&cpus);
		CPU_SET(spec->cpu - 1, &cpus);
		sched_setaffinity(0, sizeof(cpus), &cpus);
	}
	if (spec->anon)
		make_anon();
	if (spec->file)
		make_file(fd);
	drain_lru_batches();
	for (int i = 0; i < spec->threads; i++) {
		if (pthread_create(&thread, NULL, thread_main, NULL))
			_exit(1);
	}
	stack = map(16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (spec->sharer && clone(sharer_main, stack + 16 * psize(),
				  spec->sharer | CLONE_PARENT | SIGCHLD, NULL) < 0)
		_exit(1);
	serve(my.sock[0]);
}

static void greet(struct __test_metadata *_metadata, struct victim *v, struct proc *p)
{
	struct hello hello;

	ASSERT_EQ(sizeof(hello), read(p->sock, &hello, sizeof(hello))) {
		TH_LOG("The victim could not be set up");
	}
	v->large |= hello.large;
	if (!p->pid) {
		p->pid = hello.pid;
		p->pidfd = pidfd_open(p->pid);
	}
	ASSERT_GE(p->pidfd, 0);
}

static void spawn(struct __test_metadata *_metadata, struct env *env,
		  const struct spec *spec, struct victim *v)
{
	int sock[2], sharer[2];

	memset(v, 0, sizeof(*v));
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sock));
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sharer));
	v->proc.pid = fork_into_cgroup(env, &v->proc.pidfd);
	ASSERT_GE(v->proc.pid, 0);
	if (!v->proc.pid) {
		close(sock[1]);
		close(sharer[1]);
		my.sock[0] = sock[0];
		my.sock[1] = sharer[0];
		victim_main(spec, env->fd);
	}
	close(sock[0]);
	close(sharer[0]);
	v->proc.sock = sock[1];
	v->sharer.sock = sharer[1];
	if (spec->sharer)
		greet(_metadata, v, &v->sharer);
	greet(_metadata, v, &v->proc);
}

/* Return true if the process is alive and its memory intact. */
static bool intact(struct proc *p)
{
	char c = 0;

	return send(p->sock, &c, 1, MSG_NOSIGNAL) == 1 &&
	       recv(p->sock, &c, 1, 0) == 1 && c;
}

/* Wait for a process; return the signal that killed it, or -1. */
static int bury(struct proc *p)
{
	int status;

	if (!p->pid || waitpid(p->pid, &status, 0) != p->pid || !WIFSIGNALED(status))
		return -1;
	return WTERMSIG(status);
}

static void forget(struct victim *v)
{
	close(v->proc.pidfd);
	close(v->proc.sock);
	close(v->sharer.sock);
	if (v->sharer.pid)
		close(v->sharer.pidfd);
}

/* All threads have left the mm when this returns. */
static void become_zombie(struct __test_metadata *_metadata, struct proc *p)
{
	siginfo_t info;

	ASSERT_EQ(0, kill(p->pid, SIGKILL));
	ASSERT_EQ(0, waitid(P_PID, p->pid, &info, WEXITED | WNOWAIT));
}

/* The victim uses at least the memory of @spec. */
static void check_used(struct __test_metadata *_metadata, const struct env *env,
		       const struct spec *spec)
{
	struct usage usage = measure(env);

	ASSERT_GE(usage.charge + usage.swap, spec->anon * psize());
	if (spec->file)
		ASSERT_GE(usage.cache, spec->file / (spec->step ?: 1));
}

/* Seize a process and kill it. It stops in its exit, before it leaves the mm. */
static void stop_in_exit(struct __test_metadata *_metadata, struct proc *p)
{
	int status;

	ASSERT_EQ(0, ptrace(PTRACE_SEIZE, p->pid, 0, PTRACE_O_TRACEEXIT));
	ASSERT_EQ(0, kill(p->pid, SIGKILL));
	ASSERT_EQ(p->pid, waitpid(p->pid, &status, 0));
	ASSERT_EQ(SIGTRAP | PTRACE_EVENT_EXIT << 8, status >> 8);
}

/*
 * Arguments and errors, with and without the flag.
 */
TEST(detection)
{
	int ret = mrelease(-1, PROCESS_MRELEASE_REAP_KILL);

	if (ret == EINVAL)
		SKIP(return, NO_FLAG);
	EXPECT_EQ(EBADF, ret);
}

FIXTURE(error) {
	int pidfd;
	pid_t pid;
};

FIXTURE_VARIANT(error) {
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(error, no_flag) { };

FIXTURE_VARIANT_ADD(error, reap_kill) {
	.flags = PROCESS_MRELEASE_REAP_KILL,
};

FIXTURE_SETUP(error)
{
	if (variant->flags && !has_reap_kill())
		SKIP(return, NO_FLAG);
	self->pid = fork();
	if (!self->pid) {
		pause();
		_exit(1);
	}
	self->pidfd = pidfd_open(self->pid);
	ASSERT_GE(self->pidfd, 0);
}

FIXTURE_TEARDOWN(error)
{
	kill(self->pid, SIGKILL);
	waitpid(self->pid, NULL, 0);
	close(self->pidfd);
}

TEST_F_TIMEOUT(error, unknown_flags, TIMEOUT)
{
	for (unsigned int bit = 1; bit < 32; bit++) {
		EXPECT_EQ(EINVAL, mrelease(-1, variant->flags | 1U << bit));
		EXPECT_EQ(EINVAL, mrelease(self->pidfd, variant->flags | 1U << bit));
	}
	EXPECT_EQ(EINVAL, mrelease(self->pidfd, -1));
	usleep(100000);
	EXPECT_EQ(0, waitpid(self->pid, NULL, WNOHANG));
}

TEST_F_TIMEOUT(error, no_pidfd, TIMEOUT)
{
	int fd = open("/dev/null", O_RDONLY);

	EXPECT_EQ(EBADF, mrelease(-1, variant->flags));
	EXPECT_EQ(EBADF, mrelease(fd, variant->flags));
	close(fd);
	EXPECT_EQ(EBADF, mrelease(fd, variant->flags));
}

TEST_F_TIMEOUT(error, gone, TIMEOUT)
{
	siginfo_t info;

	ASSERT_EQ(0, kill(self->pid, SIGKILL));
	ASSERT_EQ(0, waitid(P_PID, self->pid, &info, WEXITED | WNOWAIT));
	EXPECT_EQ(ESRCH, mrelease(self->pidfd, variant->flags)) {
		TH_LOG("a zombie");
	}
	ASSERT_EQ(self->pid, waitpid(self->pid, NULL, 0));
	EXPECT_EQ(ESRCH, mrelease(self->pidfd, variant->flags)) {
		TH_LOG("waited for");
	}
}

TEST_F_TIMEOUT(error, kernel_thread, TIMEOUT)
{
	char name[16];
	int pidfd;

	if (!read_file("/proc/2/comm", name, sizeof(name)) || strcmp(name, "kthreadd\n"))
		SKIP(return, "process 2 is not kthreadd");
	pidfd = pidfd_open(2);
	ASSERT_GE(pidfd, 0);
	EXPECT_EQ(ESRCH, mrelease(pidfd, variant->flags));
	close(pidfd);
}

/*
 * A victim that is not dying, is dying, or has left the mm: the results and the
 * work of both calls. Those of flags == 0 are the same on a kernel without the flag.
 */
FIXTURE(result) {
	struct env env;
	struct victim victim;
};

FIXTURE_VARIANT(result) {
	unsigned int flags;
	int sharer;
};

FIXTURE_VARIANT_ADD(result, no_flag) { };

FIXTURE_VARIANT_ADD(result, no_flag_sharer) {
	.sharer = CLONE_VM,
};

FIXTURE_VARIANT_ADD(result, reap_kill) {
	.flags = PROCESS_MRELEASE_REAP_KILL,
};

FIXTURE_VARIANT_ADD(result, reap_kill_sharer) {
	.flags = PROCESS_MRELEASE_REAP_KILL,
	.sharer = CLONE_VM,
};

FIXTURE_SETUP(result)
{
	const struct spec spec = { .anon = PAGES, .file = PAGES, .sharer = variant->sharer };

	if (set_up(_metadata, &self->env, variant->flags, PAGES)) {
		spawn(_metadata, &self->env, &spec, &self->victim);
		check_used(_metadata, &self->env, &spec);
	}
}

FIXTURE_TEARDOWN(result)
{
	tear_down(&self->env);
}

/* A call with REAP_KILL has freed all, one without it anonymous memory only. */
static void check_reaped(struct __test_metadata *_metadata, const struct env *env,
			 unsigned int flags)
{
	struct usage usage = measure(env);

	EXPECT_EQ(flags ? 0 : PAGES, usage.cache);
	EXPECT_LE(usage.charge, slack() + usage.cache * psize());
}

TEST_F_TIMEOUT(result, not_dying, TIMEOUT)
{
	struct victim *v = &self->victim;

	EXPECT_EQ(variant->flags ? 0 : EINVAL, mrelease(v->proc.pidfd, variant->flags));
	if (!variant->flags) {
		EXPECT_GE(measure(&self->env).charge, 2 * PAGES * psize());
		EXPECT_TRUE(intact(&v->proc));
		return;
	}
	check_reaped(_metadata, &self->env, variant->flags);
	EXPECT_EQ(SIGKILL, bury(&v->proc));
	if (variant->sharer)
		EXPECT_EQ(SIGKILL, bury(&v->sharer));
}

TEST_F_TIMEOUT(result, dying, TIMEOUT)
{
	/* Only the call with the flag kills the sharer. */
	const bool survives = variant->sharer && !variant->flags;
	struct victim *v = &self->victim;
	int again;

	stop_in_exit(_metadata, &v->proc);
	EXPECT_EQ(EINVAL, mrelease(v->proc.pidfd, variant->flags | 2));
	EXPECT_EQ(survives ? EINVAL : 0, mrelease(v->proc.pidfd, variant->flags));
	if (survives) {
		EXPECT_GE(measure(&self->env).charge, 2 * PAGES * psize());
		EXPECT_TRUE(intact(&v->sharer));
	} else {
		check_reaped(_metadata, &self->env, variant->flags);
		EXPECT_EQ(0, mrelease(v->proc.pidfd, variant->flags));
		EXPECT_EQ(0, mrelease(v->proc.pidfd, 0));
		check_reaped(_metadata, &self->env, variant->flags);
	}
	EXPECT_EQ(0, ptrace(PTRACE_CONT, v->proc.pid, 0, 0));
	become_zombie(_metadata, &v->proc);
	EXPECT_EQ(ESRCH, mrelease(v->proc.pidfd, 0));
	/* The victim of an earlier call may still be found, with nothing to free. */
	again = mrelease(v->proc.pidfd, PROCESS_MRELEASE_REAP_KILL);
	EXPECT_TRUE(again == (has_reap_kill() ? ESRCH : EINVAL) || (variant->flags && !again)) {
		TH_LOG("errno %d", again);
	}
	if (survives)
		EXPECT_TRUE(intact(&v->sharer));
	EXPECT_EQ(SIGKILL, bury(&v->proc));
}

/* The threads may have left the mm or not. */
TEST_F_TIMEOUT(result, signalled, TIMEOUT)
{
	const bool survives = variant->sharer && !variant->flags;
	struct proc *p = &self->victim.proc;
	int ret;

	ASSERT_EQ(0, kill(p->pid, SIGKILL));
	ret = mrelease(p->pidfd, variant->flags);
	EXPECT_TRUE(ret == ESRCH || ret == (survives ? EINVAL : 0)) TH_LOG("errno %d", ret);
	if (!ret || !variant->flags)
		EXPECT_EQ(variant->flags ? 0 : PAGES, measure(&self->env).cache);
	EXPECT_EQ(SIGKILL, bury(p));
}

/*
 * With the flag, all of the victim's memory is free when the call returns.
 */
FIXTURE(kill) {
	struct env env;
};

FIXTURE_VARIANT(kill) {
	struct spec spec;
	bool cached;		/* the file was written, and is not read from disk */
	bool large;		/* needs large folios */
	bool stopped;
};

FIXTURE_VARIANT_ADD(kill, anon) {
	.spec = { .anon = PAGES },
};

FIXTURE_VARIANT_ADD(kill, anon_huge) {
	.spec = { .anon = PAGES, .anon_advice = MADV_HUGEPAGE },
};

FIXTURE_VARIANT_ADD(kill, anon_locked) {
	.spec = { .anon = PAGES, .lock = true },
};

FIXTURE_VARIANT_ADD(kill, anon_swapped) {
	.spec = { .anon = PAGES, .anon_advice = MADV_PAGEOUT },
};

FIXTURE_VARIANT_ADD(kill, private_file) {
	.spec = { .file = PAGES, .flags = MAP_PRIVATE },
};

FIXTURE_VARIANT_ADD(kill, private_writable_file) {
	.spec = { .file = PAGES, .flags = MAP_PRIVATE, .prot = PROT_READ | PROT_WRITE },
};

FIXTURE_VARIANT_ADD(kill, shared_file) {
	.spec = { .file = PAGES },
};

FIXTURE_VARIANT_ADD(kill, shared_read_only_file) {
	.spec = { .file = PAGES, .read_only = true },
};

FIXTURE_VARIANT_ADD(kill, shared_writable_file) {
	.spec = { .file = PAGES, .prot = PROT_READ | PROT_WRITE },
};

FIXTURE_VARIANT_ADD(kill, small_folios) {
	.spec = { .file = PAGES, .advice = MADV_RANDOM },
};

FIXTURE_VARIANT_ADD(kill, small_folios_some) {
	.spec = { .file = PAGES, .advice = MADV_RANDOM, .step = 16 },
};

FIXTURE_VARIANT_ADD(kill, large_folios) {
	.spec = { .file = PAGES, .advice = MADV_HUGEPAGE },
	.large = true,
};

/* Of each folio one page and the pages that fault-around maps. */
FIXTURE_VARIANT_ADD(kill, large_folios_some) {
	.spec = { .file = PAGES, .advice = MADV_HUGEPAGE, .step = 64 },
	.large = true,
};

FIXTURE_VARIANT_ADD(kill, small_folios_twice) {
	.spec = { .file = PAGES, .advice = MADV_RANDOM, .twice = true },
};

FIXTURE_VARIANT_ADD(kill, large_folios_twice) {
	.spec = { .file = PAGES, .advice = MADV_HUGEPAGE, .twice = true },
	.large = true,
};

FIXTURE_VARIANT_ADD(kill, locked_file) {
	.spec = { .file = PAGES, .lock = true },
};

FIXTURE_VARIANT_ADD(kill, locked_small_folios_twice) {
	.spec = { .file = PAGES, .advice = MADV_RANDOM, .twice = true, .lock = true },
};

FIXTURE_VARIANT_ADD(kill, cached_file) {
	.spec = { .file = PAGES },
	.cached = true,
};

FIXTURE_VARIANT_ADD(kill, threads) {
	.spec = { .anon = PAGES, .file = PAGES, .threads = 8 },
};

FIXTURE_VARIANT_ADD(kill, faulting_threads) {
	.spec = { .anon = PAGES, .file = PAGES, .threads = 2, .faulting = true },
};

FIXTURE_VARIANT_ADD(kill, stopped) {
	.spec = { .anon = PAGES, .file = PAGES },
	.stopped = true,
};

FIXTURE_SETUP(kill)
{
	if (!set_up(_metadata, &self->env, true, variant->spec.file))
		return;
	if (variant->cached) {
		ASSERT_TRUE(write_pages(self->env.fd, PAGES, 0));
		ASSERT_EQ(0, fsync(self->env.fd));
	}
}

FIXTURE_TEARDOWN(kill)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(kill, all_is_free, TIMEOUT)
{
	struct usage usage;
	struct victim v;

	spawn(_metadata, &self->env, &variant->spec, &v);
	if (variant->large && !v.large)
		SKIP(return, "no large folios on this file system");
	if (variant->spec.anon_advice == MADV_PAGEOUT && !measure(&self->env).swap)
		SKIP(return, "no swap");
	if (!variant->spec.faulting)
		check_used(_metadata, &self->env, &variant->spec);
	if (variant->stopped) {
		siginfo_t info;

		ASSERT_EQ(0, kill(v.proc.pid, SIGSTOP));
		ASSERT_EQ(0, waitid(P_PID, v.proc.pid, &info, WSTOPPED));
	}

	ASSERT_EQ(0, mrelease(v.proc.pidfd, PROCESS_MRELEASE_REAP_KILL));
	usage = measure(&self->env);
	/* What madvise() of a thread has unmapped is freed, or left cached, by that thread. */
	EXPECT_LE(usage.charge, slack() + usage.cache * psize() +
				(variant->spec.faulting ? PAGES * psize() : 0));
	EXPECT_LE(usage.cache, variant->spec.faulting ? PAGES : 0);
	EXPECT_EQ(0, usage.swap);
	EXPECT_EQ(SIGKILL, bury(&v.proc));
	EXPECT_EQ(-1, wrong_page(self->env.fd, self->env.pages, 0));
	forget(&v);
}

/*
 * Dirty folios stay cached, clean ones are evicted.
 */
FIXTURE(dirty) {
	struct env env;
};

FIXTURE_VARIANT(dirty) {
	struct spec spec;
	unsigned int changed;	/* every nth page of the file */
	long stay;		/* pages that stay cached, -1: any number */
	bool writeback;
};

FIXTURE_VARIANT_ADD(dirty, mapped) {
	.spec = { .file = PAGES, .prot = PROT_READ | PROT_WRITE, .dirty = 1 },
	.changed = 1,
	.stay = PAGES,
};

FIXTURE_VARIANT_ADD(dirty, mapped_some) {
	.spec = {
		.file = PAGES, .prot = PROT_READ | PROT_WRITE, .dirty = 16,
		.advice = MADV_RANDOM,
	},
	.changed = 16,
	.stay = PAGES / 16,
};

FIXTURE_VARIANT_ADD(dirty, large_folios_some) {
	.spec = {
		.file = PAGES, .prot = PROT_READ | PROT_WRITE, .dirty = 64,
		.advice = MADV_HUGEPAGE,
	},
	.changed = 64,
	.stay = -1,
};

FIXTURE_VARIANT_ADD(dirty, written) {
	.spec = { .file = PAGES, .dirty = 1, .by_write = true },
	.changed = 1,
	.stay = PAGES,
};

FIXTURE_VARIANT_ADD(dirty, written_some) {
	.spec = { .file = PAGES, .dirty = 16, .by_write = true, .advice = MADV_RANDOM },
	.changed = 16,
	.stay = PAGES / 16,
};

/* Any number of pages are under writeback when the call begins. */
FIXTURE_VARIANT_ADD(dirty, writeback) {
	.spec = { .file = PAGES, .prot = PROT_READ | PROT_WRITE, .dirty = 1 },
	.changed = 1,
	.stay = -1,
	.writeback = true,
};

/* The private copies are freed. The file's own pages under them are not mapped. */
FIXTURE_VARIANT_ADD(dirty, copied) {
	.spec = {
		.file = PAGES, .flags = MAP_PRIVATE, .prot = PROT_READ | PROT_WRITE,
		.dirty = 2,
	},
	.stay = -1,
};

FIXTURE_SETUP(dirty)
{
	set_up(_metadata, &self->env, true, PAGES);
}

FIXTURE_TEARDOWN(dirty)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(dirty, no_byte_is_lost, TIMEOUT)
{
	int fd = self->env.fd;
	struct usage usage;
	struct victim v;

	spawn(_metadata, &self->env, &variant->spec, &v);
	if (variant->stay > 0)
		ASSERT_EQ(variant->stay, cache_of(fd).nr_dirty);
	if (variant->writeback)
		ASSERT_EQ(0, sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE));

	ASSERT_EQ(0, mrelease(v.proc.pidfd, PROCESS_MRELEASE_REAP_KILL));
	usage = measure(&self->env);
	if (variant->stay >= 0)
		EXPECT_EQ(variant->stay, usage.cache);
	/* The file system may attach data to each dirty page. */
	EXPECT_LE(usage.charge, slack() + usage.cache * (psize() + 256));

	/* A dirty page that was evicted would be read from disk with old contents. */
	ASSERT_TRUE(put(AT_FDCWD, "/proc/sys/vm/drop_caches", "3"));
	EXPECT_EQ(-1, wrong_page(fd, PAGES, variant->changed));
	EXPECT_EQ(SIGKILL, bury(&v.proc));
	make_cold(_metadata, fd);
	EXPECT_EQ(-1, wrong_page(fd, PAGES, variant->changed));
	forget(&v);
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

static int make_memfd(void)
{
	return memfd_create("mrelease", MFD_CLOEXEC);
}

static int make_hugetlb(void)
{
	int fd = memfd_create("mrelease", MFD_CLOEXEC | MFD_HUGETLB);
	size_t len = default_huge_page_size();

	/* Fails without huge pages. */
	if (fd >= 0 && fallocate(fd, 0, 0, len)) {
		close(fd);
		return -1;
	}
	return fd;
}

static int make_secret(void)
{
	return syscall(__NR_memfd_secret, O_CLOEXEC);
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
	EXPECT_EQ(SIGKILL, bury(&v.proc));

	p = mmap(NULL, len, PROT_READ, MAP_SHARED, self->env.fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	for (long i = 0; i < spec.file; i++)
		ASSERT_TRUE(filled(p + i * psize(), i, 1));
	forget(&v);
}

/*
 * Single victims.
 */
FIXTURE(reap_kill) {
	struct env env;
};

FIXTURE_SETUP(reap_kill)
{
	set_up(_metadata, &self->env, true, PAGES);
}

FIXTURE_TEARDOWN(reap_kill)
{
	tear_down(&self->env);
}

/* Exactly the pages that another process maps stay cached. */
TEST_F_TIMEOUT(reap_kill, file_mapped_by_others, TIMEOUT)
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
	check_used(_metadata, &self->env, &spec);

	ASSERT_EQ(0, mrelease(v.proc.pidfd, PROCESS_MRELEASE_REAP_KILL));
	EXPECT_EQ(PAGES / 2, measure(&self->env).cache);
	ASSERT_EQ(0, mincore(p, half, resident));
	for (long i = 0; i < PAGES / 2; i++) {
		ASSERT_EQ(1, resident[i] & 1);
		ASSERT_TRUE(filled(p + i * psize(), i, 0));
	}
	EXPECT_EQ(SIGKILL, bury(&v.proc));
	EXPECT_EQ(-1, wrong_page(self->env.fd, PAGES, 0));
	forget(&v);
}

/* Another process writes the file and reads it back all the time. */
TEST_F_TIMEOUT(reap_kill, file_written_by_others, TIMEOUT)
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
				fill(buf, i, n);
				if (pwrite(self->env.fd, buf, psize(), i * psize()) != psize())
					_exit(2);
			}
			if (n % 2)
				sync_file_range(self->env.fd, 0, 0,
						SYNC_FILE_RANGE_WRITE |
						SYNC_FILE_RANGE_WAIT_AFTER);
			for (long i = 0; i < spec.file; i++) {
				if (pread(self->env.fd, buf, psize(), i * psize()) != psize() ||
				    !filled(buf, i, n))
					_exit(1);
			}
		}
		_exit(0);
	}
	for (int i = 0; i < 100; i++) {
		spawn(_metadata, &self->env, &spec, &v);
		ASSERT_EQ(0, mrelease(v.proc.pidfd, PROCESS_MRELEASE_REAP_KILL));
		ASSERT_EQ(SIGKILL, bury(&v.proc));
		forget(&v);
	}
	EXPECT_EQ(0, waitpid(pid, &status, WNOHANG)) {
		TH_LOG("wrong contents: %d", WEXITSTATUS(status));
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/* A trace instance of the test's own. */
struct trace {
	char path[64];
	int dir;
	FILE *lines;
};

static bool open_trace(struct trace *trace)
{
	snprintf(trace->path, sizeof(trace->path),
		 "/sys/kernel/tracing/instances/mrelease.%d", getpid());
	if (mkdir(trace->path, 0700))
		return false;
	trace->dir = open(trace->path, O_PATH | O_CLOEXEC);
	return true;
}

/* Return the next line that contains @words, from these words on. */
static char *traced(struct trace *trace, const char *words, char *line, size_t size)
{
	char *p;

	if (!trace->lines)
		trace->lines = fdopen(openat(trace->dir, "trace", O_RDONLY), "r");
	while (trace->lines && fgets(line, size, trace->lines)) {
		p = strstr(line, words);
		if (p)
			return p;
	}
	if (trace->lines)
		rewind(trace->lines);
	return NULL;
}

/* Return the number in "name=number" of such a line, or -1. */
static long field(const char *line, const char *name)
{
	size_t len = strlen(name);

	while ((line = strstr(line, name))) {
		if (line[-1] == ' ' && line[len] == '=')
			return atol(line + len + 1);
		line += len;
	}
	return -1;
}

static void close_trace(struct trace *trace)
{
	if (trace->lines)
		fclose(trace->lines);
	close(trace->dir);
	rmdir(trace->path);
}

/* One signal is sent, with the si_code KILL_MRELEASE. */
TEST_F_TIMEOUT(reap_kill, si_code, TIMEOUT)
{
	const struct spec spec = { .anon = PAGES };
	struct trace trace = { };
	int code = -1, count = 0;
	char line[512], *p;
	struct victim v;

	if (!open_trace(&trace))
		SKIP(return, "no trace instances in tracefs");
	EXPECT_TRUE(put(trace.dir, "events/signal/signal_generate/filter", "sig == 9"));
	EXPECT_TRUE(put(trace.dir, "events/signal/signal_generate/enable", "1"));
	spawn(_metadata, &self->env, &spec, &v);
	EXPECT_EQ(0, mrelease(v.proc.pidfd, PROCESS_MRELEASE_REAP_KILL));
	EXPECT_TRUE(put(trace.dir, "events/signal/signal_generate/enable", "0"));

	while ((p = traced(&trace, "signal_generate: sig=9 ", line, sizeof(line)))) {
		if (field(p, "pid") == v.proc.pid) {
			code = field(p, "code");
			count++;
		}
	}
	close_trace(&trace);
	EXPECT_EQ(KILL_MRELEASE, code);
	EXPECT_EQ(1, count);
	EXPECT_EQ(SIGKILL, bury(&v.proc));
	forget(&v);
}

/* Trace events and counters report kills, freed memory, and refused folios. */
TEST_F_TIMEOUT(reap_kill, is_traced, TIMEOUT)
{
	const struct spec spec = {
		.anon = PAGES, .file = PAGES, .advice = MADV_RANDOM,
		.prot = PROT_READ | PROT_WRITE, .dirty = 8, .sharer = CLONE_VM,
	};
	long kills = counter("mrelease_kill"), evictions = counter("mrelease_evict");
	long evicted = 0, refused = 0, cache;
	struct trace trace = { };
	char line[512], *p;
	struct victim v;

	if (!open_trace(&trace))
		SKIP(return, "no trace instances in tracefs");
	ASSERT_GE(kills, 0);
	ASSERT_GE(evictions, 0);
	spawn(_metadata, &self->env, &spec, &v);
	cache = cached(self->env.fd);
	EXPECT_TRUE(put(trace.dir, "events/mrelease/enable", "1"));
	EXPECT_EQ(0, mrelease(v.proc.pidfd, PROCESS_MRELEASE_REAP_KILL));
	EXPECT_TRUE(put(trace.dir, "events/mrelease/enable", "0"));
	cache -= cached(self->env.fd);
	EXPECT_EQ(kills + 2, counter("mrelease_kill"));
	EXPECT_LE(evictions + cache, counter("mrelease_evict"));

	p = traced(&trace, "mrelease_start: ", line, sizeof(line));
	ASSERT_NE(NULL, p);
	EXPECT_EQ(v.proc.pid, field(p, "pid"));
	EXPECT_LE(PAGES, field(p, "anon"));
	EXPECT_LE(PAGES, field(p, "file"));
	rewind(trace.lines);

	/* The victim's program is evicted as well. */
	while ((p = traced(&trace, "mrelease_evict: ", line, sizeof(line)))) {
		evicted += field(p, "evicted");
		refused += field(p, "refused");
	}
	EXPECT_LE(cache, evicted);
	EXPECT_LE(PAGES / 8, refused);

	p = traced(&trace, "mrelease_end: ", line, sizeof(line));
	ASSERT_NE(NULL, p);
	EXPECT_EQ(v.proc.pid, field(p, "pid"));
	EXPECT_EQ(0, field(p, "anon"));
	EXPECT_EQ(0, field(p, "file"));
	EXPECT_EQ(0, field(p, "swap"));
	EXPECT_EQ(0, field(p, "ret"));

	close_trace(&trace);
	EXPECT_EQ(SIGKILL, bury(&v.proc));
	EXPECT_EQ(SIGKILL, bury(&v.sharer));
	forget(&v);
}

/* Open a socket for audit requests, or for audit records with @groups; or -1. */
static int open_audit(unsigned int groups)
{
	const struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = groups };
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_AUDIT);

	if (fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof(address))) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/* Return 0 or the value of errno. */
static int request(int audit, int type, const void *data, size_t len)
{
	struct {
		struct nlmsghdr head;
		char data[2048];
	} msg = { .head = {
		.nlmsg_len = NLMSG_LENGTH(len), .nlmsg_type = type,
		.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK,
	} };
	const struct nlmsgerr *answer = NLMSG_DATA(&msg.head);

	memcpy(NLMSG_DATA(&msg.head), data, len);
	if (send(audit, &msg, msg.head.nlmsg_len, 0) < 0)
		return errno;
	if (recv(audit, &msg, sizeof(msg), 0) < 0)
		return errno;
	return msg.head.nlmsg_type == NLMSG_ERROR ? -answer->error : EPROTO;
}

/* Return true if auditing is enabled already. */
static bool is_in_use(int audit)
{
	struct {
		struct nlmsghdr head;
		struct audit_status status;
	} msg = { .head = {
		.nlmsg_len = NLMSG_LENGTH(0), .nlmsg_type = AUDIT_GET,
		.nlmsg_flags = NLM_F_REQUEST,
	} };

	return send(audit, &msg, msg.head.nlmsg_len, 0) < 0 ||
	       recv(audit, &msg, sizeof(msg), 0) < 0 ||
	       msg.head.nlmsg_type != AUDIT_GET || msg.status.enabled;
}

/* With an audit rule for the call, all targets of the signal are recorded. */
TEST_F_TIMEOUT(reap_kill, is_audited, TIMEOUT)
{
	const struct spec spec = { .anon = PAGES, .sharer = CLONE_VM };
	const int nr = __NR_process_mrelease;
	struct audit_status status = { .mask = AUDIT_STATUS_ENABLED, .enabled = 1 };
	struct audit_rule_data rule = {
		.flags = AUDIT_FILTER_EXIT, .action = AUDIT_ALWAYS,
		.mask[AUDIT_WORD(nr)] = AUDIT_BIT(nr),
	};
	struct pollfd log = { open_audit(1 << (AUDIT_NLGRP_READLOG - 1)), POLLIN };
	int audit = open_audit(0), ret, seen = 0;
	char record[2048], *opid;
	struct victim v;
	pid_t pid;

	if (log.fd < 0 || audit < 0)
		SKIP(return, "needs CONFIG_AUDIT");
	if (is_in_use(audit))
		SKIP(return, "auditing is in use");
	ASSERT_EQ(0, request(audit, AUDIT_SET, &status, sizeof(status)));
	ASSERT_EQ(0, request(audit, AUDIT_ADD_RULE, &rule, sizeof(rule)));
	spawn(_metadata, &self->env, &spec, &v);
	/* Tasks from before auditing was enabled have no audit context. */
	pid = fork();
	if (!pid)
		_exit(mrelease(v.proc.pidfd, PROCESS_MRELEASE_REAP_KILL));
	ASSERT_EQ(pid, waitpid(pid, &ret, 0));
	EXPECT_EQ(0, ret);
	while (seen != 3 && poll(&log, 1, 5000) == 1) {
		ssize_t len = recv(log.fd, record, sizeof(record) - 1, 0);

		ASSERT_GT(len, NLMSG_HDRLEN);
		record[len] = 0;
		opid = strstr(record + NLMSG_HDRLEN, "opid=");
		if (((struct nlmsghdr *)record)->nlmsg_type != AUDIT_OBJ_PID || !opid)
			continue;
		seen |= atoi(opid + 5) == v.proc.pid;
		seen |= (atoi(opid + 5) == v.sharer.pid) << 1;
	}
	EXPECT_EQ(3, seen);
	status.enabled = 0;
	EXPECT_EQ(0, request(audit, AUDIT_DEL_RULE, &rule, sizeof(rule)));
	EXPECT_EQ(0, request(audit, AUDIT_SET, &status, sizeof(status)));
	close(audit);
	close(log.fd);
	EXPECT_EQ(SIGKILL, bury(&v.proc));
	EXPECT_EQ(SIGKILL, bury(&v.sharer));
	forget(&v);
}

/*
 * The victim maps all of a file and touches one half of it. The other half has
 * been read by the test and stays cached, whatever else is freed meanwhile.
 */
FIXTURE(untouched) {
	struct env env;
};

FIXTURE_VARIANT(untouched) {
	bool mprotect;		/* a thread of the victim calls it all the time */
	int callers;
};

FIXTURE_VARIANT_ADD(untouched, one_caller) {
	.callers = 1,
};

FIXTURE_VARIANT_ADD(untouched, two_callers) {
	.callers = 2,
};

FIXTURE_VARIANT_ADD(untouched, mprotect) {
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
	bool mprotect;
};

static bool touch_half(const void *arg)
{
	const struct toucher *t = arg;
	char *file = map(PAGES, PROT_READ, MAP_SHARED, t->fd, MADV_RANDOM);
	char *anon = map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_t thread;

	force_read_pages(file, PAGES / 2, psize());
	memset(anon, 1, PAGES * psize());
	return !t->mprotect || !pthread_create(&thread, NULL, mprotect_loop, anon);
}

TEST_F_TIMEOUT(untouched, stays_cached, TIMEOUT)
{
	const struct toucher toucher = { self->env.fd, variant->mprotect };
	const size_t half = PAGES / 2 * psize();
	char *buf = map(PAGES / 2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pid_t pid, callers[2];
	int pidfd, go[2];
	char c;

	ASSERT_EQ(0, posix_fadvise(self->env.fd, 0, 0, POSIX_FADV_RANDOM));
	for (int i = 0; i < 20; i++) {
		make_cold(_metadata, self->env.fd);
		ASSERT_EQ(half, pread(self->env.fd, buf, half, half));
		pid = start_child(&self->env, touch_half, &toucher, &pidfd);
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
		ASSERT_EQ(PAGES / 2, cache_in(self->env.fd, half, half).nr_cache) {
			TH_LOG("in round %d", i);
		}
		ASSERT_EQ(PAGES / 2, cached(self->env.fd));
		ASSERT_EQ(SIGKILL, died_of(pid));
		close(pidfd);
		close(go[0]);
		close(go[1]);
	}
}

/*
 * Another process holds mm_users, so that no exit tears the mm down.
 */
FIXTURE(pinned) {
	struct env env;
	struct victim victim;
	pid_t pid;
};

FIXTURE_SETUP(pinned)
{
	const struct spec spec = { .anon = PAGES, .file = PAGES };
	pid_t pid;

	if (!set_up(_metadata, &self->env, false, PAGES))
		return;
	spawn(_metadata, &self->env, &spec, &self->victim);
	/* The address of my is the same in the victim. */
	pid = pin_memory(self->victim.proc.pid, &my);
	if (pid < 0) {
		tear_down(&self->env);
		SKIP(return, NO_PIN);
	}
	self->pid = pid;
	check_used(_metadata, &self->env, &spec);
}

FIXTURE_TEARDOWN(pinned)
{
	if (self->pid)
		kill(self->pid, SIGKILL);
	tear_down(&self->env);
}

TEST_F_TIMEOUT(pinned, all_is_free, TIMEOUT)
{
	struct proc *p = &self->victim.proc;
	siginfo_t info;
	int again;

	if (!has_reap_kill())
		SKIP(return, NO_FLAG);
	ASSERT_EQ(0, mrelease(p->pidfd, PROCESS_MRELEASE_REAP_KILL));
	check_reaped(_metadata, &self->env, PROCESS_MRELEASE_REAP_KILL);
	ASSERT_EQ(0, waitid(P_PID, p->pid, &info, WEXITED | WNOWAIT));
	EXPECT_EQ(ESRCH, mrelease(p->pidfd, 0));
	again = mrelease(p->pidfd, PROCESS_MRELEASE_REAP_KILL);
	EXPECT_TRUE(!again || again == ESRCH) TH_LOG("errno %d", again);
	EXPECT_EQ(SIGKILL, bury(p));
}

/* The threads have left the mm without a call. */
TEST_F_TIMEOUT(pinned, zombie, TIMEOUT)
{
	struct proc *p = &self->victim.proc;

	become_zombie(_metadata, p);
	EXPECT_EQ(ESRCH, mrelease(p->pidfd, 0));
	if (has_reap_kill())
		EXPECT_EQ(ESRCH, mrelease(p->pidfd, PROCESS_MRELEASE_REAP_KILL));
	EXPECT_EQ(PAGES, measure(&self->env).cache);
	EXPECT_GE(measure(&self->env).charge, 2 * PAGES * psize());
	EXPECT_EQ(SIGKILL, bury(p));
}

/*
 * A victim with 64 MiB of page tables: one page of every 2 MiB is touched.
 */
#define TABLES		16384L
#define TABLE_SPAN	(psize() * psize() / 8)	/* that one page table maps */

FIXTURE(page_tables) {
	struct env env;
	pid_t pid;
};

FIXTURE_VARIANT(page_tables) {
	bool file;
};

FIXTURE_VARIANT_ADD(page_tables, anon) { };
FIXTURE_VARIANT_ADD(page_tables, file) { .file = true };

FIXTURE_SETUP(page_tables)
{
	set_up(_metadata, &self->env, true, variant->file);
}

FIXTURE_TEARDOWN(page_tables)
{
	if (self->pid)
		kill(self->pid, SIGKILL);
	tear_down(&self->env);
}

/* Map memory, or else a file, and touch its part of @nr page tables. */
static char *touch_tables(long nr, int fd)
{
	const long pages = nr * (TABLE_SPAN / psize());
	char *p = fd < 0 ? map(pages, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, MADV_NOHUGEPAGE) :
			   map(pages, PROT_READ, MAP_SHARED, fd, MADV_RANDOM);

	for (long i = 0; i < nr; i++) {
		if (fd < 0)
			p[i * TABLE_SPAN] = 1;
		else
			FORCE_READ(p[i * TABLE_SPAN]);
	}
	return p;
}

static bool have_tables(const void *fd)
{
	return touch_tables(TABLES, *(const int *)fd);
}

/* Kilobytes of page tables of this process. */
static long own_tables(void)
{
	FILE *status = fopen("/proc/self/status", "r");
	char line[128];
	long kb = 0;

	while (status && fgets(line, sizeof(line), status))
		sscanf(line, "VmPTE: %ld", &kb);
	if (status)
		fclose(status);
	return kb;
}

TEST_F_TIMEOUT(page_tables, are_free, TIMEOUT)
{
	const int fd = variant->file ? self->env.fd : -1;
	char *p = touch_tables(16, -1);
	long before = own_tables(), start, took;
	pid_t pid;
	int pidfd;

	/* madvise() and the call free page tables in the same way. */
	madvise(p, 16 * TABLE_SPAN, MADV_DONTNEED);
	if (own_tables() >= before)
		SKIP(return, "only munmap() frees page tables here");
	if (variant->file)
		ASSERT_EQ(0, ftruncate(fd, TABLES * TABLE_SPAN));
	pid = start_child(&self->env, have_tables, &fd, &pidfd);
	ASSERT_GT(pid, 0);
	ASSERT_LE(2 * TABLES * psize(), measure(&self->env).charge);
	self->pid = pin_memory(pid, &my);
	if (self->pid < 0)
		SKIP(return, NO_PIN);

	/* The OOM reaper joins in after two seconds, and can be starved itself. */
	do {
		took = mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL);
	} while (took == EAGAIN);
	ASSERT_EQ(0, took);
	start = microseconds();
	/* They are freed after an RCU grace period, which a busy CPU delays. */
	do {
		usleep(1000);
		took = microseconds() - start;
	} while (measure(&self->env).charge > slack() && took < 5000000);
	TH_LOG("free after %ld us, %ld KiB left", took, measure(&self->env).charge / 1024);
	EXPECT_LE(measure(&self->env).charge, slack());
	EXPECT_EQ(SIGKILL, died_of(pid));
	close(pidfd);
}

/*
 * Many kills, each of them concurrent with the victim's exit.
 */
FIXTURE(many) {
	struct env env;
	cpu_set_t cpus;
};

FIXTURE_VARIANT(many) {
	bool apart;		/* caller and victim on different CPUs */
	int threads;
	bool signalled;		/* SIGKILL is sent some time before the call */
	int kills;
};

FIXTURE_VARIANT_ADD(many, one_cpu) {
	.kills = 400,
};

FIXTURE_VARIANT_ADD(many, two_cpus) {
	.kills = 400,
	.apart = true,
};

FIXTURE_VARIANT_ADD(many, one_cpu_threads) {
	.kills = 100,
	.threads = 4,
};

FIXTURE_VARIANT_ADD(many, two_cpus_threads) {
	.kills = 100,
	.threads = 4,
	.apart = true,
};

FIXTURE_VARIANT_ADD(many, one_cpu_signalled) {
	.kills = 200,
	.signalled = true,
};

FIXTURE_VARIANT_ADD(many, two_cpus_signalled) {
	.kills = 200,
	.signalled = true,
	.apart = true,
};

#define MANY_PAGES	128

FIXTURE_SETUP(many)
{
	cpu_set_t one;
	int cpu = 0;

	sched_getaffinity(0, sizeof(self->cpus), &self->cpus);
	while (!CPU_ISSET(cpu, &self->cpus))
		cpu++;
	CPU_CLR(cpu, &self->cpus);
	if (variant->apart && !CPU_COUNT(&self->cpus))
		SKIP(return, "needs two CPUs");
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (!variant->apart)
		self->cpus = one;
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(one), &one));
	set_up(_metadata, &self->env, true, MANY_PAGES);
}

FIXTURE_TEARDOWN(many)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(many, all_is_free, TIMEOUT)
{
	struct spec spec = {
		.anon = 512, .file = MANY_PAGES, .threads = variant->threads, .cpu = 1,
	};
	struct usage usage;
	struct victim v;
	int ret;

	while (!CPU_ISSET(spec.cpu - 1, &self->cpus))
		spec.cpu++;
	for (int i = 0; i < variant->kills; i++) {
		spawn(_metadata, &self->env, &spec, &v);
		if (variant->signalled) {
			ASSERT_EQ(0, kill(v.proc.pid, SIGKILL));
			/* Every point of the exit, and the time after it */
			usleep(i % 50 * 200);
		}
		ret = mrelease(v.proc.pidfd, PROCESS_MRELEASE_REAP_KILL);
		usage = measure(&self->env);
		/* The threads may have left the mm. */
		if (!variant->signalled || ret != ESRCH) {
			ASSERT_EQ(0, ret);
			ASSERT_LE(usage.charge, slack_of(2)) TH_LOG("in round %d", i);
			ASSERT_EQ(0, usage.cache) TH_LOG("in round %d", i);
		}
		ASSERT_EQ(SIGKILL, bury(&v.proc));
		forget(&v);
	}
}

TEST_HARNESS_MAIN
