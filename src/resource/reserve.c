/* What is to stand at a path from the decision on, made in a directory of its own beside it:
 * renamed over the path at launch; undone, the directory is removed, and the path is as it was. */
#include "resource/file_kind.h"

#include <ftw.h>
#include <stdio.h>
#include <string.h>

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	remove(path);
	return 0;
}

void reserve_remove(const char *dir)
{
	nftw(dir, remove_one, 4, FTW_DEPTH | FTW_PHYS);
}

int reserve_dir(struct held *h, const char *path, struct cr_err *err)
{
	char dir[PATH_MAX];
	const char *slash = strrchr(path, '/');
	int n =
	    snprintf(dir, sizeof(dir), "%.*s/.cr-XXXXXX", slash ? (int)(slash - path) : 0, path);

	if (!slash || n >= (int)sizeof(dir) || !mkdtemp(dir))
		return cr_err_sys(err, "a directory beside %s", path);
	h->reserved_dir = strdup(dir);
	if (h->reserved_dir && asprintf(&h->reserved_path, "%s/new", dir) >= 0)
		return 0;
	h->reserved_path = NULL;
	rmdir(dir);
	return cr_err_oom(err);
}

void reserve_drop(struct held *h)
{
	if (h->reserved_dir && !h->reserved_stays)
		reserve_remove(h->reserved_dir);
	free(h->reserved_dir);
	free(h->reserved_path);
	h->reserved_dir = h->reserved_path = NULL;
}

int reserve_launch(struct held *h, const struct file *f, struct cr_err *err)
{
	if (!h->reserved_path)
		return 0; /* none, or done */
	if (rename(h->reserved_path, f->path))
		return cr_err_sys(err, "putting %s in its place", f->path);
	free(h->reserved_path);
	h->reserved_path = NULL;
	return 0;
}

bool reserve_check(const struct file_check *k, const struct file *f, const char *what)
{
	char dir[PATH_MAX];
	struct stat st;

	if (f->carried)
		return true;
	snprintf(dir, sizeof(dir), "%s", f->path);
	char *slash = strrchr(dir, '/');
	if (slash)
		slash[slash == dir] = '\0';
	bool there = !stat(dir, &st);
	if (there && S_ISDIR(st.st_mode) && !access(dir, W_OK))
		return true;
	file_check_refuse(k, "%s %.150s: its directory %s", what, f->path,
			  there ? "cannot be written here"
				: "is missing here; --copy-files makes it");
	return false;
}
