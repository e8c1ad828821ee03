/* verify: every file of an image against its digest, every page against its hash, and all of them
 * against each other. Goes on after what is wrong: all of it is said. */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include "migrate/units.h"
#include "model/layout.h"
#include "tools/cr-image/cr_image.h"
#include "wire/tree_codec.h"

enum { SAID_MAX = 100 }; /* of one file; then how many more there are */

static int usage(FILE *f)
{
	fputs("usage: cr-image verify DIR…\n\n"
	      "Checks all that an image has: the digests of its files, the hash of every page, and "
	      "that the\nmanifest, the tree and the pages fit together. Says of each thing that is "
	      "wrong in which file\nand where it is, what is there and what belongs there.\n\n"
	      "Exit status: 0 all is well, 1 damaged, 3 could not be checked (also: of a newer "
	      "version).\n",
	      f);
	return f == stdout ? ST_OK : ST_USAGE;
}

struct check {
	const char *path;
	struct image *im;
	struct tree *tree; /* NULL: none, or not readable */
	uint64_t wrong, said, pages, files;
	int status; /* ST_TROUBLE: something could not be checked */
};

static void say(struct check *k, const struct cr_err *err)
{
	k->wrong++;
	if (k->said++ < SAID_MAX)
		printf("%s: %s\n", k->path, err->msg);
}

static void wrong(struct check *k, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void wrong(struct check *k, const char *fmt, ...)
{
	struct cr_err err = {0};
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(err.msg, sizeof(err.msg), fmt, ap);
	va_end(ap);
	say(k, &err);
}

/* What could not be read is something else than what is damaged. */
static void failed(struct check *k, const struct cr_err *err)
{
	if (err->code == EBADMSG || err->code == ENOENT) {
		say(k, err);
		return;
	}
	fprintf(stderr, "cr-image: %s: %s\n", k->path, err->msg);
	k->status = ST_TROUBLE;
}

/* ---- the tree ---- */

static void check_tree(struct check *k)
{
	struct cr_err err = {0};

	if (!k->im->tree_file_bytes) {
		if (k->im->state >= IMAGE_PREPARED)
			wrong(k, "manifest: says %s, but tells of no tree",
			      image_state_name(k->im->state));
		return;
	}
	k->files++;
	if (image_load_tree(k->im, &err)) {
		failed(k, &err);
		return;
	}
	if (tree_decode(k->im->tree, k->im->tree_len, &k->tree, &err))
		wrong(k, "tree: %s", err.msg);
}

static void check_targets_of_tree(struct check *k)
{
	const struct tree *t = k->tree;

	for (size_t i = 0; i < t->n_procs; i++)
		if (!t->procs[i].zombie && !image_find(k->im, t->procs[i].pid, 0, 0))
			wrong(k, "manifest: tells of no pages of process %d, which is in the tree",
			      t->procs[i].pid);
	for (size_t i = 0; i < t->n_objects; i++)
		if (!image_find(k->im, 0, t->objects[i].ino, t->objects[i].dev))
			wrong(k,
			      "manifest: tells of no pages of inode %llu, object %zu of the tree",
			      (unsigned long long)t->objects[i].ino, i);
}

/* ---- pages ---- */

/* A mapping of the tree has it, or its object is as large. */
static bool belongs(const struct check *k, const struct image_target *it, uint64_t va)
{
	const struct tree *t = k->tree;

	if (it->pid) {
		const struct process *p = tree_find_process(t, it->pid);
		const struct vma *v = p ? layout_find(p->mm.vmas, p->mm.n_vmas, va) : NULL;

		return v && vma_is_copied(v);
	}
	for (size_t i = 0; i < t->n_objects; i++)
		if (t->objects[i].ino == it->ino && t->objects[i].dev == it->dev)
			return va < t->objects[i].size;
	return false;
}

static void check_page(struct check *k, const struct image_target *it, uint64_t va)
{
	uint8_t page[CR_PAGE_SIZE];
	struct cr_err err = {0};
	bool there;

	if (image_pages_read(&it->pages, va, page, &there, &err))
		failed(k, &err);
	if (!there)
		return;
	k->pages++;
	if (k->tree && !belongs(k, it, va))
		wrong(k, "index-%u: has a page of address %#llx, where the tree has no memory",
		      it->pages.target, (unsigned long long)va);
}

static void check_target(struct check *k, struct image_target *it)
{
	struct cr_err err = {0};

	k->said = 0;
	k->files += 2;
	if (image_load_target(k->im, it, &err)) {
		failed(k, &err);
		return;
	}
	uint64_t before = k->wrong;
	vec_foreach (c, &it->pages.chunks)
		for (unsigned int i = 0; i < IMAGE_CHUNK_PAGES; i++)
			check_page(k, it, (*c)->va + i * CR_PAGE_SIZE);
	if (k->wrong - before > SAID_MAX)
		printf("%s: pages-%u: and %llu more\n", k->path, it->pages.target,
		       (unsigned long long)(k->wrong - before - SAID_MAX));
}

/* ---- what should not be there ---- */

static bool is_known(const struct check *k, const char *name)
{
	unsigned int n;
	int end = 0;

	if (!strcmp(name, "manifest") || (!strcmp(name, "tree") && k->im->tree_file_bytes))
		return true;
	return (sscanf(name, "pages-%u%n", &n, &end) == 1 ||
		sscanf(name, "index-%u%n", &n, &end) == 1) &&
	       !name[end] && image_target(k->im, n);
}

static void check_strays(struct check *k)
{
	int fd = openat(k->im->dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_dir_ DIR *d = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *e;

	while (d && (e = readdir(d)))
		if (e->d_name[0] != '.' && !is_known(k, e->d_name))
			printf("%s: %s: is not of this image (ignored)\n", k->path, e->d_name);
	if (!d)
		close_fdp(&fd);
}

/* ---- */

static void check_rest(struct check *k)
{
	if (k->im->state == IMAGE_RECEIVING) {
		printf("%s: left while it was received: nobody knows what its pages are\n",
		       k->path);
		return;
	}
	check_tree(k);
	if (k->tree)
		check_targets_of_tree(k);
	vec_foreach (it, &k->im->targets)
		if (*it)
			check_target(k, *it);
	check_strays(k);
}

static int verify(const char *path)
{
	struct check k = {.path = path, .files = 1};
	struct cr_err err = {0};
	char text[UNITS_TEXT];

	if (image_open_parts(&k.im, path, &err)) {
		if (err.code != EBADMSG)
			return trouble(&err);
		puts(err.msg); /* begins with the path */
		return ST_DIFFERENT;
	}
	check_rest(&k);
	if (k.wrong)
		printf("%s: %llu thing%s wrong\n", path, (unsigned long long)k.wrong,
		       k.wrong == 1 ? " is" : "s are");
	else if (!k.status)
		printf("%s: %s, all is well: %llu files, %llu pages (%s)\n", path,
		       image_state_name(k.im->state), (unsigned long long)k.files,
		       (unsigned long long)k.pages,
		       units_format_bytes(image_data_pages(k.im) * CR_PAGE_SIZE, text));
	tree_free(k.tree);
	image_free(k.im);
	return k.status ? k.status : k.wrong ? ST_DIFFERENT : ST_OK;
}

int verb_verify(int argc, char **argv)
{
	return each_directory(argc, argv, usage, verify);
}
