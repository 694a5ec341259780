// SPDX-License-Identifier: GPL-2.0
/*
 * Freeing the pages of an mmu_gather, and the caches that still hold them.
 */
#include <linux/dax.h>
#include <linux/fs.h>
#include <linux/folio_batch.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/mm_inline.h>
#include <linux/pagemap.h>
#include <linux/shmem_fs.h>
#include <linux/swap.h>
#include <trace/events/filemap.h>
#include <trace/events/mrelease.h>

#include "internal.h"

/*
 * The page cache that this folio may be evicted from, or NULL.
 *
 * The gather's reference keeps the folio from being reused, so ->mapping is
 * either the file that the VMA maps or, after a truncation, NULL. The VMA
 * pins that file: nobody flushes such a gather after closing its VMAs.
 * Pages that a driver inserted, with a mapping but no page cache, are not on
 * an LRU list; neither is a folio that reclaim or migration is working on.
 */
static struct address_space *folio_file_mapping(const struct folio *folio)
{
	if (folio_test_anon(folio) || folio_test_swapbacked(folio) ||
	    !folio_test_lru(folio))
		return NULL;

	return READ_ONCE(folio->mapping);
}

/**
 * mapping_evictable - can this file give back what is evicted from its cache?
 * @mapping: the page cache of a file
 *
 * For shmem, ramfs, memfd_secret, guest memory and DAX, what stands in the
 * page cache is the only copy. A network filesystem that keeps a cache of its
 * own on disk wants a say, too, before any folio of it is dropped.
 *
 * Context: Any. Whoever calls this keeps the file's inode alive.
 * Return: false if no folio of @mapping may be evicted.
 */
bool mapping_evictable(struct address_space *mapping)
{
	return !shmem_mapping(mapping) && !mapping_unevictable(mapping) &&
	       !mapping_inaccessible(mapping) && !dax_mapping(mapping) &&
	       !mapping_release_always(mapping) && !mapping->a_ops->free_folio;
}

/*
 * Folios that stand next to each other in a gather and in one file, at most as
 * many as a node of the page cache's tree has. With all of them gone, a single
 * store removes the node.
 */
struct run {
	struct address_space *mapping;
	bool evictable;
	unsigned int nr;
	struct folio *folios[XA_CHUNK_SIZE];
	unsigned int refs[XA_CHUNK_SIZE];
	unsigned long evicted;		/* pages, for who looks on */
	unsigned int refused[NR_MRELEASE_REFUSALS];
};

/* Is this one for put_private()? Not on s390, which holds the page-table lock. */
static bool has_clean_private(struct folio *folio)
{
	return !IS_ENABLED(CONFIG_MMU_GATHER_NO_GATHER) && folio_has_private(folio) &&
	       !folio_test_dirty(folio) && !folio_test_writeback(folio);
}

/*
 * Take all references of a clean folio away, if nobody but the page cache and
 * the caller has any. i_pages is locked.
 *
 * Whoever maps, locks or writes the folio holds a reference, or else the folio
 * is marked as locked for a read, or under writeback. The end of writeback takes
 * a reference for a moment without asking whether it may, so this has to be
 * known before the freeze; i_pages keeps it from beginning. After the freeze
 * nobody can get a reference, so that nothing else can begin, either, and the
 * folio lock is not needed; see __remove_mapping() for the rest.
 */
static enum mrelease_refusal freeze_clean_folio(struct folio *folio,
						unsigned int refs)
{
	const int expected = folio_nr_pages(folio) + refs;

	if (folio_test_writeback(folio))
		return MRELEASE_WRITEBACK;
	if (folio_has_private(folio))
		return MRELEASE_PRIVATE;
	if (!folio_ref_freeze(folio, expected))
		return MRELEASE_USED;
	if (likely(!(READ_ONCE(folio->flags.f) & (BIT(PG_locked) | BIT(PG_dirty)))))
		return MRELEASE_OK;
	folio_ref_unfreeze(folio, expected);

	return folio_test_dirty(folio) ? MRELEASE_DIRTY : MRELEASE_LOCKED;
}

/*
 * Take a range of folios out of the page cache, all at the same time where it
 * forms a block that one node of the tree has side by side. No block cuts a
 * folio in two: both are naturally aligned powers of two.
 */
static void erase_pages(struct address_space *mapping, pgoff_t index,
			unsigned long nr)
{
	XA_STATE(xas, &mapping->i_pages, index);

	mapping_set_update(&xas, mapping);
	mapping->nrpages -= nr;
	while (nr) {
		unsigned int order = 0;

		if (IS_ENABLED(CONFIG_XARRAY_MULTI))
			order = __ffs(index | rounddown_pow_of_two(nr));
		xas_set_order(&xas, index, order);
		xas_store(&xas, NULL);
		index += 1UL << order;
		nr -= 1UL << order;
	}
}

/*
 * __filemap_remove_folio() for many folios at a time: one store for neighbours,
 * one update of the counters for folios with the same. Huge ones, which have
 * counters of their own, are worth a call each. i_pages is locked.
 *
 * Sets the folios that stay to NULL. Of those with private data, which are not
 * done with, one reference is kept.
 */
static void erase_clean_folios(struct run *run)
{
	struct folio *first = NULL;
	unsigned long count = 0;
	pgoff_t start = 0;
	long counted = 0;

	for (unsigned int i = 0; i < run->nr; i++) {
		struct folio *folio = run->folios[i];
		enum mrelease_refusal refusal;
		long nr;

		/* Truncated in the meantime: what is left is our reference. */
		if (folio->mapping != run->mapping)
			continue;
		if (has_clean_private(folio)) {
			folio_ref_sub(folio, run->refs[i] - 1);
			run->refs[i] = 1;
			continue;
		}
		refusal = freeze_clean_folio(folio, run->refs[i]);
		if (refusal) {
			folio_ref_sub(folio, run->refs[i]);
			run->folios[i] = NULL;
			run->refused[refusal]++;
			continue;
		}
		nr = folio_nr_pages(folio);
		run->evicted += nr;
		if (folio_test_pmd_mappable(folio)) {
			/* Only because it asks for that. It cannot fail now. */
			folio_trylock(folio);
			__filemap_remove_folio(folio, NULL);
			folio_unlock(folio);
			continue;
		}

		trace_mm_filemap_delete_from_page_cache(folio);
		if (folio->index != start + count) {
			erase_pages(run->mapping, start, count);
			start = folio->index;
			count = 0;
		}
		count += nr;
		if (!first || folio_memcg(first) != folio_memcg(folio) ||
		    folio_pgdat(first) != folio_pgdat(folio)) {
			if (first)
				lruvec_stat_mod_folio(first, NR_FILE_PAGES, -counted);
			first = folio;
			counted = 0;
		}
		counted += nr;
		folio->mapping = NULL;
	}
	erase_pages(run->mapping, start, count);
	if (first)
		lruvec_stat_mod_folio(first, NR_FILE_PAGES, -counted);
}

/* Are these two counted in the same place, if they are in the same lruvec? */
static bool same_lru(const struct folio *a, const struct folio *b)
{
	const unsigned long mask = LRU_GEN_MASK | BIT(PG_active) |
				   BIT(PG_unevictable) | ZONES_MASK << ZONES_PGSHIFT;

	return !((a->flags.f ^ b->flags.f) & mask);
}

/* The counting that lruvec_del_folio() does, for as many pages as @folio says. */
static void uncount_lru(struct lruvec *lruvec, const struct folio *folio, long nr)
{
	enum lru_list lru = folio_lru_list(folio);
	enum zone_type zone = folio_zonenum(folio);
#ifdef CONFIG_LRU_GEN
	int gen = folio_lru_gen(folio);

	if (gen >= 0) {
		long *pages = &lruvec->lrugen.nr_pages[gen][LRU_GEN_FILE][zone];

		WRITE_ONCE(*pages, *pages - nr);
		if (lru_gen_is_active(lruvec, gen))
			lru = LRU_ACTIVE_FILE;
		__update_lru_size(lruvec, lru, zone, -nr);
		return;
	}
#endif
	update_lru_size(lruvec, lru, zone, -nr);
}

/*
 * lruvec_del_folio() for folios without references: neighbours are mostly
 * counted in the same place, and there all at once.
 */
static void lru_del_folios(struct folio **folios, unsigned int nr)
{
	struct lruvec *lruvec = NULL;
	unsigned long flags;

	for (unsigned int i = 0, next; i < nr; i = next) {
		struct folio *first = folios[i];
		long pages = 0;

		folio_lruvec_relock_irqsave(first, &lruvec, &flags);
		for (next = i; next < nr; next++) {
			if (!same_lru(first, folios[next]) ||
			    !folio_matches_lruvec(folios[next], lruvec))
				break;
			pages += folio_nr_pages(folios[next]);
		}
		uncount_lru(lruvec, first, pages);
		for (; i < next; i++) {
			if (!folio_test_unevictable(folios[i]))
				list_del(&folios[i]->lru);
			folios[i]->flags.f &= ~LRU_GEN_MASK;
			__folio_clear_lru_flags(folios[i]);
		}
	}
	if (lruvec)
		lruvec_unlock_irqrestore(lruvec, flags);
}

/* Free folios without references that nobody can find any more. */
static void free_frozen_folios(struct folio **folios, unsigned int nr)
{
	struct folio_batch fbatch;

	lru_del_folios(folios, nr);

	folio_batch_init(&fbatch);
	for (unsigned int i = 0; i < nr; i++) {
		if (folio_batch_add(&fbatch, folios[i]) && i < nr - 1)
			continue;
		mem_cgroup_uncharge_folios(&fbatch);
		free_unref_folios(&fbatch);
	}
}

/*
 * Drop the last reference to a folio with buffers or other private data, and
 * evict it: the filesystem may want to sleep or to take locks of its own when it
 * lets go of these. Whoever has pinned the folio to write into it is going to
 * make it dirty, and the filesystem relies on its buffers then. Such a folio has
 * more references.
 *
 * The folio lock does what i_pages does for others, see evict_run(). Another
 * gather with a reference holds it for no longer than it takes to count.
 */
static void put_private(struct run *run, struct folio *folio)
{
	for (int i = 0; !folio_trylock(folio); i++) {
		if (i == 100) {
			run->refused[MRELEASE_PRIVATE]++;
			folio_put(folio);
			return;
		}
		cpu_relax();
	}

	run->evicted += mapping_evict_folio(folio->mapping, folio);
	if (folio->mapping) {
		run->refused[MRELEASE_PRIVATE]++;
		folio_put(folio);
		folio_unlock(folio);
	} else {
		folio_unlock(folio);
		folio_put(folio);
	}
}

/*
 * Evict and free what is in the run, as far as nobody else wants it.
 *
 * There is no need for the inode's i_lock. It orders the removal of the last
 * folio against adding the inode to its LRU, which is for inodes that nobody
 * uses.
 *
 * A reference that does not end in an eviction is dropped with i_pages locked,
 * when the page cache is known to hold another. Large folios and folios that
 * are mapped twice come in several pieces, perhaps through two gathers at the
 * same time: with the test and the drop under one lock, the last one to let go
 * evicts.
 */
static void evict_run(struct run *run)
{
	unsigned int frozen = 0;

	if (!run->nr)
		return;

	run->evicted = 0;
	memset(run->refused, 0, sizeof(run->refused));

	xa_lock_irq(&run->mapping->i_pages);
	rcu_read_lock();
	erase_clean_folios(run);
	rcu_read_unlock();
	xa_unlock_irq(&run->mapping->i_pages);

	for (unsigned int i = 0; i < run->nr; i++) {
		struct folio *folio = run->folios[i];

		if (!folio)
			continue;
		if (!folio_ref_count(folio))
			run->folios[frozen++] = folio;
		else if (folio->mapping)
			put_private(run, folio);
		else
			folio_put_refs(folio, run->refs[i]);
	}
	free_frozen_folios(run->folios, frozen);
	run->nr = 0;

	count_vm_events(MRELEASE_EVICT, run->evicted);
	trace_mrelease_evict(run->mapping, run->evicted, run->refused);
}

/* False if the folio is none that can be evicted. */
static bool add_to_run(struct run *run, struct folio *folio, unsigned int refs)
{
	struct address_space *mapping = folio_file_mapping(folio);

	if (!mapping)
		return false;
	if (mapping != run->mapping) {
		evict_run(run);
		run->mapping = mapping;
		run->evictable = mapping_evictable(mapping);
	}
	if (!run->evictable)
		return false;

	/* Full, or the next node begins. One that fills a node has no need of that. */
	if (run->nr == XA_CHUNK_SIZE ||
	    (folio_order(folio) < XA_CHUNK_SHIFT && !(folio->index & XA_CHUNK_MASK)))
		evict_run(run);
	run->folios[run->nr] = folio;
	run->refs[run->nr++] = refs;

	return true;
}

/* With a run to collect in, file folios are evicted, if possible. */
static __always_inline void free_entries(struct encoded_page **pages, int nr,
					 struct run *run)
{
	struct folio_batch folios;
	unsigned int refs[FOLIO_BATCH_SIZE];

	folio_batch_init(&folios);
	for (int i = 0; i < nr; i++) {
		struct folio *folio = page_folio(encoded_page_ptr(pages[i]));
		unsigned int folio_refs = 1;

		if (unlikely(encoded_page_flags(pages[i]) &
			     ENCODED_PAGE_BIT_NR_PAGES_NEXT))
			folio_refs = encoded_nr_pages(pages[++i]);
		if (run && add_to_run(run, folio, folio_refs))
			continue;

		free_swap_cache(folio);
		refs[folios.nr] = folio_refs;
		if (folio_batch_add(&folios, folio) == 0)
			folios_put_refs(&folios, refs);
	}
	if (folios.nr)
		folios_put_refs(&folios, refs);
}

static noinline void free_and_evict_entries(struct encoded_page **pages, int nr)
{
	struct run run;

	run.mapping = NULL;
	run.nr = 0;

	/* Folios in a per-CPU batch carry a reference more: munlock, readahead */
	lru_add_drain();
	free_entries(pages, nr, &run);
	evict_run(&run);
}

/**
 * free_pages_and_caches - free a batch of unmapped pages and their caches
 * @pages: encoded pages; one with ENCODED_PAGE_BIT_NR_PAGES_NEXT is followed
 *	by the number of pages, and so of references, that it stands for
 * @nr: number of entries in @pages
 * @evict: remove clean file folios from the page cache if nobody else maps or
 *	uses them
 *
 * Drops the references that an mmu_gather holds on the pages it unmapped.
 * Swap cache that nobody else needs is dropped first, from anonymous and shmem
 * folios alike. With @evict, the page cache goes too: not from folios that are
 * dirty, under writeback, locked or referenced, and not where the mapping has
 * no other copy to give back.
 *
 * Context: Process context. s390 calls this with the page-table lock held;
 * elsewhere nothing that @evict could deadlock with may be held: no folio lock,
 * no i_pages lock. With @evict, the VMAs of @pages keep their files open.
 */
void free_pages_and_caches(struct encoded_page **pages, int nr, bool evict)
{
	if (evict)
		free_and_evict_entries(pages, nr);
	else
		free_entries(pages, nr, NULL);
}
