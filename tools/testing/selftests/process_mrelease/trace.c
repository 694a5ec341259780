// SPDX-License-Identifier: GPL-2.0
/*
 * Test that signals, trace events, counters and audit records report the kills of
 * process_mrelease(PROCESS_MRELEASE_REAP_KILL).
 */
#define _GNU_SOURCE
#include <poll.h>

#include "audit.h"
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

/* With an audit rule for the call, all targets of the signal are recorded. */
TEST_F_TIMEOUT(report, audit_records, TIMEOUT)
{
	const struct spec spec = { .anon = PAGES, .sharer = true };
	struct pollfd log = { open_audit(1 << (AUDIT_NLGRP_READLOG - 1)), POLLIN, 0 };
	int audit = open_audit(0), ret, seen = 0;
	char record[2048], *opid;
	struct victim v;
	pid_t pid;

	if (log.fd < 0 || audit < 0)
		SKIP(return, "needs CONFIG_AUDIT");
	if (!start_audit(_metadata, audit))
		SKIP(return, "auditing is in use");
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
	stop_audit(_metadata, audit);
	close(log.fd);
	EXPECT_EQ(SIGKILL, wait_termsig(v.proc.pid));
	EXPECT_EQ(SIGKILL, wait_termsig(v.sharer.pid));
	close_victim(&v);
}

TEST_HARNESS_MAIN
