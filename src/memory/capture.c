#include "memory/capture_private.h"

#include "resource/carried.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>
#include "kernel/build_id.h"
#include "kernel/procfs.h"
#include "kernel/sysv_shm.h"
#include "kernel/vmaview.h"
#include "memory/shm_name.h"
#include "model/layout.h"
#include "resource/inside.h"

enum {
	TORN_READS = 20,
	/* What smaps may cost in all where no mapping has changed: at the stop, beside the running
	 * tasks; in pages that are in memory (about 60 ns each) and mappings (about 2 us each). */
	FLAGS_COST_EXACT = (32 << 20) / CR_PAGE_SIZE,
	FLAGS_COST_AHEAD = (256 << 20) / CR_PAGE_SIZE,
	FLAGS_COST_VMA = 32,
};

/* ---- arrays of the tree that grow ---- */

void *capture_grow(struct arena *a, const void *old, size_t n, size_t elem)
{
	/* doubling, by copies: the arena frees all at once */
	if (n && (n & (n - 1)))
		return (void *)old;
	void *p = arena_alloc(a, elem * (n ? 2 * n : 1));
	if (p && n)
		memcpy(p, old, n * elem);
	return p;
}

/* Indices stay valid over captures: the new tree starts with what the old one had. */
static int inherit(struct capture *c, struct cr_err *err)
{
	struct tree *t = c->tree;

	if (!c->prev)
		return 0;
	for (size_t i = 0; i < c->prev->n_mapped_files; i++) {
		t->mapped_files =
		    capture_grow(t->arena, t->mapped_files, i, sizeof(*t->mapped_files));
		if (!t->mapped_files)
			return cr_err_oom(err);
		t->mapped_files[i] = c->prev->mapped_files[i];
		t->mapped_files[i].path = arena_strdup(t->arena, c->prev->mapped_files[i].path);
		t->n_mapped_files++;
	}
	for (size_t i = 0; i < c->prev->n_objects; i++) {
		t->objects = capture_grow(t->arena, t->objects, i, sizeof(*t->objects));
		if (!t->objects)
			return cr_err_oom(err);
		t->objects[i] = c->prev->objects[i];
		t->objects[i].name = arena_strdup(t->arena, c->prev->objects[i].name);
		t->n_objects++;
	}
	return 0;
}

/* ---- mapped files ---- */

/* The entry of map_files says by its mode how the file was opened, proc(5). */
static bool opened_for_writing(pid_t pid, const struct proc_map *m)
{
	char path[96];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", pid,
		 (unsigned long long)m->start, (unsigned long long)m->end);
	return !lstat(path, &st) && (st.st_mode & S_IWUSR);
}

int capture_add_file(struct capture *c, const char *path, uint64_t dev, uint64_t ino, uint32_t *ret,
		     struct cr_err *err)
{
	struct tree *t = c->tree;
	struct stat st;

	for (size_t i = 0; i < t->n_mapped_files; i++) {
		/* ino 0: by its path alone, as executables are (their dev stays 0) */
		if ((!ino || t->mapped_files[i].ino == ino) && t->mapped_files[i].dev == dev &&
		    !strcmp(t->mapped_files[i].path, path)) {
			*ret = (uint32_t)i;
			return 0;
		}
	}
	/* the same file needs to be what the path leads to now */
	if (stat(path, &st) || (ino && st.st_ino != ino) || !S_ISREG(st.st_mode))
		return -ENOENT;
	t->mapped_files =
	    capture_grow(t->arena, t->mapped_files, t->n_mapped_files, sizeof(*t->mapped_files));
	char *copy = arena_strdup(t->arena, path);
	if (!t->mapped_files || !copy)
		return cr_err_oom(err);
	*ret = (uint32_t)t->n_mapped_files;
	struct mapped_file *f = &t->mapped_files[t->n_mapped_files++];
	*f = (struct mapped_file){
	    .path = copy,
	    .size = (uint64_t)st.st_size,
	    .ino = ino ? ino : st.st_ino,
	    .dev = dev,
	    .st_dev = st.st_dev,
	    .mtime_ns = capture_mtime_ns(&st),
	};
	/* who opens memory is watched (kernel/openwatch.h) */
	if (!carried_is_shm(path))
		f->build_id_len = (uint8_t)build_id_read(path, f->build_id);
	return 0;
}

/* ---- mappings ---- */

static void map_label(char *buf, size_t n, const struct proc_map *m)
{
	snprintf(buf, n, "mapping %llx-%llx (%.120s)", (unsigned long long)m->start,
		 (unsigned long long)m->end, m->name);
}

static bool is_special_anon(const char *name)
{
	return !*name || !strcmp(name, "[heap]") || starts_with(name, "[stack") ||
	       starts_with(name, "[anon:");
}

/* What kind it is, or why it cannot move. */
static const char *classify(const struct proc_map *m, struct vma *v)
{
	const char *n = m->name;

	if (!strcmp(n, "[vsyscall]")) {
		v->kind = VMA_VSYSCALL;
	} else if (!strcmp(n, "[vdso]") || starts_with(n, "[vvar")) {
		v->kind = VMA_VDSO;
	} else if (m->shared && (starts_with(n, "/memfd:") || starts_with(n, "/dev/zero" DELETED) ||
				 map_is_sysv(m) || starts_with(n, "[anon_shmem:") ||
				 starts_with(n, "/anon_hugepage"))) {
		v->kind = VMA_SHARED_OBJ;
	} else if (!m->shared && !m->ino && is_special_anon(n)) {
		v->kind = VMA_ANON;
	} else if (starts_with(n, "/memfd:")) {
		v->kind = VMA_FILE_PRIVATE; /* of an object: its own pages over the object's */
	} else if (starts_with(n, "/anon_hugepage")) {
		v->kind = VMA_ANON;
		return huge_fill(m, v);
	} else if (starts_with(n, "/[aio]")) {
		return "kernel AIO context: not supported; io_destroy it first";
	} else if (starts_with(n, "anon_inode:") || *n == '[' || starts_with(n, "socket:")) {
		return "a mapping of this kind is not supported";
	} else if (map_is_unlinked(m)) {
		v->kind = m->shared ? VMA_SHARED_OBJ : VMA_FILE_PRIVATE;
	} else if (*n == '/') {
		v->kind = m->shared ? VMA_FILE_SHARED : VMA_FILE_PRIVATE;
	} else {
		return "unknown mapping: not supported";
	}
	return NULL;
}

static uint64_t whole_pages(const struct shared_object *so)
{
	return ALIGN_UP(so->size, so->page_bytes ? so->page_bytes : CR_PAGE_SIZE);
}

/* 1: left out (refused). */
static int fill_vma(struct capture *c, struct object_fds *o, pid_t pid, const struct proc_map *m,
		    struct vma *v, struct cr_err *err)
{
	char label[200];
	int r = 0;

	*v = (struct vma){.start = m->start,
			  .end = m->end,
			  .offset = m->offset,
			  .prot = m->prot,
			  .flags = m->vmflags,
			  .ino = m->ino,
			  .dev = m->dev,
			  .file = UINT32_MAX,
			  .object = UINT32_MAX};
	map_label(label, sizeof(label), m);
	const char *why = classify(m, v);
	if (why) {
		refuse(c->refused, pid, label, "%s", why);
		return 1;
	}
	/* the kernel seals its own mappings, and gives them to the destination's tasks as it does
	 * here */
	if (m->special && v->kind != VMA_VDSO && v->kind != VMA_VSYSCALL) {
		refuse(c->refused, pid, label, "%s: not supported", m->special);
		return 1;
	}
	/* What is missing would be taken for zeros. Who has fetched the last page says so first and
	 * lets go of the mappings then. */
	if (m->fetched) {
		refuse(c->refused, pid, label,
		       "memory of which pages are still to be fetched (after post-copy or a lazy "
		       "restore): not supported; try again once all are there");
		c->refused->passing = true;
		return 1;
	}
	if (m->pkey) {
		refuse(c->refused, pid, label, "has memory protection key %u: not supported",
		       m->pkey);
		return 1;
	}
	if (*m->name == '[') {
		v->name = arena_strdup(c->tree->arena, m->name);
		if (!v->name)
			return cr_err_oom(err);
	}
	if (map_is_sysv(m))
		v->ino |= SYSV_INO;
	if (map_is_of_object(m, v))
		r = capture_add_object(c, o, pid, m, &v->object, err);
	if (!r && map_is_sysv(m) &&
	    (v->offset || v->end - v->start != whole_pages(&c->tree->objects[v->object]))) {
		refuse(c->refused, pid, label,
		       "System V shared memory of which only a part is mapped, or with different "
		       "protections: not supported");
		return 1;
	}
	if (!r && v->kind == VMA_FILE_PRIVATE && v->object != UINT32_MAX &&
	    c->tree->objects[v->object].page_bytes) {
		refuse(c->refused, pid, label,
		       "a private mapping of a file of huge pages: not supported");
		return 1;
	}
	if (map_is_of_object(m, v))
		return r;
	if (v->kind == VMA_FILE_PRIVATE || v->kind == VMA_FILE_SHARED) {
		r = capture_add_file(c, m->name, m->dev, m->ino, &v->file, err);
		if (r == -ENOENT) {
			refuse(c->refused, pid, label,
			       "the path leads to another file now: not supported");
			return 1;
		}
		if (!r && m->shared && opened_for_writing(pid, m))
			c->tree->mapped_files[v->file].writable = true;
	}
	return r;
}

/* VmFlags are only in smaps, which walks the pages: read where the mappings have changed. The
 * digest is of this very reading: a task that runs may have changed them since maps was read, and
 * change them back. A torn reading of such a task is read again. */
static int read_maps(const struct capture *c, struct process *p, uint64_t flags,
		     struct proc_maps *maps, struct cr_err *err)
{
	for (int i = 0;; i++) {
		_cleanup_free_ char *smaps = NULL;
		struct cr_err torn = {0};
		ssize_t n = proc_read(p->pid, "smaps", &smaps, err);

		if (n < 0)
			return (int)n;
		int r = proc_smaps_parse(smaps, maps, &torn);
		if (!r)
			p->mm.layout_digest =
			    XXH3_64bits_withSeed(smaps, proc_smaps_to_maps(smaps), flags);
		if (r == -EBADMSG && !c->exact && i < TORN_READS)
			continue;
		if (r == -EBADMSG && !c->exact) /* it gets another look, or the stop */
			return cr_err_set(err, CR_ERR_KERNEL, EAGAIN, "%s", torn.msg);
		if (r)
			*err = torn;
		return r;
	}
}

static int fill_vmas(struct capture *c, struct object_fds *o, struct process *p, uint64_t flags,
		     struct cr_err *err)
{
	struct proc_maps maps = {0};
	int r = read_maps(c, p, flags, &maps, err);

	if (r)
		return r;
	shm_names_find(&maps);
	p->mm.vmas = arena_array(c->tree->arena, struct vma, maps.list.n + 1);
	if (!p->mm.vmas)
		r = cr_err_oom(err);
	for (size_t i = 0; i < maps.list.n && r >= 0; i++) {
		r = fill_vma(c, o, p->pid, &maps.list.v[i], &p->mm.vmas[p->mm.n_vmas], err);
		if (r == 0)
			p->mm.n_vmas++;
	}
	proc_maps_done(&maps);
	return r < 0 ? r : 0;
}

/* Nothing has changed since: the new tree's copy of what the old one says. */
static int copy_vmas(struct capture *c, struct process *p, const struct mm *old, struct cr_err *err)
{
	p->mm.vmas = arena_memdup(c->tree->arena, old->vmas, old->n_vmas * sizeof(*old->vmas));
	p->mm.n_vmas = old->n_vmas;
	if (!p->mm.vmas)
		return cr_err_oom(err);
	for (size_t i = 0; i < p->mm.n_vmas; i++) {
		p->mm.vmas[i].name = arena_strdup(c->tree->arena, old->vmas[i].name);
		if (old->vmas[i].name && !p->mm.vmas[i].name)
			return cr_err_oom(err);
	}
	return 0;
}

/* An madvise(2) or mlock(2) of a whole mapping changes no line of maps. Where the kernel cannot be
 * asked whether there was one: smaps shows it, but walks the page tables, 15 ms for a GiB. It is
 * read where that is cheap. */
static int refresh_flags(struct capture *c, struct process *p, uint64_t rss, struct cr_err *err)
{
	struct proc_maps maps = {0};
	uint64_t before = p->mm.layout_digest;
	size_t k = 0;

	c->flags_cost += rss + p->mm.n_vmas * FLAGS_COST_VMA;
	if (c->flags_cost > (c->exact ? FLAGS_COST_EXACT : FLAGS_COST_AHEAD))
		return 0;
	int r = read_maps(c, p, 0, &maps, err);
	if (r)
		return r;
	for (size_t i = 0; i < maps.list.n && p->mm.layout_digest == before; i++) {
		while (k < p->mm.n_vmas && p->mm.vmas[k].start < maps.list.v[i].start)
			k++;
		if (k < p->mm.n_vmas && p->mm.vmas[k].start == maps.list.v[i].start)
			p->mm.vmas[k].flags = maps.list.v[i].vmflags;
	}
	proc_maps_done(&maps);
	p->mm.layout_digest = before; /* what has changed since is for the next look */
	return 0;
}

/* Its address space is another one then: nothing tracks the writes to it. What the kernel put on
 * the stack at execve (addresses of vdso, stack and program), or the program, tells. */
static int check_exec(const struct process *p, const struct mm *before, struct cr_err *err)
{
	if (!before ||
	    (before->exe_file == p->mm.exe_file && before->exe_object == p->mm.exe_object &&
	     before->auxv_len == p->mm.auxv_len &&
	     !memcmp(before->auxv, p->mm.auxv, p->mm.auxv_len)))
		return 0;
	return cr_err_set(
	    err, CR_ERR_UNSUPPORTED, ESTALE,
	    "process %d has executed another program since the migration began; try again", p->pid);
}

static int fill_fields(struct capture *c, struct object_fds *o, struct process *p,
		       const struct proc_stat *st, const struct mm *old, const struct mm *before,
		       struct cr_err *err)
{
	_cleanup_free_ char *auxv = NULL, *exe = NULL;

	p->mm.start_code = st->start_code;
	p->mm.end_code = st->end_code;
	p->mm.start_data = st->start_data;
	p->mm.end_data = st->end_data;
	p->mm.start_brk = st->start_brk;
	p->mm.start_stack = st->start_stack;
	p->mm.arg_start = st->arg_start;
	p->mm.arg_end = st->arg_end;
	p->mm.env_start = st->env_start;
	p->mm.env_end = st->env_end;
	p->mm.brk =
	    st->start_brk; /* as near as it shows from outside; the task itself tells at a stop */
	for (size_t i = 0; i < p->mm.n_vmas; i++)
		if (p->mm.vmas[i].name && !strcmp(p->mm.vmas[i].name, "[heap]"))
			p->mm.brk = p->mm.vmas[i].end;
	if (old &&
	    c->exact) { /* neither changes but by exec or prctl, which change the mappings too */
		p->mm.auxv = arena_memdup(c->tree->arena, old->auxv, old->auxv_len);
		p->mm.auxv_len = old->auxv_len;
		p->mm.exe_file = old->exe_file;
		p->mm.exe_object = old->exe_object;
		return p->mm.auxv ? 0 : cr_err_oom(err);
	}
	ssize_t n = proc_read(p->pid, "auxv", &auxv, err);
	if (n < 0)
		return (int)n;
	p->mm.auxv = arena_memdup(c->tree->arena, auxv, (size_t)n);
	p->mm.auxv_len = (size_t)n;
	if (!p->mm.auxv)
		return cr_err_oom(err);
	int r = proc_readlink(p->pid, "exe", &exe, err);
	if (r == -ENOENT && !c->exact) /* its memory is gone, it is about to be a zombie */
		return cr_err_set(err, CR_ERR_KERNEL, EAGAIN, "process %d is ending", p->pid);
	if (r < 0)
		return r;
	r = capture_add_file(c, exe, 0, 0, &p->mm.exe_file, err);
	if (r == -ENOENT)
		r = exe_capture(c, o, p, exe, err);
	return r ? r : check_exec(p, before, err);
}

/* A number that changes with the flags of any mapping; 0 if that is not to be had. */
static uint64_t look_at_flags(const struct capture *c, pid_t pid)
{
	struct cr_err ignored = {0};
	uint64_t digest = 0;

	return c->vmas && !vmaview_digest(c->vmas, pid, &digest, &ignored) ? digest : 0;
}

/* An execve(2) while it was looked at leaves half of one program and half of another. */
static int check_steady(const struct process *p, struct cr_err *err)
{
	struct proc_stat now;
	int r = proc_stat_read(p->pid, p->pid, &now, err);

	if (r || (now.start_stack == p->mm.start_stack && now.start_code == p->mm.start_code))
		return r;
	return cr_err_set(err, CR_ERR_KERNEL, EAGAIN, "process %d is in execve", p->pid);
}

static int capture_mm(struct capture *c, struct object_fds *o, size_t i, struct cr_err *err)
{
	struct process *p = c->procs[i].p;
	const struct process *prev = c->procs[i].prev;
	const struct mm *old = prev && !prev->zombie ? &prev->mm : NULL;
	struct proc_stat st;
	_cleanup_free_ char *text = NULL;

	/* before the mappings: what is set from here on shows in the next look */
	uint64_t flags = look_at_flags(c, p->pid);
	ssize_t n = proc_read(p->pid, "maps", &text, err);
	if (n < 0)
		return (int)n;
	p->mm.layout_digest = XXH3_64bits_withSeed(text, (size_t)n, flags);
	bool same = old && old->layout_digest && old->layout_digest == p->mm.layout_digest;
	int r = same ? copy_vmas(c, p, old, err) : fill_vmas(c, o, p, flags, err);
	/* what was read may be of a moment in between, and what it was before come back later */
	if (!r && !same && !c->exact && flags && look_at_flags(c, p->pid) != flags)
		p->mm.layout_digest = 0;
	if (!r)
		r = proc_stat_read(p->pid, p->pid, &st, err);
	if (!r && same && !flags)
		r = refresh_flags(c, p, st.rss, err);
	if (!r)
		r = fill_fields(c, o, p, &st, same ? old : NULL, old, err);
	if (!r && !same && !c->exact)
		r = check_steady(p, err);
	if (old) { /* flags that attributes tell */
		p->mm.thp_disable = old->thp_disable;
		p->mm.dumpable = old->dumpable;
	}
	return r;
}

static uint64_t count_mappings(const struct tree *t, uint32_t object)
{
	uint64_t n = 0;

	for (size_t k = 0; k < t->n_procs; k++)
		for (size_t v = 0; v < t->procs[k].mm.n_vmas; v++)
			n += t->procs[k].mm.vmas[v].object == object;
	return n;
}

/* Who shares a segment must move with it. At the stop their number tells. Ahead, children come and
 * go, which have what their parent has: there it takes somebody who is seen to have it. */
static void refuse_attached_outside(struct capture *c, uint32_t object)
{
	const struct tree *t = c->tree;
	struct sysv_shm s;
	struct cr_err ignored = {0};
	char label[64];
	uint64_t inside = count_mappings(t, object);

	if (sysv_shm_stat(t->objects[object].ipc_id, &s, &ignored) || s.attached <= inside)
		return;
	snprintf(label, sizeof(label), "System V shared memory %d", s.id);
	if (c->exact) {
		refuse(c->refused, t->root_pid, label,
		       "is attached %llu times, %llu of them in the tree: not supported; "
		       "move the others as well",
		       (unsigned long long)s.attached, (unsigned long long)inside);
		return;
	}
	pid_t pid = outside_holder(t, false, "/SYSV", 0, (uint64_t)s.id);
	if (pid > 0)
		refuse(c->refused, t->root_pid, label,
		       "is attached by process %d, which is outside the tree: not supported; "
		       "move it as well",
		       pid);
}

static void refuse_shared_outside(struct capture *c)
{
	/* ahead it is asked when it is first seen */
	for (uint32_t i = 0; i < c->tree->n_objects; i++)
		if (c->tree->objects[i].kind == OBJ_SYSV_SHM &&
		    (c->exact || !c->prev || i >= c->prev->n_objects))
			refuse_attached_outside(c, i);
}

int memory_capture(struct capture *c, struct object_fds *o, struct cr_err *err)
{
	int r = inherit(c, err);

	/* what a capture that was given up had added has no place in this tree */
	while (o->list.n > c->tree->n_objects)
		close(o->list.v[--o->list.n]);

	for (size_t i = 0; i < c->tree->n_procs && !r; i++) {
		if (c->tree->procs[i].zombie)
			continue;
		r = capture_mm(c, o, i, err);
		if (r && !err->pid)
			err->pid = c->tree->procs[i].pid;
	}
	if (!r)
		refuse_shared_outside(c);
	return r;
}
