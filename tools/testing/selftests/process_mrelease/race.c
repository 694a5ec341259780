// SPDX-License-Identifier: GPL-2.0
/*
 * Test process_mrelease(PROCESS_MRELEASE_REAP_KILL) concurrently with other calls,
 * with SIGKILL, and with sharers and threads that start, exit and execve().
 *
 * A race lasts for $MRELEASE_SECONDS, 6 by default; the race with processes that
 * leave the mm for $MRELEASE_ROUNDS kills, 60 by default.
 */
#define _GNU_SOURCE
#include <stdatomic.h>

#include "actions.h"

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

static void *call_with_flag(void *arg)
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

FIXTURE(concurrent) {
	struct env env;
};

FIXTURE_VARIANT(concurrent) {
	struct spec spec;
	void *(*other)(void *arg);
	int nr_others;
	bool evicts;		/* the others evict file folios, or do not reap */
};

FIXTURE_VARIANT_ADD(concurrent, callers) {
	.other = call_with_flag,
	.nr_others = 3,
	.evicts = true,
};

FIXTURE_VARIANT_ADD(concurrent, callers_and_sharer) {
	.spec = { .sharer = CLONE_VM, .nr = 2 },
	.other = call_with_flag,
	.nr_others = 3,
	.evicts = true,
};

FIXTURE_VARIANT_ADD(concurrent, caller_without_flag) {
	.other = call_without_flag,
	.nr_others = 1,
};

FIXTURE_VARIANT_ADD(concurrent, sigkill) {
	.other = send_sigkill,
	.nr_others = 1,
	.evicts = true,
};

FIXTURE_VARIANT_ADD(concurrent, sigkill_with_sharer) {
	.spec = { .sharer = CLONE_VM, .nr = 2 },
	.other = send_sigkill,
	.nr_others = 1,
	.evicts = true,
};

FIXTURE_SETUP(concurrent)
{
	set_up(_metadata, &self->env, true, RACE_PAGES);
}

FIXTURE_TEARDOWN(concurrent)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(concurrent, memory_is_free, TIMEOUT)
{
	struct caller callers[3];
	pthread_barrier_t barrier;
	struct timespec begin;
	struct usage usage;
	int result, freed;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	pthread_barrier_init(&barrier, NULL, variant->nr_others + 1);
	for (int i = 0; !time_is_up(i, &begin); i++) {
		ASSERT_TRUE(start(_metadata, &self->env, &variant->spec));
		for (int j = 0; j < variant->nr_others; j++) {
			callers[j].env = &self->env;
			callers[j].barrier = &barrier;
			ASSERT_EQ(0, pthread_create(&callers[j].thread, NULL,
						    variant->other, &callers[j]));
		}
		pthread_barrier_wait(&barrier);
		/* Before, during and after the calls of the others */
		usleep(i % 20 * 50);
		result = mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL);
		usage = measure(&self->env);
		if (result)
			ASSERT_EQ(ESRCH, result);
		freed = !result;
		/* SIGKILL may have left the mm to a sharer. */
		if (result && variant->spec.nr > 1) {
			result = mrelease(procs[1].pidfd, PROCESS_MRELEASE_REAP_KILL);
			usage = measure(&self->env);
			if (variant->other != call_with_flag)
				ASSERT_EQ(0, result);
		}
		if (!result) {
			ASSERT_LE(usage.charge, slack() + usage.cache * psize());
			if (variant->evicts)
				ASSERT_EQ(0, usage.cache);
		}
		for (int j = 0; j < variant->nr_others; j++) {
			ASSERT_EQ(0, pthread_join(callers[j].thread, NULL));
			if (!callers[j].result) {
				check_memory_free(_metadata, callers[j].usage);
				freed++;
				continue;
			}
			ASSERT_EQ(ESRCH, callers[j].result);
		}
		/* The caller that kills the victim gets 0. */
		if (variant->other != send_sigkill)
			ASSERT_LT(0, freed);
		for (int j = 0; j < (variant->spec.nr ?: 1); j++)
			ASSERT_TRUE(wait_killed(&procs[j]));
		end_procs(&self->env);
		make_cold(_metadata, self->env.fd);
	}
}

/*
 * The first caller is killed during the call. The second call frees the rest.
 */
FIXTURE(interrupted) {
	struct env env;
};

FIXTURE_SETUP(interrupted)
{
	set_up(_metadata, &self->env, true, PAGES);
}

FIXTURE_TEARDOWN(interrupted)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(interrupted, second_call_frees_the_rest, TIMEOUT)
{
	const struct spec spec = { };
	struct timespec begin;
	int status, result, interrupted = 0;
	pid_t caller;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (int i = 0; !time_is_up(i, &begin); i++) {
		ASSERT_TRUE(start(_metadata, &self->env, &spec));
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
		check_memory_free(_metadata, measure(&self->env));
		if (result)
			ASSERT_EQ(ESRCH, result);
		ASSERT_TRUE(wait_killed(&procs[0]));
		end_procs(&self->env);
	}
	TH_LOG("%d calls interrupted", interrupted);
}

/*
 * The sharers, the threads or the mm of the victim keep changing.
 */
static cpu_set_t here, there;	/* the CPUs of the test and of the victim */

/* More memory makes execve() take longer. */
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
		execl("/proc/self/exe", "race", how, sock, NULL);
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
	run_in_mm(exec_in_thread, 0, THREAD);
	return sleep_forever(NULL);
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
	run_in_mm(watch_memory, 0, SIGCHLD);
	exec_again("exec_sharer");
	return 0;
}

/* In the new program */
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

FIXTURE(race) {
	struct env env;
};

FIXTURE_VARIANT(race) {
	void (*setup)(void);
	int (*action)(void);
	bool exec;		/* the mm is replaced */
	bool old_mm_survives;	/* sharers of the old mm survive */
	bool two_cpus;		/* test and victim are on different CPUs */
};

FIXTURE_VARIANT_ADD(race, exec) {
	.action = exec_leader,
	.exec = true,
};

FIXTURE_VARIANT_ADD(race, exec_two_cpus) {
	.action = exec_leader,
	.exec = true,
	.two_cpus = true,
};

FIXTURE_VARIANT_ADD(race, exec_in_thread) {
	.action = exec_thread,
	.exec = true,
};

FIXTURE_VARIANT_ADD(race, exec_in_thread_two_cpus) {
	.action = exec_thread,
	.exec = true,
	.two_cpus = true,
};

FIXTURE_VARIANT_ADD(race, exec_with_sharer_two_cpus) {
	.action = exec_with_sharer,
	.exec = true,
	.old_mm_survives = true,
	.two_cpus = true,
};

FIXTURE_VARIANT_ADD(race, sharers) {
	.action = make_sharers,
};

FIXTURE_VARIANT_ADD(race, sharers_two_cpus) {
	.action = make_sharers,
	.two_cpus = true,
};

FIXTURE_VARIANT_ADD(race, successive_sharers) {
	.action = make_successive_sharers,
};

FIXTURE_VARIANT_ADD(race, successive_sharers_two_cpus) {
	.action = make_successive_sharers,
	.two_cpus = true,
};

FIXTURE_VARIANT_ADD(race, vfork) {
	.action = vfork_loop,
};

FIXTURE_VARIANT_ADD(race, vfork_two_cpus) {
	.action = vfork_loop,
	.two_cpus = true,
};

FIXTURE_VARIANT_ADD(race, threads) {
	.action = make_threads,
};

FIXTURE_VARIANT_ADD(race, threads_two_cpus) {
	.action = make_threads,
	.two_cpus = true,
};

FIXTURE_VARIANT_ADD(race, mremap_two_cpus) {
	.setup = map_long_area,
	.action = move_past_reaper,
	.two_cpus = true,
};

FIXTURE_SETUP(race)
{
	set_up(_metadata, &self->env, true, RACE_PAGES);
}

FIXTURE_TEARDOWN(race)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(race, memory_is_free, TIMEOUT)
{
	struct spec spec = {
		.setup = variant->setup, .action = variant->action, .cpus = &there,
	};
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
	if (!variant->two_cpus)
		there = here;
	else if (!CPU_COUNT(&there))
		SKIP(return, "needs two CPUs");
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(here), &here));
	ASSERT_EQ(0, prctl(PR_SET_CHILD_SUBREAPER, 1));

	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (i = 0; !time_is_up(i, &begin); i++) {
		ASSERT_TRUE(start(_metadata, &self->env, &spec));
		ASSERT_TRUE(send_command(&procs[0], CMD_ACT));
		/* Right before the first execve() */
		if (variant->exec)
			ASSERT_EQ(1, read(procs[0].sock[0], &c, 1));
		usleep(delay);
		delay = delay < 20000 ? delay + delay / 4 : 100;
		ASSERT_EQ(0, mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL));
		anon = anon_charge(&self->env);
		usage = measure(&self->env);
		if (variant->old_mm_survives) {
			/* They check their memory. */
			usleep(5000);
			kill_cgroup(&self->env);
		} else if (!variant->exec) {
			ASSERT_LE(anon, slack_of(2)) TH_LOG("in round %d", i);
			ASSERT_EQ(0, usage.cache) TH_LOG("in round %d", i);
		}
		check_all_killed(_metadata);
		/* The old mm, if the signal came late in execve() */
		ASSERT_LE(anon_charge(&self->env), slack_of(2)) TH_LOG("in round %d", i);
	}
	TH_LOG("%d rounds", i);
}

/*
 * The sharers start processes all the time, which leave the mm: by fork() or by
 * execve(). All that share the mm die, and all that have left it live.
 */
#define SHARED_FD	100	/* survives execve() */
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
	leavers = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_SHARED, SHARED_FD, 0);
	return leavers;
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
	l->left_at = now_us();
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
		l[i].stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE,
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
				clone(leave_by_exec, l[i].stack + STACK_SIZE, CLONE_VM | SIGCHLD,
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

TEST_F_TIMEOUT(leavers, survive, TIMEOUT)
{
	int pidfd, status, left = 0, shared = 0;
	struct leaver *l = self->leavers;
	const int nr = race_rounds();
	long called_at;
	pid_t pid;

	ASSERT_EQ(0, prctl(PR_SET_CHILD_SUBREAPER, 1));
	for (int i = 0; i < nr; i++) {
		memset(l, 0, psize());
		pid = fork_into_cgroup(&self->env, &pidfd);
		if (!pid) {
			for (int j = 1; j < MAKERS; j++)
				clone_vm(make_leavers, l + j * SLOTS, SIGCHLD);
			make_leavers(l);
		}
		ASSERT_GT(pid, 0);
		while (!has_left(l))
			usleep(100);
		usleep(i % 20 * 500);
		called_at = now_us();
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
	TH_LOG("%d sharers died, %d processes that had left the mm survived", shared, left);
	EXPECT_LE(nr * MAKERS, shared);
	EXPECT_LT(0, left);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strncmp(argv[1], "exec", 4))
		exec_main(argv[1], argv[2]);
	if (!strcmp(argv[0], "leave"))
		return live_alone(map_leavers() + atoi(argv[1]));
	return test_harness_run(argc, argv);
}
