// SPDX-License-Identifier: GPL-2.0
/*
 * mrelease: kill processes and free their memory. See mrelease.1.
 *
 * A pidfd identifies each victim. new_victim() opens /proc/PID after the pidfd
 * and uses the directory only if the process still exists then: until a process
 * has been waited for, no other process can have its PID, and a directory of
 * /proc never changes to another process.
 *
 * A run looks at all victims before it kills the first, because memory that
 * victims share can only be counted while all of them have it.
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
#include <pwd.h>
#include <regex.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define VERSION		"1.0"

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

#define LOOK_MS		1000	/* limit for reading one /proc/PID/smaps */
#define FREEZE_MS	500	/* limit for freezing a cgroup */
#define TICK_MS		100	/* between two updates of the progress line */
#define QUIET_MS	400	/* before the first one */
#define CACHE_LEFT	1048576	/* too small to report for a cgroup */

typedef unsigned long long u64;

/* As in kill(1). */
enum { ALL = 0, NONE = 1, USAGE = 2, SOME = 64 };

static struct {
	const char *pidfd, *match, *users, *parents, *cgroup, *jobs, *timeout;
	bool full, exact, dry_run, json, quiet, verbose, version, help;
} opt;

static long nr_jobs;

static bool has_flag;
static double deadline, started;
static int max_victim_fd, max_files;	/* see share_descriptors() */

/* A mapped file. Victims that map the same inode share one. */
struct file {
	struct file *next;
	int fd;
	dev_t dev;
	ino_t ino;
	u64 from, to;			/* the part that is mapped, in bytes */
	u64 before;			/* cached before the kills */
	u64 freed, left;
	bool known;			/* cachestat() or mincore() has seen pages, */
	bool mincore;			/* mincore() for this count */
};

/* A part of a process's memory that other processes may share. In bytes. */
struct part {
	enum { ANON, SWAP, REGULAR, OTHER } kind;
	u64 dev, start, end;		/* an address range, or an inode number */
	u64 all, alone, pss, dirty;
	struct file *file;
	struct victim *victim;
};

/* What a thread has read in /proc/PID/smaps. */
struct look {
	bool done, abandoned, ok;
	int dir;
	u64 alone;			/* anonymous memory that only this process has */
	u64 regular;			/* mapped pages of the files in @parts */
	u64 special;			/* the vDSO and the like, which count as file pages */
	struct part *parts;
	size_t nr_parts;
};

/* What a process holds according to /proc/PID/status, in bytes. */
struct sizes {
	u64 anon, swap, file, shmem, virt;
};

enum state { NEW, LOOKED, DONE, BUSY };

/* What becomes of memory. */
enum {
	FREED_ANON, FREED_SWAP, FREED_FILE, NR_FREED,
	LEFT_ANON = NR_FREED, LEFT_SHARED, LEFT_SWAP, LEFT_SHMEM,
	LEFT_DIRTY, LEFT_OTHERS, LEFT_CACHED, LEFT_UNKNOWN, NR_FATES
};

static const struct { const char *key, *text; } fates[NR_FATES] = {
	[FREED_ANON] = { "anon", "anonymous" },
	[FREED_SWAP] = { "swap", "swap" },
	[FREED_FILE] = { "file", "file" },
	[LEFT_ANON] = { "anon", "anonymous, still mapped" },
	[LEFT_SHARED] = { "anon_shared", "anonymous, shared with other processes" },
	[LEFT_SWAP] = { "swap", "swap" },
	[LEFT_SHMEM] = { "shmem", "shared memory" },
	[LEFT_DIRTY] = { "file_dirty", "file, not written back" },
	[LEFT_OTHERS] = { "file_shared", "file, mapped by other processes" },
	[LEFT_CACHED] = { "file_cached", "file, still cached" },
	[LEFT_UNKNOWN] = { "file_unknown", "file, unknown whether cached" },
};

struct victim {
	pid_t pid, parent;
	uid_t euid;
	int pidfd, dir;
	char name[64];
	int rank;			/* high ranks are killed first; see get_rank() */
	enum state state;
	bool stopped;			/* by mrelease */
	bool killed;			/* SIGKILL was sent */
	bool has_memory;
	bool same_memory;		/* another victim has the same address space, */
	bool counted;			/* which an earlier one stands for */
	int error;
	char why[160];			/* instead of strerror(error) */
	double ms;
	struct sizes held, now;		/* before and after the kill */
	struct look *look;
	struct part sum;		/* see sum_up() */
};

/* Workers keep pointers to victims, so that only the array of pointers moves. */
static struct victim **victims;
static size_t nr_victims;
static u64 total[NR_FATES];
static bool total_measured = true;	/* no victim was known from its status only */

/* work_lock protects the state of victims, look_lock that of looks and the files. */
static pthread_mutex_t work_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t look_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work_cond, look_cond;
static struct file *files;
static int nr_files;

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
		.tv_nsec = (u64)(ms * 1e6) % 1000000000,
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

/* No signal but SIGKILL and SIGSTOP may end or stop mrelease while a cgroup is frozen. */
static void hold_signals(void)
{
	struct sigaction old;
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTSTP);
	sigaddset(&set, SIGTTIN);
	sigaddset(&set, SIGTTOU);
	for (size_t i = 0; i < ARRAY_SIZE(ending); i++) {
		/* As with nohup. A blocked signal that is ignored would stay pending. */
		if (!sigaction(ending[i], NULL, &old) && old.sa_handler != SIG_IGN)
			sigaddset(&set, ending[i]);
	}
	sigprocmask(SIG_SETMASK, &set, NULL);
}

/* The signal that interrupted mrelease, or 0. */
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

/* Other users choose names, and a terminal obeys some bytes. */
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

#define usage_error(...) do { \
	complain(__VA_ARGS__); \
	exit(USAGE); \
} while (0)

static void thaw_all(void);

static void *check_memory(void *memory)
{
	if (!memory) {
		complain("%s", strerror(ENOMEM));
		thaw_all();
		_exit(NONE);
	}
	return memory;
}

/* Make room for one more element. The size is a power of two. */
static void *grow(void *array, size_t nr, size_t size)
{
	if (nr & (nr - 1))
		return array;
	return check_memory(realloc(array, (nr ? nr * 2 : 1) * size));
}

struct pids {
	pid_t *pid;
	size_t nr;
};

static void add_number(struct pids *pids, pid_t pid)
{
	pids->pid = grow(pids->pid, pids->nr, sizeof(pid));
	pids->pid[pids->nr++] = pid;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static int mrelease(int pidfd, unsigned int flags)
{
	return syscall(__NR_process_mrelease, pidfd, flags) ? errno : 0;
}

static int send(int pidfd, int sig)
{
	return syscall(__NR_pidfd_send_signal, pidfd, sig, NULL, 0) ? errno : 0;
}

/* True until the process has been waited for: EPERM and the like mean that it exists. */
static bool exists(int pidfd)
{
	return send(pidfd, 0) != ESRCH;
}

static bool has_ended(int pidfd, int ms)
{
	struct pollfd pfd = { .fd = pidfd, .events = POLLIN };

	return poll(&pfd, 1, ms) > 0;
}

/* Read a whole file. Return memory to be freed, or NULL with errno set. */
static char *read_all(int dir, const char *name, size_t *len)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC), error = 0;
	size_t size = 0, used = 0;
	char *text = NULL;
	ssize_t n;

	if (fd < 0)
		return NULL;
	do {
		if (size - used < 2) {
			size = size ? size * 2 : 4096;
			text = check_memory(realloc(text, size));
		}
		n = read(fd, text + used, size - 1 - used);
		if (n < 0)
			error = errno;
		else
			used += n;
	} while (n > 0);
	close(fd);
	text[used] = 0;
	if (len)
		*len = used;
	if (error) {
		free(text);
		text = NULL;
		errno = error;
	}
	return text;
}

/* Read the first line of a file, as far as there is room. Return false if there is none. */
static bool read_line(int dir, const char *name, char *line, size_t size)
{
	char *text = read_all(dir, name, NULL);

	snprintf(line, size, "%.*s", text ? (int)strcspn(text, "\n") : 0, text ?: "");
	free(text);
	return line[0];
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

/* The text behind "name:" or "name " at the start of a line, or NULL. */
static const char *find_field(const char *text, const char *name)
{
	size_t len = strlen(name);

	for (; text; text = strchr(text, '\n')) {
		text += *text == '\n';
		if (!strncmp(text, name, len) && (text[len] == ':' || text[len] == ' '))
			return text + len + 1;
	}
	return NULL;
}

static u64 field(const char *text, const char *name)
{
	const char *value = find_field(text, name);

	return value ? strtoull(value, NULL, 10) : 0;
}

static u64 field_kib(const char *text, const char *name)
{
	return field(text, name) * 1024;
}

static u64 less(u64 a, u64 b)
{
	return a > b ? a - b : 0;
}

static u64 min(u64 a, u64 b)
{
	return a < b ? a : b;
}

static u64 max(u64 a, u64 b)
{
	return a > b ? a : b;
}

static u64 take(u64 *from, u64 at_most)
{
	u64 n = min(*from, at_most);

	*from -= n;
	return n;
}

/*
 * The files of a process that dies with the init of its PID namespace, or with its
 * parent in an outer namespace, are not evicted. So the deepest namespace comes
 * first, and an init last of its namespace. @nspid is the value of NSpid.
 */
static int get_rank(const char *nspid)
{
	size_t len = strcspn(nspid, "\n");
	const char *last = nspid;
	int depth = 0;

	for (const char *p = nspid; p < nspid + len; p++) {
		if (*p == '\t') {
			last = p;
			depth++;
		}
	}
	return 2 * depth + (atoi(last) != 1);
}

/* Never returns NULL. If the process cannot be used, ->error says why. */
static struct victim *new_victim(pid_t pid, int pidfd)
{
	struct victim *v = check_memory(calloc(1, sizeof(*v)));
	const char *value;
	char path[32], *text;

	v->pid = pid;
	v->pidfd = pidfd < 0 ? (int)syscall(__NR_pidfd_open, pid, 0) : pidfd;
	v->dir = -1;
	v->error = errno;
	if (v->pidfd < 0)
		return v;
	snprintf(path, sizeof(path), "/proc/%d", pid);
	v->dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	v->error = errno == ENOENT ? ESRCH : errno;
	if (v->dir < 0)
		return v;
	v->error = EMFILE;
	if (v->dir > max_victim_fd)
		return v;
	/* Until here the directory could have been another process's. */
	v->error = ESRCH;
	if (!exists(v->pidfd))
		return v;

	text = read_all(v->dir, "status", NULL);
	v->error = text ? 0 : errno == ENOENT ? ESRCH : errno;
	read_line(v->dir, "comm", v->name, sizeof(v->name));
	v->parent = field(text, "PPid");
	value = find_field(text, "Uid");
	if (!value || sscanf(value, "%*u %u", &v->euid) != 1)
		v->euid = -1;
	value = find_field(text, "NSpid");
	v->rank = value ? get_rank(value) : 0;
	free(text);
	return v;
}

static void drop_victim(struct victim *v)
{
	close_fd(&v->pidfd);
	close_fd(&v->dir);
	free(v);
}

static void add_victim(struct victim *v)
{
	victims = grow(victims, nr_victims, sizeof(*victims));
	victims[nr_victims++] = v;
}

/* The victim with this PID, unless another process has the PID by now. */
static struct victim *known(pid_t pid)
{
	for (size_t i = nr_victims; i-- > 0;)
		if (victims[i]->pid == pid && victims[i]->pidfd >= 0 &&
		    exists(victims[i]->pidfd))
			return victims[i];
	return NULL;
}

/* What the victims hold: /proc/PID/status, /proc/PID/smaps and the files in it. */

/* Takes no lock, and any user may read it. Return false if there is no memory. */
static bool get_sizes(struct victim *v, struct sizes *sizes)
{
	char *text = read_all(v->dir, "status", NULL);
	bool has_memory = find_field(text, "VmSize");

	sizes->anon = field_kib(text, "RssAnon");
	sizes->swap = field_kib(text, "VmSwap");
	sizes->file = field_kib(text, "RssFile");
	sizes->shmem = field_kib(text, "RssShmem");
	sizes->virt = field_kib(text, "VmSize");
	free(text);
	return has_memory;
}

/* mincore() tells only root and the owner: for other users, it says that all is cached. */
static u64 count_by_mincore(const struct file *file)
{
	static unsigned char vec[1 << 16];
	u64 page = sysconf(_SC_PAGESIZE), most = sizeof(vec) * page, cached = 0;
	struct stat st;

	if (fstat(file->fd, &st) || (geteuid() && geteuid() != st.st_uid))
		return 0;
	for (u64 from = file->from; from < file->to; from += most) {
		u64 len = min(file->to - from, most);
		void *map = mmap(NULL, len, PROT_READ, MAP_SHARED, file->fd, from);

		if (map == MAP_FAILED)
			break;
		if (!mincore(map, len, vec))
			for (u64 i = 0; i < len / page; i++)
				cached += (vec[i] & 1) * page;
		munmap(map, len);
	}
	return cached;
}

static u64 count_by_cachestat(const struct file *file)
{
#ifdef __NR_cachestat
	struct { u64 off, len; } range = { file->from, file->to - file->from };
	struct { u64 cache, dirty, writeback, evicted, recently; } state;

	if (!syscall(__NR_cachestat, file->fd, &range, &state, 0))
		return state.cache * sysconf(_SC_PAGESIZE);
#endif
	return 0;
}

static void count_files_before(void)
{
	pthread_mutex_lock(&look_lock);
	for (struct file *file = files; file; file = file->next) {
		file->before = count_by_cachestat(file);
		/* The pages of an overlayfs file belong to an inode below. */
		file->mincore = !file->before;
		if (file->mincore)
			file->before = count_by_mincore(file);
		file->known |= file->before;
	}
	pthread_mutex_unlock(&look_lock);
}

static void count_files_after(void)
{
	pthread_mutex_lock(&look_lock);
	for (struct file *file = files; file; file = file->next)
		file->freed += less(file->before, file->mincore ? count_by_mincore(file) :
				    count_by_cachestat(file));
	pthread_mutex_unlock(&look_lock);
}

/*
 * Opening anything but a regular file may have side effects, and the victim can
 * replace what a name stands for: so check an O_PATH descriptor, and open that.
 * Files on tmpfs are shared memory, and left out.
 */
static int open_regular(int dir, const char *name, struct stat *st)
{
	int path = openat(dir, name, O_PATH | O_CLOEXEC), fd = -1;
	struct statfs fs;
	char link[32];

	if (path < 0)
		return -1;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", path);
	if (!fstat(path, st) && S_ISREG(st->st_mode))
		fd = open(link, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	close(path);
	if (fd >= 0 && (fstatfs(fd, &fs) || fs.f_type == TMPFS_MAGIC))
		close_fd(&fd);
	return fd;
}

/* If parts of a file overlap or have a gap, the file keeps the range of all. */
static struct file *get_file(int dir, const char *name, u64 from, u64 to)
{
	struct file *file;
	struct stat st;
	int fd = open_regular(dir, name, &st);

	if (fd < 0)
		return NULL;
	pthread_mutex_lock(&look_lock);
	file = files;
	while (file && (file->dev != st.st_dev || file->ino != st.st_ino))
		file = file->next;
	if (!file && nr_files < max_files) {
		file = check_memory(malloc(sizeof(*file)));
		*file = (struct file) {
			.next = files, .fd = fd, .dev = st.st_dev, .ino = st.st_ino, .from = from,
		};
		files = file;
		nr_files++;
		fd = -1;
	}
	if (file) {
		file->from = min(file->from, from);
		file->to = max(file->to, to);
	}
	pthread_mutex_unlock(&look_lock);
	close_fd(&fd);
	return file;
}

static void add_part(struct look *look, struct part part)
{
	look->parts = grow(look->parts, look->nr_parts, sizeof(part));
	look->parts[look->nr_parts++] = part;
}

/* Add a mapping: @line is its first line in smaps, @text the rest. */
static void add_mapping(struct look *look, const char *line, const char *text)
{
	u64 rss = field_kib(text, "Rss"), pss = field_kib(text, "Pss");
	u64 anon = min(field_kib(text, "Anonymous"), rss);
	u64 private_dirty = field_kib(text, "Private_Dirty");
	u64 shared_dirty = field_kib(text, "Shared_Dirty");
	u64 shared = field_kib(text, "Shared_Clean") + shared_dirty;
	u64 swap = field_kib(text, "Swap"), swap_pss = field_kib(text, "SwapPss");
	u64 start, end, offset, shared_anon, anon_pss;
	unsigned int major, minor;
	unsigned long inode;
	struct part part = { };
	char name[64];

	if (sscanf(line, "%llx-%llx %*s %llx %x:%x %lu", &start, &end, &offset,
		   &major, &minor, &inode) != 6)
		return;
	/* smaps does not say how much of it is shared: exact for two processes at most. */
	if (swap)
		add_part(look, (struct part) {
			.kind = SWAP, .start = start, .end = end, .all = swap,
			.alone = less(2 * swap_pss, swap), .pss = swap_pss,
		});
	/* In a file mapping, take the dirty pages for the private copies of file pages. */
	shared_anon = min(inode ? shared_dirty : shared, anon);
	anon_pss = less(inode ? field_kib(text, "Pss_Dirty") : pss,
			inode ? private_dirty : less(anon, shared_anon));
	look->alone += anon - shared_anon;
	if (shared_anon)
		add_part(look, (struct part) {
			.kind = ANON, .start = start, .end = end, .all = shared_anon,
			.pss = min(anon_pss, shared_anon),
		});
	rss -= anon;
	if (!inode)
		look->special += rss;
	if (!inode || !rss)
		return;

	shared = min(less(shared, shared_anon), rss);
	part = (struct part) {
		.kind = OTHER, .dev = (u64)major << 32 | minor, .start = inode,
		.all = rss, .alone = rss - shared,
		.pss = less(pss, anon - shared_anon + (shared_anon ? anon_pss : 0)),
		.dirty = less(private_dirty + shared_dirty, anon),
	};
	snprintf(name, sizeof(name), "map_files/%llx-%llx", start, end);
	part.file = get_file(look->dir, name, offset, offset + (end - start));
	if (part.file) {
		part.kind = REGULAR;
		part.dev = part.file->dev;
		part.start = part.file->ino;
		look->regular += rss;
	}
	part.end = part.start + 1;
	add_part(look, part);
}

static void read_smaps(struct look *look)
{
	/* Only the numbers at the beginning of the first line are needed. */
	char head[128] = "", text[2048], *line = NULL;
	int fd = openat(look->dir, "smaps", O_RDONLY | O_CLOEXEC);
	FILE *smaps = fd < 0 ? NULL : fdopen(fd, "r");
	size_t n, len = 0, size = 0;

	if (!smaps) {
		close_fd(&fd);
		return;
	}
	while (getline(&line, &size, smaps) > 0) {
		look->ok = true;
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
	if (len)
		add_mapping(look, head, text);
	free(line);
	fclose(smaps);
}

static void free_look(struct look *look)
{
	close(look->dir);
	free(look->parts);
	free(look);
}

static void *look_thread(void *arg)
{
	struct look *look = arg;
	bool abandoned;

	read_smaps(look);
	pthread_mutex_lock(&look_lock);
	look->done = true;
	abandoned = look->abandoned;
	pthread_cond_broadcast(&look_cond);
	pthread_mutex_unlock(&look_lock);
	if (abandoned)
		free_look(look);
	return NULL;
}

/*
 * A thread of its own reads smaps. The victim may hold its mmap_lock, or its file
 * system may not answer: this must not keep mrelease from killing it.
 */
static void look_at(struct victim *v)
{
	struct timespec end = at_ms(now_ms() + LOOK_MS);
	struct look *look;
	pthread_t thread;
	int error = 0;
	bool done;

	v->has_memory = get_sizes(v, &v->held);
	if (opt.quiet || !v->has_memory)
		return;
	look = check_memory(calloc(1, sizeof(*look)));
	look->dir = fcntl(v->dir, F_DUPFD_CLOEXEC, 0);
	if (look->dir < 0 || pthread_create(&thread, NULL, look_thread, look)) {
		free_look(look);
		return;
	}
	pthread_detach(thread);

	pthread_mutex_lock(&look_lock);
	while (!look->done && error != ETIMEDOUT)
		error = pthread_cond_timedwait(&look_cond, &look_lock, &end);
	done = look->done;
	look->abandoned = !done;
	pthread_mutex_unlock(&look_lock);
	if (done && look->ok)
		v->look = look;
	else if (done)
		free_look(look);
}

/* Return 1 if two processes have the same address space, 0 if not, -1 if unknown. */
static int same_memory(pid_t a, pid_t b)
{
	long order = syscall(__NR_kcmp, a, b, KCMP_VM, 0, 0);

	return order < 0 ? -1 : !order;
}

/* Find victims that share an address space with another. */
static void pair_victims(void)
{
	for (size_t i = 0; i < nr_victims; i++) {
		struct victim *v = victims[i], *other;

		for (size_t j = 0; j < i && v->state == LOOKED && v->has_memory; j++) {
			other = victims[j];
			if (other->state != LOOKED || other->held.virt != v->held.virt ||
			    same_memory(v->pid, other->pid) != 1)
				continue;
			v->same_memory = true;
			v->counted = true;
			other->same_memory = true;
			break;
		}
	}
}

/* The sum of what victims have of memory that they may share. */
struct group {
	u64 all, alone, pss, most, dirty;
	u64 cut;			/* smaps cuts PSS down to a KiB in each part */
	long members;
};

static void add_to_group(struct group *group, struct part *sum)
{
	group->all += sum->all;
	group->alone += sum->alone;
	group->dirty = max(group->dirty, sum->dirty);
	if (sum->all > sum->alone) {
		group->pss += less(sum->pss, sum->alone);
		group->most = max(group->most, sum->all - sum->alone);
		group->members++;
	}
	*sum = (struct part) { };
}

/* What the group holds: what is shared counts once. */
static u64 held(const struct group *group)
{
	return group->alone + max(group->most, group->pss);
}

/*
 * What no process outside the group has. If only the n members map a page, its PSS in
 * all of them adds up to the page; if other processes do, to n / (n + 1) of it at
 * most. With f bytes of the first kind out of m, pss <= f + (m - f) * n / (n + 1):
 * so f is (n + 1) * pss - n * m at least.
 */
static u64 held_alone(const struct group *group)
{
	u64 shared;

	if (group->pss + group->cut >= group->most)
		return held(group);
	shared = less((group->members + 1) * group->pss, group->members * group->most);
	return group->alone + min(shared, group->pss);
}

static void add_file(struct file *file, const struct group *group)
{
	u64 left = held(group), others = left - held_alone(group);
	u64 freed = file->freed;

	if (!file->known) {
		total[LEFT_UNKNOWN] += left;
		return;
	}
	if (opt.dry_run)
		freed = has_flag ? less(held_alone(group), group->dirty) : 0;
	left = less(left, freed);
	file->freed = freed;
	file->left = left;
	total[FREED_FILE] += freed;
	total[LEFT_DIRTY] += take(&left, group->dirty);
	total[LEFT_OTHERS] += take(&left, others);
	total[LEFT_CACHED] += left;
}

/*
 * Parts of one kind that overlap are the same memory: fork() keeps addresses, and
 * an inode number is a range of one.
 */
static int by_place(const void *a, const void *b)
{
	const struct part *p = a, *q = b;

	if (p->kind != q->kind)
		return p->kind < q->kind ? -1 : 1;
	if (p->dev != q->dev)
		return p->dev < q->dev ? -1 : 1;
	return p->start < q->start ? -1 : p->start > q->start;
}

/* Return the share of the OTHER parts that is left when each counts once. */
static double sum_up(struct part *parts, size_t nr)
{
	u64 other_all = 0, other_held = 0;

	if (nr)
		qsort(parts, nr, sizeof(*parts), by_place);
	for (size_t i = 0, next; i < nr; i = next) {
		struct part *first = &parts[i];
		struct group group = { };
		u64 end = first->end, all;

		for (next = i; next < nr; next++) {
			struct part *part = &parts[next], *sum = &part->victim->sum;

			if (part->kind != first->kind || part->dev != first->dev ||
			    part->start >= end)
				break;
			end = max(end, part->end);
			group.cut += part->all > part->alone ? 1024 : 0;
			sum->all += part->all;
			sum->alone += part->alone;
			sum->pss += part->pss;
			sum->dirty += part->dirty;
		}
		for (size_t j = i; j < next; j++)
			add_to_group(&group, &parts[j].victim->sum);

		all = held(&group);
		switch (first->kind) {
		case ANON:
			total[FREED_ANON] += held_alone(&group);
			total[LEFT_SHARED] += all - held_alone(&group);
			break;
		case SWAP:
			total[FREED_SWAP] += held_alone(&group);
			total[LEFT_SWAP] += all - held_alone(&group);
			break;
		case REGULAR:
			add_file(first->file, &group);
			break;
		case OTHER:
			other_all += group.all;
			other_held += all;
		}
	}
	return other_all ? (double)other_held / other_all : 1;
}

/*
 * Account once for all victims that are dying or gone. smaps does not tell shared
 * memory from files that could not be opened, but status has the sum of each.
 */
static void account(void)
{
	u64 anon_now = 0, swap_now = 0, shmem = 0, unknown = 0;
	struct part *parts = NULL;
	size_t nr = 0;
	double once;

	for (size_t i = 0; i < nr_victims; i++) {
		struct victim *v = victims[i];
		struct look *look = v->look;

		if (!v->has_memory || v->counted)
			continue;
		if (v->error != ESRCH && !(opt.dry_run ? !v->error : v->killed))
			continue;
		if (v->state != DONE)
			get_sizes(v, &v->now);
		anon_now += v->now.anon;
		swap_now += v->now.swap;
		total_measured &= !!look;
		if (!look) {
			total[FREED_ANON] += v->held.anon;
			total[FREED_SWAP] += v->held.swap;
			total[LEFT_SHMEM] += v->held.shmem;
			total[LEFT_UNKNOWN] += v->held.file;
			continue;
		}
		total[FREED_ANON] += look->alone;
		shmem += v->held.shmem;
		unknown += less(v->held.file, look->regular + look->special);
		for (size_t j = 0; j < look->nr_parts; j++) {
			parts = grow(parts, nr, sizeof(*parts));
			parts[nr] = look->parts[j];
			parts[nr++].victim = v;
		}
	}
	once = sum_up(parts, nr);
	free(parts);
	total[LEFT_SHMEM] += shmem * once;
	total[LEFT_UNKNOWN] += unknown * once;
	total[LEFT_ANON] = take(&total[FREED_ANON], anon_now);
	total[LEFT_SWAP] += take(&total[FREED_SWAP], swap_now);
}

/* Permission to kill. */

/* Whether the memory seems to be the same, from what any user may read. */
static bool looks_alike(int dir, pid_t pid)
{
	char path[32], a[128], b[128];

	snprintf(path, sizeof(path), "/proc/%d/statm", pid);
	return read_line(dir, "statm", a, sizeof(a)) && a[0] != '0' &&
	       read_line(AT_FDCWD, path, b, sizeof(b)) && !strcmp(a, b);
}

static struct pids protected;

/* An init in its own namespace ignores the signal. */
static void find_protected(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;

	while (proc && (entry = readdir(proc))) {
		pid_t pid = atoi(entry->d_name);

		if (pid == 1 || (pid > 1 && kill(pid, 0) && errno == EPERM))
			add_number(&protected, pid);
	}
	if (proc)
		closedir(proc);
}

/* Find a sharer of @v's memory that the caller may not kill, and name it in ->why. */
static bool has_protected_sharer(struct victim *v)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, find_protected);
	for (size_t i = 0; i < protected.nr; i++) {
		pid_t pid = protected.pid[i];
		char path[32], name[32];
		int same = pid == v->pid ? 0 : same_memory(v->pid, pid);

		if (!same || (same < 0 && (pid == 1 || !looks_alike(v->dir, pid))))
			continue;
		snprintf(path, sizeof(path), "/proc/%d/comm", pid);
		read_line(AT_FDCWD, path, name, sizeof(name));
		snprintf(v->why, sizeof(v->why), "%s: %d (%s)%s shares its memory",
			 strerror(EPERM), pid, name, same > 0 ? "" : " probably");
		return true;
	}
	return false;
}

/* Get the state and the flags of a process. Return false if it is gone. */
static bool get_stat(struct victim *v, char *state, unsigned int *flags)
{
	char text[1024], *p;

	read_line(v->dir, "stat", text, sizeof(text));
	p = strrchr(text, ')');
	return p && sscanf(p, ") %c %*d %*d %*d %*d %*d %u", state, flags) == 2;
}

static bool is_kthread(struct victim *v)
{
	unsigned int flags;
	char state;

	return get_stat(v, &state, &flags) && flags & PF_KTHREAD;
}

/* If another process has stopped it, only that one may let it go on. */
static bool is_stopped(struct victim *v)
{
	unsigned int flags;
	char state;

	return get_stat(v, &state, &flags) && state == 'T';
}

/* Whether SIGKILL was sent, while a call that sends it has not returned. */
static bool is_dying(struct victim *v)
{
	char *text = read_all(v->dir, "status", NULL);
	const char *pending = find_field(text, "ShdPnd");
	bool dying = has_ended(v->pidfd, 0) || !pending ||
		     strtoull(pending, NULL, 16) & 1 << (SIGKILL - 1);

	free(text);
	return dying;
}

/* What the kill would answer. */
static int ask(struct victim *v)
{
	int error = send(v->pidfd, 0);

	if (!error && has_flag && !v->has_memory)
		error = ESRCH;
	if (!error && has_flag && has_protected_sharer(v))
		error = EPERM;
	return error;
}

static void set_still_exiting(struct victim *v)
{
	v->killed = true;
	snprintf(v->why, sizeof(v->why), "killed, still exiting");
}

/* The kill on a kernel with the flag. */
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
	/* The first of two calls, or the kill of a sharer, has killed it. */
	if ((again || v->same_memory) && v->error == ESRCH)
		v->error = 0;

	v->killed = again || !v->error;
	if (v->error == EAGAIN || v->error == EINTR)
		set_still_exiting(v);
	else if (v->error == EPERM && !send(v->pidfd, 0) && !has_protected_sharer(v))
		snprintf(v->why, sizeof(v->why), "%s: another process shares its memory",
			 strerror(EPERM));
}

/*
 * The kill on any other kernel. If the victim exits first, process_mrelease()
 * fails, and its exit frees the memory.
 */
static void kill_and_reap(struct victim *v)
{
	bool shared = false;
	int error;

	v->error = send(v->pidfd, SIGKILL);
	if (v->error)
		return;
	v->killed = true;
	do {
		error = mrelease(v->pidfd, 0);
		/* All its threads have been killed, so another process uses the memory. */
		shared |= error == EINVAL;
	} while ((error == EAGAIN || error == EINVAL) && !has_ended(v->pidfd, 1) && !is_late());
	while (!has_ended(v->pidfd, TICK_MS)) {
		if (is_late()) {
			v->error = ETIMEDOUT;
			set_still_exiting(v);
			return;
		}
	}
	if (shared && !v->same_memory) {
		v->error = EINVAL;
		snprintf(v->why, sizeof(v->why), "killed, but another process uses its memory");
	}
}

static void kill_victim(struct victim *v)
{
	double start = now_ms();

	if (is_kthread(v) || v->pid == 1) {
		v->error = EPERM;
		snprintf(v->why, sizeof(v->why), "%s: %s", strerror(EPERM), v->pid == 1 ?
			 "the init of this PID namespace ignores SIGKILL" : "a kernel thread");
	} else if (opt.dry_run) {
		v->error = ask(v);
	} else if (has_flag) {
		reap_kill(v);
	} else {
		kill_and_reap(v);
	}
	v->ms = now_ms() - start;
	if (v->error == EINVAL && v->killed) {
		/* None of it is free. */
		v->now = v->held;
		if (v->look)
			free_look(v->look);
		v->look = NULL;
	} else if (!opt.quiet && !opt.dry_run) {
		get_sizes(v, &v->now);
	}
}

/* The threads that look and kill: what they do to victims of which state and rank. */
static struct {
	void (*step)(struct victim *v);
	enum state from, to;
	int rank;
	size_t next;
	long threads;
} work;

static bool is_due(const struct victim *v)
{
	return v->state == work.from && v->rank >= work.rank;
}

static long count_due(void)
{
	long due = 0;

	for (size_t i = 0; i < nr_victims; i++)
		due += is_due(victims[i]);
	return due;
}

/* The kill that is_late() ended is the last. */
static struct victim *next_victim(void)
{
	while (work.next < nr_victims && !is_late()) {
		struct victim *v = victims[work.next++];

		if (is_due(v)) {
			v->state = BUSY;
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
		work.step(v);
		pthread_mutex_lock(&work_lock);
		v->state = work.to;
		if (v->state == DONE)
			close_fd(&v->dir);
	}
	work.threads--;
	pthread_cond_signal(&work_cond);
	pthread_mutex_unlock(&work_lock);
	return unused;
}

static void progress(void)
{
	size_t done = 0;

	if (!isatty(STDERR_FILENO) || opt.quiet || now_ms() < started + QUIET_MS)
		return;
	for (size_t i = 0; i < nr_victims; i++)
		done += victims[i]->state == DONE;
	fprintf(stderr, "\r%zu of %zu, %.1f s ", done, nr_victims, (now_ms() - started) / 1e3);
	fflush(stderr);
}

/* Return false if time is up. Then threads may still be working. */
static bool do_step(void (*step)(struct victim *v), enum state from, enum state to, int rank)
{
	pthread_t thread;
	long todo;
	bool ok;

	pthread_mutex_lock(&work_lock);
	work.step = step;
	work.from = from;
	work.to = to;
	work.rank = rank;
	work.next = 0;
	todo = count_due();
	while (work.threads < (todo < nr_jobs ? todo : nr_jobs) &&
	       !pthread_create(&thread, NULL, worker, NULL)) {
		pthread_detach(thread);
		work.threads++;
	}
	/* Victims that fork all the time may have used up the user's limit. */
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
	ok = !work.threads && !count_due();
	/* What has not begun must not begin after this. */
	work.next = nr_victims;
	pthread_mutex_unlock(&work_lock);
	return ok;
}

static int highest_rank(void)
{
	int rank = -1;

	for (size_t i = 0; i < nr_victims; i++)
		if (victims[i]->state == LOOKED && victims[i]->rank > rank)
			rank = victims[i]->rank;
	return rank;
}

/* Look at all new victims, then kill them. Return false if time is up. */
static bool work_on_all(void)
{
	bool ok = do_step(look_at, NEW, LOOKED, 0);
	int rank = highest_rank();

	if (!ok || rank < 0)
		return ok;
	pair_victims();
	count_files_before();
	for (; ok && rank >= 0; rank = highest_rank())
		ok = do_step(kill_victim, LOOKED, DONE, rank);
	if (!opt.dry_run)
		count_files_after();
	return ok;
}

/* Selection of victims. The functions return false after a complaint. */

/* Parse a whole number from 0 to @most. */
static bool get_number(const char *text, long most, long *number)
{
	char *end;

	errno = 0;
	*number = strtol(text, &end, 10);
	return isdigit(text[0]) && !*end && !errno && *number <= most;
}

static void add_pid(const char *text)
{
	struct victim *v;
	long pid;

	if (!get_number(text, INT_MAX, &pid) || !pid)
		usage_error("invalid process ID: %s", text);
	for (size_t i = 0; i < nr_victims; i++)
		if (victims[i]->pid == pid)
			return;
	v = new_victim(pid, -1);
	if (pid == getpid()) {
		v->error = EINVAL;
		snprintf(v->why, sizeof(v->why), "this is mrelease itself");
	} else if (v->error == EINVAL || v->error == ENOENT) {
		snprintf(v->why, sizeof(v->why), "a thread, not a process");
	}
	if (v->error) {
		v->state = DONE;
		close_fd(&v->dir);
	}
	add_victim(v);
}

static bool add_pidfd(const char *text)
{
	char path[64], *info;
	const char *value;
	struct victim *v;
	long fd;
	int pid;

	if (!get_number(text, INT_MAX, &fd))
		usage_error("invalid file descriptor: %s", text);
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%ld", fd);
	info = read_all(AT_FDCWD, path, NULL);
	value = find_field(info, "Pid");
	pid = value ? atoi(value) : 0;
	free(info);
	if (!value) {
		complain("file descriptor %ld: %s", fd, info ? "not a pidfd" : strerror(EBADF));
		return false;
	}
	if (!pid) {
		complain("file descriptor %ld: a process of another PID namespace", fd);
		return false;
	}
	v = pid < 0 ? NULL : new_victim(pid, fd);
	if (!v || v->error) {
		complain("file descriptor %ld: %s", fd, strerror(v ? v->error : ESRCH));
		return false;
	}
	add_victim(v);
	return true;
}

static bool is_in(pid_t pid, const struct pids *pids)
{
	for (size_t i = 0; i < pids->nr; i++)
		if (pids->pid[i] == pid)
			return true;
	return false;
}

/* Parse the list of -u or -P. */
static void get_list(const char *text, struct pids *list, bool users)
{
	char *copy = check_memory(strdup(text)), *rest = copy, *word;

	while ((word = strsep(&rest, ","))) {
		struct passwd *user = users ? getpwnam(word) : NULL;
		long number;

		if (!user && !get_number(word, users ? UINT_MAX - 1L : INT_MAX, &number))
			usage_error(users ? "no such user: %s" : "invalid process ID: %s", word);
		add_number(list, user ? user->pw_uid : number);
	}
	free(copy);
}

/* /proc/PID is open since the pidfd, so that no second check of the PID is needed. */
static bool matches(struct victim *v, const regex_t *regex)
{
	char *text = NULL;
	size_t len = 0;
	bool match;

	if (!opt.match)
		return true;
	if (!opt.full)
		return !regexec(regex, v->name, 0, NULL, 0);
	text = read_all(v->dir, "cmdline", &len);
	while (len && !text[len - 1])
		len--;
	for (size_t i = 0; i < len; i++)
		text[i] = text[i] ?: ' ';
	match = len && !regexec(regex, text, 0, NULL, 0);
	free(text);
	return match;
}

static bool add_matching(void)
{
	struct pids users = { }, parents = { };
	char text[512], *whole = NULL;
	struct dirent *entry;
	DIR *proc = NULL;
	int error = 0;
	regex_t regex;

	if (opt.users)
		get_list(opt.users, &users, true);
	if (opt.parents)
		get_list(opt.parents, &parents, false);
	if (opt.exact && asprintf(&whole, "^(%s)$", opt.match) < 0)
		check_memory(NULL);
	error = opt.match ? regcomp(&regex, whole ?: opt.match, REG_EXTENDED | REG_NOSUB) : 0;
	free(whole);
	if (error) {
		regerror(error, &regex, text, sizeof(text));
		usage_error("invalid pattern: %s: %s", opt.match, text);
	}
	proc = opendir("/proc");
	while (proc && error != EMFILE && (entry = readdir(proc))) {
		struct victim *v;
		pid_t pid = atoi(entry->d_name);

		if (pid <= 0 || pid == getpid())
			continue;
		v = new_victim(pid, -1);
		error = v->error;
		if (!error && !is_kthread(v) && matches(v, &regex) &&
		    (!opt.users || is_in(v->euid, &users)) &&
		    (!opt.parents || is_in(v->parent, &parents)))
			add_victim(v);
		else
			drop_victim(v);
	}
	if (proc)
		closedir(proc);
	if (error == EMFILE) {
		complain("cannot look at all processes: %s", strerror(EMFILE));
		nr_victims = 0;
	} else if (!nr_victims && !opt.quiet) {
		complain("no process matches%s%s", opt.match ? " " : "", opt.match ?: "");
	}
	return nr_victims;
}

/* A control group. */

static struct {
	char path[PATH_MAX];
	int dir, events, freeze;
	bool froze;
	bool incomplete;	/* there are more processes than descriptors */
	u64 charge[2], anon[2], file[2];	/* before and after */
	bool charged;
} cgroup = { .dir = -1, .events = -1, .freeze = -1 };

static int by_pid(const void *a, const void *b)
{
	return *(const pid_t *)a - *(const pid_t *)b;
}

/* Read the PIDs of a cgroup and those below: 0 is a process of another namespace. */
static int read_pids(int dir, struct pids *pids)
{
	int fd = openat(dir, "cgroup.procs", O_RDONLY | O_CLOEXEC);
	FILE *procs = fd < 0 ? NULL : fdopen(fd, "r");
	struct dirent *entry;
	int error = 0;
	DIR *list;
	pid_t pid;

	if (!procs) {
		/* The cgroup was removed, and those below it before. */
		error = errno == ENOENT || errno == ENODEV ? 0 : errno;
		close_fd(&fd);
		return error;
	}
	while (fscanf(procs, "%d", &pid) == 1)
		add_number(pids, pid);
	/* The processes of a threaded cgroup are listed in a cgroup above. */
	if (ferror(procs) && errno != EOPNOTSUPP && errno != ENODEV)
		error = errno;
	fclose(procs);

	fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	list = fd < 0 ? NULL : fdopendir(fd);
	if (!list && errno != ENOENT)
		error = errno;
	if (!list)
		close_fd(&fd);
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

/* A process that has ended needs no descriptor any more. */
static void close_ended(void)
{
	for (size_t i = 0; i < nr_victims; i++) {
		struct victim *v = victims[i];

		if (v->state == DONE && v->pidfd >= 0 && has_ended(v->pidfd, 0))
			close_fd(&v->pidfd);
	}
}

/*
 * Add the processes of the cgroup that are not victims yet. A process belongs to
 * it if it is listed again after its pidfd was opened. Return how many were added;
 * processes that there are no descriptors for have to wait.
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
		v = new_victim(pids->pid[i], -1);
		error = v->error;
		if (error)
			drop_victim(v);
		else
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
 * Read a number from an open file of the cgroup: of the field @name, or the first.
 * Return 0 when the cgroup has been removed, -1 on failure.
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

/* True also if it cannot be read. */
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
	char text[32], *stat = read_all(cgroup.dir, "memory.stat", NULL);

	if (read_line(cgroup.dir, "memory.current", text, sizeof(text))) {
		cgroup.charged = true;
		cgroup.charge[when] = strtoull(text, NULL, 10);
	}
	cgroup.anon[when] = field(stat, "anon");
	cgroup.file[when] = field(stat, "file");
	free(stat);
}

static bool open_cgroup(const char *path)
{
	char line[PATH_MAX + 256], mount[PATH_MAX], type[64], full[2 * PATH_MAX];
	struct statfs fs;
	FILE *mounts;

	cgroup.dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (cgroup.dir >= 0 && !fstatfs(cgroup.dir, &fs) &&
	    (unsigned int)fs.f_type != CGROUP2_SUPER_MAGIC)
		close_fd(&cgroup.dir);
	/* A path as in /proc/PID/cgroup begins where cgroups are mounted. */
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
		complain("%s: no such cgroup of version 2", path);
		return false;
	}
	snprintf(line, sizeof(line), "/proc/self/fd/%d", cgroup.dir);
	if (readlink(line, cgroup.path, sizeof(cgroup.path) - 1) < 0)
		snprintf(cgroup.path, sizeof(cgroup.path), "%s", path);
	/* Later there may be no descriptors left, or no right to open it. */
	cgroup.events = openat(cgroup.dir, "cgroup.events", O_RDONLY | O_CLOEXEC);
	if (cgroup.events < 0) {
		complain("%s: %s", path, errno == ENOENT ?
			 "the root cgroup, which all processes are in" : strerror(errno));
		return false;
	}
	read_line(cgroup.dir, "cgroup.type", type, sizeof(type));
	if (!strcmp(type, "threaded")) {
		complain("%s: a threaded cgroup; its processes belong to a cgroup above it", path);
		return false;
	}
	cgroup.freeze = openat(cgroup.dir, "cgroup.freeze", O_RDWR | O_CLOEXEC);
	if (cgroup.freeze < 0)
		cgroup.freeze = openat(cgroup.dir, "cgroup.freeze", O_RDONLY | O_CLOEXEC);
	return true;
}

/*
 * A frozen process does not fork, and a child that it was about to have does not
 * start. Without the right to freeze, kill_cgroup() stops each process.
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

static bool kill_cgroup(const char *path)
{
	struct pids pids = { 0 };
	bool ok = true, frozen, helped = false;

	if (!open_cgroup(path))
		return false;
	/* Unless all PIDs are known, mrelease might freeze itself. */
	if (!get_pids(&pids))
		return false;
	if (is_among(getpid(), &pids)) {
		complain("%s: mrelease itself is in this cgroup", path);
		return false;
	}
	read_charge(0);
	if (opt.dry_run) {
		add_from_cgroup(&pids);
		if (cgroup.incomplete)
			complain("%s: cannot look at all processes: %s", path, strerror(EMFILE));
		ok = work_on_all() && !cgroup.incomplete;
		free(pids.pid);
		return ok;
	}

	frozen = freeze_all();
	while (populated() && ok && !is_late()) {
		bool more = add_from_cgroup(&pids), left = false, failed = false;

		/* As long as there are new processes, one of them may be forking. */
		if (more && !frozen) {
			for (size_t i = 0; i < nr_victims; i++) {
				struct victim *v = victims[i];

				if (v->state == NEW && !v->stopped && !is_stopped(v))
					v->stopped = !send(v->pidfd, SIGSTOP);
			}
			continue;
		}
		ok = work_on_all();

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
			complain("%s: has processes of another PID namespace", path);
		if (!more && !left && failed)
			break;
		/* Not needed: it makes the kernel kill processes that appear later. */
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

/* The report. */

static const char *size_text(u64 bytes)
{
	static char text[8][24];
	static int i;
	char *to = text[i = (i + 1) % 8];

	if (bytes < 1 << 20)
		snprintf(to, sizeof(text[0]), "%llu KiB", bytes >> 10);
	else
		snprintf(to, sizeof(text[0]), "%.1f MiB", bytes / 1048576.0);
	return to;
}

/* A process that was found, and exited before it was killed, is no failure. */
static bool is_gone(const struct victim *v)
{
	return v->state == DONE && v->error == ESRCH && (opt.match || opt.users ||
							 opt.parents || opt.cgroup);
}

static bool failed(const struct victim *v)
{
	return v->error && !is_gone(v);
}

/* Time is up, or a signal came: say what has become of the victim until then. */
static void conclude(struct victim *v)
{
	if (v->state == DONE)
		return;
	v->error = interrupted() ? EINTR : ETIMEDOUT;
	if (v->state == BUSY && !opt.dry_run && is_dying(v))
		set_still_exiting(v);
	else
		snprintf(v->why, sizeof(v->why), "not %s: %s", opt.dry_run ? "examined" : "killed",
			 interrupted() ? "interrupted" : "time is up");
}

static const char *error_text(const struct victim *v)
{
	return v->why[0] ? v->why : strerror(v->error);
}

static void tell_victim(const struct victim *v)
{
	printf("%d ", v->pid);
	put_text(v->name, stdout);
	printf(": %s %s anonymous, %s swap, %s file, %s shared memory",
	       opt.dry_run ? "holds" : "held", size_text(v->held.anon), size_text(v->held.swap),
	       size_text(v->held.file), size_text(v->held.shmem));
	if (!opt.dry_run)
		printf("; killed in %.1f ms", v->ms);
	putchar('\n');
}

static void tell_total(void)
{
	const char *sep = opt.dry_run ? "total: would free " : "total: freed ";

	for (int i = 0; i < NR_FATES; i++) {
		if (i == NR_FREED)
			sep = "; left ";
		if (i >= NR_FREED && !total[i])
			continue;
		printf("%s%s %s", sep, size_text(total[i]), fates[i].text);
		sep = ", ";
	}
	printf("%s\n", total_measured ? "" : " (in part from /proc/PID/status)");
	for (struct file *file = files; opt.verbose && file; file = file->next) {
		char link[32], name[PATH_MAX] = "";

		if (!file->freed && !file->left)
			continue;
		snprintf(link, sizeof(link), "/proc/self/fd/%d", file->fd);
		if (readlink(link, name, sizeof(name) - 1) < 0)
			continue;
		put_text(name, stdout);
		printf(": %s %s, left %s\n", opt.dry_run ? "would free" : "freed",
		       size_text(file->freed), size_text(file->left));
	}
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
	if (cgroup.file[1] < CACHE_LEFT || faccessat(cgroup.dir, "memory.reclaim", F_OK, 0))
		return;
	put_text(opt.cgroup, stdout);
	printf(": %s of page cache is left, as of files that were read or written, not mapped.",
	       size_text(cgroup.file[1]));
	printf(" To free it: echo %llu >", cgroup.file[1]);
	put_text(cgroup.path, stdout);
	puts("/memory.reclaim");
}

static const char *json_bool(bool value)
{
	return value ? "true" : "false";
}

/* Decode a UTF-8 character. Return its length, or 0 if it is invalid. */
static int decode(const char *text, unsigned int *code)
{
	static const unsigned int least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	unsigned char c = *text;
	int len = c < 0x80 ? 1 : c < 0xc0 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf8 ? 4 : 0;

	*code = len == 1 ? c : c & (0x7f >> len);
	for (int i = 1; i < len; i++) {
		if ((text[i] & 0xc0) != 0x80)
			return 0;
		*code = *code << 6 | (text[i] & 0x3f);
	}
	return *code < least[len] || *code > 0x10ffff || *code >> 11 == 0x1b ? 0 : len;
}

/* Names are bytes: what is not UTF-8 becomes U+FFFD. */
static void json_string(const char *text)
{
	unsigned int code;
	int len;

	putchar('"');
	for (; *text; text += len ?: 1) {
		len = decode(text, &code);
		if (!len)
			printf("\\ufffd");
		else if (code < ' ' || (code >= 0x7f && code < 0xa0))
			printf("\\u%04x", code);
		else
			printf("%s%.*s", code == '"' || code == '\\' ? "\\" : "", len, text);
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
	printf(",\"killed\":%s,\"error\":", json_bool(v->killed));
	if (v->error)
		json_string(error_text(v));
	else
		printf("null");
	printf(",\"ms\":%.3f,\"held\":{\"anon\":%llu,\"swap\":%llu,\"file\":%llu,\"shmem\":%llu}}",
	       v->ms, v->held.anon, v->held.swap, v->held.file, v->held.shmem);
}

static void tell_json(bool ok)
{
	printf("{\"reap_kill\":%s,\"dry_run\":%s,\"ok\":%s,\"victims\":[",
	       json_bool(has_flag), json_bool(opt.dry_run), json_bool(ok));
	for (size_t i = 0; i < nr_victims; i++) {
		printf(i ? ",\n" : "\n");
		json_victim(victims[i]);
	}
	printf("],\n\"total\":{\"measured\":%s", json_bool(total_measured));
	for (int i = 0; i < NR_FATES; i++)
		printf("%s\"%s\":%llu", !i ? ",\"freed\":{" : i == NR_FREED ? "},\"left\":{" : ",",
		       fates[i].key, total[i]);
	printf("}}");
	if (cgroup.charged && !opt.dry_run) {
		printf(",\n\"cgroup\":{");
		json_charge("before", 0);
		putchar(',');
		json_charge("after", 1);
		putchar('}');
	}
	printf("}\n");
}

/* Return @status, or NONE if the standard output could not be written. */
static int finish_output(int status)
{
	int error = fflush(stdout) ? errno : 0;

	if (!error && !ferror(stdout))
		return status;
	complain("cannot write: %s", strerror(error ?: EIO));
	return NONE;
}

static int report(bool ok)
{
	size_t done = 0;

	/* Workers that have not finished must not change anything any more. */
	pthread_mutex_lock(&work_lock);
	clear_progress();
	for (size_t i = 0; i < nr_victims; i++)
		conclude(victims[i]);
	if (!opt.quiet) {
		account();
		if (!has_flag)
			complain("%s: the file pages of the processes stay cached",
				 "this kernel has no PROCESS_MRELEASE_REAP_KILL");
	}
	for (size_t i = 0; i < nr_victims; i++) {
		struct victim *v = victims[i];

		if (failed(v)) {
			ok = false;
			if (v->name[0])
				complain("%d (%s): %s", v->pid, v->name, error_text(v));
			else
				complain("%d: %s", v->pid, error_text(v));
			continue;
		}
		done++;
		if (!opt.quiet && !opt.json && !is_gone(v))
			tell_victim(v);
	}
	if (opt.json) {
		tell_json(ok);
	} else if (!opt.quiet) {
		if (done)
			tell_total();
		tell_cgroup();
	}
	return finish_output(ok ? ALL : done ? SOME : NONE);
}

static void usage(void)
{
	puts("Usage: mrelease [options] PID...\n"
	     "       mrelease [options] --pidfd FD\n"
	     "       mrelease [options] [--match PATTERN] [--euid USERS] [--parent PIDS]\n"
	     "       mrelease [options] --cgroup PATH\n"
	     "\n"
	     "Kill processes, and all processes that share their memory, and free the memory.\n"
	     "\n"
	     "  -p, --pidfd FD         kill the process of this open pidfd\n"
	     "  -m, --match PATTERN    kill processes whose name matches the extended regular\n"
	     "                         expression\n"
	     "  -f, --full             match the command line, not the name\n"
	     "  -x, --exact            match all of it\n"
	     "  -u, --euid USERS       only processes of these effective users, as a,b,c\n"
	     "  -P, --parent PIDS      only children of these processes\n"
	     "  -c, --cgroup PATH      kill all processes in a cgroup (version 2) and below\n"
	     "  -j, --jobs N           work on N processes at a time (default: number of CPUs)\n"
	     "  -n, --dry-run          kill nothing, show what would be killed and freed\n"
	     "  -t, --timeout SECONDS  give up after this time (default 10; 0: never)\n"
	     "      --json             write the report as JSON\n"
	     "  -q, --quiet            write errors only, and do not measure\n"
	     "  -v, --verbose          list the files that were freed or left\n"
	     "  -V, --version          show the version, and whether the kernel has the flag\n"
	     "  -h, --help             show this help");
}

/*
 * Half of them for victims, a quarter for the files that they map, and the rest
 * for what is open for a moment, of which each worker needs some. The kernel uses
 * the lowest free number: so a number tells how many there are.
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
	if (nr_jobs > nr / 32)
		nr_jobs = nr / 32 ?: 1;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "pidfd", required_argument, NULL, 'p' },
		{ "match", required_argument, NULL, 'm' },
		{ "full", no_argument, NULL, 'f' },
		{ "exact", no_argument, NULL, 'x' },
		{ "euid", required_argument, NULL, 'u' },
		{ "parent", required_argument, NULL, 'P' },
		{ "cgroup", required_argument, NULL, 'c' },
		{ "jobs", required_argument, NULL, 'j' },
		{ "dry-run", no_argument, NULL, 'n' },
		{ "timeout", required_argument, NULL, 't' },
		{ "json", no_argument, NULL, 'J' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "verbose", no_argument, NULL, 'v' },
		{ "version", no_argument, NULL, 'V' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	static const char **const texts[128] = {
		['p'] = &opt.pidfd, ['m'] = &opt.match, ['u'] = &opt.users, ['P'] = &opt.parents,
		['c'] = &opt.cgroup, ['j'] = &opt.jobs, ['t'] = &opt.timeout,
	};
	static bool *const flags[128] = {
		['f'] = &opt.full, ['x'] = &opt.exact, ['n'] = &opt.dry_run, ['J'] = &opt.json,
		['q'] = &opt.quiet, ['v'] = &opt.verbose, ['V'] = &opt.version, ['h'] = &opt.help,
	};
	double seconds = 10;
	bool ok = true, search;
	int c, sig, status;
	char *end;

	/* If one of these is closed, no other file may get its number: writing fails. */
	for (int fd = 0; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0)
			open("/", O_RDONLY);
	setvbuf(stderr, NULL, _IOLBF, 0);
	argv[0] = "mrelease";
	while ((c = getopt_long(argc, argv, "p:m:fxu:P:c:j:nt:qvVh", options, NULL)) != -1) {
		if (texts[c])
			*texts[c] = optarg;
		else if (flags[c])
			*flags[c] = true;
		else
			return USAGE;
	}
	has_flag = mrelease(-1, PROCESS_MRELEASE_REAP_KILL) == EBADF;
	if (opt.version)
		printf("mrelease %s (this kernel has %sPROCESS_MRELEASE_REAP_KILL)\n",
		       VERSION, has_flag ? "" : "no ");
	if (opt.help)
		usage();
	if (opt.version || opt.help)
		return finish_output(ALL);
	nr_jobs = sysconf(_SC_NPROCESSORS_ONLN);
	if (opt.jobs && (!get_number(opt.jobs, INT_MAX, &nr_jobs) || !nr_jobs))
		usage_error("invalid number of jobs: %s", opt.jobs);
	if (opt.timeout) {
		seconds = strtod(opt.timeout, &end);
		if (end == opt.timeout || *end || !(seconds >= 0 && seconds < 1e9))
			usage_error("invalid number of seconds: %s", opt.timeout);
	}
	search = opt.match || opt.users || opt.parents;
	c = (optind < argc) + !!opt.pidfd + search + !!opt.cgroup;
	if (!c)
		usage_error("no process given; try mrelease --help");
	if (c > 1)
		usage_error("give only one of: process IDs, --pidfd, a search, --cgroup");
	if ((opt.full || opt.exact) && !opt.match)
		usage_error("--full and --exact need --match");
	if (opt.quiet && (opt.json || opt.verbose))
		usage_error("--quiet excludes --json and --verbose");
	if (access("/proc/self/fdinfo", F_OK)) {
		complain("/proc is not mounted");
		return NONE;
	}

	cond_init(&work_cond);
	cond_init(&look_cond);
	hold_signals();
	share_descriptors();
	started = now_ms();
	deadline = seconds ? started + seconds * 1e3 : 0;
	if (opt.cgroup) {
		ok = kill_cgroup(opt.cgroup);
	} else {
		if (opt.pidfd)
			ok = add_pidfd(opt.pidfd);
		else if (search)
			ok = add_matching();
		for (; optind < argc; optind++)
			add_pid(argv[optind]);
		ok &= work_on_all();
	}
	status = report(ok);
	/* Without waiting for a worker that is stuck in the kernel. */
	sig = interrupted();
	_exit(sig ? 128 + sig : status);
}
