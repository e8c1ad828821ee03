/* What is one mapping at the source has to be one here: mremap(2) takes no more than one, and
 * answers EFAULT.
 *
 * The kernel joins two private mappings that look alike only if their pages belong to one anon_vma,
 * or one of them has never had pages of its own (KERNEL: is_mergeable_anon_vma, mm/vma.c). The
 * pieces into which mprotect(2) cuts a mapping share theirs, and so they can be one again. Mapped
 * one by one they never could, once there are pages in them. So what lies side by side is mapped in
 * one, gets its anon_vma, and is cut then. What has been several mappings here before, and is one
 * now, is mapped anew, and its pages are copied. */
#include "dest/layout_private.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "kernel/pagemap.h"
#include "kernel/procfs.h"
#include "model/layout.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102 /* 6.13 */
#endif

enum { COPY_BYTES = 256 * 1024 };

static bool is_private(const struct vma *v)
{
	return v->kind == VMA_ANON || v->kind == VMA_FILE_PRIVATE;
}

/* ---- runs ---- */

static bool continues(const struct vma *a, const struct vma *b)
{
	return a->end == b->start && vma_same_backing(a, b) && a->file == b->file &&
	       a->object == b->object;
}

size_t layout_run(const struct shell *sh, const struct mm *mm, size_t i)
{
	const struct vma *v = &mm->vmas[i];
	size_t k = layout_lower(sh->vmas, sh->n_vmas, v->start), n = 0;

	/* huge pages never join: VM_DONTEXPAND */
	if (!is_private(v) || v->page_bytes || v->flags & VMA_F_GROWSDOWN)
		return 0;
	while (i + n < mm->n_vmas && (!n || continues(&v[n - 1], &v[n])) &&
	       (k == sh->n_vmas || sh->vmas[k].start >= v[n].end))
		n++;
	return n;
}

static int open_mem(const struct shell *sh, struct cr_err *err)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/mem", sh->pid);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	return fd < 0 ? cr_err_sys(err, "opening %s", path) : fd;
}

int layout_map_run(struct mapper *m, const struct shell *sh, const struct vma *v, size_t n)
{
	int flags = MAP_FIXED | MAP_PRIVATE, fd = -1;
	uint64_t start = v->start, bytes = v[n - 1].end - start;
	int r = 0;

	if (v->kind == VMA_FILE_PRIVATE)
		r = layout_open_backing(m, v);
	if (r)
		return r;
	if (v->kind == VMA_FILE_PRIVATE)
		fd = m->fd;
	else
		flags |= MAP_ANONYMOUS;
	if (v->flags & VMA_F_NORESERVE)
		flags |= MAP_NORESERVE;
	/* PROT_NONE: the kernel counts what is not writable towards no limit */
	rqueue(m->rt, "mmap", SYS_mmap, start, bytes, PROT_NONE, flags, fd, fd < 0 ? 0 : v->offset);
	r = rtask_run(m->rt, m->err);
	_cleanup_fd_ int mem = r ? -1 : open_mem(sh, m->err);
	if (r || mem < 0)
		return r ? r : mem;
	/* A page is what makes an anon_vma, which stays. Beyond the end of a file there is none. */
	if (pwrite(mem, "", 1, (off_t)start) < 0 && errno != EIO)
		return cr_err_sys(m->err, "writing to shell %d", sh->pid);
	/* all of it: what came may have been a huge page */
	rqueue(m->rt, "madvise", SYS_madvise, start, bytes, MADV_DONTNEED);
	for (size_t i = 0; i < n; i++) {
		if (v[i].prot != PROT_NONE)
			rqueue(m->rt, "mprotect", SYS_mprotect, v[i].start, v[i].end - v[i].start,
			       v[i].prot);
		layout_advise(m, &v[i], v[i].start, v[i].end, 0);
	}
	return 0;
}

/* ---- joining ---- */

struct copying {
	int mem;
	uint64_t from, to; /* where the pages are, where they belong */
	uint8_t *buf;
};

static int copy_extent(const struct page_extent *e, void *arg, struct cr_err *err)
{
	const struct copying *c = arg;

	/* the file's pages show by themselves; what reads as zeros is as good as nothing */
	if (e->categories & (PAGE_CAT_FILE | PAGE_CAT_PFNZERO | PAGE_CAT_GUARD))
		return 0;
	for (uint64_t at = e->start; at < e->end;) {
		uint64_t left = e->end - at;
		size_t n = left < COPY_BYTES ? (size_t)left : COPY_BYTES;

		if (pread(c->mem, c->buf, n, (off_t)at) != (ssize_t)n ||
		    pwrite(c->mem, c->buf, n, (off_t)(at - c->from + c->to)) != (ssize_t)n)
			return cr_err_sys(err, "copying %zu bytes at %#llx", n,
					  (unsigned long long)at);
		at += n;
	}
	return 0;
}

static int copy_back(const struct shell *sh, uint64_t from, const struct vma *v, struct cr_err *err)
{
	const struct pagemap_query q = {.start = from,
					.end = from + (v->end - v->start),
					.anyof = PAGE_CAT_PRESENT | PAGE_CAT_SWAPPED,
					.ret = PAGE_CAT_ALL};
	_cleanup_free_ uint8_t *buf = malloc(COPY_BYTES);
	_cleanup_fd_ int mem = open_mem(sh, err);
	_cleanup_fd_ int pagemap = mem < 0 ? -1 : pagemap_open(sh->pid, err);
	struct copying c = {.mem = mem, .from = from, .to = v->start, .buf = buf};

	if (!buf)
		return cr_err_oom(err);
	if (mem < 0 || pagemap < 0)
		return mem < 0 ? mem : pagemap;
	return pagemap_walk(pagemap, &q, copy_extent, &c, err);
}

/* They go with the pages. */
static void install_guards(struct mapper *m, const struct mm *mm, const struct vma *v)
{
	for (size_t i = 0; i < mm->n_guards; i++) {
		const struct addr_range *g = &mm->guards[i];
		uint64_t start = g->start > v->start ? g->start : v->start;
		uint64_t end = g->end < v->end ? g->end : v->end;

		if (start < end)
			rqueue(m->rt, "madvise(MADV_GUARD_INSTALL)", SYS_madvise, start,
			       end - start, MADV_GUARD_INSTALL);
	}
}

/* The pieces step aside, the mapping is made, the pages come back. */
static int join(struct mapper *m, const struct shell *sh, const struct mm *mm, const struct vma *v,
		const struct proc_map *piece)
{
	uint64_t bytes = v->end - v->start;
	int r = rtask_run(m->rt, m->err);

	if (r)
		return r;
	long aside = rcall_now(m->rt, SYS_mmap, 0, bytes, PROT_NONE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (aside < 0 && aside > -4096)
		return cr_err_set(m->err, CR_ERR_KERNEL, (int)-aside,
				  "room for %llu bytes in shell %d: %s", (unsigned long long)bytes,
				  sh->pid, strerror((int)-aside));
	for (; piece->start < v->end; piece++) {
		uint64_t start = piece->start > v->start ? piece->start : v->start;
		uint64_t end = piece->end < v->end ? piece->end : v->end;

		rqueue(m->rt, "mremap", SYS_mremap, start, end - start, end - start,
		       MREMAP_MAYMOVE | MREMAP_FIXED, (uint64_t)aside + (start - v->start));
		if (piece->end >= v->end)
			break;
	}
	r = layout_map_range(m, v, v->start, v->end);
	if (!r)
		r = layout_set_name(m, v);
	if (!r)
		r = rtask_run(m->rt, m->err);
	if (!r)
		r = copy_back(sh, (uint64_t)aside, v, m->err);
	install_guards(m, mm, v);
	rqueue(m->rt, "munmap", SYS_munmap, aside, bytes);
	return r ? r : rtask_run(m->rt, m->err);
}

int layout_join(struct mapper *m, const struct shell *sh, const struct mm *mm)
{
	_cleanup_free_ char *text = NULL;
	_cleanup_(proc_maps_done) struct proc_maps maps = {0};
	size_t k = 0;
	int r = 0;

	if (!m->several.n)
		return 0;
	ssize_t n = proc_read(sh->pid, "maps", &text, m->err);
	if (n < 0)
		return (int)n;
	r = proc_maps_parse(text, &maps, m->err);
	vec_foreach (v, &m->several) {
		while (!r && k < maps.list.n && maps.list.v[k].end <= (*v)->start)
			k++;
		if (!r && k < maps.list.n && maps.list.v[k].end < (*v)->end)
			r = join(m, sh, mm, *v, &maps.list.v[k]);
	}
	return r;
}
