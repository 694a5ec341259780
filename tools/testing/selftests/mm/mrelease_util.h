/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of process_mrelease() have in common: where they take place,
 * and how they measure what is free.
 */
#ifndef MRELEASE_UTIL_H
#define MRELEASE_UTIL_H

#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <linux/mman.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <mntent.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>

#include "kselftest_harness.h"
#include "vm_util.h"

#ifndef PROCESS_MRELEASE_REAP_KILL
#define PROCESS_MRELEASE_REAP_KILL	1
#endif

#define NOBODY	65534

/* An emulated machine with a kernel for debugging takes its time. */
#define TIMEOUT	600

#define NO_PIN	"needs userfaultfd and process_vm_readv"
#define NO_FLAG	"kernel without PROCESS_MRELEASE_REAP_KILL"
#define NO_DISK	"needs a file on disk, see TMPDIR"

/* 0 or what errno would be. */
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

/* The contents of a page: of a file, or of memory; 0 is the first version. */
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

/* Where a test takes place: a cgroup and a file. */
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

static inline struct cachestat cache_of(int fd)
{
	struct cachestat_range range = { };
	struct cachestat cs = { .nr_cache = -1 };

	syscall(__NR_cachestat, fd, &range, &cs, 0);
	return cs;
}

static inline long cached(int fd)
{
	return cache_of(fd).nr_cache;
}

/* Versions: the first one, but another one for every nth page. */
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

/* The first page that is not as it should be, or -1. */
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

/* All on disk and nothing in the page cache. */
static inline void make_cold(struct __test_metadata *_metadata, int fd)
{
	ASSERT_EQ(0, fsync(fd));
	ASSERT_EQ(0, posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	ASSERT_EQ(0, cached(fd));
}

/* A file without a name where the tests take place, or -1 if that is no disk. */
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

/* False if the test is skipped. */
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

static inline void tear_down(struct env *env)
{
	if (!env->cgroup_fd)
		return;
	put(env->cgroup_fd, "cgroup.kill", "1");
	for (int i = 0; i < 100 && rmdir(env->cgroup) && errno == EBUSY; i++)
		usleep(10000);
}

/* What is charged to the victim, and what is left of its file. */
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

/* A page that is on its way to swap stays until it is there. */
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
 * Charges are made in batches, which each CPU may keep, and a dying process
 * still has its stacks and page tables.
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

/* fork(), but the child is in the cgroup of the test. */
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
 * A child in the cgroup of the test that becomes what it should be, says so, and
 * then waits for its end. Returns its PID, or -1 if it could not.
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
		if (!become(arg) || write(ready[1], "", 1) != 1)
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

/*
 * In a victim: memory or a file, mapped as it should be, and aligned as huge
 * pages need it.
 */
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
 * Keep khugepaged away from what MADV_HUGEPAGE has told it of. It may wait for a
 * folio that is being read, with a reference to it, and still have that when it
 * is looked whether the folio can go. This waits for it.
 */
static inline void keep_khugepaged_away(void *addr, size_t len)
{
	madvise(addr, len, MADV_NOHUGEPAGE);
}

/* What /proc/kpageflags says of the page that is mapped there. */
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

static inline bool is_large(char *addr)
{
	return page_flags(addr) & (KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL);
}

/* The signal that a child died of, or -1. */
static inline int died_of(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status))
		return -1;
	return WTERMSIG(status);
}

/* What somebody reads who keeps a process's memory in use. */
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
 * Starts a process that reads a page of the victim's to where a fault never
 * comes to its end: from then on the memory is in use by it as well. Returns
 * -1 if this cannot be done here.
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
