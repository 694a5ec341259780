// SPDX-License-Identifier: GPL-2.0
/*
 * Test that process_mrelease(PROCESS_MRELEASE_REAP_KILL) requires the permission of
 * kill(2) for each process that shares the mm, and otherwise kills none of them.
 */
#define _GNU_SOURCE
#include <linux/landlock.h>

#include "procs.h"

/* The kernel thread keeps the user ID of root. */
static void start_vhost_worker_as_nobody(void)
{
	start_vhost_worker();
	become_nobody();
}

static void set_real_uid_nobody(void)
{
	set_uids(NOBODY, 0, 0);
}

static void set_effective_uid_nobody(void)
{
	set_uids(0, NOBODY, 0);
}

static void set_saved_uid_nobody(void)
{
	set_uids(0, 0, NOBODY);
}

static void enter_new_user_ns(void)
{
	become_nobody();
	if (unshare(CLONE_NEWUSER))
		_exit(EXIT_UNSUPPORTED);
}

/* Root of a user namespace that the user nobody has created; user 100000 outside. */
static void become_root_of_new_user_ns(void)
{
	char path[32];
	int fd, ready[2];
	pid_t pid;

	if (pipe(ready))
		_exit(EXIT_UNSUPPORTED);
	snprintf(path, sizeof(path), "/proc/%d/uid_map", getpid());
	pid = fork();
	if (!pid) {
		close(ready[1]);
		if (read(ready[0], &fd, 1) != 1)
			_exit(EXIT_UNSUPPORTED);
		_exit(write_text(AT_FDCWD, path, "0 100000 1") ? 0 : EXIT_UNSUPPORTED);
	}
	enter_new_user_ns();
	if (write(ready[1], "", 1) != 1 || wait_for_pid(pid))
		_exit(EXIT_UNSUPPORTED);
	set_uids(0, 0, 0);
}

static int run_commands_as_nobody(void *nr)
{
	become_nobody();
	return run_commands(nr);
}

static void make_nobody_sharer(void)
{
	run_in_mm(run_commands_as_nobody, 1, SIGCHLD);
}

static void make_init(void)
{
	struct clone_args args = { .flags = CLONE_NEWPID, .exit_signal = SIGCHLD };
	/* Not clone(), whose arguments have another order on s390. */
	pid_t pid = syscall(__NR_clone3, &args, sizeof(args));

	if (!pid)
		run_commands((void *)1);
	mm.init = pid;
}

/* Share the mm with a process of the nested PID namespace that is not its init. */
static void make_sharer_in_nested_pid_ns(void)
{
	make_init();
	if (setns(sys_pidfd_open(mm.init, 0), CLONE_NEWPID))
		_exit(EXIT_UNSUPPORTED);
	run_in_mm(run_commands, 2, SIGCHLD);
}

/* Only children of the caller are in its new PID namespace. */
static void continue_in_child(void)
{
	pid_t pid = fork();

	if (pid)
		_exit(pid < 0 ? EXIT_UNSUPPORTED : wait_for_pid(pid));
}

static void enter_pid_ns(void)
{
	if (setns(procs[0].pidfd, CLONE_NEWPID))
		_exit(EXIT_UNSUPPORTED);
	continue_in_child();
}

static void enter_second_pid_ns(void)
{
	if (setns(procs[1].pidfd, CLONE_NEWPID))
		_exit(EXIT_UNSUPPORTED);
	continue_in_child();
}

static void enter_new_pid_ns(void)
{
	if (unshare(CLONE_NEWPID))
		_exit(EXIT_UNSUPPORTED);
	continue_in_child();
}

static void enter_user_ns(void)
{
	if (setns(procs[0].pidfd, CLONE_NEWUSER))
		_exit(EXIT_UNSUPPORTED);
}

static void restrict_signals(void)
{
	struct landlock_ruleset_attr attr = { .scoped = LANDLOCK_SCOPE_SIGNAL };
	int fd = syscall(__NR_landlock_create_ruleset, &attr, sizeof(attr), 0);

	if (fd < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    syscall(__NR_landlock_restrict_self, fd, 0))
		_exit(EXIT_UNSUPPORTED);
}

/* Find the PID of the process that has the inode of a pidfd. */
static pid_t find_pid(int pidfd)
{
	struct stat wanted, found;

	if (fstat(pidfd, &wanted))
		return 0;
	for (pid_t pid = 1; pid < 32768; pid++) {
		int fd = sys_pidfd_open(pid, 0);

		if (fd < 0)
			continue;
		if (fstat(fd, &found))
			found.st_ino = 0;
		close(fd);
		if (found.st_ino == wanted.st_ino)
			return pid;
	}
	return 0;
}

/* Methods to kill a process. They return 0 or the value of errno. */
static int by_kill(int pidfd)
{
	struct pidfd_info info = { .mask = PIDFD_INFO_PID };

	/* The PID in the caller's namespace, if there is one. Linux 6.12 cannot send_command. */
	if (ioctl(pidfd, PIDFD_GET_INFO, &info) && errno != ESRCH)
		info.pid = find_pid(pidfd);
	if (info.pid)
		return kill(info.pid, SIGKILL) ? errno : 0;
	errno = ESRCH;
	return errno;
}

static int by_pidfd_send_signal(int pidfd)
{
	return sys_pidfd_send_signal(pidfd, SIGKILL, NULL, 0) ? errno : 0;
}

static int by_mrelease(int pidfd)
{
	return mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL);
}

FIXTURE(permission) {
	struct env env;
};

FIXTURE_VARIANT(permission) {
	struct spec spec;
	int target;
	void (*become)(void);	/* of the caller */
	int error;
};

FIXTURE_VARIANT_ADD(permission, kernel_thread_uses_mm) {
	.spec = { .setup = start_vhost_worker_as_nobody },
	.become = become_nobody,
};

FIXTURE_VARIANT_ADD(permission, another_user) {
	.become = become_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, same_user) {
	.spec = { .setup = become_nobody },
	.become = become_nobody,
};

FIXTURE_VARIANT_ADD(permission, set_user_id_victim) {
	.spec = { .setup = set_real_uid_nobody },
	.become = become_nobody,
};

FIXTURE_VARIANT_ADD(permission, saved_user_id) {
	.spec = { .setup = set_saved_uid_nobody },
	.become = become_nobody,
};

FIXTURE_VARIANT_ADD(permission, effective_user_id) {
	.spec = { .setup = set_effective_uid_nobody },
	.become = become_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, cap_kill) {
	.become = become_nobody_with_cap_kill,
};

FIXTURE_VARIANT_ADD(permission, cap_kill_in_wrong_user_namespace) {
	.become = enter_new_user_ns,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, cap_kill_in_sibling_user_namespace) {
	.spec = { .setup = become_root_of_new_user_ns },
	.become = enter_new_user_ns,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, owner_of_user_namespace) {
	.spec = { .setup = become_root_of_new_user_ns },
	.become = become_nobody,
};

FIXTURE_VARIANT_ADD(permission, cap_kill_in_user_namespace) {
	.spec = { .setup = become_root_of_new_user_ns },
	.become = enter_user_ns,
};

FIXTURE_VARIANT_ADD(permission, landlocked) {
	.become = restrict_signals,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, sharer_of_another_user) {
	.spec = { .sharer = CLONE_VM, .setup = become_nobody, .nr = 2 },
	.become = become_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, sharer_of_another_user_is_target) {
	.spec = { .sharer = CLONE_VM, .setup = become_nobody, .nr = 2 },
	.target = 1,
	.become = become_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, sharer_of_same_user_is_target) {
	.spec = { .setup = make_nobody_sharer, .nr = 2 },
	.target = 1,
	.become = become_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, sharers_of_both_users_cap_kill) {
	.spec = { .sharer = CLONE_VM, .setup = become_nobody, .nr = 2 },
	.become = become_nobody_with_cap_kill,
};

FIXTURE_VARIANT_ADD(permission, sharer_in_user_namespace) {
	.spec = { .sharer = CLONE_VM | CLONE_NEWUSER, .nr = 2 },
	.become = become_nobody,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, process_from_child_pid_namespace) {
	.become = enter_new_pid_ns,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(permission, process_from_sibling_pid_namespace) {
	.spec = { .setup = make_child, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.target = 1,
	.become = enter_new_pid_ns,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(permission, process_from_parent_pid_namespace) {
	.spec = { .setup = make_child, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.target = 1,
};

FIXTURE_VARIANT_ADD(permission, process_from_same_pid_namespace) {
	.spec = { .setup = make_child, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.target = 1,
	.become = enter_pid_ns,
};

FIXTURE_VARIANT_ADD(permission, init_from_inside) {
	.spec = { .flags = CLONE_NEWPID },
	.become = enter_pid_ns,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, init_from_outside) {
	.spec = { .flags = CLONE_NEWPID },
};

FIXTURE_VARIANT_ADD(permission, init_from_child_pid_namespace) {
	.spec = { .setup = make_init, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.become = enter_second_pid_ns,
	.error = EINVAL,
};

FIXTURE_VARIANT_ADD(permission, nested_init_from_inside) {
	.spec = { .setup = make_init, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.target = 1,
	.become = enter_second_pid_ns,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, nested_init_from_its_parent) {
	.spec = { .setup = make_init, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.target = 1,
	.become = enter_pid_ns,
};

FIXTURE_VARIANT_ADD(permission, nested_init_from_outside) {
	.spec = { .setup = make_init, .nr = 2, .flags = CLONE_NEWPID, .copies = true },
	.target = 1,
};

FIXTURE_VARIANT_ADD(permission, sharer_of_init_from_inside) {
	.spec = { .sharer = CLONE_VM, .nr = 2, .flags = CLONE_NEWPID },
	.target = 1,
	.become = enter_pid_ns,
	.error = EPERM,
};

FIXTURE_VARIANT_ADD(permission, sharer_of_init_from_outside) {
	.spec = { .sharer = CLONE_VM, .nr = 2, .flags = CLONE_NEWPID },
	.target = 1,
};

FIXTURE_VARIANT_ADD(permission, sharer_not_visible) {
	.spec = { .setup = make_sharer_in_nested_pid_ns, .nr = 3 },
	.target = 2,
	.become = enter_second_pid_ns,
	.error = EPERM,
};

FIXTURE_SETUP(permission)
{
	set_up(_metadata, &self->env, true, 0);
}

FIXTURE_TEARDOWN(permission)
{
	tear_down(&self->env);
}

/* Return what @method returns to a child that calls @become first. */
static int as_caller(struct __test_metadata *_metadata, void (*become)(void),
		     int (*method)(int pidfd), int pidfd)
{
	pid_t pid = fork();

	if (!pid) {
		if (become)
			become();
		_exit(method(pidfd));
	}
	ASSERT_GT(pid, 0);
	return wait_for_pid(pid);
}

TEST_F_TIMEOUT(permission, matches_kill, TIMEOUT)
{
	int (*const methods[])(int pidfd) = { by_kill, by_pidfd_send_signal, by_mrelease };
	int nr = variant->spec.nr ?: 1, error[PROCS], verdict;

	for (int method = 0; method < 3; method++) {
		if (!start(_metadata, &self->env, &variant->spec))
			SKIP(return, NO_SUPPORT);
		/* An init last, since its namespace dies with it. */
		for (int i = nr - 1; i >= 0; i--) {
			if (method < 2 || i == variant->target)
				error[i] = as_caller(_metadata, variant->become, methods[method],
						     procs[i].pidfd);
			if (error[i] == EXIT_UNSUPPORTED)
				SKIP(return, NO_SUPPORT);
		}
		verdict = error[variant->target];
		if (method < 2) {
			/* A process that ignores the signal cannot be killed. */
			for (int i = 0; i < nr; i++) {
				if (!error[i] && is_intact(&procs[i]))
					error[i] = EPERM;
				if (error[i])
					EXPECT_TRUE(is_intact(&procs[i]));
			}
			verdict = error[variant->target];
			for (int i = 0; i < nr; i++) {
				if (!verdict && !variant->spec.copies && error[i])
					verdict = EPERM;
			}
			/* There is a pidfd, but no PID in the caller's namespace. */
			if (verdict == ESRCH)
				verdict = EINVAL;
		} else if (verdict) {
			EXPECT_GE(measure(&self->env).charge, PAGES * psize());
			for (int i = 0; i < nr; i++)
				EXPECT_TRUE(is_intact(&procs[i]));
		} else {
			if (!variant->spec.copies)
				check_memory_free(_metadata, measure(&self->env));
			for (int i = 0; i < nr; i++) {
				if (i == variant->target || !variant->spec.copies)
					EXPECT_TRUE(wait_killed(&procs[i]));
			}
		}
		EXPECT_EQ(variant->error, verdict) {
			TH_LOG("method %d", method);
		}
		end_procs(&self->env);
	}
}

TEST(global_init_is_not_killed)
{
	char before[128] = "", after[128] = "";
	int pidfd = sys_pidfd_open(1, 0);

	if (!has_reap_kill())
		SKIP(return, NO_FLAG);
	if (geteuid())
		SKIP(return, "needs root");
	ASSERT_GE(pidfd, 0);
	ASSERT_TRUE(read_file("/proc/1/statm", before, sizeof(before)));
	EXPECT_EQ(EPERM, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
	ASSERT_TRUE(read_file("/proc/1/statm", after, sizeof(after)));
	EXPECT_STREQ(before, after);
	EXPECT_NE('Z', state_of(1));
	close(pidfd);
}

/*
 * The target is a zombie, and its mm is used by a sharer. The result does not depend
 * on the caller.
 */
FIXTURE(zombie) {
	struct env env;
};

FIXTURE_SETUP(zombie)
{
	set_up(_metadata, &self->env, true, PAGES);
}

FIXTURE_TEARDOWN(zombie)
{
	tear_down(&self->env);
}

static int become_nobody_action(void)
{
	become_nobody();
	return 0;
}

TEST_F_TIMEOUT(zombie, with_sharer, TIMEOUT)
{
	const struct spec spec = { .sharer = CLONE_VM, .nr = 2, .action = become_nobody_action };
	siginfo_t info;

	ASSERT_TRUE(start(_metadata, &self->env, &spec));
	ASSERT_EQ(0, query(&procs[0], CMD_ACT));
	ASSERT_EQ(0, kill(procs[0].pid, SIGKILL));
	ASSERT_EQ(0, waitid(P_PID, procs[0].pid, &info, WEXITED | WNOWAIT));
	EXPECT_EQ(ESRCH, mrelease(procs[0].pidfd, 0));
	EXPECT_EQ(ESRCH, mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL));
	EXPECT_EQ(ESRCH, as_caller(_metadata, become_nobody, by_mrelease, procs[0].pidfd));
	check_memory_used(_metadata, &self->env);
	EXPECT_TRUE(is_intact(&procs[1]));
	end_procs(&self->env);
}

TEST_HARNESS_MAIN
