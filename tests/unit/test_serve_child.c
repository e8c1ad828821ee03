/* The page-server while pages are fetched, by the real program. At the source: pages of a stopped
 * process; this test is agent and destination. At the destination: what is pushed; this test is
 * source and fetcher. */
#include "source/serve_child.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "source/serve_known.h"
#include "wire/lazy_ring.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANDBOXED 0 /* it needs more */
#else
#define SANDBOXED 1
#endif

enum {
	PAGES = 64,
	ZERO_AT = 5,
	NO_ACCESS_AT = 9,
	CHUNK_BYTES = 512 * CR_PAGE_SIZE,
	PATIENCE_MS = 60000,
};

struct fixture {
	uint8_t *map; /* the task has a copy at this address, a multiple of 2 MiB */
	pid_t task;
	int mem;
	struct serve sv;
	struct serve_range has;
	struct serve_child child;
	char program[600];
	int urgent, bulk; /* the destination's ends */
	/* of the agent's thread */
	struct serve_links links;
	pthread_t agent;
	int r;
	struct cr_err err;
};

#define must(expr) assert_true((expr) >= 0)

static void fill_page(uint8_t *p, unsigned int i)
{
	memset(p, i == ZERO_AT ? 0 : (int)(i + 1), CR_PAGE_SIZE);
}

static void task_main(uint8_t *map)
{
	if (mprotect(map + NO_ACCESS_AT * CR_PAGE_SIZE, CR_PAGE_SIZE, PROT_NONE))
		_exit(1);
	raise(SIGSTOP);
	_exit(0);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	char self[512] = "", path[40];
	int st;

	must(readlink("/proc/self/exe", self, sizeof(self) - 1));
	snprintf(f->program, sizeof(f->program), "%s/page-server", dirname(dirname(dirname(self))));
	f->child.ps.program = f->program;
	uint8_t *p =
	    mmap(NULL, 2 * CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	f->map = (uint8_t *)(((uintptr_t)p + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_BYTES);
	for (unsigned int i = 0; i < PAGES; i++)
		fill_page(f->map + i * CR_PAGE_SIZE, i);
	f->task = fork();
	if (!f->task)
		task_main(f->map);
	must(waitpid(f->task, &st, WUNTRACED));
	assert_true(WIFSTOPPED(st));
	snprintf(path, sizeof(path), "/proc/%d/mem", f->task);
	f->mem = open(path, O_RDONLY | O_CLOEXEC);
	must(f->mem);
	f->has =
	    (struct serve_range){f->task, (uintptr_t)f->map, (uintptr_t)f->map + 2 * CHUNK_BYTES};
	f->sv = (struct serve){
	    .pids = &f->task, .mems = &f->mem, .n_pids = 1, .has = &f->has, .n_has = 1};
	f->urgent = f->bulk = -1;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	serve_child_stop(&f->child);
	close_fdp(&f->urgent);
	close_fdp(&f->bulk);
	close_fdp(&f->mem);
	kill(f->task, SIGKILL);
	waitpid(f->task, NULL, 0);
	free(f);
	return 0;
}

/* ---- the agent ---- */

static void *serve_main(void *arg)
{
	struct fixture *f = arg;

	f->r = serve_child_serve(&f->child, &f->sv, &f->links, &f->err);
	return NULL;
}

/* A new pair of connections, and a page-server that serves on them. */
static void begin(struct fixture *f)
{
	const struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
	int u[2], b[2];

	close_fdp(&f->urgent);
	close_fdp(&f->bulk);
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, u));
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, b));
	f->urgent = u[0];
	f->bulk = b[0];
	setsockopt(f->urgent, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(f->bulk, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	f->links = (struct serve_links){.urgent = u[1], .bulk = {b[1]}, .n_bulk = 1};
	f->err = (struct cr_err){0};
	if (serve_child_start(&f->child, &f->err) || serve_child_tell(&f->child, &f->sv, &f->err))
		fail_msg("%s", f->err.msg);
	assert_int_equal(pthread_create(&f->agent, NULL, serve_main, f), 0);
}

static int end(struct fixture *f)
{
	assert_int_equal(pthread_join(f->agent, NULL), 0);
	return f->r;
}

/* ---- the destination ---- */

static void say_with(const struct fixture *f, struct lazy_frame h, const void *payload)
{
	uint8_t hdr[LAZY_HDR_BYTES];

	lazy_frame_encode(hdr, &h);
	assert_int_equal(send(f->urgent, hdr, sizeof(hdr), MSG_NOSIGNAL), sizeof(hdr));
	if (h.payload)
		assert_int_equal(send(f->urgent, payload, h.payload, MSG_NOSIGNAL), h.payload);
}

static void say(const struct fixture *f, enum lazy_type type)
{
	say_with(f, (struct lazy_frame){.type = type}, NULL);
}

static void want(const struct fixture *f, pid_t pid, unsigned int at, uint32_t n)
{
	say_with(f,
		 (struct lazy_frame){.type = LAZY_WANT,
				     .pid = pid,
				     .npages = n,
				     .addr = (uintptr_t)f->map + at * CR_PAGE_SIZE},
		 NULL);
}

static void hear(int fd, struct lazy_frame *h, uint8_t payload[LAZY_PAYLOAD_MAX])
{
	uint8_t hdr[LAZY_HDR_BYTES];
	struct cr_err err = {0};

	assert_int_equal(recv(fd, hdr, sizeof(hdr), MSG_WAITALL), sizeof(hdr));
	assert_int_equal(lazy_frame_decode(h, hdr, &err), 0);
	if (h->payload)
		assert_int_equal(recv(fd, payload, h->payload, MSG_WAITALL), h->payload);
}

static void hear_start(struct fixture *f)
{
	struct lazy_frame h;

	hear(f->urgent, &h, NULL);
	assert_int_equal(h.type, LAZY_START);
}

static void tell_missing_of(struct fixture *f, pid_t pid, uint64_t start)
{
	struct lazy_chunk c = {.start = start, .bits = {~0ull}};
	uint8_t b[LAZY_CHUNK_BYTES];

	lazy_chunk_encode(b, &c);
	say_with(f,
		 (struct lazy_frame){
		     .type = LAZY_MISSING, .pid = pid, .npages = 1, .payload = sizeof(b)},
		 b);
	say(f, LAZY_MISSING_END);
}

static void tell_missing(struct fixture *f)
{
	tell_missing_of(f, f->task, (uintptr_t)f->map);
}

/* Frames until n pages are there. */
static void take_pages(struct fixture *f, int fd, unsigned int n)
{
	static uint8_t payload[LAZY_PAYLOAD_MAX];
	uint8_t expected[CR_PAGE_SIZE];

	while (n) {
		struct lazy_frame h;

		hear(fd, &h, payload);
		assert_true(h.type == LAZY_PAGES || h.type == LAZY_ZEROS);
		assert_int_equal(h.pid, f->task);
		assert_true(h.npages <= n);
		n -= h.npages;
		unsigned int at = (unsigned int)((h.addr - (uintptr_t)f->map) / CR_PAGE_SIZE);
		for (unsigned int i = 0; i < h.npages; i++) {
			fill_page(expected, at + i);
			assert_int_equal(h.type == LAZY_ZEROS, at + i == ZERO_AT);
			if (h.type == LAZY_PAGES)
				assert_memory_equal(payload + i * CR_PAGE_SIZE, expected,
						    CR_PAGE_SIZE);
		}
	}
}

static void complete(struct fixture *f)
{
	const struct msg_postcopy st = {.faults = 17, .asked_again = 99};
	uint8_t b[LAZY_STATS_BYTES];
	struct lazy_frame h;

	lazy_stats_encode(b, &st);
	say_with(f, (struct lazy_frame){.type = LAZY_COMPLETE, .payload = sizeof(b)}, b);
	hear(f->urgent, &h, NULL);
	assert_int_equal(h.type, LAZY_BYE);
}

static void serve_all(struct fixture *f)
{
	begin(f);
	hear_start(f);
	tell_missing(f);
	take_pages(f, f->bulk, PAGES);
	complete(f);
	if (end(f))
		fail_msg("%s", f->err.msg);
	assert_int_equal(f->sv.result.faults, 17);
}

/* ---- tests ---- */

static void test_serves(void **state)
{
	struct fixture *f = *state;

	begin(f);
	hear_start(f);
	tell_missing(f);
	take_pages(f, f->bulk, PAGES);
	want(f, f->task, NO_ACCESS_AT, 3);
	take_pages(f, f->urgent, 3);
	want(f, f->task, ZERO_AT, 1);
	take_pages(f, f->urgent, 1);
	complete(f);
	if (end(f))
		fail_msg("%s", f->err.msg);
	assert_int_equal(f->sv.result.faults, 17);
	assert_int_equal(f->sv.result.asked_again, 0); /* our own count */
}

/* What is known to be as it was sent is told before anything else, and not sent. */
static void test_tells_what_is_clean(void **state)
{
	enum { OBJECT = LAZY_OBJECT + 1, WRITTEN_AT = 9 };
	static uint8_t payload[LAZY_PAYLOAD_MAX];
	struct fixture *f = *state;
	struct shared_pages written;
	struct sentmap sent;
	size_t budget = 0;
	struct lazy_chunk c;
	struct lazy_frame h;
	int known;

	_cleanup_fd_ int fd = memfd_create("object", MFD_CLOEXEC);
	must(fd);
	assert_int_equal(write(fd, f->map, PAGES * CR_PAGE_SIZE), PAGES * CR_PAGE_SIZE);
	assert_int_equal(shared_pages_init(&written, PAGES * CR_PAGE_SIZE, &f->err), 0);
	shared_pages_mark(&written, WRITTEN_AT);
	sentmap_init(&sent, &budget);
	assert_int_equal(serve_known_make(&sent, 0, PAGES, &written, &known, &f->err), 0);
	const struct serve_file files[] = {{OBJECT, fd}, {OBJECT | SERVE_KNOWN, known}};
	const struct serve_range has = {OBJECT, 0, CHUNK_BYTES};
	f->sv.files = files;
	f->sv.n_files = 2;
	f->sv.has = &has;
	for (int round = 0; round < 2; round++) { /* it is told anew over each connection */
		begin(f);
		hear(f->urgent, &h, payload);
		assert_int_equal(h.type, LAZY_START);
		assert_int_equal(h.npages, 1);
		tell_missing_of(f, OBJECT, 0);
		hear(f->urgent, &h, payload);
		assert_int_equal(h.type, LAZY_CLEAN);
		assert_int_equal(h.pid, OBJECT);
		assert_int_equal(h.npages, 1);
		assert_true(lazy_frame_intact(&h, payload));
		assert_int_equal(lazy_chunk_decode(&c, payload, &f->err), 0);
		assert_int_equal(c.start, 0);
		assert_int_equal(c.bits[0], ~(1ull << WRITTEN_AT));
		assert_int_equal(c.bits[1], 0); /* that was not missing */
		hear(f->urgent, &h, payload);
		assert_int_equal(h.type, LAZY_TOLD);
		hear(f->bulk, &h, payload);
		assert_int_equal(h.type, LAZY_PAGES);
		assert_int_equal(h.npages, 1);
		assert_int_equal(h.addr, WRITTEN_AT * CR_PAGE_SIZE);
		if (round == 0) {
			shutdown(f->urgent, SHUT_RDWR);
			assert_int_equal(end(f), -ECONNRESET);
		}
	}
	complete(f);
	assert_int_equal(end(f), 0);
	shared_pages_done(&written);
	sentmap_done(&sent);
	close(known);
}

/* The same process serves on other connections. */
static void test_connections_break(void **state)
{
	struct fixture *f = *state;

	begin(f);
	hear_start(f);
	tell_missing(f);
	pid_t first = f->child.ps.pid;
	take_pages(f, f->bulk, PAGES);
	shutdown(f->urgent, SHUT_RDWR);
	assert_int_equal(end(f), -ECONNRESET);
	assert_int_equal(f->child.ps.pid, first);
	serve_all(f);
	assert_int_equal(f->child.ps.pid, first);
}

static void test_many_tasks(void **state)
{
	struct fixture *f = *state;
	enum { N = 3 * PSS_TASKS_MAX / 2, RANGES = PSS_RANGES_MAX + 1 };
	static struct serve_range recent[RANGES];
	pid_t pids[N];
	int mems[N];

	for (int i = 0; i < N; i++) {
		pids[i] = i == N - 1 ? f->task : 1 << 23 | i;
		mems[i] = f->mem;
	}
	for (int i = 0; i < RANGES; i++) /* the last one only is of the task, and its last page */
		recent[i] = (struct serve_range){i == RANGES - 1 ? f->task : 1,
						 (uintptr_t)f->map + (PAGES - 1) * CR_PAGE_SIZE,
						 (uintptr_t)f->map + PAGES * CR_PAGE_SIZE};
	f->sv.pids = pids;
	f->sv.mems = mems;
	f->sv.n_pids = N;
	f->sv.recent = recent;
	f->sv.n_recent = RANGES;
	begin(f);
	hear_start(f);
	tell_missing(f);
	struct lazy_frame h;
	static uint8_t payload[LAZY_PAYLOAD_MAX];
	hear(f->bulk, &h, payload);
	assert_int_equal(h.npages, 1);
	assert_int_equal(h.addr, (uintptr_t)f->map + (PAGES - 1) * CR_PAGE_SIZE);
	take_pages(f, f->bulk, PAGES - 1);
	complete(f);
	assert_int_equal(end(f), 0);
}

static void random_bytes(struct fixture *f)
{
	uint8_t b[200];

	memset(b, 0x5a, sizeof(b));
	must(send(f->urgent, b, sizeof(b), MSG_NOSIGNAL));
}

static void unknown_task(struct fixture *f)
{
	tell_missing(f);
	want(f, 1, 0, 1);
}

static void want_first(struct fixture *f)
{
	want(f, f->task, 0, 1);
}

static void want_much(struct fixture *f)
{
	tell_missing(f);
	want(f, f->task, 0, LAZY_WANT_MAX + 1);
}

static void twice_all(struct fixture *f)
{
	tell_missing(f);
	say(f, LAZY_MISSING_END);
}

static void bad_chunk(struct fixture *f)
{
	uint8_t b[LAZY_CHUNK_BYTES];

	memset(b, 0xff, sizeof(b));
	say_with(f,
		 (struct lazy_frame){
		     .type = LAZY_MISSING, .pid = f->task, .npages = 1, .payload = sizeof(b)},
		 b);
}

static void tell_chunk(struct fixture *f, uint64_t start)
{
	struct lazy_chunk c = {.start = start, .bits = {1}};
	uint8_t b[LAZY_CHUNK_BYTES];

	lazy_chunk_encode(b, &c);
	say_with(f,
		 (struct lazy_frame){
		     .type = LAZY_MISSING, .pid = f->task, .npages = 1, .payload = sizeof(b)},
		 b);
}

static void nothing_there(struct fixture *f)
{
	for (int i = 0; i < 3; i++) /* two might be a mistake */
		tell_chunk(f, f->has.end);
}

static void twice_missing(struct fixture *f)
{
	tell_chunk(f, f->has.start);
	tell_missing(f);
}

static void pages_here(struct fixture *f)
{
	say_with(f, (struct lazy_frame){.type = LAZY_ZEROS, .pid = f->task, .npages = 1}, NULL);
}

static void (*const nonsense[])(struct fixture *) = {random_bytes,  unknown_task,  want_first,
						     want_much,     twice_all,     bad_chunk,
						     nothing_there, twice_missing, pages_here};

/* Each ends the process; the task is as it was, and another process serves it. */
static void test_nonsense(void **state)
{
	struct fixture *f = *state;

	for (size_t i = 0; i < ARRAY_SIZE(nonsense); i++) {
		begin(f);
		pid_t first = f->child.ps.pid;
		hear_start(f);
		nonsense[i](f);
		assert_int_equal(end(f), -EPROTO);
		assert_int_equal(f->child.ps.pid, 0);
		assert_int_equal(kill(first, 0), -1);
	}
	serve_all(f);
	int st;
	assert_int_equal(waitpid(f->task, &st, WNOHANG | WCONTINUED), 0);
}

static uint64_t peak_kb(pid_t pid)
{
	char path[40], line[200];
	uint64_t kb = 0;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	_cleanup_file_ FILE *s = fopen(path, "re");
	while (s && fgets(line, sizeof(line), s))
		if (sscanf(line, "VmHWM: %" SCNu64, &kb) == 1)
			return kb;
	return 0;
}

/* Returns whether it was taken. */
static bool tell_frame(struct fixture *f, uint64_t first, uint64_t step)
{
	static uint8_t all[LAZY_HDR_BYTES + LAZY_CHUNKS_MAX * LAZY_CHUNK_BYTES];
	const struct lazy_frame h = {.type = LAZY_MISSING,
				     .pid = f->task,
				     .npages = LAZY_CHUNKS_MAX,
				     .payload = LAZY_CHUNKS_MAX * LAZY_CHUNK_BYTES};

	lazy_frame_encode(all, &h);
	for (uint64_t i = 0; i < LAZY_CHUNKS_MAX; i++) {
		const struct lazy_chunk c = {.start = first + i * step, .bits = {1}};

		lazy_chunk_encode(all + LAZY_HDR_BYTES + i * LAZY_CHUNK_BYTES, &c);
	}
	return send(f->urgent, all, sizeof(all), MSG_NOSIGNAL) == (ssize_t)sizeof(all);
}

/* The destination never stops telling what is missing: it costs no memory, and comes to its end. */
static void endless_missing(struct fixture *f, uint64_t step)
{
	enum { FRAMES = 2000 /* 140 MiB */, MOST_KB = 32 * 1024 };
	uint64_t kb, most = 0, first = f->has.start;
	int sent = 0;

	begin(f);
	hear_start(f);
	for (; sent < FRAMES && tell_frame(f, first, step); sent++) {
		first += step * LAZY_CHUNKS_MAX;
		kb = peak_kb(f->child.ps.pid);
		most = kb > most ? kb : most;
	}
	if (most > MOST_KB || sent == FRAMES)
		fail_msg("%d frames were taken, %" PRIu64 " KiB", sent, most);
	assert_int_equal(end(f), -EPROTO);
	assert_int_equal(f->child.ps.pid, 0);
}

static void test_endless_missing(void **state)
{
	struct fixture *f = *state;

	endless_missing(f, 0); /* the same again and again */
	endless_missing(f, CHUNK_BYTES);
	serve_all(f);
}

static void test_killed(void **state)
{
	struct fixture *f = *state;

	begin(f);
	hear_start(f);
	kill(f->child.ps.pid, SIGKILL);
	assert_int_equal(end(f), -EPIPE);
	assert_int_equal(f->child.ps.pid, 0);
	serve_all(f);
}

static void test_none_there(void **state)
{
	struct fixture *f = *state;
	struct cr_err err = {0};

	f->child.ps.program = "/dev/null";
	assert_true(serve_child_start(&f->child, &err) < 0);
	f->child.ps.program = "/bin/true"; /* one that knows nothing of it */
	err = (struct cr_err){0};
	assert_int_equal(serve_child_start(&f->child, &err), 0);
	assert_int_equal(serve_child_tell(&f->child, &f->sv, &err), -EPIPE);
	assert_int_equal(f->child.ps.pid, 0);
}

/* ---- what it may do ---- */

static void status_is(pid_t pid, const char *tid, const char *name, const char *value)
{
	char path[80], line[200];

	snprintf(path, sizeof(path), "/proc/%d/task/%s/status", pid, tid);
	_cleanup_file_ FILE *s = fopen(path, "re");
	assert_non_null(s);
	while (fgets(line, sizeof(line), s)) {
		size_t n = strlen(name);

		if (strncmp(line, name, n) || line[n] != ':')
			continue;
		assert_string_equal(strtok(line + n + 1, " \t\n"), value);
		return;
	}
	fail_msg("no %s", name);
}

static void check_thread(pid_t pid, const char *tid)
{
	static const char *const caps[] = {"CapInh", "CapPrm", "CapEff", "CapAmb"};

	for (size_t i = 0; i < ARRAY_SIZE(caps); i++)
		status_is(pid, tid, caps[i], "0000000000000000");
	status_is(pid, tid, "NoNewPrivs", "1");
	if (SANDBOXED)
		status_is(pid, tid, "Seccomp", "2");
	if (geteuid())
		return;
	status_is(pid, tid, "CapBnd", "0000000000000000");
	status_is(pid, tid, "Uid", "65534");
	status_is(pid, tid, "Gid", "65534");
}

static void check_threads(pid_t pid)
{
	char dir[40];

	snprintf(dir, sizeof(dir), "/proc/%d/task", pid);
	_cleanup_dir_ DIR *d = opendir(dir);
	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));)
		if (e->d_name[0] != '.')
			check_thread(pid, e->d_name);
}

/* Connections, the memory, and where messages go. */
static void check_descriptors(struct fixture *f)
{
	char dir[40], mem[40];
	unsigned int n_sockets = 0;

	snprintf(dir, sizeof(dir), "/proc/%d/fd", f->child.ps.pid);
	snprintf(mem, sizeof(mem), "/proc/%d/mem", f->task);
	_cleanup_dir_ DIR *d = opendir(dir);
	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));) {
		char to[200] = "";

		if (e->d_name[0] == '.' || atoi(e->d_name) == 2)
			continue;
		must(readlinkat(dirfd(d), e->d_name, to, sizeof(to) - 1));
		if (!strncmp(to, "socket:", 7))
			n_sockets++;
		else if (strcmp(to, "/dev/null"))
			assert_string_equal(to, mem);
	}
	assert_int_equal(n_sockets, 3);
}

static void test_privileges(void **state)
{
	struct fixture *f = *state;

	begin(f);
	hear_start(f);
	tell_missing(f);
	take_pages(f, f->bulk, PAGES);
	check_threads(f->child.ps.pid);
	if (!geteuid())
		check_descriptors(f);
	complete(f);
	assert_int_equal(end(f), 0);
}

/* Whoever else may have an end of its socket. */
static void test_ends_with_agent(void **state)
{
	struct fixture *f = *state;
	int out[2], stay[2];
	pid_t pid;
	char c;

	must(pipe(out));
	must(pipe(stay));
	pid_t agent = fork();
	if (!agent) {
		struct cr_err err = {0};

		close(stay[1]);
		if (serve_child_start(&f->child, &err) || serve_child_tell(&f->child, &f->sv, &err))
			_exit(1);
		if (!fork()) /* has the agent's end until this test is over */
			_exit(read(stay[0], &c, 1) != 0);
		if (write(out[1], &f->child.ps.pid, sizeof(pid)) < 0)
			_exit(1);
		pause();
	}
	close(out[1]);
	close(stay[0]);
	assert_int_equal(read(out[0], &pid, sizeof(pid)), sizeof(pid));
	close(out[0]);
	_cleanup_fd_ int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	must(pidfd);
	kill(agent, SIGKILL);
	waitpid(agent, NULL, 0);
	struct pollfd p = {.fd = pidfd, .events = POLLIN};
	assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
	close(stay[1]);
}

/* ---- at the destination ---- */

static void start_feeding(struct fixture *f, const int *fds, size_t n_fds)
{
	_cleanup_free_ struct pss_in *in = calloc(1, sizeof(*in));
	const struct pss_msg feed = {.type = PSS_FEED};
	struct cr_err err = {0};

	assert_int_equal(ps_child_start(&f->child.ps, &err), 0);
	assert_int_equal(pss_send(f->child.ps.socket, &feed, fds, n_fds, &err), 0);
	assert_int_equal(pss_recv(f->child.ps.socket, in, &err), 0);
	assert_int_equal(in->m.type, PSS_READY);
}

static int take(struct lazy_ring *r, struct lazy_frame *ret, const uint8_t **payload,
		enum lazy_ring_end *why)
{
	int n;

	do
		n = lazy_ring_take(r, ret, payload, why);
	while (!n && !*why);
	return n;
}

static void test_feeds(void **state)
{
	struct fixture *f = *state;
	struct lazy_frame sent = {.type = LAZY_PAGES,
				  .pid = 7,
				  .npages = PAGES,
				  .addr = CR_PAGE_SIZE,
				  .digest = lazy_digest(f->map, PAGES * CR_PAGE_SIZE),
				  .payload = PAGES * CR_PAGE_SIZE},
			  came;
	struct lazy_ring ring;
	struct cr_err err = {0};
	enum lazy_ring_end why;
	const uint8_t *payload;
	int pair[2], mem;

	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
	must(lazy_ring_new(&ring, &mem, &err));
	start_feeding(f, (int[]){pair[0], mem}, 2);
	close(pair[0]);
	close(mem);
	f->bulk = pair[1];
	for (int i = 0; i < 10; i++) {
		uint8_t hdr[LAZY_HDR_BYTES];

		lazy_frame_encode(hdr, &sent);
		must(send(f->bulk, hdr, sizeof(hdr), MSG_NOSIGNAL));
		for (size_t at = 0; at < sent.payload; at += CR_PAGE_SIZE)
			must(send(f->bulk, f->map + at, CR_PAGE_SIZE, MSG_NOSIGNAL));
		assert_int_equal(take(&ring, &came, &payload, &why), 1);
		assert_int_equal(came.npages, PAGES);
		assert_memory_equal(payload, f->map, came.payload);
	}
	check_threads(f->child.ps.pid);
	close_fdp(&f->bulk);
	assert_int_equal(take(&ring, &came, &payload, &why), 0);
	assert_int_equal(why, LAZY_RING_CLOSED);
	lazy_ring_unmap(&ring);
}

/* What is no ring or connection ends it: the fetcher sees that. */
static void test_feeds_nothing_else(void **state)
{
	struct fixture *f = *state;
	_cleanup_free_ struct pss_in *in = calloc(1, sizeof(*in));
	struct cr_err err = {0};

	start_feeding(f, &f->mem, 1);
	assert_int_equal(pss_recv(f->child.ps.socket, in, &err), -EPIPE);
}

#define serve_test(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    serve_test(test_serves),
	    serve_test(test_connections_break),
	    serve_test(test_many_tasks),
	    serve_test(test_nonsense),
	    serve_test(test_endless_missing),
	    serve_test(test_killed),
	    serve_test(test_none_there),
	    serve_test(test_privileges),
	    serve_test(test_ends_with_agent),
	    serve_test(test_feeds),
	    serve_test(test_feeds_nothing_else),
	    serve_test(test_tells_what_is_clean),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
