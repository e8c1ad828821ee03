#include "memory/table_probe.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include "base/parallel.h"
#include "base/vec.h"
#include "kernel/pagemap.h"

enum {
	THREAD_LEAST = 128, /* for fewer a thread does not pay */
	STEP = 32,
};

struct table_probes {
	VEC(struct table_probe) list;
	int pagemap;
	atomic_size_t next; /* to be asked for */
	pthread_t thread;
	bool started;
	int result; /* the thread's */
	struct cr_err err;
};

/* All that the other one, if there is one, has not begun with. */
static int ask_rest(struct table_probes *p, struct cr_err *err)
{
	size_t first;
	int r = 0;

	while (!r && (first = atomic_fetch_add(&p->next, STEP)) < p->list.n)
		for (size_t i = first; i < p->list.n && i < first + STEP && !r; i++)
			r = pagemap_entry(p->pagemap, p->list.v[i].va, &p->list.v[i].entry, err);
	return r;
}

static void *thread_main(void *arg)
{
	struct table_probes *p = arg;

	p->result = ask_rest(p, &p->err);
	return NULL;
}

static int collect(struct table_probes *p, const struct sentmap *m, struct cr_err *err)
{
	for (size_t i = 0; i < m->cap; i++) {
		const struct sent_chunk *c = &m->slots[i];
		unsigned int k = 0;

		while (c->used && k < CHUNK_PAGES && !chunk_test(c->sent, k))
			k++;
		if (!c->used || k == CHUNK_PAGES)
			continue;
		struct table_probe *probe = vec_push(&p->list);
		if (!probe)
			return cr_err_oom(err);
		probe->va = c->start + k * 4096ull;
	}
	return 0;
}

int table_probes_begin(struct table_probes **ret, int pagemap, const struct sentmap *m,
		       struct cr_err *err)
{
	struct table_probes *p = calloc(1, sizeof(*p));

	if (!p)
		return cr_err_oom(err);
	p->pagemap = pagemap;
	int r = collect(p, m, err);
	if (r) {
		table_probes_free(p);
		return r;
	}
	if (p->list.n >= THREAD_LEAST)
		p->started = !parallel_thread(&p->thread, thread_main, p);
	*ret = p;
	return 0;
}

static void join(struct table_probes *p)
{
	if (p->started)
		pthread_join(p->thread, NULL);
	p->started = false;
}

int table_probes_end(struct table_probes *p, const struct table_probe **ret_v, size_t *ret_n,
		     struct cr_err *err)
{
	int r = ask_rest(p, err);

	join(p);
	if (r)
		return r;
	if (p->result) {
		*err = p->err;
		return p->result;
	}
	*ret_v = p->list.v;
	*ret_n = p->list.n;
	return 0;
}

void table_probes_free(struct table_probes *p)
{
	if (!p)
		return;
	join(p);
	vec_done(&p->list);
	free(p);
}
