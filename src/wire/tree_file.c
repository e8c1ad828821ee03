/* Open file descriptions. */
#include "wire/tree_priv.h"

/* clang-format off */
#define FILE_NUMBERS(X) \
	X(flags) X(pos) X(owner_type) X(owner_pid) X(owner_sig) X(size) X(ino) X(dev) \
	X(mtime_ns) X(rdev) X(mode) X(pipe_ino) X(pipe_has_data) X(pipe_capacity) \
	X(pipe_packet) X(pipe_unwritten) X(counter) X(semaphore) X(clockid) X(settime_flags) X(value_ns) \
	X(interval_ns) X(ticks) X(sigmask) X(sock_family) X(sock_type) X(sock_protocol) \
	X(backlog) X(uid) X(gid) X(cred_pid) X(cred_uid) X(cred_gid) \
	X(peer_ino) X(connected) X(sock_shutdown) X(carried) X(waits_nth) X(bound) X(name_ino) X(name_dev) \
	X(sock_error) X(filter_locked) X(program_gpl) X(reuse_group) X(reuse_place)
/* clang-format on */

/* clang-format off */
#define TCP_NUMBERS(X) \
	X(state) X(options) X(snd_wscale) X(rcv_wscale) X(mss) X(rcv_seq) X(snd_seq) X(unsent) \
	X(timestamp) X(timestamp_ns) X(has_window) X(snd_wl1) X(snd_wnd) X(max_window) X(rcv_wnd) \
	X(rcv_wup) X(sndbuf) X(rcvbuf) X(buf_lock) X(has_urgent) X(urgent_at) X(urgent_read) \
	X(read_shut)
/* clang-format on */

static Tree__TcpConn *put_tcp(struct arena *a, const struct tcp_conn *in)
{
	Tree__TcpConn *pb = pb_new(a, &tree__tcp_conn__descriptor);

	if (!pb)
		return NULL;
	TCP_NUMBERS(TREE_PUT)
	pb->in = pb_bytes(in->in, in->in_len);
	pb->out = pb_bytes(in->out, in->out_len);
	return pb;
}

static int get_tcp(struct arena *a, const Tree__TcpConn *pb, struct tcp_conn **ret,
		   struct cr_err *err)
{
	struct tcp_conn *out = arena_array(a, struct tcp_conn, 1);

	if (!out)
		return cr_err_oom(err);
	TCP_NUMBERS(TREE_GET)
	*ret = out;
	int r = tree_get_bytes(a, &pb->in, &out->in, &out->in_len, err);
	return r < 0 ? r : tree_get_bytes(a, &pb->out, &out->out, &out->out_len, err);
}

static bool put_targets(struct arena *a, const struct file *in, Tree__File *pb)
{
	pb->target_fd = arena_array(a, int32_t, in->n_targets);
	pb->target_file = arena_array(a, uint32_t, in->n_targets);
	pb->target_events = arena_array(a, uint32_t, in->n_targets);
	pb->target_data = arena_array(a, uint64_t, in->n_targets);
	if (!pb->target_fd || !pb->target_file || !pb->target_events || !pb->target_data)
		return false;
	for (size_t i = 0; i < in->n_targets; i++) {
		pb->target_fd[i] = in->targets[i].fd;
		pb->target_file[i] = tree_put_index(in->targets[i].file);
		pb->target_events[i] = in->targets[i].events;
		pb->target_data[i] = in->targets[i].data;
	}
	pb->n_target_fd = pb->n_target_file = in->n_targets;
	pb->n_target_events = pb->n_target_data = in->n_targets;
	return true;
}

static int get_targets(struct arena *a, const Tree__File *pb, struct file *out, struct cr_err *err)
{
	size_t n = pb->n_target_fd;

	if (pb->n_target_file != n || pb->n_target_events != n || pb->n_target_data != n)
		return tree_bad(err, "columns of an epoll's targets differ in length");
	out->targets = arena_array(a, struct epoll_target, n);
	if (!out->targets)
		return cr_err_oom(err);
	for (size_t i = 0; i < n; i++)
		out->targets[out->n_targets++] =
		    (struct epoll_target){.fd = pb->target_fd[i],
					  .file = tree_get_index(pb->target_file[i]),
					  .events = pb->target_events[i],
					  .data = pb->target_data[i]};
	return 0;
}

static bool put_opts(struct arena *a, const struct file *in, Tree__File *pb)
{
	pb->opts = arena_array(a, Tree__Sockopt *, in->n_opts);
	for (size_t i = 0; pb->opts && i < in->n_opts; i++) {
		Tree__Sockopt *o = pb_new(a, &tree__sockopt__descriptor);

		if (!o)
			return false;
		o->level = in->opts[i].level;
		o->name = in->opts[i].name;
		o->value = pb_bytes(in->opts[i].value, in->opts[i].len);
		pb->opts[pb->n_opts++] = o;
	}
	return pb->opts;
}

static int get_opts(struct arena *a, const Tree__File *pb, struct file *out, struct cr_err *err)
{
	out->opts = arena_array(a, struct sockopt_rec, pb->n_opts);
	if (!out->opts)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_opts; i++) {
		struct sockopt_rec *o = &out->opts[out->n_opts++];
		size_t len = 0;
		int r = tree_get_bytes(a, &pb->opts[i]->value, &o->value, &len, err);

		if (r < 0)
			return r;
		o->level = pb->opts[i]->level;
		o->name = pb->opts[i]->name;
		o->len = (uint32_t)len;
	}
	return 0;
}

static int get_code(struct arena *a, const uint64_t *code, size_t n, uint64_t **ret, size_t *ret_n,
		    struct cr_err *err)
{
	*ret_n = n;
	*ret = n ? arena_memdup(a, code, n * sizeof(*code)) : NULL;
	return n && !*ret ? cr_err_oom(err) : 0;
}

static int get_filter(struct arena *a, const Tree__File *pb, struct file *out, struct cr_err *err)
{
	int r = get_code(a, pb->filter, pb->n_filter, &out->filter, &out->n_filter, err);

	if (!r)
		r = get_code(a, pb->program, pb->n_program, &out->program, &out->n_program, err);
	return r ? r
		 : get_code(a, pb->reuse_code, pb->n_reuse_code, &out->reuse_code,
			    &out->n_reuse_code, err);
}

static bool may_wait(enum file_kind kind)
{
	return kind == FILE_UNIX_CONN || kind == FILE_TCP_CONN;
}

Tree__File *tree_put_file(struct arena *a, const struct file *in)
{
	Tree__File *pb = pb_new(a, &tree__file__descriptor);

	if (!pb || !put_targets(a, in, pb) || !put_opts(a, in, pb) || !tree_put_udp(a, in, pb) ||
	    !tree_put_unix(a, in, pb))
		return NULL;
	if (in->tcp && !(pb->tcp = put_tcp(a, in->tcp)))
		return NULL;
	FILE_NUMBERS(TREE_PUT)
	pb->filter = in->filter;
	pb->n_filter = in->n_filter;
	pb->program = in->program;
	pb->n_program = in->n_program;
	pb->program_name = pb_string(in->program_name);
	pb->reuse_code = in->reuse_code;
	pb->n_reuse_code = in->n_reuse_code;
	pb->kind = in->kind;
	pb->tcp_end = in->tcp_end;
	pb->path = pb_string(in->path);
	pb->data = pb_bytes(in->data, in->data_len);
	pb->object = tree_put_index(in->object);
	pb->tty = tree_put_index(file_is_terminal(in->kind) ? in->tty : UINT32_MAX);
	pb->peer = tree_put_index(in->kind == FILE_UNIX_CONN ? in->peer : UINT32_MAX);
	pb->waits_at = tree_put_index(may_wait(in->kind) ? in->waits_at : UINT32_MAX);
	pb->sockaddr = pb_bytes(in->sockaddr, in->sockaddr_len);
	pb->peeraddr = pb_bytes(in->peeraddr, in->peeraddr_len);
	return pb;
}

int tree_get_file(struct arena *a, const Tree__File *pb, struct file *out, struct cr_err *err)
{
	size_t sockaddr_len = 0, peeraddr_len = 0;
	int r;

	FILE_NUMBERS(TREE_GET)
	out->kind = (enum file_kind)pb->kind;
	out->tcp_end = (enum tcp_end)pb->tcp_end;
	out->object = out->kind == FILE_MEMFD || out->kind == FILE_UNLINKED
			  ? tree_get_index(pb->object)
			  : UINT32_MAX;
	out->tty = file_is_terminal(out->kind) ? tree_get_index(pb->tty) : 0;
	out->peer = out->kind == FILE_UNIX_CONN ? tree_get_index(pb->peer) : UINT32_MAX;
	out->waits_at = may_wait(out->kind) ? tree_get_index(pb->waits_at) : UINT32_MAX;
	if ((r = tree_get_string(a, pb->path, &out->path, err)) < 0 ||
	    (r = tree_get_string(a, pb->program_name, &out->program_name, err)) < 0 ||
	    (r = tree_get_bytes(a, &pb->data, &out->data, &out->data_len, err)) < 0 ||
	    (r = tree_get_bytes(a, &pb->sockaddr, &out->sockaddr, &sockaddr_len, err)) < 0 ||
	    (r = tree_get_bytes(a, &pb->peeraddr, &out->peeraddr, &peeraddr_len, err)) < 0 ||
	    (pb->tcp && (r = get_tcp(a, pb->tcp, &out->tcp, err)) < 0) ||
	    (r = get_targets(a, pb, out, err)) < 0 || (r = get_filter(a, pb, out, err)) < 0 ||
	    (r = tree_get_udp(a, pb, out, err)) < 0 || (r = tree_get_unix(a, pb, out, err)) < 0 ||
	    (r = get_opts(a, pb, out, err)) < 0)
		return r;
	out->sockaddr_len = (uint32_t)sockaddr_len;
	out->peeraddr_len = (uint32_t)peeraddr_len;
	return 0;
}
