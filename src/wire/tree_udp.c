/* What a UDP socket has besides its options. */
#include "wire/tree_priv.h"

#include <netinet/in.h>
#include <string.h>

enum { ADDRESS = 16, SOURCES_MAX = 64, SOCKADDR_MAX = 128, DATAGRAM_MAX = 65535, ERRNO_MAX = 4095 };

static Tree__Datagram *put_datagram(struct arena *a, const struct datagram *in)
{
	Tree__Datagram *pb = pb_new(a, &tree__datagram__descriptor);

	if (!pb)
		return NULL;
	pb->from = pb_bytes(in->from, in->from_len);
	pb->to = pb_bytes(in->to, ADDRESS);
	pb->ttl = in->ttl;
	pb->tos = in->tos;
	pb->data = pb_bytes(in->data, in->len);
	return pb;
}

static Tree__Membership *put_group(struct arena *a, const struct membership *in)
{
	Tree__Membership *pb = pb_new(a, &tree__membership__descriptor);

	if (!pb)
		return NULL;
	pb->dev = pb_string(in->dev);
	pb->family = (uint32_t)in->family;
	pb->group = pb_bytes(in->group, ADDRESS);
	pb->include = in->include;
	pb->sources = pb_bytes(in->sources, in->n_sources * ADDRESS);
	return pb;
}

bool tree_put_udp(struct arena *a, const struct file *in, Tree__File *pb)
{
	pb->datagrams = arena_array(a, Tree__Datagram *, in->n_datagrams);
	pb->groups = arena_array(a, Tree__Membership *, in->n_groups);
	if (!pb->datagrams || !pb->groups)
		return false;
	for (size_t i = 0; i < in->n_datagrams; i++)
		if (!(pb->datagrams[pb->n_datagrams++] = put_datagram(a, &in->datagrams[i])))
			return false;
	for (size_t i = 0; i < in->n_groups; i++)
		if (!(pb->groups[pb->n_groups++] = put_group(a, &in->groups[i])))
			return false;
	return true;
}

static int get_datagram(struct arena *a, const Tree__Datagram *pb, struct datagram *out,
			struct cr_err *err)
{
	size_t from_len = 0;

	if (pb->to.len != ADDRESS)
		return tree_bad(err, "address of a datagram: %zu bytes", pb->to.len);
	memcpy(out->to, pb->to.data, ADDRESS);
	out->ttl = pb->ttl;
	out->tos = pb->tos;
	int r = tree_get_bytes(a, &pb->from, &out->from, &from_len, err);
	out->from_len = (uint32_t)from_len;
	return r < 0 ? r : tree_get_bytes(a, &pb->data, &out->data, &out->len, err);
}

static int get_group(struct arena *a, const Tree__Membership *pb, struct membership *out,
		     struct cr_err *err)
{
	const uint8_t *sources = NULL;
	size_t len = 0;

	if (pb->group.len != ADDRESS || pb->sources.len % ADDRESS ||
	    strlen(pb->dev) >= sizeof(out->dev))
		return tree_bad(err, "a multicast group that makes no sense");
	memcpy(out->dev, pb->dev, strlen(pb->dev) + 1);
	out->family = (int)pb->family;
	memcpy(out->group, pb->group.data, ADDRESS);
	out->include = pb->include;
	int r = tree_get_bytes(a, &pb->sources, &sources, &len, err);
	out->sources = (const uint8_t(*)[ADDRESS])sources;
	out->n_sources = len / ADDRESS;
	return r;
}

int tree_get_udp(struct arena *a, const Tree__File *pb, struct file *out, struct cr_err *err)
{
	int r = 0;

	out->datagrams = arena_array(a, struct datagram, pb->n_datagrams);
	out->groups = arena_array(a, struct membership, pb->n_groups);
	if (!out->datagrams || !out->groups)
		return cr_err_oom(err);
	for (size_t i = 0; i < pb->n_datagrams && r >= 0; i++)
		r = get_datagram(a, pb->datagrams[i], &out->datagrams[out->n_datagrams++], err);
	for (size_t i = 0; i < pb->n_groups && r >= 0; i++)
		r = get_group(a, pb->groups[i], &out->groups[out->n_groups++], err);
	return r < 0 ? r : 0;
}

int tree_check_udp(const struct file *f, size_t i, struct cr_err *err)
{
	if (f->kind == FILE_UDP && (f->sock_error < 0 || f->sock_error > ERRNO_MAX ||
				    (f->sock_error && (!f->connected || !f->peeraddr_len))))
		return tree_bad(err, "file %zu: error %d", i, f->sock_error);
	for (size_t k = 0; k < f->n_datagrams; k++) {
		const struct datagram *d = &f->datagrams[k];

		if (d->from_len > SOCKADDR_MAX || d->len > DATAGRAM_MAX || d->ttl > UINT8_MAX ||
		    d->tos > UINT8_MAX)
			return tree_bad(err, "file %zu: datagram %zu", i, k);
	}
	for (size_t k = 0; k < f->n_groups; k++) {
		const struct membership *m = &f->groups[k];

		if ((m->family != AF_INET && m->family != AF_INET6) || m->n_sources > SOURCES_MAX ||
		    !memchr(m->dev, 0, sizeof(m->dev)))
			return tree_bad(err, "file %zu: group %zu", i, k);
	}
	return 0;
}
