/* The character devices that have no state: null, zero, full, random, urandom. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <string.h>
#include <sys/sysmacros.h>

enum { MEM_MAJOR = 1 }; /* Documentation/admin-guide/devices.txt */

static bool stateless(dev_t rdev)
{
	static const unsigned int minors[] = {3, 5, 7, 8, 9};

	for (size_t i = 0; i < ARRAY_SIZE(minors); i++)
		if (rdev == makedev(MEM_MAJOR, minors[i]))
			return true;
	return false;
}

static bool match(const struct fd_probe *p)
{
	return S_ISCHR(p->st.st_mode) && stateless(p->st.st_rdev);
}

static int capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		   struct cr_err *err)
{
	if (!p->link_leads_here) {
		files_refuse(x, p->pid, p->fd, "%.180s: the path does not lead to that device",
			     p->link);
		return 0;
	}
	f->kind = FILE_CHARDEV;
	f->rdev = p->st.st_rdev;
	f->path = arena_strdup(x->c->tree->arena, p->link);
	return f->path ? 0 : cr_err_oom(err);
}

static void check(const struct file_check *k, const struct file *f)
{
	struct stat st;

	if (stat(f->path, &st))
		file_check_refuse(k, "%.180s: %s here", f->path, strerror(errno));
	else if (!S_ISCHR(st.st_mode) || st.st_rdev != f->rdev)
		file_check_refuse(k, "%.180s: another device here", f->path);
}

static int build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	struct stat st;

	if (!stateless(f->rdev))
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "%s: not a device that can be moved",
				  f->path);
	if (stat(f->path, &st))
		return cr_err_sys(err, "%s", f->path);
	if (!S_ISCHR(st.st_mode) || st.st_rdev != f->rdev)
		return cr_err_set(err, CR_ERR_INPUT, ENXIO, "%s: another device here", f->path);
	fs->held[i].fd = open(f->path, (int)file_open_flags(f) | O_NONBLOCK);
	return fs->held[i].fd < 0 ? cr_err_sys(err, "opening %s", f->path) : 0;
}

const struct file_ops file_ops_chardev = {
    .name = "character device",
    .kind = FILE_CHARDEV,
    .match = match,
    .capture = capture,
    .check = check,
    .build = build,
};
