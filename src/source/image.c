/* A migration into an image: what differs from one into another host. The other side is a
 * page-server with --dir, which speaks the peer link's language and a few words more. */
#include "image/pages.h"
#include "model/layout.h"
#include "source/source.h"
#include "wire/page_stream.h"

enum { ANSWER_TIMEOUT_MS = 30000, SAVE_TIMEOUT_MS = 120000 };

int source_image_begin(struct source *s, struct cr_err *err)
{
	struct msg m = msg_of(MSG_IMAGE), reply;

	m.image.name = s->image->name;
	int r = link_call(s->peer, &m, MSG_IMAGE_OK, ANSWER_TIMEOUT_MS, &reply, err);
	if (r)
		return cr_err_ctx(err, "the image's receiver");
	s->image_is = (struct source_kept){
	    .there = true, .writer = reply.image_ok.writer, .rounds = reply.image_ok.rounds};
	msg_free(&reply);
	return 0;
}

/* ---- what is there already: also where nothing is mapped now, as something may be later ---- */

struct learning {
	struct sentmap *sent;
	uint32_t target;
};

static int learn_chunk(const struct learning *l, const struct image_chunk *c, struct cr_err *err)
{
	struct sent_chunk *s = sentmap_chunk(l->sent, c->va, true);

	_Static_assert((int)CHUNK_PAGES == (int)IMAGE_CHUNK_PAGES, "chunks are chunks");
	if (!s)
		return cr_err_oom(err);
	XXH128_hash_t *digests = sentmap_digests(l->sent, s); /* NULL: sent again, if written */
	for (unsigned int i = 0; i < IMAGE_CHUNK_PAGES; i++) {
		uint64_t va = c->va + i * CR_PAGE_SIZE;
		bool data = image_bit(c->data, i);

		if (!data && !image_bit(c->zero, i))
			continue;
		chunk_set(s->sent, i);
		if (digests)
			digests[i] = data ? c->hash[i] : page_hash_zero(l->target, va);
	}
	return 0;
}

static int learn_part(struct source *s, const struct learning *l, uint64_t *from,
		      struct cr_err *err)
{
	struct msg m = msg_of(MSG_KNOWN), reply;
	struct image_pages part;

	m.known = (struct msg_known){l->target, *from};
	int r = link_call(s->peer, &m, MSG_KNOWN_OK, ANSWER_TIMEOUT_MS, &reply, err);
	if (r)
		return r;
	image_pages_init(&part, -1, l->target, NULL);
	r = image_pages_decode(&part, reply.known_ok.chunks, reply.known_ok.len,
			       "the receiver's index", err);
	vec_foreach (c, &part.chunks)
		if (!r)
			r = learn_chunk(l, *c, err);
	if (!r && reply.known_ok.next && reply.known_ok.next <= *from)
		r = cr_err_set(err, CR_ERR_PEER, EPROTO, "the receiver's index does not ascend");
	*from = reply.known_ok.next;
	image_pages_done(&part);
	msg_free(&reply);
	return r;
}

static int learn(struct source *s, const struct learning *l, struct cr_err *err)
{
	uint64_t from = 0;
	int r;

	do
		r = learn_part(s, l, &from, err);
	while (!r && from);
	return r ? cr_err_ctx(err, "asking which pages are there already") : 0;
}

int source_image_learn(struct source *s, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < s->tree->n_procs && !r; i++) {
		struct source_proc *sp = source_find(s, s->tree->procs[i].pid);

		if (s->tree->procs[i].zombie || !sp || !sp->has_tracker)
			continue;
		r = learn(
		    s, &(struct learning){.sent = &sp->tracker.sent, .target = sp->tracker.target},
		    err);
	}
	for (size_t i = 0; i < s->tree->n_objects && i < s->objects.n && !r; i++)
		r = learn(s,
			  &(struct learning){.sent = &s->objects.v[i].sent,
					     .target = s->objects.v[i].target},
			  err);
	s->learned = !r;
	return r;
}

int source_image_clear(struct source *s, pid_t pid, struct cr_err *err)
{
	struct msg_range all = {0, PAGE_ADDR_END};
	struct msg m = msg_of(MSG_RESET), reply;

	m.reset =
	    (struct msg_reset){.pid = pid, .object = UINT32_MAX, .ranges = &all, .n_ranges = 1};
	int r = link_call(s->peer, &m, MSG_OK, source_patience_ms(s, 0), &reply, err);
	if (!r)
		msg_free(&reply);
	return r;
}

/* ---- the end of a pre-dump ---- */

int source_image_keep(struct source *s, struct cr_err *err)
{
	struct msg m = msg_of(MSG_KEEP), reply;
	int r = link_call(s->peer, &m, MSG_OK, SAVE_TIMEOUT_MS, &reply, err);

	if (r)
		return cr_err_ctx(err, "keeping what was copied");
	msg_free(&reply);
	for (size_t i = 0; i < s->tree->n_procs; i++) {
		struct source_proc *sp = source_find(s, s->tree->procs[i].pid);

		if (!s->tree->procs[i].zombie && sp && sp->has_tracker)
			tracker_pruned(&sp->tracker, &s->tree->procs[i].mm);
	}
	for (size_t i = 0; i < s->tree->n_objects && i < s->objects.n; i++)
		sentmap_cut(&s->objects.v[i].sent, s->tree->objects[i].size);
	return 0;
}
