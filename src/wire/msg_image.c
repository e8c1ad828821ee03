/* Translation of the messages between source agent and a page-server that keeps images. */
#include "wire/msg_priv.h"

int msg_put_image(struct arena *a, const struct msg *m, void *p)
{
	Wire__Image *pb = p;

	(void)a;
	pb->name = pb_string(m->image.name);
	return 0;
}

int msg_get_image(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	Wire__Image *pb = p;

	(void)a, (void)err;
	m->image.name = msg_text(pb->name);
	return 0;
}

int msg_put_image_ok(struct arena *a, const struct msg *m, void *p)
{
	Wire__ImageOk *pb = p;

	pb->rounds = m->image_ok.rounds;
	return msg_put_id(a, &m->image_ok.writer, &pb->writer);
}

int msg_get_image_ok(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	Wire__ImageOk *pb = p;

	(void)a;
	m->image_ok.rounds = pb->rounds;
	return msg_get_id(&pb->writer, &m->image_ok.writer, err);
}

int msg_put_known(struct arena *a, const struct msg *m, void *p)
{
	Wire__Known *pb = p;

	(void)a;
	pb->target = m->known.target;
	pb->from = m->known.from;
	return 0;
}

int msg_get_known(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	Wire__Known *pb = p;

	(void)a, (void)err;
	m->known.target = pb->target;
	m->known.from = pb->from;
	return 0;
}

int msg_put_known_ok(struct arena *a, const struct msg *m, void *p)
{
	Wire__KnownOk *pb = p;

	(void)a;
	pb->chunks = pb_bytes(m->known_ok.chunks, m->known_ok.len);
	pb->next = m->known_ok.next;
	return 0;
}

int msg_get_known_ok(struct arena *a, struct msg *m, void *p, struct cr_err *err)
{
	Wire__KnownOk *pb = p;

	(void)a, (void)err;
	m->known_ok.chunks = pb->chunks.data;
	m->known_ok.len = pb->chunks.len;
	m->known_ok.next = pb->next;
	return 0;
}
