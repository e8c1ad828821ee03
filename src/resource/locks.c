/* File locks: flock(2), and record locks of processes and of descriptions, fcntl(2).
 *
 * What is locked where shows in /proc/PID/fdinfo (3.8 and 4.1), among the lines of the descriptor
 * by which it was locked. Both hosts may see one file system, on which there can be one holder
 * only: the source's tasks give their locks up before the destination's take them, by calls of the
 * executor. Should the migration be undone they take them again. If our process dies meanwhile they
 * do so by themselves, before they go on: the calls for it wait in the executor's memory. Somebody
 * else who waits for such a lock would get it in between, so that is refused. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <time.h>
#include "base/clock.h"
#include "remote/area.h"

enum { LOCKS_PER_PROCESS = 100, RETAKE_US = 2000000 };

/* ---- capture ---- */

/* "1: FLOCK  ADVISORY  WRITE 4242 00:2f:1234 0 EOF", or with POSIX or OFDLCK, or LEASE, DELEG */
struct lock_line {
	char type[16], mode[16], id[64], end[32];
	long pid;
	unsigned long long start;
	bool waits;
};

static bool parse_line(const char *line, struct lock_line *out)
{
	char how[16];
	int at = 0;

	*out = (struct lock_line){0};
	if (sscanf(line, "%*d: %n", &at) < 0 || !at)
		return false;
	line += at;
	out->waits = !strncmp(line, "->", 2);
	if (out->waits)
		line += 2;
	return sscanf(line, "%15s %15s %15s %ld %63s %llu %31s", out->type, how, out->mode,
		      &out->pid, out->id, &out->start, out->end) == 7;
}

static bool to_lock(const struct lock_line *l, int fd, struct file_lock *out)
{
	*out = (struct file_lock){.fd = fd,
				  .kind = !strcmp(l->type, "FLOCK")    ? LOCK_FLOCK
					  : !strcmp(l->type, "OFDLCK") ? LOCK_OFD
					  : !strcmp(l->type, "POSIX")  ? LOCK_POSIX
								       : 0,
				  .write = !strcmp(l->mode, "WRITE"),
				  .start = l->start,
				  .end = UINT64_MAX};
	if (strcmp(l->end, "EOF"))
		out->end = strtoull(l->end, NULL, 10);
	return out->kind && (out->write || !strcmp(l->mode, "READ"));
}

bool locks_is_leased(const char *text)
{
	struct file_lock lock;
	struct lock_line l;

	for (; text && *text; text = strchr(text, '\n')) {
		text += *text == '\n';
		if (!strncmp(text, "lock:", 5) && parse_line(text + 5, &l) &&
		    !to_lock(&l, 0, &lock))
			return true;
	}
	return false;
}

/* Somebody outside the tree who waits for a lock on what id names; 0: nobody. */
static pid_t waiter_outside(const struct files_ctx *x, const char *locks, const char *id)
{
	struct lock_line l;

	for (const char *line = locks; line && *line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (parse_line(line, &l) && l.waits && !strcmp(l.id, id) && l.pid > 0 &&
		    !files_pid_in_tree(x->c->tree, (pid_t)l.pid, false) &&
		    !files_is_inside(x, (pid_t)l.pid))
			return (pid_t)l.pid;
	}
	return 0;
}

typedef VEC(struct file_lock) lock_list;

static int take_line(struct files_ctx *x, const struct fd_seen *s, const char *text,
		     const char *all, lock_list *list, struct cr_err *err)
{
	pid_t pid = x->c->tree->procs[s->proc].pid;
	struct file_lock lock;
	struct lock_line l;

	if (!parse_line(text, &l))
		return cr_err_set(err, CR_ERR_KERNEL, EPROTO, "lock is not as expected: %.60s",
				  text);
	if (!to_lock(&l, s->fd, &lock))
		return 0; /* refused at sight */
	/* those of the description show with each of its descriptors, in every process */
	if (lock.kind != LOCK_POSIX && &x->seen.v[s->leader] != s)
		return 0;
	pid_t other = waiter_outside(x, all, l.id);
	if (other)
		files_refuse(x, pid, s->fd,
			     "holds a file lock for which process %d, which is outside the tree, "
			     "waits: it would get it during the move",
			     other);
	if (list->n >= LOCKS_PER_PROCESS) {
		files_refuse(x, pid, s->fd, "more than %d file locks: not supported",
			     LOCKS_PER_PROCESS);
		return 0;
	}
	struct file_lock *slot = vec_push(list);
	if (!slot)
		return cr_err_oom(err);
	*slot = lock;
	return 0;
}

/* Shown by an earlier descriptor of the same description already? */
static bool is_duplicate(const struct files_ctx *x, size_t i)
{
	const struct fd_seen *s = &x->seen.v[i];

	for (size_t k = x->proc_first[s->proc]; k < i; k++)
		if (x->seen.v[k].leader == s->leader)
			return true;
	return false;
}

static int capture_process(struct files_ctx *x, uint32_t proc, const char *all, struct cr_err *err)
{
	struct process *p = &x->c->tree->procs[proc];
	lock_list list = {0};
	int r = 0;

	for (size_t i = x->proc_first[proc]; i < x->proc_first[proc + 1] && !r; i++) {
		const struct fd_seen *s = &x->seen.v[i];

		if (!s->info.locked || is_duplicate(x, i))
			continue;
		for (const char *l = x->text.v + s->text_off; l && *l && !r;) {
			if (!strncmp(l, "lock:", 5))
				r = take_line(x, s, l + 5, all, &list, err);
			l = strchr(l, '\n');
			l = l ? l + 1 : NULL;
		}
	}
	if (!r && list.n) {
		p->locks = arena_memdup(x->c->tree->arena, list.v, list.n * sizeof(*list.v));
		p->n_locks = list.n;
		r = p->locks ? 0 : cr_err_oom(err);
	}
	vec_done(&list);
	return r;
}

int locks_capture(struct files_ctx *x, struct cr_err *err)
{
	_cleanup_free_ char *all = NULL;
	bool any = false;
	size_t cap = 0;
	int r = 0;

	vec_foreach (s, &x->seen)
		any |= s->info.locked;
	if (!any)
		return 0;
	FILE *f = fopen("/proc/locks", "re");
	if (!f)
		return cr_err_sys(err, "/proc/locks");
	ssize_t n = getdelim(&all, &cap, 0, f);
	fclose(f);
	for (uint32_t i = 0; i < x->c->tree->n_procs && !r; i++)
		r = capture_process(x, i, n > 0 ? all : "", err);
	return r;
}

/* ---- calls ---- */

static void describe(const struct file_lock *l, short type, struct flock *out)
{
	*out = (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)l->start};
	if (l->end != UINT64_MAX)
		out->l_len = (off_t)(l->end - l->start + 1); /* 0: to the end */
}

static struct rcall call_of(const struct file_lock *l, uint64_t flock_va, bool wait)
{
	struct rcall c = {.nr = l->kind == LOCK_FLOCK ? SYS_flock : SYS_fcntl,
			  .args = {(uint64_t)l->fd}};

	if (l->kind == LOCK_FLOCK)
		c.args[1] = (uint64_t)((l->write ? LOCK_EX : LOCK_SH) | (wait ? 0 : LOCK_NB));
	else if (l->kind == LOCK_OFD)
		c.args[1] = (uint64_t)(wait ? F_OFD_SETLKW : F_OFD_SETLK);
	else
		c.args[1] = (uint64_t)(wait ? F_SETLKW : F_SETLK);
	if (l->kind != LOCK_FLOCK)
		c.args[2] = flock_va;
	return c;
}

/* One call for each lock, with its struct flock in p's memory from each_va on. */
static int lock_all(struct rtask *rt, const struct process *p, uint64_t each_va, struct cr_err *err)
{
	for (size_t i = 0; i < p->n_locks; i++) {
		struct rcall c = call_of(&p->locks[i], each_va + i * sizeof(struct flock), false);
		struct rcall *q = rqueue(rt, NULL, c.nr, c.args[0], c.args[1], c.args[2]);
		int r = rtask_run(rt, err);

		if (r)
			return r;
		if (q->ret < 0)
			return cr_err_set(err, CR_ERR_KERNEL, (int)-q->ret,
					  "the file lock on fd %d of %d cannot be had: %s",
					  p->locks[i].fd, p->pid,
					  q->ret == -EAGAIN ? "somebody else holds it"
							    : strerror((int)-q->ret));
	}
	return 0;
}

/* What is in the executor's memory from the release on: nothing else may use it until then. */
struct in_task {
	struct flock all, each[LOCKS_PER_PROCESS];
};

static struct in_task *fill(struct rtask *rt, const struct process *p, uint64_t *ret_va)
{
	rtask_scratch_reset(rt);
	struct in_task *in =
	    p->n_locks <= LOCKS_PER_PROCESS ? rtask_scratch(rt, sizeof(*in), ret_va) : NULL;

	if (!in)
		return NULL;
	in->all = (struct flock){.l_type = F_UNLCK, .l_whence = SEEK_SET};
	for (size_t i = 0; i < p->n_locks; i++)
		describe(&p->locks[i], p->locks[i].write ? F_WRLCK : F_RDLCK, &in->each[i]);
	return in;
}

static int no_room(const struct process *p, struct cr_err *err)
{
	return cr_err_set(err, CR_ERR_PEER, E2BIG, "process %d: %zu file locks", p->pid,
			  p->n_locks);
}

int locks_take(struct rtask *rt, const struct process *p, struct cr_err *err)
{
	uint64_t va;

	if (!fill(rt, p, &va))
		return no_room(p, err);
	int r = lock_all(rt, p, va + offsetof(struct in_task, each), err);
	rtask_scratch_reset(rt);
	return r;
}

int locks_release(struct rtask *rt, const struct process *p, struct cr_err *err)
{
	_cleanup_free_ struct rcall *again = calloc(p->n_locks + 1, sizeof(*again));
	uint64_t va;

	if (!again)
		return cr_err_oom(err);
	if (!fill(rt, p, &va))
		return no_room(p, err);
	for (size_t i = 0; i < p->n_locks; i++)
		again[i] =
		    call_of(&p->locks[i],
			    va + offsetof(struct in_task, each) + i * sizeof(struct flock), true);
	if (!rtask_arm_rescue_calls(rt, again, p->n_locks))
		return no_room(p, err);
	for (size_t i = 0; i < p->n_locks; i++) {
		const struct file_lock *l = &p->locks[i];

		if (l->kind == LOCK_FLOCK)
			rqueue(rt, "flock", SYS_flock, l->fd, LOCK_UN);
		else
			rqueue(rt, "fcntl", SYS_fcntl, l->fd,
			       l->kind == LOCK_OFD ? F_OFD_SETLK : F_SETLK,
			       va + offsetof(struct in_task, all));
	}
	return rtask_run(rt, err);
}

/* The calls that the task would make by itself are left alone until all is as it was. */
int locks_retake(struct rtask *rt, const struct process *p, struct cr_err *err)
{
	const struct timespec pause = {.tv_nsec = 1000000};
	uint64_t deadline = now_us() + RETAKE_US, va;
	int r;

	if (!rtask_has_rescue_calls(rt)) /* they were never given up */
		return 0;
	rtask_data(rt, &va); /* where the release has put it */
	while ((r = lock_all(rt, p, va + offsetof(struct in_task, each), err)) == -EAGAIN &&
	       now_us() < deadline)
		nanosleep(&pause, NULL);
	if (!r)
		rtask_disarm_rescue_calls(rt);
	return r;
}
