#include "source/source.h"

#include <fcntl.h>
#include <stdio.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>
#include "kernel/procfs.h"
#include "kernel/taskview.h"
#include "kernel/timens.h"
#include "kernel/vdso.h"
#include "memory/donor.h"
#include "remote/detour.h"
#include "remote/sigframe.h"
#include "resource/resource.h"

/* NULL: not to be had, or not wanted. */
static const struct taskview *source_view(const struct source *s)
{
	return s->rq->opts.no_bpf ? NULL : s->env->view;
}

static const struct vmaview *source_vmas(const struct source *s)
{
	return s->rq->opts.no_bpf ? NULL : s->env->vmas;
}

static const struct reuseview *source_reuse(const struct source *s)
{
	return s->rq->opts.no_bpf ? NULL : s->env->reuse;
}

static const struct sock_alike *source_socks(const struct source *s)
{
	return s->rq->opts.no_bpf ? NULL : s->env->socks;
}

static const struct pendview *source_pending(const struct source *s)
{
	return s->rq->opts.no_bpf ? NULL : s->env->pending;
}

void source_request(const struct source *s, struct seize_request *rq)
{
	*rq = (struct seize_request){
	    .root = s->rq->pid,
	    .cgroup = *s->rq->cgroup          ? s->rq->cgroup
		      : *s->rq->freeze_cgroup ? s->rq->freeze_cgroup
					      : NULL,
	    .whole_cgroup = *s->rq->cgroup != 0,
	    .seized_before = s->tree != NULL,
	    .view = source_view(s),
	};
}

struct source_proc *source_find(struct source *s, pid_t pid)
{
	vec_foreach (sp, &s->procs)
		if ((*sp)->pid == pid)
			return *sp;
	return NULL;
}

static void proc_free(struct source *s, struct source_proc *sp)
{
	vec_foreach (other, &s->procs)
		if ((*other)->tracker.donor == &sp->tracker)
			donor_forget(&(*other)->tracker);
	if (sp->has_tracker)
		tracker_done(&sp->tracker);
	if (sp->infected)
		parasite_done(&sp->parasite);
	close_fdp(&sp->pidfd);
	free(sp);
}

void source_forget_all(struct source *s)
{
	while (s->procs.n)
		proc_free(s, s->procs.v[--s->procs.n]);
}

static int find_vdso(struct source_proc *sp, struct cr_err *err)
{
	uint8_t digest[16];
	struct parasite_entry *e = &sp->entry;
	uint64_t end;
	int r = vdso_describe(sp->pid, &e->string_va, &end, digest, err);

	if (!r)
		r = vdso_syscall_insn(sp->pid, e->string_va, end, &e->insn_va, err);
	return r ? r : detour_find(sp->pid, e->string_va, end, &e->detour_va, err);
}

/* Known process, or one more. A pid that was reused is another process. */
static int know(struct source *s, const struct seized_proc *q, struct source_proc **ret,
		struct cr_err *err)
{
	for (size_t i = 0; i < s->procs.n; i++) {
		struct source_proc *sp = s->procs.v[i];

		if (sp->pid != q->pid)
			continue;
		if (sp->starttime == q->starttime) {
			*ret = sp;
			/* once it is tracked, a capture sees an execve(2) that moves the vdso */
			return q->zombie || sp->has_tracker ? 0 : find_vdso(sp, err);
		}
		/* the shell there has the pages of the one before, which the new one's tracker
		 * takes for absent */
		if (sp->has_shell && !s->image)
			return cr_err_set(err, CR_ERR_UNSUPPORTED, ESTALE,
					  "pid %d was used again by another process since the "
					  "migration began; try again",
					  q->pid);
		proc_free(s, sp);
		s->procs.v[i] = s->procs.v[--s->procs.n];
		break;
	}
	struct source_proc *sp = calloc(1, sizeof(*sp));
	struct source_proc **slot = sp ? vec_push(&s->procs) : NULL;
	if (!slot) {
		free(sp);
		return cr_err_oom(err);
	}
	*slot = sp;
	sp->pid = q->pid;
	sp->starttime = q->starttime;
	sp->pidfd = (int)syscall(SYS_pidfd_open, q->pid, 0);
	if (sp->pidfd < 0)
		return cr_err_sys(err, "opening a pidfd of %d", q->pid);
	*ret = sp;
	return q->zombie ? 0 : find_vdso(sp, err);
}

void source_forget_ended(struct source *s, const struct tree *t)
{
	for (size_t i = 0; i < s->procs.n;) {
		struct source_proc *sp = s->procs.v[i];

		if (!sp->has_tracker || tree_find_process(t, sp->pid)) {
			i++;
			continue;
		}
		proc_free(s, sp);
		s->procs.v[i] = s->procs.v[--s->procs.n];
	}
}

/* The process's own stat has in exit_code what wait(2) is to say of the stop, until it has. */
static int fill_stop(const struct seized_proc *q, struct process *p, struct cr_err *err)
{
	struct proc_stat st;
	int r = proc_stat_read(q->pid, 0, &st, err);

	if (r)
		return r;
	p->stop_told = !st.exit_code;
	p->stop_sig = (uint32_t)q->stop_sig;
	if (!p->stop_sig) /* not seized: by what it was stopped does not show once it was told */
		p->stop_sig = is_stop_signal(st.exit_code) ? (uint32_t)st.exit_code : SIGSTOP;
	return 0;
}

static int fill_process(struct source *s, struct tree *t, const struct seized_proc *q,
			struct process *p, struct cr_err *err)
{
	struct proc_stat st;
	uint32_t number;
	int r = proc_stat_read(q->pid, q->pid, &st, err);

	(void)s;
	if (r)
		return r;
	p->pid = q->pid;
	p->ppid = st.ppid;
	p->pgid = st.pgrp;
	p->sid = st.session;
	p->zombie = q->zombie;
	p->exit_status = st.exit_code;
	p->exit_signal = (uint32_t)st.exit_signal;
	if (q->zombie)
		return 0;
	if (q->stop_sig || st.state == 'T')
		r = fill_stop(q, p, err);
	if (r)
		return r;
	if (st.tty && tty_number(st.tty, &number))
		p->ctty = number + 1;
	p->threads = arena_array(t->arena, struct thread, q->tasks.n);
	if (!p->threads)
		return cr_err_oom(err);
	vec_foreach (task, &q->tasks)
		if (!task->dead)
			p->threads[p->n_threads++].tid = task->tid;
	return 0;
}

static int describe_host(struct tree *t, const struct tree *before, struct cr_err *err)
{
	struct utsname u;
	uint64_t start, end;
	uint32_t eax, edx;

	if (before) { /* nothing of it changes while this process lives */
		memcpy(t->kernel_release, before->kernel_release, sizeof(t->kernel_release));
		memcpy(t->hostname, before->hostname, sizeof(t->hostname));
		memcpy(t->vdso_digest, before->vdso_digest, sizeof(t->vdso_digest));
		t->xcr0 = before->xcr0;
		t->xfeatures = before->xfeatures;
		return 0;
	}

	uname(&u);
	snprintf(t->kernel_release, sizeof(t->kernel_release), "%s", u.release);
	snprintf(t->hostname, sizeof(t->hostname), "%s", u.nodename);
	__asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
	t->xcr0 = (uint64_t)edx << 32 | eax;
	xstate_used_bytes(t->xcr0); /* slow the first time: not at a stop */
	/* tile data belongs to who asked for it; those are told at the stop */
	t->xfeatures = t->xcr0 & ~(3ull << 17);
	return vdso_describe(getpid(), &start, &end, t->vdso_digest, err);
}

/* The process in an earlier capture. */
static const struct process *known_before(const struct source *s, pid_t pid)
{
	const struct tree *before = s->tree ? s->tree : s->checked;
	const struct process *p = before ? tree_find_process(before, pid) : NULL;

	vec_foreach (t, &s->newcomers)
		if (!p)
			p = tree_find_process(*t, pid);
	return p;
}

static int list_processes(struct source *s, const struct seizure *who, bool exact, struct tree *t,
			  struct capture_proc *cp, struct cr_err *err)
{
	t->procs = arena_array(t->arena, struct process, who->procs.n + 1);
	if (!t->procs)
		return cr_err_oom(err);
	vec_foreach (q, &who->procs) {
		struct process *p = &t->procs[t->n_procs];
		struct source_proc *sp = NULL;
		struct cr_err gone = {0};
		int r = know(s, q, &sp, &gone);

		if (!r)
			r = fill_process(s, t, q, p, &gone);
		if ((r == -ESRCH || r == -ENOENT) && !exact) { /* without a vdso: on its way out */
			memset(p, 0, sizeof(*p));
			continue; /* died meanwhile */
		}
		if (r) {
			*err = gone;
			return r;
		}
		cp[t->n_procs].pidfd = sp->pidfd;
		cp[t->n_procs].prev = known_before(s, p->pid);
		cp[t->n_procs].p = p;
		t->n_procs++;
	}
	if (!t->n_procs)
		return cr_err_set(err, CR_ERR_INPUT, ESRCH, "no process to move");
	t->root_pid = s->rq->pid > 0 ? s->rq->pid : t->procs[0].pid;
	return 0;
}

/* Tasks that have moved before live in a time namespace of their own. */
static int compare_clocks(struct tree *t, struct cr_err *err)
{
	struct timens_offsets own, theirs;
	int r = timens_read(0, &own, err);

	if (!r)
		r = timens_read(t->procs[0].pid, &theirs, err);
	if (r)
		return r;
	t->task_monotonic_offset_ns = theirs.monotonic - own.monotonic;
	t->task_boottime_offset_ns = theirs.boottime - own.boottime;
	return 0;
}

/* Where the kernel tells it of all threads of a process. One alone is asked in any case. */
static void look_at_threads(struct source *s, const struct process *p, struct capture_proc *cp,
			    struct task_facts_list *l)
{
	struct source_proc *sp = source_find(s, p->pid);
	struct cr_err ignored = {0};

	sp->told = false;
	if (!source_view(s) || p->n_threads < 2 ||
	    taskview_read(source_view(s), p->pid, l, &ignored))
		return;
	for (size_t i = 0; i < p->n_threads; i++)
		if (!task_facts_find(l, p->threads[i].tid))
			return;
	l->cursor = 0;
	cp->facts = l;
	sp->told = true;
}

int source_capture(struct source *s, const struct seizure *who, bool exact, struct tree **ret,
		   struct cr_err *err)
{
	struct tree *t = tree_new();
	_cleanup_free_ struct capture_proc *cp = calloc(who->procs.n + 1, sizeof(*cp));
	_cleanup_free_ struct task_facts_list *facts = calloc(who->procs.n + 1, sizeof(*facts));

	if (!t || !cp || !facts) {
		tree_free(t);
		return cr_err_oom(err);
	}
	const struct tree *before = s->tree ? s->tree : s->checked;
	struct capture c = {.tree = t,
			    .prev = before,
			    .refused = &s->notes,
			    .exact = exact,
			    .to_image = s->image,
			    .view = source_view(s),
			    .vmas = source_vmas(s),
			    .socks = source_socks(s),
			    .pending = source_pending(s),
			    .reuse = source_reuse(s),
			    .procs = cp,
			    .tcp = source_tcp_mode(s)};
	int r = describe_host(t, before, err);
	if (!r)
		r = source_list_addresses(s, t, err);
	if (!r)
		r = list_processes(s, who, exact, t, cp, err);
	if (!r && s->tree) { /* fixed for as long as a process lives */
		t->task_monotonic_offset_ns = s->tree->task_monotonic_offset_ns;
		t->task_boottime_offset_ns = s->tree->task_boottime_offset_ns;
	} else if (!r) {
		r = compare_clocks(t, err);
	}
	if (!r)
		r = memory_capture(&c, &s->object_fds, err);
	if (!r)
		r = huge_mark_stays(t, &s->huge_forked, err);
	if (!r)
		r = files_capture(&c, err);
	if (!r)
		r = memory_capture_objects(&c, &s->object_fds, err);
	for (size_t i = 0; i < t->n_procs && !r; i++)
		if (!t->procs[i].zombie)
			look_at_threads(s, &t->procs[i], &cp[i], &facts[i]);
	if (!r)
		r = sysv_ipc_capture(&c, err);
	if (!r)
		r = attrs_capture(&c, err);
	for (size_t i = 0; i < t->n_procs && !r && !exact; i++)
		if (!t->procs[i].zombie)
			attrs_copy_inside(t, &t->procs[i], cp[i].prev, cp[i].facts != NULL);
	for (size_t i = 0; i < who->procs.n; i++)
		task_facts_done(&facts[i]);
	for (size_t i = 0; i < t->n_procs && !r; i++) {
		struct source_proc *sp = source_find(s, t->procs[i].pid);

		if (sp && sp->brk)
			t->procs[i].mm.brk = sp->brk;
	}
	if (r) {
		tree_free(t);
		return r;
	}
	*ret = t;
	return 0;
}

/* Of mappings that are the same otherwise. */
static bool flags_differ(const struct mm *a, const struct mm *b)
{
	for (size_t i = 0; i < a->n_vmas && i < b->n_vmas; i++)
		if (a->vmas[i].flags != b->vmas[i].flags)
			return true;
	return a->n_vmas != b->n_vmas;
}

static bool process_differs(const struct process *a, const struct process *b)
{
	if (a->zombie != b->zombie || a->n_threads != b->n_threads || a->ppid != b->ppid ||
	    a->pgid != b->pgid || a->sid != b->sid)
		return true;
	if (a->zombie)
		return false;
	for (size_t i = 0; i < a->n_threads; i++)
		if (a->threads[i].tid != b->threads[i].tid ||
		    attrs_thread_differs(&a->threads[i], &b->threads[i]))
			return true;
	return !b->mm.layout_digest || a->mm.layout_digest != b->mm.layout_digest ||
	       a->mm.brk != b->mm.brk || flags_differ(&a->mm, &b->mm) ||
	       attrs_process_differs(a, b);
}

bool source_structure_differs(const struct tree *a, const struct tree *b)
{
	if (a->n_procs != b->n_procs || a->n_objects != b->n_objects || !files_same_shape(a, b))
		return true;
	for (size_t i = 0; i < a->n_procs; i++)
		if (a->procs[i].pid != b->procs[i].pid ||
		    process_differs(&a->procs[i], &b->procs[i]))
			return true;
	for (size_t i = 0; i < a->n_objects; i++)
		if (a->objects[i].size != b->objects[i].size)
			return true;
	return false;
}
