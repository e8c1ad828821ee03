/* pidfds of processes of the tree, pidfd_open(2). The destination's processes are there before its
 * files, zombies too. In struct file: cred_pid is whose it is; peer_ino tells one process of that
 * pid from another, as the destination makes another one then. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include "kernel/procfs.h"

static bool match(const struct fd_probe *p)
{
	return !strcmp(p->link, "anon_inode:[pidfd]") || !strncmp(p->link, "pidfd:", 6);
}

static int capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		   struct cr_err *err)
{
	const char *text = p->text ? fdinfo_field(p->text, "Pid") : NULL;
	pid_t pid = text ? atoi(text) : 0;
	const struct process *of = pid > 0 ? tree_find_process(x->c->tree, pid) : NULL;
	struct proc_stat st;

	if (!of || p->info.flags & O_EXCL /* PIDFD_THREAD, 6.9 */) {
		files_refuse(x, p->pid, p->fd, "pidfd of %s: not supported; close it first",
			     pid <= 0 ? "a process that is gone"
			     : !of    ? "a process outside the tree"
				      : "a thread");
		return 0;
	}
	int r = proc_stat_read(pid, 0, &st, err);
	if (r == -ESRCH && !x->c->exact)
		return 0; /* gone meanwhile */
	if (r < 0)
		return r;
	f->kind = FILE_PIDFD;
	f->pos = 0;
	f->cred_pid = pid;
	f->peer_ino = st.starttime << 1 | of->zombie;
	return 0;
}

static int build(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err)
{
	const struct file *f = &t->files[i];

	if (!tree_find_process(t, f->cred_pid))
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "pidfd of %d, which is not in the tree",
				  f->cred_pid);
	fs->held[i].fd = (int)syscall(SYS_pidfd_open, f->cred_pid, 0);
	return fs->held[i].fd < 0 ? cr_err_sys(err, "pidfd of %d", f->cred_pid) : 0;
}

const struct file_ops file_ops_pidfd = {
    .name = "pidfd",
    .kind = FILE_PIDFD,
    .match = match,
    .capture = capture,
    .build = build,
};
