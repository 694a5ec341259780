// SPDX-License-Identifier: GPL-2.0
/*
 * Test tools/mm/mrelease: which processes it kills, and what it reports. Runs on
 * kernels with and without PROCESS_MRELEASE_REAP_KILL.
 *
 * The tool is $MRELEASE, or mrelease in the current directory. Files are made
 * in $TMPDIR, or in the current directory.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/mman.h>
#include <linux/ptrace.h>
#include <linux/sched.h>
#include <mntent.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "kselftest_harness.h"

#ifndef PROCESS_MRELEASE_REAP_KILL
#define PROCESS_MRELEASE_REAP_KILL	1
#endif

#define MIB		(1024 * 1024L)
#define ANON		(24 * MIB)
#define FILE_SIZE	(8 * MIB)
#define NOBODY		65534
#define FORKERS		200
#define GROUPS		4000
#define TIMEOUT		600	/* an emulated machine takes its time */

/* The C library's header and the kernel's do not go together. */
static long ptrace(long request, pid_t pid, void *addr, void *data)
{
	return syscall(SYS_ptrace, request, pid, addr, data);
}

static bool has_flag(void)
{
	return syscall(__NR_process_mrelease, -1, PROCESS_MRELEASE_REAP_KILL) &&
	       errno == EBADF;
}

/* What the tool wrote on both its outputs. */
static char said[1 << 18];

/* Its standard output: 0 is the same as for its errors, else a descriptor or CLOSED. */
enum { CLOSED = -1 };
static int output;

/* Interrupt it after so many seconds, as Ctrl-C does. */
static int interrupt_after;

/* Run the tool. Return its exit status, or that of a shell if it was killed. */
static int run(uid_t uid, ...)
{
	const char *args[16] = { getenv("MRELEASE") ?: "./mrelease" };
	size_t len = 0;
	int out[2], status, n = 1;
	va_list ap;
	ssize_t got;
	pid_t pid;

	va_start(ap, uid);
	while ((args[n] = va_arg(ap, const char *)))
		n++;
	va_end(ap);
	if (pipe(out))
		return -1;
	pid = fork();
	if (!pid) {
		dup2(output > 0 ? output : out[1], 1);
		dup2(out[1], 2);
		close(out[0]);
		close(out[1]);
		if (output == CLOSED)
			close(1);
		if (uid && (setgid(uid) || setuid(uid)))
			_exit(126);
		execv(args[0], (char **)args);
		_exit(127);
	}
	close(out[1]);
	if (interrupt_after) {
		sleep(interrupt_after);
		kill(pid, SIGINT);
	}
	while (len < sizeof(said) - 1 &&
	       (got = read(out[0], said + len, sizeof(said) - 1 - len)) > 0)
		len += got;
	said[len] = 0;
	close(out[0]);
	if (waitpid(pid, &status, 0) != pid)
		return -1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* "key":NUMBER after the first occurrence of "after", in bytes, or -1. */
static long number(const char *after, const char *key)
{
	const char *at = strstr(said, after);
	char name[64];

	snprintf(name, sizeof(name), "\"%s\":", key);
	at = at ? strstr(at, name) : NULL;
	return at ? atol(at + strlen(name)) : -1;
}

#define EXPECT_SAID(text) do { \
	const char *__text = (text); \
	if (!strstr(said, __text)) { \
		TH_LOG("\"%s\" is not in: %s", __text, said); \
		_metadata->exit_code = KSFT_FAIL; \
	} \
} while (0)

#define EXPECT_STATUS(want, ...) do { \
	int __want = (want), __status = run(__VA_ARGS__, NULL); \
	if (__status != __want) { \
		TH_LOG("status %d instead of %d: %s", __status, __want, said); \
		_metadata->exit_code = KSFT_FAIL; \
	} \
} while (0)

/* An error of usage is one line, and exit status 2. */
#define EXPECT_USAGE(text, ...) do { \
	const char *__end; \
	EXPECT_STATUS(2, 0, __VA_ARGS__); \
	EXPECT_SAID("mrelease: " text); \
	__end = strchr(said, '\n'); \
	EXPECT_TRUE(__end && !__end[1]); \
} while (0)

#define KIB_NEAR 1024
#define EXPECT_NEAR(want, got) do { \
	long __want = (want), __got = (got); \
	if (__got < __want - KIB_NEAR * 1024 || __got > __want + KIB_NEAR * 1024) { \
		TH_LOG("%s is %ld instead of %ld: %s", #got, __got, __want, said); \
		_metadata->exit_code = KSFT_FAIL; \
	} \
} while (0)

static const char *text(long n)
{
	static char buf[8][24];
	static int i;

	i = (i + 1) % 8;
	snprintf(buf[i], sizeof(buf[i]), "%ld", n);
	return buf[i];
}

static bool put(const char *dir, const char *name, const char *value)
{
	char path[PATH_MAX];
	bool ok;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	ok = fd >= 0 && write(fd, value, strlen(value)) == (ssize_t)strlen(value);
	if (fd >= 0)
		close(fd);
	return ok;
}

/* Has it been told to be? '0' or '1'. */
static char frozen(const char *cgroup)
{
	char path[PATH_MAX], c = 0;
	int fd;

	snprintf(path, sizeof(path), "%s/cgroup.freeze", cgroup);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, &c, 1) != 1)
		c = '?';
	close(fd);
	return c;
}

/* A file that is in the page cache and on disk. */
static int make_file(struct __test_metadata *_metadata)
{
	int fd = open(getenv("TMPDIR") ?: ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	char buf[4096];

	ASSERT_GE(fd, 0);
	memset(buf, 1, sizeof(buf));
	for (long i = 0; i < FILE_SIZE / (long)sizeof(buf); i++)
		ASSERT_EQ((ssize_t)sizeof(buf), write(fd, buf, sizeof(buf)));
	ASSERT_EQ(0, fsync(fd));
	return fd;
}

static long cached(int fd)
{
	struct cachestat_range range = { };
	struct cachestat cs = { .nr_cache = -1 };

	syscall(__NR_cachestat, fd, &range, &cs, 0);
	return cs.nr_cache * sysconf(_SC_PAGESIZE);
}

static void touch(char *at, long size, bool to_write)
{
	for (long i = 0; i < size; i += 4096) {
		if (to_write)
			__atomic_store_n(&at[i], i, __ATOMIC_RELAXED);
		else
			__atomic_load_n(&at[i], __ATOMIC_RELAXED);
	}
}

static void wait_until(int *value, int at_least)
{
	while (__atomic_load_n(value, __ATOMIC_RELAXED) < at_least)
		usleep(1000);
}

static char *get_anon(long size)
{
	char *anon = mmap(NULL, size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	touch(anon, size, true);
	return anon;
}

struct spec {
	const char *name;
	uid_t uid;
	int fd;		/* of the file to map */
	long dirty;	/* so much of it */
	char *anon;	/* what it has already */
};

/* A process of that kind. It waits for its end. */
static pid_t start(const struct spec *spec)
{
	int ready[2];
	char *file;
	pid_t pid;
	char c;

	if (pipe(ready))
		return -1;
	pid = fork();
	if (!pid) {
		prctl(PR_SET_NAME, spec->name);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (!spec->anon)
			get_anon(ANON);
		if (spec->fd > 0) {
			file = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE,
				    MAP_SHARED, spec->fd, 0);
			touch(file, FILE_SIZE, false);
			touch(file, spec->dirty, true);
		}
		if (spec->uid && (setgid(spec->uid) || setuid(spec->uid)))
			_exit(1);
		/* Readable for its owner in /proc again. */
		prctl(PR_SET_DUMPABLE, 1);
		if (write(ready[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	if (read(ready[0], &c, 1) != 1)
		pid = -1;
	close(ready[0]);
	return pid;
}

static bool alive(pid_t pid)
{
	siginfo_t info = { };

	return !waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) && !info.si_pid;
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/* Wait for the end of a process, half a minute at most, which only a bug takes. */
static bool was_killed(pid_t pid)
{
	int status;

	for (int i = 0; i < 30000 && alive(pid); i++)
		usleep(1000);
	if (alive(pid)) {
		end(pid);
		return false;
	}
	return waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) &&
	       WTERMSIG(status) == SIGKILL;
}

static int sleep_for_ever(void *unused)
{
	for (;;)
		pause();
	return !unused;
}

static long copy_file(int to, int from)
{
	static char buf[FILE_SIZE];
	ssize_t len = pread(from, buf, sizeof(buf), 0);

	return len < 0 ? -1 : write(to, buf, len);
}

/* Only a test of a fixture can have a time limit of its own. */
FIXTURE(tool) { };
FIXTURE_SETUP(tool) { }
FIXTURE_TEARDOWN(tool) { }

TEST_F_TIMEOUT(tool, one_process, TIMEOUT)
{
	struct spec spec = { .name = "mrel\"\\\1", .fd = make_file(_metadata) };
	pid_t pid = start(&spec);

	ASSERT_GT(pid, 0);
	EXPECT_STATUS(0, 0, "--json", "--dry-run", text(pid));
	EXPECT_NEAR(ANON, number("freed", "anon"));
	EXPECT_NEAR(has_flag() ? FILE_SIZE : 0, number("freed", "file"));
	EXPECT_TRUE(alive(pid));
	EXPECT_EQ(FILE_SIZE, cached(spec.fd));

	EXPECT_STATUS(0, 0, "--json", text(pid));
	EXPECT_SAID("\"name\":\"mrel\\\"\\\\\\u0001\",\"killed\":true,\"error\":null");
	EXPECT_NEAR(ANON, number("held", "anon"));
	EXPECT_NEAR(FILE_SIZE, number("held", "file"));
	EXPECT_SAID(has_flag() ? "\"reap_kill\":true" : "\"reap_kill\":false");
	EXPECT_NEAR(ANON, number("freed", "anon"));
	EXPECT_EQ(0, number("left", "anon"));
	EXPECT_NEAR(has_flag() ? FILE_SIZE : 0, number("freed", "file"));
	EXPECT_NEAR(has_flag() ? 0 : FILE_SIZE, number("left", "file_cached"));
	EXPECT_EQ(has_flag() ? 0 : FILE_SIZE, cached(spec.fd));
	EXPECT_TRUE(was_killed(pid));
}

TEST_F_TIMEOUT(tool, as_text, TIMEOUT)
{
	struct spec spec = { .name = "mrel-text" };
	pid_t pid = start(&spec);

	EXPECT_STATUS(0, 0, text(pid));
	EXPECT_SAID("mrel-text: held 2");
	EXPECT_SAID("; killed in ");
	EXPECT_SAID("total: freed 2");
	EXPECT_SAID(" MiB anonymous");
	if (!has_flag())
		EXPECT_SAID("no PROCESS_MRELEASE_REAP_KILL");
	EXPECT_TRUE(was_killed(pid));

	pid = start(&spec);
	EXPECT_STATUS(0, 0, "--quiet", text(pid));
	EXPECT_STREQ("", said);
	EXPECT_TRUE(was_killed(pid));
}

/* A terminal obeys some bytes, and any user may choose a name. */
TEST_F_TIMEOUT(tool, hostile_name, TIMEOUT)
{
	struct spec spec = { .name = "mrel\33[2J\177\302\233m" };
	pid_t pid = start(&spec);

	if (!geteuid()) {
		EXPECT_STATUS(1, NOBODY, text(pid));
		EXPECT_SAID("(mrel\\x1b[2J\\x7f\\xc2\\x9bm): Op");
		EXPECT_EQ(NULL, strpbrk(said, "\33\177\302\233"));
	}
	EXPECT_STATUS(0, 0, text(pid));
	EXPECT_SAID(" mrel\\x1b[2J\\x7f\\xc2\\x9bm: held ");
	EXPECT_EQ(NULL, strpbrk(said, "\33\177\302\233"));
	EXPECT_TRUE(was_killed(pid));
	EXPECT_STATUS(1, 0, "--cgroup", "/no\33such");
	EXPECT_SAID("/no\\x1bsuch: ");
}

/* UTF-8 stays, the beginning of a character does not, nor do control characters. */
TEST_F_TIMEOUT(tool, json_is_utf8, TIMEOUT)
{
	static const char * const names[][2] = {
		{ "a\303\251\342\202\254", "a\303\251\342\202\254" },
		{ "b\360\237\230\200\303", "b\360\237\230\200\\ufffd" },
		{ "c\300\200\355\240\200", "c\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd" },
		{ "d\177\302\233\377", "d\\u007f\\u009b\\ufffd" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		struct spec spec = { .name = names[i][0] };
		char name[64];
		pid_t pid = start(&spec);

		snprintf(name, sizeof(name), "\"name\":\"%s\"", names[i][1]);
		EXPECT_STATUS(0, 0, "--json", text(pid));
		EXPECT_SAID(name);
		EXPECT_TRUE(was_killed(pid));
	}
}

/* Then the fields that the tool needs are far behind in /proc/PID/status. */
TEST_F_TIMEOUT(tool, many_groups, TIMEOUT)
{
	struct spec spec = { .name = "mrel-groups" };
	gid_t *groups = calloc(GROUPS, sizeof(*groups));
	pid_t pid;

	if (geteuid())
		SKIP(return, "needs root");
	ASSERT_NE(NULL, groups);
	for (int i = 0; i < GROUPS; i++)
		groups[i] = 1000000 + i;
	ASSERT_EQ(0, setgroups(GROUPS, groups));
	pid = start(&spec);
	ASSERT_EQ(0, setgroups(0, NULL));
	EXPECT_STATUS(0, 0, "--json", text(pid));
	EXPECT_SAID("\"measured\":true");
	EXPECT_NEAR(ANON, number("freed", "anon"));
	EXPECT_TRUE(was_killed(pid));
}

/* Memory that other processes have as well, and what has not been written back. */
TEST_F_TIMEOUT(tool, what_is_left, TIMEOUT)
{
	char *anon = get_anon(6 * MIB);
	struct spec spec = {
		.name = "mrel-left", .fd = make_file(_metadata), .dirty = 2 * MIB,
		.anon = anon,
	};
	char *file = mmap(NULL, FILE_SIZE, PROT_READ, MAP_SHARED, spec.fd, 0);
	pid_t pid;

	touch(file + FILE_SIZE / 2, 3 * MIB, false);
	pid = start(&spec);
	ASSERT_GT(pid, 0);
	EXPECT_STATUS(0, 0, "--json", text(pid));
	EXPECT_NEAR(6 * MIB, number("left", "anon_shared"));
	EXPECT_NEAR(0, number("freed", "anon"));
	EXPECT_NEAR(2 * MIB, number("left", "file_dirty"));
	EXPECT_NEAR(3 * MIB, number("left", "file_shared"));
	EXPECT_NEAR(has_flag() ? 3 * MIB : 0, number("freed", "file"));
	EXPECT_NEAR(has_flag() ? 0 : 3 * MIB, number("left", "file_cached"));
	EXPECT_TRUE(was_killed(pid));
}

#define WORKERS 100
#define OWN (MIB / 4)
#define SHMEM (6 * MIB)

/* A process with memory that it shares with its children, of which we are the reaper. */
static pid_t start_family(int fd, pid_t *worker)
{
	pid_t *pids = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid;

	prctl(PR_SET_CHILD_SUBREAPER, 1);
	pid = fork();
	if (!pid) {
		char *file = mmap(NULL, FILE_SIZE, PROT_READ, MAP_SHARED, fd, 0), *shmem;

		prctl(PR_SET_NAME, "mrel-family");
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		get_anon(ANON);
		shmem = mmap(NULL, SHMEM, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		for (int i = 0; i < WORKERS; i++) {
			pid = fork();
			if (!pid)
				get_anon(OWN);
			touch(file, FILE_SIZE, false);
			touch(shmem, SHMEM, true);
			if (!pid)
				break;
			pids[1 + i] = pid;
		}
		__atomic_add_fetch(&pids[0], 1, __ATOMIC_RELAXED);
		for (;;)
			pause();
	}
	wait_until(&pids[0], WORKERS + 1);
	memcpy(worker, &pids[1], WORKERS * sizeof(*worker));
	munmap(pids, 4096);
	return pid;
}

TEST_F_TIMEOUT(tool, shared_memory_counts_once, TIMEOUT)
{
	pid_t worker[WORKERS], pid;
	int fd = make_file(_metadata);
	long own;

	pid = start_family(fd, worker);
	/* The parent has it as well. */
	EXPECT_STATUS(0, 0, "--json", "--dry-run", text(worker[0]), text(worker[1]));
	EXPECT_NEAR(ANON + OWN, number("held", "anon"));
	own = number("total", "anon") / 2;
	EXPECT_NEAR(OWN, own);
	EXPECT_NEAR(ANON, number("total", "anon_shared"));
	EXPECT_EQ(0, number("freed", "file"));
	EXPECT_NEAR(FILE_SIZE, number("left", "file_shared"));

	for (int dry_run = 1; dry_run >= 0; dry_run--) {
		EXPECT_STATUS(0, 0, "--json", dry_run ? "-n" : "-j3", "--match", "^mrel-family$");
		EXPECT_NEAR(ANON + WORKERS * own, number("freed", "anon"));
		EXPECT_NEAR(has_flag() ? FILE_SIZE : 0, number("freed", "file"));
		EXPECT_NEAR(0, number("left", "anon_shared"));
		EXPECT_NEAR(SHMEM, number("left", "shmem"));
		EXPECT_NEAR(has_flag() ? 0 : FILE_SIZE, number("left", "file_cached"));
	}
	EXPECT_TRUE(was_killed(pid));
	for (int i = 0; i < WORKERS; i++)
		EXPECT_TRUE(was_killed(worker[i]));
	close(fd);
}

TEST_F_TIMEOUT(tool, shared_swap_counts_once, TIMEOUT)
{
	int *child = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid;

	prctl(PR_SET_CHILD_SUBREAPER, 1);
	pid = fork();
	if (!pid) {
		madvise(get_anon(SHMEM), SHMEM, MADV_PAGEOUT);
		pid = fork();
		if (pid)
			*child = pid;
		for (;;)
			pause();
	}
	wait_until(child, 1);
	EXPECT_STATUS(0, 0, "--json", "--dry-run", text(*child));
	if (number("held", "swap") < SHMEM / 2) {
		end(pid);
		end(*child);
		SKIP(return, "needs swap");
	}
	EXPECT_NEAR(0, number("freed", "swap"));
	EXPECT_NEAR(SHMEM, number("left", "swap"));
	EXPECT_STATUS(0, 0, "--json", text(pid), text(*child));
	EXPECT_NEAR(SHMEM, number("freed", "swap"));
	EXPECT_NEAR(0, number("left", "swap"));
	EXPECT_TRUE(was_killed(pid));
	EXPECT_TRUE(was_killed(*child));
}

/* Two victims with one address space. */
TEST_F_TIMEOUT(tool, same_memory, TIMEOUT)
{
	static char stack[1 << 16];
	pid_t pid, *sharer;

	sharer = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	pid = fork();
	if (!pid) {
		get_anon(ANON);
		*sharer = clone(sleep_for_ever, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL);
		for (;;)
			pause();
	}
	wait_until(sharer, 1);
	EXPECT_STATUS(0, 0, "--json", "-j", "1", text(pid), text(*sharer));
	EXPECT_NEAR(ANON, number("freed", "anon"));
	EXPECT_EQ(0, number("left", "anon"));
	EXPECT_TRUE(was_killed(pid));
	EXPECT_TRUE(was_killed(*sharer));
}

/* The pages of a file on overlayfs belong to the file system below. */
TEST_F_TIMEOUT(tool, overlayfs, TIMEOUT)
{
	static const char * const dirs[] = { "", "/lower", "/upper", "/work", "/merged" };
	struct spec spec = { .name = "mrel-overlay" };
	char top[PATH_MAX / 4], path[PATH_MAX], options[PATH_MAX];
	int fd = make_file(_metadata), copy;
	pid_t pid;

	if (geteuid())
		SKIP(return, "needs root");
	snprintf(top, sizeof(top), "%s/mrelease_tool.%d", getenv("TMPDIR") ?: ".", getpid());
	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++) {
		snprintf(path, sizeof(path), "%s%s", top, dirs[i]);
		ASSERT_EQ(0, mkdir(path, 0755));
	}
	snprintf(options, sizeof(options), "lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work",
		 top, top, top);
	ASSERT_EQ(0, mount("overlay", path, "overlay", 0, options));
	strcat(path, "/file");
	copy = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	ASSERT_GE(copy, 0);
	ASSERT_EQ(FILE_SIZE, copy_file(copy, fd));
	ASSERT_EQ(0, fsync(copy));
	spec.fd = copy;
	pid = start(&spec);
	ASSERT_GT(pid, 0);

	EXPECT_STATUS(0, 0, "--json", "--dry-run", text(pid));
	EXPECT_NEAR(has_flag() ? FILE_SIZE : 0, number("freed", "file"));
	EXPECT_STATUS(0, 0, "--json", text(pid));
	EXPECT_NEAR(has_flag() ? FILE_SIZE : 0, number("freed", "file"));
	EXPECT_NEAR(has_flag() ? 0 : FILE_SIZE, number("left", "file_cached"));
	EXPECT_NEAR(0, number("left", "file_unknown"));
	EXPECT_TRUE(was_killed(pid));

	close(copy);
	EXPECT_EQ(0, unlink(path));
	*strrchr(path, '/') = 0;
	EXPECT_EQ(0, umount(path));
	/* overlayfs has made a directory in that for work. */
	snprintf(path, sizeof(path), "%s/work/work", top);
	rmdir(path);
	for (size_t i = ARRAY_SIZE(dirs); i-- > 0;) {
		snprintf(path, sizeof(path), "%s%s", top, dirs[i]);
		EXPECT_EQ(0, rmdir(path));
	}
}

TEST_F_TIMEOUT(tool, verbose, TIMEOUT)
{
	struct spec spec = { .name = "mrel-verbose", .fd = make_file(_metadata) };
	pid_t pid = start(&spec);
	char path[64], name[PATH_MAX] = "", line[2 * PATH_MAX];

	ASSERT_GT(pid, 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", spec.fd);
	ASSERT_GT(readlink(path, name, sizeof(name) - 1), 0);
	snprintf(line, sizeof(line), "%s: freed %s", name,
		 has_flag() ? "8.0 MiB, left 0 KiB\n" : "0 KiB, left 8.0 MiB\n");
	EXPECT_STATUS(0, 0, "--verbose", text(pid));
	EXPECT_SAID(line);
	EXPECT_TRUE(was_killed(pid));
}

/* The freeze ends when the returned process is killed, or after a minute. */
static pid_t freeze_file_system(int fd)
{
	int ready[2];
	pid_t pid;
	char c;

	if (pipe(ready))
		return -1;
	pid = fork();
	if (!pid) {
		sigset_t set;

		sigemptyset(&set);
		sigaddset(&set, SIGTERM);
		sigprocmask(SIG_BLOCK, &set, NULL);
		if (ioctl(fd, FIFREEZE, 0) || write(ready[1], "", 1) != 1)
			_exit(1);
		sigtimedwait(&set, NULL, &(struct timespec) { .tv_sec = 60 });
		_exit(ioctl(fd, FITHAW, 0) ? 1 : 0);
	}
	close(ready[1]);
	if (read(ready[0], &c, 1) != 1)
		pid = -1;
	close(ready[0]);
	return pid;
}

static char *page_to_write;

static void *write_page(void *tid)
{
	__atomic_store_n((pid_t *)tid, syscall(SYS_gettid), __ATOMIC_RELAXED);
	touch(page_to_write, 4096, true);
	return NULL;
}

static bool is_asleep(pid_t tid)
{
	char path[64], text[512] = "", *p;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = 0;
	close(fd);
	p = strrchr(text, ')');
	return p && !strncmp(p, ") D", 3);
}

/*
 * A victim whose memory cannot be freed until the file system is thawed: a thread
 * sleeps in a page fault, and another waits for it with mmap_lock held.
 */
static pid_t start_stuck(int fd, pid_t *freezer)
{
	pid_t *tid = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_t thread;
	pid_t pid;

	pid = fork();
	if (!pid) {
		prctl(PR_SET_NAME, "mrel-stuck");
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		page_to_write = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		touch(page_to_write, 4096, false);
		wait_until(tid, 1);
		tid[0] = 0;
		pthread_create(&thread, NULL, write_page, &tid[1]);
		while (!tid[1] || !is_asleep(tid[1]))
			usleep(1000);
		munmap(page_to_write, 4096);
		_exit(0);
	}
	*freezer = freeze_file_system(fd);
	tid[0] = 1;
	while (*freezer > 0 && (!tid[1] || !is_asleep(pid)))
		usleep(1000);
	return pid;
}

TEST_F_TIMEOUT(tool, killed_still_exiting, TIMEOUT)
{
	struct spec spec = { .name = "mrel-waits" };
	int fd = make_file(_metadata), status;
	pid_t freezer, stuck, waits;
	struct stat file, root;

	if (geteuid() || fstat(fd, &file) || stat("/", &root) || file.st_dev == root.st_dev)
		SKIP(return, "needs root, and TMPDIR not on the root file system");
	stuck = start_stuck(fd, &freezer);
	ASSERT_GT(freezer, 0);
	waits = start(&spec);
	EXPECT_STATUS(1, 0, "--json", "-j1", "--timeout", "3", text(stuck), text(waits));
	EXPECT_SAID("(mrel-stuck): killed, still exiting\n");
	EXPECT_SAID("\"killed\":true,\"error\":\"killed, still exiting\"");
	EXPECT_SAID("(mrel-waits): not killed: time is up\n");
	EXPECT_SAID("\"killed\":false,\"error\":\"not killed: time is up\"");
	EXPECT_TRUE(alive(waits));

	interrupt_after = 2;
	EXPECT_STATUS(128 + SIGINT, 0, "--timeout", "0", "-j1", text(stuck), text(waits));
	interrupt_after = 0;
	EXPECT_SAID("(mrel-stuck): killed, still exiting\n");
	EXPECT_SAID("(mrel-waits): not killed: interrupted\n");
	EXPECT_TRUE(alive(waits));
	end(waits);

	kill(freezer, SIGTERM);
	EXPECT_EQ(freezer, waitpid(freezer, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_TRUE(was_killed(stuck));
}

TEST_F_TIMEOUT(tool, dry_run_asks_permission, TIMEOUT)
{
	struct spec spec = { .name = "mrel-root" };
	pid_t pid = start(&spec);

	if (geteuid())
		SKIP(return, "needs root");
	EXPECT_STATUS(1, NOBODY, "--dry-run", text(pid));
	EXPECT_SAID("Operation not permitted");
	EXPECT_STATUS(1, 0, "--dry-run", "1");
	EXPECT_SAID("Operation not permitted: the init of this PID namespace");
	EXPECT_STATUS(1, 0, "1");
	EXPECT_SAID("Operation not permitted: the init of this PID namespace");
	/* kthreadd */
	if (getpgid(2) == 0) {
		EXPECT_STATUS(1, 0, "--dry-run", "2");
		EXPECT_SAID("2 (kthreadd): Operation not permitted: a kernel thread");
		EXPECT_STATUS(1, 0, "2");
		EXPECT_SAID("2 (kthreadd): Operation not permitted: a kernel thread");
	}
	EXPECT_TRUE(alive(pid));
	end(pid);
}

TEST_F_TIMEOUT(tool, same_pid_twice, TIMEOUT)
{
	struct spec spec = { .name = "mrel-twice" };
	pid_t pid = start(&spec);

	EXPECT_STATUS(0, 0, "--json", text(pid), text(pid));
	EXPECT_NEAR(ANON, number("freed", "anon"));
	EXPECT_EQ(NULL, strstr(strstr(said, "\"pid\"") + 1, "\"pid\""));
	EXPECT_TRUE(was_killed(pid));
}

TEST_F_TIMEOUT(tool, missing_processes_in_json, TIMEOUT)
{
	struct spec spec = { .name = "mrel-found" };
	pid_t pid = start(&spec);

	EXPECT_STATUS(64, 0, "--json", "99999999", text(pid));
	EXPECT_SAID("mrelease: 99999999: No such process\n");
	EXPECT_SAID("{\"pid\":99999999,\"name\":\"\",\"killed\":false,");
	EXPECT_SAID(",\"error\":\"No such process\"");
	EXPECT_EQ(pid, number("},", "pid"));
	EXPECT_TRUE(was_killed(pid));
}

TEST_F_TIMEOUT(tool, write_errors, TIMEOUT)
{
	struct spec spec = { .name = "mrel-write" };
	pid_t pid = start(&spec);

	output = open("/dev/full", O_WRONLY | O_CLOEXEC);
	ASSERT_GT(output, 0);
	EXPECT_STATUS(1, 0, "--dry-run", text(pid));
	EXPECT_SAID("cannot write: No space left on device");
	EXPECT_STATUS(1, 0, "--help");
	close(output);
	output = CLOSED;
	EXPECT_STATUS(1, 0, "--dry-run", "--json", text(pid));
	EXPECT_SAID("cannot write: Bad file descriptor");
	EXPECT_STATUS(1, 0, "--version");
	EXPECT_TRUE(alive(pid));
	/* Nothing to write. */
	EXPECT_STATUS(0, 0, "--quiet", text(pid));
	EXPECT_TRUE(was_killed(pid));
	output = 0;
}

TEST_F_TIMEOUT(tool, by_pidfd, TIMEOUT)
{
	struct spec spec = { .name = "mrel-pidfd" };
	pid_t pid = start(&spec);
	int fd = syscall(__NR_pidfd_open, pid, 0);

	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, fcntl(fd, F_SETFD, 0));
	EXPECT_STATUS(0, 0, "--json", "--pidfd", text(fd));
	EXPECT_EQ(pid, number("victims", "pid"));
	EXPECT_TRUE(was_killed(pid));

	EXPECT_STATUS(1, 0, "--pidfd", text(fd));
	EXPECT_SAID("No such process");
	EXPECT_STATUS(1, 0, "--pidfd", "0");
	EXPECT_SAID("not a pidfd");
	EXPECT_STATUS(1, 0, "--pidfd", "999");
	EXPECT_SAID("Bad file descriptor");
}

TEST_F_TIMEOUT(tool, several, TIMEOUT)
{
	struct spec spec = { .name = "mrel-several" };
	pid_t pid[4];

	for (int i = 0; i < 4; i++)
		pid[i] = start(&spec);
	EXPECT_STATUS(0, 0, "-j", "3", text(pid[0]), text(pid[1]), text(pid[2]));
	EXPECT_TRUE(was_killed(pid[0]));
	EXPECT_TRUE(was_killed(pid[1]));
	EXPECT_TRUE(was_killed(pid[2]));
	EXPECT_STATUS(64, 0, text(pid[0]), text(pid[3]));
	EXPECT_SAID(": No such process");
	EXPECT_TRUE(was_killed(pid[3]));
	EXPECT_STATUS(1, 0, text(pid[3]));
	EXPECT_SAID(": No such process");
}

static void *wait_for_ever(void *tid)
{
	__atomic_store_n((pid_t *)tid, syscall(SYS_gettid), __ATOMIC_RELAXED);
	for (;;)
		pause();
	return NULL;
}

TEST_F_TIMEOUT(tool, bad_arguments, TIMEOUT)
{
	pid_t tid = 0;
	pthread_t thread;

	EXPECT_USAGE("no process given", "--json");
	EXPECT_USAGE("invalid process ID: 1x\n", "1x");
	EXPECT_USAGE("invalid process ID: foo\n", "foo");
	EXPECT_USAGE("invalid process ID: 0\n", "0");
	EXPECT_USAGE("invalid process ID: 99999999999\n", "99999999999");
	EXPECT_USAGE("invalid option -- '1'\n", "-1");
	EXPECT_USAGE("unrecognized option '--foo'\n", "--foo");
	EXPECT_USAGE("invalid pattern: (: ", "--match", "(");
	EXPECT_USAGE("give only one of", "--match", "a", "--cgroup", "b");
	EXPECT_USAGE("give only one of", "--match", "--exact", "sqlite3");
	EXPECT_USAGE("--full and --exact need --match", "--exact", "-P", "1");
	EXPECT_USAGE("invalid number of seconds: soon\n", "--timeout", "soon", "1");
	EXPECT_USAGE("invalid number of seconds: 5s\n", "--timeout", "5s", "1");
	EXPECT_USAGE("invalid number of seconds: -1\n", "--timeout", "-1", "1");
	EXPECT_USAGE("invalid number of jobs: 0\n", "-j", "0", "1");
	EXPECT_USAGE("invalid number of jobs: 3x\n", "-j", "3x", "1");
	EXPECT_USAGE("invalid file descriptor: 3x\n", "--pidfd", "3x");
	EXPECT_USAGE("no such user: 3x\n", "--euid", "1,3x");
	EXPECT_USAGE("invalid process ID: 3x\n", "--parent", "3x");
	EXPECT_USAGE("--quiet excludes --json", "--quiet", "--json", "1");
	EXPECT_STATUS(0, 0, "--help");
	EXPECT_SAID("Usage: mrelease ");
	EXPECT_STATUS(0, 0, "--version");
	EXPECT_SAID("mrelease 1.");
	EXPECT_SAID(has_flag() ? "has PROCESS_M" : "has no PROCESS_M");

	ASSERT_EQ(0, pthread_create(&thread, NULL, wait_for_ever, &tid));
	wait_until(&tid, 1);
	EXPECT_STATUS(1, 0, text(tid));
	EXPECT_SAID(": a thread, not a process\n");
}

TEST_F_TIMEOUT(tool, init_of_all, TIMEOUT)
{
	if (geteuid() || getppid() == 0)
		SKIP(return, "needs root");
	EXPECT_STATUS(1, NOBODY, "1");
	EXPECT_SAID("1 (");
	EXPECT_SAID("Operation not permitted");
	EXPECT_EQ(0, kill(1, 0));
}

/* An ordinary user may not kill a process of root, nor one that shares its memory. */
TEST_F_TIMEOUT(tool, not_permitted, TIMEOUT)
{
	struct spec spec = { .name = "mrel-root" };
	pid_t pid = start(&spec), *sharer;
	static char stack[1 << 16];

	if (geteuid())
		SKIP(return, "needs root");
	EXPECT_STATUS(1, NOBODY, text(pid));
	EXPECT_SAID("Operation not permitted");
	EXPECT_TRUE(alive(pid));
	end(pid);

	/* A process of an ordinary user that shares its memory with one of root. */
	sharer = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid = fork();
	if (!pid) {
		get_anon(ANON);
		sharer[1] = clone(sleep_for_ever, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL);
		if (syscall(SYS_setresgid, NOBODY, NOBODY, NOBODY) ||
		    syscall(SYS_setresuid, NOBODY, NOBODY, NOBODY))
			_exit(1);
		sharer[0] = 1;
		for (;;)
			pause();
	}
	wait_until(sharer, 1);
	if (has_flag()) {
		for (int dry_run = 1; dry_run >= 0; dry_run--) {
			EXPECT_STATUS(1, NOBODY, dry_run ? "-n" : "-v", "-t2", text(pid));
			EXPECT_SAID("Operation not permitted: ");
			EXPECT_SAID(text(sharer[1]));
			EXPECT_SAID("shares its memory");
			EXPECT_TRUE(alive(pid));
		}
	} else {
		EXPECT_STATUS(0, NOBODY, "--dry-run", text(pid));
		/* It cannot tell when the victim has left before it looks. */
		if (run(NOBODY, "--timeout", "2", text(pid), NULL))
			EXPECT_SAID("killed, but another process uses its memory");
		EXPECT_TRUE(was_killed(pid));
	}
	EXPECT_EQ(0, kill(sharer[1], 0));
	kill(sharer[1], SIGKILL);
	end(pid);
}

TEST_F_TIMEOUT(tool, match, TIMEOUT)
{
	struct spec spec = { .name = "mrel-matched" }, other = { .name = "mrel-matched2" };
	pid_t pid[2] = { start(&spec), start(&spec) }, not_it = start(&other);

	EXPECT_STATUS(0, 0, "--dry-run", "--match", "^mrel-ma");
	EXPECT_SAID(text(pid[0]));
	EXPECT_SAID(text(pid[1]));
	EXPECT_SAID(text(not_it));
	EXPECT_TRUE(alive(pid[0]));
	EXPECT_STATUS(0, 0, "--exact", "--match", "mrel-m(atched|x)");
	EXPECT_TRUE(was_killed(pid[0]));
	EXPECT_TRUE(was_killed(pid[1]));
	EXPECT_TRUE(alive(not_it));
	EXPECT_STATUS(1, 0, "--match", "mrel-no-such-name");
	EXPECT_SAID("mrelease: no process matches mrel-no-such-name\n");
	EXPECT_STATUS(0, 0, "--match", "mrel-matched2");
	EXPECT_TRUE(was_killed(not_it));
}

TEST_F_TIMEOUT(tool, by_user_and_parent, TIMEOUT)
{
	struct spec spec = { .name = "mrel-user", .uid = NOBODY }, root = { .name = "mrel-user" };
	pid_t pid = start(&spec), roots = start(&root);

	if (geteuid())
		SKIP(return, "needs root");
	EXPECT_STATUS(0, 0, "--dry-run", "-P", text(getpid()));
	EXPECT_SAID(text(pid));
	EXPECT_SAID(text(roots));
	EXPECT_STATUS(0, 0, "-u", "12345,65534", "--parent", text(getpid()));
	EXPECT_TRUE(was_killed(pid));
	EXPECT_TRUE(alive(roots));
	EXPECT_STATUS(1, 0, "--euid", text(NOBODY), "--match", "^mrel-user$");
	EXPECT_STATUS(1, 0, "--parent", "1", "--match", "^mrel-user$");
	EXPECT_TRUE(alive(roots));
	EXPECT_STATUS(0, 0, "--euid=0", "-P", text(getpid()), "--match", "^mrel-user$");
	EXPECT_TRUE(was_killed(roots));
}

/* Something like a container, with a cgroup below its own. */

FIXTURE(container)
{
	char path[PATH_MAX], below[PATH_MAX + 16];
	pid_t init;
	int *forks;
};

FIXTURE_VARIANT(container)
{
	uid_t uid;	/* of all its processes */
	bool no_kill;	/* cgroup.kill does not work */
};

FIXTURE_VARIANT_ADD(container, root) { };
FIXTURE_VARIANT_ADD(container, without_cgroup_kill) { .no_kill = true };
/* The user that a cgroup is delegated to can neither freeze it nor use its cgroup.kill. */
FIXTURE_VARIANT_ADD(container, delegated) { .uid = NOBODY };

static bool find_cgroup2(char *path, size_t size)
{
	FILE *mounts = setmntent("/proc/self/mounts", "r");
	struct mntent *mnt = NULL;

	while (mounts && (mnt = getmntent(mounts)) && strcmp(mnt->mnt_type, "cgroup2"))
		;
	if (mnt)
		snprintf(path, size, "%s/mrelease_tool.%d", mnt->mnt_dir, getpid());
	if (mounts)
		endmntent(mounts);
	return mnt;
}

/* At any time, some processes are about to appear, and some to exit. */
static void keep_forking(int *forks)
{
	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		if (!fork()) {
			__atomic_add_fetch(forks, 1, __ATOMIC_RELAXED);
			usleep(10000);
			_exit(0);
		}
		usleep(10000);
	}
}

static void be_init(const char *below, uid_t uid, int *forks)
{
	int start[2];
	char c;

	for (int sig = 1; sig < NSIG; sig++)
		signal(sig, SIG_IGN);
	signal(SIGCHLD, SIG_DFL);
	if (pipe(start) || (uid && (setgid(uid) || setuid(uid))))
		_exit(1);
	for (int i = 0; i < FORKERS; i++) {
		if (fork())
			continue;
		if (i % 2)
			put(below, "cgroup.procs", "0");
		/* Until all of them are there. */
		close(start[1]);
		if (!read(start[0], &c, 1))
			keep_forking(forks);
		_exit(1);
	}
	get_anon(ANON);
	close(start[1]);
	for (;;)
		wait(NULL);
}

FIXTURE_SETUP(container)
{
	struct clone_args args = { .flags = CLONE_NEWPID, .exit_signal = SIGCHLD };
	static const char * const files[] = { "", "/cgroup.procs" };
	char path[2 * PATH_MAX];

	if (geteuid() || !find_cgroup2(self->path, sizeof(self->path) - 16) ||
	    mkdir(self->path, 0755))
		SKIP(return, "needs root and cgroup v2");
	snprintf(self->below, sizeof(self->below), "%s/below", self->path);
	ASSERT_EQ(0, mkdir(self->below, 0755));
	for (int i = 0; i < 2 && variant->uid; i++) {
		snprintf(path, sizeof(path), "%s%s", self->path, files[i]);
		ASSERT_EQ(0, chown(path, variant->uid, variant->uid));
		snprintf(path, sizeof(path), "%s%s", self->below, files[i]);
		ASSERT_EQ(0, chown(path, variant->uid, variant->uid));
	}
	self->forks = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	self->init = syscall(__NR_clone3, &args, sizeof(args));
	ASSERT_GE(self->init, 0);
	if (!self->init) {
		if (!put(self->path, "cgroup.procs", "0"))
			_exit(1);
		be_init(self->below, variant->uid, self->forks);
	}
	/* All are there, and each has forked once or more, on the whole. */
	wait_until(self->forks, FORKERS);
	ASSERT_TRUE(alive(self->init));
}

FIXTURE_TEARDOWN(container)
{
	if (!self->init)
		return;
	put(self->path, "cgroup.kill", "1");
	waitpid(self->init, NULL, 0);
	for (int i = 0; i < 100 && rmdir(self->below) && errno == EBUSY; i++)
		usleep(10000);
	for (int i = 0; i < 100 && rmdir(self->path) && errno == EBUSY; i++)
		usleep(10000);
}

TEST_F_TIMEOUT(container, kill, TIMEOUT)
{
	char path[PATH_MAX + 32];
	int forks, status;

	snprintf(path, sizeof(path), "%s/cgroup.kill", self->path);
	if (variant->no_kill)
		ASSERT_EQ(0, mount("/dev/full", path, NULL, MS_BIND, NULL));
	/* By its short name. */
	EXPECT_STATUS(0, variant->uid, "--dry-run", "-q", "--timeout", "0",
		      "--cgroup", strrchr(self->path, '/'));
	ASSERT_TRUE(alive(self->init));
	EXPECT_STATUS(0, variant->uid, "--json", "--timeout", "0", "--cgroup", self->path);
	EXPECT_NEAR(0, number("after", "anon"));
	EXPECT_GE(number("before", "anon"), ANON);
	TH_LOG("%d forks", *self->forks);
	if (variant->no_kill)
		ASSERT_EQ(0, umount(path));

	/* No process forks, and the cgroup is empty. */
	forks = *self->forks;
	EXPECT_EQ(self->init, waitpid(self->init, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	EXPECT_EQ(0, rmdir(self->below));
	usleep(50000);
	EXPECT_EQ(forks, *self->forks);
	EXPECT_EQ('0', frozen(self->path));
	EXPECT_EQ(0, rmdir(self->path));
}

/* A process of this name and, if it is not 0, with this PID. */
static pid_t start_as(const char *name, pid_t pid, const char *cgroup)
{
	struct clone_args args = {
		.exit_signal = SIGCHLD,
		.set_tid = pid ? (uintptr_t)&pid : 0, .set_tid_size = !!pid,
	};
	int ready[2];
	pid_t child;
	char c;

	if (pipe(ready))
		return -1;
	child = syscall(__NR_clone3, &args, sizeof(args));
	if (!child) {
		prctl(PR_SET_NAME, name);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if ((cgroup && !put(cgroup, "cgroup.procs", "0")) ||
		    write(ready[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	if (read(ready[0], &c, 1) != 1)
		child = -1;
	close(ready[0]);
	return child;
}

/* It looks at a process, or at what it knows of it. The rest does not matter. */
static bool is_look(uint64_t nr)
{
	return nr == __NR_pidfd_open || nr == __NR_pidfd_send_signal || nr == __NR_openat ||
	       nr == __NR_read || nr == __NR_clone || nr == __NR_clone3;
}

/*
 * Runs the tool, and at the nth such system call from the one that opens a pidfd for
 * this PID, another process gets the PID. False if by then it has started the
 * thread that kills.
 */
static bool run_and_replace(const char *option, const char *value, pid_t pid, int nth)
{
	const char *path = getenv("MRELEASE") ?: "./mrelease";
	enum { BEFORE, COUNTING, REPLACED, TOO_LATE } state = BEFORE;
	struct ptrace_syscall_info info = { };
	pid_t tool = fork();
	int status;

	if (!tool) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		execl(path, path, "-q", option, value, NULL);
		_exit(127);
	}
	while (waitpid(tool, &status, __WALL) == tool && WIFSTOPPED(status)) {
		ptrace(PTRACE_SETOPTIONS, tool, NULL,
		       (void *)(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL));
		if (WSTOPSIG(status) == (SIGTRAP | 0x80))
			ptrace(PTRACE_GET_SYSCALL_INFO, tool, (void *)sizeof(info), &info);
		if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
			if (info.entry.nr == __NR_pidfd_open && info.entry.args[0] == (uint64_t)pid)
				state = COUNTING;
			if (state == COUNTING && is_look(info.entry.nr) && !nth--) {
				end(pid);
				state = start_as("mrel-wrong", pid, NULL) == pid ?
					REPLACED : TOO_LATE;
			} else if (state == COUNTING &&
				   (info.entry.nr == __NR_clone3 || info.entry.nr == __NR_clone)) {
				state = TOO_LATE;
			}
		}
		ptrace(state < REPLACED ? PTRACE_SYSCALL : PTRACE_CONT, tool, NULL, NULL);
	}
	return state == REPLACED;
}

/* Replaces it at every point there is. How often it came out wrong, or -1. */
static int replace_all(const char *option, const char *value, const char *cgroup)
{
	int bad = 0, n = 0;

	for (;; n++) {
		pid_t pid = start_as("mrel-right", 0, cgroup);

		if (!run_and_replace(option, value, pid, n))
			break;
		if (!alive(pid)) {
			printf("# %s: the wrong process was killed at point %d\n", option, n);
			bad++;
		}
		end(pid);
	}
	printf("# %s: %d points\n", option, n);
	return n > 5 ? bad : -1;
}

/* The PID becomes another's while the tool looks at the process. */
TEST_F_TIMEOUT(tool, pid_of_another, TIMEOUT)
{
	/* Few processes to look at. */
	struct clone_args args = {
		.flags = CLONE_NEWPID | CLONE_NEWNS, .exit_signal = SIGCHLD,
	};
	char path[PATH_MAX];
	int status;
	pid_t pid;

	if (geteuid() || !find_cgroup2(path, sizeof(path)) || mkdir(path, 0755))
		SKIP(return, "needs root and cgroup v2");
	fflush(stdout);
	pid = syscall(__NR_clone3, &args, sizeof(args));
	ASSERT_GE(pid, 0);
	if (!pid) {
		if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
		    mount("proc", "/proc", "proc", 0, NULL))
			_exit(2);
		status = replace_all("--match", "^mrel-right$", NULL) |
			 replace_all("--cgroup", path, path);
		fflush(stdout);
		_exit(status ? 1 : 0);
	}
	EXPECT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(0, rmdir(path));
}

/*
 * Runs it on a cgroup that does not become empty, sends these signals when all are
 * frozen, and returns what waitpid() says.
 */
static int run_and_interrupt(const char *cgroup, const int *sig)
{
	const char *path = getenv("MRELEASE") ?: "./mrelease";
	pid_t tool = fork();
	int status = -1;

	if (!tool) {
		signal(SIGHUP, SIG_IGN);
		signal(SIGQUIT, SIG_DFL);
		signal(SIGTSTP, SIG_DFL);
		execl(path, path, "-q", "--timeout", "0", "--cgroup", cgroup, NULL);
		_exit(127);
	}
	while (frozen(cgroup) != '1' && alive(tool))
		usleep(1000);
	for (; *sig; sig++) {
		kill(tool, *sig);
		usleep(50000);
	}
	waitpid(tool, &status, WUNTRACED);
	end(tool);
	return status;
}

/* The tracer keeps a killed process in its cgroup. The tool tries again and again. */
TEST_F_TIMEOUT(tool, time_limit, TIMEOUT)
{
	static const int signals[] = { SIGHUP, SIGTSTP, SIGQUIT, 0 };
	struct spec spec = { .name = "mrel-traced", .fd = make_file(_metadata) };
	struct timespec from, to;
	char path[PATH_MAX];
	pid_t other, traced;
	int status;

	if (geteuid() || !find_cgroup2(path, sizeof(path)) || mkdir(path, 0755))
		SKIP(return, "needs root and cgroup v2");
	other = start_as("mrel-other", 0, path);
	traced = start(&spec);
	ASSERT_TRUE(put(path, "cgroup.procs", text(traced)));
	ASSERT_EQ(0, ptrace(PTRACE_SEIZE, traced, NULL, (void *)PTRACE_O_TRACEEXIT));

	clock_gettime(CLOCK_MONOTONIC, &from);
	EXPECT_STATUS(64, 0, "-v", "--timeout", "4", "--cgroup", path);
	clock_gettime(CLOCK_MONOTONIC, &to);
	EXPECT_SAID("not empty in time");
	EXPECT_SAID(has_flag() ? ": freed 8.0 MiB, left 0 KiB\n" : ": freed 0 KiB, left 8.0 MiB\n");
	EXPECT_EQ(NULL, strstr(said, "unknown"));
	EXPECT_GE((to.tv_sec - from.tv_sec) * 1e3 + (to.tv_nsec - from.tv_nsec) / 1e6, 3999);
	EXPECT_EQ('0', frozen(path));

	status = run_and_interrupt(path, signals);
	EXPECT_TRUE(WIFEXITED(status));
	EXPECT_EQ(128 + SIGQUIT, WEXITSTATUS(status));
	EXPECT_EQ('0', frozen(path));

	EXPECT_EQ(traced, waitpid(traced, &status, __WALL));
	EXPECT_EQ(0, ptrace(PTRACE_CONT, traced, NULL, NULL));
	EXPECT_TRUE(was_killed(traced));
	EXPECT_TRUE(was_killed(other));
	EXPECT_EQ(0, rmdir(path));
}

/* It has to complain into a closed pipe, with the cgroup frozen. */
TEST_F_TIMEOUT(tool, broken_pipe, TIMEOUT)
{
	struct clone_args args = {
		.flags = CLONE_NEWPID | CLONE_NEWNS, .exit_signal = SIGCHLD,
	};
	const char *tool = getenv("MRELEASE") ?: "./mrelease";
	pid_t other, init;
	char path[PATH_MAX];
	int out[2], status;

	if (geteuid() || !find_cgroup2(path, sizeof(path)) || mkdir(path, 0755))
		SKIP(return, "needs root and cgroup v2");
	other = start_as("mrel-other", 0, path);
	ASSERT_GT(other, 0);
	ASSERT_EQ(0, pipe(out));
	close(out[0]);
	init = syscall(__NR_clone3, &args, sizeof(args));
	ASSERT_GE(init, 0);
	if (!init) {
		if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
		    mount("proc", "/proc", "proc", 0, NULL))
			_exit(2);
		/* The signal would not end an init. */
		if (!fork()) {
			signal(SIGPIPE, SIG_DFL);
			dup2(out[1], 2);
			execl(tool, tool, "--cgroup", path, NULL);
			_exit(127);
		}
		wait(&status);
		_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	}
	close(out[1]);
	EXPECT_EQ(init, waitpid(init, &status, 0));
	EXPECT_TRUE(WIFEXITED(status));
	EXPECT_EQ(1, WEXITSTATUS(status));
	EXPECT_EQ('0', frozen(path));
	end(other);
	EXPECT_EQ(0, rmdir(path));
}

/* It must kill all processes, although there are more than descriptors. */
TEST_F_TIMEOUT(tool, few_descriptors, TIMEOUT)
{
	static const struct rlimit few = { 32, 32 };
	pid_t pid[40], child;
	char path[PATH_MAX];
	size_t killed = 0;
	int status;

	if (geteuid() || !find_cgroup2(path, sizeof(path)) || mkdir(path, 0755))
		SKIP(return, "needs root and cgroup v2");
	for (size_t i = 0; i < ARRAY_SIZE(pid); i++) {
		pid[i] = start_as("mrel-few", 0, path);
		ASSERT_GT(pid[i], 0);
	}
	child = fork();
	if (!child) {
		if (setrlimit(RLIMIT_NOFILE, &few))
			_exit(126);
		status = run(0, "--json", "--timeout", "0", "--cgroup", path, NULL);
		for (char *at = said; (at = strstr(at, "\"error\":null")); at++)
			killed++;
		if (status || killed != ARRAY_SIZE(pid))
			printf("# status %d, %zu killed: %s\n", status, killed, said);
		fflush(stdout);
		_exit(status ?: killed != ARRAY_SIZE(pid));
	}
	EXPECT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ('0', frozen(path));
	for (size_t i = 0; i < ARRAY_SIZE(pid); i++) {
		EXPECT_FALSE(alive(pid[i]));
		end(pid[i]);
	}
	EXPECT_EQ(0, rmdir(path));
}

/* A file that was written and not mapped is not freed. */
TEST_F_TIMEOUT(tool, page_cache_of_cgroup, TIMEOUT)
{
	char path[PATH_MAX], name[PATH_MAX], line[PATH_MAX + 32];
	int fd = make_file(_metadata), copy, to_child[2];
	pid_t pid;
	char c;

	if (geteuid() || !find_cgroup2(path, sizeof(path)))
		SKIP(return, "needs root and cgroup v2");
	*strrchr(path, '/') = 0;
	if (!put(path, "cgroup.subtree_control", "+memory"))
		SKIP(return, "needs the memory controller");
	find_cgroup2(path, sizeof(path));
	ASSERT_EQ(0, mkdir(path, 0755));
	snprintf(name, sizeof(name), "%s/mrelease_tool.%d", getenv("TMPDIR") ?: ".", getpid());
	copy = open(name, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	ASSERT_GE(copy, 0);
	ASSERT_EQ(0, pipe(to_child));
	pid = fork();
	if (!pid) {
		if (!put(path, "cgroup.procs", "0") || copy_file(copy, fd) != FILE_SIZE ||
		    fsync(copy) || write(to_child[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(to_child[1]);
	ASSERT_EQ(1, read(to_child[0], &c, 1));
	close(to_child[0]);
	EXPECT_STATUS(0, 0, "--cgroup", path);
	EXPECT_SAID(" of page cache is left");
	snprintf(line, sizeof(line), " >%s/memory.reclaim\n", path);
	EXPECT_SAID(line);
	EXPECT_TRUE(was_killed(pid));
	close(copy);
	EXPECT_EQ(0, unlink(name));
	EXPECT_EQ(0, rmdir(path));
}

TEST_F_TIMEOUT(tool, wrong_cgroups, TIMEOUT)
{
	char path[PATH_MAX], below[PATH_MAX + 16];
	pid_t pid;
	int status;

	if (geteuid() || !find_cgroup2(path, sizeof(path)) || mkdir(path, 0755))
		SKIP(return, "needs root and cgroup v2");
	EXPECT_STATUS(1, 0, "--cgroup", "/no/such/cgroup");
	EXPECT_SAID("no such cgroup");
	EXPECT_STATUS(1, 0, "--cgroup", "/proc");
	EXPECT_SAID("no such cgroup");
	EXPECT_STATUS(0, 0, "--cgroup", path);	/* it is empty */

	pid = fork();
	if (!pid) {
		put(path, "cgroup.procs", "0");
		_exit(run(0, "--cgroup", path, NULL) == 1 &&
		      strstr(said, "mrelease itself is in") ? 0 : 1);
	}
	EXPECT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);

	/* Refused before the time limit. */
	snprintf(below, sizeof(below), "%s/below", path);
	ASSERT_EQ(0, mkdir(below, 0755));
	ASSERT_TRUE(put(below, "cgroup.type", "threaded"));
	EXPECT_STATUS(1, 0, "--timeout", "0", "--cgroup", below);
	EXPECT_SAID(below);
	EXPECT_SAID(": a threaded cgroup");
	EXPECT_EQ(0, rmdir(below));
	EXPECT_EQ(0, rmdir(path));

	*strrchr(path, '/') = 0;
	EXPECT_STATUS(1, 0, "--cgroup", path);
	EXPECT_SAID("the root cgroup");
}

TEST_HARNESS_MAIN
