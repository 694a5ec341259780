// SPDX-License-Identifier: GPL-2.0
/*
 * Test that file contents are right while process_mrelease(PROCESS_MRELEASE_REAP_KILL)
 * evicts folios of the file and other processes map, read, write and truncate it.
 */
#define _GNU_SOURCE
#include <stdatomic.h>

#include "pages.h"

FIXTURE(race) {
	struct env env;
	atomic_long *rounds;
};

FIXTURE_VARIANT(race) {
	bool (*act)(int fd, unsigned int version);
	int racers;
	long rounds;
};

#define RACE_PAGES	32L
#define RACE_KILLS	100

static bool race_map(int fd, int flags)
{
	char *p = mmap(NULL, bytes(RACE_PAGES), PROT_READ, flags, fd, 0);
	bool ok = p != MAP_FAILED && filled_pages(p, 0, RACE_PAGES, 0);

	munmap(p, bytes(RACE_PAGES));
	return ok;
}

static bool race_fault(int fd, unsigned int version)
{
	return race_map(fd, MAP_SHARED);
}

static bool race_populate(int fd, unsigned int version)
{
	return race_map(fd, MAP_PRIVATE | MAP_POPULATE);
}

static bool race_read(int fd, unsigned int version)
{
	return wrong_page(fd, RACE_PAGES, 0) == -1;
}

/* The pages are clean at the end, and so may be evicted. */
static bool race_refill(int fd, long first, unsigned int version)
{
	char page[psize()], zero[psize()];

	memset(zero, 0, sizeof(zero));
	for (long i = first; i < RACE_PAGES; i++) {
		if (pread(fd, page, psize(), bytes(i)) != psize() ||
		    memcmp(page, zero, psize()))
			return false;
		fill_page(page, i, version);
		if (pwrite(fd, page, psize(), bytes(i)) != psize())
			return false;
	}
	if (fdatasync(fd))
		return false;
	for (long i = first; i < RACE_PAGES; i++) {
		if (pread(fd, page, psize(), bytes(i)) != psize() ||
		    !is_filled(page, i, version))
			return false;
	}
	return true;
}

static bool race_truncate(int fd, unsigned int version)
{
	long first = version % RACE_PAGES;

	return !ftruncate(fd, bytes(first)) && !ftruncate(fd, bytes(RACE_PAGES)) &&
	       race_refill(fd, first, version);
}

static bool race_punch(int fd, unsigned int version)
{
	long first = version % RACE_PAGES;

	return !fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, bytes(first),
			  bytes(RACE_PAGES - first)) &&
	       race_refill(fd, first, version);
}

FIXTURE_VARIANT_ADD(race, fault) {
	.act = race_fault,
	.racers = 2,
	.rounds = 2000,
};

FIXTURE_VARIANT_ADD(race, populate) {
	.act = race_populate,
	.racers = 2,
	.rounds = 2000,
};

FIXTURE_VARIANT_ADD(race, read) {
	.act = race_read,
	.racers = 2,
	.rounds = 2000,
};

FIXTURE_VARIANT_ADD(race, truncate) {
	.act = race_truncate,
	.racers = 1,
	.rounds = 500,		/* each writes to the disk */
};

FIXTURE_VARIANT_ADD(race, punch_hole) {
	.act = race_punch,
	.racers = 1,
	.rounds = 500,		/* each writes to the disk */
};

FIXTURE_SETUP(race)
{
	if (!set_up(_metadata, &self->env, true, RACE_PAGES))
		return;
	self->rounds = map_anon(1, MAP_SHARED);
	ASSERT_NE(MAP_FAILED, self->rounds);
}

FIXTURE_TEARDOWN(race)
{
	tear_down(&self->env);
}

/* MADV_POPULATE_READ fails behind the end of the file, without a SIGBUS. */
static void *fault_in_again(void *p)
{
	for (;;) {
		for (long i = 0; i < RACE_PAGES; i++)
			madvise((char *)p + bytes(i), psize(), MADV_POPULATE_READ);
	}
	return NULL;
}

static bool start_race_victim(const void *arg)
{
	char *p = mmap(NULL, bytes(RACE_PAGES), PROT_READ, MAP_SHARED, *(const int *)arg, 0);
	pthread_t thread;

	return p != MAP_FAILED && !pthread_create(&thread, NULL, fault_in_again, p);
}

TEST_F_TIMEOUT(race, contents_are_right, TIMEOUT)
{
	pid_t pid, racers[2];
	int status, pidfd;

	if (!variant->act(self->env.fd, 1) && errno == EOPNOTSUPP)
		SKIP(return, "this file system cannot do that");
	for (int n = 0; n < variant->racers; n++) {
		racers[n] = fork();
		if (racers[n])
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (unsigned int round = 1; ; round++) {
			if (!variant->act(self->env.fd, round % 255 + 1))
				_exit(1);
			++*self->rounds;
		}
	}

	for (int i = 0; i < RACE_KILLS || *self->rounds < variant->rounds; i++) {
		pid = start_child(&self->env, start_race_victim, &self->env.fd, &pidfd);
		ASSERT_GT(pid, 0);
		usleep(i % 10 * 1000);
		kill_victim(_metadata, pid, pidfd);
		ASSERT_EQ(0, waitpid(-1, &status, WNOHANG)) {
			TH_LOG("wrong contents in round %ld", *self->rounds);
		}
	}
	for (int n = 0; n < variant->racers; n++) {
		kill(racers[n], SIGKILL);
		ASSERT_EQ(SIGKILL, wait_termsig(racers[n]));
	}
	EXPECT_TRUE(droppable(self->env.fd));
}

TEST_HARNESS_MAIN
