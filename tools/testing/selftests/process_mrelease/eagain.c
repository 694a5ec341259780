// SPDX-License-Identifier: GPL-2.0
/*
 * Test that process_mrelease(PROCESS_MRELEASE_REAP_KILL) fails with EAGAIN if the locks
 * of the victim cannot be taken within a second, and that a second call frees the rest.
 */
#define _GNU_SOURCE
#include "timing.h"

FIXTURE(second_call) {
	struct env env;
	pid_t pin;
};

FIXTURE_SETUP(second_call)
{
	begin_test(_metadata, &self->env, true, FILE_PAGES, false);
}

FIXTURE_TEARDOWN(second_call)
{
	thaw_file_system(&self->env);
	if (self->pin > 0) {
		kill(self->pin, SIGKILL);
		waitpid(self->pin, NULL, 0);
	}
	end_test(&self->env);
}

static void *write_page_in_thread(void *tid)
{
	atomic_store((atomic_int *)tid, gettid());
	write_page();
	return NULL;
}

/*
 * Hold mmap_lock for writing and the lock of the anonymous VMA, and wait for the lock of
 * the next VMA, where a fault of another thread sleeps.
 */
static void unmap_during_fault(void)
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

static const struct role locked = { .action = unmap_during_fault };

/* The locks are held until the file system is thawed. */
static bool call_with_timeout(struct __test_metadata *_metadata, struct env *env,
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

TEST_F_TIMEOUT(second_call, after_eagain, TIMEOUT)
{
	struct call call;

	if (!has_vma_locks())
		SKIP(return, NO_VMA_LOCKS);
	ASSERT_TRUE(start_victim(_metadata, &self->env, &locked));
	if (!freeze_and_act(&self->env))
		SKIP(return, NO_STATE);
	for (int i = 0; i < 2; i++) {
		ASSERT_TRUE(call_with_timeout(_metadata, &self->env, &call));
		EXPECT_EQ(EAGAIN, call.result);
	}
	thaw_file_system(&self->env);
	ASSERT_TRUE(call_with_timeout(_metadata, &self->env, &call));
	EXPECT_EQ(0, call.result);
	check_free(_metadata, call.usage, 0, 1);
	EXPECT_TRUE(was_killed(60000));
}

TEST_F_TIMEOUT(second_call, after_eagain_and_exit_with_mm_pinned, TIMEOUT)
{
	struct call call;

	if (!has_vma_locks())
		SKIP(return, NO_VMA_LOCKS);
	ASSERT_TRUE(start_victim(_metadata, &self->env, &locked));
	self->pin = pin_mm(victim.pid, &victim);
	if (self->pin < 0)
		SKIP(return, NO_PIN);
	if (!freeze_and_act(&self->env))
		SKIP(return, NO_STATE);
	ASSERT_TRUE(call_with_timeout(_metadata, &self->env, &call));
	EXPECT_EQ(EAGAIN, call.result);
	thaw_file_system(&self->env);
	ASSERT_TRUE(was_killed(60000));
	ASSERT_TRUE(call_with_timeout(_metadata, &self->env, &call));
	EXPECT_EQ(0, call.result);
	check_free(_metadata, call.usage, 0, 1);
}

/* A caller that gets SIGKILL does not wait for the rest of the second. */
TEST_F_TIMEOUT(second_call, after_fatal_signal_to_caller, TIMEOUT)
{
	struct timespec begin;
	struct call call;
	pid_t caller;
	long us;

	ASSERT_TRUE(start_victim(_metadata, &self->env, &locked));
	self->pin = pin_mm(victim.pid, &victim);
	if (self->pin < 0)
		SKIP(return, NO_PIN);
	if (!freeze_and_act(&self->env))
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
	ASSERT_TRUE(was_killed(60000));
	ASSERT_TRUE(call_with_timeout(_metadata, &self->env, &call));
	EXPECT_EQ(0, call.result);
	check_free(_metadata, call.usage, 0, 1);
}

TEST_F_TIMEOUT(second_call, after_sigkill_and_exit_with_mm_pinned, TIMEOUT)
{
	const struct role role = { };
	struct call call;

	ASSERT_TRUE(start_victim(_metadata, &self->env, &role));
	self->pin = pin_mm(victim.pid, &victim);
	if (self->pin < 0)
		SKIP(return, NO_PIN);
	ASSERT_EQ(0, kill(victim.pid, SIGKILL));
	ASSERT_TRUE(was_killed(60000));
	ASSERT_TRUE(call_with_timeout(_metadata, &self->env, &call));
	EXPECT_EQ(ESRCH, call.result);
	EXPECT_LE(64 * MIB, call.usage.charge);
}

TEST_HARNESS_MAIN
