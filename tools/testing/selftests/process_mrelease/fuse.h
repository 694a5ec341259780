/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A FUSE file system with a single file as its root, which a thread of the test serves.
 * The server can hold requests of one kind until answer_held().
 */
#ifndef SELFTESTS_PROCESS_MRELEASE_FUSE_H
#define SELFTESTS_PROCESS_MRELEASE_FUSE_H

#include <linux/fuse.h>
#include <stdatomic.h>

#include "pages.h"

/* In memory that is shared with the victim. */
struct fuse_server {
	int dev;
	int fd;			/* the file */
	int direct;		/* O_DIRECT */
	char *data;		/* the storage */
	atomic_uint hold;	/* opcode of the requests to hold */
	atomic_uint held;	/* number of .requests */
	struct fuse_in_header *requests[PAGES];
	int disk;		/* the file on disk */
};

#define REQUEST_SIZE	(bytes(PAGES) + 2 * FUSE_MIN_READ_BUFFER)

static inline void reply(struct fuse_server *s, const struct fuse_in_header *in, int error,
			 const void *data, size_t len)
{
	struct fuse_out_header out = {
		.len = sizeof(out) + len, .error = -error, .unique = in->unique,
	};
	struct iovec iov[] = { { &out, sizeof(out) }, { (void *)data, len } };

	/* ENOENT: the request was interrupted. */
	if (writev(s->dev, iov, 2) < 0 && errno != ENOENT)
		perror("/dev/fuse");
}

static inline void answer(struct fuse_server *s, const struct fuse_in_header *in)
{
	const void *arg = in + 1;

	switch (in->opcode) {
	case FUSE_INIT: {
		struct fuse_init_out init = {
			.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION,
			.flags = FUSE_BIG_WRITES | FUSE_ASYNC_READ | FUSE_MAX_PAGES,
			.max_write = bytes(PAGES), .max_pages = PAGES,
			.max_background = PAGES, .congestion_threshold = PAGES,
		};

		reply(s, in, 0, &init, sizeof(init));
		break;
	}
	case FUSE_GETATTR: {
		struct fuse_attr_out attr = {
			.attr_valid = TIMEOUT,
			.attr = {
				.ino = FUSE_ROOT_ID, .size = bytes(PAGES), .nlink = 1,
				.mode = S_IFREG | 0600, .blksize = psize(),
			},
		};

		reply(s, in, 0, &attr, sizeof(attr));
		break;
	}
	case FUSE_OPEN: {
		struct fuse_open_out open = {
			.open_flags = FOPEN_KEEP_CACHE | FOPEN_NOFLUSH,
		};

		reply(s, in, 0, &open, sizeof(open));
		break;
	}
	case FUSE_READ: {
		const struct fuse_read_in *read = arg;

		reply(s, in, 0, s->data + read->offset, read->size);
		break;
	}
	case FUSE_WRITE: {
		const struct fuse_write_in *write = arg;
		struct fuse_write_out done = { .size = write->size };

		memcpy(s->data + write->offset, write + 1, write->size);
		reply(s, in, 0, &done, sizeof(done));
		break;
	}
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break;
	default:
		reply(s, in, ENOSYS, NULL, 0);
	}
}

static inline void *run_server(void *arg)
{
	struct fuse_in_header *in;
	struct fuse_server *s = arg;
	ssize_t len;

	for (;;) {
		in = malloc(REQUEST_SIZE);
		len = read(s->dev, in, REQUEST_SIZE);
		if (len < 0 && errno == ENODEV)
			break;
		if (len > 0 && in->opcode == s->hold) {
			s->requests[s->held] = in;
			s->held++;
			continue;
		}
		if (len > 0)
			answer(s, in);
		free(in);
	}
	return NULL;
}

/* Answer the requests that have been held. */
static inline void answer_held(struct fuse_server *s)
{
	s->hold = 0;
	for (unsigned int i = 0; i < s->held; i++)
		answer(s, s->requests[i]);
}

/* The number of pages that the held requests are for. */
static inline long held_pages(struct fuse_server *s)
{
	size_t size = 0;

	for (unsigned int i = 0; i < s->held; i++) {
		/* FUSE_READ begins with the same fields. */
		const struct fuse_write_in *arg = (void *)(s->requests[i] + 1);

		size += arg->size;
	}
	return size / psize();
}

/* Mount the file system. Return NULL without FUSE. */
static inline struct fuse_server *start_server(struct __test_metadata *_metadata)
{
	struct fuse_server *s = map_anon(1, MAP_SHARED);
	char dev[16];
	const char * const options[][2] = {
		{ "source", "mrelease" }, { "fd", dev }, { "rootmode", "100600" },
		{ "user_id", "0" }, { "group_id", "0" }, { },
	};
	pthread_t thread;
	struct stat st;
	int mount;

	ASSERT_NE(MAP_FAILED, s);
	s->dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	snprintf(dev, sizeof(dev), "%d", s->dev);
	mount = new_mount("fuse", options);
	if (mount < 0)
		return NULL;
	s->data = malloc(bytes(PAGES));
	fill_pages(s->data, 0, PAGES, 0);
	ASSERT_EQ(0, pthread_create(&thread, NULL, run_server, s));
	s->fd = reopen(mount, O_RDWR);
	s->direct = reopen(mount, O_RDWR | O_DIRECT);
	ASSERT_LE(0, s->fd);
	ASSERT_LE(0, s->direct);
	close(mount);
	/* A fault does not get the size of the file. */
	ASSERT_EQ(0, fstat(s->fd, &st));
	ASSERT_EQ(bytes(PAGES), st.st_size);
	return s;
}

/* FUSE of Linux 6.12: no page is under writeback, and an exit does not wait for it. */
#define NO_WRITEBACK	"FUSE writes back copies of pages"

/* In the victim: close the device, so that the connection ends with the test. */
static inline struct fuse_server *detach_server(const void *arg)
{
	struct fuse_server *s = (struct fuse_server *)arg;

	close(s->dev);
	return s;
}

#endif
