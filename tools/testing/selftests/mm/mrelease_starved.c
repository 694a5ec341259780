// SPDX-License-Identifier: GPL-2.0
/*
 * process_mrelease() with PROCESS_MRELEASE_REAP_KILL: how long the call takes
 * when the victim is starved, frozen, stopped or asleep in the kernel, and
 * whether another task waits for the call.
 *
 * Time depends on the machine. Each test compares a call with the same call on
 * the idle machine, made right before.
 */
#define _GNU_SOURCE
#include <linux/fs.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#include "mrelease_util.h"
#include "../pidfd/pidfd.h"

#define MIB		(1024L * 1024)
#define FILE_PAGES	(64 * MIB / psize())
#define LOOPS		4	/* as many as it takes to starve a victim */
#define LOOP_DELAY	4000	/* us from the call to the loops */
#define ROUNDS		3
#define MAX_ROUNDS	8	/* on a busy host */
#define GIVE_UP		8000	/* ms until a test ends what the call waits for */
#define STRANGER	1000	/* a user ID */

#define NO_STATE	"this kernel or machine cannot bring about this state"
#define NO_CPUS		"needs two CPUs"

/* The CPU of the caller, and the one of the victim and the loops. */
static cpu_set_t here, there;

/* Shared with every process of a test. */
static struct shared {
	struct timespec start;	/* when the first call may begin */
	struct timespec began;	/* when it did ... */
	atomic_bool has_begun;	/* ... if it did */
	struct timespec loops;	/* when the loops begin */
	int uffd;		/* of the victim */
	long delay;		/* us from the call until a pin is dropped, or -1 */
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

static long us_since(struct timespec t)
{
	struct timespec n = now();

	return (n.tv_sec - t.tv_sec) * 1000000 + (n.tv_nsec - t.tv_nsec) / 1000;
}

/* The time that this thread has run. */
static long cpu_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void sleep_until(const struct timespec *t)
{
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, t, NULL);
}

static void set_policy(int policy)
{
	struct sched_param param = { .sched_priority = policy == SCHED_FIFO };

	if (sched_setscheduler(0, policy, &param))
		_exit(1);
}

/* False if two different CPUs are needed and missing. */
static bool choose_cpus(void)
{
	cpu_set_t all;
	int cpu;

	sched_getaffinity(0, sizeof(all), &all);
	CPU_ZERO(&here);
	CPU_ZERO(&there);
	for (cpu = 0; !CPU_ISSET(cpu, &all); cpu++)
		;
	CPU_SET(cpu, &here);
	for (cpu = CPU_SETSIZE - 1; !CPU_ISSET(cpu, &all); cpu--)
		;
	CPU_SET(cpu, &there);
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

static void *loop(void *unused)
{
	char c;

	if (read(loops.begin[0], &c, 1) == 1)
		sleep_until(&shared->loops);
	for (;;)
		;
	return NULL;
}

static void loops_cgroup(const struct env *env, char *path, size_t size)
{
	snprintf(path, size, "%s.loops", env->cgroup);
}

static bool make_loops(const struct env *env, int nr, enum place place,
		       const cpu_set_t *cpu, int policy)
{
	char path[PATH_MAX + 32], c;
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
			if (!put(AT_FDCWD, path, "0"))
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
	close(ready[1]);
	if (loops.pid > 0 && read(ready[0], &c, 1) != 1) {
		waitpid(loops.pid, NULL, 0);
		loops.pid = 0;
	}
	close(ready[0]);
	return loops.pid > 0;
}

static void begin_loops(struct timespec when, int nr)
{
	char c[LOOPS] = "";

	shared->loops = when;
	if (write(loops.begin[1], c, nr) != nr)
		perror("loops");
}

static void end_loops(void)
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
 * The victim. Its anonymous memory and its file are adjacent. The first page of
 * the file is a VMA and a folio of its own, since what some states do to it
 * makes it stay.
 */
struct role {
	long mib;			/* anonymous memory, 0 is 64 */
	bool untouched;			/* the file */
	const cpu_set_t *cpu;
	void (*prepare)(void);		/* before it is ready */
	void (*act)(void);		/* on the cue */
};

static struct {
	pid_t pid;
	int pidfd;
	int cue[2];
	char *anon;
	size_t len;
	char *file;
	size_t file_len;
	int fd;
} victim;

static void be_victim(const struct env *env, const struct role *role, int ready)
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
		if (!role->untouched)
			force_read_pages(victim.file, env->pages, psize());
	}
	if (role->prepare)
		role->prepare();
	if (write(ready, "", 1) != 1 || read(victim.cue[0], &c, 1) != 1)
		_exit(1);
	if (role->act)
		role->act();
	for (;;)
		pause();
}

static bool start_victim(struct __test_metadata *_metadata, const struct env *env,
			 const struct role *role)
{
	int ready[2];
	ssize_t n;
	char c;

	ASSERT_EQ(0, pipe(ready));
	ASSERT_EQ(0, pipe(victim.cue));
	victim.pid = fork_into_cgroup(env, &victim.pidfd);
	ASSERT_LE(0, victim.pid);
	if (!victim.pid)
		be_victim(env, role, ready[1]);
	close(ready[1]);
	n = read(ready[0], &c, 1);
	close(ready[0]);
	return n == 1;
}

static bool cue(void)
{
	return write(victim.cue[1], "", 1) == 1;
}

/* Killed and a zombie within this time. It stays one. */
static bool is_dead(int ms)
{
	struct pollfd fd = { .fd = victim.pidfd, .events = POLLIN };
	siginfo_t info = { };

	return poll(&fd, 1, ms) == 1 &&
	       !waitid(P_PIDFD, victim.pidfd, &info, WEXITED | WNOWAIT) &&
	       info.si_code == CLD_KILLED && info.si_status == SIGKILL;
}

static void bury_victim(void)
{
	if (victim.pid <= 0)
		return;
	kill(victim.pid, SIGKILL);
	waitpid(victim.pid, NULL, 0);
	close(victim.pidfd);
	close(victim.cue[0]);
	close(victim.cue[1]);
	memset(&victim, 0, sizeof(victim));
}

/*
 * The call, in a thread of its own: the test ends what a call hangs on.
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
	long slept;		/* us of these that the caller did not run */
	struct usage usage;
};

static void *make_call(void *arg)
{
	struct call *call = arg;
	struct timespec begin;
	long cpu;

	if (call->cpu)
		sched_setaffinity(0, sizeof(*call->cpu), call->cpu);
	set_policy(call->policy);
	/* The system call, which concerns this thread only */
	if (call->uid)
		syscall(SYS_setresuid, call->uid, call->uid, call->uid);
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

/* A second of waiting, and what a very busy host adds: a hang takes GIVE_UP. */
static void check_wait(struct __test_metadata *_metadata, const struct call *call)
{
	EXPECT_LE(call->slept, 3000 * 1000);
	EXPECT_LE(call->us, 4000 * 1000);
}

static void start_call(struct __test_metadata *_metadata, struct call *call)
{
	ASSERT_EQ(0, pthread_create(&call->thread, NULL, make_call, call));
}

/* False if the call has not ended after that time. */
static bool ended(struct call *call, long ms)
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

/* The threads that take part have until then to get ready. */
static void set_start(void)
{
	shared->has_begun = false;
	shared->start = after(now(), 20000);
}

static void check_free(struct __test_metadata *_metadata, struct usage usage,
		       long charge, long stay)
{
	stay += lru_batches();
	EXPECT_LE(usage.charge, charge + slack() + stay * psize());
	EXPECT_LE(usage.cache, stay);
	EXPECT_EQ(0, usage.swap);
}

static void begin_fixture(struct __test_metadata *_metadata, struct env *env,
			  bool flag, long pages, bool two_cpus)
{
	shared = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	ASSERT_NE(MAP_FAILED, shared);
	if (!choose_cpus() && two_cpus)
		SKIP(return, NO_CPUS);
	set_up(_metadata, env, flag, pages);
}

static void end_fixture(struct env *env)
{
	end_loops();
	bury_victim();
	tear_down(env);
}

/*
 * States of a victim. What brings one about returns false if this is not
 * possible; what ends it may be called when it is over.
 */
static void be_idle(void)
{
	set_policy(SCHED_IDLE);
}

static void be_nice(void)
{
	setpriority(PRIO_PROCESS, 0, 19);
}

static bool weigh_little(struct env *env)
{
	return put(env->cgroup_fd, "cpu.weight", "1");
}

static bool stop(struct env *env)
{
	return !kill(victim.pid, SIGSTOP) && wait_for_state(victim.pid, 'T');
}

static void thaw_cgroup(struct env *env)
{
	put(env->cgroup_fd, "cgroup.freeze", "0");
}

/* A hierarchy of cgroup v1 with a single group. */
static struct {
	char path[32];
	int dir;
} freezer;

static bool freeze_by_v1(struct env *env)
{
	char group[48], pid[16], text[16] = "";
	int fd;

	if (!freezer.dir) {
		strcpy(freezer.path, "/tmp/mrelease.XXXXXX");
		if (!mkdtemp(freezer.path))
			return false;
		snprintf(group, sizeof(group), "%s/victim", freezer.path);
		if (mount("mrelease", freezer.path, "cgroup", 0, "freezer") ||
		    mkdir(group, 0755))
			return false;
		freezer.dir = open(group, O_PATH | O_CLOEXEC);
	}
	snprintf(pid, sizeof(pid), "%d", victim.pid);
	if (!put(freezer.dir, "cgroup.procs", pid) ||
	    !put(freezer.dir, "freezer.state", "FROZEN"))
		return false;
	for (int i = 0; i < 10000 && strncmp(text, "FROZEN", 6); i++) {
		usleep(1000);
		fd = openat(freezer.dir, "freezer.state", O_RDONLY | O_CLOEXEC);
		if (fd < 0 || read(fd, text, sizeof(text) - 1) < 0)
			return false;
		close(fd);
	}
	return !strncmp(text, "FROZEN", 6);
}

static void thaw_by_v1(struct env *env)
{
	if (freezer.dir)
		put(freezer.dir, "freezer.state", "THAWED");
}

static void remove_freezer(void)
{
	char group[48];

	if (!freezer.path[0])
		return;
	close(freezer.dir);
	snprintf(group, sizeof(group), "%s/victim", freezer.path);
	for (int i = 0; i < 100 && rmdir(group) && errno == EBUSY; i++)
		usleep(10000);
	umount(freezer.path);
	rmdir(freezer.path);
}

/* The death of the test is the signal for it to thaw the file system. */
static pid_t keeper;

static bool freeze_file_system(struct env *env)
{
	struct stat file, root;
	sigset_t set;
	int sig;

	if (fstat(env->fd, &file) || stat("/", &root) || file.st_dev == root.st_dev)
		return false;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	keeper = fork();
	if (!keeper) {
		sigprocmask(SIG_BLOCK, &set, NULL);
		prctl(PR_SET_PDEATHSIG, SIGUSR1);
		sigwait(&set, &sig);
		ioctl(env->fd, FITHAW, 0);
		_exit(0);
	}
	return !ioctl(env->fd, FIFREEZE, 0);
}

static void thaw_file_system(struct env *env)
{
	if (keeper <= 0)
		return;
	ioctl(env->fd, FITHAW, 0);
	kill(keeper, SIGKILL);
	waitpid(keeper, NULL, 0);
	keeper = 0;
}

/* The victim acts, and sleeps on the frozen file system. */
static bool act_on_frozen(struct env *env)
{
	return freeze_file_system(env) && cue() &&
	       wait_for_state(victim.pid, 'D');
}

/* Without a lock of the mm */
static void truncate_file(void)
{
	if (ftruncate(victim.fd, victim.file_len))
		_exit(1);
}

/* With the lock of the VMA, where there are such locks */
static void write_page(void)
{
	victim.file[0]++;
}

/* With mmap_lock for reading */
static void populate_page(void)
{
	madvise(victim.file, psize(), MADV_POPULATE_WRITE);
}

static void *write_page_in_thread(void *tid)
{
	atomic_store((atomic_int *)tid, gettid());
	write_page();
	return NULL;
}

/*
 * With mmap_lock for writing: the anonymous memory is write-locked, then this
 * waits for the lock of the next VMA, where a fault of another thread sleeps.
 */
static void unmap_beside_fault(void)
{
	atomic_int tid = 0;
	pthread_t thread;

	if (pthread_create(&thread, NULL, write_page_in_thread, &tid))
		_exit(1);
	while (!tid)
		usleep(1000);
	if (wait_for_state(tid, 'D'))
		munmap(victim.anon, victim.len + psize());
}

/* A writer that SIGKILL does not end: the last close of a userfaultfd. */
static pid_t writer;

static void open_userfaultfd(void)
{
	struct uffdio_api api = { .api = UFFD_API };

	shared->uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (shared->uffd < 0 || ioctl(shared->uffd, UFFDIO_API, &api))
		shared->uffd = -1;
}

static void close_userfaultfd_and_populate_page(void)
{
	close(shared->uffd);
	populate_page();
}

static bool act_on_frozen_with_writer(struct env *env)
{
	int sock[2];
	char c;

	if (shared->uffd < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, sock))
		return false;
	writer = fork();
	if (!writer) {
		int fd = sys_pidfd_getfd(victim.pidfd, shared->uffd, 0);

		close(sock[0]);
		if (write(sock[1], "", 1) == 1 && read(sock[1], &c, 1) == 1)
			close(fd);
		_exit(0);
	}
	close(sock[1]);
	if (read(sock[0], &c, 1) != 1 || !act_on_frozen(env) || write(sock[0], "", 1) != 1)
		return false;
	close(sock[0]);
	return wait_for_state(writer, 'D');
}

static void end_writer(struct env *env)
{
	thaw_file_system(env);
	if (writer > 0)
		waitpid(writer, NULL, 0);
	writer = 0;
}

/*
 * A process of another user that pins mm_users: it reads the command line into a
 * page whose fault ends when the victim has exited, or after shared->delay. The
 * fault ends 4 ms before the loops on its CPU begin.
 */
static pid_t reader;

static void *read_cmdline(void *page)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/cmdline", victim.pid);
	fd = open(path, O_RDONLY);
	sched_setaffinity(0, sizeof(there), &there);
	set_policy(SCHED_IDLE);
	if (read(fd, page, psize()) <= 0)
		_exit(1);
	pause();
	return NULL;
}

static bool pin_by_stranger(struct env *env)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct pollfd exited = { .fd = victim.pidfd, .events = POLLIN };
	struct uffdio_zeropage zero = { };
	struct uffd_msg msg;
	pthread_t thread;
	int ready[2], uffd;
	void *page;
	char c;

	if (pipe(ready))
		return false;
	shared->has_begun = false;
	reader = fork();
	if (reader) {
		bool ok;

		close(ready[1]);
		ok = read(ready[0], &c, 1) == 1;
		close(ready[0]);
		return ok;
	}

	page = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		    -1, 0);
	uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ||
	    uffd_register(uffd, page, psize(), true, false, false) ||
	    setresuid(STRANGER, STRANGER, STRANGER) ||
	    prctl(PR_SET_PDEATHSIG, SIGKILL) ||
	    pthread_create(&thread, NULL, read_cmdline, page) ||
	    read(uffd, &msg, sizeof(msg)) != sizeof(msg) ||
	    write(ready[1], "", 1) != 1)
		_exit(1);
	while (!shared->has_begun)
		usleep(1000);
	poll(&exited, 1, shared->delay < 0 ? -1 : shared->delay / 1000);
	begin_loops(after(now(), LOOP_DELAY), LOOPS);
	zero.range.start = (uintptr_t)page;
	zero.range.len = psize();
	ioctl(uffd, UFFDIO_ZEROPAGE, &zero);
	pause();
	_exit(0);
}

static void end_reader(struct env *env)
{
	if (reader <= 0)
		return;
	kill(reader, SIGKILL);
	waitpid(reader, NULL, 0);
	reader = 0;
}

FIXTURE(starved) {
	struct env env;
	bool skipped;
};

FIXTURE_VARIANT(starved) {
	struct role role;
	bool (*enter)(struct env *env);
	void (*leave)(struct env *env);
	int loops;
	enum place place;	/* of the loops */
	int policy;		/* of the loops */
	bool one_cpu;		/* the caller's is that of the loops, too */
	bool victim_here;	/* on the caller's CPU */
	bool loops_later;	/* enter() sees to them */
	bool dies;		/* before leave() */
	long stay;		/* pages of the file that may */
};

FIXTURE_VARIANT_ADD(starved, sched_idle_beside_loops) {
	.role = { .mib = 400, .prepare = be_idle },
	.loops = LOOPS,
};

FIXTURE_VARIANT_ADD(starved, sched_idle_beside_loops_one_cpu) {
	.role = { .mib = 400, .prepare = be_idle },
	.loops = LOOPS,
	.one_cpu = true,
};

FIXTURE_VARIANT_ADD(starved, nice_beside_loops) {
	.role = { .mib = 400, .prepare = be_nice },
	.loops = LOOPS,
};

FIXTURE_VARIANT_ADD(starved, cpu_weight_1_beside_loops_at_10000) {
	.role = { .mib = 200 },
	.enter = weigh_little,
	.loops = LOOPS,
	.place = APART,
};

FIXTURE_VARIANT_ADD(starved, beside_sched_fifo_loop) {
	.role = { .mib = 200 },
	.loops = 1,
	.policy = SCHED_FIFO,
};

FIXTURE_VARIANT_ADD(starved, sched_fifo_loop_on_another_cpu) {
	.loops = 1,
	.policy = SCHED_FIFO,
	.place = WITH_TEST,
	.victim_here = true,
};

FIXTURE_VARIANT_ADD(starved, stopped) {
	.enter = stop,
	.dies = true,
};

FIXTURE_VARIANT_ADD(starved, frozen_by_cgroup_v2) {
	.enter = freeze_cgroup,
	.leave = thaw_cgroup,
	.dies = true,
};

FIXTURE_VARIANT_ADD(starved, frozen_by_cgroup_v1) {
	.enter = freeze_by_v1,
	.leave = thaw_by_v1,
	.dies = true,
};

FIXTURE_VARIANT_ADD(starved, d_state) {
	.role = { .act = truncate_file },
	.enter = act_on_frozen,
	.leave = thaw_file_system,
};

FIXTURE_VARIANT_ADD(starved, d_state_in_fault) {
	.role = { .act = write_page },
	.enter = act_on_frozen,
	.leave = thaw_file_system,
	.stay = 1,
};

FIXTURE_VARIANT_ADD(starved, d_state_with_mmap_lock) {
	.role = { .act = populate_page },
	.enter = act_on_frozen,
	.leave = thaw_file_system,
	.stay = 1,
};

FIXTURE_VARIANT_ADD(starved, d_state_with_mmap_lock_and_queued_writer) {
	.role = { .prepare = open_userfaultfd, .act = close_userfaultfd_and_populate_page },
	.enter = act_on_frozen_with_writer,
	.leave = end_writer,
	.stay = 1,
};

FIXTURE_VARIANT_ADD(starved, pinned_until_exit_by_sched_idle_stranger) {
	.role = { .mib = 200 },
	.enter = pin_by_stranger,
	.leave = end_reader,
	.loops = LOOPS,
	.place = WITH_TEST,
	.loops_later = true,
};

FIXTURE_SETUP(starved)
{
	char path[PATH_MAX + 32];

	begin_fixture(_metadata, &self->env, true, FILE_PAGES,
		      variant->loops && !variant->one_cpu);
	if (variant->place != APART || !self->env.cgroup_fd)
		return;
	loops_cgroup(&self->env, path, sizeof(path));
	put(self->env.cgroup_fd, "../cgroup.subtree_control", "+cpu");
	if (mkdir(path, 0755))
		SKIP(return, "needs cgroup v2");
	strcat(path, "/cpu.weight");
	if (!put(AT_FDCWD, path, "10000"))
		SKIP(return, "needs the cpu controller of cgroup v2");
}

FIXTURE_TEARDOWN(starved)
{
	char path[PATH_MAX + 32];

	end_loops();
	if (variant->leave)
		variant->leave(&self->env);
	end_fixture(&self->env);
	remove_freezer();
	loops_cgroup(&self->env, path, sizeof(path));
	rmdir(path);
}

/* Its result is -1 if the victim cannot be brought into the state. */
static struct call make_one_call(struct __test_metadata *_metadata,
				 struct _test_data_starved *self,
				 const struct _fixture_variant_starved *variant, bool idle)
{
	const cpu_set_t *caller = variant->one_cpu ? &there : &here;
	struct call call = {
		.env = &self->env, .cpu = caller,
		/* Not to be starved by the loops itself */
		.policy = variant->one_cpu ? SCHED_FIFO : SCHED_OTHER,
	};
	struct role role = variant->role;
	long charge;
	bool late;

	if (variant->loops)
		ASSERT_TRUE(make_loops(&self->env, variant->loops, variant->place, &there,
				       variant->policy));
	/* Page tables, which may be freed an RCU grace period later */
	charge = measure(&self->env).charge + role.mib * MIB / 512;
	role.cpu = variant->victim_here ? &here : &there;
	ASSERT_TRUE(start_victim(_metadata, &self->env, &role));
	EXPECT_LE(variant->role.mib * MIB, measure(&self->env).charge);
	if (!idle && variant->enter && !variant->enter(&self->env)) {
		call.result = -1;
		return call;
	}
	set_start();
	if (!idle && !variant->loops_later)
		call.loops = variant->loops;
	start_call(_metadata, &call);
	late = !ended(&call, GIVE_UP);
	if (variant->dies)
		EXPECT_TRUE(is_dead(10000));
	end_loops();
	if (variant->leave)
		variant->leave(&self->env);
	ended(&call, 1000 * TIMEOUT);
	EXPECT_FALSE(late);
	EXPECT_EQ(0, call.result);
	check_free(_metadata, call.usage, charge, idle ? 0 : variant->stay);
	EXPECT_TRUE(is_dead(60000));
	bury_victim();
	posix_fadvise(self->env.fd, 0, 0, POSIX_FADV_DONTNEED);
	return call;
}

static void keep_best(struct call *best, struct call call)
{
	if (!best->us || call.us < best->us)
		best->us = call.us;
	if (call.slept > best->slept)
		best->slept = call.slept;
}

/*
 * Compare the best call with the best on the idle machine, since a busy host
 * delays both. No call at all may sleep for longer than a busy host explains.
 */
TEST_F_TIMEOUT(starved, at_most_twice_the_time_of_an_idle_machine, TIMEOUT)
{
	const long delays[] = { -1, 4000, 16000 };
	struct call idle = { }, best = { }, call;
	bool slow = false, slept = false;

	for (int i = 0; !slept && (i < ROUNDS || (slow && i < MAX_ROUNDS)); i++) {
		keep_best(&idle, make_one_call(_metadata, self, variant, true));
		shared->delay = delays[i % ARRAY_SIZE(delays)];
		call = make_one_call(_metadata, self, variant, false);
		if (call.result < 0)
			SKIP(return, NO_STATE);
		keep_best(&best, call);
		slow = best.us > 2 * idle.us + 50000;
		slept = best.slept > 2 * idle.slept + 400000;
	}
	TH_LOG("%ld ms, idle %ld ms; slept for %ld ms, idle %ld ms", best.us / 1000,
	       idle.us / 1000, best.slept / 1000, idle.slept / 1000);
	EXPECT_FALSE(slow);
	EXPECT_FALSE(slept);
}

/*
 * Locks of the victim that stay out of reach for longer than a second, and what
 * the next call does then.
 */
FIXTURE(joins) {
	struct env env;
	pid_t pin;
};

FIXTURE_SETUP(joins)
{
	begin_fixture(_metadata, &self->env, true, FILE_PAGES, false);
}

FIXTURE_TEARDOWN(joins)
{
	thaw_file_system(&self->env);
	if (self->pin > 0) {
		kill(self->pin, SIGKILL);
		waitpid(self->pin, NULL, 0);
	}
	end_fixture(&self->env);
}

static const struct role locked = { .act = unmap_beside_fault };

/* The locks are out of reach until the file system is thawed. */
static bool timed_call(struct __test_metadata *_metadata, struct env *env,
		       struct call *call)
{
	bool late;

	*call = (struct call) { .env = env };
	set_start();
	start_call(_metadata, call);
	late = !ended(call, GIVE_UP);
	if (late)
		thaw_file_system(env);
	ended(call, 1000 * TIMEOUT);
	EXPECT_FALSE(late);
	check_wait(_metadata, call);
	return !late;
}

TEST_F_TIMEOUT(joins, after_eagain, TIMEOUT)
{
	struct call call;

	ASSERT_TRUE(start_victim(_metadata, &self->env, &locked));
	if (!act_on_frozen(&self->env))
		SKIP(return, NO_STATE);
	for (int i = 0; i < 2; i++) {
		ASSERT_TRUE(timed_call(_metadata, &self->env, &call));
		EXPECT_EQ(EAGAIN, call.result);
	}
	thaw_file_system(&self->env);
	ASSERT_TRUE(timed_call(_metadata, &self->env, &call));
	EXPECT_EQ(0, call.result);
	check_free(_metadata, call.usage, 0, 1);
	EXPECT_TRUE(is_dead(60000));
}

TEST_F_TIMEOUT(joins, after_eagain_and_exit_with_mm_pinned, TIMEOUT)
{
	struct call call;

	ASSERT_TRUE(start_victim(_metadata, &self->env, &locked));
	self->pin = pin_memory(victim.pid, &victim);
	if (self->pin < 0)
		SKIP(return, NO_PIN);
	if (!act_on_frozen(&self->env))
		SKIP(return, NO_STATE);
	ASSERT_TRUE(timed_call(_metadata, &self->env, &call));
	EXPECT_EQ(EAGAIN, call.result);
	thaw_file_system(&self->env);
	ASSERT_TRUE(is_dead(60000));
	ASSERT_TRUE(timed_call(_metadata, &self->env, &call));
	EXPECT_EQ(0, call.result);
	check_free(_metadata, call.usage, 0, 1);
}

/* The caller must not outlive its own SIGKILL by the rest of the second. */
TEST_F_TIMEOUT(joins, after_fatal_signal_to_caller, TIMEOUT)
{
	struct timespec begin;
	struct call call;
	pid_t caller;
	long us;

	ASSERT_TRUE(start_victim(_metadata, &self->env, &locked));
	self->pin = pin_memory(victim.pid, &victim);
	if (self->pin < 0)
		SKIP(return, NO_PIN);
	if (!act_on_frozen(&self->env))
		SKIP(return, NO_STATE);
	caller = fork();
	if (!caller)
		_exit(mrelease(victim.pidfd, PROCESS_MRELEASE_REAP_KILL));
	usleep(200000);
	begin = now();
	kill(caller, SIGKILL);
	for (us = 0; us < GIVE_UP * 1000 && !waitpid(caller, NULL, WNOHANG); us = us_since(begin))
		usleep(1000);
	TH_LOG("the caller died %ld ms after its SIGKILL", us / 1000);
	EXPECT_LE(us, 500 * 1000);
	thaw_file_system(&self->env);
	if (us >= GIVE_UP * 1000)
		waitpid(caller, NULL, 0);
	ASSERT_TRUE(is_dead(60000));
	ASSERT_TRUE(timed_call(_metadata, &self->env, &call));
	EXPECT_EQ(0, call.result);
	check_free(_metadata, call.usage, 0, 1);
}

TEST_F_TIMEOUT(joins, not_an_exit_after_kill, TIMEOUT)
{
	const struct role role = { };
	struct call call;

	ASSERT_TRUE(start_victim(_metadata, &self->env, &role));
	self->pin = pin_memory(victim.pid, &victim);
	if (self->pin < 0)
		SKIP(return, NO_PIN);
	ASSERT_EQ(0, kill(victim.pid, SIGKILL));
	ASSERT_TRUE(is_dead(60000));
	ASSERT_TRUE(timed_call(_metadata, &self->env, &call));
	EXPECT_EQ(ESRCH, call.result);
	EXPECT_LE(64 * MIB, call.usage.charge);
}

/*
 * Two callers.
 */
FIXTURE(two_callers) {
	struct env env;
};

FIXTURE_SETUP(two_callers)
{
	begin_fixture(_metadata, &self->env, true, FILE_PAGES - MIB / psize(), true);
}

FIXTURE_TEARDOWN(two_callers)
{
	end_fixture(&self->env);
}

static void be_dumpable_nobody(void)
{
	if (setresuid(NOBODY, NOBODY, NOBODY) || prctl(PR_SET_DUMPABLE, 1))
		_exit(1);
}

/* Any user may reap an own process, at whatever priority. */
TEST_F_TIMEOUT(two_callers, second_not_shut_out_by_starved_first, TIMEOUT)
{
	const struct role role = { .mib = 400, .prepare = be_dumpable_nobody, .cpu = &here };
	struct call first = {
		.env = &self->env, .cpu = &there, .policy = SCHED_IDLE, .uid = NOBODY,
		.loops = LOOPS,
	};
	struct call second = { .env = &self->env, .delay = 50000 };
	bool late, at_work;

	for (int i = 0; i < ROUNDS; i++) {
		ASSERT_TRUE(make_loops(&self->env, LOOPS, WITH_TEST, &there, SCHED_OTHER));
		ASSERT_TRUE(start_victim(_metadata, &self->env, &role));
		set_start();
		start_call(_metadata, &first);
		start_call(_metadata, &second);
		late = !ended(&second, GIVE_UP);
		at_work = !ended(&first, 0);
		end_loops();
		ended(&second, 1000 * TIMEOUT);
		EXPECT_FALSE(late);
		EXPECT_TRUE(ended(&first, 10000));
		TH_LOG("second: %d after %ld ms, first: %d after %ld ms", second.result,
		       second.us / 1000, first.result, first.us / 1000);
		EXPECT_TRUE(at_work);
		check_wait(_metadata, &second);
		EXPECT_TRUE(!second.result || second.result == EAGAIN);
		if (!second.result)
			check_free(_metadata, second.usage, 0, 0);
		EXPECT_TRUE(!first.result || first.result == EAGAIN);
		EXPECT_TRUE(is_dead(10000));
		bury_victim();
		posix_fadvise(self->env.fd, 0, 0, POSIX_FADV_DONTNEED);
	}
}

static void *protect(void *unused)
{
	char *p = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);

	sched_setaffinity(0, sizeof(there), &there);
	memset(p, 1, MIB);
	for (;;) {
		mprotect(p, MIB, PROT_READ);
		mprotect(p, MIB, PROT_READ | PROT_WRITE);
	}
	return NULL;
}

static void start_protecting(void)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, protect, NULL))
		_exit(1);
}

/* What the victim maps, but has never touched, is in the page cache for others. */
static void check_untouched_stays(struct __test_metadata *_metadata,
				  struct env *env, const struct role *role, int callers)
{
	struct call calls[2] = {
		{ .env = env, .cpu = &here }, { .env = env, .cpu = &there },
	};
	int rounds = 20, kept = 0;

	for (int i = 0; i < rounds; i++) {
		ASSERT_EQ(-1, wrong_page(env->fd, env->pages, 0));
		ASSERT_EQ(env->pages, cached(env->fd));
		ASSERT_TRUE(start_victim(_metadata, env, role));
		set_start();
		for (int j = 0; j < callers; j++)
			start_call(_metadata, &calls[j]);
		for (int j = 0; j < callers; j++) {
			ASSERT_TRUE(ended(&calls[j], 1000 * TIMEOUT));
			EXPECT_EQ(0, calls[j].result);
			EXPECT_LE(calls[j].usage.charge, slack());
		}
		kept += cached(env->fd) == env->pages;
		EXPECT_TRUE(is_dead(60000));
		bury_victim();
	}
	EXPECT_EQ(rounds, kept);
}

TEST_F_TIMEOUT(two_callers, untouched_file_stays_cached, TIMEOUT)
{
	const struct role role = { .untouched = true };

	check_untouched_stays(_metadata, &self->env, &role, 2);
}

TEST_F_TIMEOUT(two_callers, untouched_file_stays_cached_beside_mprotect, TIMEOUT)
{
	const struct role role = { .untouched = true, .prepare = start_protecting };

	check_untouched_stays(_metadata, &self->env, &role, 1);
}

/*
 * Strangers: they look at the victim, or at the same file, while a caller that
 * is starved itself is at work.
 */
static void read_maps(void)
{
	char path[32], text[4096];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/maps", victim.pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && read(fd, text, sizeof(text)) > 0)
		;
	close(fd);
}

static void seize(void)
{
	if (!ptrace(PTRACE_SEIZE, victim.pid, 0, 0))
		ptrace(PTRACE_DETACH, victim.pid, 0, 0);
}

static void read_memory(void)
{
	char buf[64];
	struct iovec to = { buf, sizeof(buf) }, from = { &victim, sizeof(buf) };

	process_vm_readv(victim.pid, &to, 1, &from, 1, 0);
}

static int uffd = -1;

static void close_userfaultfd(void)
{
	close(uffd);
}

static int file = -1;

static void read_victims_file(void)
{
	char *buf = malloc(MIB);
	off_t at = 0;
	ssize_t n;

	while ((n = pread(file, buf, MIB, at)) > 0)
		at += n;
	free(buf);
}

FIXTURE(stranger) {
	struct env env;
};

FIXTURE_VARIANT(stranger) {
	void (*act)(void);
};

FIXTURE_VARIANT_ADD(stranger, reads_maps) {
	.act = read_maps,
};

FIXTURE_VARIANT_ADD(stranger, traces) {
	.act = seize,
};

FIXTURE_VARIANT_ADD(stranger, reads_memory) {
	.act = read_memory,
};

FIXTURE_VARIANT_ADD(stranger, closes_userfaultfd) {
	.act = close_userfaultfd,
};

FIXTURE_VARIANT_ADD(stranger, reads_same_file) {
	.act = read_victims_file,
};

FIXTURE_SETUP(stranger)
{
	begin_fixture(_metadata, &self->env, true, FILE_PAGES, true);
}

FIXTURE_TEARDOWN(stranger)
{
	end_fixture(&self->env);
}

static void close_own_userfaultfd(void)
{
	close(shared->uffd);
	shared->uffd = -1;
}

TEST_F_TIMEOUT(stranger, waits_for_no_starved_caller, TIMEOUT)
{
	const struct role role = {
		.mib = 400, .cpu = &here,
		.prepare = open_userfaultfd, .act = close_own_userfaultfd,
	};
	/* Some moments of the call, while it is at the file and at the rest */
	const long moments[] = { 30000, 60000, 200000 };
	struct call idle = { .cpu = &here, .loops = LOOPS, .instead = variant->act };
	int at_work = 0;
	bool late;

	/* It finds no victim, but the file, and the loops delay its I/O, too. */
	file = self->env.fd;
	ASSERT_TRUE(make_loops(&self->env, LOOPS, WITH_TEST, &there, SCHED_OTHER));
	set_start();
	start_call(_metadata, &idle);
	ended(&idle, 1000 * TIMEOUT);
	end_loops();
	posix_fadvise(self->env.fd, 0, 0, POSIX_FADV_DONTNEED);

	for (unsigned int i = 0; i < ARRAY_SIZE(moments); i++) {
		struct call caller = {
			.cpu = &there, .policy = SCHED_IDLE, .loops = LOOPS,
		};
		struct call stranger = {
			.cpu = &here, .delay = moments[i], .instead = variant->act,
		};

		ASSERT_TRUE(make_loops(&self->env, LOOPS, WITH_TEST, &there, SCHED_OTHER));
		ASSERT_TRUE(start_victim(_metadata, &self->env, &role));
		if (variant->act == close_userfaultfd) {
			if (shared->uffd < 0)
				SKIP(return, "needs userfaultfd");
			uffd = sys_pidfd_getfd(victim.pidfd, shared->uffd, 0);
			ASSERT_LE(0, uffd);
			ASSERT_TRUE(cue());
			for (int j = 0; j < 10000 && shared->uffd >= 0; j++)
				usleep(1000);
		}
		set_start();
		start_call(_metadata, &caller);
		start_call(_metadata, &stranger);
		late = !ended(&stranger, GIVE_UP);
		at_work += !ended(&caller, 0);
		end_loops();
		ended(&stranger, 1000 * TIMEOUT);
		EXPECT_TRUE(ended(&caller, 60000));
		TH_LOG("stranger: %ld ms (idle %ld), caller: %ld ms",
		       stranger.us / 1000, idle.us / 1000, caller.us / 1000);
		EXPECT_FALSE(late);
		EXPECT_LE(stranger.us, 2 * idle.us + 1000 * 1000);
		EXPECT_TRUE(!caller.result || caller.result == EAGAIN);
		EXPECT_TRUE(is_dead(60000));
		bury_victim();
		posix_fadvise(self->env.fd, 0, 0, POSIX_FADV_DONTNEED);
	}
	EXPECT_LT(0, at_work);
}

/*
 * FUSE, with a single file as its root. The server answers what it takes to open
 * and to read, and is silent when data is written back. Its death ends all.
 */
#define FUSE_PAGES	16L

FIXTURE(hangs) {
	struct env env;
	pid_t server;
	int fd;
};

static void answer_reads(int dev)
{
	static char buf[FUSE_MIN_READ_BUFFER + (1 << 17)], data[1 << 17];
	struct fuse_in_header *in = (void *)buf;

	while (read(dev, buf, sizeof(buf)) > 0) {
		struct fuse_init_out init = {
			.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION,
			.max_write = FUSE_PAGES * psize(), .max_background = FUSE_PAGES,
			.congestion_threshold = FUSE_PAGES,
		};
		struct fuse_attr_out attr = {
			.attr_valid = TIMEOUT,
			.attr = {
				.ino = FUSE_ROOT_ID, .size = FUSE_PAGES * psize(),
				.nlink = 1, .mode = S_IFREG | 0600, .blksize = psize(),
			},
		};
		struct fuse_open_out open = {
			.open_flags = FOPEN_KEEP_CACHE | FOPEN_NOFLUSH,
		};
		struct fuse_out_header out = { .len = sizeof(out), .unique = in->unique };
		struct iovec iov[] = { { &out, sizeof(out) }, { } };

		switch (in->opcode) {
		case FUSE_INIT:
			iov[1] = (struct iovec) { &init, sizeof(init) };
			break;
		case FUSE_GETATTR:
			iov[1] = (struct iovec) { &attr, sizeof(attr) };
			break;
		case FUSE_OPEN:
			iov[1] = (struct iovec) { &open, sizeof(open) };
			break;
		case FUSE_READ:
			iov[1] = (struct iovec) {
				data, ((struct fuse_read_in *)(in + 1))->size
			};
			break;
		case FUSE_WRITE:
		case FUSE_FORGET:
		case FUSE_BATCH_FORGET:
		case FUSE_INTERRUPT:
			continue;
		default:
			out.error = -ENOSYS;
		}
		out.len += iov[1].iov_len;
		if (writev(dev, iov, 2) < 0 && errno != ENOENT)
			_exit(1);
	}
	_exit(0);
}

static int mount_fuse(int dev)
{
	int fs = syscall(__NR_fsopen, "fuse", FSOPEN_CLOEXEC), mount = -1;
	const char *options[][2] = {
		{ "source", "mrelease" }, { "rootmode", "100600" }, { "user_id", "0" },
		{ "group_id", "0" }, { "fd", NULL },
	};
	char text[16];

	snprintf(text, sizeof(text), "%d", dev);
	options[4][1] = text;
	for (int i = 0; i < 5; i++)
		syscall(__NR_fsconfig, fs, FSCONFIG_SET_STRING, options[i][0], options[i][1], 0);
	if (!syscall(__NR_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		mount = syscall(__NR_fsmount, fs, FSMOUNT_CLOEXEC, 0);
	close(fs);
	return mount;
}

FIXTURE_SETUP(hangs)
{
	int dev = open("/dev/fuse", O_RDWR | O_CLOEXEC), mount;
	struct stat st;
	char path[32];

	begin_fixture(_metadata, &self->env, false, 0, false);
	mount = mount_fuse(dev);
	if (mount < 0)
		SKIP(return, "needs FUSE");
	self->server = fork();
	if (!self->server) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(mount);
		answer_reads(dev);
	}
	close(dev);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", mount);
	self->fd = open(path, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);
	close(mount);
	/* A fault does not ask for the size of the file. */
	ASSERT_EQ(0, fstat(self->fd, &st));
	ASSERT_EQ(FUSE_PAGES * psize(), st.st_size);
}

static void end_server(pid_t *server)
{
	if (*server <= 0)
		return;
	kill(*server, SIGKILL);
	waitpid(*server, NULL, 0);
	*server = 0;
}

FIXTURE_TEARDOWN(hangs)
{
	end_server(&self->server);
	close(self->fd);
	end_fixture(&self->env);
}

static int fuse_fd;

static void write_to_fuse(void)
{
	char *p = mmap(NULL, FUSE_PAGES * psize(), PROT_READ | PROT_WRITE, MAP_SHARED,
		       fuse_fd, 0);

	if (p == MAP_FAILED)
		_exit(1);
	memset(p, 1, FUSE_PAGES * psize());
}

/* The call, and the time it takes at most. */
static void call_beside_silent_server(struct __test_metadata *_metadata,
				      struct _test_data_hangs *self, struct call *call)
{
	bool late;

	call->env = &self->env;
	set_start();
	start_call(_metadata, call);
	late = !ended(call, GIVE_UP);
	if (late)
		end_server(&self->server);
	ended(call, 1000 * TIMEOUT);
	TH_LOG("%d after %ld ms", call->result, call->us / 1000);
	EXPECT_FALSE(late);
	check_wait(_metadata, call);
}

static void dirty_and_start(struct __test_metadata *_metadata, struct _test_data_hangs *self)
{
	const struct role role = { .prepare = write_to_fuse };

	fuse_fd = self->fd;
	ASSERT_TRUE(start_victim(_metadata, &self->env, &role));
}

/* The victim's exit waits for the server, with nothing left that the call finds. */
static void kill_and_wait(struct __test_metadata *_metadata)
{
	ASSERT_EQ(0, kill(victim.pid, SIGKILL));
	usleep(300000);
	ASSERT_TRUE(wait_for_state(victim.pid, 'D'));
}

TEST_F_TIMEOUT(hangs, not_without_flag_after_sigkill, TIMEOUT)
{
	struct call call = { .without_flag = true };

	dirty_and_start(_metadata, self);
	kill_and_wait(_metadata);
	call_beside_silent_server(_metadata, self, &call);
	EXPECT_EQ(ESRCH, call.result);
	EXPECT_LE(call.slept, 300 * 1000);
}

TEST_F_TIMEOUT(hangs, not_after_sigkill, TIMEOUT)
{
	struct call call = { };

	if (!has_reap_kill())
		SKIP(return, NO_FLAG);
	dirty_and_start(_metadata, self);
	kill_and_wait(_metadata);
	call_beside_silent_server(_metadata, self, &call);
	EXPECT_EQ(ESRCH, call.result);
}

TEST_F_TIMEOUT(hangs, not_for_the_first_or_second_call, TIMEOUT)
{
	struct call first = { }, second = { };

	if (!has_reap_kill())
		SKIP(return, NO_FLAG);
	dirty_and_start(_metadata, self);
	call_beside_silent_server(_metadata, self, &first);
	EXPECT_EQ(0, first.result);
	check_free(_metadata, first.usage, FUSE_PAGES * psize(), 0);
	ASSERT_TRUE(wait_for_state(victim.pid, 'D'));
	call_beside_silent_server(_metadata, self, &second);
	EXPECT_EQ(0, second.result);
	EXPECT_LE(second.slept, 300 * 1000);
	end_server(&self->server);
	EXPECT_TRUE(is_dead(60000));
}

/*
 * A container: the init of a PID namespace with a child, both with open and
 * mapped files of a file system that is unmounted when init has been waited for.
 */
#define TEARDOWNS	60

FIXTURE(teardown) {
	struct env env;
	char dir[PATH_MAX];
};

FIXTURE_SETUP(teardown)
{
	begin_fixture(_metadata, &self->env, true, 0, false);
	if (!self->env.cgroup_fd)
		return;
	strcpy(self->dir, "/tmp/mrelease.XXXXXX");
	ASSERT_NE(NULL, mkdtemp(self->dir));
}

FIXTURE_TEARDOWN(teardown)
{
	umount2(self->dir, MNT_DETACH);
	rmdir(self->dir);
	end_fixture(&self->env);
}

static void use_file(const char *dir)
{
	char path[PATH_MAX + 8], *p;
	int fd;

	snprintf(path, sizeof(path), "%s/file", dir);
	fd = open(path, O_RDWR | O_CREAT, 0600);
	if (fd < 0 || ftruncate(fd, MIB))
		_exit(1);
	p = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		_exit(1);
	memset(p, 1, MIB / 2);
	p = mmap(NULL, 8 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		_exit(1);
	memset(p, 1, 8 * MIB);
}

TEST_F_TIMEOUT(teardown, umount_after_waitpid, TIMEOUT)
{
	int busy = 0, ready[2], pidfd;
	struct clone_args args = {
		.flags = CLONE_PIDFD | CLONE_NEWPID, .pidfd = (uintptr_t)&pidfd,
		.exit_signal = SIGCHLD,
	};
	pid_t init;
	char c;

	for (int i = 0; i < TEARDOWNS; i++) {
		ASSERT_EQ(0, mount("mrelease", self->dir, "tmpfs", 0, NULL));
		ASSERT_EQ(0, pipe(ready));
		init = syscall(__NR_clone3, &args, sizeof(args));
		if (init < 0)
			SKIP(return, "needs PID namespaces");
		if (!init) {
			use_file(self->dir);
			if (!fork()) {
				use_file(self->dir);
				if (write(ready[1], "", 1) != 1)
					_exit(1);
			}
			for (;;)
				pause();
		}
		ASSERT_EQ(1, read(ready[0], &c, 1));
		ASSERT_EQ(0, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
		ASSERT_EQ(SIGKILL, died_of(init));
		if (umount(self->dir)) {
			ASSERT_EQ(EBUSY, errno);
			busy++;
			for (int j = 0; j < 1000 && umount(self->dir); j++)
				usleep(10000);
		}
		close(pidfd);
		close(ready[0]);
		close(ready[1]);
	}
	EXPECT_EQ(0, busy) TH_LOG("%d of %d were busy", busy, TEARDOWNS);
}

TEST_HARNESS_MAIN
