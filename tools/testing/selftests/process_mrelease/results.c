// SPDX-License-Identifier: GPL-2.0
/*
 * Test the results of process_mrelease(), with PROCESS_MRELEASE_REAP_KILL and with
 * flags == 0, for a victim that is not dying, is dying or has left the mm. The results
 * of flags == 0 are the same on a kernel without PROCESS_MRELEASE_REAP_KILL.
 */
#define _GNU_SOURCE
#include "victim.h"

TEST(detection)
{
	int ret = mrelease(-1, PROCESS_MRELEASE_REAP_KILL);

	if (ret == EINVAL)
		SKIP(return, NO_FLAG);
	EXPECT_EQ(EBADF, ret);
}

FIXTURE(error) {
	int pidfd;
	pid_t pid;
};

FIXTURE_VARIANT(error) {
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(error, no_flag) { };

FIXTURE_VARIANT_ADD(error, reap_kill) {
	.flags = PROCESS_MRELEASE_REAP_KILL,
};

FIXTURE_SETUP(error)
{
	if (variant->flags && !has_reap_kill())
		SKIP(return, NO_FLAG);
	self->pid = fork();
	if (!self->pid) {
		pause();
		_exit(1);
	}
	self->pidfd = sys_pidfd_open(self->pid, 0);
	ASSERT_GE(self->pidfd, 0);
}

FIXTURE_TEARDOWN(error)
{
	kill(self->pid, SIGKILL);
	waitpid(self->pid, NULL, 0);
	close(self->pidfd);
}

TEST_F_TIMEOUT(error, unknown_flags, TIMEOUT)
{
	for (unsigned int bit = 1; bit < 32; bit++) {
		EXPECT_EQ(EINVAL, mrelease(-1, variant->flags | 1U << bit));
		EXPECT_EQ(EINVAL, mrelease(self->pidfd, variant->flags | 1U << bit));
	}
	EXPECT_EQ(EINVAL, mrelease(self->pidfd, -1));
	usleep(100000);
	EXPECT_EQ(0, waitpid(self->pid, NULL, WNOHANG));
}

TEST_F_TIMEOUT(error, no_pidfd, TIMEOUT)
{
	int fd = open("/dev/null", O_RDONLY);

	EXPECT_EQ(EBADF, mrelease(-1, variant->flags));
	EXPECT_EQ(EBADF, mrelease(fd, variant->flags));
	close(fd);
	EXPECT_EQ(EBADF, mrelease(fd, variant->flags));
}

TEST_F_TIMEOUT(error, gone, TIMEOUT)
{
	siginfo_t info;

	ASSERT_EQ(0, kill(self->pid, SIGKILL));
	ASSERT_EQ(0, waitid(P_PID, self->pid, &info, WEXITED | WNOWAIT));
	EXPECT_EQ(ESRCH, mrelease(self->pidfd, variant->flags)) {
		TH_LOG("a zombie");
	}
	ASSERT_EQ(self->pid, waitpid(self->pid, NULL, 0));
	EXPECT_EQ(ESRCH, mrelease(self->pidfd, variant->flags)) {
		TH_LOG("waited for");
	}
}

TEST_F_TIMEOUT(error, kernel_thread, TIMEOUT)
{
	char name[16];
	int pidfd;

	if (!read_file("/proc/2/comm", name, sizeof(name)) || strcmp(name, "kthreadd\n"))
		SKIP(return, "process 2 is not kthreadd");
	pidfd = sys_pidfd_open(2, 0);
	ASSERT_GE(pidfd, 0);
	EXPECT_EQ(ESRCH, mrelease(pidfd, variant->flags));
	close(pidfd);
}

FIXTURE(result) {
	struct env env;
	struct victim victim;
};

FIXTURE_VARIANT(result) {
	unsigned int flags;
	bool sharer;
};

FIXTURE_VARIANT_ADD(result, no_flag) { };

FIXTURE_VARIANT_ADD(result, no_flag_sharer) {
	.sharer = true,
};

FIXTURE_VARIANT_ADD(result, reap_kill) {
	.flags = PROCESS_MRELEASE_REAP_KILL,
};

FIXTURE_VARIANT_ADD(result, reap_kill_sharer) {
	.flags = PROCESS_MRELEASE_REAP_KILL,
	.sharer = true,
};

FIXTURE_SETUP(result)
{
	const struct spec spec = { .anon = PAGES, .file = PAGES, .sharer = variant->sharer };

	if (set_up(_metadata, &self->env, variant->flags, PAGES)) {
		spawn(_metadata, &self->env, &spec, &self->victim);
		check_memory_used(_metadata, &self->env, &spec);
	}
}

FIXTURE_TEARDOWN(result)
{
	tear_down(&self->env);
}

/* PROCESS_MRELEASE_REAP_KILL frees all, flags == 0 only anonymous memory. */
static void check_reaped(struct __test_metadata *_metadata, const struct env *env,
			 unsigned int flags)
{
	struct usage usage = measure(env);

	EXPECT_EQ(flags ? 0 : PAGES, usage.cache);
	EXPECT_LE(usage.charge, slack() + usage.cache * psize());
}

TEST_F_TIMEOUT(result, not_dying, TIMEOUT)
{
	struct victim *v = &self->victim;

	EXPECT_EQ(variant->flags ? 0 : EINVAL, mrelease(v->proc.pidfd, variant->flags));
	if (!variant->flags) {
		EXPECT_GE(measure(&self->env).charge, 2 * PAGES * psize());
		EXPECT_TRUE(is_intact(&v->proc));
		return;
	}
	check_reaped(_metadata, &self->env, variant->flags);
	EXPECT_EQ(SIGKILL, wait_termsig(v->proc.pid));
	if (variant->sharer)
		EXPECT_EQ(SIGKILL, wait_termsig(v->sharer.pid));
}

TEST_F_TIMEOUT(result, dying, TIMEOUT)
{
	/* Only PROCESS_MRELEASE_REAP_KILL kills the sharer. */
	const bool survives = variant->sharer && !variant->flags;
	struct victim *v = &self->victim;
	int again;

	stop_in_exit(_metadata, &v->proc);
	EXPECT_EQ(EINVAL, mrelease(v->proc.pidfd, variant->flags | 2));
	EXPECT_EQ(survives ? EINVAL : 0, mrelease(v->proc.pidfd, variant->flags));
	if (survives) {
		EXPECT_GE(measure(&self->env).charge, 2 * PAGES * psize());
		EXPECT_TRUE(is_intact(&v->sharer));
	} else {
		check_reaped(_metadata, &self->env, variant->flags);
		EXPECT_EQ(0, mrelease(v->proc.pidfd, variant->flags));
		EXPECT_EQ(0, mrelease(v->proc.pidfd, 0));
		check_reaped(_metadata, &self->env, variant->flags);
	}
	EXPECT_EQ(0, ptrace(PTRACE_CONT, v->proc.pid, 0, 0));
	become_zombie(_metadata, &v->proc);
	EXPECT_EQ(ESRCH, mrelease(v->proc.pidfd, 0));
	/* The victim of an earlier call may still be found, with nothing to free. */
	again = mrelease(v->proc.pidfd, PROCESS_MRELEASE_REAP_KILL);
	EXPECT_TRUE(again == (has_reap_kill() ? ESRCH : EINVAL) || (variant->flags && !again)) {
		TH_LOG("errno %d", again);
	}
	if (survives)
		EXPECT_TRUE(is_intact(&v->sharer));
	EXPECT_EQ(SIGKILL, wait_termsig(v->proc.pid));
}

/* The threads may have left the mm or not. */
TEST_F_TIMEOUT(result, signalled, TIMEOUT)
{
	const bool survives = variant->sharer && !variant->flags;
	struct proc *p = &self->victim.proc;
	int ret;

	ASSERT_EQ(0, kill(p->pid, SIGKILL));
	ret = mrelease(p->pidfd, variant->flags);
	EXPECT_TRUE(ret == ESRCH || ret == (survives ? EINVAL : 0)) TH_LOG("errno %d", ret);
	if (!ret || !variant->flags)
		EXPECT_EQ(variant->flags ? 0 : PAGES, measure(&self->env).cache);
	EXPECT_EQ(SIGKILL, wait_termsig(p->pid));
}

/*
 * Another process holds mm_users, so that the victim's exit does not free the mm.
 */
FIXTURE(pinned) {
	struct env env;
	struct victim victim;
	pid_t pid;
};

FIXTURE_SETUP(pinned)
{
	const struct spec spec = { .anon = PAGES, .file = PAGES };
	pid_t pid;

	if (!set_up(_metadata, &self->env, false, PAGES))
		return;
	spawn(_metadata, &self->env, &spec, &self->victim);
	/* &mem is the same in the victim. */
	pid = pin_mm(self->victim.proc.pid, &mem);
	if (pid < 0) {
		tear_down(&self->env);
		SKIP(return, NO_PIN);
	}
	self->pid = pid;
	check_memory_used(_metadata, &self->env, &spec);
}

FIXTURE_TEARDOWN(pinned)
{
	if (self->pid)
		kill(self->pid, SIGKILL);
	tear_down(&self->env);
}

TEST_F_TIMEOUT(pinned, memory_is_free, TIMEOUT)
{
	struct proc *p = &self->victim.proc;
	siginfo_t info;
	int again;

	if (!has_reap_kill())
		SKIP(return, NO_FLAG);
	ASSERT_EQ(0, mrelease(p->pidfd, PROCESS_MRELEASE_REAP_KILL));
	check_reaped(_metadata, &self->env, PROCESS_MRELEASE_REAP_KILL);
	ASSERT_EQ(0, waitid(P_PID, p->pid, &info, WEXITED | WNOWAIT));
	EXPECT_EQ(ESRCH, mrelease(p->pidfd, 0));
	again = mrelease(p->pidfd, PROCESS_MRELEASE_REAP_KILL);
	EXPECT_TRUE(!again || again == ESRCH) TH_LOG("errno %d", again);
	EXPECT_EQ(SIGKILL, wait_termsig(p->pid));
}

/* The threads have left the mm without a call. */
TEST_F_TIMEOUT(pinned, zombie, TIMEOUT)
{
	struct proc *p = &self->victim.proc;

	become_zombie(_metadata, p);
	EXPECT_EQ(ESRCH, mrelease(p->pidfd, 0));
	if (has_reap_kill())
		EXPECT_EQ(ESRCH, mrelease(p->pidfd, PROCESS_MRELEASE_REAP_KILL));
	EXPECT_EQ(PAGES, measure(&self->env).cache);
	EXPECT_GE(measure(&self->env).charge, 2 * PAGES * psize());
	EXPECT_EQ(SIGKILL, wait_termsig(p->pid));
}

TEST_HARNESS_MAIN
