/* The real page-server, a child process and a memfd as targets, streams over loopback. Root only.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include "base/clock.h"
#include "wire/addr.h"
#include "wire/page_tx.h"
#include "wire/ps_control.h"

enum {
	PAGES = 1200, /* of each target: over four batches */
	BYTES = PAGES * 4096,
	CHILD = 3, /* target indices */
	OBJECT = 70,
	READ_ONLY_AT = 100, /* pages of the child that process_vm_writev cannot write */
	READ_ONLY_PAGES = 40,
	NO_ACCESS_AT = 900,
	NO_ACCESS_PAGES = 1,
	FORBIDDEN_AT = 1150,
	FORBIDDEN_PAGES = 2,
	USER_MODE_ONLY = 1, /* UFFD_USER_MODE_ONLY, 5.11 */
};

struct fixture {
	const char *threads;
	char dir[32], socket[64];
	pid_t server, child;
	int server_out; /* its stderr */
	uint8_t id[PAGE_ID_BYTES], token[PAGE_TOKEN_BYTES];
	struct ps_client *ps;
	struct ps_session_info info;
	uint8_t *map;     /* the child has its own copy at this address */
	uint8_t *want[2]; /* what the child and the object should contain */
	int memfd;
	int child_uffd; /* the child's number of a userfaultfd; negative: it could have none */
	uint8_t *buf;
	uint64_t rnd;
};

#define ok(expr)                                                                                   \
	do {                                                                                       \
		int ok_r = (expr);                                                                 \
		if (ok_r < 0)                                                                      \
			fail_msg("%s: %s", #expr, err.msg);                                        \
	} while (0)
#define refused(expr, text)                                                                        \
	do {                                                                                       \
		int re_r = (expr);                                                                 \
		if (re_r >= 0)                                                                     \
			fail_msg("%s: was not refused", #expr);                                    \
		if (!strstr(err.msg, text))                                                        \
			fail_msg("%s: '%s' does not say '%s'", #expr, err.msg, text);              \
	} while (0)

static uint64_t rnd(struct fixture *f)
{
	f->rnd ^= f->rnd << 13;
	f->rnd ^= f->rnd >> 7;
	f->rnd ^= f->rnd << 17;
	return f->rnd;
}

static void fill(struct fixture *f, uint8_t *page, bool compressible)
{
	uint64_t *p = (uint64_t *)page;

	for (size_t i = 0; i < 512; i++)
		p[i] = compressible ? (i % 64 ? 0x1122334455667788 : rnd(f)) : rnd(f);
}

/* ---- fixture ---- */

static void start_server(struct fixture *f)
{
	char exe[256], control[80], line[600] = "";
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 32);
	int p[2];

	assert_true(n > 0);
	exe[n] = '\0';
	for (int i = 0; i < 3; i++) /* BUILD/tests/unit/test_page_server */
		*strrchr(exe, '/') = '\0';
	strcat(exe, "/page-server");
	snprintf(control, sizeof(control), "unix:%s", f->socket);
	assert_int_equal(pipe(p), 0);
	f->server = fork();
	if (!f->server) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(p[1], 2);
		close(p[0]);
		close(p[1]);
		execl(exe, exe, "--listen", "127.0.0.1:0", "--control", control, "--threads",
		      f->threads, NULL);
		perror(exe);
		_exit(127);
	}
	close(p[1]);
	f->server_out = p[0];
	for (size_t k = 0; !strstr(line, "control on"); k += (size_t)n) {
		n = read(p[0], line + k, sizeof(line) - 1 - k);
		if (n <= 0)
			fail_msg("page-server did not start: %s", line);
	}
}

static void start_child(struct fixture *f)
{
	int p[2];

	f->map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(f->map, MAP_FAILED);
	assert_int_equal(pipe(p), 0);
	f->child = fork();
	if (!f->child) {
		int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | USER_MODE_ONLY);

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		mprotect(f->map + READ_ONLY_AT * 4096, READ_ONLY_PAGES * 4096, PROT_READ);
		mprotect(f->map + NO_ACCESS_AT * 4096, NO_ACCESS_PAGES * 4096, PROT_NONE);
		if (write(p[1], &uffd, sizeof(uffd)) != sizeof(uffd))
			_exit(1);
		for (;;)
			pause();
	}
	assert_int_equal(read(p[0], &f->child_uffd, sizeof(int)), sizeof(int));
	close(p[0]);
	close(p[1]);
}

static void open_session(struct fixture *f)
{
	struct cr_err err = {0};
	uint64_t forbid = (uint64_t)f->map + FORBIDDEN_AT * 4096;

	ok(ps_connect(&f->ps, f->socket, &err));
	ok(ps_session(f->ps, f->id, f->token, &f->info, &err));
	ok(ps_target_process(f->ps, CHILD, f->child, forbid, forbid + FORBIDDEN_PAGES * 4096,
			     &err));
	ok(ps_target_object(f->ps, OBJECT, f->memfd, &err));
}

/* *state: whether the page-server places by threads. NULL: yes. */
static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->threads = *state ? *state : "yes";
	*state = f;
	if (geteuid() != 0)
		return 0;
	f->rnd = 88172645463325252ull;
	strcpy(f->dir, "/tmp/ps-test-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->socket, sizeof(f->socket), "%s/ps.sock", f->dir);
	for (size_t i = 0; i < PAGE_ID_BYTES; i++)
		f->id[i] = (uint8_t)rnd(f);
	for (size_t i = 0; i < PAGE_TOKEN_BYTES; i++)
		f->token[i] = (uint8_t)rnd(f);
	f->memfd = memfd_create("object", MFD_CLOEXEC);
	assert_int_equal(ftruncate(f->memfd, BYTES - 100), 0);
	f->want[0] = calloc(PAGES, 4096);
	f->want[1] = calloc(PAGES, 4096);
	f->buf = malloc(BYTES);
	start_child(f);
	start_server(f);
	open_session(f);
	return 0;
}

static void reap(pid_t pid, int signal)
{
	if (pid <= 0)
		return;
	kill(pid, signal);
	waitpid(pid, NULL, 0);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	if (geteuid() == 0) {
		ps_close(f->ps);
		reap(f->child, SIGKILL);
		reap(f->server, SIGKILL);
		close(f->server_out);
		close(f->memfd);
		munmap(f->map, BYTES);
		unlink(f->socket);
		rmdir(f->dir);
		free(f->want[0]);
		free(f->want[1]);
		free(f->buf);
	}
	free(f);
	return 0;
}

static struct fixture *get(void **state)
{
	if (geteuid() != 0)
		skip();
	return *state;
}

static int open_tx(struct fixture *f, struct page_tx **tx, unsigned int streams,
		   enum page_tx_compress compress, struct cr_err *err)
{
	struct page_tx_opts o = {
	    .address = f->info.listen,
	    .id = f->id,
	    .token = f->token,
	    .streams = streams,
	    .compress = compress,
	};

	return page_tx_open(tx, &o, err);
}

/* ---- placing ---- */

static uint64_t base_of(const struct fixture *f, uint32_t target)
{
	return target == CHILD ? (uint64_t)f->map : 0;
}

static uint8_t *want_of(struct fixture *f, uint32_t target)
{
	return f->want[target == OBJECT];
}

static void verify(struct fixture *f)
{
	uint8_t *got = malloc(BYTES);
	char path[40];

	snprintf(path, sizeof(path), "/proc/%d/mem", f->child);
	int fd = open(path, O_RDONLY);
	assert_int_equal(pread(fd, got, BYTES, (off_t)f->map), BYTES);
	close(fd);
	for (size_t i = 0; i < PAGES; i++)
		if (memcmp(got + i * 4096, f->want[0] + i * 4096, 4096))
			fail_msg("page %zu of the child is wrong", i);
	assert_int_equal(pread(f->memfd, got, BYTES, 0), BYTES - 100);
	assert_memory_equal(got, f->want[1], BYTES - 100);
	free(got);
}

/* Runs of random lengths over all of a target but the forbidden pages, DATA and ZERO mixed. */
static void send_random(struct fixture *f, struct page_tx *tx, uint32_t target)
{
	static struct page_run runs[PAGES];
	static XXH128_hash_t hashes[PAGES];
	struct cr_err err = {0};
	uint64_t base = base_of(f, target);
	size_t n = 0;

	for (uint32_t at = 0; at < PAGES;) {
		uint32_t len = 1 + (uint32_t)(rnd(f) % (rnd(f) % 4 ? 3 : 300));
		bool zero = rnd(f) % 3 == 0;

		if (at == FORBIDDEN_AT)
			at += FORBIDDEN_PAGES;
		uint32_t end = at < FORBIDDEN_AT ? FORBIDDEN_AT : PAGES;
		if (len > end - at)
			len = end - at;
		runs[n] = (struct page_run){
		    .kind = zero ? PAGE_ZERO : PAGE_DATA,
		    .addr = base + at * 4096,
		    .npages = len,
		    .buf_off = at * 4096,
		    .hashes = rnd(f) % 2 ? &hashes[at] : NULL,
		};
		n++;
		for (uint32_t i = at; i < at + len; i++) {
			uint8_t *page = f->buf + i * 4096;

			if (zero)
				memset(page, 0, 4096);
			else
				fill(f, page, rnd(f) % 2);
			if (target == OBJECT && i == PAGES - 1)
				memset(page + 4096 - 100, 0, 100);
			hashes[i] = page_hash(page, target, base + i * 4096);
			memcpy(want_of(f, target) + i * 4096, page, 4096);
		}
		at += len;
	}
	ok(page_tx_submit(tx, target, runs, n, f->buf, &err));
	memset(f->buf, 0xee, BYTES); /* it is ours again */
}

/* npages of `to` at to_at become what `from` has at from_at. */
static void send_same(struct fixture *f, struct page_tx *tx, uint32_t to, uint32_t to_at,
		      uint32_t from, uint32_t from_at, uint32_t npages)
{
	static XXH128_hash_t hashes[PAGES];
	struct cr_err err = {0};
	struct page_run run = {
	    .kind = PAGE_SAME,
	    .addr = base_of(f, to) + to_at * 4096,
	    .npages = npages,
	    .src_target = from,
	    .src_addr = base_of(f, from) + from_at * 4096,
	    .hashes = hashes,
	};
	uint8_t *at = want_of(f, to) + to_at * 4096;

	memmove(at, want_of(f, from) + from_at * 4096, npages * 4096);
	page_hash_run(at, npages, to, run.addr, hashes);
	ok(page_tx_submit(tx, to, &run, 1, NULL, &err));
}

static void place(void **state, unsigned int streams, enum page_tx_compress compress)
{
	struct fixture *f = get(state);
	struct cr_err err = {0};
	struct page_tx *tx;
	struct page_ack ack;
	struct page_tx_stats st;
	struct ps_stats ps;

	ok(open_tx(f, &tx, streams, compress, &err));
	for (int round = 0; round < 3; round++) {
		send_random(f, tx, CHILD);
		send_random(f, tx, OBJECT);
		ok(page_tx_flush(tx, &ack, &err));
		verify(f);
		send_same(f, tx, CHILD, 10, OBJECT, 500, 300);
		send_same(f, tx, OBJECT, 0, CHILD, NO_ACCESS_AT - 3, 7);
		ok(page_tx_flush(tx, &ack, &err));
		verify(f);
	}
	page_tx_stats(tx, &st);
	ok(ps_stats(f->ps, &ps, &err));
	assert_int_equal(ps.streams, streams);
	assert_int_equal(ps.targets, 2);
	assert_int_equal(st.data_pages + st.zero_pages, 3 * (2 * PAGES - 2 * FORBIDDEN_PAGES));
	assert_int_equal(ack.data_pages, st.data_pages);
	assert_int_equal(ack.same_pages, 3 * 307);
	assert_int_equal(ps.placed.data_pages, ack.data_pages);
	assert_true(page_digest_equal(ps.placed.digest, ack.digest));
	if (compress == PAGE_TX_COMPRESS_LZ4)
		assert_true(st.lz4_batches > 0 && st.wire_bytes < st.raw_bytes * 3 / 4);
	else
		assert_true(st.lz4_batches == 0 && st.wire_bytes > st.raw_bytes);
	page_tx_free(tx);
}

static void place_1_raw(void **state)
{
	place(state, 1, PAGE_TX_COMPRESS_NONE);
}

static void place_1_lz4(void **state)
{
	place(state, 1, PAGE_TX_COMPRESS_LZ4);
}

static void place_3_raw(void **state)
{
	place(state, 3, PAGE_TX_COMPRESS_NONE);
}

static void place_3_lz4(void **state)
{
	place(state, 3, PAGE_TX_COMPRESS_LZ4);
}

enum { CONTENTS = 20, ALIKE_PAGES = FORBIDDEN_AT / 5 };

/* Pages [first, end) of the target, each one of a few contents. */
static void send_alike(struct fixture *f, struct page_tx *tx, uint32_t target, uint32_t first,
		       uint32_t end, bool unsteady, uint8_t contents[CONTENTS][4096])
{
	static struct page_run runs[PAGES];
	struct cr_err err = {0};
	size_t n = 0;

	for (uint32_t i = first; i < end; i++) {
		memcpy(f->buf + i * 4096, contents[rnd(f) % CONTENTS], 4096);
		memcpy(want_of(f, target) + i * 4096, f->buf + i * 4096, 4096);
		if (n && i % 9) {
			runs[n - 1].npages++;
			continue;
		}
		runs[n++] = (struct page_run){
		    .kind = PAGE_DATA,
		    .addr = base_of(f, target) + i * 4096,
		    .npages = 1,
		    .unsteady = unsteady,
		    .buf_off = i * 4096,
		};
	}
	ok(page_tx_submit(tx, target, runs, n, f->buf, &err));
}

/* In pieces, so that most find their like on the way on another stream. */
static void send_all_alike(struct fixture *f, struct page_tx *tx, bool unsteady)
{
	static uint8_t contents[CONTENTS][4096];
	struct cr_err err = {0};

	for (int i = 0; i < CONTENTS; i++)
		fill(f, contents[i], false);
	for (uint32_t at = 0; at < FORBIDDEN_AT; at += ALIKE_PAGES)
		send_alike(f, tx, CHILD, at, at + ALIKE_PAGES, unsteady, contents);
	ok(page_tx_barrier(tx, &err));
	send_alike(f, tx, OBJECT, 0, PAGES - 1, unsteady, contents);
}

static uint64_t data_sent(struct page_tx *tx)
{
	struct page_tx_stats st;

	page_tx_stats(tx, &st);
	return st.data_pages;
}

static void equal_pages_go_once(struct fixture *f, unsigned int streams,
				enum page_tx_compress compress)
{
	const uint64_t all = FORBIDDEN_AT + PAGES - 1;
	struct cr_err err = {0};
	struct page_tx *tx;

	ok(open_tx(f, &tx, streams, compress, &err));
	for (uint64_t round = 1; round <= 3; round++) {
		page_tx_set_same(tx, true);
		uint64_t before = data_sent(tx);
		send_all_alike(f, tx, false);
		/* what is found while too much is owed to its stream goes as data all the same */
		assert_in_range(data_sent(tx) - before, CONTENTS, 4 * CONTENTS);
		/* again, with other contents, before anything was forgotten */
		ok(page_tx_barrier(tx, &err));
		send_all_alike(f, tx, false);
		ok(page_tx_flush(tx, NULL, &err));
		verify(f);
		before = data_sent(tx);
		send_all_alike(f, tx, true); /* nothing may refer to these */
		assert_int_equal(data_sent(tx) - before, all);
		ok(page_tx_flush(tx, NULL, &err));
		page_tx_set_same(tx, false);
		before = data_sent(tx);
		send_all_alike(f, tx, false);
		assert_int_equal(data_sent(tx) - before, all);
		ok(page_tx_flush(tx, NULL, &err));
		verify(f);
	}
	page_tx_free(tx);
}

static void equal_pages_go_once_on_1(void **state)
{
	equal_pages_go_once(get(state), 1, PAGE_TX_COMPRESS_NONE);
}

static void equal_pages_go_once_on_4(void **state)
{
	equal_pages_go_once(get(state), 4, PAGE_TX_COMPRESS_LZ4);
}

static void scattered_pages_fill_a_batch(void **state)
{
	static struct page_run runs[PAGES / 2];
	struct fixture *f = get(state);
	struct cr_err err = {0};
	struct page_tx *tx;
	size_t n = 0;

	ok(open_tx(f, &tx, 1, PAGE_TX_COMPRESS_NONE, &err));
	for (size_t i = 0; i < FORBIDDEN_AT; i += 2) {
		fill(f, f->buf + i * 4096, false);
		memcpy(f->want[0] + i * 4096, f->buf + i * 4096, 4096);
		runs[n++] = (struct page_run){
		    .kind = PAGE_DATA,
		    .addr = (uint64_t)f->map + i * 4096,
		    .npages = 1,
		    .buf_off = i * 4096,
		};
	}
	ok(page_tx_submit(tx, CHILD, runs, n, f->buf, &err));
	ok(page_tx_flush(tx, NULL, &err));
	verify(f);
	page_tx_free(tx);
}

static void bandwidth_limit_holds(void **state)
{
	struct fixture *f = get(state);
	struct cr_err err = {0};
	struct page_tx *tx;
	struct page_run run = {.kind = PAGE_DATA, .addr = (uint64_t)f->map, .npages = 64};

	memset(f->buf, 1, 64 * 4096);
	memcpy(f->want[0], f->buf, 64 * 4096);
	ok(open_tx(f, &tx, 2, PAGE_TX_COMPRESS_NONE, &err));
	page_tx_set_bandwidth(tx, 4 << 20);
	uint64_t start = now_us();
	for (int i = 0; i < 4; i++)
		ok(page_tx_submit(tx, CHILD, &run, 1, f->buf, &err));
	ok(page_tx_flush(tx, NULL, &err));
	/* 1 MiB at 4 MiB/s, less the last batch, which is paid for afterwards */
	assert_true(now_us() - start > 180000);
	verify(f);
	page_tx_free(tx);
}

/* ---- refusals ---- */

static int submit_one(struct fixture *f, struct page_tx *tx, uint32_t target, uint64_t addr,
		      struct cr_err *err)
{
	struct page_run run = {.kind = PAGE_DATA, .addr = addr, .npages = 1};
	int r = page_tx_submit(tx, target, &run, 1, f->buf, err);

	return r ? r : page_tx_flush(tx, NULL, err);
}

static void expect_refusal(struct fixture *f, uint32_t target, uint64_t addr, const char *text)
{
	struct cr_err err = {0};
	struct page_tx *tx;

	memset(f->buf, 0x77, 4096);
	ok(open_tx(f, &tx, 2, PAGE_TX_COMPRESS_NONE, &err));
	refused(submit_one(f, tx, target, addr, &err), text);
	refused(submit_one(f, tx, target, addr, &err), "failed before");
	page_tx_free(tx);
	struct ps_stats ps;
	ok(ps_stats(f->ps, &ps, &err));
	assert_non_null(strstr(ps.last_error.msg, text));
	verify(f);
}

static void wrong_token_and_id_are_refused(void **state)
{
	struct fixture *f = get(state);
	struct cr_err err = {0};
	struct page_tx *tx;

	f->token[31] ^= 1;
	refused(open_tx(f, &tx, 3, PAGE_TX_COMPRESS_NONE, &err), "wrong token");
	assert_int_equal(err.kind, CR_ERR_PEER);
	assert_int_equal(err.code, EACCES);
	f->token[31] ^= 1;
	f->id[0] ^= 1;
	refused(open_tx(f, &tx, 1, PAGE_TX_COMPRESS_NONE, &err), "wrong token");
	f->id[0] ^= 1;
	ok(open_tx(f, &tx, 1, PAGE_TX_COMPRESS_NONE, &err));
	page_tx_free(tx);
}

static void bad_places_are_refused(void **state)
{
	struct fixture *f = get(state);
	uint64_t map = (uint64_t)f->map;

	expect_refusal(f, 4, map, "target 4 is not known");
	expect_refusal(f, PAGE_TARGETS_MAX - 1, map, "is not known");
	expect_refusal(f, CHILD, map + FORBIDDEN_AT * 4096, "forbidden range of target 3");
	expect_refusal(f, CHILD, map + (FORBIDDEN_AT + 1) * 4096, "forbidden range");
	expect_refusal(f, OBJECT, BYTES, "beyond the end");
	expect_refusal(f, CHILD, 0x1000, "write page 0x1000 of target 3 (process");
}

static void deleted_and_dead_targets_are_refused(void **state)
{
	struct fixture *f = get(state);
	struct cr_err err = {0};
	struct page_tx *tx;

	ok(ps_target_del(f->ps, OBJECT, &err));
	refused(ps_target_del(f->ps, OBJECT, &err), "target 70 is not known");
	assert_int_equal(err.code, ENOENT);
	expect_refusal(f, OBJECT, 0, "target 70 is not known");
	ok(ps_target_object(f->ps, OBJECT, f->memfd, &err));
	kill(f->child, SIGKILL);
	siginfo_t si;
	waitid(P_PID, f->child, &si, WEXITED | WNOWAIT);
	ok(open_tx(f, &tx, 1, PAGE_TX_COMPRESS_NONE, &err));
	refused(submit_one(f, tx, CHILD, (uint64_t)f->map, &err), "has died");
	page_tx_free(tx);
}

/* A userfaultfd of the child's memory, its last quarter excepted. */
static int child_uffd(struct fixture *f)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {
	    .range = {(uint64_t)f->map, BYTES / 4 * 3},
	    .mode = UFFDIO_REGISTER_MODE_WP,
	};
	int pidfd = (int)syscall(SYS_pidfd_open, f->child, 0);
	int fd = (int)syscall(SYS_pidfd_getfd, pidfd, f->child_uffd, 0);

	close(pidfd);
	if (fd < 0)
		return -1; /* the kernel has none, or gives us none */
	assert_int_equal(ioctl(fd, UFFDIO_API, &api), 0);
	if (ioctl(fd, UFFDIO_REGISTER, &reg)) {
		close(fd);
		return -1;
	}
	return fd;
}

static bool server_has_uffd(const struct fixture *f)
{
	char path[300], to[64];
	bool found = false;

	snprintf(path, sizeof(path), "/proc/%d/fd", f->server);
	DIR *d = opendir(path);
	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));) {
		snprintf(path, sizeof(path), "/proc/%d/fd/%s", f->server, e->d_name);
		ssize_t n = readlink(path, to, sizeof(to) - 1);
		to[n > 0 ? n : 0] = '\0';
		found |= strstr(to, "userfaultfd") != NULL;
	}
	closedir(d);
	return found;
}

/* The faults of writing into another process count for the writer. */
static uint64_t server_faults(const struct fixture *f)
{
	char path[40], text[512];
	unsigned long long n;

	snprintf(path, sizeof(path), "/proc/%d/stat", f->server);
	int fd = open(path, O_RDONLY);
	ssize_t len = read(fd, text, sizeof(text) - 1);
	close(fd);
	assert_true(len > 0);
	text[len] = '\0';
	/* minflt, after "PID (COMM) STATE" and six more */
	assert_int_equal(sscanf(strrchr(text, ')'), ") %*c %*d %*d %*d %*d %*d %*u %llu", &n), 1);
	return n;
}

static void places_absent_pages_without_faults(void **state)
{
	struct fixture *f = get(state);
	struct cr_err err = {0};
	struct page_tx *tx;
	int fd = child_uffd(f);

	if (fd < 0)
		skip();
	refused(ps_target_uffd(f->ps, CHILD, -1, &err), "without a descriptor");
	refused(ps_target_uffd(f->ps, OBJECT, fd, &err), "is no process");
	refused(ps_target_uffd(f->ps, CHILD + 7, fd, &err), "is no process");
	ok(ps_target_uffd(f->ps, CHILD, fd, &err));
	close(fd);
	assert_true(server_has_uffd(f));
	ok(open_tx(f, &tx, 2, PAGE_TX_COMPRESS_NONE, &err));
	for (int i = 0; i < 8;
	     i++) { /* its buffers have their pages afterwards; streams keep no order among them */
		send_random(f, tx, OBJECT);
		ok(page_tx_flush(tx, NULL, &err));
	}
	uint64_t before = server_faults(f);
	send_random(f, tx, CHILD);
	ok(page_tx_flush(tx, NULL, &err));
	/* a fault a page is what writing takes; what reaches beyond one mapping is written */
	assert_in_range(server_faults(f) - before, PAGES / 8, PAGES / 3 * 2);
	verify(f);
	for (int i = 0; i < 3; i++) { /* all of it is there now */
		send_random(f, tx, CHILD);
		ok(page_tx_flush(tx, NULL, &err));
		verify(f);
	}
	ok(ps_close_uffds(f->ps, &err));
	assert_false(server_has_uffd(f));
	send_random(f, tx, CHILD);
	ok(page_tx_flush(tx, NULL, &err));
	verify(f);
	page_tx_free(tx);
}

/* Policies of all threads of the server: -1 if they differ. */
static int server_policy(const struct fixture *f)
{
	char path[40];
	int policy = -2;

	snprintf(path, sizeof(path), "/proc/%d/task", f->server);
	DIR *d = opendir(path);
	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));) {
		int one = e->d_name[0] != '.' ? sched_getscheduler(atoi(e->d_name)) : policy;

		policy = policy == -2 || one == policy ? one : -1;
	}
	closedir(d);
	return policy;
}

/* Until the last session that asked for it ends. */
static void hurries_while_tasks_wait(void **state)
{
	struct fixture *f = get(state);
	struct cr_err err = {0};
	struct ps_client *other;
	const struct sched_param rt = {.sched_priority = 1};
	struct page_tx *tx;

	if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &rt))
		skip(); /* not allowed here */
	ok(sched_setscheduler(0, SCHED_OTHER, &(struct sched_param){0}));
	ok(open_tx(f, &tx, 2, PAGE_TX_COMPRESS_NONE, &err));
	send_random(f, tx, CHILD); /* the pool has its threads */
	ok(page_tx_flush(tx, NULL, &err));
	assert_int_equal(server_policy(f), SCHED_OTHER);
	ok(ps_hurry(f->ps, 40, &err));
	ok(ps_hurry(f->ps, 40, &err));
	assert_int_equal(server_policy(f), SCHED_FIFO);
	ok(ps_connect(&other, f->socket, &err));
	f->id[3]++;
	ok(ps_session(other, f->id, f->token, NULL, &err));
	f->id[3]--;
	ok(ps_hurry(other, 40, &err));
	ps_close(other);
	assert_int_equal(server_policy(f), SCHED_FIFO);
	ps_close(f->ps);
	f->ps = NULL;
	assert_int_equal(server_policy(f), SCHED_OTHER);
	page_tx_free(tx);
}

static void control_is_strict(void **state)
{
	struct fixture *f = get(state);
	struct cr_err err = {0};
	struct ps_client *other;
	int ro = open("/proc/self/exe", O_RDONLY);
	struct stat sb;

	assert_int_equal(stat(f->socket, &sb), 0);
	assert_int_equal(sb.st_mode & 07777, 0600);
	refused(ps_session(f->ps, f->id, f->token, NULL, &err), "has its session already");
	ok(ps_connect(&other, f->socket, &err));
	refused(ps_target_del(other, 0, &err), "no session yet");
	refused(ps_session(other, f->id, f->token, NULL, &err), "is there already");
	assert_int_equal(err.code, EEXIST);
	f->id[3]++;
	ok(ps_session(other, f->id, f->token, NULL, &err));
	f->id[3]--;
	refused(ps_target_object(other, 1, ro, &err), "not open for reading and writing");
	refused(ps_target_object(other, 1, -1, &err), "without a descriptor");
	refused(ps_target_process(other, 1, 0x7ffffff0, 0, 0, &err), "open /proc/");
	refused(ps_target_process(other, PAGE_TARGETS_MAX, f->child, 0, 0, &err), "out of range");
	refused(ps_target_process(other, 1, f->child, 4096, 0, &err), "forbidden range");
	ps_close(other);
	close(ro);
}

static void session_end_ends_streams(void **state)
{
	struct fixture *f = get(state);
	struct cr_err err = {0};
	struct page_tx *tx;

	ok(open_tx(f, &tx, 2, PAGE_TX_COMPRESS_NONE, &err));
	ok(submit_one(f, tx, OBJECT, 0, &err));
	ps_close(f->ps);
	f->ps = NULL;
	refused(submit_one(f, tx, OBJECT, 0, &err), "destination ended this migration");
	page_tx_free(tx);
	refused(open_tx(f, &tx, 2, PAGE_TX_COMPRESS_NONE, &err), "unknown migration");
	open_session(f);
	ok(open_tx(f, &tx, 2, PAGE_TX_COMPRESS_NONE, &err));
	page_tx_free(tx);
}

/* Targets come and go, and the session ends, while batches are being placed. */
static void targets_change_under_load(void **state)
{
	struct fixture *f = get(state);
	struct cr_err err = {0};
	struct page_tx *tx;

	for (int i = 0; i < 5; i++) {
		ok(open_tx(f, &tx, 4, PAGE_TX_COMPRESS_NONE, &err));
		for (int k = 0; k < 30; k++) {
			struct page_run run = {.kind = PAGE_DATA, .npages = PAGES - 1};

			ok(page_tx_submit(tx, OBJECT, &run, 1, f->buf, &err));
			ok(ps_target_object(f->ps, 200 * (uint32_t)i + (uint32_t)k, f->memfd,
					    &err));
			ok(ps_target_object(f->ps, OBJECT, f->memfd, &err));
		}
		if (i % 2) {
			ok(ps_target_del(f->ps, OBJECT, &err));
			refused(submit_one(f, tx, OBJECT, 0, &err), "is not known");
		} else {
			ps_close(f->ps);
			refused(page_tx_flush(tx, NULL, &err), "ended this migration");
			open_session(f);
		}
		page_tx_free(tx);
		ok(ps_target_object(f->ps, OBJECT, f->memfd, &err));
	}
}

static int give_up(void *arg)
{
	++*(int *)arg;
	return 1;
}

static void sender_can_be_cancelled(void **state)
{
	struct fixture *f = get(state);
	struct cr_err err = {0};
	struct page_tx *tx;
	int called = 0;
	struct page_tx_opts o = {
	    .address = f->info.listen,
	    .id = f->id,
	    .token = f->token,
	    .poll_cb = give_up,
	    .poll_arg = &called,
	};

	ok(page_tx_open(&tx, &o, &err));
	kill(f->server, SIGSTOP);
	assert_int_equal(submit_one(f, tx, OBJECT, 0, &err), -ECANCELED);
	assert_int_equal(called, 1);
	kill(f->server, SIGCONT);
	page_tx_free(tx);
}

static void a_killed_server_is_noticed(void **state)
{
	struct fixture *f = get(state);
	struct cr_err err = {0};
	struct page_tx *tx;
	struct pollfd pfd = {.fd = ps_fd(f->ps), .events = POLLIN};

	ok(open_tx(f, &tx, 2, PAGE_TX_COMPRESS_NONE, &err));
	assert_int_equal(poll(&pfd, 1, 0), 0);
	kill(f->server, SIGKILL);
	assert_true(submit_one(f, tx, OBJECT, 0, &err) < 0);
	assert_int_equal(err.kind, CR_ERR_IO);
	assert_int_equal(poll(&pfd, 1, 10000), 1);
	refused(ps_target_del(f->ps, 0, &err), "page-server");
	page_tx_free(tx);
	waitpid(f->server, NULL, 0);
	/* its socket is still there: the next one takes it over */
	ps_close(f->ps);
	start_server(f);
	open_session(f);
}

static void term_closes_cleanly(void **state)
{
	struct fixture *f = get(state);
	struct cr_err err = {0};
	struct page_tx *tx;
	int status;

	ok(open_tx(f, &tx, 3, PAGE_TX_COMPRESS_NONE, &err));
	ok(submit_one(f, tx, OBJECT, 0, &err));
	kill(f->server, SIGTERM);
	waitpid(f->server, &status, 0);
	f->server = 0;
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	assert_int_equal(access(f->socket, F_OK), -1);
	page_tx_free(tx);
}

/* ---- raw bytes ---- */

static int connect_raw(struct fixture *f)
{
	struct addr a;
	struct cr_err err = {0};

	ok(addr_parse(f->info.listen, &a, &err));
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(connect(fd, &a.sa, a.len), 0);
	return fd;
}

static size_t hello_bytes(struct fixture *f, uint8_t *out)
{
	struct page_frame fr = {.type = PAGE_FRAME_HELLO, .wire_bytes = PAGE_HELLO_BYTES};
	struct page_hello h = {.version = 1, .version_min = 1, .nstreams = 1, .caps = PAGE_CAPS};

	memcpy(h.id, f->id, PAGE_ID_BYTES);
	memcpy(h.token, f->token, PAGE_TOKEN_BYTES);
	page_frame_encode(out, &fr);
	return PAGE_HDR_BYTES + page_hello_encode(out + PAGE_HDR_BYTES, &h);
}

/* Sends, then reads to the end: the last frame is ERROR with that text, and then EOF. */
static void expect_error(struct fixture *f, const uint8_t *bytes, size_t n, const char *text)
{
	int fd = connect_raw(f);
	uint8_t in[2000];
	size_t have = 0, at = 0;
	ssize_t k;
	struct page_frame fr = {0};
	struct page_error e = {0};
	struct cr_err err = {0};

	assert_int_equal(send(fd, bytes, n, MSG_NOSIGNAL), n);
	while ((k = recv(fd, in + have, sizeof(in) - have, 0)) > 0)
		have += (size_t)k;
	assert_int_equal(k, 0);
	while (at < have) {
		ok(page_frame_decode(&fr, in + at, have - at, &err));
		if (fr.type == PAGE_FRAME_ERROR)
			ok(page_error_decode(&e, in + at + PAGE_HDR_BYTES, fr.wire_bytes, &err));
		at += page_frame_bytes(&fr);
	}
	assert_int_equal(fr.type, PAGE_FRAME_ERROR);
	if (!strstr(e.text, text))
		fail_msg("'%s' does not say '%s'", e.text, text);
	close(fd);
}

static void hostile_bytes_are_refused(void **state)
{
	struct fixture *f = get(state);
	uint8_t b[400];
	size_t n = hello_bytes(f, b);
	struct page_frame batch = {
	    .type = PAGE_FRAME_BATCH,
	    .nruns = 1,
	    .target = CHILD,
	    .seq = 1,
	};
	struct page_wire_run run = {.kind = PAGE_ZERO, .addr = PAGE_ADDR_END, .npages = 1};

	expect_error(f, (const uint8_t *)"GET / HTTP/1.1\r\nHost: page-server\r\n\r\n", 38,
		     "bad magic");
	page_frame_encode(b + n, &batch);
	expect_error(f, b + n, PAGE_HDR_BYTES, "no HELLO first");
	page_run_encode(b + n + PAGE_HDR_BYTES, &run);
	size_t all = n + PAGE_HDR_BYTES + PAGE_RUN_BYTES;
	expect_error(f, b, all, "out of range");
	run.addr = (uint64_t)f->map + 1;
	page_run_encode(b + n + PAGE_HDR_BYTES, &run);
	expect_error(f, b, all, "not page aligned");
	run = (struct page_wire_run){
	    .kind = PAGE_SAME,
	    .addr = (uint64_t)f->map,
	    .npages = 1,
	    .src_target = 5,
	};
	page_run_encode(b + n + PAGE_HDR_BYTES, &run);
	expect_error(f, b, all, "source target 5 is not known");
	run.src_target = OBJECT;
	run.src_addr = BYTES;
	page_run_encode(b + n + PAGE_HDR_BYTES, &run);
	expect_error(f, b, all, "beyond the end");
	batch.seq = 2;
	page_frame_encode(b + n, &batch);
	expect_error(f, b, all, "frame 2 where 1 is due");
	memcpy(b + n, b, n);
	expect_error(f, b, 2 * n, "HELLO for the second time");
	b[PAGE_HDR_BYTES] = 9;     /* version 9, */
	b[PAGE_HDR_BYTES + 2] = 2; /* at least 2 */
	expect_error(f, b, n, "versions 2 to 9 are not ours");
	verify(f);
}

static void truncated_frames_leave_no_trace(void **state)
{
	struct fixture *f = get(state);
	struct cr_err err = {0};
	struct page_tx *tx;
	uint8_t b[400], ok_frame[PAGE_HDR_BYTES + PAGE_HELLO_OK_BYTES];
	size_t n = hello_bytes(f, b);
	struct page_frame batch = {
	    .type = PAGE_FRAME_BATCH,
	    .nruns = 1,
	    .target = CHILD,
	    .seq = 1,
	    .raw_bytes = 4096,
	    .wire_bytes = 4096,
	};
	struct page_wire_run run = {.kind = PAGE_DATA, .addr = (uint64_t)f->map, .npages = 1};

	page_frame_encode(b + n, &batch);
	page_run_encode(b + n + PAGE_HDR_BYTES, &run);
	size_t all = n + PAGE_HDR_BYTES + PAGE_RUN_BYTES;
	memset(b + all, 0xaa, 100);
	for (size_t k = 1; k <= all + 100; k += 5) {
		int fd = connect_raw(f);

		assert_int_equal(send(fd, b, k, MSG_NOSIGNAL), k);
		if (k >= n)
			assert_int_equal(recv(fd, ok_frame, sizeof(ok_frame), MSG_WAITALL),
					 sizeof(ok_frame));
		close(fd);
	}
	ok(open_tx(f, &tx, 1, PAGE_TX_COMPRESS_NONE, &err));
	ok(page_tx_flush(tx, NULL, &err));
	verify(f);
	page_tx_free(tx);
}

/* With as many streams as may be, each having had a full batch. */
static void memory_stays_bounded(void **state)
{
	struct fixture *f = get(state);
	struct cr_err err = {0};
	struct page_tx *tx[2], *more;
	struct ps_client *ps[3];
	char path[40], line[200];
	unsigned long peak = 0;

	for (int i = 0; i < 2; i++) {
		f->id[1]++;
		ok(ps_connect(&ps[i], f->socket, &err));
		ok(ps_session(ps[i], f->id, f->token, NULL, &err));
		ok(ps_target_object(ps[i], OBJECT, f->memfd, &err));
		ok(open_tx(f, &tx[i], PAGE_STREAMS_MAX, PAGE_TX_COMPRESS_LZ4, &err));
		for (int k = 0; k < 4 * PAGE_STREAMS_MAX; k++) {
			struct page_run run = {.kind = PAGE_DATA, .npages = PAGE_BATCH_DATA_PAGES};
			uint64_t *w = (uint64_t *)f->buf;

			for (size_t j = 0; k % 2 == 0 && j < PAGE_BATCH_BYTES / 8; j++)
				w[j] = j % 8 ? rnd(f) : 0;
			ok(page_tx_submit(tx[i], OBJECT, &run, 1, f->buf, &err));
		}
		ok(page_tx_flush(tx[i], NULL, &err));
	}
	f->id[1]++;
	ok(ps_connect(&ps[2], f->socket, &err));
	ok(ps_session(ps[2], f->id, f->token, NULL, &err));
	refused(open_tx(f, &more, 1, PAGE_TX_COMPRESS_LZ4, &err), "has 32 streams already");
	snprintf(path, sizeof(path), "/proc/%d/status", f->server);
	FILE *status = fopen(path, "r");
	while (fgets(line, sizeof(line), status))
		sscanf(line, "VmHWM: %lu", &peak);
	fclose(status);
	print_message("# page-server peak: %lu KiB\n", peak);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
	assert_true(peak > 1000 && peak <= 64 * 1024);
#endif
	for (int i = 0; i < 3; i++) {
		page_tx_free(i < 2 ? tx[i] : NULL);
		ps_close(ps[i]);
	}
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
#define BY_THE_LOOP(fn)                                                                            \
	{                                                                                          \
		.name = #fn ", by the loop", .test_func = fn, .setup_func = setup,                 \
		.teardown_func = teardown, .initial_state = (void *)"no"                           \
	}
	const struct CMUnitTest tests[] = {
	    TEST(place_1_raw),
	    TEST(place_1_lz4),
	    TEST(place_3_raw),
	    TEST(place_3_lz4),
	    TEST(equal_pages_go_once_on_1),
	    TEST(equal_pages_go_once_on_4),
	    TEST(scattered_pages_fill_a_batch),
	    TEST(bandwidth_limit_holds),
	    TEST(wrong_token_and_id_are_refused),
	    TEST(bad_places_are_refused),
	    TEST(deleted_and_dead_targets_are_refused),
	    TEST(places_absent_pages_without_faults),
	    TEST(hurries_while_tasks_wait),
	    TEST(control_is_strict),
	    TEST(session_end_ends_streams),
	    TEST(targets_change_under_load),
	    TEST(sender_can_be_cancelled),
	    TEST(a_killed_server_is_noticed),
	    TEST(term_closes_cleanly),
	    TEST(hostile_bytes_are_refused),
	    TEST(truncated_frames_leave_no_trace),
	    TEST(memory_stays_bounded),
	    BY_THE_LOOP(place_1_raw),
	    BY_THE_LOOP(place_3_lz4),
	    BY_THE_LOOP(scattered_pages_fill_a_batch),
	    BY_THE_LOOP(bad_places_are_refused),
	    BY_THE_LOOP(deleted_and_dead_targets_are_refused),
	    BY_THE_LOOP(places_absent_pages_without_faults),
	    BY_THE_LOOP(session_end_ends_streams),
	    BY_THE_LOOP(targets_change_under_load),
	    BY_THE_LOOP(hostile_bytes_are_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
