/* Capture of open files: which descriptors there are, which of them are the same description, and
 * what each description is. What a kind needs beyond that is in its own file.
 *
 * This runs while the tasks are stopped, so it is counted in system calls: per descriptor one
 * reading of fdinfo (nothing else tells close-on-exec), per description a pidfd_getfd(2) (5.6) and
 * calls on the duplicate, which are cheaper than further readings of /proc. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include "kernel/boot_id.h"
#include "resource/reuseport.h"
#include "resource/sockopt_alike.h"

static void ctx_done(struct files_ctx *x)
{
	vec_foreach (r, &x->references)
		free(r->defaults);
	close_fdp(&x->self_fds);
	vec_done(&x->seen);
	vec_done(&x->leaders);
	vec_done(&x->magics);
	vec_done(&x->references);
	vec_done(&x->watches);
	vec_done(&x->undecided);
	sockopts_done(x);
	vec_done(&x->options);
	vec_done(&x->alike);
	sock_facts_done(&x->facts);
	vec_foreach (f, &x->flights)
		close(f->fd);
	vec_done(&x->flights);
	tcp_diag_done(&x->connections);
	tcp_diag_done(&x->listeners);
	multicast_host_done(&x->multicast);
	pending_done(&x->pending);
	free(x->proc_first);
	free(x->text.v);
}

/* ---- what they are ---- */

static uint32_t magic_of(struct files_ctx *x, const struct fd_probe *p)
{
	struct statfs sf;

	vec_foreach (m, &x->magics)
		if (m->dev == p->st.st_dev)
			return m->magic;
	if (fstatfs(p->local, &sf))
		return 0;
	struct fs_magic *m = vec_push(&x->magics);
	if (m)
		*m = (struct fs_magic){p->st.st_dev, (uint32_t)sf.f_type};
	return (uint32_t)sf.f_type;
}

static void probe_socket(struct fd_probe *p)
{
	struct tcp_info ti = {0};
	int listening = 0;
	socklen_t len = sizeof(int), ti_len = offsetof(struct tcp_info, tcpi_ca_state);

	getsockopt(p->local, SOL_SOCKET, SO_DOMAIN, &p->so_domain, &len);
	getsockopt(p->local, SOL_SOCKET, SO_TYPE, &p->so_type, &len);
	getsockopt(p->local, SOL_SOCKET, SO_PROTOCOL, &p->so_protocol, &len);
	if (p->so_type == SOCK_STREAM && p->so_protocol == IPPROTO_TCP) {
		getsockopt(p->local, IPPROTO_TCP, TCP_INFO, &ti, &ti_len);
		p->tcp_state = ti.tcpi_state;
		listening = ti.tcpi_state == TCP_LISTEN;
	} else {
		getsockopt(p->local, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len);
	}
	p->so_listening = listening;
}

/* What the link of an anonymous inode says is told by the keys of its fdinfo as well. */
static const char *anon_link(const struct fd_probe *p)
{
	static const struct {
		const char *key, *link;
	} known[] = {
	    {"eventfd-count", "anon_inode:[eventfd]"},
	    {"clockid", "anon_inode:[timerfd]"},
	    {"sigmask", "anon_inode:[signalfd]"},
	    {"tfd", "anon_inode:[eventpoll]"},
	};

	if (p->fs_magic != ANON_INODE_FS_MAGIC || !p->text)
		return NULL;
	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (fdinfo_field(p->text, known[i].key))
			return known[i].link;
	return NULL;
}

/* The path of the previous capture, if that descriptor is the same file and the path leads there.
 */
static const char *known_path(struct files_ctx *x, struct fd_probe *p)
{
	const struct file *f = files_before(x, p);

	if (!f || (f->kind != FILE_REGULAR && f->kind != FILE_CHARDEV) || f->ino != p->st.st_ino ||
	    f->dev != p->st.st_dev || !files_path_leads_to(f->path, &p->st))
		return NULL;
	p->link_leads_here = true;
	return f->path;
}

static int probe_link(struct files_ctx *x, struct fd_probe *p, char link[PATH_MAX])
{
	char name[16];

	p->link = anon_link(p);
	if (!p->link)
		p->link = known_path(x, p);
	if (p->link)
		return 0;
	snprintf(name, sizeof(name), "%d", p->local);
	p->link = link;
	/* twice: a running task may rename the file between the two calls */
	for (int tries = 0; tries < 2 && !p->link_leads_here; tries++) {
		ssize_t n = readlinkat(x->self_fds, name, link, PATH_MAX - 1);

		if (n < 0)
			return -errno;
		link[n] = '\0';
		if (link[0] != '/')
			break;
		p->link_leads_here = files_path_leads_to(link, &p->st);
	}
	return 0;
}

/* Returns 1 if the descriptor is another one by now. */
static int probe_fill(struct files_ctx *x, struct fd_probe *p, char link[PATH_MAX])
{
	if (fstat(p->local, &p->st))
		return -errno;
	if (p->info.ino && p->info.ino != p->st.st_ino)
		return 1;
	p->fs_magic = magic_of(x, p);
	p->link = "";
	if (p->fs_magic == SOCKFS_MAGIC)
		probe_socket(p);
	else if (p->fs_magic != PIPEFS_MAGIC)
		return probe_link(x, p, link);
	return 0;
}

/* SIGIO's addressee, fcntl(2). */
static void capture_owner(struct files_ctx *x, const struct fd_probe *p, struct file *f)
{
	struct f_owner_ex ow = {0};

	if (p->local < 0 || fcntl(p->local, F_GETOWN_EX, &ow) || !ow.pid)
		return;
	if (!files_pid_in_tree(x->c->tree, ow.pid, ow.type == F_OWNER_PGRP))
		files_refuse(x, p->pid, p->fd,
			     "%s: its signals go to %d, which is outside the tree: not supported",
			     p->link[0] ? p->link : "descriptor", ow.pid);
	f->owner_type = ow.type;
	f->owner_pid = ow.pid;
	f->owner_sig = fcntl(p->local, F_GETSIG);
}

static void generic_fill(struct files_ctx *x, const struct fd_probe *p, struct file *f)
{
	f->flags = p->info.flags & ~(uint32_t)O_CLOEXEC;
	f->pos = p->info.pos;
	f->ino = p->st.st_ino;
	f->dev = p->st.st_dev;
	f->mode = p->st.st_mode;
	capture_owner(x, p, f);
}

static int capture_probe(struct files_ctx *x, struct fd_probe *p, struct cr_err *err)
{
	struct tree *t = x->c->tree;
	struct file f = {.object = UINT32_MAX};
	const struct file_ops *ops = file_ops_match(p);

	if (x->seen.v[p->id].in_flight && !files_may_fly(x, p, ops))
		return 0;
	generic_fill(x, p, &f);
	int r = ops->capture(x, p, &f, err);
	if (r < 0)
		return cr_err_ctx(err, "fd %d of %d (%s)", p->fd, p->pid, ops->name);
	if (!f.kind)
		return 0;
	uint32_t *leader = vec_push(&x->leaders);
	if (!leader)
		return cr_err_oom(err);
	*leader = p->id;
	x->seen.v[p->id].file = (uint32_t)t->n_files;
	t->files[t->n_files++] = f;
	return 0;
}

/* A name of a file or directory that is there, and no more than that. */
static bool is_plain_path(const char *link, const struct stat *st)
{
	return link[0] == '/' && (S_ISREG(st->st_mode) || S_ISDIR(st->st_mode)) &&
	       files_path_leads_to(link, st);
}

/* Refusals that need no look at the thing itself. */
static bool refused_at_sight(struct files_ctx *x, const struct fd_seen *s, pid_t pid)
{
	char path[64], link[PATH_MAX];
	/* a lease: whoever opens the file, as the destination would, breaks it */
	bool leased = s->info.locked && locks_is_leased(x->text.v + s->text_off);
	const char *why =
	    "opened with O_PATH, and no file or directory of that name: not supported; "
	    "close it first";
	struct stat st = {0};

	if (!leased && !(s->info.flags & O_PATH))
		return false;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, s->fd);
	ssize_t n = readlink(path, link, sizeof(link) - 1);
	link[n > 0 ? n : 0] = '\0';
	if (leased)
		why = "holds a lease (F_SETLEASE): not supported; give it up first";
	else if (n < 0 || (!stat(path, &st) && is_plain_path(link, &st)))
		return false;
	files_refuse(x, pid, s->fd, "%.160s: %s", link, why);
	return true;
}

static bool is_still_there(struct fd_probe *p)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", p->pid, p->fd);
	return !stat(path, &p->st) && p->st.st_ino == p->info.ino;
}

/* While it runs, a task may close a connection at any time: then nobody else may have it. false: it
 * is none, or gone. */
static bool probe_connection(struct files_ctx *x, struct fd_probe *p)
{
	p->diag = p->info.ino ? tcp_diag_find(&x->connections, p->info.ino) : NULL;
	if (!p->diag || !is_still_there(p))
		return false;
	p->local = -1;
	p->fs_magic = SOCKFS_MAGIC;
	p->link = "";
	p->so_domain = p->diag->family;
	p->so_type = SOCK_STREAM;
	p->so_protocol = IPPROTO_TCP;
	p->tcp_state = p->diag->state;
	return true;
}

static int list_connections(struct files_ctx *x, struct cr_err *err)
{
	if (x->connections_listed)
		return 0;
	x->connections_listed = true;
	return tcp_diag_read(&x->connections, err);
}

const struct tcp_diag_entry *files_connection(struct files_ctx *x, const struct fd_probe *p)
{
	struct cr_err ignored = {0};

	if (p->diag)
		return p->diag;
	return list_connections(x, &ignored) ? NULL : tcp_diag_find(&x->connections, p->st.st_ino);
}

/* One that waits to be received is ours alone. */
const struct pending *files_pending(struct files_ctx *x, const struct fd_probe *p)
{
	bool in_flight = x->seen.v[p->id].in_flight;
	pid_t pid = in_flight ? getpid() : p->pid;
	struct cr_err ignored = {0};

	if (!x->c->pending)
		return NULL;
	if (in_flight || x->pending_of != pid) {
		pending_done(&x->pending);
		x->pending_of = pendview_read(x->c->pending, pid, &x->pending, &ignored) ? 0 : pid;
	}
	const struct pending *found = pending_find(&x->pending, in_flight ? p->local : p->fd);
	/* ahead, the number may be another's by now */
	return found && found->family == p->so_domain && found->type == p->so_type ? found : NULL;
}

static void probe_told(struct files_ctx *x, struct fd_probe *p, const struct sock_facts *f)
{
	p->facts = f;
	p->local = -1;
	p->fs_magic = SOCKFS_MAGIC;
	p->link = "";
	p->so_domain = f->family;
	p->so_type = SOCK_STREAM;
	p->so_protocol = IPPROTO_TCP;
	p->tcp_state = f->state;
	p->st = (struct stat){.st_dev = sock_alike_dev(x->c->socks),
			      .st_ino = f->ino,
			      .st_mode = f->mode,
			      .st_uid = f->uid,
			      .st_gid = f->gid};
}

int files_capture_description(struct files_ctx *x, uint32_t id, struct cr_err *err)
{
	const struct fd_seen *s = &x->seen.v[id];
	struct fd_probe p = {.pid = x->c->tree->procs[s->proc].pid,
			     .fd = s->fd,
			     .id = id,
			     .info = s->info,
			     .text = s->text_off == SIZE_MAX ? NULL : x->text.v + s->text_off};
	char link[PATH_MAX];

	if (s->told) {
		probe_told(x, &p, &x->facts.list.v[s->told - 1]);
		return capture_probe(x, &p, err);
	}
	if (!s->in_flight && refused_at_sight(x, s, p.pid))
		return 0;
	if (!x->c->exact && probe_connection(x, &p))
		return capture_probe(x, &p, err);
	if (p.diag) /* closed meanwhile */
		return 0;
	/* what has the number by now may be a connection that came since they were listed */
	if (!x->c->exact && p.info.ino && !is_still_there(&p))
		return 0;
	_cleanup_fd_ int local = files_dup(x, s);
	if (local < 0 && !x->c->exact && (errno == EBADF || errno == ESRCH))
		return 0;
	if (local < 0)
		return cr_err_sys(err, "pidfd_getfd of fd %d of %d", p.fd, p.pid);
	p.local = local;
	int r = probe_fill(x, &p, link);
	if (r == 1 && !x->c->exact)
		return 0;
	if (r == 1)
		return cr_err_set(err, CR_ERR_BUG, EBUSY,
				  "fd %d of %d changed while it was stopped", p.fd, p.pid);
	if (r < 0) {
		errno = -r;
		return cr_err_sys(err, "fd %d of %d", p.fd, p.pid);
	}
	r = capture_probe(x, &p, err);
	if (sockopts_keep(x, local))
		take_fd(&local);
	return r;
}

static int capture_descriptions(struct files_ctx *x, struct cr_err *err)
{
	struct tree *t = x->c->tree;
	size_t n = 0;

	for (uint32_t i = 0; i < x->seen.n; i++)
		n += x->seen.v[i].leader == i;
	t->n_files = 0;
	t->files = arena_array(t->arena, struct file, n + 1);
	if (!t->files)
		return cr_err_oom(err);
	for (uint32_t i = 0; i < x->seen.n; i++) {
		struct fd_seen *s = &x->seen.v[i];

		if (s->leader != i) {
			s->file = x->seen.v[s->leader].file;
			continue;
		}
		int r = files_capture_description(x, i, err);
		if (!r && x->options.n >= SOCKOPTS_AT_ONCE)
			r = sockopts_read(x, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int fill_tables(struct files_ctx *x, struct cr_err *err)
{
	struct tree *t = x->c->tree;

	for (size_t i = 0; i < t->n_procs; i++) {
		struct process *p = &t->procs[i];
		size_t first = x->proc_first[i], end = x->proc_first[i + 1];

		p->n_fds = 0;
		p->fds = arena_array(t->arena, struct fd_entry, end - first + 1);
		if (!p->fds)
			return cr_err_oom(err);
		for (size_t k = first; k < end; k++) {
			const struct fd_seen *s = &x->seen.v[k];

			if (s->file != UINT32_MAX)
				p->fds[p->n_fds++] =
				    (struct fd_entry){s->fd, s->file, s->info.flags & O_CLOEXEC};
		}
	}
	return 0;
}

static int capture_links(struct files_ctx *x, struct cr_err *err)
{
	int read = sockopts_read(x, err);

	if (!read)
		read = sockopts_read_alike(x, err);
	if (!read)
		read = reuseport_capture(x, err);
	if (read)
		return read;
	for (const struct file_ops *const *ops = file_ops_all(); *ops; ops++) {
		int r = (*ops)->link ? (*ops)->link(x, err) : 0;

		if (r < 0)
			return r;
	}
	return 0;
}

/* Without it (a /proc without sys) inodes of the two hosts are taken to be comparable. */
static void capture_boot_id(struct capture *c)
{
	char *id = c->tree->boot_id;

	if (c->prev) {
		memcpy(id, c->prev->boot_id, sizeof(c->tree->boot_id));
		return;
	}
	boot_id_read(id);
}

int files_capture(struct capture *c, struct cr_err *err)
{
	_cleanup_(ctx_done) struct files_ctx x = {.c = c};

	x.self_fds = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (x.self_fds < 0)
		return cr_err_sys(err, "/proc/self/fd");
	capture_boot_id(c);
	int r = files_list(&x, err);
	if (!r)
		r = files_find_leaders(&x, err);
	if (!r && !c->exact)
		r = list_connections(&x, err);
	if (!r)
		r = capture_descriptions(&x, err);
	if (!r)
		r = files_capture_flights(&x, err);
	if (!r)
		r = capture_links(&x, err);
	if (!r)
		r = fill_tables(&x, err);
	if (!r)
		r = files_scan_outside(&x, err);
	if (!r)
		r = locks_capture(&x, err);
	if (!r)
		r = files_capture_places(&x, err);
	if (!r && x.n_closed > x.n_closed_said && !c->exact)
		refuse_warn(c->refused, c->tree->root_pid, "connections",
			    "%u more connections are closed by the move",
			    x.n_closed - x.n_closed_said);
	return r < 0 ? cr_err_ctx(err, "open files") : 0;
}
