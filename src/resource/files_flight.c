/* Descriptors that wait in unix sockets to be received (SCM_RIGHTS, unix(7)).
 *
 * MSG_PEEK gives duplicates of them. Most are of descriptions that some task has too; one that
 * nobody has any more is captured through our duplicate, and gets an entry of tree->files that no
 * table refers to. It may be a unix socket in which others wait: the list grows while it is worked
 * on. Only at a stop: nobody looks into the sockets of running tasks. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

int files_in_flight(struct files_ctx *x, int fd, uint32_t file, uint32_t *slot, struct cr_err *err)
{
	/* 0 says in struct fd_seen that there is none */
	int ours = fd ? fd : fcntl(fd, F_DUPFD_CLOEXEC, 1);
	struct fd_flight *f = ours < 0 ? NULL : vec_push(&x->flights);

	if (ours != fd)
		close(fd);
	*slot = UINT32_MAX;
	if (!f) {
		if (ours > 0)
			close(ours);
		return cr_err_oom(err);
	}
	*f = (struct fd_flight){ours, file, slot};
	return 0;
}

uint32_t files_find_description(const struct files_ctx *x, int fd)
{
	struct stat st;

	if (fstat(fd, &st))
		return UINT32_MAX;
	for (uint32_t i = 0; i < x->c->tree->n_files; i++) {
		const struct fd_seen *s = files_holder(x, i);

		if (s->info.ino && s->info.ino != st.st_ino)
			continue;
		if (!files_kcmp(getpid(), fd, s->in_flight ? getpid() : files_holder_pid(x, i),
				s->in_flight ? s->in_flight : s->fd))
			return i;
	}
	return UINT32_MAX;
}

/* What needs no task that holds it: neither to be captured nor to be built. */
bool files_may_fly(struct files_ctx *x, const struct fd_probe *p, const struct file_ops *ops)
{
	static const enum file_kind known[] = {FILE_REGULAR, FILE_CHARDEV, FILE_PIPE,
					       FILE_EVENTFD, FILE_TIMERFD, FILE_UNIX_CONN};
	bool can = !p->info.locked;

	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (ops->kind == known[i] && can)
			return true;
	files_refuse(
	    x, p->pid, p->fd,
	    "unix socket: a descriptor that nobody has waits in it to be received (%s%.100s%s%s): "
	    "not supported",
	    ops->name, p->link[0] ? ", " : "", p->link, can ? "" : ", with a lock");
	return false;
}

static int grow(struct tree *t, struct cr_err *err)
{
	struct file *list = arena_array(t->arena, struct file, t->n_files + 1);

	if (!list)
		return cr_err_oom(err);
	if (t->n_files)
		memcpy(list, t->files, t->n_files * sizeof(*list));
	t->files = list;
	return 0;
}

static int add_description(struct files_ctx *x, const struct fd_flight *f, struct cr_err *err)
{
	const struct fd_seen holder = *files_holder(x, f->file);
	_cleanup_fd_ int dir = open("/proc/self/fdinfo", O_PATH | O_DIRECTORY | O_CLOEXEC);
	char name[16];

	if (dir < 0)
		return cr_err_sys(err, "/proc/self/fdinfo");
	snprintf(name, sizeof(name), "%d", f->fd);
	int r = files_see(x, holder.proc, dir, name, err);
	if (!r)
		r = grow(x->c->tree, err);
	if (r)
		return r;
	struct fd_seen *s = &x->seen.v[x->seen.n - 1];
	s->in_flight = s->fd;
	s->fd = holder.fd;
	return files_capture_description(x, s->leader, err);
}

int files_capture_flights(struct files_ctx *x, struct cr_err *err)
{
	for (size_t i = 0; i < x->flights.n; i++) {
		const struct fd_flight f = x->flights.v[i];
		size_t had = x->c->tree->n_files;

		*f.slot = files_find_description(x, f.fd);
		if (*f.slot != UINT32_MAX)
			continue;
		int r = add_description(x, &f, err);
		if (r)
			return r;
		if (x->c->tree->n_files > had)
			*f.slot = (uint32_t)had;
	}
	return 0;
}
