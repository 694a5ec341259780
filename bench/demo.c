// SPDX-License-Identifier: GPL-2.0
/*
 * demo REPETITIONS CPUS: kills each victim in LMKD's way and with the one call, and
 * tells what has been given back when the last call returns and one second later.
 *
 * The pidfd is opened before the decision to kill, as LMKD has it from the
 * program's start. Between the return of the call and the reading nothing is
 * allocated or waited for: after waitpid() the victim's exit has caught up.
 */
#include "kill.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/sysinfo.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

#define SIZE	(256 * MIB)	/* of a synthetic victim, twice */

/* In KiB. */
struct figures {
	long anon, file;
};

/* The file that the victim maps, or -1. */
static int mapped;

static void measure(struct figures *f)
{
	/* The anonymous memory is what may still be on its way: first. */
	f->anon = number(GROUP "/memory.stat", "anon ", 0) / KIB;
	f->file = mapped < 0 ? 0 : cached(mapped) / KIB;
}

/* Starts to copy a byte out of the victim to a page that never comes. */
static pid_t pin(pid_t victim)
{
	static char byte;
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct iovec local = { .iov_len = 1 }, remote = { &byte, 1 };
	int begins[2], uffd;
	pid_t pid;

	check(pipe2(begins, O_CLOEXEC));
	pid = check(fork());
	if (!pid) {
		local.iov_base = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		uffd = check(syscall(SYS_userfaultfd, O_CLOEXEC));
		check(ioctl(uffd, UFFDIO_API, &api));
		reg.range.start = (unsigned long)local.iov_base;
		reg.range.len = PAGE;
		check(ioctl(uffd, UFFDIO_REGISTER, &reg));
		check(write(begins[1], "", 1));
		process_vm_readv(victim, &local, 1, &remote, 1, 0);
		die("process_vm_readv() has not been held up");
	}
	close(begins[1]);
	if (!told(begins[0]))
		die("the victim cannot be pinned");
	close(begins[0]);
	return pid;
}

static const struct {
	const char *name;
	struct victim v;
	bool pinned;
} cases[] = {
	{ "synthetic", { .size[ANON] = SIZE, .size[AHEAD] = SIZE }, false },
	{ "pinned", { .size[ANON] = SIZE, .size[AHEAD] = SIZE }, true },
	{ "sqlite", { .program = &programs[SQLITE] }, false },
	{ "redis", { .program = &programs[REDIS] }, false },
};

static void one_kill(int c, enum way way, bool probe)
{
	static const char *const when[] = { "before", "at return", "later" };
	struct figures f[3];
	struct victim v = cases[c].v;
	char name[32], measured[32];
	pid_t pinner = 0;
	long begin, end;
	int error;

	mapped = -1;
	if (v.program == &programs[SQLITE]) {
		mapped = check(open(PROGRAMS "/database", O_RDONLY | O_CLOEXEC));
		drop(mapped);
	}
	start(&v);
	if (v.size[AHEAD])
		mapped = file[AHEAD];
	if (v.program == &programs[REDIS])
		load_redis(200);
	if (cases[c].pinned)
		pinner = pin(v.pid);
	/* Let it come to rest, and the counters settle. */
	usleep(200000);

	/* On a kernel that has no such flag, nothing happens to the victim. */
	if (probe) {
		error = kill_victim(ONE_CALL, &v);
		if (!error || check(waitpid(v.pid, NULL, WNOHANG)))
			die("%s: an unknown flag did something", cases[c].name);
		snprintf(name, sizeof(name), "%s one", cases[c].name);
		result(name, "result", "%s", strerrorname_np(error));
	}

	measure(&f[0]);
	begin = now_ns();
	error = kill_victim(way, &v);
	end = now_ns();
	measure(&f[1]);
	usleep(1000000);
	measure(&f[2]);

	snprintf(name, sizeof(name), "%s %s", cases[c].name, way_name[way]);
	result(name, "result", "%s", error ? strerrorname_np(error) : "0");
	result(name, "us", "%ld", (end - begin) / 1000);
	for (int i = 0; i < 3; i++) {
		snprintf(measured, sizeof(measured), "anon %s", when[i]);
		result(name, measured, "%ld", f[i].anon);
		snprintf(measured, sizeof(measured), "file %s", when[i]);
		result(name, measured, "%ld", f[i].file);
	}

	if (pinner) {
		if (check(waitpid(pinner, NULL, WNOHANG)))
			die("the pinning process ended too early");
		check(kill(pinner, SIGKILL));
		check(waitpid(pinner, NULL, 0));
	}
	/* If the call failed it may be alive, and that is in the figures. */
	kill(v.pid, SIGKILL);
	if (mapped >= 0 && v.program)
		close(mapped);
	bury(&v);
}

static const char *hypervisor(void)
{
	static char name[] = "unknown";
#if defined(__x86_64__) || defined(__i386__)
	unsigned int a, b, c, d;

	/* TCGTCGTCGTCG, KVMKVMKVM */
	__cpuid(0x40000000, a, b, c, d);
	memcpy(name, &b, 3);
	name[3] = 0;
#endif
	return name;
}

void cmd_demo(char **arg)
{
	struct utsname uts;
	struct sysinfo info;

	if (get_nprocs() != atoi(arg[1])) {
		fprintf(stderr, "%d CPUs came up, not %s: no fair comparison\n",
			get_nprocs(), arg[1]);
		exit(1);
	}
	/* Not to be short of a page between the return and the reading. */
	check(mlockall(MCL_CURRENT | MCL_FUTURE));
	/* As the thread of LMKD's that kills. */
	check(setpriority(PRIO_PROCESS, 0, -20));

	uname(&uts);
	sysinfo(&info);
	result("machine", "release", "%s", uts.release);
	result("machine", "MiB", "%lu", info.totalram / MIB * info.mem_unit);
	result("machine", "hypervisor", "%s", hypervisor());
	for (size_t c = 0; c < sizeof(cases) / sizeof(*cases); c++) {
		fprintf(stderr, "%s\n", cases[c].name);
		for (int i = 0; i < atoi(arg[0]); i++) {
			one_kill(c, LMKD, best_way == LMKD && !i);
			if (best_way == ONE_CALL)
				one_kill(c, ONE_CALL, false);
		}
	}
}
