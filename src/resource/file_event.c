/* eventfd(2), timerfd_create(2), signalfd(2): anonymous inodes that /proc/PID/fdinfo tells all
 * about.
 *
 * Clocks. A timerfd's absolute times are converted once, by the time namespace of whoever calls
 * timerfd_settime(2), to the machine's clock; the timerfd itself belongs to no time namespace
 * (fs/timerfd.c). So the agent can create and arm it, if it converts: what travels is the next
 * expiry as the tasks read their clock, which goes on across the move, and settle subtracts what
 * the shells' time namespace adds. A timer that fell due meanwhile goes off at once and counts the
 * periods that passed. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/syscall.h>
#include "base/clock.h"

#ifndef TFD_IOC_SET_TICKS
#define TFD_IOC_SET_TICKS _IOW('T', 0, uint64_t) /* 3.17, needs CONFIG_CHECKPOINT_RESTORE */
#endif
enum {
	NSEC = 1000000000,
	SEMAPHORE_READS_MAX = 1 << 20,
	CLOCK_TRIES = 4,
	CLOCK_APART_NS = 20000,
	READY_WAIT_MS = 1000
};

static bool is_anon(const struct fd_probe *p, const char *link)
{
	return !strcmp(p->link, link);
}

/* ---- eventfd ---- */

static bool eventfd_match(const struct fd_probe *p)
{
	return is_anon(p, "anon_inode:[eventfd]");
}

static int eventfd_capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			   struct cr_err *err)
{
	uint64_t count, id, semaphore;

	if (!p->text || !fdinfo_u64(p->text, "eventfd-count", 16, &count))
		return cr_err_set(err, CR_ERR_KERNEL, EPROTO,
				  "fdinfo of an eventfd is not as expected");
	if (!fdinfo_u64(p->text, "eventfd-id", 10, &id) ||
	    !fdinfo_u64(p->text, "eventfd-semaphore", 10, &semaphore)) {
		files_refuse(x, p->pid, p->fd,
			     "eventfd: this kernel does not tell whether it is a semaphore");
		return 0;
	}
	f->kind = FILE_EVENTFD;
	f->counter = count;
	f->semaphore = semaphore;
	f->ino = id; /* the inode is one for all anonymous ones; this is its identity */
	struct fd_watch w = {.eventfd_id = id, .file = (uint32_t)x->c->tree->n_files};
	return files_watch(x, &w, err);
}

static int eventfd_build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	int flags = EFD_CLOEXEC | EFD_NONBLOCK | (t->files[i].semaphore ? EFD_SEMAPHORE : 0);

	fs->held[i].fd = eventfd(0, flags);
	return fs->held[i].fd < 0 ? cr_err_sys(err, "eventfd") : 0;
}

/* Down to what it should be, or to nothing; a semaphore goes down by one a read. */
static int eventfd_drain(struct held *h, const struct file *f, struct cr_err *err)
{
	uint64_t n;

	if (f->semaphore && h->counter_set - f->counter > SEMAPHORE_READS_MAX)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, EINVAL,
				  "a semaphore eventfd that went down by %llu since it was rebuilt",
				  (unsigned long long)(h->counter_set - f->counter));
	while (h->counter_set > f->counter) {
		if (read(h->fd, &n, sizeof(n)) != sizeof(n) || !n || n > h->counter_set)
			return cr_err_sys(err, "reading an eventfd");
		h->counter_set -= n;
	}
	return 0;
}

static int eventfd_settle(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	struct held *h = &fs->held[i];

	if (f->counter == h->counter_set)
		return 0;
	if (fcntl(h->fd, F_SETFL, O_RDWR | O_NONBLOCK)) /* neither call below may wait */
		return cr_err_sys(err, "F_SETFL on an eventfd");
	h->flags_set |= O_NONBLOCK;
	int r = f->counter < h->counter_set ? eventfd_drain(h, f, err) : 0;
	if (r < 0)
		return r;
	uint64_t add = f->counter - h->counter_set;
	if (add && write(h->fd, &add, sizeof(add)) != sizeof(add))
		return cr_err_sys(err, "setting an eventfd to %llu",
				  (unsigned long long)f->counter);
	h->counter_set = f->counter;
	return 0;
}

const struct file_ops file_ops_eventfd = {
    .name = "eventfd",
    .kind = FILE_EVENTFD,
    .match = eventfd_match,
    .capture = eventfd_capture,
    .build = eventfd_build,
    .settle = eventfd_settle,
};

/* ---- timerfd ---- */

static bool timerfd_match(const struct fd_probe *p)
{
	return is_anon(p, "anon_inode:[timerfd]");
}

static bool is_realtime(int32_t clockid)
{
	return clockid == CLOCK_REALTIME || clockid == CLOCK_REALTIME_ALARM;
}

/* The clock on which value_ns travels. Wall clocks of two hosts differ by what they like: only a
 * time that was given as wall time is one. */
static clockid_t travel_clock(int32_t clockid, uint32_t settime_flags)
{
	if (is_realtime(clockid))
		return settime_flags & TFD_TIMER_ABSTIME ? CLOCK_REALTIME : CLOCK_MONOTONIC;
	return clockid == CLOCK_MONOTONIC ? CLOCK_MONOTONIC : CLOCK_BOOTTIME;
}

/* What the tasks' time namespace adds to that clock beyond ours. */
static int64_t clock_shift(clockid_t clock, int64_t monotonic, int64_t boottime)
{
	return clock == CLOCK_MONOTONIC ? monotonic : clock == CLOCK_BOOTTIME ? boottime : 0;
}

static uint64_t to_ns(const struct timespec *ts)
{
	return (uint64_t)ts->tv_sec * NSEC + (uint64_t)ts->tv_nsec;
}

/* Nobody else ran since that reading. */
static bool near(clockid_t clock, uint64_t reading)
{
	return reading && clock_ns(clock) - reading < CLOCK_APART_NS;
}

static struct timespec to_timespec(uint64_t ns)
{
	return (struct timespec){(time_t)(ns / NSEC), (long)(ns % NSEC)};
}

/* "it_value: (SECONDS, NANOSECONDS)" */
static uint64_t it_value_ns(const char *text)
{
	const char *v = fdinfo_field(text, "it_value");
	unsigned long long sec, nsec;

	return v && sscanf(v, "(%llu, %llu)", &sec, &nsec) == 2 ? sec * NSEC + nsec : 0;
}

/* The count, as of after the times were asked for: asking brings that of a periodic timer up to
 * now, and a timer that was just due shows its tick afterwards. If fdinfo, read before, had no tick
 * and the timer has come nearer to its expiry since, there is none now either. */
static int timerfd_ticks(const struct fd_probe *p, uint64_t left, uint64_t *ret, struct cr_err *err)
{
	_cleanup_(text_buf_done) struct text_buf b = {0};
	char path[64];
	size_t off;

	if (fdinfo_u64(p->text, "ticks", 10, ret) && !*ret && left && left <= it_value_ns(p->text))
		return 0;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", p->local);
	int r = text_append_file(&b, AT_FDCWD, path, &off);
	if (r < 0 || !fdinfo_u64(b.v + off, "ticks", 10, ret))
		return cr_err_set(err, CR_ERR_KERNEL, r < 0 ? -r : EPROTO,
				  "fdinfo of a timerfd is not as expected");
	return 0;
}

static int timerfd_capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			   struct cr_err *err)
{
	uint64_t clockid, flags;
	struct itimerspec its;

	if (!p->text || !fdinfo_u64(p->text, "clockid", 10, &clockid) ||
	    !fdinfo_u64(p->text, "settime flags", 8, &flags))
		return cr_err_set(err, CR_ERR_KERNEL, EPROTO,
				  "fdinfo of a timerfd is not as expected");
	f->kind = FILE_TIMERFD;
	f->clockid = (int32_t)clockid;
	f->settime_flags = (uint32_t)flags;
	if (!x->c->exact)
		return 0; /* asking would bring a periodic timer's count up to date: it may not see
			     that */
	clockid_t clock = travel_clock(f->clockid, f->settime_flags);
	uint64_t now = 0;
	for (int tries = 0; tries < CLOCK_TRIES && !near(clock, now); tries++) {
		now = clock_ns(clock);
		if (timerfd_gettime(p->local, &its))
			return cr_err_sys(err, "timerfd_gettime");
	}
	int64_t shift = clock_shift(clock, x->c->tree->task_monotonic_offset_ns,
				    x->c->tree->task_boottime_offset_ns);
	uint64_t left = to_ns(&its.it_value);
	f->interval_ns = to_ns(&its.it_interval);
	f->value_ns = left ? now + left + (uint64_t)shift : 0;
	return timerfd_ticks(p, left, &f->ticks, err);
}

static int timerfd_build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	fs->held[i].fd = timerfd_create(t->files[i].clockid, TFD_CLOEXEC | TFD_NONBLOCK);
	return fs->held[i].fd < 0 ? cr_err_sys(err, "timerfd on clock %d", t->files[i].clockid) : 0;
}

/* A relative time is set as one again: fdinfo shows how it was set. What is due by now goes off at
 * once; periods that passed are counted, as the timer would have (timerfd_create(2)). */
static int settle_relative(int fd, const struct file *f, clockid_t clock, int64_t due,
			   uint64_t *ticks, struct cr_err *err)
{
	struct itimerspec its = {.it_interval = to_timespec(f->interval_ns)};
	uint64_t now = 0;

	for (int tries = 0; tries < CLOCK_TRIES && !near(clock, now); tries++) {
		now = clock_ns(clock);
		uint64_t late = due > (int64_t)now ? 0 : now - (uint64_t)due;
		uint64_t left = late ? 1 : (uint64_t)due - now;

		*ticks = f->ticks;
		if (late && f->interval_ns) {
			*ticks += late / f->interval_ns + 1;
			left = f->interval_ns - late % f->interval_ns;
		}
		its.it_value = to_timespec(left ? left : 1);
		if (timerfd_settime(fd, 0, &its, NULL))
			return cr_err_sys(err, "timerfd_settime");
	}
	return 0;
}

static int timerfd_settle(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];
	struct itimerspec its = {.it_interval = to_timespec(f->interval_ns)};
	int fd = fs->held[i].fd;
	int flags = (int)f->settime_flags & (TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET);
	clockid_t clock = travel_clock(f->clockid, f->settime_flags);
	int64_t due =
	    (int64_t)f->value_ns - clock_shift(clock, fs->monotonic_off_ns, fs->boottime_off_ns);
	uint64_t ticks = f->ticks;
	int r = 0;

	if (f->value_ns && !(flags & TFD_TIMER_ABSTIME)) {
		r = settle_relative(fd, f, clock, due, &ticks, err);
	} else {
		if (f->value_ns)
			its.it_value = to_timespec(due > 0 ? (uint64_t)due : 1);
		if (timerfd_settime(fd, flags, &its, NULL))
			r = cr_err_sys(err, "timerfd_settime");
	}
	if (!r && ticks && ioctl(fd, TFD_IOC_SET_TICKS, &ticks))
		r = cr_err_sys(err, "TFD_IOC_SET_TICKS");
	return r;
}

static bool timerfd_make_ready(struct held *h, bool on)
{
	struct itimerspec its = {.it_value = to_timespec(on)};
	struct pollfd pfd = {.fd = h->fd, .events = POLLIN};

	return !timerfd_settime(h->fd, 0, &its, NULL) && (!on || poll(&pfd, 1, READY_WAIT_MS) == 1);
}

const struct file_ops file_ops_timerfd = {
    .name = "timerfd",
    .kind = FILE_TIMERFD,
    .match = timerfd_match,
    .capture = timerfd_capture,
    .build = timerfd_build,
    .settle = timerfd_settle,
    .make_ready = timerfd_make_ready,
};

/* ---- signalfd ---- */

static bool signalfd_match(const struct fd_probe *p)
{
	return is_anon(p, "anon_inode:[signalfd]");
}

static int signalfd_capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
			    struct cr_err *err)
{
	(void)x;
	if (!p->text || !fdinfo_u64(p->text, "sigmask", 16, &f->sigmask))
		return cr_err_set(err, CR_ERR_KERNEL, EPROTO,
				  "fdinfo of a signalfd is not as expected");
	f->kind = FILE_SIGNALFD;
	return 0;
}

/* A signalfd reads the signals of whoever reads it, so the agent may make it. fd -1: a new one. */
static int signalfd_set(int fd, uint64_t mask)
{
	return (int)syscall(SYS_signalfd4, fd, &mask, sizeof(mask), SFD_CLOEXEC | SFD_NONBLOCK);
}

static int signalfd_build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	fs->held[i].fd = signalfd_set(-1, t->files[i].sigmask);
	fs->held[i].counter_set = t->files[i].sigmask;
	return fs->held[i].fd < 0 ? cr_err_sys(err, "signalfd") : 0;
}

static int signalfd_settle(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	struct held *h = &fs->held[i];

	if (h->counter_set == t->files[i].sigmask)
		return 0;
	if (signalfd_set(h->fd, t->files[i].sigmask) < 0)
		return cr_err_sys(err, "signalfd");
	h->counter_set = t->files[i].sigmask;
	return 0;
}

const struct file_ops file_ops_signalfd = {
    .name = "signalfd",
    .kind = FILE_SIGNALFD,
    .match = signalfd_match,
    .capture = signalfd_capture,
    .build = signalfd_build,
    .settle = signalfd_settle,
};
