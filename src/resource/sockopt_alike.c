/* A digest that misses an option would give a connection another one's. So none is believed
 * unseen: before any is used, each option of the table is set in a socket of our own, and its
 * digest has to change. */
#include "resource/sockopt_alike.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include "resource/file_kind.h"
#include "resource/sockopt_table.h"

#ifndef TCP_TX_DELAY
#define TCP_TX_DELAY 37
#endif

enum { MANY = 64 }; /* descriptors: fewer are asked as fast */

struct sock_alike {
	struct sockview *view;
	int mnt_id;
	uint64_t dev;
	const char *missing4, *missing6; /* NULL: all are covered */
};

int sock_alike_mnt_id(const struct sock_alike *a)
{
	return a->mnt_id;
}

uint64_t sock_alike_dev(const struct sock_alike *a)
{
	return a->dev;
}

bool sock_alike_covers(const struct sock_alike *a, int family, const char **missing)
{
	const char *m = family == AF_INET6 ? a->missing6 : a->missing4;

	if (missing)
		*missing = m;
	return !m;
}

int sock_alike_read(const struct sock_alike *a, pid_t pid, struct sock_facts_list *ret,
		    struct cr_err *err)
{
	return sockview_read(a->view, pid, ret, err);
}

/* Since 6.2 the size of that directory is how many there are. */
int sock_alike_list(const struct sock_alike *a, pid_t pid, struct sock_facts_list *ret,
		    bool *ret_told, struct cr_err *err)
{
	char path[64];
	struct stat st;

	*ret_told = false;
	*ret = (struct sock_facts_list){0};
	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	if (stat(path, &st) || st.st_size < MANY)
		return 0;
	int r = sockview_read(a->view, pid, ret, err);
	*ret_told = !r && ret->list.n == (size_t)st.st_size;
	return r;
}

/* ---- is it true? ---- */

struct value {
	uint8_t bytes[OPT_MAX_BYTES];
	socklen_t len;
};

static bool get(int fd, const struct sockopt *o, struct value *v)
{
	memset(v, 0, sizeof(*v));
	v->len = OPT_MAX_BYTES;
	return !getsockopt(fd, o->level, o->name, v->bytes, &v->len);
}

static bool set_to(int fd, const struct sockopt *o, const void *bytes, socklen_t len)
{
	struct value before, now;

	return get(fd, o, &before) &&
	       !setsockopt(fd, o->level, o->set_name ? o->set_name : o->name, bytes, len) &&
	       get(fd, o, &now) &&
	       (now.len != before.len || memcmp(now.bytes, before.bytes, now.len) != 0);
}

/* Another value than it has. */
static bool set_other(int fd, const struct sockopt *o)
{
	static const int numbers[] = {1,
				      0,
				      2,
				      3,
				      5,
				      16,
				      33,
				      1000,
				      4096,
				      100000,
				      1 << 24 /* lo */,
				      2000 << 16 | 1000 /* ports */};
	static const char *const names[] = {"reno", "cubic"};
	const struct linger linger = {1, 5};
	const struct timeval time = {3, 0};
	const uint8_t ip_options[4] = {1, 1, 1, 0};

	if (o->level == SOL_SOCKET && o->name == SO_LINGER)
		return set_to(fd, o, &linger, sizeof(linger));
	if (o->level == SOL_SOCKET && (o->name == SO_RCVTIMEO || o->name == SO_SNDTIMEO))
		return set_to(fd, o, &time, sizeof(time));
	if (o->level == SOL_SOCKET && o->name == SO_BINDTODEVICE)
		return set_to(fd, o, "lo", 3);
	if (o->level == IPPROTO_IP && o->name == IP_OPTIONS)
		return set_to(fd, o, ip_options, sizeof(ip_options));
	if (o->level == IPPROTO_TCP && o->name == TCP_CONGESTION)
		return set_to(fd, o, names[0], 4) || set_to(fd, o, names[1], 5);
	for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
		if (set_to(fd, o, &numbers[i], sizeof(int)))
			return true;
	return false;
}

/* Setting that one changes the whole kernel (static key tcp_tx_delay_enabled). */
static bool is_left_out(const struct sockopt *o)
{
	return o->level == IPPROTO_TCP && o->name == TCP_TX_DELAY;
}

struct trial { /* a socket for each option */
	int fd[SOCKOPT_COUNT];
	bool unknown[SOCKOPT_COUNT]; /* to this kernel; or not of such a socket */
};

static void trial_done(struct trial *t)
{
	for (size_t i = 0; i < SOCKOPT_COUNT; i++)
		close_fdp(&t->fd[i]);
}

static int trial_begin(struct trial *t, int family, struct cr_err *err)
{
	const struct fd_probe p = {.so_domain = family,
				   .so_type = SOCK_STREAM,
				   .so_protocol = IPPROTO_TCP,
				   .tcp_state = TCP_ESTABLISHED};
	struct value v;

	for (size_t i = 0; i < SOCKOPT_COUNT; i++)
		t->fd[i] = -1;
	for (size_t i = 0; i < SOCKOPT_COUNT; i++) {
		const struct sockopt *o = sockopt_at(i);

		t->unknown[i] = !sockopt_applies(o, &p) || is_left_out(o);
		if (t->unknown[i])
			continue;
		t->fd[i] = socket(family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);
		if (t->fd[i] < 0)
			return cr_err_sys(err, "a socket to try options on");
		t->unknown[i] =
		    !get(t->fd[i], o, &v) && (errno == ENOPROTOOPT || errno == EOPNOTSUPP);
	}
	return 0;
}

static const struct sock_facts *find(const struct sock_facts_list *l, int fd)
{
	for (size_t i = 0; i < l->list.n; i++)
		if (l->list.v[i].fd == fd)
			return &l->list.v[i];
	return NULL;
}

static bool shows(const struct sock_facts *a, const struct sock_facts *b)
{
	return a && b &&
	       (a->options != b->options || (!a->special && b->special) ||
		a->window_clamp != b->window_clamp || a->hop_limit != b->hop_limit);
}

/* *ret: the first option that does not show; NULL: there is none such. */
static int try_options(const struct sock_alike *a, int family, const char **ret, struct cr_err *err)
{
	_cleanup_(trial_done) struct trial t;
	_cleanup_(sock_facts_done) struct sock_facts_list before = {0}, after = {0};
	bool set[SOCKOPT_COUNT] = {0};
	int r = trial_begin(&t, family, err);

	*ret = NULL;
	if (!r)
		r = sockview_read(a->view, getpid(), &before, err);
	for (size_t i = 0; i < SOCKOPT_COUNT && !r; i++)
		set[i] = t.unknown[i] || set_other(t.fd[i], sockopt_at(i));
	if (!r)
		r = sockview_read(a->view, getpid(), &after, err);
	for (size_t i = 0; i < SOCKOPT_COUNT && !r && !*ret; i++)
		if (!set[i] ||
		    (!t.unknown[i] && !shows(find(&before, t.fd[i]), find(&after, t.fd[i]))))
			*ret = sockopt_at(i)->text;
	return r;
}

/* ---- a connection of ours ---- */

static bool same_name(int fd, const struct sock_facts *f, bool peer)
{
	struct sockaddr_storage sa = {0};
	const struct sockaddr_storage *told = peer ? &f->peer : &f->us;
	socklen_t len = sizeof(sa);

	if (peer ? getpeername(fd, (struct sockaddr *)&sa, &len)
		 : getsockname(fd, (struct sockaddr *)&sa, &len))
		return false;
	return !memcmp(&sa, told, len);
}

static bool is_as_told(int fd, const struct sock_facts *f)
{
	struct stat st;

	return f && !fstat(fd, &st) && f->connection && !f->special && f->cloexec &&
	       f->ino == st.st_ino && f->mode == st.st_mode && f->uid == st.st_uid &&
	       f->gid == st.st_gid && f->flags == (uint32_t)fcntl(fd, F_GETFL) && !f->pos &&
	       f->state == TCP_ESTABLISHED && same_name(fd, f, false) && same_name(fd, f, true);
}

static int connect_to(int listener, int family)
{
	struct sockaddr_storage sa = {0};
	socklen_t len = sizeof(sa);
	_cleanup_fd_ int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);

	if (fd < 0 || getsockname(listener, (struct sockaddr *)&sa, &len) ||
	    connect(fd, (struct sockaddr *)&sa, len) || fchown(fd, 12, 34) ||
	    fcntl(fd, F_SETFL, O_NONBLOCK))
		return -1;
	return take_fd(&fd);
}

static int try_connection(const struct sock_alike *a, int family, struct cr_err *err)
{
	struct sockaddr_in6 sa6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	struct sockaddr_in sa4 = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	_cleanup_(sock_facts_done) struct sock_facts_list l = {0};
	_cleanup_fd_ int listener = socket(family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);

	if (listener < 0 ||
	    bind(listener, family == AF_INET ? (struct sockaddr *)&sa4 : (struct sockaddr *)&sa6,
		 family == AF_INET ? sizeof(sa4) : sizeof(sa6)) ||
	    listen(listener, 1))
		return cr_err_sys(err, "a listener on the loopback interface");
	_cleanup_fd_ int fd = connect_to(listener, family);
	if (fd < 0)
		return cr_err_sys(err, "a connection over the loopback interface");
	int r = sockview_read(a->view, getpid(), &l, err);
	if (r)
		return r;
	return is_as_told(fd, find(&l, fd)) ? 0
					    : cr_err_set(err, CR_ERR_KERNEL, ENOTSUP,
							 "BPF says of a connection what is not so");
}

static int learn_sockfs(struct sock_alike *a, struct cr_err *err)
{
	_cleanup_fd_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	_cleanup_(text_buf_done) struct text_buf text = {0};
	char path[64];
	struct stat st;
	struct fdinfo info;
	size_t off;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	if (fd < 0 || fstat(fd, &st) || text_append_file(&text, AT_FDCWD, path, &off))
		return cr_err_sys(err, "a socket to look at");
	int r = fdinfo_parse(text.v + off, &info, NULL, err);
	a->mnt_id = info.mnt_id;
	a->dev = st.st_dev;
	return r;
}

/* IPv6 need not be there. */
static int check(struct sock_alike *a, struct cr_err *err)
{
	struct cr_err six = {0};
	int r = learn_sockfs(a, err);

	if (!r)
		r = try_connection(a, AF_INET, err);
	if (!r)
		r = try_options(a, AF_INET, &a->missing4, err);
	a->missing6 = "IPv6";
	if (!r && !try_connection(a, AF_INET6, &six))
		r = try_options(a, AF_INET6, &a->missing6, err);
	return r;
}

int sock_alike_new(struct sock_alike **ret, struct cr_err *err)
{
	struct sock_alike *a = calloc(1, sizeof(*a));

	if (!a)
		return cr_err_oom(err);
	int r = sockview_new(&a->view, err);
	if (!r)
		r = check(a, err);
	if (!r && a->missing4)
		r = cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "BPF does not show %s", a->missing4);
	if (!r)
		*ret = a;
	else
		sock_alike_free(a);
	return r;
}

void sock_alike_free(struct sock_alike *a)
{
	if (!a)
		return;
	sockview_free(a->view);
	free(a);
}

/* ---- which are alike ---- */

int sockopts_capture_alike(struct files_ctx *x, const struct fd_probe *p, struct cr_err *err)
{
	struct alike *a = vec_push(&x->alike);

	if (!a)
		return cr_err_oom(err);
	*a = (struct alike){(uint32_t)(p->facts - x->facts.list.v), (uint32_t)x->c->tree->n_files};
	return 0;
}

#define CMP(a, b)                                                                                  \
	do {                                                                                       \
		if ((a) != (b))                                                                    \
			return (a) < (b) ? -1 : 1;                                                 \
	} while (0)

static int cmp_options(const struct files_ctx *x, const struct alike *va, const struct alike *vb)
{
	const struct sock_facts *a = &x->facts.list.v[va->facts], *b = &x->facts.list.v[vb->facts];

	CMP(a->family, b->family);
	CMP(a->options, b->options);
	CMP(a->hop_limit, b->hop_limit);
	CMP(!a->window_clamp, !b->window_clamp);
	return 0;
}

static int cmp_alike(const void *va, const void *vb, void *vx)
{
	const struct alike *a = va, *b = vb;
	int r = cmp_options(vx, a, b);

	return r ? r : (a->file > b->file) - (a->file < b->file);
}

static struct sockopt_rec *recorded(const struct file *f, int32_t level, int32_t name)
{
	for (size_t i = 0; i < f->n_opts; i++)
		if (f->opts[i].level == level && f->opts[i].name == name)
			return &f->opts[i];
	return NULL;
}

static void forget(struct file *f, int32_t level, int32_t name)
{
	struct sockopt_rec *rec = recorded(f, level, name);

	if (!rec)
		return;
	f->n_opts--;
	memmove(rec, rec + 1, (size_t)(f->opts + f->n_opts - rec) * sizeof(*rec));
}

/* What the kernel says of a connection, but nobody has set. */
static void forget_unset(struct file *f, const struct sock_facts *facts)
{
	if (facts->hop_limit < 0) /* then it is told of the way to the peer */
		forget(f, IPPROTO_IPV6, IPV6_UNICAST_HOPS);
}

/* The same options, and the same memory, but for the one that differs from connection to
 * connection. */
static int copy(struct files_ctx *x, const struct alike *from, const struct alike *to,
		struct cr_err *err)
{
	struct arena *a = x->c->tree->arena;
	const struct sock_facts *its = &x->facts.list.v[to->facts];
	const struct file *like = &x->c->tree->files[from->file];
	struct file *f = &x->c->tree->files[to->file];

	f->opts = like->opts;
	f->n_opts = like->n_opts;
	f->filter_locked = like->filter_locked; /* that there is none */
	if (its->window_clamp == x->facts.list.v[from->facts].window_clamp ||
	    !recorded(like, IPPROTO_TCP, TCP_WINDOW_CLAMP))
		return 0;
	f->opts = arena_memdup(a, like->opts, like->n_opts * sizeof(*like->opts));
	void *value = arena_memdup(a, &its->window_clamp, sizeof(its->window_clamp));
	if (!f->opts || !value)
		return cr_err_oom(err);
	recorded(f, IPPROTO_TCP, TCP_WINDOW_CLAMP)->value = value;
	return 0;
}

static int read_first(struct files_ctx *x, const struct alike *a, struct cr_err *err)
{
	const struct fd_seen *s = files_holder(x, a->file);
	const struct sock_facts *facts = &x->facts.list.v[a->facts];
	struct fd_probe p = {.pid = files_holder_pid(x, a->file),
			     .fd = s->fd,
			     .so_domain = facts->family,
			     .so_type = SOCK_STREAM,
			     .so_protocol = IPPROTO_TCP,
			     .tcp_state = facts->state};

	p.local = files_getfd(x, a->file, err);
	if (p.local < 0)
		return p.local;
	int r = sockopts_capture_later(x, &p, a->file, err);
	if (!sockopts_keep(x, p.local))
		close(p.local);
	return r || x->options.n < SOCKOPTS_AT_ONCE ? r : sockopts_read(x, err);
}

int sockopts_read_alike(struct files_ctx *x, struct cr_err *err)
{
	struct alike *v = x->alike.v;
	size_t n = x->alike.n, first = 0;
	int r = 0;

	qsort_r(v, n, sizeof(*v), cmp_alike, x);
	for (size_t i = 0; i < n && !r; i++)
		if (!i || cmp_options(x, &v[i - 1], &v[i]))
			r = read_first(x, &v[i], err);
	if (!r)
		r = sockopts_read(x, err);
	for (size_t i = 0; i < n && !r; i++)
		if (!i || cmp_options(x, &v[i - 1], &v[i])) {
			first = i;
			forget_unset(&x->c->tree->files[v[i].file], &x->facts.list.v[v[i].facts]);
		} else {
			r = copy(x, &v[first], &v[i], err);
		}
	x->alike.n = 0;
	return r;
}
