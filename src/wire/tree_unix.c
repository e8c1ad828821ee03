/* What a unix socket has besides its options. */
#include "wire/tree_priv.h"

#include <errno.h>

enum { RIGHTS_MAX = 253 /* SCM_MAX_FD, unix(7) */, FROM_MAX = 128, PID_MAX_LIMIT = 1 << 22 };

static Tree__UnixMessage *put_message(struct arena *a, const struct unix_message *in)
{
	Tree__UnixMessage *pb = pb_new(a, &tree__unix_message__descriptor);

	if (!pb)
		return NULL;
	pb->files = arena_array(a, uint32_t, in->n_files);
	if (!pb->files)
		return NULL;
	for (size_t i = 0; i < in->n_files; i++)
		pb->files[pb->n_files++] = tree_put_index(in->files[i]);
	pb->data = pb_bytes(in->data, in->len);
	pb->from = pb_bytes(in->from, in->from_len);
	pb->has_cred = in->has_cred;
	pb->cred_pid = in->cred_pid;
	pb->cred_uid = in->cred_uid;
	pb->cred_gid = in->cred_gid;
	return pb;
}

bool tree_put_unix(struct arena *a, const struct file *in, Tree__File *pb)
{
	pb->messages = arena_array(a, Tree__UnixMessage *, in->n_messages);
	if (!pb->messages)
		return false;
	for (size_t i = 0; i < in->n_messages; i++)
		if (!(pb->messages[pb->n_messages++] = put_message(a, &in->messages[i])))
			return false;
	return true;
}

static int get_message(struct arena *a, const Tree__UnixMessage *pb, struct unix_message *out,
		       struct cr_err *err)
{
	size_t from_len = 0;

	out->files = arena_array(a, uint32_t, pb->n_files);
	if (!out->files)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_files; i++)
		out->files[out->n_files++] = tree_get_index(pb->files[i]);
	out->has_cred = pb->has_cred;
	out->cred_pid = pb->cred_pid;
	out->cred_uid = pb->cred_uid;
	out->cred_gid = pb->cred_gid;
	int r = tree_get_bytes(a, &pb->from, &out->from, &from_len, err);
	out->from_len = (uint32_t)from_len;
	return r < 0 ? r : tree_get_bytes(a, &pb->data, &out->data, &out->len, err);
}

int tree_get_unix(struct arena *a, const Tree__File *pb, struct file *out, struct cr_err *err)
{
	int r = 0;

	out->messages = arena_array(a, struct unix_message, pb->n_messages);
	if (!out->messages)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_messages && !r; i++)
		r = get_message(a, pb->messages[i], &out->messages[out->n_messages++], err);
	return r;
}

int tree_check_messages(const struct file *f, size_t i, size_t n_files, struct cr_err *err)
{
	for (size_t k = 0; k < f->n_messages; k++) {
		const struct unix_message *m = &f->messages[k];

		if (m->n_files > RIGHTS_MAX || m->from_len > FROM_MAX || m->cred_pid < 0 ||
		    m->cred_pid > PID_MAX_LIMIT)
			return tree_bad(err, "file %zu: message %zu: %zu descriptors, from %u", i,
					k, m->n_files, m->from_len);
		for (size_t j = 0; j < m->n_files; j++)
			if (m->files[j] >= n_files)
				return tree_bad(err, "file %zu: message %zu: there is no file %u",
						i, k, m->files[j]);
	}
	return 0;
}

int tree_check_unix(const struct tree *t, const struct file *f, size_t i, struct cr_err *err)
{
	enum { DGRAM = 2 /* SOCK_DGRAM */ };

	if (f->kind != FILE_UNIX_CONN)
		return f->n_messages ? tree_bad(err, "file %zu: has messages", i) : 0;
	if (f->peer != UINT32_MAX &&
	    (f->peer >= t->n_files || f->peer == i || t->files[f->peer].kind != FILE_UNIX_CONN ||
	     (t->files[f->peer].peer != i && f->sock_type != DGRAM) ||
	     t->files[f->peer].sock_type != f->sock_type))
		return tree_bad(err, "file %zu: file %u is no peer of it", i, f->peer);
	if (f->waits_at != UINT32_MAX &&
	    (f->waits_at >= t->n_files || t->files[f->waits_at].kind != FILE_UNIX_LISTEN ||
	     t->files[f->waits_at].sock_type != f->sock_type))
		return tree_bad(err, "file %zu: cannot wait at file %u", i, f->waits_at);
	if (f->sock_error && f->sock_error != ECONNRESET)
		return tree_bad(err, "file %zu: no unix socket has error %d", i, f->sock_error);
	return tree_check_messages(f, i, t->n_files, err);
}
