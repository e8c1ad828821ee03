/* diff: what differs between two images: the trees, as show prints them, and the pages. */
#include <getopt.h>
#include <string.h>
#include "tools/cr-image/cr_image.h"

enum { PATH_MAX_TEXT = 512, VALUE_MAX_TEXT = 60, RANGES_MAX = 20 };

static int usage(FILE *f)
{
	fputs("usage: cr-image diff [OPTION…] DIR1 DIR2\n\n"
	      "Prints what differs: of the trees, and of the memory of each process and shared "
	      "object. Times and\nnumbers of rounds of the images themselves are not compared.\n\n"
	      "  --pages   the memory alone\n"
	      "  --tree    the trees alone\n"
	      "  --all     every range of pages that differs, not the first 20 of each process\n"
	      "  --quiet   print nothing\n\n"
	      "Exit status: 0 they are the same, 1 they differ, 3 could not be compared.\n",
	      f);
	return f == stdout ? ST_OK : ST_USAGE;
}

struct diff {
	struct view a, b;
	bool no_pages, no_tree, all, quiet;
	uint64_t differences;
};

/* ---- trees ---- */

/* What a member of a list goes by, so that one that was added does not shift all others. */
static const char *key_of_list(const char *name)
{
	static const struct {
		const char *list, *key;
	} keys[] = {{"procs", "pid"},     {"threads", "tid"},      {"vmas", "start"},
		    {"fds", "fd"},        {"sigactions", "signo"}, {"rlimits", "resource"},
		    {"itimers", "clock"}, {"mapped_files", "path"}};

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		if (!strcmp(name, keys[i].list))
			return keys[i].key;
	return NULL;
}

static void value_text(const json_t *j, char buf[VALUE_MAX_TEXT])
{
	_cleanup_free_ char *s = json_dumps(j, JSON_ENCODE_ANY | JSON_COMPACT | JSON_SORT_KEYS);

	snprintf(buf, VALUE_MAX_TEXT, "%s", s ? s : "?");
	if (s && strlen(s) >= VALUE_MAX_TEXT)
		strcpy(buf + VALUE_MAX_TEXT - 4, "…"); /* three bytes and the end */
}

static void say_change(struct diff *d, const char *path, const json_t *a, const json_t *b)
{
	char was[VALUE_MAX_TEXT], is[VALUE_MAX_TEXT];

	d->differences++;
	if (d->quiet)
		return;
	value_text(a ? a : b, was);
	value_text(b, is);
	if (a && b)
		printf("tree%s: %s, then %s\n", path, was, is);
	else
		printf("tree%s: only in the %s: %s\n", path, a ? "first" : "second", was);
}

static void compare(struct diff *d, const char *path, const json_t *a, const json_t *b);

static void compare_objects(struct diff *d, const char *path, const json_t *a, const json_t *b)
{
	const json_t *from[] = {a, b};
	char at[PATH_MAX_TEXT];

	for (size_t i = 0; i < 2; i++)
		for (void *it = json_object_iter((json_t *)from[i]); it;
		     it = json_object_iter_next((json_t *)from[i], it)) {
			const char *key = json_object_iter_key(it);

			if (i && json_object_get(a, key))
				continue; /* compared already */
			snprintf(at, sizeof(at), "%s.%s", path, key);
			compare(d, at, json_object_get(a, key), json_object_get(b, key));
		}
}

static const json_t *find(const json_t *list, const char *key, const json_t *value)
{
	for (size_t i = 0; i < json_array_size(list); i++)
		if (json_equal(json_object_get(json_array_get(list, i), key), value))
			return json_array_get(list, i);
	return NULL;
}

static void compare_by_key(struct diff *d, const char *path, const char *key, const json_t *a,
			   const json_t *b)
{
	char at[PATH_MAX_TEXT], text[VALUE_MAX_TEXT];

	for (size_t i = 0; i < json_array_size(a); i++) {
		const json_t *row = json_array_get(a, i), *value = json_object_get(row, key);

		value_text(value, text);
		snprintf(at, sizeof(at), "%s[%s=%s]", path, key, text);
		compare(d, at, row, find(b, key, value));
	}
	for (size_t i = 0; i < json_array_size(b); i++) {
		const json_t *row = json_array_get(b, i), *value = json_object_get(row, key);

		value_text(value, text);
		snprintf(at, sizeof(at), "%s[%s=%s]", path, key, text);
		if (!find(a, key, value))
			compare(d, at, NULL, row);
	}
}

static void compare_lists(struct diff *d, const char *path, const json_t *a, const json_t *b)
{
	const char *dot = strrchr(path, '.'), *key = dot ? key_of_list(dot + 1) : NULL;
	size_t n = json_array_size(a), m = json_array_size(b);
	char at[PATH_MAX_TEXT];

	if (key) {
		compare_by_key(d, path, key, a, b);
		return;
	}
	for (size_t i = 0; i < n || i < m; i++) {
		snprintf(at, sizeof(at), "%s[%zu]", path, i);
		compare(d, at, json_array_get(a, i), json_array_get(b, i));
	}
}

static void compare(struct diff *d, const char *path, const json_t *a, const json_t *b)
{
	if (a && b && json_equal(a, b))
		return;
	if (json_is_object(a) && json_is_object(b))
		compare_objects(d, path, a, b);
	else if (json_is_array(a) && json_is_array(b))
		compare_lists(d, path, a, b);
	else
		say_change(d, path, a, b);
}

static int compare_trees(struct diff *d, struct cr_err *err)
{
	_cleanup_(json_freep) json_t *a = NULL, *b = NULL;
	int r = json_of_tree(d->a.im, false, &a, err);

	if (!r)
		r = json_of_tree(d->b.im, false, &b, err);
	if (r)
		return r;
	rows_of_columns(a);
	rows_of_columns(b);
	compare(d, "", a, b);
	return 0;
}

/* ---- pages ---- */

enum page_state { PAGE_NONE, PAGE_ZEROS, PAGE_THERE };
enum page_change { SAME, OTHER, GONE, NEW };

struct page_diff {
	struct diff *d;
	const char *whose;
	const struct image_pages *a, *b; /* NULL: not in that image */
	uint64_t count[4];
	enum page_change run; /* pages from run_start to run_end have changed so */
	uint64_t run_start, run_end;
	unsigned int ranges;
};

static enum page_state state_at(const struct image_chunk *c, unsigned int i)
{
	if (c && image_bit(c->data, i))
		return PAGE_THERE;
	return c && image_bit(c->zero, i) ? PAGE_ZEROS : PAGE_NONE;
}

static int compare_bytes(const struct page_diff *pd, uint64_t va, bool *same, struct cr_err *err)
{
	uint8_t a[CR_PAGE_SIZE], b[CR_PAGE_SIZE];
	int r = image_pages_read(pd->a, va, a, NULL, err);

	if (!r)
		r = image_pages_read(pd->b, va, b, NULL, err);
	*same = !r && !memcmp(a, b, sizeof(a));
	return r;
}

static int change_at(const struct page_diff *pd, const struct image_chunk *a,
		     const struct image_chunk *b, unsigned int i, enum page_change *ret,
		     struct cr_err *err)
{
	enum page_state was = state_at(a, i), is = state_at(b, i);
	bool same = was == is;
	int r = 0;

	/* the hash of a page depends on the number of its target */
	if (was == PAGE_THERE && is == PAGE_THERE && pd->a->target == pd->b->target)
		same = XXH128_isEqual(a->hash[i], b->hash[i]);
	else if (was == PAGE_THERE && is == PAGE_THERE)
		r = compare_bytes(pd, a->va + i * CR_PAGE_SIZE, &same, err);
	*ret = same ? SAME : was == PAGE_NONE ? NEW : is == PAGE_NONE ? GONE : OTHER;
	return r;
}

static void end_run(struct page_diff *pd)
{
	static const char *const words[] = {
	    [OTHER] = "other bytes", [GONE] = "only in the first", [NEW] = "only in the second"};

	if (pd->run == SAME)
		return;
	if (!pd->d->quiet && (pd->d->all || pd->ranges < RANGES_MAX))
		printf("%s: %#llx-%#llx: %s\n", pd->whose, (unsigned long long)pd->run_start,
		       (unsigned long long)pd->run_end, words[pd->run]);
	pd->ranges++;
	pd->run = SAME;
}

static void add_page(struct page_diff *pd, uint64_t va, enum page_change c)
{
	pd->count[c]++;
	if (pd->run != c || pd->run_end != va)
		end_run(pd);
	if (c == SAME)
		return;
	if (pd->run == SAME)
		pd->run_start = va;
	pd->run = c;
	pd->run_end = va + CR_PAGE_SIZE;
}

static int compare_chunks(struct page_diff *pd, const struct image_chunk *a,
			  const struct image_chunk *b, struct cr_err *err)
{
	uint64_t va = a ? a->va : b->va;

	for (unsigned int i = 0; i < IMAGE_CHUNK_PAGES; i++) {
		enum page_change c;
		int r = change_at(pd, a, b, i, &c, err);

		if (r)
			return r;
		add_page(pd, va + i * CR_PAGE_SIZE, c);
	}
	return 0;
}

/* Both lists of chunks ascend. */
static int compare_pages(struct page_diff *pd, struct cr_err *err)
{
	size_t i = 0, k = 0, n = pd->a ? pd->a->chunks.n : 0, m = pd->b ? pd->b->chunks.n : 0;
	int r = 0;

	while (!r && (i < n || k < m)) {
		const struct image_chunk *a = i < n ? pd->a->chunks.v[i] : NULL;
		const struct image_chunk *b = k < m ? pd->b->chunks.v[k] : NULL;

		if (a && b && a->va != b->va)
			*(a->va < b->va ? &b : &a) = NULL;
		i += !!a;
		k += !!b;
		r = compare_chunks(pd, a, b, err);
	}
	end_run(pd);
	return r;
}

static int compare_target(struct diff *d, const struct image_target *a,
			  const struct image_target *b, struct cr_err *err)
{
	char whose[TARGET_TEXT];
	struct page_diff pd = {.d = d, .a = a ? &a->pages : NULL, .b = b ? &b->pages : NULL};

	pd.whose = target_text(a ? a : b, a ? d->a.tree : d->b.tree, whose);
	int r = compare_pages(&pd, err);
	uint64_t n = pd.count[OTHER] + pd.count[GONE] + pd.count[NEW];

	d->differences += n;
	if (!r && n && !d->quiet)
		printf("%s: %llu pages have other bytes, %llu are only in the first, %llu only in "
		       "the second\n",
		       whose, (unsigned long long)pd.count[OTHER],
		       (unsigned long long)pd.count[GONE], (unsigned long long)pd.count[NEW]);
	return r;
}

/* A shared object has no name but its inode, which is another for a copy of the same tasks: then
 * the one in the same place of the tree is meant. */
static const struct image_target *counterpart(const struct view *from, const struct view *to,
					      const struct image_target *it)
{
	const struct image_target *same = image_find(to->im, it->pid, it->ino, it->dev);

	for (size_t i = 0; !same && !it->pid && i < from->tree->n_objects; i++)
		if (from->tree->objects[i].ino == it->ino &&
		    from->tree->objects[i].dev == it->dev && i < to->tree->n_objects)
			same = image_find(to->im, 0, to->tree->objects[i].ino,
					  to->tree->objects[i].dev);
	return same;
}

static int compare_memory(struct diff *d, struct cr_err *err)
{
	int r = 0;

	vec_foreach (it, &d->a.im->targets)
		if (*it && !r)
			r = compare_target(d, *it, counterpart(&d->a, &d->b, *it), err);
	vec_foreach (it, &d->b.im->targets)
		if (*it && !r && !counterpart(&d->b, &d->a, *it))
			r = compare_target(d, NULL, *it, err);
	return r;
}

static int run(struct diff *d, char **paths, struct cr_err *err)
{
	int r = view_open(&d->a, paths[0], err);

	if (!r)
		r = view_open(&d->b, paths[1], err);
	if (!r && !d->no_tree)
		r = compare_trees(d, err);
	if (!r && !d->no_pages)
		r = compare_memory(d, err);
	return r;
}

int verb_diff(int argc, char **argv)
{
	static const struct option options[] = {
	    {"pages", no_argument, NULL, 'p'}, {"tree", no_argument, NULL, 't'},
	    {"all", no_argument, NULL, 'a'},   {"quiet", no_argument, NULL, 'q'},
	    {"help", no_argument, NULL, 'h'},  {0}};
	struct diff d = {0};
	struct cr_err err = {0};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'p')
			d.no_tree = true;
		else if (c == 't')
			d.no_pages = true;
		else if (c == 'a')
			d.all = true;
		else if (c == 'q')
			d.quiet = true;
		else
			return usage(c == 'h' ? stdout : stderr);
	}
	if (argc - optind != 2 || (d.no_tree && d.no_pages))
		return usage(stderr);
	int status = run(&d, argv + optind, &err) ? trouble(&err)
		     : d.differences              ? ST_DIFFERENT
						  : ST_OK;
	view_done(&d.a);
	view_done(&d.b);
	return status;
}
