/* The descriptions that the destination agent holds for the tasks: made, kept in step with later
 * captures, brought to their final state, handed over.
 *
 * A later tree may differ in a few descriptions out of thousands, and that may show at the stop. So
 * build pairs what it holds with what the tree lists by identity (file_identity_cmp), makes what is
 * left over on one side, and closes what is left over on the other. Serial numbers tell the rest of
 * the fileset which descriptions are new. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include "base/parallel.h"
#include "kernel/boot_id.h"

enum {
	SETFL_FLAGS = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME, /* what F_SETFL can change */
	OPEN_FLAGS = O_ACCMODE | O_APPEND | O_DSYNC | O_SYNC | O_DIRECT | O_NOATIME | O_DIRECTORY |
		     O_NOFOLLOW | O_NONBLOCK | O_PATH,
};

uint32_t file_open_flags(const struct file *f)
{
	return (f->flags & OPEN_FLAGS) | O_CLOEXEC | O_NOCTTY;
}

int fd_reopen(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, (flags & ~O_NOFOLLOW) | O_CLOEXEC | O_NOCTTY);
}

/* ---- identity ---- */

#define CMP(field)                                                                                 \
	do {                                                                                       \
		if (a->field != b->field)                                                          \
			return a->field < b->field ? -1 : 1;                                       \
	} while (0)

static int cmp_bytes(const void *a, size_t an, const void *b, size_t bn)
{
	if (an != bn)
		return an < bn ? -1 : 1;
	return an ? memcmp(a, b, an) : 0;
}

int file_identity_cmp(const struct file *a, const struct file *b)
{
	const uint32_t settable = SETFL_FLAGS | O_ASYNC;

	CMP(kind);
	CMP(ino);
	CMP(dev);
	CMP(pipe_ino);
	CMP(rdev);
	CMP(tty);
	if ((a->flags & ~settable) != (b->flags & ~settable))
		return (a->flags & ~settable) < (b->flags & ~settable) ? -1 : 1;
	CMP(semaphore);
	CMP(clockid);
	CMP(sock_family);
	CMP(sock_type);
	CMP(sock_protocol);
	CMP(backlog);
	CMP(peer_ino);
	CMP(connected);
	CMP(bound);
	CMP(waits_at);
	CMP(waits_nth);
	CMP(cred_pid);
	CMP(cred_uid);
	CMP(cred_gid);
	int r = strcmp(a->path ? a->path : "", b->path ? b->path : "");
	if (!r)
		r = cmp_bytes(a->sockaddr, a->sockaddr_len, b->sockaddr, b->sockaddr_len);
	if (!r)
		r = cmp_bytes(a->peeraddr, a->peeraddr_len, b->peeraddr, b->peeraddr_len);
	if (!r && a->kind == FILE_TCP_CLOSED) {
		CMP(tcp_end);
		CMP(size); /* of what is left to be read: nothing more comes */
	}
	if (r || a->kind == FILE_TCP_CONN)
		return r; /* its options are set at the stop, with the rest of it */
	return sockopts_cmp(a, b);
}

static void identity_done(struct file *id)
{
	for (size_t i = 0; i < id->n_opts; i++)
		free((void *)id->opts[i].value);
	free(id->opts);
	free(id->filter);
	free(id->program);
	free((void *)id->program_name);
	free((void *)id->path);
	free((void *)id->sockaddr);
	free((void *)id->peeraddr);
	memset(id, 0, sizeof(*id));
}

/* NULL when memory is out, and for no bytes. */
static void *dup_bytes(const void *p, size_t n)
{
	void *q = n ? malloc(n) : NULL;

	if (q)
		memcpy(q, p, n);
	return q;
}

static int identity_copy(struct file *id, const struct file *f)
{
	*id = *f;
	id->data = NULL;
	id->targets = NULL;
	id->messages = NULL;
	id->n_messages = 0;
	id->tcp = NULL;
	id->reuse_code = NULL;
	id->n_targets = id->data_len = id->n_opts = 0;
	id->path = f->path ? strdup(f->path) : NULL;
	id->sockaddr = dup_bytes(f->sockaddr, f->sockaddr_len);
	id->peeraddr = dup_bytes(f->peeraddr, f->peeraddr_len);
	id->opts = calloc(f->n_opts + 1, sizeof(*id->opts));
	id->filter = dup_bytes(f->filter, f->n_filter * sizeof(*f->filter));
	id->program = dup_bytes(f->program, f->n_program * sizeof(*f->program));
	id->program_name = f->program_name ? strdup(f->program_name) : NULL;
	if ((f->path && !id->path) || (f->sockaddr_len && !id->sockaddr) ||
	    (f->peeraddr_len && !id->peeraddr) || !id->opts || (f->n_filter && !id->filter) ||
	    (f->n_program && !id->program) || (f->program_name && !id->program_name))
		return -1;
	for (size_t i = 0; i < f->n_opts; i++) {
		id->opts[i] = f->opts[i];
		id->opts[i].value = dup_bytes(f->opts[i].value, f->opts[i].len);
		id->n_opts = i + 1;
		if (f->opts[i].len && !id->opts[i].value)
			return -1;
	}
	return 0;
}

/* ---- life ---- */

struct fileset *fileset_new(void)
{
	struct fileset *fs = calloc(1, sizeof(*fs));

	if (fs)
		fs->reset_listener = -1;
	return fs;
}

void fileset_set_clocks(struct fileset *fs, int64_t monotonic_ns, int64_t boottime_ns)
{
	fs->monotonic_off_ns = monotonic_ns;
	fs->boottime_off_ns = boottime_ns;
}

void fileset_set_ttys(struct fileset *fs, struct ttys *y)
{
	fs->ttys = y;
}

void fileset_set_tasks(struct fileset *fs, const struct fileset_tasks *tasks)
{
	fs->tasks = *tasks;
}

void fileset_set_ways(struct fileset *fs, const struct net_ways *ways)
{
	fs->ways = ways;
}

static void held_done(struct held *h)
{
	const struct file_ops *ops = file_ops_of(h->id.kind);

	if (h->fd >= 0 && ops && ops->drop)
		ops->drop(h);
	close_fdp(&h->fd);
	close_fdp(&h->peer_fd);
	vec_done(&h->items.list);
	identity_done(&h->id);
}

static void after_build(struct fileset *fs)
{
	close_fdp(&fs->reset_listener);
	free(fs->pipe_ends);
	fs->pipe_ends = NULL;
	fs->object_fds = NULL;
}

void fileset_free(struct fileset *fs)
{
	if (!fs)
		return;
	after_build(fs);
	for (size_t i = 0; i < fs->n_held; i++)
		held_done(&fs->held[i]);
	free(fs->held);
	vec_foreach (p, &fs->procs) {
		vec_done(&p->fds);
		free(p->cwd);
	}
	vec_done(&fs->procs);
	free(fs);
}

/* ---- build ---- */

struct by_identity {
	const struct file *f;
	uint32_t index;
};

static int cmp_by_identity(const void *va, const void *vb)
{
	const struct by_identity *a = va, *b = vb;
	int r = file_identity_cmp(a->f, b->f);

	return r ? r : (a->index > b->index) - (a->index < b->index);
}

/* next[i]: what we hold already for t->files[i], moved there; the others have fd -1. */
static int take_over(struct fileset *fs, const struct tree *t, struct held *next,
		     struct cr_err *err)
{
	_cleanup_free_ struct by_identity *old = calloc(fs->n_held + 1, sizeof(*old));
	_cleanup_free_ struct by_identity *new = calloc(t->n_files + 1, sizeof(*new));
	size_t o = 0, n = 0;

	if (!old || !new)
		return cr_err_oom(err);
	for (uint32_t i = 0; i < fs->n_held; i++)
		old[i] = (struct by_identity){&fs->held[i].id, i};
	for (uint32_t i = 0; i < t->n_files; i++)
		new[i] = (struct by_identity){&t->files[i], i};
	qsort(old, fs->n_held, sizeof(*old), cmp_by_identity);
	qsort(new, t->n_files, sizeof(*new), cmp_by_identity);
	while (o < fs->n_held && n < t->n_files) {
		int r = file_identity_cmp(old[o].f, new[n].f);

		if (r == 0) {
			struct held *from = &fs->held[old[o++].index];

			/* old[].f points into *from: not looked at again */
			next[new[n++].index] = *from;
			memset(from, 0, sizeof(*from));
			from->fd = from->peer_fd = -1;
		} else if (r < 0) {
			o++;
		} else {
			n++;
		}
	}
	return 0;
}

static int settle_flags(struct held *h, const struct file *f, struct cr_err *err)
{
	if (((h->flags_set ^ f->flags) & SETFL_FLAGS) == 0)
		return 0;
	/* O_ASYNC as it is: that is set in the task */
	if (fcntl(h->fd, F_SETFL,
		  (f->flags & SETFL_FLAGS) | (h->async_set ? (uint32_t)O_ASYNC : 0)))
		return cr_err_sys(err, "F_SETFL");
	h->flags_set = f->flags;
	return 0;
}

static int build_one(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	const struct file_ops *ops = file_ops_of(f->kind);
	struct held *h = &fs->held[i];
	int r = 0;

	if (!ops || !ops->build)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "file %u is of unknown kind %d", i,
				  f->kind);
	if (h->serial)
		return 0;
	if (h->fd < 0)
		r = ops->build(fs, t, i, err);
	if (r < 0)
		return cr_err_ctx(err, "%s", ops->name);
	if (identity_copy(&h->id, f))
		return cr_err_oom(err);
	h->serial = ++fs->next_serial;
	int flags = fcntl(h->fd, F_GETFL);
	if (flags < 0)
		return cr_err_sys(err, "F_GETFL");
	h->flags_set = (uint32_t)flags;
	return settle_flags(h, f, err);
}

/* Room for one descriptor per description, beside what this process has open anyway. */
static int raise_limit(const struct tree *t, struct cr_err *err)
{
	enum { OTHERS = 256 };
	struct rlimit rl;

	if (getrlimit(RLIMIT_NOFILE, &rl))
		return cr_err_sys(err, "RLIMIT_NOFILE");
	if (rl.rlim_cur >= t->n_files + OTHERS)
		return 0;
	rl.rlim_cur = rl.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &rl))
		return cr_err_sys(err, "raising RLIMIT_NOFILE");
	return 0;
}

static void learn_kernel(struct fileset *fs, const struct tree *t)
{
	fs->same_kernel = boot_id_matches(t->boot_id, &fs->same_kernel_known);
}

/* Whose shell goes with this tree: another process may have the pid later, in a shell without any
 * of what was installed. */
static void forget_ended(struct fileset *fs, const struct tree *t)
{
	for (size_t i = 0; i < fs->procs.n;) {
		struct proc_installed *was = &fs->procs.v[i];
		const struct process *p = tree_find_process(t, was->pid);

		if (p && !p->zombie) {
			i++;
			continue;
		}
		vec_done(&was->fds);
		free(was->cwd);
		*was = fs->procs.v[--fs->procs.n];
	}
}

int fileset_build(struct fileset *fs, const struct tree *t, const int *object_fds,
		  struct cr_err *err)
{
	struct held *next = calloc(t->n_files + 1, sizeof(*next));
	int r;

	if (!next)
		return cr_err_oom(err);
	for (size_t i = 0; i < t->n_files; i++)
		next[i].fd = next[i].peer_fd = -1;
	r = raise_limit(t, err);
	if (!r)
		r = take_over(fs, t, next, err);
	if (r < 0) {
		free(next);
		return r;
	}
	/* what is gone first: a listener may be there anew, on the same port */
	for (size_t i = 0; i < fs->n_held; i++)
		held_done(&fs->held[i]);
	free(fs->held);
	fs->held = next;
	fs->n_held = t->n_files;
	fs->object_fds = object_fds;
	forget_ended(fs, t);
	learn_kernel(fs, t);
	for (uint32_t i = 0; i < t->n_files && !r; i++)
		r = build_one(fs, t, i, err);
	after_build(fs);
	if (!r)
		r = fileset_epoll_plan(fs, t, err);
	return r < 0 ? cr_err_ctx(err, "rebuilding open files") : 0;
}

/* ---- the final state ---- */

/* After the contents, which would raise a signal. */
static int settle_owner(const struct held *h, const struct file *f, struct cr_err *err)
{
	struct f_owner_ex ow = {.type = f->owner_type, .pid = f->owner_pid};

	if (!f->owner_pid)
		return 0;
	if (fcntl(h->fd, F_SETOWN_EX, &ow) || fcntl(h->fd, F_SETSIG, f->owner_sig))
		return cr_err_sys(err, "signals of a descriptor to %d", f->owner_pid);
	return 0;
}

static int check_same_tree(const struct fileset *fs, const struct tree *t, struct cr_err *err)
{
	if (fs->n_held == t->n_files)
		return 0;
	return cr_err_set(err, CR_ERR_BUG, EINVAL, "open files were not built for this tree");
}

static bool stands_apart(const struct file *f)
{
	const struct file_ops *ops = file_ops_of(f->kind);

	return ops && ops->apart && ops->apart(f);
}

struct step {
	struct fileset *fs;
	const struct tree *t;
	int (*fn)(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err);
};

static int step_apart(size_t i, unsigned int worker, void *arg, struct cr_err *err)
{
	const struct step *s = arg;

	(void)worker;
	return stands_apart(&s->t->files[i]) ? s->fn(s->fs, s->t, (uint32_t)i, err) : 0;
}

/* fn of all, those that stand apart side by side. */
static int step_all(const struct step *s, struct cr_err *err)
{
	int r = parallel_for(s->fs->n_held, step_apart, (void *)s, err);

	for (uint32_t i = 0; i < s->fs->n_held && !r; i++)
		if (!stands_apart(&s->t->files[i]))
			r = s->fn(s->fs, s->t, i, err);
	return r;
}

static int settle_one(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	const struct file_ops *ops = file_ops_of(f->kind);
	int r = ops->settle ? ops->settle(fs, t, i, err) : 0;

	if (!r)
		r = settle_flags(&fs->held[i], f, err);
	if (!r)
		r = settle_owner(&fs->held[i], f, err);
	return r < 0 ? cr_err_ctx(err, "state of a %s", ops->name) : r;
}

int fileset_settle(struct fileset *fs, const struct tree *t, struct cr_err *err)
{
	const struct step s = {fs, t, settle_one};
	int r = check_same_tree(fs, t, err);

	return r ? r : step_all(&s, err);
}

int fileset_prepare(struct fileset *fs, const struct tree *t, struct cr_err *err)
{
	int r = check_same_tree(fs, t, err);

	for (uint32_t i = 0; i < fs->n_held && !r; i++) {
		const struct file_ops *ops = file_ops_of(t->files[i].kind);

		if (ops->prepare)
			r = ops->prepare(fs, t, i, err);
		fs->held[i].reserved_stays = true;
	}
	return r;
}

void fileset_undo(struct fileset *fs)
{
	for (size_t i = 0; fs && i < fs->n_held; i++)
		fs->held[i].reserved_stays = false;
}

int fileset_renames(const struct fileset *fs, const struct tree *t,
		    int (*fn)(const char *from, const char *to, void *arg), void *arg)
{
	int r = 0;

	for (uint32_t i = 0; i < fs->n_held && i < t->n_files && !r; i++)
		if (fs->held[i].reserved_path)
			r = fn(fs->held[i].reserved_path, t->files[i].path, arg);
	return r;
}

static int launch_one(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file_ops *ops = file_ops_of(t->files[i].kind);
	int r = ops->launch ? ops->launch(fs, t, i, err) : 0;

	fs->held[i].launched = !r;
	fs->held[i].reserved_stays = false;
	return r;
}

int fileset_launch(struct fileset *fs, const struct tree *t, struct cr_err *err)
{
	const struct step s = {fs, t, launch_one};
	int r = check_same_tree(fs, t, err);

	return r ? r : step_all(&s, err);
}
