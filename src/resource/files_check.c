/* Destination preflight for open files, and the comparison of two captures. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include "kernel/boot_id.h"
#include "resource/sock_program.h"

static void say(const struct file_check *k, bool refused, const char *fmt, va_list ap)
{
	char what[64], why[300];

	snprintf(what, sizeof(what), "fd %d (%.15s)", k->fd,
		 k->p->n_threads ? k->p->threads[0].comm : "");
	vsnprintf(why, sizeof(why), fmt, ap);
	(refused ? refuse : refuse_warn)(k->refused, k->p->pid, what, "%s", why);
}

void file_check_refuse(const struct file_check *k, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(k, true, fmt, ap);
	va_end(ap);
}

void file_check_warn(const struct file_check *k, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(k, false, fmt, ap);
	va_end(ap);
}

static void check_process(const struct process *p, uint64_t fd_max, struct refusals *refused)
{
	struct stat st;

	if (p->cwd && !p->cwd_carried && (stat(p->cwd, &st) || !S_ISDIR(st.st_mode)))
		refuse(refused, p->pid, "working directory",
		       "%.200s: no such directory here; --copy-files makes it", p->cwd);
	if (p->n_fds && (uint64_t)p->fds[p->n_fds - 1].fd >= fd_max)
		refuse(refused, p->pid, "descriptors",
		       "number %d is above what this host's agent may use (RLIMIT_NOFILE %llu)",
		       p->fds[p->n_fds - 1].fd, (unsigned long long)fd_max);
}

static void check_program(const struct file_check *k, const struct file *f)
{
	struct cr_err why = {0};

	if (sock_program_check(f, &why))
		file_check_refuse(k, "socket with an eBPF filter (SO_ATTACH_BPF): %.200s", why.msg);
}

void files_check(const struct tree *t, struct refusals *refused)
{
	struct file_check k = {.t = t, .refused = refused};
	struct rlimit rl = {.rlim_max = RLIM_INFINITY};

	/* who holds a file first */
	_cleanup_free_ bool *done = calloc(t->n_files + 1, sizeof(*done));
	if (!done) {
		refuse(refused, 0, "open files", "out of memory");
		return;
	}
	getrlimit(RLIMIT_NOFILE, &rl);
	k.same_kernel = boot_id_matches(t->boot_id, &k.same_kernel_known);
	for (size_t i = 0; i < t->n_procs; i++) {
		k.p = &t->procs[i];
		if (k.p->zombie)
			continue;
		check_process(k.p, rl.rlim_max, refused);
		for (size_t n = 0; n < k.p->n_fds; n++) {
			uint32_t file = k.p->fds[n].file;
			const struct file_ops *ops;

			if (file >= t->n_files || done[file])
				continue;
			done[file] = true;
			k.fd = k.p->fds[n].fd;
			ops = file_ops_of(t->files[file].kind);
			if (!ops)
				file_check_refuse(&k, "unknown kind of file %d",
						  t->files[file].kind);
			else if (ops->check)
				ops->check(&k, &t->files[file]);
			check_program(&k, &t->files[file]);
		}
	}
}

/* ---- comparison ---- */

static bool same_text(const char *a, const char *b)
{
	return !strcmp(a ? a : "", b ? b : "");
}

static bool same_process(const struct process *a, const struct process *b)
{
	if (a->pid != b->pid || a->zombie != b->zombie || a->n_fds != b->n_fds ||
	    a->umask != b->umask || !same_text(a->cwd, b->cwd) || !same_text(a->root, b->root))
		return false;
	for (size_t i = 0; i < a->n_fds; i++)
		if (a->fds[i].fd != b->fds[i].fd || a->fds[i].file != b->fds[i].file ||
		    a->fds[i].cloexec != b->fds[i].cloexec)
			return false;
	return true;
}

static bool same_file(const struct file *a, const struct file *b)
{
	if (file_identity_cmp(a, b) || ((a->flags ^ b->flags) & O_ASYNC) ||
	    a->n_targets != b->n_targets)
		return false;
	for (size_t i = 0; i < a->n_targets; i++) {
		const struct epoll_target *x = &a->targets[i], *y = &b->targets[i];

		if (x->fd != y->fd || x->file != y->file || x->events != y->events ||
		    x->data != y->data)
			return false;
	}
	return true;
}

bool files_same_shape(const struct tree *old, const struct tree *t)
{
	if (old->n_procs != t->n_procs || old->n_files != t->n_files)
		return false;
	for (size_t i = 0; i < t->n_procs; i++)
		if (!same_process(&old->procs[i], &t->procs[i]))
			return false;
	for (size_t i = 0; i < t->n_files; i++)
		if (!same_file(&old->files[i], &t->files[i]))
			return false;
	return true;
}
