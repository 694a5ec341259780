/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Common to the tests of process_mrelease(): a cgroup and a file for each test,
 * the memory they account for, and child processes in that cgroup.
 */
#ifndef SELFTESTS_PROCESS_MRELEASE_UTIL_H
#define SELFTESTS_PROCESS_MRELEASE_UTIL_H

#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/mman.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <mntent.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <time.h>

#include "kselftest_harness.h"
#include "../mm/hugepage_settings.h"
#include "../mm/vm_util.h"
#include "../pidfd/pidfd.h"

#ifndef PROCESS_MRELEASE_REAP_KILL
#define PROCESS_MRELEASE_REAP_KILL	1
#endif

#define NOBODY	65534

/* The exit status of a process that the kernel does not support as needed. */
#define EXIT_UNSUPPORTED	253

/* In seconds, for a kernel with debugging options on an emulated machine */
#define TIMEOUT	600

#define NO_VMA_LOCKS	"no VMA locks on this architecture"
#define NO_PIN		"needs userfaultfd and process_vm_readv"
#define NO_FLAG		"kernel without PROCESS_MRELEASE_REAP_KILL"
#define NO_DISK		"needs a file on disk, see TMPDIR"

/* Return 0 or the value of errno. */
static inline int mrelease(int pidfd, unsigned int flags)
{
	return syscall(__NR_process_mrelease, pidfd, flags) ? errno : 0;
}

static inline bool has_reap_kill(void)
{
	return mrelease(-1, PROCESS_MRELEASE_REAP_KILL) == EBADF;
}

static inline long now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* The first or the last CPU of @cpus. */
static inline int first_cpu(const cpu_set_t *cpus)
{
	int cpu = 0;

	while (!CPU_ISSET(cpu, cpus))
		cpu++;
	return cpu;
}

static inline int last_cpu(const cpu_set_t *cpus)
{
	int cpu = CPU_SETSIZE - 1;

	while (!CPU_ISSET(cpu, cpus))
		cpu--;
	return cpu;
}

static inline void run_on_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

static inline void run_on_first_cpu(void)
{
	cpu_set_t all;

	sched_getaffinity(1, sizeof(all), &all);
	run_on_cpu(first_cpu(&all));
}

static inline void run_on_last_cpu(void)
{
	cpu_set_t all;

	sched_getaffinity(1, sizeof(all), &all);
	run_on_cpu(last_cpu(&all));
}

/* Without VMA locks, as on i386, the call holds mmap_lock for reading. */
static inline bool has_vma_locks(void)
{
	struct utsname name;

	return uname(&name) || strcmp(name.machine, "i686");
}

/* On 32 bit, the call with the shorter name takes IDs of 16 bits. */
#ifndef SYS_setresuid32
#define SYS_setresuid32	SYS_setresuid
#endif

/* Not setresuid(), which changes the IDs of all threads. */
static inline void set_uids(uid_t real, uid_t effective, uid_t saved)
{
	if (syscall(SYS_setresuid32, real, effective, saved))
		_exit(EXIT_UNSUPPORTED);
}

static inline void become_nobody(void)
{
	set_uids(NOBODY, NOBODY, NOBODY);
}

static inline void become_nobody_with_cap_kill(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct caps[2] = {
		{ .effective = 1 << CAP_KILL, .permitted = 1 << CAP_KILL },
	};

	prctl(PR_SET_KEEPCAPS, 1);
	become_nobody();
	if (syscall(SYS_capset, &header, caps))
		_exit(EXIT_UNSUPPORTED);
}

static inline int reopen(int fd, int flags)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, flags | O_CLOEXEC);
}

/* The number of kills in a race */
static inline int race_rounds(void)
{
	const char *nr = getenv("MRELEASE_ROUNDS");

	return nr ? atoi(nr) : 60;
}

#define STACK_SIZE	(16 * psize())

static inline int sleep_forever(void *unused)
{
	for (;;)
		pause();
	return 0;
}

/* Start @fn in another thread or process with the same mm. */
static inline pid_t clone_vm(int (*fn)(void *), void *arg, int flags)
{
	char *stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pid_t pid = -1;

	if (stack != MAP_FAILED)
		pid = clone(fn, stack + STACK_SIZE, CLONE_VM | flags, arg);
	if (pid < 0)
		_exit(EXIT_UNSUPPORTED);
	return pid;
}

/* Fill a page with contents that depend on its number and version, from 0. */
static inline void fill_page(void *to, long page, unsigned int version)
{
	uint64_t *word = to;

	for (unsigned int i = 0; i < psize() / sizeof(*word); i++)
		word[i] = ((uint64_t)version << 56) + ((uint64_t)page << 16) + i + 1;
}

static inline bool is_filled(const void *from, long page, unsigned int version)
{
	char want[psize()];

	fill_page(want, page, version);
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

static inline bool write_text(int dir, const char *name, const char *text)
{
	int fd = openat(dir, name, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return ok;
}

/*
 * Let allocations of all kinds fail in the tasks that ask for it, by make-it-fail, with
 * a probability of @percent, or by fail-nth.
 */
static inline bool enable_faults(const char *percent)
{
	static const char * const dirs[] = {
		"/sys/kernel/debug/failslab", "/sys/kernel/debug/fail_page_alloc",
	};
	const char * const settings[][2] = {
		{ "probability", percent }, { "interval", "1" }, { "times", "-1" },
		{ "task-filter", "Y" }, { "ignore-gfp-wait", "N" }, { "verbose", "0" },
	};
	bool ok = true;
	int dir;

	for (size_t i = 0; i < sizeof(dirs) / sizeof(*dirs); i++) {
		dir = open(dirs[i], O_PATH | O_CLOEXEC);
		for (size_t j = 0; j < sizeof(settings) / sizeof(*settings); j++)
			ok &= write_text(dir, settings[j][0], settings[j][1]);
		/* Other pages than those of slabs */
		if (i)
			ok &= write_text(dir, "ignore-gfp-highmem", "N") &
			      write_text(dir, "min-order", "0");
		close(dir);
	}
	return ok;
}

static inline long read_number(int dir, const char *name)
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
	write_text(root, "cgroup.subtree_control", "+memory");
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

static inline long cached_in(int fd, off_t offset, size_t len)
{
	return cache_in(fd, offset, len).nr_cache;
}

static inline long cached(int fd)
{
	return cached_in(fd, 0, 0);
}

static inline long dirty(int fd)
{
	return cache_in(fd, 0, 0).nr_dirty;
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
		fill_page(buf, i, version(i, step));
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
		    !is_filled(buf, i, version(i, step)))
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

static inline int make_memfd(void)
{
	return memfd_create("mrelease", MFD_CLOEXEC);
}

/* Return -1 if there is no free huge page. */
static inline int make_hugetlb(void)
{
	int fd = memfd_create("mrelease", MFD_CLOEXEC | MFD_HUGETLB);

	if (fd >= 0 && fallocate(fd, 0, 0, default_huge_page_size())) {
		close(fd);
		return -1;
	}
	return fd;
}

/* Return a descriptor of a copy of this program with the mode @mode, or -1. */
static inline int copy_program(mode_t mode)
{
	int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	int to = open_scratch(), fd = -1;

	if (to >= 0 && sendfile(to, from, NULL, INT_MAX) > 0 && !fchmod(to, mode) &&
	    !fsync(to))
		fd = reopen(to, O_RDONLY);
	close(from);
	close(to);
	return fd;
}

/* Does not return. */
static inline void exec_fd(int fd, const char *name, const char *arg)
{
	char * const argv[] = { (char *)name, (char *)arg, NULL };

	syscall(__NR_execveat, fd, "", argv, environ, AT_EMPTY_PATH);
	_exit(EXIT_UNSUPPORTED);
}

/* Return the descriptor of a mount that is not attached to any path, or -1. */
static inline int new_mount(const char *type, const char * const options[][2])
{
	int fs = fsopen(type, FSOPEN_CLOEXEC), fd = -1;
	bool ok = fs >= 0;

	for (; ok && options && (*options)[0]; options++)
		ok = !fsconfig(fs, FSCONFIG_SET_STRING, (*options)[0], (*options)[1], 0);
	if (ok && !fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		fd = fsmount(fs, FSMOUNT_CLOEXEC, 0);
	close(fs);
	return fd;
}

/* Thaws the file system if the test dies. */
static pid_t thaw_helper;

/* Return false for the root file system, or if this file system cannot be frozen. */
static inline bool freeze_fs(int fd)
{
	struct stat file, root;
	sigset_t set;
	int sig;

	if (fstat(fd, &file) || stat("/", &root) || file.st_dev == root.st_dev)
		return false;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	thaw_helper = fork();
	if (!thaw_helper) {
		sigprocmask(SIG_BLOCK, &set, NULL);
		prctl(PR_SET_PDEATHSIG, SIGUSR1);
		sigwait(&set, &sig);
		ioctl(fd, FITHAW, 0);
		_exit(0);
	}
	return !ioctl(fd, FIFREEZE, 0);
}

/* Return false if the file system was not frozen. */
static inline bool thaw_fs(int fd)
{
	bool ok;

	if (thaw_helper <= 0)
		return false;
	ok = !ioctl(fd, FITHAW, 0);
	kill(thaw_helper, SIGKILL);
	waitpid(thaw_helper, NULL, 0);
	thaw_helper = 0;
	return ok;
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

	write_text(env->cgroup_fd, "cgroup.freeze", "1");
	do {
		nr = 0;
		procs = fdopen(openat(env->cgroup_fd, "cgroup.procs", O_RDONLY), "r");
		/* A process of another PID namespace is listed as 0. */
		while (procs && fscanf(procs, "%d", &pid) == 1)
			nr += pid && !kill(pid, SIGKILL);
		if (procs)
			fclose(procs);
		if (nr)
			usleep(1000);
	} while (nr && ++tries < 100);
	write_text(env->cgroup_fd, "cgroup.freeze", "0");
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
	usage.swap = read_number(env->cgroup_fd, "memory.swap.current");
	return usage;
}

static inline long vmstat_counter(const char *name)
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
		write_text(AT_FDCWD, "/proc/sys/vm/stat_refresh", "1");
		if (vmstat_counter("nr_writeback") <= 0)
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
	cpu_set_t all, own;

	sched_getaffinity(0, sizeof(own), &own);
	sched_getaffinity(1, sizeof(all), &all);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &all))
			continue;
		run_on_cpu(cpu);
		mlock(page, psize());
		munlock(page, psize());
	}
	sched_setaffinity(0, sizeof(own), &own);
}

/* Wait until a child has written to the pipe; return its PID, or -1 if it has exited. */
static inline pid_t wait_ready(pid_t pid, const int ready[2])
{
	char c;

	close(ready[1]);
	if (pid > 0 && read(ready[0], &c, 1) != 1) {
		waitpid(pid, NULL, 0);
		pid = -1;
	}
	close(ready[0]);
	return pid;
}

/*
 * Start a child in the cgroup of the test. The child calls @setup and then sleeps.
 * Return its PID once @setup has returned true, or -1.
 */
static inline pid_t start_child(const struct env *env, bool (*setup)(const void *),
				const void *arg, int *pidfd)
{
	pid_t pid, ready_pid;
	int ready[2];

	if (pipe(ready))
		return -1;
	pid = fork_into_cgroup(env, pidfd);
	if (!pid) {
		close(ready[0]);
		if (!setup(arg))
			_exit(1);
		drain_lru_batches();
		if (write(ready[1], "", 1) != 1)
			_exit(1);
		sleep_forever(NULL);
	}
	ready_pid = wait_ready(pid, ready);
	if (pid > 0 && ready_pid < 0)
		close(*pidfd);
	return ready_pid;
}

/* In a victim: map memory or a file, aligned for huge pages. */
static inline void *map_aligned(long pages, int prot, int flags, int fd, int advice)
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
static inline void disable_khugepaged(void *addr, size_t len)
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

/* Count the pages of a file that are marked as accessed. Mapping them does not mark them. */
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

/* The state of a task in /proc/TID/stat. @tid 0 means this process. */
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
	if (!write_text(env->cgroup_fd, "cgroup.freeze", "1"))
		return false;
	for (int i = 0; i < 10000 && !strstr(text, "frozen 1"); i++) {
		usleep(1000);
		if (!read_file(path, text, sizeof(text)))
			return false;
	}
	return strstr(text, "frozen 1");
}

/* Wait for a child; return the signal that killed it, or -1. */
static inline int wait_termsig(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status))
		return -1;
	return WTERMSIG(status);
}

/* Return true if MGLRU is enabled and can be controlled. */
static inline bool has_generations(void)
{
	unsigned long enabled = 0;
	char text[32];

	if (read_file("/sys/kernel/mm/lru_gen/enabled", text, sizeof(text)))
		enabled = strtoul(text, NULL, 0);
	return enabled && !access("/sys/kernel/debug/lru_gen", W_OK);
}

/* Kill and reap. Return false on a kernel without PROCESS_MRELEASE_REAP_KILL. */
static inline bool kill_with_flag(struct __test_metadata *_metadata, int pidfd)
{
	if (has_reap_kill()) {
		EXPECT_EQ(0, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
		return true;
	}
	EXPECT_EQ(0, sys_pidfd_send_signal(pidfd, SIGKILL, NULL, 0));
	mrelease(pidfd, 0);
	return false;
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
 * Start a process that holds mm_users of the victim: the process reads the victim's
 * memory into a page whose fault never ends. Return -1 if that is not possible.
 */
static inline pid_t pin_mm(pid_t victim, void *addr)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct pin pin = { victim, { NULL, psize() }, { addr, 1 } };
	struct uffd_msg msg;
	pthread_t thread;
	int ready[2];
	int uffd;
	pid_t pid;

	if (pipe(ready))
		return -1;
	pid = fork();
	if (pid)
		return wait_ready(pid, ready);

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
