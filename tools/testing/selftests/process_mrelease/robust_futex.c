// SPDX-License-Identifier: GPL-2.0
/*
 * Test process_mrelease() with robust futexes: a process that waits for a futex of the
 * victim is woken when the victim exits, even if the victim's memory was reaped
 * long before that.
 */
#define _GNU_SOURCE
#include <linux/futex.h>

#include "util.h"

#define PAGES	4096L		/* of anonymous memory in the victim */
#define NODES	3		/* in shared memory */
#define OFFSET	64		/* from a list entry to its futex */

enum holder { MAIN_THREAD, THREAD, SHARER };
enum state { BLOCKED, STARVED, STOPPED };

/* The robust list of the holder, and the state of the holder. */
struct list {
	enum holder holder;	/* of the futexes */
	enum state state;	/* of the holder, during the call */
	int nodes;		/* list entries in shared memory */
	bool private_entry;	/* another one in private memory, after the first */
	bool futex_on_next_page;/* of the entry */
	bool pending;		/* only in list_op_pending */
	bool compat;		/* the list of a 32-bit program */
	int kept;		/* private pages that may stay */
};

/* Memory of the test, the victim and the waiter. */
static struct shared {
	pid_t tid;		/* of the holder */
	int ready;		/* -1: no support for such a list */
	int write_file;
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

static uint32_t *futex_of(const struct list *list, char *node)
{
	return (uint32_t *)(node + (list->futex_on_next_page ? psize() : OFFSET));
}

static char *node(int nr)
{
	return nodes + 2 * nr * psize();
}

/* In the victim. */
static void exit_unsupported(int sig)
{
	shared->ready = -1;
	_exit(1);
}

static void set_word(const struct list *list, void *to, int nr, uintptr_t val)
{
	if (list->compat)
		((uint32_t *)to)[nr] = val;
	else
		((uintptr_t *)to)[nr] = val;
}

static long register_list(const struct list *list, void *head)
{
	if (!list->compat)
		return syscall(__NR_set_robust_list, head, sizeof(struct robust_list_head));
#ifdef __x86_64__
	long ret = 311;		/* set_robust_list() of i386 */

	/* A kernel without support for 32-bit programs sends SIGSEGV. */
	signal(SIGSEGV, exit_unsupported);
	asm volatile("int $0x80" : "+a" (ret) : "b" (head), "c" (12L)
		     : "memory", "r8", "r9", "r10", "r11");
	return ret;
#else
	return -1;
#endif
}

/* Add an entry after @at. Return where to add the next one. */
static char *add_entry(const struct list *list, char *head, char *at, char *entry)
{
	*futex_of(list, entry) = gettid() | FUTEX_WAITERS;
	if (list->pending) {
		set_word(list, head, 2, (uintptr_t)entry);
		return at;
	}
	set_word(list, at, 0, (uintptr_t)entry);
	return entry;
}

/* Take the futexes. Each of them has a waiter. */
static void take_futexes(const struct list *list)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;
	char *head, *at;

#ifdef MAP_32BIT
	flags |= list->compat ? MAP_32BIT : 0;
#endif
	head = mmap(NULL, 3 * psize(), PROT_READ | PROT_WRITE, flags, -1, 0);
	if (head == MAP_FAILED)
		exit_unsupported(0);
	madvise(head, 3 * psize(), MADV_NOHUGEPAGE);

	at = head;
	for (int i = 0; i < list->nodes; i++) {
		at = add_entry(list, head, at, node(i));
		if (!i && list->private_entry)
			at = add_entry(list, head, at, head + psize());
	}
	set_word(list, at, 0, (uintptr_t)head);
	set_word(list, head, 1, list->futex_on_next_page ? psize() : OFFSET);
	if (register_list(list, head))
		exit_unsupported(0);
}

static const struct list *holder_list;
static int holder_fd;

static int run_holder(void *unused)
{
	char c = 0;

	take_futexes(holder_list);
	shared->tid = gettid();
	shared->ready = 1;
	while (!__atomic_load_n(&shared->write_file, __ATOMIC_ACQUIRE))
		usleep(1000);
	/* On a frozen file system this does not return. */
	if (pwrite(holder_fd, &c, 1, 0) != 1)
		_exit(1);
	_exit(0);
}

static void *run_holder_in_thread(void *unused)
{
	run_holder(NULL);
	return NULL;
}

static void run_victim(const struct list *list, int fd)
{
	char *anon = map_aligned(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *stack = malloc(1 << 16);
	pthread_t thread;

	memset(anon, 1, PAGES * psize());
	holder_list = list;
	holder_fd = fd;
	if (list->holder == MAIN_THREAD)
		run_holder(NULL);
	if (list->holder == THREAD && pthread_create(&thread, NULL, run_holder_in_thread, NULL))
		exit_unsupported(0);
	if (list->holder == SHARER &&
	    clone(run_holder, stack + (1 << 16), CLONE_VM | SIGCHLD, NULL) < 0)
		exit_unsupported(0);
	sleep_forever(NULL);
}

/* Anonymous memory that a process has mapped, in pages, or -1. */
static long anon_pages(pid_t pid)
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
	for (size_t i = 0; i < ARRAY_SIZE(helpers); i++) {
		if (helpers[i] > 0) {
			kill(helpers[i], SIGKILL);
			waitpid(helpers[i], NULL, 0);
		}
		helpers[i] = 0;
	}
}

/* Exit with 0 after a wakeup because the holder has died. */
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

/* Bind the holder to the last CPU, where a SCHED_FIFO loop starves it. */
static bool starve(pid_t tid)
{
	struct sched_param idle = { }, fifo = { .sched_priority = 1 };
	cpu_set_t others, last;
	pid_t busy;

	if (sched_getaffinity(0, sizeof(others), &others) || CPU_COUNT(&others) < 2)
		return false;
	CPU_ZERO(&last);
	CPU_SET(last_cpu(&others), &last);
	CPU_CLR(last_cpu(&others), &others);
	busy = start_helper(1, keep_busy, NULL);
	return !sched_setaffinity(0, sizeof(others), &others) &&
	       !sched_setscheduler(tid, SCHED_IDLE, &idle) &&
	       !sched_setaffinity(tid, sizeof(last), &last) &&
	       !sched_setaffinity(busy, sizeof(last), &last) &&
	       !sched_setscheduler(busy, SCHED_FIFO, &fifo) &&
	       wait_for_state(busy, 'R');
}

static bool enter(enum state state, pid_t pid, pid_t tid, int fd)
{
	switch (state) {
	case BLOCKED:
		if (!freeze_fs(fd))
			return false;
		shared->write_file = 1;
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
	struct list list;
};

FIXTURE_VARIANT_ADD(robust, one_entry) {
	.list = { .nodes = 1, .kept = 1 },
};

FIXTURE_VARIANT_ADD(robust, several_entries) {
	.list = { .nodes = NODES, .kept = 1 },
};

FIXTURE_VARIANT_ADD(robust, private_entry_between) {
	.list = { .nodes = NODES, .private_entry = true, .kept = 2 },
};

FIXTURE_VARIANT_ADD(robust, private_futex_on_another_page) {
	.list = { .nodes = NODES, .private_entry = true, .futex_on_next_page = true, .kept = 3 },
};

FIXTURE_VARIANT_ADD(robust, operation_pending) {
	.list = { .nodes = 1, .pending = true, .kept = 1 },
};

FIXTURE_VARIANT_ADD(robust, compat_list) {
	.list = { .nodes = NODES, .private_entry = true, .compat = true, .kept = 2 },
};

FIXTURE_VARIANT_ADD(robust, compat_operation_pending) {
	.list = { .nodes = 1, .pending = true, .compat = true, .kept = 1 },
};

FIXTURE_VARIANT_ADD(robust, held_by_thread) {
	.list = { .holder = THREAD, .nodes = NODES, .private_entry = true, .kept = 2 },
};

FIXTURE_VARIANT_ADD(robust, held_by_sharer) {
	.list = { .holder = SHARER, .nodes = NODES, .private_entry = true, .kept = 2 },
};

FIXTURE_VARIANT_ADD(robust, starved) {
	.list = { .state = STARVED, .nodes = NODES, .private_entry = true },
};

FIXTURE_VARIANT_ADD(robust, starved_thread) {
	.list = { .state = STARVED, .holder = THREAD, .nodes = NODES, .private_entry = true },
};

FIXTURE_VARIANT_ADD(robust, stopped_and_starved) {
	.list = { .state = STOPPED, .nodes = NODES, .private_entry = true },
};

FIXTURE_SETUP(robust)
{
	set_up(_metadata, &self->env, false, 1);
}

FIXTURE_TEARDOWN(robust)
{
	thaw_fs(self->env.fd);
	end_helpers();
	tear_down(&self->env);
}

static void check_waiter(struct __test_metadata *_metadata, struct env *env,
			 const struct list *list, bool flag)
{
	struct usage usage;
	int pidfd, status;
	pid_t pid, waiter;
	bool woken = false;

	shared = shared_memory(1, false);
	nodes = shared_memory(2 * NODES, list->compat);
	ASSERT_NE(MAP_FAILED, shared);
	ASSERT_NE(MAP_FAILED, nodes);

	pid = fork_into_cgroup(env, &pidfd);
	ASSERT_GE(pid, 0);
	if (!pid)
		run_victim(list, env->fd);
	for (int i = 0; i < 60000 && !__atomic_load_n(&shared->ready, __ATOMIC_ACQUIRE); i++)
		usleep(1000);
	if (shared->ready < 0)
		SKIP(return, "no lists of this kind");
	ASSERT_EQ(1, shared->ready);
	ASSERT_GE(measure(env).charge, PAGES * psize());

	waiter = start_helper(0, wait_for_holder, futex_of(list, node(list->nodes - 1)));
	ASSERT_TRUE(wait_for_state(waiter, 'S'));
	if (!enter(list->state, pid, shared->tid, env->fd))
		SKIP(return, "needs a file system that can be frozen, or two CPUs");

	if (flag) {
		EXPECT_EQ(0, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
	} else {
		ASSERT_EQ(0, kill(pid, SIGKILL));
		if (list->holder == SHARER) {
			/* The other process may exit before the call. */
			ASSERT_EQ(0, kill(shared->tid, SIGKILL));
			close(pidfd);
			pidfd = sys_pidfd_open(shared->tid, 0);
			ASSERT_LE(0, pidfd);
		}
		EXPECT_EQ(0, mrelease(pidfd, 0));
	}
	usage = measure(env);
	EXPECT_LE(usage.charge, slack());

	if (list->state == BLOCKED) {
		/* The holder has not exited yet. Its exit needs these pages. */
		EXPECT_EQ('D', state_of(shared->tid));
		EXPECT_EQ(list->kept, anon_pages(shared->tid));
		ASSERT_TRUE(thaw_fs(env->fd));
	} else {
		kill(helpers[1], SIGKILL);
	}
	EXPECT_EQ(SIGKILL, wait_termsig(pid));
	EXPECT_TRUE(has_exited(shared->tid));

	for (int i = 0; i < 5000 && !woken; i++) {
		woken = waitpid(waiter, &status, WNOHANG) == waiter;
		if (!woken)
			usleep(1000);
	}
	EXPECT_TRUE(woken)
		TH_LOG("the waiter still sleeps");
	if (woken) {
		helpers[0] = 0;
		EXPECT_EQ(0, status);
	}
	for (int i = 0; i < list->nodes; i++) {
		EXPECT_EQ((uint32_t)FUTEX_OWNER_DIED, *futex_of(list, node(i)) & ~FUTEX_WAITERS)
			TH_LOG("futex %d", i);
	}
	close(pidfd);
}

TEST_F_TIMEOUT(robust, waiter_wakes_after_reap_kill, TIMEOUT)
{
	if (!has_reap_kill())
		SKIP(return, NO_FLAG);
	check_waiter(_metadata, &self->env, &variant->list, true);
}

TEST_F_TIMEOUT(robust, waiter_wakes_after_sigkill_and_mrelease, TIMEOUT)
{
	check_waiter(_metadata, &self->env, &variant->list, false);
}

TEST_HARNESS_MAIN
