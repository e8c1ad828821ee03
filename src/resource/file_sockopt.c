/* Socket options, those of sockopt_table.c: capture and rebuild.
 *
 * Only what differs from a socket freshly made here is recorded: what nobody set is the
 * destination's default there. */
#include "resource/file_kind.h"
#include "base/parallel.h"
#include "resource/sock_filter.h"
#include "resource/sock_program.h"
#include "resource/sockopt_table.h"

#include <arpa/inet.h>
#include <linux/in6.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

/* ---- capture ---- */

/* What options read of a socket that nobody has set any of. len 0: none could be had; then it
 * counts as set. */
struct sockopt_defaults {
	struct {
		uint8_t value[OPT_MAX_BYTES];
		socklen_t len;
		bool unknown; /* to all such sockets */
	} of[SOCKOPT_COUNT];
};

static struct sockopt_defaults *read_defaults(const struct fd_probe *p)
{
	struct sockopt_defaults *d = calloc(1, sizeof(*d));
	_cleanup_fd_ int fd = socket(p->so_domain, p->so_type | SOCK_CLOEXEC, p->so_protocol);

	for (size_t i = 0; d && fd >= 0 && i < SOCKOPT_COUNT; i++) {
		d->of[i].len = OPT_MAX_BYTES;
		d->of[i].unknown = !sockopt_applies(sockopt_at(i), p);
		if (d->of[i].unknown || getsockopt(fd, sockopt_at(i)->level, sockopt_at(i)->name,
						   d->of[i].value, &d->of[i].len)) {
			d->of[i].unknown |= errno == ENOPROTOOPT || errno == EOPNOTSUPP;
			d->of[i].len = 0;
		}
	}
	return d;
}

/* Once for each kind of socket: there may be thousands. NULL when memory is out. */
static const struct sockopt_defaults *defaults_of(struct files_ctx *x, const struct fd_probe *p)
{
	vec_foreach (r, &x->references)
		if (r->domain == p->so_domain && r->type == p->so_type &&
		    r->protocol == p->so_protocol)
			return r->defaults;
	struct reference_socket *r = vec_push(&x->references);
	if (!r)
		return NULL;
	*r = (struct reference_socket){p->so_domain, p->so_type, p->so_protocol, read_defaults(p)};
	return r->defaults;
}

static int buf_lock(int fd)
{
	int bits = 0;
	socklen_t len = sizeof(bits);

	return getsockopt(fd, SOL_SOCKET, SO_BUF_LOCK, &bits, &len) ? 0 : bits;
}

/* Length of the value if it is one to record, else 0. */
static socklen_t differs(size_t i, const struct fd_probe *p, const struct sockopt_defaults *d,
			 int locks, uint8_t value[OPT_MAX_BYTES])
{
	const struct sockopt *o = sockopt_at(i);
	socklen_t len = OPT_MAX_BYTES;

	if (d->of[i].unknown || (o->lock_bit && !(locks & o->lock_bit)) || !sockopt_applies(o, p) ||
	    getsockopt(p->local, o->level, o->name, value, &len) || !len)
		return 0;
	if (o->lock_bit)
		return len;
	return d->of[i].len == len && !memcmp(d->of[i].value, value, len) ? 0 : len;
}

/* IP_UNICAST_IF and its like have the number in network order, the multicast ones in the host's; a
 * number that means something in one order means nothing in the other, ip(7), ipv6(7). */
static socklen_t name_of(uint8_t value[OPT_MAX_BYTES])
{
	uint32_t index;
	char name[IF_NAMESIZE] = "";

	memcpy(&index, value, sizeof(index));
	if (!if_indextoname(index, name) && !if_indextoname(ntohl(index), name))
		return 0;
	memcpy(value, name, sizeof(name));
	return sizeof(name);
}

/* Back to a number of this host. 0: none has that name. */
static uint32_t index_of(const struct sockopt *o, const struct sockopt_rec *rec)
{
	char name[IF_NAMESIZE + 1] = "";

	memcpy(name, rec->value, rec->len < IF_NAMESIZE ? rec->len : IF_NAMESIZE);
	uint32_t index = if_nametoindex(name);
	return o->level == IPPROTO_IPV6 && o->name == IPV6_MULTICAST_IF ? index : htonl(index);
}

/* What cannot be read back is refused. */
static int read_filter(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		       struct cr_err *err)
{
	const char *why = sock_filter_trouble(p->local);

	f->filter_locked = sock_filter_is_locked(p->local);
	struct cr_err unmoved = {0};
	int r = why ? -ENOTSUP : sock_program_get(x->c, p->local, f, &unmoved);

	if (!r)
		return sock_filter_get(p->local, x->c->tree->arena, &f->filter, &f->n_filter, err);
	if (r != -ENOTSUP) {
		*err = unmoved;
		return r;
	}
	files_refuse(x, p->pid, p->fd, "socket %s: not supported", why ? why : unmoved.msg);
	return 0;
}

/* Compact, as there may be ten thousand of them. */
struct sockopt_found {
	bool plain; /* without a filter */
	size_t n, used;
	struct {
		uint16_t opt, len, at;
	} of[SOCKOPT_COUNT];
	uint8_t bytes[SOCKOPT_COUNT * OPT_MAX_BYTES];
};

static void find_options(const struct fd_probe *p, const struct sockopt_defaults *d,
			 struct sockopt_found *ret)
{
	int locks = buf_lock(p->local);

	ret->plain = sock_filter_is_plain(p->local);
	ret->n = ret->used = 0;
	for (size_t i = 0; i < SOCKOPT_COUNT; i++) {
		uint8_t *value = ret->bytes + ret->used;

		memset(value, 0, OPT_MAX_BYTES);
		socklen_t len = differs(i, p, d, locks, value);
		if (len && sockopt_at(i)->ifindex)
			len = name_of(value); /* 0: it has gone: nothing comes or goes that way */
		if (!len)
			continue;
		ret->of[ret->n].opt = (uint16_t)i;
		ret->of[ret->n].len = (uint16_t)len;
		ret->of[ret->n++].at = (uint16_t)ret->used;
		ret->used += len;
	}
}

/* IP_MULTICAST_IF tells an address only. The device goes with it: of an address that moves along,
 * which is not there yet when it is needed. */
static int add_device(struct files_ctx *x, struct sockopt_rec *rec, const char *dev,
		      struct cr_err *err)
{
	uint8_t value[sizeof(struct in_addr) + IF_NAMESIZE] = {0};

	memcpy(value, rec->value, sizeof(struct in_addr));
	snprintf((char *)value + sizeof(struct in_addr), IF_NAMESIZE, "%s", dev);
	rec->len = sizeof(value);
	rec->value = arena_memdup(x->c->tree->arena, value, sizeof(value));
	return rec->value ? 0 : cr_err_oom(err);
}

static int add_moved_device(struct files_ctx *x, struct sockopt_rec *rec, struct cr_err *err)
{
	struct sockaddr_in in = {.sin_family = AF_INET};

	if (rec->len != sizeof(in.sin_addr))
		return 0;
	memcpy(&in.sin_addr, rec->value, sizeof(in.sin_addr));
	for (size_t i = 0; i < x->c->tree->n_moved; i++)
		if (devaddr_matches(&x->c->tree->moved[i], &in, sizeof(in)))
			return add_device(x, rec, x->c->tree->moved[i].dev, err);
	return 0;
}

static bool is_multicast_if(const struct sockopt_rec *rec)
{
	return rec->level == IPPROTO_IP && rec->name == IP_MULTICAST_IF;
}

int sockopts_add_multicast_if(struct files_ctx *x, struct file *f, uint32_t index,
			      struct cr_err *err)
{
	static const uint8_t any[sizeof(struct in_addr)];
	char dev[IF_NAMESIZE];
	size_t i = 0;

	if (!if_indextoname(index, dev))
		return 0;
	while (i < f->n_opts && !is_multicast_if(&f->opts[i]))
		i++;
	if (i == f->n_opts) { /* chosen by its number alone; there is room for one more */
		f->opts[f->n_opts++] =
		    (struct sockopt_rec){IPPROTO_IP, IP_MULTICAST_IF, any, sizeof(any)};
	}
	return add_device(x, &f->opts[i], dev, err);
}

static int take_found(struct files_ctx *x, const struct fd_probe *p,
		      const struct sockopt_found *found, struct file *f, struct cr_err *err)
{
	struct arena *a = x->c->tree->arena;
	const uint8_t *bytes = arena_memdup(a, found->bytes, found->used);

	f->opts = arena_array(a, struct sockopt_rec, found->n + 1);
	if (!f->opts || !bytes)
		return cr_err_oom(err);
	f->n_opts = found->n;
	for (size_t i = 0; i < found->n; i++) {
		const struct sockopt *o = sockopt_at(found->of[i].opt);

		f->opts[i] = (struct sockopt_rec){o->level, o->name, bytes + found->of[i].at,
						  found->of[i].len};
		if (is_multicast_if(&f->opts[i]) && add_moved_device(x, &f->opts[i], err))
			return -ENOMEM;
	}
	return found->plain ? 0 : read_filter(x, p, f, err);
}

static int read_all(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		    struct cr_err *err)
{
	const struct sockopt_defaults *d = defaults_of(x, p);
	_cleanup_free_ struct sockopt_found *found = malloc(sizeof(*found));

	if (!d || !found)
		return cr_err_oom(err);
	find_options(p, d, found);
	return take_found(x, p, found, f, err);
}

/* ---- side by side ---- */

int sockopts_capture_later(struct files_ctx *x, const struct fd_probe *p, uint32_t file,
			   struct cr_err *err)
{
	const struct sockopt_defaults *d = defaults_of(x, p);
	struct sockopt_job *j = d ? vec_push(&x->options) : NULL;

	if (!j)
		return cr_err_oom(err);
	*j = (struct sockopt_job){.p = *p, .file = file, .d = d};
	return 0;
}

bool sockopts_keep(const struct files_ctx *x, int fd)
{
	return x->options.n && x->options.v[x->options.n - 1].p.local == fd;
}

void sockopts_done(struct files_ctx *x)
{
	vec_foreach (j, &x->options) {
		close(j->p.local);
		free(j->found);
	}
	x->options.n = 0;
}

static int find_one(size_t i, unsigned int worker, void *arg, struct cr_err *err)
{
	struct sockopt_job *j = &((struct sockopt_job *)arg)[i];
	_cleanup_free_ struct sockopt_found *found = malloc(sizeof(*found));

	(void)worker;
	if (!found)
		return cr_err_oom(err);
	find_options(&j->p, j->d, found);
	/* what is not used of it is given back */
	j->found = realloc(found, offsetof(struct sockopt_found, bytes) + found->used);
	if (!j->found)
		return cr_err_oom(err);
	found = NULL;
	return 0;
}

int sockopts_read(struct files_ctx *x, struct cr_err *err)
{
	int r = parallel_for(x->options.n, find_one, x->options.v, err);

	for (size_t i = 0; i < x->options.n && !r; i++) {
		const struct sockopt_job *j = &x->options.v[i];

		r = take_found(x, &j->p, j->found, &x->c->tree->files[j->file], err);
	}
	sockopts_done(x);
	return r;
}

/* A server sets its listeners up and leaves them so; two calls for each option are too many at the
 * stop.
 */
static int take_over(struct arena *a, const struct file *before, struct file *f, struct cr_err *err)
{
	f->filter_locked = before->filter_locked;
	f->n_filter = before->n_filter;
	f->filter = arena_memdup(a, before->filter, before->n_filter * sizeof(*f->filter));
	f->n_program = before->n_program;
	f->program_gpl = before->program_gpl;
	f->program_id = before->program_id;
	f->program = arena_memdup(a, before->program, before->n_program * sizeof(*f->program));
	f->program_name = arena_strdup(a, before->program_name ? before->program_name : "");
	if ((f->n_filter && !f->filter) || (f->n_program && !f->program) || !f->program_name)
		return cr_err_oom(err);
	f->opts = arena_memdup(a, before->opts, before->n_opts * sizeof(*f->opts));
	if (!f->opts)
		return cr_err_oom(err);
	f->n_opts = before->n_opts;
	for (size_t i = 0; i < f->n_opts; i++) {
		f->opts[i].value = arena_memdup(a, before->opts[i].value, before->opts[i].len);
		if (!f->opts[i].value)
			return cr_err_oom(err);
	}
	return 0;
}

int sockopts_capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		     struct cr_err *err)
{
	const struct file *before = x->c->exact ? files_before(x, p) : NULL;

	if (before && f->kind == FILE_TCP_LISTEN && before->kind == f->kind &&
	    before->ino == f->ino)
		return take_over(x->c->tree->arena, before, f, err);
	return read_all(x, p, f, err);
}

/* ---- rebuild ---- */

/* The kernel takes it from no socket that is to be connected yet, if it is to number segments. */
static bool is_late(const struct file *f, const struct sockopt *o)
{
	return f->kind == FILE_TCP_CONN && o->level == SOL_SOCKET && o->name == SO_TIMESTAMPING;
}

static int set_multicast_if(int fd, const struct sockopt_rec *rec, struct cr_err *err)
{
	struct ip_mreqn to = {0};
	char name[IF_NAMESIZE + 1] = "";

	memcpy(&to.imr_address, rec->value, sizeof(to.imr_address));
	memcpy(name, rec->value + sizeof(to.imr_address), IF_NAMESIZE);
	to.imr_ifindex = (int)if_nametoindex(name);
	if (!to.imr_ifindex && !to.imr_address.s_addr)
		return cr_err_set(err, CR_ERR_INPUT, ENODEV,
				  "IP_MULTICAST_IF: there is no interface %s here", name);
	return setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &to, sizeof(to))
		   ? cr_err_sys(err, "setting IP_MULTICAST_IF")
		   : 0;
}

static int apply(int fd, const struct file *f, bool late, struct cr_err *err)
{
	for (size_t i = 0; i < f->n_opts; i++) {
		const struct sockopt_rec *rec = &f->opts[i];
		const struct sockopt *o = sockopt_find(rec->level, rec->name);
		uint8_t value[OPT_MAX_BYTES];
		int n;

		/* from a peer: only what the table knows is replayed */
		if (!o || rec->len > sizeof(value) || (o->halve && rec->len != sizeof(n)))
			return cr_err_set(err, CR_ERR_PEER, EPROTO, "unknown socket option %d/%d",
					  rec->level, rec->name);
		if (is_late(f, o) != late)
			continue;
		if (is_multicast_if(rec) && rec->len == sizeof(struct in_addr) + IF_NAMESIZE) {
			int r = set_multicast_if(fd, rec, err);

			if (r)
				return r;
			continue;
		}
		memcpy(value, rec->value, rec->len);
		if (o->ifindex) {
			uint32_t index = index_of(o, rec);

			if (!index)
				return cr_err_set(err, CR_ERR_INPUT, ENODEV,
						  "%s: there is no interface %.*s here", o->text,
						  (int)rec->len, (const char *)rec->value);
			if (setsockopt(fd, o->level, o->name, &index, sizeof(index)))
				return cr_err_sys(err, "setting %s", o->text);
			continue;
		}
		if (o->halve) {
			memcpy(&n, value, sizeof(n));
			n /= 2;
			memcpy(value, &n, sizeof(n));
		}
		if (setsockopt(fd, o->level, o->set_name ? o->set_name : o->name, value, rec->len))
			return cr_err_sys(err, "setting %s", o->text);
	}
	return 0;
}

int sockopts_apply(int fd, const struct file *f, struct cr_err *err)
{
	int r = apply(fd, f, false, err);

	/* of a connection: when it talks to its peer again, which it would keep from what it needs
	 */
	if (!r && f->kind != FILE_TCP_CONN)
		r = sock_filter_set(fd, f->filter, f->n_filter, err);
	/* a lock of ours in its place says of UDP whether it has been launched */
	if (!r && f->kind != FILE_TCP_CONN && f->kind != FILE_UDP)
		r = sock_program_set(fd, f, err);
	/* of others than these nobody replaces it for a while */
	return r || f->sock_family != AF_UNIX ? r : sockopts_lock_filter(fd, f, err);
}

int sockopts_apply_late(int fd, const struct file *f, struct cr_err *err)
{
	int r = apply(fd, f, true, err);

	if (!r && !(f->filter_locked && sock_filter_is_locked(fd))) { /* the second time */
		r = sock_filter_set(fd, f->filter, f->n_filter, err);
		if (!r)
			r = sock_program_set(fd, f, err);
	}
	return r ? r : sockopts_lock_filter(fd, f, err);
}

int sockopts_unlock(int fd, const struct file *f, struct cr_err *err)
{
	return f->n_program ? sock_program_set(fd, f, err) : sock_unlock(fd, err);
}

int sockopts_lock_filter(int fd, const struct file *f, struct cr_err *err)
{
	return f->filter_locked ? sock_filter_lock(fd, err) : 0;
}

int sockopts_cmp(const struct file *a, const struct file *b)
{
	if (a->n_opts != b->n_opts)
		return a->n_opts < b->n_opts ? -1 : 1;
	if (a->filter_locked != b->filter_locked)
		return a->filter_locked ? 1 : -1;
	if (a->n_filter != b->n_filter)
		return a->n_filter < b->n_filter ? -1 : 1;
	if (a->n_filter && memcmp(a->filter, b->filter, a->n_filter * sizeof(*a->filter)))
		return memcmp(a->filter, b->filter, a->n_filter * sizeof(*a->filter));
	if (sock_program_cmp(a, b))
		return sock_program_cmp(a, b);
	for (size_t i = 0; i < a->n_opts; i++) {
		const struct sockopt_rec *x = &a->opts[i], *y = &b->opts[i];

		if (x->level != y->level)
			return x->level < y->level ? -1 : 1;
		if (x->name != y->name)
			return x->name < y->name ? -1 : 1;
		if (x->len != y->len)
			return x->len < y->len ? -1 : 1;
		int r = memcmp(x->value, y->value, x->len);
		if (r)
			return r;
	}
	return 0;
}

int sockopt_int(const struct file *f, int level, int name, int missing)
{
	int v;

	for (size_t i = 0; i < f->n_opts; i++)
		if (f->opts[i].level == level && f->opts[i].name == name &&
		    f->opts[i].len >= sizeof(v)) {
			memcpy(&v, f->opts[i].value, sizeof(v));
			return v;
		}
	return missing;
}
