/* Which descriptors there are, and which of them are the same description. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include "resource/sockopt_alike.h"

/* ---- tables ---- */

/* What tells descriptions apart before kcmp(2) is asked. Only what cannot change while tasks run,
 * as locks do. */
static uint64_t tag_of(const char *rest)
{
	uint64_t id;

	while (!strncmp(rest, "lock:", 5))
		rest += strcspn(rest, "\n") + 1;
	if (!*rest)
		return 0;

	if (fdinfo_u64(rest, "eventfd-id", 10, &id)) /* 5.2 */
		return id;
	return strcspn(rest, ":") << 32 | (unsigned char)rest[0];
}

int files_see(struct files_ctx *x, uint32_t proc, int dirfd, const char *name, struct cr_err *err)
{
	pid_t pid = x->c->tree->procs[proc].pid;
	const char *rest;
	size_t off;
	int r = text_append_file(&x->text, dirfd, name, &off);

	if ((r == -ENOENT || r == -ESRCH) && !x->c->exact)
		return 0; /* closed meanwhile */
	if (r < 0) {
		errno = -r;
		return cr_err_sys(err, "fdinfo of fd %s of %d", name, pid);
	}
	struct fd_seen *s = vec_push(&x->seen);
	if (!s)
		return cr_err_oom(err);
	*s = (struct fd_seen){.proc = proc, .fd = atoi(name), .file = UINT32_MAX};
	r = fdinfo_parse(x->text.v + off, &s->info, &rest, err);
	if (r < 0)
		return cr_err_ctx(err, "fd %s of %d", name, pid);
	s->leader = (uint32_t)(x->seen.n - 1);
	s->tag = *rest ? tag_of(rest) : 0;
	s->text_off = *rest ? off : SIZE_MAX;
	if (!*rest)
		x->text.n = off;
	return 0;
}

/* What has been told already. */
static int see_told(struct files_ctx *x, uint32_t proc, const struct sock_facts *f,
		    struct cr_err *err)
{
	struct fd_seen *s = vec_push(&x->seen);
	struct sock_facts *kept = s ? vec_push(&x->facts.list) : NULL;

	if (!kept)
		return cr_err_oom(err);
	*kept = *f;
	*s = (struct fd_seen){.proc = proc,
			      .fd = f->fd,
			      .info = {.pos = f->pos,
				       .ino = f->ino,
				       .flags = f->flags | (f->cloexec ? O_CLOEXEC : 0),
				       .mnt_id = sock_alike_mnt_id(x->c->socks)},
			      .text_off = SIZE_MAX,
			      .leader = (uint32_t)(x->seen.n - 1),
			      .file = UINT32_MAX,
			      .told = (uint32_t)x->facts.list.n};
	return 0;
}

static int see_listed(struct files_ctx *x, uint32_t proc, const struct sock_facts_list *l,
		      int dirfd, struct cr_err *err)
{
	char name[16];
	int r = 0;

	vec_foreach (f, &l->list) {
		if (f->connection && sock_alike_covers(x->c->socks, f->family, NULL)) {
			r = see_told(x, proc, f, err);
		} else {
			snprintf(name, sizeof(name), "%d", f->fd);
			r = files_see(x, proc, dirfd, name, err);
		}
		if (r < 0)
			break;
	}
	return r;
}

/* 1: it is done that way. */
static int see_by_bpf(struct files_ctx *x, uint32_t proc, int dirfd, struct cr_err *err)
{
	_cleanup_(sock_facts_done) struct sock_facts_list l = {0};
	struct cr_err ignored = {0};
	bool told = false;

	if (!x->c->exact || !x->c->socks ||
	    sock_alike_list(x->c->socks, x->c->tree->procs[proc].pid, &l, &told, &ignored) || !told)
		return 0;
	int r = see_listed(x, proc, &l, dirfd, err);
	return r < 0 ? r : 1;
}

static int see_process(struct files_ctx *x, uint32_t proc, struct cr_err *err)
{
	const struct process *p = &x->c->tree->procs[proc];
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/fdinfo", p->pid);
	_cleanup_dir_ DIR *d = opendir(path);
	if (!d && !x->c->exact && (errno == ENOENT || errno == ESRCH))
		return 0; /* exited meanwhile */
	if (!d)
		return cr_err_sys(err, "%s", path);
	int by_bpf = see_by_bpf(x, proc, dirfd(d), err);
	if (by_bpf)
		return by_bpf < 0 ? by_bpf : 0;
	for (;;) {
		errno = 0;
		struct dirent *e = readdir(d);

		if (!e)
			break;
		if (e->d_name[0] == '.')
			continue;
		int r = files_see(x, proc, dirfd(d), e->d_name, err);
		if (r < 0)
			return r;
	}
	if (errno && (x->c->exact || errno != ENOENT))
		return cr_err_sys(err, "%s", path);
	return 0;
}

int files_list(struct files_ctx *x, struct cr_err *err)
{
	const struct tree *t = x->c->tree;

	x->proc_first = calloc(t->n_procs + 1, sizeof(*x->proc_first));
	if (!x->proc_first)
		return cr_err_oom(err);
	for (size_t i = 0; i < t->n_procs; i++) {
		x->proc_first[i] = x->seen.n;
		int r = t->procs[i].zombie ? 0 : see_process(x, (uint32_t)i, err);

		if (r < 0)
			return r;
	}
	x->proc_first[t->n_procs] = x->seen.n;
	return 0;
}

/* ---- which are the same ---- */

#define CMP(a, b)                                                                                  \
	do {                                                                                       \
		if ((a) != (b))                                                                    \
			return (a) < (b) ? -1 : 1;                                                 \
	} while (0)

static int cmp_look(const struct files_ctx *x, const struct fd_seen *a, const struct fd_seen *b)
{
	CMP(a->info.ino, b->info.ino);
	CMP(a->info.mnt_id, b->info.mnt_id);
	CMP(a->tag, b->tag);
	if (!x->c->exact) /* the rest may have changed between two readings */
		return 0;
	CMP(a->info.flags & ~O_CLOEXEC, b->info.flags & ~O_CLOEXEC);
	CMP(a->info.pos, b->info.pos);
	return 0;
}

static int cmp_order(const void *va, const void *vb, void *vx)
{
	const struct files_ctx *x = vx;
	uint32_t a = *(const uint32_t *)va, b = *(const uint32_t *)vb;
	int r = cmp_look(x, &x->seen.v[a], &x->seen.v[b]);

	return r ? r : (a > b) - (a < b);
}

static int kcmp_seen(struct files_ctx *x, uint32_t a, uint32_t b)
{
	const struct fd_seen *sa = &x->seen.v[a], *sb = &x->seen.v[b];
	const struct process *procs = x->c->tree->procs;

	return files_kcmp(procs[sa->proc].pid, sa->fd, procs[sb->proc].pid, sb->fd);
}

/* After a fork, most descriptors of a process are what its parent has under the same number. */
static bool same_as_parent(struct files_ctx *x, uint32_t me)
{
	struct fd_seen *s = &x->seen.v[me];
	const struct tree *t = x->c->tree;
	uint32_t parent = 0;

	while (parent < s->proc && t->procs[parent].pid != t->procs[s->proc].ppid)
		parent++;
	const struct fd_seen *theirs = parent < s->proc ? files_seen(x, parent, s->fd) : NULL;
	if (!theirs || cmp_look(x, s, theirs) || kcmp_seen(x, me, (uint32_t)(theirs - x->seen.v)))
		return false;
	s->leader = theirs->leader;
	return true;
}

/* order[0..n): descriptors that look the same, ascending. The distinct ones found so far are kept
 * sorted in the kernel's order, so that n descriptors of one description need n - 1 comparisons and
 * n of as many descriptions n log n. They are kept in order[] itself, from its start. */
static int tell_apart(struct files_ctx *x, uint32_t *order, size_t n, struct cr_err *err)
{
	size_t distinct = 1;

	for (size_t i = 1; i < n; i++) {
		uint32_t me = order[i];
		size_t lo = 0, hi = distinct;
		int r = 1;

		if (same_as_parent(x, me))
			continue;
		while (lo < hi && r) {
			size_t mid = (lo + hi) / 2;

			r = kcmp_seen(x, me, order[mid]);
			if (r < 0)
				break;
			if (r == 0)
				x->seen.v[me].leader = order[mid];
			else if (r == 1)
				hi = mid;
			else
				lo = mid + 1;
		}
		if (r < 0 && x->c->exact) {
			errno = -r;
			return cr_err_sys(err, "kcmp of fd %d of %d", x->seen.v[me].fd,
					  x->c->tree->procs[x->seen.v[me].proc].pid);
		}
		if (r <= 0) /* known, or closed meanwhile */
			continue;
		memmove(order + lo + 1, order + lo, (distinct - lo) * sizeof(*order));
		order[lo] = me;
		distinct++;
	}
	return 0;
}

int files_find_leaders(struct files_ctx *x, struct cr_err *err)
{
	size_t n = x->seen.n;
	_cleanup_free_ uint32_t *order = calloc(n + 1, sizeof(*order));
	int r = 0;

	if (!order)
		return cr_err_oom(err);
	for (size_t i = 0; i < n; i++)
		order[i] = (uint32_t)i;
	qsort_r(order, n, sizeof(*order), cmp_order, x);
	for (size_t i = 0, j; i < n && !r; i = j) {
		for (j = i + 1; j < n; j++)
			if (cmp_look(x, &x->seen.v[order[i]], &x->seen.v[order[j]]))
				break;
		if (j - i > 1)
			r = tell_apart(x, order + i, j - i, err);
	}
	return r;
}
