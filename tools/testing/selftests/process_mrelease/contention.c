// SPDX-License-Identifier: GPL-2.0
/*
 * Test that a starved caller of process_mrelease(PROCESS_MRELEASE_REAP_KILL) delays
 * neither another caller nor a process that accesses the victim or the same file.
 */
#define _GNU_SOURCE
#include <sys/ptrace.h>

#include "timing.h"

/*
 * Two callers.
 */
FIXTURE(two_callers) {
	struct env env;
};

FIXTURE_SETUP(two_callers)
{
	begin_test(_metadata, &self->env, true, FILE_PAGES - MIB / psize(), true);
}

FIXTURE_TEARDOWN(two_callers)
{
	end_test(&self->env);
}

static void become_dumpable_nobody(void)
{
	if (setresuid(NOBODY, NOBODY, NOBODY) || prctl(PR_SET_DUMPABLE, 1))
		_exit(1);
}

/* Any user may reap a process of the same user, at any priority. */
TEST_F_TIMEOUT(two_callers, second_does_not_wait_for_starved_first, TIMEOUT)
{
	const struct role role = { .mib = 400, .prepare = become_dumpable_nobody, .cpu = &here };
	struct call first = {
		.env = &self->env, .cpu = &there, .policy = SCHED_IDLE, .uid = NOBODY,
		.loops = LOOPS,
	};
	struct call second = { .env = &self->env, .delay = 50000 };
	bool late, still_running;

	for (int i = 0; i < ROUNDS; i++) {
		ASSERT_TRUE(make_loops(&self->env, LOOPS, WITH_TEST, &there, SCHED_OTHER));
		ASSERT_TRUE(start_victim(_metadata, &self->env, &role));
		set_start();
		start_call(_metadata, &first);
		start_call(_metadata, &second);
		late = !ended(&second, GIVE_UP);
		still_running = !ended(&first, 0);
		end_loops();
		ended(&second, 1000 * TIMEOUT);
		EXPECT_FALSE(late);
		EXPECT_TRUE(ended(&first, 10000));
		TH_LOG("second: %d after %ld ms, first: %d after %ld ms", second.result,
		       second.us / 1000, first.result, first.us / 1000);
		EXPECT_TRUE(still_running);
		check_wait(_metadata, &second);
		EXPECT_TRUE(!second.result || second.result == EAGAIN);
		if (!second.result)
			check_free(_metadata, second.usage, 0, 0);
		EXPECT_TRUE(!first.result || first.result == EAGAIN);
		EXPECT_TRUE(was_killed(10000));
		end_victim();
		posix_fadvise(self->env.fd, 0, 0, POSIX_FADV_DONTNEED);
	}
}

/*
 * Another process accesses the victim, or the same file, during the call of a starved
 * caller.
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

static void read_file_pages(void)
{
	char *buf = malloc(MIB);
	off_t at = 0;
	ssize_t n;

	while ((n = pread(file, buf, MIB, at)) > 0)
		at += n;
	free(buf);
}

FIXTURE(other_process) {
	struct env env;
};

FIXTURE_VARIANT(other_process) {
	void (*action)(void);
};

FIXTURE_VARIANT_ADD(other_process, reads_maps) {
	.action = read_maps,
};

FIXTURE_VARIANT_ADD(other_process, traces) {
	.action = seize,
};

FIXTURE_VARIANT_ADD(other_process, reads_memory) {
	.action = read_memory,
};

FIXTURE_VARIANT_ADD(other_process, closes_userfaultfd) {
	.action = close_userfaultfd,
};

FIXTURE_VARIANT_ADD(other_process, reads_same_file) {
	.action = read_file_pages,
};

FIXTURE_SETUP(other_process)
{
	begin_test(_metadata, &self->env, true, FILE_PAGES, true);
}

FIXTURE_TEARDOWN(other_process)
{
	end_test(&self->env);
}

static void close_victims_userfaultfd(void)
{
	close(shared->uffd);
	shared->uffd = -1;
}

TEST_F_TIMEOUT(other_process, does_not_wait, TIMEOUT)
{
	const struct role role = {
		.mib = 400, .cpu = &here,
		.prepare = open_userfaultfd, .action = close_victims_userfaultfd,
	};
	/* us after the start of the call: file and anonymous memory are being freed. */
	const long moments[] = { 30000, 60000, 200000 };
	struct call idle = { .cpu = &here, .loops = LOOPS, .instead = variant->action };
	int still_running = 0;
	bool late;

	if (variant->action == close_userfaultfd && !has_vma_locks())
		SKIP(return, NO_VMA_LOCKS);
	/* Without a victim. The loops delay the I/O in both cases. */
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
		struct call other = {
			.cpu = &here, .delay = moments[i], .instead = variant->action,
		};

		ASSERT_TRUE(make_loops(&self->env, LOOPS, WITH_TEST, &there, SCHED_OTHER));
		ASSERT_TRUE(start_victim(_metadata, &self->env, &role));
		if (variant->action == close_userfaultfd) {
			if (shared->uffd < 0)
				SKIP(return, "needs userfaultfd");
			uffd = sys_pidfd_getfd(victim.pidfd, shared->uffd, 0);
			ASSERT_LE(0, uffd);
			ASSERT_TRUE(start_action());
			for (int j = 0; j < 10000 && shared->uffd >= 0; j++)
				usleep(1000);
		}
		set_start();
		start_call(_metadata, &caller);
		start_call(_metadata, &other);
		late = !ended(&other, GIVE_UP);
		still_running += !ended(&caller, 0);
		end_loops();
		ended(&other, 1000 * TIMEOUT);
		EXPECT_TRUE(ended(&caller, 60000));
		TH_LOG("other process: %ld ms (idle %ld), caller: %ld ms",
		       other.us / 1000, idle.us / 1000, caller.us / 1000);
		EXPECT_FALSE(late);
		EXPECT_LE(other.us, 2 * idle.us + 1000 * 1000);
		EXPECT_TRUE(!caller.result || caller.result == EAGAIN);
		EXPECT_TRUE(was_killed(60000));
		end_victim();
		posix_fadvise(self->env.fd, 0, 0, POSIX_FADV_DONTNEED);
	}
	EXPECT_LT(0, still_running);
}

TEST_HARNESS_MAIN
