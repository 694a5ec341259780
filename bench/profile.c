// SPDX-License-Identifier: GPL-2.0
/*
 * A plugin for QEMU: where the instructions of a measured call go. bench.c says
 * which call by running through mark(), which stands at an address of its own.
 *
 * When QEMU ends, a file gets a line for each piece of code: the mark, the
 * address, the instructions that it has executed.
 *
 * QEMU's header is not packaged. This is the part of it that is needed here; it
 * has been the same since QEMU 4.2.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_info_t;
struct qemu_plugin_tb;

typedef void (*tb_trans_t)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb);
typedef void (*tb_exec_t)(unsigned int cpu, void *data);
typedef void (*at_exit_t)(qemu_plugin_id_t id, void *data);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, tb_trans_t call);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, tb_exec_t call,
					  int flags, void *data);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, at_exit_t call, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);

#define EXPORT	__attribute__((visibility("default")))

EXPORT int qemu_plugin_version = PLUGIN_VERSION;
EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info,
			       int argc, char **argv);

#define MARKS	3	/* mark(0) to mark(2), 16 bytes each: 0 is for all else */

static struct block {
	struct block *next;
	uint64_t address;
	uint64_t size;
	uint64_t runs[MARKS];
} *blocks;

static uint64_t first_mark;
static unsigned int mark;
static FILE *out;

/* One CPU, so one thread. */
static void count(unsigned int cpu, void *data)
{
	struct block *b = data;

	(void)cpu;
	if (b->address - first_mark < 16 * MARKS)
		mark = (b->address - first_mark) / 16;
	else
		b->runs[mark]++;
}

static void add_block(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	struct block *b = calloc(1, sizeof(*b));

	(void)id;
	if (!b)
		abort();
	b->address = qemu_plugin_tb_vaddr(tb);
	b->size = qemu_plugin_tb_n_insns(tb);
	b->next = blocks;
	blocks = b;
	qemu_plugin_register_vcpu_tb_exec_cb(tb, count, 0, b);
}

static void report(qemu_plugin_id_t id, void *data)
{
	(void)id;
	(void)data;
	for (struct block *b = blocks; b; b = b->next) {
		for (int i = 1; i < MARKS; i++) {
			if (b->runs[i])
				fprintf(out, "%d %016lx %lu\n", i, b->address,
					b->runs[i] * b->size);
		}
	}
	fclose(out);
}

int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info,
			int argc, char **argv)
{
	(void)info;
	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "mark=", 5))
			first_mark = strtoul(argv[i] + 5, NULL, 16);
		else if (!strncmp(argv[i], "out=", 4))
			out = fopen(argv[i] + 4, "w");
	}
	if (!first_mark || !out)
		return 1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, add_block);
	qemu_plugin_register_atexit_cb(id, report, NULL);
	return 0;
}
