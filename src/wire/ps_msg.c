#include "wire/ps_msg.h"

#include "wire/le.h"

static const uint8_t magic[4] = {'C', 'R', 'P', '1'};

enum { TEXT_AT = 144, TEXT_BYTES = PS_REPLY_BYTES - TEXT_AT };

void ps_request_encode(uint8_t out[PS_REQUEST_BYTES], const struct ps_request *rq)
{
	memset(out, 0, PS_REQUEST_BYTES);
	memcpy(out, magic, sizeof(magic));
	out[4] = rq->type;
	le_put32(out + 8, rq->index);
	le_put32(out + 12, (uint32_t)rq->pid);
	le_put64(out + 16, rq->forbid_start);
	le_put64(out + 24, rq->forbid_end);
	memcpy(out + 32, rq->id, PAGE_ID_BYTES);
	memcpy(out + 48, rq->token, PAGE_TOKEN_BYTES);
}

static int bad(struct cr_err *err, const char *what)
{
	return cr_err_set(err, CR_ERR_PEER, EPROTO, "page-server control: %s", what);
}

int ps_request_decode(struct ps_request *ret, const void *p, size_t len, struct cr_err *err)
{
	const uint8_t *b = p;

	if (len != PS_REQUEST_BYTES || memcmp(b, magic, sizeof(magic)) || b[5] || b[6] || b[7])
		return bad(err, "not a request of this version");
	struct ps_request rq = {
	    .type = b[4],
	    .index = le_get32(b + 8),
	    .pid = (int32_t)le_get32(b + 12),
	    .forbid_start = le_get64(b + 16),
	    .forbid_end = le_get64(b + 24),
	};
	memcpy(rq.id, b + 32, PAGE_ID_BYTES);
	memcpy(rq.token, b + 48, PAGE_TOKEN_BYTES);
	if (rq.type < PS_SESSION || rq.type > PS_HURRY)
		return bad(err, "unknown request");
	if (rq.index >= PAGE_TARGETS_MAX)
		return bad(err, "target index out of range");
	if (rq.type == PS_TARGET_PROCESS && rq.pid <= 0)
		return bad(err, "bad pid");
	if (rq.forbid_start > rq.forbid_end || rq.forbid_start % CR_PAGE_SIZE ||
	    rq.forbid_end % CR_PAGE_SIZE)
		return bad(err, "bad forbidden range");
	*ret = rq;
	return 0;
}

/* The text field is the error of a reply that has one, else the last error of STATS. */
void ps_reply_encode(uint8_t out[PS_REPLY_BYTES], const struct ps_reply *rp)
{
	const struct cr_err *text = rp->err.kind ? &rp->err : &rp->stats.last_error;

	memset(out, 0, PS_REPLY_BYTES);
	memcpy(out, magic, sizeof(magic));
	out[4] = rp->type;
	le_put32(out + 8, rp->err.kind);
	le_put32(out + 12, (uint32_t)rp->err.code);
	memcpy(out + 16, rp->info.listen, strnlen(rp->info.listen, sizeof(rp->info.listen) - 1));
	le_put16(out + 80, rp->info.port);
	le_put32(out + 84, rp->info.caps);
	le_put32(out + 88, rp->stats.streams);
	le_put32(out + 92, rp->stats.targets);
	le_put64(out + 96, rp->stats.placed.data_pages);
	le_put64(out + 104, rp->stats.placed.zero_pages);
	le_put64(out + 112, rp->stats.placed.same_pages);
	le_put64(out + 120, rp->stats.placed.digest.lo);
	le_put64(out + 128, rp->stats.placed.digest.hi);
	le_put32(out + 136, rp->stats.last_error.kind);
	le_put32(out + 140, (uint32_t)rp->stats.last_error.code);
	memcpy(out + TEXT_AT, text->msg, strnlen(text->msg, TEXT_BYTES - 1));
}

static void get_err(struct cr_err *ret, const uint8_t *b, const uint8_t *text)
{
	uint32_t kind = le_get32(b), code = le_get32(b + 4);

	cr_err_clear(ret);
	if (!kind)
		return;
	ret->kind = kind <= CR_ERR_BUG ? (enum cr_err_kind)kind : CR_ERR_PEER;
	ret->code = code && code < 4096 ? (int)code : EIO;
	memcpy(ret->msg, text, strnlen((const char *)text, TEXT_BYTES - 1));
}

int ps_reply_decode(struct ps_reply *ret, const void *p, size_t len, struct cr_err *err)
{
	const uint8_t *b = p;

	if (len != PS_REPLY_BYTES || memcmp(b, magic, sizeof(magic)))
		return bad(err, "not a reply of this version");
	memset(ret, 0, sizeof(*ret));
	ret->type = b[4];
	memcpy(ret->info.listen, b + 16, sizeof(ret->info.listen) - 1);
	ret->info.port = le_get16(b + 80);
	ret->info.caps = le_get32(b + 84);
	ret->stats.streams = le_get32(b + 88);
	ret->stats.targets = le_get32(b + 92);
	ret->stats.placed.data_pages = le_get64(b + 96);
	ret->stats.placed.zero_pages = le_get64(b + 104);
	ret->stats.placed.same_pages = le_get64(b + 112);
	ret->stats.placed.digest.lo = le_get64(b + 120);
	ret->stats.placed.digest.hi = le_get64(b + 128);
	get_err(&ret->err, b + 8, b + TEXT_AT);
	if (!ret->err.kind)
		get_err(&ret->stats.last_error, b + 136, b + TEXT_AT);
	return 0;
}
