#include "source/serve_peer.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include "base/clock.h"
#include "base/log.h"
#include "source/serve_has.h"
#include "wire/link.h"

enum {
	CONNECT_MS = 2000,
	ANSWER_MS = 5000,
	PAUSE_MS = 100,
	SERVE_PRIORITY = 30, /* SCHED_FIFO: a task waits for each answer */
};

/* ---- the destination ---- */

static int open_link(const struct serve_peer *p, struct link **ret, struct cr_err *err)
{
	struct msg_hello hello = {.version = MSG_VERSION,
				  .role = MSG_ROLE_PEER,
				  .id = p->id,
				  .token = p->token,
				  .host = p->host};
	_cleanup_(link_freep) struct link *l = NULL;
	struct msg reply;
	int r = link_connect(&l, p->address, CONNECT_MS, err);

	if (!r)
		r = link_hello(l, &hello, ANSWER_MS, &reply, err);
	if (r)
		return r;
	msg_free(&reply);
	*ret = take_ptr(l);
	return 0;
}

static int open_lazy(const struct serve_peer *p, enum msg_lazy_kind kind, int *ret,
		     struct cr_err *err)
{
	_cleanup_(link_freep) struct link *l = NULL;
	struct msg m = msg_of(MSG_LAZY), reply;
	int r = open_link(p, &l, err);

	if (r)
		return r;
	m.lazy.kind = kind;
	r = link_call(l, &m, MSG_OK, ANSWER_MS, &reply, err);
	if (r)
		return r;
	msg_free(&reply);
	*ret = fcntl(link_fd(l), F_DUPFD_CLOEXEC, 3);
	return *ret < 0 ? cr_err_sys(err, "dup") : 0;
}

static size_t streams(const struct serve_peer *p)
{
	uint32_t n = p->streams ? p->streams : 1;

	return n < LAZY_BULK_MAX ? n : LAZY_BULK_MAX;
}

static int open_links(const struct serve_peer *p, struct serve_links *links, struct cr_err *err)
{
	*links = (struct serve_links){.urgent = -1};
	int r = open_lazy(p, MSG_LAZY_URGENT, &links->urgent, err);

	for (size_t i = 0; i < streams(p) && !r; i++) {
		r = open_lazy(p, MSG_LAZY_BULK, &links->bulk[i], err);
		links->n_bulk += !r;
	}
	if (r)
		serve_links_close(links);
	return r;
}

/* Does the destination say that it has all, although nobody told us? */
static bool is_done_there(const struct serve_peer *p)
{
	_cleanup_(link_freep) struct link *l = NULL;
	struct msg m = msg_of(MSG_QUERY), reply = {0};
	struct cr_err ignored = {0};

	m.query.id = p->id;
	if (open_link(p, &l, &ignored) || link_call(l, &m, MSG_STATE, ANSWER_MS, &reply, &ignored))
		return false;
	bool done = reply.state.state == MSG_STATE_RUNNING;
	msg_free(&reply);
	return done;
}

/* ---- the tasks ---- */

/* Of who has ended nothing can be read: what is missing of it is lost, and of nobody else. A zombie
 * has no memory that could be opened (ESRCH); what was opened before its end reads nothing. */
static int open_memory(const struct serve *sv, size_t i, struct cr_err *err)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/%d/mem", sv->pids[i]);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 && errno != ESRCH && errno != ENOENT)
		return cr_err_sys(err, "opening %s", path);
	if (fd >= 0 &&
	    !serve_is_gone(sv, i)) /* in this order: it was not gone when it was opened */
		return fd;
	close_fdp(&fd);
	fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	return fd < 0 ? cr_err_sys(err, "/dev/null") : fd;
}

static int open_memories(struct serve *sv, int *mems, struct cr_err *err)
{
	for (size_t i = 0; i < sv->n_pids; i++) {
		mems[i] = open_memory(sv, i, err);
		if (mems[i] < 0)
			return mems[i];
	}
	sv->mems = mems;
	return 0;
}

static void close_memories(struct serve *sv, int *mems)
{
	for (size_t i = 0; i < sv->n_pids; i++)
		close_fdp(&mems[i]);
	sv->mems = NULL;
	sv->has = NULL;
	sv->n_has = 0;
}

/* ---- the loop ---- */

/* Threads that it starts have none of it. */
static void set_priority(bool high)
{
	struct sched_param sp = {.sched_priority = high ? SERVE_PRIORITY : 0};

	/* without the privilege it is only slower */
	if (sched_setscheduler(0, high ? SCHED_FIFO | SCHED_RESET_ON_FORK : SCHED_OTHER, &sp))
		return;
}

/* A page-server does not trace the tasks. Since 6.12 (proc_mem.force_override) that may be what it
 * takes to read what has no read permission: shown by a page of our own. */
static int check_reading(struct cr_err *err)
{
	_cleanup_fd_ int mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	void *page = mmap(NULL, CR_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char c;

	if (mem < 0 || page == MAP_FAILED)
		return cr_err_sys(err, "/proc/self/mem");
	ssize_t n = pread(mem, &c, 1, (off_t)(uintptr_t)page);
	munmap(page, CR_PAGE_SIZE);
	return n == 1 ? 0
		      : cr_err_set(err, CR_ERR_KERNEL, EACCES,
				   "only tracers may read memory without read permission");
}

/* 0: there is one, and it knows all that it needs. */
static int have_page_server(struct serve_child *c, const struct serve *sv, bool *said)
{
	struct cr_err err = {0};
	int r = check_reading(&err);

	if (!r)
		r = serve_child_start(c, &err);
	if (!r)
		r = serve_child_tell(c, sv, &err);
	if (r && !*said)
		log_warn("%s; serving without a page-server", err.msg);
	*said |= r;
	return r;
}

static int serve_by_ourselves(struct serve *sv, struct serve_links *links, struct cr_err *err)
{
	set_priority(true);
	int r = serve_on(sv, links, err);
	set_priority(false);
	return r;
}

static int serve_until_complete(struct serve *sv, const struct serve_peer *p,
				struct serve_child *child, struct cr_err *err)
{
	const struct timespec pause = {.tv_nsec = PAUSE_MS * 1000 * 1000};
	uint64_t deadline = now_us() + p->timeout_ms * 1000ull;

	bool said = false;

	for (;;) {
		struct serve_links links;
		bool alone = have_page_server(child, sv, &said);

		cr_err_clear(err);
		int r = open_links(p, &links, err);

		if (!r) {
			r = alone ? serve_by_ourselves(sv, &links, err)
				  : serve_child_serve(child, sv, &links, err);
			deadline = now_us() + p->timeout_ms * 1000ull;
		}
		if (!r || is_done_there(p)) {
			cr_err_clear(err);
			return 0;
		}
		if (now_us() > deadline) {
			err->code = ETIMEDOUT;
			return cr_err_ctx(err, "the destination was away for %u ms", p->timeout_ms)
				   ?: -ETIMEDOUT;
		}
		nanosleep(&pause, NULL);
	}
}

int serve_run(struct serve *sv, const struct serve_peer *peer, struct serve_child *child,
	      struct cr_err *err)
{
	_cleanup_free_ int *mems = malloc((sv->n_pids + 1) * sizeof(*mems));
	_cleanup_(serve_has_done) struct serve_has has = {0};

	if (!mems)
		return cr_err_oom(err);
	memset(mems, 0xff, sv->n_pids * sizeof(*mems));
	sv->lifeline = -1;
	int r = open_memories(sv, mems, err);
	if (!r)
		r = serve_has_find(&has, sv, err);
	if (!r)
		r = serve_until_complete(sv, peer, child, err);
	serve_child_stop(child);
	close_memories(sv, mems);
	return r;
}
