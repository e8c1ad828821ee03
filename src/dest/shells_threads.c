#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "dest/shells_private.h"

enum { ROBUST_HEAD_BYTES = 24 };

/* ---- threads ---- */

static int end_thread(struct shells *s, struct shell *sh, size_t i, struct cr_err *err)
{
	struct shell_thread *th = sh->threads[i];

	/* What the kernel writes for a thread that ends, the source's kernel has written there:
	 * here it would go into pages that are in place already, and perhaps somebody else's by
	 * now. */
	rqueue(&th->rt, NULL, SYS_set_tid_address, 0);
	rqueue(&th->rt, NULL, SYS_set_robust_list, 0, ROBUST_HEAD_BYTES);
	rqueue(&th->rt, NULL, SYS_exit, 0);
	rtask_start(&th->rt);
	if (th->seized) {
		int st;

		if (waitpid(th->tid, &st, __WALL) < 0)
			return cr_err_sys(err, "waiting for the end of thread %d", th->tid);
	}
	shell_thread_free(s, th);
	memmove(&sh->threads[i], &sh->threads[i + 1], (sh->n_threads - i - 1) * sizeof(th));
	sh->n_threads--;
	return 0;
}

int shells_sync_threads(struct shells *s, struct shell *sh, const struct process *p,
			struct cr_err *err)
{
	const uint64_t flags =
	    CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
	int r = 0;

	for (size_t i = sh->n_threads; i-- > 1 && !r;)
		if (!process_find_thread(p, sh->threads[i]->tid))
			r = end_thread(s, sh, i, err);
	for (size_t i = 0; i < p->n_threads && !r; i++) {
		size_t k = 0;

		while (k < sh->n_threads && sh->threads[k]->tid != p->threads[i].tid)
			k++;
		if (k < sh->n_threads)
			continue;
		r = shell_add_thread(s, sh, p->threads[i].tid, err);
		if (!r)
			r = shell_clone(sh, sh->threads[sh->n_threads - 1], flags, 0, err);
	}
	return r;
}

/* ---- the way to our descriptors ---- */

int shell_take_pidfd(struct shells *s, struct shell *sh, struct cr_err *err)
{
	struct rtask *rt = shell_leader(sh);

	if (sh->pidfd_slot >= 0)
		return 0;
	long fd = rcall_now(rt, SYS_pidfd_open, getpid(), 0);
	if (fd < 0)
		return cr_err_set(err, CR_ERR_KERNEL, (int)-fd, "opening a pidfd in shell %d: %s",
				  sh->pid, strerror((int)-fd));
	/* out of the way of the descriptors to come; where the limit forbids it, as it is */
	long high = rcall_now(rt, SYS_dup3, fd, s->pidfd_slot, O_CLOEXEC);
	if (high >= 0)
		rqueue(rt, "close", SYS_close, fd);
	sh->pidfd_slot = high >= 0 ? (int)high : (int)fd;
	return rtask_run(rt, err);
}

int shell_drop_pidfd(struct shell *sh, struct cr_err *err)
{
	if (sh->pidfd_slot < 0)
		return 0;
	rqueue(shell_leader(sh), "close", SYS_close, sh->pidfd_slot);
	sh->pidfd_slot = -1;
	return rtask_run(shell_leader(sh), err);
}

/* ---- in a hurry ---- */

void shell_hurry(struct shell *sh, int priority)
{
	const struct sched_param p = {.sched_priority = priority};

	if (!sched_setscheduler(sh->threads[0]->tid, SCHED_FIFO | SCHED_RESET_ON_FORK, &p))
		sh->threads[0]->hurried = true;
}

/* ---- parking ---- */

static int collect_threads(struct shell *sh, struct rtask ***ret, struct cr_err *err)
{
	struct rtask **v = calloc(sh->n_threads, sizeof(*v));

	if (!v)
		return cr_err_oom(err);
	for (size_t i = 0; i < sh->n_threads; i++)
		v[i] = &sh->threads[i]->rt;
	*ret = v;
	return 0;
}

int shell_seize_threads(struct shell *sh, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < sh->n_threads && !r; i++)
		if (!sh->threads[i]->seized)
			r = shell_seize(sh->threads[i], err);
	return r;
}

int shell_park(struct shells *s, struct shell *sh, struct cr_err *err)
{
	_cleanup_free_ struct rtask **v = NULL;

	if (sh->parked || sh->zombie)
		return 0;
	int r = shell_seize_threads(sh, err);
	if (!r)
		r = collect_threads(sh, &v, err);
	enum park_how how = sh->no_breakpoint ? PARK_SYSCALL_TRACE : s->park_how;
	if (!r)
		r = park_at_sigreturn(v, sh->n_threads, &how, err);
	if (!sh->no_breakpoint)
		s->park_how = how; /* no debug registers here: do not ask again */
	sh->parked = !r;
	return r;
}

int shell_unpark(struct shells *s, struct shell *sh, struct cr_err *err)
{
	_cleanup_free_ struct rtask **v = NULL;

	(void)s;
	if (!sh->parked)
		return 0;
	int r = collect_threads(sh, &v, err);
	if (!r)
		r = park_undo(v, sh->n_threads, err);
	/* the registers that it had been given are gone: they are written again */
	for (size_t i = 0; i < sh->n_threads; i++)
		sh->threads[i]->left = false;
	sh->parked = false;
	return r;
}
