#include "resource/sock_program.h"

#include <bpf/bpf.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include "kernel/prog_code.h"
#include "resource/resource.h"
#include "resource/sock_filter.h"

enum { PROGRAM_MAX = 4096 }; /* wire/tree_check.c takes no more */

static int unmoved(struct cr_err *err, const char *why)
{
	return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOTSUP,
			  "with an eBPF filter (SO_ATTACH_BPF) %s", why);
}

/* ---- capture ---- */

static const struct file *with_program(const struct tree *t, uint32_t id)
{
	for (size_t i = 0; t && i < t->n_files; i++)
		if (t->files[i].program_id == id && t->files[i].n_program)
			return &t->files[i];
	return NULL;
}

static int keep(struct arena *a, struct file *f, uint32_t id, const uint64_t *code, size_t n,
		const char *name, bool gpl, struct cr_err *err)
{
	f->program = arena_memdup(a, code, n * sizeof(*code));
	f->program_name = arena_strdup(a, name ? name : "");
	f->n_program = n;
	f->program_gpl = gpl;
	f->program_id = id;
	return f->program && f->program_name ? 0 : cr_err_oom(err);
}

static bool is_lock(const struct prog_code *c)
{
	struct bpf_insn lock[SOCK_LOCK_INSNS];

	sock_lock_code(lock);
	return c->n == SOCK_LOCK_INSNS && !memcmp(c->insn, lock, sizeof(lock)) &&
	       !strcmp(c->name, SOCK_LOCK_NAME);
}

static int read_new(struct arena *a, uint32_t id, struct file *f, struct cr_err *err)
{
	struct prog_code c;
	struct cr_err why = {0};
	int r = prog_code_read(id, &c, &why);
	_cleanup_free_ struct bpf_insn *insn = c.insn;

	_Static_assert(sizeof(*insn) == sizeof(*f->program), "one for each");
	if (r == -ENOTSUP)
		return unmoved(err, why.msg);
	if (r) {
		*err = why;
		return r;
	}
	if (c.n > PROGRAM_MAX)
		return unmoved(err, "of more than 4,096 instructions");
	/* whoever cleans up would take it off */
	if (is_lock(&c))
		return unmoved(err, "that looks like one of ours");
	_cleanup_free_ uint64_t *code = malloc(c.n * sizeof(*code));
	if (!code)
		return cr_err_oom(err);
	memcpy(code, insn, c.n * sizeof(*code));
	return keep(a, f, id, code, c.n, c.name, c.gpl, err);
}

int sock_program_get(const struct capture *c, int fd, struct file *f, struct cr_err *err)
{
	const struct file *like;
	uint32_t id;

	if (!sock_filter_is_ebpf(fd))
		return 0;
	if (!c->reuse)
		return unmoved(err, "that shows to BPF only");
	int r = reuseview_filter(c->reuse, fd, &id, err);
	if (r)
		return r;
	if (!id)
		return unmoved(err, "that this kernel does not tell");
	/* an id is not given again while its program is in use: sockets often share one, and at the
	 * stop there is no time to learn it again */
	if (!(like = with_program(c->prev, id)))
		like = with_program(c->tree, id);
	if (like)
		return keep(c->tree->arena, f, id, like->program, like->n_program,
			    like->program_name, like->program_gpl, err);
	return read_new(c->tree->arena, id, f, err);
}

/* ---- rebuild ---- */

static int load(const struct file *f, struct cr_err *err)
{
	struct prog_code c = {.n = f->n_program, .gpl = f->program_gpl};
	size_t len = f->program_name ? strlen(f->program_name) : 0;

	if (c.n > PROGRAM_MAX || len >= sizeof(c.name))
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "an eBPF program of %zu instructions",
				  c.n);
	if (len)
		memcpy(c.name, f->program_name, len);
	_cleanup_free_ struct bpf_insn *insn = calloc(c.n, sizeof(*insn));
	if (!insn)
		return cr_err_oom(err);
	memcpy(insn, f->program, c.n * sizeof(*insn));
	c.insn = insn;
	return prog_code_load(&c, err);
}

int sock_program_set(int fd, const struct file *f, struct cr_err *err)
{
	if (!f->n_program)
		return 0;
	_cleanup_fd_ int prog = load(f, err);
	if (prog < 0)
		return prog;
	return setsockopt(fd, SOL_SOCKET, SO_ATTACH_BPF, &prog, sizeof(prog))
		   ? cr_err_sys(err, "SO_ATTACH_BPF")
		   : 0;
}

int sock_program_check(const struct file *f, struct cr_err *err)
{
	if (!f->n_program)
		return 0;
	_cleanup_fd_ int prog = load(f, err);
	return prog < 0 ? prog : 0;
}

int sock_program_cmp(const struct file *a, const struct file *b)
{
	const char *x = a->program_name ? a->program_name : "";
	const char *y = b->program_name ? b->program_name : "";

	if (a->n_program != b->n_program)
		return a->n_program < b->n_program ? -1 : 1;
	if (!a->n_program)
		return 0;
	if (a->program_gpl != b->program_gpl)
		return a->program_gpl ? 1 : -1;
	int r = memcmp(a->program, b->program, a->n_program * sizeof(*a->program));
	return r ? r : strcmp(x, y);
}

/* ---- after a process that got lost ---- */

bool sock_program_is_ours(struct sock_program_owner *o, int fd)
{
	struct cr_err ignored = {0};
	struct prog_code c;
	uint32_t id = 0;

	if (!o->asked && reuseview_new(&o->view, &ignored))
		o->view = NULL;
	o->asked = true;
	/* where it is not to be had, no socket with a program of its own was taken */
	if (!o->view)
		return true;
	if (reuseview_filter(o->view, fd, &id, &ignored) || !id)
		return false;
	if (id == o->id)
		return o->ours;
	o->id = id;
	o->ours = !prog_code_read(id, &c, &ignored);
	if (o->ours) {
		o->ours = is_lock(&c);
		free(c.insn);
	}
	return o->ours;
}

void sock_program_owner_done(struct sock_program_owner *o)
{
	reuseview_free(o->view);
	o->view = NULL;
}
