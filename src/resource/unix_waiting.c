/* Unix connections that nobody has accepted: what has been sent over them already.
 *
 * That they wait, and in what order, is part of the tree (file_unix.c). What waits in them nobody
 * can look at before they are accepted; so that is done after the decision, when nothing has to be
 * put back any more, and it is sent once more at the destination, by the end that connected. */
#include "resource/unix_private.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include "base/log.h"

bool unix_has_waiting(const struct tree *t, uint32_t listener)
{
	for (size_t i = 0; i < t->n_files; i++)
		if (t->files[i].kind == FILE_UNIX_CONN && t->files[i].waits_at == listener)
			return true;
	return false;
}

/* The description among the tree's, which is stopped for good: there is no capture any more. */
static uint32_t find_file(const struct tree *t, int fd)
{
	struct stat st;

	if (fstat(fd, &st))
		return UINT32_MAX;
	for (size_t i = 0; i < t->n_procs; i++)
		for (size_t k = 0; k < t->procs[i].n_fds; k++) {
			const struct fd_entry *e = &t->procs[i].fds[k];

			if (!files_kcmp(getpid(), fd, t->procs[i].pid, e->fd))
				return e->file;
		}
	return UINT32_MAX;
}

/* Descriptors that nobody has any more cannot come along: it is too late to make them there. */
static void find_rights(const struct tree *t, struct unix_peeked *q)
{
	size_t at = 0;

	vec_foreach (m, &q->v) {
		size_t kept = 0;

		for (size_t i = 0; i < m->n_files; i++) {
			m->files[kept] = find_file(t, q->fds.v[at++]);
			kept += m->files[kept] != UINT32_MAX;
		}
		if (kept < m->n_files)
			log_warn("unix connection that waited to be accepted: descriptors that "
				 "were sent over it, and that nobody has any more, are lost");
		m->n_files = kept;
		m->has_cred &= tree_find_process(t, m->cred_pid) != NULL;
	}
}

static int take(int fd, const struct tree *t, struct file *f, struct cr_err *err)
{
	_cleanup_(unix_peeked_done) struct unix_peeked q = {0};
	struct unix_diag_info diag;
	struct stat st;
	int type = 0;
	socklen_t len = sizeof(type);

	if (fstat(fd, &st) || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len))
		return cr_err_sys(err, "a unix connection");
	int r = unix_diag_get(st.st_ino, &diag, err);
	if (!r)
		r = unix_peek(fd, type, t->arena, &q, err);
	if (r)
		return r;
	find_rights(t, &q);
	*f = (struct file){.kind = FILE_UNIX_CONN,
			   .object = UINT32_MAX,
			   .peer = UINT32_MAX,
			   .waits_at = UINT32_MAX,
			   .sock_type = type,
			   .peer_ino = diag.peer_ino,
			   .n_messages = q.v.n};
	f->messages = arena_memdup(t->arena, q.v.v, q.v.n * sizeof(*q.v.v));
	return q.v.n && !f->messages ? cr_err_oom(err) : 0;
}

static int add(struct waiting *w, size_t *cap, const struct tree *t, const struct file *f,
	       struct cr_err *err)
{
	if (w->n == *cap) {
		size_t more = *cap ? 2 * *cap : 64;
		struct file *list = arena_array(t->arena, struct file, more);

		if (!list)
			return cr_err_oom(err);
		if (w->n)
			memcpy(list, w->list, w->n * sizeof(*list));
		w->list = list;
		*cap = more;
	}
	w->list[w->n++] = *f;
	return 0;
}

int unix_accept_waiting(int listener, const struct tree *t, struct waiting *w, size_t *cap,
			struct cr_err *err)
{
	int flags = fcntl(listener, F_GETFL), r = 0;

	/* accept4(2) waits where the program has it so */
	if (flags < 0 || fcntl(listener, F_SETFL, flags | O_NONBLOCK))
		return cr_err_sys(err, "F_SETFL");
	while (!r) {
		_cleanup_fd_ int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		struct cr_err why = {0};
		struct file f;

		if (fd < 0 && errno == EINTR)
			continue;
		if (fd < 0)
			return errno == EAGAIN ? 0 : cr_err_sys(err, "accept4");
		if (take(fd, t, &f, &why))
			log_warn("a unix connection that waited to be accepted: %s", why.msg);
		else if (f.n_messages)
			r = add(w, cap, t, &f, err);
	}
	return r;
}

int unix_tell_waiting(const struct fileset *fs, const struct tree *t, const struct file *f,
		      struct cr_err *err)
{
	for (uint32_t i = 0; i < t->n_files && i < fs->n_held; i++)
		if (t->files[i].kind == FILE_UNIX_CONN && t->files[i].waits_at != UINT32_MAX &&
		    t->files[i].ino == f->peer_ino && f->peer_ino)
			return unix_fill_through(fs, fs->held[i].fd, f, err);
	return 0; /* its other end has not come along: said before */
}
