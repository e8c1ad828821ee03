/* What is pushed, through a ring: this test is source and fetcher; who feeds is a thread, or
 * somebody who writes into the memory what he likes. */
#include "wire/lazy_ring.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xxhash.h>

/* Where that is in the memory. Counts go round after 4 GiB: within each test that sends a lot. */
enum { CTL_BYTES = CR_PAGE_SIZE, FED_AT = 0, TAKEN_AT = 64 };
static const uint32_t start = 0u - 2 * LAZY_RING_BYTES - 12345;

struct fixture {
	struct lazy_ring ring;
	int fd, conn, source; /* conn: the other end of source */
	pthread_t feeder, sender;
	bool feeds, sends;
};

#define must(expr) assert_true((expr) >= 0)

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct cr_err err = {0};
	int pair[2];

	must(lazy_ring_new(&f->ring, &f->fd, &err));
	must(pwrite(f->fd, &start, sizeof(start), FED_AT));
	must(pwrite(f->fd, &start, sizeof(start), TAKEN_AT));
	f->ring.at = start;
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	f->conn = pair[0];
	f->source = pair[1];
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	lazy_ring_stop(&f->ring);
	shutdown(f->conn, SHUT_RDWR); /* who sends or reads does so no longer */
	if (f->sends)
		pthread_join(f->sender, NULL);
	if (f->feeds)
		pthread_join(f->feeder, NULL);
	lazy_ring_unmap(&f->ring);
	close_fdp(&f->source);
	close_fdp(&f->conn);
	close(f->fd);
	free(f);
	return 0;
}

/* ---- the other two ---- */

static void *feed_main(void *arg)
{
	struct fixture *f = arg;
	struct lazy_ring r;
	struct cr_err err = {0};

	if (lazy_ring_map(&r, f->fd, &err))
		return NULL;
	r.at = start;
	lazy_ring_feed(&r, f->conn);
	lazy_ring_unmap(&r);
	return NULL;
}

static void begin_feeding(struct fixture *f)
{
	must(fcntl(f->conn, F_SETFL, O_NONBLOCK)); /* as it comes from a link */
	assert_int_equal(pthread_create(&f->feeder, NULL, feed_main, f), 0);
	f->feeds = true;
}

static void end_feeding(struct fixture *f)
{
	assert_int_equal(pthread_join(f->feeder, NULL), 0);
	f->feeds = false;
}

static void send_all(int fd, const void *p, size_t n)
{
	for (const uint8_t *at = p; n;) {
		ssize_t k = send(fd, at, n, MSG_NOSIGNAL);

		if (k <= 0)
			return; /* what arrived is looked at */
		at += k;
		n -= (size_t)k;
	}
}

/* Frame i: now this, now that. Returns its length. */
static size_t make_frame(uint8_t *to, unsigned int i)
{
	struct lazy_frame f = {.type = i % 5 == 3   ? LAZY_ZEROS
				       : i % 7 == 6 ? LAZY_UNREADABLE
						    : LAZY_PAGES,
			       .pid = 1 + (int)i,
			       .npages = 1 + i * 37 % LAZY_PAGES_MAX,
			       .addr = i * (uint64_t)CR_PAGE_SIZE};

	if (f.type == LAZY_PAGES) {
		f.payload = f.npages * CR_PAGE_SIZE;
		for (size_t k = 0; k < f.payload; k++)
			to[LAZY_HDR_BYTES + k] = (uint8_t)(i + k / 13);
		f.digest = lazy_digest(to + LAZY_HDR_BYTES, f.payload);
	}
	lazy_frame_encode(to, &f);
	return LAZY_HDR_BYTES + f.payload;
}

static uint8_t frame[LAZY_HDR_BYTES + LAZY_PAYLOAD_MAX];

static void send_frame(struct fixture *f, unsigned int i)
{
	send_all(f->source, frame, make_frame(frame, i));
}

/* ---- the fetcher ---- */

static const uint8_t *take(struct fixture *f, struct lazy_frame *ret)
{
	const uint8_t *payload;
	enum lazy_ring_end why;
	int r;

	while (!(r = lazy_ring_take(&f->ring, ret, &payload, &why)))
		assert_int_equal(why, LAZY_RING_GOES_ON);
	assert_int_equal(r, 1);
	return payload;
}

static void check_frame(const struct lazy_frame *fr, const uint8_t *payload, unsigned int i)
{
	static uint8_t want[LAZY_HDR_BYTES + LAZY_PAYLOAD_MAX];
	uint8_t hdr[LAZY_HDR_BYTES];
	size_t n = make_frame(want, i);

	lazy_frame_encode(hdr, fr);
	assert_memory_equal(hdr, want, sizeof(hdr));
	assert_memory_equal(payload, want + sizeof(hdr), n - sizeof(hdr));
}

static void expect_frame(struct fixture *f, unsigned int i)
{
	struct lazy_frame fr;
	const uint8_t *payload = take(f, &fr);

	check_frame(&fr, payload, i);
}

static void expect_end(struct fixture *f, enum lazy_ring_end end)
{
	const uint8_t *payload;
	enum lazy_ring_end why;
	struct lazy_frame fr;

	do
		assert_int_equal(lazy_ring_take(&f->ring, &fr, &payload, &why), 0);
	while (!why);
	assert_int_equal(why, end);
}

/* ---- tests ---- */

enum { MANY = 200 /* frames: some twenty times round */ };

static void *send_many(void *arg)
{
	static uint8_t frame_sent[LAZY_HDR_BYTES + LAZY_PAYLOAD_MAX];
	struct fixture *f = arg;

	for (unsigned int i = 0; i < MANY; i++)
		send_all(f->source, frame_sent, make_frame(frame_sent, i));
	shutdown(f->source, SHUT_WR);
	return NULL;
}

static void begin_sending(struct fixture *f)
{
	assert_int_equal(pthread_create(&f->sender, NULL, send_many, f), 0);
	f->sends = true;
}

static void all_comes_in_order(void **state)
{
	struct fixture *f = *state;

	begin_sending(f);
	begin_feeding(f);
	for (unsigned int i = 0; i < MANY; i++)
		expect_frame(f, i);
	expect_end(f, LAZY_RING_CLOSED);
}

/* There is no room for another frame of the longest. at: how far the fetcher is. */
static void wait_full(struct fixture *f, uint32_t at)
{
	uint32_t fed = at;

	while (fed - at <= LAZY_RING_BYTES - 2 * (LAZY_HDR_BYTES + LAZY_PAYLOAD_MAX)) {
		usleep(1000);
		assert_int_equal(pread(f->fd, &fed, sizeof(fed), FED_AT), sizeof(fed));
	}
	assert_true(fed - at <= LAZY_RING_BYTES);
}

/* What was taken last stays as it is until the next is taken, however much comes. */
static void nothing_is_overwritten(void **state)
{
	struct fixture *f = *state;
	uint32_t at = start;

	begin_sending(f);
	begin_feeding(f);
	for (unsigned int i = 0; i < MANY / 2; i++) {
		struct lazy_frame fr;
		const uint8_t *payload = take(f, &fr);

		wait_full(f, at);
		check_frame(&fr, payload, i);
		at += LAZY_HDR_BYTES + fr.payload;
	}
	lazy_ring_stop(&f->ring);
	end_feeding(f);
}

static void a_byte_at_a_time(void **state)
{
	struct fixture *f = *state;

	begin_feeding(f);
	for (unsigned int i = 3; i < 10; i++) {
		size_t n = make_frame(frame, i);

		for (size_t k = 0; k < LAZY_HDR_BYTES + 2 && k < n; k++)
			send_all(f->source, frame + k, 1);
		if (n > LAZY_HDR_BYTES + 2)
			send_all(f->source, frame + LAZY_HDR_BYTES + 2, n - LAZY_HDR_BYTES - 2);
		expect_frame(f, i);
	}
}

static void damaged_pages_do_not_pass(void **state)
{
	struct fixture *f = *state;
	size_t n;

	begin_feeding(f);
	send_frame(f, 0);
	n = make_frame(frame, 1);
	frame[n - 1] ^= 1;
	send_all(f->source, frame, n);
	expect_frame(f, 0);
	expect_end(f, LAZY_RING_DAMAGED);
	end_feeding(f);
}

static void nonsense_does_not_pass(void **state)
{
	struct fixture *f = *state;

	begin_feeding(f);
	send_frame(f, 0);
	make_frame(frame, 3);
	frame[12] = 0; /* no pages */
	frame[13] = 0;
	send_all(f->source, frame, LAZY_HDR_BYTES);
	expect_frame(f, 0);
	expect_end(f, LAZY_RING_NONSENSE);
	end_feeding(f);
}

static void half_a_frame_does_not_pass(void **state)
{
	struct fixture *f = *state;

	begin_feeding(f);
	send_frame(f, 0);
	send_all(f->source, frame, make_frame(frame, 1) - 1);
	close_fdp(&f->source);
	expect_frame(f, 0);
	expect_end(f, LAZY_RING_CLOSED);
}

/* Nobody takes, so there is no room, and whoever feeds waits for some. */
static void who_waits_for_room_can_be_stopped(void **state)
{
	struct fixture *f = *state;

	begin_sending(f);
	begin_feeding(f);
	wait_full(f, start);
	lazy_ring_stop(&f->ring);
	end_feeding(f);
}

static void *stop_main(void *arg)
{
	usleep(10000); /* so that it waits, most likely */
	lazy_ring_stop(arg);
	return NULL;
}

static void who_waits_for_frames_can_be_stopped(void **state)
{
	struct fixture *f = *state;
	const uint8_t *payload;
	enum lazy_ring_end why;
	struct lazy_frame fr;
	pthread_t t;

	begin_feeding(f);
	assert_int_equal(pthread_create(&t, NULL, stop_main, &f->ring), 0);
	assert_int_equal(lazy_ring_take(&f->ring, &fr, &payload, &why), 0);
	assert_int_equal(why, LAZY_RING_GOES_ON);
	pthread_join(t, NULL);
}

/* Whatever the processor has: the other host's has something else. */
static void digests_are_the_same_everywhere(void **state)
{
	static uint8_t pages[LAZY_PAYLOAD_MAX + LAZY_HDR_BYTES];

	(void)state;
	for (size_t i = 0; i < sizeof(pages); i++)
		pages[i] = (uint8_t)(i * 31 + i / 4096);
	for (size_t n = CR_PAGE_SIZE; n <= LAZY_PAYLOAD_MAX; n += CR_PAGE_SIZE)
		assert_int_equal(lazy_digest(pages + LAZY_HDR_BYTES, n),
				 XXH3_64bits(pages + LAZY_HDR_BYTES, n));
	/* XXH3-64 of one page of these bytes */
	assert_int_equal(lazy_digest(pages, CR_PAGE_SIZE), 0xc90052126f9618dcull);
}

/* ---- who feeds may say what he likes ---- */

/* len: what it says that there is. */
static int take_forged(struct fixture *f, const uint8_t *bytes, size_t n, uint32_t len)
{
	uint32_t at = start + len, first = start % LAZY_RING_BYTES, whole = LAZY_RING_BYTES - first;
	const uint8_t *payload;
	enum lazy_ring_end why;
	struct lazy_frame fr;

	whole = n < whole ? (uint32_t)n : whole;
	must(pwrite(f->fd, bytes, whole, CTL_BYTES + first));
	must(pwrite(f->fd, bytes + whole, n - whole, CTL_BYTES));
	must(pwrite(f->fd, &at, sizeof(at), FED_AT));
	return lazy_ring_take(&f->ring, &fr, &payload, &why);
}

static void forged_rings_are_seen(void **state)
{
	struct fixture *f = *state;
	uint32_t n = (uint32_t)make_frame(frame, 0);

	/* less than a header; than what it announces; more than there can be */
	assert_int_equal(take_forged(f, frame, n, LAZY_HDR_BYTES - 1), -EPROTO);
	assert_int_equal(take_forged(f, frame, n, n - 1), -EPROTO);
	assert_int_equal(take_forged(f, frame, n, LAZY_RING_BYTES + 1), -EPROTO);
	assert_int_equal(take_forged(f, frame, n, UINT32_MAX), -EPROTO);
	frame[0] ^= 1; /* not our magic */
	assert_int_equal(take_forged(f, frame, n, n), -EPROTO);
	frame[0] ^= 1;
	frame[16] = 1; /* an address within a page */
	assert_int_equal(take_forged(f, frame, n, n), -EPROTO);
	frame[16] = 0;
	memset(frame + 32, 0xff, 4); /* the payload */
	assert_int_equal(take_forged(f, frame, n, UINT32_MAX), -EPROTO);
	n = (uint32_t)make_frame(frame, 0);
	assert_int_equal(take_forged(f, frame, n, n), 1);
}

static void the_memory_stays(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(ftruncate(f->fd, 0), -1);
	assert_int_equal(errno, EPERM);
	assert_int_equal(ftruncate(f->fd, 1 << 30), -1);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
	    T(all_comes_in_order),
	    T(nothing_is_overwritten),
	    T(a_byte_at_a_time),
	    T(damaged_pages_do_not_pass),
	    T(nonsense_does_not_pass),
	    T(half_a_frame_does_not_pass),
	    T(who_waits_for_room_can_be_stopped),
	    T(who_waits_for_frames_can_be_stopped),
	    T(forged_rings_are_seen),
	    T(the_memory_stays),
	    cmocka_unit_test(digests_are_the_same_everywhere),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
