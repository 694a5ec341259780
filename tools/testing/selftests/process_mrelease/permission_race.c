// SPDX-License-Identifier: GPL-2.0
/*
 * Test that process_mrelease(PROCESS_MRELEASE_REAP_KILL) does not kill a process that
 * becomes root before kill(2) would have killed it.
 *
 * 10,000 idle processes make a walk of the process list take milliseconds. The result
 * of a permission check before such a walk is out of date after the walk.
 *
 * $MRELEASE_ROUNDS, 60 by default, is the number of kills of each race.
 */
#define _GNU_SOURCE
#include <stdatomic.h>

#include "util.h"

#define IDLE_STACK	1024	/* bytes; enough for pause() */

/* The idle processes are in a PID namespace and die with its init. */
static void idle_init(int ready, long size)
{
	char *stack = mmap(NULL, size * IDLE_STACK, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long nr = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (nr < size &&
	       clone(sleep_forever, stack + (nr + 1) * IDLE_STACK,
		     CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND, NULL) > 0)
		nr++;
	if (write(ready, &nr, sizeof(nr)) < 0)
		_exit(1);
	sleep_forever(NULL);
}

#define THREADS_MAX	"/proc/sys/kernel/threads-max"
#define PID_MAX		"/proc/sys/kernel/pid_max"

static long threads_max, pid_max;

static bool put_number(const char *name, long nr)
{
	char text[24];

	snprintf(text, sizeof(text), "%ld", nr);
	return write_text(AT_FDCWD, name, text);
}

static pid_t start_idle_processes(struct __test_metadata *_metadata, long size)
{
	struct clone_args args = { .flags = CLONE_NEWPID, .exit_signal = SIGCHLD };
	long room = sysconf(_SC_AVPHYS_PAGES) / (64 * 1024 / psize());
	int ready[2];
	pid_t pid;

	size = size < room ? size : room;
	threads_max = read_number(AT_FDCWD, THREADS_MAX);
	pid_max = read_number(AT_FDCWD, PID_MAX);
	if (threads_max < 2 * size)
		put_number(THREADS_MAX, 2 * size);
	if (pid_max < 2 * size)
		put_number(PID_MAX, 2 * size);
	ASSERT_EQ(0, pipe(ready));
	pid = syscall(__NR_clone3, &args, sizeof(args));
	ASSERT_GE(pid, 0);
	if (!pid)
		idle_init(ready[1], size);
	ASSERT_EQ((ssize_t)sizeof(size), read(ready[0], &size, sizeof(size)));
	ASSERT_LT(0, size);
	TH_LOG("%ld idle processes", size);
	close(ready[0]);
	close(ready[1]);
	return pid;
}

static void end_idle_processes(pid_t pid)
{
	if (!pid)
		return;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	put_number(THREADS_MAX, threads_max);
	put_number(PID_MAX, pid_max);
}

#define SHARED_FD	100	/* survives execve() */

/*
 * A process that the caller may kill becomes root during the call. The call kills the
 * process only if kill(2) would at that moment.
 */
struct race {
	atomic_int ready, go;
	atomic_int sharer;		/* PID of the sharer */
	long delay;			/* us from .go until it becomes root; < 0: of the call */
	atomic_long root_at, seen_at;	/* seen_at: the latest time that it ran */
	atomic_long called_at, returned_at;
};

/* Between the signal and the return to user mode of its target. */
#define DELIVERY	500L

FIXTURE(setuid_race) {
	struct env env;
	pid_t idle_processes;
	int program;
	struct race *race;
};

FIXTURE_VARIANT(setuid_race) {
	bool sharer;		/* becomes root, else the process of the pidfd */
	bool exec;		/* of a set-user-ID program */
	bool by_kill;		/* for comparison: kill(2) */
};

FIXTURE_VARIANT_ADD(setuid_race, victim) { };
FIXTURE_VARIANT_ADD(setuid_race, victim_exec) { .exec = true };
FIXTURE_VARIANT_ADD(setuid_race, sharer) { .sharer = true };
FIXTURE_VARIANT_ADD(setuid_race, sharer_exec) { .sharer = true, .exec = true };
FIXTURE_VARIANT_ADD(setuid_race, kill) { .by_kill = true };
FIXTURE_VARIANT_ADD(setuid_race, kill_exec) { .by_kill = true, .exec = true };

static struct race *map_race(void)
{
	return mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_SHARED, SHARED_FD, 0);
}

FIXTURE_SETUP(setuid_race)
{
	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		SKIP(return, "needs two CPUs");
	if (!set_up(_metadata, &self->env, true, 0))
		return;
	self->program = copy_program(04755);
	if (self->program < 0) {
		tear_down(&self->env);
		SKIP(return, NO_DISK);
	}
	ASSERT_EQ(SHARED_FD, dup2(memfd_create("race", MFD_CLOEXEC), SHARED_FD));
	ASSERT_EQ(0, ftruncate(SHARED_FD, psize()));
	self->race = map_race();
	self->idle_processes = start_idle_processes(_metadata, 10000);
}

FIXTURE_TEARDOWN(setuid_race)
{
	end_idle_processes(self->idle_processes);
	tear_down(&self->env);
}

/* In the process that becomes root, in the set-user-ID program if .exec. */
static int run_as_root(struct race *race)
{
	set_uids(0, 0, 0);
	race->root_at = now_us();
	for (;;)
		race->seen_at = now_us();
	return 1;
}

struct root_victim {
	struct race *race;
	int program;		/* 0: none */
	bool sharer;
};

static int become_root(void *arg)
{
	const struct root_victim *v = arg;
	struct race *race = v->race;
	long start;

	race->ready = 1;
	while (!race->go)
		;
	start = now_us();
	while (now_us() < start + race->delay)
		;
	if (v->program)
		exec_fd(v->program, "become_root", NULL);
	return run_as_root(race);
}

/* The user nobody may kill both processes: it is their real user ID. */
static void run_root_victim(struct root_victim *v)
{
	run_on_last_cpu();
	set_uids(NOBODY, v->program ? NOBODY : 0, v->program ? NOBODY : 0);
	v->race->sharer = clone_vm(v->sharer ? become_root : sleep_forever, v,
				   CLONE_PARENT | SIGCHLD);
	_exit(v->sharer ? sleep_forever(NULL) : become_root(v));
}

static bool is_dead(pid_t pid)
{
	siginfo_t info = { };

	return !waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) && info.si_pid;
}

/* In the caller. Return 0 or the value of errno. */
static int call_or_kill(struct race *race, pid_t pid, int pidfd, bool by_kill)
{
	int error = 0;

	become_nobody();
	race->called_at = now_us();
	if (!by_kill)
		error = mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL);
	else if (kill(pid, SIGKILL))
		error = errno;
	race->returned_at = now_us();
	return error;
}

TEST_F_TIMEOUT(setuid_race, is_not_killed, TIMEOUT)
{
	struct race *race = self->race;
	struct root_victim v = { race, variant->exec ? self->program : 0, variant->sharer };
	int pidfd, status, killed = 0, as_root = 0, inside = 0;
	long delay = 0, step = 16000;
	const int nr = race_rounds();
	pid_t pid, caller, target;

	run_on_first_cpu();
	for (int i = 0; i < nr; i++) {
		memset(race, 0, sizeof(*race));
		race->delay = delay;
		pid = fork_into_cgroup(&self->env, &pidfd);
		if (!pid)
			run_root_victim(&v);
		ASSERT_GT(pid, 0);
		while (!race->ready || !race->sharer)
			usleep(100);
		target = v.sharer ? race->sharer : pid;
		caller = fork();
		if (!caller) {
			race->go = 1;
			if (race->delay < 0)
				usleep(-race->delay);
			_exit(call_or_kill(race, target, pidfd, variant->by_kill));
		}
		ASSERT_EQ(caller, waitpid(caller, &status, 0));
		ASSERT_TRUE(WIFEXITED(status));

		while (!is_dead(target) && race->seen_at < race->returned_at + 2 * DELIVERY)
			usleep(100);
		if (WEXITSTATUS(status)) {
			ASSERT_EQ(EPERM, WEXITSTATUS(status));
			EXPECT_FALSE(is_dead(pid));
			EXPECT_FALSE(is_dead(race->sharer));
		} else if (!v.sharer || !v.program) {
			/* After execve() it does not share the mm. */
			EXPECT_TRUE(is_dead(target));
		}
		inside += race->root_at > race->called_at && race->root_at < race->returned_at;
		killed += is_dead(target);
		as_root += is_dead(target) && race->root_at &&
			   race->seen_at - race->root_at > DELIVERY;

		/* Approach the latest time at which the call still kills. */
		delay += race->root_at ? step : -step;
		step = step > 4000 ? step * 3 / 4 : 4000;
		kill_cgroup(&self->env);
		waitpid(pid, NULL, 0);
		waitpid(race->sharer, NULL, 0);
		close(pidfd);
	}
	TH_LOG("%d of %d killed, %d became root during the call", killed, nr, inside);
	/* A host may take the CPU away from the guest between check and signal. */
	EXPECT_LE(as_root, variant->by_kill ? 0 : inside / 4);
	/* Otherwise nothing has been tested. execve() may take longer than the call. */
	if (!variant->by_kill && !variant->exec)
		EXPECT_LT(0, inside);
}

int main(int argc, char **argv)
{
	if (!strcmp(argv[0], "become_root"))
		return run_as_root(map_race());
	return test_harness_run(argc, argv);
}
