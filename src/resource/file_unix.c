/* Listening unix sockets (stream and seqpacket), by path or abstract name (unix_name.c).
 *
 * What clients read by SO_PEERCRED is who called listen(2), so that call is made in the task
 * (fileset_install), for a moment under the listener's effective ids.
 *
 * Connections that wait to be accepted are known by the inodes of the ends that connected
 * (sock_diag tells these, in order): where the tree has that end, it connects again at the
 * destination. What it has sent already can only be read by accepting, so that is done after the
 * decision and put in before the tasks run. */
#include "resource/unix_private.h"

#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include "base/log.h"

static bool match(const struct fd_probe *p)
{
	return p->so_domain == AF_UNIX && p->so_listening &&
	       (p->so_type == SOCK_STREAM || p->so_type == SOCK_SEQPACKET);
}

/* ---- capture ---- */

static int capture_creds(const struct fd_probe *p, struct file *f, struct cr_err *err)
{
	struct ucred uc;
	socklen_t len = sizeof(uc);

	if (getsockopt(p->local, SOL_SOCKET, SO_PEERCRED, &uc, &len))
		return cr_err_sys(err, "SO_PEERCRED");
	f->cred_pid = uc.pid;
	f->cred_uid = uc.uid;
	f->cred_gid = uc.gid;
	return 0;
}

static int capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		   struct cr_err *err)
{
	struct unix_diag_info diag = {0};
	struct fd_watch w = {.dev = p->st.st_dev,
			     .ino = p->st.st_ino,
			     .file = (uint32_t)x->c->tree->n_files,
			     .kind = WATCH_WARN};
	f->kind = FILE_UNIX_LISTEN;
	f->sock_family = AF_UNIX;
	f->sock_type = p->so_type;
	int r = unix_capture_name(x, p->local, f, err);
	if (!r && !unix_is_abstract(f)) {
		r = unix_capture_path(x, p->local, f, err);
		f->dev = f->name_dev;
		f->ino = f->name_ino;
	}
	f->bound = true;
	if (!r)
		r = unix_diag_get(p->st.st_ino, &diag, err);
	if (!r)
		r = capture_creds(p, f, err);
	if (!r)
		r = sockopts_capture(x, p, f, err);
	f->backlog = (int32_t)diag.queue_max;
	return r < 0 ? r : files_watch(x, &w, err);
}

/* ---- capture: who waits ---- */

/* The end that connected, among the tree's; NULL: it is gone, or outside. */
static struct file *find_client(struct tree *t, const struct file *listener, uint32_t ino)
{
	for (size_t i = 0; i < t->n_files && ino; i++) {
		struct file *f = &t->files[i];

		if (f->kind == FILE_UNIX_CONN && f->ino == ino && f->connected && !f->peer_ino &&
		    f->sock_type == listener->sock_type)
			return f;
	}
	return NULL;
}

static void say_closed(struct files_ctx *x, uint32_t me, uint32_t n)
{
	pid_t pid = files_holder_pid(x, me);
	int fd = files_holder(x, me)->fd;

	if (x->c->tcp == TCP_MODE_REFUSE)
		files_refuse(x, pid, fd,
			     "unix listener: %u connections from outside the tree wait to be "
			     "accepted: not supported",
			     n);
	else
		files_warn(x, pid, fd,
			   "unix listener: %u connections that wait to be accepted, of processes "
			   "outside the tree or that are gone, are closed by the move",
			   n);
}

static int link_listener(struct files_ctx *x, uint32_t me, struct cr_err *err)
{
	struct tree *t = x->c->tree;
	struct file *l = &t->files[me];
	_cleanup_fd_ int local = files_getfd(x, me, err);
	struct unix_diag_info diag = {0};
	struct stat st;
	uint32_t others = 0;

	if (local < 0 || fstat(local, &st))
		return x->c->exact ? cr_err_sys(err, "a unix listener") : 0;
	int r = unix_diag_get(st.st_ino, &diag, err);
	for (uint32_t i = 0; i < diag.n_waiting && !r; i++) {
		struct file *f = find_client(t, l, diag.waiting[i]);

		others += !f;
		if (!f)
			continue;
		f->waits_at = me;
		f->waits_nth = i;
	}
	if (others || diag.n_waiting < diag.queued)
		say_closed(x, me, diag.n_waiting ? others : diag.queued);
	free(diag.waiting);
	return r;
}

static int link_all(struct files_ctx *x, struct cr_err *err)
{
	int r = 0;

	for (uint32_t i = 0; i < x->c->tree->n_files && !r; i++)
		if (x->c->tree->files[i].kind == FILE_UNIX_LISTEN)
			r = link_listener(x, i, err);
	return r;
}

/* ---- check and rebuild ---- */

static void check(const struct file_check *k, const struct file *f)
{
	unix_check_name(k, f);
	unix_check_maker(k, f);
}

static int build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	_cleanup_fd_ int fd = socket(AF_UNIX, f->sock_type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return cr_err_sys(err, "unix socket");
	int r = sockopts_apply(fd, f, err);
	if (!r)
		r = unix_bind_name(&fs->held[i], fd, f, err);
	if (!r)
		fs->held[i].fd = take_fd(&fd);
	return r;
}

/* The process whose credentials clients read, if it has the socket; else the first that has it. */
static bool is_the_one(const struct shell_fds *sh, uint32_t file)
{
	pid_t pid = sh->t->files[file].cred_pid;
	const struct process *named = tree_find_process(sh->t, pid);

	if (named && process_fd_of(named, file) >= 0)
		return named == sh->p;
	for (const struct process *p = sh->t->procs; p < sh->p; p++)
		if (process_fd_of(p, file) >= 0)
			return false;
	return true;
}

/* 1: the number of who called listen(2) is taken here. */
static int listen_as_maker(struct held *h, const struct file *f, struct cr_err *err)
{
	const struct unix_maker who = {f->cred_pid, f->cred_uid, f->cred_gid};
	struct cr_err why = {0};
	int r = unix_call_as(&who, true, "listen", SYS_listen,
			     (uint64_t[]){(uint64_t)h->fd, (uint64_t)f->backlog, 0, 0}, NULL, &why);

	if (r == -EEXIST || r == -EINVAL)
		return 1;
	if (r)
		*err = why;
	return r;
}

int fileset_unix_install(struct shell_fds *sh, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < sh->p->n_fds && !r; i++) {
		uint32_t file = sh->p->fds[i].file;
		const struct file *f = &sh->t->files[file];
		struct held *h = &sh->fs->held[file];

		if (f->kind != FILE_UNIX_LISTEN || h->listening || !is_the_one(sh, file))
			continue;
		r = f->cred_pid && !tree_find_process(sh->t, f->cred_pid)
			? listen_as_maker(h, f, err)
			: 1;
		if (r == 1)
			r = rtask_queue_as(sh->rt, f->cred_uid, f->cred_gid, "listen", SYS_listen,
					   (uint64_t[]){sh->p->fds[i].fd, f->backlog, 0, 0}, err);
		h->listening = true;
	}
	return r;
}

static int launch(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	return reserve_launch(&fs->held[i], &t->files[i], err);
}

const struct file_ops file_ops_unix_listen = {
    .name = "unix listener",
    .kind = FILE_UNIX_LISTEN,
    .match = match,
    .capture = capture,
    .link = link_all,
    .check = check,
    .build = build,
    .launch = launch,
    .drop = reserve_drop,
};
