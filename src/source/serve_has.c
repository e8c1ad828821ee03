#include "source/serve_has.h"

#include <sys/stat.h>
#include "base/cleanup.h"
#include "kernel/procfs.h"

static int add(struct serve_has *h, pid_t id, uint64_t start, uint64_t end, struct cr_err *err)
{
	struct serve_range *last = h->list.n ? &h->list.v[h->list.n - 1] : NULL;

	start -= start % LAZY_CHUNK_SPAN;
	end = ALIGN_UP(end, (uint64_t)LAZY_CHUNK_SPAN);
	if (last && last->pid == id && start <= last->end) {
		last->end = end > last->end ? end : last->end;
		return 0;
	}
	last = vec_push(&h->list);
	if (!last)
		return cr_err_oom(err);
	*last = (struct serve_range){id, start, end};
	return 0;
}

#define TOP 0x800000000000ull

bool serve_is_gone(const struct serve *sv, size_t i)
{
	uint64_t start;
	struct cr_err ignored = {0};

	return sv->starts &&
	       (proc_starttime(sv->pids[i], &start, &ignored) || start != sv->starts[i]);
}

/* Of who has ended nobody knows what there was: it is all lost. */
static int add_gone(struct serve_has *h, pid_t pid, struct cr_err *err)
{
	cr_err_clear(err);
	return add(h, pid, 0, TOP, err);
}

/* What is in files is not left behind, but telling it apart is not worth it. */
static int add_task(struct serve_has *h, const struct serve *sv, size_t i, struct cr_err *err)
{
	_cleanup_free_ char *text = NULL;
	struct proc_maps maps = {0};
	pid_t pid = sv->pids[i];
	int r = proc_read(pid, "maps", &text, err) < 0 ? -err->code : 0;

	if (r == -ESRCH || serve_is_gone(sv, i)) /* in this order: those were its own */
		return add_gone(h, pid, err);
	if (!r)
		r = proc_maps_parse(text, &maps, err);
	if (r)
		return r == -ESRCH ? add_gone(h, pid, err) : r;
	vec_foreach (m, &maps.list)
		if (!m->shared && !r)
			r = add(h, pid, m->start, m->end, err);
	proc_maps_done(&maps);
	return r;
}

static int add_file(struct serve_has *h, const struct serve_file *f, struct cr_err *err)
{
	struct stat st;

	if (fstat(f->fd, &st))
		return cr_err_sys(err, "the size of shared memory");
	return add(h, f->id, 0, (uint64_t)st.st_size, err);
}

int serve_has_find(struct serve_has *ret, struct serve *sv, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < sv->n_pids && !r; i++)
		r = add_task(ret, sv, i, err);
	for (size_t i = 0; i < sv->n_files && !r; i++)
		if (!(sv->files[i].id & SERVE_KNOWN))
			r = add_file(ret, &sv->files[i], err);
	sv->has = ret->list.v;
	sv->n_has = ret->list.n;
	return r;
}

void serve_has_done(struct serve_has *h)
{
	vec_done(&h->list);
}
