#include "dest/layout_private.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <linux/prctl.h>
#include "kernel/sysv_shm.h"
#include "model/layout.h"

#define ARCH_MAP_VDSO_64                                                                           \
	0x2003 /* arch_prctl, 4.8: maps vdso and its data pages at the address given */
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102 /* 6.13 */
#define MADV_GUARD_REMOVE 103
#endif
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

/* ---- shared objects ---- */

/* Which size of huge pages: mmap(2), memfd_create(2), shmget(2) all take it so (3.8). */
static int huge_flag(uint64_t page_bytes)
{
	return page_bytes ? __builtin_ctzll(page_bytes) << MAP_HUGE_SHIFT : 0;
}

/* A descriptor of shared anonymous memory: the only way to one leads through a mapping of it,
 * /proc/PID/map_files, proc(5). */
static int shared_anon_fd(const struct shared_object *so, struct cr_err *err)
{
	char path[80];
	size_t bytes = ALIGN_UP(so->size, CR_PAGE_SIZE);
	/* huge pages are reserved: better none now than SIGBUS later, mmap(2) */
	int flags = so->page_bytes ? MAP_HUGETLB | huge_flag(so->page_bytes) : MAP_NORESERVE;
	void *p =
	    mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | flags, -1, 0);

	if (p == MAP_FAILED)
		return cr_err_sys(err, "mapping %zu bytes of shared memory", bytes);
	snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", (unsigned long)p,
		 (unsigned long)p + bytes);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	int r = fd < 0 ? cr_err_sys(err, "opening %s", path) : fd;
	munmap(p, bytes);
	return r;
}

static int make_sysv(const struct shared_object *so, struct cr_err *err)
{
	const struct sysv_shm want = {
	    .id = so->ipc_id,
	    .key = so->ipc_key,
	    .uid = so->uid,
	    .gid = so->gid,
	    .mode = so->mode,
	    .size = so->size,
	    .huge = so->page_bytes ? SHM_HUGETLB | huge_flag(so->page_bytes) : 0,
	};

	return sysv_shm_create(&want, err);
}

/* Where it was, so that it is on the same kind of file system. open(2) O_TMPFILE: 3.11, and not
 * with every file system. */
int layout_make_unlinked(const struct shared_object *so, struct cr_err *err)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s", so->name);
	char *slash = strrchr(path, '/');
	slash[slash == path] = '\0';
	_cleanup_fd_ int fd = open(path, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
		snprintf(slash, sizeof(path) - (size_t)(slash - path), "/.cr-XXXXXX");
		fd = mkostemp(path, O_CLOEXEC);
		if (fd >= 0)
			unlink(path);
	}
	if (fd < 0 || fchown(fd, so->uid, so->gid) || fchmod(fd, so->mode))
		return cr_err_sys(err, "making an unlinked file for %s", so->name);
	return take_fd(&fd);
}

static int make_object(const struct shared_object *so, struct cr_err *err)
{
	if (so->kind == OBJ_UNLINKED)
		return layout_make_unlinked(so, err);
	if (so->kind == OBJ_SYSV_SHM)
		return make_sysv(so, err);
	if (so->kind == OBJ_SHARED_ANON)
		return shared_anon_fd(so, err);
	unsigned int huge =
	    so->page_bytes ? MFD_HUGETLB | (unsigned int)huge_flag(so->page_bytes) : 0;
	int fd = memfd_create(so->name ? so->name : "", MFD_CLOEXEC | MFD_ALLOW_SEALING | huge);
	if (fd < 0)
		return cr_err_sys(err, "creating memfd \"%s\"", so->name ? so->name : "");
	return fd;
}

int objects_sync(struct objects *o, const struct tree *t, struct cr_err *err)
{
	for (size_t i = 0; i < t->n_objects; i++) {
		const struct shared_object *so = &t->objects[i];

		if (i < o->list.n && (o->list.v[i].ino != so->ino || o->list.v[i].dev != so->dev))
			return cr_err_set(err, CR_ERR_UNSUPPORTED, EAGAIN,
					  "shared memory object %zu became another one", i);
		if (i >= o->list.n) {
			int fd = make_object(so, err);

			if (fd < 0)
				return fd;
			struct object *e = vec_push(&o->list);
			if (!e) {
				close(fd);
				return cr_err_oom(err);
			}
			e->fd = fd;
			e->exe_fd = -1;
			e->ino = so->ino;
			e->dev = so->dev;
		}
		if ((so->kind == OBJ_MEMFD || so->kind == OBJ_UNLINKED) &&
		    ftruncate(o->list.v[i].fd, (off_t)so->size))
			return cr_err_sys(err, "sizing shared memory object %zu", i);
	}
	return 0;
}

int objects_seal(struct objects *o, const struct tree *t, struct cr_err *err)
{
	for (size_t i = 0; i < t->n_objects; i++)
		if (t->objects[i].kind == OBJ_MEMFD && t->objects[i].seals &&
		    fcntl(o->list.v[i].fd, F_ADD_SEALS, t->objects[i].seals))
			return cr_err_sys(err, "sealing memfd \"%s\"", t->objects[i].name);
	return 0;
}

void objects_done(struct objects *o)
{
	vec_foreach (e, &o->list) {
		close_fdp(&e->fd);
		close_fdp(&e->exe_fd);
	}
	vec_done(&o->list);
}

/* ---- one address space ---- */

static bool same_name(const struct vma *a, const struct vma *b)
{
	return (!a->name || !b->name) ? a->name == b->name : !strcmp(a->name, b->name);
}

static bool same_vma(const struct vma *a, const struct vma *b)
{
	return a->start == b->start && a->end == b->end && a->prot == b->prot &&
	       a->flags == b->flags && vma_same_backing(a, b) && same_name(a, b);
}

bool layout_differs(const struct shell *sh, const struct process *p)
{
	if (sh->n_vmas != p->mm.n_vmas || sh->n_guards != p->mm.n_guards)
		return true;
	if (sh->n_guards && memcmp(sh->guards, p->mm.guards, sh->n_guards * sizeof(*sh->guards)))
		return true;
	for (size_t i = 0; i < sh->n_vmas; i++)
		if (!same_vma(&sh->vmas[i], &p->mm.vmas[i]))
			return true;
	return false;
}

static bool is_ours(const struct vma *v)
{
	return v->kind != VMA_VDSO && v->kind != VMA_VSYSCALL;
}

static int close_backing(struct mapper *m)
{
	if (m->fd >= 0)
		rqueue(m->rt, "close", SYS_close, m->fd);
	m->fd = -1;
	m->fd_of = NULL;
	return 0;
}

static int remote_open(struct mapper *m, const char *path, int flags)
{
	uint64_t va;

	if (rtask_run(m->rt, m->err))
		return -m->err->code;
	rtask_scratch_reset(m->rt);
	if (!rtask_scratch_copy(m->rt, path, strlen(path) + 1, &va))
		return cr_err_set(m->err, CR_ERR_INPUT, ENAMETOOLONG, "path too long: %s", path);
	long fd = rcall_now(m->rt, SYS_openat, AT_FDCWD, va, flags | O_CLOEXEC);
	rtask_scratch_reset(m->rt);
	if (fd < 0)
		return cr_err_set(m->err, CR_ERR_IO, (int)-fd, "opening %s for a mapping: %s", path,
				  strerror((int)-fd));
	return (int)fd;
}

/* A descriptor in the shell for what v maps; the last one is kept, mappings of a file are
 * neighbours. */
int layout_open_backing(struct mapper *m, const struct vma *v)
{
	if (m->fd_of && m->fd_of->kind == v->kind && m->fd_of->file == v->file &&
	    m->fd_of->object == v->object)
		return 0;
	close_backing(m);
	if (v->object != UINT32_MAX) {
		if (rtask_run(m->rt, m->err))
			return -m->err->code;
		long fd = rcall_now(m->rt, SYS_pidfd_getfd, m->pidfd_slot,
				    m->objects->list.v[v->object].fd, 0);
		if (fd < 0)
			return cr_err_set(m->err, CR_ERR_KERNEL, (int)-fd,
					  "fetching a shared memory object: %s",
					  strerror((int)-fd));
		m->fd = (int)fd;
	} else {
		const struct mapped_file *f = &m->t->mapped_files[v->file];
		bool rw = v->kind == VMA_FILE_SHARED && f->writable;
		int fd = remote_open(m, f->path, rw ? O_RDWR : O_RDONLY);

		if (fd < 0)
			return fd;
		m->fd = fd;
	}
	m->fd_of = v;
	return 0;
}

void layout_advise(struct mapper *m, const struct vma *v, uint64_t start, uint64_t end,
		   uint32_t had)
{
	static const struct {
		uint32_t flag;
		int on, off;
	} advice[] = {
	    {VMA_F_DONTFORK, MADV_DONTFORK, MADV_DOFORK},
	    {VMA_F_DONTDUMP, MADV_DONTDUMP, MADV_DODUMP},
	    {VMA_F_MERGEABLE, MADV_MERGEABLE, MADV_UNMERGEABLE},
	    {VMA_F_WIPEONFORK, MADV_WIPEONFORK, MADV_KEEPONFORK},
	    {VMA_F_SEQ, MADV_SEQUENTIAL, MADV_NORMAL},
	    {VMA_F_RAND, MADV_RANDOM, MADV_NORMAL},
	    {VMA_F_HUGEPAGE, MADV_HUGEPAGE, -1},
	    {VMA_F_NOHUGEPAGE, MADV_NOHUGEPAGE, -1},
	};
	/* MADV_NORMAL takes back both advices of its kind: first what is taken back */
	for (size_t i = 0; i < ARRAY_SIZE(advice); i++)
		if ((had & ~v->flags & advice[i].flag) && advice[i].off >= 0)
			rqueue(m->rt, NULL, SYS_madvise, start, end - start, advice[i].off);
	for (size_t i = 0; i < ARRAY_SIZE(advice); i++)
		if (v->flags & ~had & advice[i].flag)
			rqueue(m->rt, "madvise", SYS_madvise, start, end - start, advice[i].on);
	if ((v->flags ^ had) & VMA_F_LOCKED)
		rqueue(m->rt, "mlock", v->flags & VMA_F_LOCKED ? SYS_mlock2 : SYS_munlock, start,
		       end - start, 0);
}

int layout_set_name(struct mapper *m, const struct vma *v)
{
	uint64_t va;
	const char *name = v->name;

	/* "[anon:name]" or "[anon_shmem:name]" is what PR_SET_VMA_ANON_NAME (5.17) has set */
	if (!name || (strncmp(name, "[anon:", 6) && strncmp(name, "[anon_shmem:", 12)))
		return 0;
	const char *start = strchr(name, ':') + 1;
	size_t len = strlen(start);
	if (rtask_scratch_room(m->rt) < 256) {
		if (rtask_run(m->rt, m->err))
			return -m->err->code;
		rtask_scratch_reset(m->rt);
	}
	char *p = rtask_scratch_copy(m->rt, start, len + 1, &va);
	if (!p)
		return cr_err_set(m->err, CR_ERR_BUG, ENOSPC, "no scratch memory for a name");
	p[len - 1] = 0; /* the closing bracket */
	rqueue(m->rt, "prctl(PR_SET_VMA_ANON_NAME)", SYS_prctl, PR_SET_VMA, PR_SET_VMA_ANON_NAME,
	       v->start, v->end - v->start, va);
	return 0;
}

/* As a whole, over what may be there, shmat(2): only so does the segment know of it. */
static void attach_sysv(struct mapper *m, const struct vma *v)
{
	const struct shared_object *so = &m->t->objects[v->object];
	int flags = SHM_REMAP | (v->prot & PROT_WRITE ? 0 : SHM_RDONLY) |
		    (v->prot & PROT_EXEC ? SHM_EXEC : 0);

	rqueue(m->rt, "shmat", SYS_shmat, so->ipc_id, v->start, flags);
	if (!(v->prot & PROT_READ))
		rqueue(m->rt, "mprotect", SYS_mprotect, v->start, v->end - v->start, v->prot);
	layout_advise(m, v, v->start, v->end, 0);
}

/* Map [start, end) of v anew. */
int layout_map_range(struct mapper *m, const struct vma *v, uint64_t start, uint64_t end)
{
	int flags = MAP_FIXED, fd = -1;
	uint64_t offset = 0;

	m->pieces++;
	if (v->object != UINT32_MAX && m->t->objects[v->object].kind == OBJ_SYSV_SHM) {
		if (end == v->end)
			attach_sysv(m, v);
		return 0;
	}

	if (v->kind == VMA_ANON) {
		flags |= MAP_PRIVATE | MAP_ANONYMOUS;
		if (v->flags & VMA_F_GROWSDOWN)
			flags |= MAP_GROWSDOWN;
		if (v->page_bytes)
			flags |= MAP_HUGETLB | huge_flag(v->page_bytes);
	} else {
		int r = layout_open_backing(m, v);

		if (r)
			return r;
		flags |= v->kind == VMA_FILE_PRIVATE ? MAP_PRIVATE : MAP_SHARED;
		fd = m->fd;
		offset = v->offset + (start - v->start);
	}
	if (v->flags & VMA_F_NORESERVE)
		flags |= MAP_NORESERVE;
	rqueue(m->rt, "mmap", SYS_mmap, start, end - start, v->prot, flags, fd, offset);
	layout_advise(m, v, start, end, 0);
	return 0;
}

/* The part [start, end) of v that was mapped as old: attributes only. */
static void keep_range(struct mapper *m, const struct vma *v, const struct vma *old, uint64_t start,
		       uint64_t end)
{
	m->pieces++;
	if (v->prot != old->prot)
		rqueue(m->rt, "mprotect", SYS_mprotect, start, end - start, v->prot);
	layout_advise(m, v, start, end, old->flags);
}

static int sync_vma(struct mapper *m, const struct shell *sh, size_t *k, const struct vma *v)
{
	uint64_t at = v->start;
	int r = 0;

	while (*k < sh->n_vmas && sh->vmas[*k].end <= at)
		(*k)++;
	for (size_t i = *k; at < v->end && !r; i++) {
		const struct vma *old = i < sh->n_vmas ? &sh->vmas[i] : NULL;

		if (!old || old->start >= v->end)
			return layout_map_range(m, v, at, v->end);
		if (!is_ours(old) || !vma_same_backing(old, v)) {
			if (old->end >= v->end)
				return layout_map_range(m, v, at, v->end);
			r = layout_map_range(m, v, at, old->end);
			at = old->end;
			continue;
		}
		if (old->start > at)
			r = layout_map_range(m, v, at, old->start);
		if (old->start > at)
			at = old->start;
		uint64_t end = old->end < v->end ? old->end : v->end;
		keep_range(m, v, old, at, end);
		at = end;
	}
	return r;
}

/* Private mappings that were made of several pieces are remembered: perhaps they are still several.
 */
static int sync_mapping(struct mapper *m, const struct shell *sh, size_t *k, const struct vma *v)
{
	m->pieces = 0;
	int r = sync_vma(m, sh, k, v);
	if (r || m->pieces < 2 || v->page_bytes ||
	    (v->kind != VMA_ANON && v->kind != VMA_FILE_PRIVATE))
		return r;
	const struct vma **slot = vec_push(&m->several);
	if (!slot)
		return cr_err_oom(m->err);
	*slot = v;
	return 0;
}

static int sync_mappings(struct mapper *m, const struct shell *sh, const struct mm *mm)
{
	size_t k = 0, run;
	int r = 0;

	for (size_t i = 0; i < mm->n_vmas && !r; i += run) {
		run = layout_run(sh, mm, i);
		if (run > 1) {
			r = layout_map_run(m, sh, &mm->vmas[i], run);
			continue;
		}
		run = 1;
		if (is_ours(&mm->vmas[i]))
			r = sync_mapping(m, sh, &k, &mm->vmas[i]);
	}
	return r;
}

/* Unmap what no new mapping covers. */
static void unmap_gone(struct mapper *m, const struct shell *sh, const struct mm *mm)
{
	size_t k = 0;

	for (size_t i = 0; i < sh->n_vmas; i++) {
		const struct vma *old = &sh->vmas[i];
		uint64_t at = old->start;

		if (!is_ours(old))
			continue;
		while (k < mm->n_vmas && mm->vmas[k].end <= at)
			k++;
		for (size_t j = k; at < old->end; j++) {
			uint64_t next = j < mm->n_vmas ? mm->vmas[j].start : UINT64_MAX;
			uint64_t end = next < old->end ? next : old->end;

			if (end > at)
				rqueue(m->rt, "munmap", SYS_munmap, at, end - at);
			if (next >= old->end)
				break;
			at = mm->vmas[j].end > at ? mm->vmas[j].end : at;
		}
	}
}

static void sync_guards(struct mapper *m, const struct shell *sh, const struct mm *mm)
{
	for (size_t i = 0; i < sh->n_guards; i++) /* the mapping may be gone: then so are they */
		rqueue(m->rt, NULL, SYS_madvise, sh->guards[i].start,
		       sh->guards[i].end - sh->guards[i].start, MADV_GUARD_REMOVE);
	for (size_t i = 0; i < mm->n_guards; i++)
		rqueue(m->rt, "madvise(MADV_GUARD_INSTALL)", SYS_madvise, mm->guards[i].start,
		       mm->guards[i].end - mm->guards[i].start, MADV_GUARD_INSTALL);
}

static bool guards_differ(const struct shell *sh, const struct mm *mm)
{
	return sh->n_guards != mm->n_guards ||
	       (mm->n_guards && memcmp(sh->guards, mm->guards, mm->n_guards * sizeof(*mm->guards)));
}

int layout_adopt(struct shell *sh, const struct process *p, struct cr_err *err)
{
	const struct mm *mm = &p->mm;
	struct vma *v = calloc(mm->n_vmas ? mm->n_vmas : 1, sizeof(*v));
	struct addr_range *g = calloc(mm->n_guards ? mm->n_guards : 1, sizeof(*g));

	if (!v || !g) {
		free(v);
		free(g);
		return cr_err_oom(err);
	}
	memcpy(v, mm->vmas, mm->n_vmas * sizeof(*v));
	if (mm->n_guards)
		memcpy(g, mm->guards, mm->n_guards * sizeof(*g));
	free(sh->vmas);
	free(sh->guards);
	sh->vmas = v;
	sh->n_vmas = mm->n_vmas;
	sh->guards = g;
	sh->n_guards = mm->n_guards;
	return 0;
}

int layout_sync(struct shell *sh, const struct tree *t, const struct process *p,
		const struct objects *o, struct cr_err *err)
{
	struct mapper m = {.rt = shell_leader(sh),
			   .t = t,
			   .objects = o,
			   .fd = -1,
			   .err = err,
			   .pidfd_slot = sh->pidfd_slot};
	size_t named = 0;

	/* unmapping first: a mapping may have moved to where another was */
	unmap_gone(&m, sh, &p->mm);
	int r = sync_mappings(&m, sh, &p->mm);
	for (size_t i = 0; i < p->mm.n_vmas && !r; i++) {
		const struct vma *v = &p->mm.vmas[i];

		while (named < sh->n_vmas && sh->vmas[named].end <= v->start)
			named++;
		if (named >= sh->n_vmas || !same_vma(&sh->vmas[named], v))
			r = layout_set_name(&m, v);
	}
	if (!r && guards_differ(sh, &p->mm))
		sync_guards(&m, sh, &p->mm);
	if (!r)
		r = rtask_run(m.rt, err);
	if (!r)
		r = layout_join(&m, sh, &p->mm);
	if (!r)
		close_backing(&m);
	if (!r)
		r = rtask_run(m.rt, err);
	vec_done(&m.several);
	rtask_scratch_reset(m.rt);
	if (r) {
		err->pid = sh->pid;
		return cr_err_ctx(err, "mirroring the memory layout of %d", sh->pid);
	}
	return layout_adopt(sh, p, err);
}

int layout_unmap_object(struct shell *sh, uint32_t object, bool *ret_any, struct cr_err *err)
{
	for (size_t i = 0; i < sh->n_vmas; i++) {
		struct vma *v = &sh->vmas[i];

		if (v->object != object)
			continue;
		rqueue(shell_leader(sh), "munmap", SYS_munmap, v->start, v->end - v->start);
		/* no mapping compares equal to this: it is made anew */
		v->kind = VMA_VSYSCALL;
		*ret_any = true;
	}
	return rtask_run(shell_leader(sh), err);
}

/* ---- PR_SET_MM_MAP ---- */

static struct prctl_mm_map mm_fields(const struct mm *mm, uint64_t auxv_va, uint32_t exe_fd)
{
	return (struct prctl_mm_map){
	    .start_code = mm->start_code,
	    .end_code = mm->end_code,
	    .start_data = mm->start_data,
	    .end_data = mm->end_data,
	    .start_brk = mm->start_brk,
	    .brk = mm->brk,
	    .start_stack = mm->start_stack,
	    .arg_start = mm->arg_start,
	    .arg_end = mm->arg_end,
	    .env_start = mm->env_start,
	    .env_end = mm->env_end,
	    .auxv = (void *)auxv_va,
	    .auxv_size = auxv_va ? (uint32_t)mm->auxv_len : 0,
	    .exe_fd = exe_fd,
	};
}

/* prctl(2) PR_SET_MM_MAP, 3.18; needs no CAP_SYS_RESOURCE. exe_fd is EBUSY once the current exe is
 * mapped. */
static int set_mm(struct rtask *rt, const struct mm *mm, int exe_fd, struct cr_err *err)
{
	uint64_t auxv_va = 0, map_va;

	rtask_scratch_reset(rt);
	if (mm->auxv_len && !rtask_scratch_copy(rt, mm->auxv, mm->auxv_len, &auxv_va))
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "auxiliary vector of %zu bytes",
				  mm->auxv_len);
	struct prctl_mm_map map = mm_fields(mm, auxv_va, (uint32_t)exe_fd);
	if (!rtask_scratch_copy(rt, &map, sizeof(map), &map_va))
		return cr_err_set(err, CR_ERR_BUG, ENOSPC, "no scratch memory");
	rqueue(rt, "prctl(PR_SET_MM_MAP)", SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, map_va, sizeof(map),
	       0);
	int r = rtask_run(rt, err);
	rtask_scratch_reset(rt);
	return r;
}

int layout_set_mm_fields(struct shell *sh, const struct process *p, struct cr_err *err)
{
	return set_mm(shell_leader(sh), &p->mm, -1, err);
}

int layout_set_exe(struct shell *sh, const struct process *p, int exe_fd, struct cr_err *err)
{
	struct rtask *rt = shell_leader(sh);
	long fd = rcall_now(rt, SYS_pidfd_getfd, sh->pidfd_slot, exe_fd, 0);

	if (fd < 0)
		return cr_err_set(err, CR_ERR_KERNEL, (int)-fd,
				  "fetching the executable of process %d: %s", sh->pid,
				  strerror((int)-fd));
	int r = set_mm(rt, &p->mm, (int)fd, err);
	rqueue(rt, "close", SYS_close, fd);
	if (!r)
		r = rtask_run(rt, err);
	return r ? cr_err_ctx(err, "giving process %d its executable", sh->pid) : 0;
}

static const struct vma *vdso_start(const struct mm *mm)
{
	for (size_t i = 0; i < mm->n_vmas; i++)
		if (mm->vmas[i].kind == VMA_VDSO)
			return &mm->vmas[i]; /* data pages come first */
	return NULL;
}

int layout_init(struct shells *s, struct shell *sh, const struct tree *t, const struct process *p,
		struct cr_err *err)
{
	struct mapper m = {
	    .rt = shell_leader(sh), .t = t, .fd = -1, .err = err, .pidfd_slot = sh->pidfd_slot};
	const struct vma *vdso = vdso_start(&p->mm);
	int r;

	/* a child forked from a shell that had its mappings already: away with them */
	rqueue(m.rt, "munmap", SYS_munmap, 0, s->hole_start);
	rqueue(m.rt, "munmap", SYS_munmap, s->hole_end, 0x7ffffffff000ull - s->hole_end);
	if (vdso)
		rqueue(m.rt, "arch_prctl(ARCH_MAP_VDSO_64)", SYS_arch_prctl, ARCH_MAP_VDSO_64,
		       vdso->start);
	r = rtask_run(m.rt, err);
	int fd = -1;
	if (!r && !p->mm.exe_object) /* else later, layout_set_exe() */
		fd = remote_open(&m, t->mapped_files[p->mm.exe_file].path, O_RDONLY);
	if (!r && fd < 0 && !p->mm.exe_object)
		r = fd;
	if (!r)
		r = set_mm(m.rt, &p->mm, fd, err);
	if (fd >= 0) {
		rqueue(m.rt, "close", SYS_close, fd);
		if (!r)
			r = rtask_run(m.rt, err);
	}
	return r ? cr_err_ctx(err, "preparing the address space of %d", sh->pid) : 0;
}
