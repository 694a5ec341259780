// SPDX-License-Identifier: GPL-2.0
/*
 * Let each allocation of process_mrelease(PROCESS_MRELEASE_REAP_KILL) fail in turn, or all
 * of them. The call kills and frees all the same, or it fails with ENOMEM and has done
 * nothing.
 */
#define _GNU_SOURCE
#include <linux/futex.h>

#include "actions.h"
#include "audit.h"

#define NO_FAULTS	"needs CONFIG_FAULT_INJECTION, FAILSLAB and FAIL_PAGE_ALLOC"
#define FAILED		0x80	/* an allocation of the caller has failed */
#define NOT_COUNTED	0xff
#define SHARERS		5

static int sleep_in_group(void *unused)
{
	return sleep_forever(NULL);
}

static void make_more_sharers(void)
{
	for (int i = 0; i < SHARERS; i++)
		run_in_mm(sleep_in_group, 0, SIGCHLD);
}

static void write_to_swap(void)
{
	page_out(mm.anon, PAGES * psize());
}

/* The list has one futex, in a small page of its own. */
static void register_list(void)
{
	static struct robust_list_head head = { .futex_offset = sizeof(struct robust_list) };
	struct robust_list *entry = mmap(NULL, psize(), PROT_READ | PROT_WRITE,
					 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (entry == MAP_FAILED)
		_exit(1);
	head.list.next = entry;
	entry->next = &head.list;
	*(uint32_t *)(entry + 1) = gettid();
	if (syscall(__NR_set_robust_list, &head, sizeof(head)))
		_exit(EXIT_UNSUPPORTED);
}

FIXTURE(faults) {
	struct env env;
	int audit;
};

FIXTURE_VARIANT(faults) {
	struct spec spec;
	bool audit;
	int error;	/* if all allocations fail; EAGAIN depends on the victim's exit */
};

FIXTURE_VARIANT_ADD(faults, idle) { };

FIXTURE_VARIANT_ADD(faults, sharers) {
	.spec = { .setup = make_more_sharers },
	.error = ENOMEM,
};

FIXTURE_VARIANT_ADD(faults, audited_sharers) {
	.spec = { .setup = make_more_sharers },
	.audit = true,
	.error = ENOMEM,
};

FIXTURE_VARIANT_ADD(faults, robust_futex) {
	.spec = { .setup = register_list },
	.error = EAGAIN,
};

FIXTURE_VARIANT_ADD(faults, swapped) {
	.spec = { .setup = write_to_swap },
};

FIXTURE_VARIANT_ADD(faults, io_uring) {
	.spec = { .setup = register_buffers },
};

FIXTURE_SETUP(faults)
{
	if (!set_up(_metadata, &self->env, true, PAGES))
		return;
	if (!enable_faults("0")) {
		tear_down(&self->env);
		SKIP(return, NO_FAULTS);
	}
	ASSERT_EQ(0, prctl(PR_SET_CHILD_SUBREAPER, 1));
	if (!variant->audit)
		return;
	self->audit = open_audit(0);
	if (self->audit < 0 || !start_audit(_metadata, self->audit)) {
		tear_down(&self->env);
		SKIP(return, "needs CONFIG_AUDIT, not in use");
	}
}

FIXTURE_TEARDOWN(faults)
{
	enable_faults("0");
	if (variant->audit)
		stop_audit(_metadata, self->audit);
	tear_down(&self->env);
}

/* In a task of its own, for audit: the error of a call whose allocation @nr fails. */
static int call_with_fault(struct __test_metadata *_metadata, int nr)
{
	char text[16], left[16] = "";
	int status, error;
	pid_t pid = fork();

	ASSERT_LE(0, pid);
	if (!pid) {
		int fd = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
		int len = snprintf(text, sizeof(text), "%d", nr);

		/* Page faults are over when the allocations are counted. */
		if (mrelease(-1, PROCESS_MRELEASE_REAP_KILL) != EBADF ||
		    pread(fd, left, sizeof(left) - 1, 0) < 1 || write(fd, text, len) != len)
			_exit(NOT_COUNTED);
		error = mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL);
		/* The file tells how many are left. */
		pread(fd, left, sizeof(left) - 1, 0);
		pwrite(fd, "0", 1, 0);
		_exit(error | (atoi(left) ? 0 : FAILED));
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFEXITED(status));
	ASSERT_NE(NOT_COUNTED, WEXITSTATUS(status));
	return WEXITSTATUS(status);
}

static bool start_victim(struct __test_metadata *_metadata, struct _test_data_faults *self,
			 const struct _fixture_variant_faults *variant)
{
	return start(_metadata, &self->env, &variant->spec) &&
	       (variant->spec.setup != write_to_swap || measure(&self->env).swap);
}

static int count_procs(const struct env *env)
{
	FILE *procs = fdopen(openat(env->cgroup_fd, "cgroup.procs", O_RDONLY), "r");
	int nr = 0, pid;

	while (procs && fscanf(procs, "%d", &pid) == 1)
		nr++;
	if (procs)
		fclose(procs);
	return nr;
}

/* A call has failed with ENOMEM, and has done nothing. */
static void call_again(struct __test_metadata *_metadata, const struct env *env)
{
	ASSERT_EQ(SHARERS + 1, count_procs(env));
	ASSERT_TRUE(is_intact(&procs[0]));
	check_memory_used(_metadata, env);
	ASSERT_EQ(0, mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL));
}

TEST_F_TIMEOUT(faults, each_allocation, TIMEOUT)
{
	int nr, ret, nothing_done = 0;

	for (nr = 1;; nr++) {
		if (!start_victim(_metadata, self, variant))
			SKIP(return, NO_SUPPORT);
		check_memory_used(_metadata, &self->env);
		ret = call_with_fault(_metadata, nr);
		if ((ret & ~FAILED) == ENOMEM) {
			nothing_done++;
			call_again(_metadata, &self->env);
		} else {
			ASSERT_EQ(0, ret & ~FAILED);
		}
		check_memory_free(_metadata, measure(&self->env));
		check_all_killed(_metadata);
		if (!(ret & FAILED))
			break;
	}
	TH_LOG("%d allocations, %d of them before the kill", nr - 1, nothing_done);
	/* One for the signal, at least */
	EXPECT_LT(1, nr);
	/* xa_store() tries twice, so one failure is not enough. */
	EXPECT_EQ(variant->audit, !!nothing_done);
}

static int call_with_faults(void)
{
	int fd = open("/proc/thread-self/make-it-fail", O_WRONLY | O_CLOEXEC), error;

	errno = 0;	/* a write that must not fault from here on */
	write(fd, "1", 1);
	error = mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL);
	pwrite(fd, "0", 1, 0);
	close(fd);
	return error;
}

TEST_F_TIMEOUT(faults, all_allocations, TIMEOUT)
{
	int ret;

	if (!start_victim(_metadata, self, variant))
		SKIP(return, NO_SUPPORT);
	ASSERT_TRUE(enable_faults("100"));
	ret = call_with_faults();
	ASSERT_TRUE(enable_faults("0"));
	EXPECT_TRUE(ret == variant->error || (!ret && variant->error == EAGAIN))
		TH_LOG("errno %d", ret);
	if (ret == ENOMEM)
		call_again(_metadata, &self->env);
	if (ret != EAGAIN)
		check_memory_free(_metadata, measure(&self->env));
	check_all_killed(_metadata);
	check_memory_free(_metadata, measure(&self->env));
}

TEST_HARNESS_MAIN
