// SPDX-License-Identifier: GPL-2.0
/*
 * process_mrelease(): kill a process and free its memory ahead of its exit.
 */
#include <linux/futex.h>
#include <linux/mm.h>
#include <linux/oom.h>
#include <linux/pid.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/syscalls.h>
#include <linux/wait_bit.h>
#include <linux/xarray.h>
#include <trace/events/mrelease.h>
#include <uapi/linux/mman.h>

#include "internal.h"

struct mrelease_victim {
	struct mm_struct *mm;		/* with a reference on the mm_struct */
	bool evict;			/* MMF_REAP_EVICT was set */
	bool has_users;			/* holds references on mm_users and mm->reapers */
	struct task_struct *queued;	/* for the OOM reaper; with a reference */
};

/*
 * Held while the sharers of an mm are killed, so that no other caller finds
 * MMF_REAP_KILLED set while a sharer has not been signalled. Nests inside
 * tasklist_lock and outside task_lock().
 */
static DEFINE_SPINLOCK(mrelease_kill_lock);

/**
 * __mm_wait_for_reapers - wait until no reaper works on an mm
 * @mm: the mm that current is about to drop its reference on
 *
 * An exiting thread of a process that was killed by process_mrelease() waits
 * until the callers have dropped their references on mm_users. The last
 * reference is then the thread's own, and by the time the parent has waited
 * for the process, its mappings and files are closed. A starved caller cannot
 * keep the process from exiting: its mmput_async() closes the files then.
 *
 * Context: Process context. Sleeps, ten seconds at most.
 */
void __mm_wait_for_reapers(struct mm_struct *mm)
{
	wait_var_event_timeout(&mm->reapers, !atomic_read(&mm->reapers), 10 * HZ);
}

/*
 * Sleep for a jiffy before the caller tries again. *@waited is the sum of all
 * pauses of a call; the work between them does not count.
 *
 * Return 0, -EAGAIN after one second of pauses, or -EINTR if the caller has been
 * killed.
 */
static int pause_reaping(unsigned long *waited)
{
	unsigned long start = jiffies;

	if (fatal_signal_pending(current))
		return -EINTR;
	if (*waited > HZ)
		return -EAGAIN;
	schedule_timeout_killable(1);
	*waited += jiffies - start;

	return 0;
}

/*
 * Lock the lowest VMA that ends above *@addr without waiting: by the VMA lock,
 * because the holder of mmap_lock may be asleep for long, or else by mmap_lock.
 * *@mmap_locked tells which of them is held. *@addr advances to the end of the
 * VMA.
 *
 * Return NULL if there is no such VMA, ERR_PTR(-EBUSY) if both are contended.
 *
 * Context: The caller holds a reference on mm_users. Without that reference
 *	exit_mmap() may free the nodes of the VMA tree with no regard to RCU.
 */
static struct vm_area_struct *trylock_vma_above(struct mm_struct *mm,
						unsigned long *addr,
						bool *mmap_locked)
{
	MA_STATE(mas, &mm->mm_mt, *addr, *addr);
	struct vm_area_struct *vma;

	rcu_read_lock();
	vma = mas_find(&mas, ULONG_MAX);
	rcu_read_unlock();
	if (!vma)
		return NULL;

	*mmap_locked = false;
	vma = lock_vma_under_rcu(mm, max(mas.index, *addr));
	if (!vma) {
		if (!mmap_read_trylock(mm)) {
			*addr = mas.last + 1;
			return ERR_PTR(-EBUSY);
		}
		*mmap_locked = true;
		vma = find_vma(mm, *addr);
		if (!vma) {
			mmap_read_unlock(mm);
			return NULL;
		}
	}
	*addr = vma->vm_end;

	return vma;
}

/*
 * Without VMA locks, reading robust futex lists takes mmap_lock. The caller of
 * reap_killed_mm() holds one reference on mm_users.
 */
static bool keep_robust_pages(struct task_struct *task, struct mm_struct *mm,
			      struct xarray *keep)
{
	const bool lock = !IS_ENABLED(CONFIG_PER_VMA_LOCK);
	int ret;

	if (lock && !mmap_read_trylock(mm))
		return false;
	ret = futex_keep_robust_pages(task, mm, 1, keep);
	if (lock)
		mmap_read_unlock(mm);

	return !ret;
}

/*
 * Unmap the whole mm once, VMA by VMA.
 *
 * Return 0, -EBUSY if some part was not to be had without blocking, or -EINTR.
 */
static int reap_vmas(struct task_struct *task, struct mm_struct *mm,
		     struct xarray *keep)
{
	struct vm_area_struct *vma;
	unsigned long addr = 0;
	bool mmap_locked;
	int ret = 0;

	if (!keep_robust_pages(task, mm, keep))
		return -EBUSY;

	while ((vma = trylock_vma_above(mm, &addr, &mmap_locked))) {
		if (IS_ERR(vma)) {
			ret = -EBUSY;
			continue;
		}
		if (!reap_vma(vma, keep))
			ret = -EBUSY;
		if (mmap_locked)
			mmap_read_unlock(mm);
		else
			vma_end_read(vma);
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}

	return ret;
}

static unsigned long pages_left(struct mm_struct *mm)
{
	return get_mm_counter_sum(mm, MM_ANONPAGES) +
	       get_mm_counter_sum(mm, MM_SWAPENTS) +
	       get_mm_counter_sum(mm, MM_FILEPAGES);
}

/*
 * A thread of the victim in munmap() has detached VMAs that the reaper does not
 * find any more, and holds mmap_lock until it has unmapped them. Return true if
 * that can be the reason why more is mapped than the folios in @keep, which may be
 * huge.
 */
static bool unmapping_elsewhere(struct mm_struct *mm, struct xarray *keep)
{
	const unsigned long kept = IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) ?
				   HPAGE_PMD_NR : 1;
	unsigned long index, left = get_mm_counter_sum(mm, MM_ANONPAGES) +
				    get_mm_counter_sum(mm, MM_SWAPENTS);
	void *entry;

	xa_for_each(keep, index, entry)
		left -= min(left, kept);

	return left && rwsem_is_locked(&mm->mmap_lock);
}

/*
 * Note that nothing is left to reap, unless another caller has got the right to
 * evict meanwhile, which starts anew.
 */
static void set_reap_done(const struct mrelease_victim *victim)
{
	guard(spinlock)(&mrelease_kill_lock);

	if (mm_flags_test(MMF_REAP_EVICT, victim->mm) == victim->evict)
		mm_flags_set(MMF_REAP_DONE, victim->mm);
}

/*
 * Free the memory of an mm whose sharers have all been killed. Consumes the
 * caller's references on mm_users and mm->reapers.
 *
 * Return 0 if all is free, -EAGAIN or -EINTR from pause_reaping().
 */
static int reap_killed_mm(struct task_struct *task,
			  const struct mrelease_victim *victim)
{
	unsigned long waited = 0, left = ULONG_MAX, before;
	struct mm_struct *mm = victim->mm;
	struct xarray keep;
	int looks = 8, ret = 0;

	xa_init(&keep);
	mm_flags_set(MMF_UNSTABLE, mm);
	/*
	 * A thread of the victim that was in mremap() or in a fault when it was
	 * killed can map pages behind the reaper. Look again until nothing is
	 * left but what must stay. A reader of /proc/PID/mem can map file pages
	 * again and again, so the number of looks is limited.
	 */
	while (!ret && left && looks-- && !mm_flags_test(MMF_REAP_DONE, mm)) {
		before = left;
		ret = reap_vmas(task, mm, &keep);
		left = pages_left(mm);
		if (ret == -EBUSY || (!ret && unmapping_elsewhere(mm, &keep))) {
			ret = pause_reaping(&waited);
			looks = 8;
		} else if (left == before) {
			break;
		}
	}
	xa_destroy(&keep);

	/* A reaper that starts later finds nothing, so its gather is empty. */
	if (!ret && atomic_read(&mm->reapers) == 1)
		set_reap_done(victim);

	/*
	 * The victim's threads wait in exit_mm() and so hold the last reference,
	 * unless all of them were past mm_wait_for_reapers() before.
	 */
	mmput_async(mm);
	mm_reaper_done(mm);
	/* Another reaper's gather can hold what it has unmapped ahead of this one. */
	while (!ret && atomic_read(&mm->reapers) &&
	       !mm_flags_test(MMF_REAP_DONE, mm))
		ret = pause_reaping(&waited);

	return ret;
}

/*
 * Free the memory of an mm that the victim's threads have left, concurrently with
 * its exit_mmap(), which may be starved or may not have come to unmapping yet. The
 * VMA tree is stable under mmap_lock only, and empty when exit_mmap() has released
 * it. A reference on mm_users could be the last one, so none is taken.
 *
 * Return as reap_killed_mm() does.
 */
static int reap_left_mm(struct task_struct *task, struct mm_struct *mm)
{
	unsigned long waited = 0;
	bool reaped;
	int ret = 0;

	while (!ret && !mm_flags_test(MMF_REAP_DONE, mm)) {
		reaped = mmap_read_trylock(mm);
		if (reaped) {
			reaped = __oom_reap_task_mm(task, mm);
			mmap_read_unlock(mm);
		}
		if (reaped && !atomic_read(&mm->reapers))
			break;
		ret = pause_reaping(&waited);
	}

	return ret;
}

/*
 * Collect the processes that use the mm of @victim, without @victim itself.
 * Return 0 or -ENOMEM.
 *
 * Each thread holds one reference on mm_users. If the victim's threads account
 * for all of them, there are no other sharers, and no walk.
 */
static int find_other_sharers(struct xarray *sharers, struct task_struct *victim)
{
	struct task_struct *p = find_lock_task_mm(victim);
	unsigned long nr = 0;
	struct mm_struct *mm;
	int users, ret;

	if (!p)
		return 0;
	mm = p->mm;
	users = atomic_read(&mm->mm_users);
	task_unlock(p);

	/*
	 * Order the read of mm_users before the reads of ->mm. Pairs with the
	 * full barrier of atomic_dec_and_test() in mmput(): a thread clears
	 * ->mm before it drops its reference.
	 */
	smp_rmb();
	for_each_thread(victim, p) {
		if (READ_ONCE(p->mm) == mm)
			users--;
	}
	if (users <= 0)
		return 0;

	for_each_process(p) {
		if (same_thread_group(p, victim) || p->flags & PF_KTHREAD ||
		    !process_shares_mm(p, mm))
			continue;
		ret = xa_err(xa_store(sharers, nr++, p,
				      GFP_ATOMIC | __GFP_NOWARN));
		if (ret)
			return ret;
	}

	return 0;
}

/* Kill the process of @p, a thread with an mm and with its task_lock() held. */
static void kill_mm_user(struct task_struct *p)
{
	struct task_struct *leader = p->group_leader;

	if (kill_mrelease(leader, p->mm))
		count_vm_event(MRELEASE_KILL);
	__mark_oom_victim(p);
}

/*
 * Kill the process of @task and all others that share its mm, or none of them.
 *
 * tasklist_lock is held for reading from the first look to the last signal.
 * Until then no sharer is added: copy_process() links a child with
 * tasklist_lock held for writing, and fails if the parent has been killed. A
 * sharer can leave by execve(), and its new mm has no other sharer for the same
 * reason. So the permission checks can do without the victim's task_lock(),
 * which an LSM hook may take, and the mm is the one that the victim has after
 * them.
 *
 * From then on until its signal is queued, the task_lock() of a thread that uses
 * the mm keeps execve() and exit_mm() of that thread from dropping the mm. The
 * references in @victim keep exit_mmap() from unmapping concurrently.
 *
 * A caller can be starved as soon as the locks are dropped. The OOM killer
 * waits for the memory of an OOM victim, so the OOM reaper is queued before.
 *
 * Return 0, -ESRCH if the victim has no mm and no earlier call has killed it,
 * -ENOMEM if the sharers could not be collected, or the error of
 * check_kill_mrelease(). No process is killed in case of an error.
 */
static int kill_sharers(struct task_struct *task, struct mrelease_victim *victim)
{
	struct task_struct *leader, *p;
	struct xarray sharers;
	struct mm_struct *mm;
	unsigned long i;
	int ret;

	xa_init(&sharers);
	guard(read_lock)(&tasklist_lock);

	/* After an execve() by another thread, @task no longer is the leader. */
	leader = pid_task(task_tgid(task), PIDTYPE_TGID);
	if (!leader)
		return -ESRCH;

	ret = find_other_sharers(&sharers, leader);
	xa_for_each(&sharers, i, p)
		ret = ret ?: check_kill_mrelease(p);
	ret = ret ?: check_kill_mrelease(leader);
	if (ret)
		goto out;

	spin_lock(&mrelease_kill_lock);
	p = find_lock_task_mm(leader);
	if (p) {
		mm = p->mm;
		/* A caller without that right may have been told 0 before. */
		if (may_evict_mm_of(p) && !mm_flags_test_and_set(MMF_REAP_EVICT, mm))
			mm_flags_clear(MMF_REAP_DONE, mm);
	} else {
		/* Has an earlier call killed the process? */
		mm = READ_ONCE(leader->signal->oom_mm);
		if (!mm || !mm_flags_test(MMF_REAP_KILLED, mm)) {
			ret = -ESRCH;
			goto unlock;
		}
	}
	mmgrab(mm);
	victim->mm = mm;
	victim->evict = mm_flags_test(MMF_REAP_EVICT, mm);
	if (p) {
		if (!mm_flags_test(MMF_REAP_DONE, mm)) {
			mmget(mm);
			mm_reaper_start(mm);
			victim->has_users = true;
		}
		kill_mm_user(p);
		task_unlock(p);
	}
	xa_for_each(&sharers, i, p) {
		p = find_lock_task_mm(p);
		if (!p)
			continue;
		if (p->mm == mm)
			kill_mm_user(p);
		task_unlock(p);
	}
	if (queue_oom_reaper(leader))
		victim->queued = get_task_struct(leader);
unlock:
	spin_unlock(&mrelease_kill_lock);
out:
	xa_destroy(&sharers);
	return ret;
}

/* Kill the process of @task and its sharers, and free their memory. */
static int reap_kill(struct task_struct *task)
{
	struct pid *pid = get_task_pid(task, PIDTYPE_TGID);
	struct mrelease_victim victim = { };
	int ret = -ESRCH;

	if (pid && !access_pidfd_pidns(pid))
		ret = -EINVAL;
	else if (pid && !(task->flags & PF_KTHREAD))
		ret = kill_sharers(task, &victim);
	put_pid(pid);
	if (ret)
		return ret;

	trace_mrelease_start(task, victim.mm, PROCESS_MRELEASE_REAP_KILL, 0);
	if (victim.has_users)
		ret = reap_killed_mm(task, &victim);
	else
		ret = reap_left_mm(task, victim.mm);
	if (!ret) {
		set_reap_done(&victim);
		mm_flags_set(MMF_OOM_SKIP, victim.mm);
	}
	if (victim.queued) {
		if (!ret)
			unqueue_oom_reaper(victim.queued);
		put_task_struct(victim.queued);
	}
	trace_mrelease_end(task, victim.mm, PROCESS_MRELEASE_REAP_KILL, ret);
	mmdrop(victim.mm);

	return ret;
}

/* Reap a process that is dying already. */
static int reap_dying(struct task_struct *task)
{
	struct task_struct *p;
	struct mm_struct *mm;
	bool reap = false;
	int ret = 0;

	/* During the exit of its group, find a thread that still has the mm. */
	p = find_lock_task_mm(task);
	if (!p)
		return -ESRCH;
	mm = p->mm;
	mmgrab(mm);
	if (task_will_free_mem(p))
		reap = true;
	else if (!mm_flags_test(MMF_OOM_SKIP, mm))
		ret = -EINVAL;
	task_unlock(p);
	if (!reap)
		goto drop_mm;

	trace_mrelease_start(task, mm, 0, 0);
	if (mmap_read_lock_killable(mm)) {
		ret = -EINTR;
	} else {
		/*
		 * exit_mmap() sets MMF_OOM_SKIP before it takes mmap_lock for
		 * writing, so the flag is stable here.
		 */
		if (!mm_flags_test(MMF_OOM_SKIP, mm) && !__oom_reap_task_mm(task, mm))
			ret = -EAGAIN;
		mmap_read_unlock(mm);
	}
	trace_mrelease_end(task, mm, 0, ret);
drop_mm:
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
