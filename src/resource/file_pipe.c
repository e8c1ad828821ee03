/* Pipes with what is in them, with and without a name.
 *
 * Capture never takes anything out: the contents are tee(2)d into a pipe of ours and read from
 * there. They travel with the first readable end of a pipe, as plain bytes, or for a pipe in packet
 * mode (O_DIRECT, pipe(7)) as records: length, little-endian u32, and bytes.
 *
 * All ends must be inside the tree. An end that the tree does not have is fine if nobody has it:
 * poll(2) on the other end tells (POLLERR: no reader, POLLHUP: no writer). Whether somebody outside
 * holds an end that the tree has too, files_scan.c finds out.
 *
 * The pipe of a name, fifo(7), belongs to the inode: where both hosts see one file system, to the
 * very one that the source's tasks have open. So a new one is made beside it and put in its place
 * after the decision (reserve.c). One whose name is gone becomes a pipe like others. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

enum { PACKET_MAX = 4096, PACKET_HEAD = 4, LOOKS = 8 };

static bool match(const struct fd_probe *p)
{
	return p->fs_magic == PIPEFS_MAGIC || (S_ISFIFO(p->st.st_mode) && p->link[0] == '/');
}

static bool readable(const struct file *f)
{
	return (f->flags & O_ACCMODE) != O_WRONLY;
}

static bool writable(const struct file *f)
{
	return (f->flags & O_ACCMODE) != O_RDONLY;
}

static const char *pipe_name(const struct file *f, char *buf, size_t size)
{
	if (f->path)
		snprintf(buf, size, "named pipe %s", f->path);
	else
		snprintf(buf, size, "pipe:[%llu]", (unsigned long long)f->pipe_ino);
	return buf;
}

/* ---- capture ---- */

static void put_le32(uint8_t *p, uint32_t v)
{
	for (int i = 0; i < PACKET_HEAD; i++)
		p[i] = (uint8_t)(v >> (8 * i));
}

static uint32_t get_le32(const uint8_t *p)
{
	return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
}

/* fd: a pipe of ours with len bytes in it. In packet mode one read returns one packet. Returns 1 if
 * there are packets though no writer is in packet mode (any more). */
static int drain(struct files_ctx *x, struct file *f, int fd, size_t len, struct cr_err *err)
{
	/* every packet holds at least a byte, and may come with a head */
	size_t cap = f->pipe_packet ? len * (1 + PACKET_HEAD) : len, n = 0, payload = 0;
	uint8_t *out = arena_alloc(x->c->tree->arena, cap + PACKET_MAX);

	if (!out)
		return cr_err_oom(err);
	while (payload < len) {
		size_t head = f->pipe_packet ? PACKET_HEAD : 0;
		ssize_t r = read(fd, out + n + head, head ? PACKET_MAX : len - payload);

		if (r <= 0)
			return cr_err_sys(err, "reading a copy of the pipe's contents");
		if (!head && (size_t)r < len)
			return 1;
		if (head)
			put_le32(out + n, (uint32_t)r);
		n += head + (size_t)r;
		payload += (size_t)r;
	}
	f->data = out;
	f->data_len = n;
	f->pipe_has_data = true;
	return 0;
}

static void close_pair(int (*p)[2])
{
	close_fdp(&(*p)[0]);
	close_fdp(&(*p)[1]);
}

static int copy_contents(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			 struct cr_err *err)
{
	_cleanup_(close_pair) int copy[2] = {-1, -1};
	char name[160];
	int len = 0;

	if (ioctl(p->local, FIONREAD, &len))
		return cr_err_sys(err, "FIONREAD");
	if (len <= 0)
		return 0;
	if (pipe2(copy, O_CLOEXEC | O_NONBLOCK))
		return cr_err_sys(err, "pipe2");
	/* as many slots as theirs: tee(2) copies slot by slot */
	if (f->pipe_capacity > (uint32_t)fcntl(copy[1], F_GETPIPE_SZ) &&
	    fcntl(copy[1], F_SETPIPE_SZ, f->pipe_capacity) < 0)
		return cr_err_sys(err, "a pipe of %u bytes", f->pipe_capacity);
	ssize_t n = tee(p->local, copy[1], (size_t)len, SPLICE_F_NONBLOCK);
	if (n < 0)
		return cr_err_sys(err, "tee");
	if (n != len)
		return cr_err_set(err, CR_ERR_KERNEL, EIO, "tee copied %zd of %d bytes", n, len);
	int r = drain(x, f, copy[0], (size_t)len, err);
	if (r == 1)
		files_refuse(
		    x, p->pid, p->fd,
		    "%s: holds packets, and no writer is in packet mode any more: not supported",
		    pipe_name(f, name, sizeof(name)));
	return r < 0 ? r : 0;
}

static int capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		   struct cr_err *err)
{
	int capacity = fcntl(p->local, F_GETPIPE_SZ);

	if (capacity < 0)
		return cr_err_sys(err, "F_GETPIPE_SZ");
	f->kind = FILE_PIPE;
	f->pipe_ino = p->st.st_ino;
	f->pipe_capacity = (uint32_t)capacity;
	f->pos = 0;
	if (p->fs_magic != PIPEFS_MAGIC && p->link_leads_here) {
		f->path = arena_strdup(x->c->tree->arena, p->link);
		f->uid = p->st.st_uid;
		f->gid = p->st.st_gid;
		if (!f->path)
			return cr_err_oom(err);
	}
	return 0; /* contents: in link_pipe(), when all ends are known */
}

/* A reading end that was opened while nobody had it for writing does not tell of a hang-up before
 * somebody has been there and gone, fifo_open(), fs/pipe.c. Whether a writer is there tee(2) tells,
 * as read(2) would: 0 if not, EAGAIN if one may still write. It takes nothing. Returns 1, 0, or an
 * error. */
static int has_no_writer(const struct file *f, int fd, struct cr_err *err)
{
	_cleanup_(close_pair) int copy[2] = {-1, -1};

	if (!f->path || f->flags & O_ACCMODE)
		return 0;
	if (pipe2(copy, O_CLOEXEC | O_NONBLOCK))
		return cr_err_sys(err, "pipe2");
	return tee(fd, copy[1], 1, SPLICE_F_NONBLOCK) == 0;
}

/* Has nobody the other end? Returns 1, 0, or an error. */
static int is_cut(struct file *f, int fd, struct cr_err *err)
{
	struct pollfd pfd = {.fd = fd};

	if (poll(&pfd, 1, 0) < 0)
		return cr_err_sys(err, "poll");
	if (pfd.revents & (readable(f) ? POLLHUP : POLLERR))
		return 1;
	int r = has_no_writer(f, fd, err);
	f->pipe_unwritten = r == 1;
	return r;
}

/* One of a pipe's ends, for which there is no end of the other direction in the tree. Ahead, who
 * has it may be a child that ends before it is found: it is looked for again. */
static int check_missing_end(struct files_ctx *x, uint32_t file, int fd, struct cr_err *err)
{
	struct file *f = &x->c->tree->files[file];
	char name[160];

	for (int looks = x->c->exact ? 0 : LOOKS; looks >= 0; looks--) {
		int r = is_cut(f, fd, err);

		if (r)
			return r < 0 ? r : 0;
		if (looks && (x->much_waits || files_pipe_end_inside(x, f, readable(f))))
			return 0;
	}
	files_refuse(x, files_holder_pid(x, file), files_holder(x, file)->fd,
		     "%s: its %s end is held outside the tree; redirect it to a file, or "
		     "move that process as well",
		     pipe_name(f, name, sizeof(name)), readable(f) ? "writing" : "reading");
	return 0;
}

/* Another reading end of it, of which the same may be true or not. */
static int check_other_end(struct files_ctx *x, uint32_t file, struct cr_err *err)
{
	_cleanup_fd_ int local = files_getfd(x, file, err);

	if (local < 0)
		return x->c->exact ? local : 0;
	return check_missing_end(x, file, local, err);
}

static int cmp_end(const void *va, const void *vb)
{
	const struct pipe_end *a = va, *b = vb;

	if (a->ino != b->ino)
		return a->ino < b->ino ? -1 : 1;
	if (a->dev != b->dev)
		return a->dev < b->dev ? -1 : 1;
	return (a->file > b->file) - (a->file < b->file);
}

/* All pipe ends of t, sorted by pipe. */
static struct pipe_end *ends_of(const struct tree *t, size_t *ret_n)
{
	struct pipe_end *ends = calloc(t->n_files + 1, sizeof(*ends));
	size_t n = 0;

	if (!ends)
		return NULL;
	for (size_t i = 0; i < t->n_files; i++)
		if (t->files[i].kind == FILE_PIPE)
			ends[n++] =
			    (struct pipe_end){t->files[i].dev, t->files[i].pipe_ino, (uint32_t)i};
	qsort(ends, n, sizeof(*ends), cmp_end);
	*ret_n = n;
	return ends;
}

static int link_pipe(struct files_ctx *x, const struct pipe_end *ends, size_t n, struct cr_err *err)
{
	struct file *files = x->c->tree->files;
	struct file *rd = NULL, *wr = NULL;
	bool packet = false;

	for (size_t i = 0; i < n; i++) {
		struct file *f = &files[ends[i].file];

		rd = rd || !readable(f) ? rd : f;
		wr = wr || !writable(f) ? wr : f;
		packet |= writable(f) && f->flags & O_DIRECT;
	}
	for (size_t i = 0; i < n; i++)
		files[ends[i].file].pipe_packet = packet;
	uint32_t first = (uint32_t)((rd ? rd : wr) - files);
	struct fd_watch w = {.dev = files[first].dev, .ino = files[first].ino, .file = first};
	int r = files_watch(x, &w, err);
	if (r < 0 || (rd && wr && !x->c->exact))
		return r;
	struct fd_probe p = {.pid = files_holder_pid(x, first), .fd = files_holder(x, first)->fd};
	_cleanup_fd_ int local = files_getfd(x, first, err);
	if (local < 0)
		return x->c->exact ? local : 0;
	p.local = local;
	if (!rd || !wr)
		r = check_missing_end(x, first, local, err);
	for (size_t i = 0; i < n && !r && !wr && files[first].path; i++)
		r = ends[i].file == first ? 0 : check_other_end(x, ends[i].file, err);
	/* what is in one with a name waits for whoever opens it next */
	_cleanup_fd_ int reader =
	    !rd && files[first].path && x->c->exact ? fd_reopen(local, O_RDONLY | O_NONBLOCK) : -1;
	if (reader >= 0)
		p.local = reader;
	if (!r && (rd || reader >= 0) && x->c->exact)
		r = copy_contents(x, &p, rd ? rd : wr, err);
	return r < 0 ? cr_err_ctx(err, "pipe, fd %d of %d", p.fd, p.pid) : 0;
}

static int link_all(struct files_ctx *x, struct cr_err *err)
{
	size_t n = 0;
	_cleanup_free_ struct pipe_end *ends = ends_of(x->c->tree, &n);

	if (!ends)
		return cr_err_oom(err);
	for (size_t i = 0, j; i < n; i = j) {
		for (j = i + 1; j < n && ends[j].ino == ends[i].ino && ends[j].dev == ends[i].dev;
		     j++)
			;
		int r = link_pipe(x, ends + i, j - i, err);
		if (r < 0)
			return r;
	}
	return 0;
}

/* ---- rebuild ---- */

/* Opening for writing only fails without a reader (ENXIO, fifo(7)), so one is there meanwhile. */
static int reopen_end(int any, int acc)
{
	_cleanup_fd_ int reader = acc == O_WRONLY ? fd_reopen(any, O_RDONLY | O_NONBLOCK) : -1;

	if (acc == O_WRONLY && reader < 0)
		return -1;
	return fd_reopen(any, acc | O_NONBLOCK);
}

/* Beside the path: open for both, so that no later opening waits or fails. */
static int make_named(struct held *h, const struct file *f, struct cr_err *err)
{
	int r = reserve_dir(h, f->path, err);

	if (r)
		return r;
	if (mkfifo(h->reserved_path, 0600) || chown(h->reserved_path, f->uid, f->gid) ||
	    chmod(h->reserved_path, f->mode & 07777))
		return cr_err_sys(err, "making a named pipe beside %s", f->path);
	int fd = open(h->reserved_path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	return fd < 0 ? cr_err_sys(err, "opening %s", h->reserved_path) : fd;
}

/* Those ends that are not there yet: of the unwritten ones, or of the others. */
static int open_ends(struct fileset *fs, const struct tree *t, const struct pipe_end *ends,
		     size_t n, int any, int pair[2], bool unwritten, struct cr_err *err)
{
	for (size_t i = 0; i < n; i++) {
		struct held *h = &fs->held[ends[i].file];
		const struct file *f = &t->files[ends[i].file];
		int acc = f->flags & O_ACCMODE;

		if (h->fd >= 0 || f->pipe_unwritten != unwritten)
			continue;
		if (acc == O_RDONLY && pair[0] >= 0)
			h->fd = take_fd(&pair[0]);
		else if (acc == O_WRONLY && pair[1] >= 0)
			h->fd = take_fd(&pair[1]);
		else
			h->fd = reopen_end(any, acc);
		if (h->fd < 0)
			return cr_err_sys(err, "opening a pipe's end once more");
		h->capacity_set = (uint32_t)fcntl(h->fd, F_GETPIPE_SZ);
		h->unwritten = unwritten;
	}
	return 0;
}

static bool has_unwritten(const struct tree *t, const struct pipe_end *ends, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (t->files[ends[i].file].pipe_unwritten)
			return true;
	return false;
}

/* All ends that are not there yet. The first of each direction is the pipe's own, further ones are
 * opened through /proc/self/fd; an end that nobody has stays closed. */
static int build_ends(struct fileset *fs, const struct tree *t, const struct pipe_end *ends,
		      size_t n, struct cr_err *err)
{
	_cleanup_(close_pair) int pair[2] = {-1, -1};
	_cleanup_fd_ int named = -1, reader = -1;
	const struct file *f = &t->files[ends[0].file];
	int any = -1;

	for (size_t i = 0; i < n && any < 0; i++)
		any = fs->held[ends[i].file].fd;
	if (any < 0 && f->path)
		any = named = make_named(&fs->held[ends[0].file], f, err);
	if (f->path && any < 0)
		return any;
	if (any < 0 && pipe2(pair, O_CLOEXEC | O_NONBLOCK))
		return cr_err_sys(err, "pipe2");
	if (any < 0)
		any = pair[0]; /* open until the end of this function, whoever owns it then */
	int r = open_ends(fs, t, ends, n, any, pair, false, err);
	if (r || !has_unwritten(t, ends, n))
		return r;
	reader = fd_reopen(any, O_RDONLY | O_NONBLOCK);
	if (reader < 0)
		return cr_err_sys(err, "opening a pipe's end once more");
	close_fdp(&named); /* which is one for writing */
	return open_ends(fs, t, ends, n, reader, pair, true, err);
}

/* All ends of file's pipe: the first one, *ret_n of them. */
static const struct pipe_end *group_of(const struct pipe_end *ends, size_t n, const struct file *f,
				       size_t *ret_n)
{
	const struct pipe_end key = {f->dev, f->pipe_ino, 0};
	size_t lo = 0, hi = n, end;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (cmp_end(&ends[mid], &key) < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	for (end = lo; end < n && ends[end].ino == key.ino && ends[end].dev == key.dev; end++)
		;
	*ret_n = end - lo;
	return ends + lo;
}

static int build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	size_t n;

	if (!fs->pipe_ends)
		fs->pipe_ends = ends_of(t, &fs->n_pipe_ends);
	if (!fs->pipe_ends)
		return cr_err_oom(err);
	const struct pipe_end *ends = group_of(fs->pipe_ends, fs->n_pipe_ends, &t->files[i], &n);
	return build_ends(fs, t, ends, n, err);
}

/* Data that a single buffer held at the source may need several here: then the pipe grows. */
static int write_all(int fd, const uint8_t *p, size_t len, struct cr_err *err)
{
	while (len) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno == EAGAIN &&
		    fcntl(fd, F_SETPIPE_SZ, 2 * fcntl(fd, F_GETPIPE_SZ)) > 0)
			continue;
		if (n < 0)
			return cr_err_sys(err, "filling a pipe");
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

static int fill(const struct held *h, const struct file *f, struct cr_err *err)
{
	/* for both: one with a name may have no reader */
	_cleanup_fd_ int wr = fd_reopen(h->fd, O_RDWR | O_NONBLOCK);

	if (wr < 0)
		return cr_err_sys(err, "opening a pipe for writing");
	/* packet mode can only be set afterwards: open(2) refuses it */
	if (f->pipe_packet && fcntl(wr, F_SETFL, O_NONBLOCK | O_DIRECT))
		return cr_err_sys(err, "packet mode of a pipe");
	if (!f->pipe_packet)
		return write_all(wr, f->data, f->data_len, err);
	for (size_t at = 0; at < f->data_len;) {
		uint32_t len = f->data_len - at < PACKET_HEAD ? 0 : get_le32(f->data + at);

		if (!len || len > PACKET_MAX || len > f->data_len - at - PACKET_HEAD)
			return cr_err_set(err, CR_ERR_PEER, EPROTO,
					  "packets of a pipe make no sense");
		int r = write_all(wr, f->data + at + PACKET_HEAD, len, err);
		if (r < 0)
			return r;
		at += PACKET_HEAD + len;
	}
	return 0;
}

/* The end that the new name came with may have been closed since. */
static bool is_reserved(const struct fileset *fs, const struct tree *t, const struct file *f)
{
	for (size_t i = 0; i < t->n_files && i < fs->n_held; i++)
		if (t->files[i].kind == FILE_PIPE && t->files[i].dev == f->dev &&
		    t->files[i].pipe_ino == f->pipe_ino && fs->held[i].reserved_path)
			return true;
	return false;
}

static int settle(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	struct held *h = &fs->held[i];
	char buf[4096];

	if (f->path && !is_reserved(fs, t, f))
		return cr_err_set(err, CR_ERR_KERNEL, EAGAIN,
				  "named pipe %s was closed and opened meanwhile; try again",
				  f->path);
	if (h->unwritten && !f->pipe_unwritten) { /* somebody has been there meanwhile */
		_cleanup_fd_ int both = fd_reopen(h->fd, O_RDWR | O_NONBLOCK);

		if (both < 0)
			return cr_err_sys(err, "opening a pipe for writing");
		h->unwritten = false;
	}
	if (!h->filled && !f->pipe_has_data && f->pipe_capacity == h->capacity_set)
		return 0;
	if (h->filled) { /* by an earlier settling */
		_cleanup_fd_ int rd = fd_reopen(h->fd, O_RDONLY | O_NONBLOCK);

		while (rd >= 0 && read(rd, buf, sizeof(buf)) > 0)
			;
		h->filled = false;
	}
	if (f->pipe_capacity != h->capacity_set) {
		if (fcntl(h->fd, F_SETPIPE_SZ, f->pipe_capacity) < 0)
			return cr_err_sys(err, "a pipe of %u bytes", f->pipe_capacity);
		h->capacity_set = f->pipe_capacity;
	}
	if (!f->pipe_has_data || !f->data_len)
		return 0;
	h->filled = true;
	return fill(h, f, err);
}

static int launch(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	return reserve_launch(&fs->held[i], &t->files[i], err);
}

static void check(const struct file_check *k, const struct file *f)
{
	struct stat st;

	if (!f->path || !reserve_check(k, f, "named pipe") || stat(f->path, &st))
		return;
	if (!S_ISFIFO(st.st_mode))
		file_check_refuse(k, "named pipe %.150s: another type of file here", f->path);
	else if ((st.st_dev != f->dev || st.st_ino != f->ino ||
		  (k->same_kernel_known && !k->same_kernel)) &&
		 files_is_open(&st))
		file_check_refuse(k, "named pipe %.150s: another one, which is in use here",
				  f->path);
}

static bool make_ready(struct held *h, bool on)
{
	_cleanup_fd_ int end = fd_reopen(h->fd, (on ? O_WRONLY : O_RDONLY) | O_NONBLOCK);
	char c = 0;

	return end >= 0 && (on ? write(end, &c, 1) : read(end, &c, 1)) == 1;
}

const struct file_ops file_ops_pipe = {
    .name = "pipe",
    .kind = FILE_PIPE,
    .match = match,
    .capture = capture,
    .link = link_all,
    .check = check,
    .build = build,
    .settle = settle,
    .launch = launch,
    .make_ready = make_ready,
    .drop = reserve_drop,
};
