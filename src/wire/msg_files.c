/* Translation of the messages that bring files along. */
#include "wire/msg_priv.h"

#include <string.h>

int msg_put_files(struct arena *a, const struct msg *m, void *p)
{
	const struct msg_files *in = &m->files;
	Wire__FilePaths *pb = p;

	pb->path = arena_array(a, char *, in->n);
	if (!pb->path)
		return -ENOMEM;
	for (size_t i = 0; i < in->n; i++)
		pb->path[pb->n_path++] = pb_string(in->paths[i]);
	return 0;
}

/* Paths are no text for the user: as they are. */
int msg_get_files(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	struct msg_files *out = &m->files;
	Wire__FilePaths *pb = p;

	out->paths = arena_array(a, const char *, pb->n_path);
	if (!out->paths)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_path; i++)
		out->paths[out->n++] = pb->path[i];
	return 0;
}

int msg_put_files_ok(struct arena *a, const struct msg *m, void *p)
{
	Wire__FilesOk *pb = p;

	(void)a;
	pb->wanted = m->files_ok.wanted;
	pb->n_wanted = m->files_ok.n;
	return 0;
}

int msg_get_files_ok(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	Wire__FilesOk *pb = p;

	(void)a, (void)err;
	m->files_ok.wanted = pb->wanted;
	m->files_ok.n = pb->n_wanted;
	return 0;
}

/* clang-format off */
#define FILE_NUMBERS(X) X(size) X(directory) X(mode) X(uid) X(gid) X(atime_ns) X(mtime_ns)
/* clang-format on */

static bool put_xattrs(struct arena *a, const struct msg_file *in, Wire__File *pb)
{
	pb->xattrs = arena_array(a, Wire__Xattr *, in->n_xattrs);
	for (size_t i = 0; pb->xattrs && i < in->n_xattrs; i++) {
		Wire__Xattr *x = pb_new(a, &wire__xattr__descriptor);

		if (!x)
			return false;
		x->name = pb_string(in->xattrs[i].name);
		x->value = pb_bytes(in->xattrs[i].value, in->xattrs[i].len);
		pb->xattrs[pb->n_xattrs++] = x;
	}
	return pb->xattrs;
}

static bool put_parents(struct arena *a, const struct msg_file *in, Wire__File *pb)
{
	pb->parents = arena_array(a, Wire__Directory *, in->n_parents);
	for (size_t i = 0; pb->parents && i < in->n_parents; i++) {
		Wire__Directory *d = pb_new(a, &wire__directory__descriptor);

		if (!d)
			return false;
		d->mode = in->parents[i].mode;
		d->uid = in->parents[i].uid;
		d->gid = in->parents[i].gid;
		pb->parents[pb->n_parents++] = d;
	}
	return pb->parents;
}

int msg_put_file(struct arena *a, const struct msg *m, void *p)
{
	const struct msg_file *in = &m->file;
	Wire__File *pb = p;

#define PUT(f) pb->f = in->f;
	FILE_NUMBERS(PUT)
	pb->path = pb_string(in->path);
	return put_xattrs(a, in, pb) && put_parents(a, in, pb) ? 0 : -ENOMEM;
}

int msg_get_file(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	struct msg_file *out = &m->file;
	Wire__File *pb = p;

#define GET(f) out->f = pb->f;
	FILE_NUMBERS(GET)
	out->path = pb->path;
	out->xattrs = arena_array(a, struct msg_xattr, pb->n_xattrs);
	out->parents = arena_array(a, struct msg_directory, pb->n_parents);
	if (!out->xattrs || !out->parents)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_xattrs; i++) {
		const Wire__Xattr *x = pb->xattrs[i];

		out->xattrs[out->n_xattrs++] =
		    (struct msg_xattr){x->name, x->value.data, x->value.len};
	}
	for (size_t i = 0; i < pb->n_parents; i++) {
		const Wire__Directory *d = pb->parents[i];

		out->parents[out->n_parents++] = (struct msg_directory){d->mode, d->uid, d->gid};
	}
	return 0;
}

int msg_put_file_data(struct arena *a, const struct msg *m, void *p)
{
	Wire__FileData *pb = p;

	(void)a;
	pb->offset = m->file_data.offset;
	pb->hole = m->file_data.hole;
	pb->data = pb_bytes(m->file_data.data, m->file_data.len);
	return 0;
}

int msg_get_file_data(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	Wire__FileData *pb = p;

	(void)a, (void)err;
	m->file_data.offset = pb->offset;
	m->file_data.hole = pb->hole;
	m->file_data.data = pb->data.data;
	m->file_data.len = pb->data.len;
	return 0;
}
