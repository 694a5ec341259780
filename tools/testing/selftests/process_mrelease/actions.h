/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the processes of procs.h do before and during the call.
 */
#ifndef SELFTESTS_PROCESS_MRELEASE_ACTIONS_H
#define SELFTESTS_PROCESS_MRELEASE_ACTIONS_H

#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <sys/ptrace.h>
#include <sys/resource.h>

#include "procs.h"

#define AREA		1024L	/* pages that a busy victim moves */
#define CHUNK		64L	/* pages that a busy victim unmaps at once */
#define HUGE		(2L << 20)

static inline int spin(void)
{
	for (;;)
		;
	return 0;
}

static inline int exit_after(void *us)
{
	usleep((long)us);
	_exit(0);
}

static inline int make_sharers(void)
{
	for (int nr = 0;; nr++) {
		run_in_mm(exit_after, nr % 4 * 500, SIGCHLD);
		while (waitpid(-1, NULL, nr < 8 ? WNOHANG : 0) > 0 && nr >= 8)
			nr--;
	}
	return 0;
}

/* Each sharer starts the next one and exits. */
static inline int start_next_sharer(void *unused)
{
	run_in_mm(start_next_sharer, 0, SIGCHLD);
	_exit(0);
}

static inline int make_successive_sharers(void)
{
	run_in_mm(start_next_sharer, 0, SIGCHLD);
	return sleep_forever(NULL);
}

static inline int vfork_loop(void)
{
	for (int nr = 0;; nr++) {
		pid_t pid = run_in_mm(exit_after, nr % 4 * 500, CLONE_VFORK | SIGCHLD);

		waitpid(pid, NULL, 0);
	}
	return 0;
}

static inline void *exit_thread(void *unused)
{
	return NULL;
}

static inline void *thread_loop(void *unused)
{
	pthread_t thread;

	for (;;) {
		if (!pthread_create(&thread, NULL, exit_thread, NULL))
			pthread_join(thread, NULL);
	}
	return NULL;
}

static inline int make_threads(void)
{
	pthread_t thread;

	for (int i = 0; i < 2; i++)
		pthread_create(&thread, NULL, thread_loop, NULL);
	thread_loop(NULL);
	return 0;
}

static inline void exit_leader(void)
{
	exit_as_leader(0);
}

static inline void start_sqpoll(void)
{
	struct io_uring_params params = {
		.flags = IORING_SETUP_SQPOLL, .sq_thread_idle = 100000,
	};

	if (syscall(__NR_io_uring_setup, 8, &params) < 0)
		_exit(EXIT_UNSUPPORTED);
}

/* A request that never completes and uses no memory of the victim. */
static inline void begin_aio(void)
{
	struct iocb cb = { .aio_lio_opcode = IOCB_CMD_POLL, .aio_buf = POLLIN };
	struct iocb *list[] = { &cb };
	aio_context_t ctx = 0;
	int fds[2];

	if (pipe(fds))
		_exit(EXIT_UNSUPPORTED);
	cb.aio_fildes = fds[0];
	if (syscall(SYS_io_setup, 8, &ctx) || syscall(SYS_io_submit, ctx, 1, list) != 1)
		_exit(EXIT_UNSUPPORTED);
}

static inline int dump_core(void)
{
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };

	if (setrlimit(RLIMIT_CORE, &limit))
		_exit(EXIT_UNSUPPORTED);
	signal(SIGSEGV, SIG_DFL);
	raise(SIGSEGV);
	return 0;
}

static inline bool trace(struct env *env)
{
	int status;

	return !ptrace(PTRACE_SEIZE, procs[0].pid, 0, PTRACE_O_TRACEEXIT) &&
	       !ptrace(PTRACE_INTERRUPT, procs[0].pid, 0, 0) &&
	       waitpid(procs[0].pid, &status, 0) == procs[0].pid && WIFSTOPPED(status);
}

/* The victim stops again in its exit, before it leaves the mm. */
static inline bool stop_tracing(struct env *env)
{
	int status;

	while (waitpid(procs[0].pid, &status, 0) == procs[0].pid && WIFSTOPPED(status))
		ptrace(PTRACE_CONT, procs[0].pid, 0, 0);
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

static inline char *map_area(long pages)
{
	char *p = map_aligned(pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			      -1, 0);

	for (long i = 0; i < pages; i++)
		p[i * psize()] = i | 1;
	return p;
}

static inline int unmap_and_lock(void)
{
	char *p = map_area(CHUNK);

	for (;;) {
		madvise(p, CHUNK * psize(), MADV_DONTNEED);
		mlock(p, CHUNK * psize());
		mprotect(p, CHUNK * psize(), PROT_READ);
		munlock(p, CHUNK * psize());
		munmap(p + psize(), psize());
		mmap(p, CHUNK * psize(), PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	}
	return 0;
}

/* Move by one page, so that the offset in the page table changes. */
static inline int move_mapping(void)
{
	char *from = map_area(AREA), *to = map_area(AREA + 1) + psize(), *tmp;

	for (;;) {
		mremap(from, AREA * psize(), AREA * psize(), MREMAP_MAYMOVE | MREMAP_FIXED, to);
		tmp = from;
		from = to;
		to = tmp;
	}
	return 0;
}

static char *long_area;
static int long_fd;

static inline void map_long_file(void)
{
	if (mmap(long_area, AREA * psize(), PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_FIXED | MAP_POPULATE, long_fd, 0) == MAP_FAILED)
		_exit(1);
}

static inline void map_long_area(void)
{
	long_area = map_area(10 * AREA);
	long_fd = make_memfd();
	/* What is moved must not be merged with what is between. */
	if (ftruncate(long_fd, AREA * psize()) ||
	    mprotect(long_area + AREA * psize(), 8 * AREA * psize(), PROT_READ))
		_exit(1);
	map_long_file();
}

/*
 * mremap() unmaps the file at the destination first, which takes long. A reaper walks
 * upwards: it passes the destination before the memory arrives there, and comes to the
 * source when the memory has left.
 */
static inline int move_past_reaper(void)
{
	const long len = AREA * psize();
	char *low = long_area, *high = low + 9 * len;

	for (;;) {
		map_long_file();
		mremap(high, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, low);
		mremap(low, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, high);
	}
	return 0;
}

static inline int collapse(void)
{
	char *p = map_area(4 * HUGE / psize());

	for (;;) {
		for (long i = 0; i < 4; i++) {
			madvise(p + i * HUGE, HUGE, MADV_COLLAPSE);
			madvise(p + i * HUGE, psize(), MADV_DONTNEED);
			p[i * HUGE] = 1;
		}
	}
	return 0;
}

static inline int open_uffd(char *p, long pages)
{
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ||
	    uffd_register(uffd, p, pages * psize(), true, false, false))
		_exit(EXIT_UNSUPPORTED);
	return uffd;
}

static char *uffd_area;
static int uffd;

static inline void register_area(void)
{
	uffd_area = map_area(AREA);
	madvise(uffd_area, AREA * psize(), MADV_NOHUGEPAGE);
	uffd = open_uffd(uffd_area, AREA);
}

static inline void *serve_faults(void *unused)
{
	char page[psize()];
	struct uffd_msg msg;

	memset(page, 1, sizeof(page));
	while (read(uffd, &msg, sizeof(msg)) == sizeof(msg)) {
		struct uffdio_copy copy = {
			.dst = msg.arg.pagefault.address & -psize(),
			.src = (uintptr_t)page, .len = psize(),
		};

		ioctl(uffd, UFFDIO_COPY, &copy);
	}
	return NULL;
}

static inline int fault_in_userspace(void)
{
	pthread_t thread;

	pthread_create(&thread, NULL, serve_faults, NULL);
	for (long i = 0;; i = (i + CHUNK) % AREA) {
		madvise(uffd_area + i * psize(), CHUNK * psize(), MADV_DONTNEED);
		for (long j = i; j < i + CHUNK; j++)
			FORCE_READ(uffd_area[j * psize()]);
	}
	return 0;
}

/* Move the upper half to the lower half and back. */
static inline int move_pages_by_uffd(void)
{
#ifdef UFFDIO_MOVE
	long half = AREA / 2 * psize();
	struct uffdio_move move = {
		.dst = (uintptr_t)uffd_area, .src = (uintptr_t)uffd_area + half,
		.len = half,
	};

	madvise(uffd_area, half, MADV_DONTNEED);
	for (;;) {
		__u64 dst = move.dst;

		ioctl(uffd, UFFDIO_MOVE, &move);
		move.dst = move.src;
		move.src = dst;
	}
#endif
	return 0;
}

static inline int fork_storm(void)
{
	for (int nr = 0;; nr++) {
		if (!fork()) {
			*(long *)(mm.anon + nr % PAGES * psize()) = 0;
			if (nr % 3)
				_exit(0);
			usleep(300);
		}
		while (waitpid(-1, NULL, nr < 8 ? WNOHANG : 0) > 0 && nr >= 8)
			nr--;
	}
	return 0;
}

static inline void *exec_self(void *unused)
{
	execl("/proc/self/exe", "exec", NULL);
	_exit(1);
}

/* The leader or another thread executes the program again. Its main() calls exec_loop(). */
static inline int exec_loop(void)
{
	pthread_t thread;

	map_area(AREA);
	if (now_us() & 1)
		exec_self(NULL);
	pthread_create(&thread, NULL, exec_self, NULL);
	return sleep_forever(NULL);
}

static inline void map_hugetlb(void)
{
	char *p = mmap(NULL, HUGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);

	if (p == MAP_FAILED)
		_exit(EXIT_UNSUPPORTED);
	*p = 1;
}

/* Pages pinned by a ring, with a kernel thread that uses the mm. */
static inline void register_buffers(void)
{
	struct iovec iov = { map_area(CHUNK), CHUNK * psize() };
	struct io_uring_params params = { };
	int ring = syscall(__NR_io_uring_setup, 8, &params);

	if (ring < 0 || syscall(__NR_io_uring_register, ring, IORING_REGISTER_BUFFERS, &iov, 1))
		_exit(EXIT_UNSUPPORTED);
	start_sqpoll();
}

static inline void swap_out(void)
{
	madvise(mm.anon, PAGES * psize(), MADV_PAGEOUT);
}

static inline bool stop(struct env *env)
{
	return !kill(procs[0].pid, SIGSTOP) && wait_for_state(procs[0].pid, 'T');
}

#endif
