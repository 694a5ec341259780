// SPDX-License-Identifier: GPL-2.0
/*
 * Test that process_mrelease(PROCESS_MRELEASE_REAP_KILL) takes at most twice as long as
 * on an idle machine if the victim is starved, frozen, stopped or asleep in the kernel.
 */
#define _GNU_SOURCE
#include <sys/resource.h>

#include "timing.h"

#define OTHER_USER	1000

/*
 * States of a victim. A function that enters a state returns false if that is not
 * possible. A function that leaves a state may be called twice.
 */
static void set_sched_idle(void)
{
	set_policy(SCHED_IDLE);
}

static void set_nice(void)
{
	setpriority(PRIO_PROCESS, 0, 19);
}

static bool set_cpu_weight(struct env *env)
{
	return write_text(env->cgroup_fd, "cpu.weight", "1");
}

static bool stop(struct env *env)
{
	return !kill(victim.pid, SIGSTOP) && wait_for_state(victim.pid, 'T');
}

static void thaw_cgroup(struct env *env)
{
	write_text(env->cgroup_fd, "cgroup.freeze", "0");
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
	if (!write_text(freezer.dir, "cgroup.procs", pid) ||
	    !write_text(freezer.dir, "freezer.state", "FROZEN"))
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
		write_text(freezer.dir, "freezer.state", "THAWED");
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

/* Without a lock of the mm */
static void truncate_file(void)
{
	if (ftruncate(victim.fd, victim.file_len))
		_exit(1);
}

/* With mmap_lock for reading */
static void populate_page(void)
{
	madvise(victim.file, psize(), MADV_POPULATE_WRITE);
}

/* Waits for mmap_lock for writing uninterruptibly: the last close of a userfaultfd. */
static pid_t writer;

static void close_userfaultfd_and_populate_page(void)
{
	close(shared->uffd);
	populate_page();
}

static bool freeze_and_act_with_writer(struct env *env)
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
	if (read(sock[0], &c, 1) != 1 || !freeze_and_act(env) || write(sock[0], "", 1) != 1)
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
 * A process of another user that holds mm_users: it reads the command line into a page
 * whose fault ends when the victim has exited, or after shared->delay. The fault ends
 * 4 ms before the loops on the CPU of the reader begin.
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

static bool pin_as_other_user(struct env *env)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct pollfd exited = { .fd = victim.pidfd, .events = POLLIN };
	struct uffdio_zeropage zero = { };
	struct uffd_msg msg;
	pthread_t thread;
	int ready[2], uffd;
	void *page;

	if (pipe(ready))
		return false;
	shared->has_begun = false;
	reader = fork();
	if (reader) {
		reader = wait_ready(reader, ready);
		return reader > 0;
	}

	page = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		    -1, 0);
	uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ||
	    uffd_register(uffd, page, psize(), true, false, false) ||
	    setresuid(OTHER_USER, OTHER_USER, OTHER_USER) ||
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
	bool one_cpu;		/* for the caller and the loops */
	bool victim_here;	/* on the CPU of the caller */
	bool loops_later;	/* enter() starts the loops */
	bool dies;		/* before leave() */
	long kept;		/* pages of the file that may stay cached */
};

FIXTURE_VARIANT_ADD(starved, sched_idle_beside_loops) {
	.role = { .mib = 400, .prepare = set_sched_idle },
	.loops = LOOPS,
};

FIXTURE_VARIANT_ADD(starved, sched_idle_beside_loops_one_cpu) {
	.role = { .mib = 400, .prepare = set_sched_idle },
	.loops = LOOPS,
	.one_cpu = true,
};

FIXTURE_VARIANT_ADD(starved, nice_beside_loops) {
	.role = { .mib = 400, .prepare = set_nice },
	.loops = LOOPS,
};

FIXTURE_VARIANT_ADD(starved, cpu_weight_1_beside_loops_at_10000) {
	.role = { .mib = 200 },
	.enter = set_cpu_weight,
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
	.role = { .action = truncate_file },
	.enter = freeze_and_act,
	.leave = thaw_file_system,
};

FIXTURE_VARIANT_ADD(starved, d_state_in_fault) {
	.role = { .action = write_page },
	.enter = freeze_and_act,
	.leave = thaw_file_system,
	.kept = 1,
};

FIXTURE_VARIANT_ADD(starved, d_state_with_mmap_lock) {
	.role = { .action = populate_page },
	.enter = freeze_and_act,
	.leave = thaw_file_system,
	.kept = 1,
};

FIXTURE_VARIANT_ADD(starved, d_state_with_mmap_lock_and_queued_writer) {
	.role = { .prepare = open_userfaultfd, .action = close_userfaultfd_and_populate_page },
	.enter = freeze_and_act_with_writer,
	.leave = end_writer,
	.kept = 1,
};

FIXTURE_VARIANT_ADD(starved, pinned_until_exit_by_sched_idle_user) {
	.role = { .mib = 200 },
	.enter = pin_as_other_user,
	.leave = end_reader,
	.loops = LOOPS,
	.place = WITH_TEST,
	.loops_later = true,
};

FIXTURE_SETUP(starved)
{
	char path[PATH_MAX + 32];

	begin_test(_metadata, &self->env, true, FILE_PAGES,
		   variant->loops && !variant->one_cpu);
	if (variant->place != APART || !self->env.cgroup_fd)
		return;
	loops_cgroup(&self->env, path, sizeof(path));
	write_text(self->env.cgroup_fd, "../cgroup.subtree_control", "+cpu");
	if (mkdir(path, 0755))
		SKIP(return, "needs cgroup v2");
	strcat(path, "/cpu.weight");
	if (!write_text(AT_FDCWD, path, "10000"))
		SKIP(return, "needs the cpu controller of cgroup v2");
}

FIXTURE_TEARDOWN(starved)
{
	char path[PATH_MAX + 32];

	end_loops();
	if (variant->leave)
		variant->leave(&self->env);
	end_test(&self->env);
	remove_freezer();
	loops_cgroup(&self->env, path, sizeof(path));
	rmdir(path);
}

/* The result of the call is -1 if the victim cannot enter the state. */
static struct call make_one_call(struct __test_metadata *_metadata,
				 struct _test_data_starved *self,
				 const struct _fixture_variant_starved *variant, bool idle)
{
	const cpu_set_t *caller = variant->one_cpu ? &there : &here;
	struct call call = {
		.env = &self->env, .cpu = caller,
		/* The loops must not starve the caller. */
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
		EXPECT_TRUE(was_killed(10000));
	end_loops();
	if (variant->leave)
		variant->leave(&self->env);
	ended(&call, 1000 * TIMEOUT);
	EXPECT_FALSE(late);
	EXPECT_EQ(0, call.result);
	check_free(_metadata, call.usage, charge, idle ? 0 : variant->kept);
	EXPECT_TRUE(was_killed(60000));
	end_victim();
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
 * Compare the best call with the best on the idle machine, since a busy host delays
 * both. No call may sleep much longer than the calls on the idle machine.
 */
TEST_F_TIMEOUT(starved, takes_at_most_twice_the_idle_time, TIMEOUT)
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

TEST_HARNESS_MAIN
