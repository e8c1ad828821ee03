#include "dest/shells.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "dest/shells_private.h"

/* The hole is looked for between these: above what programs are linked at, below what mmap hands
 * out. */
#define HOLE_LOWEST 0x100000000ull
#define HOLE_STEP 0x40000000ull
#define HOLE_HIGHEST 0x500000000000ull

enum { SPARE_SLOTS = 4096, THREADS_MAX = 32768, FDS_MAX = 1 << 20 };

/* ---- the hole ---- */

static bool overlaps(uint64_t a, uint64_t b, uint64_t start, uint64_t end)
{
	return start < b && a < end;
}

static bool tree_uses(const struct tree *t, uint64_t a, uint64_t b)
{
	for (size_t i = 0; i < t->n_procs; i++) {
		const struct mm *mm = &t->procs[i].mm;

		for (size_t k = 0; k < mm->n_vmas; k++)
			if (overlaps(a, b, mm->vmas[k].start, mm->vmas[k].end))
				return true;
	}
	return false;
}

static int find_hole(struct shells *s, const struct tree *t, size_t bytes, struct cr_err *err)
{
	for (uint64_t a = HOLE_LOWEST; a < HOLE_HIGHEST; a += HOLE_STEP) {
		if (tree_uses(t, a - CR_PAGE_SIZE, a + bytes + CR_PAGE_SIZE))
			continue;
		void *p = mmap((void *)a, bytes, PROT_NONE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		if (p == MAP_FAILED)
			continue; /* we have something there ourselves */
		munmap(p, bytes);
		s->hole_start = a;
		s->hole_end = a + bytes;
		return 0;
	}
	return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOMEM,
			  "no %zu bytes of address space that no task uses", bytes);
}

static size_t count_threads(const struct tree *t)
{
	size_t n = 0;

	for (size_t i = 0; i < t->n_procs; i++)
		n += t->procs[i].n_threads + t->procs[i].zombie;
	return n;
}

/* One for each thread, and one for each ghost (at most one a process). Those to spare cost address
 * space alone: memory that nobody touches is not there. */
static unsigned int count_slots(const struct tree *t)
{
	return (unsigned int)(count_threads(t) + t->n_procs) + SPARE_SLOTS;
}

static int highest_fd(const struct tree *t)
{
	int max = 100;

	for (size_t i = 0; i < t->n_procs; i++)
		for (size_t k = 0; k < t->procs[i].n_fds; k++)
			if (t->procs[i].fds[k].fd > max)
				max = t->procs[i].fds[k].fd;
	return max;
}

/* What the tree says sizes memory and descriptor tables here: what is out of all proportion is not
 * tried. */
const char *shells_too_large(const struct tree *t)
{
	if (count_threads(t) > THREADS_MAX)
		return "more than 32,768 threads and processes: not supported";
	if (highest_fd(t) >= FDS_MAX)
		return "descriptor numbers of 1,048,576 and more: not supported";
	return NULL;
}

int shells_check_hole(const struct shells *s, const struct process *p, struct cr_err *err)
{
	const struct mm *mm = &p->mm;

	for (size_t i = 0; i < mm->n_vmas; i++)
		if (overlaps(s->hole_start, s->hole_end, mm->vmas[i].start, mm->vmas[i].end))
			return cr_err_set(
			    err, CR_ERR_PEER, EADDRINUSE,
			    "process %d has a mapping at %#llx, where the restorer is", p->pid,
			    (unsigned long long)mm->vmas[i].start);
	return 0;
}

int shells_new(struct shells **ret, const struct tree *t, struct cr_err *err)
{
	const char *trouble = shells_too_large(t);

	if (trouble)
		return cr_err_set(err, CR_ERR_UNSUPPORTED, E2BIG, "%s", trouble);
	struct shells *s = calloc(1, sizeof(*s));
	unsigned int n_slots = count_slots(t);
	if (!s)
		return cr_err_oom(err);
	s->area.memfd = -1;
	s->self_pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	s->pidfd_slot = highest_fd(t) + 50;
	int r = s->self_pidfd < 0 ? cr_err_sys(err, "opening a pidfd of ourselves") : 0;
	if (!r)
		r = find_hole(s, t, rarea_bytes(n_slots), err);
	if (!r) {
		int memfd = memfd_create("restorer", MFD_CLOEXEC);

		r = memfd < 0 ? cr_err_sys(err, "creating the executor's memory")
			      : rarea_init(&s->area, memfd, n_slots, s->hole_start, err);
	}
	if (!r && mprotect(s->area.local, CR_PAGE_SIZE, PROT_READ | PROT_EXEC))
		r = cr_err_sys(err, "making the executor executable");
	if (r) {
		shells_free(s);
		return r;
	}
	*ret = s;
	return 0;
}

/* ---- slots ---- */

static int thread_new(struct shells *s, pid_t tid, struct shell_thread **ret, struct cr_err *err)
{
	struct shell_thread *th = calloc(1, sizeof(*th));

	if (!th)
		return cr_err_oom(err);
	th->tid = tid;
	if (s->free_slots.n) {
		struct blob_slot *slot = s->free_slots.v[--s->free_slots.n];

		th->rt.area = &s->area;
		th->rt.slot = slot;
		th->rt.slot_va = (uint64_t)(uintptr_t)slot; /* mapped at one address everywhere */
		rtask_reset(&th->rt, tid);
	} else {
		int r = rtask_init(&th->rt, &s->area, tid, err);

		if (r) {
			free(th);
			return r != -ENOSPC ? r
					    : cr_err_set(err, CR_ERR_UNSUPPORTED, ENOSPC,
							 "more than %d threads and processes have "
							 "been started since "
							 "the migration began; try again",
							 SPARE_SLOTS);
		}
	}
	*ret = th;
	return 0;
}

void shell_thread_free(struct shells *s, struct shell_thread *th)
{
	struct blob_slot **slot = vec_push(&s->free_slots);

	if (slot)
		*slot = th->rt.slot;
	free(th);
}

int shell_add_thread(struct shells *s, struct shell *sh, pid_t tid, struct cr_err *err)
{
	struct shell_thread **v = reallocarray(sh->threads, sh->n_threads + 1, sizeof(*v));

	if (!v)
		return cr_err_oom(err);
	sh->threads = v;
	int r = thread_new(s, tid, &v[sh->n_threads], err);
	if (!r)
		sh->n_threads++;
	return r;
}

void shell_free(struct shells *s, struct shell *sh)
{
	for (size_t i = 0; i < sh->n_threads; i++)
		shell_thread_free(s, sh->threads[i]);
	free(sh->threads);
	free(sh->vmas);
	free(sh->guards);
	free(sh);
}

int shell_new(struct shells *s, pid_t pid, pid_t ppid, struct shell **ret, struct cr_err *err)
{
	struct shell *sh = calloc(1, sizeof(*sh));

	if (!sh)
		return cr_err_oom(err);
	sh->pid = pid;
	sh->ppid = ppid;
	sh->pidfd_slot = s->pidfd_slot;
	sh->target = NO_TARGET;
	int r = shell_add_thread(s, sh, pid, err);
	if (r)
		free(sh);
	else
		*ret = sh;
	return r;
}

struct shell *shells_find(const struct shells *s, pid_t pid)
{
	vec_foreach (sh, &s->list)
		if ((*sh)->pid == pid)
			return *sh;
	vec_foreach (sh, &s->ghosts)
		if ((*sh)->pid == pid)
			return *sh;
	return NULL;
}

/* ---- the end of a shell ---- */

void shell_kill(struct shell *sh)
{
	int st;

	kill(sh->pid, SIGKILL);
	for (size_t i = sh->n_threads; i-- > 0;) /* threads first: the leader's end comes last */
		if (sh->threads[i]->seized || i == 0)
			while (waitpid(sh->threads[i]->tid, &st, __WALL) > 0 && WIFSTOPPED(st))
				kill(sh->pid, SIGKILL);
}

void shells_forget(struct shells *s)
{
	if (!s)
		return;
	vec_foreach (sh, &s->list)
		shell_free(s, *sh);
	vec_foreach (sh, &s->ghosts)
		shell_free(s, *sh);
	vec_done(&s->list);
	vec_done(&s->ghosts);
	vec_done(&s->free_slots);
	rarea_done(&s->area);
	close_fdp(&s->self_pidfd);
	free(s);
}

void shells_kill(struct shells *s)
{
	if (!s)
		return;
	vec_foreach (sh, &s->list)
		kill((*sh)->pid, SIGKILL);
}

void shells_free(struct shells *s)
{
	if (!s)
		return;
	for (size_t i = s->list.n; i-- > 0;) /* children before parents */
		shell_kill(s->list.v[i]);
	for (size_t i = s->ghosts.n; i-- > 0;)
		shell_kill(s->ghosts.v[i]);
	shells_forget(s);
}
