/* libFuzzer target: a page-server in dir mode, with its control socket, under hostile connections;
 * the input is as page_server_input.h says.
 *
 * The server is the real one, with its loop and threads; connections are socket pairs. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <uv.h>

/* What stream_accept() takes from the listener. */
static int accept_given(uv_stream_t *listener, uv_stream_t *client);
#define uv_accept accept_given
#include "pageserver/accept.c"
#undef uv_accept
#define on_closed control_on_closed
#define answer control_answer
#include "pageserver/control.c"
#undef on_closed
#undef answer
#include "tests/fuzz/page_server_input.h"
#include "wire/le.h"
#include "wire/token_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SOCKET_BYTES = 4 << 20, STEPS_MAX = 64, BATCH_PAGES_MAX = 64, FDS_MOST = 32 };

static struct server *sv;
static struct {
	int fd; /* ours; -1: not open */
	struct mig_token token;
	uint64_t seq;
} connections[DO_CONNECTIONS], controls[DO_CONTROLS];
static int given_fd = -1;
static char dir[64];
static pid_t victim; /* whom control requests name, whatever they say */

static int accept_given(uv_stream_t *listener, uv_stream_t *client)
{
	(void)listener;
	int fd = given_fd;
	given_fd = -1;
	return uv_tcp_open((uv_tcp_t *)client, fd);
}

/* ---- the server ---- */

static void end(void)
{
	char cmd[96];

	kill(victim, SIGKILL);
	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", dir);
	if (system(cmd))
		perror(cmd);
}

static void begin(void)
{
	snprintf(dir, sizeof(dir), "/dev/shm/cr-fuzz-server.XXXXXX");
	if (!mkdtemp(dir))
		abort();
	signal(SIGPIPE, SIG_IGN);
	log_set_level(LOG_LVL_ERROR);
	victim = fork();
	if (!victim) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	atexit(end);
	sv = calloc(1, sizeof(*sv));
	if (!sv || uv_loop_init(&sv->loop) || uv_mutex_init(&sv->lock) || uv_cond_init(&sv->idle))
		abort();
	sv->dir = calloc(1, sizeof(*sv->dir));
	sv->dir->path = dir;
	sv->dir->fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	sv->dir->limits.memory_max = 64 << 20;
	sv->dir->limits.disk_max = 64 << 20;
	token_none(&sv->dir->token);
	notify_init(&sv->notify, -1);
	sv->max_connections = sv->max_half_open = 64;
	sv->idle_timeout_us = 3600000000;
	sv->listener.data = sv;
	struct cr_err err = {0};
	if (server_start_timers(sv, &err))
		abort();
	uv_unref((uv_handle_t *)&sv->sweep); /* do not keep the loop running */
	uv_unref((uv_handle_t *)&sv->throttle);
	for (size_t i = 0; i < DO_CONNECTIONS; i++)
		connections[i].fd = -1;
	for (size_t i = 0; i < DO_CONTROLS; i++)
		controls[i].fd = -1;
}

static bool at_work(void)
{
	for (struct stream *st = sv->streams; st; st = st->next)
		if (st->working || st->peer_busy)
			return true;
	return false;
}

static void drain(int *fd)
{
	char b[4096];

	while (*fd >= 0 && recv(*fd, b, sizeof(b), MSG_DONTWAIT) > 0)
		;
}

/* Until it has nothing to do any more. */
static void pump(void)
{
	for (int quiet = 0; quiet < 3;) {
		bool busy = at_work();

		uv_run(&sv->loop, busy ? UV_RUN_ONCE : UV_RUN_NOWAIT);
		for (size_t i = 0; i < DO_CONNECTIONS; i++)
			drain(&connections[i].fd);
		quiet = busy ? 0 : quiet + 1;
	}
}

/* ---- connections ---- */

static int pair(int type, int *theirs)
{
	int sv2[2], size = SOCKET_BYTES;

	if (socketpair(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv2))
		abort();
	setsockopt(sv2[0], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
	*theirs = sv2[1];
	return sv2[0];
}

static int connection(size_t i)
{
	if (connections[i].fd < 0) {
		connections[i].fd = pair(SOCK_STREAM, &given_fd);
		connections[i].seq = 0;
		stream_accept((uv_stream_t *)&sv->listener, 0);
	}
	return connections[i].fd;
}

static void say(size_t i, const void *b, size_t n)
{
	if (send(connection(i), b, n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		errno = 0; /* it is not listened to any more */
}

static int control(size_t i)
{
	struct control *c;
	struct cr_err err = {0};
	int theirs;

	if (controls[i].fd >= 0)
		return controls[i].fd;
	controls[i].fd = pair(SOCK_SEQPACKET, &theirs);
	if (control_new(&c, sv, theirs, on_readable, &err))
		abort();
	c->next = sv->controls;
	if (c->next)
		c->next->prev = c;
	sv->controls = c;
	sv->ncontrols++;
	return controls[i].fd;
}

/* ---- steps ---- */

static struct mig_id an_id(const uint8_t *b, size_t n)
{
	return (struct mig_id){.b = {7, n ? b[0] & 1 : 0}};
}

static void frame(size_t i, const uint8_t *b, size_t n)
{
	_cleanup_free_ uint8_t *f = malloc(n + 4);

	le_put32(f, (uint32_t)n);
	memcpy(f + 4, b, n);
	say(i, f, n + 4);
}

static void peer_hello(size_t i, const uint8_t *b, size_t n)
{
	struct msg m = msg_of(MSG_HELLO);
	_cleanup_free_ uint8_t *bytes = NULL;
	struct cr_err err = {0};
	size_t len;

	m.hello = (struct msg_hello){.version = MSG_VERSION,
				     .role = MSG_ROLE_PEER,
				     .id = an_id(b, n),
				     .token = sv->dir->token,
				     .host = "fuzz"};
	if (msg_encode(&m, &bytes, &len, &err))
		abort();
	frame(i, bytes, len);
}

static void stream_hello(size_t i, const uint8_t *b, size_t n)
{
	struct page_hello h = {.version = PAGE_STREAM_VERSION,
			       .version_min = PAGE_STREAM_VERSION,
			       .stream = n > 1 ? b[1] % 4 : 0,
			       .nstreams = 4,
			       .caps = PAGE_CAPS};
	struct page_frame f = {.type = PAGE_FRAME_HELLO, .wire_bytes = PAGE_HELLO_BYTES};
	uint8_t out[PAGE_HDR_BYTES + PAGE_HELLO_BYTES];
	struct mig_id id = an_id(b, n);

	memcpy(h.id, id.b, sizeof(h.id));
	memcpy(h.token, sv->dir->token.b, sizeof(h.token));
	page_frame_encode(out, &f);
	page_hello_encode(out + PAGE_HDR_BYTES, &h);
	say(i, out, sizeof(out));
}

static void flush(size_t i)
{
	uint8_t out[PAGE_HDR_BYTES];
	struct page_frame f = {.type = PAGE_FRAME_FLUSH, .seq = ++connections[i].seq};

	page_frame_encode(out, &f);
	say(i, out, sizeof(out));
}

static void batch(size_t i, const uint8_t *b, size_t n)
{
	struct page_frame f = {.type = PAGE_FRAME_BATCH};
	uint8_t *out =
	    calloc(1, PAGE_HDR_BYTES + STEPS_MAX * PAGE_RUN_BYTES + BATCH_PAGES_MAX * CR_PAGE_SIZE);
	uint8_t *at = out + PAGE_HDR_BYTES;
	unsigned int pages = 0;

	if (n)
		f.target = b[0];
	for (b++; n > 4 && f.nruns < STEPS_MAX; b += 4, n -= 4) {
		struct page_wire_run r = {
		    .kind = b[0] % 4, .addr = (uint64_t)le_get16(b + 1) << 12, .npages = b[3]};

		if (r.kind == PAGE_DATA) {
			if (pages + r.npages > BATCH_PAGES_MAX)
				r.npages = BATCH_PAGES_MAX - pages;
			pages += r.npages;
		}
		page_run_encode(at, &r);
		at += PAGE_RUN_BYTES;
		f.nruns++;
	}
	f.raw_bytes = f.wire_bytes = pages * (uint32_t)CR_PAGE_SIZE;
	memset(at, 0x5a, f.raw_bytes);
	f.seq = ++connections[i].seq;
	page_frame_encode(out, &f);
	say(i, out, (size_t)(at - out) + f.raw_bytes);
	free(out);
}

/* Never in the name of another process than ours: its memory would be written. */
static void control_packet(size_t i, const uint8_t *b, size_t n, bool with_fd)
{
	uint8_t packet[PS_REQUEST_BYTES + 8];
	char room[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec iov = {.iov_base = packet, .iov_len = n < sizeof(packet) ? n : sizeof(packet)};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
	_cleanup_fd_ int fd = with_fd ? memfd_create("fuzz", MFD_CLOEXEC) : -1;

	memcpy(packet, b, iov.iov_len);
	if (iov.iov_len >= 16)
		le_put32(packet + 12, (uint32_t)victim);
	if (fd >= 0 && !ftruncate(fd, 1 << 20)) {
		mh.msg_control = room;
		mh.msg_controllen = sizeof(room);
		struct cmsghdr *cm = CMSG_FIRSTHDR(&mh);
		*cm = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)),
				       .cmsg_level = SOL_SOCKET,
				       .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(cm), &fd, sizeof(int));
	}
	if (sendmsg(control(i), &mh, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		errno = 0;
}

static void control_session(size_t i, const uint8_t *b, size_t n)
{
	struct ps_request rq = {.type = PS_SESSION};
	uint8_t out[PS_REQUEST_BYTES];
	struct mig_id id = an_id(b, n);

	memcpy(rq.id, id.b, sizeof(rq.id));
	memcpy(rq.token, sv->dir->token.b, sizeof(rq.token));
	ps_request_encode(out, &rq);
	control_packet(i, out, sizeof(out), false);
}

static void step(enum page_server_step s, size_t n_connection, const uint8_t *b, size_t n)
{
	size_t i = n_connection % DO_CONNECTIONS, k = n_connection / 2 % DO_CONTROLS;

	switch (s) {
	case DO_RAW:
		say(i, b, n);
		break;
	case DO_FRAME:
		frame(i, b, n);
		break;
	case DO_PEER_HELLO:
		peer_hello(i, b, n);
		break;
	case DO_STREAM_HELLO:
		stream_hello(i, b, n);
		break;
	case DO_BATCH:
		batch(i, b, n);
		break;
	case DO_FLUSH:
		flush(i);
		break;
	case DO_CLOSE:
		close_fdp(&connections[i].fd);
		break;
	case DO_CONTROL:
		control_packet(k, b, n, n_connection & 1);
		break;
	case DO_CONTROL_SESSION:
		control_session(k, b, n);
		break;
	case DO_CONTROL_CLOSE:
		close_fdp(&controls[k].fd);
		break;
	case DO_STEPS:
		break;
	}
}

static void remove_images(void)
{
	_cleanup_dir_ DIR *d = opendir(dir);
	struct dirent *e;

	while (d && (e = readdir(d))) {
		_cleanup_dir_ DIR *image = NULL;
		struct dirent *f;
		char path[400];

		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
		image = opendir(path);
		while (image && (f = readdir(image)))
			unlinkat(dirfd(image), f->d_name, 0);
		unlinkat(dirfd(d), e->d_name, AT_REMOVEDIR);
	}
}

/* Does not grow, if no descriptor stays open. (Other threads, the sanitizers' among them, may have
 * one open just then.) */
static int lowest_free_fd(void)
{
	int fd = dup(STDERR_FILENO);

	if (fd < 0)
		abort();
	close(fd);
	return fd;
}

static void end_of_input(void)
{
	for (size_t i = 0; i < DO_CONNECTIONS; i++)
		close_fdp(&connections[i].fd);
	for (size_t i = 0; i < DO_CONTROLS; i++)
		close_fdp(&controls[i].fd);
	pump();
	while (sv->streams) /* that linger */
		stream_close(sv->streams);
	control_close_all(sv);
	uv_run(&sv->loop, UV_RUN_DEFAULT);
	/* nothing is left of anybody */
	if (sv->sessions || sv->nstreams || sv->ngreeted || sv->half_open || sv->ncontrols ||
	    sv->dir->limits.memory_bytes || sv->dir->limits.disk_bytes)
		abort();
	remove_images();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int lowest;

	if (!sv) {
		begin();
		lowest = lowest_free_fd();
	}
	for (int steps = 0; size >= 4 && steps < STEPS_MAX; steps++) {
		size_t n = le_get16(data + 2);

		n = n < size - 4 ? n : size - 4;
		step(data[0] % DO_STEPS, data[1], data + 4, n);
		pump();
		data += 4 + n;
		size -= 4 + n;
	}
	end_of_input();
	if (lowest_free_fd() > lowest + FDS_MOST)
		abort();
	return 0;
}
