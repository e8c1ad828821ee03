#include "pageserver/place.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>

enum {
	IOV_MOST = 1024, /* UIO_MAXIOV */
	/* So many pages that were there already: they come for the second time, and trying costs
	 * more than it saves from then on. */
	PRESENT_MOST = 64,
};
_Static_assert((int)PAGE_BATCH_RUNS <= (int)IOV_MOST, "the DATA runs of a batch go in one call");

/* One batch on its way into one target. */
struct placing {
	const struct targets *ts;
	struct target *t;
	uint32_t index;
	uint64_t size; /* of an object: no byte is written beyond */
	const struct place_memory *mem;
	struct page_ack acc;
};

/* ---- targets ---- */

void target_free(struct target *t)
{
	if (!t)
		return;
	close_fdp(&t->pidfd);
	close_fdp(&t->fd);
	close_fdp(&t->uffd);
	free(t);
}

struct target *targets_get(const struct targets *ts, uint32_t index)
{
	return index < ts->at.n ? ts->at.v[index] : NULL;
}

int targets_set(struct targets *ts, uint32_t index, struct target *t, struct cr_err *err)
{
	while (t && ts->at.n <= index) {
		if (!vec_push(&ts->at)) {
			target_free(t);
			return cr_err_oom(err);
		}
	}
	if (index >= ts->at.n)
		return 0;
	ts->n += !!t - !!ts->at.v[index];
	target_free(ts->at.v[index]);
	ts->at.v[index] = t;
	return 0;
}

void targets_done(struct targets *ts)
{
	vec_foreach (t, &ts->at)
		target_free(*t);
	vec_done(&ts->at);
	ts->n = 0;
}

/* ---- writing ---- */

static const char *target_name(char buf[48], const struct placing *p)
{
	if (p->t->kind == TARGET_PROCESS)
		snprintf(buf, 48, "target %u (process %d)", p->index, p->t->pid);
	else
		snprintf(buf, 48, "target %u (object)", p->index);
	return buf;
}

static int write_failed(const struct placing *p, uint64_t addr, struct cr_err *err)
{
	char name[48];

	return cr_err_sys(err, "write page %#llx of %s", (unsigned long long)addr,
			  target_name(name, p));
}

/* Of huge pages: hugetlbfs has no write(2). What is mapped is reserved first: where there is none
 * left mmap(2) says so, and nobody gets SIGBUS. */
static int write_mapped(const struct placing *p, uint64_t addr, const uint8_t *data, size_t bytes,
			struct cr_err *err)
{
	struct stat st;

	if (fstat(p->t->fd, &st))
		return write_failed(p, addr, err);
	uint64_t page = (uint64_t)st.st_blksize, start = addr - addr % page;
	size_t length = ALIGN_UP(addr + bytes, page) - start;
	uint8_t *m = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, p->t->fd, (off_t)start);

	if (m == MAP_FAILED)
		return write_failed(p, addr, err);
	memcpy(m + (addr - start), data, bytes);
	munmap(m, length);
	return 0;
}

/* By offset into the target's descriptor: objects, and memory that only /proc/PID/mem can write. */
static int write_at(const struct placing *p, uint64_t addr, const uint8_t *data, size_t bytes,
		    struct cr_err *err)
{
	if (p->t->kind == TARGET_OBJECT && bytes > p->size - addr)
		bytes = p->size - addr; /* checked: addr < size */
	while (bytes) {
		ssize_t n = pwrite(p->t->fd, data, bytes, (off_t)addr);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EINVAL && p->t->kind == TARGET_OBJECT)
			return write_mapped(p, addr, data, bytes, err);
		if (n <= 0) {
			if (!n)
				errno = EIO;
			return write_failed(p, addr, err);
		}
		addr += n;
		data += n;
		bytes -= n;
	}
	return 0;
}

/* process_vm_writev() refuses read-only and PROT_NONE memory (process_vm_writev(2): EFAULT) and
 * stops at the first such page; /proc/PID/mem writes there too (FOLL_FORCE, since 2.6.39). So what
 * is left of the range that it stopped in goes that way, then it goes on. */
static int write_process(const struct placing *p, const uint8_t *data, const struct iovec *to,
			 size_t n, struct cr_err *err)
{
	size_t bytes = 0;

	for (size_t i = 0; i < n; i++)
		bytes += to[i].iov_len;
	for (size_t i = 0; i < n;) {
		struct iovec local = {.iov_base = (void *)data, .iov_len = bytes};
		ssize_t done = process_vm_writev(p->t->pid, &local, 1, to + i, n - i, 0);

		if (done < 0 && errno != EFAULT)
			return write_failed(p, (uint64_t)to[i].iov_base, err);
		size_t left = done > 0 ? (size_t)done : 0;
		data += left;
		bytes -= left;
		for (; i < n && left >= to[i].iov_len; i++)
			left -= to[i].iov_len;
		if (i == n)
			break;
		size_t rest = to[i].iov_len - left;
		int r = write_at(p, (uint64_t)to[i].iov_base + left, data, rest, err);
		if (r)
			return r;
		data += rest;
		bytes -= rest;
		i++;
	}
	return 0;
}

/* Pages that are not there yet, without a fault: where a write has the kernel zero a page and map
 * it first, UFFDIO_COPY (userfaultfd(2), 4.3) maps it filled, for 0.6 of the time. Returns how many
 * bytes that has served. It ends at a page that is there (EEXIST) and where nothing is registered
 * (ENOENT); whatever it is, writing tells. Nobody waits for these pages, so nobody is woken. */
static size_t copy_absent(const struct placing *p, uint64_t addr, const uint8_t *data, size_t bytes)
{
	size_t done = 0;

	while (done < bytes) {
		struct uffdio_copy c = {
		    .dst = addr + done,
		    .src = (uint64_t)data + done,
		    .len = bytes - done,
		    .mode = UFFDIO_COPY_MODE_DONTWAKE,
		};

		if (!ioctl(p->t->uffd, UFFDIO_COPY, &c))
			return bytes;
		if (c.copy == -EEXIST)
			p->t->found_present++;
		if (c.copy <= 0)
			break;
		done +=
		    (size_t)c.copy; /* EAGAIN: some of it; the next call tells what stopped it */
	}
	return done;
}

/* Range by range, by copying as far as that goes. */
static int fill_process(const struct placing *p, const uint8_t *data, const struct iovec *to,
			size_t n, struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < n && !r; i++) {
		if (p->t->found_present >= PRESENT_MOST)
			return write_process(p, data, to + i, n - i, err);
		uint64_t addr = (uint64_t)to[i].iov_base;
		size_t done = copy_absent(p, addr, data, to[i].iov_len);
		struct iovec rest = {(void *)(addr + done), to[i].iov_len - done};

		if (rest.iov_len)
			r = write_process(p, data + done, &rest, 1, err);
		data += to[i].iov_len;
	}
	return r;
}

/* Ranges that follow each other in `data`, at most IOV_MOST. */
static int write_ranges(const struct placing *p, const uint8_t *data, const struct iovec *to,
			size_t n, struct cr_err *err)
{
	if (p->t->kind == TARGET_PROCESS && p->t->uffd >= 0)
		return fill_process(p, data, to, n, err);
	if (p->t->kind == TARGET_PROCESS)
		return write_process(p, data, to, n, err);
	for (size_t i = 0; i < n; i++) {
		int r = write_at(p, (uint64_t)to[i].iov_base, data, to[i].iov_len, err);

		if (r)
			return r;
		data += to[i].iov_len;
	}
	return 0;
}

static void push_range(struct iovec *to, size_t *n, uint64_t addr, size_t bytes)
{
	if (*n && (uint64_t)to[*n - 1].iov_base + to[*n - 1].iov_len == addr)
		to[*n - 1].iov_len += bytes;
	else
		to[(*n)++] = (struct iovec){.iov_base = (void *)addr, .iov_len = bytes};
}

/* ---- the three kinds ---- */

static int place_data(struct placing *p, const struct page_batch *b, struct cr_err *err)
{
	struct iovec to[IOV_MOST];
	const uint8_t *data;
	size_t n = 0;
	int r = page_batch_unpack(b, p->mem->work, &data, err);

	if (r)
		return r;
	const uint8_t *all = data;
	for (size_t i = 0; i < b->nruns; i++) {
		const struct page_wire_run *run = &b->runs[i];

		if (run->kind != PAGE_DATA)
			continue;
		push_range(to, &n, run->addr, run->npages * CR_PAGE_SIZE);
		for (size_t k = 0; k < run->npages; k++, data += CR_PAGE_SIZE)
			page_digest_add(&p->acc.digest,
					page_hash(data, p->index, run->addr + k * CR_PAGE_SIZE));
		p->acc.data_pages += run->npages;
	}
	return n ? write_ranges(p, all, to, n, err) : 0;
}

static int place_zeros(struct placing *p, const struct page_batch *b, struct cr_err *err)
{
	struct iovec to[IOV_MOST];
	size_t n = 0, bytes = 0;

	for (size_t i = 0; i < b->nruns; i++) {
		const struct page_wire_run *run = &b->runs[i];

		for (size_t k = 0; run->kind == PAGE_ZERO && k < run->npages; k++) {
			uint64_t addr = run->addr + k * CR_PAGE_SIZE;

			/* each call writes at most what there is of zeros */
			if (bytes == PAGE_BATCH_BYTES || n == IOV_MOST) {
				int r = write_ranges(p, p->mem->zeros, to, n, err);
				if (r)
					return r;
				n = bytes = 0;
			}
			push_range(to, &n, addr, CR_PAGE_SIZE);
			bytes += CR_PAGE_SIZE;
			page_digest_add(&p->acc.digest, page_hash_zero(p->index, addr));
			p->acc.zero_pages++;
		}
	}
	return n ? write_ranges(p, p->mem->zeros, to, n, err) : 0;
}

/* By the descriptor, also for a process: process_vm_readv() would break the copy-on-write sharing
 * of the pages with other shells, and fails on PROT_NONE. */
static int read_source(const struct target *t, uint32_t index, uint64_t addr, uint8_t *buf,
		       size_t bytes, struct cr_err *err)
{
	size_t done = 0;

	while (done < bytes) {
		ssize_t n = pread(t->fd, buf + done, bytes - done, (off_t)(addr + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return cr_err_sys(err, "read page %#llx of source target %u",
					  (unsigned long long)addr + done, index);
		if (!n && t->kind == TARGET_PROCESS)
			return cr_err_set(
			    err, CR_ERR_KERNEL, ESRCH,
			    "read page %#llx of source target %u (process %d): it is gone",
			    (unsigned long long)addr + done, index, t->pid);
		if (!n) { /* past the end of an object, in its last page */
			memset(buf + done, 0, bytes - done);
			return 0;
		}
		done += n;
	}
	return 0;
}

/* Copies that were read and are to be written: writing many in one call is what makes it fast. */
struct copies {
	struct iovec to[PAGE_BATCH_DATA_PAGES];
	size_t n, pages; /* pages: in mem->work */
};

static int write_copies(struct placing *p, struct copies *c, struct cr_err *err)
{
	int r = c->n ? write_ranges(p, p->mem->work, c->to, c->n, err) : 0;

	c->n = c->pages = 0;
	return r;
}

/* Would this be read from what is not written yet? Runs are placed in their order. */
static bool reads_copies(const struct placing *p, const struct copies *c, uint32_t target,
			 uint64_t addr, size_t bytes)
{
	for (size_t i = 0; target == p->index && i < c->n; i++) {
		uint64_t start = (uint64_t)c->to[i].iov_base;

		if (start < addr + bytes && addr < start + c->to[i].iov_len)
			return true;
	}
	return false;
}

static int place_same(struct placing *p, const struct page_wire_run *run, struct copies *c,
		      struct cr_err *err)
{
	const struct target *src = targets_get(p->ts, run->src_target);
	size_t n;

	for (size_t at = 0; at < run->npages; at += n) {
		uint64_t addr = run->addr + at * CR_PAGE_SIZE;
		uint64_t from = run->src_addr + at * CR_PAGE_SIZE;
		int r = 0;

		n = run->npages - at;
		if (n > PAGE_BATCH_DATA_PAGES)
			n = PAGE_BATCH_DATA_PAGES;
		if (n > PAGE_BATCH_DATA_PAGES - c->pages ||
		    reads_copies(p, c, run->src_target, from, n * CR_PAGE_SIZE))
			r = write_copies(p, c, err);
		uint8_t *copy = p->mem->work + c->pages * CR_PAGE_SIZE;
		if (!r)
			r = read_source(src, run->src_target, from, copy, n * CR_PAGE_SIZE, err);
		if (r)
			return r;
		push_range(c->to, &c->n, addr, n * CR_PAGE_SIZE);
		c->pages += n;
		for (size_t k = 0; k < n; k++)
			page_digest_add(&p->acc.digest, page_hash(copy + k * CR_PAGE_SIZE, p->index,
								  addr + k * CR_PAGE_SIZE));
		p->acc.same_pages += n;
	}
	return 0;
}

static int place_all_same(struct placing *p, const struct page_batch *b, struct cr_err *err)
{
	struct copies c = {0};
	int r = 0;

	for (size_t i = 0; !r && i < b->nruns; i++)
		if (b->runs[i].kind == PAGE_SAME)
			r = place_same(p, &b->runs[i], &c, err);
	return r ? r : write_copies(p, &c, err);
}

/* ---- checks ---- */

static int object_size(const struct target *t, uint64_t *ret, struct cr_err *err)
{
	struct stat st;

	if (fstat(t->fd, &st) < 0)
		return cr_err_sys(err, "fstat of an object");
	*ret = (uint64_t)st.st_size;
	return 0;
}

/* Is there a process still, or is its pid perhaps another's already? pidfd_open(2): readable when
 * it has terminated. */
static int check_alive(const struct target *t, uint32_t index, struct cr_err *err)
{
	struct pollfd pfd = {.fd = t->pidfd, .events = POLLIN};

	if (poll(&pfd, 1, 0) == 0)
		return 0;
	return cr_err_set(err, CR_ERR_KERNEL, ESRCH, "target %u: process %d has died", index,
			  t->pid);
}

static int check_source(const struct placing *p, const struct page_wire_run *run,
			struct cr_err *err)
{
	const struct target *src = targets_get(p->ts, run->src_target);
	uint64_t size = 0;

	if (!src)
		return cr_err_set(err, CR_ERR_PEER, ENOENT, "source target %u is not known",
				  run->src_target);
	if (src->kind == TARGET_PROCESS)
		return 0; /* reading is bound to the memory that the descriptor was opened for */
	int r = object_size(src, &size, err);
	if (!r && run->src_addr + run->npages * CR_PAGE_SIZE > ALIGN_UP(size, CR_PAGE_SIZE))
		r = cr_err_set(err, CR_ERR_PEER, ERANGE,
			       "source pages at %#llx are beyond the end of target %u",
			       (unsigned long long)run->src_addr, run->src_target);
	return r;
}

static int check_run(const struct placing *p, const struct page_wire_run *run, struct cr_err *err)
{
	const struct target *t = p->t;
	uint64_t end = run->addr + run->npages * CR_PAGE_SIZE; /* cannot overflow: decoded */
	char name[48];

	if (t->kind == TARGET_OBJECT && end > ALIGN_UP(p->size, CR_PAGE_SIZE))
		return cr_err_set(err, CR_ERR_PEER, ERANGE,
				  "pages %#llx-%#llx are beyond the end (%llu bytes) of %s",
				  (unsigned long long)run->addr, (unsigned long long)end,
				  (unsigned long long)p->size, target_name(name, p));
	if (run->addr < t->forbid_end && end > t->forbid_start)
		return cr_err_set(
		    err, CR_ERR_PEER, EPERM, "pages %#llx-%#llx touch the forbidden range of %s",
		    (unsigned long long)run->addr, (unsigned long long)end, target_name(name, p));
	return run->kind == PAGE_SAME ? check_source(p, run, err) : 0;
}

static int check_batch(struct placing *p, const struct page_batch *b, struct cr_err *err)
{
	p->t = targets_get(p->ts, p->index);
	if (!p->t)
		return cr_err_set(err, CR_ERR_PEER, ENOENT, "target %u is not known", p->index);
	int r = p->t->kind == TARGET_PROCESS ? check_alive(p->t, p->index, err)
					     : object_size(p->t, &p->size, err);
	for (size_t i = 0; !r && i < b->nruns; i++)
		r = check_run(p, &b->runs[i], err);
	return r;
}

int place_batch(const struct targets *ts, const struct page_batch *b,
		const struct place_memory *mem, struct page_ack *acc, struct cr_err *err)
{
	struct placing p = {.ts = ts, .index = b->target, .mem = mem, .acc = *acc};
	int r = check_batch(&p, b, err);

	if (!r)
		r = place_data(&p, b, err);
	if (!r)
		r = place_zeros(&p, b, err);
	if (!r)
		r = place_all_same(&p, b, err);
	if (!r)
		*acc = p.acc;
	return r;
}

bool place_needs_work(const struct page_batch *b)
{
	for (size_t i = 0; i < b->nruns; i++)
		if (b->runs[i].kind == PAGE_SAME)
			return true;
	return b->lz4;
}

size_t place_pages(const struct page_batch *b)
{
	size_t n = 0;

	for (size_t i = 0; i < b->nruns; i++)
		n += b->runs[i].npages;
	return n;
}
