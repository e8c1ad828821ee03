/* Putting descriptions into a shell: each is fetched from the agent by a remote pidfd_getfd(2) and
 * moved to its number. All calls of a process are queued without looking at a result: the shell is
 * single threaded and its table is known, so the number that a fetch returns is known as well.
 * Every such number is used by a named call right after, which fails (EBADF) if the guess was
 * wrong.
 *
 * A process whose table was installed before gets only what differs. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

enum { TEMPORARY_MAX = 4 }; /* numbers in use at once beside the final ones */

/* ---- numbers ---- */

int shell_lowest(struct shell_fds *sh)
{
	while (sh->low < sh->n_used && sh->used[sh->low])
		sh->low++;
	return sh->low;
}

void shell_use(struct shell_fds *sh, int number, bool used)
{
	if (number >= sh->n_used)
		return;
	sh->used[number] = used;
	if (!used && number < sh->low)
		sh->low = number;
}

int shell_fetch(struct shell_fds *sh, int ours)
{
	rqueue(sh->rt, "pidfd_getfd", SYS_pidfd_getfd, sh->slot, ours, 0);
	return shell_lowest(sh);
}

const struct fd_entry *process_fd(const struct process *p, int fd)
{
	size_t lo = 0, hi = p->n_fds;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (p->fds[mid].fd < fd)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < p->n_fds && p->fds[lo].fd == fd ? &p->fds[lo] : NULL;
}

int process_fd_of(const struct process *p, uint32_t file)
{
	for (size_t i = 0; i < p->n_fds; i++)
		if (p->fds[i].file == file)
			return p->fds[i].fd;
	return -1;
}

int rtask_put(struct rtask *rt, const void *p, size_t bytes, uint64_t *ret_va, struct cr_err *err)
{
	if (rtask_scratch_copy(rt, p, bytes, ret_va))
		return 0;
	int r = rtask_run(rt, err);
	if (r < 0)
		return r;
	rtask_scratch_reset(rt);
	if (!rtask_scratch_copy(rt, p, bytes, ret_va))
		return cr_err_set(err, CR_ERR_BUG, E2BIG,
				  "%zu bytes do not fit into scratch memory", bytes);
	return 0;
}

/* ---- the table ---- */

static struct proc_installed *find_installed(struct fileset *fs, pid_t pid)
{
	vec_foreach (p, &fs->procs)
		if (p->pid == pid)
			return p;
	return NULL;
}

static int highest(const struct process *p, const struct proc_installed *was, int slot)
{
	int n = slot;

	if (p->n_fds && p->fds[p->n_fds - 1].fd > n)
		n = p->fds[p->n_fds - 1].fd;
	if (was->fds.n && was->fds.v[was->fds.n - 1].fd > n)
		n = was->fds.v[was->fds.n - 1].fd;
	return n;
}

/* Nothing of what the shell inherited stays. close_range(2): 5.9. */
static void close_inherited(struct shell_fds *sh)
{
	if (sh->slot > 0)
		rqueue(sh->rt, "close_range", SYS_close_range, 0, sh->slot - 1, 0);
	rqueue(sh->rt, "close_range", SYS_close_range, sh->slot + 1, ~0u, 0);
}

static void move_slot(struct shell_fds *sh, int above)
{
	if (!process_fd(sh->p, sh->slot))
		return;
	rqueue(sh->rt, "fcntl", SYS_fcntl, sh->slot, F_DUPFD_CLOEXEC, above);
	rqueue(sh->rt, "fcntl", SYS_fcntl, above, F_GETFD, 0);
	rqueue(sh->rt, "close", SYS_close, sh->slot);
	shell_use(sh, sh->slot, false);
	shell_use(sh, above, true);
	sh->slot = above;
}

static void close_unwanted(struct shell_fds *sh, struct proc_installed *was)
{
	vec_foreach (e, &was->fds) {
		if (process_fd(sh->p, e->fd))
			continue;
		rqueue(sh->rt, "close", SYS_close, e->fd);
		shell_use(sh, e->fd, false);
	}
}

static const struct fd_installed *installed_as(const struct proc_installed *was, int fd)
{
	size_t lo = 0, hi = was->fds.n;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (was->fds.v[mid].fd < fd)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < was->fds.n && was->fds.v[lo].fd == fd ? &was->fds.v[lo] : NULL;
}

/* have: a number under which the description is in place already, or -1. */
static void set_number(struct shell_fds *sh, const struct fd_entry *e, int have)
{
	int flags = e->cloexec ? O_CLOEXEC : 0;

	if (have >= 0) {
		rqueue(sh->rt, "dup3", SYS_dup3, have, e->fd, flags);
	} else {
		int got = shell_fetch(sh, sh->fs->held[e->file].fd);

		if (got == e->fd) {
			rqueue(sh->rt, "fcntl", SYS_fcntl, got, F_SETFD,
			       e->cloexec ? FD_CLOEXEC : 0);
		} else {
			rqueue(sh->rt, "dup3", SYS_dup3, got, e->fd, flags);
			rqueue(sh->rt, "close", SYS_close, got);
		}
	}
	shell_use(sh, e->fd, true);
}

/* O_ASYNC remembers the number under which it was set, as si_fd of its signals: so the task sets
 * it. */
static void set_async(struct shell_fds *sh, const struct fd_entry *e)
{
	const struct file *f = &sh->t->files[e->file];
	struct held *h = &sh->fs->held[e->file];
	bool want = f->flags & O_ASYNC;

	if (want == h->async_set)
		return;
	rqueue(sh->rt, "fcntl", SYS_fcntl, e->fd, F_SETFL,
	       (h->flags_set & ~(uint32_t)O_ASYNC) | (want ? (uint32_t)O_ASYNC : 0));
	h->async_set = want;
}

static int install_table(struct shell_fds *sh, const struct proc_installed *was, struct cr_err *err)
{
	_cleanup_free_ int *where = malloc((sh->t->n_files + 1) * sizeof(*where));

	if (!where)
		return cr_err_oom(err);
	memset(where, 0xff, sh->t->n_files * sizeof(*where));
	for (size_t i = 0; i < sh->p->n_fds; i++) {
		const struct fd_entry *e = &sh->p->fds[i];
		const struct fd_installed *o = installed_as(was, e->fd);
		const struct held *h = &sh->fs->held[e->file];

		if (!o || o->serial != h->serial)
			set_number(sh, e, where[e->file]);
		else if (o->cloexec != e->cloexec)
			rqueue(sh->rt, "fcntl", SYS_fcntl, e->fd, F_SETFD,
			       e->cloexec ? FD_CLOEXEC : 0);
		where[e->file] = e->fd;
		set_async(sh, e);
	}
	return 0;
}

static int install_place(struct shell_fds *sh, const struct proc_installed *was, struct cr_err *err)
{
	uint64_t va;

	if (!was->cwd || strcmp(was->cwd, sh->p->cwd)) {
		int r = rtask_put(sh->rt, sh->p->cwd, strlen(sh->p->cwd) + 1, &va, err);

		if (r < 0)
			return r;
		rqueue(sh->rt, "chdir", SYS_chdir, va);
	}
	rqueue(sh->rt, "umask", SYS_umask, sh->p->umask);
	return 0;
}

/* What is in the shell now. */
static int remember(struct proc_installed *was, const struct shell_fds *sh, struct cr_err *err)
{
	was->fds.n = 0;
	for (size_t i = 0; i < sh->p->n_fds; i++) {
		const struct fd_entry *e = &sh->p->fds[i];
		struct fd_installed *n = vec_push(&was->fds);

		if (!n)
			return cr_err_oom(err);
		*n = (struct fd_installed){e->fd, sh->fs->held[e->file].serial, e->cloexec};
	}
	free(was->cwd);
	was->cwd = strdup(sh->p->cwd);
	return was->cwd ? 0 : cr_err_oom(err);
}

static int install(struct shell_fds *sh, struct proc_installed *was, bool fresh, int above,
		   struct cr_err *err)
{
	if (fresh)
		close_inherited(sh);
	shell_use(sh, sh->slot, true);
	vec_foreach (e, &was->fds)
		shell_use(sh, e->fd, true);
	move_slot(sh, above);
	close_unwanted(sh, was);
	int r = install_table(sh, was, err);
	if (!r)
		r = fileset_unix_install(sh, err);
	if (!r)
		r = fileset_epoll_install(sh, err);
	if (!r)
		r = install_place(sh, was, err);
	if (!r)
		r = rtask_run(sh->rt, err);
	rtask_scratch_reset(sh->rt);
	return r < 0 ? r : remember(was, sh, err);
}

bool fileset_needs_late(const struct process *p)
{
	return p->root && strcmp(p->root, "/");
}

/* chroot(2) leaves the working directory where it is. */
int fileset_late_queue(struct rtask *rt, const struct process *p, struct cr_err *err)
{
	uint64_t va;
	int r = rtask_put(rt, p->root, strlen(p->root) + 1, &va, err);

	if (!r)
		rqueue(rt, "chroot", SYS_chroot, va);
	return r;
}

/* The tree may come from a peer; and a tree that was not built would be installed wrongly. */
static int check_entries(const struct fileset *fs, const struct tree *t, const struct process *p,
			 struct cr_err *err)
{
	int last = -1;

	if (fs->n_held != t->n_files)
		return cr_err_set(err, CR_ERR_BUG, EINVAL,
				  "open files were not built for this tree");
	for (size_t i = 0; i < p->n_fds; i++) {
		if (p->fds[i].fd <= last || p->fds[i].file >= t->n_files)
			return cr_err_set(err, CR_ERR_PEER, EPROTO,
					  "descriptors of %d make no sense", p->pid);
		last = p->fds[i].fd;
	}
	return p->cwd ? 0 : cr_err_set(err, CR_ERR_PEER, EPROTO, "%d has no cwd", p->pid);
}

int fileset_install(struct fileset *fs, struct rtask *rt, const struct tree *t,
		    const struct process *p, int *agent_pidfd_slot, struct cr_err *err)
{
	int r = check_entries(fs, t, p, err);
	if (r < 0)
		return r;
	struct proc_installed *was = find_installed(fs, p->pid);
	bool fresh = !was;

	if (fresh) {
		was = vec_push(&fs->procs);
		if (!was)
			return cr_err_oom(err);
		was->pid = p->pid;
	}
	int above = highest(p, was, *agent_pidfd_slot) + 1;
	struct shell_fds sh = {.fs = fs,
			       .rt = rt,
			       .t = t,
			       .p = p,
			       .slot = *agent_pidfd_slot,
			       .n_used = above + 1 + TEMPORARY_MAX};
	_cleanup_free_ bool *used = calloc((size_t)sh.n_used, sizeof(*used));
	if (!used)
		return cr_err_oom(err);
	sh.used = used;
	r = install(&sh, was, fresh, above, err);
	if (r < 0)
		return cr_err_ctx(err, "descriptors of %d", p->pid);
	*agent_pidfd_slot = sh.slot;
	return 0;
}
