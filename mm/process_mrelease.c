// SPDX-License-Identifier: GPL-2.0
/*
 * process_mrelease(): free the memory of a dying process before it does.
 */
#include <linux/mm.h>
#include <linux/oom.h>
#include <linux/pagemap.h>
#include <linux/pid.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/sizes.h>
#include <linux/swap.h>
#include <linux/syscalls.h>
#include <linux/wait_bit.h>
#include <uapi/linux/mman.h>

#include "internal.h"

#define CREATE_TRACE_POINTS
#include <trace/events/mrelease.h>

/**
 * remember_exit_mm - keep findable the mm that current is about to leave
 *
 * When the last thread of a group has left exit_mm(), no ->mm leads to the
 * memory any more, yet it stays for as long as somebody else pins the mm.
 *
 * Context: siglock of current held.
 */
void remember_exit_mm(void)
{
	struct signal_struct *signal = current->signal;

	lockdep_assert_held(&current->sighand->siglock);

	if (current->mm && !signal->exit_mm) {
		mmgrab(current->mm);
		WRITE_ONCE(signal->exit_mm, current->mm);
	}
}

/**
 * remember_old_mm - the same for execve(), which is about to replace the mm
 *
 * Context: The caller holds its own task_lock(), as does who kills it for its
 *	memory: either execve() sees the signal, or the killer the new mm.
 * Return: false if current has been killed and has to keep its mm.
 */
bool remember_old_mm(void)
{
	bool killed;

	spin_lock_irq(&current->sighand->siglock);
	killed = current->signal->flags & SIGNAL_GROUP_EXIT;
	if (!killed)
		remember_exit_mm();
	spin_unlock_irq(&current->sighand->siglock);

	return !killed;
}

/**
 * forget_exit_mm - drop what remember_exit_mm() keeps, if it is of no use
 * @always: the process lives on with another mm
 *
 * Usually the thread group's last reference was the last of all, and
 * exit_mmap() is over. If not, the mm_struct and the top level of its page
 * tables stay until the process has been waited for. The rest of the page
 * tables and the VMAs do not: they go with the last user.
 *
 * Context: Process context. Takes siglock of current.
 */
void forget_exit_mm(bool always)
{
	struct signal_struct *signal = current->signal;
	struct mm_struct *mm;

	/* Mostly it was not remembered. Whoever remembers comes here himself. */
	if (!READ_ONCE(signal->exit_mm))
		return;

	spin_lock_irq(&current->sighand->siglock);
	mm = signal->exit_mm;
	if (mm && (always || mtree_empty(&mm->mm_mt)))
		signal->exit_mm = NULL;
	else
		mm = NULL;
	spin_unlock_irq(&current->sighand->siglock);

	if (mm)
		mmdrop(mm);
}

/* The mm that the threads of this process use, with a reference. */
static struct mm_struct *grab_mm(struct task_struct *task)
{
	struct task_struct *p = find_lock_task_mm(task);
	struct mm_struct *mm;

	if (!p)
		return NULL;
	mm = p->mm;
	mmgrab(mm);
	task_unlock(p);

	return mm;
}

/*
 * Who leads the thread group now. It need not be the task that the pidfd led
 * to: a thread that calls execve() takes its place, and the old one is gone
 * but for our reference. NULL if the process has been waited for.
 */
static struct task_struct *current_leader(struct task_struct *task)
{
	lockdep_assert_held(&tasklist_lock);

	return pid_task(task_tgid(task), PIDTYPE_TGID);
}

/*
 * The mm that the thread group left, with a reference, or NULL if there is
 * nothing left to free: exit_mmap() empties the tree when all else is done.
 */
static struct mm_struct *grab_exit_mm(struct task_struct *task)
{
	struct task_struct *leader;
	struct mm_struct *mm = NULL;

	guard(read_lock)(&tasklist_lock);

	leader = current_leader(task);
	if (!leader)
		return NULL;
	spin_lock_irq(&leader->sighand->siglock);
	if (leader->signal->exit_mm &&
	    !mtree_empty(&leader->signal->exit_mm->mm_mt)) {
		mm = leader->signal->exit_mm;
		mmgrab(mm);
	}
	spin_unlock_irq(&leader->sighand->siglock);

	return mm;
}

/* Has this process been killed, and is not busy with a core dump, or may it be? */
static bool process_is_dying(struct task_struct *p, bool may_dump)
{
	unsigned long flags;
	bool dying;

	if (!lock_task_sighand(p, &flags))
		return true;
	dying = (p->signal->flags & SIGNAL_GROUP_EXIT) &&
		(may_dump || !p->signal->core_state);
	unlock_task_sighand(p, &flags);

	return dying;
}

/*
 * Has every process that uses this mm been killed? What is left are kernel
 * threads that borrow it and references such as that of process_vm_readv().
 */
static bool users_are_dying(struct mm_struct *mm, bool may_dump)
{
	struct task_struct *p;

	lockdep_assert_held(&tasklist_lock);

	for_each_process(p) {
		if (!(p->flags & PF_KTHREAD) && process_shares_mm(p, mm) &&
		    !process_is_dying(p, may_dump))
			return false;
	}

	return true;
}

static bool mm_is_dying(struct mm_struct *mm)
{
	if (!atomic_read(&mm->mm_users))
		return true;

	guard(read_lock)(&tasklist_lock);

	return users_are_dying(mm, false);
}

/* Free what the victim of a signal holds, as far as it has not done so. */
static int reap_dying(struct task_struct *task)
{
	struct mm_struct *mm;
	struct task_struct *p;
	bool reap = false, marked;
	int ret = 0;

	/*
	 * Make sure to choose a thread which still has a reference to mm
	 * during the group exit
	 */
	p = find_lock_task_mm(task);
	if (p) {
		mm = p->mm;
		mmgrab(mm);

		/* Error only if the work has not been done already */
		if (task_will_free_mem(p))
			reap = true;
		else if (!mm_flags_test(MMF_OOM_SKIP, mm))
			ret = -EINVAL;
		task_unlock(p);
	} else {
		mm = grab_exit_mm(task);
		if (!mm) {
			trace_mrelease_end(task, NULL, 0, -ESRCH);
			return -ESRCH;
		}
		/* A vfork() child that is gone has left the memory to others */
		if (mm_is_dying(mm))
			reap = true;
		else
			ret = -ESRCH;
	}

	if (!reap)
		goto drop_mm;

	trace_mrelease_start(task, mm, 0, 0);
	/* Somebody else has killed it with the flag, and is told what is free. */
	marked = mm_flags_test(MMF_REAP_KILLED, mm);
	if (marked)
		lru_add_drain_all();
	if (mmap_read_lock_killable(mm)) {
		ret = -EINTR;
		goto drop_mm;
	}
	/*
	 * Check MMF_OOM_SKIP again under mmap_read_lock protection to ensure
	 * possible change in exit_mmap is seen
	 */
	if (!mm_flags_test(MMF_OOM_SKIP, mm) && !__oom_reap_task_mm(mm, marked))
		ret = -EAGAIN;
	mmap_read_unlock(mm);

drop_mm:
	trace_mrelease_end(task, mm, 0, ret);
	mmdrop(mm);
	return ret;
}

/* Another process than the victim, with threads that use the victim's mm? */
static bool is_other_sharer(struct task_struct *p, struct task_struct *victim,
			    struct mm_struct *mm)
{
	return !same_thread_group(p, victim) && !(p->flags & PF_KTHREAD) &&
	       process_shares_mm(p, mm);
}

/* May the caller kill all of them? */
static int check_other_sharers(struct task_struct *victim, struct mm_struct *mm)
{
	struct task_struct *p;
	int ret;

	for_each_process(p) {
		if (!is_other_sharer(p, victim, mm))
			continue;
		ret = check_kill_mrelease(p);
		if (ret)
			return ret;
	}

	return 0;
}

/*
 * Kill a process if it still uses the mm. With the lock of one of its threads
 * held it can neither leave the mm by execve(), see remember_old_mm(), nor get
 * to exit_mmap(). Returns 0, or 1 if it has left the mm.
 */
static int kill_user(struct task_struct *leader, struct mm_struct *mm)
{
	const bool dying = READ_ONCE(leader->signal->flags) & SIGNAL_GROUP_EXIT;
	struct task_struct *p = find_lock_task_mm(leader);
	int ret = 1;

	if (!p)
		return ret;
	if (p->mm == mm)
		ret = kill_mrelease(leader, mm) ? 0 : -EPERM;
	task_unlock(p);
	if (!ret && !dying) {
		count_vm_event(MRELEASE_KILL);
		trace_mrelease_kill(leader, mm);
	}

	return ret;
}

/*
 * Kill all processes that use the victim's mm, or none, and return the mm
 * with a reference.
 *
 * With tasklist_lock held nobody can be added to them: copy_process() links a
 * child with the lock held for writing, and drops it if its parent has been
 * killed. They can leave, though. When the victim turns out to have left the
 * mm by execve(), nothing has happened yet.
 *
 * Returns -ESRCH without an mm if no thread has one, 1 to be called again.
 */
static int kill_sharers(struct task_struct *victim, struct mm_struct **mmp)
{
	struct task_struct *p, *leader;
	struct mm_struct *mm;
	bool shared;
	int users, ret;

	guard(read_lock)(&tasklist_lock);

	leader = current_leader(victim);
	mm = leader ? grab_mm(leader) : NULL;
	if (!mm)
		return -ESRCH;
	*mmp = mm;

	ret = check_kill_mrelease(leader);
	if (ret)
		return ret;

	/* One reference for each thread of the victim, or there are others. */
	users = atomic_read(&mm->mm_users);
	/*
	 * Reading the number first can err only on the safe side: a thread
	 * clears ->mm before it drops the reference.
	 */
	smp_rmb();
	for_each_thread(leader, p) {
		if (READ_ONCE(p->mm) == mm)
			users--;
	}
	shared = users > 0;
	if (shared) {
		ret = check_other_sharers(leader, mm);
		if (ret)
			return ret;
	}

	trace_mrelease_start(leader, mm, PROCESS_MRELEASE_REAP_KILL, 0);
	ret = kill_user(leader, mm);
	if (ret || !shared)
		return ret;
	for_each_process(p) {
		if (is_other_sharer(p, leader, mm))
			WARN_ON_ONCE(kill_user(p, mm) < 0);
	}

	return 0;
}

/*
 * Is somebody other than exit_mmap() about to free pages of this mm: a reaper, a
 * madvise() that was under way?
 */
static bool others_have_gathers(struct mm_struct *mm)
{
	int exiting;

	/* First the page tables, some without their lock, then the count. */
	smp_mb();
	exiting = mm_flags_test(MMF_EXIT_UNMAP, mm);
	/* It is set after exit_mmap() is counted, and until it is not. */
	smp_rmb();

	return atomic_read(&mm->tlb_flush_pending) > exiting;
}

/* Wait for them: a matter of a moment, unless there are more and more of them. */
static int wait_for_others(struct mm_struct *mm)
{
	unsigned long end = jiffies + HZ;

	while (others_have_gathers(mm)) {
		if (time_after(jiffies, end))
			return -EAGAIN;
		schedule_timeout_killable(1);
		if (fatal_signal_pending(current))
			return -EINTR;
	}

	return 0;
}

/*
 * Wait for exit_mmap() to come to the end of the VMAs, where it waits for
 * mmap_lock, which the caller holds. If it begins later, it finds nothing.
 */
static int wait_for_unmapping(struct mm_struct *mm)
{
	while (mm_flags_test(MMF_EXIT_UNMAP, mm) &&
	       !mm_flags_test(MMF_EXIT_UNMAPPED, mm)) {
		schedule_timeout_killable(1);
		if (fatal_signal_pending(current))
			return -EINTR;
	}
	/* First the flag, then what has been freed before it was set. */
	smp_rmb();

	return 0;
}

/*
 * Wait until all pages are free that somebody had taken out of the page tables
 * when we had done the same. An exit_mmap() says when it is done.
 */
static int wait_for_gathers(struct mm_struct *mm)
{
	unsigned long *flags = ACCESS_PRIVATE(&mm->flags, __mm_flags);

	/* First the page tables, then this. */
	smp_mb();
	if (wait_on_bit(flags, MMF_EXIT_UNMAP, TASK_KILLABLE))
		return -EINTR;

	return wait_for_others(mm);
}

/*
 * May folios have been let go of without being evicted? By an exit or a reaper
 * that began when the mm was not marked yet; or, in the case of the OOM reaper,
 * when folios were still in the batches of other CPUs. An exit drains these, if
 * it sees the mark, and it does unless all threads had left the mm before (@left).
 */
static bool others_are_ahead(struct mm_struct *mm, bool left)
{
	/* First the mark, then this: they do the reverse. */
	smp_mb();
	return mm_flags_test(MMF_UNSTABLE, mm) ||
	       (left && mm_flags_test(MMF_EXIT_UNMAP, mm));
}

/*
 * Evict what is clean and unmapped in a part of a file, from @first to @last. A
 * large folio may stand out at either end.
 */
static void evict_file_range(struct address_space *mapping, pgoff_t first,
			     pgoff_t last)
{
	unsigned long pages;
	struct folio *folio;

	folio = filemap_get_folio(mapping, first);
	if (!IS_ERR(folio)) {
		first = folio->index;
		folio_put(folio);
	}
	folio = filemap_get_folio(mapping, last);
	if (!IS_ERR(folio)) {
		last = folio_next_index(folio) - 1;
		folio_put(folio);
	}
	pages = mapping->nrpages;
	mapping_try_invalidate(mapping, first, last, NULL);
	/* It counts what was evicted before as well, so this has to be told apart. */
	count_vm_events(MRELEASE_EVICT, pages - min(pages, mapping->nrpages));
}

/*
 * Evict what others have let go of. Nothing but the VMAs tells which folios that
 * could be. There may be 65530 of them for one large file, of which nothing can
 * go: this must not take for ever. What is evicted, the next call need not do.
 */
static int evict_behind_others(struct mm_struct *mm)
{
	VMA_ITERATOR(vmi, mm, 0);
	const unsigned long deadline = jiffies + 3 * HZ;
	const unsigned long step = SZ_64M / PAGE_SIZE;
	struct vm_area_struct *vma;

	lru_add_drain_all();
	for_each_vma(vmi, vma) {
		const pgoff_t end = vma->vm_pgoff + vma_pages(vma);

		if (!vma->vm_file || !mapping_evictable(vma->vm_file->f_mapping))
			continue;
		for (pgoff_t at = vma->vm_pgoff; at < end; at += step) {
			if (fatal_signal_pending(current))
				return -EINTR;
			if (time_after(jiffies, deadline))
				return -EAGAIN;
			evict_file_range(vma->vm_file->f_mapping, at,
					 min(at + step, end) - 1);
		}
	}
	/* What the exit still has was just deactivated, by way of batches. */
	lru_add_drain_all();

	return 0;
}

/*
 * Free all that a marked mm holds, and be sure that it is free. With mmap_lock
 * held, the VMAs stay.
 */
static int reap_marked_mm(struct mm_struct *mm, bool left)
{
	bool ahead;
	int ret = 0;

	/*
	 * A madvise() that was under way goes on without the mark. And what frees
	 * under the page-table lock can not call into the filesystem.
	 */
	ahead = others_have_gathers(mm) || IS_ENABLED(CONFIG_MMU_GATHER_NO_GATHER);

	if (mmap_read_lock_killable(mm))
		return -EINTR;
	if (mtree_empty(&mm->mm_mt)) {
		/* The exit is over. There may be folios that nothing leads to. */
		if (left || mm_flags_test(MMF_REAP_KEPT, mm))
			ret = -ESRCH;
		goto unlock;
	}
	/*
	 * Folios in the batches of other CPUs, recently read or marked as
	 * accessed, carry a reference that forbids to evict them.
	 */
	lru_add_drain_all();
	ahead |= others_are_ahead(mm, left);
	if (!__oom_reap_task_mm(mm, true)) {
		ret = -EAGAIN;
		goto unlock;
	}
	if (ahead || others_have_gathers(mm))
		ret = wait_for_others(mm) ?: wait_for_unmapping(mm) ?:
		      evict_behind_others(mm);
unlock:
	mmap_read_unlock(mm);

	return ret ?: wait_for_gathers(mm);
}

/*
 * The same for a victim whose threads are all past exit_mm(): there is nobody
 * left to kill, but perhaps something to free.
 */
static int claim_exit_mm(struct task_struct *victim, struct mm_struct **mmp)
{
	struct mm_struct *mm = grab_exit_mm(victim);
	struct task_struct *leader;
	int ret = -ESRCH;

	if (!mm)
		return ret;
	*mmp = mm;

	guard(read_lock)(&tasklist_lock);

	leader = current_leader(victim);
	if (leader)
		ret = check_kill_mrelease(leader);
	if (ret)
		return ret;
	if (atomic_read(&mm->mm_users)) {
		/* Who dumps core is not waited for once the mm is marked. */
		if (!users_are_dying(mm, mm_flags_test(MMF_REAP_KILLED, mm)))
			return -ESRCH;
		ret = check_other_sharers(leader, mm);
		if (ret)
			return ret;
	}
	trace_mrelease_start(victim, mm, PROCESS_MRELEASE_REAP_KILL, 0);
	mm_flags_set(MMF_REAP_KILLED, mm);

	return 0;
}

/* What an execve() that was nearly done when the signal came has left. */
static int reap_old_mm(struct task_struct *victim, const struct mm_struct *done)
{
	struct mm_struct *mm = grab_exit_mm(victim);
	int ret = 0;

	if (!mm)
		return 0;
	if (mm != done && mm_is_dying(mm)) {
		mm_flags_set(MMF_REAP_KILLED, mm);
		ret = reap_marked_mm(mm, true);
	}
	mmdrop(mm);

	return ret == -ESRCH ? 0 : ret;
}

/* Is this process in the caller's PID namespace or in one below? */
static int check_pidns(struct task_struct *task)
{
	struct pid *pid = get_task_pid(task, PIDTYPE_TGID);
	int ret;

	if (!pid)
		return -ESRCH;
	ret = access_pidfd_pidns(pid) ? 0 : -EINVAL;
	put_pid(pid);

	return ret;
}

/* Kill the process and all who share its memory, and free the memory. */
static int reap_kill(struct task_struct *task)
{
	struct mm_struct *mm = NULL;
	bool left;
	int ret;

	ret = check_pidns(task);
	if (ret)
		return ret;
	if (task->flags & PF_KTHREAD)
		return -ESRCH;

	while ((ret = kill_sharers(task, &mm)) > 0) {
		mmdrop(mm);
		mm = NULL;
		if (fatal_signal_pending(current)) {
			ret = -EINTR;
			break;
		}
		cond_resched();
	}
	left = ret == -ESRCH && !mm;
	if (left)
		ret = claim_exit_mm(task, &mm);
	if (ret)
		goto drop_mm;

	ret = reap_marked_mm(mm, left);
	if (!ret)
		ret = reap_old_mm(task, mm);

drop_mm:
	trace_mrelease_end(task, mm, PROCESS_MRELEASE_REAP_KILL, ret);
	if (mm)
		mmdrop(mm);
	return ret;
}

SYSCALL_DEFINE2(process_mrelease, int, pidfd, unsigned int, flags)
{
	struct task_struct *task;
	unsigned int f_flags;
	long ret;

	if (flags & ~PROCESS_MRELEASE_REAP_KILL)
		return -EINVAL;

	task = pidfd_get_task(pidfd, &f_flags);
	if (IS_ERR(task))
		return PTR_ERR(task);

	if (flags & PROCESS_MRELEASE_REAP_KILL)
		ret = reap_kill(task);
	else
		ret = reap_dying(task);

	put_task_struct(task);
	return ret;
}
