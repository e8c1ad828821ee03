#include "resource/unix_diag.h"

#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const void *payload(const struct nlattr *a, size_t bytes)
{
	return a->nla_len >= NLA_HDRLEN + bytes ? (const char *)a + NLA_HDRLEN : NULL;
}

static void take_attribute(const struct nlattr *a, struct unix_diag_info *ret)
{
	const struct unix_diag_rqlen *q;
	const uint32_t *ino;
	const uint8_t *shut;

	switch (a->nla_type) {
	case UNIX_DIAG_PEER:
		ino = payload(a, sizeof(*ino));
		ret->has_peer = ino;
		ret->peer_ino = ino ? *ino : 0;
		break;
	case UNIX_DIAG_ICONS:
		free(ret->waiting);
		ret->n_waiting = 0;
		ret->waiting = malloc(a->nla_len);
		if (!ret->waiting)
			break;
		ret->n_waiting = (uint32_t)((a->nla_len - NLA_HDRLEN) / sizeof(*ret->waiting));
		memcpy(ret->waiting, (const char *)a + NLA_HDRLEN,
		       ret->n_waiting * sizeof(*ret->waiting));
		break;
	case UNIX_DIAG_RQLEN:
		q = payload(a, sizeof(*q));
		ret->queued = q ? q->udiag_rqueue : 0;
		ret->queue_max = q ? q->udiag_wqueue : 0;
		break;
	case UNIX_DIAG_SHUTDOWN:
		shut = payload(a, sizeof(*shut));
		ret->shutdown = shut ? *shut & 3 : 0;
		break;
	default:
		break;
	}
}

static int ask(uint64_t ino, uint32_t show, struct unix_diag_info *ret, struct cr_err *err)
{
	struct {
		struct nlmsghdr h;
		struct unix_diag_req r;
	} rq = {.h = {.nlmsg_len = sizeof(rq),
		      .nlmsg_type = SOCK_DIAG_BY_FAMILY,
		      .nlmsg_flags = NLM_F_REQUEST},
		.r = {.sdiag_family = AF_UNIX,
		      .udiag_states = UINT32_MAX,
		      .udiag_ino = (uint32_t)ino,
		      .udiag_show = show,
		      .udiag_cookie = {UINT32_MAX, UINT32_MAX}}};
	/* the kernel gives no more than a page for one socket */
	char buf[2 * CR_PAGE_SIZE] __attribute__((aligned(NLMSG_ALIGNTO)));
	_cleanup_fd_ int nl = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);

	if (nl < 0 || send(nl, &rq, sizeof(rq), 0) < 0)
		return cr_err_sys(err, "sock_diag of a unix socket");
	ssize_t n = recv(nl, buf, sizeof(buf), 0);
	const struct nlmsghdr *h = (const void *)buf;
	if (n < 0 || !NLMSG_OK(h, (size_t)n) || h->nlmsg_type != SOCK_DIAG_BY_FAMILY ||
	    h->nlmsg_len < NLMSG_LENGTH(sizeof(struct unix_diag_msg)))
		return cr_err_set(err, CR_ERR_KERNEL, EPROTO,
				  "sock_diag knows no such unix socket");
	const struct unix_diag_msg *m = NLMSG_DATA(h);
	ret->listens = m->udiag_state == TCP_LISTEN;
	const char *at = (const char *)NLMSG_DATA(h) + NLMSG_ALIGN(sizeof(struct unix_diag_msg));
	const char *end = buf + h->nlmsg_len;
	while (end - at >= (ptrdiff_t)sizeof(struct nlattr)) {
		const struct nlattr *a = (const void *)at;

		if (a->nla_len < sizeof(*a) || a->nla_len > end - at)
			break;
		take_attribute(a, ret);
		at += NLA_ALIGN(a->nla_len);
	}
	return 0;
}

int unix_diag_get(uint64_t ino, struct unix_diag_info *ret, struct cr_err *err)
{
	struct cr_err ignored = {0};

	*ret = (struct unix_diag_info){0};
	int r = ask(ino, UDIAG_SHOW_RQLEN | UDIAG_SHOW_PEER, ret, err);
	/* those of a long queue do not fit into an answer */
	if (!r && ret->listens && ret->queued && ask(ino, UDIAG_SHOW_ICONS, ret, &ignored))
		ret->n_waiting = 0;
	return r;
}
