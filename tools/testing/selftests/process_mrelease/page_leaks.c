// SPDX-License-Identifier: GPL-2.0
/*
 * Test that no page of a victim is left after many calls of
 * process_mrelease(PROCESS_MRELEASE_REAP_KILL): no reference is leaked or lost.
 */
#define _GNU_SOURCE
#include "pages.h"

#define COMM		"mrelease_gone"
#define EXACT_PAGES	512L
#define EXACT_KILLS	200

FIXTURE(leaks) {
	struct env env;
	int memfd;
};

FIXTURE_SETUP(leaks)
{
	if (!set_up(_metadata, &self->env, true, EXACT_PAGES))
		return;
	if (!can_count_charged(&self->env)) {
		tear_down(&self->env);
		SKIP(return, NO_COUNT);
	}
	self->memfd = make_memfd();
	ASSERT_EQ(0, ftruncate(self->memfd, bytes(EXACT_PAGES)));
}

FIXTURE_TEARDOWN(leaks)
{
	tear_down(&self->env);
}

/* The kind of memory depends on the round. */
struct kind {
	int round;
	int fd;
	int memfd;
};

static bool use_memory(const void *arg)
{
	static const int advices[] = { MADV_NORMAL, MADV_RANDOM, MADV_HUGEPAGE };
	const struct kind *kind = arg;
	int advice = advices[kind->round % 3];
	bool dirty = kind->round / 3 % 2, lock = kind->round / 6 % 2;
	struct { int fd, flags; bool write; } maps[] = {
		{ -1, MAP_PRIVATE | MAP_ANONYMOUS, true },
		{ -1, MAP_SHARED | MAP_ANONYMOUS, true },
		{ kind->memfd, MAP_SHARED, true },
		{ kind->fd, MAP_SHARED, dirty },
		{ kind->fd, MAP_SHARED, false },
		{ kind->fd, MAP_PRIVATE, dirty },
	};

	prctl(PR_SET_NAME, COMM);
	for (size_t i = 0; i < sizeof(maps) / sizeof(*maps); i++) {
		char *p = mmap(NULL, bytes(EXACT_PAGES), PROT_READ | PROT_WRITE,
			       maps[i].flags, maps[i].fd, 0);

		if (p == MAP_FAILED)
			return false;
		/* Not every kind of memory supports every advice. */
		madvise(p, bytes(EXACT_PAGES), advice);
		force_read_pages(p, EXACT_PAGES, psize());
		for (long n = 0; maps[i].write && n < EXACT_PAGES; n += kind->round % 5 + 1)
			*(long *)(p + bytes(n)) = ~n;
		if (lock && mlock(p, bytes(EXACT_PAGES)))
			return false;
	}
	return true;
}

#define OWNERS		"/sys/kernel/debug/page_owner"

static bool has_owners(void)
{
	return !access(OWNERS, R_OK);
}

/* Count the pages that victims have allocated, for themselves or for a file. */
static long owned(void)
{
	FILE *owners = fopen(OWNERS, "r");
	char *line = NULL;
	bool by_victim = false;
	size_t size = 0;
	long count = 0;

	while (owners && getline(&line, &size, owners) > 0) {
		if (strstr(line, "allocated via"))
			by_victim = strstr(line, "(" COMM ")");
		else if (by_victim && !strncmp(line, "PFN", 3))
			count += !!strstr(line, "type Movable Block");
	}
	free(line);
	if (owners)
		fclose(owners);
	return count;
}

/* Return true if exactly @pages pages are left. */
static bool pages_left(const struct env *env, long pages)
{
	return write_text(AT_FDCWD, "/proc/sys/vm/drop_caches", "3") &&
	       charged(env, 0) == pages && (!has_owners() || owned() == pages);
}

static bool leave_page_in_pipe(const void *arg)
{
	char *p = map_anon(1, MAP_PRIVATE);
	struct iovec iov = { p, 1 };

	if (p == MAP_FAILED)
		return false;
	prctl(PR_SET_NAME, COMM);
	fill_page(p, 0, 0);
	return vmsplice(*(const int *)arg, &iov, 1, 0) == 1;
}

TEST_F_TIMEOUT(leaks, no_page_is_left, TIMEOUT)
{
	struct kind kind = { 0, self->env.fd, self->memfd };
	int pidfd, ends[2];
	pid_t pid;

	for (; kind.round < EXACT_KILLS; kind.round++) {
		pid = start_child(&self->env, use_memory, &kind, &pidfd);
		ASSERT_GT(pid, 0);
		kill_victim(_metadata, pid, pidfd);
	}
	/* One page stays in a pipe, to see that a single page is found. */
	ASSERT_EQ(0, pipe(ends));
	pid = start_child(&self->env, leave_page_in_pipe, &ends[1], &pidfd);
	ASSERT_GT(pid, 0);
	kill_victim(_metadata, pid, pidfd);

	close(self->memfd);
	ASSERT_EQ(0, fsync(self->env.fd));
	EXPECT_TRUE(wait_until(pages_left(&self->env, 1))) {
		TH_LOG("%ld pages are charged, %ld owned", charged(&self->env, 0), owned());
	}
	close(ends[0]);
	close(ends[1]);
	EXPECT_TRUE(wait_until(pages_left(&self->env, 0)));
}

TEST_HARNESS_MAIN
