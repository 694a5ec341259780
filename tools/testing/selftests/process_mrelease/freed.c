// SPDX-License-Identifier: GPL-2.0
/*
 * Test that the memory of a victim is free when
 * process_mrelease(PROCESS_MRELEASE_REAP_KILL) returns.
 *
 * The free memory is measured right after the call, before waitpid(), since the
 * victim's exit would free it as well: as the charge of a memory cgroup with only the
 * victim in it, and by cachestat() on the victim's file.
 *
 * The file is in $TMPDIR, or else in the current directory. Tests that need it
 * are skipped on tmpfs, where the page cache holds the only copy.
 */
#define _GNU_SOURCE
#include "victim.h"

FIXTURE(memory) {
	struct env env;
};

FIXTURE_VARIANT(memory) {
	struct spec spec;
	bool cached;		/* the file has been written, not read from disk */
	bool large;		/* needs large folios */
	bool stopped;
};

FIXTURE_VARIANT_ADD(memory, anon) {
	.spec = { .anon = PAGES },
};

FIXTURE_VARIANT_ADD(memory, anon_huge) {
	.spec = { .anon = PAGES, .anon_advice = MADV_HUGEPAGE },
};

FIXTURE_VARIANT_ADD(memory, anon_locked) {
	.spec = { .anon = PAGES, .lock = true },
};

FIXTURE_VARIANT_ADD(memory, anon_swapped) {
	.spec = { .anon = PAGES, .anon_advice = MADV_PAGEOUT },
};

FIXTURE_VARIANT_ADD(memory, private_file) {
	.spec = { .file = PAGES, .flags = MAP_PRIVATE },
};

FIXTURE_VARIANT_ADD(memory, private_writable_file) {
	.spec = { .file = PAGES, .flags = MAP_PRIVATE, .prot = PROT_READ | PROT_WRITE },
};

FIXTURE_VARIANT_ADD(memory, shared_file) {
	.spec = { .file = PAGES },
};

FIXTURE_VARIANT_ADD(memory, shared_read_only_file) {
	.spec = { .file = PAGES, .read_only = true },
};

FIXTURE_VARIANT_ADD(memory, shared_writable_file) {
	.spec = { .file = PAGES, .prot = PROT_READ | PROT_WRITE },
};

FIXTURE_VARIANT_ADD(memory, small_folios) {
	.spec = { .file = PAGES, .advice = MADV_RANDOM },
};

FIXTURE_VARIANT_ADD(memory, small_folios_some) {
	.spec = { .file = PAGES, .advice = MADV_RANDOM, .step = 16 },
};

FIXTURE_VARIANT_ADD(memory, large_folios) {
	.spec = { .file = PAGES, .advice = MADV_HUGEPAGE },
	.large = true,
};

/* Of each folio one page and the pages that fault-around maps. */
FIXTURE_VARIANT_ADD(memory, large_folios_some) {
	.spec = { .file = PAGES, .advice = MADV_HUGEPAGE, .step = 64 },
	.large = true,
};

FIXTURE_VARIANT_ADD(memory, small_folios_twice) {
	.spec = { .file = PAGES, .advice = MADV_RANDOM, .twice = true },
};

FIXTURE_VARIANT_ADD(memory, large_folios_twice) {
	.spec = { .file = PAGES, .advice = MADV_HUGEPAGE, .twice = true },
	.large = true,
};

FIXTURE_VARIANT_ADD(memory, locked_file) {
	.spec = { .file = PAGES, .lock = true },
};

FIXTURE_VARIANT_ADD(memory, locked_small_folios_twice) {
	.spec = { .file = PAGES, .advice = MADV_RANDOM, .twice = true, .lock = true },
};

FIXTURE_VARIANT_ADD(memory, cached_file) {
	.spec = { .file = PAGES },
	.cached = true,
};

FIXTURE_VARIANT_ADD(memory, threads) {
	.spec = { .anon = PAGES, .file = PAGES, .threads = 8 },
};

FIXTURE_VARIANT_ADD(memory, faulting_threads) {
	.spec = { .anon = PAGES, .file = PAGES, .threads = 2, .faulting = true },
};

FIXTURE_VARIANT_ADD(memory, stopped) {
	.spec = { .anon = PAGES, .file = PAGES },
	.stopped = true,
};

FIXTURE_SETUP(memory)
{
	if (!set_up(_metadata, &self->env, true, variant->spec.file))
		return;
	if (variant->cached) {
		ASSERT_TRUE(write_pages(self->env.fd, PAGES, 0));
		ASSERT_EQ(0, fsync(self->env.fd));
	}
}

FIXTURE_TEARDOWN(memory)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(memory, is_free, TIMEOUT)
{
	struct usage usage;
	struct victim v;

	spawn(_metadata, &self->env, &variant->spec, &v);
	if (variant->large && !v.large)
		SKIP(return, "no large folios on this file system");
	if (variant->spec.anon_advice == MADV_PAGEOUT && !measure(&self->env).swap)
		SKIP(return, "no swap");
	if (!variant->spec.faulting)
		check_memory_used(_metadata, &self->env, &variant->spec);
	if (variant->stopped) {
		siginfo_t info;

		ASSERT_EQ(0, kill(v.proc.pid, SIGSTOP));
		ASSERT_EQ(0, waitid(P_PID, v.proc.pid, &info, WSTOPPED));
	}

	ASSERT_EQ(0, mrelease(v.proc.pidfd, PROCESS_MRELEASE_REAP_KILL));
	usage = measure(&self->env);
	/* Pages that madvise() of a thread has unmapped are freed by that thread. */
	EXPECT_LE(usage.charge, slack() + usage.cache * psize() +
				(variant->spec.faulting ? PAGES * psize() : 0));
	EXPECT_LE(usage.cache, variant->spec.faulting ? PAGES : 0);
	EXPECT_EQ(0, usage.swap);
	EXPECT_EQ(SIGKILL, wait_termsig(v.proc.pid));
	EXPECT_EQ(-1, wrong_page(self->env.fd, self->env.pages, 0));
	close_victim(&v);
}

/*
 * A victim with 64 MiB of page tables: one page of every 2 MiB is touched.
 */
#define TABLES		16384L
#define TABLE_SPAN	(psize() * psize() / 8)	/* that one page table maps */

FIXTURE(page_tables) {
	struct env env;
	pid_t pid;
};

FIXTURE_VARIANT(page_tables) {
	bool file;
};

FIXTURE_VARIANT_ADD(page_tables, anon) { };
FIXTURE_VARIANT_ADD(page_tables, file) { .file = true };

FIXTURE_SETUP(page_tables)
{
	set_up(_metadata, &self->env, true, variant->file);
}

FIXTURE_TEARDOWN(page_tables)
{
	if (self->pid)
		kill(self->pid, SIGKILL);
	tear_down(&self->env);
}

/* Map memory, or else a file, and touch its part of @nr page tables. */
static char *touch_tables(long nr, int fd)
{
	const long pages = nr * (TABLE_SPAN / psize());
	const int anon = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	char *p = fd < 0 ?
		map_aligned(pages, PROT_READ | PROT_WRITE, anon, -1, MADV_NOHUGEPAGE) :
		map_aligned(pages, PROT_READ, MAP_SHARED, fd, MADV_RANDOM);

	for (long i = 0; i < nr; i++) {
		if (fd < 0)
			p[i * TABLE_SPAN] = 1;
		else
			FORCE_READ(p[i * TABLE_SPAN]);
	}
	return p;
}

static bool have_tables(const void *fd)
{
	return touch_tables(TABLES, *(const int *)fd);
}

/* Kilobytes of page tables of this process. */
static long own_tables(void)
{
	FILE *status = fopen("/proc/self/status", "r");
	char line[128];
	long kb = 0;

	while (status && fgets(line, sizeof(line), status))
		sscanf(line, "VmPTE: %ld", &kb);
	if (status)
		fclose(status);
	return kb;
}

TEST_F_TIMEOUT(page_tables, are_free, TIMEOUT)
{
	const int fd = variant->file ? self->env.fd : -1;
	long before, start, took;
	pid_t pid;
	int pidfd;
	char *p;

	if (sizeof(long) < 8)
		SKIP(return, "needs an address space of 64 bit");
	p = touch_tables(16, -1);
	before = own_tables();
	/* madvise() and the call free page tables in the same way. */
	madvise(p, 16 * TABLE_SPAN, MADV_DONTNEED);
	if (own_tables() >= before)
		SKIP(return, "only munmap() frees page tables here");
	if (variant->file)
		ASSERT_EQ(0, ftruncate(fd, TABLES * TABLE_SPAN));
	pid = start_child(&self->env, have_tables, &fd, &pidfd);
	ASSERT_GT(pid, 0);
	ASSERT_LE(2 * TABLES * psize(), measure(&self->env).charge);
	self->pid = pin_mm(pid, &mem);
	if (self->pid < 0)
		SKIP(return, NO_PIN);

	/* The OOM reaper joins in after two seconds, and can be starved itself. */
	do {
		took = mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL);
	} while (took == EAGAIN);
	ASSERT_EQ(0, took);
	start = now_us();
	/* They are freed after an RCU grace period, which a busy CPU delays. */
	do {
		usleep(1000);
		took = now_us() - start;
	} while (measure(&self->env).charge > slack() && took < 5000000);
	TH_LOG("free after %ld us, %ld KiB left", took, measure(&self->env).charge / 1024);
	EXPECT_LE(measure(&self->env).charge, slack());
	EXPECT_EQ(SIGKILL, wait_termsig(pid));
	close(pidfd);
}

/*
 * Many kills, each of them concurrent with the victim's exit.
 */
FIXTURE(many_kills) {
	struct env env;
	int cpu;		/* of the victim */
};

FIXTURE_VARIANT(many_kills) {
	bool two_cpus;		/* caller and victim are on different CPUs */
	int threads;
	bool signalled;		/* SIGKILL is sent some time before the call */
	int kills;
};

FIXTURE_VARIANT_ADD(many_kills, one_cpu) {
	.kills = 400,
};

FIXTURE_VARIANT_ADD(many_kills, two_cpus) {
	.kills = 400,
	.two_cpus = true,
};

FIXTURE_VARIANT_ADD(many_kills, one_cpu_threads) {
	.kills = 100,
	.threads = 4,
};

FIXTURE_VARIANT_ADD(many_kills, two_cpus_threads) {
	.kills = 100,
	.threads = 4,
	.two_cpus = true,
};

FIXTURE_VARIANT_ADD(many_kills, one_cpu_signalled) {
	.kills = 200,
	.signalled = true,
};

FIXTURE_VARIANT_ADD(many_kills, two_cpus_signalled) {
	.kills = 200,
	.signalled = true,
	.two_cpus = true,
};

#define MANY_PAGES	128

FIXTURE_SETUP(many_kills)
{
	cpu_set_t cpus;

	sched_getaffinity(0, sizeof(cpus), &cpus);
	if (variant->two_cpus && CPU_COUNT(&cpus) < 2)
		SKIP(return, "needs two CPUs");
	self->cpu = variant->two_cpus ? last_cpu(&cpus) : first_cpu(&cpus);
	run_on_cpu(first_cpu(&cpus));
	set_up(_metadata, &self->env, true, MANY_PAGES);
}

FIXTURE_TEARDOWN(many_kills)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(many_kills, memory_is_free, TIMEOUT)
{
	const struct spec spec = {
		.anon = 512, .file = MANY_PAGES, .threads = variant->threads,
		.cpu = self->cpu + 1,
	};
	struct usage usage;
	struct victim v;
	int ret;

	for (int i = 0; i < variant->kills; i++) {
		spawn(_metadata, &self->env, &spec, &v);
		if (variant->signalled) {
			ASSERT_EQ(0, kill(v.proc.pid, SIGKILL));
			/* Every point of the exit, and the time after it */
			usleep(i % 50 * 200);
		}
		ret = mrelease(v.proc.pidfd, PROCESS_MRELEASE_REAP_KILL);
		usage = measure(&self->env);
		/* The threads may have left the mm. */
		if (!variant->signalled || ret != ESRCH) {
			ASSERT_EQ(0, ret);
			ASSERT_LE(usage.charge, slack_of(2)) TH_LOG("in round %d", i);
			ASSERT_EQ(0, usage.cache) TH_LOG("in round %d", i);
		}
		ASSERT_EQ(SIGKILL, wait_termsig(v.proc.pid));
		close_victim(&v);
	}
}

TEST_HARNESS_MAIN
