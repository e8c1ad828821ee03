#include "wire/ps_serve.h"

#include <string.h>
#include <sys/socket.h>
#include "wire/lazy_stream.h"
#include "wire/le.h"

static const uint8_t magic[4] = {'C', 'R', 'S', '5'};

enum {
	HDR_BYTES = 16,
	RANGE_BYTES = 24,
	TEXT_BYTES = 512,
	ENDED_BYTES = 8 + LAZY_STATS_BYTES + 8 + TEXT_BYTES,
};

union control {
	char buf[CMSG_SPACE(PSS_TASKS_MAX * sizeof(int))];
	struct cmsghdr align;
};

/* ---- out ---- */

static size_t put_ended(uint8_t *at, const struct pss_msg *m)
{
	memset(at, 0, ENDED_BYTES);
	le_put32(at, m->err.kind);
	le_put32(at + 4, (uint32_t)m->err.code);
	lazy_stats_encode(at + 8, &m->result);
	at += 8 + LAZY_STATS_BYTES;
	le_put64(at, m->result.asked_clean); /* our own count */
	memcpy(at + 8, m->err.msg, strnlen(m->err.msg, TEXT_BYTES - 1));
	return ENDED_BYTES;
}

static size_t encode(uint8_t out[PSS_BYTES_MAX], const struct pss_msg *m)
{
	uint8_t *at = out + HDR_BYTES;

	memcpy(out, magic, sizeof(magic));
	le_put16(out + 4, (uint16_t)m->type);
	le_put16(out + 6, (uint16_t)m->n);
	le_put64(out + 8, m->value);
	for (size_t i = 0; i < m->n; i++, at += RANGE_BYTES) {
		le_put64(at, (uint64_t)m->ranges[i].pid);
		le_put64(at + 8, m->ranges[i].start);
		le_put64(at + 16, m->ranges[i].end);
	}
	if (m->type == PSS_ENDED)
		at += put_ended(at, m);
	return (size_t)(at - out);
}

int pss_send(int socket, const struct pss_msg *m, const int *fds, size_t n_fds, struct cr_err *err)
{
	uint8_t bytes[PSS_BYTES_MAX];
	union control ctl = {0};
	struct iovec iov = {bytes, encode(bytes, m)};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (n_fds) {
		mh.msg_control = ctl.buf;
		mh.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
	}
	do
		n = sendmsg(socket, &mh, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? cr_err_sys(err, "page-server") : 0;
}

/* ---- in ---- */

static int bad(struct cr_err *err)
{
	return cr_err_set(err, CR_ERR_PEER, EPROTO, "page-server: not a message of this version");
}

static void get_ended(struct pss_msg *m, const uint8_t *at)
{
	uint32_t kind = le_get32(at), code = le_get32(at + 4);

	lazy_stats_decode(&m->result, at + 8);
	m->result.asked_clean = le_get64(at + 8 + LAZY_STATS_BYTES);
	if (!kind)
		return;
	m->err.kind = kind <= CR_ERR_BUG ? (enum cr_err_kind)kind : CR_ERR_PEER;
	m->err.code = code && code < 4096 ? (int)code : EIO;
	at += 8 + LAZY_STATS_BYTES + 8;
	memcpy(m->err.msg, at, strnlen((const char *)at, TEXT_BYTES - 1));
}

static int decode(struct pss_in *in, size_t len, struct cr_err *err)
{
	const uint8_t *b = in->bytes;

	if (len < HDR_BYTES || memcmp(b, magic, sizeof(magic)))
		return bad(err);
	in->m = (struct pss_msg){.type = le_get16(b + 4),
				 .n = le_get16(b + 6),
				 .value = le_get64(b + 8),
				 .ranges = in->ranges};
	bool ended = in->m.type == PSS_ENDED;
	bool ranges = in->m.type == PSS_RECENT || in->m.type == PSS_HAS;
	size_t most = in->m.type == PSS_TASKS ? PSS_TASKS_MAX : ranges ? PSS_RANGES_MAX : 0;
	if (in->m.type < PSS_READY || in->m.type > PSS_HAS || in->m.n > most ||
	    len != HDR_BYTES + in->m.n * RANGE_BYTES + (ended ? ENDED_BYTES : 0) ||
	    (in->m.type == PSS_TASKS && in->n_fds != in->m.n))
		return bad(err);
	b += HDR_BYTES;
	for (size_t i = 0; i < in->m.n; i++, b += RANGE_BYTES)
		in->ranges[i] =
		    (struct serve_range){(pid_t)le_get64(b), le_get64(b + 8), le_get64(b + 16)};
	if (ended)
		get_ended(&in->m, b);
	return 0;
}

int pss_recv(int socket, struct pss_in *in, struct cr_err *err)
{
	union control ctl;
	struct iovec iov = {in->bytes, sizeof(in->bytes)};
	struct msghdr mh = {.msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = ctl.buf,
			    .msg_controllen = sizeof(ctl.buf)};
	ssize_t n;

	in->n_fds = 0;
	do
		n = recvmsg(socket, &mh, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return cr_err_sys(err, "page-server");
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&mh); c; c = CMSG_NXTHDR(&mh, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		in->n_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(in->fds, CMSG_DATA(c), in->n_fds * sizeof(int));
	}
	if (!n)
		return cr_err_set(err, CR_ERR_IO, EPIPE, "the page-server is gone");
	if (mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
		return bad(err);
	return decode(in, (size_t)n, err);
}

void pss_close(struct pss_in *in)
{
	for (size_t i = 0; i < in->n_fds; i++)
		close(in->fds[i]);
	in->n_fds = 0;
}
