/* Connections that nobody has accepted, to bytes and back. */
#include "wire/tree_codec.h"
#include "wire/tree_priv.h"

enum { WAITING_BYTES_MAX = 256 << 20, WAITING_MAX = 1 << 20 };

static void arena_freep(struct arena **a)
{
	arena_free(*a);
}

static int check(struct file *list, size_t n, struct cr_err *err)
{
	struct tree none = {.files = list, .n_files = n};

	for (size_t i = 0; i < n; i++) {
		bool unix_end = list[i].kind == FILE_UNIX_CONN;
		/* what its messages refer to is for who has the tree to check */
		int r = unix_end ? tree_check_messages(&list[i], i, UINT32_MAX, err)
				 : tree_check_file(&none, &list[i], i, err);

		if (r)
			return r;
		if (unix_end)
			continue;
		if (list[i].kind != FILE_TCP_CONN || !list[i].tcp || list[i].n_targets)
			return tree_bad(err, "file %zu is no connection", i);
	}
	return 0;
}

int waiting_encode(const struct waiting *w, uint8_t **ret, size_t *ret_len, struct cr_err *err)
{
	_cleanup_(arena_freep) struct arena *a = arena_new();
	Tree__Waiting *pb = a ? pb_new(a, &tree__waiting__descriptor) : NULL;
	int r = check(w->list, w->n, err);

	if (r) {
		err->kind = CR_ERR_BUG;
		return r;
	}
	if (pb)
		pb->list = arena_array(a, Tree__File *, w->n);
	if (!pb || !pb->list)
		return cr_err_oom(err);
	for (size_t i = 0; i < w->n; i++) {
		Tree__File *f = tree_put_file(a, &w->list[i]);

		if (!f)
			return cr_err_oom(err);
		pb->list[pb->n_list++] = f;
	}
	return pb_pack(&pb->base, WAITING_BYTES_MAX, ret, ret_len, err);
}

int waiting_decode(const uint8_t *data, size_t len, struct arena *a, struct waiting *ret,
		   struct cr_err *err)
{
	_cleanup_(arena_freep) struct arena *work = arena_new();
	void *p = NULL;

	if (!work)
		return cr_err_oom(err);
	int r =
	    pb_unpack(work, &tree__waiting__descriptor, data, len, (4 << 20) + 16 * len, &p, err);
	if (r)
		return r;
	const Tree__Waiting *pb = p;
	if (pb->n_list > WAITING_MAX)
		return tree_bad(err, "%zu connections that wait", pb->n_list);
	ret->list = arena_array(a, struct file, pb->n_list + 1);
	if (!ret->list)
		return cr_err_oom(err);
	ret->n = 0;
	for (size_t i = 0; i < pb->n_list && !r; i++)
		r = tree_get_file(a, pb->list[i], &ret->list[ret->n++], err);
	return r ? r : check(ret->list, ret->n, err);
}
