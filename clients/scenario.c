// SPDX-License-Identifier: GPL-2.0
/*
 * Runs in the guest: starts three programs, each in a cgroup of its own, and a daemon
 * that finds too much memory in use and must kill one of them, the largest. Prints what
 * of that program's memory is left when the daemon regards the kill as over, and one
 * second later, and how many of the three programs were killed in the end.
 *
 * Fails if a daemon does not kill, or if one that makes the one call leaves memory or
 * kills more than the largest program.
 *
 * usage: scenario KERNEL DIRECTORY [REPETITIONS]; the directory has NAME/unmodified and
 * NAME/changed
 *
 * The largest program is one process for daemons that kill a process. For those that kill
 * a cgroup it is a small container: a process, the init of a PID namespace below it that
 * dies with it, and the program in that namespace, which has most of the memory.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include "../bench/kill.h"

#define APPS		"/sys/fs/cgroup/apps"
#define NR_APPS		3
/*
 * Of a container's first process, and of its init: killing these takes so long that the
 * program is lost for a daemon that has not killed the program before.
 */
#define OTHER_ANON	(96 * MIB)
#define OTHER_FILE	(4 * MIB)
#define KILL_TIMEOUT	20		/* seconds */
#define SETTLE		3		/* seconds in which a daemon may kill again */

static const struct app {
	const char *name;
	size_t anon, file;
} apps[NR_APPS] = {
	{ "large",	384 * MIB,	96 * MIB },
	{ "medium",	 96 * MIB,	16 * MIB },
	{ "small",	 64 * MIB,	16 * MIB },
};

/* What a daemon says when it begins to kill, and when the kill is over. */
static const struct client {
	const char *name, *mode, *begin, *over;
	bool container, swap, varlink;
	const char *args[12];
} clients[] = {
	{
		.name = "earlyoom", .mode = "SIGTERM", .begin = "sending SIG",
		.over = "exited after|is free|did not exit",
		.args = { "-r", "0", "-s", "100", "-m", "50,5" },
	}, {
		.name = "earlyoom", .mode = "SIGKILL", .begin = "sending SIG",
		.over = "exited after|is free|did not exit",
		.args = { "-r", "0", "-s", "100", "-m", "50,50" },
	}, {
		.name = "oomd", .mode = "container", .begin = "Trying to kill",
		.over = "Set xattr trusted.oomd_kill=", .container = true,
		.args = { "--interval", "1", "--config", "/etc/oomd.json" },
	}, {
		.name = "systemd", .mode = "container", .begin = "is more than",
		.over = "Killed /", .container = true, .swap = true, .varlink = true,
	}, {
		.name = "nohang", .mode = "SIGTERM", .begin = "requires corrective actions",
		.over = "The victim died|doesn't respond",
		.args = { "--monitor", "--config", "conf" },
	},
};

static const char oomd_config[] =
	"{\"rulesets\":[{\"name\":\"apps\",\"detectors\":[[\"too much\","
	"{\"name\":\"memory_above\",\"args\":{\"cgroup\":\"apps\","
	"\"threshold_anon\":\"300M\",\"duration\":\"0\"}}]],"
	"\"actions\":[{\"name\":\"kill_by_memory_size_or_growth\",\"args\":{"
	"\"cgroup\":\"apps/*\",\"post_action_delay\":\"1\"}}]}]}";
static const char systemd_config[] = "[OOM]\nSwapUsedLimit=10%\n";
static const char varlink_reply[] =
	"{\"parameters\":{\"cgroups\":[{\"mode\":\"kill\",\"path\":\"/apps\","
	"\"property\":\"ManagedOOMSwap\"}]},\"continues\":true}";

static void write_file(const char *path, const char *text)
{
	int fd = check(open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));

	if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		die("writing \"%s\" to %s", text, path);
	close(fd);
}

static void in_group(const char *name, const char *file, const char *text)
{
	char path[128];

	snprintf(path, sizeof(path), APPS "%s%s/%s", *name ? "/" : "", name, file);
	write_file(path, text);
}

static size_t read_group(const char *name, const char *file, const char *field)
{
	char path[128];

	snprintf(path, sizeof(path), APPS "/%s/%s", name, file);
	return number(path, field, 0);
}

static void swap_out(const char *name, const char *how_much)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), APPS "/%s/memory.reclaim", name);
	fd = check(open(path, O_WRONLY | O_CLOEXEC));
	/* EAGAIN: not all of it. */
	if (write(fd, how_much, strlen(how_much)) < 0 && errno != EAGAIN)
		die("%s", path);
	close(fd);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* Programs */

static int files[NR_APPS];

static void make_app_file(int i)
{
	char path[64];

	snprintf(path, sizeof(path), "/mnt/%s", apps[i].name);
	files[i] = make_file(path, apps[i].file, false);
}

/* Use this much memory, tell the parent, and live until killed. */
__attribute__((noreturn))
static void use(int i, size_t anon, size_t from, size_t to, int ready)
{
	unsigned int seed = getpid();
	char *p;

	prctl(PR_SET_NAME, apps[i].name);
	p = mmap(NULL, anon, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		die("mmap");
	for (size_t at = 0; at < anon; at += sizeof(seed))
		*(unsigned int *)(p + at) = seed = seed * 1664525 + 1013904223;
	p = mmap(NULL, to - from, PROT_READ, MAP_PRIVATE | MAP_POPULATE, files[i], from);
	if (p == MAP_FAILED)
		die("mmap");
	check(write(ready, "", 1));
	for (;;)
		pause();
}

/* Returns how many processes there are. */
static int start_app(int i, bool container, int ready)
{
	const struct app *app = apps + i;
	size_t rest = app->anon, from = 0;

	if (check(fork()))
		return container && !i ? 3 : 1;
	check(setsid());
	in_group(app->name, "cgroup.procs", "0");
	if (container && !i) {
		rest -= 2 * OTHER_ANON;
		check(unshare(CLONE_NEWPID));
		if (check(fork()))
			use(i, OTHER_ANON, 0, OTHER_FILE, ready);
		from = OTHER_FILE;
		check(prctl(PR_SET_PDEATHSIG, SIGKILL));
		if (check(fork()))
			use(i, OTHER_ANON, from, from + OTHER_FILE, ready);
		from += OTHER_FILE;
		check(prctl(PR_SET_PDEATHSIG, SIGKILL));
	}
	use(i, rest, from, app->file, ready);
}

static void start_all(const struct client *client)
{
	int ready[2], left = 0;
	char byte;

	check(mkdir(APPS, 0755));
	in_group("", "cgroup.subtree_control", "+memory +cpu +pids");
	check(pipe2(ready, O_CLOEXEC));
	for (int i = 0; i < NR_APPS; i++) {
		char path[64];

		snprintf(path, sizeof(path), APPS "/%s", apps[i].name);
		check(mkdir(path, 0755));
		drop(files[i]);
	}
	for (int i = 0; i < NR_APPS; i++) {
		left = start_app(i, client->container, ready[1]);
		while (left--)
			if (check(read(ready[0], &byte, 1)) != 1)
				die("a program did not start");
	}
	close(ready[0]);
	close(ready[1]);
	/* The second would be the next to be killed, but is too small to be the first. */
	if (client->swap) {
		swap_out("large", "64M swappiness=max");
		swap_out("medium", "20M swappiness=max");
	}
}

static bool alive(int i)
{
	return read_group(apps[i].name, "cgroup.events", "populated ");
}

static void end_all(void)
{
	in_group("", "cgroup.kill", "1");
	for (int i = 0; i < NR_APPS; i++) {
		char path[64];

		while (alive(i))
			usleep(10000);
		snprintf(path, sizeof(path), APPS "/%s", apps[i].name);
		while (rmdir(path)) {
			if (errno != EBUSY)
				die("%s", path);
			usleep(10000);
		}
	}
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
	check(rmdir(APPS));
}

/* Busy loops, one for each CPU, and the programs run when these leave a CPU idle. */
static pid_t busy[64];

static void starve(void)
{
	in_group("", "cpu.idle", "1");
	for (int i = 0; i < get_nprocs(); i++) {
		busy[i] = check(fork());
		if (!busy[i])
			for (;;)
				;
	}
}

static void end_starving(void)
{
	for (int i = 0; i < 64 && busy[i]; i++) {
		check(kill(busy[i], SIGKILL));
		check(waitpid(busy[i], NULL, 0));
		busy[i] = 0;
	}
}

/* The part of systemd that tells systemd-oomd which cgroups to look after. */

static pid_t serve(void)
{
	struct sockaddr_un addr = { AF_UNIX, "/run/systemd/io.systemd.ManagedOOM" };
	int sock = check(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)), fd;
	char byte;
	pid_t pid;

	unlink(addr.sun_path);
	check(bind(sock, (struct sockaddr *)&addr, sizeof(addr)));
	check(listen(sock, 1));
	pid = check(fork());
	if (!pid) {
		fd = check(accept(sock, NULL, NULL));
		/* A message ends with NUL. */
		while (check(read(fd, &byte, 1)) == 1 && byte)
			;
		check(write(fd, varlink_reply, sizeof(varlink_reply)));
		pause();
	}
	close(sock);
	return pid;
}

/* The daemon */

static bool says(const char *line, const char *patterns)
{
	char copy[128], *save;

	snprintf(copy, sizeof(copy), "%s", patterns);
	for (char *p = strtok_r(copy, "|", &save); p; p = strtok_r(NULL, "|", &save))
		if (strstr(line, p))
			return true;
	return false;
}

static FILE *start_client(const struct client *client, const char *dir,
			  const char *program, pid_t *pid)
{
	const char *argv[16] = { program };
	int out[2];

	memcpy(argv + 1, client->args, sizeof(client->args));
	check(pipe2(out, O_CLOEXEC));
	*pid = check(fork());
	if (!*pid) {
		check(chdir(dir));
		check(setpriority(PRIO_PROCESS, 0, -20));
		check(setenv("PYTHONUNBUFFERED", "1", 1));
		check(setenv("SYSTEMD_LOG_LEVEL", "debug", 1));
		check(setenv("SYSTEMD_LOG_TARGET", "console", 1));
		check(dup2(out[1], 1));
		check(dup2(out[1], 2));
		execv(program, (char **)argv);
		die("%s", program);
	}
	close(out[1]);
	return fdopen(out[0], "r");
}

/*
 * Reads what the daemon says until the kill is over. Returns how long the kill took, or a
 * negative number if the daemon has not killed.
 */
static double wait_for_kill(const struct client *client, FILE *f)
{
	struct pollfd fd = { .fd = fileno(f), .events = POLLIN };
	double begin = 0, until = now() + KILL_TIMEOUT;
	char line[1024], told[4096] = "";

	setvbuf(f, NULL, _IONBF, 0);
	for (;;) {
		if (now() > until || poll(&fd, 1, 1000 * (until - now())) <= 0 ||
		    !fgets(line, sizeof(line), f)) {
			fprintf(stderr, "%s does not kill. It says:\n%s", client->name, told);
			return -1;
		}
		if (strlen(told) + strlen(line) < sizeof(told))
			strcat(told, line);
		if (!begin && says(line, client->begin))
			begin = now();
		if (begin && says(line, client->over))
			break;
	}
	return now() - begin;
}

/* Prints and returns how many MiB are left of the largest program. */
static size_t print_left(void)
{
	size_t anon = read_group("large", "memory.stat", "anon ") +
		      read_group("large", "memory.swap.current", "");
	size_t file = cached(files[0]);

	printf(" %6zu %6zu", anon / MIB, file / MIB);
	return (anon + file) / MIB;
}

static bool failed;

static void run(const struct client *client, const char *kernel, const char *dir,
		const char *form, bool starved)
{
	bool one_call = !strcmp(form, "changed") &&
			mrelease(-1, PROCESS_MRELEASE_REAP_KILL) && errno == EBADF;
	pid_t pid, server = 0;
	char path[256];
	double took;
	int killed = 0;
	size_t left;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s/%s", dir, client->name, form);
	if (access(path, X_OK))
		return;
	*strrchr(path, '/') = 0;
	start_all(client);
	if (cached(files[0]) < apps[0].file || read_group("large", "memory.stat", "anon ") +
	    read_group("large", "memory.swap.current", "") < apps[0].anon)
		die("the large program has too little memory");
	if (starved)
		starve();
	if (client->varlink)
		server = serve();

	check(setpriority(PRIO_PROCESS, 0, -20));
	f = start_client(client, path, form, &pid);
	took = wait_for_kill(client, f);
	printf("%-7s %-9s %-10s %-11s %-8s", kernel, client->name, client->mode, form,
	       starved ? "starved" : "idle");
	left = print_left();
	sleep(1);
	print_left();
	sleep(SETTLE - 1);

	check(kill(pid, SIGKILL));
	check(waitpid(pid, NULL, 0));
	fclose(f);
	if (server) {
		check(kill(server, SIGKILL));
		check(waitpid(server, NULL, 0));
	}
	check(setpriority(PRIO_PROCESS, 0, 0));
	end_starving();
	/* What has been killed can die now. */
	sleep(1);
	for (int i = 0; i < NR_APPS; i++)
		killed += !alive(i);
	printf(" %7.2f %6d\n", took, killed);
	fflush(stdout);
	if (took < 0 || alive(0) || (one_call && (left || killed != 1)))
		failed = true;
	end_all();
}

int main(int argc, char **argv)
{
	int repetitions = argc > 3 ? atoi(argv[3]) : 1;

	if (argc < 3) {
		fprintf(stderr, "usage: scenario KERNEL DIRECTORY [REPETITIONS]\n");
		return 2;
	}
	check(prctl(PR_SET_CHILD_SUBREAPER, 1));
	check(mkdir("/run/systemd", 0755));
	check(mkdir("/run/systemd/oom", 0755));
	check(mkdir("/run/oomd", 0755));
	check(mkdir("/etc/systemd", 0755));
	write_file("/etc/systemd/oomd.conf", systemd_config);
	write_file("/etc/oomd.json", oomd_config);
	for (int i = 0; i < NR_APPS; i++)
		make_app_file(i);
	for (size_t i = 0; i < sizeof(clients) / sizeof(*clients); i++) {
		for (int n = 0; n < 2 * repetitions; n++) {
			run(clients + i, argv[1], argv[2], "unmodified", n % 2);
			run(clients + i, argv[1], argv[2], "changed", n % 2);
		}
	}
	return failed;
}
