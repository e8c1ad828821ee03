#include "memory/digest.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include "kernel/pagemap.h"
#include "memory/zero.h"

enum { CHUNK_BYTES = 256 * 1024, RSEQ_BYTES = 32 };

struct digester {
	int mem;
	const struct process *p;
	struct memory_digest *out;
	uint8_t *buf;
};

/* rseq(2): the kernel writes cpu and node into the area whenever the thread is scheduled. */
static void blank_rseq(const struct digester *d, uint8_t *page, uint64_t va)
{
	for (size_t i = 0; i < d->p->n_threads; i++) {
		uint64_t area = d->p->threads[i].rseq_va;
		uint64_t end = area + RSEQ_BYTES;

		if (!area || end <= va || area >= va + CR_PAGE_SIZE)
			continue;
		uint64_t from = area > va ? area - va : 0;
		uint64_t to = end - va < CR_PAGE_SIZE ? end - va : CR_PAGE_SIZE;
		memset(page + from, 0, to - from);
	}
}

static void add_page(struct digester *d, uint8_t *page, uint64_t va)
{
	if (d->p)
		blank_rseq(d, page, va);
	if (page_is_zero(page))
		return;
	page_digest_add(&d->out->sum, page_hash(page, 0, va));
	d->out->pages++;
}

/* Pages that cannot be read (beyond the end of a mapped file, guards) count as absent. */
static int digest_range(struct digester *d, uint64_t start, uint64_t end, struct cr_err *err)
{
	for (uint64_t va = start; va < end;) {
		size_t want = end - va < CHUNK_BYTES ? end - va : CHUNK_BYTES;
		ssize_t n = pread(d->mem, d->buf, want, (off_t)va);

		if (n < 0 && errno != EIO && errno != EFAULT)
			return cr_err_sys(err, "reading memory at %#llx", (unsigned long long)va);
		if (n < (ssize_t)CR_PAGE_SIZE) {
			va += CR_PAGE_SIZE;
			continue;
		}
		for (ssize_t off = 0; off + (ssize_t)CR_PAGE_SIZE <= n; off += CR_PAGE_SIZE)
			add_page(d, d->buf + off, va + (uint64_t)off);
		va += (uint64_t)n / CR_PAGE_SIZE * CR_PAGE_SIZE;
	}
	return 0;
}

static int digest_extent(const struct page_extent *e, void *arg, struct cr_err *err)
{
	if (e->categories & (PAGE_CAT_PFNZERO | PAGE_CAT_GUARD))
		return 0;
	return digest_range(arg, e->start, e->end, err);
}

int memory_digest_process(pid_t pid, const struct process *p, struct memory_digest *ret,
			  struct cr_err *err)
{
	_cleanup_fd_ int mem = -1, pagemap = -1;
	_cleanup_free_ uint8_t *buf = malloc(CHUNK_BYTES);
	char path[64];

	*ret = (struct memory_digest){0};
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	mem = open(path, O_RDONLY | O_CLOEXEC);
	if (mem < 0)
		return cr_err_sys(err, "opening %s", path);
	pagemap = pagemap_open(pid, err);
	if (pagemap < 0)
		return pagemap;
	if (!buf)
		return cr_err_oom(err);
	struct digester d = {mem, p, ret, buf};
	int r = 0;
	for (size_t i = 0; i < p->mm.n_vmas && !r; i++) {
		const struct vma *v = &p->mm.vmas[i];
		struct pagemap_query q = {.start = v->start,
					  .end = v->end,
					  .ret = PAGE_CAT_ALL,
					  .anyof = PAGE_CAT_PRESENT | PAGE_CAT_SWAPPED};

		if (v->kind == VMA_ANON)
			r = pagemap_walk(pagemap, &q, digest_extent, &d, err);
		else if (v->kind == VMA_FILE_PRIVATE)
			r = digest_range(&d, v->start, v->end, err);
	}
	return r;
}

int memory_digest_object(int shared_fd, uint64_t size, struct memory_digest *ret,
			 struct cr_err *err)
{
	_cleanup_free_ uint8_t *buf = calloc(1, CHUNK_BYTES);
	char path[64];

	/* a description of our own: a task may share the other, and its position */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", shared_fd);
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return cr_err_sys(err, "opening a shared object");
	struct digester d = {.mem = fd, .out = ret, .buf = buf};

	*ret = (struct memory_digest){0};
	if (!buf)
		return cr_err_oom(err);
	for (off_t at = 0; (uint64_t)at < size;) {
		off_t data = lseek(fd, at, SEEK_DATA);

		if (data < 0 && errno == ENXIO)
			break;
		if (data < 0)
			return cr_err_sys(err, "looking for data in a shared object");
		off_t hole = lseek(fd, data, SEEK_HOLE);
		if (hole < 0)
			return cr_err_sys(err, "looking for a hole in a shared object");
		data -= data % (off_t)CR_PAGE_SIZE;
		for (off_t off = data; off < hole; off += CR_PAGE_SIZE) {
			memset(buf, 0, CR_PAGE_SIZE); /* the last page may be cut */
			if (pread(fd, buf, CR_PAGE_SIZE, off) < 0)
				return cr_err_sys(err, "reading a shared object");
			add_page(&d, buf, (uint64_t)off);
		}
		at = hole;
	}
	return 0;
}
