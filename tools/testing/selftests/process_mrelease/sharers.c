// SPDX-License-Identifier: GPL-2.0
/*
 * Test which processes process_mrelease(PROCESS_MRELEASE_REAP_KILL) kills: exactly
 * those that share the mm, the caller included.
 */
#define _GNU_SOURCE
#include "actions.h"

static int run_commands_with_sharer(void *nr)
{
	run_in_mm(run_commands, 2, SIGCHLD);
	return run_commands(nr);
}

static void make_nested_sharers(void)
{
	run_in_mm(run_commands_with_sharer, 1, SIGCHLD);
}

static void make_leaderless_sharer(void)
{
	run_in_mm(exit_as_leader, 1, SIGCHLD);
}

FIXTURE(sharers) {
	struct env env;
};

FIXTURE_VARIANT(sharers) {
	struct spec spec;
	int target;		/* process of the pidfd */
	unsigned int survivors;	/* bits: processes that survive */
};

FIXTURE_VARIANT_ADD(sharers, sharer) {
	.spec = { .sharer = CLONE_VM, .nr = 2 },
};

FIXTURE_VARIANT_ADD(sharers, sharer_is_target) {
	.spec = { .sharer = CLONE_VM, .nr = 2 },
	.target = 1,
};

FIXTURE_VARIANT_ADD(sharers, nested_sharers) {
	.spec = { .setup = make_nested_sharers, .nr = 3 },
	.target = 1,
};

FIXTURE_VARIANT_ADD(sharers, vfork_parent) {
	.spec = { .sharer = CLONE_VM | CLONE_VFORK, .nr = 2 },
};

FIXTURE_VARIANT_ADD(sharers, vfork_child) {
	.spec = { .sharer = CLONE_VM | CLONE_VFORK, .nr = 2 },
	.target = 1,
};

FIXTURE_VARIANT_ADD(sharers, leader_has_exited) {
	.spec = { .setup = exit_leader },
};

FIXTURE_VARIANT_ADD(sharers, leader_has_exited_with_sharer) {
	.spec = { .sharer = CLONE_VM, .setup = exit_leader, .nr = 2 },
};

FIXTURE_VARIANT_ADD(sharers, leader_of_sharer_has_exited) {
	.spec = { .setup = make_leaderless_sharer, .nr = 2 },
};

FIXTURE_VARIANT_ADD(sharers, sharer_in_pid_namespace) {
	.spec = { .sharer = CLONE_VM | CLONE_NEWPID, .nr = 2 },
};

FIXTURE_VARIANT_ADD(sharers, sharer_in_pid_namespace_is_target) {
	.spec = { .sharer = CLONE_VM | CLONE_NEWPID, .nr = 2 },
	.target = 1,
};

FIXTURE_VARIANT_ADD(sharers, sharer_in_user_namespace) {
	.spec = { .sharer = CLONE_VM | CLONE_NEWUSER, .nr = 2 },
};

FIXTURE_VARIANT_ADD(sharers, io_uring_sqpoll) {
	.spec = { .setup = start_sqpoll },
};

FIXTURE_VARIANT_ADD(sharers, not_the_kernel_thread) {
	.spec = { .setup = start_vhost_worker },
};

FIXTURE_VARIANT_ADD(sharers, not_the_child) {
	.spec = { .setup = make_child, .nr = 2 },
	.survivors = 1 << 1,
};

FIXTURE_VARIANT_ADD(sharers, not_the_parent) {
	.spec = { .setup = make_child, .nr = 2 },
	.target = 1,
	.survivors = 1 << 0,
};

FIXTURE_VARIANT_ADD(sharers, sharer_and_not_the_child) {
	.spec = { .sharer = CLONE_VM, .setup = make_child, .nr = 3 },
	.target = 1,
	.survivors = 1 << 2,
};

FIXTURE_SETUP(sharers)
{
	set_up(_metadata, &self->env, true, PAGES);
}

FIXTURE_TEARDOWN(sharers)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(sharers, are_killed, TIMEOUT)
{
	if (!start(_metadata, &self->env, &variant->spec))
		SKIP(return, NO_SUPPORT);
	check_memory_used(_metadata, &self->env);
	ASSERT_EQ(0, mrelease(procs[variant->target].pidfd, PROCESS_MRELEASE_REAP_KILL));
	/* The survivors still use all of it. */
	if (variant->survivors)
		check_memory_used(_metadata, &self->env);
	else
		check_memory_free(_metadata, measure(&self->env));
	for (int i = 0; i < (variant->spec.nr ?: 1); i++) {
		EXPECT_TRUE(variant->survivors & 1 << i ?
			    is_intact(&procs[i]) : wait_killed(&procs[i])) {
			TH_LOG("process %d", i);
		}
	}
	end_procs(&self->env);
	EXPECT_EQ(-1, wrong_page(self->env.fd, PAGES, 0));
}

/*
 * The caller is a victim or its child; special pidfds.
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
	return mrelease(sys_pidfd_open(getpid(), 0), PROCESS_MRELEASE_REAP_KILL);
}

static int on_self_without_flag(void)
{
	return mrelease(PIDFD_SELF, 0);
}

static int on_parent(void)
{
	return mrelease(sys_pidfd_open(getppid(), 0), PROCESS_MRELEASE_REAP_KILL);
}

/* A pidfd of a thread is valid only if the thread is the leader. */
static int on_thread(unsigned int flags)
{
	int pidfd = sys_pidfd_open(run_in_mm(sleep_forever, 0, THREAD), PIDFD_THREAD);

	return pidfd < 0 ? EXIT_UNSUPPORTED : mrelease(pidfd, flags);
}

static int on_thread_by_pidfd(void)
{
	return on_thread(PROCESS_MRELEASE_REAP_KILL);
}

static int on_thread_without_flag(void)
{
	return on_thread(0);
}

static int on_leader_thread(void)
{
	return mrelease(sys_pidfd_open(getpid(), PIDFD_THREAD), PROCESS_MRELEASE_REAP_KILL);
}

FIXTURE(caller_is_victim) {
	struct env env;
};

FIXTURE_VARIANT(caller_is_victim) {
	struct spec spec;
	int caller;
	unsigned int survivors;	/* bits: processes that survive */
	int error;
	bool no_flag;
	bool pidfd_self;
};

FIXTURE_VARIANT_ADD(caller_is_victim, self) {
	.spec = { .action = on_self },
	.pidfd_self = true,
};

FIXTURE_VARIANT_ADD(caller_is_victim, self_process) {
	.spec = { .action = on_own_process },
	.pidfd_self = true,
};

FIXTURE_VARIANT_ADD(caller_is_victim, self_by_pidfd) {
	.spec = { .action = on_self_by_pidfd },
};

FIXTURE_VARIANT_ADD(caller_is_victim, self_in_thread) {
	.spec = { .action = on_self, .in_thread = true },
	.pidfd_self = true,
};

FIXTURE_VARIANT_ADD(caller_is_victim, self_process_in_thread) {
	.spec = { .action = on_own_process, .in_thread = true },
	.pidfd_self = true,
};

FIXTURE_VARIANT_ADD(caller_is_victim, by_pidfd_in_thread) {
	.spec = { .action = on_self_by_pidfd, .in_thread = true },
};

FIXTURE_VARIANT_ADD(caller_is_victim, self_without_flag) {
	.spec = { .action = on_self_without_flag },
	.survivors = 1 << 0,
	.error = EINVAL,
	.no_flag = true,
	.pidfd_self = true,
};

FIXTURE_VARIANT_ADD(caller_is_victim, init_of_pid_namespace) {
	.spec = { .action = on_self, .flags = CLONE_NEWPID },
	.survivors = 1 << 0,
	.error = EPERM,
	.pidfd_self = true,
};

FIXTURE_VARIANT_ADD(caller_is_victim, thread) {
	.spec = { .action = on_thread_by_pidfd },
	.survivors = 1 << 0,
	.error = ESRCH,
};

FIXTURE_VARIANT_ADD(caller_is_victim, thread_without_flag) {
	.spec = { .action = on_thread_without_flag },
	.survivors = 1 << 0,
	.error = ESRCH,
	.no_flag = true,
};

FIXTURE_VARIANT_ADD(caller_is_victim, leader_thread) {
	.spec = { .action = on_leader_thread },
};

FIXTURE_VARIANT_ADD(caller_is_victim, parent) {
	.spec = { .setup = make_child, .nr = 2, .action = on_parent },
	.caller = 1,
	.survivors = 1 << 1,
};

FIXTURE_VARIANT_ADD(caller_is_victim, sharing_parent) {
	.spec = { .sharer = CLONE_VM, .nr = 2, .action = on_parent },
	.caller = 1,
};

FIXTURE_VARIANT_ADD(caller_is_victim, vfork_parent) {
	.spec = { .sharer = CLONE_VM | CLONE_VFORK, .nr = 2, .action = on_parent },
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

TEST_F_TIMEOUT(caller_is_victim, is_killed_or_fails, TIMEOUT)
{
	int nr = variant->spec.nr ?: 1;
	bool lives_on = variant->survivors & 1 << variant->caller;
	int answer;

	/* Linux 6.12 does not know PIDFD_SELF. */
	if (variant->pidfd_self && mrelease(PIDFD_SELF, 0) == EBADF)
		SKIP(return, NO_SUPPORT);
	ASSERT_TRUE(start(_metadata, &self->env, &variant->spec));
	check_memory_used(_metadata, &self->env);
	answer = query(&procs[variant->caller], CMD_ACT);
	EXPECT_EQ(lives_on ? variant->error : -1, answer);
	for (int i = 0; i < nr; i++)
		EXPECT_TRUE(variant->survivors & 1 << i ?
			    is_intact(&procs[i]) : wait_killed(&procs[i]));
	if (variant->survivors)
		check_memory_used(_metadata, &self->env);
	else
		check_memory_free(_metadata, measure(&self->env));
	end_procs(&self->env);
}

TEST_HARNESS_MAIN
