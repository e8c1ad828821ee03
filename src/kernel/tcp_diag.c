#include "kernel/tcp_diag.h"

#include <libmnl/libmnl.h>
#include <linux/inet_diag.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>

enum {
	/* all but TIME_WAIT, CLOSE and LISTEN */
	STATES = 1 << TCP_ESTABLISHED | 1 << TCP_SYN_SENT | 1 << TCP_FIN_WAIT1 |
		 1 << TCP_FIN_WAIT2 | 1 << TCP_CLOSE_WAIT | 1 << TCP_LAST_ACK | 1 << TCP_CLOSING,
	ENDING = 1 << TCP_FIN_WAIT1 | 1 << TCP_LAST_ACK | 1 << TCP_CLOSING,
	QUEUED = 1 << TCP_ESTABLISHED | 1 << TCP_CLOSE_WAIT,
	PROBING = 4, /* idiag_timer: the peer's window is closed, sock_diag(7) */
};

void tcp_diag_done(struct tcp_diag *d)
{
	vec_done(&d->list);
}

static void put(struct sockaddr_storage *sa, int family, const uint32_t *address, uint16_t port)
{
	struct sockaddr_in *in = (void *)sa;
	struct sockaddr_in6 *in6 = (void *)sa;

	sa->ss_family = (sa_family_t)family;
	in->sin_port = port; /* sin6_port is at the same place */
	if (family == AF_INET)
		memcpy(&in->sin_addr, address, 4);
	else
		memcpy(&in6->sin6_addr, address, 16);
}

/* A kTLS or MPTCP subflow tells its name, INET_DIAG_ULP_INFO (5.4). */
static void take_ulp(const struct nlattr *info, struct tcp_diag_entry *e)
{
	const struct nlattr *attr;

	mnl_attr_for_each_nested(attr, info)
	{
		if (mnl_attr_get_type(attr) == INET_ULP_INFO_NAME)
			snprintf(e->ulp, sizeof(e->ulp), "%.*s",
				 (int)mnl_attr_get_payload_len(attr),
				 (const char *)mnl_attr_get_payload(attr));
	}
}

static int take(const struct nlmsghdr *nlh, void *arg)
{
	const struct inet_diag_msg *m = mnl_nlmsg_get_payload(nlh);
	struct tcp_diag *d = arg;
	const struct nlattr *attr;

	if (!m->idiag_inode) /* closed by its program */
		return MNL_CB_OK;
	struct tcp_diag_entry *e = vec_push(&d->list);
	if (!e) {
		errno = ENOMEM;
		return MNL_CB_ERROR;
	}
	e->ino = m->idiag_inode;
	e->state = m->idiag_state;
	e->family = m->idiag_family;
	put(&e->us, e->family, m->id.idiag_src, m->id.idiag_sport);
	put(&e->peer, e->family, m->id.idiag_dst, m->id.idiag_dport);
	if (e->family == AF_INET6 &&
	    IN6_IS_ADDR_LINKLOCAL(&((struct sockaddr_in6 *)&e->us)->sin6_addr))
		((struct sockaddr_in6 *)&e->us)->sin6_scope_id = m->id.idiag_if;
	mnl_attr_for_each(attr, nlh, sizeof(*m))
	{
		if (mnl_attr_get_type(attr) == INET_DIAG_ULP_INFO)
			take_ulp(attr, e);
		else if (mnl_attr_get_type(attr) == INET_DIAG_MD5SIG)
			e->md5 = true;
	}
	return MNL_CB_OK;
}

static void nl_closep(struct mnl_socket **nl)
{
	if (*nl)
		mnl_socket_close(*nl);
}

struct question {
	uint32_t states;
	uint8_t ext;
	mnl_cb_t take;
	void *list;
};

static int dump(const struct question *q, int family)
{
	_cleanup_(nl_closep) struct mnl_socket *nl =
	    mnl_socket_open2(NETLINK_SOCK_DIAG, SOCK_CLOEXEC);
	_cleanup_free_ char *buf = malloc((size_t)MNL_SOCKET_BUFFER_SIZE);
	int r = MNL_CB_OK;

	if (!nl || !buf || mnl_socket_bind(nl, 0, MNL_SOCKET_AUTOPID) < 0)
		return -1;
	struct nlmsghdr *nlh = mnl_nlmsg_put_header(buf);
	nlh->nlmsg_type = SOCK_DIAG_BY_FAMILY;
	nlh->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
	nlh->nlmsg_seq = 1;
	struct inet_diag_req_v2 *rq = mnl_nlmsg_put_extra_header(nlh, sizeof(*rq));
	rq->sdiag_family = (uint8_t)family;
	rq->sdiag_protocol = IPPROTO_TCP;
	rq->idiag_ext = q->ext;
	rq->idiag_states = q->states;
	if (mnl_socket_sendto(nl, nlh, nlh->nlmsg_len) < 0)
		return -1;
	while (r > MNL_CB_STOP) {
		ssize_t n = mnl_socket_recvfrom(nl, buf, (size_t)MNL_SOCKET_BUFFER_SIZE);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		r = mnl_cb_run(buf, (size_t)n, 1, mnl_socket_get_portid(nl), q->take, q->list);
	}
	return r;
}

/* ---- ending one ---- */

static uint16_t put_id(const struct sockaddr_storage *sa, uint32_t address[4])
{
	const struct sockaddr_in *in = (const void *)sa;
	const struct sockaddr_in6 *in6 = (const void *)sa;

	if (sa->ss_family == AF_INET)
		memcpy(address, &in->sin_addr, 4);
	else
		memcpy(address, &in6->sin6_addr, 16);
	return in->sin_port; /* sin6_port is at the same place */
}

int tcp_diag_destroy(const struct sockaddr_storage *us, const struct sockaddr_storage *peer,
		     int device, struct cr_err *err)
{
	_cleanup_(nl_closep) struct mnl_socket *nl =
	    mnl_socket_open2(NETLINK_SOCK_DIAG, SOCK_CLOEXEC);
	_cleanup_free_ char *buf = malloc((size_t)MNL_SOCKET_BUFFER_SIZE);

	if (!nl || !buf || mnl_socket_bind(nl, 0, MNL_SOCKET_AUTOPID) < 0)
		return cr_err_sys(err, "sock_diag");
	struct nlmsghdr *nlh = mnl_nlmsg_put_header(buf);
	nlh->nlmsg_type = SOCK_DESTROY;
	nlh->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
	nlh->nlmsg_seq = 1;
	struct inet_diag_req_v2 *rq = mnl_nlmsg_put_extra_header(nlh, sizeof(*rq));
	rq->sdiag_family = (uint8_t)us->ss_family;
	rq->sdiag_protocol = IPPROTO_TCP;
	rq->idiag_states = UINT32_MAX;
	rq->id.idiag_sport = put_id(us, rq->id.idiag_src);
	rq->id.idiag_dport = put_id(peer, rq->id.idiag_dst);
	rq->id.idiag_if = (uint32_t)device;
	rq->id.idiag_cookie[0] = rq->id.idiag_cookie[1] = (uint32_t)INET_DIAG_NOCOOKIE;
	if (mnl_socket_sendto(nl, nlh, nlh->nlmsg_len) < 0)
		return cr_err_sys(err, "SOCK_DESTROY");
	ssize_t n = mnl_socket_recvfrom(nl, buf, (size_t)MNL_SOCKET_BUFFER_SIZE);
	if (n < 0 || mnl_cb_run(buf, (size_t)n, 1, mnl_socket_get_portid(nl), NULL, NULL) < 0)
		return cr_err_sys(err, "SOCK_DESTROY");
	return 0;
}

static int cmp_ino(const void *va, const void *vb)
{
	const struct tcp_diag_entry *a = va, *b = vb;

	return (a->ino > b->ino) - (a->ino < b->ino);
}

static int dump_all(const struct question *q, struct cr_err *err)
{
	/* without IPv6 there is nothing to be listed */
	return dump(q, AF_INET) < 0 || (dump(q, AF_INET6) < 0 && errno != ENOENT)
		   ? cr_err_sys(err, "listing TCP connections (sock_diag)")
		   : 0;
}

static int list_owned(uint32_t states, struct tcp_diag *ret, struct cr_err *err)
{
	const struct question q = {
	    .states = states,
	    .ext = 1 << (INET_DIAG_INFO - 1), /* with which INET_DIAG_ULP_INFO comes */
	    .take = take,
	    .list = ret};

	*ret = (struct tcp_diag){0};
	int r = dump_all(&q, err);
	if (r) {
		tcp_diag_done(ret);
		return r;
	}
	if (ret->list.n)
		qsort(ret->list.v, ret->list.n, sizeof(*ret->list.v), cmp_ino);
	return 0;
}

int tcp_diag_read(struct tcp_diag *ret, struct cr_err *err)
{
	return list_owned(STATES, ret, err);
}

int tcp_diag_listeners(struct tcp_diag *ret, struct cr_err *err)
{
	return list_owned(1 << TCP_LISTEN, ret, err);
}

const struct tcp_diag_entry *tcp_diag_find(const struct tcp_diag *d, uint64_t ino)
{
	const struct tcp_diag_entry key = {.ino = ino};

	return d->list.n ? bsearch(&key, d->list.v, d->list.n, sizeof(key), cmp_ino) : NULL;
}

/* ---- that nobody has ---- */

void tcp_unowned_done(struct tcp_unowned_list *l)
{
	vec_done(&l->list);
}

static int take_unowned(const struct nlmsghdr *nlh, void *arg)
{
	const struct inet_diag_msg *m = mnl_nlmsg_get_payload(nlh);
	struct tcp_unowned_list *l = arg;

	if (m->idiag_inode)
		return MNL_CB_OK;
	struct tcp_unowned *u = vec_push(&l->list);
	if (!u) {
		errno = ENOMEM;
		return MNL_CB_ERROR;
	}
	u->family = m->idiag_family;
	u->bytes = m->idiag_wqueue;
	u->stuck = m->idiag_retrans || m->idiag_timer == PROBING;
	put(&u->us, u->family, m->id.idiag_src, m->id.idiag_sport);
	put(&u->peer, u->family, m->id.idiag_dst, m->id.idiag_dport);
	return MNL_CB_OK;
}

static int list_unowned(uint32_t states, struct tcp_unowned_list *ret, struct cr_err *err)
{
	const struct question q = {.states = states, .take = take_unowned, .list = ret};

	*ret = (struct tcp_unowned_list){0};
	int r = dump_all(&q, err);
	if (r)
		tcp_unowned_done(ret);
	return r;
}

int tcp_diag_unowned(struct tcp_unowned_list *ret, struct cr_err *err)
{
	return list_unowned(ENDING, ret, err);
}

int tcp_diag_unaccepted(struct tcp_unowned_list *ret, struct cr_err *err)
{
	return list_unowned(QUEUED, ret, err);
}
