// SPDX-License-Identifier: GPL-2.0
/*
 * Test what process_mrelease(PROCESS_MRELEASE_REAP_KILL) permits while
 * credentials and sharers change, and for which victims it evicts file folios.
 *
 * A crowd of idle processes makes a walk of the process list take milliseconds.
 * A permission that is asked for before such a walk is out of date after it.
 *
 * $MRELEASE_ROUNDS, 60 by default, is the number of kills of each race.
 */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>

#include "mrelease_util.h"

#define PAGES		1024L	/* of the victim's file, and of its memory */
#define STACK		(16 * psize())

/* Descriptors that survive execve(). */
#define READY_FD	100
#define SHARED_FD	101
#define FILE_FD		102

static int idle(void *unused)
{
	for (;;)
		pause();
	return 0;
}

/* Start @fn in another process or thread that shares the mm. */
static pid_t share_mm(int (*fn)(void *), void *arg, int flags)
{
	char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (stack == MAP_FAILED)
		return -1;
	return clone(fn, stack + STACK, CLONE_VM | flags, arg);
}

/*
 * All of the crowd run on one stack, to which all write the same. They are in
 * a PID namespace and so die with its init.
 */
static void crowd_init(int ready, long size)
{
	char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long nr = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (nr < size && clone(idle, stack + STACK, CLONE_VM | CLONE_FS | CLONE_FILES |
				  CLONE_SIGHAND, NULL) > 0)
		nr++;
	if (write(ready, &nr, sizeof(nr)) != sizeof(nr))
		_exit(1);
	idle(NULL);
}

#define THREADS_MAX	"/proc/sys/kernel/threads-max"
#define PID_MAX		"/proc/sys/kernel/pid_max"

static long threads_max, pid_max;

static bool put_number(const char *name, long nr)
{
	char text[24];

	snprintf(text, sizeof(text), "%ld", nr);
	return put(AT_FDCWD, name, text);
}

static pid_t start_crowd(struct __test_metadata *_metadata, long size)
{
	struct clone_args args = { .flags = CLONE_NEWPID, .exit_signal = SIGCHLD };
	long room = sysconf(_SC_AVPHYS_PAGES) / (64 * 1024 / psize());
	int ready[2];
	pid_t pid;

	size = size < room ? size : room;
	threads_max = get(AT_FDCWD, THREADS_MAX);
	pid_max = get(AT_FDCWD, PID_MAX);
	if (threads_max < 2 * size)
		put_number(THREADS_MAX, 2 * size);
	if (pid_max < 2 * size)
		put_number(PID_MAX, 2 * size);
	ASSERT_EQ(0, pipe(ready));
	pid = syscall(__NR_clone3, &args, sizeof(args));
	ASSERT_GE(pid, 0);
	if (!pid)
		crowd_init(ready[1], size);
	ASSERT_EQ(sizeof(size), read(ready[0], &size, sizeof(size)));
	ASSERT_LT(0, size);
	TH_LOG("%ld idle processes", size);
	close(ready[0]);
	close(ready[1]);
	return pid;
}

static void end_crowd(pid_t pid)
{
	if (!pid)
		return;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	put_number(THREADS_MAX, threads_max);
	put_number(PID_MAX, pid_max);
}

/* A descriptor of a copy of this program with this mode, or -1. */
static int copy_self(mode_t mode)
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
static void exec_fd(int fd, const char *name, const char *arg)
{
	char * const argv[] = { (char *)name, (char *)arg, NULL };

	syscall(__NR_execveat, fd, "", argv, environ, AT_EMPTY_PATH);
	_exit(CANNOT);
}

static int rounds(void)
{
	const char *nr = getenv("MRELEASE_ROUNDS");

	return nr ? atoi(nr) : 60;
}

/*
 * A process that the caller may kill becomes root for good while the call is under way.
 * The call kills it only if kill(2) would at that moment.
 */
struct becoming {
	atomic_int ready, go;
	atomic_int sharer;		/* its PID */
	long delay;			/* us from .go until it becomes root; < 0: the call waits */
	atomic_long root_at, seen_at;	/* seen_at: its last sign of life */
	atomic_long called_at, returned_at;
};

/* Between the signal and the return to user mode of its target. */
#define DELIVERY	500L

FIXTURE(root_for_good) {
	struct env env;
	pid_t crowd;
	int program;
	struct becoming *becoming;
};

FIXTURE_VARIANT(root_for_good) {
	bool sharer;		/* becomes root, else the process of the pidfd */
	bool exec;		/* of a set-user-ID program */
	bool by_kill;		/* for comparison */
};

FIXTURE_VARIANT_ADD(root_for_good, victim) { };
FIXTURE_VARIANT_ADD(root_for_good, victim_exec) { .exec = true };
FIXTURE_VARIANT_ADD(root_for_good, sharer) { .sharer = true };
FIXTURE_VARIANT_ADD(root_for_good, sharer_exec) { .sharer = true, .exec = true };
FIXTURE_VARIANT_ADD(root_for_good, kill) { .by_kill = true };
FIXTURE_VARIANT_ADD(root_for_good, kill_exec) { .by_kill = true, .exec = true };

static struct becoming *map_becoming(void)
{
	return mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_SHARED, SHARED_FD, 0);
}

FIXTURE_SETUP(root_for_good)
{
	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		SKIP(return, "needs two CPUs");
	if (!set_up(_metadata, &self->env, true, 0))
		return;
	self->program = copy_self(04755);
	if (self->program < 0) {
		tear_down(&self->env);
		SKIP(return, NO_DISK);
	}
	ASSERT_EQ(SHARED_FD, dup2(memfd_create("becoming", MFD_CLOEXEC), SHARED_FD));
	ASSERT_EQ(0, ftruncate(SHARED_FD, psize()));
	self->becoming = map_becoming();
	self->crowd = start_crowd(_metadata, 10000);
}

FIXTURE_TEARDOWN(root_for_good)
{
	end_crowd(self->crowd);
	tear_down(&self->env);
}

/* As the process that becomes root, in the set-user-ID program if there is one. */
static int be_root(struct becoming *b)
{
	be(0, 0, 0);
	b->root_at = microseconds();
	for (;;)
		b->seen_at = microseconds();
	return 1;
}

struct root_victim {
	struct becoming *becoming;
	int program;		/* 0: none */
	bool sharer;
};

static int become_root(void *arg)
{
	const struct root_victim *v = arg;
	struct becoming *b = v->becoming;
	long start;

	b->ready = 1;
	while (!b->go)
		;
	start = microseconds();
	while (microseconds() < start + b->delay)
		;
	if (v->program)
		exec_fd(v->program, "become_root", NULL);
	return be_root(b);
}

/* Both processes may be killed by nobody, as the user who has started them. */
static void run_root_victim(struct root_victim *v)
{
	run_on(true);
	be(NOBODY, v->program ? NOBODY : 0, v->program ? NOBODY : 0);
	v->becoming->sharer = share_mm(v->sharer ? become_root : idle, v,
				       CLONE_PARENT | SIGCHLD);
	_exit(v->sharer ? idle(v) : become_root(v));
}

static bool is_dead(pid_t pid)
{
	siginfo_t info = { };

	return !waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) && info.si_pid;
}

/* As the caller: 0 or what errno would be. */
static int kill_becoming(struct becoming *b, pid_t pid, int pidfd, bool by_kill)
{
	int error = 0;

	be_nobody();
	b->called_at = microseconds();
	if (!by_kill)
		error = mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL);
	else if (kill(pid, SIGKILL))
		error = errno;
	b->returned_at = microseconds();
	return error;
}

TEST_F_TIMEOUT(root_for_good, is_not_killed, TIMEOUT)
{
	struct becoming *b = self->becoming;
	struct root_victim v = { b, variant->exec ? self->program : 0, variant->sharer };
	int pidfd, status, killed = 0, as_root = 0, inside = 0;
	long delay = 0, step = 16000;
	const int nr = rounds();
	pid_t pid, caller, who;

	run_on(false);
	for (int i = 0; i < nr; i++) {
		memset(b, 0, sizeof(*b));
		b->delay = delay;
		pid = fork_into_cgroup(&self->env, &pidfd);
		if (!pid)
			run_root_victim(&v);
		ASSERT_GT(pid, 0);
		while (!b->ready || !b->sharer)
			usleep(100);
		who = v.sharer ? b->sharer : pid;
		caller = fork();
		if (!caller) {
			b->go = 1;
			if (b->delay < 0)
				usleep(-b->delay);
			_exit(kill_becoming(b, who, pidfd, variant->by_kill));
		}
		ASSERT_EQ(caller, waitpid(caller, &status, 0));
		ASSERT_TRUE(WIFEXITED(status));

		while (!is_dead(who) && b->seen_at < b->returned_at + 2 * DELIVERY)
			usleep(100);
		if (WEXITSTATUS(status)) {
			ASSERT_EQ(EPERM, WEXITSTATUS(status));
			EXPECT_FALSE(is_dead(pid));
			EXPECT_FALSE(is_dead(b->sharer));
		} else if (!v.sharer || !v.program) {
			/* After an execve() it is no sharer. */
			EXPECT_TRUE(is_dead(who));
		}
		inside += b->root_at > b->called_at && b->root_at < b->returned_at;
		killed += is_dead(who);
		as_root += is_dead(who) && b->root_at && b->seen_at - b->root_at > DELIVERY;

		/* Approach the moment when the call comes too late. */
		delay += b->root_at ? step : -step;
		step = step > 4000 ? step * 3 / 4 : 4000;
		kill_cgroup(&self->env);
		waitpid(pid, NULL, 0);
		waitpid(b->sharer, NULL, 0);
		close(pidfd);
	}
	TH_LOG("%d of %d killed, %d became root during the call", killed, nr, inside);
	/* A host may take the CPU away from the guest between check and signal. */
	EXPECT_LE(as_root, variant->by_kill ? 0 : inside / 4);
	/* Or nothing has been tested. execve() takes too long to hit the call for sure. */
	if (!variant->by_kill && !variant->exec)
		EXPECT_LT(0, inside);
}

/*
 * The sharers start processes all the time, which leave the mm: by fork() or by
 * execve(). All that share the mm die, and all that have left it live.
 */
#define MAKERS		3
#define SLOTS		8	/* of each maker */

struct leaver {
	atomic_int pid;
	atomic_long left_at;
	char *stack;
};

FIXTURE(leavers) {
	struct env env;
	struct leaver *leavers;
};

static struct leaver *leavers;

static struct leaver *map_leavers(void)
{
	return leavers = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_SHARED, SHARED_FD, 0);
}

FIXTURE_SETUP(leavers)
{
	if (!set_up(_metadata, &self->env, true, 0))
		return;
	ASSERT_EQ(SHARED_FD, dup2(memfd_create("leavers", MFD_CLOEXEC), SHARED_FD));
	ASSERT_EQ(0, ftruncate(SHARED_FD, psize()));
	self->leavers = map_leavers();
}

FIXTURE_TEARDOWN(leavers)
{
	tear_down(&self->env);
}

/* With a mm of its own */
static int live_alone(struct leaver *l)
{
	l->left_at = microseconds();
	usleep(10000);
	_exit(0);
}

static int leave_by_exec(void *leaver)
{
	struct leaver *l = leaver;
	char slot[32];

	l->pid = syscall(SYS_getpid);
	snprintf(slot, sizeof(slot), "%ld", l - leavers);
	execl("/proc/self/exe", "leave", slot, NULL);
	_exit(1);
}

/* Without the handlers of the C library's fork(), which other sharers may be in. */
static pid_t leave_by_fork(struct leaver *l)
{
	struct clone_args args = { .exit_signal = SIGCHLD };
	pid_t pid = syscall(__NR_clone3, &args, sizeof(args));

	if (!pid) {
		l->pid = syscall(SYS_getpid);
		live_alone(l);
	}
	return pid;
}

static int make_leavers(void *slots)
{
	struct leaver *l = slots;
	int free = SLOTS;
	pid_t pid;

	for (int i = 0; i < SLOTS; i++) {
		l[i].stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		l[i].pid = 0;
	}
	for (unsigned int n = 0; ; n++) {
		while ((pid = waitpid(-1, NULL, free ? WNOHANG : 0)) > 0) {
			for (int i = 0; i < SLOTS; i++) {
				if (l[i].pid == pid) {
					l[i].left_at = 0;
					l[i].pid = 0;
					free++;
				}
			}
		}
		for (int i = 0; i < SLOTS && free; i++) {
			if (l[i].pid)
				continue;
			pid = n % 2 ? leave_by_fork(&l[i]) :
				clone(leave_by_exec, l[i].stack + STACK, CLONE_VM | SIGCHLD,
				      &l[i]);
			if (pid < 0)
				_exit(1);
			l[i].pid = pid;
			free--;
			break;
		}
	}
	return 0;
}

static bool has_left(const struct leaver *l)
{
	for (int i = 0; i < MAKERS * SLOTS; i++) {
		if (l[i].left_at)
			return true;
	}
	return false;
}

TEST_F_TIMEOUT(leavers, live, TIMEOUT)
{
	int pidfd, status, left = 0, shared = 0;
	struct leaver *l = self->leavers;
	const int nr = rounds();
	long called_at;
	pid_t pid;

	ASSERT_EQ(0, prctl(PR_SET_CHILD_SUBREAPER, 1));
	for (int i = 0; i < nr; i++) {
		memset(l, 0, psize());
		pid = fork_into_cgroup(&self->env, &pidfd);
		if (!pid) {
			for (int j = 1; j < MAKERS; j++)
				share_mm(make_leavers, l + j * SLOTS, SIGCHLD);
			make_leavers(l);
		}
		ASSERT_GT(pid, 0);
		while (!has_left(l))
			usleep(100);
		usleep(i % 20 * 500);
		called_at = microseconds();
		ASSERT_EQ(0, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
		close(pidfd);
		while ((pid = waitpid(-1, &status, 0)) > 0) {
			long left_at = 0;

			for (int j = 0; j < MAKERS * SLOTS; j++) {
				if (l[j].pid == pid)
					left_at = l[j].left_at;
			}
			/* What survives without the mm's contents faults. */
			ASSERT_TRUE(!status || status == SIGKILL) {
				TH_LOG("status %x, left %ld us before the call", status,
				       left_at ? called_at - left_at : 0);
			}
			if (left_at && left_at < called_at) {
				ASSERT_EQ(0, status) TH_LOG("not a sharer");
				left++;
			} else if (!left_at) {
				ASSERT_EQ(SIGKILL, status) TH_LOG("a sharer");
				shared++;
			}
		}
	}
	TH_LOG("%d sharers died, %d others lived", shared, left);
	EXPECT_LE(nr * MAKERS, shared);
	EXPECT_LT(0, left);
}

/*
 * An ordinary user may evict the file folios of a victim only if the user may
 * read the victim's memory. The victim dies in any case.
 */
FIXTURE(evict) {
	struct env env;
	int program;
	int user_ns;
};

FIXTURE_VARIANT(evict) {
	mode_t mode;		/* of the victim's program, which is root's */
	bool undumpable;	/* by prctl() */
	bool user_ns;		/* caller and victim are in one that is not root's */
	void (*caller)(void);
	bool stays;
};

FIXTURE_VARIANT_ADD(evict, readable) {
	.mode = 0755,
	.caller = be_nobody,
};

FIXTURE_VARIANT_ADD(evict, unreadable) {
	.mode = 0711,
	.caller = be_nobody,
	.stays = true,
};

FIXTURE_VARIANT_ADD(evict, unreadable_user_ns) {
	.mode = 0711,
	.user_ns = true,
	.caller = be_nobody,
	.stays = true,
};

FIXTURE_VARIANT_ADD(evict, unreadable_cap_kill) {
	.mode = 0711,
	.caller = be_nobody_with_cap_kill,
};

FIXTURE_VARIANT_ADD(evict, unreadable_root) {
	.mode = 0711,
};

FIXTURE_VARIANT_ADD(evict, set_user_id) {
	.mode = 04755,
	.caller = be_nobody,
	.stays = true,
};

FIXTURE_VARIANT_ADD(evict, set_user_id_cap_kill) {
	.mode = 04755,
	.caller = be_nobody_with_cap_kill,
};

FIXTURE_VARIANT_ADD(evict, set_user_id_root) {
	.mode = 04755,
};

FIXTURE_VARIANT_ADD(evict, undumpable) {
	.mode = 0755,
	.undumpable = true,
	.caller = be_nobody,
	.stays = true,
};

FIXTURE_VARIANT_ADD(evict, undumpable_root) {
	.mode = 0755,
	.undumpable = true,
};

/* A user namespace of nobody's, or -1. */
static int open_user_ns(void)
{
	char path[32];
	int ready[2], fd = -1;
	pid_t pid;
	char c;

	if (pipe(ready))
		return -1;
	pid = fork();
	if (!pid) {
		be_nobody();
		if (!unshare(CLONE_NEWUSER) && write(ready[1], "", 1) == 1)
			idle(NULL);
		_exit(1);
	}
	close(ready[1]);
	snprintf(path, sizeof(path), "/proc/%d/ns/user", pid);
	if (read(ready[0], &c, 1) == 1)
		fd = open(path, O_RDONLY | O_CLOEXEC);
	close(ready[0]);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return fd;
}

FIXTURE_SETUP(evict)
{
	if (!set_up(_metadata, &self->env, true, PAGES))
		return;
	self->program = copy_self(variant->mode);
	self->user_ns = variant->user_ns ? open_user_ns() : 0;
	if (self->program < 0 || self->user_ns < 0) {
		tear_down(&self->env);
		SKIP(return, "needs user namespaces");
	}
	make_cold(_metadata, self->program);
}

FIXTURE_TEARDOWN(evict)
{
	tear_down(&self->env);
}

/* In the program */
static int map_and_wait(const char *undumpable)
{
	char *file = map(PAGES, PROT_READ, MAP_SHARED, FILE_FD, 0);
	char *anon = map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	force_read_pages(file, PAGES, psize());
	memset(anon, 1, PAGES * psize());
	if (*undumpable == '1' && prctl(PR_SET_DUMPABLE, 0))
		return CANNOT;
	drain_lru_batches();
	if (write(READY_FD, "", 1) != 1)
		return CANNOT;
	return idle(NULL);
}

TEST_F_TIMEOUT(evict, takes_permission, TIMEOUT)
{
	int pidfd, ready[2], status;
	struct usage usage;
	pid_t pid, caller;
	long program;
	char c;

	ASSERT_EQ(0, pipe(ready));
	pid = fork_into_cgroup(&self->env, &pidfd);
	if (!pid) {
		dup2(ready[1], READY_FD);
		dup2(self->env.fd, FILE_FD);
		close(ready[0]);
		be_nobody();
		if (variant->user_ns && setns(self->user_ns, CLONE_NEWUSER))
			_exit(CANNOT);
		exec_fd(self->program, "map_and_wait", variant->undumpable ? "1" : "0");
	}
	ASSERT_GT(pid, 0);
	close(ready[1]);
	ASSERT_EQ(1, read(ready[0], &c, 1));
	close(ready[0]);
	program = cached(self->program);
	usage = measure(&self->env);
	ASSERT_EQ(PAGES, usage.cache);
	ASSERT_LE(2 * PAGES * psize(), usage.charge);

	caller = fork();
	if (!caller) {
		if (variant->caller)
			variant->caller();
		if (variant->user_ns && setns(self->user_ns, CLONE_NEWUSER))
			_exit(CANNOT);
		_exit(mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
	}
	ASSERT_EQ(caller, waitpid(caller, &status, 0));
	ASSERT_EQ(0, status);
	usage = measure(&self->env);
	if (variant->stays) {
		EXPECT_EQ(PAGES, usage.cache);
		EXPECT_EQ(program, cached(self->program));
	} else {
		EXPECT_EQ(0, usage.cache);
		EXPECT_GT(program, cached(self->program));
	}
	EXPECT_LE(usage.charge, slack() + (usage.cache + cached(self->program)) * psize());
	EXPECT_EQ(SIGKILL, died_of(pid));
	if (variant->stays)
		EXPECT_EQ(PAGES, count_accessed(self->env.fd, PAGES));
	close(pidfd);
}

int main(int argc, char **argv)
{
	if (!strcmp(argv[0], "become_root"))
		return be_root(map_becoming());
	if (!strcmp(argv[0], "leave"))
		return live_alone(map_leavers() + atoi(argv[1]));
	if (!strcmp(argv[0], "map_and_wait"))
		return map_and_wait(argv[1]);
	return test_harness_run(argc, argv);
}
