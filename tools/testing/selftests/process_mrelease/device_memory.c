// SPDX-License-Identifier: GPL-2.0
/*
 * Test process_mrelease(PROCESS_MRELEASE_REAP_KILL) with DAX files, and with memory
 * that a device mirrors or that has been migrated to a device.
 *
 * The tests of DAX need /dev/pmem0, blank and not in use; those of devices need
 * CONFIG_TEST_HMM.
 */
#define _GNU_SOURCE
#include <lib/test_hmm_uapi.h>

#include "pages.h"

/*
 * DAX: the mapped pages are the storage.
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
	ASSERT_TRUE(write_text(AT_FDCWD, "/proc/sys/vm/drop_caches", "3"));
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
#define DMIRROR		"/dev/hmm_dmirror0"
#define DMIRROR_FD	100	/* in the victim */
#define DMIRROR_PAGES	2048L

FIXTURE(device) {
	struct env env;
	char *addr;		/* of the victim's memory */
};

FIXTURE_SETUP(device)
{
	if (access(DMIRROR, R_OK | W_OK))
		SKIP(return, "needs CONFIG_TEST_HMM");
	if (!set_up(_metadata, &self->env, true, 0))
		return;
	self->addr = mmap(NULL, bytes(DMIRROR_PAGES), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	ASSERT_NE(MAP_FAILED, self->addr);
}

FIXTURE_TEARDOWN(device)
{
	tear_down(&self->env);
}

static bool dmirror(int fd, unsigned long request, char *addr, void *data, long pages)
{
	struct hmm_dmirror_cmd cmd = {
		.addr = (uintptr_t)addr, .ptr = (uintptr_t)data, .npages = pages,
	};

	return !ioctl(fd, request, &cmd) && cmd.cpages == (uint64_t)pages;
}

static bool write_mirrored(const void *arg)
{
	char *p = *(char * const *)arg;
	int fd = open(DMIRROR, O_RDWR);

	if (fd < 0 || dup2(fd, DMIRROR_FD) < 0 ||
	    mprotect(p, bytes(DMIRROR_PAGES), PROT_READ | PROT_WRITE))
		return false;
	fill_pages(p, 0, DMIRROR_PAGES, 1);
	close(fd);
	return true;
}

static bool move_to_device(const void *arg)
{
	char *data = map_anon(DMIRROR_PAGES, MAP_PRIVATE);

	return write_mirrored(arg) && data != MAP_FAILED &&
	       dmirror(DMIRROR_FD, HMM_DMIRROR_MIGRATE_TO_DEV, *(char * const *)arg, data,
		       DMIRROR_PAGES / 2) &&
	       dmirror(DMIRROR_FD, HMM_DMIRROR_EXCLUSIVE,
		       *(char * const *)arg + bytes(DMIRROR_PAGES / 2), data,
		       DMIRROR_PAGES / 2);
}

/* An MMU notifier may block, e.g. for the victim's exit: call again after EAGAIN. */
static int mrelease_again(int pidfd)
{
	int ret;

	wait_until((ret = mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL)) != EAGAIN);
	return ret;
}

TEST_F_TIMEOUT(device, private_memory_is_free, TIMEOUT)
{
	int pidfd;
	pid_t pid;

	for (int i = 0; i < 10; i++) {
		pid = start_child(&self->env, move_to_device, &self->addr, &pidfd);
		ASSERT_GT(pid, 0);
		ASSERT_LE(bytes(DMIRROR_PAGES), measure(&self->env).charge);
		ASSERT_EQ(0, mrelease_again(pidfd));
		EXPECT_GE(slack(), measure(&self->env).charge);
		EXPECT_EQ(SIGKILL, wait_termsig(pid));
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
	EXPECT_TRUE(filled_pages(self->addr, 0, DMIRROR_PAGES, 1));
}

/*
 * The device reads, with the lock held that its notifier takes, on the last CPU and
 * only when that is idle. Until the notifier has taken it, the contents must be right.
 */
static void keep_reading(int fd, char *addr, int ready)
{
	char *data = map_anon(DMIRROR_PAGES, MAP_PRIVATE);
	struct sched_param idle = { };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	run_on_last_cpu();
	if (sched_setscheduler(0, SCHED_IDLE, &idle) ||
	    !dmirror(fd, HMM_DMIRROR_READ, addr, data, DMIRROR_PAGES) ||
	    !filled_pages(data, 0, DMIRROR_PAGES, 1) || write(ready, "", 1) != 1)
		_exit(1);
	while (dmirror(fd, HMM_DMIRROR_READ, addr, data, DMIRROR_PAGES)) {
		if (!filled_pages(data, 0, 1, 1))
			_exit(2);
	}
	/* The memory has been freed. */
	pause();
}

/* Loops preempt a SCHED_IDLE task on the last CPU, perhaps while it holds a lock. */
static void start_loops(pid_t *loops, int nr)
{
	while (nr--) {
		loops[nr] = fork();
		if (!loops[nr]) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			run_on_last_cpu();
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

static bool has_exited(int pidfd)
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
		mirror_fd = sys_pidfd_getfd(pidfd, DMIRROR_FD, 0);
		ASSERT_LE(0, mirror_fd);
		/* Hold mm_users, or else the exit may be quicker. */
		pin = pin_mm(pid, self->addr);
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
			ASSERT_TRUE(wait_until(has_exited(pidfd)));
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
		EXPECT_EQ(SIGKILL, wait_termsig(pid));
		close(pidfd);
	}
	/* A kernel without preemption does not interrupt the reader that holds the lock. */
	if (!seen && __test_passed(_metadata))
		SKIP(return, "the notifier never blocked");
}

TEST_HARNESS_MAIN
