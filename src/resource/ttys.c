/* Terminals as a whole: made at the destination, emptied and refilled at the source.
 *
 * A terminal keeps its number, which is its name: tasks know it. The kernel gives the lowest free
 * one, so those below it are held until it comes up. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include "resource/tty_queue.h"

struct made_tty {
	uint32_t number;
	int master, slave; /* ours */
	pid_t sid;
	struct winsize size;
};

struct ttys {
	VEC(struct made_tty) list;
};

struct ttys *ttys_new(void)
{
	return calloc(1, sizeof(struct ttys));
}

static void made_done(struct made_tty *m)
{
	close_fdp(&m->slave);
	close_fdp(&m->master);
}

void ttys_free(struct ttys *y)
{
	if (!y)
		return;
	vec_foreach (m, &y->list)
		made_done(m);
	vec_done(&y->list);
	free(y);
}

static struct made_tty *find(const struct ttys *y, uint32_t number)
{
	if (y)
		vec_foreach (m, &y->list)
			if (m->number == number)
				return m;
	return NULL;
}

int ttys_master(const struct ttys *y, uint32_t number)
{
	const struct made_tty *m = find(y, number);

	return m ? m->master : -1;
}

int ttys_slave(const struct ttys *y, uint32_t number)
{
	const struct made_tty *m = find(y, number);

	return m ? m->slave : -1;
}

/* ---- making ---- */

static const struct file *master_of(const struct tree *t, uint32_t number)
{
	for (size_t i = 0; i < t->n_files; i++)
		if (t->files[i].kind == FILE_PTY_MASTER && t->files[i].tty == number)
			return &t->files[i];
	return NULL;
}

static void close_all(int *fds, size_t n)
{
	for (size_t i = 0; i < n; i++)
		close(fds[i]);
}

/* The master of that number. */
static int open_master(const struct file *f, struct cr_err *err)
{
	enum { LOWER_MAX = 512 };
	int lower[LOWER_MAX], fd = -1, r = 0;
	unsigned int got = 0;
	size_t n = 0;

	while (!r && fd < 0) {
		int one = open(f->path, (int)file_open_flags(f) | O_NONBLOCK);

		if (one < 0 || ioctl(one, TIOCGPTN, &got))
			r = cr_err_sys(err, "making a terminal by %s", f->path);
		else if (got == f->tty)
			fd = one;
		else if (got > f->tty || n == LOWER_MAX)
			r = cr_err_set(err, CR_ERR_INPUT, EEXIST,
				       "terminal /dev/pts/%u cannot be had here: it is in use",
				       f->tty);
		if (one >= 0 && fd < 0 && !r)
			lower[n++] = one;
		else if (one >= 0 && fd < 0)
			close(one);
	}
	close_all(lower, n);
	return r ? r : fd;
}

static struct winsize size_of(const struct tty *y)
{
	return (struct winsize){(unsigned short)y->rows, (unsigned short)y->cols,
				(unsigned short)y->xpixel, (unsigned short)y->ypixel};
}

static int make(struct made_tty *m, const struct tree *t, const struct tty *y, struct cr_err *err)
{
	const struct file *f = master_of(t, y->number);
	const int unlock = 0;

	*m = (struct made_tty){.number = y->number, .master = -1, .slave = -1};
	if (!f)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "terminal %u has no master", y->number);
	m->master = open_master(f, err);
	if (m->master < 0)
		return m->master;
	if (ioctl(m->master, TIOCSPTLCK, &unlock))
		return cr_err_sys(err, "unlocking /dev/pts/%u", y->number);
	/* ours for as long as it is built. Where nobody has opened it at the source, nobody does */
	if (y->opened)
		m->slave =
		    ioctl(m->master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	if (y->opened && m->slave < 0)
		return cr_err_sys(err, "opening /dev/pts/%u", y->number);
	if (m->slave >= 0 && (fchown(m->slave, y->uid, y->gid) || fchmod(m->slave, y->mode)))
		return cr_err_sys(err, "owner of /dev/pts/%u", y->number);
	return 0;
}

static int close_gone(struct ttys *y, const struct tree *t, struct cr_err *err)
{
	for (size_t i = y->list.n; i-- > 0;) {
		struct made_tty *m = &y->list.v[i];
		const struct tty *now = tree_find_tty(t, m->number);

		/* its shell would get a SIGHUP that its process at the source has had already */
		if (m->sid && (!now || now->sid != m->sid) && tree_find_process(t, m->sid))
			return cr_err_set(err, CR_ERR_KERNEL, EAGAIN,
					  "process %d has lost its terminal during the copy; try "
					  "again",
					  m->sid);
		if (now && (m->slave >= 0 || !now->opened))
			continue;
		made_done(m);
		*m = y->list.v[--y->list.n];
	}
	return 0;
}

int ttys_sync(struct ttys *y, const struct tree *t, bool *ret_resized, struct cr_err *err)
{
	int r = close_gone(y, t, err);

	*ret_resized = false;
	for (size_t i = 0; i < t->n_ttys && !r; i++) {
		const struct tty *want = &t->ttys[i];
		struct made_tty *m = find(y, want->number);
		bool fresh = !m;

		if (fresh && !(m = vec_push(&y->list)))
			return cr_err_oom(err);
		if (fresh)
			r = make(m, t, want, err);
		struct winsize size = size_of(want);
		if (!r && memcmp(&size, &m->size, sizeof(size))) {
			if (ioctl(m->master, TIOCSWINSZ, &size))
				r = cr_err_sys(err, "size of /dev/pts/%u", want->number);
			*ret_resized |= m->sid != 0;
		}
		m->size = size;
		m->sid = want->sid;
	}
	return r;
}

/* ---- the source ---- */

static int fetch_master(const struct tree *t, uint32_t number, struct cr_err *err)
{
	for (size_t i = 0; i < t->n_procs; i++)
		for (size_t k = 0; k < t->procs[i].n_fds; k++) {
			const struct fd_entry *e = &t->procs[i].fds[k];
			const struct file *f = &t->files[e->file];

			if (f->kind != FILE_PTY_MASTER || f->tty != number)
				continue;
			_cleanup_fd_ int pidfd = (int)syscall(SYS_pidfd_open, t->procs[i].pid, 0);
			int fd = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, e->fd, 0);
			return fd < 0
				   ? cr_err_sys(err, "fetching the master of /dev/pts/%u", number)
				   : fd;
		}
	return cr_err_set(err, CR_ERR_BUG, ENOENT, "terminal %u has no master", number);
}

/* A slave of our own, whatever its lock says. */
static int open_slave(int master, const struct tty *y, int *ret, struct cr_err *err)
{
	const int unlock = 0, lock = 1;
	int r = 0;

	if (!y->opened)
		return 0;
	if (y->locked && ioctl(master, TIOCSPTLCK, &unlock))
		return cr_err_sys(err, "unlocking /dev/pts/%u", y->number);
	*ret = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	if (*ret < 0)
		r = cr_err_sys(err, "opening /dev/pts/%u", y->number);
	if (y->locked && ioctl(master, TIOCSPTLCK, &lock) && !r)
		r = cr_err_sys(err, "locking /dev/pts/%u", y->number);
	return r;
}

static int with_both(const struct tree *t, struct tty *y, bool drain, struct cr_err *err)
{
	_cleanup_fd_ int master = fetch_master(t, y->number, err);
	_cleanup_fd_ int slave = -1;

	if (master < 0)
		return master;
	int r = open_slave(master, y, &slave, err);
	if (r)
		return r;
	return drain ? tty_drain(master, slave, t->arena, y, err) : tty_feed(master, slave, y, err);
}

int ttys_drain(struct tree *t, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < t->n_ttys && !r; i++)
		r = with_both(t, &t->ttys[i], true, err);
	return r;
}

int ttys_put_back(const struct tree *t, struct cr_err *err)
{
	int result = 0;

	for (size_t i = 0; i < t->n_ttys; i++) {
		struct tty *y = &t->ttys[i];
		struct cr_err why = {0};
		/* an output that was stopped still is */
		struct tty put = *y;

		put.stopped = false;
		if (!y->input_len && !y->n_lines && !y->output_len)
			continue;
		int r = with_both(t, &put, false, &why);
		if (r && !result) { /* the others all the same */
			result = r;
			*err = why;
		}
	}
	return result;
}
