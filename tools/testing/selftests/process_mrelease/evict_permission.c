// SPDX-License-Identifier: GPL-2.0
/*
 * Test for which victims process_mrelease(PROCESS_MRELEASE_REAP_KILL) evicts file
 * folios: an ordinary user must be allowed to read the victim's memory. The victim
 * dies in any case.
 */
#define _GNU_SOURCE
#include "util.h"

#define PAGES		1024L	/* of the victim's file, and of its memory */

/* Descriptors that survive execve(). */
#define READY_FD	100
#define FILE_FD		101

FIXTURE(evict) {
	struct env env;
	int program;
	int user_ns;
};

FIXTURE_VARIANT(evict) {
	mode_t mode;		/* of the victim's program, which is root's */
	bool undumpable;	/* by prctl() */
	bool user_ns;		/* of caller and victim: not the initial one */
	void (*caller)(void);
	bool kept;
};

FIXTURE_VARIANT_ADD(evict, readable) {
	.mode = 0755,
	.caller = become_nobody,
};

FIXTURE_VARIANT_ADD(evict, unreadable) {
	.mode = 0711,
	.caller = become_nobody,
	.kept = true,
};

FIXTURE_VARIANT_ADD(evict, unreadable_user_ns) {
	.mode = 0711,
	.user_ns = true,
	.caller = become_nobody,
	.kept = true,
};

FIXTURE_VARIANT_ADD(evict, unreadable_cap_kill) {
	.mode = 0711,
	.caller = become_nobody_with_cap_kill,
};

FIXTURE_VARIANT_ADD(evict, unreadable_root) {
	.mode = 0711,
};

FIXTURE_VARIANT_ADD(evict, set_user_id) {
	.mode = 04755,
	.caller = become_nobody,
	.kept = true,
};

FIXTURE_VARIANT_ADD(evict, set_user_id_cap_kill) {
	.mode = 04755,
	.caller = become_nobody_with_cap_kill,
};

FIXTURE_VARIANT_ADD(evict, set_user_id_root) {
	.mode = 04755,
};

FIXTURE_VARIANT_ADD(evict, undumpable) {
	.mode = 0755,
	.undumpable = true,
	.caller = become_nobody,
	.kept = true,
};

FIXTURE_VARIANT_ADD(evict, undumpable_root) {
	.mode = 0755,
	.undumpable = true,
};

/* Return a descriptor of a user namespace that the user nobody has created, or -1. */
static int open_user_ns(void)
{
	char path[32];
	int ready[2], fd;
	pid_t pid;

	if (pipe(ready))
		return -1;
	pid = fork();
	if (!pid) {
		become_nobody();
		if (!unshare(CLONE_NEWUSER) && write(ready[1], "", 1) == 1)
			sleep_forever(NULL);
		_exit(1);
	}
	if (wait_ready(pid, ready) < 0)
		return -1;
	snprintf(path, sizeof(path), "/proc/%d/ns/user", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return fd;
}

FIXTURE_SETUP(evict)
{
	if (!set_up(_metadata, &self->env, true, PAGES))
		return;
	self->program = copy_program(variant->mode);
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

/* In the victim's program */
static int map_and_wait(const char *undumpable)
{
	char *file = map_aligned(PAGES, PROT_READ, MAP_SHARED, FILE_FD, 0);
	char *anon = map_aligned(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	force_read_pages(file, PAGES, psize());
	memset(anon, 1, PAGES * psize());
	if (*undumpable == '1' && prctl(PR_SET_DUMPABLE, 0))
		return EXIT_UNSUPPORTED;
	drain_lru_batches();
	if (write(READY_FD, "", 1) != 1)
		return EXIT_UNSUPPORTED;
	return sleep_forever(NULL);
}

TEST_F_TIMEOUT(evict, needs_permission, TIMEOUT)
{
	int pidfd, ready[2], status;
	struct usage usage;
	pid_t pid, caller;
	long program;

	ASSERT_EQ(0, pipe(ready));
	pid = fork_into_cgroup(&self->env, &pidfd);
	if (!pid) {
		dup2(ready[1], READY_FD);
		dup2(self->env.fd, FILE_FD);
		close(ready[0]);
		become_nobody();
		if (variant->user_ns && setns(self->user_ns, CLONE_NEWUSER))
			_exit(EXIT_UNSUPPORTED);
		exec_fd(self->program, "map_and_wait", variant->undumpable ? "1" : "0");
	}
	ASSERT_GT(pid, 0);
	ASSERT_EQ(pid, wait_ready(pid, ready));
	program = cached(self->program);
	usage = measure(&self->env);
	ASSERT_EQ(PAGES, usage.cache);
	ASSERT_LE(2 * PAGES * psize(), usage.charge);

	caller = fork();
	if (!caller) {
		if (variant->caller)
			variant->caller();
		if (variant->user_ns && setns(self->user_ns, CLONE_NEWUSER))
			_exit(EXIT_UNSUPPORTED);
		_exit(mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
	}
	ASSERT_EQ(caller, waitpid(caller, &status, 0));
	ASSERT_EQ(0, status);
	usage = measure(&self->env);
	if (variant->kept) {
		EXPECT_EQ(PAGES, usage.cache);
		EXPECT_EQ(program, cached(self->program));
	} else {
		EXPECT_EQ(0, usage.cache);
		EXPECT_GT(program, cached(self->program));
	}
	EXPECT_LE(usage.charge, slack() + (usage.cache + cached(self->program)) * psize());
	EXPECT_EQ(SIGKILL, wait_termsig(pid));
	if (variant->kept)
		EXPECT_EQ(PAGES, count_accessed(self->env.fd, PAGES));
	close(pidfd);
}

int main(int argc, char **argv)
{
	if (!strcmp(argv[0], "map_and_wait"))
		return map_and_wait(argv[1]);
	return test_harness_run(argc, argv);
}
