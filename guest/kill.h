/* SPDX-License-Identifier: GPL-2.0 */
/*
 * For programs that run in the guest: the two ways to kill, what is cached of a
 * file, and die() at the first error.
 */
#ifndef KILL_H
#define KILL_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef __NR_process_mrelease
#define __NR_process_mrelease	448
#endif
#ifndef __NR_cachestat
#define __NR_cachestat		451
#endif
#ifndef PROCESS_MRELEASE_REAP_KILL
#define PROCESS_MRELEASE_REAP_KILL (1 << 0)
#endif

#define MIB		(1UL << 20)
#define GROUP		"/sys/fs/cgroup/victim"

enum way { LMKD, ONE_CALL };

__attribute__((format(printf, 1, 2), noreturn))
static inline void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, ": %m\n");
	exit(1);
}

#define check(call) ({						\
	long ret_ = (long)(call);				\
								\
	if (ret_ < 0)						\
		die("%s:%d: %s", __FILE__, __LINE__, #call);	\
	ret_; })

static inline int send_kill(int pidfd)
{
	return syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
}

static inline int mrelease(int pidfd, unsigned int flags)
{
	return syscall(__NR_process_mrelease, pidfd, flags);
}

/*
 * LMKD gives all threads of the dying process the highest priority and moves
 * them to the cpuset that has all CPUs, so that it is quick to leave.
 */
static inline void hurry(pid_t pid)
{
	struct dirent *entry;
	cpu_set_t all;
	char path[32];
	DIR *dir;

	memset(&all, 0xff, sizeof(all));
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir)
		return;
	while ((entry = readdir(dir))) {
		pid_t tid = atoi(entry->d_name);

		if (tid > 0) {
			sched_setaffinity(tid, sizeof(all), &all);
			setpriority(PRIO_PROCESS, tid, -20);
		}
	}
	closedir(dir);
}

/* Returns the errno of the last call. */
static inline int kill_it(enum way way, pid_t pid, int pidfd)
{
	if (way == ONE_CALL)
		return mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL) ? errno : 0;
	if (send_kill(pidfd))
		return errno;
	hurry(pid);
	return mrelease(pidfd, 0) ? errno : 0;
}

/* Bytes of a file that are in the page cache. */
static inline size_t cached(int fd)
{
	struct { unsigned long long off, len; } range = { 0, 0 };
	struct { unsigned long long cache, dirty, writeback, evicted, recent; } cs;

	check(syscall(__NR_cachestat, fd, &range, &cs, 0));
	return cs.cache * sysconf(_SC_PAGESIZE);
}

/* All of it out of the page cache. */
static inline void drop(int fd)
{
	for (int tries = 0; cached(fd); tries++) {
		if (tries == 100) {
			errno = EBUSY;
			die("a file stays in the page cache");
		}
		if (tries)
			usleep(20000);
		check(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	}
}

#endif
