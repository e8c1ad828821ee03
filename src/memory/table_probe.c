#include "memory/table_probe.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include "base/vec.h"
#include "kernel/pagemap.h"

enum { THREAD_LEAST = 128 }; /* for fewer a thread does not pay */

struct table_probes {
	VEC(struct table_probe) list;
	int pagemap;
	pthread_t thread;
	bool started;
	int policy;
	struct sched_param param;
	int result;
	struct cr_err err;
};

static void ask_all(struct table_probes *p)
{
	for (size_t i = 0; i < p->list.n && !p->result; i++)
		p->result =
		    pagemap_entry(p->pagemap, p->list.v[i].va, &p->list.v[i].entry, &p->err);
}

/* A thread does not get its creator's policy where that says SCHED_RESET_ON_FORK, sched(7). */
static void *thread_main(void *arg)
{
	struct table_probes *p = arg;

	(void)!sched_setscheduler(0, p->policy, &p->param);
	ask_all(p);
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
	p->policy = sched_getscheduler(0);
	if (p->list.n >= THREAD_LEAST && p->policy >= 0 && !sched_getparam(0, &p->param))
		p->started = !pthread_create(&p->thread, NULL, thread_main, p);
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
	bool asked = p->started;

	join(p);
	if (!asked)
		ask_all(p);
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
