/* Regular files that were removed while they are open: temporary files, logs that were rotated
 * away.
 *
 * Nobody else can open them, so their contents move like shared memory: as an object, compared
 * whole in each round and at the stop, holes as holes. The destination makes a file without a name
 * in the same directory; descriptions are opened on that. What is mapped of such a file is
 * the same object (memory/capture.c), and whether its directory is there is asked by
 * memory_check(). */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static const char tail[] = " (deleted)";

static bool has_disk(uint32_t magic)
{
	return magic != ANON_INODE_FS_MAGIC && magic != PIPEFS_MAGIC && magic != PROC_SUPER_MAGIC &&
	       magic != HUGETLBFS_MAGIC && magic != SECRETMEM_MAGIC;
}

/* The kernel's own mounts show memfds, shared memory and such by names of their own. */
static bool match(const struct fd_probe *p)
{
	size_t len = strlen(p->link), n = sizeof(tail) - 1;

	return S_ISREG(p->st.st_mode) && p->st.st_nlink == 0 && p->link[0] == '/' &&
	       has_disk(p->fs_magic) && len > n && !strcmp(p->link + len - n, tail) &&
	       strncmp(p->link, "/memfd:", 7) && strncmp(p->link, "/SYSV", 5) &&
	       strcmp(p->link, "/dev/zero (deleted)");
}

static uint32_t find_object(const struct tree *t, const struct stat *st)
{
	for (size_t i = 0; i < t->n_objects; i++)
		if (t->objects[i].dev == st->st_dev && t->objects[i].ino == st->st_ino)
			return (uint32_t)i;
	return UINT32_MAX;
}

static int add_object(struct tree *t, const struct fd_probe *p, uint32_t *ret, struct cr_err *err)
{
	struct shared_object *list = arena_array(t->arena, struct shared_object, t->n_objects + 1);
	char *path = arena_strdup(t->arena, p->link);

	if (!list || !path)
		return cr_err_oom(err);
	path[strlen(path) - (sizeof(tail) - 1)] = '\0';
	if (t->n_objects)
		memcpy(list, t->objects, t->n_objects * sizeof(*list));
	list[t->n_objects] = (struct shared_object){
	    .kind = OBJ_UNLINKED,
	    .name = path,
	    .size = (uint64_t)p->st.st_size,
	    .dev = p->st.st_dev,
	    .ino = p->st.st_ino,
	    .uid = p->st.st_uid,
	    .gid = p->st.st_gid,
	    .mode = p->st.st_mode & 07777,
	};
	t->objects = list;
	*ret = (uint32_t)t->n_objects++;
	return 0;
}

static int capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		   struct cr_err *err)
{
	struct tree *t = x->c->tree;
	struct fd_watch w = {.dev = f->dev, .ino = f->ino, .file = (uint32_t)t->n_files};
	uint32_t object = find_object(t, &p->st);
	int r = object == UINT32_MAX ? add_object(t, p, &object, err) : 0;

	if (r < 0)
		return r;
	f->kind = FILE_UNLINKED;
	f->object = object;
	f->size = (uint64_t)p->st.st_size;
	f->mtime_ns =
	    (uint64_t)p->st.st_mtim.tv_sec * 1000000000ull + (uint64_t)p->st.st_mtim.tv_nsec;
	return files_watch(x, &w, err);
}

static int build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];

	if (f->object >= t->n_objects || !fs->object_fds || fs->object_fds[f->object] < 0)
		return cr_err_set(err, CR_ERR_BUG, EINVAL, "unlinked file without its contents");
	/* O_TMPFILE, which the flags may tell of, is made of O_DIRECTORY: open(2) */
	fs->held[i].fd =
	    fd_reopen(fs->object_fds[f->object], (int)file_open_flags(f) & ~O_DIRECTORY);
	return fs->held[i].fd < 0 ? cr_err_sys(err, "opening an unlinked file once more") : 0;
}

static int settle(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	struct held *h = &fs->held[i];

	if (f->pos == h->pos_set)
		return 0;
	if (lseek(h->fd, (off_t)f->pos, SEEK_SET) < 0)
		return cr_err_sys(err, "position in an unlinked file");
	h->pos_set = f->pos;
	return 0;
}

/* When no page is placed any more. */
static int prepare(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	uint64_t ns = t->files[i].mtime_ns;
	const struct timespec times[2] = {
	    {.tv_nsec = UTIME_OMIT},
	    {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)}};

	return futimens(fs->held[i].fd, times) ? cr_err_sys(err, "times of an unlinked file") : 0;
}

const struct file_ops file_ops_unlinked = {
    .name = "unlinked file",
    .kind = FILE_UNLINKED,
    .match = match,
    .capture = capture,
    .build = build,
    .settle = settle,
    .prepare = prepare,
};
