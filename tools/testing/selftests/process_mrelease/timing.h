/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How long a call takes: a victim, busy loops that starve it, and calls in threads that
 * measure the time. Each test compares a call with the same call on the idle machine,
 * or with the second after which a call gives up.
 */
#ifndef SELFTESTS_PROCESS_MRELEASE_TIMING_H
#define SELFTESTS_PROCESS_MRELEASE_TIMING_H

#include <poll.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "util.h"

#define MIB		(1024L * 1024)
#define FILE_PAGES	(64 * MIB / psize())
#define LOOPS		4	/* enough to starve a victim */
#define LOOP_DELAY	4000	/* us from the call to the loops */
#define ROUNDS		3
#define MAX_ROUNDS	8	/* on a busy host */
#define GIVE_UP		8000	/* ms until a test ends what the call waits for */

#define NO_STATE	"this kernel or machine cannot bring about this state"
#define NO_CPUS		"needs two CPUs"

/* The CPU of the caller, and the one of the victim and the loops. */
static cpu_set_t here, there;

/* Shared with every process of a test. */
static struct shared {
	struct timespec start;	/* of the first call, at the earliest */
	struct timespec began;	/* the first call ... */
	atomic_bool has_begun;	/* ... if it has */
	struct timespec loops;	/* when the loops begin */
	int uffd;		/* of the victim */
	long delay;		/* us from the call until a reader drops mm_users, or -1 */
} *shared;

static struct timespec after(struct timespec t, long us)
{
	long ns = t.tv_nsec + us % 1000000 * 1000;

	t.tv_sec += us / 1000000 + ns / 1000000000;
	t.tv_nsec = ns % 1000000000;
	return t;
}

static struct timespec now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t;
}

static inline long us_since(struct timespec t)
{
	struct timespec n = now();

	return (n.tv_sec - t.tv_sec) * 1000000 + (n.tv_nsec - t.tv_nsec) / 1000;
}

/* The time that this thread has run. */
static inline long cpu_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static inline void sleep_until(const struct timespec *t)
{
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, t, NULL);
}

static inline void set_policy(int policy)
{
	struct sched_param param = { .sched_priority = policy == SCHED_FIFO };

	if (sched_setscheduler(0, policy, &param))
		_exit(1);
}

/* Return false on one CPU. */
static inline bool choose_cpus(void)
{
	cpu_set_t all;

	sched_getaffinity(0, sizeof(all), &all);
	CPU_ZERO(&here);
	CPU_ZERO(&there);
	CPU_SET(first_cpu(&all), &here);
	CPU_SET(last_cpu(&all), &there);
	sched_setaffinity(0, sizeof(here), &here);
	return CPU_COUNT(&all) > 1;
}

/*
 * Busy loops: threads of one process, so that they are charged little.
 */
static struct {
	pid_t pid;
	int pidfd;
	int begin[2];		/* a byte for each */
} loops;

enum place { WITH_VICTIM, WITH_TEST, APART };	/* in which cgroup */

static inline void *loop(void *unused)
{
	char c;

	if (read(loops.begin[0], &c, 1) == 1)
		sleep_until(&shared->loops);
	for (;;)
		;
	return NULL;
}

static inline void loops_cgroup(const struct env *env, char *path, size_t size)
{
	snprintf(path, size, "%s.loops", env->cgroup);
}

static inline bool make_loops(const struct env *env, int nr, enum place place,
			      const cpu_set_t *cpu, int policy)
{
	char path[PATH_MAX + 32];
	pthread_t thread;
	int ready[2];

	if (pipe(ready) || pipe(loops.begin))
		return false;
	loops.pid = place == WITH_VICTIM ? fork_into_cgroup(env, &loops.pidfd) : fork();
	if (!loops.pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (place == APART) {
			loops_cgroup(env, path, sizeof(path));
			strcat(path, "/cgroup.procs");
			if (!write_text(AT_FDCWD, path, "0"))
				_exit(1);
		}
		sched_setaffinity(0, sizeof(*cpu), cpu);
		set_policy(policy);
		while (nr--) {
			if (pthread_create(&thread, NULL, loop, NULL))
				_exit(1);
		}
		if (write(ready[1], "", 1) == 1)
			pause();
		_exit(1);
	}
	loops.pid = wait_ready(loops.pid, ready);
	return loops.pid > 0;
}

static inline void begin_loops(struct timespec when, int nr)
{
	char c[LOOPS] = "";

	shared->loops = when;
	if (write(loops.begin[1], c, nr) != nr)
		perror("loops");
}

static inline void end_loops(void)
{
	if (loops.pid <= 0)
		return;
	kill(loops.pid, SIGKILL);
	waitpid(loops.pid, NULL, 0);
	close(loops.begin[0]);
	close(loops.begin[1]);
	if (loops.pidfd > 0)
		close(loops.pidfd);
	memset(&loops, 0, sizeof(loops));
}

/*
 * The victim. The anonymous memory and the file are adjacent. The first page of the
 * file is a VMA and a folio of its own: a victim that sleeps in a fault of that page
 * keeps the page.
 */
struct role {
	long mib;			/* anonymous memory, 0 is 64 */
	const cpu_set_t *cpu;
	void (*prepare)(void);		/* before it is ready */
	void (*action)(void);		/* on start_action() */
};

static struct {
	pid_t pid;
	int pidfd;
	int start[2];
	char *anon;
	size_t len;
	char *file;
	size_t file_len;
	int fd;
} victim;

static inline void run_victim(const struct env *env, const struct role *role, int ready)
{
	char *p, c;

	if (role->cpu)
		sched_setaffinity(0, sizeof(*role->cpu), role->cpu);
	victim.len = (role->mib ?: 64) * MIB;
	victim.file_len = env->pages * psize();
	p = mmap(NULL, victim.len + victim.file_len, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		_exit(1);
	madvise(p, victim.len, MADV_NOHUGEPAGE);
	memset(p, 1, victim.len);
	victim.anon = p;
	victim.file = p + victim.len;
	victim.fd = env->fd;
	if (env->pages) {
		if (mmap(victim.file, victim.file_len, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, env->fd, 0) == MAP_FAILED ||
		    madvise(victim.file, psize(), MADV_RANDOM))
			_exit(1);
		force_read_pages(victim.file, env->pages, psize());
	}
	if (role->prepare)
		role->prepare();
	if (write(ready, "", 1) != 1 || read(victim.start[0], &c, 1) != 1)
		_exit(1);
	if (role->action)
		role->action();
	sleep_forever(NULL);
}

static inline bool start_victim(struct __test_metadata *_metadata, const struct env *env,
				const struct role *role)
{
	int ready[2];

	ASSERT_EQ(0, pipe(ready));
	ASSERT_EQ(0, pipe(victim.start));
	victim.pid = fork_into_cgroup(env, &victim.pidfd);
	ASSERT_LE(0, victim.pid);
	if (!victim.pid)
		run_victim(env, role, ready[1]);
	return wait_ready(victim.pid, ready) > 0;
}

static inline bool start_action(void)
{
	return write(victim.start[1], "", 1) == 1;
}

/* Return true if the victim dies of SIGKILL within @ms. Leave a zombie. */
static inline bool was_killed(int ms)
{
	struct pollfd fd = { .fd = victim.pidfd, .events = POLLIN };
	siginfo_t info = { };

	return poll(&fd, 1, ms) == 1 &&
	       !waitid(P_PIDFD, victim.pidfd, &info, WEXITED | WNOWAIT) &&
	       info.si_code == CLD_KILLED && info.si_status == SIGKILL;
}

static inline void end_victim(void)
{
	if (victim.pid <= 0)
		return;
	kill(victim.pid, SIGKILL);
	waitpid(victim.pid, NULL, 0);
	close(victim.pidfd);
	close(victim.start[0]);
	close(victim.start[1]);
	memset(&victim, 0, sizeof(victim));
}

/*
 * A call in a thread. If the call hangs, the test ends what the call waits for.
 */
struct call {
	const struct env *env;
	const cpu_set_t *cpu;
	int policy;
	uid_t uid;
	long delay;		/* us from the beginning of the first call */
	int loops;		/* to begin LOOP_DELAY later */
	bool without_flag;
	void (*instead)(void);	/* of the call */

	pthread_t thread;
	int result;
	long us;
	long slept;		/* of .us: the caller did not run */
	struct usage usage;
};

static inline void *make_call(void *arg)
{
	struct call *call = arg;
	struct timespec begin;
	long cpu;

	if (call->cpu)
		sched_setaffinity(0, sizeof(*call->cpu), call->cpu);
	set_policy(call->policy);
	/* The system call, which concerns this thread only */
	if (call->uid)
		syscall(SYS_setresuid32, call->uid, call->uid, call->uid);
	sleep_until(&shared->start);
	while (call->delay && !shared->has_begun)
		usleep(1000);
	begin = after(shared->began, call->delay);
	if (call->delay)
		sleep_until(&begin);
	begin = now();
	if (!call->delay) {
		shared->began = begin;
		shared->has_begun = true;
	}
	if (call->loops)
		begin_loops(after(begin, LOOP_DELAY), call->loops);
	cpu = cpu_us();
	if (call->instead)
		call->instead();
	else
		call->result = mrelease(victim.pidfd, call->without_flag ? 0 :
					PROCESS_MRELEASE_REAP_KILL);
	call->us = us_since(begin);
	call->slept = call->us - (cpu_us() - cpu);
	if (call->env)
		call->usage = measure(call->env);
	return NULL;
}

/* A second, and the delays of a very busy host. A hang takes GIVE_UP. */
static inline void check_wait(struct __test_metadata *_metadata, const struct call *call)
{
	EXPECT_LE(call->slept, 3000 * 1000);
	EXPECT_LE(call->us, 4000 * 1000);
}

static inline void start_call(struct __test_metadata *_metadata, struct call *call)
{
	ASSERT_EQ(0, pthread_create(&call->thread, NULL, make_call, call));
}

/* Return false if the call has not ended after @ms. */
static inline bool ended(struct call *call, long ms)
{
	struct timespec end;

	clock_gettime(CLOCK_REALTIME, &end);
	end = after(end, ms * 1000);
	if (!call->thread)
		return true;
	if (pthread_timedjoin_np(call->thread, NULL, &end))
		return false;
	call->thread = 0;
	return true;
}

/* The calls begin 20 ms later, when all threads are ready. */
static inline void set_start(void)
{
	shared->has_begun = false;
	shared->start = after(now(), 20000);
}

static inline void check_free(struct __test_metadata *_metadata, struct usage usage,
			      long charge, long kept)
{
	kept += lru_batches();
	EXPECT_LE(usage.charge, charge + slack() + kept * psize());
	EXPECT_LE(usage.cache, kept);
	EXPECT_EQ(0, usage.swap);
}

static inline void begin_test(struct __test_metadata *_metadata, struct env *env,
			      bool flag, long pages, bool two_cpus)
{
	shared = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	ASSERT_NE(MAP_FAILED, shared);
	if (!choose_cpus() && two_cpus)
		SKIP(return, NO_CPUS);
	set_up(_metadata, env, flag, pages);
}

static inline void end_test(struct env *env)
{
	end_loops();
	end_victim();
	tear_down(env);
}

/* The action sleeps on the frozen file system. */
static inline bool freeze_and_act(struct env *env)
{
	return freeze_fs(env->fd) && start_action() && wait_for_state(victim.pid, 'D');
}

static inline void thaw_file_system(struct env *env)
{
	thaw_fs(env->fd);
}

/* With the lock of the VMA, where there are such locks */
static inline void write_page(void)
{
	victim.file[0]++;
}

static inline void open_userfaultfd(void)
{
	struct uffdio_api api = { .api = UFFD_API };

	shared->uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (shared->uffd < 0 || ioctl(shared->uffd, UFFDIO_API, &api))
		shared->uffd = -1;
}

#endif
