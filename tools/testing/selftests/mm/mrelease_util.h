/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Common to the tests of process_mrelease(): a cgroup and a file for each test,
 * the memory they account for, and child processes in that cgroup.
 */
#ifndef MRELEASE_UTIL_H
#define MRELEASE_UTIL_H

#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <linux/mman.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <mntent.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>

#include "kselftest_harness.h"
#include "vm_util.h"

#ifndef PROCESS_MRELEASE_REAP_KILL
#define PROCESS_MRELEASE_REAP_KILL	1
#endif

#define NOBODY	65534

/* The exit status of a process that cannot do its part. */
#define CANNOT	253

/* In seconds, for a kernel with debugging options on an emulated machine */
#define TIMEOUT	600

#define NO_PIN	"needs userfaultfd and process_vm_readv"
#define NO_FLAG	"kernel without PROCESS_MRELEASE_REAP_KILL"
#define NO_DISK	"needs a file on disk, see TMPDIR"

/* Return 0 or the value of errno. */
static inline int mrelease(int pidfd, unsigned int flags)
{
	return syscall(__NR_process_mrelease, pidfd, flags) ? errno : 0;
}

static inline bool has_reap_kill(void)
{
	return mrelease(-1, PROCESS_MRELEASE_REAP_KILL) == EBADF;
}

static inline int pidfd_open(pid_t pid)
{
	return syscall(__NR_pidfd_open, pid, 0);
}

static inline long microseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* Run on the first CPU, or on the last one. */
static inline void run_on(bool last)
{
	cpu_set_t cpus, one;
	int cpu = last ? CPU_SETSIZE - 1 : 0;

	sched_getaffinity(1, sizeof(cpus), &cpus);
	while (!CPU_ISSET(cpu, &cpus))
		cpu += last ? -1 : 1;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	sched_setaffinity(0, sizeof(one), &one);
}

/* The system call, since the C library changes the IDs of all threads. */
static inline void be(uid_t real, uid_t effective, uid_t saved)
{
	if (syscall(SYS_setresuid, real, effective, saved))
		_exit(CANNOT);
}

static inline void be_nobody(void)
{
	be(NOBODY, NOBODY, NOBODY);
}

static inline void be_nobody_with_cap_kill(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct caps[2] = {
		{ .effective = 1 << CAP_KILL, .permitted = 1 << CAP_KILL },
	};

	prctl(PR_SET_KEEPCAPS, 1);
	be_nobody();
	if (syscall(SYS_capset, &header, caps))
		_exit(CANNOT);
}

static inline int reopen(int fd, int flags)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, flags | O_CLOEXEC);
}

/* Fill a page with contents that depend on its number and version, from 0. */
static inline void fill(void *to, long page, unsigned int version)
{
	uint64_t *word = to;

	for (unsigned int i = 0; i < psize() / sizeof(*word); i++)
		word[i] = ((uint64_t)version << 56) + ((uint64_t)page << 16) + i + 1;
}

static inline bool filled(const void *from, long page, unsigned int version)
{
	char want[psize()];

	fill(want, page, version);
	return !memcmp(from, want, psize());
}

/* The cgroup and the file of a test. */
struct env {
	char cgroup[PATH_MAX];
	int cgroup_fd;
	int charge_fd;
	int fd;
	long pages;
};

static inline bool put(int dir, const char *name, const char *text)
{
	int fd = openat(dir, name, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return ok;
}

static inline long get(int dir, const char *name)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	char text[32] = "";

	if (fd >= 0) {
		if (read(fd, text, sizeof(text) - 1) < 0)
			text[0] = 0;
		close(fd);
	}
	return atol(text);
}

static inline bool make_cgroup(struct env *env)
{
	FILE *mounts = setmntent("/proc/self/mounts", "r");
	struct mntent *mnt = NULL;
	int root;

	while (mounts && (mnt = getmntent(mounts)) && strcmp(mnt->mnt_type, "cgroup2"))
		;
	if (!mnt)
		return false;
	root = open(mnt->mnt_dir, O_PATH | O_CLOEXEC);
	put(root, "cgroup.subtree_control", "+memory");
	close(root);
	snprintf(env->cgroup, sizeof(env->cgroup), "%s/mrelease.%d", mnt->mnt_dir,
		 getpid());
	endmntent(mounts);
	if (mkdir(env->cgroup, 0755))
		return false;

	env->cgroup_fd = open(env->cgroup, O_PATH | O_CLOEXEC);
	env->charge_fd = openat(env->cgroup_fd, "memory.current", O_RDONLY | O_CLOEXEC);
	if (env->charge_fd < 0)
		rmdir(env->cgroup);
	return env->charge_fd >= 0;
}

/* The page cache of a part of a file; a @len of 0 extends to its end. */
static inline struct cachestat cache_in(int fd, off_t offset, size_t len)
{
	struct cachestat_range range = { offset, len };
	struct cachestat cs = { .nr_cache = -1 };

	syscall(__NR_cachestat, fd, &range, &cs, 0);
	return cs;
}

static inline struct cachestat cache_of(int fd)
{
	return cache_in(fd, 0, 0);
}

static inline long cached(int fd)
{
	return cache_of(fd).nr_cache;
}

/* Every page has version 0, every @step-th page version 1. */
static inline unsigned int version(long page, unsigned int step)
{
	return step && page % step == 0;
}

static inline bool write_pages(int fd, long pages, unsigned int step)
{
	char buf[psize()];

	for (long i = 0; i < pages; i++) {
		fill(buf, i, version(i, step));
		if (pwrite(fd, buf, psize(), i * psize()) != psize())
			return false;
	}
	return true;
}

/* Return the first page with wrong contents, or -1. */
static inline long wrong_page(int fd, long pages, unsigned int step)
{
	char buf[psize()];

	for (long i = 0; i < pages; i++) {
		if (pread(fd, buf, psize(), i * psize()) != psize() ||
		    !filled(buf, i, version(i, step)))
			return i;
	}
	return -1;
}

/* Write the file back and drop its page cache. */
static inline void make_cold(struct __test_metadata *_metadata, int fd)
{
	ASSERT_EQ(0, fsync(fd));
	ASSERT_EQ(0, posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	ASSERT_EQ(0, cached(fd));
}

/* Open an unnamed file in $TMPDIR or in the current directory; -1 on tmpfs. */
static inline int open_scratch(void)
{
	int fd = open(getenv("TMPDIR") ?: ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	struct statfs fs;

	if (fd >= 0 && !fstatfs(fd, &fs) && fs.f_type != TMPFS_MAGIC &&
	    fs.f_type != RAMFS_MAGIC)
		return fd;
	if (fd >= 0)
		close(fd);
	return -1;
}

/* Return false if the test is skipped. */
static inline bool set_up(struct __test_metadata *_metadata, struct env *env,
			  bool flag, long pages)
{
	if (flag && !has_reap_kill())
		SKIP(return false, NO_FLAG);
	if (geteuid())
		SKIP(return false, "needs root");
	if (pages) {
		env->fd = open_scratch();
		if (env->fd < 0)
			SKIP(return false, NO_DISK);
		env->pages = pages;
		ASSERT_TRUE(write_pages(env->fd, pages, 0));
		make_cold(_metadata, env->fd);
	}
	if (!make_cgroup(env))
		SKIP(return false, "needs the memory controller of cgroup v2");
	return true;
}

/*
 * Kill all processes of the cgroup. Once cgroup.kill has been written to, Linux 6.14
 * and later versions kill what CLONE_INTO_CGROUP starts there. A frozen process does
 * not fork, but dies.
 */
static inline void kill_cgroup(const struct env *env)
{
	int pid, nr, tries = 0;
	FILE *procs;

	put(env->cgroup_fd, "cgroup.freeze", "1");
	do {
		nr = 0;
		procs = fdopen(openat(env->cgroup_fd, "cgroup.procs", O_RDONLY), "r");
		while (procs && fscanf(procs, "%d", &pid) == 1)
			nr += !kill(pid, SIGKILL);
		if (procs)
			fclose(procs);
		if (nr)
			usleep(1000);
	} while (nr && ++tries < 100);
	put(env->cgroup_fd, "cgroup.freeze", "0");
}

static inline void tear_down(struct env *env)
{
	if (!env->cgroup_fd)
		return;
	kill_cgroup(env);
	for (int i = 0; i < 100 && rmdir(env->cgroup) && errno == EBUSY; i++)
		usleep(10000);
}

/* Bytes charged to the cgroup, cached pages of the file, bytes of swap. */
struct usage {
	long charge;
	long cache;
	long swap;
};

static inline struct usage measure(const struct env *env)
{
	struct usage usage = { .charge = -1 };
	char text[32] = "";

	if (pread(env->charge_fd, text, sizeof(text) - 1, 0) > 0)
		usage.charge = atol(text);
	if (env->pages)
		usage.cache = cached(env->fd);
	usage.swap = get(env->cgroup_fd, "memory.swap.current");
	return usage;
}

static inline long counter(const char *name)
{
	FILE *vmstat = fopen("/proc/vmstat", "r");
	long value, found = -1;
	char key[64];

	while (vmstat && fscanf(vmstat, "%63s %ld", key, &value) == 2) {
		if (!strcmp(key, name))
			found = value;
	}
	if (vmstat)
		fclose(vmstat);
	return found;
}

/* Swap the range out. A page stays resident until its writeback ends. */
static inline void page_out(void *p, size_t len)
{
	madvise(p, len, MADV_PAGEOUT);
	for (int i = 0; i < 10000; i++) {
		put(AT_FDCWD, "/proc/sys/vm/stat_refresh", "1");
		if (counter("nr_writeback") <= 0)
			break;
		usleep(1000);
	}
}

/*
 * Bytes that stay charged: a batch of charges on each CPU, and the kernel stack
 * and upper page tables of a dying process.
 */
static inline long slack_of(int cpus)
{
	return 512 * 1024 + 64L * psize() * cpus;
}

static inline long slack(void)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	return slack_of(cpus < 8 ? cpus : 8);
}

/* fork() into the cgroup of the test. */
static inline pid_t fork_into_cgroup(const struct env *env, int *pidfd)
{
	struct clone_args args = {
		.flags = CLONE_PIDFD | CLONE_INTO_CGROUP,
		.pidfd = (uintptr_t)pidfd,
		.exit_signal = SIGCHLD,
		.cgroup = env->cgroup_fd,
	};

	return syscall(__NR_clone3, &args, sizeof(args));
}

/*
 * An LRU batch of a CPU holds up to 31 small folios, each with a reference that
 * keeps it from being evicted. The call drains only those of its own CPU.
 */
static inline long lru_batches(void)
{
	return 31 * (sysconf(_SC_NPROCESSORS_ONLN) - 1);
}

/*
 * Drain the LRU batches of all CPUs. A folio in the batch of another CPU than the
 * caller's holds a reference and is not evicted. mlock() drains the local CPU.
 */
static inline void drain_lru_batches(void)
{
	static char pages[2 << 16];
	char *page = (char *)(((uintptr_t)pages + 0xffff) & ~0xffffUL);
	cpu_set_t all, own, one;

	sched_getaffinity(0, sizeof(own), &own);
	sched_getaffinity(1, sizeof(all), &all);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &all))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		sched_setaffinity(0, sizeof(one), &one);
		mlock(page, psize());
		munlock(page, psize());
	}
	sched_setaffinity(0, sizeof(own), &own);
}

/*
 * Start a child in the cgroup of the test, which calls @become and then sleeps.
 * Return its PID once @become has returned true, or -1.
 */
static inline pid_t start_child(const struct env *env, bool (*become)(const void *),
				const void *arg, int *pidfd)
{
	int ready[2];
	pid_t pid;
	char c;

	if (pipe(ready))
		return -1;
	pid = fork_into_cgroup(env, pidfd);
	if (!pid) {
		close(ready[0]);
		if (!become(arg))
			_exit(1);
		drain_lru_batches();
		if (write(ready[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	if (pid > 0 && read(ready[0], &c, 1) != 1) {
		waitpid(pid, NULL, 0);
		close(*pidfd);
		pid = -1;
	}
	close(ready[0]);
	return pid;
}

/* In a victim: map memory or a file, aligned for huge pages. */
static inline void *map(long pages, int prot, int flags, int fd, int advice)
{
	size_t len = pages * psize(), align = 4 << 20;
	char *p = mmap(NULL, len + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		_exit(1);
	p = (char *)(((uintptr_t)p + align - 1) & -align);
	if (mmap(p, len, prot, flags | MAP_FIXED, fd, 0) == MAP_FAILED ||
	    (advice && advice != MADV_PAGEOUT && madvise(p, len, advice) &&
	     !(advice == MADV_HUGEPAGE && errno == EINVAL)))
		_exit(1);
	return p;
}

/*
 * Undo MADV_HUGEPAGE. khugepaged may hold a reference to a folio while it waits
 * for a read; such a folio cannot be evicted. madvise() waits for khugepaged.
 */
static inline void keep_khugepaged_away(void *addr, size_t len)
{
	madvise(addr, len, MADV_NOHUGEPAGE);
}

/* Return the /proc/kpageflags of the page mapped at @addr. */
static inline uint64_t page_flags(char *addr)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	int kpageflags = open("/proc/kpageflags", O_RDONLY);
	uint64_t flags = 0;

	pageflags_get(pagemap_get_pfn(pagemap, addr), kpageflags, &flags);
	close(pagemap);
	close(kpageflags);
	return flags;
}

#define KPF_REFERENCED	BIT_ULL(2)
#define KPF_ACTIVE	BIT_ULL(6)

/* Count the pages of a file that are marked as accessed; to map them marks none. */
static inline long count_accessed(int fd, long pages)
{
	char *p = mmap(NULL, pages * psize(), PROT_READ, MAP_SHARED, fd, 0);
	long nr = 0;

	for (long i = 0; p != MAP_FAILED && i < pages; i++) {
		FORCE_READ(p[i * psize()]);
		nr += !!(page_flags(p + i * psize()) & (KPF_REFERENCED | KPF_ACTIVE));
	}
	return nr;
}

static inline bool is_large(char *addr)
{
	return page_flags(addr) & (KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL);
}

/* Wait for a child; return the signal that killed it, or -1. */
/* The state of a task as /proc has it. 0 means this process. */
static inline char state_of(pid_t tid)
{
	char path[32] = "/proc/self/stat", text[512] = "", *p;

	if (tid)
		snprintf(path, sizeof(path), "/proc/%d/stat", tid);
	if (!read_file(path, text, sizeof(text)))
		return 0;
	p = strrchr(text, ')');
	return p && p[1] ? p[2] : 0;
}

static inline bool wait_for_state(pid_t tid, char state)
{
	for (int i = 0; i < 20000 && state_of(tid) != state; i++)
		usleep(1000);
	return state_of(tid) == state;
}

static inline bool freeze_cgroup(struct env *env)
{
	char path[PATH_MAX + 16], text[64] = "";

	snprintf(path, sizeof(path), "%s/cgroup.events", env->cgroup);
	if (!put(env->cgroup_fd, "cgroup.freeze", "1"))
		return false;
	for (int i = 0; i < 10000 && !strstr(text, "frozen 1"); i++) {
		usleep(1000);
		if (!read_file(path, text, sizeof(text)))
			return false;
	}
	return strstr(text, "frozen 1");
}

static inline int died_of(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status))
		return -1;
	return WTERMSIG(status);
}

/* A read of the victim's memory that holds mm_users. */
struct pin {
	pid_t victim;
	struct iovec here;
	struct iovec there;
};

static inline void *read_victim(void *arg)
{
	struct pin *pin = arg;

	process_vm_readv(pin->victim, &pin->here, 1, &pin->there, 1, 0);
	_exit(1);
}

/*
 * Start a process that holds mm_users of the victim: it reads the victim's
 * memory into a page whose fault never ends. Return -1 if that is not possible.
 */
static inline pid_t pin_memory(pid_t victim, void *addr)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct pin pin = { victim, { NULL, psize() }, { addr, 1 } };
	struct uffd_msg msg;
	pthread_t thread;
	int ready[2];
	int uffd;
	pid_t pid;
	char c;

	if (pipe(ready))
		return -1;
	pid = fork();
	if (pid) {
		close(ready[1]);
		if (pid > 0 && read(ready[0], &c, 1) != 1) {
			waitpid(pid, NULL, 0);
			pid = -1;
		}
		close(ready[0]);
		return pid;
	}

	uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	pin.here.iov_base = mmap(NULL, psize(), PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ||
	    uffd_register(uffd, pin.here.iov_base, psize(), true, false, false) ||
	    pthread_create(&thread, NULL, read_victim, &pin) ||
	    read(uffd, &msg, sizeof(msg)) != sizeof(msg) ||
	    write(ready[1], "", 1) != 1)
		_exit(1);
	pause();
	_exit(0);
}

#endif
