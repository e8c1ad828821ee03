#include "wire/lazy_ring.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
	CTL_BYTES = CR_PAGE_SIZE,
	FRAME_MAX = LAZY_HDR_BYTES + LAZY_PAYLOAD_MAX,
	/* in one call: as long as it takes, whoever serves a fault may wait for the processor */
	READ_MAX = 64 << 10,
};

/* What one side says. Whoever waits for it looks at `bell` first: each change rings it. */
struct side {
	_Alignas(64) _Atomic uint32_t at; /* bytes in all: whole frames put, or done with */
	_Atomic uint32_t over;            /* enum lazy_ring_end; of the fetcher: 1 */
	_Atomic uint32_t bell, waits;
};

struct lazy_ring_shared {
	struct side fed, taken;
};

_Static_assert(LAZY_RING_BYTES >= 2 * FRAME_MAX, "whoever feeds always has room for a frame");
_Static_assert(sizeof(struct lazy_ring_shared) <= CTL_BYTES, "one page");

/* ---- the memory ---- */

/* Once more right behind itself. */
static int map_data(uint8_t **ret, int fd)
{
	uint8_t *p = mmap(NULL, 2 * LAZY_RING_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return -1;
	*ret = p;
	for (int i = 0; i < 2; i++)
		if (mmap(p + i * LAZY_RING_BYTES, LAZY_RING_BYTES, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd, CTL_BYTES) == MAP_FAILED)
			return -1;
	return 0;
}

int lazy_ring_map(struct lazy_ring *ret, int fd, struct cr_err *err)
{
	*ret = (struct lazy_ring){0};
	void *p = mmap(NULL, CTL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (p != MAP_FAILED)
		ret->shared = p;
	if (ret->shared && !map_data(&ret->data, fd))
		return 0;
	int r = cr_err_sys(err, "memory for what is pushed");
	lazy_ring_unmap(ret);
	return r;
}

int lazy_ring_new(struct lazy_ring *ret, int *fd, struct cr_err *err)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	_cleanup_fd_ int mem = memfd_create("cr-pushed", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (mem < 0 || ftruncate(mem, CTL_BYTES + LAZY_RING_BYTES) ||
	    fcntl(mem, F_ADD_SEALS, seals))
		return cr_err_sys(err, "memory for what is pushed");
	int r = lazy_ring_map(ret, mem, err);
	if (!r)
		*fd = take_fd(&mem);
	return r;
}

void lazy_ring_unmap(struct lazy_ring *r)
{
	if (r->data)
		munmap(r->data, 2 * LAZY_RING_BYTES);
	if (r->shared)
		munmap(r->shared, CTL_BYTES);
	*r = (struct lazy_ring){0};
}

/* ---- waiting ---- */

/* Not FUTEX_PRIVATE: two processes. The other side may claim anything about itself, so it is never
 * waited for without an end. */
static void wait_for(struct side *s, uint32_t bell)
{
	const struct timespec t = {.tv_nsec = LAZY_RING_WAIT_MS * 1000000};

	atomic_store(&s->waits, 1);
	if (atomic_load(&s->bell) == bell)
		syscall(SYS_futex, &s->bell, FUTEX_WAIT, bell, &t, NULL, 0);
}

static void ring(struct side *s)
{
	atomic_fetch_add(&s->bell, 1);
	if (atomic_exchange(&s->waits, 0))
		syscall(SYS_futex, &s->bell, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

static void say_at(struct side *s, uint32_t at)
{
	atomic_store(&s->at, at);
	ring(s);
}

static void say_over(struct side *s, uint32_t why)
{
	atomic_store(&s->over, why);
	ring(s);
}

static uint8_t *place(const struct lazy_ring *r, uint32_t at)
{
	return r->data + at % LAZY_RING_BYTES;
}

/* ---- feeding ---- */

/* Passes on what is whole of *have bytes. */
static enum lazy_ring_end put_frames(struct lazy_ring *r, uint32_t *have)
{
	while (*have >= LAZY_HDR_BYTES) {
		const uint8_t *at = place(r, r->at);
		struct cr_err err = {0};
		struct lazy_frame f;

		if (lazy_frame_decode(&f, at, &err) || f.payload > LAZY_PAYLOAD_MAX)
			return LAZY_RING_NONSENSE;
		if (*have < LAZY_HDR_BYTES + f.payload)
			break;
		if (!lazy_frame_intact(&f, at + LAZY_HDR_BYTES))
			return LAZY_RING_DAMAGED;
		*have -= LAZY_HDR_BYTES + f.payload;
		r->at += LAZY_HDR_BYTES + f.payload;
		say_at(&r->shared->fed, r->at);
	}
	return LAZY_RING_GOES_ON;
}

/* Room for a frame, behind `have` bytes of one. 0: the fetcher has stopped. */
static uint32_t wait_for_room(struct lazy_ring *r, uint32_t have)
{
	struct side *s = &r->shared->taken;

	for (;;) {
		uint32_t bell = atomic_load(&s->bell);
		uint32_t used = r->at + have - atomic_load(&s->at);

		if (atomic_load(&s->over))
			return 0;
		if (used <= LAZY_RING_BYTES - FRAME_MAX)
			return LAZY_RING_BYTES - used;
		wait_for(s, bell);
	}
}

static enum lazy_ring_end feed(struct lazy_ring *r, int conn)
{
	enum lazy_ring_end why = LAZY_RING_GOES_ON;
	uint32_t have = 0;

	while (!why) {
		uint32_t room = wait_for_room(r, have);

		if (!room)
			return LAZY_RING_CLOSED;
		ssize_t n =
		    recv(conn, place(r, r->at + have), room < READ_MAX ? room : READ_MAX, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return LAZY_RING_CLOSED;
		have += (uint32_t)n;
		why = put_frames(r, &have);
	}
	return why;
}

void lazy_ring_feed(struct lazy_ring *r, int conn)
{
	int flags = fcntl(conn, F_GETFL);
	/* a thread of its own waits for it */
	bool waits = flags >= 0 && !fcntl(conn, F_SETFL, flags & ~O_NONBLOCK);

	say_over(&r->shared->fed, waits ? feed(r, conn) : LAZY_RING_CLOSED);
}

/* ---- taking ---- */

/* How many bytes there are. 0: none for now. */
static uint32_t wait_for_more(struct lazy_ring *r, enum lazy_ring_end *why)
{
	struct side *s = &r->shared->fed;

	for (int look = 0; look < 2; look++) {
		uint32_t bell = atomic_load(&s->bell);
		/* first: what was put before the end counts */
		uint32_t over = atomic_load(&s->over);
		uint32_t n = atomic_load(&s->at) - r->at;

		*why = n ? LAZY_RING_GOES_ON : (enum lazy_ring_end)over;
		if (n || over || atomic_load(&r->shared->taken.over) || look)
			return n;
		wait_for(s, bell);
	}
	return 0;
}

int lazy_ring_take(struct lazy_ring *r, struct lazy_frame *ret, const uint8_t **payload,
		   enum lazy_ring_end *why)
{
	uint8_t hdr[LAZY_HDR_BYTES];
	struct cr_err err = {0};

	if (r->frame) {
		r->at += r->frame;
		r->frame = 0;
		say_at(&r->shared->taken, r->at);
	}
	uint32_t n = wait_for_more(r, why);
	if (!n)
		return 0;
	memcpy(hdr, place(r, r->at), sizeof(hdr));
	if (n > LAZY_RING_BYTES || n < LAZY_HDR_BYTES || lazy_frame_decode(ret, hdr, &err) ||
	    ret->payload > LAZY_PAYLOAD_MAX || ret->payload > n - LAZY_HDR_BYTES)
		return -EPROTO;
	*payload = place(r, r->at) + LAZY_HDR_BYTES;
	r->frame = LAZY_HDR_BYTES + ret->payload;
	return 1;
}

void lazy_ring_stop(struct lazy_ring *r)
{
	say_over(&r->shared->taken, 1);
	ring(&r->shared->fed);
}
