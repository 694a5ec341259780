// SPDX-License-Identifier: GPL-2.0
/*
 * Runs in the guest: one subcommand for each row of bench/run. Lines of CSV on
 * standard output.
 *
 * Guest time is a count of instructions for some; then the victim does nothing
 * before the last call has returned.
 */
#include "kill.h"

#include <ftw.h>
#include <sys/stat.h>
#include <time.h>

#define NS_PER_INSN	2		/* guest/run --icount */

/*
 * mark(N): a place that profile.c knows by its address. What is run from here is
 * the part N of what is measured, or none of it with 0.
 */
asm(".pushsection .mark, \"ax\", @progbits\n"
    ".balign 16\nmarks: ret\n.balign 16\nret\n.balign 16\nret\n"
    ".popsection");
extern char marks[];

static void mark(int n)
{
	((void (*)(void))(marks + 16 * n))();
}

static void instructions(const char *subject, const char *measure, long since)
{
	result(subject, measure, "%ld", (now_ns() - since) / NS_PER_INSN);
}

/* Only LMKD's way may fail, and only where the victim is not frozen. */
static int must_kill(enum way way, const struct victim *v)
{
	int error = kill_victim(way, v);

	if (error && (way == ONE_CALL || v->frozen))
		die("process_mrelease");
	return error;
}

/*
 * kill KIND MIB REPETITIONS: instructions of the calls on so much of a kind. On
 * each kernel in one way only, for what came before shows, in the allocators.
 */
static void cmd_kill(char **arg)
{
	struct victim v = { .frozen = true };
	enum kind k = 0;
	char name[32];

	while (strcmp(kind_name[k], arg[0]))
		if (++k == KINDS)
			die("no kind %s", arg[0]);
	v.size[k] = atol(arg[1]) * MIB;
	snprintf(name, sizeof(name), "%s %s", kind_name[k], arg[1]);
	for (int i = 0; i < atoi(arg[2]); i++) {
		long begin, end, left;

		start(&v);
		begin = now_ns();
		mark(1);
		must_kill(best_way, &v);
		mark(0);
		end = now_ns();
		result(name, way_name[best_way], "%ld", (end - begin) / NS_PER_INSN);
		if (k >= SMALL) {
			left = cached(file[k]);
			result(name, "left %", "%.1f", 100.0 * left / v.size[k]);
			if (left && best_way == LMKD) {
				begin += now_ns() - end;
				mark(2);
				check(posix_fadvise(file[k], 0, 0, POSIX_FADV_DONTNEED));
				mark(0);
				instructions(name, "lmkd+fadvise", begin);
				if (cached(file[k]))
					die("not all has been dropped");
			}
		}
		bury(&v);
	}
}

/* ordinary REPETITIONS: instructions of what must not get slower. */

static void *two[2];

static void map_two(size_t size)
{
	two[0] = map(ANON, size);
	two[1] = map(SMALL, size);
}

/* A child that holds as much and waits for a byte. */
static pid_t wait_with(size_t size, int *tell)
{
	int go[2], ready[2];
	pid_t pid;

	check(pipe2(go, O_CLOEXEC));
	check(pipe2(ready, O_CLOEXEC));
	pid = check(fork());
	if (!pid) {
		close(go[1]);
		map_two(size);
		check(write(ready[1], "", 1));
		told(go[0]);
		_exit(0);
	}
	close(go[0]);
	close(ready[1]);
	told(ready[0]);
	close(ready[0]);
	*tell = go[1];
	/* Until it sleeps. */
	usleep(10000);
	return pid;
}

static void fork_and_exec(int times)
{
	pid_t pid;

	for (int i = 0; i < times; i++) {
		pid = check(fork());
		if (!pid) {
			execl("/proc/self/exe", "bench", "true", NULL);
			_exit(1);
		}
		check(waitpid(pid, NULL, 0));
	}
}

static void cmd_ordinary(char **arg)
{
	const size_t size = 8 * MIB;
	struct victim v = { .size[ANON] = size, .size[SMALL] = size, .frozen = true };
	int fd, tell;
	long begin;
	pid_t pid;
	char byte;

	set("/proc/sys/kernel/printk", "1");
	set("/proc/sys/vm/oom_dump_tasks", "0");
	make_files(&v);
	for (int i = 0; i < atoi(arg[0]); i++) {
		pid = wait_with(size, &tell);
		begin = now_ns();
		close(tell);
		check(waitpid(pid, NULL, 0));
		instructions("exit", "instructions", begin);

		map_two(size);
		begin = now_ns();
		for (int j = 0; j < 2; j++)
			check(madvise(two[j], size, MADV_DONTNEED));
		instructions("MADV_DONTNEED", "instructions", begin);
		for (int j = 0; j < 2; j++)
			check(munmap(two[j], size));

		map_two(size);
		begin = now_ns();
		for (int j = 0; j < 2; j++)
			check(munmap(two[j], size));
		instructions("munmap", "instructions", begin);

		fd = make_file("/mnt/truncate", size, true);
		check(posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM));
		for (size_t at = 0; at < size; at += PAGE)
			check(pread(fd, &byte, 1, at));
		begin = now_ns();
		check(truncate("/mnt/truncate", 0));
		instructions("truncate", "instructions", begin);
		close(fd);

		/* Short, so let the allocators forget what truncate() freed. */
		fork_and_exec(50);
		begin = now_ns();
		fork_and_exec(50);
		result("fork+exec+exit", "instructions", "%ld",
		       (now_ns() - begin) / 50 / NS_PER_INSN);

		/* The kernel kills the largest, for no other reason. */
		pid = wait_with(size, &tell);
		begin = now_ns();
		set("/proc/sysrq-trigger", "f");
		check(waitpid(pid, &tell, 0));
		instructions("OOM kill", "instructions", begin);
		if (!WIFSIGNALED(tell))
			die("there was no OOM kill");

		start(&v);
		begin = now_ns();
		must_kill(LMKD, &v);
		instructions("process_mrelease(0)", "instructions", begin);
		wait_for(&v);
	}
}

static size_t sum(const struct victim *v, enum kind from)
{
	size_t all = 0;

	for (enum kind k = from; k < KINDS; k++)
		all += v->size[k];
	return all;
}

static const struct mix {
	const char *name;
	struct victim v;
} mixes[] = {
	{ "anon", { .size[ANON] = 128 * MIB } },
	{ "file", { .size[SMALL] = 128 * MIB } },
	{ "all kinds", { .size = { 32 * MIB, 32 * MIB, 32 * MIB, 32 * MIB, 32 * MIB } } },
};

/*
 * Kills while the victim's exit may run concurrently. Reports what is free at the
 * return of the last call, and the time until 99 % is free, which is looked for
 * every @nap us, for @limit s.
 */
static void timed_kill(const char *name, enum way way, const struct victim *v, int nap,
		       int limit)
{
	const size_t all = sum(v, 0), files = sum(v, SMALL);
	long before, begin, end, freed;
	size_t left;
	int error;

	before = charged();
	begin = now_ns();
	error = must_kill(way, v);
	end = now_ns();
	left = sum_cached();
	freed = before - charged();
	result(name, "call ms", "%.2f", (end - begin) / 1e6);
	result(name, "result", "%s", error ? strerrorname_np(error) : "0");
	result(name, "free at return %", "%.1f", freed > (long)all ? 100 : 100.0 * freed / all);
	if (files)
		result(name, "file free at return %", "%.1f", 100.0 * (files - left) / files);
	while (freed < (long)(all / 100 * 99) && end - begin < limit * 1000000000L) {
		if (nap)
			usleep(nap);
		freed = before - charged();
		end = now_ns();
	}
	if (freed < (long)(all / 100 * 99))
		result(name, "all free ms", "never");
	else
		result(name, "all free ms", "%.2f", (end - begin) / 1e6);
}

/* wall REPETITIONS: victims of several kinds of memory on an idle machine. */
static void cmd_wall(char **arg)
{
	check(setpriority(PRIO_PROCESS, 0, -20));
	for (size_t m = 0; m < sizeof(mixes) / sizeof(*mixes); m++) {
		for (int i = 0; i < atoi(arg[0]); i++) {
			struct victim v = mixes[m].v;

			start(&v);
			timed_kill(mixes[m].name, best_way, &v, 0, 1);
			bury(&v);
		}
	}
}

static void busy_loop(const struct victim *v, int go)
{
	/* In the victim's cgroup, so that its own priority counts. */
	set(GROUP "/cgroup.procs", "0");
	check(setpriority(PRIO_PROCESS, 0, 0));
	if (v->starved)
		on_cpu(1);
	told(go);
	/* By then the victim's exit has begun. */
	if (v->starved)
		usleep(4000);
	for (;;)
		;
}

/*
 * busy starved|crowded REPETITIONS: kills beside busy loops, each way in turn.
 * starved: four loops, which start on the victim's CPU 4 ms after the kill.
 * crowded: 20 loops, which run already, and an ordinary victim.
 */
static void cmd_busy(char **arg)
{
	const bool starved = !strcmp(arg[0], "starved");
	const int loops = starved ? 4 : 20;
	pid_t loop[20];
	int go[2];

	check(setpriority(PRIO_PROCESS, 0, -20));
	if (starved)
		on_cpu(0);
	for (int i = 0; i < atoi(arg[1]) * (best_way == ONE_CALL ? 2 : 1); i++) {
		const enum way way = i % 2 ? best_way : LMKD;
		struct victim v = { .size[ANON] = 256 * MIB, .starved = starved };

		check(pipe2(go, O_CLOEXEC));
		for (int j = 0; j < loops; j++) {
			loop[j] = check(fork());
			if (!loop[j])
				busy_loop(&v, go[0]);
		}
		start(&v);
		for (int j = 0; j < loops; j++)
			check(write(go[1], "", 1));
		if (!starved)
			usleep(100000);
		timed_kill(way_name[way], way, &v, 100, 60);
		for (int j = 0; j < loops; j++) {
			check(kill(loop[j], SIGKILL));
			check(waitpid(loop[j], NULL, 0));
		}
		close(go[0]);
		close(go[1]);
		bury(&v);
	}
}

/* held: the memory that is still held, over the microseconds since the kill. */
static void cmd_held(char **arg)
{
	struct victim v = { .size = { 64 * MIB, 0, 64 * MIB, 0, 64 * MIB } };
	struct sched_param highest = { .sched_priority = 1 };
	struct sample { long ns, bytes; } *sample;
	const int max = 1000;
	long *begin, before;
	pid_t pid;

	(void)arg;
	sample = mmap(NULL, max * sizeof(*sample) + PAGE, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (sample == MAP_FAILED)
		die("mmap");
	begin = &sample[max].ns;
	check(setpriority(PRIO_PROCESS, 0, -20));
	start(&v);
	before = charged();
	pid = check(fork());
	if (!pid) {
		check(sched_setscheduler(0, SCHED_FIFO, &highest));
		for (int i = 0; i < max; i++) {
			sample[i].bytes = charged();
			sample[i].ns = now_ns();
			usleep(500);
		}
		_exit(0);
	}
	usleep(10000);
	*begin = now_ns();
	must_kill(best_way, &v);
	check(waitpid(pid, NULL, 0));
	bury(&v);
	for (int i = 0; i < max; i++) {
		char us[32];

		snprintf(us, sizeof(us), "%ld", (sample[i].ns - *begin) / 1000);
		result("MiB", us, "%.2f", (sample[i].bytes - before + (long)sum(&v, 0)) /
		       (double)MIB);
	}
}

/* crowd REPETITIONS: a small victim among few and among many processes. */

static int bystander(void *arg)
{
	for (;;)
		syscall(SYS_pause);
	return !arg;
}

static void cmd_crowd(char **arg)
{
	static const int crowd[] = { 100, 30000 };
	const size_t stack = KIB;
	int have = 0;
	char *stacks;

	set("/proc/sys/kernel/pid_max", "100000");
	set("/proc/sys/kernel/threads-max", "100000");
	stacks = mmap(NULL, crowd[1] * stack, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (stacks == MAP_FAILED)
		die("mmap");
	check(madvise(stacks, crowd[1] * stack, MADV_DONTFORK));
	for (int c = 0; c < 2; c++) {
		char name[16];

		/* Processes of one mm, which is not the victim's. */
		for (; have < crowd[c]; have++)
			check(clone(bystander, stacks + (have + 1) * stack,
				    CLONE_VM | SIGCHLD, NULL));
		snprintf(name, sizeof(name), "%d", crowd[c]);
		usleep(1000000);
		for (int i = 0; i < atoi(arg[0]); i++) {
			struct victim v = { .size[ANON] = MIB, .frozen = true };
			long begin;

			start(&v);
			begin = now_ns();
			must_kill(best_way, &v);
			instructions(name, way_name[best_way], begin);
			bury(&v);
		}
	}
}

/*
 * latency REPETITIONS: what another process waits for while a large victim is
 * reaped on the same and only CPU. A timer wakes it up, it preempts what it may
 * preempt, and then it reads a page of the same file system, not cached (a hole:
 * no disk has a say) and cached, or gets and returns a little memory. The time since
 * the timer should have gone off has all in it for which the reaper keeps
 * interrupts off, is not to be preempted, or holds a lock.
 */

enum other { WAKE_UP, COLD_READ, CACHED_READ, ALLOCATION, OTHERS };

#define PERIOD		250000		/* ns */
#define LATENCIES	(1 << 15)

struct latency {
	volatile bool begin, end;
	unsigned int n[OTHERS];
	unsigned int ns[OTHERS][LATENCIES];
};

static void one_of(enum other other, int fd, off_t *at)
{
	char buf[PAGE], *p;

	switch (other) {
	case COLD_READ:
		*at += PAGE;
		check(pread(fd, buf, PAGE, *at));
		break;
	case CACHED_READ:
		check(pread(fd, buf, PAGE, *at));
		break;
	case ALLOCATION:
		p = mmap(NULL, 64 * KIB, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
		if (p == MAP_FAILED)
			die("mmap");
		check(munmap(p, 64 * KIB));
		break;
	default:
		break;
	}
}

static void others(struct latency *l, int fd)
{
	struct sched_param highest = { .sched_priority = 1 };
	struct timespec wake;
	off_t at = 0;

	check(mlockall(MCL_CURRENT));
	check(sched_setscheduler(0, SCHED_FIFO, &highest));
	check(clock_gettime(CLOCK_MONOTONIC, &wake));
	for (enum other other = 0; !l->end; other = (other + 1) % OTHERS) {
		unsigned int late;

		wake.tv_nsec += PERIOD;
		wake.tv_sec += wake.tv_nsec / 1000000000;
		wake.tv_nsec %= 1000000000;
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL);
		one_of(other, fd, &at);
		late = now_ns() - (wake.tv_sec * 1000000000 + wake.tv_nsec);
		if (l->begin && l->n[other] < LATENCIES)
			l->ns[other][l->n[other]++] = late;
	}
	_exit(0);
}

static int compare(const void *a, const void *b)
{
	const unsigned int *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static void cmd_latency(char **arg)
{
	static const char *const name[] = { "wake-up", "cold read", "cached read",
					    "allocation" };
	struct latency *l;

	l = mmap(NULL, sizeof(*l), PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (l == MAP_FAILED)
		die("mmap");
	for (int i = 0; i < atoi(arg[0]); i++) {
		struct victim v = { .size = { 256 * MIB, 0, 256 * MIB, 256 * MIB,
					      256 * MIB } };
		int fd = make_file("/mnt/other", 256 * MIB, true);
		pid_t pid;

		check(posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM));
		start(&v);
		l->begin = l->end = false;
		pid = check(fork());
		if (!pid)
			others(l, fd);
		usleep(20000);
		l->begin = true;
		must_kill(best_way, &v);
		/* All of it, also where the call gives up early. */
		wait_for(&v);
		l->end = true;
		check(waitpid(pid, NULL, 0));
		close(fd);
		drop_all();
	}
	for (enum other other = 0; other < OTHERS; other++) {
		unsigned int n = l->n[other], *ns = l->ns[other];

		qsort(ns, n, sizeof(*ns), compare);
		result(name[other], "times", "%u", n);
		result(name[other], "p50", "%u", ns[n / 2] / NS_PER_INSN);
		result(name[other], "p99", "%u", ns[n * 99 / 100] / NS_PER_INSN);
		result(name[other], "worst", "%u", ns[n - 1] / NS_PER_INSN);
	}
}

/*
 * programs: what a kill drops of what real programs had mapped, and what it
 * costs to start the same program again at once. They are in a directory of
 * their own, which is their root.
 */

static size_t tree_sum;

static int add_cached(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	int fd;

	(void)ftw;
	if (type == FTW_F && S_ISREG(st->st_mode)) {
		fd = check(open(path, O_RDONLY | O_CLOEXEC | O_NOATIME));
		tree_sum += cached(fd);
		close(fd);
	}
	return 0;
}

static double tree_mib(void)
{
	tree_sum = 0;
	check(nftw(PROGRAMS, add_cached, 50, FTW_PHYS));
	return tree_sum / (double)MIB;
}

static double disk_mib(void)
{
	/* Reads, reads merged, sectors. */
	return number("/proc/diskstats", " vda ", 2) * 512.0 / MIB;
}

/* Kills it after its first start, and starts it again at once. */
static void kill_program(const struct program *p, const char *name)
{
	double mib, left;
	long begin, faults;

	set("/proc/sys/vm/drop_caches", "3");
	for (int again = 0; again < 2; again++) {
		struct victim v = { .program = p };

		mib = disk_mib();
		faults = number("/proc/vmstat", "pgmajfault ", 0);
		begin = now_ns();
		start(&v);
		result(name, again ? "again ms" : "first ms", "%.0f", (now_ns() - begin) / 1e6);
		result(name, again ? "again major faults" : "first major faults", "%ld",
		       number("/proc/vmstat", "pgmajfault ", 0) - faults);
		result(name, again ? "again MiB read" : "first MiB read", "%.2f",
		       disk_mib() - mib);
		if (again) {
			check(kill(v.pid, SIGKILL));
		} else {
			mib = tree_mib();
			must_kill(best_way, &v);
			left = tree_mib();
			result(name, "cached MiB", "%.2f", mib);
			result(name, "dropped MiB", "%.2f", mib - left);
		}
		wait_for(&v);
	}
}

static void read_all(int fd, size_t size)
{
	static char buf[MIB];

	for (size_t at = 0; at < size; at += sizeof(buf))
		check(pread(fd, buf, sizeof(buf), at));
}

/* A file that is hot in another process, by read(2), and mapped by the victim. */
static void kill_mapper(void)
{
	static const char name[] = "a file that another read(2)s";
	struct victim v = { .size[LARGE] = 64 * MIB };
	long begin, left;
	double mib;

	start(&v);
	for (int i = 0; i < 3; i++)
		read_all(file[LARGE], v.size[LARGE]);
	must_kill(best_way, &v);
	left = sum_cached();
	wait_for(&v);
	result(name, "cached MiB", "%.2f", v.size[LARGE] / (double)MIB);
	result(name, "dropped MiB", "%.2f", (v.size[LARGE] - left) / (double)MIB);
	mib = disk_mib();
	begin = now_ns();
	read_all(file[LARGE], v.size[LARGE]);
	result(name, "again ms", "%.0f", (now_ns() - begin) / 1e6);
	result(name, "again MiB read", "%.2f", disk_mib() - mib);
	drop_all();
}

static void cmd_programs(char **arg)
{
	for (int i = 0; i < atoi(arg[0]); i++) {
		for (int p = 0; p < NR_PROGRAMS; p++)
			kill_program(&programs[p], programs[p].name);
		kill_mapper();
	}
	/* Beside another one, little is the victim's alone. */
	for (int i = 0; i < atoi(arg[0]); i++) {
		struct victim other = { .program = &programs[PYTHON] };

		start(&other);
		kill_program(other.program, "python3 beside another");
	}
}

static const struct {
	const char *name;
	void (*run)(char **arg);
	int args;
} commands[] = {
	{ "kill", cmd_kill, 3 },
	{ "ordinary", cmd_ordinary, 1 },
	{ "wall", cmd_wall, 1 },
	{ "busy", cmd_busy, 2 },
	{ "held", cmd_held, 0 },
	{ "crowd", cmd_crowd, 1 },
	{ "latency", cmd_latency, 1 },
	{ "programs", cmd_programs, 1 },
	{ "demo", cmd_demo, 2 },
	{ "pressure", cmd_pressure, 4 },
};

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "true"))
		return 0;
	if (mrelease(-1, PROCESS_MRELEASE_REAP_KILL) == EBADF)
		best_way = ONE_CALL;
	mkdir(GROUP, 0755);
	for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++) {
		if (argc == 2 + commands[i].args && !strcmp(argv[1], commands[i].name)) {
			commands[i].run(argv + 2);
			return 0;
		}
	}
	fprintf(stderr, "no such command\n");
	return 2;
}
