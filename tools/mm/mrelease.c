// SPDX-License-Identifier: GPL-2.0
/*
 * mrelease: kill processes and see their memory freed. See mrelease.1.
 *
 * A process is known by its pidfd. /proc/PID is opened after the pidfd, and
 * used only if the process was still there after that: as long as it is, its
 * PID cannot be another's, and a directory of /proc does not pass from one
 * process to another.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <linux/magic.h>
#include <poll.h>
#include <pthread.h>
#include <regex.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

/* The C library's headers may be older than the kernel's. */
#ifndef PROCESS_MRELEASE_REAP_KILL
#define PROCESS_MRELEASE_REAP_KILL	1
#endif
#if !defined(__NR_cachestat) && !defined(__alpha__)
#define __NR_cachestat			451
#endif
#define PF_KTHREAD			0x00200000
#define KCMP_VM				1
#define ARRAY_SIZE(array)		(sizeof(array) / sizeof((array)[0]))

#define LOOK_MS		1000	/* not to wait longer for /proc/PID/smaps */
#define FREEZE_MS	500	/* nor for a cgroup to be frozen */
#define TICK_MS		100	/* of the progress line */
#define BLINK_MS	400

/* As in kill(1). */
enum { ALL = 0, NONE = 1, USAGE = 2, SOME = 64 };

static struct {
	const char *match, *cgroup;
	bool full, exact, dry_run, json, quiet;
	long jobs;
	double timeout;
} opt = { .timeout = 10 };

static bool has_flag;
static double deadline, started;
static int max_victim_fd, max_files, nr_files;	/* see share_descriptors() */

struct file {
	struct file *next;
	int fd;
	dev_t dev;
	ino_t ino;
	unsigned long long from, to;		/* the part that is mapped, in bytes */
	unsigned long long before;		/* cached then */
};

/* What a process holds, in bytes. */
struct look {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool done, abandoned;
	int dir;
	unsigned long long anon;		/* its alone */
	unsigned long long shared;		/* anonymous, others have it too */
	unsigned long long swap;		/* its alone */
	unsigned long long file;			/* mapped, of files */
	unsigned long long file_others;		/* that others map too */
	unsigned long long vdso;		/* the kernel's own, counted as a file */
	bool cache_known;
	struct file *files;
};

enum state { NEW, RUNNING, DONE };

/* What becomes of memory. */
enum {
	FREED_ANON, FREED_SWAP, FREED_FILE, NR_FREED,
	LEFT_ANON = NR_FREED, LEFT_SHARED, LEFT_SWAP, LEFT_SHMEM,
	LEFT_DIRTY, LEFT_OTHERS, LEFT_IN_USE, LEFT_UNKNOWN, NR_FATES
};

static const struct { const char *key, *text; } fates[NR_FATES] = {
	[FREED_ANON] = { "anon", "anonymous" },
	[FREED_SWAP] = { "swap", "swap" },
	[FREED_FILE] = { "file", "file" },
	[LEFT_ANON] = { "anon", "anonymous, still mapped" },
	[LEFT_SHARED] = { "anon_shared", "anonymous, shared with others" },
	[LEFT_SWAP] = { "swap", "swap" },
	[LEFT_SHMEM] = { "shmem", "shared memory" },
	[LEFT_DIRTY] = { "file_dirty", "file, not written back yet" },
	[LEFT_OTHERS] = { "file_shared", "file, mapped by others" },
	[LEFT_IN_USE] = { "file_cached", "file, in the page cache all the same" },
	[LEFT_UNKNOWN] = { "file_unknown", "file, not known" },
};

struct victim {
	pid_t pid;
	int pidfd, dir;
	char name[64];
	int rank;			/* of its kill, from high to low; see get_rank() */
	bool stopped;			/* by us */
	enum state state;
	int error;
	char why[160];			/* instead of strerror() */
	double ms;
	bool measured;			/* looked at more than /proc/PID/status */
	unsigned long long bytes[NR_FATES];
};

/* They stay where they are: workers hold on to them. */
static struct victim **victims;
static size_t nr_victims;
static pthread_mutex_t work_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work_cond;

static double now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e3 + ts.tv_nsec / 1e6;
}

static struct timespec at_ms(double ms)
{
	return (struct timespec) {
		.tv_sec = ms / 1e3,
		.tv_nsec = (long)(ms * 1e6) % 1000000000,
	};
}

static void cond_init(pthread_cond_t *cond)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(cond, &attr);
	pthread_condattr_destroy(&attr);
}

static const int ending[] = {
	SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGALRM, SIGUSR1, SIGUSR2, SIGXCPU,
};

static const int stopping[] = { SIGTSTP, SIGTTIN, SIGTTOU };

static void hold(sigset_t *set, const int *sigs, size_t nr)
{
	struct sigaction old;

	for (size_t i = 0; i < nr; i++) {
		/* As with nohup. If it were blocked, it would stay pending. */
		if (!sigaction(sigs[i], NULL, &old) && old.sa_handler != SIG_IGN)
			sigaddset(set, sigs[i]);
	}
}

/* No signal but SIGKILL and SIGSTOP is to leave a cgroup frozen. */
static void hold_signals(void)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	sigemptyset(&set);
	hold(&set, ending, ARRAY_SIZE(ending));
	hold(&set, stopping, ARRAY_SIZE(stopping));
	sigprocmask(SIG_SETMASK, &set, NULL);
}

/* By which signal? */
static int interrupted(void)
{
	sigset_t pending;

	sigpending(&pending);
	for (size_t i = 0; i < ARRAY_SIZE(ending); i++)
		if (sigismember(&pending, ending[i]))
			return ending[i];
	return 0;
}

static bool is_late(void)
{
	return interrupted() || (deadline && now_ms() >= deadline);
}

static void clear_progress(void)
{
	if (isatty(STDERR_FILENO))
		fputs("\r\033[K", stderr);
	fflush(stderr);
}

/* Names are bytes that somebody else has chosen, and terminals obey some. */
static void put_text(const char *text, FILE *to)
{
	for (; *text; text++) {
		unsigned char c = *text;

		if (c < ' ' || c > '~')
			fprintf(to, "\\x%02x", c);
		else
			putc(c, to);
	}
}

static void write_complaint(const char *text)
{
	fflush(stdout);
	clear_progress();
	fputs("mrelease: ", stderr);
	put_text(text, stderr);
	putc('\n', stderr);
}

#define complain(...) do { \
	char text_of_complaint[2 * PATH_MAX]; \
	snprintf(text_of_complaint, sizeof(text_of_complaint), __VA_ARGS__); \
	write_complaint(text_of_complaint); \
} while (0)

static void thaw_all(void);

static void *grow(void *array, size_t nr, size_t size)
{
	/* When it is full, at a power of two, twice as much. */
	if (nr & (nr - 1))
		return array;
	array = realloc(array, (nr ? nr * 2 : 1) * size);
	if (!array) {
		complain("%s", strerror(ENOMEM));
		thaw_all();
		_exit(NONE);
	}
	return array;
}

static int mrelease(int pidfd, unsigned int flags)
{
	return syscall(__NR_process_mrelease, pidfd, flags) ? errno : 0;
}

static int send(int pidfd, int sig)
{
	return syscall(__NR_pidfd_send_signal, pidfd, sig, NULL, 0) ? errno : 0;
}

/*
 * Not waited for yet, so that nobody else can have its PID. What else is wrong,
 * such as EPERM or what a security module says, is said of a process.
 */
static bool exists(int pidfd)
{
	return send(pidfd, 0) != ESRCH;
}

static bool has_ended(int pidfd, int ms)
{
	struct pollfd pfd = { .fd = pidfd, .events = POLLIN };

	return poll(&pfd, 1, ms) > 0;
}

/* The beginning of a small file; its length, or -1. */
static ssize_t slurp(int dir, const char *name, char *buf, size_t size)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	ssize_t n, len = 0;

	buf[0] = 0;
	if (fd < 0)
		return -1;
	while ((n = read(fd, buf + len, size - 1 - len)) > 0)
		len += n;
	close(fd);
	buf[len] = 0;
	return n < 0 ? -1 : len;
}

/* All of a file, to be freed; or NULL, and errno. */
static char *read_all(int dir, const char *name)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC), error = 0;
	char *text = NULL, *more;
	size_t size = 0, len = 0;
	ssize_t n;

	if (fd < 0)
		return NULL;
	do {
		if (size - len < 2) {
			size = size ? size * 2 : 8192;
			more = realloc(text, size);
			if (!more) {
				error = ENOMEM;
				break;
			}
			text = more;
		}
		n = read(fd, text + len, size - 1 - len);
		if (n < 0)
			error = errno;
		else
			len += n;
	} while (n > 0);
	close(fd);
	if (error) {
		free(text);
		errno = error;
		return NULL;
	}
	text[len] = 0;
	return text;
}

static int put(int dir, const char *name, const char *text)
{
	int fd = openat(dir, name, O_WRONLY | O_CLOEXEC);
	int error = 0;

	if (fd < 0)
		return errno;
	if (write(fd, text, strlen(text)) < 0)
		error = errno;
	close(fd);
	return error;
}

/* A line "name value" of /proc/PID/status and the like, 0 without it. */
static unsigned long long field(const char *text, const char *name)
{
	size_t len = strlen(name);

	for (; text; text = strchr(text, '\n')) {
		text += *text == '\n';
		if (!strncmp(text, name, len) && (text[len] == ':' || text[len] == ' '))
			return strtoull(text + len + 1, NULL, 10);
	}
	return 0;
}

/*
 * A process that dies with the init of its PID namespace, or with its parent in an outer
 * namespace, does not have its files evicted. So the deepest namespace comes first, and
 * an init last of its namespace.
 */
static int get_rank(char *nspid)
{
	int depth = 0;
	char *last = NULL;

	if (!nspid)
		return 0;
	nspid[strcspn(nspid + 1, "\n") + 1] = 0;
	for (char *p = nspid; (p = strchr(p, '\t')); p++) {
		last = p;
		depth++;
	}
	return 2 * depth + !(last && atoi(last) == 1);
}

static struct victim *new_victim(pid_t pid, int pidfd, int *error)
{
	struct victim *v = calloc(1, sizeof(*v));
	char path[32], *text;

	*error = ENOMEM;
	if (!v)
		return NULL;
	v->pid = pid;
	v->pidfd = pidfd;
	v->dir = -1;
	if (pidfd < 0) {
		v->pidfd = syscall(__NR_pidfd_open, pid, 0);
		*error = errno;
		if (v->pidfd < 0)
			goto none;
	}
	snprintf(path, sizeof(path), "/proc/%d", pid);
	v->dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	*error = errno == ENOENT ? ESRCH : errno;
	if (v->dir < 0)
		goto none;
	*error = EMFILE;
	if (v->dir > max_victim_fd)
		goto none;
	/* Only now it is known whose directory that is. */
	*error = ESRCH;
	if (!exists(v->pidfd))
		goto none;

	if (slurp(v->dir, "comm", v->name, sizeof(v->name)) > 0)
		v->name[strcspn(v->name, "\n")] = 0;
	text = read_all(v->dir, "status");
	if (!text) {
		*error = errno == ENOENT ? ESRCH : errno;
		goto none;
	}
	v->rank = get_rank(strstr(text, "\nNSpid:"));
	free(text);
	return v;
none:
	if (v->dir >= 0)
		close(v->dir);
	if (pidfd < 0 && v->pidfd >= 0)
		close(v->pidfd);
	free(v);
	return NULL;
}

static void add_victim(struct victim *v)
{
	victims = grow(victims, nr_victims, sizeof(*victims));
	victims[nr_victims++] = v;
}

/* What it would take to know, before: /proc/PID/smaps and the files in it. */

static bool cached(const struct file *file, unsigned long long *bytes, unsigned long long *dirty)
{
	struct { unsigned long long off, len; } range = { file->from, file->to - file->from };
	struct { unsigned long long cache, dirty, writeback, evicted, recently; } state;

#ifdef __NR_cachestat
	if (syscall(__NR_cachestat, file->fd, &range, &state, 0))
#endif
		return false;
	*bytes = state.cache * sysconf(_SC_PAGESIZE);
	*dirty = (state.dirty + state.writeback) * sysconf(_SC_PAGESIZE);
	return true;
}

/*
 * Opening something else may have consequences, and what it is the victim can
 * change: so we decide with the path open, and open what we have decided upon.
 */
static int open_regular(int path, const struct stat *st)
{
	char name[32];

	if (!S_ISREG(st->st_mode))
		return -1;
	snprintf(name, sizeof(name), "/proc/self/fd/%d", path);
	return open(name, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

static bool may_keep_file(void)
{
	if (__atomic_fetch_add(&nr_files, 1, __ATOMIC_RELAXED) < max_files)
		return true;
	__atomic_sub_fetch(&nr_files, 1, __ATOMIC_RELAXED);
	return false;
}

/* Parts of a file that overlap or have a gap are looked at as one. */
static bool add_file(struct look *look, const char *name,
		     unsigned long long from, unsigned long long to)
{
	struct file *file;
	struct statfs fs;
	struct stat st;
	int fd, path;

	path = openat(look->dir, name, O_PATH | O_CLOEXEC);
	if (path < 0)
		return false;
	if (fstat(path, &st)) {
		close(path);
		return false;
	}
	for (file = look->files; file; file = file->next) {
		if (file->dev != st.st_dev || file->ino != st.st_ino)
			continue;
		file->from = from < file->from ? from : file->from;
		file->to = to > file->to ? to : file->to;
		close(path);
		return true;
	}

	fd = open_regular(path, &st);
	close(path);
	if (fd < 0)
		return false;
	file = malloc(sizeof(*file));
	/* What is on tmpfs counts as shared memory. */
	if (!file || fstatfs(fd, &fs) || fs.f_type == TMPFS_MAGIC || !may_keep_file()) {
		free(file);
		close(fd);
		return false;
	}
	*file = (struct file) {
		.next = look->files, .fd = fd, .dev = st.st_dev, .ino = st.st_ino,
		.from = from, .to = to,
	};
	look->files = file;
	return true;
}

/* One mapping: its line, and what smaps says about it. */
static void add_mapping(struct look *look, const char *line, const char *text)
{
	unsigned long long rss = field(text, "Rss") * 1024;
	unsigned long long anon = field(text, "Anonymous") * 1024;
	unsigned long long shared = (field(text, "Shared_Clean") +
				     field(text, "Shared_Dirty")) * 1024;
	unsigned long long swap = field(text, "Swap") * 1024;
	unsigned long long swap_pss = field(text, "SwapPss") * 1024;
	unsigned long long start, end, offset;
	unsigned long inode;
	char name[64];

	/* At least. If nobody shares it, or one other, it is exact. */
	look->swap += 2 * swap_pss > swap ? 2 * swap_pss - swap : 0;
	if (sscanf(line, "%llx-%llx %*s %llx %*s %lu", &start, &end, &offset, &inode) != 4)
		return;
	if (!inode) {
		look->anon += anon - (shared < anon ? shared : anon);
		look->shared += shared < anon ? shared : anon;
		look->vdso += rss - (anon < rss ? anon : rss);
		return;
	}

	/* A private copy is dirty, mostly; a page of the file is not. */
	shared = field(text, "Shared_Dirty") * 1024;
	shared = shared < anon ? shared : anon;
	look->anon += anon - shared;
	look->shared += shared;
	rss -= anon < rss ? anon : rss;
	snprintf(name, sizeof(name), "map_files/%llx-%llx", start, end);
	if (!rss || !add_file(look, name, offset, offset + (end - start)))
		return;
	look->file += rss;
	shared = (field(text, "Shared_Clean") + field(text, "Shared_Dirty")) * 1024 - shared;
	look->file_others += shared < rss ? shared : rss;
}

static void free_look(struct look *look)
{
	struct file *file;

	while ((file = look->files)) {
		look->files = file->next;
		close(file->fd);
		__atomic_sub_fetch(&nr_files, 1, __ATOMIC_RELAXED);
		free(file);
	}
	close(look->dir);
	free(look);
}

static void read_smaps(struct look *look)
{
	/* Only the numbers at the beginning of the head are of interest. */
	char head[128] = "", text[2048], *line = NULL;
	int fd = openat(look->dir, "smaps", O_RDONLY | O_CLOEXEC);
	FILE *smaps = fd < 0 ? NULL : fdopen(fd, "r");
	size_t n, len = 0, size = 0;
	unsigned long long cache = 0, dirty;

	if (!smaps) {
		if (fd >= 0)
			close(fd);
		return;
	}
	while (getline(&line, &size, smaps) > 0) {
		/* The fields begin with a capital, mappings with a number. */
		if (isupper(line[0])) {
			n = strlen(line);
			if (len + n < sizeof(text)) {
				memcpy(text + len, line, n + 1);
				len += n;
			}
			continue;
		}
		if (len)
			add_mapping(look, head, text);
		snprintf(head, sizeof(head), "%s", line);
		len = 0;
	}
	free(line);
	if (len)
		add_mapping(look, head, text);
	look->cache_known = true;
	for (struct file *file = look->files; file; file = file->next) {
		if (!cached(file, &file->before, &dirty))
			look->cache_known = false;
		cache += file->before;
	}
	/* overlayfs keeps the pages elsewhere. */
	if (cache < look->file)
		look->cache_known = false;
	fclose(smaps);
}

static void *look_thread(void *arg)
{
	struct look *look = arg;
	bool abandoned;

	read_smaps(look);
	pthread_mutex_lock(&look->lock);
	look->done = true;
	abandoned = look->abandoned;
	pthread_cond_signal(&look->cond);
	pthread_mutex_unlock(&look->lock);
	if (abandoned)
		free_look(look);
	return NULL;
}

/*
 * The victim may hold its mmap_lock for ever, its file system may not answer:
 * this must not keep us from killing it.
 */
static struct look *look_at(struct victim *v)
{
	struct look *look = calloc(1, sizeof(*look));
	struct timespec end = at_ms(now_ms() + LOOK_MS);
	pthread_t thread;
	int error = 0;

	if (!look)
		return NULL;
	pthread_mutex_init(&look->lock, NULL);
	cond_init(&look->cond);
	look->dir = fcntl(v->dir, F_DUPFD_CLOEXEC, 0);
	if (look->dir < 0 || pthread_create(&thread, NULL, look_thread, look)) {
		free_look(look);
		return NULL;
	}
	pthread_detach(thread);

	pthread_mutex_lock(&look->lock);
	while (!look->done && error != ETIMEDOUT)
		error = pthread_cond_timedwait(&look->cond, &look->lock, &end);
	look->abandoned = !look->done;
	error = look->abandoned;
	pthread_mutex_unlock(&look->lock);
	return error ? NULL : look;
}

struct sizes {
	unsigned long long anon, swap, file, shmem;
};

/* Without a lock, and readable for everybody. False if there is no memory. */
static bool get_sizes(struct victim *v, struct sizes *sizes)
{
	char *text = read_all(v->dir, "status");
	bool has_memory = text && strstr(text, "\nVmSize:");

	sizes->anon = field(text, "RssAnon") * 1024;
	sizes->swap = field(text, "VmSwap") * 1024;
	sizes->file = field(text, "RssFile") * 1024;
	sizes->shmem = field(text, "RssShmem") * 1024;
	free(text);
	return has_memory;
}

static unsigned long long less(unsigned long long a, unsigned long long b)
{
	return a > b ? a - b : 0;
}

static unsigned long long take(unsigned long long *from, unsigned long long at_most)
{
	unsigned long long n = *from < at_most ? *from : at_most;

	*from -= n;
	return n;
}

/* How much of what was seen before is gone, and why not all of it. */
static void account(struct victim *v, const struct sizes *before, struct look *look)
{
	unsigned long long left, after, dirty, all_dirty = 0, *bytes = v->bytes;
	struct sizes now = { 0 };

	v->measured = look && (look->anon || look->file || !before->anon);
	/* Nothing is gone yet, but that the call would do it is a promise. */
	if (!opt.dry_run)
		get_sizes(v, &now);
	bytes[FREED_ANON] = less(v->measured ? look->anon : before->anon, now.anon);
	bytes[FREED_SWAP] = less(v->measured ? look->swap : before->swap, now.swap);
	bytes[LEFT_ANON] = now.anon;
	bytes[LEFT_SWAP] = now.swap;
	bytes[LEFT_SHMEM] = before->shmem;
	bytes[LEFT_UNKNOWN] = before->file;
	if (!v->measured)
		return;

	bytes[LEFT_SHARED] = look->shared;
	if (!look->cache_known)
		return;
	bytes[LEFT_UNKNOWN] = less(before->file, look->file + look->vdso);
	for (struct file *file = look->files; file; file = file->next) {
		if (!cached(file, &after, &dirty))
			continue;
		bytes[FREED_FILE] += less(file->before, after);
		all_dirty += dirty;
	}
	if (opt.dry_run && has_flag)
		bytes[FREED_FILE] = less(less(look->file, look->file_others), all_dirty);
	left = less(look->file, bytes[FREED_FILE]);
	bytes[LEFT_DIRTY] = take(&left, all_dirty);
	bytes[LEFT_OTHERS] = take(&left, look->file_others);
	bytes[LEFT_IN_USE] = left;
}

/* Who is it that may not be killed? */

static bool shares(pid_t a, pid_t b)
{
	return syscall(__NR_kcmp, a, b, KCMP_VM, 0, 0) == 0;
}

/* Is it the same memory, as far as everybody may know? */
static bool looks_alike(int dir, pid_t pid)
{
	char path[32], a[128], b[128];

	snprintf(path, sizeof(path), "/proc/%d/statm", pid);
	return slurp(dir, "statm", a, sizeof(a)) > 0 && a[0] != '0' &&
	       slurp(AT_FDCWD, path, b, sizeof(b)) > 0 && !strcmp(a, b);
}

static void explain_eperm(struct victim *v)
{
	struct dirent *entry;
	DIR *proc;

	v->error = EPERM;
	if (send(v->pidfd, 0) == EPERM)
		return;
	if (v->pid == 1) {
		snprintf(v->why, sizeof(v->why),
			 "%s: it is the init here, which ignores the signal", strerror(EPERM));
		return;
	}
	proc = opendir("/proc");
	while (proc && (entry = readdir(proc))) {
		char path[32], name[32] = "";
		pid_t pid = atoi(entry->d_name);
		bool sure;

		if (pid <= 0 || pid == v->pid || (pid > 1 && (!kill(pid, 0) || errno != EPERM)))
			continue;
		sure = shares(v->pid, pid);
		if (!sure && (pid == 1 || !looks_alike(v->dir, pid)))
			continue;
		snprintf(path, sizeof(path), "/proc/%d/comm", pid);
		slurp(AT_FDCWD, path, name, sizeof(name));
		name[strcspn(name, "\n")] = 0;
		snprintf(v->why, sizeof(v->why), "%s: %d (%s)%s shares its memory",
			 strerror(EPERM), pid, name, sure ? "" : ", it seems,");
		break;
	}
	if (proc)
		closedir(proc);
	if (!v->why[0])
		snprintf(v->why, sizeof(v->why),
			 "%s: somebody shares its memory", strerror(EPERM));
}

/* Or it is gone. */
static bool is_kthread(struct victim *v)
{
	char text[1024], *p;
	unsigned int flags;

	if (slurp(v->dir, "stat", text, sizeof(text)) < 0)
		return true;
	p = strrchr(text, ')');
	return !p || sscanf(p, ") %*c %*d %*d %*d %*d %*d %u", &flags) != 1 ||
	       flags & PF_KTHREAD;
}

/* By somebody else, who is the one to let it go on. */
static bool is_stopped(struct victim *v)
{
	char text[1024], *p;

	if (slurp(v->dir, "stat", text, sizeof(text)) < 0)
		return false;
	p = strrchr(text, ')');
	return p && !strncmp(p, ") T ", 4);
}

/* How a kernel with the flag does it. */
static void reap_kill(struct victim *v)
{
	bool again = false;

	for (;;) {
		v->error = mrelease(v->pidfd, PROCESS_MRELEASE_REAP_KILL);
		if (v->error != EAGAIN || is_late())
			break;
		again = true;
		usleep(1000);
	}
	/* Its exit was quicker. */
	if (again && v->error == ESRCH)
		v->error = 0;

	if (v->error == EPERM)
		explain_eperm(v);
	else if (v->error == EAGAIN)
		snprintf(v->why, sizeof(v->why),
			 "killed, but its memory is still in use: %s", strerror(EAGAIN));
}

/*
 * How any other does it. Where that call is of no help, because the process is
 * quicker, its end has to do: the call promises nothing anyway.
 */
static void kill_and_reap(struct victim *v)
{
	bool shared = false;
	int error;

	v->error = is_kthread(v) ? ESRCH : send(v->pidfd, SIGKILL);
	if (v->error)
		return;
	do {
		error = mrelease(v->pidfd, 0);
		/* All its threads have been killed: so there must be others. */
		shared |= error == EINVAL;
	} while ((error == EAGAIN || error == EINVAL) && !has_ended(v->pidfd, 1) && !is_late());
	while (!has_ended(v->pidfd, TICK_MS)) {
		if (is_late()) {
			v->error = ETIMEDOUT;
			snprintf(v->why, sizeof(v->why), "killed, but it has not ended in time");
			return;
		}
	}
	if (shared) {
		v->error = EINVAL;
		snprintf(v->why, sizeof(v->why), "killed, but somebody else uses its memory");
	}
}

static void work_on(struct victim *v)
{
	struct look *look = NULL;
	struct sizes before;
	double start;

	if (get_sizes(v, &before) && !opt.quiet)
		look = look_at(v);
	start = now_ms();
	if (opt.dry_run)
		v->error = send(v->pidfd, 0);
	else if (has_flag)
		reap_kill(v);
	else
		kill_and_reap(v);
	v->ms = now_ms() - start;

	if (!opt.quiet && !v->error)
		account(v, &before, look);
	if (look)
		free_look(look);
	close(v->dir);
	v->dir = -1;
}

/* The victims from this one on of this rank and above are still to be done. */
static struct { size_t next; int rank; long threads; } work;

static struct victim *next_victim(void)
{
	while (work.next < nr_victims) {
		struct victim *v = victims[work.next++];

		if (v->state == NEW && v->rank >= work.rank) {
			v->state = RUNNING;
			return v;
		}
	}
	return NULL;
}

static void *worker(void *unused)
{
	struct victim *v;

	pthread_mutex_lock(&work_lock);
	while ((v = next_victim())) {
		pthread_mutex_unlock(&work_lock);
		work_on(v);
		pthread_mutex_lock(&work_lock);
		v->state = DONE;
	}
	work.threads--;
	pthread_cond_signal(&work_cond);
	pthread_mutex_unlock(&work_lock);
	return unused;
}

static void progress(void)
{
	size_t done = 0;

	if (!isatty(STDERR_FILENO) || opt.quiet || now_ms() < started + BLINK_MS)
		return;
	for (size_t i = 0; i < nr_victims; i++)
		done += victims[i]->state == DONE;
	fprintf(stderr, "\r%zu of %zu, %.1f s ", done, nr_victims, (now_ms() - started) / 1e3);
	fflush(stderr);
}

/* False if the time was too short. Then workers may still be at it. */
static bool work_on_all(int rank)
{
	pthread_t thread;
	long todo = 0;
	bool ok;

	pthread_mutex_lock(&work_lock);
	work.next = 0;
	work.rank = rank;
	for (size_t i = 0; i < nr_victims; i++)
		todo += victims[i]->state == NEW && victims[i]->rank >= rank;
	while (work.threads < (todo < opt.jobs ? todo : opt.jobs) &&
	       !pthread_create(&thread, NULL, worker, NULL)) {
		pthread_detach(thread);
		work.threads++;
	}
	/* Those who fork all the time may have used up the user's limit. */
	if (todo && !work.threads) {
		work.threads = 1;
		pthread_mutex_unlock(&work_lock);
		worker(NULL);
		pthread_mutex_lock(&work_lock);
	}
	while (work.threads && !is_late()) {
		double until = now_ms() + TICK_MS;
		struct timespec tick = at_ms(deadline && deadline < until ? deadline : until);

		pthread_cond_timedwait(&work_cond, &work_lock, &tick);
		progress();
	}
	ok = !work.threads;
	/* What nobody has begun with, nobody is to begin with. */
	work.next = nr_victims;
	pthread_mutex_unlock(&work_lock);
	return ok;
}

/* Whom to kill. False: not all of it was found, and has been complained of. */

static bool add_pid(const char *text)
{
	struct victim *v;
	int error;
	char *end;
	long pid;

	errno = 0;
	pid = strtol(text, &end, 10);
	if (errno || *end || end == text || pid <= 0 || pid > INT_MAX) {
		complain("%s: this is no process ID", text);
		exit(USAGE);
	}
	if (pid == getpid()) {
		complain("%ld: this is me", pid);
		return false;
	}
	v = new_victim(pid, -1, &error);
	if (v)
		add_victim(v);
	else if (error == EINVAL || error == ENOENT)
		complain("%ld: a thread, and not the process", pid);
	else
		complain("%ld: %s", pid, strerror(error));
	return v;
}

static bool add_pidfd(const char *text)
{
	char path[64], info[1024], *line, *end;
	long fd = strtol(text, &end, 10);
	struct victim *v;
	int error, pid;

	if (*end || end == text || fd < 0 || fd > INT_MAX) {
		complain("%s: this is no file descriptor", text);
		exit(USAGE);
	}
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%ld", fd);
	if (slurp(AT_FDCWD, path, info, sizeof(info)) < 0) {
		complain("file descriptor %ld: %s", fd, strerror(EBADF));
		return false;
	}
	line = strstr(info, "\nPid:");
	if (!line) {
		complain("file descriptor %ld: not a pidfd", fd);
		return false;
	}
	pid = atoi(line + 5);
	if (!pid) {
		complain("file descriptor %ld: a process of another PID namespace", fd);
		return false;
	}
	error = ESRCH;
	v = pid < 0 ? NULL : new_victim(pid, fd, &error);
	if (v)
		add_victim(v);
	else
		complain("file descriptor %ld: %s", fd, strerror(error));
	return v;
}

/* As it is asked of the process that has the pidfd, there is no second look. */
static bool matches(struct victim *v, const regex_t *regex)
{
	char text[1 << 16];
	ssize_t len;

	if (is_kthread(v))
		return false;
	if (!opt.full)
		return !regexec(regex, v->name, 0, NULL, 0);
	len = slurp(v->dir, "cmdline", text, sizeof(text));
	while (len > 0 && !text[len - 1])
		len--;
	for (ssize_t i = 0; i < len; i++)
		text[i] = text[i] ?: ' ';
	return len > 0 && !regexec(regex, text, 0, NULL, 0);
}

static void drop_victim(struct victim *v)
{
	close(v->pidfd);
	close(v->dir);
	free(v);
}

static bool add_matching(const char *pattern)
{
	char text[512], *whole = NULL;
	struct dirent *entry = NULL;
	size_t before = nr_victims;
	regex_t regex;
	DIR *proc;
	int error;

	if (opt.exact && asprintf(&whole, "^(%s)$", pattern) < 0)
		whole = NULL;
	error = regcomp(&regex, whole ?: pattern, REG_EXTENDED | REG_NOSUB);
	free(whole);
	if (error) {
		regerror(error, &regex, text, sizeof(text));
		complain("%s: %s", pattern, text);
		exit(USAGE);
	}
	proc = opendir("/proc");
	while (proc && (entry = readdir(proc))) {
		struct victim *v;
		pid_t pid = atoi(entry->d_name);

		if (pid <= 0 || pid == getpid())
			continue;
		v = new_victim(pid, -1, &error);
		if (v && matches(v, &regex))
			add_victim(v);
		else if (v)
			drop_victim(v);
		else if (error == EMFILE)
			break;
	}
	if (entry)
		complain("%s: not all processes: %s", pattern, strerror(error));
	if (proc)
		closedir(proc);
	regfree(&regex);
	if (entry)
		return false;
	if (nr_victims == before && !opt.quiet)
		complain("%s: no process is called so", pattern);
	return nr_victims > before;
}

/* A control group. */

static struct {
	int dir, events, freeze;
	bool froze;
	bool incomplete;	/* there are more processes than descriptors */
	unsigned long long charge[2], anon[2], file[2];	/* before and after */
	bool charged;
} cgroup = { .dir = -1, .events = -1, .freeze = -1 };

struct pids {
	pid_t *pid;
	size_t nr;
};

static int by_pid(const void *a, const void *b)
{
	return *(const pid_t *)a - *(const pid_t *)b;
}

/* The processes of a cgroup and those below. 0 stands for one we cannot name. */
static int read_pids(int dir, struct pids *pids)
{
	int fd = openat(dir, "cgroup.procs", O_RDONLY | O_CLOEXEC);
	FILE *procs = fd < 0 ? NULL : fdopen(fd, "r");
	struct dirent *entry;
	int error = 0;
	DIR *list;
	pid_t pid;

	if (!procs) {
		/* It went away; what is below it did so before. */
		error = errno == ENOENT || errno == ENODEV ? 0 : errno;
		if (fd >= 0)
			close(fd);
		return error;
	}
	while (fscanf(procs, "%d", &pid) == 1) {
		pids->pid = grow(pids->pid, pids->nr, sizeof(pid));
		pids->pid[pids->nr++] = pid;
	}
	/* A threaded one: its processes are those of a cgroup above. */
	if (ferror(procs) && errno != EOPNOTSUPP && errno != ENODEV)
		error = errno;
	fclose(procs);

	fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	list = fd < 0 ? NULL : fdopendir(fd);
	if (!list && errno != ENOENT)
		error = errno;
	if (!list && fd >= 0)
		close(fd);
	while (list && (entry = readdir(list))) {
		if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
			continue;
		fd = openat(dir, entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd >= 0) {
			error = read_pids(fd, pids) ?: error;
			close(fd);
		} else if (errno != ENOENT) {
			error = errno;
		}
	}
	if (list)
		closedir(list);
	return error;
}

static bool get_pids(struct pids *pids)
{
	static int told;
	int error;

	pids->nr = 0;
	error = read_pids(cgroup.dir, pids);
	if (error && error != told)
		complain("%s: %s", opt.cgroup, strerror(error));
	told = error ?: told;
	if (pids->nr)
		qsort(pids->pid, pids->nr, sizeof(*pids->pid), by_pid);
	return !error;
}

static bool is_among(pid_t pid, const struct pids *pids)
{
	return pids->nr && bsearch(&pid, pids->pid, pids->nr, sizeof(pid), by_pid);
}

/* The victim with this PID, unless somebody else has it by now. */
static struct victim *known(pid_t pid)
{
	for (size_t i = nr_victims; i-- > 0;)
		if (victims[i]->pid == pid && victims[i]->pidfd >= 0 &&
		    exists(victims[i]->pidfd))
			return victims[i];
	return NULL;
}

/* Those that have come to their end need no descriptor any more. */
static void close_ended(void)
{
	for (size_t i = 0; i < nr_victims; i++) {
		struct victim *v = victims[i];

		if (v->state == DONE && v->pidfd >= 0 && has_ended(v->pidfd, 0)) {
			close(v->pidfd);
			v->pidfd = -1;
		}
	}
}

/*
 * The processes of the cgroup that are not among the victims yet. Who was in it
 * after the pidfd had been opened, and is there after that, belongs to it.
 * Returns how many; what there are no descriptors for has to wait.
 */
static size_t add_from_cgroup(struct pids *pids)
{
	static struct pids again;
	size_t first = nr_victims, kept = first;
	int error = 0;

	close_ended();
	cgroup.incomplete = !get_pids(pids);
	for (size_t i = 0; i < pids->nr && error != EMFILE; i++) {
		struct victim *v;

		if (!pids->pid[i] || known(pids->pid[i]))
			continue;
		v = new_victim(pids->pid[i], -1, &error);
		if (v)
			add_victim(v);
	}
	cgroup.incomplete |= error == EMFILE;
	if (nr_victims == first)
		return 0;
	cgroup.incomplete |= !get_pids(&again);
	for (size_t i = first; i < nr_victims; i++) {
		struct victim *v = victims[i];

		if (is_among(v->pid, &again) && exists(v->pidfd))
			victims[kept++] = v;
		else
			drop_victim(v);
	}
	nr_victims = kept;
	return kept - first;
}

/*
 * A number in a file of the cgroup that is kept open; or -1. It is 0 when the
 * cgroup is not there any more.
 */
static long long read_kept(int fd, const char *name)
{
	char text[256];
	ssize_t len = pread(fd, text, sizeof(text) - 1, 0);

	if (len < 0)
		return errno == ENODEV || errno == ENOENT ? 0 : -1;
	text[len] = 0;
	return name ? (long long)field(text, name) : atoll(text);
}

/* As far as we know. */
static bool populated(void)
{
	return read_kept(cgroup.events, "populated");
}

static int set_frozen(const char *value)
{
	if (pwrite(cgroup.freeze, value, 1, 0) == 1 || errno == ENODEV || errno == ENOENT)
		return 0;
	return errno;
}

static void read_charge(int when)
{
	char text[32], *stat = read_all(cgroup.dir, "memory.stat");

	if (slurp(cgroup.dir, "memory.current", text, sizeof(text)) > 0) {
		cgroup.charged = true;
		cgroup.charge[when] = strtoull(text, NULL, 10);
	}
	if (stat) {
		cgroup.anon[when] = field(stat, "anon");
		cgroup.file[when] = field(stat, "file");
	}
	free(stat);
}

static bool open_cgroup(const char *path)
{
	char line[PATH_MAX + 256], mount[PATH_MAX], type[64], full[2 * PATH_MAX];
	struct statfs fs;
	FILE *mounts;

	cgroup.dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (cgroup.dir >= 0 && !fstatfs(cgroup.dir, &fs) &&
	    (unsigned int)fs.f_type != CGROUP2_SUPER_MAGIC) {
		close(cgroup.dir);
		cgroup.dir = -1;
	}
	/* As /proc/PID/cgroup gives it, below where they are mounted. */
	mounts = fopen("/proc/self/mounts", "re");
	while (cgroup.dir < 0 && mounts && fgets(line, sizeof(line), mounts)) {
		if (sscanf(line, "%*s %4095s %63s", mount, type) != 2 || strcmp(type, "cgroup2"))
			continue;
		snprintf(full, sizeof(full), "%s/%s", mount, path);
		cgroup.dir = open(full, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	if (mounts)
		fclose(mounts);
	if (cgroup.dir < 0) {
		complain("%s: there is no such cgroup (of version 2)", path);
		return false;
	}
	/* Later there may be no descriptors left, or no right to open it. */
	cgroup.events = openat(cgroup.dir, "cgroup.events", O_RDONLY | O_CLOEXEC);
	if (cgroup.events < 0 && errno == ENOENT)
		complain("%s: this is the root, which everybody is in", path);
	else if (cgroup.events < 0)
		complain("%s/cgroup.events: %s", path, strerror(errno));
	cgroup.freeze = openat(cgroup.dir, "cgroup.freeze", O_RDWR | O_CLOEXEC);
	if (cgroup.freeze < 0)
		cgroup.freeze = openat(cgroup.dir, "cgroup.freeze", O_RDONLY | O_CLOEXEC);
	return cgroup.events >= 0;
}

/*
 * Who is frozen does not fork, nor does a child that it was about to have
 * start. Without the right to freeze, everybody is stopped: see below.
 */
static bool freeze_all(void)
{
	double end = now_ms() + FREEZE_MS;

	switch (read_kept(cgroup.freeze, NULL)) {
	case -1:
		return false;
	case 0:
		if (set_frozen("1"))
			return false;
		cgroup.froze = true;
	}
	while (now_ms() < end && !is_late() && read_kept(cgroup.events, "frozen") != 1)
		usleep(1000);
	return true;
}

static void thaw_all(void)
{
	int error = cgroup.froze ? set_frozen("0") : 0;

	if (error)
		complain("%s: still frozen: %s", opt.cgroup, strerror(error));
	cgroup.froze = error;
	for (size_t i = 0; i < nr_victims; i++)
		if (victims[i]->stopped)
			send(victims[i]->pidfd, SIGCONT);
}

static bool work_by_rank(void)
{
	bool ok = true;
	int rank;

	do {
		rank = -1;
		for (size_t i = 0; i < nr_victims; i++) {
			if (victims[i]->state == NEW && victims[i]->rank > rank)
				rank = victims[i]->rank;
		}
		ok = rank < 0 || work_on_all(rank);
	} while (ok && rank >= 0);
	return ok;
}

static bool kill_cgroup(const char *path)
{
	struct pids pids = { 0 };
	bool ok = true, frozen, helped = false;

	if (!open_cgroup(path))
		return false;
	/* Without all of them, we might freeze ourselves. */
	if (!get_pids(&pids))
		return false;
	if (is_among(getpid(), &pids)) {
		complain("%s: I am in it", path);
		return false;
	}
	read_charge(0);
	if (opt.dry_run) {
		add_from_cgroup(&pids);
		if (cgroup.incomplete)
			complain("%s: not all processes: %s", path, strerror(EMFILE));
		ok = work_on_all(0) && !cgroup.incomplete;
		free(pids.pid);
		return ok;
	}

	frozen = freeze_all();
	while (populated() && ok && !is_late()) {
		bool more = add_from_cgroup(&pids), left = false, failed = false;

		/* As long as there is somebody new, somebody may be forking. */
		if (more && !frozen) {
			for (size_t i = 0; i < nr_victims; i++) {
				struct victim *v = victims[i];

				if (v->state == NEW && !v->stopped && !is_stopped(v))
					v->stopped = !send(v->pidfd, SIGSTOP);
			}
			continue;
		}
		ok = work_by_rank();

		for (size_t i = 0; i < nr_victims; i++)
			failed |= victims[i]->state == DONE && victims[i]->error &&
				  victims[i]->error != ESRCH;
		for (size_t i = 0; i < pids.nr && !more; i++) {
			struct victim *v = pids.pid[i] ? known(pids.pid[i]) : NULL;

			left |= !v || !v->error;
			if (!pids.pid[i])
				ok = false;
		}
		if (!ok && !is_late())
			complain("%s: processes of another PID namespace are in it", path);
		if (!more && !left && failed)
			break;
		/* Not needed, but then the kernel sees to it as well. */
		if (!helped && !failed && !cgroup.incomplete)
			helped = !put(cgroup.dir, "cgroup.kill", "1");
		if (!more)
			usleep(2000);
		progress();
	}
	if (!opt.quiet)
		read_charge(1);
	thaw_all();
	ok &= !cgroup.froze;
	if (populated()) {
		ok = false;
		if (is_late())
			complain("%s: not empty in time", path);
	}
	free(pids.pid);
	return ok;
}

/* What to say. */

static const char *size_text(unsigned long long bytes)
{
	static char text[8][24];
	static int i;
	char *to = text[i = (i + 1) % 8];

	if (bytes < 1 << 20)
		snprintf(to, sizeof(text[0]), "%llu KiB", (unsigned long long)bytes >> 10);
	else
		snprintf(to, sizeof(text[0]), "%.1f MiB", bytes / 1048576.0);
	return to;
}

static const char *error_text(const struct victim *v)
{
	if (v->state != DONE)
		return v->state == NEW ? "not begun in time" : "not done in time";
	return v->why[0] ? v->why : strerror(v->error);
}

/* A process that was found, and has gone by itself, is no failure. */
static bool is_gone(const struct victim *v)
{
	return v->state == DONE && v->error == ESRCH && (opt.match || opt.cgroup);
}

static bool failed(const struct victim *v)
{
	return v->state != DONE || (v->error && !is_gone(v));
}

static void tell(const struct victim *v)
{
	const char *sep = opt.dry_run ? ": would free " : ": freed ";

	printf("%d ", v->pid);
	put_text(v->name, stdout);
	for (int i = 0; i < NR_FATES; i++) {
		if (i == NR_FREED) {
			if (!opt.dry_run)
				printf(" in %.1f ms", v->ms);
			sep = "; left ";
		}
		if (i >= NR_FREED && !v->bytes[i])
			continue;
		printf("%s%s %s", sep, size_text(v->bytes[i]), fates[i].text);
		sep = ", ";
	}
	printf("%s\n", v->measured ? "" : " (from its status only)");
}

static void tell_cgroup(void)
{
	if (!cgroup.charged || opt.dry_run)
		return;
	put_text(opt.cgroup, stdout);
	printf(": charged with %s, now %s (anonymous %s, now %s; file %s, now %s)\n",
	       size_text(cgroup.charge[0]), size_text(cgroup.charge[1]),
	       size_text(cgroup.anon[0]), size_text(cgroup.anon[1]),
	       size_text(cgroup.file[0]), size_text(cgroup.file[1]));
}

static const char *json_bool(bool value)
{
	return value ? "true" : "false";
}

/* Names are bytes; JSON is not. */
static void json_string(const char *text)
{
	putchar('"');
	for (; *text; text++) {
		unsigned char c = *text;

		if (c == '"' || c == '\\')
			printf("\\%c", c);
		else if (c < ' ' || c > '~')
			printf("\\u%04x", c);
		else
			putchar(c);
	}
	putchar('"');
}

static void json_charge(const char *name, int when)
{
	printf("\"%s\":{\"charge\":%llu,\"anon\":%llu,\"file\":%llu}",
	       name, cgroup.charge[when], cgroup.anon[when], cgroup.file[when]);
}

static void json_victim(const struct victim *v)
{
	printf("{\"pid\":%d,\"name\":", v->pid);
	json_string(v->name);
	printf(",\"error\":");
	if (v->state != DONE || v->error)
		json_string(error_text(v));
	else
		printf("null");
	/* A worker may still be writing the rest. */
	if (v->state == DONE) {
		printf(",\"ms\":%.3f,\"measured\":%s", v->ms, json_bool(v->measured));
		for (int i = 0; i < NR_FATES; i++)
			printf("%s\"%s\":%llu", !i ? ",\"freed\":{" :
			       i == NR_FREED ? "},\"left\":{" : ",",
			       fates[i].key, v->bytes[i]);
		putchar('}');
	}
	putchar('}');
}

static void tell_json(bool ok)
{
	printf("{\"reap_kill\":%s,\"dry_run\":%s,\"ok\":%s,\"victims\":[",
	       json_bool(has_flag), json_bool(opt.dry_run), json_bool(ok));
	for (size_t i = 0; i < nr_victims; i++) {
		printf(i ? ",\n" : "\n");
		json_victim(victims[i]);
	}
	printf("]");
	if (cgroup.charged && !opt.dry_run) {
		printf(",\n\"cgroup\":{");
		json_charge("before", 0);
		putchar(',');
		json_charge("after", 1);
		putchar('}');
	}
	printf("}\n");
}

static int report(bool ok)
{
	size_t done = 0;

	pthread_mutex_lock(&work_lock);
	clear_progress();
	for (size_t i = 0; i < nr_victims; i++) {
		struct victim *v = victims[i];

		if (failed(v)) {
			ok = false;
			complain("%d (%s): %s", v->pid, v->name, error_text(v));
		} else {
			done++;
			if (!opt.quiet && !opt.json && !is_gone(v))
				tell(v);
		}
	}
	if (opt.json)
		tell_json(ok);
	else if (!opt.quiet)
		tell_cgroup();
	fflush(stdout);
	return ok ? ALL : done ? SOME : NONE;
}

static void usage(FILE *to)
{
	fputs("Usage: mrelease [options] PID...\n"
	      "       mrelease [options] --pidfd FD\n"
	      "       mrelease [options] --match PATTERN\n"
	      "       mrelease [options] --cgroup PATH\n"
	      "\n"
	      "Kills processes, and everybody who shares their memory, and sees to it that the\n"
	      "memory is free.\n"
	      "\n"
	      "  -p, --pidfd FD         the process that this open pidfd is for\n"
	      "  -m, --match PATTERN    those whose name the extended regular expression fits\n"
	      "  -f, --full             it is to fit the command line\n"
	      "  -x, --exact            it is to fit all of it\n"
	      "  -c, --cgroup PATH      those in a cgroup (version 2) and below, till it is empty\n"
	      "  -j, --jobs N           so many at a time; the number of CPUs\n"
	      "  -n, --dry-run          kill nobody, say whom it would be\n"
	      "  -t, --timeout SECONDS  give up after so long, 10; 0 for never\n"
	      "      --json             write what was done as JSON\n"
	      "  -q, --quiet            write errors only, and do not lose time with measuring\n"
	      "  -h, --help\n", to);
}

static double get_seconds(const char *text)
{
	char *end;
	double n = strtod(text, &end);

	if (end == text || *end || !(n >= 0 && n < 1e9)) {
		complain("%s: not a number of seconds", text);
		exit(USAGE);
	}
	return n;
}

/*
 * Half of them for the victims, a quarter for the files they map, and the rest
 * for what is open for a moment, of which each worker needs some. The lowest
 * free number is always the next: so a number tells how many there are.
 */
static void share_descriptors(void)
{
	struct rlimit limit;
	long nr = 1024;

	if (!getrlimit(RLIMIT_NOFILE, &limit)) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
		nr = limit.rlim_cur < 1 << 20 ? limit.rlim_cur : 1 << 20;
	}
	max_victim_fd = nr / 2;
	max_files = nr / 4;
	if (opt.jobs > nr / 32)
		opt.jobs = nr / 32 ?: 1;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "pidfd", required_argument, NULL, 'p' },
		{ "match", required_argument, NULL, 'm' },
		{ "full", no_argument, NULL, 'f' },
		{ "exact", no_argument, NULL, 'x' },
		{ "cgroup", required_argument, NULL, 'c' },
		{ "jobs", required_argument, NULL, 'j' },
		{ "dry-run", no_argument, NULL, 'n' },
		{ "timeout", required_argument, NULL, 't' },
		{ "json", no_argument, NULL, 'J' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	const char *pidfd = NULL;
	int c, kinds, sig, status;
	bool ok = true;

	setvbuf(stderr, NULL, _IOLBF, 0);
	opt.jobs = sysconf(_SC_NPROCESSORS_ONLN);
	while ((c = getopt_long(argc, argv, "p:m:fxc:j:nt:qh", options, NULL)) != -1) {
		switch (c) {
		case 'p':
			pidfd = optarg;
			break;
		case 'm':
			opt.match = optarg;
			break;
		case 'f':
			opt.full = true;
			break;
		case 'x':
			opt.exact = true;
			break;
		case 'c':
			opt.cgroup = optarg;
			break;
		case 'j':
			opt.jobs = atol(optarg);
			break;
		case 'n':
			opt.dry_run = true;
			break;
		case 't':
			opt.timeout = get_seconds(optarg);
			break;
		case 'J':
			opt.json = true;
			break;
		case 'q':
			opt.quiet = true;
			break;
		case 'h':
			usage(stdout);
			return ALL;
		default:
			usage(stderr);
			return USAGE;
		}
	}
	kinds = (optind < argc) + !!pidfd + !!opt.match + !!opt.cgroup;
	if (kinds != 1 || opt.jobs < 1 || ((opt.full || opt.exact) && !opt.match) ||
	    (opt.quiet && opt.json)) {
		usage(stderr);
		return USAGE;
	}
	if (access("/proc/self/fdinfo", F_OK)) {
		complain("/proc is not mounted");
		return NONE;
	}

	cond_init(&work_cond);
	hold_signals();
	share_descriptors();
	started = now_ms();
	deadline = opt.timeout ? started + opt.timeout * 1e3 : 0;
	has_flag = mrelease(-1, PROCESS_MRELEASE_REAP_KILL) == EBADF;
	if (!has_flag && !opt.quiet)
		complain("a kernel without PROCESS_MRELEASE_REAP_KILL: signal first, then reap; "
			 "what is cached of files stays so");

	if (opt.cgroup) {
		ok = kill_cgroup(opt.cgroup);
	} else {
		if (pidfd)
			ok = add_pidfd(pidfd);
		else if (opt.match)
			ok = add_matching(opt.match);
		for (; optind < argc; optind++)
			ok &= add_pid(argv[optind]);
		ok &= work_on_all(0);
	}
	status = report(ok);
	/* Without waiting for a worker that is stuck in the kernel. */
	sig = interrupted();
	_exit(sig ? 128 + sig : status);
}
