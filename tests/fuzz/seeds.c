/* seeds TARGET DIR: a few good inputs of a fuzz target, for it to begin from. */
#include "tests/unit/msg_examples.h"
#undef SAME_STR /* each has one of its own */
#include "tests/unit/tree_fill.h"

#include <fcntl.h>
#include "image/image.h"
#include "tests/fuzz/image_input.h"
#include "tests/fuzz/page_server_input.h"
#include "wire/lazy_stream.h"
#include "wire/le.h"
#include "wire/page_stream.h"
#include "wire/ps_msg.h"
#include "wire/tree_codec.h"

struct out {
	int dirfd;
	int n;
	uint8_t b[1 << 20];
	size_t len;
};

#define MUST(call)                                                                                 \
	do {                                                                                       \
		struct cr_err err = {0};                                                           \
		if (call) {                                                                        \
			fprintf(stderr, "seeds: line %d: %s\n", __LINE__, err.msg);                \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

static void put(struct out *o, const void *b, size_t n)
{
	if (n > sizeof(o->b) - o->len)
		exit(1);
	if (n)
		memcpy(o->b + o->len, b, n);
	o->len += n;
}

static void put_byte(struct out *o, int b)
{
	put(o, &(uint8_t){(uint8_t)b}, 1);
}

/* A file of what was put. */
static void save(struct out *o)
{
	char name[16];

	snprintf(name, sizeof(name), "seed-%d", o->n++);
	_cleanup_fd_ int fd =
	    openat(o->dirfd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, o->b, o->len) != (ssize_t)o->len) {
		perror(name);
		exit(1);
	}
	o->len = 0;
}

/* ---- procfs, msg, tree ---- */

/* As the kernel writes them; in the order in which the target picks its parsers. */
static const char *const proc_texts[] = {
    "00400000-00402000 r-xp 00001000 fe:00 247498                     /usr/bin/x\n"
    "7ffd0000-7ffd2000 rw-p 00000000 00:00 0                          [stack]\n",
    "00400000-00402000 rw-p 00000000 00:00 0                          [heap]\n"
    "Size:                  8 kB\nRss:                   8 kB\nAnonymous:             4 kB\n"
    "THPeligible:           0\nVmFlags: rd wr mr mw me ac sd \n",
    "42 (a b) c) S 1 42 42 34816 42 4194304 1 0 0 0 0 0 0 0 20 0 1 0 3 4096 1 18446744073709551615 "
    "4194304 4202496 140726 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 4214784 4218880 9 140 141 141 142 0\n",
    "Name:\tx\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t42\nPid:\t42\nPPid:\t1\nTracerPid:\t0\n"
    "Uid:\t0\t1\t2\t3\nGid:\t4\t5\t6\t7\nGroups:\t8 9 \nNSpid:\t42\t7\nThreads:\t1\n"
    "SigQ:\t0/1\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\nSigBlk:\t0000000000000001\n"
    "CapInh:\t0\nCapPrm:\t1ff\nCapEff:\t1ff\nCapBnd:\t1ff\nCapAmb:\t0\nNoNewPrivs:\t0\nSeccomp:"
    "\t0\n",
    "Limit                     Soft Limit           Hard Limit           Units     \n"
    "Max cpu time              unlimited            unlimited            seconds   \n"
    "Max open files            1024                 4096                 files     \n",
    "ID: 0\nsignal: 14/00007ffd\nnotify: signal/pid.42\nClockID: 1\n",
};

static void seed_procfs(struct out *o)
{
	for (size_t i = 0; i < ARRAY_SIZE(proc_texts); i++) {
		put_byte(o, (int)i);
		put(o, proc_texts[i], strlen(proc_texts[i]));
		save(o);
	}
}

static void put_msg(struct out *o, const struct msg *m)
{
	uint8_t *b = NULL;
	size_t n = 0;

	MUST(msg_encode(m, &b, &n, &err));
	put(o, b, n);
	free(b);
}

static void seed_msg(struct out *o)
{
	for (int t = 1; t < MSG_TYPE_END; t++) {
		struct msg m = example((enum msg_type)t);
		uint8_t *b;
		size_t n;
		struct cr_err err;

		if (msg_encode(&m, &b, &n, &err))
			continue; /* a number that is not used */
		put(o, b, n);
		free(b);
		save(o);
	}
}

/* One process, small, with a bit of everything that pages depend on. */
static struct tree *small_tree(void)
{
	struct tree *t = tree_new();
	struct vma *v;

	t->root_pid = 42;
	t->n_procs = 1;
	t->procs = arena_array(t->arena, struct process, 1);
	t->procs[0] =
	    (struct process){.pid = 42, .n_threads = 1, .cwd = "/", .root = "/", .umask = 022};
	t->procs[0].threads = arena_array(t->arena, struct thread, 1);
	t->procs[0].threads[0].tid = 42;
	t->procs[0].mm.n_vmas = 3;
	v = t->procs[0].mm.vmas = arena_array(t->arena, struct vma, 3);
	v[0] = (struct vma){.start = 0x400000,
			    .end = 0x402000,
			    .prot = 5,
			    .kind = VMA_FILE_PRIVATE,
			    .object = UINT32_MAX};
	v[1] = (struct vma){.start = 0x500000,
			    .end = 0x900000,
			    .prot = 3,
			    .kind = VMA_ANON,
			    .file = UINT32_MAX,
			    .object = UINT32_MAX};
	v[2] = (struct vma){.start = 0xa00000,
			    .end = 0xa04000,
			    .prot = 3,
			    .kind = VMA_SHARED_OBJ,
			    .file = UINT32_MAX};
	t->n_mapped_files = 1;
	t->mapped_files = arena_array(t->arena, struct mapped_file, 1);
	t->mapped_files[0].path = "/bin/x";
	t->n_objects = 1;
	t->objects = arena_array(t->arena, struct shared_object, 1);
	t->objects[0] = (struct shared_object){
	    .kind = OBJ_SHARED_ANON, .size = 0x4000, .ino = 7, .dev = 8, .ipc_cpid = 1};
	return t;
}

static void encode_tree(struct tree *t, uint8_t **b, size_t *n)
{
	MUST(tree_encode(t, b, n, &err));
	tree_free(t);
}

static void seed_tree(struct out *o)
{
	struct tree *trees[] = {small_tree(), fill_tree()};

	for (size_t i = 0; i < ARRAY_SIZE(trees); i++) {
		_cleanup_free_ uint8_t *b = NULL;
		size_t n;

		encode_tree(trees[i], &b, &n);
		put(o, b, n);
		save(o);
	}
}

/* ---- page streams ---- */

static void seed_page_stream(struct out *o)
{
	uint8_t head[PAGE_HDR_BYTES], hello[PAGE_HELLO_BYTES], run[PAGE_RUN_BYTES];
	static uint8_t page[CR_PAGE_SIZE];

	put_byte(o, 0);
	page_frame_encode(
	    head, &(struct page_frame){.type = PAGE_FRAME_HELLO, .wire_bytes = PAGE_HELLO_BYTES});
	page_hello_encode(hello,
			  &(struct page_hello){.version = 1, .version_min = 1, .nstreams = 1});
	put(o, head, sizeof(head));
	put(o, hello, sizeof(hello));
	page_frame_encode(head, &(struct page_frame){.type = PAGE_FRAME_BATCH,
						     .nruns = 1,
						     .raw_bytes = CR_PAGE_SIZE,
						     .wire_bytes = CR_PAGE_SIZE,
						     .seq = 1});
	page_run_encode(run, &(struct page_wire_run){.kind = PAGE_DATA, .addr = 4096, .npages = 1});
	put(o, head, sizeof(head));
	put(o, run, sizeof(run));
	put(o, page, sizeof(page));
	page_frame_encode(head, &(struct page_frame){.type = PAGE_FRAME_FLUSH, .seq = 2});
	put(o, head, sizeof(head));
	save(o);
}

/* ---- fetching ---- */

static void put_lazy(struct out *o, const struct lazy_frame *f, const void *payload)
{
	uint8_t head[LAZY_HDR_BYTES];

	lazy_frame_encode(head, f);
	put(o, head, sizeof(head));
	put(o, payload, f->payload);
}

/* What a destination says; the pid and the addresses are those of the target. */
static void seed_serve(struct out *o)
{
	const struct lazy_chunk c = {.start = 0x200000, .bits = {0xff, 0, 1}};
	const struct msg_postcopy result = {.pages_lazy = 9, .faults = 1};
	uint8_t chunk[LAZY_CHUNK_BYTES], stats[LAZY_STATS_BYTES];

	lazy_chunk_encode(chunk, &c);
	lazy_stats_encode(stats, &result);
	for (int pushers = 0; pushers < 3; pushers++) {
		put_byte(o, pushers == 2 ? pushers | 0x80 : pushers);
		for (int object = 0; object < 2; object++) {
			lazy_chunk_encode(chunk, &(struct lazy_chunk){.start = object ? 0 : c.start,
								      .bits = {0xff, 0, 1}});
			put_lazy(o,
				 &(struct lazy_frame){.type = LAZY_MISSING,
						      .pid = object ? LAZY_OBJECT + 1 : 7,
						      .npages = 1,
						      .payload = sizeof(chunk)},
				 chunk);
		}
		put_lazy(o, &(struct lazy_frame){.type = LAZY_MISSING_END}, NULL);
		for (uint32_t i = 1; i < 8; i++)
			put_lazy(o,
				 &(struct lazy_frame){.type = LAZY_WANT,
						      .pid = 7,
						      .npages = i,
						      .addr = c.start + i * CR_PAGE_SIZE},
				 NULL);
		if (pushers)
			put_lazy(
			    o,
			    &(struct lazy_frame){.type = LAZY_COMPLETE, .payload = sizeof(stats)},
			    stats);
		save(o);
	}
}

/* What a source says. */
static void seed_fetch(struct out *o)
{
	static const struct {
		enum lazy_type type;
		pid_t pid;
		uint32_t pages;
		uint64_t addr;
	} frames[] = {
	    {LAZY_START, 0, 0, 0},
	    {LAZY_PAGES, 7, 1, 0x200000},
	    {LAZY_ZEROS, 7, 9, 0x201000},
	    {LAZY_UNREADABLE, 7, 2, 0x210000},
	    {LAZY_ZEROS, 7, 64, 0x400000},
	    {LAZY_PAGES, 7, 2, 0x440000},
	    {LAZY_PAGES, LAZY_OBJECT + 1, 1, 0},
	    {LAZY_UNCHANGED, LAZY_OBJECT + 1, 4, 0x1000},
	    {LAZY_ZEROS, LAZY_OBJECT + 1, 2, 0x8000},
	    {LAZY_UNREADABLE, LAZY_OBJECT + 1, 1, 0x10000},
	    {LAZY_BYE, 0, 0, 0},
	};
	static uint8_t pages[2 * CR_PAGE_SIZE];

	memset(pages, 0x5a, sizeof(pages));
	for (int pushed = 0; pushed < 2; pushed++) {
		for (size_t i = 0; i < ARRAY_SIZE(frames); i++) {
			struct lazy_frame f = {.type = frames[i].type,
					       .pid = frames[i].pid,
					       .npages = frames[i].pages,
					       .addr = frames[i].addr};

			if (f.type == LAZY_PAGES)
				f.payload = f.npages * (uint32_t)CR_PAGE_SIZE;
			put_lazy(o, &f, pages);
			o->b[o->len - f.payload - LAZY_HDR_BYTES + 5] = (uint8_t)pushed;
		}
		save(o);
	}
	/* shared memory that is as it was, before it is asked for */
	struct lazy_frame f = {
	    .type = LAZY_CLEAN, .pid = LAZY_OBJECT + 1, .npages = 1, .payload = LAZY_CHUNK_BYTES};

	lazy_chunk_encode(pages, &(struct lazy_chunk){.bits = {0xff00ff}});
	put_lazy(o, &(struct lazy_frame){.type = LAZY_START, .npages = 1}, NULL);
	put_lazy(o, &f, pages);
	put_lazy(o, &(struct lazy_frame){.type = LAZY_TOLD}, NULL);
	save(o);
	/* a huge page, whole */
	for (uint32_t at = 0; at < 512; at += 64)
		put_lazy(o,
			 &(struct lazy_frame){.type = LAZY_ZEROS,
					      .pid = 7,
					      .npages = 64,
					      .addr = 0x400000 + at * CR_PAGE_SIZE},
			 NULL);
	save(o);
}

/* ---- images ---- */

static void put_part(struct out *o, int which, const void *b, size_t n)
{
	uint8_t len[2];

	le_put16(len, (uint16_t)n);
	put_byte(o, which);
	put(o, len, sizeof(len));
	put(o, b, n);
}

static void put_pages(struct image_pages *p, uint64_t va, size_t n)
{
	uint8_t page[CR_PAGE_SIZE] = {1};

	for (size_t i = 0; i < n; i++) {
		uint64_t at = va + i * CR_PAGE_SIZE;
		XXH128_hash_t h = page_hash(page, p->target, at);

		MUST(image_pages_write(p, at, 1, page, &h, &err));
	}
	MUST(image_pages_zero(p, va + n * CR_PAGE_SIZE, 1, &err));
}

static void seed_image_of(struct out *o, int how, enum image_state state, bool raw)
{
	struct image im = {.name = "image", .dirfd = -1, .state = state, .rounds = 2};
	_cleanup_free_ uint8_t *tree = NULL, *manifest = NULL;
	_cleanup_fd_ int tmp = open("/tmp", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	uint8_t *index[2];
	size_t n, n_tree, n_index[2];

	encode_tree(small_tree(), &tree, &n_tree);
	im.tree_file_bytes = n_tree + IMAGE_RECORD_MIN;
	for (uint32_t i = 0; i < 2; i++) {
		struct image_target *t = calloc(1, sizeof(*t));

		*vec_push(&im.targets) = t;
		t->pid = i ? 0 : 42;
		t->ino = i ? 7 : 0;
		t->dev = i ? 8 : 0;
		image_pages_init(&t->pages, dup(tmp), i, NULL);
		put_pages(&t->pages, i ? 0 : 0x500000, 3);
		t->data_pages = t->pages.n_data;
		t->zero_pages = t->pages.n_zero;
		MUST(image_pages_encode(&t->pages, &index[i], &n_index[i], &err));
	}
	MUST(image_manifest_encode(&im, &manifest, &n, &err));
	put_byte(o, how);
	put_part(o, IN_MANIFEST | (raw ? IN_RAW : 0), manifest, n);
	put_part(o, IN_TREE, tree, n_tree);
	for (int i = 0; i < 2; i++) {
		put_part(o, IN_INDEX + i, index[i], n_index[i]);
		free(index[i]);
		image_pages_done(&im.targets.v[i]->pages);
		free(im.targets.v[i]);
	}
	vec_done(&im.targets);
	save(o);
}

static void seed_image(struct out *o)
{
	seed_image_of(o, IN_MEND, IMAGE_SEALED, false);
	seed_image_of(o, IN_MEND | IN_RECEIVE, IMAGE_PARTIAL, false);
	seed_image_of(o, 0, IMAGE_SEALED, false);
	seed_image_of(o, 0, IMAGE_SEALED, true);
}

/* ---- the page-server ---- */

static void put_step(struct out *o, int step, int connection, const void *b, size_t n)
{
	uint8_t len[2];

	le_put16(len, (uint16_t)n);
	put_byte(o, step);
	put_byte(o, connection);
	put(o, len, sizeof(len));
	put(o, b, n);
}

static void put_frame(struct out *o, const struct msg *m)
{
	struct out *body = calloc(1, sizeof(*body));

	put_msg(body, m);
	put_step(o, DO_FRAME, 0, body->b, body->len);
	free(body);
}

static void put_tree(struct out *o, enum msg_stage stage)
{
	_cleanup_free_ uint8_t *b = NULL;
	struct msg m = msg_of(MSG_TREE);

	m.tree.stage = stage;
	encode_tree(small_tree(), &b, &m.tree.tree_len);
	m.tree.tree = b;
	put_frame(o, &m);
}

/* kind, page (2), number of pages; the target first */
static const uint8_t a_batch[] = {0, PAGE_DATA, 0x00, 5, 3, PAGE_ZERO, 0x10, 5, 2};
static const uint8_t large_batch[] = {0, PAGE_DATA, 0x00, 6, 40, PAGE_ZERO, 0x00, 5, 9};

static void put_round(struct out *o, enum msg_stage stage)
{
	struct msg known = msg_of(MSG_KNOWN);

	put_tree(o, stage);
	put_frame(o, &known);
	put_step(o, DO_BATCH, 1, a_batch, sizeof(a_batch));
	put_step(o, DO_BATCH, 1, large_batch, sizeof(large_batch));
	put_step(o, DO_FLUSH, 1, NULL, 0);
}

static void seed_conversation(struct out *o, enum msg_type end)
{
	struct msg image = msg_of(MSG_IMAGE), m;

	image.image.name = "web";
	put_step(o, DO_PEER_HELLO, 0, NULL, 0);
	put_frame(o, &image);
	put_tree(o, MSG_STAGE_CHECK);
	put_step(o, DO_STREAM_HELLO, 1, NULL, 0);
	put_round(o, MSG_STAGE_PREPARE);
	if (end == MSG_KEEP) {
		m = msg_of(end);
		put_frame(o, &m);
	} else {
		put_round(o, MSG_STAGE_FINAL);
		m = msg_of(MSG_PREPARE_COMMIT);
		put_frame(o, &m);
		m = msg_of(end);
		if (end == MSG_QUERY)
			m.query.id.b[0] = 7; /* as the target's an_id() has it */
		put_frame(o, &m);
	}
	save(o);
}

static void seed_control(struct out *o)
{
	uint8_t b[PS_REQUEST_BYTES];

	put_step(o, DO_CONTROL_SESSION, 0, NULL, 0);
	for (int t = PS_TARGET_PROCESS; t <= PS_CLOSE_UFFDS; t++) {
		ps_request_encode(b, &(struct ps_request){.type = (uint8_t)t, .pid = 1});
		put_step(o, DO_CONTROL, t == PS_TARGET_PROCESS || t == PS_TARGET_OBJECT, b,
			 sizeof(b));
		put_step(o, DO_STREAM_HELLO, 1, NULL, 0);
		put_step(o, DO_BATCH, 1, a_batch, sizeof(a_batch));
	}
	save(o);
}

static void seed_page_server(struct out *o)
{
	seed_conversation(o, MSG_KEEP);
	seed_conversation(o, MSG_COMMIT);
	seed_conversation(o, MSG_ABORT);
	seed_conversation(o, MSG_QUERY);
	seed_control(o);
}

static const struct {
	const char *target;
	void (*seed)(struct out *o);
} seeds[] = {
    {"procfs", seed_procfs}, {"msg", seed_msg},
    {"tree", seed_tree},     {"page_stream", seed_page_stream},
    {"image", seed_image},   {"page_server", seed_page_server},
    {"serve", seed_serve},   {"fetch", seed_fetch},
};

int main(int argc, char **argv)
{
	struct out *o = calloc(1, sizeof(*o));

	if (argc != 3 || !o)
		return 2;
	o->dirfd = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	for (size_t i = 0; i < ARRAY_SIZE(seeds); i++)
		if (!strcmp(argv[1], seeds[i].target))
			seeds[i].seed(o);
	if (!o->n)
		fprintf(stderr, "seeds: none for %s\n", argv[1]);
	int n = o->n;
	close(o->dirfd);
	free(o);
	return n ? 0 : 1;
}
