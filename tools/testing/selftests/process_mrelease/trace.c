// SPDX-License-Identifier: GPL-2.0
/*
 * Test that signals, trace events, counters and audit records report the kills of
 * process_mrelease(PROCESS_MRELEASE_REAP_KILL).
 */
#define _GNU_SOURCE
#include <linux/audit.h>
#include <linux/netlink.h>
#include <poll.h>

#include "victim.h"

#ifndef KILL_MRELEASE
#define KILL_MRELEASE			1
#endif

FIXTURE(report) {
	struct env env;
};

FIXTURE_SETUP(report)
{
	set_up(_metadata, &self->env, true, PAGES);
}

FIXTURE_TEARDOWN(report)
{
	tear_down(&self->env);
}

/* A trace instance for the test only. */
struct trace {
	char path[64];
	int dir;
	FILE *lines;
};

static bool open_trace(struct trace *trace)
{
	snprintf(trace->path, sizeof(trace->path),
		 "/sys/kernel/tracing/instances/mrelease.%d", getpid());
	if (mkdir(trace->path, 0700))
		return false;
	trace->dir = open(trace->path, O_PATH | O_CLOEXEC);
	return true;
}

/* Return the next line that contains @words, from these words on. */
static char *traced(struct trace *trace, const char *words, char *line, size_t size)
{
	char *p;

	if (!trace->lines)
		trace->lines = fdopen(openat(trace->dir, "trace", O_RDONLY), "r");
	while (trace->lines && fgets(line, size, trace->lines)) {
		p = strstr(line, words);
		if (p)
			return p;
	}
	if (trace->lines)
		rewind(trace->lines);
	return NULL;
}

/* Return the number in "name=number" of such a line, or -1. */
static long field(const char *line, const char *name)
{
	size_t len = strlen(name);

	while ((line = strstr(line, name))) {
		if (line[-1] == ' ' && line[len] == '=')
			return atol(line + len + 1);
		line += len;
	}
	return -1;
}

static void close_trace(struct trace *trace)
{
	if (trace->lines)
		fclose(trace->lines);
	close(trace->dir);
	rmdir(trace->path);
}

/* One signal is sent, with the si_code KILL_MRELEASE. */
TEST_F_TIMEOUT(report, si_code, TIMEOUT)
{
	const struct spec spec = { .anon = PAGES };
	struct trace trace = { };
	int code = -1, count = 0;
	char line[512], *p;
	struct victim v;

	if (!open_trace(&trace))
		SKIP(return, "no trace instances in tracefs");
	EXPECT_TRUE(write_text(trace.dir, "events/signal/signal_generate/filter", "sig == 9"));
	EXPECT_TRUE(write_text(trace.dir, "events/signal/signal_generate/enable", "1"));
	spawn(_metadata, &self->env, &spec, &v);
	EXPECT_EQ(0, mrelease(v.proc.pidfd, PROCESS_MRELEASE_REAP_KILL));
	EXPECT_TRUE(write_text(trace.dir, "events/signal/signal_generate/enable", "0"));

	while ((p = traced(&trace, "signal_generate: sig=9 ", line, sizeof(line)))) {
		if (field(p, "pid") == v.proc.pid) {
			code = field(p, "code");
			count++;
		}
	}
	close_trace(&trace);
	EXPECT_EQ(KILL_MRELEASE, code);
	EXPECT_EQ(1, count);
	EXPECT_EQ(SIGKILL, wait_termsig(v.proc.pid));
	close_victim(&v);
}

/* Trace events and counters report kills, freed memory, and refused folios. */
TEST_F_TIMEOUT(report, trace_events_and_counters, TIMEOUT)
{
	const struct spec spec = {
		.anon = PAGES, .file = PAGES, .advice = MADV_RANDOM,
		.prot = PROT_READ | PROT_WRITE, .dirty = 8, .sharer = true,
	};
	long kills = vmstat_counter("mrelease_kill"), evictions = vmstat_counter("mrelease_evict");
	long evicted = 0, refused = 0, cache;
	struct trace trace = { };
	char line[512], *p;
	struct victim v;

	if (!open_trace(&trace))
		SKIP(return, "no trace instances in tracefs");
	ASSERT_GE(kills, 0);
	ASSERT_GE(evictions, 0);
	spawn(_metadata, &self->env, &spec, &v);
	cache = cached(self->env.fd);
	EXPECT_TRUE(write_text(trace.dir, "events/mrelease/enable", "1"));
	EXPECT_EQ(0, mrelease(v.proc.pidfd, PROCESS_MRELEASE_REAP_KILL));
	EXPECT_TRUE(write_text(trace.dir, "events/mrelease/enable", "0"));
	cache -= cached(self->env.fd);
	EXPECT_EQ(kills + 2, vmstat_counter("mrelease_kill"));
	EXPECT_LE(evictions + cache, vmstat_counter("mrelease_evict"));

	p = traced(&trace, "mrelease_start: ", line, sizeof(line));
	ASSERT_NE(NULL, p);
	EXPECT_EQ(v.proc.pid, field(p, "pid"));
	EXPECT_LE(PAGES, field(p, "anon"));
	EXPECT_LE(PAGES, field(p, "file"));
	rewind(trace.lines);

	/* The victim's program is evicted as well. */
	while ((p = traced(&trace, "mrelease_evict: ", line, sizeof(line)))) {
		evicted += field(p, "evicted");
		refused += field(p, "refused");
	}
	EXPECT_LE(cache, evicted);
	EXPECT_LE(PAGES / 8, refused);

	p = traced(&trace, "mrelease_end: ", line, sizeof(line));
	ASSERT_NE(NULL, p);
	EXPECT_EQ(v.proc.pid, field(p, "pid"));
	EXPECT_EQ(0, field(p, "anon"));
	EXPECT_EQ(0, field(p, "file"));
	EXPECT_EQ(0, field(p, "swap"));
	EXPECT_EQ(0, field(p, "ret"));

	close_trace(&trace);
	EXPECT_EQ(SIGKILL, wait_termsig(v.proc.pid));
	EXPECT_EQ(SIGKILL, wait_termsig(v.sharer.pid));
	close_victim(&v);
}

/* Open a socket for audit requests, or for audit records with @groups; or -1. */
static int open_audit(unsigned int groups)
{
	const struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = groups };
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_AUDIT);

	if (fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof(address))) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/* Return 0 or the value of errno. */
static int request(int audit, int type, const void *data, size_t len)
{
	struct {
		struct nlmsghdr head;
		char data[2048];
	} msg = { .head = {
		.nlmsg_len = NLMSG_LENGTH(len), .nlmsg_type = type,
		.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK,
	} };
	const struct nlmsgerr *answer = NLMSG_DATA(&msg.head);

	memcpy(NLMSG_DATA(&msg.head), data, len);
	if (send(audit, &msg, msg.head.nlmsg_len, 0) < 0)
		return errno;
	if (recv(audit, &msg, sizeof(msg), 0) < 0)
		return errno;
	return msg.head.nlmsg_type == NLMSG_ERROR ? -answer->error : EPROTO;
}

/* Return true if auditing is enabled already. */
static bool is_in_use(int audit)
{
	struct {
		struct nlmsghdr head;
		struct audit_status status;
	} msg = { .head = {
		.nlmsg_len = NLMSG_LENGTH(0), .nlmsg_type = AUDIT_GET,
		.nlmsg_flags = NLM_F_REQUEST,
	} };

	return send(audit, &msg, msg.head.nlmsg_len, 0) < 0 ||
	       recv(audit, &msg, sizeof(msg), 0) < 0 ||
	       msg.head.nlmsg_type != AUDIT_GET || msg.status.enabled;
}

/* With an audit rule for the call, all targets of the signal are recorded. */
TEST_F_TIMEOUT(report, audit_records, TIMEOUT)
{
	const struct spec spec = { .anon = PAGES, .sharer = true };
	const int nr = __NR_process_mrelease;
	struct audit_status status = { .mask = AUDIT_STATUS_ENABLED, .enabled = 1 };
	struct audit_rule_data rule = {
		.flags = AUDIT_FILTER_EXIT, .action = AUDIT_ALWAYS,
		.mask[AUDIT_WORD(nr)] = AUDIT_BIT(nr),
	};
	struct pollfd log = { open_audit(1 << (AUDIT_NLGRP_READLOG - 1)), POLLIN, 0 };
	int audit = open_audit(0), ret, seen = 0;
	char record[2048], *opid;
	struct victim v;
	pid_t pid;

	if (log.fd < 0 || audit < 0)
		SKIP(return, "needs CONFIG_AUDIT");
	if (is_in_use(audit))
		SKIP(return, "auditing is in use");
	ASSERT_EQ(0, request(audit, AUDIT_SET, &status, sizeof(status)));
	ASSERT_EQ(0, request(audit, AUDIT_ADD_RULE, &rule, sizeof(rule)));
	spawn(_metadata, &self->env, &spec, &v);
	/* Tasks from before auditing was enabled have no audit context. */
	pid = fork();
	if (!pid)
		_exit(mrelease(v.proc.pidfd, PROCESS_MRELEASE_REAP_KILL));
	ASSERT_EQ(pid, waitpid(pid, &ret, 0));
	EXPECT_EQ(0, ret);
	while (seen != 3 && poll(&log, 1, 5000) == 1) {
		ssize_t len = recv(log.fd, record, sizeof(record) - 1, 0);

		ASSERT_GT(len, NLMSG_HDRLEN);
		record[len] = 0;
		opid = strstr(record + NLMSG_HDRLEN, "opid=");
		if (((struct nlmsghdr *)record)->nlmsg_type != AUDIT_OBJ_PID || !opid)
			continue;
		seen |= atoi(opid + 5) == v.proc.pid;
		seen |= (atoi(opid + 5) == v.sharer.pid) << 1;
	}
	EXPECT_EQ(3, seen);
	status.enabled = 0;
	EXPECT_EQ(0, request(audit, AUDIT_DEL_RULE, &rule, sizeof(rule)));
	EXPECT_EQ(0, request(audit, AUDIT_SET, &status, sizeof(status)));
	close(audit);
	close(log.fd);
	EXPECT_EQ(SIGKILL, wait_termsig(v.proc.pid));
	EXPECT_EQ(SIGKILL, wait_termsig(v.sharer.pid));
	close_victim(&v);
}

TEST_HARNESS_MAIN
