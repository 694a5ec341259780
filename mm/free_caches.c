// SPDX-License-Identifier: GPL-2.0
/*
 * Freeing the pages of an mmu_gather, and the caches that still hold them.
 */
#include <linux/dax.h>
#include <linux/fs.h>
#include <linux/folio_batch.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/shmem_fs.h>
#include <linux/swap.h>

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
 * page cache is the only copy.
 *
 * Context: Any. Whoever calls this keeps the file's inode alive.
 * Return: false if no folio of @mapping may be evicted.
 */
bool mapping_evictable(const struct address_space *mapping)
{
	return !shmem_mapping(mapping) && !mapping_unevictable(mapping) &&
	       !mapping_inaccessible(mapping) && !dax_mapping(mapping) &&
	       !mapping->a_ops->free_folio;
}

/* Is there a reason, visible without any lock, for the folio to stay? */
static bool folio_must_stay(const struct folio *folio)
{
	return folio_test_dirty(folio) || folio_test_writeback(folio) ||
	       folio_mapped(folio);
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

	if (folio->mapping && !folio_must_stay(folio))
		filemap_release_folio(folio, 0);
	folio_unlock(folio);
}

/*
 * Remove a folio from the page cache unless somebody else still needs it.
 * The caller holds i_pages and @refs references.
 */
static bool evict_folio(struct folio *folio, unsigned int refs)
{
	const int expected = folio_nr_pages(folio) + refs;

	/*
	 * Whoever is about to map or to write this folio has looked it up,
	 * holds a reference, and waits for the lock that we take. The freeze
	 * sees the former; the order of the tests is that of __remove_mapping().
	 */
	if (folio_must_stay(folio) || !folio_trylock(folio))
		return false;
	if (folio_needs_release(folio) || !folio_ref_freeze(folio, expected))
		goto unlock;
	if (unlikely(folio_must_stay(folio))) {
		folio_ref_unfreeze(folio, expected);
		goto unlock;
	}

	__filemap_remove_folio(folio, NULL);
	folio_unlock(folio);
	folio_ref_unfreeze(folio, refs);
	return true;

unlock:
	folio_unlock(folio);
	return false;
}

/*
 * Evict folios that stand next to each other in a gather, which mostly means
 * next to each other in a file: one round of i_pages for all of them. There is
 * no need for the inode's i_lock. It orders the removal of the last folio
 * against adding the inode to its LRU, which is for inodes that nobody uses.
 *
 * A reference that does not end in an eviction is dropped here, where the page
 * cache is known to hold another. Large folios and folios that are mapped
 * twice come in several pieces, perhaps through two gathers at the same time:
 * with the test and the drop under one lock, the last one to let go evicts.
 */
static void evict_file_folios(struct folio_batch *fbatch, unsigned int *refs)
{
	unsigned int i = 0, nr = folio_batch_count(fbatch);

	while (i < nr) {
		struct folio *folio = fbatch->folios[i];
		struct address_space *mapping = folio_file_mapping(folio);

		if (!mapping || !mapping_evictable(mapping)) {
			i++;
			continue;
		}

		for (unsigned int j = i; j < nr; j++) {
			folio = fbatch->folios[j];
			if (folio_file_mapping(folio) != mapping)
				break;
			if (folio_needs_release(folio))
				release_private(folio);
		}

		xa_lock_irq(&mapping->i_pages);
		for (; i < nr; i++) {
			folio = fbatch->folios[i];
			if (folio_file_mapping(folio) != mapping)
				break;
			if (!evict_folio(folio, refs[i])) {
				folio_ref_sub(folio, refs[i]);
				fbatch->folios[i] = NULL;
			}
		}
		xa_unlock_irq(&mapping->i_pages);
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
