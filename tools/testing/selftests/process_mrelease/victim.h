/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A victim with memory of a given kind, and perhaps a sharer. Both check their memory
 * when the test asks for it.
 */
#ifndef SELFTESTS_PROCESS_MRELEASE_VICTIM_H
#define SELFTESTS_PROCESS_MRELEASE_VICTIM_H

#include <sys/ptrace.h>
#include <sys/socket.h>

#include "util.h"

#define PAGES	4096L	/* of anonymous memory and of the file, by default */

/* The memory and the processes of a victim. */
struct spec {
	long anon;		/* pages of private memory, written */
	int anon_advice;
	long file;		/* pages of the file, mapped and read */
	int prot;		/* PROT_READ */
	int flags;		/* MAP_SHARED */
	int advice;
	unsigned int step;	/* read every nth page only */
	unsigned int dirty;	/* write every nth page, through the mapping ... */
	bool by_write;		/* ... or with pwrite() */
	bool read_only;		/* open the file O_RDONLY */
	bool twice;		/* map the file twice */
	bool lock;
	bool faulting;		/* the threads keep faulting pages in */
	int threads;
	int cpu;		/* to run on, from 1 */
	bool sharer;		/* another process with the same mm */
};

/* A process that answers on a socket. */
struct proc {
	pid_t pid;
	int pidfd;
	int sock;
};

struct victim {
	struct proc proc;
	struct proc sharer;
	bool large;		/* the first folio of the file is large */
};

struct report {
	pid_t pid;
	bool large;
};

/* In the victim. */
static const struct spec *own_spec;
static struct {
	char *anon;
	char *file[2];
	int sock[2];
} mem;

static inline void touch_file(char *file)
{
	for (long i = 0; i < own_spec->file; i += own_spec->step ?: 1)
		FORCE_READ(file[i * psize()]);
}

/* One word of each page tells whether the page is intact. */
static inline void write_anon(void)
{
	for (long i = 0; i < own_spec->anon; i++)
		*(long *)(mem.anon + i * psize()) = ~i;
}

static inline bool anon_intact(void)
{
	for (long i = 0; i < own_spec->anon; i++) {
		if (*(long *)(mem.anon + i * psize()) != ~i)
			return false;
	}
	return true;
}

static inline void make_anon(void)
{
	size_t len = own_spec->anon * psize();

	mem.anon = map_aligned(own_spec->anon, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			       -1, own_spec->anon_advice);
	write_anon();
	if (own_spec->anon_advice == MADV_PAGEOUT)
		page_out(mem.anon, len);
	if (own_spec->lock && mlock(mem.anon, len))
		_exit(1);
}

static inline void make_file(int fd)
{
	char buf[psize()];

	if (own_spec->read_only)
		fd = reopen(fd, O_RDONLY);
	for (int n = 0; n <= own_spec->twice; n++) {
		mem.file[n] = map_aligned(own_spec->file, own_spec->prot ?: PROT_READ,
					  own_spec->flags ?: MAP_SHARED, fd,
					  own_spec->advice);
		touch_file(mem.file[n]);
		if (own_spec->advice == MADV_HUGEPAGE)
			disable_khugepaged(mem.file[n], own_spec->file * psize());
		if (own_spec->lock && mlock(mem.file[n], own_spec->file * psize()))
			_exit(1);
	}
	for (long i = 0; own_spec->dirty && i < own_spec->file; i += own_spec->dirty) {
		fill_page(own_spec->by_write ? buf : mem.file[0] + i * psize(), i, 1);
		if (own_spec->by_write && pwrite(fd, buf, psize(), i * psize()) != psize())
			_exit(1);
	}
}

static inline void *thread_main(void *unused)
{
	while (!own_spec->faulting)
		pause();
	for (;;) {
		if (own_spec->anon) {
			madvise(mem.anon, own_spec->anon * psize(), MADV_DONTNEED);
			write_anon();
		}
		if (own_spec->file) {
			madvise(mem.file[0], own_spec->file * psize(), MADV_DONTNEED);
			touch_file(mem.file[0]);
		}
	}
	return NULL;
}

static inline void answer_checks(int sock)
{
	struct report report = {
		.pid = getpid(),
		.large = own_spec->file && is_large(mem.file[0]),
	};
	char c;

	if (write(sock, &report, sizeof(report)) != sizeof(report))
		_exit(1);
	while (read(sock, &c, 1) == 1) {
		c = anon_intact();
		if (write(sock, &c, 1) != 1)
			break;
	}
	_exit(0);
}

static inline int sharer_main(void *unused)
{
	answer_checks(mem.sock[1]);
	return 0;
}

static inline void victim_main(const struct spec *spec, int fd)
{
	pthread_t thread;

	own_spec = spec;
	if (spec->cpu)
		run_on_cpu(spec->cpu - 1);
	if (spec->anon)
		make_anon();
	if (spec->file)
		make_file(fd);
	drain_lru_batches();
	for (int i = 0; i < spec->threads; i++) {
		if (pthread_create(&thread, NULL, thread_main, NULL))
			_exit(1);
	}
	if (spec->sharer)
		clone_vm(sharer_main, NULL, CLONE_PARENT | SIGCHLD);
	answer_checks(mem.sock[0]);
}

static inline void wait_for_report(struct __test_metadata *_metadata, struct victim *v,
				   struct proc *p)
{
	struct report report;

	ASSERT_EQ((ssize_t)sizeof(report), read(p->sock, &report, sizeof(report))) {
		TH_LOG("The victim could not be set up");
	}
	v->large |= report.large;
	if (!p->pid) {
		p->pid = report.pid;
		p->pidfd = sys_pidfd_open(p->pid, 0);
	}
	ASSERT_GE(p->pidfd, 0);
}

static inline void spawn(struct __test_metadata *_metadata, struct env *env,
			 const struct spec *spec, struct victim *v)
{
	int sock[2], sharer[2];

	memset(v, 0, sizeof(*v));
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sock));
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sharer));
	v->proc.pid = fork_into_cgroup(env, &v->proc.pidfd);
	ASSERT_GE(v->proc.pid, 0);
	if (!v->proc.pid) {
		close(sock[1]);
		close(sharer[1]);
		mem.sock[0] = sock[0];
		mem.sock[1] = sharer[0];
		victim_main(spec, env->fd);
	}
	close(sock[0]);
	close(sharer[0]);
	v->proc.sock = sock[1];
	v->sharer.sock = sharer[1];
	if (spec->sharer)
		wait_for_report(_metadata, v, &v->sharer);
	wait_for_report(_metadata, v, &v->proc);
}

/* Return true if the process is alive and its memory intact. */
static inline bool is_intact(struct proc *p)
{
	char c = 0;

	return send(p->sock, &c, 1, MSG_NOSIGNAL) == 1 &&
	       recv(p->sock, &c, 1, 0) == 1 && c;
}

static inline void close_victim(struct victim *v)
{
	close(v->proc.pidfd);
	close(v->proc.sock);
	close(v->sharer.sock);
	if (v->sharer.pid)
		close(v->sharer.pidfd);
}

/* All threads have left the mm when this returns. */
static inline void become_zombie(struct __test_metadata *_metadata, struct proc *p)
{
	siginfo_t info;

	ASSERT_EQ(0, kill(p->pid, SIGKILL));
	ASSERT_EQ(0, waitid(P_PID, p->pid, &info, WEXITED | WNOWAIT));
}

/* The victim uses at least the memory of @spec. */
static inline void check_memory_used(struct __test_metadata *_metadata, const struct env *env,
				     const struct spec *spec)
{
	struct usage usage = measure(env);

	ASSERT_GE(usage.charge + usage.swap, spec->anon * psize());
	if (spec->file)
		ASSERT_GE(usage.cache, spec->file / (spec->step ?: 1));
}

/* Seize a process and kill it. It stops in its exit, before it leaves the mm. */
static inline void stop_in_exit(struct __test_metadata *_metadata, struct proc *p)
{
	int status;

	ASSERT_EQ(0, ptrace(PTRACE_SEIZE, p->pid, 0, PTRACE_O_TRACEEXIT));
	ASSERT_EQ(0, kill(p->pid, SIGKILL));
	ASSERT_EQ(p->pid, waitpid(p->pid, &status, 0));
	ASSERT_EQ(SIGTRAP | PTRACE_EVENT_EXIT << 8, status >> 8);
}

#endif
