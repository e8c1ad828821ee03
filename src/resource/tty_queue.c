/* What waits in a pseudoterminal, taken out and put back, tty_ioctl(2), pty(7).
 *
 * The kernel shows nothing of it to whoever does not read it, so it is read, while the tasks are
 * stopped; undone, it is put back. Input is what the line discipline (n_tty) has made of what was
 * typed: in canonical mode lines, and one that is not complete yet, which shows only when canonical
 * mode is off for a moment. It is put back by TIOCSTI, which does its work before it returns, with
 * all that the line discipline might do to it off, special characters quoted by LNEXT. */
#include "resource/tty_queue.h"

#include <asm/termbits.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "base/vec.h"

_Static_assert(sizeof(struct termios2) == TTY_TERMIOS_BYTES, "as the kernel lays it out");

enum {
	BLOCK = 4096,
	DISC_BYTES = 4095, /* what n_tty keeps; more waits before it */
	LNEXT = 0x16,
	FEED_TIMEOUT_MS = 1000,
};

typedef VEC(uint8_t) bytes;

static int append(bytes *b, const void *p, size_t n, struct cr_err *err)
{
	if (vec_reserve_((void **)&b->v, &b->cap, b->n + n, 1))
		return cr_err_oom(err);
	memcpy(b->v + b->n, p, n);
	b->n += n;
	return 0;
}

static int keep(struct arena *a, const bytes *b, const uint8_t **ret, size_t *ret_n,
		struct cr_err *err)
{
	if (!b->n)
		return 0;
	*ret = arena_memdup(a, b->v, b->n);
	*ret_n = b->n;
	return *ret ? 0 : cr_err_oom(err);
}

static bool ready(int fd, short events, int timeout_ms)
{
	struct pollfd p = {.fd = fd, .events = events};

	return poll(&p, 1, timeout_ms) > 0 && p.revents & events;
}

static struct termios2 termios_of(const struct tty *t)
{
	struct termios2 tio;

	memcpy(&tio, t->termios, sizeof(tio));
	return tio;
}

/* EXTPROC: the line discipline passes on what comes. */
static bool is_raw(const struct termios2 *tio)
{
	return !(tio->c_lflag & ICANON) || tio->c_lflag & EXTPROC;
}

static int set_termios(int fd, const struct termios2 *tio, struct cr_err *err)
{
	return ioctl(fd, TCSETS2, tio) ? cr_err_sys(err, "setting a terminal's modes") : 0;
}

static int set_packet(int master, int on, struct cr_err *err)
{
	return ioctl(master, TIOCPKT, &on) ? cr_err_sys(err, "packet mode of a terminal") : 0;
}

/* ---- out ---- */

/* In packet mode every read starts with a byte that says that it is data. */
static int drain_output(int master, const struct tty *t, bytes *out, struct cr_err *err)
{
	uint8_t buf[BLOCK];

	if (t->packet && ready(master, POLLPRI, 0))
		return cr_err_set(err, CR_ERR_UNSUPPORTED, EAGAIN,
				  "/dev/pts/%u: a change of its modes waits to be read in packet "
				  "mode; try again",
				  t->number);
	/* the description may block: it is asked before */
	while (ready(master, POLLIN, 0)) {
		ssize_t n = read(master, buf, sizeof(buf));
		size_t head = t->packet && n > 0;

		if (n <= 0) /* EIO: nobody has the other side, tty_ioctl(2) */
			break;
		int r = append(out, buf + head, (size_t)n - head, err);
		if (r)
			return r;
	}
	return 0;
}

static int drain_raw(int slave, bytes *out, struct cr_err *err)
{
	uint8_t buf[BLOCK];
	ssize_t n;
	int r = 0;

	while (!r && (n = read(slave, buf, sizeof(buf))) > 0)
		r = append(out, buf, (size_t)n, err);
	return r;
}

static bool ends_line(const struct termios2 *tio, uint8_t c)
{
	return c == '\n' || (c && (c == tio->c_cc[VEOL] || c == tio->c_cc[VEOL2]));
}

typedef VEC(uint32_t) lengths;

/* A read gives one line. One that does not end as lines do was ended by the EOF character. */
static int drain_lines(int slave, const struct termios2 *tio, bytes *out, lengths *lines,
		       struct cr_err *err)
{
	uint8_t buf[2 * BLOCK];

	while (ready(slave, POLLIN, 0)) {
		ssize_t n = read(slave, buf, sizeof(buf));

		if (n < 0)
			break;
		uint32_t *len = vec_push(lines);
		if (!len)
			return cr_err_oom(err);
		*len = (uint32_t)n << 1 | !(n && ends_line(tio, buf[n - 1]));
		int r = append(out, buf, (size_t)n, err);
		if (r)
			return r;
	}
	return 0;
}

/* The line that is being typed. */
static int drain_rest(int slave, const struct termios2 *tio, bytes *out, struct cr_err *err)
{
	struct termios2 raw = *tio;
	struct cr_err why = {0};

	raw.c_lflag &= ~(tcflag_t)ICANON;
	raw.c_cc[VMIN] = 1;
	raw.c_cc[VTIME] = 0;
	int r = set_termios(slave, &raw, err);
	if (r)
		return r;
	r = drain_raw(slave, out, err);
	int e = set_termios(slave, tio, r ? &why : err);
	return r ? r : e;
}

static int drain_input(int slave, struct arena *a, struct tty *t, struct cr_err *err)
{
	const struct termios2 tio = termios_of(t);
	lengths lines = {0};
	bytes in = {0};
	int r;

	if (is_raw(&tio)) {
		r = drain_raw(slave, &in, err);
	} else {
		r = drain_lines(slave, &tio, &in, &lines, err);
		if (!r)
			r = drain_rest(slave, &tio, &in, err);
	}
	int e = keep(a, &in, &t->input, &t->input_len, err);
	if (lines.n) {
		t->lines = arena_memdup(a, lines.v, lines.n * sizeof(*lines.v));
		t->n_lines = t->lines ? lines.n : 0;
		if (!t->lines)
			e = cr_err_oom(err);
	}
	vec_done(&lines);
	vec_done(&in);
	return r ? r : e;
}

int tty_drain(int master, int slave, struct arena *a, struct tty *t, struct cr_err *err)
{
	bytes out = {0};
	int r = slave >= 0 ? drain_input(slave, a, t, err) : 0;

	if (!r) /* after the input, the reading of which may have caused an echo */
		r = drain_output(master, t, &out, err);
	int e = keep(a, &out, &t->output, &t->output_len, err);
	vec_done(&out);
	/* nothing waits, and nothing can be written: it is stopped, as by ^S */
	t->stopped = slave >= 0 && !ready(slave, POLLOUT, 0);
	return r ? r : e;
}

/* ---- in ---- */

/* What is put in comes out as it is, in lines where they are lines. */
static struct termios2 transparent(const struct termios2 *tio)
{
	struct termios2 t = *tio;
	bool raw = is_raw(tio);

	t.c_iflag = t.c_oflag = 0;
	t.c_lflag = raw ? 0 : ICANON | IEXTEN;
	memset(t.c_cc, 0, sizeof(t.c_cc)); /* 0: disabled */
	if (raw) {
		t.c_cc[VMIN] = 1;
		return t;
	}
	t.c_cc[VEOF] = tio->c_cc[VEOF] && tio->c_cc[VEOF] != LNEXT ? tio->c_cc[VEOF] : 4;
	t.c_cc[VEOL] = tio->c_cc[VEOL];
	t.c_cc[VEOL2] = tio->c_cc[VEOL2];
	t.c_cc[VLNEXT] = LNEXT;
	return t;
}

/* Straight into the line discipline; what it has no room for waits before it. */
static int put(int master, int slave, const uint8_t *p, size_t n, size_t *done, struct cr_err *err)
{
	for (size_t i = 0; i < n; i++) {
		if (*done >= DISC_BYTES) {
			if (!ready(master, POLLOUT, FEED_TIMEOUT_MS))
				return cr_err_set(err, CR_ERR_KERNEL, ENOSPC,
						  "no room for a terminal's input");
			if (write(master, p + i, 1) != 1)
				return cr_err_sys(err, "a terminal's input");
		} else if (ioctl(slave, TIOCSTI, p + i)) {
			return cr_err_sys(err, "a terminal's input");
		}
		++*done;
	}
	return 0;
}

static int put_quoted(int master, int slave, const struct termios2 *tio, const uint8_t *p, size_t n,
		      size_t *done, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < n && !r; i++) {
		const uint8_t quote = LNEXT;
		bool special = p[i] == LNEXT || p[i] == tio->c_cc[VEOF] || ends_line(tio, p[i]);

		if (special) /* takes no room itself */
			r = ioctl(slave, TIOCSTI, &quote) ? cr_err_sys(err, "a terminal's input")
							  : 0;
		if (!r)
			r = put(master, slave, p + i, 1, done, err);
	}
	return r;
}

static int feed_lines(int master, int slave, const struct termios2 *tio, const struct tty *t,
		      struct cr_err *err)
{
	size_t at = 0, done = 0;
	int r = 0;

	for (size_t i = 0; i < t->n_lines && !r; i++) {
		size_t n = t->lines[i] >> 1;
		bool eof = t->lines[i] & 1;

		if (n > t->input_len - at || (!eof && !n))
			return cr_err_set(err, CR_ERR_PEER, EPROTO, "lines of /dev/pts/%u",
					  t->number);
		r = put_quoted(master, slave, tio, t->input + at, eof ? n : n - 1, &done, err);
		if (!r && eof)
			r = put(master, slave, &tio->c_cc[VEOF], 1, &done, err);
		else if (!r)
			r = put(master, slave, t->input + at + n - 1, 1, &done, err);
		at += n;
	}
	return r ? r : put_quoted(master, slave, tio, t->input + at, t->input_len - at, &done, err);
}

/* Into the master's line discipline, which only passes it on; that works while output is stopped.
 */
static int feed_output(int master, int slave, const struct tty *t, struct cr_err *err)
{
	size_t at = 0;

	for (; at < t->output_len && at < DISC_BYTES; at++)
		if (ioctl(master, TIOCSTI, t->output + at))
			return cr_err_sys(err, "a terminal's output");
	while (at < t->output_len) {
		if (!ready(slave, POLLOUT, FEED_TIMEOUT_MS))
			return cr_err_set(err, CR_ERR_KERNEL, ENOSPC,
					  "no room for a terminal's output");
		ssize_t n = write(slave, t->output + at, t->output_len - at);
		if (n < 0 && errno != EAGAIN)
			return cr_err_sys(err, "a terminal's output");
		at += n > 0 ? (size_t)n : 0;
	}
	return 0;
}

static int stop_output(int slave, const struct termios2 *tio, struct cr_err *err)
{
	/* a character, where it can be: then the one that starts it works, too */
	if (tio->c_iflag & IXON && tio->c_cc[VSTOP]) {
		if (ioctl(slave, TIOCSTI, &tio->c_cc[VSTOP]))
			return cr_err_sys(err, "stopping a terminal's output");
		return 0;
	}
	return ioctl(slave, TCXONC, TCOOFF) ? cr_err_sys(err, "stopping a terminal's output") : 0;
}

int tty_feed(int master, int slave, const struct tty *t, struct cr_err *err)
{
	const struct termios2 tio = termios_of(t), through = transparent(&tio);
	size_t done = 0;
	int r = set_packet(master, 0, err); /* or it would report what we do */

	if (!r && slave >= 0 && (t->input_len || t->n_lines || t->output_len)) {
		r = set_termios(slave, &through, err);
		if (!r)
			r = feed_output(master, slave, t, err);
		if (!r && is_raw(&tio))
			r = put(master, slave, t->input, t->input_len, &done, err);
		else if (!r)
			r = feed_lines(master, slave, &through, t, err);
	}
	if (!r)
		r = set_termios(master, &tio, err);
	if (!r && slave >= 0 && t->stopped)
		r = stop_output(slave, &tio, err);
	if (!r && t->packet)
		r = set_packet(master, 1, err);
	return r ? cr_err_ctx(err, "/dev/pts/%u", t->number) : 0;
}
