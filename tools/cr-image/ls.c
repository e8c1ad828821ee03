/* ls: the records of an image, or the images of a directory. */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include "migrate/units.h"
#include "tools/cr-image/cr_image.h"

static int usage(FILE *f)
{
	fputs("usage: cr-image ls DIR…\n\n"
	      "Of an image: its files, with their sizes, whose pages they have, how many, and what "
	      "they\ntake on disk. Of a directory with images: one line for each.\n\n"
	      "States: receiving (a round is under way, or broke off: it begins anew), partial "
	      "(rounds of a\npre-copy), prepared (complete, but the source did not confirm), "
	      "sealed (complete).\n",
	      f);
	return f == stdout ? ST_OK : ST_USAGE;
}

static const char *time_text(uint64_t ns, char buf[32])
{
	time_t t = (time_t)(ns / 1000000000);
	struct tm tm;

	if (!gmtime_r(&t, &tm) || !strftime(buf, 32, "%F %T", &tm))
		snprintf(buf, 32, "?");
	return buf;
}

static bool has_manifest(int dirfd, const char *dir)
{
	char path[512];
	struct stat sb;

	snprintf(path, sizeof(path), "%s/manifest", dir);
	return !fstatat(dirfd, path, &sb, AT_SYMLINK_NOFOLLOW);
}

/* ---- one image ---- */

static uint64_t disk_bytes(const struct image *im, const char *file, uint64_t *bytes)
{
	struct stat sb = {0};

	if (fstatat(im->dirfd, file, &sb, AT_SYMLINK_NOFOLLOW))
		return 0;
	*bytes = (uint64_t)sb.st_size;
	return (uint64_t)sb.st_blocks * 512;
}

static uint64_t print_file(const struct image *im, const char *file, const char *more)
{
	char text[UNITS_TEXT], disk_text[UNITS_TEXT];
	uint64_t bytes = 0, disk = disk_bytes(im, file, &bytes);

	printf("%-12s %10s %10s  %s\n", file, units_format_bytes(bytes, text),
	       units_format_bytes(disk, disk_text), more);
	return disk;
}

static uint64_t print_target(const struct image *im, const struct image_target *it,
			     const struct tree *t)
{
	char file[32], of[TARGET_TEXT], more[TARGET_TEXT + 80];
	uint64_t disk;

	snprintf(more, sizeof(more), "%llu pages, %llu of zeros: %s",
		 (unsigned long long)it->data_pages, (unsigned long long)it->zero_pages,
		 target_text(it, t, of));
	snprintf(file, sizeof(file), "pages-%u", it->pages.target);
	disk = print_file(im, file, more);
	snprintf(file, sizeof(file), "index-%u", it->pages.target);
	return disk + print_file(im, file, "");
}

static void print_head(const char *path, const struct image *im)
{
	char created[32], saved[32];

	printf("image %s (%s): %s, version %d, %u round%s, of %s (Linux %s), begun %s, saved %s "
	       "UTC\n",
	       path, im->name, image_state_name(im->state), IMAGE_VERSION, im->rounds,
	       im->rounds == 1 ? "" : "s", *im->host ? im->host : "?",
	       *im->kernel ? im->kernel : "?", time_text(im->created_ns, created),
	       time_text(im->saved_ns, saved));
}

static int ls_image(const char *path)
{
	_cleanup_(view_donep) struct view v;
	struct cr_err err = {0};
	char text[UNITS_TEXT];
	int r = view_open(&v, path, &err);

	if (r && r != -EINVAL && r != -ENODATA)
		return trouble(&err);
	if (r && !v.im)
		return trouble(&err);
	const struct image *im = v.im;
	print_head(path, im);
	printf("%-12s %10s %10s\n", "FILE", "SIZE", "ON DISK");
	uint64_t disk = print_file(im, "manifest", "");
	if (im->tree_file_bytes) {
		char more[80] = "";

		if (v.tree)
			snprintf(more, sizeof(more), "%zu process%s, %zu open files",
				 v.tree->n_procs, v.tree->n_procs == 1 ? "" : "es",
				 v.tree->n_files);
		disk += print_file(im, "tree", more);
	}
	vec_foreach (it, &im->targets)
		if (*it)
			disk += print_target(im, *it, v.tree);
	printf("%-12s %10s %10s  %llu pages\n", "all", "", units_format_bytes(disk, text),
	       (unsigned long long)image_data_pages(im));
	return ST_OK;
}

/* ---- a directory of them ---- */

static int compare_names(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

static int print_line(const char *dir, const char *name)
{
	_cleanup_(image_freep) struct image *im = NULL;
	char path[512], data[UNITS_TEXT], saved[32];
	struct cr_err err = {0};
	uint64_t pages = 0;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	if (image_open_parts(&im, path, &err)) {
		printf("%-24s %s\n", name,
		       err.code == EBUSY ? "in use: a migration writes to it" : err.msg);
		return err.code == EBUSY ? ST_OK : ST_TROUBLE;
	}
	vec_foreach (it, &im->targets)
		pages += *it ? (*it)->data_pages : 0;
	printf("%-24s %-9s %6u %10s  %-16s %s\n", name, image_state_name(im->state), im->rounds,
	       units_format_bytes(pages * CR_PAGE_SIZE, data), im->host,
	       time_text(im->saved_ns, saved));
	return ST_OK;
}

static int ls_directory(const char *path)
{
	struct dirent **list;
	struct cr_err err = {0};
	int status = ST_OK, n = scandir(path, &list, NULL, compare_names);
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (n < 0 || fd < 0) {
		cr_err_sys(&err, "%s", path);
		return trouble(&err);
	}
	printf("%-24s %-9s %6s %10s  %-16s %s\n", "IMAGE", "STATE", "ROUNDS", "PAGES", "HOST",
	       "SAVED (UTC)");
	for (int i = 0; i < n; i++) {
		if (image_name_ok(list[i]->d_name) && has_manifest(fd, list[i]->d_name) &&
		    print_line(path, list[i]->d_name))
			status = ST_TROUBLE;
		free(list[i]);
	}
	free(list);
	return status;
}

static int ls(const char *path)
{
	return has_manifest(AT_FDCWD, path) ? ls_image(path) : ls_directory(path);
}

int verb_ls(int argc, char **argv)
{
	return each_directory(argc, argv, usage, ls);
}
