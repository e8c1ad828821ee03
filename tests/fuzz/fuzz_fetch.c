/* libFuzzer target: who fetches pages at the destination, under a hostile source. The input is
 * frames; a bit in the padding of each says whether it comes over the connection for requests or
 * over one on which pages are pushed. Digests are made right, or few pages would get far.
 *
 * Pages are put into memory of our own, which nobody touches: private, huge as far as the fetcher
 * knows, and shared. */
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include "dest/fetch.c"
#include "wire/le.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
	ORIGIN = 7,
	OBJECT_INDEX = 1,
	PRIVATE_PAGES = 96,
	HUGE_PAGES = 1024,
	SHARED_PAGES = 48,
	FDS_MOST = 8,
	TYPE_AT = 4,
	PUSHED_AT = 5,
	DIGEST_AT = 24,
	PAYLOAD_AT = 32,
};
/* At the source; huge pages come behind. */
#define SRC 0x200000ull
#define SRC_HUGE 0x400000ull

static struct {
	uint8_t *private, *huge, *shared;
} memory;

static void *map(size_t pages, int flags, int fd)
{
	void *p = mmap(NULL, pages * CR_PAGE_SIZE, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (p == MAP_FAILED)
		abort();
	return p;
}

static void must(bool so)
{
	if (!so)
		abort();
}

static int new_uffd(void)
{
	struct uffdio_api api = {.api = UFFD_API,
				 .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	must(fd >= 0 && !ioctl(fd, UFFDIO_API, &api));
	return fd;
}

static void note_missing(struct lazy_shared *sh, struct lazy_space *sp, const struct lazy_seg *seg)
{
	uint64_t words[8];

	must(!lazy_space_add(sh, sp, seg));
	for (uint64_t page = 0; page < seg->pages; page += 512) {
		for (uint64_t w = 0; w < 8; w++)
			words[w] = page + 64 * w < seg->pages ? ~0ull : 0;
		lazy_mark_words(sh, sp, seg->bit0 + page, words);
	}
}

/* What is missing, and where. */
static void make_space(struct fetch *f)
{
	struct cr_err err = {0};
	int fd = memfd_create("fuzz", MFD_CLOEXEC), uffd = new_uffd();
	uint64_t all[SHARED_PAGES / 64 + 1];
	struct lazy_shared *sh;

	memset(all, 0xff, sizeof(all));
	must(!lazy_state_new(&sh, 4, 2048, SHARED_PAGES, 1, &err));
	must(fd >= 0 && !fallocate(fd, 0, 0, SHARED_PAGES * (off_t)CR_PAGE_SIZE));
	must(!lazy_object_add(sh, OBJECT_INDEX, fd, SHARED_PAGES, 1, all));
	memory.private = map(PRIVATE_PAGES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memory.huge = map(HUGE_PAGES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memory.shared = map(SHARED_PAGES, MAP_SHARED, fd);
	const struct lazy_seg segs[] = {
	    {.start = (uintptr_t)memory.private, .pages = PRIVATE_PAGES, .src = SRC},
	    {.start = (uintptr_t)memory.huge,
	     .pages = HUGE_PAGES,
	     .src = SRC_HUGE,
	     .bit0 = 512,
	     .huge = 1},
	    {.start = (uintptr_t)memory.shared, .pages = SHARED_PAGES, .object = 1},
	};
	must(!uffd_serve_missing(uffd, segs[0].start, segs[0].start + PRIVATE_PAGES * CR_PAGE_SIZE,
				 &err));
	must(!uffd_serve_missing(uffd, segs[1].start, segs[1].start + HUGE_PAGES * CR_PAGE_SIZE,
				 &err));
	must(!uffd_serve_shared(uffd, segs[2].start, segs[2].start + SHARED_PAGES * CR_PAGE_SIZE,
				&err));
	struct lazy_space *sp = lazy_space_new(sh, uffd, ORIGIN);
	must(sp);
	note_missing(sh, sp, &segs[0]);
	note_missing(sh, sp, &segs[1]);
	must(!lazy_space_add(sh, sp, &segs[2]));
	sp->used = 1;
	f->sh = sh;
	must(!objects_guard(f, &err));
	must(!tasks_wait_for(f, sp, segs[0].start, ORIGIN, SRC, 1));
	must(!tasks_wait_for(f, sp, segs[1].start, ORIGIN, SRC_HUGE, 512));
}

static void end_space(struct fetch *f)
{
	struct lazy_shared *sh = f->sh;

	munmap(f->guards[0], SHARED_PAGES * CR_PAGE_SIZE);
	munmap(memory.private, PRIVATE_PAGES * CR_PAGE_SIZE);
	munmap(memory.huge, HUGE_PAGES * CR_PAGE_SIZE);
	munmap(memory.shared, SHARED_PAGES * CR_PAGE_SIZE);
	lazy_close(&sh->urgent_fd);
	lazy_state_free(sh);
	vec_done(&f->waiters);
	vec_done(&f->staged);
	vec_done(&f->out);
}

/* The source's end of the connection, or -1; it reads whatever it is told. */
static int peer = -1;

static void connected(struct fetch *f)
{
	char buf[65536];
	int pair[2];

	if (f->sh->urgent_fd < 0) {
		close_fdp(&peer);
		must(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
		f->sh->urgent_fd = pair[0];
		peer = pair[1];
	}
	while (recv(peer, buf, sizeof(buf), MSG_DONTWAIT) > 0)
		;
}

/* As it comes out of a ring, where the page-server has left whole frames. */
static void hear_pushed(struct fetch *f, const uint8_t *data, size_t n)
{
	struct cr_err err = {0};
	struct lazy_frame fr;

	if (n < LAZY_HDR_BYTES || lazy_frame_decode(&fr, data, &err) ||
	    fr.payload > LAZY_PAYLOAD_MAX || fr.payload > n - LAZY_HDR_BYTES)
		fetch_give_up(f, "not a frame of ours");
	else
		must(fetch_on_frame(f, &fr, data + LAZY_HDR_BYTES, true) == 0);
}

static void hear_urgent(struct fetch *f, const uint8_t *data, size_t n)
{
	struct in *in = &f->urgent;

	memcpy(in->buf + in->n, data, n);
	if (n > LAZY_HDR_BYTES && (data[TYPE_AT] == LAZY_PAGES || data[TYPE_AT] == LAZY_CLEAN))
		le_put64(in->buf + in->n + DIGEST_AT,
			 lazy_digest(data + LAZY_HDR_BYTES, n - LAZY_HDR_BYTES));
	in->n += n;
	must(take_frames(f, in) == 0 && in->n < BUFFER_BYTES);
}

/* One frame, or what is left. Returns how much of it was taken. */
static size_t hear(struct fetch *f, const uint8_t *data, size_t size)
{
	bool pushed = size > PUSHED_AT && data[PUSHED_AT] & 1;
	size_t n = size < LAZY_HDR_BYTES ? size : LAZY_HDR_BYTES;
	size_t room = BUFFER_BYTES - f->urgent.n;

	if (size >= LAZY_HDR_BYTES && le_get32(data + PAYLOAD_AT) <= size - n)
		n += le_get32(data + PAYLOAD_AT);
	n = n < room ? n : room;
	if (pushed)
		hear_pushed(f, data, n);
	else
		hear_urgent(f, data, n);
	if (f->lost_why)
		drop_connections(f, f->lost_why);
	connected(f);
	return n;
}

static int lowest_free_fd(void)
{
	int fd = dup(STDERR_FILENO);

	must(fd >= 0);
	close(fd);
	return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t *buffer;
	static int lowest;
	static struct fetch f;
	struct lazy_stats st = {0};

	if (!buffer) {
		signal(SIGPIPE, SIG_IGN);
		log_set_level(LOG_LVL_ERROR);
		buffer = malloc(BUFFER_BYTES);
		lowest = lowest_free_fd();
	}
	f = (struct fetch){.st = &st, .urgent.buf = buffer, .control = -1, .wake = -1};
	init_lock(&f.lock);
	make_space(&f);
	tasks_count_left(&f);
	connected(&f);
	while (size) {
		size_t n = hear(&f, data, size);

		data += n;
		size -= n;
	}
	/* counted down by differences, and from the bits */
	uint64_t left = st.left;
	tasks_count_left(&f);
	must(left == st.left);
	huge_forget_staged(&f);
	end_space(&f);
	close_fdp(&peer);
	pthread_mutex_destroy(&f.lock);
	must(lowest_free_fd() <= lowest + FDS_MOST);
	return 0;
}
