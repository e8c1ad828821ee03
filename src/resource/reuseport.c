#include "resource/reuseport.h"

#include <string.h>
#include <sys/socket.h>
#include "kernel/reuseview.h"
#include "resource/sock_filter.h"

/* ---- capture ---- */

struct group {
	uint64_t id; /* the kernel's */
	uint32_t n, seen, file;
};

struct grouping {
	struct files_ctx *x;
	VEC(struct group) groups; /* file.reuse_group is the place here, plus 1 */
};

static bool may_share(const struct file *f)
{
	return (f->kind == FILE_TCP_LISTEN || f->kind == FILE_TCP_IDLE || f->kind == FILE_UDP) &&
	       sockopt_int(f, SOL_SOCKET, SO_REUSEPORT, 0);
}

static void refuse_socket(const struct grouping *g, uint32_t file, const char *why)
{
	files_refuse(g->x, files_holder_pid(g->x, file), files_holder(g->x, file)->fd, "%s: %s",
		     g->x->c->tree->files[file].kind == FILE_UDP ? "UDP socket" : "TCP socket",
		     why);
}

/* Its place in groups, plus 1; 0: out of memory. */
static uint32_t number_of(struct grouping *g, const struct chosen_socket *s, uint32_t file)
{
	for (uint32_t i = 0; i < g->groups.n; i++)
		if (g->groups.v[i].id == s->group)
			return i + 1;
	struct group *new = vec_push(&g->groups);
	if (!new)
		return 0;
	*new = (struct group){.id = s->group, .n = s->n, .file = file};
	return (uint32_t)g->groups.n;
}

static int take(struct grouping *g, const struct chosen_socket *s, uint32_t file,
		struct cr_err *err)
{
	struct tree *t = g->x->c->tree;
	struct file *f = &t->files[file];

	if (f->reuse_group) /* by another descriptor */
		return 0;
	f->reuse_group = number_of(g, s, file);
	if (!f->reuse_group)
		return cr_err_oom(err);
	struct group *its = &g->groups.v[f->reuse_group - 1];
	if (s->place == UINT32_MAX && s->n) {
		refuse_socket(g, file,
			      "shut down, among sockets that a program chooses from: "
			      "not supported");
		return 0;
	}
	if (s->ebpf && !its->seen)
		refuse_socket(g, file,
			      "an eBPF program chooses among the sockets that share its port "
			      "(SO_ATTACH_REUSEPORT_EBPF): not supported");
	its->seen++;
	f->reuse_place = s->n ? s->place : 0; /* it is not there yet: bound only */
	f->reuse_code = arena_memdup(t->arena, s->code, s->n_code * sizeof(*s->code));
	f->n_reuse_code = s->n_code;
	return s->n_code && !f->reuse_code ? cr_err_oom(err) : 0;
}

static int look_at(struct grouping *g, uint32_t proc, struct cr_err *err)
{
	struct files_ctx *x = g->x;
	_cleanup_(chosen_done) struct chosen_list l = {0};
	int r = reuseview_read(x->c->reuse, x->c->tree->procs[proc].pid, &l, err);

	vec_foreach (s, &l.list) {
		const struct fd_seen *seen = r ? NULL : files_seen(x, proc, s->fd);

		if (seen && seen->file < x->c->tree->n_files &&
		    may_share(&x->c->tree->files[seen->file]))
			r = take(g, s, seen->file, err);
	}
	return r;
}

/* What the program would choose of the others would be another there. */
static void refuse_parts(const struct grouping *g)
{
	vec_foreach (its, &g->groups)
		if (its->seen < its->n)
			refuse_socket(g, its->file,
				      "a program chooses among the sockets that share its port "
				      "(SO_ATTACH_REUSEPORT_CBPF), and some are outside the tree: "
				      "not supported");
}

static void warn_unseen(struct files_ctx *x, uint32_t file)
{
	if (!x->c->exact)
		files_warn(x, files_holder_pid(x, file), files_holder(x, file)->fd,
			   "a program that chooses among the sockets that share its port "
			   "(SO_ATTACH_REUSEPORT_CBPF), if there is one, is lost: it shows to BPF "
			   "only");
}

int reuseport_capture(struct files_ctx *x, struct cr_err *err)
{
	struct grouping g = {.x = x};
	const struct tree *t = x->c->tree;
	int r = 0;

	for (uint32_t proc = 0; proc < t->n_procs && !r; proc++) {
		uint32_t file = UINT32_MAX;

		for (size_t i = x->proc_first[proc]; i < x->proc_first[proc + 1]; i++)
			if (x->seen.v[i].file < t->n_files &&
			    may_share(&t->files[x->seen.v[i].file])) {
				file = x->seen.v[i].file;
				break;
			}
		if (file == UINT32_MAX)
			continue;
		if (x->c->reuse)
			r = look_at(&g, proc, err);
		else
			warn_unseen(x, file);
	}
	if (!r)
		refuse_parts(&g);
	vec_done(&g.groups);
	return r;
}

/* ---- rebuild ---- */

uint32_t reuseport_member(const struct tree *t, uint32_t group, uint32_t place)
{
	for (uint32_t i = 0; group && i < t->n_files; i++)
		if (t->files[i].reuse_group == group && t->files[i].reuse_place == place)
			return i;
	return UINT32_MAX;
}

int reuseport_attach(int fd, const struct file *f, struct cr_err *err)
{
	return sock_filter_choose(fd, f->reuse_code, f->n_reuse_code, err);
}
