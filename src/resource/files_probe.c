/* Looking at one descriptor: /proc/PID/fdinfo, names for messages, kcmp(2). */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

/* ---- fdinfo ---- */

const char *fdinfo_field(const char *text, const char *key)
{
	size_t len = strlen(key);

	for (const char *l = text; l && *l;) {
		if (!strncmp(l, key, len) && l[len] == ':') {
			l += len + 1;
			return l + strspn(l, " \t");
		}
		l = strchr(l, '\n');
		l = l ? l + 1 : NULL;
	}
	return NULL;
}

bool fdinfo_u64(const char *text, const char *key, int base, uint64_t *ret)
{
	const char *v = fdinfo_field(text, key);
	char *end;

	if (!v)
		return false;
	errno = 0;
	uint64_t n = strtoull(v, &end, base);
	if (end == v || errno)
		return false;
	*ret = n;
	return true;
}

int fdinfo_parse(const char *text, struct fdinfo *out, const char **ret_rest, struct cr_err *err)
{
	struct fdinfo o = {0};
	uint64_t pos, flags, mnt, ino = 0;

	if (!fdinfo_u64(text, "pos", 10, &pos) || !fdinfo_u64(text, "flags", 8, &flags) ||
	    !fdinfo_u64(text, "mnt_id", 10, &mnt))
		return cr_err_set(err, CR_ERR_KERNEL, EPROTO, "fdinfo is not as expected: %.60s",
				  text);
	if (flags > UINT32_MAX || mnt > INT32_MAX)
		return cr_err_set(err, CR_ERR_KERNEL, EPROTO,
				  "fdinfo has numbers out of range: %.60s", text);
	o.pos = pos;
	o.flags = (uint32_t)flags;
	o.mnt_id = (int32_t)mnt;
	const char *rest = strstr(text, "\nmnt_id:");
	rest = rest ? strchr(rest + 1, '\n') : NULL;
	rest = rest ? rest + 1 : text + strlen(text);
	if (!strncmp(rest, "ino:", 4)) {
		ino = strtoull(rest + 4, NULL, 10);
		rest = strchr(rest, '\n');
		rest = rest ? rest + 1 : text + strlen(text);
	}
	o.ino = ino;
	o.locked = fdinfo_field(rest, "lock") != NULL;
	if (ret_rest)
		*ret_rest = rest;
	*out = o;
	return 0;
}

void text_buf_done(struct text_buf *b)
{
	free(b->v);
}

int text_append_file(struct text_buf *b, int dirfd, const char *name, size_t *ret_off)
{
	_cleanup_fd_ int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC);
	size_t off = b->n;

	if (fd < 0)
		return -errno;
	for (;;) {
		if (vec_reserve_((void **)&b->v, &b->cap, b->n + 4096, 1))
			return -ENOMEM;
		size_t room = b->cap - b->n - 1;
		ssize_t r = read(fd, b->v + b->n, room);

		if (r < 0) {
			b->n = off;
			return -errno;
		}
		b->n += (size_t)r;
		/* seq_file: a short read is the end. Saves a call for each descriptor. */
		if ((size_t)r < room)
			break;
	}
	b->v[b->n++] = '\0';
	*ret_off = off;
	return 0;
}

/* ---- names ---- */

static void comm_of(pid_t pid, char comm[32])
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, comm, 31);
	comm[n > 0 ? n : 0] = '\0';
	comm[strcspn(comm, "\n")] = '\0';
}

static void describe(char *what, size_t size, pid_t pid, int fd)
{
	char comm[32];

	comm_of(pid, comm);
	snprintf(what, size, "fd %d (%s)", fd, comm);
}

void files_refuse(struct files_ctx *x, pid_t pid, int fd, const char *fmt, ...)
{
	char what[64], why[300];
	va_list ap;

	describe(what, sizeof(what), pid, fd);
	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	refuse(x->c->refused, pid, what, "%s", why);
}

void files_warn(struct files_ctx *x, pid_t pid, int fd, const char *fmt, ...)
{
	char what[64], why[300];
	va_list ap;

	if (x->c->exact)
		return; /* nobody reads it now, and the tasks wait */
	describe(what, sizeof(what), pid, fd);
	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	refuse_warn(x->c->refused, pid, what, "%s", why);
}

/* ---- finding ---- */

const struct fd_seen *files_holder(const struct files_ctx *x, uint32_t file)
{
	return &x->seen.v[x->leaders.v[file]];
}

pid_t files_holder_pid(const struct files_ctx *x, uint32_t file)
{
	return x->c->tree->procs[files_holder(x, file)->proc].pid;
}

const struct fd_seen *files_seen(const struct files_ctx *x, uint32_t proc, int fd)
{
	size_t lo = x->proc_first[proc], hi = x->proc_first[proc + 1];

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (x->seen.v[mid].fd < fd)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo < x->proc_first[proc + 1] && x->seen.v[lo].fd == fd)
		return &x->seen.v[lo];
	return NULL;
}

const struct file *files_before(const struct files_ctx *x, const struct fd_probe *p)
{
	const struct fd_seen *s = &x->seen.v[p->id];
	const struct process *prev = x->c->procs[s->proc].prev;
	const struct fd_entry *e =
	    prev && x->c->prev && !s->in_flight ? process_fd(prev, p->fd) : NULL;

	return e ? &x->c->prev->files[e->file] : NULL;
}

int files_dup(const struct files_ctx *x, const struct fd_seen *s)
{
	return s->in_flight ? fcntl(s->in_flight, F_DUPFD_CLOEXEC, 0)
			    : (int)syscall(SYS_pidfd_getfd, x->c->procs[s->proc].pidfd, s->fd, 0);
}

int files_getfd(struct files_ctx *x, uint32_t file, struct cr_err *err)
{
	const struct fd_seen *s = files_holder(x, file);
	int fd = files_dup(x, s);

	return fd < 0 ? cr_err_sys(err, "pidfd_getfd of fd %d of %d", s->fd,
				   x->c->tree->procs[s->proc].pid)
		      : fd;
}

int files_watch(struct files_ctx *x, const struct fd_watch *w, struct cr_err *err)
{
	struct fd_watch *n = vec_push(&x->watches);

	if (!n)
		return cr_err_oom(err);
	*n = *w;
	return 0;
}

bool files_path_leads_to(const char *path, const struct stat *st)
{
	struct stat there;

	return path[0] == '/' && !stat(path, &there) && there.st_dev == st->st_dev &&
	       there.st_ino == st->st_ino;
}

int files_kcmp(pid_t a, int fda, pid_t b, int fdb)
{
	long r = syscall(SYS_kcmp, a, b, KCMP_FILE, fda, fdb);

	return r < 0 ? -errno : (int)r;
}

bool files_pid_in_tree(const struct tree *t, pid_t pid, bool group)
{
	for (size_t i = 0; i < t->n_procs; i++) {
		const struct process *p = &t->procs[i];

		if (group ? p->pgid == pid : p->pid == pid || process_find_thread(p, pid))
			return true;
	}
	return false;
}
