// SPDX-License-Identifier: GPL-2.0
/*
 * process_mrelease() and robust futexes: a process that waits for a futex of the
 * victim is woken when the victim exits, even if the victim's memory was reaped
 * long before that.
 */
#define _GNU_SOURCE
#include <linux/fs.h>
#include <linux/futex.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "mrelease_util.h"

#define PAGES	4096L		/* of anonymous memory in the victim */
#define NODES	3		/* in shared memory */
#define OFFSET	64		/* from a list entry to its futex */

enum holder { MAIN_THREAD, THREAD, SHARER };
enum state { BLOCKED, STARVED, STOPPED };

/* Which list a holder has, and what happens to it. */
struct plan {
	enum holder holder;	/* of the futexes */
	enum state state;	/* of the holder, during the call */
	int nodes;		/* list entries in shared memory */
	bool private_entry;	/* one in private memory behind the first of them */
	bool far;		/* the futexes are not in the pages of the entries */
	bool pending;		/* not in the list yet, only in list_op_pending */
	bool compat;		/* the list of a 32-bit program */
	int keep;		/* private pages that may stay */
};

/* Memory of the test, the victim and the waiter. */
static struct shared {
	pid_t tid;		/* of the holder */
	int ready;		/* -1: it cannot hold such a list */
	int cue;
} *shared;

static char *nodes;		/* shared, two pages for each */

static void *shared_memory(long pages, bool low)
{
	int flags = MAP_SHARED | MAP_ANONYMOUS;

#ifdef MAP_32BIT
	flags |= low ? MAP_32BIT : 0;
#endif
	return mmap(NULL, pages * psize(), PROT_READ | PROT_WRITE, flags, -1, 0);
}

static uint32_t *futex_of(const struct plan *plan, char *node)
{
	return (uint32_t *)(node + (plan->far ? psize() : OFFSET));
}

static char *node(int nr)
{
	return nodes + 2 * nr * psize();
}

/*
 * In the victim.
 */
static void give_up(int sig)
{
	shared->ready = -1;
	_exit(1);
}

static void put_word(const struct plan *plan, void *to, int nr, uintptr_t val)
{
	if (plan->compat)
		((uint32_t *)to)[nr] = val;
	else
		((uintptr_t *)to)[nr] = val;
}

static long register_list(const struct plan *plan, void *head)
{
	if (!plan->compat)
		return syscall(__NR_set_robust_list, head, sizeof(struct robust_list_head));
#ifdef __x86_64__
	long ret = 311;		/* set_robust_list() of i386 */

	/* A kernel without support for 32-bit programs sends SIGSEGV. */
	signal(SIGSEGV, give_up);
	asm volatile("int $0x80" : "+a" (ret) : "b" (head), "c" (12L)
		     : "memory", "r8", "r9", "r10", "r11");
	return ret;
#else
	return -1;
#endif
}

/* Returns what the next entry is to be added to. */
static char *add(const struct plan *plan, char *head, char *at, char *entry)
{
	*futex_of(plan, entry) = gettid() | FUTEX_WAITERS;
	if (plan->pending) {
		put_word(plan, head, 2, (uintptr_t)entry);
		return at;
	}
	put_word(plan, at, 0, (uintptr_t)entry);
	return entry;
}

/* Take the futexes, as a program does that has a waiter for each of them. */
static void hold(const struct plan *plan)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;
	char *head, *at;

#ifdef MAP_32BIT
	flags |= plan->compat ? MAP_32BIT : 0;
#endif
	head = mmap(NULL, 3 * psize(), PROT_READ | PROT_WRITE, flags, -1, 0);
	if (head == MAP_FAILED)
		give_up(0);
	madvise(head, 3 * psize(), MADV_NOHUGEPAGE);

	at = head;
	for (int i = 0; i < plan->nodes; i++) {
		at = add(plan, head, at, node(i));
		if (!i && plan->private_entry)
			at = add(plan, head, at, head + psize());
	}
	put_word(plan, at, 0, (uintptr_t)head);
	put_word(plan, head, 1, plan->far ? psize() : OFFSET);
	if (register_list(plan, head))
		give_up(0);
}

static const struct plan *holder_plan;
static int holder_fd;

static int be_holder(void *unused)
{
	char c = 0;

	hold(holder_plan);
	shared->tid = gettid();
	shared->ready = 1;
	while (!__atomic_load_n(&shared->cue, __ATOMIC_ACQUIRE))
		usleep(1000);
	/* On a frozen file system this does not return. */
	if (pwrite(holder_fd, &c, 1, 0) != 1)
		_exit(1);
	_exit(0);
}

static void *be_thread(void *unused)
{
	be_holder(NULL);
	return NULL;
}

static void be_victim(const struct plan *plan, int fd)
{
	char *anon = map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *stack = malloc(1 << 16);
	pthread_t thread;

	memset(anon, 1, PAGES * psize());
	holder_plan = plan;
	holder_fd = fd;
	if (plan->holder == MAIN_THREAD)
		be_holder(NULL);
	if (plan->holder == THREAD && pthread_create(&thread, NULL, be_thread, NULL))
		give_up(0);
	if (plan->holder == SHARER &&
	    clone(be_holder, stack + (1 << 16), CLONE_VM | SIGCHLD, NULL) < 0)
		give_up(0);
	for (;;)
		pause();
}

/*
 * In the test.
 */
/* Anonymous memory that a process has mapped, in pages, or -1. */
static long anonymous(pid_t pid)
{
	char path[40], line[128];
	long kb = -1;
	FILE *smaps;

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pid);
	smaps = fopen(path, "r");
	while (smaps && fgets(line, sizeof(line), smaps) &&
	       sscanf(line, "Anonymous: %ld", &kb) != 1)
		;
	if (smaps)
		fclose(smaps);
	return kb < 0 ? -1 : kb * 1024 / psize();
}

static pid_t helpers[2];	/* they end with the test at the latest */

static pid_t start_helper(int nr, void (*fn)(const void *), const void *arg)
{
	helpers[nr] = fork();
	if (!helpers[nr]) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fn(arg);
		_exit(1);
	}
	return helpers[nr];
}

static void end_helpers(void)
{
	for (int i = 0; i < ARRAY_SIZE(helpers); i++) {
		if (helpers[i] > 0) {
			kill(helpers[i], SIGKILL);
			waitpid(helpers[i], NULL, 0);
		}
		helpers[i] = 0;
	}
}

/* Exits with 0 when it was woken because the holder has died. */
static void wait_for_holder(const void *futex)
{
	const uint32_t *word = futex;
	uint32_t val = *word;

	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == val)
		syscall(__NR_futex, word, FUTEX_WAIT, val, NULL, NULL, 0);
	_exit(!(*word & FUTEX_OWNER_DIED));
}

static void keep_busy(const void *unused)
{
	for (;;)
		;
}

/* Thaws the file system even if the test is killed. */
static void thaw_at_end(const void *fd)
{
	pid_t test = getppid();

	prctl(PR_SET_PDEATHSIG, 0);
	for (int i = 0; i < 30000 && getppid() == test; i++)
		usleep(10000);
	ioctl(*(const int *)fd, FITHAW, 0);
	_exit(0);
}

/* Keep the last CPU from the holder, and the holder on that CPU. */
static bool starve(pid_t tid)
{
	struct sched_param idle = { }, fifo = { .sched_priority = 1 };
	cpu_set_t others, last;
	pid_t busy;
	int cpu;

	if (sched_getaffinity(0, sizeof(others), &others) || CPU_COUNT(&others) < 2)
		return false;
	for (cpu = CPU_SETSIZE - 1; !CPU_ISSET(cpu, &others); cpu--)
		;
	CPU_CLR(cpu, &others);
	CPU_ZERO(&last);
	CPU_SET(cpu, &last);
	busy = start_helper(1, keep_busy, NULL);
	return !sched_setaffinity(0, sizeof(others), &others) &&
	       !sched_setscheduler(tid, SCHED_IDLE, &idle) &&
	       !sched_setaffinity(tid, sizeof(last), &last) &&
	       !sched_setaffinity(busy, sizeof(last), &last) &&
	       !sched_setscheduler(busy, SCHED_FIFO, &fifo) &&
	       wait_for_state(busy, 'R');
}

static bool enter(enum state state, pid_t pid, pid_t tid, const int *fd)
{
	struct stat file, root;

	switch (state) {
	case BLOCKED:
		if (fstat(*fd, &file) || stat("/", &root) || file.st_dev == root.st_dev)
			return false;
		start_helper(1, thaw_at_end, fd);
		if (ioctl(*fd, FIFREEZE, 0))
			return false;
		shared->cue = 1;
		return wait_for_state(tid, 'D');
	case STOPPED:
		if (kill(pid, SIGSTOP) || !wait_for_state(tid, 'T'))
			return false;
		break;
	case STARVED:
		break;
	}
	return starve(tid);
}

static bool has_exited(pid_t tid)
{
	for (int i = 0; i < 60000; i++) {
		const int state = state_of(tid);

		if (!state || state == 'Z' || state == 'X')
			return true;
		usleep(1000);
	}
	return false;
}

FIXTURE(robust) {
	struct env env;
};

FIXTURE_VARIANT(robust) {
	struct plan plan;
};

FIXTURE_VARIANT_ADD(robust, one_entry) {
	.plan = { .nodes = 1, .keep = 1 },
};

FIXTURE_VARIANT_ADD(robust, several_entries) {
	.plan = { .nodes = NODES, .keep = 1 },
};

FIXTURE_VARIANT_ADD(robust, private_entry_between) {
	.plan = { .nodes = NODES, .private_entry = true, .keep = 2 },
};

FIXTURE_VARIANT_ADD(robust, private_futex_on_another_page) {
	.plan = { .nodes = NODES, .private_entry = true, .far = true, .keep = 3 },
};

FIXTURE_VARIANT_ADD(robust, operation_pending) {
	.plan = { .nodes = 1, .pending = true, .keep = 1 },
};

FIXTURE_VARIANT_ADD(robust, compat_list) {
	.plan = { .nodes = NODES, .private_entry = true, .compat = true, .keep = 2 },
};

FIXTURE_VARIANT_ADD(robust, compat_operation_pending) {
	.plan = { .nodes = 1, .pending = true, .compat = true, .keep = 1 },
};

FIXTURE_VARIANT_ADD(robust, held_by_thread) {
	.plan = { .holder = THREAD, .nodes = NODES, .private_entry = true, .keep = 2 },
};

FIXTURE_VARIANT_ADD(robust, held_by_sharer) {
	.plan = { .holder = SHARER, .nodes = NODES, .private_entry = true, .keep = 2 },
};

FIXTURE_VARIANT_ADD(robust, starved) {
	.plan = { .state = STARVED, .nodes = NODES, .private_entry = true },
};

FIXTURE_VARIANT_ADD(robust, starved_thread) {
	.plan = { .state = STARVED, .holder = THREAD, .nodes = NODES, .private_entry = true },
};

FIXTURE_VARIANT_ADD(robust, stopped_and_starved) {
	.plan = { .state = STOPPED, .nodes = NODES, .private_entry = true },
};

FIXTURE_SETUP(robust)
{
	set_up(_metadata, &self->env, false, 1);
}

FIXTURE_TEARDOWN(robust)
{
	ioctl(self->env.fd, FITHAW, 0);
	end_helpers();
	tear_down(&self->env);
}

static void check(struct __test_metadata *_metadata, struct env *env,
		  const struct plan *plan, bool flag)
{
	struct usage usage;
	int pidfd, status;
	pid_t pid, waiter;
	bool woken = false;

	shared = shared_memory(1, false);
	nodes = shared_memory(2 * NODES, plan->compat);
	ASSERT_NE(MAP_FAILED, shared);
	ASSERT_NE(MAP_FAILED, nodes);

	pid = fork_into_cgroup(env, &pidfd);
	ASSERT_GE(pid, 0);
	if (!pid)
		be_victim(plan, env->fd);
	for (int i = 0; i < 60000 && !__atomic_load_n(&shared->ready, __ATOMIC_ACQUIRE); i++)
		usleep(1000);
	if (shared->ready < 0)
		SKIP(return, "no lists of this kind");
	ASSERT_EQ(1, shared->ready);
	ASSERT_GE(measure(env).charge, PAGES * psize());

	waiter = start_helper(0, wait_for_holder, futex_of(plan, node(plan->nodes - 1)));
	ASSERT_TRUE(wait_for_state(waiter, 'S'));
	if (!enter(plan->state, pid, shared->tid, &env->fd))
		SKIP(return, "needs a file system that can be frozen, or two CPUs");

	if (flag) {
		EXPECT_EQ(0, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
	} else {
		ASSERT_EQ(0, kill(pid, SIGKILL));
		if (plan->holder == SHARER) {
			/* The other process may exit before the call. */
			ASSERT_EQ(0, kill(shared->tid, SIGKILL));
			close(pidfd);
			pidfd = pidfd_open(shared->tid);
			ASSERT_LE(0, pidfd);
		}
		EXPECT_EQ(0, mrelease(pidfd, 0));
	}
	usage = measure(env);
	EXPECT_LE(usage.charge, slack());

	if (plan->state == BLOCKED) {
		/* The holder has not exited yet, and this is what it needs for that. */
		EXPECT_EQ('D', state_of(shared->tid));
		EXPECT_EQ(plan->keep, anonymous(shared->tid));
		ASSERT_EQ(0, ioctl(env->fd, FITHAW, 0));
	} else {
		kill(helpers[1], SIGKILL);
	}
	EXPECT_EQ(SIGKILL, died_of(pid));
	EXPECT_TRUE(has_exited(shared->tid));

	for (int i = 0; i < 5000 && !woken; i++) {
		woken = waitpid(waiter, &status, WNOHANG) == waiter;
		if (!woken)
			usleep(1000);
	}
	EXPECT_TRUE(woken)
		TH_LOG("the waiter sleeps on");
	if (woken) {
		helpers[0] = 0;
		EXPECT_EQ(0, status);
	}
	for (int i = 0; i < plan->nodes; i++) {
		EXPECT_EQ(FUTEX_OWNER_DIED, *futex_of(plan, node(i)) & ~FUTEX_WAITERS)
			TH_LOG("futex %d", i);
	}
	close(pidfd);
}

TEST_F_TIMEOUT(robust, waiter_wakes_after_reap_kill, TIMEOUT)
{
	if (!has_reap_kill())
		SKIP(return, NO_FLAG);
	check(_metadata, &self->env, &variant->plan, true);
}

TEST_F_TIMEOUT(robust, waiter_wakes_after_sigkill_and_mrelease, TIMEOUT)
{
	check(_metadata, &self->env, &variant->plan, false);
}

TEST_HARNESS_MAIN
