// SPDX-License-Identifier: GPL-2.0
/*
 * Process 1 of the guest: sets things up, runs one program, tells the host how
 * it ended.
 *
 * The ports to the host can be opened once, and are, here, before the program
 * starts: it gets pipes, and has no way to a status of its own making.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/wait.h>
#include <unistd.h>

/* As guest/run numbers them. */
enum { STATUS = 1, OUT, ERR, IN };

static int port[IN + 1];

static void put(int fd, const char *buf, size_t len)
{
	while (len) {
		ssize_t n = write(fd, buf, len);

		if (n < 0 && errno != EINTR)
			return;
		if (n > 0) {
			buf += n;
			len -= n;
		}
	}
}

__attribute__((format(printf, 1, 2)))
static void report(const char *fmt, ...)
{
	char line[256];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(line, sizeof(line) - 1, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof(line) - 2)
		n = sizeof(line) - 2;
	line[n++] = '\n';
	put(port[STATUS] > 0 ? port[STATUS] : STDERR_FILENO, line, n);
	/* QEMU takes this for the end, on all machines. */
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

#define check(call) \
	do { \
		if ((call) < 0) \
			report("failed %s: %s", #call, strerror(errno)); \
	} while (0)

static void set(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd >= 0) {
		put(fd, text, strlen(text));
		close(fd);
	}
}

/*
 * Not every machine finds its devices in the order in which QEMU names them: the
 * disk's letter is also its serial number. UML's have none.
 */
static const char *find_disk(const char *name)
{
	static char path[32];
	char serial;
	int fd;

	for (char letter = 'a'; letter <= 'h'; letter++) {
		snprintf(path, sizeof(path), "/sys/block/vd%c/serial", letter);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (read(fd, &serial, 1) == 1 && serial == name[strlen(name) - 1]) {
			close(fd);
			snprintf(path, sizeof(path), "/dev/vd%c", letter);
			return path;
		}
		close(fd);
	}
	return name;
}

static void open_port(int nr, int flags)
{
	static const char *const file[] = { [STATUS] = "status", "out", "err" };
	const char *host = getenv("guest_host");
	char path[32];
	int tries = 50000;

	if (host) {
		/* User Mode Linux: the host's files, directly */
		snprintf(path, sizeof(path), "/run/%s", file[nr]);
		flags |= O_APPEND | O_SYNC;
	} else {
		/* The first number is that of the virtio device. */
		snprintf(path, sizeof(path), "/dev/vport?p%d", nr);
	}
	/* The driver makes the ports when the host has told it of them. */
	for (int n = 0; (port[nr] = open(path, flags | O_CLOEXEC)) < 0 && tries--; n++) {
		if (!host)
			path[strlen("/dev/vport")] = '0' + n % 8;
		usleep(200);
	}
	if (port[nr] < 0)
		report("failed %s: %s", path, strerror(errno));
}

static void mount_all(void)
{
	static const struct {
		const char *type, *dir, *options;
	} table[] = {
		{ "proc", "/proc" },
		{ "sysfs", "/sys" },
		{ "devtmpfs", "/dev" },
		{ "devpts", "/dev/pts", "ptmxmode=666" },
		{ "tmpfs", "/dev/shm" },
		{ "mqueue", "/dev/mqueue" },
		{ "cgroup2", "/sys/fs/cgroup" },
		{ "tracefs", "/sys/kernel/tracing" },
		{ "debugfs", "/sys/kernel/debug" },
	};

	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
		mkdir(table[i].dir, 0755);
		/* Not every configuration has every one of them. */
		if (mount(table[i].type, table[i].dir, table[i].type, 0,
			  table[i].options) && errno != ENODEV && errno != ENOENT)
			report("failed mounting %s: %s", table[i].dir,
			       strerror(errno));
	}
	if (getenv("guest_host"))
		check(mount("host", "/run", "hostfs", 0, getenv("guest_host")));
	symlink("/proc/self/fd", "/dev/fd");
	symlink("fd/0", "/dev/stdin");
	symlink("fd/1", "/dev/stdout");
	symlink("fd/2", "/dev/stderr");
}

static void set_up(void)
{
	const char *fs = getenv("guest_fs"), *disk = getenv("guest_disk");
	const char *swap = getenv("guest_swap");
	struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (sock >= 0) {
		check(ioctl(sock, SIOCSIFFLAGS, &lo));
		close(sock);
	}
	check(sethostname("guest", 5));
	set("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	set("/sys/fs/cgroup/cgroup.subtree_control", "+cpu");
	set("/sys/fs/cgroup/cgroup.subtree_control", "+io");
	set("/sys/fs/cgroup/cgroup.subtree_control", "+pids");
	if (fs)
		check(mount(find_disk(disk), "/mnt", fs, 0, NULL));
	/* A kernel that knows nothing of swap is a test, too. */
	if (swap && swapon(find_disk(swap), 0))
		check(errno == ENOSYS ? 0 : -1);
}

/* The working directory, then the words of the command, each ended by NUL. */
static char **read_command(char **dir)
{
	static char buf[1 << 20], *argv[1 << 16];
	int fd = open("/.command", O_RDONLY | O_CLOEXEC), n = 0;
	ssize_t len;

	check(fd);
	check(len = read(fd, buf, sizeof(buf) - 1));
	close(fd);
	unlink("/.command");
	*dir = buf;
	for (char *p = buf; (p += strlen(p) + 1) < buf + len;)
		argv[n++] = p;
	return argv;
}

static pid_t start(char **argv, const char *dir, int out, int err)
{
	static char *env[] = {
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh",
		"TERM=dumb", NULL
	};
	sigset_t none;
	int status;
	pid_t pid;

	check(pid = fork());
	if (pid)
		return pid;
	setsid();
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	dup2(port[IN] ? port[IN] : open("/dev/null", O_RDWR | O_CLOEXEC), 0);
	dup2(out, 1);
	dup2(err, 2);
	environ = env;
	check(chdir(dir));
	execvp(argv[0], argv);
	status = errno == ENOENT ? 127 : 126;
	perror(argv[0]);
	_exit(status);
}

/* What is there, and no more: others may go on writing when the program ended. */
static void relay(int from, int to)
{
	static char buf[1 << 16];
	int left = fcntl(from, F_GETPIPE_SZ);
	ssize_t n;

	while (left > 0 && (n = read(from, buf, sizeof(buf))) > 0) {
		put(to, buf, n);
		left -= n;
	}
}

int main(void)
{
	int out[2], err[2], signals, status, fd, ended = 0;
	char **argv, *dir;
	sigset_t mask;
	pid_t pid, child;

	umask(022);
	chmod("/", 0755);
	mount_all();
	/* Not every console can be opened. */
	do
		check(fd = open("/dev/null", O_RDWR | O_CLOEXEC));
	while (fd <= STDERR_FILENO);
	close(fd);
	open_port(STATUS, O_WRONLY);
	open_port(OUT, O_WRONLY);
	open_port(ERR, O_WRONLY);
	if (getenv("guest_stdin"))
		open_port(IN, O_RDONLY);
	set_up();
	argv = read_command(&dir);

	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	check(sigprocmask(SIG_BLOCK, &mask, NULL));
	check(signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK));
	/* The writing ends stay open here: no POLLHUP to spin on. */
	check(pipe2(out, O_CLOEXEC));
	check(pipe2(err, O_CLOEXEC));
	check(fcntl(out[0], F_SETFL, O_NONBLOCK));
	check(fcntl(err[0], F_SETFL, O_NONBLOCK));
	/* What the program does to the guest's memory is not to stop us. */
	check(mlockall(MCL_CURRENT | MCL_FUTURE));
	child = start(argv, dir, out[1], err[1]);

	while (!ended) {
		struct pollfd fds[] = {
			{ signals, POLLIN }, { out[0], POLLIN }, { err[0], POLLIN },
		};
		struct signalfd_siginfo info;

		poll(fds, 3, -1);
		while (read(signals, &info, sizeof(info)) > 0)
			;
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
			if (pid == child) {
				ended = 1;
				break;
			}
		}
		relay(out[0], port[OUT]);
		relay(err[0], port[ERR]);
	}
	if (getenv("guest_fsck")) {
		kill(-1, SIGKILL);
		while (waitpid(-1, NULL, 0) > 0)
			;
		/* Kernel threads may close files that their tasks had open. */
		for (int i = 0; umount("/mnt"); i++) {
			if (errno != EBUSY || i == 300)
				report("failed unmounting /mnt: %s", strerror(errno));
			usleep(100000);
		}
	}
	if (WIFEXITED(status))
		report("exited %d", WEXITSTATUS(status));
	else
		report("killed %d", WTERMSIG(status));
}
