/* SPDX-License-Identifier: GPL-2.0 */
/*
 * For what runs in the guest: victims, the two ways to kill them, and what is in
 * memory of them. The first error ends the program.
 */
#ifndef KILL_H
#define KILL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef PROCESS_MRELEASE_REAP_KILL
#define PROCESS_MRELEASE_REAP_KILL 1
#endif

#define KIB		(1UL << 10)
#define MIB		(1UL << 20)
#define PAGE		4096UL
#define GROUP		"/sys/fs/cgroup/victim"
#define PROGRAMS	"/mnt/programs"

#define die(...) ({						\
	fprintf(stderr, __VA_ARGS__);				\
	fprintf(stderr, ": %m\n");				\
	exit(1); })

#define check(call) ({						\
	long ret_ = (long)(call);				\
								\
	if (ret_ < 0)						\
		die("%s:%d: %s", __FILE__, __LINE__, #call);	\
	ret_; })

/*
 * LMKD: SIGKILL, highest priority for the victim, process_mrelease(0). ONE_CALL:
 * process_mrelease(PROCESS_MRELEASE_REAP_KILL).
 */
enum way { LMKD, ONE_CALL };
extern const char *const way_name[];

/* ONE_CALL where the kernel has it. */
extern enum way best_way;

/*
 * Folios of a file are small or large. They come into the page cache by the
 * victim's page faults (FRESH), or they have been accessed before, as when a
 * program is started for the second time: then a second access, which is what
 * the base takes unmapping for, moves them between the LRU lists. Readahead
 * makes large folios, with its default of 128 KiB (AHEAD) and with 512 (LARGE).
 */
enum kind { ANON, HUGE, SMALL, FRESH, AHEAD, LARGE, KINDS };
extern const char *const kind_name[];

/* The file of each kind, or -1. */
extern int file[KINDS];

/* In PROGRAMS, which is its root. It gets the input, and is ready when it says so. */
struct program {
	const char *name, *argv[10], *input, *ready;
};

extern const struct program programs[];
enum { PYTHON, SQLITE, REDIS, CC1, NR_PROGRAMS };

/*
 * A program, or a process of ours: it holds memory of these sizes, or does what
 * run() does, which says ready, and hears when its parent has heard that.
 */
struct victim {
	size_t size[KINDS];
	const struct program *program;
	void (*run)(const struct victim *v);
	/* The cgroup, GROUP if NULL. */
	const char *group;
	/* On CPU 1, SCHED_IDLE. */
	bool starved;
	/*
	 * It waits, beyond the reach of signals, for the file system to be thawed:
	 * the caller has to do all the work.
	 */
	bool frozen;
	pid_t pid;
	int pidfd, in, out;
};

/* A line of CSV: what was measured on what, and its value. */
__attribute__((format(printf, 3, 4)))
void result(const char *subject, const char *measure, const char *fmt, ...);

long now_ns(void);
void on_cpu(int cpu);
void set(const char *path, const char *text);
/* The number that comes after a word in a file, the nth one. */
long number(const char *path, const char *word, int nth);
/* Memory that GROUP is charged for: exact to 512 KiB. */
long charged(void);

/* Bytes of a file that are in the page cache; drop them. */
size_t cached(int fd);
void drop(int fd);
int make_file(const char *path, size_t size, bool hole);
void make_files(const struct victim *v);
size_t sum_cached(void);
void drop_all(void);

void *map(enum kind k, size_t size);
bool told(int fd);
void start(struct victim *v);
/* So much data for REDIS, which has been started. */
void load_redis(int mib);
/*
 * LMKD gives all threads of the dying process the highest priority and moves
 * them to the cpuset that has all CPUs, so that it is quick to leave.
 */
void hurry(pid_t pid);
/* Returns the errno of the last call: in LMKD's way it can be ESRCH. */
int kill_victim(enum way way, const struct victim *v);
int mrelease(int pidfd, unsigned int flags);
void wait_for(struct victim *v);
/* wait_for(), and drop all files. */
void bury(struct victim *v);

void cmd_demo(char **arg);
void cmd_pressure(char **arg);

#endif
