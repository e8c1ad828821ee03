/* libFuzzer target: who serves pages at the source, under a hostile destination. The input is a
 * byte that says on how many connections pages are pushed, and whether it is known what was written
 * of shared memory (the highest bit), and what comes over that for requests.
 * Whatever is answered has to be frames, of memory that was handed out. */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include "base/cleanup.h"
#include "base/log.h"
#include "source/serve.h"
#include "source/serve_known.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { PID = 7, PAGES = 96, OBJECT = LAZY_OBJECT + 1, FDS_MOST = 8 };
#define FIRST 0x200000ull

struct end { /* ours, of a connection */
	int fd;
	uint8_t *buf;
	size_t n;
};

struct destination {
	const uint8_t *data;
	size_t size;
	struct end ends[1 + LAZY_BULK_MAX];
	size_t n;
};

/* Some of it is zeros, some cannot be read. */
static uint32_t read_memory(void *arg, pid_t pid, uint64_t va, uint32_t n, uint8_t *buf)
{
	(void)arg;
	for (uint32_t i = 0; i < n; i++, va += CR_PAGE_SIZE) {
		if (pid != PID || va < FIRST || va >= FIRST + PAGES * CR_PAGE_SIZE)
			return i;
		memset(buf + i * CR_PAGE_SIZE, (int)(va >> 12 & 3), CR_PAGE_SIZE);
	}
	return n;
}

static void judge(struct end *e)
{
	size_t at = 0;

	while (e->n - at >= LAZY_HDR_BYTES) {
		struct cr_err err = {0};
		struct lazy_frame f;

		if (lazy_frame_decode(&f, e->buf + at, &err))
			abort();
		if (e->n - at < LAZY_HDR_BYTES + f.payload)
			break;
		bool of_memory = f.type != LAZY_START && f.type != LAZY_BYE && f.type != LAZY_TOLD;
		if (of_memory && f.pid != PID && f.pid != OBJECT)
			abort();
		if (!lazy_frame_intact(&f, e->buf + at + LAZY_HDR_BYTES))
			abort();
		at += LAZY_HDR_BYTES + f.payload;
	}
	memmove(e->buf, e->buf + at, e->n - at);
	e->n -= at;
}

static void take(struct end *e)
{
	ssize_t n =
	    recv(e->fd, e->buf + e->n, LAZY_HDR_BYTES + LAZY_PAYLOAD_MAX - e->n, MSG_DONTWAIT);

	if (n > 0) {
		e->n += (size_t)n;
		judge(e);
	} else if (n == 0 || errno != EAGAIN) {
		close_fdp(&e->fd);
	}
}

static void say(struct destination *d)
{
	ssize_t n = send(d->ends[0].fd, d->data, d->size, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n > 0) {
		d->data += n;
		d->size -= (size_t)n;
	} else if (errno != EAGAIN) {
		d->size = 0;
	}
	if (!d->size)
		shutdown(d->ends[0].fd, SHUT_WR);
}

static void *destination_main(void *arg)
{
	struct destination *d = arg;
	struct pollfd p[1 + LAZY_BULK_MAX];
	bool open = true;

	if (!d->size)
		say(d);
	while (open) {
		for (size_t i = 0; i < d->n; i++)
			p[i] = (struct pollfd){
			    .fd = d->ends[i].fd,
			    .events = (short)(POLLIN | (i == 0 && d->size ? POLLOUT : 0))};
		poll(p, d->n, -1);
		open = false;
		for (size_t i = 0; i < d->n; i++) {
			if (p[i].revents & POLLOUT && d->size)
				say(d);
			if (p[i].revents & ~POLLOUT)
				take(&d->ends[i]);
			open |= d->ends[i].fd >= 0;
		}
	}
	return NULL;
}

static int connect_to(struct destination *d)
{
	int pair[2];
	struct end *e = &d->ends[d->n++];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		abort();
	e->fd = pair[0];
	e->buf = malloc(LAZY_HDR_BYTES + LAZY_PAYLOAD_MAX);
	return pair[1];
}

static int lowest_free_fd(void)
{
	int fd = dup(STDERR_FILENO);

	if (fd < 0)
		abort();
	close(fd);
	return fd;
}

/* Every other page of the object was written. */
static int what_is_known(void)
{
	struct shared_pages written;
	struct sentmap sent;
	struct cr_err err = {0};
	size_t budget = 0;
	int fd;

	sentmap_init(&sent, &budget);
	if (shared_pages_init(&written, 64 * CR_PAGE_SIZE, &err))
		abort();
	for (size_t i = 0; i < 64; i += 2)
		shared_pages_mark(&written, i);
	if (serve_known_make(&sent, 0, 64, &written, &fd, &err))
		abort();
	shared_pages_done(&written);
	sentmap_done(&sent);
	return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int lowest;
	static struct serve_file object[2] = {{OBJECT, -1}, {OBJECT | SERVE_KNOWN, -1}};
	const pid_t pid = PID;
	const struct serve_range recent = {.pid = PID, .start = FIRST, .end = FIRST + 0x4000};
	/* more than there is, so that its bounds are passed as well */
	const struct serve_range has[] = {{PID, FIRST, FIRST + 4 * LAZY_CHUNK_SPAN},
					  {PID, FIRST << 8, (FIRST << 8) + LAZY_CHUNK_SPAN},
					  {OBJECT, 0, LAZY_CHUNK_SPAN}};
	struct serve sv = {.pids = &pid,
			   .has = has,
			   .n_has = sizeof(has) / sizeof(*has),
			   .n_pids = 1,
			   .files = object,
			   .n_files = size && data[0] & 0x80 ? 2 : 1,
			   .recent = &recent,
			   .n_recent = 1,
			   .lifeline = -1,
			   .read = read_memory};
	struct destination d = {0};
	struct serve_links links = {.urgent = -1};
	struct cr_err err = {0};
	pthread_t peer;

	if (object[0].fd < 0) {
		signal(SIGPIPE, SIG_IGN);
		log_set_level(LOG_LVL_ERROR);
		object[0].fd = memfd_create("fuzz", MFD_CLOEXEC);
		if (object[0].fd < 0 || ftruncate(object[0].fd, 64 * (off_t)CR_PAGE_SIZE))
			abort();
		object[1].fd = what_is_known();
		lowest = lowest_free_fd();
	}
	links.urgent = connect_to(&d);
	links.n_bulk = size ? (data[0] & 0x7f) % (LAZY_BULK_MAX + 1) : 0;
	for (size_t i = 0; i < links.n_bulk; i++)
		links.bulk[i] = connect_to(&d);
	d.data = size ? data + 1 : data;
	d.size = size ? size - 1 : 0;
	if (pthread_create(&peer, NULL, destination_main, &d))
		abort();
	int r = serve_on(&sv, &links, &err);
	if (!r != !err.kind)
		abort();
	pthread_join(peer, NULL);
	for (size_t i = 0; i < d.n; i++)
		free(d.ends[i].buf);
	if (lowest_free_fd() > lowest + FDS_MOST)
		abort();
	return 0;
}
