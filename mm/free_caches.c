// SPDX-License-Identifier: GPL-2.0
/*
 * Free the pages of an mmu_gather, together with the caches that hold them.
 */
#include <linux/dax.h>
#include <linux/folio_batch.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/shmem_fs.h>
#include <linux/swap.h>

#include "internal.h"

#define CREATE_TRACE_POINTS
#include <trace/events/mrelease.h>

/**
 * mapping_evictable - tell whether clean folios of a file may be evicted
 * @mapping: the page cache of the file
 *
 * The page cache has the only copy of what shmem, ramfs, memfd_secret, guest
 * memory and DAX hold. A mapping with ->free_folio() tracks its folios.
 *
 * Context: The caller keeps the inode of @mapping alive.
 * Return: false if no folio of @mapping may be evicted.
 */
bool mapping_evictable(struct address_space *mapping)
{
	return !shmem_mapping(mapping) && !mapping_unevictable(mapping) &&
	       !mapping_inaccessible(mapping) && !dax_mapping(mapping) &&
	       !mapping->a_ops->free_folio;
}

/*
 * Freeze and lock a clean folio if only the page cache and the caller, which
 * holds one reference and the i_pages lock, have references on it.
 *
 * folio_end_writeback() takes a reference without holding one, so a folio under
 * writeback must not be frozen. The i_pages lock keeps writeback from starting.
 * With the references frozen, no task can dirty the folio, isolate it or lock it.
 * A read that has locked the folio and the LRU may still change its flags.
 */
static bool evict_freeze(struct folio *folio)
{
	const unsigned long mask = BIT(PG_lru) | BIT(PG_dirty) | BIT(PG_writeback);
	const int refs = folio_nr_pages(folio) + 1;

	if (folio_test_writeback(folio) || !folio_ref_freeze(folio, refs))
		return false;
	if ((READ_ONCE(*folio_flags(folio, 0)) & mask) == BIT(PG_lru) &&
	    folio_trylock(folio))
		return true;
	folio_ref_unfreeze(folio, refs);
	return false;
}

/*
 * Evict folios of one file from the page cache. The caller holds one reference on
 * each. Store the folios whose reference is still to be dropped in @left, and
 * return their number.
 *
 * The reference on a folio that stays cached is dropped with the i_pages lock
 * held. Of two gathers with references on the same large folio, the second to
 * take the lock finds the reference of the first dropped, and evicts.
 *
 * The i_lock is not needed. It orders the removal of the last folio before the
 * inode is added to the inode LRU list, but a mapped file keeps the inode in use.
 */
static int evict_folios(struct address_space *mapping, struct folio **folios,
			int nr, struct encoded_page **left)
{
	/* s390 frees pages with the page-table lock held. */
	const bool may_sleep = !IS_ENABLED(CONFIG_MMU_GATHER_NO_GATHER);
	const bool release_all = mapping_release_always(mapping);
	int nr_frozen = 0, nr_left = 0, refused = 0;
	struct folio_batch fbatch;
	unsigned long evicted = 0;
	unsigned int noreclaim;

	xa_lock_irq(&mapping->i_pages);
	for (int i = 0; i < nr; i++) {
		struct folio *folio = folios[i];
		const bool private = folio_has_private(folio);
		const bool release = private || release_all;

		if (folio->mapping != mapping ||
		    (release && may_sleep && folio_ref_count(folio) ==
		     folio_nr_pages(folio) + private + 1)) {
			/* Truncated, or evicted below. */
			left[nr_left++] = encode_page(&folio->page, 0);
		} else if (!release && evict_freeze(folio)) {
			evicted += folio_nr_pages(folio);
			folios[nr_frozen++] = folio;
		} else {
			folio_ref_dec(folio);
			refused++;
		}
	}
	if (nr_frozen)
		__filemap_remove_folios(mapping, folios, nr_frozen);
	xa_unlock_irq(&mapping->i_pages);

	/* ->release_folio() may sleep, but must not enter reclaim. */
	noreclaim = memalloc_noreclaim_save();
	for (int i = 0; i < nr_left; i++) {
		struct folio *folio = page_folio(encoded_page_ptr(left[i]));
		long nr_pages = 0;

		if (folio_trylock(folio)) {
			nr_pages = mapping_evict_folio(folio->mapping, folio);
			folio_unlock(folio);
		}
		evicted += nr_pages;
		refused += !nr_pages;
	}
	memalloc_noreclaim_restore(noreclaim);
	folio_batch_init(&fbatch);
	for (int i = 0; i < nr_frozen; i++) {
		folio_unlock(folios[i]);
		if (!folio_batch_add(&fbatch, folios[i]) || i == nr_frozen - 1)
			free_frozen_folios(&fbatch);
	}
	count_vm_events(MRELEASE_EVICT, evicted);
	trace_mrelease_evict(mapping, evicted, refused);

	return nr_left;
}

/*
 * Evict the file folios among @pages where possible. Move the pages whose
 * reference is still to be dropped, now one for each entry, to the front of the
 * array, and return their number.
 */
static noinline int evict_pages(struct encoded_page **pages, int nr)
{
	struct folio *folios[XA_CHUNK_SIZE];
	struct address_space *file = NULL;
	int nr_folios = 0, nr_left = 0;

	/* A folio in an LRU batch has one more reference: munlock, readahead. */
	lru_add_drain();

	for (int i = 0; i < nr; i++) {
		struct page *page = encoded_page_ptr(pages[i]);
		struct folio *folio = page_folio(page);
		struct address_space *mapping = READ_ONCE(folio->mapping);
		unsigned long flags = READ_ONCE(*folio_flags(folio, 0));

		if (encoded_page_flags(pages[i]) & ENCODED_PAGE_BIT_NR_PAGES_NEXT)
			folio_ref_sub(folio, encoded_nr_pages(pages[++i]) - 1);

		/* A driver's page has a ->mapping, but is not on an LRU list. */
		if ((flags & (BIT(PG_lru) | BIT(PG_swapbacked))) != BIT(PG_lru) ||
		    folio_test_anon(folio) || !mapping ||
		    folio_contain_hwpoisoned_page(folio) ||
		    (mapping != file && !mapping_evictable(mapping))) {
			pages[nr_left++] = encode_page(page, 0);
			continue;
		}

		/* One store removes a node of the page cache with all its folios. */
		if (nr_folios && (mapping != file || nr_folios == XA_CHUNK_SIZE ||
				  !(folio->index & XA_CHUNK_MASK))) {
			nr_left += evict_folios(file, folios, nr_folios, pages + nr_left);
			nr_folios = 0;
		}
		file = mapping;
		folios[nr_folios++] = folio;
	}
	if (nr_folios)
		nr_left += evict_folios(file, folios, nr_folios, pages + nr_left);

	return nr_left;
}

/**
 * free_pages_and_caches - free a batch of unmapped pages and their caches
 * @pages: encoded pages; one with ENCODED_PAGE_BIT_NR_PAGES_NEXT is followed by
 *	the number of pages that it stands for. The array is overwritten.
 * @nr: number of entries in @pages
 * @evict: also remove clean file folios without other users from the page cache
 *
 * Drop the references that an mmu_gather holds on pages it has unmapped, and the
 * swap cache of anonymous and shmem folios without other users. A file folio that
 * is dirty, under writeback or locked stays, as does one of a file for which
 * mapping_evictable() is false.
 *
 * Context: Process context. With @evict, the files that @pages were mapped from
 * must be open, and ->release_folio() may sleep, except on s390, which holds the
 * page-table lock.
 */
void free_pages_and_caches(struct encoded_page **pages, int nr, bool evict)
{
	struct folio_batch folios;
	unsigned int refs[FOLIO_BATCH_SIZE];

	if (evict)
		nr = evict_pages(pages, nr);

	folio_batch_init(&folios);
	for (int i = 0; i < nr; i++) {
		struct folio *folio = page_folio(encoded_page_ptr(pages[i]));

		free_swap_cache(folio);
		refs[folios.nr] = 1;
		if (unlikely(encoded_page_flags(pages[i]) &
			     ENCODED_PAGE_BIT_NR_PAGES_NEXT))
			refs[folios.nr] = encoded_nr_pages(pages[++i]);

		if (folio_batch_add(&folios, folio) == 0)
			folios_put_refs(&folios, refs);
	}
	if (folios.nr)
		folios_put_refs(&folios, refs);
}
