// SPDX-License-Identifier: GPL-2.0
/*
 * Find the pages that the exit of a process needs for its robust futexes.
 */
#include <linux/futex.h>
#include <linux/highmem.h>
#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/mmu_context.h>
#include <linux/oom.h>
#include <linux/pagewalk.h>
#include <linux/sched/signal.h>
#include <linux/smp.h>
#include <linux/uaccess.h>
#include <linux/xarray.h>

#include "futex.h"

struct robust_walk {
	struct mm_struct *mm;
	struct xarray *keep;
	unsigned int limit;	/* list entries left to read, of all threads */
	int ret;
};

static void robust_keep(struct robust_walk *walk, unsigned long addr)
{
	unsigned long index = (addr & mm_untag_mask(walk->mm)) >> PAGE_SHIFT;

	/* Reaping frees memory, so storing an index may use the reserves. */
	if (xa_is_err(xa_store(walk->keep, index, xa_mk_value(0),
			       GFP_ATOMIC | __GFP_MEMALLOC | __GFP_NOWARN)))
		walk->ret = -ENOMEM;
}

/*
 * Read @nr words of @size bytes at a user address of another mm. Return false if
 * they are not in one present page. Set walk->ret if the VMA cannot be locked.
 */
static bool robust_read(struct robust_walk *walk, unsigned long addr, unsigned long *val,
			unsigned int nr, size_t size)
{
	struct vm_area_struct *vma;
	struct folio_walk fw;
	bool ok = false;
	void *kaddr;

	addr &= mm_untag_mask(walk->mm);
	vma = IS_ENABLED(CONFIG_PER_VMA_LOCK) ? lock_vma_under_rcu(walk->mm, addr) :
						vma_lookup(walk->mm, addr);
	if (!vma) {
		if (mtree_load(&walk->mm->mm_mt, addr))
			walk->ret = -EAGAIN;
		return false;
	}

	/* folio_walk_start() sleeps on the lock of a hugetlb VMA. */
	if (offset_in_page(addr) + nr * size <= PAGE_SIZE && !is_vm_hugetlb_page(vma) &&
	    folio_walk_start(&fw, vma, addr, 0)) {
		flush_cache_page(vma, addr, page_to_pfn(fw.page));
		kaddr = kmap_local_page(fw.page);
		/* A page of memfd_secret() is not in the direct map. */
		ok = !copy_from_kernel_nofault(val, kaddr + offset_in_page(addr), nr * size);
		kunmap_local(kaddr);
		folio_walk_end(&fw, vma);
	}
	vma_end_read(vma);

	while (ok && size < sizeof(*val) && nr--)
		val[nr] = ((u32 *)val)[nr];
	return ok;
}

/* Keep the pages that exit_robust_list() or compat_exit_robust_list() accesses. */
static void robust_keep_list(struct robust_walk *walk, unsigned long head, size_t size)
{
	unsigned long val[3] = { };	/* list.next, futex_offset, list_op_pending */
	unsigned long mask = GENMASK(size * 8 - 1, 0);
	bool ok = robust_read(walk, head, val, 3, size);
	unsigned long entry = val[0] & ~FUTEX_ROBUST_MOD_MASK;
	unsigned long pending = val[2] & ~FUTEX_ROBUST_MOD_MASK;
	unsigned int nr = ROBUST_LIST_LIMIT;

	if (ok && entry == head && !pending)
		return;

	robust_keep(walk, head);
	robust_keep(walk, head + 3 * size - 1);
	if (pending)
		robust_keep(walk, (pending + val[1]) & mask);
	while (ok && entry != head && nr-- && walk->limit && !walk->ret) {
		walk->limit--;
		robust_keep(walk, entry);
		robust_keep(walk, (entry + val[1]) & mask);
		ok = robust_read(walk, entry, val, 1, size);
		entry = val[0] & ~FUTEX_ROBUST_MOD_MASK;
	}
}

static int robust_task_cpu(struct task_struct *t, void *unused)
{
	return task_curr(t) ? task_cpu(t) : -1;
}

static void robust_ipi(void *unused) { }

/* Return how many threads of @p use the mm. */
static int robust_keep_process(struct robust_walk *walk, struct task_struct *p)
{
	unsigned long native, compat, flags;
	struct task_struct *t;
	int cpu, nr = 0;

	for_each_thread(p, t) {
		if (READ_ONCE(t->mm) != walk->mm)
			continue;
		nr++;
		if (walk->ret)
			continue;
		native = (unsigned long)futex_robust_list(t);
		compat = (unsigned long)futex_compat_robust_list(t);
		if ((!native && !compat) || !lock_task_sighand(t, &flags))
			continue;
		/*
		 * Order TIF_SIGPENDING, which was set for SIGKILL under siglock, before
		 * task_curr(), so that the thread cannot execute user code, and lock a
		 * futex, after its list was read. A thread that is not current on a CPU
		 * returns to user mode only after __schedule() has taken the runqueue lock
		 * that task_call_func() released, and then finds TIF_SIGPENDING set. A
		 * thread that is current finds it set on return from the IPI.
		 */
		unlock_task_sighand(t, &flags);
		cpu = task_call_func(t, robust_task_cpu, NULL);
		if (cpu >= 0)
			smp_call_function_single(cpu, robust_ipi, NULL, true);
		if (native)
			robust_keep_list(walk, native, sizeof(long));
		if (compat)
			robust_keep_list(walk, compat, sizeof(u32));
	}

	return nr;
}

/**
 * futex_keep_robust_pages - collect the pages that robust futexes need at exit
 * @victim:	a thread of a process that uses @mm
 * @mm:		the mm; all processes that use it have been killed
 * @others:	references on mm_users that the caller holds
 * @keep:	the set of page indices to add to
 *
 * exit_mm() walks the robust list of a thread to wake waiters, which may be
 * in other processes. Memory of @mm that is unmapped earlier must not include the
 * pages of non-empty lists and of their futexes. Pages of entries behind a page that
 * is not present are not found, nor more than ROBUST_LIST_LIMIT entries of an mm.
 *
 * Context: Process context, interrupts enabled, no spinlock held. Does not sleep, but
 *	    waits for IPIs. Without CONFIG_PER_VMA_LOCK mmap_lock must be held.
 * Return: 0, or -ENOMEM or -EAGAIN if @keep is incomplete.
 */
int futex_keep_robust_pages(struct task_struct *victim, struct mm_struct *mm,
			    int others, struct xarray *keep)
{
	struct robust_walk walk = { .mm = mm, .keep = keep, .limit = ROBUST_LIST_LIMIT };
	/* Order mm_users before t->mm. Pairs with mmput() in exit_mm(). */
	int users = atomic_read_acquire(&mm->mm_users) - others;
	struct task_struct *p;

	guard(rcu)();
	if (robust_keep_process(&walk, victim) >= users)
		return walk.ret;

	for_each_process(p) {
		if (!same_thread_group(p, victim) && process_shares_mm(p, mm))
			robust_keep_process(&walk, p);
	}
	return walk.ret;
}
