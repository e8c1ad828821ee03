/* Controlling terminals of shells. Only a session's leader takes one, by TIOCSCTTY (tty_ioctl(2));
 * its children inherit it, so it has it before they are born. */
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include "dest/shells_private.h"
#include "kernel/procfs.h"
#include "resource/resource.h"

/* One ioctl of the shell on the slave, which it has for that moment only. */
static int with_slave(struct shells *s, struct shell *sh, uint32_t number, const char *what,
		      unsigned long request, uint64_t arg, struct cr_err *err)
{
	struct rtask *rt = shell_leader(sh);
	int slave = ttys_slave(s->ttys, number);
	int r = shell_take_pidfd(s, sh, err);

	if (!r && slave < 0)
		r = cr_err_set(err, CR_ERR_PEER, EPROTO,
			       "terminal /dev/pts/%u of process %d has no slave", number, sh->pid);
	if (r)
		return r;
	long fd = rcall_now(rt, SYS_pidfd_getfd, sh->pidfd_slot, slave, 0);
	if (fd < 0)
		return cr_err_set(err, CR_ERR_KERNEL, (int)-fd, "pidfd_getfd in task %d: %s",
				  sh->pid, strerror((int)-fd));
	rqueue(rt, what, SYS_ioctl, fd, request, arg);
	rqueue(rt, "close", SYS_close, fd);
	return rtask_run(rt, err);
}

int shell_take_tty(struct shells *s, struct shell *sh, const struct process *p, struct cr_err *err)
{
	if (!p->ctty || p->sid != p->pid)
		return 0;
	return with_slave(s, sh, p->ctty - 1, "TIOCSCTTY", TIOCSCTTY, 0, err);
}

/* As p has it? Structure may have changed since the shell was born. */
int shell_check_tty(struct shells *s, struct shell *sh, const struct process *p, struct cr_err *err)
{
	struct proc_stat st;
	uint32_t number;
	int r = proc_stat_read(sh->pid, sh->pid, &st, err);

	if (r)
		return r;
	uint32_t has = st.tty && tty_number(st.tty, &number) ? number + 1 : 0;
	if (has == p->ctty)
		return 0;
	r = shell_unpark(s, sh, err);
	if (!r && !has && p->sid == p->pid)
		r = shell_take_tty(s, sh, p, err);
	else if (!r && !p->ctty && p->sid != p->pid)
		r = with_slave(s, sh, has - 1, "TIOCNOTTY", TIOCNOTTY, 0, err);
	else if (!r)
		r = cr_err_set(err, CR_ERR_KERNEL, EAGAIN,
			       "process %d has changed its terminal during the copy; try again",
			       p->pid);
	return r;
}

/* All signals are blocked in a shell, so it is allowed from the background too. */
int shell_set_foreground(struct shells *s, struct shell *sh, const struct tty *y,
			 struct cr_err *err)
{
	struct rtask *rt = shell_leader(sh);
	uint64_t va;
	pid_t *pgrp = rtask_scratch(rt, sizeof(*pgrp), &va);

	if (!pgrp)
		return cr_err_set(err, CR_ERR_BUG, ENOSPC, "no scratch memory");
	*pgrp = y->pgrp;
	int r = with_slave(s, sh, y->number, "TIOCSPGRP", TIOCSPGRP, va, err);
	rtask_scratch_reset(rt);
	return r;
}
