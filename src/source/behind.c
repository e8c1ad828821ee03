/* What stayed behind, once the tasks run at the destination: it is served until all of it is there.
 */
#include <fcntl.h>
#include <stdio.h>
#include "base/fault.h"
#include "source/serve_known.h"
#include "source/serve_objects.h"
#include "source/serve_peer.h"
#include "source/source.h"

/* Whoever serves pages in our place has to find them. */
static int note_object(struct source *s, const struct tree *t, uint32_t i, struct cr_err *err)
{
	for (size_t k = 0; k < t->n_procs; k++)
		for (size_t v = 0; v < t->procs[k].mm.n_vmas; v++) {
			const struct vma *m = &t->procs[k].mm.vmas[v];

			if (m->object != i)
				continue;
			struct journal_object *o = vec_push(&s->journal.objects);
			if (!o)
				return cr_err_oom(err);
			*o = (struct journal_object){i, t->procs[k].pid, m->start, m->end};
			return 0;
		}
	return 0; /* nobody has it any more */
}

int source_note_objects(struct source *s, const struct tree *t, struct cr_err *err)
{
	int r = 0;

	s->journal.objects.n = 0;
	for (uint32_t i = 0; i < s->objects.n && !r; i++)
		if (s->objects.v[i].behind)
			r = note_object(s, t, i, err);
	return r;
}

static void say_served(void *arg, uint64_t left)
{
	struct source *s = arg;
	char text[80];

	snprintf(text, sizeof(text), "%llu pages left to be fetched", (unsigned long long)left);
	source_event(s, "post-copy", text);
}

/* Whoever serves it is not to write it. */
static int open_to_read(int fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, O_RDONLY | O_CLOEXEC);
}

static int add_object(struct source *s, struct serve_files *f, uint32_t i, struct cr_err *err)
{
	const struct source_object *o = &s->objects.v[i];
	struct shared_pages written = {0};
	int fd = open_to_read(s->object_fds.list.v[i]);
	int r = fd < 0 ? cr_err_sys(err, "opening shared memory")
		       : serve_files_add(f, LAZY_OBJECT + (pid_t)i, fd, err);

	if (r)
		return r;
	bool known = source_behind_written(s, i, &written);
	r = serve_known_make(&o->sent, o->target, ALIGN_UP(o->size, CR_PAGE_SIZE) / CR_PAGE_SIZE,
			     known ? &written : NULL, &fd, err);
	shared_pages_done(&written);
	return r ? r : serve_files_add(f, (LAZY_OBJECT + (pid_t)i) | SERVE_KNOWN, fd, err);
}

static int add_objects(struct source *s, struct serve_files *f, struct cr_err *err)
{
	int r = 0;

	for (uint32_t i = 0; i < s->objects.n && !r; i++)
		if (s->objects.v[i].behind)
			r = add_object(s, f, i, err);
	return r;
}

int source_serve_destination(struct source *s, struct cr_err *err)
{
	_cleanup_(serve_files_done) struct serve_files files = {0};
	_cleanup_free_ pid_t *pids = calloc(s->seizure->procs.n + 1, sizeof(*pids));
	const struct serve_peer peer = {.address = s->rq->peer_address,
					.id = s->rq->id,
					.token = s->rq->token,
					.host = s->env->host,
					.timeout_ms = s->rq->opts.postcopy_timeout_ms};
	struct serve sv = {.pids = pids,
			   .max_bandwidth = s->rq->opts.max_bandwidth,
			   .recent = s->recent.v,
			   .n_recent = s->recent.n,
			   .progress = say_served,
			   .arg = s};

	if (!pids)
		return cr_err_oom(err);
	vec_foreach (q, &s->seizure->procs)
		if (!q->zombie)
			pids[sv.n_pids++] = q->pid;
	int r = add_objects(s, &files, err);
	if (r)
		return r;
	sv.files = files.list.v;
	sv.n_files = files.list.n;
	source_event(s, "post-copy", "the tasks run at the destination, and fetch what they need");
	fault_point("source-serving");
	r = serve_run(&sv, &peer, &s->page_server, err);
	s->done.postcopied = !r;
	s->done.postcopy = sv.result;
	return r ? cr_err_ctx(err, "serving the pages that are missing there") : 0;
}

/* ---- the switch-over ---- */
