/* Connections that nobody has accepted, to bytes and back. */
#include "wire/tree_codec.h"
#include "wire/tree_priv.h"

enum { WAITING_BYTES_MAX = 256 << 20, WAITING_MAX = 1 << 20 };

static void arena_freep(struct arena **a)
{
	arena_free(*a);
}

static int check_closed(struct file *list, size_t n, struct cr_err *err)
{
	struct tree none = {.files = list, .n_files = n};

	for (size_t i = 0; i < n; i++) {
		int r = tree_check_file(&none, &list[i], i, err);

		if (r)
			return r;
		if (list[i].kind != FILE_TCP_CONN || !list[i].tcp || list[i].n_targets)
			return tree_bad(err, "file %zu is no connection", i);
		/* TCP_FIN_WAIT1, TCP_LAST_ACK, TCP_CLOSING; who has closed it reads no more */
		if ((list[i].tcp->state != 4 && list[i].tcp->state != 9 &&
		     list[i].tcp->state != 11) ||
		    list[i].tcp->in_len || list[i].tcp->has_urgent)
			return tree_bad(err, "file %zu is no connection that was closed", i);
	}
	return 0;
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

static int put_list(struct arena *a, const struct file *list, size_t n, Tree__File ***ret,
		    size_t *ret_n)
{
	*ret = arena_array(a, Tree__File *, n + 1);
	for (size_t i = 0; *ret && i < n; i++) {
		(*ret)[i] = tree_put_file(a, &list[i]);
		if (!(*ret)[i])
			return -1;
		*ret_n = i + 1;
	}
	return *ret ? 0 : -1;
}

int waiting_encode(const struct waiting *w, uint8_t **ret, size_t *ret_len, struct cr_err *err)
{
	_cleanup_(arena_freep) struct arena *a = arena_new();
	Tree__Waiting *pb = a ? pb_new(a, &tree__waiting__descriptor) : NULL;
	int r = check(w->list, w->n, err);

	if (!r)
		r = check_closed(w->closed, w->n_closed, err);
	if (r) {
		err->kind = CR_ERR_BUG;
		return r;
	}
	if (!pb || put_list(a, w->list, w->n, &pb->list, &pb->n_list) ||
	    put_list(a, w->closed, w->n_closed, &pb->closed, &pb->n_closed))
		return cr_err_oom(err);
	return pb_pack(&pb->base, WAITING_BYTES_MAX, ret, ret_len, err);
}

static int get_list(struct arena *a, Tree__File **list, size_t n, struct file **ret, size_t *ret_n,
		    struct cr_err *err)
{
	int r = 0;

	if (n > WAITING_MAX)
		return tree_bad(err, "%zu connections that wait", n);
	*ret_n = 0;
	*ret = arena_array(a, struct file, n + 1);
	if (!*ret)
		return cr_err_oom(err);
	for (size_t i = 0; i < n && !r; i++)
		r = tree_get_file(a, list[i], &(*ret)[(*ret_n)++], err);
	return r;
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
	r = get_list(a, pb->list, pb->n_list, &ret->list, &ret->n, err);
	if (!r)
		r = get_list(a, pb->closed, pb->n_closed, &ret->closed, &ret->n_closed, err);
	if (!r)
		r = check(ret->list, ret->n, err);
	return r ? r : check_closed(ret->closed, ret->n_closed, err);
}
