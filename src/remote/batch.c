/* The agent's half of the executor: fills a slot, wakes the task, waits for the results. */
#include "remote/batch.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include "base/clock.h"
#include "kernel/procfs.h"
#include "remote/area.h"

enum { ANSWER_TIMEOUT_US = 10 * 1000 * 1000, SLICE_NS = 20 * 1000 * 1000 };

pid_t rtask_tid(const struct rtask *t)
{
	return t->tid;
}

static void futex_wake(unsigned int *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* The head to which the blob has to come for all that was started. */
static void publish(struct rtask *t)
{
	unsigned int head = t->slot->head;

	while (t->started < t->queued) {
		struct rcall *c = &t->calls[t->started++];
		struct blob_call *b = &t->slot->calls[head % SLOT_CALLS];

		b->nr = c->nr;
		memcpy(b->args, c->args, sizeof(b->args));
		b->ret = -ENOSYS;
		head++;
	}
	__atomic_store_n(&t->slot->head, head, __ATOMIC_SEQ_CST);
	futex_wake(&t->slot->head);
}

void rtask_start(struct rtask *t)
{
	if (!t->dead && t->started < t->queued)
		publish(t);
}

/* A traced task that stopped instead of answering: SIGSTOP and SIGKILL cannot be blocked. */
static int look_for_stop(struct rtask *t, struct cr_err *err)
{
	int st;

	if (!t->traced) {
		/* signal 0: tells a task that is gone; a zombie child still answers, the timeout
		 * sees it */
		if (kill(t->tid, 0) && errno == ESRCH)
			return cr_err_set(err, CR_ERR_KERNEL, ESRCH, "task %d died", t->tid);
		return 0;
	}
	pid_t r = waitpid(t->tid, &st, __WALL | WNOHANG);
	if (r == 0)
		return 0;
	if (r < 0 || !WIFSTOPPED(st))
		return cr_err_set(err, CR_ERR_KERNEL, ESRCH,
				  "task %d died while it ran system calls for us", t->tid);
	if (WSTOPSIG(st) == SIGSEGV || WSTOPSIG(st) == SIGILL || WSTOPSIG(st) == SIGBUS)
		return cr_err_set(err, CR_ERR_BUG, EFAULT, "task %d got signal %d in the executor",
				  t->tid, WSTOPSIG(st));
	ptrace(PTRACE_CONT, t->tid, 0, 0);
	return 0;
}

/* Says what it does instead, as far as the kernel tells: a task that is runnable has no processor,
 * one that waits, something to wait for. */
static int no_answer(const struct rtask *t, unsigned int tail, struct cr_err *err)
{
	struct proc_stat st = {.state = '?'};
	struct cr_err ignored = {0};
	char path[64], where[64] = "";

	(void)!proc_stat_read(t->tid, t->tid, &st, &ignored);
	snprintf(path, sizeof(path), "/proc/%d/wchan", t->tid);
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, where, sizeof(where) - 1);
	where[n > 0 ? n : 0] = '\0';
	return cr_err_set(err, CR_ERR_KERNEL, ETIMEDOUT,
			  "task %d does not answer (in system call %ld, state %c%s%s)", t->tid,
			  t->slot->calls[tail % SLOT_CALLS].nr, st.state, *where ? " in " : "",
			  where);
}

static int wait_answer(struct rtask *t, struct cr_err *err)
{
	struct blob_slot *s = t->slot;
	unsigned int want = s->head;
	uint64_t deadline = 0;

	for (unsigned int spin = 0; spin < 200; spin++) {
		if (__atomic_load_n(&s->tail, __ATOMIC_ACQUIRE) == want)
			return 0;
		__builtin_ia32_pause();
	}
	__atomic_store_n(&s->agent_waits, 1, __ATOMIC_SEQ_CST);
	for (;;) {
		unsigned int tail = __atomic_load_n(&s->tail, __ATOMIC_SEQ_CST);
		struct timespec slice = {0, SLICE_NS};

		if (tail == want)
			break;
		if (syscall(SYS_futex, &s->tail, FUTEX_WAIT, tail, &slice, NULL, 0) == 0 ||
		    errno != ETIMEDOUT)
			continue;
		int r = look_for_stop(t, err);
		if (!r && !deadline)
			deadline = now_us() + ANSWER_TIMEOUT_US;
		else if (!r && now_us() > deadline)
			r = no_answer(t, tail, err);
		if (r) {
			err->pid = t->tid;
			t->dead = true;
			return r;
		}
	}
	__atomic_store_n(&s->agent_waits, 0, __ATOMIC_SEQ_CST);
	return 0;
}

int rtask_wait(struct rtask *t, struct cr_err *err)
{
	if (t->dead)
		return cr_err_set(err, CR_ERR_KERNEL, ESRCH, "task %d died", t->tid);
	int r = wait_answer(t, err);
	if (r)
		return r;
	unsigned int first = t->slot->head - t->started;
	for (unsigned int i = 0; i < t->started; i++) {
		struct rcall *c = &t->calls[i];

		c->ret = t->slot->calls[(first + i) % SLOT_CALLS].ret;
		if (t->what[i] && !r && c->ret < 0 && c->ret > -4096) {
			err->pid = t->tid;
			r = cr_err_set(err, CR_ERR_KERNEL, (int)-c->ret, "%s in task %d: %s",
				       t->what[i], t->tid, strerror((int)-c->ret));
		}
	}
	t->queued = t->started = 0;
	if (t->has_pending_err) {
		t->has_pending_err = false;
		*err = t->pending_err;
		return -err->code;
	}
	return r;
}

int rtask_run(struct rtask *t, struct cr_err *err)
{
	rtask_start(t);
	return rtask_wait(t, err);
}

struct rcall *rtask_queue(struct rtask *t, const char *what, long nr, uint64_t a0, uint64_t a1,
			  uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5)
{
	if (t->queued == SLOT_CALLS) {
		struct cr_err err = {0};

		if (rtask_run(t, &err) && !t->has_pending_err) {
			t->pending_err = err;
			t->has_pending_err = true;
		}
		t->queued = t->started = 0;
	}
	t->what[t->queued] = what;
	struct rcall *c = &t->calls[t->queued++];
	*c = (struct rcall){.nr = nr, .args = {a0, a1, a2, a3, a4, a5}, .ret = -ENOSYS};
	return c;
}

long rtask_syscall(struct rtask *t, long nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3,
		   uint64_t a4, uint64_t a5)
{
	struct cr_err err = {0};
	struct rcall *c = rtask_queue(t, NULL, nr, a0, a1, a2, a3, a4, a5);

	if (rtask_run(t, &err) && t->dead)
		return -ESRCH;
	return c->ret;
}

void rtask_queue_sigreturn(struct rtask *t, uint64_t frame_va)
{
	struct blob_slot *s = t->slot;
	struct blob_call *b = &s->calls[s->head % SLOT_CALLS];

	b->nr = BLOB_OP_SIGRETURN;
	b->args[0] = frame_va;
	__atomic_store_n(&s->head, s->head + 1, __ATOMIC_SEQ_CST);
	futex_wake(&s->head);
}

void rtask_unqueue_sigreturn(struct rtask *t)
{
	t->slot->tail = t->slot->head;
}

void *rtask_scratch(struct rtask *t, size_t bytes, uint64_t *ret_va)
{
	size_t need = ALIGN_UP(bytes, 16);

	if (need > RTASK_SCRATCH_BYTES - t->scratch_used)
		return NULL;
	uint8_t *p = t->slot->data + t->scratch_used;
	*ret_va = t->slot_va + offsetof(struct blob_slot, data) + t->scratch_used;
	t->scratch_used += need;
	memset(p, 0, need);
	return p;
}

void *rtask_scratch_copy(struct rtask *t, const void *p, size_t bytes, uint64_t *ret_va)
{
	void *q = rtask_scratch(t, bytes, ret_va);

	return q ? memcpy(q, p, bytes) : NULL;
}

void rtask_scratch_reset(struct rtask *t)
{
	t->scratch_used = 0;
}

size_t rtask_scratch_room(const struct rtask *t)
{
	return RTASK_SCRATCH_BYTES - t->scratch_used;
}
