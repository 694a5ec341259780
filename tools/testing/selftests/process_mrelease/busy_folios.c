// SPDX-License-Identifier: GPL-2.0
/*
 * Test that process_mrelease(PROCESS_MRELEASE_REAP_KILL) does not evict folios that are
 * locked, under I/O or pinned by direct I/O. A FUSE server holds the I/O during the
 * call.
 */
#define _GNU_SOURCE
#include "fuse.h"

FIXTURE(busy) {
	struct env env;
	struct fuse_server *server;
};

FIXTURE_SETUP(busy)
{
	if (!set_up(_metadata, &self->env, true, PAGES))
		return;
	self->server = start_server(_metadata);
	if (!self->server) {
		tear_down(&self->env);
		SKIP(return, "needs FUSE");
	}
	self->server->disk = self->env.fd;
}

FIXTURE_TEARDOWN(busy)
{
	if (self->server)
		answer_held(self->server);
	tear_down(&self->env);
}

static bool write_through_mapping(const void *arg)
{
	char *p = map_file(detach_server(arg)->fd, PROT_READ | PROT_WRITE, MAP_SHARED);

	if (p)
		fill_pages(p + bytes(FIRST), FIRST, HELD, 1);
	return p;
}

TEST_F_TIMEOUT(busy, writeback, TIMEOUT)
{
	struct fuse_server *s = self->server;
	bool all_held;
	int pidfd;
	pid_t pid;

	pid = start_child(&self->env, write_through_mapping, s, &pidfd);
	ASSERT_GT(pid, 0);
	s->hold = FUSE_WRITE;
	ASSERT_EQ(0, sync_file_range(s->fd, 0, 0, SYNC_FILE_RANGE_WRITE));
	all_held = wait_until(held_pages(s) == HELD);
	if (!cache_in(s->fd, 0, 0).nr_writeback)
		SKIP(return, NO_WRITEBACK);
	ASSERT_TRUE(all_held);
	ASSERT_EQ(HELD, (long)cache_in(s->fd, 0, 0).nr_writeback);
	ASSERT_EQ(0, dirty(s->fd));
	ASSERT_EQ(PAGES, cached(s->fd));

	ASSERT_EQ(0, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
	EXPECT_EQ(0, misplaced(s->fd, FIRST, HELD));
	EXPECT_EQ(HELD, (long)cache_in(s->fd, 0, 0).nr_writeback);
	/* A page that was evicted would have old contents. */
	check_file(_metadata, s->fd, 1, 0);
	answer_held(s);
	/* The exit waits for these requests. */
	EXPECT_EQ(SIGKILL, wait_termsig(pid));
	close(pidfd);
	EXPECT_TRUE(droppable(s->fd));
	check_file(_metadata, s->fd, 1, 0);
}

static void *wait_for_page(void *p)
{
	FORCE_READ(*(char *)p);
	return NULL;
}

/* Read all but the middle, for which a thread waits. */
static bool read_ahead(const void *arg)
{
	struct fuse_server *s = detach_server(arg);
	char *p = mmap(NULL, bytes(PAGES), PROT_READ, MAP_SHARED, s->fd, 0);
	pthread_t thread;

	if (p == MAP_FAILED || madvise(p, bytes(PAGES), MADV_RANDOM))
		return false;
	force_read_pages(p, FIRST, psize());
	force_read_pages(p + bytes(FIRST + HELD), PAGES - FIRST - HELD, psize());
	s->hold = FUSE_READ;
	return !madvise(p + bytes(FIRST), bytes(HELD), MADV_WILLNEED) &&
	       !pthread_create(&thread, NULL, wait_for_page, p + bytes(FIRST));
}

TEST_F_TIMEOUT(busy, read, TIMEOUT)
{
	struct fuse_server *s = self->server;
	int pidfd;
	pid_t pid;

	pid = start_child(&self->env, read_ahead, s, &pidfd);
	ASSERT_GT(pid, 0);
	ASSERT_TRUE(wait_until(held_pages(s) == HELD));
	ASSERT_EQ(PAGES, cached(s->fd));

	kill_victim(_metadata, pid, pidfd);
	EXPECT_EQ(0, misplaced(s->fd, FIRST, HELD));
	answer_held(s);
	check_file(_metadata, s->fd, 0, 0);
	EXPECT_TRUE(droppable(s->fd));
}

static bool read_all(const void *arg)
{
	return map_file(detach_server(arg)->fd, PROT_READ, MAP_SHARED);
}

/* FUSE_NOTIFY_STORE from a page whose fault is held: the folio stays locked. */
struct store {
	int dev;
	char *page;
	ssize_t ret;
};

static void *store_page(void *arg)
{
	struct store *store = arg;
	struct fuse_notify_store_out where = {
		.nodeid = FUSE_ROOT_ID, .offset = bytes(FIRST), .size = psize(),
	};
	struct fuse_out_header out = {
		.len = sizeof(out) + sizeof(where) + psize(), .error = FUSE_NOTIFY_STORE,
	};
	struct iovec iov[] = {
		{ &out, sizeof(out) }, { &where, sizeof(where) }, { store->page, psize() },
	};

	store->ret = writev(store->dev, iov, 3);
	return NULL;
}

TEST_F_TIMEOUT(busy, locked, TIMEOUT)
{
	struct fuse_server *s = self->server;
	struct store store = { .dev = s->dev, .page = map_anon(1, MAP_PRIVATE) };
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_copy copy = { .len = psize() };
	char page[psize()];
	struct uffd_msg msg;
	pthread_t thread;
	int uffd, pidfd;
	pid_t pid;

	uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ||
	    uffd_register(uffd, store.page, psize(), true, false, false))
		SKIP(return, "needs userfaultfd");
	pid = start_child(&self->env, read_all, s, &pidfd);
	ASSERT_GT(pid, 0);
	ASSERT_EQ(PAGES, cached(s->fd));
	ASSERT_EQ(0, pthread_create(&thread, NULL, store_page, &store));
	ASSERT_EQ((ssize_t)sizeof(msg), read(uffd, &msg, sizeof(msg)));

	kill_victim(_metadata, pid, pidfd);
	EXPECT_EQ(0, misplaced(s->fd, FIRST, 1));
	fill_page(page, FIRST, 1);
	copy.dst = (uintptr_t)store.page;
	copy.src = (uintptr_t)page;
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_COPY, &copy));
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_LT(0, store.ret);
	ASSERT_EQ(psize(), pread(s->fd, page, psize(), bytes(FIRST)));
	EXPECT_TRUE(is_filled(page, FIRST, 1));
	EXPECT_TRUE(droppable(s->fd));
	check_file(_metadata, s->fd, 0, 0);
	close(uffd);
}

/* Direct I/O between the FUSE file and a mapping of the file on disk. */
struct transfer {
	struct fuse_server *server;
	char *addr;
	int kind;
};

static void *transfer_directly(void *arg)
{
	struct transfer *t = arg;

	t->server->hold = t->kind;
	if (t->kind == FUSE_READ)
		pread(t->server->direct, t->addr, bytes(HELD), bytes(FIRST));
	else
		pwrite(t->server->direct, t->addr, bytes(HELD), bytes(FIRST));
	return NULL;
}

static bool start_transfer(const void *arg, int kind)
{
	static struct transfer transfer;
	pthread_t thread;
	char *p;

	transfer.server = detach_server(arg);
	transfer.kind = kind;
	p = map_file(transfer.server->disk, PROT_READ | PROT_WRITE, MAP_SHARED);
	transfer.addr = p + bytes(FIRST);
	return p && !pthread_create(&thread, NULL, transfer_directly, &transfer);
}

static bool read_directly(const void *arg)
{
	return start_transfer(arg, FUSE_READ);
}

static bool write_directly(const void *arg)
{
	return start_transfer(arg, FUSE_WRITE);
}

/* The folios are clean, but pinned. */
TEST_F_TIMEOUT(busy, direct_read, TIMEOUT)
{
	struct fuse_server *s = self->server;
	int pidfd;
	pid_t pid;

	fill_pages(s->data + bytes(FIRST), FIRST, HELD, 1);
	pid = start_child(&self->env, read_directly, s, &pidfd);
	ASSERT_GT(pid, 0);
	ASSERT_TRUE(wait_until(held_pages(s) == HELD));
	ASSERT_EQ(0, fsync(s->disk));
	ASSERT_EQ(0, dirty(s->disk));
	ASSERT_EQ(PAGES, cached(s->disk));

	ASSERT_EQ(0, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
	EXPECT_EQ(0, misplaced(s->disk, FIRST, HELD));
	answer_held(s);
	EXPECT_EQ(SIGKILL, wait_termsig(pid));
	close(pidfd);
	check_file(_metadata, s->disk, 1, 0);
	EXPECT_TRUE(droppable(s->disk));
	check_file(_metadata, s->disk, 1, 0);
}

TEST_F_TIMEOUT(busy, direct_write, TIMEOUT)
{
	struct fuse_server *s = self->server;
	int pidfd;
	pid_t pid;

	fill_pages(s->data, 0, PAGES, 1);
	pid = start_child(&self->env, write_directly, s, &pidfd);
	ASSERT_GT(pid, 0);
	ASSERT_TRUE(wait_until(held_pages(s) == HELD));
	ASSERT_EQ(PAGES, cached(s->disk));

	ASSERT_EQ(0, mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL));
	EXPECT_EQ(0, misplaced(s->disk, FIRST, HELD));
	answer_held(s);
	EXPECT_EQ(SIGKILL, wait_termsig(pid));
	close(pidfd);
	EXPECT_TRUE(droppable(s->disk));
	check_file(_metadata, s->disk, 0, 0);
	check_file(_metadata, s->fd, 0, 1);
}

TEST_HARNESS_MAIN
