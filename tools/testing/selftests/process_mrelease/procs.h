/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The processes of a test, most of which share an mm. They run commands of the test
 * and check their memory. All of them are in one cgroup, whose charge right after the
 * call is what has not been freed.
 */
#ifndef SELFTESTS_PROCESS_MRELEASE_PROCS_H
#define SELFTESTS_PROCESS_MRELEASE_PROCS_H

#include <linux/vhost.h>
#include <poll.h>
#include <sys/socket.h>

#include "util.h"

#define PAGES		1024L	/* of anonymous memory and of the file ... */
#define RACE_PAGES	16	/* ... but of the file in races */
#define THREAD		(CLONE_THREAD | CLONE_SIGHAND | CLONE_FS | CLONE_FILES)
#define PROCS		3

#define NO_SUPPORT	"this kernel or machine has not got what it takes"

/* The processes of a test. Those not started have no pid. */
static struct proc {
	pid_t pid;
	int pidfd;
	int sock[2];	/* the test's end, the process's end */
} procs[PROCS];

/* What the processes of a test do. */
struct spec {
	int sharer;		/* flags for clone() of a second process */
	void (*setup)(void);	/* in the first process */
	int (*action)(void);	/* on CMD_ACT */
	bool in_thread;		/* ... in another thread than the leader */
	int nr;			/* number of processes, 0 is 1 */
	int flags;		/* for clone3() */
	int map_flags;		/* of the file, 0 is MAP_SHARED */
	cpu_set_t *cpus;
	bool copies;		/* each has its own mm */
};

enum { CMD_CHECK = 1, CMD_ACT };

/* In the processes: their memory. */
static struct {
	const struct spec *spec;
	char *anon;
	char *file;
	long pages;		/* of the file */
	int fd;
	pid_t init;		/* of a nested PID namespace */
} mm;

/* One word of each page tells whether the page is intact. */
static inline void fill_memory(void)
{
	size_t align = 4 << 20, len = PAGES * psize();

	mm.anon = mmap(NULL, len + align, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mm.anon == MAP_FAILED)
		_exit(1);
	mm.anon = (char *)(((uintptr_t)mm.anon + align - 1) & -align);
	madvise(mm.anon, len, MADV_HUGEPAGE);
	for (long i = 0; i < PAGES; i++)
		*(long *)(mm.anon + i * psize()) = ~i;
	if (!mm.pages)
		return;

	mm.file = mmap(NULL, mm.pages * psize(), PROT_READ | PROT_WRITE,
		       mm.spec->map_flags ?: MAP_SHARED, mm.fd, 0);
	if (mm.file == MAP_FAILED || madvise(mm.file, mm.pages * psize(), MADV_RANDOM))
		_exit(1);
	for (long i = 0; i < mm.pages; i++)
		FORCE_READ(mm.file[i * psize()]);
}

static inline bool memory_intact(void)
{
	for (long i = 0; i < PAGES; i++) {
		if (*(long *)(mm.anon + i * psize()) != ~i)
			return false;
	}
	for (long i = 0; i < mm.pages; i++) {
		if (!is_filled(mm.file + i * psize(), i, 0))
			return false;
	}
	return true;
}

static inline pid_t run_in_mm(int (*fn)(void *), long nr, int flags)
{
	return clone_vm(fn, (void *)nr, flags);
}

static inline int act_in_thread(void *unused)
{
	return mm.spec->action();
}

static inline int act(void)
{
	if (!mm.spec->in_thread)
		return mm.spec->action();
	run_in_mm(act_in_thread, 0, THREAD);
	return sleep_forever(NULL);
}

/* Report to the test, and then run its commands. */
static inline int run_commands(void *nr)
{
	int sock = procs[(long)nr].sock[1];
	char c = CMD_CHECK;

	do {
		c = c == CMD_CHECK ? memory_intact() : act();
	} while (write(sock, &c, 1) == 1 && read(sock, &c, 1) == 1);
	_exit(1);
}

static inline int run_commands_without_leader(void *nr)
{
	while (state_of(0) != 'Z')
		usleep(1000);
	return run_commands(nr);
}

static inline int exit_as_leader(void *nr)
{
	run_in_mm(run_commands_without_leader, (long)nr, THREAD);
	return syscall(SYS_exit, 0);
}

/* Wait for the report of a process. The credentials of the message have its PID. */
static inline bool wait_for_report(struct __test_metadata *_metadata, struct proc *p)
{
	char c, control[CMSG_SPACE(sizeof(struct ucred))];
	struct iovec iov = { &c, 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct ucred cred;

	if (recvmsg(p->sock[0], &msg, 0) != 1)
		return false;
	ASSERT_NE(NULL, CMSG_FIRSTHDR(&msg));
	memcpy(&cred, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(cred));
	if (!p->pid) {
		p->pid = cred.pid;
		p->pidfd = sys_pidfd_open(p->pid, 0);
		ASSERT_GE(p->pidfd, 0);
	}
	return c;
}

/* Return false if the kernel does not support what a process needs. */
static inline bool start(struct __test_metadata *_metadata, struct env *env,
			 const struct spec *spec)
{
	struct clone_args args = {
		.flags = CLONE_PIDFD | CLONE_INTO_CGROUP | spec->flags,
		.pidfd = (uintptr_t)&procs[0].pidfd,
		.exit_signal = SIGCHLD,
		.cgroup = env->cgroup_fd,
	};
	int nr = spec->nr ?: 1, on = 1;
	bool ok = true;

	memset(procs, 0, sizeof(procs));
	for (int i = 0; i < nr; i++) {
		ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, procs[i].sock));
		ASSERT_EQ(0, setsockopt(procs[i].sock[0], SOL_SOCKET, SO_PASSCRED,
					&on, sizeof(on)));
	}
	procs[0].pid = syscall(__NR_clone3, &args, sizeof(args));
	ASSERT_GE(procs[0].pid, 0);
	if (!procs[0].pid) {
		if (spec->cpus)
			sched_setaffinity(0, sizeof(*spec->cpus), spec->cpus);
		mm.spec = spec;
		mm.fd = env->fd;
		mm.pages = env->pages;
		fill_memory();
		drain_lru_batches();
		if (spec->sharer)
			run_in_mm(run_commands, 1, spec->sharer | SIGCHLD);
		if (spec->setup)
			spec->setup();
		run_commands(0);
	}
	for (int i = 0; i < nr; i++) {
		close(procs[i].sock[1]);
		/* Until the sharer exits, its parent waits in vfork(). */
		if (i || !(spec->sharer & CLONE_VFORK))
			ok &= wait_for_report(_metadata, &procs[i]);
	}
	return ok;
}

static inline bool send_command(struct proc *p, char what)
{
	return send(p->sock[0], &what, 1, MSG_NOSIGNAL) == 1;
}

/* Send a command; return the answer, or -1 if the process dies. */
static inline int query(struct proc *p, char what)
{
	struct pollfd fds[2] = { { p->sock[0], POLLIN, 0 }, { p->pidfd, POLLIN, 0 } };
	unsigned char c;

	if (!send_command(p, what) || poll(fds, 2, -1) < 1 || !(fds[0].revents & POLLIN) ||
	    recv(p->sock[0], &c, 1, 0) != 1)
		return -1;
	return c;
}

/* Return true if the process is alive and its memory intact. */
static inline bool is_intact(struct proc *p)
{
	return query(p, CMD_CHECK) == true;
}

/* Wait for a process to die; the test's child must have died of SIGKILL. */
static inline bool wait_killed(struct proc *p)
{
	struct pollfd fd = { p->pidfd, POLLIN, 0 };
	siginfo_t info;

	if (poll(&fd, 1, 120000) != 1)
		return false;
	if (waitid(P_PIDFD, p->pidfd, &info, WEXITED))
		return errno == ECHILD;
	return info.si_code != CLD_EXITED && info.si_status == SIGKILL;
}

static inline void end_procs(struct env *env)
{
	kill_cgroup(env);
	for (int i = 0; i < PROCS && procs[i].pid; i++) {
		wait_killed(&procs[i]);
		close(procs[i].pidfd);
		close(procs[i].sock[0]);
	}
}

/* All children and adopted orphans die of SIGKILL or exit with 0. */
static inline void check_all_killed(struct __test_metadata *_metadata)
{
	struct timespec pause = { .tv_nsec = 1000000 };
	int status;
	pid_t pid;

	for (int i = 0; (pid = waitpid(-1, &status, WNOHANG)) >= 0; i++) {
		if (!pid) {
			ASSERT_LT(i, 120000) TH_LOG("a process survives");
			nanosleep(&pause, NULL);
		} else if (pid == procs[0].pid || !WIFEXITED(status)) {
			ASSERT_TRUE(WIFSIGNALED(status));
			ASSERT_EQ(SIGKILL, WTERMSIG(status));
		} else {
			ASSERT_EQ(0, WEXITSTATUS(status));
		}
	}
	close(procs[0].pidfd);
	close(procs[0].sock[0]);
}

static inline void check_memory_used(struct __test_metadata *_metadata, const struct env *env)
{
	struct usage usage = measure(env);

	EXPECT_GE(usage.charge, PAGES * psize());
	EXPECT_EQ(env->pages, usage.cache);
}

static inline void check_memory_free(struct __test_metadata *_metadata, struct usage usage)
{
	EXPECT_LE(usage.charge, slack());
	EXPECT_EQ(0, usage.cache);
	EXPECT_EQ(0, usage.swap);
}

/* One number of the cgroup's memory.stat, in bytes. */
static inline long memory_stat(const struct env *env, const char *key)
{
	int fd = openat(env->cgroup_fd, "memory.stat", O_RDONLY | O_CLOEXEC);
	char text[4096] = "\n", want[32], *p;

	if (fd < 0 || read(fd, text + 1, sizeof(text) - 2) < 0)
		text[1] = 0;
	close(fd);
	snprintf(want, sizeof(want), "\n%s ", key);
	p = strstr(text, want);
	return p ? atol(p + strlen(want)) : LONG_MAX;
}

/*
 * The charge of anonymous memory only, without the kernel memory of tasks. memory.stat
 * may be stale: mem_cgroup_css_rstat_flush() of one CPU resets the count of updates of
 * all CPUs. memory.current is never less than the anonymous memory.
 */
static inline long anon_charge(const struct env *env)
{
	long charge = measure(env).charge, anon = memory_stat(env, "anon");

	return anon < charge ? anon : charge;
}

/* A race lasts for $MRELEASE_SECONDS, 6 by default, and for 20 rounds at least. */
static inline bool time_is_up(int rounds, const struct timespec *since)
{
	const char *seconds = getenv("MRELEASE_SECONDS");
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return rounds >= 20 &&
	       now.tv_sec - since->tv_sec >= (seconds ? atoi(seconds) : 6);
}

static inline void make_child(void)
{
	if (!fork())
		run_commands((void *)(mm.spec->nr - 1L));
}

/* The kernel thread uses this mm for as long as the file is open. */
static inline void start_vhost_worker(void)
{
	unsigned char mode = VHOST_FORK_OWNER_KTHREAD;
	int fd = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);

	if (fd < 0 || ioctl(fd, VHOST_SET_FORK_FROM_OWNER, &mode) ||
	    ioctl(fd, VHOST_SET_OWNER))
		_exit(EXIT_UNSUPPORTED);
}

#endif
