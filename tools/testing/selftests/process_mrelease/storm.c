// SPDX-License-Identifier: GPL-2.0
/*
 * A storm of kills. Each of SLOTS processes starts victims of random kinds and kills
 * them in random ways, while bystanders read, write, punch, truncate and map the same
 * files. All choices follow from $SEED, except those of the scheduler. The storm lasts for
 * $SECONDS, 10 by default. With $ROUND, one slot does that round again and again. With
 * $FAULTS, that percentage of the allocations in the call fails.
 *
 * Checked in each round: all sharers die and all other processes live; no byte of a file
 * or of a living process is lost; the memory is free when the call returns 0, if it was
 * the victim's own and no reclaim was at work. At the end, no page, swap slot, page table,
 * cgroup or task is left over.
 */
#define _GNU_SOURCE
#include <stdatomic.h>

#include "actions.h"

#define SLOTS		4
#define BYSTANDERS	2
#define CLEAN		256L	/* pages at the begin of a slot's file: mapped, clean */
#define DIRTY		64L	/* pages behind them: written by each victim */
#define SHARED		128L	/* pages of a bystander's file */
#define HUNG		300	/* seconds */

/* What happens to the victim at the same time as the call, or instead of it. */
enum other { NONE, FLAG, NO_FLAG_LOOP, KILL, CGROUP_KILL, OOM, NR_OTHERS };

static const char * const other_name[] = {
	"nothing else", "second caller", "flags 0", "kill", "cgroup.kill", "OOM killer",
};

struct kind {
	const char *name;
	struct spec spec;
	bool (*enter)(struct env *env);
	void (*leave)(void);
	long held;	/* bytes of anonymous memory that may stay until the exit */
	bool late;	/* memory is shared with living processes, or not yet in the mm */
	bool dumps;	/* may die of SIGSEGV */
	bool survivor;	/* procs[1] is no sharer */
	bool robust;
	bool writes;	/* to its file, while it is killed */
};

/* What one round does. */
static struct {
	unsigned long nr;
	const struct kind *kind;
	enum other other;
	bool flag;
	long delay_us, other_delay_us;
	unsigned int version;	/* of the pages that the victim writes */
} victim;

static struct shared {
	atomic_bool stop;
	atomic_ulong kills, checked, again;
	atomic_ulong unsupported;	/* bits: kinds */
	struct {
		atomic_ulong round;
		atomic_long began;
		atomic_int pid;
		atomic_uint synced;	/* version that a writer has in its file */
	} slot[SLOTS];
	pthread_mutex_t robust[SLOTS];
} *shared;

static const char *faults;
static unsigned long seed;
static uint64_t random_state;
static int slot, shared_fd[BYSTANDERS];
static struct env slot_env;
static unsigned int version_of[DIRTY];	/* 0 is a page never written */

static void set_random(unsigned long nr)
{
	random_state = seed * 0x9e3779b97f4a7c15 + nr * 0xd1342543de82ef95;
}

static unsigned int pick(unsigned int n)
{
	uint64_t z = random_state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return (z >> 32) % n;
}

/*
 * Victims.
 */
static void path_of_slot(char *path, const char *suffix)
{
	snprintf(path, PATH_MAX, "%s/mrelease.%d%s", getenv("TMPDIR") ?: ".", slot, suffix);
}

static void unlink_files(void)
{
	char path[PATH_MAX];

	path_of_slot(path, "");
	unlink(path);
	path_of_slot(path, ".new");
	unlink(path);
}

/* Write one version after the other to the pages of the file, and replace another file. */
static int write_loop(void)
{
	char page[psize()], path[PATH_MAX], new[PATH_MAX];
	int fd;

	path_of_slot(path, "");
	path_of_slot(new, ".new");
	for (unsigned int v = victim.version % 250 + 1;; v = v % 250 + 1) {
		for (long i = 0; i < DIRTY; i++) {
			fill_page(page, CLEAN + i, v);
			pwrite(mm.fd, page, psize(), (CLEAN + i) * psize());
		}
		fd = open(new, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
		for (unsigned int i = 0; i < v; i++)
			write(fd, page, psize() - i);
		if (fsync(mm.fd) || fsync(fd))
			_exit(1);
		shared->slot[slot].synced = v;
		close(fd);
		if (v % 4)
			rename(new, path);
		else
			unlink(path);
	}
	return 0;
}

static void *lock_robust(void *locked)
{
	pthread_mutex_lock(&shared->robust[slot]);
	pthread_barrier_wait(locked);
	sleep_forever(NULL);
	return NULL;
}

/* The C library does not know of threads made by clone3(), so a pthread takes the lock. */
static void lock_in_thread(void)
{
	static pthread_barrier_t locked;
	pthread_t thread;

	pthread_barrier_init(&locked, NULL, 2);
	pthread_create(&thread, NULL, lock_robust, &locked);
	pthread_barrier_wait(&locked);
}

static long swap_used(const struct env *env)
{
	return read_number(env->cgroup_fd, "memory.swap.current");
}

/* A page that is being written to swap is locked. */
static bool is_swapped(struct env *env)
{
	for (int i = 0; i < 2000 && memory_stat(env, "file_writeback") > 0; i++)
		usleep(1000);
	return swap_used(env) > 0;
}

/* The OOM killer waits for a victim that stops in its exit. */
static void kill_traced(void)
{
	if (victim.other == OOM)
		kill(procs[0].pid, SIGKILL);
	stop_tracing(&slot_env);
}

static const struct kind kinds[] = {
	{ "idle" },
	{ "running", { .action = spin } },
	{ "threads", { .action = make_threads } },
	{ "sharer", { .sharer = CLONE_VM, .nr = 2 } },
	{ "sharers", { .action = make_sharers } },
	{ "successive_sharers", { .action = make_successive_sharers } },
	{ "vfork_parent", { .sharer = CLONE_VM | CLONE_VFORK, .nr = 2 } },
	{ "vfork_loop", { .action = vfork_loop } },
	{ "leader_has_exited", { .setup = exit_leader } },
	{ "init", { .flags = CLONE_NEWPID } },
	{ "parent", { .setup = make_child, .nr = 2 }, .late = true, .survivor = true },
	{ "fork_storm", { .action = fork_storm }, .late = true },
	{ "exec_loop", { .action = exec_loop }, .late = true },
	{ "unmap_and_lock", { .action = unmap_and_lock } },
	{ "mremap", { .action = move_mapping } },
	{ "mremap_down", { .setup = map_long_area, .action = move_past_reaper } },
	{ "collapse", { .action = collapse }, .held = 2 * HUGE },
	{ "userfaultfd", { .setup = register_area, .action = fault_in_userspace } },
	{ "UFFDIO_MOVE", { .setup = register_area, .action = move_pages_by_uffd } },
	{ "io_uring", { .setup = register_buffers } },
	{ "aio", { .setup = begin_aio } },
	{ "traced", { }, trace, kill_traced },
	{ "stopped", { }, stop },
	{ "frozen", { }, freeze_cgroup },
	{ "frozen_sharer", { .sharer = CLONE_VM, .nr = 2 }, freeze_cgroup },
	{ "dumps_core", { .action = dump_core }, .dumps = true },
	{ "hugetlb", { .setup = map_hugetlb } },
	{ "swapped", { .setup = swap_out }, is_swapped },
	{ "robust_futex", { .setup = lock_in_thread }, .robust = true },
	{ "writer", { .action = write_loop }, .writes = true },
};

#define NR_KINDS	(sizeof(kinds) / sizeof(*kinds))

/* Runs in each victim: pages of the slot's file are dirty, the bystanders' are mapped. */
static void set_up_victim(void)
{
	char *dirty = mmap(NULL, DIRTY * psize(), PROT_READ | PROT_WRITE, MAP_SHARED, mm.fd,
			   CLEAN * psize());
	char page[psize()], *p;

	if (dirty == MAP_FAILED)
		_exit(1);
	for (long i = 0; i < DIRTY; i++) {
		fill_page(i % 2 ? page : dirty + i * psize(), CLEAN + i, victim.version);
		if (i % 2 && pwrite(mm.fd, page, psize(), (CLEAN + i) * psize()) != psize())
			_exit(1);
	}
	for (int i = 0; i < BYSTANDERS; i++) {
		p = mmap(NULL, SHARED * psize(), PROT_READ, MAP_SHARED, shared_fd[i], 0);
		/* Fails where the file is truncated. */
		for (long j = 0; j < SHARED; j += 16)
			madvise(p + j * psize(), 16 * psize(), MADV_POPULATE_READ);
	}
	if (victim.kind->spec.setup)
		victim.kind->spec.setup();
}

/*
 * Killers.
 */
struct result {
	int error;
	long anon, cache, swap;
};

static struct result call_with_flag(void)
{
	int fault = faults ? open("/proc/thread-self/make-it-fail", O_WRONLY | O_CLOEXEC) : -1;
	struct result r;

	errno = 0;	/* a write that must not fault from here on */
	for (int i = 0; i < 10; i++) {
		write(fault, "1", 1);
		r.error = mrelease(procs[0].pidfd, PROCESS_MRELEASE_REAP_KILL);
		write(fault, "0", 1);
		if (r.error != EAGAIN && (!faults || r.error != ENOMEM))
			break;
		shared->again++;
	}
	close(fault);
	r.cache = cached_in(slot_env.fd, 0, CLEAN * psize());
	r.anon = anon_charge(&slot_env);
	r.swap = swap_used(&slot_env);
	return r;
}

static void *run_other(void *result)
{
	int tries = 0, error;

	usleep(victim.other_delay_us);
	switch (victim.other) {
	case FLAG:
		*(struct result *)result = call_with_flag();
		break;
	case NO_FLAG_LOOP:
		if (!victim.flag)
			kill(procs[0].pid, SIGKILL);
		do {
			error = mrelease(procs[0].pidfd, 0);
		} while ((error == EINVAL || error == EAGAIN) && ++tries < 100);
		break;
	case KILL:
		kill(procs[0].pid, SIGKILL);
		break;
	case CGROUP_KILL:
		write_text(slot_env.cgroup_fd, "cgroup.kill", "1");
		break;
	case OOM:
		write_text(slot_env.cgroup_fd, "memory.max", "1M");
		write_text(slot_env.cgroup_fd, "memory.max", "max");
		break;
	default:
		break;
	}
	return NULL;
}

static void *wait_for_robust(void *unused)
{
	struct timespec until;
	int ret;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 30;
	ret = pthread_mutex_timedlock(&shared->robust[slot], &until);
	if (ret == EOWNERDEAD)
		pthread_mutex_consistent(&shared->robust[slot]);
	if (!ret || ret == EOWNERDEAD)
		pthread_mutex_unlock(&shared->robust[slot]);
	return (void *)(long)ret;
}

/* Check what the call has freed. */
static void check_freed(struct __test_metadata *_metadata, const struct result *r)
{
	const struct kind *kind = victim.kind;
	const bool alone = !victim.flag || victim.other == NONE;

	if (r->error)
		ASSERT_TRUE(r->error == ESRCH && (!alone || kind->dumps)) {
			TH_LOG("error %d", r->error);
		}
	if (r->error || kind->late)
		return;
	shared->checked++;
	/* Reclaim for the limit isolates folios, and writes them to swap. */
	if (victim.other == OOM)
		return;
	ASSERT_LE(r->anon, slack() + kind->held);
	ASSERT_LE(r->swap, slack());
	/* Folios in two kinds of LRU batches, and those that drop_caches looks at */
	if (victim.other == NONE || victim.other == FLAG)
		ASSERT_LE(r->cache, 2 * lru_batches() + 32);
}

static void check_pages(struct __test_metadata *_metadata, int fd)
{
	char page[psize()];

	ASSERT_EQ(-1, wrong_page(fd, CLEAN, 0));
	for (long i = 0; i < DIRTY; i++) {
		ASSERT_EQ(psize(), pread(fd, page, psize(), (CLEAN + i) * psize()));
		ASSERT_TRUE(is_filled(page, CLEAN + i, version_of[i])) TH_LOG("dirty page %ld", i);
	}
}

/*
 * A write may end in the middle of a page, as after any SIGKILL. Each byte is of the
 * version that the writer had synced, or of the next one. Go on from a known version.
 */
static void check_written(struct __test_metadata *_metadata, int fd)
{
	const unsigned int synced = shared->slot[slot].synced ?: victim.version;
	char page[psize()], old[psize()], new[psize()];

	for (long i = 0; i < DIRTY; i++) {
		ASSERT_EQ(psize(), pread(fd, page, psize(), (CLEAN + i) * psize()));
		fill_page(old, CLEAN + i, synced);
		fill_page(new, CLEAN + i, synced % 250 + 1);
		for (long j = 0; j < psize(); j++) {
			ASSERT_TRUE(page[j] == old[j] || page[j] == new[j]) {
				TH_LOG("byte %ld of page %ld is lost, version %u", j, i, synced);
			}
		}
		ASSERT_EQ(psize(), pwrite(fd, old, psize(), (CLEAN + i) * psize()));
		version_of[i] = synced;
	}
}

/* What is charged to the cgroup and belongs to no file, mapped or not, in bytes. */
static long charged_pages(void)
{
	return measure(&slot_env).charge - memory_stat(&slot_env, "file") -
	       memory_stat(&slot_env, "kernel");
}

/* All processes of the cgroup are dead. Nothing of their memory is left. */
static void check_gone(struct __test_metadata *_metadata)
{
	int status;
	pid_t pid;

	for (int i = 0; (pid = waitpid(-1, &status, WNOHANG)) >= 0; i++) {
		if (pid) {
			ASSERT_TRUE(status == SIGKILL || WIFEXITED(status) || victim.kind->dumps) {
				TH_LOG("%d has the status %x", pid, status);
			}
			continue;
		}
		ASSERT_LT(i, 60000) TH_LOG("a process survives SIGKILL");
		usleep(1000);
	}
	/*
	 * A bystander that reads smaps may have the last reference. What was being
	 * written to swap at the exit stays in the swap cache.
	 */
	for (int i = 0; i < 1000 && charged_pages() + swap_used(&slot_env) > slack(); i++) {
		usleep(1000);
		write_text(slot_env.cgroup_fd, "memory.reclaim", "16M");
	}
	ASSERT_LE(anon_charge(&slot_env), slack());
	ASSERT_LE(charged_pages(), slack());
	ASSERT_LE(swap_used(&slot_env), slack());
}

static void choose_round(unsigned long nr)
{
	const bool has_flag = has_reap_kill();

	set_random(nr);
	victim.nr = nr;
	victim.version = nr / SLOTS % 250 + 1;
	victim.flag = pick(4) && has_flag;
	/* The OOM killer prints a lot. */
	do {
		victim.other = pick(NR_OTHERS);
	} while ((victim.other == OOM && pick(3)) || (victim.other == FLAG && !has_flag) ||
		 (victim.other == NONE && !victim.flag));
	if (victim.flag && pick(2))
		victim.other = NONE;
	victim.delay_us = pick(3) ? pick(3000) : 0;
	victim.other_delay_us = pick(2) ? pick(2000) : 0;
	do {
		victim.kind = &kinds[pick(NR_KINDS)];
	} while (1UL << (victim.kind - kinds) & shared->unsupported);
}

/*
 * A bystander that reads smaps can hold the mm of the last victim for a while, with its
 * mapping of the file if that victim was not killed by the call.
 */
static void drop_clean_pages(struct __test_metadata *_metadata)
{
	for (int i = 0; i < 5000 && cached_in(slot_env.fd, 0, CLEAN * psize()); i++) {
		if (i)
			usleep(1000);
		posix_fadvise(slot_env.fd, 0, CLEAN * psize(), POSIX_FADV_DONTNEED);
	}
	ASSERT_EQ(0, cached_in(slot_env.fd, 0, CLEAN * psize()));
}

static void run_round(struct __test_metadata *_metadata)
{
	const struct kind *kind = victim.kind;
	struct result result = { .error = ESRCH }, other = { .error = ESRCH };
	bool ok;
	struct spec spec = kind->spec;
	pthread_t thread, waiter;
	int status;
	void *ret;

	drop_clean_pages(_metadata);
	spec.setup = set_up_victim;
	shared->slot[slot].synced = 0;
	ok = start(_metadata, &slot_env, &spec);
	/* A parent in vfork() has not run its setup. */
	for (long i = 0; i < DIRTY && !(spec.sharer & CLONE_VFORK); i++)
		version_of[i] = victim.version;
	if (!ok) {
		kill(procs[0].pid, SIGKILL);
		ASSERT_EQ(procs[0].pid, waitpid(procs[0].pid, &status, 0));
		ASSERT_EQ(EXIT_UNSUPPORTED, WEXITSTATUS(status));
	}
	if (ok && spec.action)
		ASSERT_TRUE(send_command(&procs[0], CMD_ACT));
	if (ok && kind->enter)
		ok = kind->enter(&slot_env);
	if (!ok) {
		shared->unsupported |= 1UL << (kind - kinds);
		end_procs(&slot_env);
		return;
	}
	shared->slot[slot].pid = procs[0].pid;
	if (kind->robust)
		ASSERT_EQ(0, pthread_create(&waiter, NULL, wait_for_robust, NULL));
	usleep(victim.delay_us);
	ASSERT_EQ(0, pthread_create(&thread, NULL, run_other, &other));
	if (victim.flag)
		result = call_with_flag();
	if (kind->leave)
		kind->leave();
	pthread_join(thread, NULL);
	shared->slot[slot].pid = 0;
	shared->kills++;

	if (victim.flag)
		check_freed(_metadata, &result);
	if (victim.other == FLAG)
		check_freed(_metadata, &other);
	if (kind->survivor && victim.other != CGROUP_KILL && victim.other != OOM)
		ASSERT_TRUE(is_intact(&procs[1]));
	/* The call kills all sharers, whatever else happens. */
	for (int i = 0; !result.error && i < (spec.nr ?: 1) - kind->survivor; i++) {
		ASSERT_TRUE(wait_killed(&procs[i]) || kind->dumps || kind->leave)
			TH_LOG("process %d: errno %d", i, errno);
	}
	end_procs(&slot_env);
	if (kind->robust) {
		pthread_join(waiter, &ret);
		/* Without the fix at the head of the series, reaping loses the list. */
		if (has_reap_kill())
			ASSERT_EQ(EOWNERDEAD, (long)ret);
	}
	check_gone(_metadata);
	if (kind->writes)
		check_written(_metadata, slot_env.fd);
	check_pages(_metadata, slot_env.fd);
	if (!pick(8)) {
		/* A leaked reference keeps a page cached, but so does drop_caches for a while. */
		for (int i = 0; i < 100 && cached(slot_env.fd); i++) {
			fsync(slot_env.fd);
			posix_fadvise(slot_env.fd, 0, 0, POSIX_FADV_DONTNEED);
			usleep(100);
		}
		ASSERT_EQ(0, cached(slot_env.fd));
		check_pages(_metadata, slot_env.fd);
	}
	/* Linux 6.14 and later kill what starts in a cgroup that was killed. */
	if (victim.other == CGROUP_KILL) {
		ASSERT_EQ(0, rmdir(slot_env.cgroup));
		close(slot_env.cgroup_fd);
		close(slot_env.charge_fd);
		ASSERT_TRUE(make_cgroup(&slot_env));
	}
}

static void run_slot(struct __test_metadata *_metadata, const char *only)
{
	ASSERT_EQ(0, prctl(PR_SET_CHILD_SUBREAPER, 1));
	slot_env.fd = open_scratch();
	ASSERT_LE(0, slot_env.fd);
	ASSERT_TRUE(write_pages(slot_env.fd, CLEAN + DIRTY, 0));
	make_cold(_metadata, slot_env.fd);
	slot_env.pages = CLEAN;
	ASSERT_TRUE(make_cgroup(&slot_env));
	for (unsigned long nr = slot; !shared->stop; nr += SLOTS) {
		if (only && strtoul(only, NULL, 0) % SLOTS == (unsigned long)slot)
			nr = strtoul(only, NULL, 0);
		choose_round(nr);
		shared->slot[slot].round = nr;
		shared->slot[slot].began = now_us();
		run_round(_metadata);
	}
	/* The mm of the last victims is freed; memory.stat lags by two seconds. */
	for (int i = 0; i < 100 && memory_stat(&slot_env, "pagetables"); i++)
		usleep(100000);
	ASSERT_EQ(0, memory_stat(&slot_env, "pagetables"));
	ASSERT_EQ(0, rmdir(slot_env.cgroup));
	slot_env.cgroup_fd = 0;
	unlink_files();
	_exit(!__test_passed(_metadata));
}

/*
 * Bystanders. Each changes one file, and knows the contents: version 0 is a hole.
 */
static bool has_version(const char *page, long nr, unsigned int version)
{
	static const char zeros[1 << 16];

	return version ? is_filled(page, nr, version) : !memcmp(page, zeros, psize());
}

/* Read what another process maps, with a reference on its mm. */
static void read_smaps(pid_t pid)
{
	char path[32], text[4096];

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	if (pid)
		read_file(path, text, sizeof(text));
}

static void run_bystander(struct __test_metadata *_metadata, int nr)
{
	unsigned int version[SHARED] = { }, new = 0;
	const int fd = shared_fd[nr];
	char page[psize()], *file, *anon;
	long i;

	set_random(~nr);
	anon = map_area(CHUNK);
	fill_page(page, 0, 0);
	for (i = 0; i < CHUNK; i++)
		fill_page(anon + i * psize(), i, 0);
	file = mmap(NULL, SHARED * psize(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, file);
	while (!shared->stop) {
		i = pick(SHARED);
		new = new % 250 + 1;
		switch (pick(12)) {
		case 0 ... 2:
			fill_page(page, i, new);
			ASSERT_EQ(psize(), pwrite(fd, page, psize(), i * psize()));
			version[i] = new;
			break;
		case 3 ... 4:
			fill_page(file + i * psize(), i, new);
			version[i] = new;
			break;
		case 5:
			ASSERT_EQ(0, fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					       i * psize(), psize()));
			version[i] = 0;
			break;
		case 6:
			ASSERT_EQ(0, ftruncate(fd, i * psize()));
			ASSERT_EQ(0, ftruncate(fd, SHARED * psize()));
			memset(version + i, 0, (SHARED - i) * sizeof(*version));
			break;
		case 7:
			ASSERT_EQ(0, fsync(fd));
			ASSERT_EQ(0, posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
			break;
		case 8:
			madvise(anon, CHUNK * psize(), pick(2) ? MADV_PAGEOUT : MADV_COLD);
			mlock(anon, CHUNK / 2 * psize());
			munlock(anon, CHUNK / 2 * psize());
			break;
		case 9:
			if (!pick(32))
				write_text(AT_FDCWD, "/proc/sys/vm/drop_caches", "5");
			break;
		default:
			read_smaps(shared->slot[pick(SLOTS)].pid);
		}
		i = pick(SHARED);
		ASSERT_TRUE(has_version(file + i * psize(), i, version[i]))
			TH_LOG("page %ld of bystander %d, mapped: %lx, not version %u", i, nr,
			       *(long *)(file + i * psize()), version[i]);
		ASSERT_EQ(psize(), pread(fd, page, psize(), i * psize()));
		ASSERT_TRUE(has_version(page, i, version[i]))
			TH_LOG("page %ld of bystander %d: %lx, not version %u", i, nr,
			       *(long *)page, version[i]);
		i = pick(CHUNK);
		ASSERT_TRUE(is_filled(anon + i * psize(), i, 0));
		usleep(pick(2000));
	}
	write_text(AT_FDCWD, "/proc/sys/vm/drop_caches", "5");
	for (i = 0; i < SHARED; i++) {
		ASSERT_TRUE(has_version(file + i * psize(), i, version[i]))
			TH_LOG("page %ld of bystander %d, at the end", i, nr);
	}
	_exit(!__test_passed(_metadata));
}

/*
 * What must not be left over, and how much may be: less than one victim has, except of
 * page tables, swap and memory, which each slot checks in its own cgroup as well.
 */
enum { SWAP = 6, LRU, HUGE_PAGES, TASKS, MEMORY, NR_COUNTERS };

static const struct {
	const char *name;
	long slack;	/* in pages for what is in /proc/vmstat */
} counters[NR_COUNTERS] = {
	{ "nr_anon_pages", CHUNK }, { "nr_mapped", CHUNK },
	/* With those of the kernel stacks, which are never freed */
	{ "nr_page_table_pages", 64 },
	{ "nr_mlock" }, { "nr_isolated_anon" }, { "nr_isolated_file" },
	[LRU] = { "anonymous and unevictable pages in LRU lists", CHUNK },
	/* Linux 6.12 keeps 64 free swap slots for each CPU. */
	[SWAP] = { "KiB of swap", 2048 },
	[HUGE_PAGES] = { "huge pages" },
	[TASKS] = { "tasks", 16 },
	/* With the lists of each CPU and KASAN's quarantine, 1/32 of the memory */
	[MEMORY] = { "KiB of memory", 131072 },
};

static long field_of(const char *path, const char *format)
{
	FILE *file = fopen(path, "r");
	char line[256];
	long value = 0;

	while (file && fgets(line, sizeof(line), file) && sscanf(line, format, &value) != 1)
		;
	if (file)
		fclose(file);
	return value;
}

static void count_all(long *count)
{
	static const char * const lists[] = {
		"nr_active_anon", "nr_inactive_anon", "nr_unevictable",
	};

	sync();
	write_text(AT_FDCWD, "/proc/sys/vm/drop_caches", "7");
	write_text(AT_FDCWD, "/proc/sys/vm/stat_refresh", "1");
	for (int i = 0; i < SWAP; i++)
		count[i] = vmstat_counter(counters[i].name);
	count[SWAP] = -field_of("/proc/meminfo", "SwapFree: %ld");
	/* What was being written to swap at the exit stays in the swap cache. */
	count[LRU] = -vmstat_counter("nr_swapcached");
	for (size_t i = 0; i < sizeof(lists) / sizeof(*lists); i++)
		count[LRU] += vmstat_counter(lists[i]);
	count[HUGE_PAGES] = -field_of("/proc/meminfo", "HugePages_Free: %ld");
	count[TASKS] = field_of("/proc/loadavg", "%*f %*f %*f %*d/%ld");
	count[MEMORY] = -field_of("/proc/meminfo", "MemFree: %ld");
}

static bool all_given_back(const long *before, const long *after)
{
	for (int i = 0; i < NR_COUNTERS; i++) {
		if (after[i] - before[i] > counters[i].slack)
			return false;
	}
	return true;
}

FIXTURE(storm) {
	struct env env;
	char core_pattern[128];
	char core[PATH_MAX];
};

FIXTURE_SETUP(storm)
{
	set_up(_metadata, &self->env, false, 0);
	snprintf(self->core, sizeof(self->core), "%s/mrelease.core",
		 getenv("TMPDIR") ?: "/var/tmp");
	ASSERT_TRUE(read_file("/proc/sys/kernel/core_pattern", self->core_pattern,
			      sizeof(self->core_pattern)));
}

static void tell_round(struct __test_metadata *_metadata, unsigned long nr)
{
	choose_round(nr);
	TH_LOG("round %lu: %s, %s%s; again: SEED=%lu ROUND=%lu%s%s ./storm", nr,
	       victim.kind->name, victim.flag ? "the call and " : "", other_name[victim.other],
	       seed, nr, faults ? " FAULTS=" : "", faults ?: "");
}

FIXTURE_TEARDOWN(storm)
{
	if (faults)
		enable_faults("0");
	write_text(AT_FDCWD, "/proc/sys/kernel/core_pattern", self->core_pattern);
	unlink(self->core);
	tear_down(&self->env);
}

/* In a child that has failed */
static void tear_down_slot(bool in_parent, struct __test_metadata *_metadata, void *self,
			   const void *variant)
{
	if (slot < SLOTS)
		tell_round(_metadata, victim.nr);
	unlink_files();
	tear_down(&slot_env);
}

/* Wait for a child; return false if it has failed, or a round does not end. */
static bool wait_for_child(struct __test_metadata *_metadata, pid_t *children)
{
	int status, nr = 0;
	pid_t pid = waitpid(-1, &status, WNOHANG);

	if (pid <= 0) {
		usleep(10000);
		for (nr = 0; nr < SLOTS; nr++) {
			if (now_us() - shared->slot[nr].began < HUNG * 1000000L || !children[nr])
				continue;
			TH_LOG("a round does not end");
			tell_round(_metadata, shared->slot[nr].round);
			return false;
		}
		return true;
	}
	while (nr < SLOTS + BYSTANDERS && children[nr] != pid)
		nr++;
	if (nr == SLOTS + BYSTANDERS)
		return true;
	children[nr] = 0;
	if (!status)
		return true;
	TH_LOG("%s %d ended with the status %x", nr < SLOTS ? "slot" : "bystander",
	       nr % SLOTS, status);
	return false;
}

TEST_F_TIMEOUT(storm, loses_nothing, 100000)
{
	const char *seconds = getenv("SECONDS"), *only = getenv("ROUND");
	long end = now_us() + (seconds ? atol(seconds) : 10) * 1000000L;
	long before[NR_COUNTERS], after[NR_COUNTERS];
	struct __test_metadata own;
	pthread_mutexattr_t attr;
	pid_t children[SLOTS + BYSTANDERS] = { };
	bool ok = true;

	faults = getenv("FAULTS");
	if (faults && !enable_faults(faults))
		SKIP(return, "FAULTS: needs CONFIG_FAILSLAB and CONFIG_FAIL_PAGE_ALLOC");
	seed = getenv("SEED") ? strtoul(getenv("SEED"), NULL, 0) : time(NULL);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	ASSERT_NE(MAP_FAILED, shared);
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	for (int i = 0; i < SLOTS; i++) {
		shared->slot[i].began = now_us();
		pthread_mutex_init(&shared->robust[i], &attr);
	}
	write_text(AT_FDCWD, "/proc/sys/kernel/core_pattern", self->core);
	count_all(before);
	for (int i = 0; i < BYSTANDERS; i++) {
		shared_fd[i] = open_scratch();
		if (shared_fd[i] < 0)
			SKIP(return, NO_DISK);
		ASSERT_EQ(0, ftruncate(shared_fd[i], SHARED * psize()));
	}
	for (int i = 0; i < SLOTS + BYSTANDERS; i++) {
		slot = i;
		children[i] = fork();
		ASSERT_LE(0, children[i]);
		/* The original is in memory that all children share. */
		own = *_metadata;
		own.teardown_fn = tear_down_slot;
		if (!children[i] && i < SLOTS)
			run_slot(&own, only);
		if (!children[i])
			run_bystander(&own, i - SLOTS);
	}
	while (ok && now_us() < end)
		ok = wait_for_child(_metadata, children);
	shared->stop = true;
	for (int i = 0; ok && i < SLOTS + BYSTANDERS; i++) {
		while (ok && children[i])
			ok = wait_for_child(_metadata, children);
	}
	for (int i = 0; i < SLOTS + BYSTANDERS; i++) {
		if (children[i] && i >= SLOTS)
			kill(children[i], SIGKILL);
	}
	for (int i = 0; i < BYSTANDERS; i++)
		close(shared_fd[i]);
	for (size_t i = 0; i < NR_KINDS; i++) {
		if (shared->unsupported & 1UL << i)
			TH_LOG("SKIP %s: " NO_SUPPORT, kinds[i].name);
	}
	TH_LOG("seed %lu: %lu kills, %lu checked for free memory, %lu calls repeated", seed,
	       shared->kills, shared->checked, shared->again);
	ASSERT_TRUE(ok);

	for (int i = 0; i < 20; i++) {
		count_all(after);
		if (all_given_back(before, after))
			break;
		sleep(1);
	}
	for (int i = 0; i < NR_COUNTERS; i++) {
		EXPECT_LE(after[i], before[i] + counters[i].slack)
			TH_LOG("%s", counters[i].name);
	}
}

int main(int argc, char **argv)
{
	if (!strcmp(argv[0], "exec"))
		return exec_loop();
	return test_harness_run(argc, argv);
}
