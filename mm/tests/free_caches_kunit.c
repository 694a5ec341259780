// SPDX-License-Identifier: GPL-2.0
/*
 * free_pages_and_caches(): which folios it evicts, and that it drops as many
 * references as it was given, no more and no less.
 *
 * The files here have a page cache and nothing else. A folio that should stay
 * is looked at when its only references are those that the test knows.
 */
#include <kunit/test.h>
#include <linux/cpumask.h>
#include <linux/folio_batch.h>
#include <linux/fs.h>
#include <linux/initrd.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/prandom.h>
#include <linux/sched.h>
#include <linux/smp.h>
#include <linux/swap.h>
#include <linux/vmstat.h>

#include "../internal.h"

#define MAX_ENTRIES	512	/* as many as a gather's batch may have */

/* A file, and a batch of a gather. */
struct free_caches {
	struct inode inode;
	struct encoded_page *pages[MAX_ENTRIES];
	int nr;
};

static struct address_space *mapping_of(struct kunit *test)
{
	return &((struct free_caches *)test->priv)->inode.i_data;
}

/* A clean folio of the file, with no other reference than the page cache's. */
static struct folio *add_folio(struct kunit *test, pgoff_t index, unsigned int order)
{
	struct folio *folio = filemap_alloc_folio(GFP_KERNEL, order, NULL);

	KUNIT_ASSERT_NOT_NULL(test, folio);
	KUNIT_ASSERT_EQ(test, 0, filemap_add_folio(mapping_of(test), folio, index,
						   GFP_KERNEL));
	folio_mark_uptodate(folio);
	folio_unlock(folio);
	folio_put(folio);

	return folio;
}

/* What unmapping @nr pages of a folio puts into a gather. */
static void gather(struct kunit *test, struct folio *folio, unsigned int nr)
{
	struct free_caches *fc = test->priv;

	folio_ref_add(folio, nr);
	if (nr == 1) {
		fc->pages[fc->nr++] = encode_page(&folio->page, 0);
		return;
	}
	fc->pages[fc->nr++] = encode_page(&folio->page,
					  ENCODED_PAGE_BIT_NR_PAGES_NEXT);
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

static void small_folios(struct kunit *test)
{
	/* From the middle of a node to the middle of another one. */
	for (int i = 0; i < MAX_ENTRIES; i++)
		gather(test, add_folio(test, 17 + i, 0), 1);
	flush(test, true);
	expect_cached(test, 0);
	KUNIT_EXPECT_TRUE(test, xa_empty(&mapping_of(test)->i_pages));
}

static void not_asked_for(struct kunit *test)
{
	struct folio *folio = add_folio(test, 0, 0);

	lru_add_drain_all();
	gather(test, folio, 1);
	flush(test, false);
	expect_cached(test, 1);
	KUNIT_EXPECT_EQ(test, 1, folio_ref_count(folio));
}

/* Neighbours that are not in the batch stay, whatever their place in a node. */
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

static void backwards(struct kunit *test)
{
	for (int i = 199; i >= 0; i--)
		gather(test, add_folio(test, i, 0), 1);
	flush(test, true);
	expect_cached(test, 0);
}

/* A pair, at each place of a batch, where one ends and another one begins. */
static void pairs(struct kunit *test)
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
 * Folios of all orders next to each other, below and above the size of a node.
 * Some are not in the batch, some are in use, and some have a mark that a
 * writeback has left there.
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
		KUNIT_EXPECT_FALSE(test, xa_marked(&mapping->i_pages,
						   PAGECACHE_TAG_TOWRITE));
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

/* The last piece of a large folio evicts it, in this batch or in a later one. */
static void pieces(struct kunit *test)
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

/* Folios that have no page cache are freed as ever, wherever they stand. */
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

/* The batch may be all that is left of it. */
static void truncated(struct kunit *test)
{
	struct folio *folio = add_folio(test, 3, 0);

	lru_add_drain_all();
	folio_get(folio);
	gather(test, add_folio(test, 2, 0), 1);
	gather(test, folio, 1);
	gather(test, add_folio(test, 4, 0), 1);
	truncate_inode_pages_range(mapping_of(test), 3 * PAGE_SIZE, 4 * PAGE_SIZE - 1);
	flush(test, true);
	expect_cached(test, 0);
	KUNIT_EXPECT_EQ(test, 1, folio_ref_count(folio));
	folio_put(folio);
}

static long lru_pages(void)
{
	long pages = 0;

	lru_add_drain_all();
	for (enum lru_list lru = LRU_INACTIVE_FILE; lru <= LRU_ACTIVE_FILE; lru++)
		pages += global_node_page_state(NR_LRU_BASE + lru);

	return pages;
}

/* Each CPU may keep a difference of up to 125 for itself. */
static void counters(struct kunit *test)
{
	const long slack = 2 * 125 * num_online_cpus();
	long cached = global_node_page_state(NR_FILE_PAGES);
	long lru = lru_pages();

	for (int round = 0; round < 20; round++) {
		for (int i = 0; i < MAX_ENTRIES / 4; i++)
			gather(test, add_folio(test, 1024 + 4 * i, 2), 4);
		for (int i = 0; i < MAX_ENTRIES / 2; i++) {
			struct folio *folio = add_folio(test, i, 0);

			/* The second time makes it active. */
			if (i % 5 == 0) {
				folio_mark_accessed(folio);
				folio_mark_accessed(folio);
			}
			gather(test, folio, 1);
		}
		flush(test, true);
	}
	expect_cached(test, 0);
	KUNIT_EXPECT_LE(test, abs(global_node_page_state(NR_FILE_PAGES) - cached), slack);
	KUNIT_EXPECT_LE(test, abs(lru_pages() - lru), slack);
}

/*
 * What must stay: how it comes to that, and how it is undone.
 */
struct refusal {
	const char *name;
	void (*begin)(struct kunit *test, struct folio *folio);
	void (*end)(struct kunit *test, struct folio *folio);
	bool all;		/* of the mapping's folios stay */
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
	set_bit(PG_writeback, &folio->flags.f);
}

static void clear_writeback(struct kunit *test, struct folio *folio)
{
	clear_bit(PG_writeback, &folio->flags.f);
}

static void lock(struct kunit *test, struct folio *folio)
{
	folio_lock(folio);
}

static void unlock(struct kunit *test, struct folio *folio)
{
	folio_unlock(folio);
}

static void pin(struct kunit *test, struct folio *folio)
{
	folio_get(folio);
}

static void unpin(struct kunit *test, struct folio *folio)
{
	folio_put(folio);
}

static bool keep_private(struct folio *folio, gfp_t gfp)
{
	return false;
}

static bool release_private(struct folio *folio, gfp_t gfp)
{
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

static void set_private(struct kunit *test, struct folio *folio)
{
	folio_attach_private(folio, test);
	mapping_of(test)->a_ops = &keep_aops;
}

static void allow_release(struct kunit *test, struct folio *folio)
{
	mapping_of(test)->a_ops = &release_aops;
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

static void set_release_always(struct kunit *test, struct folio *folio)
{
	mapping_set_release_always(mapping_of(test));
}

static void clear_release_always(struct kunit *test, struct folio *folio)
{
	mapping_clear_release_always(mapping_of(test));
}

static void set_free_folio(struct kunit *test, struct folio *folio)
{
	mapping_of(test)->a_ops = &free_aops;
}

static void clear_free_folio(struct kunit *test, struct folio *folio)
{
	mapping_of(test)->a_ops = &plain_aops;
}

/* The last reference to go takes private data along, in whatever pieces. */
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
	{ "referenced", pin, unpin },
	{ "private data that has to stay", set_private, allow_release },
	{ "unevictable mapping", set_unevictable, clear_unevictable, true },
	{ "inaccessible mapping", set_inaccessible, clear_inaccessible, true },
	{ "mapping with a cache of its own", set_release_always, clear_release_always, true },
	{ "mapping that frees folios itself", set_free_folio, clear_free_folio, true },
};

KUNIT_ARRAY_PARAM_DESC(refusal, refusals, name);

/* It stays, its neighbours go, and later it goes like any other. */
static void refused(struct kunit *test)
{
	const struct refusal *refusal = test->param_value;
	struct folio *folio = add_folio(test, 8, 0), *large = add_folio(test, 16, 2);
	struct folio *before[] = { add_folio(test, 7, 0), add_folio(test, 12, 2) };
	struct folio *after[] = { add_folio(test, 9, 0), add_folio(test, 20, 2) };
	int refs, large_refs;

	/* On an LRU list, whose counters have to come out right. */
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
	/* In use, or truncation would look for its superblock. */
	atomic_set(&fc->inode.i_count, 1);
	fc->inode.i_mapping = &fc->inode.i_data;
	fc->inode.i_data.host = &fc->inode;
	fc->inode.i_data.a_ops = &plain_aops;
	mapping_set_gfp_mask(&fc->inode.i_data, GFP_KERNEL);
	mapping_set_large_folios(&fc->inode.i_data);
	test->priv = fc;

	/* What is in this CPU's batches stays in this CPU's batches. */
	return set_cpus_allowed_ptr(current, cpumask_of(raw_smp_processor_id()));
}

static void free_caches_exit(struct kunit *test)
{
	struct free_caches *fc = test->priv;

	if (fc)
		truncate_inode_pages(&fc->inode.i_data, 0);
}

/* Nobody else is to count page cache, or to drain batches. */
static int free_caches_suite_init(struct kunit_suite *suite)
{
	wait_for_initramfs();
	return 0;
}

static struct kunit_case free_caches_cases[] = {
	KUNIT_CASE(small_folios),
	KUNIT_CASE(not_asked_for),
	KUNIT_CASE(every_nth),
	KUNIT_CASE(backwards),
	KUNIT_CASE(pairs),
	KUNIT_CASE(mixed_orders),
	KUNIT_CASE(pieces),
	KUNIT_CASE(mapped_twice),
	KUNIT_CASE(private_in_pieces),
	KUNIT_CASE(among_anonymous),
	KUNIT_CASE(truncated),
	KUNIT_CASE(counters),
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
