#include "resource/sock_filter.h"

#include <bpf/bpf.h>
#include <linux/filter.h>
#include <string.h>
#include <sys/socket.h>
#include "kernel/sock_policy.h"

enum {
	MARK_ALL = 0x63722d6c,
	MARK_NEW = 0x63722d6e,
	TCP_FLAGS = 13, /* offset in the header, RFC 9293, 3.1 */
	TCP_SYN_BIT = 2,
	LOCK_LEN_MAX = 5,
};

/* The first instruction does nothing but tell whose filter it is. */
static const struct sock_filter lock_all[] = {
    {BPF_LD | BPF_IMM, 0, 0, MARK_ALL},
    {BPF_RET | BPF_K, 0, 0, 0},
};

static const struct sock_filter lock_new[] = {
    {BPF_LD | BPF_IMM, 0, 0, MARK_NEW},
    {BPF_LD | BPF_B | BPF_ABS, 0, 0, TCP_FLAGS},
    {BPF_JMP | BPF_JSET | BPF_K, 0, 1, TCP_SYN_BIT},
    {BPF_RET | BPF_K, 0, 0, 0},
};

static const struct sock_filter accept_all = {BPF_RET | BPF_K, 0, 0, UINT32_MAX};

struct code {
	struct sock_filter v[BPF_MAXINSNS];
	size_t n;
};

/* What is attached; n 0: nothing. */
static int read_code(int fd, struct code *c, struct cr_err *err)
{
	socklen_t n = 0; /* counts instructions here, not bytes */

	c->n = 0;
	if (getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &n))
		return cr_err_sys(err, "SO_GET_FILTER");
	if (n > BPF_MAXINSNS || (n && getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, c->v, &n)))
		return cr_err_sys(err, "SO_GET_FILTER");
	c->n = n;
	return 0;
}

/* How many instructions of it are a lock's. */
static size_t lock_length(const struct code *c)
{
	if (c->n < ARRAY_SIZE(lock_all) || c->v[0].code != (BPF_LD | BPF_IMM))
		return 0;
	if (c->v[0].k == MARK_ALL)
		return ARRAY_SIZE(lock_all);
	return c->v[0].k == MARK_NEW && c->n > ARRAY_SIZE(lock_new) ? ARRAY_SIZE(lock_new) : 0;
}

/* Where the program's own begins; c->n: there is none. */
static size_t own_begin(const struct code *c)
{
	size_t n = lock_length(c);

	/* what only ends the lock is no filter of the program's */
	return n && c->n == n + 1 && !memcmp(&c->v[n], &accept_all, sizeof(accept_all)) ? c->n : n;
}

static int attach_as(int fd, int how, const struct sock_filter *v, size_t n, struct cr_err *err)
{
	const struct sock_fprog prog = {(unsigned short)n, (struct sock_filter *)v};

	if (!setsockopt(fd, SOL_SOCKET, how, &prog, sizeof(prog)))
		return 0;
	return cr_err_sys(err, how == SO_ATTACH_FILTER ? "SO_ATTACH_FILTER"
						       : "SO_ATTACH_REUSEPORT_CBPF");
}

static int attach(int fd, const struct sock_filter *v, size_t n, struct cr_err *err)
{
	return attach_as(fd, SO_ATTACH_FILTER, v, n, err);
}

static int get_int(int fd, int name)
{
	int v = 0;
	socklen_t len = sizeof(v);

	return getsockopt(fd, SOL_SOCKET, name, &v, &len) ? 0 : v;
}

bool sock_filter_is_locked(int fd)
{
	return get_int(fd, SO_LOCK_FILTER);
}

const char *sock_filter_trouble(int fd)
{
	socklen_t n = 0;

	bool locked = sock_filter_is_locked(fd);

	if ((locked || sock_filter_is_ebpf(fd)) && get_int(fd, SO_DOMAIN) != AF_UNIX &&
	    !sock_policy_is_possible())
		return locked ? "with a locked filter (SO_LOCK_FILTER), on a kernel without "
				"IP_XFRM_POLICY (CONFIG_XFRM_USER)"
			      : "with an eBPF filter (SO_ATTACH_BPF), on a kernel without "
				"IP_XFRM_POLICY (CONFIG_XFRM_USER)";
	if (!getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &n) && n > BPF_MAXINSNS - LOCK_LEN_MAX)
		return "with a filter of more than 4,091 instructions";
	return NULL;
}

static bool is_plain(int fd)
{
	socklen_t n = 0;

	return !getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &n) && !n;
}

bool sock_filter_is_plain(int fd)
{
	return is_plain(fd) && !sock_filter_is_locked(fd);
}

/* With the program's own behind it. */
static int lock_before(int fd, const struct sock_filter *lock, size_t n, struct cr_err *err)
{
	_cleanup_free_ struct code *own = malloc(sizeof(*own)), *all = malloc(sizeof(*all));
	if (!own || !all)
		return cr_err_oom(err);
	int r = read_code(fd, own, err);
	if (r)
		return r;
	size_t from = own_begin(own);
	memcpy(all->v, lock, n * sizeof(*lock));
	all->n = n;
	for (size_t i = from; i < own->n && all->n < BPF_MAXINSNS; i++)
		all->v[all->n++] = own->v[i];
	if (from >= own->n && lock == lock_new)
		all->v[all->n++] = accept_all;
	return attach(fd, all->v, all->n, err);
}

int sock_lock(int fd, enum sock_lock how, struct cr_err *err)
{
	const char *why;
	int r;

	/* nearly always; ten thousand of them are to take no time */
	if (how == SOCK_LOCK_ALL && is_plain(fd))
		r = attach(fd, lock_all, ARRAY_SIZE(lock_all), err);
	else if (sock_filter_is_ebpf(fd)) /* which stays where it is */
		r = sock_policy_lock(fd, err);
	else if (how == SOCK_LOCK_ALL)
		r = lock_before(fd, lock_all, ARRAY_SIZE(lock_all), err);
	else
		r = lock_before(fd, lock_new, ARRAY_SIZE(lock_new), err);
	if (r && sock_filter_is_locked(fd)) {
		cr_err_clear(err);
		r = sock_policy_lock(fd, err);
	}
	if (r && (why = sock_filter_trouble(fd)))
		return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOTSUP, "socket %s: not supported",
				  why);
	return r;
}

void sock_lock_code(struct bpf_insn ret[SOCK_LOCK_INSNS])
{
	ret[0] = (struct bpf_insn){.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0};
	ret[1] = (struct bpf_insn){.code = BPF_JMP | BPF_EXIT};
}

int sock_lock_program(void)
{
	struct bpf_insn drop[SOCK_LOCK_INSNS];

	sock_lock_code(drop);
	return bpf_prog_load(BPF_PROG_TYPE_SOCKET_FILTER, SOCK_LOCK_NAME, "Apache-2.0", drop,
			     ARRAY_SIZE(drop), NULL);
}

int sock_lock_by(int fd, int program, bool *ret_by, struct cr_err *err)
{
	*ret_by =
	    program >= 0 && !setsockopt(fd, SOL_SOCKET, SO_ATTACH_BPF, &program, sizeof(program));
	return *ret_by ? 0 : sock_lock(fd, SOCK_LOCK_ALL, err);
}

bool sock_filter_is_ebpf(int fd)
{
	socklen_t n = 0;

	return getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &n) && errno == EACCES;
}

static int detach(int fd, struct cr_err *err)
{
	const int zero = 0;

	return setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &zero, sizeof(zero))
		   ? cr_err_sys(err, "SO_DETACH_FILTER")
		   : 0;
}

int sock_unlock_by(int fd, struct cr_err *err)
{
	return detach(fd, err);
}

bool sock_is_locked(int fd)
{
	struct cr_err ignored = {0};

	if (is_plain(fd) || sock_filter_is_ebpf(fd))
		return false;
	_cleanup_free_ struct code *c = malloc(sizeof(*c));
	return c && !read_code(fd, c, &ignored) && lock_length(c);
}

bool sock_may_be_locked(int fd)
{
	return sock_filter_is_locked(fd) || sock_filter_is_ebpf(fd) || sock_is_locked(fd);
}

int sock_unlock(int fd, struct cr_err *err)
{
	struct cr_err ignored = {0};

	if (is_plain(fd) && !sock_filter_is_locked(fd))
		return 0;
	if (sock_filter_is_locked(fd) || sock_filter_is_ebpf(fd))
		return sock_policy_unlock(fd, err);
	_cleanup_free_ struct code *c = malloc(sizeof(*c));
	if (!c)
		return cr_err_oom(err);
	if (read_code(fd, c, &ignored) || !lock_length(c))
		return 0; /* not ours */
	size_t from = own_begin(c);
	if (from < c->n)
		return attach(fd, c->v + from, c->n - from, err);
	return detach(fd, err);
}

/* ---- to a tree and back ---- */

int sock_filter_get(int fd, struct arena *a, uint64_t **ret, size_t *n, struct cr_err *err)
{
	*n = 0;
	*ret = NULL;
	if (is_plain(fd) || sock_filter_is_ebpf(fd)) /* sock_program.h */
		return 0;
	_cleanup_free_ struct code *c = malloc(sizeof(*c));
	if (!c)
		return cr_err_oom(err);
	int r = read_code(fd, c, err);
	if (r)
		return r;
	*ret = arena_array(a, uint64_t, c->n + 1);
	if (!*ret)
		return cr_err_oom(err);
	for (size_t i = own_begin(c); i < c->n; i++)
		(*ret)[(*n)++] = c->v[i].code | (uint64_t)c->v[i].jt << 16 |
				 (uint64_t)c->v[i].jf << 24 | (uint64_t)c->v[i].k << 32;
	return 0;
}

static int decode_and_attach(int fd, int how, const uint64_t *code, size_t n, struct cr_err *err)
{
	if (!n)
		return 0;
	if (n > BPF_MAXINSNS)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "a filter of %zu instructions", n);
	_cleanup_free_ struct code *c = malloc(sizeof(*c));
	if (!c)
		return cr_err_oom(err);
	for (size_t i = 0; i < n; i++)
		c->v[i] = (struct sock_filter){(uint16_t)code[i], (uint8_t)(code[i] >> 16),
					       (uint8_t)(code[i] >> 24), (uint32_t)(code[i] >> 32)};
	return attach_as(fd, how, c->v, n, err);
}

int sock_filter_set(int fd, const uint64_t *code, size_t n, struct cr_err *err)
{
	return decode_and_attach(fd, SO_ATTACH_FILTER, code, n, err);
}

int sock_filter_choose(int fd, const uint64_t *code, size_t n, struct cr_err *err)
{
	return decode_and_attach(fd, SO_ATTACH_REUSEPORT_CBPF, code, n, err);
}

int sock_filter_lock(int fd, struct cr_err *err)
{
	const int one = 1;

	return setsockopt(fd, SOL_SOCKET, SO_LOCK_FILTER, &one, sizeof(one))
		   ? cr_err_sys(err, "SO_LOCK_FILTER")
		   : 0;
}
