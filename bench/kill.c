// SPDX-License-Identifier: GPL-2.0
/* See kill.h. */
#include "kill.h"

#include <dirent.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <time.h>

#ifndef __NR_process_mrelease
#define __NR_process_mrelease	448
#endif
#ifndef __NR_cachestat
#define __NR_cachestat		451
#endif

#define MODULES		"argparse, asyncio, ctypes, curses, decimal, email, http.client, " \
			"json, lzma, multiprocessing, sqlite3, ssl, unittest, xml.dom.minidom"

const char *const way_name[] = { "lmkd", "one" };
const char *const kind_name[] = { "anon", "huge", "small", "fresh", "ahead", "large" };
enum way best_way;
int file[KINDS] = { -1, -1, -1, -1, -1, -1 };

const struct program programs[] = {
	{ "python3", { "/usr/bin/python3", "-uic", "import " MODULES "; print('ready')" },
	  "", "ready" },
	{ "sqlite3", { "/usr/bin/sqlite3", "-batch", "-init", "/dev/null", "-readonly",
		       "/database" },
	  "PRAGMA mmap_size = 1000000000;\n"
	  "SELECT sum(length(text)) FROM source;\n.print ready\n", "ready" },
	{ "redis-server", { "/usr/bin/redis-server", "--port", "0", "--save", "",
			    "--unixsocket", "/tmp/socket" },
	  "", "eady to accept" },
	{ "cc1", { "/usr/bin/cc1", "-O2", "/source.c", "-o", "/tmp/s" }, "", "f99 " },
};

void result(const char *subject, const char *measure, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	printf("%s,%s,", subject, measure);
	vprintf(fmt, ap);
	putchar('\n');
	va_end(ap);
	fflush(stdout);
}

long now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000L + ts.tv_nsec;
}

void on_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	check(sched_setaffinity(0, sizeof(set), &set));
}

void set(const char *path, const char *text)
{
	int fd = check(open(path, O_WRONLY | O_CLOEXEC));

	if (write(fd, text, strlen(text)) < 0)
		die("%s", path);
	close(fd);
}

long number(const char *path, const char *word, int nth)
{
	static char buf[1 << 16];
	int fd = check(open(path, O_RDONLY | O_CLOEXEC));
	ssize_t len = check(read(fd, buf, sizeof(buf) - 1));
	char *p;

	close(fd);
	buf[len] = 0;
	p = strstr(buf, word);
	if (!p)
		die("no %s in %s", word, path);
	p += strlen(word);
	while (nth--)
		strtol(p, &p, 10);
	return strtol(p, NULL, 10);
}

long charged(void)
{
	static int fd = -1;
	char buf[32] = "";

	if (fd < 0)
		fd = check(open(GROUP "/memory.current", O_RDONLY | O_CLOEXEC));
	check(pread(fd, buf, sizeof(buf) - 1, 0));
	return atol(buf);
}

/* Files */

size_t cached(int fd)
{
	struct { unsigned long long off, len; } range = { 0, 0 };
	struct { unsigned long long cache, dirty, writeback, evicted, recent; } cs;

	check(syscall(__NR_cachestat, fd, &range, &cs, 0));
	return cs.cache * PAGE;
}

void drop(int fd)
{
	for (int tries = 0; cached(fd); tries++) {
		if (tries == 100)
			die("a file stays in the page cache");
		if (tries)
			usleep(20000);
		check(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	}
}

/*
 * Data, or a hole, which is as good: a folio that is full of it has no buffers
 * either. Reading page by page from the emulated disk takes long.
 */
int make_file(const char *path, size_t size, bool hole)
{
	static char buf[MIB];
	int fd = check(open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));

	memset(buf, 0xa5, sizeof(buf));
	check(ftruncate(fd, size));
	for (size_t done = 0; !hole && done < size; done += sizeof(buf))
		if (check(write(fd, buf, sizeof(buf))) != sizeof(buf))
			die("%s", path);
	check(fsync(fd));
	close(fd);
	fd = check(open(path, O_RDONLY | O_CLOEXEC));
	drop(fd);
	return fd;
}

void make_files(const struct victim *v)
{
	char path[32], ahead[64];
	struct stat st;

	check(stat("/mnt", &st));
	snprintf(ahead, sizeof(ahead), "/sys/dev/block/%u:%u/queue/read_ahead_kb",
		 major(st.st_dev), minor(st.st_dev));
	for (enum kind k = SMALL; k < KINDS; k++) {
		if (file[k] >= 0 || !v->size[k])
			continue;
		snprintf(path, sizeof(path), "/mnt/%s", kind_name[k]);
		/* A file has what is set when it is opened. */
		set(ahead, k == LARGE ? "512" : "128");
		file[k] = make_file(path, v->size[k], k < AHEAD);
	}
	/* No readahead, no folios larger than what is asked for. */
	if (file[SMALL] >= 0)
		check(posix_fadvise(file[SMALL], 0, 0, POSIX_FADV_RANDOM));
}

size_t sum_cached(void)
{
	size_t all = 0;

	for (enum kind k = SMALL; k < KINDS; k++)
		if (file[k] >= 0)
			all += cached(file[k]);
	return all;
}

void drop_all(void)
{
	for (enum kind k = SMALL; k < KINDS; k++)
		if (file[k] >= 0)
			drop(file[k]);
}

/* Victims */

void *map(enum kind k, size_t size)
{
	static const int advice[] = { MADV_NOHUGEPAGE, MADV_HUGEPAGE, MADV_NORMAL,
				      MADV_RANDOM, MADV_NORMAL, MADV_NORMAL };
	char byte;
	volatile char *p;

	if (k >= SMALL)
		p = mmap(NULL, size, PROT_READ, MAP_SHARED, file[k], 0);
	else
		p = mmap(NULL, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		die("mmap");
	/* User Mode Linux has no huge pages. */
	if (madvise((void *)p, size, advice[k]) && (k > HUGE || errno != EINVAL))
		die("madvise");
	for (size_t i = 0; i < size; i += PAGE) {
		if (k == SMALL)
			check(pread(file[k], &byte, 1, i));
		if (k >= SMALL)
			(void)p[i];
		else
			p[i] = 1;
	}
	if (k == FRESH)
		check(madvise((void *)p, size, MADV_NORMAL));
	return (void *)p;
}

bool told(int fd)
{
	char byte;

	return check(read(fd, &byte, 1)) == 1;
}

static void thaw(bool thaw)
{
	int fd = check(open("/mnt", O_RDONLY | O_CLOEXEC));

	check(ioctl(fd, thaw ? FITHAW : FIFREEZE, 0));
	close(fd);
}

static void execute(const struct program *p)
{
	check(chroot(PROGRAMS));
	check(chdir("/"));
	execv(p->argv[0], (char **)p->argv);
	die("%s", p->argv[0]);
}

static void hold(const struct victim *v)
{
	if (v->run)
		v->run(v);
	if (v->starved) {
		on_cpu(1);
		check(sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){ }));
	}
	for (enum kind k = 0; k < KINDS; k++)
		if (v->size[k])
			map(k, v->size[k]);
	check(write(1, "ready", 5));
	told(0);
	if (v->frozen)
		check(utimensat(AT_FDCWD, "/mnt", NULL, 0));
	for (;;)
		pause();
}

static void wait_until_ready(const struct victim *v)
{
	static char buf[1 << 16];
	size_t have = 0;

	do {
		ssize_t n = check(read(v->out, buf + have, sizeof(buf) - 1 - have));

		if (!n)
			die("a victim never got ready: %s", buf);
		have += n;
		buf[have] = 0;
	} while (!strstr(buf, v->program ? v->program->ready : "ready"));
}

void start(struct victim *v)
{
	int in[2], out[2];
	char procs[64];

	snprintf(procs, sizeof(procs), "%s/cgroup.procs", v->group ?: GROUP);
	make_files(v);
	check(pipe2(in, O_CLOEXEC));
	check(pipe2(out, O_CLOEXEC));
	v->pid = check(fork());
	if (!v->pid) {
		set(procs, "0");
		check(setpriority(PRIO_PROCESS, 0, 0));
		check(dup2(in[0], 0));
		check(dup2(out[1], 1));
		check(dup2(out[1], 2));
		if (v->program)
			execute(v->program);
		close(in[1]);
		hold(v);
	}
	close(in[0]);
	close(out[1]);
	v->in = in[1];
	v->out = out[0];
	v->pidfd = check(syscall(SYS_pidfd_open, v->pid, 0));
	if (v->program)
		check(write(v->in, v->program->input, strlen(v->program->input)));
	wait_until_ready(v);
	if (v->program) {
		/* What else it says is lost, but it must not wait for us. */
		check(fcntl(v->out, F_SETPIPE_SZ, 1 << 20));
		return;
	}
	if (v->frozen)
		thaw(false);
	check(write(v->in, "", 1));
	/* Let it go to sleep, and the counters settle. */
	usleep(100000);
}

void load_redis(int mib)
{
	struct sockaddr_un addr = { AF_UNIX, PROGRAMS "/tmp/socket" };
	int fd = check(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	char load[128], answer[64] = "";

	snprintf(load, sizeof(load), "EVAL \"for i = 1, %d do redis.call('SET', 'source:' .. i, "
		 "string.rep('x', 3000)) end return 1\" 0\r\n", mib * 350);
	check(connect(fd, (void *)&addr, sizeof(addr)));
	check(write(fd, load, strlen(load)));
	check(read(fd, answer, sizeof(answer) - 1));
	if (strcmp(answer, ":1\r\n"))
		die("redis-server: %s", answer);
	close(fd);
}

int mrelease(int pidfd, unsigned int flags)
{
	return syscall(__NR_process_mrelease, pidfd, flags) ? errno : 0;
}

void hurry(pid_t pid)
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

int kill_victim(enum way way, const struct victim *v)
{
	if (way == ONE_CALL)
		return mrelease(v->pidfd, PROCESS_MRELEASE_REAP_KILL);
	check(syscall(SYS_pidfd_send_signal, v->pidfd, SIGKILL, NULL, 0));
	/* A frozen one cannot hurry. */
	if (!v->frozen)
		hurry(v->pid);
	return mrelease(v->pidfd, 0);
}

void wait_for(struct victim *v)
{
	siginfo_t info = { 0 };
	int status;

	if (v->frozen) {
		check(waitid(P_PID, v->pid, &info, WEXITED | WNOHANG | WNOWAIT));
		if (info.si_pid)
			die("the victim came to run");
		thaw(true);
	}
	check(waitpid(v->pid, &status, 0));
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		die("a victim ended by itself, %#x", status);
	close(v->pidfd);
	close(v->in);
	close(v->out);
}

void bury(struct victim *v)
{
	wait_for(v);
	drop_all();
}
