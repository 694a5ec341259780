/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM mrelease

#if !defined(_TRACE_MRELEASE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_MRELEASE_H

#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/tracepoint.h>
#include <uapi/linux/mman.h>

#define show_mrelease_flags(flags)					\
	__print_flags(flags, "|", { PROCESS_MRELEASE_REAP_KILL, "REAP_KILL" })

/* One for each process that PROCESS_MRELEASE_REAP_KILL has killed. */
TRACE_EVENT(mrelease_kill,

	TP_PROTO(struct task_struct *task, struct mm_struct *mm),

	TP_ARGS(task, mm),

	TP_STRUCT__entry(
		__field(pid_t,		pid)
		__string(comm,		task->comm)
		__field(short,		oom_score_adj)
		__field(unsigned long,	total_vm)
	),

	TP_fast_assign(
		__entry->pid = task->tgid;
		__assign_str(comm);
		__entry->oom_score_adj = task->signal->oom_score_adj;
		__entry->total_vm = mm->total_vm;
	),

	TP_printk("pid=%d comm=%s oom_score_adj=%hd total_vm=%lu",
		  __entry->pid, __get_str(comm), __entry->oom_score_adj,
		  __entry->total_vm)
);

DECLARE_EVENT_CLASS(mrelease_reap,

	TP_PROTO(struct task_struct *task, struct mm_struct *mm,
		 unsigned int flags, int ret),

	TP_ARGS(task, mm, flags, ret),

	TP_STRUCT__entry(
		__field(pid_t,		pid)
		__string(comm,		task->comm)
		__field(unsigned int,	flags)
		__field(int,		ret)
		__field(unsigned long,	anon)
		__field(unsigned long,	file)
		__field(unsigned long,	shmem)
		__field(unsigned long,	swap)
	),

	TP_fast_assign(
		__entry->pid = task->tgid;
		__assign_str(comm);
		__entry->flags = flags;
		__entry->ret = ret;
		__entry->anon = mm ? get_mm_counter_sum(mm, MM_ANONPAGES) : 0;
		__entry->file = mm ? get_mm_counter_sum(mm, MM_FILEPAGES) : 0;
		__entry->shmem = mm ? get_mm_counter_sum(mm, MM_SHMEMPAGES) : 0;
		__entry->swap = mm ? get_mm_counter_sum(mm, MM_SWAPENTS) : 0;
	),

	TP_printk("pid=%d comm=%s flags=%s anon=%lu file=%lu shmem=%lu swap=%lu ret=%d",
		  __entry->pid, __get_str(comm), show_mrelease_flags(__entry->flags),
		  __entry->anon, __entry->file, __entry->shmem, __entry->swap,
		  __entry->ret)
);

/* The pages that the process has mapped, when they are about to be freed ... */
DEFINE_EVENT(mrelease_reap, mrelease_start,

	TP_PROTO(struct task_struct *task, struct mm_struct *mm,
		 unsigned int flags, int ret),

	TP_ARGS(task, mm, flags, ret)
);

/* ... and those left when the call returns. No start: ret says why. */
DEFINE_EVENT(mrelease_reap, mrelease_end,

	TP_PROTO(struct task_struct *task, struct mm_struct *mm,
		 unsigned int flags, int ret),

	TP_ARGS(task, mm, flags, ret)
);

#ifndef MRELEASE_REFUSALS
#define MRELEASE_REFUSALS
/* Why a folio has not been evicted; the first reason that is found. */
enum mrelease_refusal {
	MRELEASE_OK,
	MRELEASE_PRIVATE,	/* the filesystem keeps data with it */
	MRELEASE_USED,		/* mapped or referenced; or other pieces are to come */
	MRELEASE_LOCKED,
	MRELEASE_DIRTY,
	MRELEASE_WRITEBACK,
	NR_MRELEASE_REFUSALS
};
#endif

/* One for neighbours in a file, whoever unmaps them: the caller, the victim. */
TRACE_EVENT(mrelease_evict,

	TP_PROTO(struct address_space *mapping, unsigned long evicted,
		 const unsigned int *refused),

	TP_ARGS(mapping, evicted, refused),

	TP_STRUCT__entry(
		__field(dev_t,		s_dev)
		__field(u64,		i_ino)
		__field(unsigned long,	evicted)
		__field(unsigned int,	private)
		__field(unsigned int,	used)
		__field(unsigned int,	locked)
		__field(unsigned int,	dirty)
		__field(unsigned int,	writeback)
	),

	TP_fast_assign(
		__entry->s_dev = mapping->host->i_sb->s_dev;
		__entry->i_ino = mapping->host->i_ino;
		__entry->evicted = evicted;
		__entry->private = refused[MRELEASE_PRIVATE];
		__entry->used = refused[MRELEASE_USED];
		__entry->locked = refused[MRELEASE_LOCKED];
		__entry->dirty = refused[MRELEASE_DIRTY];
		__entry->writeback = refused[MRELEASE_WRITEBACK];
	),

	TP_printk("dev %d:%d ino %llx evicted=%lu private=%u used=%u locked=%u dirty=%u writeback=%u",
		  MAJOR(__entry->s_dev), MINOR(__entry->s_dev), __entry->i_ino,
		  __entry->evicted, __entry->private, __entry->used,
		  __entry->locked, __entry->dirty, __entry->writeback)
);

#endif /* _TRACE_MRELEASE_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
