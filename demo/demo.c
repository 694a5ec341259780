// SPDX-License-Identifier: GPL-2.0
/*
 * Runs in the guest: starts victims, kills each the way Android's LMKD does it
 * and with the one call, and measures what has been given back when the last
 * call returns and one second later. CSV on standard output.
 *
 * usage: demo KERNEL CPUS REPETITIONS DATABASE
 *
 * The pidfd is opened before the decision to kill, as LMKD has it from the
 * program's start. Between the return of the call and the reading nothing is
 * allocated or waited for: after waitpid() the victim's exit has caught up.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

#include "../guest/kill.h"

#define SIZE		(256 * MIB)	/* of a synthetic victim, twice */
#define PIECE		3000		/* bytes of one value in redis */
#define LOAD		(200 * MIB)	/* at most, into redis */
#define SYNTHETIC	"/mnt/file"
#define SOCKET		"/tmp/redis.sock"


/* In KiB. */
struct figures {
	long anon, file, current;
};

static const char *database;

/* Measuring */

static int stat_fd, current_fd, file_fd;

static void measure(struct figures *f)
{
	static char buf[8192], num[32];
	const char *anon;

	/* The anonymous memory is what may still be on its way: first. */
	buf[check(pread(stat_fd, buf, sizeof(buf) - 1, 0))] = 0;
	f->file = file_fd < 0 ? 0 : cached(file_fd) / 1024;
	num[check(pread(current_fd, num, sizeof(num) - 1, 0))] = 0;
	anon = strstr(buf, "anon ");
	if (!anon)
		die("no anon in memory.stat");
	f->anon = strtoull(anon + 5, NULL, 10) / 1024;
	f->current = strtoull(num, NULL, 10) / 1024;
}

static long now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000L + ts.tv_nsec / 1000;
}

/*
 * Where the kernel failed to calibrate the TSC, its clock goes by jiffies: too
 * coarse for one kill, good enough to tell the TSC's rate over half a second.
 */
static double ticks_per_us = 1;

static long ticks(void)
{
#if defined(__x86_64__) || defined(__i386__)
	return __builtin_ia32_rdtsc();
#else
	return now_us();
#endif
}

static long next_edge(void)
{
	long start = now_us(), now;

	while ((now = now_us()) == start)
		;
	return now;
}

static void calibrate(void)
{
	long us = next_edge(), from = ticks();

	usleep(500000);
	us = next_edge() - us;
	ticks_per_us = (double)(ticks() - from) / us;
}

/* Starting victims */

static int to_victim = -1, from_victim = -1;

static pid_t start(const char *const argv[])
{
	int in[2], out[2], fd;
	pid_t pid;

	check(pipe2(in, O_CLOEXEC));
	check(pipe2(out, O_CLOEXEC));
	pid = check(fork());
	if (!pid) {
		/* Its memory, the file's that it is the first to read too. */
		fd = check(open(GROUP "/cgroup.procs", O_WRONLY | O_CLOEXEC));
		check(write(fd, "0", 1));
		check(setpriority(PRIO_PROCESS, 0, 0));
		check(dup2(in[0], 0));
		check(dup2(out[1], 1));
		execvp(argv[0], (char **)argv);
		die("%s", argv[0]);
	}
	close(in[0]);
	close(out[1]);
	to_victim = in[1];
	from_victim = out[0];
	return pid;
}

static void tell(int fd, const char *text)
{
	size_t len = strlen(text);

	if (write(fd, text, len) != (ssize_t)len)
		die("cannot tell it: %s", text);
}

/* Reads until there is a line that says so. */
static void wait_for(int fd, const char *line)
{
	char buf[4096];
	size_t have = 0, len = strlen(line);
	ssize_t n;

	while (have < sizeof(buf)) {
		n = check(read(fd, buf + have, sizeof(buf) - have));
		if (!n)
			break;
		have += n;
		if (have > len && buf[have - 1] == '\n' &&
		    !memcmp(buf + have - 1 - len, line, len))
			return;
	}
	errno = EPROTO;
	die("no \"%s\" but \"%.*s\"", line, (int)have, buf);
}

static void synthetic(const char *path)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	int fd = check(open(path, O_RDONLY));
	char *anon;
	volatile char *file;

	anon = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	file = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
	if (anon == MAP_FAILED || file == MAP_FAILED)
		die("mmap");
	memset(anon, 0x5a, SIZE);
	for (size_t i = 0; i < SIZE; i += page)
		(void)file[i];
	tell(STDOUT_FILENO, "ready\n");
	for (;;)
		pause();
}

static pid_t start_synthetic(void)
{
	const char *const argv[] = { "/proc/self/exe", "-v", SYNTHETIC, NULL };
	pid_t pid = start(argv);

	wait_for(from_victim, "ready");
	return pid;
}

static pid_t start_sqlite(void)
{
	const char *const argv[] = { "sqlite3", "-batch", "-init", "/dev/null",
		"-readonly", database, NULL };
	pid_t pid = start(argv);

	tell(to_victim, "PRAGMA mmap_size = 1000000000;\n"
			"SELECT sum(length(text)) FROM source;\n"
			".print ready\n");
	wait_for(from_victim, "ready");
	return pid;
}

static int connect_to(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = check(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	int tries = 3000;

	strcpy(addr.sun_path, path);
	while (connect(fd, (void *)&addr, sizeof(addr))) {
		if (!tries--)
			die("%s", path);
		usleep(10000);
	}
	return fd;
}

/* The database's bytes, in pieces, as redis-cli --pipe would send them. */
static void load_redis(int sock)
{
	static char in[64 * PIECE], out[64 * (PIECE + 64)];
	int fd = check(open(database, O_RDONLY | O_CLOEXEC));
	unsigned int key = 0;
	size_t done = 0;
	ssize_t n;

	tell(sock, "CLIENT REPLY OFF\r\n");
	while (done < LOAD && (n = check(read(fd, in, sizeof(in)))) > 0) {
		char *p = out, *end = out;

		for (ssize_t i = 0; i + PIECE <= n; i += PIECE) {
			end += sprintf(end, "*3\r\n$3\r\nSET\r\n$15\r\n"
				       "source:%08u\r\n$%d\r\n", key++, PIECE);
			end = mempcpy(end, in + i, PIECE);
			end = mempcpy(end, "\r\n", 2);
		}
		for (; p < end; p += check(write(sock, p, end - p)))
			;
		done += n;
	}
	tell(sock, "CLIENT REPLY ON\r\n");
	wait_for(sock, "+OK\r");
	/* As if it had come from elsewhere. */
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	close(fd);
}

static pid_t start_redis(void)
{
	const char *const argv[] = { "redis-server", "--port", "0",
		"--unixsocket", SOCKET, "--save", "", "--dir", "/tmp",
		"--logfile", "/tmp/redis.log", NULL };
	int sock;
	pid_t pid;

	unlink(SOCKET);
	pid = start(argv);
	sock = connect_to(SOCKET);
	load_redis(sock);
	close(sock);
	return pid;
}

/* Pinning: a copy out of the victim that waits for its target's page. */

struct copy {
	pid_t pid;
	void *to, *from;
};

static void *copy_thread(void *arg)
{
	struct copy *copy = arg;
	struct iovec local = { copy->to, 1 }, remote = { copy->from, 1 };

	process_vm_readv(copy->pid, &local, 1, &remote, 1, 0);
	die("process_vm_readv() has not been held up");
}

static void pinner(pid_t victim, int told)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct copy copy = { .pid = victim };
	struct uffd_msg msg;
	pthread_t thread;
	char path[32];
	FILE *maps;
	int uffd;

	snprintf(path, sizeof(path), "/proc/%d/maps", victim);
	maps = fopen(path, "r");
	if (!maps || fscanf(maps, "%p", &copy.from) != 1)
		die("%s", path);
	fclose(maps);
	copy.to = mmap(NULL, page, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (copy.to == MAP_FAILED)
		die("mmap");
	uffd = check(syscall(SYS_userfaultfd, O_CLOEXEC));
	check(ioctl(uffd, UFFDIO_API, &api));
	reg.range.start = (unsigned long)copy.to;
	reg.range.len = page;
	check(ioctl(uffd, UFFDIO_REGISTER, &reg));
	errno = pthread_create(&thread, NULL, copy_thread, &copy);
	if (errno)
		die("pthread_create");
	/* Only when the fault has come in does the copy hold the mm. */
	check(read(uffd, &msg, sizeof(msg)));
	tell(told, "pinned\n");
	for (;;)
		pause();
}

static pid_t pin(pid_t victim)
{
	int told[2];
	pid_t pid;

	check(pipe2(told, O_CLOEXEC));
	pid = check(fork());
	if (!pid)
		pinner(victim, told[1]);
	close(told[1]);
	wait_for(told[0], "pinned");
	close(told[0]);
	return pid;
}

/* Cases */

static const struct victim {
	const char *name;
	pid_t (*start)(void);
	bool pinned, file;
} victims[] = {
	{ "synthetic", start_synthetic, false, true },
	{ "pinned", start_synthetic, true, true },
	{ "sqlite", start_sqlite, false, true },
	{ "redis", start_redis, false, false },
};

static const char *kernel;
static char machine[128];

static void row(const struct victim *v, enum way way, int rep, int error,
		const char *figures)
{
	printf("%s,%s,%s,%s,%d,%s,%s\n", kernel, machine, v->name,
	       way == LMKD ? "lmkd" : "one", rep,
	       error ? strerrorname_np(error) : "0", figures);
	fflush(stdout);
}

static void one_kill(const struct victim *v, enum way way, int rep, bool has_flag)
{
	struct figures before, at_return, later;
	int pidfd, error, status;
	pid_t pid, pinner = 0;
	char figures[256];
	long start, end;

	file_fd = -1;
	if (v->file) {
		file_fd = check(open(v->start == start_sqlite ? database : SYNTHETIC,
				     O_RDONLY | O_CLOEXEC));
		drop(file_fd);
	}
	check(mkdir(GROUP, 0755));
	stat_fd = check(open(GROUP "/memory.stat", O_RDONLY | O_CLOEXEC));
	current_fd = check(open(GROUP "/memory.current", O_RDONLY | O_CLOEXEC));
	pid = v->start();
	pidfd = check(syscall(SYS_pidfd_open, pid, 0));
	if (v->pinned)
		pinner = pin(pid);
	/* Let it come to rest, and the counters settle. */
	usleep(200000);

	/* On a kernel that has no such flag, nothing happens to the victim. */
	if (!has_flag && rep == 1) {
		error = kill_it(ONE_CALL, pid, pidfd);
		if (!error || check(waitpid(pid, &status, WNOHANG)))
			die("%s: an unknown flag did something", v->name);
		row(v, ONE_CALL, rep, error, ",,,,,,,,,");
	}

	measure(&before);
	start = ticks();
	error = kill_it(way, pid, pidfd);
	end = ticks();
	measure(&at_return);
	usleep(1000000);
	measure(&later);

	snprintf(figures, sizeof(figures), "%.0f,%ld,%ld,%ld,%ld,%ld,%ld,%ld,%ld,%ld",
		 (end - start) / ticks_per_us, before.anon, at_return.anon, later.anon,
		 before.file, at_return.file, later.file,
		 before.current, at_return.current, later.current);
	row(v, way, rep, error, figures);

	if (pinner) {
		if (check(waitpid(pinner, &status, WNOHANG)))
			die("the pinning process ended too early");
		kill(pinner, SIGKILL);
		check(waitpid(pinner, &status, 0));
	}
	/* If the call failed it may be alive, and that is in the figures. */
	send_kill(pidfd);
	check(waitpid(pid, &status, 0));
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		die("%s: ended by itself, %#x", v->name, status);
	close(pidfd);
	close(to_victim);
	close(from_victim);
	close(stat_fd);
	close(current_fd);
	if (file_fd >= 0)
		close(file_fd);
	while (rmdir(GROUP)) {
		if (errno != EBUSY)
			die(GROUP);
		usleep(1000);
	}
}

static void make_file(const char *path)
{
	static char buf[MIB];
	int fd = check(open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));

	memset(buf, 0xa5, sizeof(buf));
	for (size_t done = 0; done < SIZE; done += sizeof(buf))
		if (check(write(fd, buf, sizeof(buf))) != sizeof(buf))
			die("%s", path);
	check(fsync(fd));
	close(fd);
}

static const char *hypervisor(void)
{
	static char name[16] = "no hypervisor";
#if defined(__x86_64__) || defined(__i386__)
	unsigned int a, b, c, d;

	__cpuid(1, a, b, c, d);
	if (c & (1U << 31)) {
		__cpuid(0x40000000, a, b, c, d);
		memcpy(name, &b, 4);
		memcpy(name + 4, &c, 4);
		memcpy(name + 8, &d, 4);
		name[12] = 0;
		if (!strcmp(name, "TCGTCGTCGTCG"))
			return "TCG";
		if (!strcmp(name, "KVMKVMKVM"))
			return "KVM";
	}
#else
	strcpy(name, "unknown");
#endif
	return name;
}

int main(int argc, char **argv)
{
	struct utsname uts;
	struct sysinfo info;
	bool has_flag;

	if (argc == 3 && !strcmp(argv[1], "-v"))
		synthetic(argv[2]);
	if (argc != 5) {
		fprintf(stderr, "usage: demo KERNEL CPUS REPETITIONS DATABASE\n");
		return 2;
	}
	kernel = argv[1];
	database = argv[4];
	if (get_nprocs() != atoi(argv[2])) {
		fprintf(stderr, "%d CPUs came up, not %s: no fair comparison\n",
			get_nprocs(), argv[2]);
		return 1;
	}
	signal(SIGPIPE, SIG_IGN);
	/* Not to be short of a page between the return and the reading. */
	check(mlockall(MCL_CURRENT | MCL_FUTURE));
	/* As the thread of LMKD's that kills. */
	check(setpriority(PRIO_PROCESS, 0, -20));

	uname(&uts);
	sysinfo(&info);
	snprintf(machine, sizeof(machine), "%s,%s,%d,%lu", uts.release, hypervisor(),
		 get_nprocs(), info.totalram / MIB * info.mem_unit);
	mrelease(-1, PROCESS_MRELEASE_REAP_KILL);
	has_flag = errno == EBADF;

	calibrate();
	make_file(SYNTHETIC);
	for (size_t i = 0; i < sizeof(victims) / sizeof(*victims); i++) {
		fprintf(stderr, "%s\n", victims[i].name);
		for (int rep = 1; rep <= atoi(argv[3]); rep++) {
			one_kill(&victims[i], LMKD, rep, has_flag);
			if (has_flag)
				one_kill(&victims[i], ONE_CALL, rep, has_flag);
		}
	}
	return 0;
}
