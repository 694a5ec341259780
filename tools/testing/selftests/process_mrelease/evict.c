// SPDX-License-Identifier: GPL-2.0
/*
 * Test that process_mrelease(PROCESS_MRELEASE_REAP_KILL) evicts clean file folios on
 * each file system, of each size and history. On a kernel without this flag all of
 * them stay cached.
 *
 * The file systems are made on demand in files in $TMPDIR, with the tools in the
 * PATH. The mounts have no path and end with the test, as the loop devices do. 9p
 * needs a writable virtio share with the tag "mrelease".
 */
#define _GNU_SOURCE
#include <link.h>
#include <linux/loop.h>
#include <sys/utsname.h>

#include "util.h"

#define PAGES	1024L	/* of the file */

/*
 * A file system and the command that makes it on the device $0, if packed with the
 * files of the current directory.
 */
static const struct fs {
	const char *type;
	const char *make;
	bool packed;
	bool immutable;		/* the files are immutable */
	bool caches;		/* also caches compressed data, which is not evicted */
	const char *source;	/* instead of a device */
	enum fs_nr {
		ext4, xfs, btrfs, f2fs, f2fs_immutable, squashfs, erofs, erofs_lz4,
		v9fs, overlay_ext4, overlay_squashfs, overlay_erofs,
	} lower;		/* of an overlay */
} filesystems[] = {
	[ext4] = {
		.type = "ext4",
		.make = "mkfs.ext4 -q $0",
	},
	[xfs] = {
		.type = "xfs",
		.make = "mkfs.xfs -q $0",
	},
	[btrfs] = {
		.type = "btrfs",
		.make = "mkfs.btrfs -q $0",
	},
	[f2fs] = {
		.type = "f2fs",
		.make = "mkfs.f2fs -q $0",
	},
	[f2fs_immutable] = {
		.type = "f2fs",
		.make = "mkfs.f2fs -q $0",
		.immutable = true,
	},
	/* A higher compression level takes minutes. */
	[squashfs] = {
		.type = "squashfs",
		.make = "mksquashfs . $0 -noappend -quiet -no-progress -Xcompression-level 1",
		.packed = true,
	},
	[erofs] = {
		.type = "erofs",
		.make = "mkfs.erofs --quiet $0 .",
		.packed = true,
	},
	[erofs_lz4] = {
		.type = "erofs",
		.make = "mkfs.erofs --quiet -zlz4 $0 .",
		.packed = true,
		.caches = true,
	},
	/* netfs sets AS_RELEASE_ALWAYS. */
	[v9fs] = {
		.type = "9p",
		.source = "mrelease",
	},
	[overlay_ext4] = { .type = "overlay", .lower = ext4 },
	[overlay_squashfs] = { .type = "overlay", .lower = squashfs },
	[overlay_erofs] = { .type = "overlay", .lower = erofs },
};

/* In memory that is shared among the tests, each of which is a process. */
static struct image {
	int fd;
	bool made;
} *images;

static int mount_fs(const char *type, const char *key, const char *value)
{
	const char * const options[][2] = {
		{ key, value }, { !strcmp(type, "9p") ? "trans" : NULL, "virtio" },
		{ "cache", "loose" }, { },
	};

	return new_mount(type, options);
}

/*
 * Direct I/O, because the page cache of the image would be charged to the victim.
 * The device exists as long as the returned descriptor, which is for reading: a
 * file system may refuse to mount a device that is open for writing.
 */
static int attach_loop(int image, char *path, size_t size)
{
	const struct loop_config config = {
		.fd = image,
		.info.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
	};
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	int writer, reader, ret = -1;

	do {
		snprintf(path, size, "/dev/loop%d", ioctl(control, LOOP_CTL_GET_FREE));
		writer = open(path, O_RDWR | O_CLOEXEC);
		if (writer < 0)
			break;
		ret = ioctl(writer, LOOP_CONFIGURE, &config);
		reader = open(path, O_RDONLY | O_CLOEXEC);
		close(writer);
		if (ret)
			close(reader);
	} while (ret && errno == EBUSY);
	close(control);
	return ret ? -1 : reader;
}

/* Return the status of a shell command, which runs in the directory @dir. */
static int run(const char *command, int dir, const char *arg)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		if (!unshare(CLONE_NEWNS) &&
		    !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) &&
		    !move_mount(dir, "", AT_FDCWD, "/mnt", MOVE_MOUNT_F_EMPTY_PATH) &&
		    !chdir("/mnt") && dup2(open("/dev/null", O_RDWR), STDOUT_FILENO) >= 0)
			execlp("sh", "sh", "-c", command, arg, NULL);
		_exit(126);
	}
	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ?
	       WEXITSTATUS(status) : -1;
}

static void write_program(struct __test_metadata *_metadata, int to)
{
	int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

	ASSERT_LT(0, sendfile(to, from, NULL, INT_MAX));
	close(from);
}

/* Make the files of every file system: data, and a copy of this program. */
static void make_files(struct __test_metadata *_metadata, const struct fs *fs, int dir)
{
	int file = openat(dir, "file", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	int program = openat(dir, "program", O_RDWR | O_CREAT | O_CLOEXEC, 0700);
	int immutable = FS_IMMUTABLE_FL;

	ASSERT_GE(file, 0);
	ASSERT_GE(program, 0);
	ASSERT_TRUE(write_pages(file, PAGES, 0));
	write_program(_metadata, program);
	if (fs->immutable) {
		ASSERT_EQ(0, ioctl(file, FS_IOC_SETFLAGS, &immutable));
		ASSERT_EQ(0, ioctl(program, FS_IOC_SETFLAGS, &immutable));
	}
	close(file);
	close(program);
}

/* Mount the share; return the descriptor of its root, or -1 if the test is skipped. */
static int open_share(struct __test_metadata *_metadata, const struct fs *fs,
		      struct image *image)
{
	int root = mount_fs(fs->type, "source", fs->source);

	if (root < 0)
		SKIP(return -1, "no %s share with the tag %s", fs->type, fs->source);
	if (!image->made)
		make_files(_metadata, fs, root);
	image->made = true;
	return root;
}

/* Return the descriptor of the directory of the files, or -1 if the test is skipped. */
static int open_fs(struct __test_metadata *_metadata, enum fs_nr nr)
{
	const struct fs *fs = &filesystems[nr];
	struct image *image = &images[nr];
	int device, type, tmpfs, root, status;
	char path[32];

	if (fs->source)
		return open_share(_metadata, fs, image);
	if (image->fd < 0)
		SKIP(return -1, NO_DISK);
	type = fsopen(fs->type, FSOPEN_CLOEXEC);
	if (type < 0)
		SKIP(return -1, "kernel without %s", fs->type);
	close(type);
	ASSERT_EQ(0, ftruncate(image->fd, 512 << 20));
	device = attach_loop(image->fd, path, sizeof(path));
	if (device < 0)
		SKIP(return -1, "needs a loop device");

	if (!image->made) {
		tmpfs = mount_fs("tmpfs", NULL, NULL);
		if (fs->packed)
			make_files(_metadata, fs, tmpfs);
		status = run(fs->make, tmpfs, path);
		if (status == 127)
			SKIP(return -1, "needs %.*s", (int)strcspn(fs->make, " "),
			     fs->make);
		ASSERT_EQ(0, status);
		/* close() does not write back while another descriptor is open. */
		ASSERT_EQ(0, fsync(device));
		close(tmpfs);
		if (!fs->packed) {
			root = mount_fs(fs->type, "source", path);
			ASSERT_GE(root, 0);
			make_files(_metadata, fs, root);
			close(root);
		}
		image->made = true;
	}
	root = mount_fs(fs->type, "source", path);
	ASSERT_GE(root, 0);
	close(device);
	return root;
}

/* Mount an overlay over the directory. */
static int open_overlay(struct __test_metadata *_metadata, int lower)
{
	int empty = mount_fs("tmpfs", NULL, NULL), root;
	char dirs[64];

	snprintf(dirs, sizeof(dirs), "/proc/self/fd/%d:/proc/self/fd/%d", lower, empty);
	root = mount_fs("overlay", "lowerdir", dirs);
	if (root < 0)
		SKIP(return -1, "no overlayfs, or not over a mount without a path");
	close(empty);
	return root;
}

/* Return the file system whose page cache is used. */
static enum fs_nr lowest(enum fs_nr nr)
{
	return strcmp(filesystems[nr].type, "overlay") ? nr : filesystems[nr].lower;
}

/*
 * Make the cgroup and open a file: env->fd has the page cache, @seen is for the
 * victim and differs with an overlay. Return false if the test is skipped.
 */
static bool open_file(struct __test_metadata *_metadata, struct env *env, int *seen,
		      enum fs_nr nr, const char *name)
{
	const struct fs *fs = &filesystems[lowest(nr)];
	int mode = fs->packed || fs->immutable ? O_RDONLY : O_RDWR;
	int dir, top;

	if (!set_up(_metadata, env, false, 0))
		return false;
	dir = open_fs(_metadata, lowest(nr));
	top = dir >= 0 && lowest(nr) != nr ? open_overlay(_metadata, dir) : dir;
	if (top < 0) {
		tear_down(env);
		return false;
	}
	if (!strcmp(name, "program"))
		mode = O_RDONLY;
	env->fd = openat(dir, name, mode | O_CLOEXEC);
	*seen = openat(top, name, (top == dir ? mode : O_RDONLY) | O_CLOEXEC);
	ASSERT_GE(env->fd, 0);
	ASSERT_GE(*seen, 0);
	close(dir);
	if (top != dir)
		close(top);

	/* Another test may have changed it. */
	if (mode == O_RDWR && wrong_page(env->fd, PAGES, 0) >= 0) {
		ASSERT_TRUE(write_pages(env->fd, PAGES, 0));
		ASSERT_EQ(0, fsync(env->fd));
	}
	ASSERT_EQ(0, posix_fadvise(env->fd, 0, 0, POSIX_FADV_DONTNEED));
	ASSERT_EQ(0, cached(env->fd));
	return true;
}

/* squashfs caches pages beyond the end, which cannot be mapped. */
static long file_cached(int fd)
{
	return cached_in(fd, 0, PAGES * psize());
}

enum size {
	small,		/* read one by one */
	ahead,		/* read by readahead */
	large,		/* read by readahead of read() */
	huge,		/* mapped by a PMD */
	collapsed,	/* mapped by a PMD after MADV_COLLAPSE */
};

/* Written by the victim. */
struct report {
	bool large;
	bool huge;
	long kept;		/* pages in folios that are not mapped */
	unsigned int step;	/* every step-th page was changed */
};

struct victim {
	enum size size;
	bool (*history)(struct victim *v);
	int fd;
	struct report *report;
};

static char *map_file(struct victim *v, int prot, int flags)
{
	static const int advice[] = {
		[small] = MADV_RANDOM,
		[huge] = MADV_HUGEPAGE,
		[collapsed] = MADV_RANDOM,
	};

	if (v->size == large && wrong_page(v->fd, PAGES, v->report->step) >= 0)
		_exit(1);
	return map_aligned(PAGES, prot, flags, v->fd, advice[v->size]);
}

static char *touch(struct victim *v, char *file)
{
	const size_t len = PAGES * psize();
	const uint64_t pmd = read_pmd_pagesize();

	force_read_pages(file, PAGES, psize());
	if (v->size == collapsed && madvise(file, len, MADV_COLLAPSE))
		perror("MADV_COLLAPSE");
	disable_khugepaged(file, len);
	v->report->large = is_large(file + len / 2);
	v->report->huge = pmd && check_huge_file(file, len, len / pmd, pmd);
	return file;
}

static char *read_file_pages(struct victim *v)
{
	return touch(v, map_file(v, PROT_READ, MAP_SHARED));
}

/*
 * The histories.
 */

static bool just_read(struct victim *v)
{
	return read_file_pages(v);
}

/* On the active list. */
static bool read_often(struct victim *v)
{
	char *file = read_file_pages(v);

	for (int i = 0; i < 4; i++) {
		if (wrong_page(v->fd, PAGES, 0) >= 0)
			return false;
	}
	/* mlock() drains this CPU's LRU batches. */
	return !mlock(v, 1) && (has_generations() || page_flags(file) & KPF_ACTIVE);
}

static bool locked(struct victim *v)
{
	return !mlock(read_file_pages(v), PAGES * psize());
}

static bool all_locked(struct victim *v)
{
	return !mlockall(MCL_CURRENT | MCL_FUTURE) && read_file_pages(v);
}

static bool all_locked_on_fault(struct victim *v)
{
	return !mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) && read_file_pages(v);
}

static bool unlocked(struct victim *v)
{
	char *file = read_file_pages(v);

	return !mlock(file, PAGES * psize()) && !munlock(file, PAGES * psize());
}

/* Written through the mapping, and still mapped. */
static bool mapped_and_dirty(struct victim *v)
{
	char *file = touch(v, map_file(v, PROT_READ | PROT_WRITE, MAP_SHARED));

	for (long i = 0; i < PAGES; i++)
		fill_page(file + i * psize(), i, 1);
	v->report->step = 1;
	v->report->kept = PAGES;
	return true;
}

static bool mapped_and_synced(struct victim *v)
{
	mapped_and_dirty(v);
	v->report->kept = 0;
	return !fsync(v->fd);
}

static bool written_and_synced(struct victim *v)
{
	const size_t len = PAGES * psize();
	char *buf = map_aligned(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	v->report->step = 1;
	if (v->size == small) {
		if (!write_pages(v->fd, PAGES, 1))
			return false;
	} else {
		for (long i = 0; i < PAGES; i++)
			fill_page(buf + i * psize(), i, 1);
		if (pwrite(v->fd, buf, len, 0) != (ssize_t)len)
			return false;
	}
	return !munmap(buf, len) && !fsync(v->fd) && read_file_pages(v);
}

/* A page of the file with a private copy is not mapped any more and stays cached. */
static bool partly_copied(struct victim *v)
{
	char *file = touch(v, map_file(v, PROT_READ | PROT_WRITE, MAP_PRIVATE));

	for (long i = 0; i < PAGES; i += 2) {
		FORCE_READ(file[i * psize()]);
		v->report->kept += !is_large(file + i * psize());
		file[i * psize()]++;
	}
	return true;
}

static bool text(struct victim *v)
{
	return touch(v, map_file(v, PROT_READ | PROT_EXEC, MAP_PRIVATE));
}

/* Mapped three times, once in part. */
static bool mapped_again(struct victim *v)
{
	char *part = mmap(NULL, 37 * psize(), PROT_READ, MAP_PRIVATE, v->fd,
			  (PAGES / 2 + 5) * psize());

	if (part == MAP_FAILED || !read_file_pages(v) || !read_file_pages(v))
		return false;
	force_read_pages(part, 37, psize());
	return true;
}

/* Only pages in the middle of the file and of large folios are mapped. */
static bool middle(struct victim *v)
{
	const long first = PAGES * 3 / 4 - 5, end = first + 10;
	char *file = read_file_pages(v);
	long from = first, to = end;

	while (page_flags(file + from * psize()) & KPF_COMPOUND_TAIL)
		from--;
	while (to < PAGES && (page_flags(file + to * psize()) & KPF_COMPOUND_TAIL))
		to++;
	v->report->kept = PAGES - (to - from);
	if (munmap(file, first * psize()) ||
	    munmap(file + end * psize(), (PAGES - end) * psize()))
		return false;
	force_read_pages(file + first * psize(), end - first, psize());
	return true;
}

static bool deactivated(struct victim *v)
{
	return !madvise(read_file_pages(v), PAGES * psize(), MADV_COLD);
}

/*
 * Begin a new generation of this cgroup's folios. Return the number of generations
 * with file folios, or -1.
 */
static int age(void)
{
	char line[PATH_MAX + 32], path[PATH_MAX] = "", name[PATH_MAX];
	FILE *gens = fopen("/sys/kernel/debug/lru_gen", "r+");
	FILE *cgroup = fopen("/proc/self/cgroup", "r");
	unsigned long long memcg = 0, id;
	unsigned long seq, max = 0, file;
	int node = -1, nid = -1, used = 0;

	while (cgroup && fgets(line, sizeof(line), cgroup))
		sscanf(line, "0::%s", path);
	while (gens && fgets(line, sizeof(line), gens)) {
		if (sscanf(line, "memcg %llu %s", &id, name) == 2) {
			if (!strcmp(name, path))
				memcg = id;
			nid = strcmp(name, path) ? -1 : 0;
		} else if (nid >= 0 && sscanf(line, " node %d", &nid) != 1 &&
			   sscanf(line, "%lu %*u %*u%*c %lu", &seq, &file) == 2) {
			if (seq > max)
				max = seq;
			used += file > 0;
			node = nid;
		}
	}
	if (cgroup)
		fclose(cgroup);
	if (gens)
		fclose(gens);
	if (!max)
		return -1;
	snprintf(line, sizeof(line), "+ %llu %d %lu 20 1", memcg, node, max);
	return write_text(AT_FDCWD, "/sys/kernel/debug/lru_gen", line) ? used : -1;
}

/*
 * Put folios into several generations. mprotect() flushes the TLB, without which
 * the CPU does not set accessed bits. MGLRU skips VMAs with MADV_RANDOM.
 */
static bool aged(struct victim *v)
{
	char *file = read_file_pages(v);

	for (long pages = PAGES; pages >= PAGES / 4; pages /= 2) {
		force_read_pages(file, pages, psize());
		if (age() < 0 || mprotect(file, PAGES * psize(), PROT_NONE) ||
		    mprotect(file, PAGES * psize(), PROT_READ))
			return false;
	}
	return age() > 1;
}

static bool become_victim(const void *arg)
{
	struct victim *v = (void *)arg;

	run_on_last_cpu();
	return v->history(v);
}

/*
 * Combinations of file system, size, and history.
 */
FIXTURE(folios) {
	struct env env;
	int fd;			/* of the victim */
	struct report *report;
};

FIXTURE_VARIANT(folios) {
	enum fs_nr fs;
	enum size size;
	bool (*history)(struct victim *v);
};

/* All histories on ext4, on the others those that depend on the file system. */
FIXTURE_VARIANT_ADD(folios, ext4_small_just_read) { ext4, small, just_read };
FIXTURE_VARIANT_ADD(folios, ext4_small_read_often) { ext4, small, read_often };
FIXTURE_VARIANT_ADD(folios, ext4_small_locked) { ext4, small, locked };
FIXTURE_VARIANT_ADD(folios, ext4_small_all_locked) { ext4, small, all_locked };
FIXTURE_VARIANT_ADD(folios, ext4_small_all_locked_on_fault) { ext4, small, all_locked_on_fault };
FIXTURE_VARIANT_ADD(folios, ext4_small_unlocked) { ext4, small, unlocked };
FIXTURE_VARIANT_ADD(folios, ext4_small_mapped_and_dirty) { ext4, small, mapped_and_dirty };
FIXTURE_VARIANT_ADD(folios, ext4_small_mapped_and_synced) { ext4, small, mapped_and_synced };
FIXTURE_VARIANT_ADD(folios, ext4_small_written_and_synced) { ext4, small, written_and_synced };
FIXTURE_VARIANT_ADD(folios, ext4_small_partly_copied) { ext4, small, partly_copied };
FIXTURE_VARIANT_ADD(folios, ext4_small_mapped_again) { ext4, small, mapped_again };
FIXTURE_VARIANT_ADD(folios, ext4_small_middle) { ext4, small, middle };
FIXTURE_VARIANT_ADD(folios, ext4_small_deactivated) { ext4, small, deactivated };

FIXTURE_VARIANT_ADD(folios, ext4_ahead_just_read) { ext4, ahead, just_read };
FIXTURE_VARIANT_ADD(folios, ext4_ahead_aged) { ext4, ahead, aged };

FIXTURE_VARIANT_ADD(folios, ext4_large_just_read) { ext4, large, just_read };
FIXTURE_VARIANT_ADD(folios, ext4_large_read_often) { ext4, large, read_often };
FIXTURE_VARIANT_ADD(folios, ext4_large_locked) { ext4, large, locked };
FIXTURE_VARIANT_ADD(folios, ext4_large_all_locked) { ext4, large, all_locked };
FIXTURE_VARIANT_ADD(folios, ext4_large_all_locked_on_fault) { ext4, large, all_locked_on_fault };
FIXTURE_VARIANT_ADD(folios, ext4_large_unlocked) { ext4, large, unlocked };
FIXTURE_VARIANT_ADD(folios, ext4_large_mapped_and_synced) { ext4, large, mapped_and_synced };
FIXTURE_VARIANT_ADD(folios, ext4_large_written_and_synced) { ext4, large, written_and_synced };
FIXTURE_VARIANT_ADD(folios, ext4_large_partly_copied) { ext4, large, partly_copied };
FIXTURE_VARIANT_ADD(folios, ext4_large_text) { ext4, large, text };
FIXTURE_VARIANT_ADD(folios, ext4_large_mapped_again) { ext4, large, mapped_again };
FIXTURE_VARIANT_ADD(folios, ext4_large_middle) { ext4, large, middle };
FIXTURE_VARIANT_ADD(folios, ext4_large_deactivated) { ext4, large, deactivated };
FIXTURE_VARIANT_ADD(folios, ext4_large_aged) { ext4, large, aged };

FIXTURE_VARIANT_ADD(folios, ext4_huge_just_read) { ext4, huge, just_read };
FIXTURE_VARIANT_ADD(folios, ext4_huge_read_often) { ext4, huge, read_often };
FIXTURE_VARIANT_ADD(folios, ext4_huge_locked) { ext4, huge, locked };
FIXTURE_VARIANT_ADD(folios, ext4_huge_all_locked_on_fault) { ext4, huge, all_locked_on_fault };
FIXTURE_VARIANT_ADD(folios, ext4_huge_unlocked) { ext4, huge, unlocked };
FIXTURE_VARIANT_ADD(folios, ext4_huge_mapped_and_synced) { ext4, huge, mapped_and_synced };
FIXTURE_VARIANT_ADD(folios, ext4_huge_partly_copied) { ext4, huge, partly_copied };
FIXTURE_VARIANT_ADD(folios, ext4_huge_text) { ext4, huge, text };
FIXTURE_VARIANT_ADD(folios, ext4_huge_mapped_again) { ext4, huge, mapped_again };
FIXTURE_VARIANT_ADD(folios, ext4_huge_middle) { ext4, huge, middle };
FIXTURE_VARIANT_ADD(folios, ext4_huge_deactivated) { ext4, huge, deactivated };
FIXTURE_VARIANT_ADD(folios, ext4_huge_aged) { ext4, huge, aged };
FIXTURE_VARIANT_ADD(folios, ext4_collapsed_text) { ext4, collapsed, text };

FIXTURE_VARIANT_ADD(folios, xfs_small_just_read) { xfs, small, just_read };
FIXTURE_VARIANT_ADD(folios, xfs_small_locked) { xfs, small, locked };
FIXTURE_VARIANT_ADD(folios, xfs_ahead_just_read) { xfs, ahead, just_read };
FIXTURE_VARIANT_ADD(folios, xfs_ahead_text) { xfs, ahead, text };
FIXTURE_VARIANT_ADD(folios, xfs_large_just_read) { xfs, large, just_read };
FIXTURE_VARIANT_ADD(folios, xfs_large_locked) { xfs, large, locked };
FIXTURE_VARIANT_ADD(folios, xfs_large_middle) { xfs, large, middle };
FIXTURE_VARIANT_ADD(folios, xfs_small_mapped_and_dirty) { xfs, small, mapped_and_dirty };
FIXTURE_VARIANT_ADD(folios, xfs_small_mapped_and_synced) { xfs, small, mapped_and_synced };
FIXTURE_VARIANT_ADD(folios, xfs_small_written_and_synced) { xfs, small, written_and_synced };
FIXTURE_VARIANT_ADD(folios, xfs_large_mapped_and_dirty) { xfs, large, mapped_and_dirty };
FIXTURE_VARIANT_ADD(folios, xfs_large_mapped_and_synced) { xfs, large, mapped_and_synced };
FIXTURE_VARIANT_ADD(folios, xfs_large_written_and_synced) { xfs, large, written_and_synced };
FIXTURE_VARIANT_ADD(folios, xfs_huge_just_read) { xfs, huge, just_read };

FIXTURE_VARIANT_ADD(folios, btrfs_small_just_read) { btrfs, small, just_read };
FIXTURE_VARIANT_ADD(folios, btrfs_small_locked) { btrfs, small, locked };
FIXTURE_VARIANT_ADD(folios, btrfs_ahead_just_read) { btrfs, ahead, just_read };
FIXTURE_VARIANT_ADD(folios, btrfs_ahead_text) { btrfs, ahead, text };
FIXTURE_VARIANT_ADD(folios, btrfs_large_just_read) { btrfs, large, just_read };
FIXTURE_VARIANT_ADD(folios, btrfs_large_locked) { btrfs, large, locked };
FIXTURE_VARIANT_ADD(folios, btrfs_large_middle) { btrfs, large, middle };
FIXTURE_VARIANT_ADD(folios, btrfs_small_mapped_and_dirty) { btrfs, small, mapped_and_dirty };
FIXTURE_VARIANT_ADD(folios, btrfs_small_mapped_and_synced) { btrfs, small, mapped_and_synced };
FIXTURE_VARIANT_ADD(folios, btrfs_small_written_and_synced) { btrfs, small, written_and_synced };
FIXTURE_VARIANT_ADD(folios, btrfs_large_mapped_and_synced) { btrfs, large, mapped_and_synced };
FIXTURE_VARIANT_ADD(folios, btrfs_large_written_and_synced) { btrfs, large, written_and_synced };

FIXTURE_VARIANT_ADD(folios, f2fs_small_just_read) { f2fs, small, just_read };
FIXTURE_VARIANT_ADD(folios, f2fs_small_locked) { f2fs, small, locked };
FIXTURE_VARIANT_ADD(folios, f2fs_ahead_just_read) { f2fs, ahead, just_read };
FIXTURE_VARIANT_ADD(folios, f2fs_ahead_text) { f2fs, ahead, text };
FIXTURE_VARIANT_ADD(folios, f2fs_small_mapped_and_dirty) { f2fs, small, mapped_and_dirty };
FIXTURE_VARIANT_ADD(folios, f2fs_small_mapped_and_synced) { f2fs, small, mapped_and_synced };
FIXTURE_VARIANT_ADD(folios, f2fs_small_written_and_synced) { f2fs, small, written_and_synced };
FIXTURE_VARIANT_ADD(folios, f2fs_ahead_mapped_and_synced) { f2fs, ahead, mapped_and_synced };
FIXTURE_VARIANT_ADD(folios, f2fs_ahead_written_and_synced) { f2fs, ahead, written_and_synced };

FIXTURE_VARIANT_ADD(folios, f2fs_immutable_large_just_read) { f2fs_immutable, large, just_read };
FIXTURE_VARIANT_ADD(folios, f2fs_immutable_large_locked) { f2fs_immutable, large, locked };
FIXTURE_VARIANT_ADD(folios, f2fs_immutable_large_middle) { f2fs_immutable, large, middle };
FIXTURE_VARIANT_ADD(folios, f2fs_immutable_huge_just_read) { f2fs_immutable, huge, just_read };

FIXTURE_VARIANT_ADD(folios, squashfs_small_just_read) { squashfs, small, just_read };
FIXTURE_VARIANT_ADD(folios, squashfs_small_locked) { squashfs, small, locked };
FIXTURE_VARIANT_ADD(folios, squashfs_ahead_just_read) { squashfs, ahead, just_read };
FIXTURE_VARIANT_ADD(folios, squashfs_ahead_text) { squashfs, ahead, text };

FIXTURE_VARIANT_ADD(folios, erofs_small_just_read) { erofs, small, just_read };
FIXTURE_VARIANT_ADD(folios, erofs_small_locked) { erofs, small, locked };
FIXTURE_VARIANT_ADD(folios, erofs_ahead_just_read) { erofs, ahead, just_read };
FIXTURE_VARIANT_ADD(folios, erofs_ahead_text) { erofs, ahead, text };
FIXTURE_VARIANT_ADD(folios, erofs_large_just_read) { erofs, large, just_read };
FIXTURE_VARIANT_ADD(folios, erofs_large_locked) { erofs, large, locked };
FIXTURE_VARIANT_ADD(folios, erofs_large_middle) { erofs, large, middle };
FIXTURE_VARIANT_ADD(folios, erofs_huge_just_read) { erofs, huge, just_read };

FIXTURE_VARIANT_ADD(folios, erofs_lz4_small_just_read) { erofs_lz4, small, just_read };
FIXTURE_VARIANT_ADD(folios, erofs_lz4_small_locked) { erofs_lz4, small, locked };
FIXTURE_VARIANT_ADD(folios, erofs_lz4_ahead_just_read) { erofs_lz4, ahead, just_read };
FIXTURE_VARIANT_ADD(folios, erofs_lz4_ahead_text) { erofs_lz4, ahead, text };
FIXTURE_VARIANT_ADD(folios, erofs_lz4_large_just_read) { erofs_lz4, large, just_read };
FIXTURE_VARIANT_ADD(folios, erofs_lz4_large_locked) { erofs_lz4, large, locked };
FIXTURE_VARIANT_ADD(folios, erofs_lz4_large_middle) { erofs_lz4, large, middle };
FIXTURE_VARIANT_ADD(folios, erofs_lz4_huge_just_read) { erofs_lz4, huge, just_read };

FIXTURE_VARIANT_ADD(folios, v9fs_small_just_read) { v9fs, small, just_read };
FIXTURE_VARIANT_ADD(folios, v9fs_small_locked) { v9fs, small, locked };
FIXTURE_VARIANT_ADD(folios, v9fs_small_mapped_and_synced) { v9fs, small, mapped_and_synced };
FIXTURE_VARIANT_ADD(folios, v9fs_small_written_and_synced) { v9fs, small, written_and_synced };
FIXTURE_VARIANT_ADD(folios, v9fs_ahead_just_read) { v9fs, ahead, just_read };
FIXTURE_VARIANT_ADD(folios, v9fs_ahead_text) { v9fs, ahead, text };

FIXTURE_VARIANT_ADD(folios, overlay_ext4_small_just_read) { overlay_ext4, small, just_read };
FIXTURE_VARIANT_ADD(folios, overlay_ext4_small_locked) { overlay_ext4, small, locked };
FIXTURE_VARIANT_ADD(folios, overlay_ext4_ahead_just_read) { overlay_ext4, ahead, just_read };
FIXTURE_VARIANT_ADD(folios, overlay_ext4_ahead_text) { overlay_ext4, ahead, text };
FIXTURE_VARIANT_ADD(folios, overlay_ext4_large_just_read) { overlay_ext4, large, just_read };
FIXTURE_VARIANT_ADD(folios, overlay_ext4_large_locked) { overlay_ext4, large, locked };
FIXTURE_VARIANT_ADD(folios, overlay_ext4_large_middle) { overlay_ext4, large, middle };
FIXTURE_VARIANT_ADD(folios, overlay_squashfs_ahead_text) { overlay_squashfs, ahead, text };
FIXTURE_VARIANT_ADD(folios, overlay_erofs_ahead_text) { overlay_erofs, ahead, text };

FIXTURE_SETUP(folios)
{
	if (variant->size >= huge && !read_pmd_pagesize())
		SKIP(return, "no huge pages");
	if (variant->history == aged && !has_generations())
		SKIP(return, "no generations of folios");
	if (!open_file(_metadata, &self->env, &self->fd, variant->fs, "file"))
		return;
	self->report = mmap(NULL, sizeof(*self->report), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->report);
}

FIXTURE_TEARDOWN(folios)
{
	tear_down(&self->env);
}

TEST_F_TIMEOUT(folios, are_evicted, TIMEOUT)
{
	const bool caches = filesystems[lowest(variant->fs)].caches;
	struct report *report = self->report;
	struct victim v = {
		.size = variant->size, .history = variant->history, .fd = self->fd,
		.report = report,
	};
	int pidfd;
	pid_t pid;

	run_on_first_cpu();
	pid = start_child(&self->env, become_victim, &v, &pidfd);
	ASSERT_GT(pid, 0) TH_LOG("The victim could not be set up");
	if (variant->size >= large && !report->large)
		SKIP(return, "no large folios");
	ASSERT_TRUE(variant->size != small || !report->large);
	if (variant->size >= huge && !report->huge)
		SKIP(return, "not mapped by a PMD");
	ASSERT_EQ(PAGES, file_cached(self->env.fd));

	if (kill_with_flag(_metadata, pidfd)) {
		EXPECT_EQ(report->kept, file_cached(self->env.fd));
		EXPECT_LE(measure(&self->env).charge,
			  slack() + (caches ? PAGES : report->kept) * psize());
	} else {
		EXPECT_EQ(PAGES, file_cached(self->env.fd));
	}
	EXPECT_EQ(SIGKILL, wait_termsig(pid));
	EXPECT_EQ(-1, wrong_page(self->fd, PAGES, report->step));
	close(pidfd);
}

/*
 * The victim's own program.
 */
FIXTURE(program) {
	struct env env;
	int fd;
};

FIXTURE_VARIANT(program) {
	enum fs_nr fs;
};

FIXTURE_VARIANT_ADD(program, ext4) { ext4 };
FIXTURE_VARIANT_ADD(program, xfs) { xfs };
FIXTURE_VARIANT_ADD(program, btrfs) { btrfs };
FIXTURE_VARIANT_ADD(program, f2fs) { f2fs };
FIXTURE_VARIANT_ADD(program, f2fs_immutable) { f2fs_immutable };
FIXTURE_VARIANT_ADD(program, squashfs) { squashfs };
FIXTURE_VARIANT_ADD(program, erofs) { erofs };
FIXTURE_VARIANT_ADD(program, erofs_lz4) { erofs_lz4 };
FIXTURE_VARIANT_ADD(program, v9fs) { v9fs };
FIXTURE_VARIANT_ADD(program, overlay_ext4) { overlay_ext4 };
FIXTURE_VARIANT_ADD(program, overlay_squashfs) { overlay_squashfs };
FIXTURE_VARIANT_ADD(program, overlay_erofs) { overlay_erofs };

FIXTURE_SETUP(program)
{
	open_file(_metadata, &self->env, &self->fd, variant->fs, "program");
}

FIXTURE_TEARDOWN(program)
{
	tear_down(&self->env);
}

/* The text of this program, in memory and in the file. */
struct text {
	char *start;
	off_t offset;
	size_t len;
};

/* dl_iterate_phdr() begins with the program. */
static int get_text(struct dl_phdr_info *info, size_t size, void *arg)
{
	struct text *text = arg;

	for (int i = 0; i < info->dlpi_phnum; i++) {
		if (info->dlpi_phdr[i].p_type != PT_LOAD ||
		    !(info->dlpi_phdr[i].p_flags & PF_X))
			continue;
		text->start = (char *)info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
		text->offset = info->dlpi_phdr[i].p_offset;
		text->len = info->dlpi_phdr[i].p_filesz;
	}
	return 1;
}

/* In the victim's program: read all of the text, report, and sleep. */
static int run_victim(int ready)
{
	struct text text = { };

	run_on_last_cpu();
	dl_iterate_phdr(get_text, &text);
	for (size_t i = 0; i < text.len; i += psize())
		FORCE_READ(text.start[i]);
	if (write(ready, "", 1) == 1)
		pause();
	return 1;
}

static bool same_contents(int a, int b)
{
	char bufs[2][4096];
	ssize_t len;
	off_t at = 0;

	do {
		len = pread(a, bufs[0], sizeof(bufs[0]), at);
		if (len < 0 || pread(b, bufs[1], sizeof(bufs[1]), at) != len ||
		    memcmp(bufs[0], bufs[1], len))
			return false;
		at += len;
	} while (len);
	return true;
}

TEST_F_TIMEOUT(program, is_evicted, TIMEOUT)
{
	int me = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	struct text text = { };
	int ready[2], pidfd;
	char arg[16];
	pid_t pid;
	long all;

	run_on_first_cpu();
	dl_iterate_phdr(get_text, &text);
	all = (text.offset % psize() + text.len + psize() - 1) / psize();
	ASSERT_EQ(0, pipe(ready));
	snprintf(arg, sizeof(arg), "%d", ready[1]);
	pid = fork_into_cgroup(&self->env, &pidfd);
	if (!pid) {
		close(ready[0]);
		exec_fd(self->fd, "victim", arg);
	}
	ASSERT_EQ(pid, wait_ready(pid, ready));
	ASSERT_EQ(all, cached_in(self->env.fd, text.offset, text.len));

	if (kill_with_flag(_metadata, pidfd)) {
		EXPECT_EQ(0, cached_in(self->env.fd, text.offset, text.len));
		EXPECT_LE(measure(&self->env).charge, slack());
	} else {
		EXPECT_EQ(all, cached_in(self->env.fd, text.offset, text.len));
	}
	EXPECT_EQ(SIGKILL, wait_termsig(pid));
	EXPECT_TRUE(same_contents(self->fd, me));
	close(pidfd);
}

int main(int argc, char **argv)
{
	if (!strcmp(argv[0], "victim"))
		return run_victim(atoi(argv[1]));
	images = mmap(NULL, sizeof(*images) * ARRAY_SIZE(filesystems),
		      PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (size_t i = 0; i < ARRAY_SIZE(filesystems); i++)
		images[i].fd = open_scratch();
	return test_harness_run(argc, argv);
}
