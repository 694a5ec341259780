// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for free_pages_and_caches(), and for the batching of page-cache
 * and LRU removal that it relies on.
 *
 * The files have a page cache and no storage. A folio under test has no
 * references but those of the page cache and those that the test holds.
 */
#include <kunit/test.h>
#include <linux/cpumask.h>
#include <linux/folio_batch.h>
#include <linux/fs.h>
#include <linux/initrd.h>
#include <linux/mm.h>
#include <linux/mm_inline.h>
#include <linux/pagemap.h>
#include <linux/prandom.h>
#include <linux/sched.h>
#include <linux/smp.h>
#include <linux/swap.h>
#include <linux/vmstat.h>

#include "../internal.h"

#define MAX_ENTRIES	512	/* of a gather batch */

struct free_caches {
	struct inode inode;
	struct encoded_page *pages[MAX_ENTRIES];
	int nr;
};

static struct address_space *mapping_of(struct kunit *test)
{
	return &((struct free_caches *)test->priv)->inode.i_data;
}

/* Add a clean folio that only the page cache, or an LRU batch, references. */
static struct folio *add_folio(struct kunit *test, pgoff_t index, unsigned int order)
{
	struct folio *folio = folio_alloc(GFP_KERNEL, order);

	KUNIT_ASSERT_NOT_NULL(test, folio);
	KUNIT_ASSERT_EQ(test, 0, filemap_add_folio(mapping_of(test), folio, index,
						   GFP_KERNEL));
	folio_mark_uptodate(folio);
	folio_unlock(folio);
	folio_put(folio);

	return folio;
}

/* Put into the gather batch what unmapping @nr pages of a folio does. */
static void gather(struct kunit *test, struct folio *folio, unsigned int nr)
{
	struct free_caches *fc = test->priv;

	folio_ref_add(folio, nr);
	if (nr == 1) {
		fc->pages[fc->nr++] = encode_page(&folio->page, 0);
		return;
	}
	fc->pages[fc->nr++] = encode_page(&folio->page, ENCODED_PAGE_BIT_NR_PAGES_NEXT);
	fc->pages[fc->nr++] = encode_nr_pages(nr);
}

static void flush(struct kunit *test, bool evict)
{
	struct free_caches *fc = test->priv;

	free_pages_and_caches(fc->pages, fc->nr, evict);
	fc->nr = 0;
}

static void expect_cached(struct kunit *test, unsigned long pages)
{
	struct address_space *mapping = mapping_of(test);
	unsigned long index, found = 0;
	void *entry;

	xa_for_each(&mapping->i_pages, index, entry)
		found += xa_is_value(entry) ? 0 : folio_nr_pages(entry);
	KUNIT_EXPECT_EQ(test, pages, found);
	KUNIT_EXPECT_EQ(test, pages, mapping->nrpages);
}

/* From the middle of a node of the page cache to the middle of another. */
static void small_folios(struct kunit *test)
{
	for (int i = 0; i < MAX_ENTRIES; i++)
		gather(test, add_folio(test, 17 + i, 0), 1);
	flush(test, true);
	expect_cached(test, 0);
	KUNIT_EXPECT_TRUE(test, xa_empty(&mapping_of(test)->i_pages));
}

static void without_evict(struct kunit *test)
{
	struct folio *folio = add_folio(test, 0, 0);

	lru_add_drain_all();
	gather(test, folio, 1);
	flush(test, false);
	expect_cached(test, 1);
	KUNIT_EXPECT_EQ(test, 1, folio_ref_count(folio));
}

/* Folios between the gathered ones stay cached, at any offset in a node. */
static void every_nth(struct kunit *test)
{
	for (int n = 2; n <= 7; n++) {
		for (int i = 0; i < 200; i++) {
			struct folio *folio = add_folio(test, i, 0);

			if (i % n == 0)
				gather(test, folio, 1);
		}
		flush(test, true);
		expect_cached(test, 200 - DIV_ROUND_UP(200, n));
		for (int i = 0; i < 200; i++)
			KUNIT_EXPECT_EQ(test, i % n == 0,
					!xa_load(&mapping_of(test)->i_pages, i));
		truncate_inode_pages(mapping_of(test), 0);
	}
}

static void descending(struct kunit *test)
{
	for (int i = 199; i >= 0; i--)
		gather(test, add_folio(test, i, 0), 1);
	flush(test, true);
	expect_cached(test, 0);
}

/* An entry of two words, at each offset from the end of an evict batch. */
static void large_after_small(struct kunit *test)
{
	for (int at = 0; at < 2 * XA_CHUNK_SIZE; at++) {
		for (int i = 0; i < at; i++)
			gather(test, add_folio(test, 16 + i, 0), 1);
		gather(test, add_folio(test, 1024, 4), 16);
		gather(test, add_folio(test, 1040, 0), 1);
		flush(test, true);
		expect_cached(test, 0);
	}
}

/*
 * Folios of all orders, smaller and larger than a node covers. Some are not
 * gathered, some are in use, some have a mark that writeback has left.
 */
static void mixed_orders(struct kunit *test)
{
	enum { PAGES = 1024 };
	struct address_space *mapping = mapping_of(test);
	struct free_caches *fc = test->priv;
	DECLARE_BITMAP(stay, PAGES);
	DECLARE_BITMAP(used, PAGES);
	struct rnd_state random;

	prandom_seed_state(&random, 1);
	for (int round = 0; round < 100; round++) {
		bitmap_zero(stay, PAGES);
		bitmap_zero(used, PAGES);
		for (int i = 0; i < PAGES && fc->nr < MAX_ENTRIES - 1;) {
			unsigned int order = min_t(unsigned int, i ? __ffs(i) : 7,
						   prandom_u32_state(&random) % 8);
			struct folio *folio = add_folio(test, i, order);

			switch (prandom_u32_state(&random) % 16) {
			case 0:
				bitmap_set(stay, i, 1 << order);
				break;
			case 1:
				folio_get(folio);
				set_bit(i, used);
				bitmap_set(stay, i, 1 << order);
				gather(test, folio, 1 << order);
				break;
			case 2:
				xa_set_mark(&mapping->i_pages, i, PAGECACHE_TAG_TOWRITE);
				fallthrough;
			default:
				gather(test, folio, 1 << order);
			}
			i += 1 << order;
		}
		flush(test, true);
		expect_cached(test, bitmap_weight(stay, PAGES));
		KUNIT_EXPECT_FALSE(test, xa_marked(&mapping->i_pages, PAGECACHE_TAG_TOWRITE));
		for (int i = 0; i < PAGES; i++) {
			struct folio *folio = xa_load(&mapping->i_pages, i);

			KUNIT_EXPECT_EQ(test, test_bit(i, stay), !!folio);
			if (folio && test_bit(i, used)) {
				KUNIT_EXPECT_EQ(test, i, folio->index);
				KUNIT_EXPECT_EQ(test, folio_nr_pages(folio) + 1,
						folio_ref_count(folio));
				folio_put(folio);
			}
		}
		truncate_inode_pages(mapping, 0);
		KUNIT_EXPECT_TRUE(test, xa_empty(&mapping->i_pages));
	}
}

/* The last piece of a large folio evicts it, in this gather batch or a later one. */
static void pieces_of_large(struct kunit *test)
{
	struct folio *folio = add_folio(test, 16, 4);

	lru_add_drain_all();
	gather(test, folio, 5);
	gather(test, folio, 1);
	folio_ref_add(folio, 10);
	flush(test, true);
	expect_cached(test, 16);
	KUNIT_EXPECT_EQ(test, 16 + 10, folio_ref_count(folio));

	folio_ref_sub(folio, 10);
	gather(test, folio, 3);
	gather(test, folio, 1);
	gather(test, folio, 6);
	flush(test, true);
	expect_cached(test, 0);
}

static void mapped_twice(struct kunit *test)
{
	for (int i = 0; i < 100; i++) {
		struct folio *folio = add_folio(test, i, 0);

		gather(test, folio, 1);
		gather(test, folio, 1);
	}
	flush(test, true);
	expect_cached(test, 0);
}

/* Anonymous folios are freed as without @evict, and do not delay an eviction. */
static void among_anonymous(struct kunit *test)
{
	struct folio *anon[100];

	for (int i = 0; i < 100; i++) {
		anon[i] = folio_alloc(GFP_KERNEL, i % 3 ? 0 : 2);
		KUNIT_ASSERT_NOT_NULL(test, anon[i]);
		gather(test, anon[i], i % 3 ? 1 : 4);
		gather(test, add_folio(test, i, 0), 1);
	}
	flush(test, true);
	expect_cached(test, 0);
	for (int i = 0; i < 100; i++) {
		KUNIT_EXPECT_EQ(test, 1, folio_ref_count(anon[i]));
		folio_put(anon[i]);
	}
}

/* A driver's page has a ->mapping, is in no page cache, and on no LRU list. */
static void driver_pages(struct kunit *test)
{
	struct folio *page[2];

	for (int i = 0; i < ARRAY_SIZE(page); i++) {
		page[i] = folio_alloc(GFP_KERNEL, 0);
		KUNIT_ASSERT_NOT_NULL(test, page[i]);
		page[i]->mapping = mapping_of(test);
		page[i]->index = i;
		gather(test, add_folio(test, i, 0), 1);
		gather(test, page[i], 1);
	}
	flush(test, true);
	expect_cached(test, 0);
	for (int i = 0; i < ARRAY_SIZE(page); i++) {
		KUNIT_EXPECT_EQ(test, 1, folio_ref_count(page[i]));
		page[i]->mapping = NULL;
		folio_put(page[i]);
	}
}

static void truncated(struct kunit *test)
{
	struct folio *small = add_folio(test, 3, 0), *large = add_folio(test, 4, 2);

	lru_add_drain_all();
	folio_get(small);
	folio_get(large);
	gather(test, add_folio(test, 2, 0), 1);
	gather(test, small, 1);
	gather(test, large, 4);
	gather(test, add_folio(test, 8, 0), 1);
	truncate_inode_pages_range(mapping_of(test), 3 * PAGE_SIZE, 8 * PAGE_SIZE - 1);
	expect_cached(test, 2);
	flush(test, true);
	expect_cached(test, 0);
	KUNIT_EXPECT_EQ(test, 1, folio_ref_count(small));
	KUNIT_EXPECT_EQ(test, 1, folio_ref_count(large));
	folio_put(small);
	folio_put(large);
}

/* Counters whose sum must be as before, whatever was added and removed. */
static const enum node_stat_item counted[] = {
	NR_FILE_PAGES, NR_SHMEM, NR_KERNEL_FILE_PAGES, NR_INACTIVE_FILE, NR_ACTIVE_FILE,
	NR_INACTIVE_ANON, NR_ACTIVE_ANON, NR_UNEVICTABLE,
};

/* Add folios that are counted in different places, in runs of one to four. */
static void add_counted(struct kunit *test, bool shmem, bool take)
{
	for (int i = 0; i < MAX_ENTRIES / 2; i++) {
		struct folio *folio = add_folio(test, 4 * i, i % 8 == 7 ? 2 : 0);
		const long nr = folio_nr_pages(folio);

		lru_add_drain();
		if (i % 16 >= 12) {
			folio_mark_accessed(folio);
			folio_mark_accessed(folio);
			lru_add_drain();
		}
		if (shmem && i % 8 < 4) {
			/* As a shmem folio: on the other LRU lists, too. */
			KUNIT_ASSERT_TRUE(test, folio_isolate_lru(folio));
			folio_set_swapbacked(folio);
			lruvec_stat_mod_folio(folio, NR_SHMEM, nr);
			folio_putback_lru(folio);
			lru_add_drain();
		}
		if (take)
			gather(test, folio, nr);
	}
}

static void counters(struct kunit *test, bool shmem, bool evict)
{
	/* The difference that each CPU may keep to itself, before and after. */
	const long slack = 2 * 125 * num_online_cpus();
	long before[ARRAY_SIZE(counted)];

	lru_add_drain_all();
	for (int i = 0; i < ARRAY_SIZE(counted); i++)
		before[i] = global_node_page_state(counted[i]);
	for (int round = 0; round < 40; round++) {
		add_counted(test, shmem, evict);
		flush(test, true);
		truncate_inode_pages(mapping_of(test), 0);
	}
	expect_cached(test, 0);
	lru_add_drain_all();
	for (int i = 0; i < ARRAY_SIZE(counted); i++)
		KUNIT_EXPECT_LE_MSG(test, abs(global_node_page_state(counted[i]) - before[i]),
				    slack, "counter %d", counted[i]);
}

static void counters_of_eviction(struct kunit *test)
{
	counters(test, false, true);
}

static void counters_of_truncation(struct kunit *test)
{
	/* Needed by no other test: the file of a btrfs tree is counted so. */
	set_bit(AS_KERNEL_FILE, &mapping_of(test)->flags);
	counters(test, true, false);
	clear_bit(AS_KERNEL_FILE, &mapping_of(test)->flags);
}

static void counter_of_evicted_pages(struct kunit *test)
{
	unsigned long before[NR_VM_EVENT_ITEMS], after[NR_VM_EVENT_ITEMS];

	all_vm_events(before);
	gather(test, add_folio(test, 0, 0), 1);
	gather(test, add_folio(test, 4, 2), 4);
	flush(test, true);
	all_vm_events(after);
	KUNIT_EXPECT_EQ(test, 5, after[MRELEASE_EVICT] - before[MRELEASE_EVICT]);
}

/* A reason for a folio to stay cached: how it begins and how it ends. */
struct refusal {
	const char *name;
	void (*begin)(struct kunit *test, struct folio *folio);
	void (*end)(struct kunit *test, struct folio *folio);
	bool all;		/* folios of the mapping stay */
};

static bool keep_private(struct folio *folio, gfp_t gfp)
{
	return false;
}

static bool release_private(struct folio *folio, gfp_t gfp)
{
	if (!folio_test_locked(folio) || folio_test_dirty(folio))
		return false;
	if (folio_test_private(folio))
		folio_detach_private(folio);
	return true;
}

static void ignore_folio(struct folio *folio)
{
}

static const struct address_space_operations plain_aops, keep_aops = {
	.release_folio = keep_private,
}, release_aops = {
	.release_folio = release_private,
}, free_aops = {
	.free_folio = ignore_folio,
};

static void set_dirty(struct kunit *test, struct folio *folio)
{
	folio_set_dirty(folio);
}

static void clear_dirty(struct kunit *test, struct folio *folio)
{
	folio_clear_dirty(folio);
}

static void set_writeback(struct kunit *test, struct folio *folio)
{
	set_bit(PG_writeback, folio_flags(folio, 0));
}

static void clear_writeback(struct kunit *test, struct folio *folio)
{
	clear_bit(PG_writeback, folio_flags(folio, 0));
}

static void lock(struct kunit *test, struct folio *folio)
{
	folio_lock(folio);
}

static void unlock(struct kunit *test, struct folio *folio)
{
	folio_unlock(folio);
}

static void reference(struct kunit *test, struct folio *folio)
{
	folio_get(folio);
}

static void unreference(struct kunit *test, struct folio *folio)
{
	folio_put(folio);
}

static void set_private(struct kunit *test, struct folio *folio)
{
	folio_attach_private(folio, test);
	mapping_of(test)->a_ops = &keep_aops;
}

static void allow_release(struct kunit *test, struct folio *folio)
{
	mapping_of(test)->a_ops = &release_aops;
}

static void set_private_dirty(struct kunit *test, struct folio *folio)
{
	folio_attach_private(folio, test);
	folio_set_dirty(folio);
	mapping_of(test)->a_ops = &release_aops;
}

static void set_private_locked(struct kunit *test, struct folio *folio)
{
	folio_attach_private(folio, test);
	folio_lock(folio);
	mapping_of(test)->a_ops = &release_aops;
}

static void set_private_referenced(struct kunit *test, struct folio *folio)
{
	folio_attach_private(folio, test);
	folio_get(folio);
	mapping_of(test)->a_ops = &release_aops;
}

/* As all files of 9p, afs and cifs are. */
static void set_release_always(struct kunit *test, struct folio *folio)
{
	mapping_set_release_always(mapping_of(test));
	mapping_of(test)->a_ops = &keep_aops;
}

static void set_unevictable(struct kunit *test, struct folio *folio)
{
	mapping_set_unevictable(mapping_of(test));
}

static void clear_unevictable(struct kunit *test, struct folio *folio)
{
	mapping_clear_unevictable(mapping_of(test));
}

static void set_inaccessible(struct kunit *test, struct folio *folio)
{
	set_bit(AS_INACCESSIBLE, &mapping_of(test)->flags);
}

static void clear_inaccessible(struct kunit *test, struct folio *folio)
{
	clear_bit(AS_INACCESSIBLE, &mapping_of(test)->flags);
}

static void set_free_folio(struct kunit *test, struct folio *folio)
{
	mapping_of(test)->a_ops = &free_aops;
}

static void clear_free_folio(struct kunit *test, struct folio *folio)
{
	mapping_of(test)->a_ops = &plain_aops;
}

/* The last reference of a gather releases private data, too. */
static void private_in_pieces(struct kunit *test)
{
	struct folio *large = add_folio(test, 128, 4);

	mapping_of(test)->a_ops = &release_aops;
	for (int i = 0; i < 100; i++) {
		struct folio *folio = add_folio(test, i, 0);

		folio_attach_private(folio, test);
		gather(test, folio, 1);
		gather(test, folio, 1);
	}
	folio_attach_private(large, test);
	gather(test, large, 5);
	gather(test, large, 10);
	gather(test, large, 1);
	flush(test, true);
	expect_cached(test, 0);
}

static const struct refusal refusals[] = {
	{ "dirty", set_dirty, clear_dirty },
	{ "under writeback", set_writeback, clear_writeback },
	{ "locked", lock, unlock },
	{ "referenced", reference, unreference },
	{ "private data", set_private, allow_release },
	{ "private data and dirty", set_private_dirty, clear_dirty },
	{ "private data and locked", set_private_locked, unlock },
	{ "private data and referenced", set_private_referenced, unreference },
	{ "cache of the filesystem", set_release_always, allow_release, true },
	{ "unevictable mapping", set_unevictable, clear_unevictable, true },
	{ "inaccessible mapping", set_inaccessible, clear_inaccessible, true },
	{ "mapping with ->free_folio()", set_free_folio, clear_free_folio, true },
};

KUNIT_ARRAY_PARAM_DESC(refusal, refusals, name);

/* A folio stays cached, its neighbours do not; when the reason ends, nor does it. */
static void refused(struct kunit *test)
{
	const struct refusal *refusal = test->param_value;
	struct folio *folio = add_folio(test, 8, 0), *large = add_folio(test, 16, 2);
	struct folio *before[] = { add_folio(test, 7, 0), add_folio(test, 12, 2) };
	struct folio *after[] = { add_folio(test, 9, 0), add_folio(test, 20, 2) };
	int refs, large_refs;

	/* Move the folios to an LRU list, whose counters must be right. */
	lru_add_drain_all();
	refusal->begin(test, folio);
	refusal->begin(test, large);
	refs = folio_ref_count(folio);
	large_refs = folio_ref_count(large);
	gather(test, before[0], 1);
	gather(test, folio, 1);
	gather(test, after[0], 1);
	gather(test, before[1], 4);
	gather(test, large, 4);
	gather(test, after[1], 4);
	flush(test, true);
	expect_cached(test, refusal->all ? 15 : 5);
	KUNIT_EXPECT_PTR_EQ(test, folio, xa_load(&mapping_of(test)->i_pages, 8));
	KUNIT_EXPECT_PTR_EQ(test, large, xa_load(&mapping_of(test)->i_pages, 16));
	KUNIT_EXPECT_EQ(test, refs, folio_ref_count(folio));
	KUNIT_EXPECT_EQ(test, large_refs, folio_ref_count(large));

	refusal->end(test, folio);
	refusal->end(test, large);
	gather(test, folio, 1);
	gather(test, large, 4);
	if (refusal->all) {
		gather(test, before[0], 1);
		gather(test, before[1], 4);
		gather(test, after[0], 1);
		gather(test, after[1], 4);
	}
	flush(test, true);
	expect_cached(test, 0);
}

static int free_caches_init(struct kunit *test)
{
	struct free_caches *fc = kunit_kzalloc(test, sizeof(*fc), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, fc);
	inode_init_once(&fc->inode);
	/* In use, so that truncation does not add it to the inode LRU list. */
	atomic_set(&fc->inode.i_count, 1);
	fc->inode.i_mapping = &fc->inode.i_data;
	fc->inode.i_data.host = &fc->inode;
	fc->inode.i_data.a_ops = &plain_aops;
	mapping_set_gfp_mask(&fc->inode.i_data, GFP_KERNEL);
	mapping_set_large_folios(&fc->inode.i_data);
	test->priv = fc;

	/* Stay on the CPU whose LRU batches have the folios. */
	return set_cpus_allowed_ptr(current, cpumask_of(raw_smp_processor_id()));
}

static void free_caches_exit(struct kunit *test)
{
	struct free_caches *fc = test->priv;

	if (fc)
		truncate_inode_pages(&fc->inode.i_data, 0);
}

/* Unpacking the initramfs would change the counters. */
static int free_caches_suite_init(struct kunit_suite *suite)
{
	wait_for_initramfs();
	return 0;
}

static struct kunit_case free_caches_cases[] = {
	KUNIT_CASE(small_folios),
	KUNIT_CASE(without_evict),
	KUNIT_CASE(every_nth),
	KUNIT_CASE(descending),
	KUNIT_CASE(large_after_small),
	KUNIT_CASE(mixed_orders),
	KUNIT_CASE(pieces_of_large),
	KUNIT_CASE(mapped_twice),
	KUNIT_CASE(private_in_pieces),
	KUNIT_CASE(among_anonymous),
	KUNIT_CASE(driver_pages),
	KUNIT_CASE(truncated),
	KUNIT_CASE(counters_of_eviction),
	KUNIT_CASE(counters_of_truncation),
	KUNIT_CASE(counter_of_evicted_pages),
	KUNIT_CASE_PARAM(refused, refusal_gen_params),
	{}
};

static struct kunit_suite free_caches_suite = {
	.name = "free_caches",
	.suite_init = free_caches_suite_init,
	.init = free_caches_init,
	.exit = free_caches_exit,
	.test_cases = free_caches_cases,
};

kunit_test_suite(free_caches_suite);

MODULE_DESCRIPTION("KUnit tests for free_pages_and_caches()");
MODULE_LICENSE("GPL");
