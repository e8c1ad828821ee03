/* Huge pages (Documentation/admin-guide/mm/hugetlbpage.rst). Those that are shared (shared
 * anonymous memory, System V segments, memfds) are objects like any other shared memory, and
 * compared whole. Private mappings are tracked and copied like ordinary private memory, in pages of
 * 4 KiB; the kernel tells of a write to one that all of the huge page was written. They may stay
 * behind at the source, as a whole; shared ones as other shared memory. */
#include <stdio.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <linux/magic.h>
#include "kernel/procfs.h"
#include "memory/capture.h"

enum { TRACKED_BYTES = 2 << 20 };

uint64_t huge_page_bytes(int fd)
{
	struct statfs fs;

	return !fstatfs(fd, &fs) && fs.f_type == HUGETLBFS_MAGIC ? (uint64_t)fs.f_bsize : 0;
}

static uint64_t read_count(uint64_t page_bytes, const char *what)
{
	char path[96];
	unsigned long long n = 0;

	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%llukB/%s",
		 (unsigned long long)page_bytes >> 10, what);
	FILE *f = fopen(path, "re");
	if (!f)
		return 0;
	if (fscanf(f, "%llu", &n) != 1)
		n = 0;
	fclose(f);
	return n;
}

/* Free ones that nobody else has been promised, and those that the host makes on demand. */
static uint64_t available(uint64_t page_bytes)
{
	uint64_t unused = read_count(page_bytes, "free_hugepages");
	uint64_t promised = read_count(page_bytes, "resv_hugepages");
	uint64_t more = read_count(page_bytes, "nr_overcommit_hugepages");
	uint64_t surplus = read_count(page_bytes, "surplus_hugepages");

	return (unused > promised ? unused - promised : 0) + (more > surplus ? more - surplus : 0);
}

const char *huge_fill(const struct proc_map *m, struct vma *v)
{
	v->page_bytes = m->page_bytes;
	v->huge_there = m->all_huge / TRACKED_BYTES;
	v->huge_own = m->own_huge / TRACKED_BYTES;
	/* KERNEL: PAGEMAP_SCAN passes over larger ones when it protects
	 * (pagemap_scan_hugetlb_entry) */
	if (v->page_bytes != TRACKED_BYTES)
		return "private huge pages of a size other than 2 MiB: not supported";
	/* KERNEL: /proc/PID/mem writes to no huge page that its task may not write
	 * (check_vma_flags) */
	if (!(v->prot & PROT_WRITE))
		return "private huge pages without PROT_WRITE: not supported";
	return NULL;
}

/* ---- staying behind ---- */

/* Has another process, before this one, the same mapping, by fork(2)? */
static bool is_inherited(const struct tree *t, size_t proc, const struct vma *v)
{
	for (size_t i = 0; i < proc; i++)
		for (size_t k = 0; k < t->procs[i].mm.n_vmas; k++) {
			const struct vma *o = &t->procs[i].mm.vmas[k];

			if (o->page_bytes && o->ino == v->ino && o->dev == v->dev)
				return true;
		}
	return false;
}

static bool is_known(const struct huge_forked *f, const struct vma *v)
{
	vec_foreach (k, &f->list)
		if (k->ino == v->ino && k->dev == v->dev)
			return true;
	return false;
}

/* Mappings that two processes have, as of a fork(2). */
static int note_forked(const struct tree *t, struct huge_forked *f, size_t proc,
		       const struct vma *v, struct cr_err *err)
{
	if (is_known(f, v) || !is_inherited(t, proc, v))
		return 0;
	struct huge_id *id = vec_push(&f->list);
	if (!id)
		return cr_err_oom(err);
	*id = (struct huge_id){v->dev, v->ino};
	return 0;
}

int huge_mark_stays(struct tree *t, struct huge_forked *f, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < t->n_procs; i++)
		for (size_t k = 0; k < t->procs[i].mm.n_vmas && !r; k++)
			if (t->procs[i].mm.vmas[k].page_bytes)
				r = note_forked(t, f, i, &t->procs[i].mm.vmas[k], err);
	for (size_t i = 0; i < t->n_procs && !r; i++)
		for (size_t k = 0; k < t->procs[i].mm.n_vmas; k++) {
			struct vma *v = &t->procs[i].mm.vmas[k];

			v->huge_stays = v->page_bytes == TRACKED_BYTES &&
					!(v->flags & VMA_F_NORESERVE) && !is_known(f, v);
		}
	return r;
}

static bool discard_restores(uint8_t *page)
{
	page[0] = 1;
	uint64_t before = read_count(TRACKED_BYTES, "resv_hugepages");
	return !madvise(page, TRACKED_BYTES, MADV_DONTNEED) &&
	       read_count(TRACKED_BYTES, "resv_hugepages") == before + 1;
}

bool huge_may_be_discarded(void)
{
	bool does = false;

	/* KERNEL: where there are pages beyond the pool it does not (__unmap_hugepage_range) */
	if (read_count(TRACKED_BYTES, "nr_overcommit_hugepages") ||
	    read_count(TRACKED_BYTES, "surplus_hugepages"))
		return false;
	void *page = mmap(NULL, TRACKED_BYTES, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
			      (__builtin_ctz(TRACKED_BYTES) << MAP_HUGE_SHIFT),
			  -1, 0);
	if (page == MAP_FAILED)
		return false;
	/* others may reserve and give back at the same moment */
	for (int i = 0; i < 3 && !does; i++)
		does = discard_restores(page);
	munmap(page, TRACKED_BYTES);
	return does;
}

/* ---- are there enough? ---- */

static uint64_t pages_of(uint64_t bytes, uint64_t page_bytes)
{
	return bytes / page_bytes + !!(bytes % page_bytes);
}

/* mmap(2) reserves a page for each, which fork(2) does not. */
static uint64_t wanted_by(const struct tree *t, size_t proc, const struct vma *v)
{
	if (is_inherited(t, proc, v))
		return v->huge_own;
	return v->flags & VMA_F_NORESERVE ? v->huge_there
					  : pages_of(v->end - v->start, v->page_bytes);
}

static uint64_t wanted(const struct tree *t, uint64_t page_bytes)
{
	uint64_t n = 0;

	for (size_t i = 0; i < t->n_objects; i++)
		if (t->objects[i].page_bytes == page_bytes)
			n += pages_of(t->objects[i].size, page_bytes);
	for (size_t i = 0; i < t->n_procs; i++)
		for (size_t k = 0; k < t->procs[i].mm.n_vmas; k++)
			if (t->procs[i].mm.vmas[k].page_bytes == page_bytes)
				n += wanted_by(t, i, &t->procs[i].mm.vmas[k]);
	return n;
}

void huge_check(const struct tree *t, struct refusals *refused)
{
	/* a power of two each */
	for (unsigned int shift = 12; shift < 41; shift++) {
		uint64_t size = 1ull << shift, n = wanted(t, size), there;
		char label[64];

		if (!n || (there = available(size)) >= n)
			continue;
		snprintf(label, sizeof(label), "huge pages of %llu KiB",
			 (unsigned long long)size >> 10);
		refuse(refused, 0, label,
		       "%llu are needed at the destination and %llu are free there; raise its "
		       "vm.nr_hugepages",
		       (unsigned long long)n, (unsigned long long)there);
	}
}
