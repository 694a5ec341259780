// SPDX-License-Identifier: GPL-2.0
/*
 * pressure SCENE EPISODES TIMEOUT WAYS: a foreground program needs memory that background
 * programs have, and a killer kills some of these, in each of the ways in turn: lmkd, one,
 * or the path of a daemon.
 *
 * The killer has LMKD's policy: when it looks, when it kills, which program, and how
 * long it waits for a kill to be over, TIMEOUT milliseconds at most (LMKD's default is
 * 100). The ways differ in the system calls only. A kill is over when the victim has
 * exited and, with the one call, also when the call has returned. All
 * background programs are ones that LMKD calls cached, so the limits that it has for
 * perceptible ones are not here; all properties have LMKD's defaults.
 *
 * phone: twelve programs. restart: each is started again when it has been killed.
 * shared: all map the same file, and have none of their own. server: eight containers,
 * and one that leaks. short: four idle programs, of which one must be killed; only the
 * mapped pages of their files are cached.
 */
#include "kill.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/sysinfo.h>

#define CGROUPS		"/sys/fs/cgroup/"
#define FRONT		CGROUPS "foreground"
#define BACK		CGROUPS "background"
#define MAX_APPS	12
#define MAX_KILLS	64
#define WORKERS		2
/* A step of the foreground: so many pages of memory, and of its file. */
#define STEP		128
#define STEP_FILE	16
#define LOW_AFTER_KILL	"low after a kill"

/* Sizes are in 1024ths of the memory: MiB, if that is a GiB. */
static size_t unit;
static size_t high, low, min;

static const struct scene {
	const char *name;
	int apps, anon, file, common, swap, burst, bursts;
	bool programs, restart, leak, idle;
} scenes[] = {
	{ "phone", 12, 52, 24, 48, 256, 320, 3, .programs = true },
	{ "restart", 12, 52, 24, 48, 256, 320, 3, .programs = true, .restart = true },
	{ "shared", 12, 52, 0, 240, 256, 320, 3, .programs = true },
	{ "server", 9, 56, 24, 48, 256, 0, 0, .leak = true },
	{ "short", 4, 165, 60, 0, 64, 320, 1, .idle = true },
}, *scene;

/* Programs */

struct app {
	struct victim v;
	char group[64];
	size_t anon;
	int fd, common, adj;
	unsigned int seed;
	enum { UP, DYING, DEAD } state;
};

static struct app apps[MAX_APPS], workers[WORKERS];

/* How long each step took. */
static struct {
	int nr, us[1 << 16];
} *stalls[WORKERS];

/* Half of a page does not compress. */
static void fill(void *page, unsigned int seed, size_t index)
{
	static uint64_t noise[4096 + PAGE / 2 / sizeof(uint64_t)];
	const size_t nr = sizeof(noise) / sizeof(*noise);
	uint64_t id = (uint64_t)seed << 32 | index, *p = page;

	for (size_t i = 0; !noise[nr - 1] && i < nr; i++)
		noise[i] = (i + 1) * 0x9e3779b97f4a7c15UL ^ (i + 1) * 0xbf58476d1ce4e5b9UL >> 29;
	memcpy(p, noise + (id * 0x9e3779b97f4a7c15UL >> 52), PAGE / 2);
	*p = id;
}

static void *fill_anon(size_t size, unsigned int seed)
{
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	for (size_t i = 0; i < size; i += PAGE)
		fill(p + i, seed, i / PAGE);
	return p;
}

static bool intact(const char *p, size_t size, unsigned int seed)
{
	char page[PAGE] = "";

	for (size_t i = 0; i < size; i += PAGE) {
		fill(page, seed, i / PAGE);
		if (memcmp(page, p + i, PAGE))
			return false;
	}
	return true;
}

static size_t size_of(int fd)
{
	struct stat st;

	if (fd < 0)
		return 0;
	check(fstat(fd, &st));
	return st.st_size;
}

static const char *map_file(int fd)
{
	size_t size = size_of(fd);
	const char *p = NULL;

	if (size)
		p = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die("mmap");
	for (size_t i = 0; i < size; i += PAGE)
		(void)*(volatile const char *)(p + i);
	return p;
}

static int filled_file(const char *name, size_t size, unsigned int seed)
{
	char path[32], page[PAGE] = "";
	FILE *f;
	int fd;

	if (!size)
		return -1;
	snprintf(path, sizeof(path), "/mnt/%s", name);
	f = fopen(path, "w");
	for (size_t i = 0; f && i < size; i += PAGE) {
		fill(page, seed, i / PAGE);
		fwrite(page, PAGE, 1, f);
	}
	if (!f || fflush(f) || fsync(fileno(f)))
		die("%s", path);
	fclose(f);
	fd = check(open(path, O_RDONLY | O_CLOEXEC));
	drop(fd);
	return fd;
}

static void touch(const char *p, size_t size, int pages)
{
	while (size && pages--)
		(void)*(volatile const char *)(p + random() % (size / PAGE) * PAGE);
}

static void ready(void)
{
	check(write(1, "ready", 5));
	told(0);
}

/* Uses a little of what it has; says whether all is intact; leaks. */
static void be_app(const struct victim *v)
{
	const struct app *a = (const struct app *)v;
	char *anon = fill_anon(a->anon, a->seed);
	const char *file = map_file(a->fd), *common = map_file(a->common);
	struct pollfd in = { .fd = 0, .events = POLLIN };
	char order = 0;
	bool ok;

	ready();
	for (;;) {
		if (poll(&in, 1, order == 'l' ? 5 : 200) > 0) {
			check(read(0, &order, 1));
			if (order == 'v') {
				ok = intact(anon, a->anon, a->seed) &&
				     intact(file, size_of(a->fd), a->seed) &&
				     intact(common, size_of(a->common), 0);
				check(write(1, ok ? "y" : "n", 1));
			}
		}
		if (order == 'l')
			fill_anon(MIB, 0);
		if (scene->idle)
			continue;
		touch(anon, a->anon, 32);
		touch(file, size_of(a->fd), 16);
		touch(common, size_of(a->common), 16);
	}
}

/* Allocates in bursts, then works on what it has, and reads its file all the time. */
static void be_worker(const struct victim *v)
{
	const struct app *a = (const struct app *)v;
	int w = a - workers, steps = a->anon / (STEP * PAGE), done = 0;
	const char *file = map_file(a->fd);
	char *anon = NULL;
	long begin;

	/* The first to use the common file is the one that is charged for it. */
	map_file(a->common);
	ready();
	told(0);
	if (a->anon)
		anon = mmap(NULL, a->anon, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (anon == MAP_FAILED)
		die("mmap");
	for (int i = 0; i < steps + 150; i++) {
		begin = now_ns();
		if (i < steps)
			for (int page = 0; page < STEP; page++, done++)
				fill(anon + done * PAGE, a->seed, done);
		else
			touch(anon, a->anon, STEP);
		touch(file, size_of(a->fd), STEP_FILE);
		stalls[w]->us[stalls[w]->nr++] = (now_ns() - begin) / 1000;
		if (i >= steps)
			usleep(scene->leak ? 40000 : 20000);
		else if ((i + 1) % (steps / scene->bursts) == 0)
			usleep(300000);
	}
	check(write(1, intact(anon, a->anon, a->seed) ? "y" : "n", 1));
	pause();
}

static void set_in(const char *group, const char *file, const char *text)
{
	char path[96];

	snprintf(path, sizeof(path), "%s/%s", group, file);
	set(path, text);
}

static size_t get(const char *group, const char *file, const char *word)
{
	char path[96];

	snprintf(path, sizeof(path), "%s/%s", group, file);
	return number(path, word, 0);
}

static void start_app(struct app *a)
{
	static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
	char path[64], adj[8];

	pthread_mutex_lock(&one);
	start(&a->v);
	pthread_mutex_unlock(&one);
	snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", a->v.pid);
	snprintf(adj, sizeof(adj), "%d", a->adj);
	set(path, adj);
	if (a->v.program == &programs[REDIS])
		load_redis(40 * unit / MIB);
	__atomic_store_n(&a->state, UP, __ATOMIC_RELEASE);
}

/* A daemon may have sent another signal. */
static void end_app(struct app *a)
{
	if (a->state != DEAD) {
		kill(a->v.pid, SIGKILL);
		check(waitpid(a->v.pid, NULL, 0));
		close(a->v.pidfd);
		close(a->v.in);
		close(a->v.out);
	}
	a->state = DEAD;
}

/* Killed by a daemon, or by us. */
static bool has_died(const struct app *a)
{
	siginfo_t info = { 0 };

	check(waitid(P_PID, a->v.pid, &info, WEXITED | WNOHANG | WNOWAIT));
	return info.si_pid;
}

static pid_t start_daemon(const char *path)
{
	pid_t pid = check(fork());

	if (!pid) {
		check(dup2(2, 1));
		execl(path, path, "-r", "0", NULL);
		die("%s", path);
	}
	return pid;
}

/* What is measured of the machine. */

enum { REFAULT_FILE, REFAULT_ANON, INACTIVE, ACTIVE, DIRECT, KSWAPD, OOM, NR_VM };
static const char *const vm_name[] = {
	"\nworkingset_refault_file ", "\nworkingset_refault_anon ", "\nnr_inactive_file ",
	"\nnr_active_file ", "\npgscan_direct ", "\npgscan_kswapd ", "\noom_kill ",
};

static void read_vm(long *vm)
{
	static char buf[1 << 14];
	int fd = check(open("/proc/vmstat", O_RDONLY | O_CLOEXEC));

	buf[check(read(fd, buf, sizeof(buf) - 1))] = 0;
	close(fd);
	for (int i = 0; i < NR_VM; i++) {
		char *p = strstr(buf, vm_name[i]);

		if (!p)
			die("no %s", vm_name[i]);
		vm[i] = atol(p + strlen(vm_name[i]));
	}
}

static size_t free_pages(void)
{
	struct sysinfo info;

	sysinfo(&info);
	return info.freeram / PAGE;
}

/* Of all zones, as LMKD has them. */
static void read_watermarks(void)
{
	FILE *f = fopen("/proc/zoneinfo", "re");
	long n, present = 0, zone[3] = { 0 };
	char line[512], *p;

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, " min %ld", &n) == 1)
			zone[0] = n;
		else if (sscanf(line, " low %ld", &n) == 1)
			zone[1] = n;
		else if (sscanf(line, " high %ld", &n) == 1)
			zone[2] = n;
		else if (sscanf(line, " present %ld", &n) == 1)
			present = n;
		p = strstr(line, "protection: (");
		if (!p || !present)
			continue;
		n = 0;
		for (p += 12; *p == '(' || *p == ','; ) {
			long here = strtol(p + 1, &p, 10);

			if (here > n)
				n = here;
		}
		min += zone[0] + n;
		low += zone[1] + n;
		high += zone[2] + n;
	}
	if (!high)
		die("no watermarks");
	fclose(f);
}

/* Of CPU time. */
static long kswapd_ms(void)
{
	static char path[32];
	long user, system;
	int pid;
	FILE *f;

	if (!*path) {
		f = popen("pidof kswapd0", "re");
		if (!f || fscanf(f, "%d", &pid) != 1)
			die("no kswapd");
		pclose(f);
		snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	}
	f = fopen(path, "re");
	if (!f || fscanf(f, "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*d %*d %*d %*d %*d %ld %ld",
			 &user, &system) != 2)
		die("%s", path);
	fclose(f);
	return (user + system) * 10;
}

/* Of all stalls for memory: of some tasks, or of all that would run. */
static long psi_us(const char *which)
{
	char buf[256] = "", *p;
	int fd = check(open("/proc/pressure/memory", O_RDONLY | O_CLOEXEC));

	check(read(fd, buf, sizeof(buf) - 1));
	close(fd);
	p = strstr(strstr(buf, which) ?: "", "total=");
	if (!p)
		die("no %s", which);
	return atol(p + strlen("total="));
}

struct counters {
	long vm[NR_VM], kswapd_ms, full_us, some_us, sectors;
};

static void read_counters(struct counters *c)
{
	read_vm(c->vm);
	c->kswapd_ms = kswapd_ms();
	c->some_us = psi_us("some");
	c->full_us = psi_us("full");
	c->sectors = number("/proc/diskstats", " vda ", 2);
}

/* The killer */

/* Of this episode: a way, or the path of a daemon. */
static const char *killer;

struct kill {
	struct app *app;
	enum way way;
	const char *reason;
	/* The victim's, and what the one call's return is told by. */
	int pidfd, over, error;
	long begin, above, took;
	size_t held, anon, left, left_file, free;
	pthread_t thread;
} kills[MAX_KILLS];
static int nr_kills;

/* The cpu cgroup for the dying: any that is not the background's. */
static void *raise_priority(void *arg)
{
	struct kill *k = arg;
	char pid[16];
	int fd = check(open(FRONT "/cgroup.procs", O_WRONLY | O_CLOEXEC));

	snprintf(pid, sizeof(pid), "%d", k->app->v.pid);
	if (write(fd, pid, strlen(pid)) < 0 && errno != ESRCH)
		die("%s", FRONT);
	close(fd);
	hurry(k->app->v.pid);
	return NULL;
}

static void *reap(void *arg)
{
	struct kill *k = arg;
	pthread_t other;

	check(setpriority(PRIO_PROCESS, 0, -20));
	if (k->way == ONE_CALL) {
		for (int tries = 0; tries < 3; tries++) {
			k->error = mrelease(k->app->v.pidfd, PROCESS_MRELEASE_REAP_KILL);
			if (k->error != EAGAIN)
				break;
		}
		set_in(k->app->group, "cgroup.kill", "1");
	} else {
		set_in(k->app->group, "cgroup.kill", "1");
		pthread_create(&other, NULL, raise_priority, k);
		k->error = mrelease(k->app->v.pidfd, 0);
		pthread_join(other, NULL);
	}
	k->took = now_ns() - k->begin;
	if (k->way == ONE_CALL && !k->error)
		check(eventfd_write(k->over, 1));
	if (scene->restart) {
		wait_for(&k->app->v);
		/* What it has from here on is not the dead's. */
		k->app->state = DEAD;
		start_app(k->app);
	}
	return NULL;
}

/* The highest oom_score_adj, the heaviest among equals. */
static struct app *choose(void)
{
	struct app *best = NULL;
	size_t size, most = 0;
	char path[32];

	for (int i = 0; i < scene->apps; i++) {
		struct app *a = apps + i;

		if (__atomic_load_n(&a->state, __ATOMIC_ACQUIRE) != UP || (best && a->adj < best->adj))
			continue;
		snprintf(path, sizeof(path), "/proc/%d/statm", a->v.pid);
		size = number(path, "", 1);
		if (!best || a->adj > best->adj || size > most) {
			best = a;
			most = size;
		}
	}
	return best;
}

static struct kill *begin_kill(enum way way, const char *reason)
{
	struct kill *k = kills + nr_kills;
	struct app *a = choose();

	if (!a || nr_kills == MAX_KILLS)
		return NULL;
	*k = (struct kill){ .app = a, .way = way, .reason = reason,
			    .over = check(eventfd(0, EFD_CLOEXEC)),
			    .pidfd = check(fcntl(a->v.pidfd, F_DUPFD_CLOEXEC, 0)) };
	k->free = free_pages() * PAGE;
	for (int i = 0; i < nr_kills; i++) {
		if (kills[i].app->state != DYING)
			continue;
		k->left += get(kills[i].app->group, "memory.stat", "anon ");
		k->left_file += get(kills[i].app->group, "memory.stat", "file ");
	}
	k->anon = get(a->group, "memory.stat", "anon ");
	/* Of what is in swap half is in memory. */
	k->held = get(a->group, "memory.current", "") + get(a->group, "memory.swap.current", "") / 2;
	a->state = DYING;
	k->begin = now_ns();
	nr_kills++;
	if (pthread_create(&k->thread, NULL, reap, k))
		die("pthread_create");
	return k;
}

/* LMKD's mp_event_psi(): is there a reason to kill? */
struct policy {
	long vm[NR_VM], first_refault, last_refault, file, direct, kswapd, reset, grown, limit;
	bool killing, swap_is_low, in_direct;
};

static const char *must_kill(struct policy *p, bool not_responding)
{
	size_t free = free_pages();
	long now = now_ns() / 1000000, thrashing = 0, windows;
	bool after_kill = p->killing, reclaim = true;
	struct sysinfo info;

	sysinfo(&info);
	read_vm(p->vm);
	if (after_kill || !p->reset) {
		p->killing = false;
		p->file = p->vm[INACTIVE] + p->vm[ACTIVE];
		p->first_refault = p->vm[REFAULT_FILE];
		p->reset = now;
		p->grown = 0;
	}
	p->swap_is_low = info.freeswap < info.totalswap / 10;
	p->in_direct = p->vm[DIRECT] > p->direct;
	reclaim = p->in_direct || p->vm[KSWAPD] > p->kswapd;
	p->direct = p->vm[DIRECT];
	p->kswapd = p->vm[KSWAPD];
	if (!reclaim && p->vm[REFAULT_FILE] == p->last_refault)
		return NULL;
	p->last_refault = p->vm[REFAULT_FILE];
	/* The percentage of the page cache that has been read again. */
	thrashing = (p->vm[REFAULT_FILE] - p->first_refault) * 100 / (p->file + 1);
	windows = (now - p->reset) / 1000;
	if (now - p->reset > 1000) {
		p->grown = thrashing;
		if (windows > 1 || p->grown < p->limit)
			p->grown >>= windows;
		p->file = p->vm[INACTIVE] + p->vm[ACTIVE];
		p->first_refault = p->vm[REFAULT_FILE];
		p->reset = now;
		p->limit = 100;
		thrashing = 0;
	}
	thrashing += p->grown;

	if (after_kill && free < low)
		return LOW_AFTER_KILL;
	if (not_responding)
		return "not responding";
	if (p->swap_is_low && (thrashing > 100 || free < high))
		return "swap is low";
	if ((free < high || p->in_direct) && thrashing > p->limit) {
		p->limit = p->limit * 9 / 10;
		return "thrashing";
	}
	return NULL;
}

static int psi_trigger(const char *text)
{
	int fd = check(open("/proc/pressure/memory", O_RDWR | O_CLOEXEC | O_NONBLOCK));

	check(write(fd, text, strlen(text) + 1));
	return fd;
}

/* LMKD's main loop, until the foreground is done. TIMEOUT 0: no kill. */
static void guard(enum way way, int timeout)
{
	enum { SOME, FULL, PIDFD, OVER, DONE, NR = DONE + WORKERS };
	struct policy p = { .limit = 100 };
	struct pollfd fds[NR] = {
		{ .fd = psi_trigger("some 70000 1000000"), .events = POLLPRI },
		{ .fd = psi_trigger("full 700000 1000000"), .events = POLLPRI },
		{ .fd = -1, .events = POLLIN }, { .fd = -1, .events = POLLIN },
	};
	long begin = now_ns() / 1000000, now, polling = 0, looked = 0, interval = 100, wait;
	int working = WORKERS;
	struct kill *k = NULL;
	const char *reason;
	bool event, woken;

	read_vm(p.vm);
	p.direct = p.vm[DIRECT];
	p.kswapd = p.vm[KSWAPD];
	for (int w = 0; w < WORKERS; w++)
		fds[DONE + w] = (struct pollfd){ .fd = workers[w].v.out, .events = POLLIN };
	while (working) {
		now = now_ns() / 1000000;
		if (now - begin > 120000)
			die("the foreground does not come to an end");
		wait = k ? k->begin / 1000000 + timeout - now :
		       polling ? looked + interval - now : 1000;
		check(poll(fds, NR, wait < 0 ? 0 : wait));
		now = now_ns() / 1000000;
		for (int w = 0; w < WORKERS; w++) {
			char answer;

			if (!fds[DONE + w].revents)
				continue;
			if (read(fds[DONE + w].fd, &answer, 1) != 1 || answer != 'y')
				die("the foreground's memory is damaged");
			fds[DONE + w].fd = -1;
			working--;
		}
		woken = false;
		if (k) {
			if (!fds[PIDFD].revents && !fds[OVER].revents &&
			    now < k->begin / 1000000 + timeout)
				continue;
			k = NULL;
			fds[PIDFD].fd = fds[OVER].fd = -1;
			polling = now;
			interval = 10;
			woken = true;
		}
		event = fds[SOME].revents || fds[FULL].revents;
		if (!timeout || (!event && !woken && (!polling || now < looked + interval)))
			continue;
		looked = now;
		reason = must_kill(&p, fds[FULL].revents);
		k = reason ? begin_kill(way, reason) : NULL;
		if (k) {
			p.killing = true;
			fds[PIDFD].fd = k->pidfd;
			fds[OVER].fd = k->over;
			continue;
		}
		if (event || p.in_direct)
			polling = now;
		else if (now - polling > 1000)
			polling = 0;
		interval = p.swap_is_low ? 10 : 100;
	}
	close(fds[SOME].fd);
	close(fds[FULL].fd);
}

/* Watches free memory. */

static bool watching;
static long below;

static void *watch(void *arg)
{
	long now, last = now_ns();

	(void)arg;
	check(setpriority(PRIO_PROCESS, 0, -20));
	while (__atomic_load_n(&watching, __ATOMIC_RELAXED)) {
		bool above = free_pages() >= high;

		now = now_ns();
		if (!above)
			below += now - last;
		for (int i = 0; above && i < nr_kills; i++)
			if (!kills[i].above)
				kills[i].above = now;
		last = now;
		usleep(5000);
	}
	for (int i = 0; i < nr_kills; i++)
		if (!kills[i].above)
			kills[i].above = now_ns();
	return NULL;
}

/* An episode */

static int by_value(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

static void tell(const char *what, double value)
{
	result(what, killer, "%.6g", value);
}

static void tell_stalls(void)
{
	int nr = 0, *us;

	for (int w = 0; w < WORKERS; w++)
		nr += stalls[w]->nr;
	us = malloc(nr * sizeof(*us));
	nr = 0;
	for (int w = 0; w < WORKERS; w++) {
		memcpy(us + nr, stalls[w]->us, stalls[w]->nr * sizeof(*us));
		nr += stalls[w]->nr;
	}
	qsort(us, nr, sizeof(*us), by_value);
	tell("step p50 ms", us[nr / 2] / 1e3);
	tell("step p99 ms", us[nr * 99 / 100] / 1e3);
	tell("longest step ms", us[nr - 1] / 1e3);
	free(us);
}

/*
 * A kill was not needed if earlier ones had had all that the foreground wanted; or if
 * with what the dead still had, when the kill was decided on, free memory was above high.
 */
static void tell_kills(size_t need, int others)
{
	size_t held = 0;
	int after = 0, early = 0, early_file = 0, innocent = 0, again = 0;
	double above = 0, took = 0;

	for (int i = 0; i < nr_kills; i++) {
		const struct kill *k = kills + i;
		size_t lacking = k->free < high * PAGE ? high * PAGE - k->free : 0;

		/* Not because of a page or two. */
		if (lacking < MIB)
			lacking = MIB;
		after += held >= need;
		early += k->left >= lacking;
		early_file += k->left + k->left_file >= lacking;
		innocent += k->app != apps;
		again += !strcmp(k->reason, LOW_AFTER_KILL);
		held += k->held;
		above += (k->above - k->begin) / 1e6;
		took += k->took / 1e6;
		fprintf(stderr, "%s %s: killed %s, %s: %zu MiB, %zu anonymous, %.0f ms, %s; the dead have %zu and %zu MiB\n",
			scene->name, killer, k->app->group + strlen(BACK) + 1, k->reason,
			k->held / MIB, k->anon / MIB, k->took / 1e6,
			k->error ? strerrorname_np(k->error) : "0", k->left / MIB, k->left_file / MIB);
	}
	tell("programs killed", nr_kills + others);
	if (*killer == '/')
		return;
	if (scene->leak)
		tell("- that did not leak", innocent);
	else
		tell("- after the last one needed", after);
	tell("- since free memory was low after a kill", again);
	tell("- before the dead had given up their memory", early);
	tell("- the same with their page cache", early_file);
	tell("MiB that they had", held / (double)MIB);
	if (!scene->leak)
		tell("MiB wanted beyond what was free", need / (double)MIB);
	if (nr_kills) {
		tell("ms for a kill", took / nr_kills);
		tell("ms from a kill until free memory is above high", above / nr_kills);
	}
}

static void episode(enum way way, int timeout)
{
	struct counters c[2];
	size_t need = 0;
	pthread_t watcher;
	int damaged = 0, others = 0;
	pid_t program = 0;
	char answer;

	nr_kills = below = 0;
	for (int w = 0; w < WORKERS; w++) {
		stalls[w]->nr = 0;
		start_app(workers + w);
		need += workers[w].anon;
	}
	for (int i = 0; i < scene->apps; i++)
		start_app(apps + i);
	usleep(500000);
	read_counters(&c[0]);
	need += (high - free_pages()) * PAGE;
	if ((long)need < 0)
		need = 0;
	watching = true;
	if (pthread_create(&watcher, NULL, watch, NULL))
		die("pthread_create");
	if (scene->leak)
		check(write(apps[0].v.in, "l", 1));
	for (int w = 0; w < WORKERS; w++)
		check(write(workers[w].v.in, "", 1));
	if (*killer == '/')
		program = start_daemon(killer);
	guard(way, program ? 0 : timeout);
	if (program) {
		check(kill(program, SIGKILL));
		check(waitpid(program, NULL, 0));
	}
	__atomic_store_n(&watching, false, __ATOMIC_RELAXED);
	pthread_join(watcher, NULL);
	read_counters(&c[1]);

	for (int i = 0; i < nr_kills; i++) {
		pthread_join(kills[i].thread, NULL);
		close(kills[i].pidfd);
		close(kills[i].over);
	}
	for (int i = 0; i < scene->apps; i++) {
		if (apps[i].state == UP && has_died(apps + i)) {
			apps[i].state = DYING;
			others++;
		}
	}
	tell_kills(need, others);
	tell_stalls();
	tell("PSI some ms", (c[1].some_us - c[0].some_us) / 1e3);
	tell("PSI full ms", (c[1].full_us - c[0].full_us) / 1e3);
	tell("ms with less than high free", below / 1e6);
	tell("kswapd ms", c[1].kswapd_ms - c[0].kswapd_ms);
	tell("refaults of files", c[1].vm[REFAULT_FILE] - c[0].vm[REFAULT_FILE]);
	tell("refaults from swap", c[1].vm[REFAULT_ANON] - c[0].vm[REFAULT_ANON]);
	tell("MiB read", (c[1].sectors - c[0].sectors) / 2048.);
	tell("kills by the kernel", c[1].vm[OOM] - c[0].vm[OOM]);

	for (int w = 0; w < WORKERS; w++)
		end_app(workers + w);
	for (int i = 0; i < scene->apps; i++)
		if (apps[i].state == UP && !apps[i].v.program)
			check(write(apps[i].v.in, "v", 1));
	for (int i = 0; i < scene->apps; i++)
		if (apps[i].state == UP && !apps[i].v.program)
			damaged += read(apps[i].v.out, &answer, 1) != 1 || answer != 'y';
	tell("damaged", damaged);
	for (int i = 0; i < scene->apps; i++)
		end_app(apps + i);
	set("/proc/sys/vm/drop_caches", "3");
}

static void set_up_swap(void)
{
	char size[32];

	snprintf(size, sizeof(size), "%zu", scene->swap * unit);
	set("/sys/block/zram0/disksize", size);
	if (system("mkswap /dev/zram0 >/dev/null"))
		die("mkswap");
	check(swapon("/dev/zram0", 0));
	/* As where swap is in memory. */
	set("/proc/sys/vm/swappiness", "100");
	set("/proc/sys/vm/page-cluster", "0");
}

static void set_up(void)
{
	int common, nr = 0;
	char name[32];

	mkdir(FRONT, 0755);
	mkdir(BACK, 0755);
	set_in(FRONT, "cpu.weight", "100");
	set_in(BACK, "cgroup.subtree_control", "+memory +cpu");
	/* Android has 52 of 1024 for the background. */
	set_in(BACK, "cpu.weight", scene->leak ? "100" : "5");
	common = filled_file("common", scene->common * unit, 0);
	for (int w = 0; w < WORKERS; w++) {
		struct app *a = workers + w;

		snprintf(name, sizeof(name), "worker%d", w);
		*a = (struct app){ .v = { .run = be_worker, .group = FRONT }, .adj = -900,
				   .common = common,
				   .anon = scene->burst * unit / WORKERS / (STEP * PAGE) * STEP * PAGE,
				   .seed = 100 + w,
				   .fd = filled_file(name, 32 * unit, 100 + w), .state = DEAD };
		stalls[w] = mmap(NULL, sizeof(*stalls[w]), PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	}
	for (int i = 0; i < scene->apps; i++) {
		struct app *a = apps + i;

		*a = (struct app){ .v.run = be_app, .seed = i + 1, .anon = scene->anon * unit,
				   .common = common, .fd = -1, .state = DEAD,
				   .adj = scene->leak ? 900 : 999 - 5 * i };
		/* The second, the fifth and the eighth to be killed. */
		if (scene->programs && i % 3 == 1 && nr < CC1)
			a->v.program = &programs[nr++];
		snprintf(name, sizeof(name), "%d-%s", i, a->v.program ? a->v.program->name : "app");
		snprintf(a->group, sizeof(a->group), BACK "/%s", name);
		mkdir(a->group, 0755);
		a->v.group = a->group;
		if (!a->v.program)
			a->fd = filled_file(name, scene->file * unit, a->seed);
	}
}

void cmd_pressure(char **arg)
{
	struct sched_param priority = { .sched_priority = 1 };
	struct sysinfo info;

	for (size_t i = 0; i < sizeof(scenes) / sizeof(*scenes); i++)
		if (!strcmp(scenes[i].name, arg[0]))
			scene = scenes + i;
	if (!scene)
		die("no scene %s", arg[0]);
	sysinfo(&info);
	unit = info.totalram / 1024 / PAGE * PAGE;
	signal(SIGPIPE, SIG_IGN);
	kswapd_ms();
	read_watermarks();
	set_up_swap();
	set_up();
	/* As LMKD is; what it starts is not. */
	check(mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT));
	check(sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &priority));
	for (int i = 0; i < atoi(arg[1]); i++) {
		char ways[256], *save;

		snprintf(ways, sizeof(ways), "%s", arg[3]);
		killer = strtok_r(ways, " ", &save);
		for (; killer; killer = strtok_r(NULL, " ", &save))
			episode(!strcmp(killer, way_name[ONE_CALL]) ? ONE_CALL : LMKD, atoi(arg[2]));
	}
}
