/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A file of 64 pages, of which HELD pages in the middle are in use and must not be
 * freed. The other pages must be freed: a call that does nothing fails the test.
 */
#ifndef SELFTESTS_PROCESS_MRELEASE_PAGES_H
#define SELFTESTS_PROCESS_MRELEASE_PAGES_H

#include "util.h"

#define PAGES		64L
#define FIRST		24L
#define HELD		16L

#define WAIT_SECONDS	60

#ifndef KPF_ANON
#define KPF_ANON	BIT_ULL(12)
#endif

/* Wait for a condition; return false if it does not become true in time. */
#define wait_until(condition) ({					\
	time_t __end = time(NULL) + WAIT_SECONDS;			\
	bool __met;							\
	while (!(__met = (condition)) && time(NULL) < __end)		\
		usleep(1000);						\
	__met;								\
})

static inline long bytes(long pages)
{
	return pages * psize();
}

static inline void *map_anon(long pages, int flags)
{
	return mmap(NULL, bytes(pages), PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags,
		    -1, 0);
}

static inline void fill_pages(char *p, long first, long nr, unsigned int version)
{
	for (long i = 0; i < nr; i++)
		fill_page(p + bytes(i), first + i, version);
}

static inline bool filled_pages(const char *p, long first, long nr, unsigned int version)
{
	for (long i = 0; i < nr; i++) {
		if (!is_filled(p + bytes(i), first + i, version))
			return false;
	}
	return true;
}

/* Map all of the file and read it into small folios. Return NULL on failure. */
static inline char *map_file(int fd, int prot, int flags)
{
	char *p = mmap(NULL, bytes(PAGES), prot, flags, fd, 0);

	if (p == MAP_FAILED || madvise(p, bytes(PAGES), MADV_RANDOM))
		return NULL;
	force_read_pages(p, PAGES, psize());
	return p;
}

/* Count the pages that are cached outside of the given range, or not within it. */
static inline long misplaced(int fd, long first, long nr)
{
	long wrong = 0;

	for (long i = 0; i < PAGES; i++)
		wrong += cached_in(fd, bytes(i), psize()) !=
			 (i >= first && i < first + nr);
	return wrong;
}

/* Return true if all pages of the file can be dropped: no reference is left. */
static inline bool droppable(int fd)
{
	return wait_until(!fsync(fd) && !posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) &&
			  !cached(fd));
}

/*
 * Count the pages charged to the cgroup of the test that have one of @flags, or
 * any if @flags is 0. Return -1 without /proc/kpagecgroup.
 */
static inline long charged(const struct env *env, uint64_t flags)
{
	enum { CHUNK = 8192 };
	int cgroups = open("/proc/kpagecgroup", O_RDONLY | O_CLOEXEC);
	int kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	static uint64_t cgroup[CHUNK], flag[CHUNK];
	/* Not device memory, which may be at far higher addresses. */
	FILE *ram = fopen("/proc/iomem", "r");
	unsigned long long start, end;
	long count = -1;
	struct stat st;
	char line[256];

	fstat(env->cgroup_fd, &st);
	while (cgroups >= 0 && kpageflags >= 0 && ram && fgets(line, sizeof(line), ram)) {
		if (!strstr(line, ": System RAM") ||
		    sscanf(line, "%llx-%llx", &start, &end) != 2 || !end)
			continue;
		start /= psize();
		end /= psize();
		if (count < 0)
			count = 0;
		for (ssize_t nr; start <= end; start += nr) {
			size_t size = (end - start < CHUNK ? end - start + 1 : CHUNK) *
				      sizeof(*cgroup);

			nr = pread(cgroups, cgroup, size, start * sizeof(*cgroup)) /
			     (ssize_t)sizeof(*cgroup);
			if (nr <= 0 || pread(kpageflags, flag, size,
					     start * sizeof(*flag)) != (ssize_t)size)
				break;
			for (ssize_t i = 0; i < nr; i++)
				count += cgroup[i] == st.st_ino &&
					 (!flags || flag[i] & flags);
		}
	}
	if (ram)
		fclose(ram);
	close(cgroups);
	close(kpageflags);
	return count;
}

static inline bool can_count_charged(const struct env *env)
{
	return charged(env, 0) >= 0;
}

#define NO_COUNT	"needs /proc/kpagecgroup"

/* Kill and reap. Wait for the victim to die of SIGKILL. */
static inline void kill_victim(struct __test_metadata *_metadata, pid_t pid, int pidfd)
{
	ASSERT_EQ(0, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
	ASSERT_EQ(SIGKILL, wait_termsig(pid));
	close(pidfd);
}

/* Check the contents of the pages in the middle, and of the others. */
static inline void check_file(struct __test_metadata *_metadata, int fd, unsigned int middle,
			      unsigned int others)
{
	char page[psize()];

	for (long i = 0; i < PAGES; i++) {
		bool in = i >= FIRST && i < FIRST + HELD;

		ASSERT_EQ(psize(), pread(fd, page, psize(), bytes(i)));
		ASSERT_TRUE(is_filled(page, i, in ? middle : others)) TH_LOG("page %ld", i);
	}
}

#endif
