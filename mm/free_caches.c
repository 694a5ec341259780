// SPDX-License-Identifier: GPL-2.0
/*
 * Freeing the pages of an mmu_gather, and the caches that still hold them.
 */
#include <linux/dax.h>
#include <linux/fs.h>
#include <linux/folio_batch.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/shmem_fs.h>
#include <linux/swap.h>
#include <trace/events/filemap.h>

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
 * Buffers and other private data hold a reference, and a filesystem may want
 * to sleep or to take locks of its own when it lets go of them, so this
 * precedes the locked part. It needs no check of the reference count: giving
 * up clean buffers of a folio that stays is harmless.
 */
static void release_private(struct folio *folio)
{
	/* s390 is here with the page-table lock held. */
	if (IS_ENABLED(CONFIG_MMU_GATHER_NO_GATHER) || !folio_trylock(folio))
		return;

	if (folio->mapping && !folio_mapped(folio) &&
	    !folio_test_dirty(folio) && !folio_test_writeback(folio))
		filemap_release_folio(folio, 0);
	folio_unlock(folio);
}

/*
 * Lock a folio and take all its references away, if nobody but the page cache
 * and the caller has any. i_pages is locked.
 *
 * Whoever is about to map or to write the folio has looked it up, holds a
 * reference, and waits for the folio lock. After the freeze nobody can get a
 * reference, so it cannot become dirty any more; see __remove_mapping().
 */
static bool freeze_clean_folio(struct folio *folio, unsigned int refs)
{
	const int expected = folio_nr_pages(folio) + refs;

	if (folio_mapped(folio) || folio_has_private(folio) ||
	    !folio_trylock(folio))
		return false;
	if (folio_test_writeback(folio) || !folio_ref_freeze(folio, expected))
		goto unlock;
	if (likely(!folio_test_dirty(folio)))
		return true;
	folio_ref_unfreeze(folio, expected);
unlock:
	folio_unlock(folio);
	return false;
}

/*
 * Take a range of small folios out of the page cache, all at the same time
 * where it forms a block that one node of the tree has side by side.
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
 * Evict folios that stand next to each other in a gather and in one file. This
 * is __filemap_remove_folio() for many small folios at a time: one round of
 * i_pages, one store for neighbours, one update of the counters for folios
 * with the same. Large ones are worth a call each.
 *
 * There is no need for the inode's i_lock. It orders the removal of the last
 * folio against adding the inode to its LRU, which is for inodes that nobody
 * uses.
 *
 * A reference that does not end in an eviction is dropped here, where the page
 * cache is known to hold another. Large folios and folios that are mapped
 * twice come in several pieces, perhaps through two gathers at the same time:
 * with the test and the drop under one lock, the last one to let go evicts.
 *
 * Returns the number of folios it looked at.
 */
static unsigned int evict_run(struct address_space *mapping,
			      struct folio **folios, unsigned int *refs,
			      unsigned int max)
{
	struct folio *first = NULL;
	unsigned long count = 0;
	pgoff_t start = 0;
	long counted = 0;
	unsigned int nr;

	for (nr = 0; nr < max; nr++) {
		if (folio_file_mapping(folios[nr]) != mapping)
			break;
		if (folio_has_private(folios[nr]))
			release_private(folios[nr]);
	}

	xa_lock_irq(&mapping->i_pages);
	rcu_read_lock();
	for (unsigned int i = 0; i < nr; i++) {
		struct folio *folio = folios[i];

		/* Truncated in the meantime: leave it to the caller. */
		if (folio->mapping != mapping)
			continue;
		if (!freeze_clean_folio(folio, refs[i])) {
			folio_ref_sub(folio, refs[i]);
			folios[i] = NULL;
			continue;
		}
		if (folio_test_large(folio)) {
			__filemap_remove_folio(folio, NULL);
			continue;
		}

		trace_mm_filemap_delete_from_page_cache(folio);
		if (folio->index != start + count) {
			erase_pages(mapping, start, count);
			start = folio->index;
			count = 0;
		}
		count++;
		if (!first || folio_memcg(first) != folio_memcg(folio) ||
		    folio_pgdat(first) != folio_pgdat(folio)) {
			if (first)
				lruvec_stat_mod_folio(first, NR_FILE_PAGES, -counted);
			first = folio;
			counted = 0;
		}
		counted++;
		folio->mapping = NULL;
	}
	erase_pages(mapping, start, count);
	if (first)
		lruvec_stat_mod_folio(first, NR_FILE_PAGES, -counted);
	rcu_read_unlock();

	for (unsigned int i = 0; i < nr; i++) {
		/* Only those that are frozen now. */
		if (!folios[i] || folio_ref_count(folios[i]))
			continue;
		folio_unlock(folios[i]);
		folio_ref_unfreeze(folios[i], refs[i]);
	}
	xa_unlock_irq(&mapping->i_pages);

	return nr;
}

static void evict_file_folios(struct folio_batch *fbatch, unsigned int *refs)
{
	unsigned int i = 0;

	while (i < fbatch->nr) {
		struct address_space *mapping;

		mapping = folio_file_mapping(fbatch->folios[i]);
		if (mapping && mapping_evictable(mapping))
			i += evict_run(mapping, fbatch->folios + i, refs + i,
				       fbatch->nr - i);
		else
			i++;
	}
}

static void put_folios(struct folio_batch *fbatch, unsigned int *refs,
		       bool evict)
{
	if (evict)
		evict_file_folios(fbatch, refs);
	folios_put_refs(fbatch, refs);
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
	struct folio_batch folios;
	unsigned int refs[FOLIO_BATCH_SIZE];

	/* Folios in a per-CPU batch carry a reference more: munlock, readahead */
	if (evict)
		lru_add_drain();

	folio_batch_init(&folios);
	for (int i = 0; i < nr; i++) {
		struct folio *folio = page_folio(encoded_page_ptr(pages[i]));

		free_swap_cache(folio);
		refs[folios.nr] = 1;
		if (unlikely(encoded_page_flags(pages[i]) &
			     ENCODED_PAGE_BIT_NR_PAGES_NEXT))
			refs[folios.nr] = encoded_nr_pages(pages[++i]);

		if (folio_batch_add(&folios, folio) == 0)
			put_folios(&folios, refs, evict);
	}
	if (folios.nr)
		put_folios(&folios, refs, evict);
}
