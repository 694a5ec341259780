/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM mrelease

#if !defined(_TRACE_MRELEASE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_MRELEASE_H

#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/tracepoint.h>

/* The pages that are mapped, by kind, and the result of the call in mrelease_end. */
DECLARE_EVENT_CLASS(mrelease,
		    TP_PROTO(struct task_struct *task, struct mm_struct *mm,
			     unsigned int flags, int ret),
		    TP_ARGS(task, mm, flags, ret),
		    TP_STRUCT__entry(__field(pid_t, pid)
				 __string(comm, task->comm)
				 __field(unsigned int, flags)
				 __field(int, ret)
				 __field(unsigned long, anon)
				 __field(unsigned long, file)
				 __field(unsigned long, shmem)
				 __field(unsigned long, swap)),
		    TP_fast_assign(__entry->pid = task->tgid;
			       __assign_str(comm);
			       __entry->flags = flags;
			       __entry->ret = ret;
			       __entry->anon = get_mm_counter_sum(mm, MM_ANONPAGES);
			       __entry->file = get_mm_counter_sum(mm, MM_FILEPAGES);
			       __entry->shmem = get_mm_counter_sum(mm, MM_SHMEMPAGES);
			       __entry->swap = get_mm_counter_sum(mm, MM_SWAPENTS);),
		    TP_printk("pid=%d comm=%s flags=%#x ret=%d anon=%lu file=%lu shmem=%lu swap=%lu",
			      __entry->pid, __get_str(comm), __entry->flags, __entry->ret,
			      __entry->anon, __entry->file, __entry->shmem, __entry->swap)
);

DEFINE_EVENT(mrelease, mrelease_start,
	     TP_PROTO(struct task_struct *task, struct mm_struct *mm, unsigned int flags,
		      int ret),
	     TP_ARGS(task, mm, flags, ret));

DEFINE_EVENT(mrelease, mrelease_end,
	     TP_PROTO(struct task_struct *task, struct mm_struct *mm, unsigned int flags,
		      int ret),
	     TP_ARGS(task, mm, flags, ret));

/* Neighbouring folios of a file: pages evicted, folios that stay cached. */
TRACE_EVENT(mrelease_evict,
	    TP_PROTO(struct address_space *mapping, unsigned long evicted,
		     unsigned int refused),
	    TP_ARGS(mapping, evicted, refused),
	    TP_STRUCT__entry(__field(dev_t, s_dev)
			 __field(u64, i_ino)
			 __field(unsigned long, evicted)
			 __field(unsigned int, refused)),
	    TP_fast_assign(__entry->s_dev = mapping->host->i_sb->s_dev;
		       __entry->i_ino = mapping->host->i_ino;
		       __entry->evicted = evicted;
		       __entry->refused = refused;),
	    TP_printk("dev %d:%d ino %llx evicted=%lu refused=%u",
		      MAJOR(__entry->s_dev), MINOR(__entry->s_dev), __entry->i_ino,
		      __entry->evicted, __entry->refused)
);

#endif /* _TRACE_MRELEASE_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
