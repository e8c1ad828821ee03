#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <fcntl.h>
#include "base/log.h"
#include "pageserver/server.h"

static bool equal_constant_time(const uint8_t *a, const uint8_t *b, size_t n)
{
	volatile uint8_t diff = 0;

	for (size_t i = 0; i < n; i++)
		diff |= a[i] ^ b[i];
	return !diff;
}

static struct session *find_id(struct server *sv, const uint8_t *id)
{
	for (struct session *s = sv->sessions; s; s = s->next)
		if (!memcmp(s->id, id, PAGE_ID_BYTES))
			return s;
	return NULL;
}

struct session *session_find(struct server *sv, const uint8_t *id, const uint8_t *token)
{
	struct session *s = find_id(sv, id);

	return s && equal_constant_time(s->token, token, PAGE_TOKEN_BYTES) ? s : NULL;
}

int session_new(struct session **ret, struct server *sv, const struct ps_request *rq,
		struct cr_err *err)
{
	if (find_id(sv, rq->id))
		return cr_err_set(err, CR_ERR_INPUT, EEXIST,
				  "a session for this migration is there already");
	struct session *s = calloc(1, sizeof(*s));
	if (!s)
		return cr_err_oom(err);
	memcpy(s->id, rq->id, PAGE_ID_BYTES);
	memcpy(s->token, rq->token, PAGE_TOKEN_BYTES);
	s->next = sv->sessions;
	sv->sessions = s;
	*ret = s;
	return 0;
}

int session_place(struct session *s, const struct page_batch *b, const struct place_memory *mem,
		  struct page_ack *acc, struct cr_err *err)
{
	return s->image ? dir_image_place(s->image, b, mem->work, acc, err)
			: place_batch(&s->targets, b, mem, acc, err);
}

uint32_t session_caps(const struct session *s, uint32_t caps)
{
	return caps & (s->image ? PAGE_CAP_LZ4 : PAGE_CAPS);
}

void session_placing(struct server *sv, struct session *s)
{
	uv_mutex_lock(&sv->lock);
	s->placing++;
	uv_mutex_unlock(&sv->lock);
}

void session_placed(struct server *sv, struct session *s)
{
	uv_mutex_lock(&sv->lock);
	if (!--s->placing)
		uv_cond_broadcast(&sv->idle);
	uv_mutex_unlock(&sv->lock);
}

/* Blocks the loop, for the time that a batch or a few take: below a millisecond each. */
static void wait_idle(struct server *sv, struct session *s)
{
	uv_mutex_lock(&sv->lock);
	while (s->placing)
		uv_cond_wait(&sv->idle, &sv->lock);
	uv_mutex_unlock(&sv->lock);
}

void session_end(struct server *sv, struct session *s)
{
	struct cr_err why = {0};

	if (!s)
		return;
	cr_err_set(&why, CR_ERR_PEER, ECANCELED, "the destination ended this migration");
	while (s->streams)
		stream_fail(s->streams, &why);
	for (struct session **p = &sv->sessions; *p; p = &(*p)->next) {
		if (*p == s) {
			*p = s->next;
			break;
		}
	}
	wait_idle(sv, s);
	if (s->hurried && !--sv->nhurried)
		priority_lower(sv);
	targets_done(&s->targets);
	dir_image_free(s->image);
	explicit_bzero(s->token, sizeof(s->token));
	free(s);
}

static void add_ack(struct page_ack *sum, const struct page_ack *a)
{
	sum->data_pages += a->data_pages;
	sum->zero_pages += a->zero_pages;
	sum->same_pages += a->same_pages;
	page_digest_merge(&sum->digest, a->digest);
}

void session_add_placed(struct session *s, const struct page_ack *placed)
{
	add_ack(&s->placed, placed);
}

void session_stats(const struct session *s, struct ps_stats *ret)
{
	ret->streams = s->nstreams;
	ret->targets = (uint32_t)s->targets.n;
	ret->placed = s->placed;
	ret->last_error = s->last_error;
	for (struct stream *st = s->streams; st; st = stream_next_in_session(st))
		add_ack(&ret->placed, stream_placed(st));
}

static int add_target(struct session *s, const struct ps_request *rq, int fd, struct cr_err *err)
{
	_cleanup_fd_ int owned = fd;
	_cleanup_fd_ int pidfd = -1;
	bool process = rq->type == PS_TARGET_PROCESS;

	if (fd < 0)
		return cr_err_set(err, CR_ERR_INPUT, EBADF, "target %u came without a descriptor",
				  rq->index);
	int flags = fcntl(fd, F_GETFL);
	if (flags < 0 || (flags & O_ACCMODE) != O_RDWR)
		return cr_err_set(err, CR_ERR_INPUT, EBADF,
				  "target %u: descriptor is not open for reading and writing",
				  rq->index);
	if (process) {
		pidfd = (int)syscall(SYS_pidfd_open, rq->pid, 0);
		if (pidfd < 0)
			return cr_err_sys(err, "pidfd_open of target %u (process %d)", rq->index,
					  rq->pid);
	} else {
		struct stat sb;

		if (fstat(fd, &sb) < 0 || !S_ISREG(sb.st_mode))
			return cr_err_set(err, CR_ERR_INPUT, EBADF,
					  "target %u: descriptor is not of a file with pages",
					  rq->index);
	}
	struct target *t = calloc(1, sizeof(*t));
	if (!t)
		return cr_err_oom(err);
	t->kind = process ? TARGET_PROCESS : TARGET_OBJECT;
	t->pid = process ? rq->pid : 0;
	t->pidfd = take_fd(&pidfd);
	t->fd = take_fd(&owned);
	t->uffd = -1;
	t->forbid_start = rq->forbid_start;
	t->forbid_end = rq->forbid_end;
	return targets_set(&s->targets, rq->index, t, err);
}

static int add_uffd(struct session *s, const struct ps_request *rq, int fd, struct cr_err *err)
{
	_cleanup_fd_ int owned = fd;
	struct target *t = targets_get(&s->targets, rq->index);

	if (fd < 0)
		return cr_err_set(err, CR_ERR_INPUT, EBADF,
				  "userfaultfd of target %u: came without a descriptor", rq->index);
	if (!t || t->kind != TARGET_PROCESS)
		return cr_err_set(err, CR_ERR_INPUT, ENOENT, "target %u is no process", rq->index);
	close_fdp(&t->uffd);
	t->uffd = take_fd(&owned);
	t->found_present = 0;
	return 0;
}

static int delete_target(struct session *s, uint32_t index, struct cr_err *err)
{
	if (!targets_get(&s->targets, index))
		return cr_err_set(err, CR_ERR_INPUT, ENOENT, "target %u is not known", index);
	return targets_set(&s->targets, index, NULL, err);
}

static void hurry(struct server *sv, struct session *s)
{
	if (s->hurried)
		return;
	s->hurried = true;
	sv->nhurried++;
}

int session_request(struct server *sv, struct session *s, const struct ps_request *rq, int fd,
		    struct cr_err *err)
{
	wait_idle(sv, s);
	if (rq->type == PS_TARGET_PROCESS || rq->type == PS_TARGET_OBJECT)
		return add_target(s, rq, fd, err);
	if (rq->type == PS_TARGET_UFFD)
		return add_uffd(s, rq, fd, err);
	close_fdp(&fd);
	if (rq->type == PS_TARGET_DEL)
		return delete_target(s, rq->index, err);
	if (rq->type == PS_HURRY) {
		hurry(sv, s);
		return 0;
	}
	if (rq->type != PS_CLOSE_UFFDS)
		return cr_err_set(err, CR_ERR_BUG, EINVAL, "request %u is not about a target",
				  rq->type);
	vec_foreach (t, &s->targets.at)
		if (*t)
			close_fdp(&(*t)->uffd);
	return 0;
}
