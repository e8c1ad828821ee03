#include "memory/reader.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>
#include "kernel/background.h"
#include "memory/zero.h"
#include "model/lazy.h"
#include "wire/page_digest.h"

enum { BUFFER_PAGES = 256, PIECES_MAX = 256, ZEROS_MAX = 256 };

struct piece {
	uint64_t start;
	uint32_t pages;
	bool fresh;
};

struct reader {
	struct page_tx *tx;
	uint32_t target;
	struct sentmap *sent;
	enum reader_how how;
	pid_t pid;
	int fd;
	struct piece pieces[PIECES_MAX];
	size_t n_pieces;
	uint32_t n_pages; /* in all pieces */
	struct page_run runs[BUFFER_PAGES];
	XXH128_hash_t hashes[BUFFER_PAGES];
	uint8_t *buf;
	uint64_t zeros[ZEROS_MAX];
	size_t n_zeros;
	reader_unread_fn unread;
	void *unread_arg;
	const uint64_t *unsteady; /* sorted; not owned */
	size_t n_unsteady;
	struct reader_stats stats;
	bool in_flight; /* submitted since the last barrier */
};

int reader_new(struct reader **ret, struct page_tx *tx, struct cr_err *err)
{
	struct reader *r = calloc(1, sizeof(*r));

	if (!r)
		return cr_err_oom(err);
	r->tx = tx;
	r->fd = -1;
	r->buf = mmap(NULL, BUFFER_PAGES * CR_PAGE_SIZE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (r->buf == MAP_FAILED) {
		free(r);
		return cr_err_oom(err);
	}
	*ret = r;
	return 0;
}

void reader_free(struct reader *r)
{
	if (!r)
		return;
	munmap(r->buf, BUFFER_PAGES * CR_PAGE_SIZE);
	free(r);
}

void reader_set_unread(struct reader *r, reader_unread_fn fn, void *arg)
{
	r->unread = fn;
	r->unread_arg = arg;
}

void reader_stats(const struct reader *r, struct reader_stats *ret)
{
	*ret = r->stats;
}

int reader_target(struct reader *r, uint32_t target, struct sentmap *sent, enum reader_how how,
		  pid_t pid, int fd, struct cr_err *err)
{
	int e = reader_finish(r, err);

	r->target = target;
	r->sent = sent;
	r->how = how;
	r->pid = pid;
	r->fd = fd;
	reader_set_unsteady(r, NULL, 0);
	return e;
}

void reader_set_unsteady(struct reader *r, const uint64_t *pages, size_t n)
{
	r->unsteady = pages;
	r->n_unsteady = n;
}

/* ---- reading ---- */

/* Bytes of [start, …) read into buf; short where a page cannot be read. */
static size_t read_one(struct reader *r, uint64_t start, void *buf, size_t bytes)
{
	size_t done = 0;

	while (done < bytes) {
		ssize_t n = pread(r->fd, (char *)buf + done, bytes - done, (off_t)(start + done));

		if (n <= 0) {
			if (n == 0 && r->how == READ_FILE) { /* beyond the end: zeros */
				memset((char *)buf + done, 0, bytes - done);
				return bytes;
			}
			break;
		}
		done += (size_t)n;
	}
	return done;
}

/* All pieces at once. Returns the bytes read in order; a page that cannot be read ends it. */
static size_t read_vector(struct reader *r, size_t first, uint8_t *buf)
{
	struct iovec remote[PIECES_MAX], local = {.iov_base = buf};
	size_t k = 0;

	for (size_t i = first; i < r->n_pieces; i++, k++) {
		remote[k].iov_base = (void *)r->pieces[i].start;
		remote[k].iov_len = r->pieces[i].pages * CR_PAGE_SIZE;
		local.iov_len += remote[k].iov_len;
	}
	ssize_t n = process_vm_readv(r->pid, &local, 1, remote, k, 0);
	return n > 0 ? (size_t)n : 0;
}

struct filled { /* a stretch of pages that was read */
	uint64_t start;
	size_t buf_off;
	uint32_t pages;
	bool fresh;
};

static int unreadable(struct reader *r, uint64_t va, struct cr_err *err)
{
	if (r->unread && !r->unread(va, r->unread_arg))
		return 0;
	return cr_err_set(err, CR_ERR_KERNEL, EFAULT, "page %#llx of %d cannot be read",
			  (unsigned long long)va, r->pid);
}

/* ---- sending ---- */

/* Is the page to be sent, and as what? Updates what we know of the destination. -1: not. */
static int judge(struct reader *r, const uint8_t *page, uint64_t va, bool fresh,
		 XXH128_hash_t *hash)
{
	struct sent_chunk *c = sentmap_chunk(r->sent, va, true);
	unsigned int i = chunk_index(va);

	if (!c)
		return -2;
	bool was_sent = chunk_test(c->sent, i);
	bool zero = page_is_zero(page);
	if (zero && fresh && !was_sent) {
		r->stats.pages_zero++;
		return -1;
	}
	*hash = page_hash(page, r->target, va);
	/* the first time is likely the last: digests are kept from the second on */
	bool keeps = was_sent || r->sent->digests_at_once;
	XXH128_hash_t *d = keeps ? sentmap_digests(r->sent, c) : c->digests;
	if (was_sent && d && XXH128_isEqual(d[i], *hash)) {
		r->stats.pages_same++;
		return -1;
	}
	if (d)
		d[i] = *hash;
	chunk_set(c->sent, i);
	if (zero)
		r->stats.pages_zero++;
	else
		r->stats.pages_sent++;
	return zero ? PAGE_ZERO : PAGE_DATA;
}

static void add_run(struct reader *r, size_t *n_runs, enum page_kind kind, uint64_t va,
		    size_t buf_off, XXH128_hash_t *hash)
{
	struct page_run *last = *n_runs ? &r->runs[*n_runs - 1] : NULL;
	bool unsteady = lazy_is_eager(r->unsteady, r->n_unsteady, va);

	if (last && last->kind == kind && last->unsteady == unsteady &&
	    last->addr + last->npages * CR_PAGE_SIZE == va &&
	    (kind == PAGE_ZERO || last->buf_off + last->npages * CR_PAGE_SIZE == buf_off)) {
		last->npages++;
		return;
	}
	r->runs[(*n_runs)++] = (struct page_run){
	    .kind = kind,
	    .npages = 1,
	    .addr = va,
	    .unsteady = unsteady,
	    .buf_off = buf_off,
	    .hashes = hash,
	};
}

static int send_filled(struct reader *r, const struct filled *f, size_t n, struct cr_err *err)
{
	size_t n_runs = 0, n_hashes = 0;

	for (size_t i = 0; i < n; i++) {
		for (uint32_t k = 0; k < f[i].pages; k++) {
			uint64_t va = f[i].start + k * CR_PAGE_SIZE;
			size_t off = f[i].buf_off + k * CR_PAGE_SIZE;
			XXH128_hash_t *hash = &r->hashes[n_hashes];
			int kind = judge(r, r->buf + off, va, f[i].fresh, hash);

			r->stats.pages_read++;
			if (kind == -2)
				return cr_err_oom(err);
			if (kind < 0)
				continue;
			add_run(r, &n_runs, (enum page_kind)kind, va, off, hash);
			n_hashes++;
		}
	}
	r->in_flight |= n_runs > 0;
	return n_runs ? page_tx_submit(r->tx, r->target, r->runs, n_runs, r->buf, err) : 0;
}

static int send_zeros(struct reader *r, struct cr_err *err)
{
	size_t n_runs = 0;

	for (size_t i = 0; i < r->n_zeros; i++) {
		r->hashes[i] = page_hash_zero(r->target, r->zeros[i]);
		add_run(r, &n_runs, PAGE_ZERO, r->zeros[i], 0, &r->hashes[i]);
	}
	r->n_zeros = 0;
	r->in_flight |= n_runs > 0;
	return n_runs ? page_tx_submit(r->tx, r->target, r->runs, n_runs, r->buf, err) : 0;
}

/* Piece by piece, page by page where need be. */
static int fill_singly(struct reader *r, size_t first, size_t skip, struct filled *f, size_t *n,
		       size_t off, struct cr_err *err)
{
	for (size_t i = first; i < r->n_pieces; i++, skip = 0) {
		struct piece *p = &r->pieces[i];
		uint32_t k = (uint32_t)(skip / CR_PAGE_SIZE);

		while (k < p->pages) {
			uint64_t va = p->start + k * CR_PAGE_SIZE;
			size_t got = read_one(r, va, r->buf + off, (p->pages - k) * CR_PAGE_SIZE) /
				     CR_PAGE_SIZE;

			if (got) {
				f[(*n)++] = (struct filled){va, off, (uint32_t)got, p->fresh};
				off += got * CR_PAGE_SIZE;
				k += (uint32_t)got;
				continue;
			}
			int e = unreadable(r, va, err);
			if (e)
				return e;
			k++;
		}
	}
	return 0;
}

void reader_drop(struct reader *r)
{
	r->n_pieces = 0;
	r->n_pages = 0;
	r->n_zeros = 0;
}

int reader_finish(struct reader *r, struct cr_err *err)
{
	struct filled f[BUFFER_PAGES];
	size_t n = 0, off = 0, i = 0, skip = 0;
	int e = r->n_zeros ? send_zeros(r, err) : 0;

	if (e || !r->n_pieces)
		return e;
	background_yield();
	if (r->how == READ_PROCESS_VM) {
		size_t got = read_vector(r, 0, r->buf) / CR_PAGE_SIZE;

		for (; i < r->n_pieces && got; i++) {
			struct piece *p = &r->pieces[i];
			uint32_t have = got < p->pages ? (uint32_t)got : p->pages;

			f[n++] = (struct filled){p->start, off, have, p->fresh};
			off += have * CR_PAGE_SIZE;
			got -= have;
			if (have < p->pages) {
				skip = have * CR_PAGE_SIZE;
				break;
			}
		}
	}
	e = fill_singly(r, i, skip, f, &n, off, err);
	background_yield();
	if (!e)
		e = send_filled(r, f, n, err);
	r->n_pieces = 0;
	r->n_pages = 0;
	return e;
}

int reader_barrier(struct reader *r, struct cr_err *err)
{
	int e = reader_finish(r, err);

	if (!e && r->in_flight) {
		e = page_tx_barrier(r->tx, err);
		r->in_flight = false;
	}
	return e;
}

int reader_add(struct reader *r, uint64_t start, uint64_t end, bool fresh, struct cr_err *err)
{
	while (start < end) {
		if (r->n_pages == BUFFER_PAGES || r->n_pieces == PIECES_MAX) {
			int e = reader_finish(r, err);

			if (e)
				return e;
		}
		uint64_t pages = (end - start) / CR_PAGE_SIZE;
		if (pages > BUFFER_PAGES - r->n_pages)
			pages = BUFFER_PAGES - r->n_pages;
		r->pieces[r->n_pieces++] = (struct piece){start, (uint32_t)pages, fresh};
		r->n_pages += (uint32_t)pages;
		start += pages * CR_PAGE_SIZE;
	}
	return 0;
}

int reader_zero(struct reader *r, uint64_t va, struct cr_err *err)
{
	if (r->n_zeros == ZEROS_MAX) {
		int e = send_zeros(r, err);

		if (e)
			return e;
	}
	r->zeros[r->n_zeros++] = va;
	r->stats.pages_zero++;
	return 0;
}
