/* Pseudoterminals, pty(7): masters (/dev/ptmx), slaves (/dev/pts/N), and /dev/tty, which is the
 * slave by another name. Both sides are inside the tree, or it is refused. What a terminal is
 * beside its descriptions is in tree.ttys; the destination makes that in ttys.c, ahead of the
 * processes. */
#include "resource/file_kind.h"

#include <asm/termbits.h>
#include <fcntl.h>
#include <linux/major.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include "resource/tty_queue.h"

bool tty_number(uint64_t rdev, uint32_t *ret)
{
	unsigned int major = major(rdev);

	if (major < UNIX98_PTY_SLAVE_MAJOR ||
	    major >= UNIX98_PTY_SLAVE_MAJOR + UNIX98_PTY_MAJOR_COUNT)
		return false;
	*ret = (major - UNIX98_PTY_SLAVE_MAJOR) * 256 + minor(rdev);
	return true;
}

static bool is_dev(const struct fd_probe *p, unsigned int major, unsigned int minor)
{
	return S_ISCHR(p->st.st_mode) && p->st.st_rdev == makedev(major, minor);
}

static bool match_master(const struct fd_probe *p)
{
	return is_dev(p, TTYAUX_MAJOR, 2);
}

static bool match_tty(const struct fd_probe *p)
{
	return is_dev(p, TTYAUX_MAJOR, 0);
}

static bool match_slave(const struct fd_probe *p)
{
	uint32_t number;

	return S_ISCHR(p->st.st_mode) && tty_number(p->st.st_rdev, &number);
}

/* ---- capture ---- */

static int take_common(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		       enum file_kind kind, uint32_t number, struct cr_err *err)
{
	if (!p->link_leads_here) {
		files_refuse(x, p->pid, p->fd,
			     "%.180s: the path does not lead to that terminal: its other side is "
			     "closed, or it is another mount's",
			     p->link);
		return 0;
	}
	f->kind = kind;
	f->rdev = p->st.st_rdev;
	f->tty = number;
	f->pos = 0;
	f->path = arena_strdup(x->c->tree->arena, p->link);
	return f->path ? 0 : cr_err_oom(err);
}

static struct tty *add_tty(struct tree *t)
{
	/* room doubles: at 0, 1, 2, 4, … */
	if (!(t->n_ttys & (t->n_ttys - 1))) {
		size_t n = t->n_ttys ? 2 * t->n_ttys : 1;
		struct tty *more = arena_array(t->arena, struct tty, n);

		if (!more)
			return NULL;
		if (t->n_ttys)
			memcpy(more, t->ttys, t->n_ttys * sizeof(*more));
		t->ttys = more;
	}
	return &t->ttys[t->n_ttys++];
}

/* Modes of the slave, and whose it is, as the master tells them. */
static int fill_tty(int master, struct tty *y, struct cr_err *err)
{
	struct winsize ws = {0};
	struct pollfd pfd = {.fd = master};
	int locked = 0, packet = 0;

	if (ioctl(master, TCGETS2, y->termios) || ioctl(master, TIOCGWINSZ, &ws) ||
	    ioctl(master, TIOCGPTLCK, &locked) || ioctl(master, TIOCGPKT, &packet))
		return cr_err_sys(err, "modes of /dev/pts/%u", y->number);
	y->locked = locked;
	y->packet = packet;
	y->rows = ws.ws_row, y->cols = ws.ws_col;
	y->xpixel = ws.ws_xpixel, y->ypixel = ws.ws_ypixel;
	if (ioctl(master, TIOCGSID, &y->sid) || y->sid < 0)
		y->sid = 0;
	if (!y->sid || ioctl(master, TIOCGPGRP, &y->pgrp) || y->pgrp < 0)
		y->pgrp = 0;
	y->closed = poll(&pfd, 1, 0) > 0 && pfd.revents & POLLHUP;
	y->opened = y->closed;
	return 0;
}

static const char *discipline_trouble(int master)
{
	int disc = 0;
	uint8_t locked[TTY_TERMIOS_BYTES + 16] = {0};

	if (!ioctl(master, TIOCGETD, &disc) && disc)
		return "its line discipline is none for terminals: not supported";
	if (ioctl(master, TIOCGLCKTRMIOS, locked))
		return NULL;
	for (size_t i = 0; i < sizeof(locked); i++)
		if (locked[i])
			return "its modes are locked (TIOCSLCKTRMIOS): not supported";
	return NULL;
}

static int capture_master(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			  struct cr_err *err)
{
	struct tree *t = x->c->tree;
	unsigned int number = 0;
	const char *trouble = discipline_trouble(p->local);

	if (ioctl(p->local, TIOCGPTN, &number))
		return cr_err_sys(err, "TIOCGPTN");
	if (trouble) {
		files_refuse(x, p->pid, p->fd, "/dev/pts/%u: %s", number, trouble);
		return 0;
	}
	int r = take_common(x, p, f, FILE_PTY_MASTER, number, err);
	if (r || !f->kind)
		return r;
	struct tty *y = add_tty(t);
	if (!y)
		return cr_err_oom(err);
	*y = (struct tty){.number = number};
	return fill_tty(p->local, y, err);
}

static int capture_slave(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			 struct cr_err *err)
{
	uint32_t number = 0;

	tty_number(p->st.st_rdev, &number);
	return take_common(x, p, f, FILE_PTY_SLAVE, number, err);
}

static int capture_tty(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		       struct cr_err *err)
{
	uint32_t number = 0;
	unsigned int dev = 0;

	/* encoded as in proc_pid_stat(5); 2.6.39 */
	if (ioctl(p->local, TIOCGDEV, &dev) ||
	    !tty_number(makedev(dev >> 8 & 0xfff, (dev >> 12 & 0xfff00) | (dev & 0xff)), &number)) {
		files_refuse(x, p->pid, p->fd, "/dev/tty: no pseudoterminal: not supported");
		return 0;
	}
	return take_common(x, p, f, FILE_TTY, number, err);
}

static bool has_group(const struct tree *t, pid_t pgrp)
{
	for (size_t i = 0; i < t->n_procs; i++)
		if (t->procs[i].pgid == pgrp)
			return true;
	return false;
}

static int link_master(struct files_ctx *x, uint32_t file, struct cr_err *err)
{
	struct tree *t = x->c->tree;
	const struct file *f = &t->files[file];
	struct tty *y = tree_find_tty(t, f->tty);
	const struct fd_watch w = {.dev = f->dev, .ino = f->ino, .pty = f->tty + 1, .file = file};
	char path[32];
	struct stat st;

	if (y->sid && !tree_find_process(t, y->sid))
		files_refuse(x, files_holder_pid(x, file), files_holder(x, file)->fd,
			     "/dev/pts/%u is the controlling terminal of session %d, which is led "
			     "from outside the tree",
			     y->number, y->sid);
	if (y->pgrp && !has_group(t, y->pgrp))
		y->pgrp = 0; /* nobody is left in it */
	snprintf(path, sizeof(path), "/dev/pts/%u", y->number);
	if (!stat(path, &st)) {
		y->uid = st.st_uid;
		y->gid = st.st_gid;
		y->mode = st.st_mode & 07777;
	}
	return files_watch(x, &w, err);
}

static int link_other(struct files_ctx *x, uint32_t file, struct cr_err *err)
{
	struct tree *t = x->c->tree;
	const struct file *f = &t->files[file];
	const struct fd_watch w = {.dev = f->dev, .ino = f->ino, .file = file};
	struct tty *y = tree_find_tty(t, f->tty);

	if (!y) {
		files_refuse(x, files_holder_pid(x, file), files_holder(x, file)->fd,
			     "terminal /dev/pts/%u, whose other side (of a login, a terminal "
			     "window, tmux) is outside the tree: start it with setsid and its "
			     "input and output elsewhere, or move that as well",
			     f->tty);
		return 0;
	}
	y->opened = true;
	_cleanup_fd_ int fd = x->c->exact ? files_getfd(x, file, err) : -1;
	if (fd < 0 && x->c->exact)
		return fd;
	int exclusive = 0;
	if (fd >= 0 && !ioctl(fd, TIOCGEXCL, &exclusive))
		y->exclusive = exclusive;
	return f->kind == FILE_PTY_SLAVE ? files_watch(x, &w, err) : 0;
}

/* Their controlling terminals. */
static void link_processes(struct files_ctx *x)
{
	struct tree *t = x->c->tree;

	for (size_t i = 0; i < t->n_procs; i++) {
		struct process *p = &t->procs[i];
		char what[48];

		if (!p->ctty || tree_find_tty(t, p->ctty - 1))
			continue;
		snprintf(what, sizeof(what), "controlling terminal /dev/pts/%u", p->ctty - 1);
		if (!x->c->exact)
			refuse_warn(x->c->refused, p->pid, what,
				    "stays behind: it has none after the move");
		p->ctty = 0;
	}
}

static int link_all(struct files_ctx *x, struct cr_err *err)
{
	struct tree *t = x->c->tree;
	int r = 0;

	for (uint32_t i = 0; i < t->n_files && !r; i++)
		if (t->files[i].kind == FILE_PTY_MASTER)
			r = link_master(x, i, err);
		else if (file_is_terminal(t->files[i].kind))
			r = link_other(x, i, err);
	link_processes(x);
	return r;
}

/* ---- destination preflight ---- */

static void check_master(const struct file_check *k, const struct file *f)
{
	char path[32];
	struct stat st;

	if (stat(f->path, &st) || !S_ISCHR(st.st_mode) || st.st_rdev != f->rdev)
		file_check_refuse(k, "%.180s: no terminals can be made here", f->path);
	snprintf(path, sizeof(path), "/dev/pts/%u", f->tty);
	if (!stat(path, &st))
		file_check_refuse(k, "terminal %s is in use here; close it first", path);
}

static void check_tty_node(const struct file_check *k, const struct file *f)
{
	struct stat st;

	if (stat(f->path, &st) || !S_ISCHR(st.st_mode) || st.st_rdev != f->rdev)
		file_check_refuse(k, "%.180s: missing here, or another device", f->path);
}

/* ---- rebuild ---- */

static int build_master(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	fs->held[i].fd = fcntl(ttys_master(fs->ttys, t->files[i].tty), F_DUPFD_CLOEXEC, 0);
	return fs->held[i].fd < 0 ? cr_err_sys(err, "master of /dev/pts/%u", t->files[i].tty) : 0;
}

/* By way of the master (4.13), whatever is mounted where. */
static int build_slave(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	struct stat st;
	int flags =
	    (int)((file_open_flags(f) & ~(uint32_t)(O_NOFOLLOW | O_DIRECTORY)) | O_NONBLOCK);

	fs->held[i].fd = ioctl(ttys_master(fs->ttys, f->tty), TIOCGPTPEER, flags);
	if (fs->held[i].fd < 0)
		return cr_err_sys(err, "opening /dev/pts/%u", f->tty);
	if (fstat(fs->held[i].fd, &st) || !files_path_leads_to(f->path, &st))
		return cr_err_set(err, CR_ERR_INPUT, ENXIO, "%s: does not lead to terminal %u here",
				  f->path, f->tty);
	return 0;
}

/* The name stands for the terminal of whoever opens it. */
static int build_tty(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	const struct process *p = NULL;
	struct rtask *rt;
	uint64_t path;
	int slot;

	for (size_t k = 0; k < t->n_procs && !p; k++)
		if (!t->procs[k].zombie && t->procs[k].ctty == f->tty + 1 && fs->tasks.enter &&
		    !fs->tasks.enter(fs->tasks.arg, t->procs[k].pid, &rt, &slot))
			p = &t->procs[k];
	if (!p)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, ENXIO,
				  "/dev/tty: nobody has terminal %u for it any more", f->tty);
	_cleanup_fd_ int pidfd = (int)syscall(SYS_pidfd_open, p->pid, 0);
	if (pidfd < 0)
		return cr_err_sys(err, "pidfd of %d", p->pid);
	int r = rtask_put(rt, f->path, strlen(f->path) + 1, &path, err);
	if (r)
		return r;
	long fd = rcall_now(rt, SYS_openat, AT_FDCWD, path, file_open_flags(f) | O_NONBLOCK, 0);
	if (fd < 0)
		return cr_err_set(err, CR_ERR_KERNEL, (int)-fd, "opening %s in task %d: %s",
				  f->path, p->pid, strerror((int)-fd));
	fs->held[i].fd = (int)syscall(SYS_pidfd_getfd, pidfd, (int)fd, 0);
	r = fs->held[i].fd < 0 ? cr_err_sys(err, "fetching %s", f->path) : 0;
	rqueue(rt, "close", SYS_close, fd);
	int e = r ? 0 : rtask_run(rt, err);
	rtask_scratch_reset(rt);
	return r ? r : e;
}

static int settle_master(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct tty *y = tree_find_tty(t, t->files[i].tty);
	int master = fs->held[i].fd, slave = ttys_slave(fs->ttys, y->number);
	int lock = y->locked;

	if (fs->held[i].filled && slave >= 0 &&
	    (ioctl(slave, TCFLSH, TCIOFLUSH) || ioctl(master, TCFLSH, TCIOFLUSH)))
		return cr_err_sys(err, "emptying a terminal");
	fs->held[i].filled = true;
	int r = tty_feed(master, slave, y, err);
	if (!r && slave >= 0 && ioctl(slave, y->exclusive ? TIOCEXCL : TIOCNXCL))
		r = cr_err_sys(err, "exclusive use of a terminal");
	if (!r && ioctl(master, TIOCSPTLCK, &lock))
		r = cr_err_sys(err, "locking a terminal");
	return r;
}

const struct file_ops file_ops_pty_master = {
    .name = "pseudoterminal",
    .kind = FILE_PTY_MASTER,
    .match = match_master,
    .capture = capture_master,
    .link = link_all,
    .check = check_master,
    .build = build_master,
    .settle = settle_master,
};

const struct file_ops file_ops_pty_slave = {
    .name = "terminal",
    .kind = FILE_PTY_SLAVE,
    .match = match_slave,
    .capture = capture_slave,
    .build = build_slave,
};

const struct file_ops file_ops_tty = {
    .name = "terminal",
    .kind = FILE_TTY,
    .match = match_tty,
    .capture = capture_tty,
    .check = check_tty_node,
    .build = build_tty,
};
