// SPDX-License-Identifier: GPL-2.0
/*
 * Test that process_mrelease() does not wait for the exit of the victim, which waits for
 * a FUSE server, and that the exit has closed the files when the victim has been
 * waited for.
 */
#define _GNU_SOURCE
#include "fuse.h"
#include "timing.h"

/*
 * The victim's exit writes back to a FUSE server, which does not answer.
 */
FIXTURE(writeback_hangs) {
	struct env env;
	struct fuse_server *server;
};

FIXTURE_SETUP(writeback_hangs)
{
	begin_test(_metadata, &self->env, false, 0, false);
	if (!self->env.cgroup_fd)
		return;
	self->server = start_server(_metadata);
	if (!self->server)
		SKIP(return, "needs FUSE");
}

FIXTURE_TEARDOWN(writeback_hangs)
{
	if (self->server)
		answer_held(self->server);
	end_test(&self->env);
}

static struct fuse_server *server;

static void write_to_fuse(void)
{
	char *p = map_file(detach_server(server)->fd, PROT_READ | PROT_WRITE, MAP_SHARED);

	if (!p)
		_exit(1);
	memset(p, 1, bytes(PAGES));
}

static void call_with_hanging_exit(struct __test_metadata *_metadata,
				   struct _test_data_writeback_hangs *self, struct call *call)
{
	bool late;

	call->env = &self->env;
	set_start();
	start_call(_metadata, call);
	late = !ended(call, GIVE_UP);
	if (late)
		answer_held(self->server);
	ended(call, 1000 * TIMEOUT);
	TH_LOG("%d after %ld ms", call->result, call->us / 1000);
	EXPECT_FALSE(late);
	check_wait(_metadata, call);
}

static void dirty_and_start(struct __test_metadata *_metadata,
			    struct _test_data_writeback_hangs *self)
{
	const struct role role = { .prepare = write_to_fuse };

	server = self->server;
	ASSERT_TRUE(start_victim(_metadata, &self->env, &role));
	/* Linux 6.12 may make who dirties pages wait for the server. */
	self->server->hold = FUSE_WRITE;
}

/*
 * Wait until the exit waits for the server, after the victim has left the mm. Return false
 * if it does not.
 */
static bool exit_waits(void)
{
	for (int i = 0; i < 20000 && !strchr("DZ", state_of(victim.pid)); i++)
		usleep(1000);
	return state_of(victim.pid) == 'D';
}

static bool kill_and_wait(void)
{
	kill(victim.pid, SIGKILL);
	usleep(300000);
	return exit_waits();
}

TEST_F_TIMEOUT(writeback_hangs, no_flag_after_sigkill, TIMEOUT)
{
	struct call call = { .without_flag = true };

	dirty_and_start(_metadata, self);
	if (!kill_and_wait())
		SKIP(return, NO_WRITEBACK);
	call_with_hanging_exit(_metadata, self, &call);
	EXPECT_EQ(ESRCH, call.result);
	EXPECT_LE(call.slept, 300 * 1000);
}

TEST_F_TIMEOUT(writeback_hangs, after_sigkill, TIMEOUT)
{
	struct call call = { };

	if (!has_reap_kill())
		SKIP(return, NO_FLAG);
	dirty_and_start(_metadata, self);
	if (!kill_and_wait())
		SKIP(return, NO_WRITEBACK);
	call_with_hanging_exit(_metadata, self, &call);
	EXPECT_EQ(ESRCH, call.result);
}

TEST_F_TIMEOUT(writeback_hangs, first_and_second_call, TIMEOUT)
{
	struct call first = { }, second = { };

	if (!has_reap_kill())
		SKIP(return, NO_FLAG);
	dirty_and_start(_metadata, self);
	call_with_hanging_exit(_metadata, self, &first);
	EXPECT_EQ(0, first.result);
	check_free(_metadata, first.usage, bytes(PAGES), 0);
	if (!exit_waits() && __test_passed(_metadata))
		SKIP(return, NO_WRITEBACK);
	call_with_hanging_exit(_metadata, self, &second);
	EXPECT_EQ(0, second.result);
	EXPECT_LE(second.slept, 300 * 1000);
	answer_held(self->server);
	EXPECT_TRUE(was_killed(60000));
}

/*
 * A container: the init of a PID namespace and a child, both with an open and mapped
 * file of a file system that is unmounted when the init has been waited for.
 */
#define CONTAINERS	60

FIXTURE(container) {
	struct env env;
	char dir[PATH_MAX];
};

FIXTURE_SETUP(container)
{
	begin_test(_metadata, &self->env, true, 0, false);
	if (!self->env.cgroup_fd)
		return;
	strcpy(self->dir, "/tmp/mrelease.XXXXXX");
	ASSERT_NE(NULL, mkdtemp(self->dir));
}

FIXTURE_TEARDOWN(container)
{
	umount2(self->dir, MNT_DETACH);
	rmdir(self->dir);
	end_test(&self->env);
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

TEST_F_TIMEOUT(container, umount_after_waitpid, TIMEOUT)
{
	int busy = 0, ready[2], pidfd;
	struct clone_args args = {
		.flags = CLONE_PIDFD | CLONE_NEWPID, .pidfd = (uintptr_t)&pidfd,
		.exit_signal = SIGCHLD,
	};
	pid_t init;

	for (int i = 0; i < CONTAINERS; i++) {
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
			sleep_forever(NULL);
		}
		ASSERT_EQ(init, wait_ready(init, ready));
		ASSERT_EQ(0, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
		ASSERT_EQ(SIGKILL, wait_termsig(init));
		if (umount(self->dir)) {
			ASSERT_EQ(EBUSY, errno);
			busy++;
			for (int j = 0; j < 1000 && umount(self->dir); j++)
				usleep(10000);
		}
		close(pidfd);
	}
	EXPECT_EQ(0, busy) TH_LOG("%d of %d were busy", busy, CONTAINERS);
}

TEST_HARNESS_MAIN
