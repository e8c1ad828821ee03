#include "pageserver/dir.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "wire/tree_codec.h"

/* A reply must fit a frame, MSG_BYTES. */
enum { KNOWN_BYTES = 512 * 1024 };

struct dir_image {
	struct dir_sink *sink;
	struct image *im;
	/* pages are placed by many (read lock) while the set of targets is changed by one */
	pthread_rwlock_t lock;
	bool open;           /* has a tree: pages may come */
	bool final;          /* its tree is that of the stop */
	_Atomic bool broken; /* a batch failed half way: nobody knows what its pages are */
};

int dir_image_new(struct dir_image **ret, struct dir_sink *sink, const char *name,
		  const struct mig_id *id, struct msg_image_ok *ret_was, struct cr_err *err)
{
	struct dir_image *di = calloc(1, sizeof(*di));

	if (!di)
		return cr_err_oom(err);
	di->sink = sink;
	int r = image_receive(&di->im, sink->fd, name, &sink->limits, err);
	if (r) {
		free(di);
		return r;
	}
	pthread_rwlock_init(&di->lock, NULL);
	*ret_was = (struct msg_image_ok){.rounds = di->im->rounds - 1, .writer = di->im->migration};
	di->im->migration = *id;
	*ret = di;
	return 0;
}

void dir_image_free(struct dir_image *di)
{
	struct cr_err err = {0};

	if (!di)
		return;
	/* left as "receiving", it begins anew the next time */
	if (di->broken)
		log_info("image %s: left incomplete", di->im->name);
	else if (di->im->state == IMAGE_RECEIVING && image_save(di->im, IMAGE_PARTIAL, false, &err))
		log_warn("image %s: %s", di->im->name, err.msg);
	image_free(di->im);
	pthread_rwlock_destroy(&di->lock);
	free(di);
}

const char *dir_image_name(const struct dir_image *di)
{
	return di->im->name;
}

const char *dir_image_state(const struct dir_image *di)
{
	if (di->broken)
		return "incomplete";
	return image_state_name(di->im->state == IMAGE_RECEIVING ? IMAGE_PARTIAL : di->im->state);
}

bool dir_image_is_prepared(struct dir_image *di)
{
	return di->im->state == IMAGE_PREPARED;
}

/* ---- pages ---- */

static int place_data(struct image_pages *p, const struct page_batch *b, const uint8_t *data,
		      struct page_ack *acc, struct cr_err *err)
{
	XXH128_hash_t hashes[PAGE_BATCH_DATA_PAGES];
	int r = 0;

	for (size_t i = 0; i < b->nruns && !r; i++) {
		const struct page_wire_run *run = &b->runs[i];

		if (run->kind != PAGE_DATA)
			continue;
		/* decoded: all DATA runs of a batch together have at most so many pages */
		page_hash_run(data, run->npages, b->target, run->addr, hashes);
		for (size_t k = 0; k < run->npages; k++)
			page_digest_add(&acc->digest, hashes[k]);
		r = image_pages_write(p, run->addr, run->npages, data, hashes, err);
		data += run->npages * CR_PAGE_SIZE;
		acc->data_pages += run->npages;
	}
	return r;
}

static int place_zeros(struct image_pages *p, const struct page_batch *b, struct page_ack *acc,
		       struct cr_err *err)
{
	int r = 0;

	for (size_t i = 0; i < b->nruns && !r; i++) {
		const struct page_wire_run *run = &b->runs[i];

		if (run->kind == PAGE_SAME)
			return cr_err_set(err, CR_ERR_PEER, EPROTO,
					  "pages by reference were not agreed on");
		if (run->kind != PAGE_ZERO)
			continue;
		for (size_t k = 0; k < run->npages; k++)
			page_digest_add(&acc->digest,
					page_hash_zero(b->target, run->addr + k * CR_PAGE_SIZE));
		r = image_pages_zero(p, run->addr, run->npages, err);
		acc->zero_pages += run->npages;
	}
	return r;
}

static int place(struct dir_image *di, const struct page_batch *b, uint8_t *work,
		 struct page_ack *acc, struct cr_err *err)
{
	struct image_target *t = image_target(di->im, b->target);
	struct page_ack sum = *acc;
	const uint8_t *data;

	if (!di->open || di->im->state != IMAGE_RECEIVING)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "pages while none are due");
	if (!t)
		return cr_err_set(err, CR_ERR_PEER, ENOENT, "target %u is not known", b->target);
	int r = page_batch_unpack(b, work, &data, err);
	if (!r)
		r = place_data(&t->pages, b, data, &sum, err);
	if (!r)
		r = place_zeros(&t->pages, b, &sum, err);
	if (!r)
		*acc = sum;
	return r;
}

int dir_image_place(struct dir_image *di, const struct page_batch *b, uint8_t *work,
		    struct page_ack *acc, struct cr_err *err)
{
	pthread_rwlock_rdlock(&di->lock);
	int r = place(di, b, work, acc, err);
	if (r)
		di->broken = true;
	pthread_rwlock_unlock(&di->lock);
	return r;
}

/* ---- the conversation ---- */

static int wrong_state(const struct msg *m, struct cr_err *err)
{
	return cr_err_set(err, CR_ERR_PEER, EPROTO, "%s in a wrong state", msg_type_name(m->type));
}

static int give_targets(struct dir_image *di, const struct tree *t, struct arena *a,
			struct msg_tree_ok *ok, struct cr_err *err)
{
	int r = 0;

	ok->targets = arena_array(a, struct msg_target, t->n_procs + t->n_objects + 1);
	if (!ok->targets)
		return cr_err_oom(err);
	for (size_t i = 0; i < t->n_procs && !r; i++) {
		struct msg_target *mt = &ok->targets[ok->n_targets];

		if (t->procs[i].zombie)
			continue;
		mt->pid = t->procs[i].pid;
		mt->object = UINT32_MAX;
		r = image_target_for(di->im, mt->pid, 0, 0, &mt->target, err);
		ok->n_targets++;
	}
	for (size_t i = 0; i < t->n_objects && !r; i++) {
		struct msg_target *mt = &ok->targets[ok->n_targets++];

		mt->object = (uint32_t)i;
		r = image_target_for(di->im, 0, t->objects[i].ino, t->objects[i].dev, &mt->target,
				     err);
	}
	return r;
}

static int open_for_pages(struct dir_image *di, struct cr_err *err)
{
	if (di->open)
		return 0;
	int r = image_set_state(di->im, IMAGE_RECEIVING, err);
	di->open = !r;
	return r;
}

static int on_tree(struct dir_image *di, const struct msg *m, struct arena *a, struct msg *reply,
		   struct cr_err *err)
{
	struct tree *t;

	if (di->im->state >= IMAGE_PREPARED)
		return wrong_state(m, err);
	int r = tree_decode(m->tree.tree, m->tree.tree_len, &t, err);
	if (r)
		return r;
	*reply = msg_of(MSG_TREE_OK);
	if (m->tree.stage != MSG_STAGE_CHECK) {
		r = open_for_pages(di, err);
		if (!r)
			r = give_targets(di, t, a, &reply->tree_ok, err);
		/* kept, to be pruned by once all pages of this round are there */
		uint8_t *copy = r ? NULL : malloc(m->tree.tree_len);
		if (!r && !copy)
			r = cr_err_oom(err);
		if (!r) {
			memcpy(copy, m->tree.tree, m->tree.tree_len);
			free(di->im->tree);
			di->im->tree = copy;
			di->im->tree_len = m->tree.tree_len;
		}
		di->final = m->tree.stage == MSG_STAGE_FINAL;
	}
	tree_free(t);
	return r;
}

static int on_known(struct dir_image *di, const struct msg *m, struct arena *a, struct msg *reply,
		    struct cr_err *err)
{
	struct image_target *t = image_target(di->im, m->known.target);
	_cleanup_free_ uint8_t *b = NULL;

	if (!t)
		return cr_err_set(err, CR_ERR_PEER, ENOENT, "target %u is not known",
				  m->known.target);
	*reply = msg_of(MSG_KNOWN_OK);
	int r = image_pages_encode_part(&t->pages, m->known.from, KNOWN_BYTES, &b,
					&reply->known_ok.len, &reply->known_ok.next, err);
	if (r)
		return r;
	reply->known_ok.chunks = arena_memdup(a, b, reply->known_ok.len);
	return reply->known_ok.chunks ? 0 : cr_err_oom(err);
}

/* Pages of a process that are not its own any more. */
static int on_reset(struct dir_image *di, const struct msg *m, struct msg *reply,
		    struct cr_err *err)
{
	struct image_target *t = m->reset.pid ? image_find(di->im, m->reset.pid, 0, 0) : NULL;
	int r = 0;

	if (!di->open || di->im->state != IMAGE_RECEIVING)
		return wrong_state(m, err);
	if (!t)
		return cr_err_set(err, CR_ERR_PEER, ENOENT, "RESET of process %d: not known",
				  m->reset.pid);
	for (size_t i = 0; i < m->reset.n_ranges && !r; i++)
		r = image_pages_drop(&t->pages, m->reset.ranges[i].start, m->reset.ranges[i].end,
				     err);
	*reply = msg_of(MSG_OK);
	return r;
}

/* What the round has left: pruned by its tree, and on disk. */
static int save(struct dir_image *di, enum image_state state, struct cr_err *err)
{
	struct tree *t;

	if (!di->im->tree || di->broken)
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "%s",
				  di->broken ? "not all pages were kept" : "no tree yet");
	int r = tree_decode(di->im->tree, di->im->tree_len, &t, err);
	if (r)
		return r;
	r = image_adopt_tree(di->im, t, di->im->tree, di->im->tree_len, err);
	tree_free(t);
	if (!r)
		r = image_save(di->im, state, di->sink->sync && state == IMAGE_PREPARED, err);
	return r;
}

static int on_keep(struct dir_image *di, const struct msg *m, struct msg *reply, struct cr_err *err)
{
	if (!di->open || di->im->state != IMAGE_RECEIVING)
		return wrong_state(m, err);
	di->open = false;
	*reply = msg_of(MSG_OK);
	return save(di, IMAGE_PARTIAL, err);
}

static int on_prepare(struct dir_image *di, const struct msg *m, struct msg *reply,
		      struct cr_err *err)
{
	if (!di->open || !di->final || di->im->state != IMAGE_RECEIVING)
		return wrong_state(m, err);
	di->open = false;
	*reply = msg_of(MSG_PREPARED);
	return save(di, IMAGE_PREPARED, err);
}

static int on_commit(struct image *im, const struct msg *m, struct msg *reply, struct cr_err *err)
{
	if (im->state < IMAGE_PREPARED)
		return wrong_state(m, err);
	*reply = msg_of(MSG_RUNNING);
	return im->state == IMAGE_SEALED ? 0 : image_set_state(im, IMAGE_SEALED, err);
}

static int on_abort(struct image *im, const struct msg *m, struct msg *reply, struct cr_err *err)
{
	if (im->state == IMAGE_SEALED)
		return wrong_state(m, err);
	*reply = msg_of(MSG_ABORTED);
	/* what was prepared is of no use to restore, the tasks run on; but good to go on from */
	return im->state == IMAGE_PREPARED ? image_set_state(im, IMAGE_PARTIAL, err) : 0;
}

static void on_query(const struct image *im, struct msg *reply)
{
	*reply = msg_of(MSG_STATE);
	reply->state.state = im->state == IMAGE_SEALED     ? MSG_STATE_RUNNING
			     : im->state == IMAGE_PREPARED ? MSG_STATE_PREPARED
							   : MSG_STATE_PREPARING;
}

static int answer(struct dir_image *di, const struct msg *m, struct arena *a, struct msg *reply,
		  struct cr_err *err)
{
	int r;

	switch (m->type) {
	case MSG_TREE:
		return on_tree(di, m, a, reply, err);
	case MSG_KNOWN:
		return on_known(di, m, a, reply, err);
	case MSG_RESET:
		return on_reset(di, m, reply, err);
	case MSG_KEEP:
		return on_keep(di, m, reply, err);
	case MSG_PREPARE_COMMIT:
		return on_prepare(di, m, reply, err);
	case MSG_COMMIT:
		r = on_commit(di->im, m, reply, err);
		return r ? r : 1;
	case MSG_ABORT:
		r = on_abort(di->im, m, reply, err);
		return r ? r : 1;
	case MSG_QUERY:
		on_query(di->im, reply);
		return 0;
	case MSG_PING:
		*reply = msg_of(MSG_PONG);
		return 0;
	case MSG_VERIFY:
		return cr_err_set(err, CR_ERR_UNSUPPORTED, ENOTSUP,
				  "an image has no file's pages: nothing to compare whole memories "
				  "with; every page's digest is checked anyway");
	default:
		return cr_err_set(err, CR_ERR_PEER, EPROTO, "unexpected %s",
				  msg_type_name(m->type));
	}
}

int dir_image_answer(struct dir_image *di, const struct msg *m, struct arena *arena,
		     struct msg *reply, struct cr_err *err)
{
	pthread_rwlock_wrlock(&di->lock);
	int r = answer(di, m, arena, reply, err);
	pthread_rwlock_unlock(&di->lock);
	return r;
}

/* ---- without a link ---- */

static bool is_of(const struct image *im, const struct mig_id *id)
{
	return mig_id_equal(&im->migration, id);
}

static int find_orphan(struct dir_sink *sink, const struct mig_id *id, struct image **ret,
		       struct cr_err *err)
{
	int fd = openat(sink->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_dir_ DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	if (!d) {
		close_fdp(&fd);
		return cr_err_sys(err, "look into %s", sink->path);
	}
	while ((e = readdir(d))) {
		_cleanup_(image_freep) struct image *im = NULL;
		struct cr_err ignored = {0};

		if (image_name_ok(e->d_name) &&
		    !image_open_manifest(&im, sink->fd, e->d_name, &ignored) && is_of(im, id)) {
			*ret = take_ptr(im);
			return 0;
		}
	}
	return cr_err_set(err, CR_ERR_PEER, ENOENT, "no such migration here");
}

int dir_orphan_answer(struct dir_sink *sink, const struct mig_id *id, const struct msg *m,
		      struct msg *reply, struct cr_err *err)
{
	_cleanup_(image_freep) struct image *im = NULL;
	int r = find_orphan(sink, id, &im, err);

	if (r)
		return r;
	if (m->type == MSG_COMMIT)
		return on_commit(im, m, reply, err);
	if (m->type == MSG_ABORT)
		return on_abort(im, m, reply, err);
	if (m->type != MSG_QUERY)
		return wrong_state(m, err);
	on_query(im, reply);
	return 0;
}
