// SPDX-License-Identifier: GPL-2.0
/*
 * Test that process_mrelease(PROCESS_MRELEASE_REAP_KILL) frees the memory of a victim
 * in any state: running, traced, frozen, asleep in a file system, dumping core.
 */
#define _GNU_SOURCE
#include <sys/un.h>

#include "actions.h"

static bool keep_busy(struct env *env)
{
	return send_command(&procs[0], CMD_ACT) && wait_for_state(procs[0].pid, 'R');
}

static bool freeze_file_system(struct env *env)
{
	return freeze_fs(env->fd) && send_command(&procs[0], CMD_ACT) &&
	       wait_for_state(procs[0].pid, 'D');
}

/* The victim cannot have freed its memory. */
static bool thaw_file_system(struct env *env)
{
	return wait_for_state(procs[0].pid, 'D') && thaw_fs(env->fd);
}

static int write_to_file(void)
{
	return pwrite(mm.fd, mm.anon, psize(), 0) == psize();
}

static int write_to_mapping(void)
{
	mm.file[0]++;
	return 0;
}

/* Sleeps with mmap_lock held; a fault may hold the VMA lock only. */
static int populate_mapping(void)
{
	return madvise(mm.file, psize(), MADV_POPULATE_WRITE);
}

static struct {
	char pattern[128];
	char path[64];
	int listener;
	int dump;
} core = { .listener = -1, .dump = -1 };

/* Read no more than the first bytes of the dump. */
static bool begin_dump(struct env *env)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct pollfd fds[] = { { .events = POLLIN }, { procs[0].pidfd, POLLIN } };
	char buf[80];

	if (!read_file("/proc/sys/kernel/core_pattern", core.pattern, sizeof(core.pattern)))
		return false;
	snprintf(core.path, sizeof(core.path), "/tmp/mrelease.%d", getpid());
	memcpy(addr.sun_path, core.path, sizeof(core.path));
	core.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(core.listener, (struct sockaddr *)&addr, sizeof(addr)) ||
	    listen(core.listener, 1))
		return false;
	snprintf(buf, sizeof(buf), "@%s", core.path);
	if (!write_text(AT_FDCWD, "/proc/sys/kernel/core_pattern", buf))
		return false;
	/* A kernel before 6.16 takes the name for one of a file, and the victim dies. */
	fds[0].fd = core.listener;
	if (!send_command(&procs[0], CMD_ACT) || poll(fds, 2, 120000) < 1 ||
	    !(fds[0].revents & POLLIN))
		return false;
	core.dump = accept(core.listener, NULL, NULL);
	return recv(core.dump, buf, sizeof(buf), 0) > 0;
}

/* The dump is cut short. */
static bool end_dump(struct env *env)
{
	static char buf[1 << 16];
	bool dead = wait_killed(&procs[0]);
	long all = 0, n;

	while ((n = recv(core.dump, buf, sizeof(buf), 0)) > 0)
		all += n;
	return dead && all < PAGES * psize();
}

static void restore_core_pattern(void)
{
	if (core.listener < 0)
		return;
	write_text(AT_FDCWD, "/proc/sys/kernel/core_pattern", core.pattern);
	close(core.listener);
	close(core.dump);
	unlink(core.path);
}

static void map_equal_pages(void)
{
	char *p = mmap(NULL, PAGES * psize(), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		_exit(EXIT_UNSUPPORTED);
	madvise(p, PAGES * psize(), MADV_NOHUGEPAGE);
	memset(p, 1, PAGES * psize());
	if (madvise(p, PAGES * psize(), MADV_MERGEABLE))
		_exit(EXIT_UNSUPPORTED);
}

#define KSM	"/sys/kernel/mm/ksm/"

static long ksm_run;

static bool start_ksm(struct env *env)
{
	char path[48];

	ksm_run = read_number(AT_FDCWD, KSM "run");
	if (!write_text(AT_FDCWD, KSM "run", "1"))
		return false;
	snprintf(path, sizeof(path), "/proc/%d/ksm_merging_pages", procs[0].pid);
	for (int i = 0; i < 60000 && !read_number(AT_FDCWD, path); i++)
		usleep(1000);
	return read_number(AT_FDCWD, path);
}

static bool stop_ksm(struct env *env)
{
	return write_text(AT_FDCWD, KSM "run", ksm_run ? "1" : "0");
}

FIXTURE(state) {
	struct env env;
};

FIXTURE_VARIANT(state) {
	struct spec spec;
	bool (*enter)(struct env *env);		/* false: skip the test */
	bool (*leave)(struct env *env);		/* false: was not in that state */
	long kept;		/* pages of the file that may stay cached */
};

FIXTURE_VARIANT_ADD(state, running) {
	.spec = { .action = spin },
	.enter = keep_busy,
};

FIXTURE_VARIANT_ADD(state, traced) {
	.enter = trace,
	.leave = stop_tracing,
};

FIXTURE_VARIANT_ADD(state, frozen) {
	.enter = freeze_cgroup,
};

FIXTURE_VARIANT_ADD(state, frozen_sharers) {
	.spec = { .sharer = CLONE_VM, .nr = 2 },
	.enter = freeze_cgroup,
};

FIXTURE_VARIANT_ADD(state, writes_to_frozen_file_system) {
	.spec = { .action = write_to_file },
	.enter = freeze_file_system,
	.leave = thaw_file_system,
};

/* The victim holds a reference to the page that it is about to write. */
FIXTURE_VARIANT_ADD(state, faults_on_frozen_file_system) {
	.spec = { .action = write_to_mapping },
	.enter = freeze_file_system,
	.leave = thaw_file_system,
	.kept = 1,
};

FIXTURE_VARIANT_ADD(state, populates_on_frozen_file_system) {
	.spec = { .action = populate_mapping },
	.enter = freeze_file_system,
	.leave = thaw_file_system,
	.kept = 1,
};

/* The victim holds a reference to the page that it is about to dump. */
FIXTURE_VARIANT_ADD(state, dumps_core) {
	.spec = { .action = dump_core },
	.enter = begin_dump,
	.leave = end_dump,
	.kept = 1,
};

FIXTURE_VARIANT_ADD(state, thread_dumps_core) {
	.spec = { .action = dump_core, .in_thread = true },
	.enter = begin_dump,
	.leave = end_dump,
	.kept = 1,
};

FIXTURE_VARIANT_ADD(state, dumps_core_with_sharer) {
	.spec = { .sharer = CLONE_VM, .nr = 2, .action = dump_core },
	.enter = begin_dump,
	.leave = end_dump,
	.kept = 1,
};

FIXTURE_VARIANT_ADD(state, aio_in_flight) {
	.spec = { .setup = begin_aio },
};

FIXTURE_VARIANT_ADD(state, merged_by_ksm) {
	.spec = { .setup = map_equal_pages },
	.enter = start_ksm,
	.leave = stop_ksm,
};

FIXTURE_SETUP(state)
{
	set_up(_metadata, &self->env, true, PAGES);
}

FIXTURE_TEARDOWN(state)
{
	restore_core_pattern();
	tear_down(&self->env);
}

TEST_F_TIMEOUT(state, memory_is_free, TIMEOUT)
{
	struct usage usage;
	int again;

	if (!start(_metadata, &self->env, &variant->spec))
		SKIP(return, NO_SUPPORT);
	check_memory_used(_metadata, &self->env);
	if (variant->enter && !variant->enter(&self->env))
		SKIP(return, NO_SUPPORT);
	EXPECT_EQ(0, mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL));
	usage = measure(&self->env);
	/* A second call does not wait for the exit either. */
	again = mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL);
	EXPECT_TRUE(!again || again == ESRCH)
		TH_LOG("the second call ended with %d", again);
	EXPECT_TRUE(!variant->leave || variant->leave(&self->env));
	EXPECT_LE(usage.cache, variant->kept);
	usage.cache = 0;
	check_memory_free(_metadata, usage);
	for (int i = 0; i < (variant->spec.nr ?: 1); i++)
		EXPECT_TRUE(wait_killed(&procs[i]));
	end_procs(&self->env);
}

TEST_HARNESS_MAIN
