/* Descriptors of memfds. The memory itself is a shared object, moved like all other memory; a
 * description of it is opened on the object that is there then. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>

static bool match(const struct fd_probe *p)
{
	return (p->fs_magic == TMPFS_MAGIC || p->fs_magic == HUGETLBFS_MAGIC) &&
	       S_ISREG(p->st.st_mode) && p->st.st_nlink == 0 && !strncmp(p->link, "/memfd:", 7) &&
	       fcntl(p->local, F_GET_SEALS) >= 0;
}

/* "/memfd:NAME (deleted)" */
static const char *name_of(struct arena *a, const char *link)
{
	static const char tail[] = " (deleted)";
	char *name = arena_strdup(a, link + 7);
	size_t len = name ? strlen(name) : 0;

	if (len >= sizeof(tail) - 1 && !strcmp(name + len - (sizeof(tail) - 1), tail))
		name[len - (sizeof(tail) - 1)] = '\0';
	return name;
}

static uint32_t find_object(const struct tree *t, const struct stat *st)
{
	for (size_t i = 0; i < t->n_objects; i++)
		if (t->objects[i].dev == st->st_dev && t->objects[i].ino == st->st_ino)
			return (uint32_t)i;
	return UINT32_MAX;
}

/* Not mapped by anybody, so the memory module has not listed it. */
static int add_object(struct tree *t, const struct fd_probe *p, uint32_t *ret, struct cr_err *err)
{
	struct shared_object *list = arena_array(t->arena, struct shared_object, t->n_objects + 1);

	if (!list)
		return cr_err_oom(err);
	if (t->n_objects)
		memcpy(list, t->objects, t->n_objects * sizeof(*list));
	struct shared_object *o = &list[t->n_objects];
	o->kind = OBJ_MEMFD;
	o->name = name_of(t->arena, p->link);
	o->size = (uint64_t)p->st.st_size;
	o->seals = (uint32_t)fcntl(p->local, F_GET_SEALS);
	o->dev = p->st.st_dev;
	o->ino = p->st.st_ino;
	if (!o->name)
		return cr_err_oom(err);
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
	f->kind = FILE_MEMFD;
	f->object = object;
	f->size = (uint64_t)p->st.st_size;
	return files_watch(x, &w, err);
}

static int build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];

	if (f->object >= t->n_objects || !fs->object_fds || fs->object_fds[f->object] < 0)
		return cr_err_set(err, CR_ERR_BUG, EINVAL, "memfd without its object");
	fs->held[i].fd = fd_reopen(fs->object_fds[f->object], (int)file_open_flags(f));
	return fs->held[i].fd < 0 ? cr_err_sys(err, "opening a memfd once more") : 0;
}

static int settle(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	struct held *h = &fs->held[i];

	if (t->files[i].pos == h->pos_set)
		return 0;
	if (lseek(h->fd, (off_t)t->files[i].pos, SEEK_SET) < 0)
		return cr_err_sys(err, "position in a memfd");
	h->pos_set = t->files[i].pos;
	return 0;
}

const struct file_ops file_ops_memfd = {
    .name = "memfd",
    .kind = FILE_MEMFD,
    .match = match,
    .capture = capture,
    .build = build,
    .settle = settle,
};
