// SPDX-License-Identifier: GPL-2.0
/*
 * process_mrelease() with PROCESS_MRELEASE_REAP_KILL: who dies and who lives on
 * with all its memory, who may kill whom, in which states, and that what the
 * dead have left is found.
 *
 * The processes of a test are in one cgroup, which tells right after the call
 * what is free. They say themselves that their memory is what it was. For races
 * there is a time, $MRELEASE_SECONDS for each, rather than a number of rounds.
 */
#define _GNU_SOURCE
#include <linux/aio_abi.h>
#include <linux/capability.h>
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

#define PAGES	1024L	/* that a process has of each kind ... */
#define RACE_PAGES 16	/* ... but of a file in many rounds */
#define STACK	(16 * psize())
#define THREAD	(CLONE_THREAD | CLONE_SIGHAND | CLONE_FS | CLONE_FILES)
#define PROCS	3

/* What a process of ours, or a caller, says that cannot do its part. */
#define CANNOT	253
#define NO_PART	"this kernel or machine has not got what it takes"

/* The processes of a test: only what has been started has a pid. */
static struct proc {
	pid_t pid;
	int pidfd;
	int sock[2];	/* the test's end, and its own */
} procs[PROCS];

/* How they come into being. */
struct play {
	void (*begin)(void);	/* in the first one; else it just serves */
	int (*cue)(void);	/* what CUE has them do */
	int nr;			/* how many, 0 is 1 */
	int flags;		/* for clone3() */
	int map_flags;		/* of the file, 0 is MAP_SHARED */
	cpu_set_t *cpus;
	bool copies;		/* each has its own memory */
	bool busy;		/* the first one cannot say when it is ready */
};

enum { CHECK = 1, CUE };

/*
 * In these processes.
 */
static struct {
	const struct play *play;
	char *anon;
	char *file;
	long pages;		/* of the file */
	int fd;
	pid_t init;		/* of a PID namespace below */
} my;

/* A word of each page is enough: it is there or it is not. */
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

/* Says that this process is there, and then does what the test tells it to. */
static int serve(void *nr)
{
	int sock = procs[(long)nr].sock[1];
	char c = CHECK;

	do {
		c = c == CHECK ? memory_intact() : my.play->cue();
	} while (write(sock, &c, 1) == 1 && read(sock, &c, 1) == 1);
	_exit(1);
}

/* Runs it in another thread, or in another process with this memory. */
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

static char state_of(const char *pid)
{
	char path[32], text[512] = "", *p;

	snprintf(path, sizeof(path), "/proc/%s/stat", pid);
	if (!read_file(path, text, sizeof(text)))
		return 0;
	p = strrchr(text, ')');
	return p && p[1] ? p[2] : 0;
}

static int serve_without_leader(void *nr)
{
	while (state_of("self") != 'Z')
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

/* What it says when it is ready also tells who it is. */
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

/* False if they cannot do what they should. */
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

/* What it answers, or -1 if it dies instead. */
static int ask(struct proc *p, char what)
{
	struct pollfd fds[2] = { { p->sock[0], POLLIN }, { p->pidfd, POLLIN } };
	unsigned char c;

	if (!tell(p, what) || poll(fds, 2, -1) < 1 || !(fds[0].revents & POLLIN) ||
	    recv(p->sock[0], &c, 1, 0) != 1)
		return -1;
	return c;
}

/* Alive, and its memory what it was? */
static bool lives(struct proc *p)
{
	return ask(p, CHECK) == true;
}

/* Killed? It may be on its way. Of what is known only if it was our child. */
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
	put(env->cgroup_fd, "cgroup.kill", "1");
	for (int i = 0; i < PROCS && procs[i].pid; i++) {
		dies(&procs[i]);
		close(procs[i].pidfd);
		close(procs[i].sock[0]);
	}
}

/* All that the first one has started as well, and none of them by a fault. */
static void check_all_die(struct __test_metadata *_metadata)
{
	struct timespec pause = { .tv_nsec = 1000000 };
	int status;
	pid_t pid;

	for (int i = 0; (pid = waitpid(-1, &status, WNOHANG)) >= 0; i++) {
		if (!pid) {
			ASSERT_LT(i, 120000) TH_LOG("Somebody lives on");
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

/* Without what the kernel has for tasks that come and go. */
static long anon_of(const struct env *env)
{
	char path[PATH_MAX + 16], text[32];

	snprintf(path, sizeof(path), "%s/memory.stat", env->cgroup);
	/* It is what the file begins with. */
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
 * Who dies: those who share the memory, and nobody else.
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

/* The first shares with the second, and the third has a copy. */
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

/* It takes over the address space and keeps it for as long as the file is open. */
static void lend_to_kernel_thread(void)
{
	unsigned char mode = VHOST_FORK_OWNER_KTHREAD;
	int fd = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);

	if (fd < 0 || ioctl(fd, VHOST_SET_FORK_FROM_OWNER, &mode) ||
	    ioctl(fd, VHOST_SET_OWNER))
		_exit(CANNOT);
}

FIXTURE(who_dies) {
	struct env env;
};

FIXTURE_VARIANT(who_dies) {
	struct play play;
	int named;		/* by the pidfd */
	unsigned int live;	/* bits: these do */
};

FIXTURE_VARIANT_ADD(who_dies, sharer) {
	.play = { .begin = share, .nr = 2 },
};

FIXTURE_VARIANT_ADD(who_dies, sharer_named) {
	.play = { .begin = share, .nr = 2 },
	.named = 1,
};

FIXTURE_VARIANT_ADD(who_dies, sharers_in_turn) {
	.play = { .begin = share_in_turn, .nr = 3 },
	.named = 1,
};

FIXTURE_VARIANT_ADD(who_dies, vfork_parent) {
	.play = { .begin = vfork_child, .nr = 2, .busy = true },
};

FIXTURE_VARIANT_ADD(who_dies, vfork_child) {
	.play = { .begin = vfork_child, .nr = 2, .busy = true },
	.named = 1,
};

FIXTURE_VARIANT_ADD(who_dies, leader_has_exited) {
	.play = { .begin = leave },
};

FIXTURE_VARIANT_ADD(who_dies, leader_has_exited_sharer) {
	.play = { .begin = share_and_leave, .nr = 2 },
};

FIXTURE_VARIANT_ADD(who_dies, leader_of_sharer_has_exited) {
	.play = { .begin = share_with_leaderless, .nr = 2 },
};

FIXTURE_VARIANT_ADD(who_dies, sharer_in_pid_namespace) {
	.play = { .begin = share_with_init, .nr = 2 },
};

FIXTURE_VARIANT_ADD(who_dies, sharer_in_pid_namespace_named) {
	.play = { .begin = share_with_init, .nr = 2 },
	.named = 1,
};

FIXTURE_VARIANT_ADD(who_dies, sharer_in_user_namespace) {
	.play = { .begin = share_with_other_userns, .nr = 2 },
};

FIXTURE_VARIANT_ADD(who_dies, kernel_polls_its_ring) {
	.play = { .begin = poll_a_ring },
};

FIXTURE_VARIANT_ADD(who_dies, not_the_kernel_thread) {
	.play = { .begin = lend_to_kernel_thread },
};

FIXTURE_VARIANT_ADD(who_dies, not_the_child) {
	.play = { .begin = make_child, .nr = 2 },
	.live = 1 << 1,
};

FIXTURE_VARIANT_ADD(who_dies, not_the_parent) {
	.play = { .begin = make_child, .nr = 2 },
	.named = 1,
	.live = 1 << 0,
};

FIXTURE_VARIANT_ADD(who_dies, sharer_and_not_the_child) {
	.play = { .begin = make_both, .nr = 3 },
	.named = 1,
	.live = 1 << 2,
};

FIXTURE_SETUP(who_dies)
{
	set_up(_metadata, &self->env, true, PAGES);
}

FIXTURE_TEARDOWN(who_dies)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(who_dies, sharers_only, TIMEOUT)
{
	if (!start(_metadata, &self->env, &variant->play))
		SKIP(return, NO_PART);
	check_used(_metadata, &self->env);
	ASSERT_EQ(0, mrelease(procs[variant->named].pidfd, PROCESS_MRELEASE_REAP_KILL));
	/* Who lives has kept all of it. */
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
 * Who may kill: who may do it with kill(2), and all of the sharers or none. The
 * same processes are killed in all ways, and their fates compared.
 */
static void be(uid_t real, uid_t effective, uid_t saved)
{
	/* The system call, since the C library thinks of threads. */
	if (syscall(SYS_setresuid, real, effective, saved))
		_exit(CANNOT);
}

static void be_nobody(void)
{
	be(NOBODY, NOBODY, NOBODY);
}

/* The kernel thread is root's all the same. */
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

static void be_nobody_with_cap_kill(void)
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

static void be_root_of_ones_own(void)
{
	be_nobody();
	if (unshare(CLONE_NEWUSER))
		_exit(CANNOT);
}

/* Another user, who is the root of a user namespace that nobody has made. */
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

/* With one who is down there, and no init. */
static void share_with_one_below(void)
{
	make_init();
	if (setns(pidfd_open(my.init), CLONE_NEWPID))
		_exit(CANNOT);
	run(serve, 2, SIGCHLD);
}

/* The caller goes on in a child, as it takes to change the PID namespace. */
static void go_on(void)
{
	pid_t pid = fork();

	if (pid)
		_exit(pid < 0 ? CANNOT : wait_for_pid(pid));
}

static void go_inside(void)
{
	if (setns(procs[0].pidfd, CLONE_NEWPID))
		_exit(CANNOT);
	go_on();
}

static void go_where_second_is(void)
{
	if (setns(procs[1].pidfd, CLONE_NEWPID))
		_exit(CANNOT);
	go_on();
}

static void go_elsewhere(void)
{
	if (unshare(CLONE_NEWPID))
		_exit(CANNOT);
	go_on();
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

/* The ways. They return 0 or what errno would be. */
static int by_kill(int pidfd)
{
	struct pidfd_info info = { .mask = PIDFD_INFO_PID };

	/* What the caller would call it, if it can. */
	if (ioctl(pidfd, PIDFD_GET_INFO, &info) || !info.pid)
		return errno == ENOTTY ? CANNOT : ESRCH;
	return kill(info.pid, SIGKILL) ? errno : 0;
}

static int by_pidfd_send_signal(int pidfd)
{
	return sys_pidfd_send_signal(pidfd, SIGKILL, NULL, 0) ? errno : 0;
}

static int by_mrelease(int pidfd)
{
	return mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL);
}

FIXTURE(who_may) {
	struct env env;
};

FIXTURE_VARIANT(who_may) {
	struct play play;
	int named;
	void (*become)(void);	/* what the caller is */
	int error;
};

FIXTURE_VARIANT_ADD(who_may, kernel_thread_is_no_sharer) {
	.play = { .begin = lend_and_be_nobody },
	.become = be_nobody,
};

FIXTURE_VARIANT_ADD(who_may, another_user) {
	.become = be_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(who_may, same_user) {
	.play = { .begin = be_nobody },
	.become = be_nobody,
};

FIXTURE_VARIANT_ADD(who_may, set_user_id_victim) {
	.play = { .begin = be_of_nobody_with_root },
	.become = be_nobody,
};

FIXTURE_VARIANT_ADD(who_may, saved_user_id) {
	.play = { .begin = be_root_for_now },
	.become = be_nobody,
};

FIXTURE_VARIANT_ADD(who_may, effective_user_id) {
	.play = { .begin = be_nobody_for_now },
	.become = be_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(who_may, cap_kill) {
	.become = be_nobody_with_cap_kill,
};

FIXTURE_VARIANT_ADD(who_may, cap_kill_in_wrong_user_namespace) {
	.become = be_root_of_ones_own,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(who_may, cap_kill_in_user_namespace_beside) {
	.play = { .begin = be_root_for_nobody },
	.become = be_root_of_ones_own,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(who_may, owner_of_user_namespace) {
	.play = { .begin = be_root_for_nobody },
	.become = be_nobody,
};

FIXTURE_VARIANT_ADD(who_may, cap_kill_in_user_namespace) {
	.play = { .begin = be_root_for_nobody },
	.become = join_user_namespace,
};

FIXTURE_VARIANT_ADD(who_may, landlocked) {
	.become = be_landlocked,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(who_may, sharer_of_another_user) {
	.play = { .begin = share_with_nobody, .nr = 2 },
	.become = be_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(who_may, sharer_of_another_user_named) {
	.play = { .begin = share_with_nobody, .nr = 2 },
	.named = 1,
	.become = be_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(who_may, sharer_of_same_user_named) {
	.play = { .begin = let_nobody_share, .nr = 2 },
	.named = 1,
	.become = be_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(who_may, sharers_of_both_users_cap_kill) {
	.play = { .begin = share_with_nobody, .nr = 2 },
	.become = be_nobody_with_cap_kill,
};

FIXTURE_VARIANT_ADD(who_may, sharer_in_user_namespace) {
	.play = { .begin = share_with_other_userns, .nr = 2 },
	.become = be_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(who_may, process_from_pid_namespace_below) {
	.become = go_elsewhere,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(who_may, process_from_pid_namespace_beside) {
	.play = { .begin = make_child, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.named = 1,
	.become = go_elsewhere,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(who_may, process_from_pid_namespace_above) {
	.play = { .begin = make_child, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.named = 1,
};

FIXTURE_VARIANT_ADD(who_may, process_from_same_pid_namespace) {
	.play = { .begin = make_child, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.named = 1,
	.become = go_inside,
};

FIXTURE_VARIANT_ADD(who_may, init_from_inside) {
	.play = { .flags = CLONE_NEWPID },
	.become = go_inside,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(who_may, init_from_outside) {
	.play = { .flags = CLONE_NEWPID },
};

FIXTURE_VARIANT_ADD(who_may, init_from_below) {
	.play = { .begin = make_init, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.become = go_where_second_is,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(who_may, nested_init_from_inside) {
	.play = { .begin = make_init, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.named = 1,
	.become = go_where_second_is,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(who_may, nested_init_from_its_parent) {
	.play = { .begin = make_init, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.named = 1,
	.become = go_inside,
};

FIXTURE_VARIANT_ADD(who_may, nested_init_from_outside) {
	.play = { .begin = make_init, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.named = 1,
};

FIXTURE_VARIANT_ADD(who_may, sharer_of_init_from_inside) {
	.play = { .begin = share, .nr = 2, .flags = CLONE_NEWPID },
	.named = 1,
	.become = go_inside,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(who_may, sharer_of_init_from_outside) {
	.play = { .begin = share, .nr = 2, .flags = CLONE_NEWPID },
	.named = 1,
};

FIXTURE_VARIANT_ADD(who_may, sharer_out_of_reach) {
	.play = { .begin = share_with_one_below, .nr = 3 },
	.named = 2,
	.become = go_where_second_is,
	.error = EPERM,
};

FIXTURE_SETUP(who_may)
{
	set_up(_metadata, &self->env, true, 0);
}

FIXTURE_TEARDOWN(who_may)
{
	tear_down(&self->env);
}

/* What a caller of this kind gets to hear. */
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

TEST_F_TIMEOUT(who_may, as_with_kill, TIMEOUT)
{
	int (*const ways[])(int pidfd) = { by_kill, by_pidfd_send_signal, by_mrelease };
	int nr = variant->play.nr ?: 1, error[PROCS], verdict;

	for (int way = 0; way < 3; way++) {
		if (!start(_metadata, &self->env, &variant->play))
			SKIP(return, NO_PART);
		/* Those first who would die with their init. */
		for (int i = nr - 1; i >= 0; i--) {
			if (way < 2 || i == variant->named)
				error[i] = as_caller(_metadata, variant->become, ways[way],
						     procs[i].pidfd);
			if (error[i] == CANNOT)
				SKIP(return, NO_PART);
		}
		verdict = error[variant->named];
		if (way < 2) {
			/* All or nothing. An ignored signal kills nobody. */
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
			/* What has no name for the caller, though it has a pidfd. */
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
			TH_LOG("by way %d", way);
		}
		finish(&self->env);
	}
}

TEST(who_may_not_kill_global_init)
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
	EXPECT_NE('Z', state_of("1"));
	close(pidfd);
}

/*
 * In whatever state the victim is.
 */
static bool wait_for_state(struct proc *p, char state)
{
	char pid[16];

	snprintf(pid, sizeof(pid), "%d", p->pid);
	for (int i = 0; i < 10000 && state_of(pid) != state; i++)
		usleep(1000);
	return state_of(pid) == state;
}

static int spin(void)
{
	for (;;)
		;
	return 0;
}

static bool keep_busy(struct env *env)
{
	return tell(&procs[0], CUE) && wait_for_state(&procs[0], 'R');
}

static bool trace(struct env *env)
{
	int status;

	return !ptrace(PTRACE_SEIZE, procs[0].pid, 0, PTRACE_O_TRACEEXIT) &&
	       !ptrace(PTRACE_INTERRUPT, procs[0].pid, 0, 0) &&
	       waitpid(procs[0].pid, &status, 0) == procs[0].pid && WIFSTOPPED(status);
}

/* It stops once more on its way out, with all of its memory. */
static bool stop_tracing(struct env *env)
{
	int status;

	while (waitpid(procs[0].pid, &status, 0) == procs[0].pid && WIFSTOPPED(status))
		ptrace(PTRACE_CONT, procs[0].pid, 0, 0);
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

static bool freeze_cgroup(struct env *env)
{
	char text[64] = "";
	char path[PATH_MAX + 16];

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

/* Thaws the file system whatever becomes of the test. */
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
	       wait_for_state(&procs[0], 'D');
}

static bool thaw_file_system(struct env *env)
{
	/* It could not do anything about its memory itself. */
	bool waits = wait_for_state(&procs[0], 'D');

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

/* It sleeps with mmap_lock held, where a fault has only that of the VMA. */
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

/* Nobody reads the dump after its first bytes. */
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

/* It has come to an end, and not to its own. */
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

/* Waits for ever, but not with memory of its own. */
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
	bool (*enter)(struct env *env);		/* false: it cannot be done */
	bool (*leave)(struct env *env);		/* false: it was not in it */
	long stay;		/* pages of the file that may */
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

/* The page that it is about to write is in use. */
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

/* The page that is about to be dumped is in use. */
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
	/* Once more finds a dying process, or none. It does not wait for it. */
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
 * A caller that is itself concerned, and other ways to name a process.
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

/* A pidfd of a thread names no process, unless it leads one. */
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

FIXTURE(concerned) {
	struct env env;
};

FIXTURE_VARIANT(concerned) {
	struct play play;
	int caller;
	unsigned int live;	/* bits: these do */
	int error;
	bool no_flag;
};

FIXTURE_VARIANT_ADD(concerned, self) {
	.play = { .cue = on_self },
};

FIXTURE_VARIANT_ADD(concerned, own_process) {
	.play = { .cue = on_own_process },
};

FIXTURE_VARIANT_ADD(concerned, self_by_pidfd) {
	.play = { .cue = on_self_by_pidfd },
};

FIXTURE_VARIANT_ADD(concerned, self_in_thread) {
	.play = { .cue = on_self_in_thread },
};

FIXTURE_VARIANT_ADD(concerned, own_process_in_thread) {
	.play = { .cue = on_own_process_in_thread },
};

FIXTURE_VARIANT_ADD(concerned, by_pidfd_in_thread) {
	.play = { .cue = by_pidfd_in_thread },
};

FIXTURE_VARIANT_ADD(concerned, self_without_flag) {
	.play = { .cue = on_self_without_flag },
	.live = 1 << 0,
	.error = EINVAL,
	.no_flag = true,
};

FIXTURE_VARIANT_ADD(concerned, init_of_pid_namespace) {
	.play = { .cue = on_self, .flags = CLONE_NEWPID },
	.live = 1 << 0,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(concerned, thread) {
	.play = { .cue = on_thread_by_pidfd },
	.live = 1 << 0,
	.error = ESRCH,
};

FIXTURE_VARIANT_ADD(concerned, thread_without_flag) {
	.play = { .cue = on_thread_without_flag },
	.live = 1 << 0,
	.error = ESRCH,
	.no_flag = true,
};

FIXTURE_VARIANT_ADD(concerned, leading_thread) {
	.play = { .cue = on_leading_thread },
};

FIXTURE_VARIANT_ADD(concerned, parent) {
	.play = { .begin = make_child, .nr = 2, .cue = on_parent },
	.caller = 1,
	.live = 1 << 1,
};

FIXTURE_VARIANT_ADD(concerned, sharing_parent) {
	.play = { .begin = share, .nr = 2, .cue = on_parent },
	.caller = 1,
};

FIXTURE_VARIANT_ADD(concerned, vfork_parent) {
	.play = { .begin = vfork_child, .nr = 2, .cue = on_parent, .busy = true },
	.caller = 1,
};

FIXTURE_SETUP(concerned)
{
	set_up(_metadata, &self->env, !variant->no_flag, PAGES);
}

FIXTURE_TEARDOWN(concerned)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(concerned, it_may_survive_or_not, TIMEOUT)
{
	int nr = variant->play.nr ?: 1;
	bool lives_on = variant->live & 1 << variant->caller;
	int answer;

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
 * Somebody else is at the same victim at the same moment.
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
	/* As somebody who found nothing to do. */
	caller->result = ESRCH;
	if (result != ESRCH)
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
};

FIXTURE_VARIANT_ADD(same_moment, callers) {
	.other = call_too,
	.others = 3,
};

FIXTURE_VARIANT_ADD(same_moment, callers_and_sharer) {
	.play = { .begin = share, .nr = 2 },
	.other = call_too,
	.others = 3,
};

FIXTURE_VARIANT_ADD(same_moment, caller_without_flag) {
	.other = call_without_flag,
	.others = 1,
};

FIXTURE_VARIANT_ADD(same_moment, sigkill) {
	.other = send_sigkill,
	.others = 1,
};

FIXTURE_VARIANT_ADD(same_moment, sigkill_to_one_of_two) {
	.play = { .begin = share, .nr = 2 },
	.other = send_sigkill,
	.others = 1,
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
		/* Before it, beside it, behind it */
		usleep(i % 20 * 50);
		result = mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL);
		usage = measure(&self->env);
		if (result)
			ASSERT_EQ(ESRCH, result);
		freed = !result;
		/* It may have died alone, and left the memory to a sharer. */
		if (result && variant->play.nr > 1) {
			result = mrelease(procs[1].pidfd, PROCESS_MRELEASE_REAP_KILL);
			usage = measure(&self->env);
			if (variant->other != call_too)
				ASSERT_EQ(0, result);
		}
		ASSERT_LE(usage.charge, slack());
		if (!result)
			ASSERT_EQ(0, usage.cache);
		for (int j = 0; j < variant->others; j++) {
			ASSERT_EQ(0, pthread_join(callers[j].thread, NULL));
			if (!callers[j].result) {
				check_free(_metadata, callers[j].usage);
				freed++;
				continue;
			}
			ASSERT_EQ(ESRCH, callers[j].result);
		}
		/* Whoever finds it alive kills it, and is told so. */
		if (variant->other != send_sigkill)
			ASSERT_LT(0, freed);
		for (int j = 0; j < (variant->play.nr ?: 1); j++)
			ASSERT_TRUE(dies(&procs[j]));
		finish(&self->env);
	}
}

/*
 * What is left is found.
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

/*
 * A process that is dead, and whose memory is now that of another one only. Who
 * may kill that one is not the question: nobody is going to.
 */
TEST_F_TIMEOUT(again, not_what_others_have, TIMEOUT)
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

/* What a call without the flag has unmapped is in the page cache. */
TEST_F_TIMEOUT(again, after_call_without_flag, TIMEOUT)
{
	const struct play play = { .map_flags = MAP_PRIVATE };
	pid_t pid;

	ASSERT_TRUE(start(_metadata, &self->env, &play));
	pid = pin_memory(procs[0].pid, &my);
	if (pid < 0)
		SKIP(return, NO_PIN);
	ASSERT_EQ(0, kill(procs[0].pid, SIGKILL));
	EXPECT_EQ(0, mrelease(procs[0].pidfd, 0));
	EXPECT_EQ(0, mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL));
	check_free(_metadata, measure(&self->env));
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	EXPECT_TRUE(dies(&procs[0]));
	finish(&self->env);
}

/* The caller is killed in the call. The next one gets to the end of it. */
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

FIXTURE(after_sigkill) {
	struct env env;
	pid_t pinned_by;
};

FIXTURE_VARIANT(after_sigkill) {
	bool pinned;
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(after_sigkill, no_flag) { };

FIXTURE_VARIANT_ADD(after_sigkill, reap_kill) {
	.flags = PROCESS_MRELEASE_REAP_KILL,
};

FIXTURE_VARIANT_ADD(after_sigkill, no_flag_pinned) {
	.pinned = true,
};

FIXTURE_VARIANT_ADD(after_sigkill, reap_kill_pinned) {
	.pinned = true,
	.flags = PROCESS_MRELEASE_REAP_KILL,
};

FIXTURE_SETUP(after_sigkill)
{
	set_up(_metadata, &self->env, true, PAGES);
}

FIXTURE_TEARDOWN(after_sigkill)
{
	if (self->pinned_by > 0)
		kill(self->pinned_by, SIGKILL);
	tear_down(&self->env);
}

TEST_F_TIMEOUT(after_sigkill, found_at_any_time, TIMEOUT)
{
	/* From before the victim knows of it until it is a zombie */
	const unsigned int delays[] = { 0, 100, 300, 1000, 3000, 10000, 30000, 100000 };
	const struct play play = { };
	struct timespec begin;
	struct usage usage;
	int result;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (int i = 0; !enough(i, &begin); i++) {
		ASSERT_TRUE(start(_metadata, &self->env, &play));
		if (variant->pinned) {
			self->pinned_by = pin_memory(procs[0].pid, &my);
			if (self->pinned_by < 0)
				SKIP(return, NO_PIN);
		}
		ASSERT_EQ(0, kill(procs[0].pid, SIGKILL));
		usleep(delays[i % 8]);
		result = mrelease(procs[0].pidfd, variant->flags);
		usage = measure(&self->env);
		/* If it is not found, there is nothing to be found. */
		if (result || variant->pinned || variant->flags)
			ASSERT_LE(usage.charge, slack() + usage.cache * psize());
		if (variant->pinned || result != ESRCH)
			ASSERT_EQ(0, result);
		/* And if it is gone, its exit may have seen what the call wants. */
		if (!result || !variant->flags)
			ASSERT_EQ(variant->flags ? 0 : PAGES, usage.cache);
		if (variant->pinned) {
			kill(self->pinned_by, SIGKILL);
			ASSERT_EQ(self->pinned_by, waitpid(self->pinned_by, NULL, 0));
			self->pinned_by = 0;
		}
		ASSERT_TRUE(dies(&procs[0]));
		finish(&self->env);
		make_cold(_metadata, self->env.fd);
	}
}

/*
 * Moving targets: who shares the memory, or which memory it is, changes all the
 * time. One call is to get all of it.
 */
static cpu_set_t here, there;	/* the CPUs of the test and of the victim */

/* Takes a while to be unmapped, so that somebody may come in between. */
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

/* Tells the test, by the same socket in all of its lives. */
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

/* What was shared before is the sharer's alone from then on. */
static int exec_with_sharer(void)
{
	run(watch_memory, 0, SIGCHLD);
	exec_again("exec_sharer");
	return 0;
}

/* What such a program does in main(). */
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

/* Each sharer makes the next one, and is gone. */
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

/* Away from where its file was read. */
static int move(void)
{
	sched_setaffinity(0, sizeof(here), &here);
	return sleep_on(NULL);
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
	bool other_memory;	/* in the course of it */
	bool others_live;	/* who shared the memory, and have it now alone */
	bool apart;		/* on different CPUs */
};

FIXTURE_VARIANT_ADD(race, exec) {
	.cue = exec_leader,
	.other_memory = true,
};

FIXTURE_VARIANT_ADD(race, exec_apart) {
	.cue = exec_leader,
	.other_memory = true,
	.apart = true,
};

FIXTURE_VARIANT_ADD(race, exec_in_thread) {
	.cue = exec_thread,
	.other_memory = true,
};

FIXTURE_VARIANT_ADD(race, exec_in_thread_apart) {
	.cue = exec_thread,
	.other_memory = true,
	.apart = true,
};

FIXTURE_VARIANT_ADD(race, exec_with_sharer_apart) {
	.cue = exec_with_sharer,
	.other_memory = true,
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

FIXTURE_VARIANT_ADD(race, moved) {
	.cue = move,
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
		/* The moment before the first execve() */
		if (variant->other_memory)
			ASSERT_EQ(1, read(procs[0].sock[0], &c, 1));
		usleep(delay);
		delay = delay < 20000 ? delay + delay / 4 : 100;
		ASSERT_EQ(0, mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL));
		anon = anon_of(&self->env);
		usage = measure(&self->env);
		if (variant->others_live) {
			/* They say so if they find it changed. */
			usleep(5000);
			put(self->env.cgroup_fd, "cgroup.kill", "1");
		} else {
			ASSERT_LE(anon, slack_of(2)) TH_LOG("in round %d", i);
		}
		if (!variant->other_memory)
			ASSERT_EQ(0, usage.cache) TH_LOG("in round %d", i);
		check_all_die(_metadata);
	}
	TH_LOG("%d rounds", i);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strncmp(argv[1], "exec", 4))
		exec_main(argv[1], argv[2]);
	return test_harness_run(argc, argv);
}
