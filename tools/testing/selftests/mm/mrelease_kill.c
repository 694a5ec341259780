// SPDX-License-Identifier: GPL-2.0
/*
 * Test which processes process_mrelease(PROCESS_MRELEASE_REAP_KILL) kills, with
 * which permissions, and in which states of the victim it frees the memory.
 *
 * The processes of a test are in one cgroup, whose charge right after the call is
 * what has not been freed. Survivors check their memory themselves. A race runs
 * for $MRELEASE_SECONDS, 6 by default.
 */
#define _GNU_SOURCE
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <linux/landlock.h>
#include <linux/vhost.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "mrelease_util.h"
#include "../pidfd/pidfd.h"

#define PAGES	1024L	/* of anonymous memory and of the file ... */
#define RACE_PAGES 16	/* ... but of the file in races */
#define STACK	(16 * psize())
#define THREAD	(CLONE_THREAD | CLONE_SIGHAND | CLONE_FS | CLONE_FILES)
#define PROCS	3

#define NO_PART	"this kernel or machine has not got what it takes"

/* The processes of a test. Those not started have no pid. */
static struct proc {
	pid_t pid;
	int pidfd;
	int sock[2];	/* the test's end, the process's end */
} procs[PROCS];

/* What the processes of a test are and do. */
struct play {
	void (*begin)(void);	/* called in the first one, starts the others */
	int (*cue)(void);	/* called when the test sends CUE */
	int nr;			/* of processes, 0 is 1 */
	int flags;		/* for clone3() */
	int map_flags;		/* of the file, 0 is MAP_SHARED */
	cpu_set_t *cpus;
	bool copies;		/* each has its own mm */
	bool busy;		/* the first one cannot report that it is ready */
};

enum { CHECK = 1, CUE };

/*
 * In the processes of a test.
 */
static struct {
	const struct play *play;
	char *anon;
	char *file;
	long pages;		/* of the file */
	int fd;
	pid_t init;		/* of a nested PID namespace */
} my;

/* One word of each page tells whether the page is intact. */
static void fill_memory(void)
{
	size_t align = 4 << 20, len = PAGES * psize();

	my.anon = mmap(NULL, len + align, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (my.anon == MAP_FAILED)
		_exit(1);
	my.anon = (char *)(((uintptr_t)my.anon + align - 1) & -align);
	madvise(my.anon, len, MADV_HUGEPAGE);
	for (long i = 0; i < PAGES; i++)
		*(long *)(my.anon + i * psize()) = ~i;
	if (!my.pages)
		return;

	my.file = mmap(NULL, my.pages * psize(), PROT_READ | PROT_WRITE,
		       my.play->map_flags ?: MAP_SHARED, my.fd, 0);
	if (my.file == MAP_FAILED || madvise(my.file, my.pages * psize(), MADV_RANDOM))
		_exit(1);
	for (long i = 0; i < my.pages; i++)
		FORCE_READ(my.file[i * psize()]);
}

static bool memory_intact(void)
{
	for (long i = 0; i < PAGES; i++) {
		if (*(long *)(my.anon + i * psize()) != ~i)
			return false;
	}
	for (long i = 0; i < my.pages; i++) {
		if (!filled(my.file + i * psize(), i, 0))
			return false;
	}
	return true;
}

/* Report to the test, and then execute its commands. */
static int serve(void *nr)
{
	int sock = procs[(long)nr].sock[1];
	char c = CHECK;

	do {
		c = c == CHECK ? memory_intact() : my.play->cue();
	} while (write(sock, &c, 1) == 1 && read(sock, &c, 1) == 1);
	_exit(1);
}

/* Start @fn in another thread or process with this mm. */
static pid_t run(int (*fn)(void *), long nr, int flags)
{
	char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pid_t pid = -1;

	if (stack != MAP_FAILED)
		pid = clone(fn, stack + STACK, CLONE_VM | flags, (void *)nr);
	if (pid < 0)
		_exit(CANNOT);
	return pid;
}

static int serve_without_leader(void *nr)
{
	while (state_of(0) != 'Z')
		usleep(1000);
	return serve(nr);
}

static int exit_as_leader(void *nr)
{
	run(serve_without_leader, (long)nr, THREAD);
	return syscall(SYS_exit, 0);
}

static int sleep_on(void *unused)
{
	for (;;)
		pause();
	return 0;
}

/*
 * In the test.
 */

/* Wait for the report of a process. Its credentials tell the PID. */
static bool meet(struct __test_metadata *_metadata, struct proc *p)
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
		p->pidfd = pidfd_open(p->pid);
		ASSERT_GE(p->pidfd, 0);
	}
	return c;
}

/* Return false if a process cannot do its part. */
static bool start(struct __test_metadata *_metadata, struct env *env,
		  const struct play *play)
{
	struct clone_args args = {
		.flags = CLONE_PIDFD | CLONE_INTO_CGROUP | play->flags,
		.pidfd = (uintptr_t)&procs[0].pidfd,
		.exit_signal = SIGCHLD,
		.cgroup = env->cgroup_fd,
	};
	int nr = play->nr ?: 1, on = 1;
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
		if (play->cpus)
			sched_setaffinity(0, sizeof(*play->cpus), play->cpus);
		my.play = play;
		my.fd = env->fd;
		my.pages = env->pages;
		fill_memory();
		drain_lru_batches();
		if (play->begin)
			play->begin();
		serve(0);
	}
	for (int i = 0; i < nr; i++) {
		close(procs[i].sock[1]);
		if (i || !play->busy)
			ok &= meet(_metadata, &procs[i]);
	}
	return ok;
}

static bool tell(struct proc *p, char what)
{
	return send(p->sock[0], &what, 1, MSG_NOSIGNAL) == 1;
}

/* Send a command; return the answer, or -1 if the process dies. */
static int ask(struct proc *p, char what)
{
	struct pollfd fds[2] = { { p->sock[0], POLLIN }, { p->pidfd, POLLIN } };
	unsigned char c;

	if (!tell(p, what) || poll(fds, 2, -1) < 1 || !(fds[0].revents & POLLIN) ||
	    recv(p->sock[0], &c, 1, 0) != 1)
		return -1;
	return c;
}

/* Return true if the process is alive and its memory intact. */
static bool lives(struct proc *p)
{
	return ask(p, CHECK) == true;
}

/* Wait for a process to die; the test's child must have died of SIGKILL. */
static bool dies(struct proc *p)
{
	struct pollfd fd = { p->pidfd, POLLIN };
	siginfo_t info;

	if (poll(&fd, 1, 120000) != 1)
		return false;
	if (waitid(P_PIDFD, p->pidfd, &info, WEXITED))
		return errno == ECHILD;
	return info.si_code != CLD_EXITED && info.si_status == SIGKILL;
}

static void finish(struct env *env)
{
	kill_cgroup(env);
	for (int i = 0; i < PROCS && procs[i].pid; i++) {
		dies(&procs[i]);
		close(procs[i].pidfd);
		close(procs[i].sock[0]);
	}
}

/* All children, with those of dead processes, die of SIGKILL or exit with 0. */
static void check_all_die(struct __test_metadata *_metadata)
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

static void check_used(struct __test_metadata *_metadata, const struct env *env)
{
	struct usage usage = measure(env);

	EXPECT_GE(usage.charge, PAGES * psize());
	EXPECT_EQ(env->pages, usage.cache);
}

static void check_free(struct __test_metadata *_metadata, struct usage usage)
{
	EXPECT_LE(usage.charge, slack());
	EXPECT_EQ(0, usage.cache);
	EXPECT_EQ(0, usage.swap);
}

/* Anonymous memory only, without kernel memory of tasks that come and go. */
static long anon_of(const struct env *env)
{
	char path[PATH_MAX + 16], text[32];

	snprintf(path, sizeof(path), "%s/memory.stat", env->cgroup);
	/* The first line */
	if (!read_file(path, text, sizeof(text)) || strncmp(text, "anon ", 5))
		return LONG_MAX;
	return atol(text + 5);
}

static bool enough(int rounds, const struct timespec *since)
{
	const char *seconds = getenv("MRELEASE_SECONDS");
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return rounds >= 20 &&
	       now.tv_sec - since->tv_sec >= (seconds ? atoi(seconds) : 6);
}

/*
 * Exactly the processes that share the mm are killed.
 */
static void share(void)
{
	run(serve, 1, SIGCHLD);
}

static int share_again(void *nr)
{
	run(serve, 2, SIGCHLD);
	return serve(nr);
}

static void share_in_turn(void)
{
	run(share_again, 1, SIGCHLD);
}

static void vfork_child(void)
{
	run(serve, 1, CLONE_VFORK | SIGCHLD);
}

static void leave(void)
{
	exit_as_leader(0);
}

static void share_and_leave(void)
{
	run(serve, 1, SIGCHLD);
	exit_as_leader(0);
}

static void share_with_leaderless(void)
{
	run(exit_as_leader, 1, SIGCHLD);
}

static void share_with_init(void)
{
	run(serve, 1, CLONE_NEWPID | SIGCHLD);
}

static void share_with_other_userns(void)
{
	run(serve, 1, CLONE_NEWUSER | SIGCHLD);
}

static void make_child(void)
{
	if (!fork())
		serve((void *)1);
}

/* The first two share the mm, the third has a copy. */
static void make_both(void)
{
	share();
	if (!fork())
		serve((void *)2);
}

static void poll_a_ring(void)
{
	struct io_uring_params params = {
		.flags = IORING_SETUP_SQPOLL, .sq_thread_idle = 100000,
	};

	if (syscall(__NR_io_uring_setup, 8, &params) < 0)
		_exit(CANNOT);
}

/* The kernel thread uses this mm for as long as the file is open. */
static void lend_to_kernel_thread(void)
{
	unsigned char mode = VHOST_FORK_OWNER_KTHREAD;
	int fd = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);

	if (fd < 0 || ioctl(fd, VHOST_SET_FORK_FROM_OWNER, &mode) ||
	    ioctl(fd, VHOST_SET_OWNER))
		_exit(CANNOT);
}

FIXTURE(sharers) {
	struct env env;
};

FIXTURE_VARIANT(sharers) {
	struct play play;
	int named;		/* process of the pidfd */
	unsigned int live;	/* bits: processes that survive */
};

FIXTURE_VARIANT_ADD(sharers, sharer) {
	.play = { .begin = share, .nr = 2 },
};

FIXTURE_VARIANT_ADD(sharers, sharer_named) {
	.play = { .begin = share, .nr = 2 },
	.named = 1,
};

FIXTURE_VARIANT_ADD(sharers, sharers_in_turn) {
	.play = { .begin = share_in_turn, .nr = 3 },
	.named = 1,
};

FIXTURE_VARIANT_ADD(sharers, vfork_parent) {
	.play = { .begin = vfork_child, .nr = 2, .busy = true },
};

FIXTURE_VARIANT_ADD(sharers, vfork_child) {
	.play = { .begin = vfork_child, .nr = 2, .busy = true },
	.named = 1,
};

FIXTURE_VARIANT_ADD(sharers, leader_has_exited) {
	.play = { .begin = leave },
};

FIXTURE_VARIANT_ADD(sharers, leader_has_exited_sharer) {
	.play = { .begin = share_and_leave, .nr = 2 },
};

FIXTURE_VARIANT_ADD(sharers, leader_of_sharer_has_exited) {
	.play = { .begin = share_with_leaderless, .nr = 2 },
};

FIXTURE_VARIANT_ADD(sharers, sharer_in_pid_namespace) {
	.play = { .begin = share_with_init, .nr = 2 },
};

FIXTURE_VARIANT_ADD(sharers, sharer_in_pid_namespace_named) {
	.play = { .begin = share_with_init, .nr = 2 },
	.named = 1,
};

FIXTURE_VARIANT_ADD(sharers, sharer_in_user_namespace) {
	.play = { .begin = share_with_other_userns, .nr = 2 },
};

FIXTURE_VARIANT_ADD(sharers, kernel_polls_its_ring) {
	.play = { .begin = poll_a_ring },
};

FIXTURE_VARIANT_ADD(sharers, not_the_kernel_thread) {
	.play = { .begin = lend_to_kernel_thread },
};

FIXTURE_VARIANT_ADD(sharers, not_the_child) {
	.play = { .begin = make_child, .nr = 2 },
	.live = 1 << 1,
};

FIXTURE_VARIANT_ADD(sharers, not_the_parent) {
	.play = { .begin = make_child, .nr = 2 },
	.named = 1,
	.live = 1 << 0,
};

FIXTURE_VARIANT_ADD(sharers, sharer_and_not_the_child) {
	.play = { .begin = make_both, .nr = 3 },
	.named = 1,
	.live = 1 << 2,
};

FIXTURE_SETUP(sharers)
{
	set_up(_metadata, &self->env, true, PAGES);
}

FIXTURE_TEARDOWN(sharers)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(sharers, die, TIMEOUT)
{
	if (!start(_metadata, &self->env, &variant->play))
		SKIP(return, NO_PART);
	check_used(_metadata, &self->env);
	ASSERT_EQ(0, mrelease(procs[variant->named].pidfd, PROCESS_MRELEASE_REAP_KILL));
	/* The survivors still use all of it. */
	if (variant->live)
		check_used(_metadata, &self->env);
	else
		check_free(_metadata, measure(&self->env));
	for (int i = 0; i < (variant->play.nr ?: 1); i++) {
		EXPECT_TRUE(variant->live & 1 << i ? lives(&procs[i]) : dies(&procs[i])) {
			TH_LOG("process %d", i);
		}
	}
	finish(&self->env);
	EXPECT_EQ(-1, wrong_page(self->env.fd, PAGES, 0));
}

/*
 * The permission is that of kill(2), for all sharers. The same processes are killed
 * by kill(2), pidfd_send_signal(2) and the call, and the results compared.
 */
/* The kernel thread stays root's. */
static void lend_and_be_nobody(void)
{
	lend_to_kernel_thread();
	be_nobody();
}

static void be_of_nobody_with_root(void)
{
	be(NOBODY, 0, 0);
}

static void be_nobody_for_now(void)
{
	be(0, NOBODY, 0);
}

static void be_root_for_now(void)
{
	be(0, 0, NOBODY);
}

static void be_root_of_ones_own(void)
{
	be_nobody();
	if (unshare(CLONE_NEWUSER))
		_exit(CANNOT);
}

/* Root of a user namespace that nobody has created, but another user outside. */
static void be_root_for_nobody(void)
{
	char path[32];
	int fd, ready[2];
	pid_t pid;

	if (pipe(ready))
		_exit(CANNOT);
	snprintf(path, sizeof(path), "/proc/%d/uid_map", getpid());
	pid = fork();
	if (!pid) {
		if (read(ready[0], &fd, 1) != 1)
			_exit(CANNOT);
		_exit(put(AT_FDCWD, path, "0 100000 1") ? 0 : CANNOT);
	}
	be_root_of_ones_own();
	if (write(ready[1], "", 1) != 1 || wait_for_pid(pid))
		_exit(CANNOT);
	be(0, 0, 0);
}

static void share_with_nobody(void)
{
	share();
	be_nobody();
}

static int be_nobody_and_serve(void *nr)
{
	be_nobody();
	return serve(nr);
}

static void let_nobody_share(void)
{
	run(be_nobody_and_serve, 1, SIGCHLD);
}

static void make_init(void)
{
	struct clone_args args = { .flags = CLONE_NEWPID, .exit_signal = SIGCHLD };
	/* Not clone(), whose arguments have another order on s390. */
	pid_t pid = syscall(__NR_clone3, &args, sizeof(args));

	if (!pid)
		serve((void *)1);
	my.init = pid;
}

/* Share the mm with a process of the nested PID namespace that is not its init. */
static void share_with_one_below(void)
{
	make_init();
	if (setns(pidfd_open(my.init), CLONE_NEWPID))
		_exit(CANNOT);
	run(serve, 2, SIGCHLD);
}

/* Only children of the caller are in its new PID namespace. */
static void continue_in_child(void)
{
	pid_t pid = fork();

	if (pid)
		_exit(pid < 0 ? CANNOT : wait_for_pid(pid));
}

static void enter_pid_ns(void)
{
	if (setns(procs[0].pidfd, CLONE_NEWPID))
		_exit(CANNOT);
	continue_in_child();
}

static void enter_second_pid_ns(void)
{
	if (setns(procs[1].pidfd, CLONE_NEWPID))
		_exit(CANNOT);
	continue_in_child();
}

static void enter_new_pid_ns(void)
{
	if (unshare(CLONE_NEWPID))
		_exit(CANNOT);
	continue_in_child();
}

static void join_user_namespace(void)
{
	if (setns(procs[0].pidfd, CLONE_NEWUSER))
		_exit(CANNOT);
}

static void be_landlocked(void)
{
	struct landlock_ruleset_attr attr = { .scoped = LANDLOCK_SCOPE_SIGNAL };
	int fd = syscall(__NR_landlock_create_ruleset, &attr, sizeof(attr), 0);

	if (fd < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    syscall(__NR_landlock_restrict_self, fd, 0))
		_exit(CANNOT);
}

/* Find the PID of the process that has the inode of a pidfd. */
static pid_t find_pid(int pidfd)
{
	struct stat wanted, found;

	if (fstat(pidfd, &wanted))
		return 0;
	for (pid_t pid = 1; pid < 32768; pid++) {
		int fd = sys_pidfd_open(pid, 0);

		if (fd < 0)
			continue;
		if (fstat(fd, &found))
			found.st_ino = 0;
		close(fd);
		if (found.st_ino == wanted.st_ino)
			return pid;
	}
	return 0;
}

/* The ways to kill. They return 0 or the value of errno. */
static int by_kill(int pidfd)
{
	struct pidfd_info info = { .mask = PIDFD_INFO_PID };

	/* The PID in the caller's namespace, if there is one. Linux 6.12 cannot tell. */
	if (ioctl(pidfd, PIDFD_GET_INFO, &info) && errno != ESRCH)
		info.pid = find_pid(pidfd);
	if (info.pid)
		return kill(info.pid, SIGKILL) ? errno : 0;
	errno = ESRCH;
	return errno;
}

static int by_pidfd_send_signal(int pidfd)
{
	return sys_pidfd_send_signal(pidfd, SIGKILL, NULL, 0) ? errno : 0;
}

static int by_mrelease(int pidfd)
{
	return mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL);
}

FIXTURE(permission) {
	struct env env;
};

FIXTURE_VARIANT(permission) {
	struct play play;
	int named;
	void (*become)(void);	/* of the caller */
	int error;
};

FIXTURE_VARIANT_ADD(permission, kernel_thread_is_no_sharer) {
	.play = { .begin = lend_and_be_nobody },
	.become = be_nobody,
};

FIXTURE_VARIANT_ADD(permission, another_user) {
	.become = be_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, same_user) {
	.play = { .begin = be_nobody },
	.become = be_nobody,
};

FIXTURE_VARIANT_ADD(permission, set_user_id_victim) {
	.play = { .begin = be_of_nobody_with_root },
	.become = be_nobody,
};

FIXTURE_VARIANT_ADD(permission, saved_user_id) {
	.play = { .begin = be_root_for_now },
	.become = be_nobody,
};

FIXTURE_VARIANT_ADD(permission, effective_user_id) {
	.play = { .begin = be_nobody_for_now },
	.become = be_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, cap_kill) {
	.become = be_nobody_with_cap_kill,
};

FIXTURE_VARIANT_ADD(permission, cap_kill_in_wrong_user_namespace) {
	.become = be_root_of_ones_own,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, cap_kill_in_user_namespace_beside) {
	.play = { .begin = be_root_for_nobody },
	.become = be_root_of_ones_own,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, owner_of_user_namespace) {
	.play = { .begin = be_root_for_nobody },
	.become = be_nobody,
};

FIXTURE_VARIANT_ADD(permission, cap_kill_in_user_namespace) {
	.play = { .begin = be_root_for_nobody },
	.become = join_user_namespace,
};

FIXTURE_VARIANT_ADD(permission, landlocked) {
	.become = be_landlocked,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, sharer_of_another_user) {
	.play = { .begin = share_with_nobody, .nr = 2 },
	.become = be_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, sharer_of_another_user_named) {
	.play = { .begin = share_with_nobody, .nr = 2 },
	.named = 1,
	.become = be_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, sharer_of_same_user_named) {
	.play = { .begin = let_nobody_share, .nr = 2 },
	.named = 1,
	.become = be_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, sharers_of_both_users_cap_kill) {
	.play = { .begin = share_with_nobody, .nr = 2 },
	.become = be_nobody_with_cap_kill,
};

FIXTURE_VARIANT_ADD(permission, sharer_in_user_namespace) {
	.play = { .begin = share_with_other_userns, .nr = 2 },
	.become = be_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, process_from_pid_namespace_below) {
	.become = enter_new_pid_ns,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(permission, process_from_pid_namespace_beside) {
	.play = { .begin = make_child, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.named = 1,
	.become = enter_new_pid_ns,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(permission, process_from_pid_namespace_above) {
	.play = { .begin = make_child, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.named = 1,
};

FIXTURE_VARIANT_ADD(permission, process_from_same_pid_namespace) {
	.play = { .begin = make_child, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.named = 1,
	.become = enter_pid_ns,
};

FIXTURE_VARIANT_ADD(permission, init_from_inside) {
	.play = { .flags = CLONE_NEWPID },
	.become = enter_pid_ns,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, init_from_outside) {
	.play = { .flags = CLONE_NEWPID },
};

FIXTURE_VARIANT_ADD(permission, init_from_below) {
	.play = { .begin = make_init, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.become = enter_second_pid_ns,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(permission, nested_init_from_inside) {
	.play = { .begin = make_init, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.named = 1,
	.become = enter_second_pid_ns,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, nested_init_from_its_parent) {
	.play = { .begin = make_init, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.named = 1,
	.become = enter_pid_ns,
};

FIXTURE_VARIANT_ADD(permission, nested_init_from_outside) {
	.play = { .begin = make_init, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.named = 1,
};

FIXTURE_VARIANT_ADD(permission, sharer_of_init_from_inside) {
	.play = { .begin = share, .nr = 2, .flags = CLONE_NEWPID },
	.named = 1,
	.become = enter_pid_ns,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, sharer_of_init_from_outside) {
	.play = { .begin = share, .nr = 2, .flags = CLONE_NEWPID },
	.named = 1,
};

FIXTURE_VARIANT_ADD(permission, sharer_out_of_reach) {
	.play = { .begin = share_with_one_below, .nr = 3 },
	.named = 2,
	.become = enter_second_pid_ns,
	.error = EPERM,
};

FIXTURE_SETUP(permission)
{
	set_up(_metadata, &self->env, true, 0);
}

FIXTURE_TEARDOWN(permission)
{
	tear_down(&self->env);
}

/* Return what @way returns to a child that calls @become first. */
static int as_caller(struct __test_metadata *_metadata, void (*become)(void),
		     int (*way)(int pidfd), int pidfd)
{
	pid_t pid = fork();

	if (!pid) {
		if (become)
			become();
		_exit(way(pidfd));
	}
	ASSERT_GT(pid, 0);
	return wait_for_pid(pid);
}

TEST_F_TIMEOUT(permission, as_with_kill, TIMEOUT)
{
	int (*const ways[])(int pidfd) = { by_kill, by_pidfd_send_signal, by_mrelease };
	int nr = variant->play.nr ?: 1, error[PROCS], verdict;

	for (int way = 0; way < 3; way++) {
		if (!start(_metadata, &self->env, &variant->play))
			SKIP(return, NO_PART);
		/* An init last, since its namespace dies with it. */
		for (int i = nr - 1; i >= 0; i--) {
			if (way < 2 || i == variant->named)
				error[i] = as_caller(_metadata, variant->become, ways[way],
						     procs[i].pidfd);
			if (error[i] == CANNOT)
				SKIP(return, NO_PART);
		}
		verdict = error[variant->named];
		if (way < 2) {
			/* A process that ignores the signal cannot be killed. */
			for (int i = 0; i < nr; i++) {
				if (!error[i] && lives(&procs[i]))
					error[i] = EPERM;
				if (error[i])
					EXPECT_TRUE(lives(&procs[i]));
			}
			verdict = error[variant->named];
			for (int i = 0; i < nr; i++) {
				if (!verdict && !variant->play.copies && error[i])
					verdict = EPERM;
			}
			/* There is a pidfd, but no PID in the caller's namespace. */
			if (verdict == ESRCH)
				verdict = EINVAL;
		} else if (verdict) {
			EXPECT_GE(measure(&self->env).charge, PAGES * psize());
			for (int i = 0; i < nr; i++)
				EXPECT_TRUE(lives(&procs[i]));
		} else {
			if (!variant->play.copies)
				check_free(_metadata, measure(&self->env));
			for (int i = 0; i < nr; i++) {
				if (i == variant->named || !variant->play.copies)
					EXPECT_TRUE(dies(&procs[i]));
			}
		}
		EXPECT_EQ(variant->error, verdict) {
			TH_LOG("way %d", way);
		}
		finish(&self->env);
	}
}

TEST(global_init_is_not_killed)
{
	char before[128] = "", after[128] = "";
	int pidfd = pidfd_open(1);

	if (!has_reap_kill())
		SKIP(return, NO_FLAG);
	if (geteuid())
		SKIP(return, "needs root");
	ASSERT_GE(pidfd, 0);
	ASSERT_TRUE(read_file("/proc/1/statm", before, sizeof(before)));
	EXPECT_EQ(EPERM, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
	ASSERT_TRUE(read_file("/proc/1/statm", after, sizeof(after)));
	EXPECT_STREQ(before, after);
	EXPECT_NE('Z', state_of(1));
	close(pidfd);
}

/*
 * States of the victim.
 */
static int spin(void)
{
	for (;;)
		;
	return 0;
}

static bool keep_busy(struct env *env)
{
	return tell(&procs[0], CUE) && wait_for_state(procs[0].pid, 'R');
}

static bool trace(struct env *env)
{
	int status;

	return !ptrace(PTRACE_SEIZE, procs[0].pid, 0, PTRACE_O_TRACEEXIT) &&
	       !ptrace(PTRACE_INTERRUPT, procs[0].pid, 0, 0) &&
	       waitpid(procs[0].pid, &status, 0) == procs[0].pid && WIFSTOPPED(status);
}

/* The victim stops again in its exit, before it leaves the mm. */
static bool stop_tracing(struct env *env)
{
	int status;

	while (waitpid(procs[0].pid, &status, 0) == procs[0].pid && WIFSTOPPED(status))
		ptrace(PTRACE_CONT, procs[0].pid, 0, 0);
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

/* Thaws the file system even if the test dies. */
static pid_t keeper;

static bool freeze_file_system(struct env *env)
{
	pid_t test = getpid();
	struct stat file, root;

	if (fstat(env->fd, &file) || stat("/", &root) || file.st_dev == root.st_dev)
		return false;
	keeper = fork();
	if (!keeper) {
		signal(SIGTERM, SIG_IGN);
		for (int i = 0; i < 3000 && getppid() == test; i++)
			usleep(10000);
		ioctl(env->fd, FITHAW, 0);
		_exit(0);
	}
	return !ioctl(env->fd, FIFREEZE, 0) && tell(&procs[0], CUE) &&
	       wait_for_state(procs[0].pid, 'D');
}

static bool thaw_file_system(struct env *env)
{
	/* The victim cannot have freed its memory. */
	bool waits = wait_for_state(procs[0].pid, 'D');

	if (ioctl(env->fd, FITHAW, 0))
		waits = false;
	kill(keeper, SIGKILL);
	waitpid(keeper, NULL, 0);
	return waits;
}

static int write_to_file(void)
{
	return pwrite(my.fd, my.anon, psize(), 0) == psize();
}

static int write_to_mapping(void)
{
	my.file[0]++;
	return 0;
}

/* Sleeps with mmap_lock held; a fault may hold the VMA lock only. */
static int populate_mapping(void)
{
	return madvise(my.file, psize(), MADV_POPULATE_WRITE);
}

static struct {
	char pattern[128];
	char path[64];
	int listener;
	int dump;
} core = { .listener = -1, .dump = -1 };

static int crash(void *unused)
{
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };

	if (setrlimit(RLIMIT_CORE, &limit))
		_exit(CANNOT);
	signal(SIGSEGV, SIG_DFL);
	raise(SIGSEGV);
	return 0;
}

static int dump_core(void)
{
	return crash(NULL);
}

static int dump_core_in_thread(void)
{
	run(crash, 0, THREAD);
	return sleep_on(NULL);
}

/* Read no more than the first bytes of the dump. */
static bool begin_dump(struct env *env)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct pollfd fd = { .events = POLLIN };
	char buf[80];

	if (!read_file("/proc/sys/kernel/core_pattern", core.pattern, sizeof(core.pattern)))
		return false;
	snprintf(core.path, sizeof(core.path), "/tmp/mrelease.%d", getpid());
	memcpy(addr.sun_path, core.path, sizeof(core.path));
	core.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(core.listener, (struct sockaddr *)&addr, sizeof(addr)) ||
	    listen(core.listener, 1))
		return false;
	snprintf(buf, sizeof(buf), "@%s", core.path);
	if (!put(AT_FDCWD, "/proc/sys/kernel/core_pattern", buf))
		return false;
	fd.fd = core.listener;
	if (!tell(&procs[0], CUE) || poll(&fd, 1, 120000) != 1)
		return false;
	core.dump = accept(core.listener, NULL, NULL);
	return recv(core.dump, buf, sizeof(buf), 0) > 0;
}

/* The dump is cut short. */
static bool end_dump(struct env *env)
{
	static char buf[1 << 16];
	bool dead = dies(&procs[0]);
	long all = 0, n;

	while ((n = recv(core.dump, buf, sizeof(buf), 0)) > 0)
		all += n;
	return dead && all < PAGES * psize();
}

static void restore_core_pattern(void)
{
	if (core.listener < 0)
		return;
	put(AT_FDCWD, "/proc/sys/kernel/core_pattern", core.pattern);
	close(core.listener);
	close(core.dump);
	unlink(core.path);
}

/* A request that never completes and uses no memory of the victim. */
static void begin_aio(void)
{
	struct iocb cb = { .aio_lio_opcode = IOCB_CMD_POLL, .aio_buf = POLLIN };
	struct iocb *list[] = { &cb };
	aio_context_t ctx = 0;
	int fds[2];

	if (pipe(fds))
		_exit(CANNOT);
	cb.aio_fildes = fds[0];
	if (syscall(SYS_io_setup, 8, &ctx) || syscall(SYS_io_submit, ctx, 1, list) != 1)
		_exit(CANNOT);
}

static void have_twin_pages(void)
{
	char *p = mmap(NULL, PAGES * psize(), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		_exit(CANNOT);
	madvise(p, PAGES * psize(), MADV_NOHUGEPAGE);
	memset(p, 1, PAGES * psize());
	if (madvise(p, PAGES * psize(), MADV_MERGEABLE))
		_exit(CANNOT);
}

#define KSM	"/sys/kernel/mm/ksm/"

static long ksm_run;

static bool merge(struct env *env)
{
	char path[48];

	ksm_run = get(AT_FDCWD, KSM "run");
	if (!put(AT_FDCWD, KSM "run", "1"))
		return false;
	snprintf(path, sizeof(path), "/proc/%d/ksm_merging_pages", procs[0].pid);
	for (int i = 0; i < 60000 && !get(AT_FDCWD, path); i++)
		usleep(1000);
	return get(AT_FDCWD, path);
}

static bool stop_merging(struct env *env)
{
	return put(AT_FDCWD, KSM "run", ksm_run ? "1" : "0");
}

FIXTURE(state) {
	struct env env;
};

FIXTURE_VARIANT(state) {
	struct play play;
	bool (*enter)(struct env *env);		/* false: skip the test */
	bool (*leave)(struct env *env);		/* false: was not in that state */
	long stay;		/* pages of the file that may stay cached */
};

FIXTURE_VARIANT_ADD(state, running) {
	.play = { .cue = spin },
	.enter = keep_busy,
};

FIXTURE_VARIANT_ADD(state, traced) {
	.enter = trace,
	.leave = stop_tracing,
};

FIXTURE_VARIANT_ADD(state, frozen) {
	.enter = freeze_cgroup,
};

FIXTURE_VARIANT_ADD(state, frozen_sharers) {
	.play = { .begin = share, .nr = 2 },
	.enter = freeze_cgroup,
};

FIXTURE_VARIANT_ADD(state, writes_to_frozen_file_system) {
	.play = { .cue = write_to_file },
	.enter = freeze_file_system,
	.leave = thaw_file_system,
};

/* The victim holds a reference to the page that it is about to write. */
FIXTURE_VARIANT_ADD(state, faults_on_frozen_file_system) {
	.play = { .cue = write_to_mapping },
	.enter = freeze_file_system,
	.leave = thaw_file_system,
	.stay = 1,
};

FIXTURE_VARIANT_ADD(state, populates_on_frozen_file_system) {
	.play = { .cue = populate_mapping },
	.enter = freeze_file_system,
	.leave = thaw_file_system,
	.stay = 1,
};

/* The victim holds a reference to the page that it is about to dump. */
FIXTURE_VARIANT_ADD(state, dumps_core) {
	.play = { .cue = dump_core },
	.enter = begin_dump,
	.leave = end_dump,
	.stay = 1,
};

FIXTURE_VARIANT_ADD(state, thread_dumps_core) {
	.play = { .cue = dump_core_in_thread },
	.enter = begin_dump,
	.leave = end_dump,
	.stay = 1,
};

FIXTURE_VARIANT_ADD(state, dumps_core_with_sharer) {
	.play = { .begin = share, .nr = 2, .cue = dump_core },
	.enter = begin_dump,
	.leave = end_dump,
	.stay = 1,
};

FIXTURE_VARIANT_ADD(state, aio_in_flight) {
	.play = { .begin = begin_aio },
};

FIXTURE_VARIANT_ADD(state, merged_by_ksm) {
	.play = { .begin = have_twin_pages },
	.enter = merge,
	.leave = stop_merging,
};

FIXTURE_SETUP(state)
{
	set_up(_metadata, &self->env, true, PAGES);
}

FIXTURE_TEARDOWN(state)
{
	restore_core_pattern();
	tear_down(&self->env);
}

TEST_F_TIMEOUT(state, all_is_free, TIMEOUT)
{
	struct usage usage;
	int again;

	if (!start(_metadata, &self->env, &variant->play))
		SKIP(return, NO_PART);
	check_used(_metadata, &self->env);
	if (variant->enter && !variant->enter(&self->env))
		SKIP(return, NO_PART);
	EXPECT_EQ(0, mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL));
	usage = measure(&self->env);
	/* A second call does not wait for the exit either. */
	again = mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL);
	EXPECT_TRUE(!again || again == ESRCH)
		TH_LOG("the second call ended with %d", again);
	EXPECT_TRUE(!variant->leave || variant->leave(&self->env));
	EXPECT_LE(usage.cache, variant->stay);
	usage.cache = 0;
	check_free(_metadata, usage);
	for (int i = 0; i < (variant->play.nr ?: 1); i++)
		EXPECT_TRUE(dies(&procs[i]));
	finish(&self->env);
}

/*
 * A caller that is a victim, and special pidfds.
 */
static int on_self(void)
{
	return mrelease(PIDFD_SELF, PROCESS_MRELEASE_REAP_KILL);
}

static int on_own_process(void)
{
	return mrelease(PIDFD_SELF_PROCESS, PROCESS_MRELEASE_REAP_KILL);
}

static int on_self_by_pidfd(void)
{
	return mrelease(pidfd_open(getpid()), PROCESS_MRELEASE_REAP_KILL);
}

static int on_self_without_flag(void)
{
	return mrelease(PIDFD_SELF, 0);
}

static int on_parent(void)
{
	return mrelease(pidfd_open(getppid()), PROCESS_MRELEASE_REAP_KILL);
}

static int call_on_self(void *unused)
{
	on_self();
	return 0;
}

static int call_on_own_process(void *unused)
{
	on_own_process();
	return 0;
}

static int call_by_pidfd(void *unused)
{
	on_self_by_pidfd();
	return 0;
}

static int on_self_in_thread(void)
{
	run(call_on_self, 0, THREAD);
	return sleep_on(NULL);
}

static int on_own_process_in_thread(void)
{
	run(call_on_own_process, 0, THREAD);
	return sleep_on(NULL);
}

static int by_pidfd_in_thread(void)
{
	run(call_by_pidfd, 0, THREAD);
	return sleep_on(NULL);
}

/* A pidfd of a thread is valid only if the thread is the leader. */
static int on_thread(unsigned int flags)
{
	int pidfd = sys_pidfd_open(run(sleep_on, 0, THREAD), PIDFD_THREAD);

	return pidfd < 0 ? CANNOT : mrelease(pidfd, flags);
}

static int on_thread_by_pidfd(void)
{
	return on_thread(PROCESS_MRELEASE_REAP_KILL);
}

static int on_thread_without_flag(void)
{
	return on_thread(0);
}

static int on_leading_thread(void)
{
	return mrelease(sys_pidfd_open(getpid(), PIDFD_THREAD), PROCESS_MRELEASE_REAP_KILL);
}

FIXTURE(caller_is_victim) {
	struct env env;
};

FIXTURE_VARIANT(caller_is_victim) {
	struct play play;
	int caller;
	unsigned int live;	/* bits: processes that survive */
	int error;
	bool no_flag;
	bool pidfd_self;
};

FIXTURE_VARIANT_ADD(caller_is_victim, self) {
	.play = { .cue = on_self },
	.pidfd_self = true,
};

FIXTURE_VARIANT_ADD(caller_is_victim, own_process) {
	.play = { .cue = on_own_process },
	.pidfd_self = true,
};

FIXTURE_VARIANT_ADD(caller_is_victim, self_by_pidfd) {
	.play = { .cue = on_self_by_pidfd },
};

FIXTURE_VARIANT_ADD(caller_is_victim, self_in_thread) {
	.play = { .cue = on_self_in_thread },
	.pidfd_self = true,
};

FIXTURE_VARIANT_ADD(caller_is_victim, own_process_in_thread) {
	.play = { .cue = on_own_process_in_thread },
	.pidfd_self = true,
};

FIXTURE_VARIANT_ADD(caller_is_victim, by_pidfd_in_thread) {
	.play = { .cue = by_pidfd_in_thread },
};

FIXTURE_VARIANT_ADD(caller_is_victim, self_without_flag) {
	.play = { .cue = on_self_without_flag },
	.live = 1 << 0,
	.error = EINVAL,
	.no_flag = true,
	.pidfd_self = true,
};

FIXTURE_VARIANT_ADD(caller_is_victim, init_of_pid_namespace) {
	.play = { .cue = on_self, .flags = CLONE_NEWPID },
	.live = 1 << 0,
	.error = EPERM,
	.pidfd_self = true,
};

FIXTURE_VARIANT_ADD(caller_is_victim, thread) {
	.play = { .cue = on_thread_by_pidfd },
	.live = 1 << 0,
	.error = ESRCH,
};

FIXTURE_VARIANT_ADD(caller_is_victim, thread_without_flag) {
	.play = { .cue = on_thread_without_flag },
	.live = 1 << 0,
	.error = ESRCH,
	.no_flag = true,
};

FIXTURE_VARIANT_ADD(caller_is_victim, leading_thread) {
	.play = { .cue = on_leading_thread },
};

FIXTURE_VARIANT_ADD(caller_is_victim, parent) {
	.play = { .begin = make_child, .nr = 2, .cue = on_parent },
	.caller = 1,
	.live = 1 << 1,
};

FIXTURE_VARIANT_ADD(caller_is_victim, sharing_parent) {
	.play = { .begin = share, .nr = 2, .cue = on_parent },
	.caller = 1,
};

FIXTURE_VARIANT_ADD(caller_is_victim, vfork_parent) {
	.play = { .begin = vfork_child, .nr = 2, .cue = on_parent, .busy = true },
	.caller = 1,
};

FIXTURE_SETUP(caller_is_victim)
{
	set_up(_metadata, &self->env, !variant->no_flag, PAGES);
}

FIXTURE_TEARDOWN(caller_is_victim)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(caller_is_victim, dies_or_returns, TIMEOUT)
{
	int nr = variant->play.nr ?: 1;
	bool lives_on = variant->live & 1 << variant->caller;
	int answer;

	/* Linux 6.12 does not know PIDFD_SELF. */
	if (variant->pidfd_self && mrelease(PIDFD_SELF, 0) == EBADF)
		SKIP(return, NO_PART);
	ASSERT_TRUE(start(_metadata, &self->env, &variant->play));
	check_used(_metadata, &self->env);
	answer = ask(&procs[variant->caller], CUE);
	EXPECT_EQ(lives_on ? variant->error : -1, answer);
	for (int i = 0; i < nr; i++)
		EXPECT_TRUE(variant->live & 1 << i ? lives(&procs[i]) : dies(&procs[i]));
	if (variant->live)
		check_used(_metadata, &self->env);
	else
		check_free(_metadata, measure(&self->env));
	finish(&self->env);
}

/*
 * Concurrent callers, and concurrent SIGKILL.
 */
struct caller {
	pthread_t thread;
	struct env *env;
	pthread_barrier_t *barrier;
	struct usage usage;
	int result;
};

static void *call_too(void *arg)
{
	struct caller *caller = arg;

	pthread_barrier_wait(caller->barrier);
	caller->result = mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL);
	caller->usage = measure(caller->env);
	return NULL;
}

static void *call_without_flag(void *arg)
{
	struct caller *caller = arg;
	int result;

	pthread_barrier_wait(caller->barrier);
	do {
		result = mrelease(procs[0].pidfd, 0);
	} while (result == EINVAL || !result);
	caller->result = result;
	return NULL;
}

static void *send_sigkill(void *arg)
{
	struct caller *caller = arg;

	pthread_barrier_wait(caller->barrier);
	kill(procs[0].pid, SIGKILL);
	caller->result = ESRCH;
	return NULL;
}

FIXTURE(same_moment) {
	struct env env;
};

FIXTURE_VARIANT(same_moment) {
	struct play play;
	void *(*other)(void *arg);
	int others;
	bool evicts;		/* the others do, or do not reap at all */
};

FIXTURE_VARIANT_ADD(same_moment, callers) {
	.other = call_too,
	.others = 3,
	.evicts = true,
};

FIXTURE_VARIANT_ADD(same_moment, callers_and_sharer) {
	.play = { .begin = share, .nr = 2 },
	.other = call_too,
	.others = 3,
	.evicts = true,
};

FIXTURE_VARIANT_ADD(same_moment, caller_without_flag) {
	.other = call_without_flag,
	.others = 1,
};

FIXTURE_VARIANT_ADD(same_moment, sigkill) {
	.other = send_sigkill,
	.others = 1,
	.evicts = true,
};

FIXTURE_VARIANT_ADD(same_moment, sigkill_to_one_of_two) {
	.play = { .begin = share, .nr = 2 },
	.other = send_sigkill,
	.others = 1,
	.evicts = true,
};

FIXTURE_SETUP(same_moment)
{
	set_up(_metadata, &self->env, true, RACE_PAGES);
}

FIXTURE_TEARDOWN(same_moment)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(same_moment, all_is_free, TIMEOUT)
{
	struct caller callers[3];
	pthread_barrier_t barrier;
	struct timespec begin;
	struct usage usage;
	int result, freed;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	pthread_barrier_init(&barrier, NULL, variant->others + 1);
	for (int i = 0; !enough(i, &begin); i++) {
		ASSERT_TRUE(start(_metadata, &self->env, &variant->play));
		for (int j = 0; j < variant->others; j++) {
			callers[j].env = &self->env;
			callers[j].barrier = &barrier;
			ASSERT_EQ(0, pthread_create(&callers[j].thread, NULL,
						    variant->other, &callers[j]));
		}
		pthread_barrier_wait(&barrier);
		/* Before, during and after the others' work */
		usleep(i % 20 * 50);
		result = mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL);
		usage = measure(&self->env);
		if (result)
			ASSERT_EQ(ESRCH, result);
		freed = !result;
		/* SIGKILL may have left the mm to a sharer. */
		if (result && variant->play.nr > 1) {
			result = mrelease(procs[1].pidfd, PROCESS_MRELEASE_REAP_KILL);
			usage = measure(&self->env);
			if (variant->other != call_too)
				ASSERT_EQ(0, result);
		}
		if (!result) {
			ASSERT_LE(usage.charge, slack() + usage.cache * psize());
			if (variant->evicts)
				ASSERT_EQ(0, usage.cache);
		}
		for (int j = 0; j < variant->others; j++) {
			ASSERT_EQ(0, pthread_join(callers[j].thread, NULL));
			if (!callers[j].result) {
				check_free(_metadata, callers[j].usage);
				freed++;
				continue;
			}
			ASSERT_EQ(ESRCH, callers[j].result);
		}
		/* The caller that kills the victim gets 0. */
		if (variant->other != send_sigkill)
			ASSERT_LT(0, freed);
		for (int j = 0; j < (variant->play.nr ?: 1); j++)
			ASSERT_TRUE(dies(&procs[j]));
		finish(&self->env);
		make_cold(_metadata, self->env.fd);
	}
}

/*
 * A call after another one, or after the victim's exit.
 */
FIXTURE(again) {
	struct env env;
};

FIXTURE_SETUP(again)
{
	set_up(_metadata, &self->env, true, PAGES);
}

FIXTURE_TEARDOWN(again)
{
	tear_down(&self->env);
}

static int turn_into_nobody(void)
{
	be_nobody();
	return 0;
}

/* A zombie has left its mm to a sharer. The result does not depend on the caller. */
TEST_F_TIMEOUT(again, zombie_with_living_sharer, TIMEOUT)
{
	const struct play play = { .begin = share, .nr = 2, .cue = turn_into_nobody };
	siginfo_t info;

	ASSERT_TRUE(start(_metadata, &self->env, &play));
	ASSERT_EQ(0, ask(&procs[0], CUE));
	ASSERT_EQ(0, kill(procs[0].pid, SIGKILL));
	ASSERT_EQ(0, waitid(P_PID, procs[0].pid, &info, WEXITED | WNOWAIT));
	EXPECT_EQ(ESRCH, mrelease(procs[0].pidfd, 0));
	EXPECT_EQ(ESRCH, mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL));
	EXPECT_EQ(ESRCH, as_caller(_metadata, be_nobody, by_mrelease, procs[0].pidfd));
	check_used(_metadata, &self->env);
	EXPECT_TRUE(lives(&procs[1]));
	finish(&self->env);
}

/* The first caller is killed during the call. The second call frees the rest. */
TEST_F_TIMEOUT(again, after_interrupted_call, TIMEOUT)
{
	const struct play play = { };
	struct timespec begin;
	int status, result, interrupted = 0;
	pid_t caller;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (int i = 0; !enough(i, &begin); i++) {
		ASSERT_TRUE(start(_metadata, &self->env, &play));
		caller = fork();
		if (!caller) {
			mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL);
			_exit(0);
		}
		usleep(i % 10 * 1000);
		kill(caller, SIGKILL);
		ASSERT_EQ(caller, waitpid(caller, &status, 0));
		interrupted += WIFSIGNALED(status);
		result = mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL);
		check_free(_metadata, measure(&self->env));
		if (result)
			ASSERT_EQ(ESRCH, result);
		ASSERT_TRUE(dies(&procs[0]));
		finish(&self->env);
	}
	TH_LOG("%d calls interrupted", interrupted);
}

/*
 * The sharers, the threads or the mm of the victim change all the time.
 */
static cpu_set_t here, there;	/* the CPUs of the test and of the victim */

/* Make the teardown of the old mm in execve() take a while. */
static void add_memory(void)
{
	size_t len = 4 * PAGES * psize();
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);

	if (p == MAP_FAILED)
		_exit(1);
	madvise(p, len, MADV_NOHUGEPAGE);
	memset(p, 1, len);
}

/* Report to the test by the same socket after each execve(). */
static void exec_again(const char *how)
{
	char sock[16];

	add_memory();
	snprintf(sock, sizeof(sock), "%d", procs[0].sock[1]);
	if (write(procs[0].sock[1], "", 1) == 1)
		execl("/proc/self/exe", "mrelease_kill", how, sock, NULL);
	_exit(1);
}

static int exec_leader(void)
{
	exec_again("exec");
	return 0;
}

static int exec_in_thread(void *unused)
{
	exec_again("exec_thread");
	return 0;
}

static int exec_thread(void)
{
	run(exec_in_thread, 0, THREAD);
	return sleep_on(NULL);
}

static int watch_memory(void *unused)
{
	while (memory_intact())
		usleep(1000);
	_exit(2);
}

/* The sharer keeps the old mm. */
static int exec_with_sharer(void)
{
	run(watch_memory, 0, SIGCHLD);
	exec_again("exec_sharer");
	return 0;
}

/* In the program */
static void exec_main(const char *how, const char *sock)
{
	procs[0].sock[1] = atoi(sock);
	fill_memory();
	if (!strcmp(how, "exec"))
		exec_leader();
	if (!strcmp(how, "exec_thread"))
		exec_thread();
	if (!strcmp(how, "exec_sharer"))
		exec_with_sharer();
}

static int exit_soon(void *us)
{
	usleep((long)us);
	_exit(0);
}

static int make_sharers(void)
{
	for (int nr = 0;; nr++) {
		run(exit_soon, nr % 4 * 500, SIGCHLD);
		while (waitpid(-1, NULL, nr < 8 ? WNOHANG : 0) > 0 && nr >= 8)
			nr--;
	}
	return 0;
}

/* Each sharer starts the next one and exits. */
static int relay(void *unused)
{
	run(relay, 0, SIGCHLD);
	_exit(0);
}

static int make_relay(void)
{
	run(relay, 0, SIGCHLD);
	return sleep_on(NULL);
}

static int vfork_loop(void)
{
	for (int nr = 0;; nr++) {
		pid_t pid = run(exit_soon, nr % 4 * 500, CLONE_VFORK | SIGCHLD);

		waitpid(pid, NULL, 0);
	}
	return 0;
}

static void *nothing(void *unused)
{
	return NULL;
}

static void *thread_loop(void *unused)
{
	pthread_t thread;

	for (;;) {
		if (!pthread_create(&thread, NULL, nothing, NULL))
			pthread_join(thread, NULL);
	}
	return NULL;
}

static int make_threads(void)
{
	pthread_t thread;

	for (int i = 0; i < 2; i++)
		pthread_create(&thread, NULL, thread_loop, NULL);
	thread_loop(NULL);
	return 0;
}

FIXTURE(race) {
	struct env env;
};

FIXTURE_VARIANT(race) {
	int (*cue)(void);
	bool exec;		/* the mm is replaced */
	bool others_live;	/* sharers of the old mm survive */
	bool apart;		/* test and victim are on different CPUs */
};

FIXTURE_VARIANT_ADD(race, exec) {
	.cue = exec_leader,
	.exec = true,
};

FIXTURE_VARIANT_ADD(race, exec_apart) {
	.cue = exec_leader,
	.exec = true,
	.apart = true,
};

FIXTURE_VARIANT_ADD(race, exec_in_thread) {
	.cue = exec_thread,
	.exec = true,
};

FIXTURE_VARIANT_ADD(race, exec_in_thread_apart) {
	.cue = exec_thread,
	.exec = true,
	.apart = true,
};

FIXTURE_VARIANT_ADD(race, exec_with_sharer_apart) {
	.cue = exec_with_sharer,
	.exec = true,
	.others_live = true,
	.apart = true,
};

FIXTURE_VARIANT_ADD(race, sharers) {
	.cue = make_sharers,
};

FIXTURE_VARIANT_ADD(race, sharers_apart) {
	.cue = make_sharers,
	.apart = true,
};

FIXTURE_VARIANT_ADD(race, relay) {
	.cue = make_relay,
};

FIXTURE_VARIANT_ADD(race, relay_apart) {
	.cue = make_relay,
	.apart = true,
};

FIXTURE_VARIANT_ADD(race, vfork) {
	.cue = vfork_loop,
};

FIXTURE_VARIANT_ADD(race, vfork_apart) {
	.cue = vfork_loop,
	.apart = true,
};

FIXTURE_VARIANT_ADD(race, threads) {
	.cue = make_threads,
};

FIXTURE_VARIANT_ADD(race, threads_apart) {
	.cue = make_threads,
	.apart = true,
};

FIXTURE_SETUP(race)
{
	set_up(_metadata, &self->env, true, RACE_PAGES);
}

FIXTURE_TEARDOWN(race)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(race, all_is_free, TIMEOUT)
{
	struct play play = { .cue = variant->cue, .cpus = &there };
	struct timespec begin;
	struct usage usage;
	unsigned int delay = 100;
	int cpu = 0, i;
	long anon;
	char c;

	ASSERT_EQ(0, sched_getaffinity(0, sizeof(there), &there));
	while (!CPU_ISSET(cpu, &there))
		cpu++;
	CPU_ZERO(&here);
	CPU_SET(cpu, &here);
	CPU_CLR(cpu, &there);
	if (!variant->apart)
		there = here;
	else if (!CPU_COUNT(&there))
		SKIP(return, "needs two CPUs");
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(here), &here));
	ASSERT_EQ(0, prctl(PR_SET_CHILD_SUBREAPER, 1));

	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (i = 0; !enough(i, &begin); i++) {
		ASSERT_TRUE(start(_metadata, &self->env, &play));
		ASSERT_TRUE(tell(&procs[0], CUE));
		/* Right before the first execve() */
		if (variant->exec)
			ASSERT_EQ(1, read(procs[0].sock[0], &c, 1));
		usleep(delay);
		delay = delay < 20000 ? delay + delay / 4 : 100;
		ASSERT_EQ(0, mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL));
		anon = anon_of(&self->env);
		usage = measure(&self->env);
		if (variant->others_live) {
			/* They check their memory. */
			usleep(5000);
			kill_cgroup(&self->env);
		} else if (!variant->exec) {
			ASSERT_LE(anon, slack_of(2)) TH_LOG("in round %d", i);
			ASSERT_EQ(0, usage.cache) TH_LOG("in round %d", i);
		}
		check_all_die(_metadata);
		/* The old mm, if the signal came late in execve() */
		ASSERT_LE(anon_of(&self->env), slack_of(2)) TH_LOG("in round %d", i);
	}
	TH_LOG("%d rounds", i);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strncmp(argv[1], "exec", 4))
		exec_main(argv[1], argv[2]);
	return test_harness_run(argc, argv);
}
