/* Pages are told of by their struct page, of which the kernel has an array (vmemmap), and are read
 * where it has all of the memory mapped. Where these two begin is chosen anew at each start
 * (CONFIG_RANDOMIZE_MEMORY), and told to nobody: it is found out with pages of our own, whose
 * frames /proc/self/pagemap knows, and whose struct page is that of what a pipe holds. */
#include "kernel/kread.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "kernel/bpf_iter.h"
#include "kernel/pagemap.h"

enum {
	WINDOW_BYTES = 64 * 1024,
	MAP_VALUE = 2, /* BPF_PSEUDO_MAP_VALUE */
	PAGES = 3,
	PAGE = 4096,
	MAGIC_BYTES = 64,
};
#define GIB (1ull << 30)

struct window { /* of the program: what is asked, and what it found */
	uint64_t address;
	uint32_t len;
	int32_t result;
	uint8_t data[WINDOW_BYTES];
};

struct kread {
	int prog, map;
	struct window *window;
	uint64_t direct, pages; /* where all memory is mapped; the array of struct page … */
	uint64_t page_size;     /* … and the size of one */
};

/* ---- bytes ---- */

static int load(struct kread *k, struct cr_err *err)
{
	struct bpf_map_create_opts map_opts = {.sz = sizeof(map_opts), .map_flags = BPF_F_MMAPABLE};
	struct bpf_prog_load_opts opts = {.sz = sizeof(opts), .prog_flags = BPF_F_SLEEPABLE};
	struct bpf_code p = {.n = 0};

	k->map =
	    bpf_map_create(BPF_MAP_TYPE_ARRAY, "cr_kread", 4, sizeof(struct window), 1, &map_opts);
	if (k->map < 0)
		return cr_err_sys(err, "a BPF array");
	void *at = mmap(NULL, sizeof(struct window), PROT_READ | PROT_WRITE, MAP_SHARED, k->map, 0);
	if (at == MAP_FAILED)
		return cr_err_sys(err, "mapping a BPF array");
	k->window = at;
	bpf_emit(&p, BPF_LD | BPF_DW | BPF_IMM, BPF_REG_6, MAP_VALUE, 0, k->map);
	bpf_emit(&p, 0, 0, 0, 0, 0);
	bpf_emit_load(&p, BPF_REG_2, BPF_REG_6, offsetof(struct window, len), 4);
	bpf_emit(&p, BPF_JMP | BPF_JGT | BPF_K, BPF_REG_2, 0, 5, WINDOW_BYTES);
	bpf_emit_load(&p, BPF_REG_3, BPF_REG_6, offsetof(struct window, address), 8);
	bpf_emit(&p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_1, BPF_REG_6, 0, 0);
	bpf_emit(&p, BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_1, 0, 0, offsetof(struct window, data));
	bpf_emit(&p, BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_probe_read_kernel);
	bpf_emit(&p, BPF_STX | BPF_MEM | BPF_W, BPF_REG_6, BPF_REG_0,
		 offsetof(struct window, result), 0);
	bpf_emit(&p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 0);
	bpf_emit(&p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
	k->prog =
	    bpf_prog_load(BPF_PROG_TYPE_SYSCALL, "cr_kread", "Dual BSD/GPL", p.insn, p.n, &opts);
	return k->prog < 0 ? cr_err_sys(err, "loading a BPF program") : 0;
}

int kread_at(const struct kread *k, uint64_t address, void *buf, size_t len, struct cr_err *err)
{
	LIBBPF_OPTS(bpf_test_run_opts, opts);

	for (size_t done = 0, n; done < len; done += n) {
		n = len - done < WINDOW_BYTES ? len - done : WINDOW_BYTES;
		k->window->address = address + done;
		k->window->len = (uint32_t)n;
		k->window->result = -1;
		if (bpf_prog_test_run_opts(k->prog, &opts))
			return cr_err_sys(err, "running a BPF program");
		if (k->window->result)
			return cr_err_set(err, CR_ERR_KERNEL, EFAULT,
					  "the kernel's memory at %#llx cannot be read",
					  (unsigned long long)k->window->address);
		memcpy((uint8_t *)buf + done, k->window->data, n);
	}
	return 0;
}

/* ---- pages ---- */

static uint64_t frame_of(const struct kread *k, uint64_t page)
{
	return (page - k->pages) / k->page_size;
}

int kread_page(const struct kread *k, uint64_t page, uint64_t offset, void *buf, size_t len,
	       struct cr_err *err)
{
	if (page < k->pages || (page - k->pages) % k->page_size)
		return cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "%#llx is no struct page",
				  (unsigned long long)page);
	return kread_at(k, k->direct + frame_of(k, page) * PAGE + offset, buf, len, err);
}

struct own { /* pages of ours */
	uint8_t *at;
	uint64_t frames[PAGES];
	uint64_t page[PAGES]; /* struct page */
	uint64_t file;        /* the pipe that holds them */
};

static int make_own(struct own *o, int pipe, struct cr_err *err)
{
	_cleanup_fd_ int pagemap = pagemap_open(getpid(), err);
	struct iovec iov;

	if (pagemap < 0)
		return pagemap;
	void *at = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED, -1, 0);
	if (at == MAP_FAILED)
		return cr_err_sys(err, "pages of our own");
	o->at = at;
	if (getrandom(at, (size_t)PAGES * PAGE, 0) != (ssize_t)PAGES * PAGE)
		return cr_err_sys(err, "getrandom");
	iov = (struct iovec){at, (size_t)PAGES * PAGE};
	if (vmsplice(pipe, &iov, 1, SPLICE_F_NONBLOCK) != (ssize_t)iov.iov_len)
		return cr_err_sys(err, "vmsplice");
	for (size_t i = 0; i < PAGES; i++) {
		uint64_t e;
		int r = pagemap_entry(pagemap, (uintptr_t)at + i * PAGE, &e, err);

		if (r)
			return r;
		o->frames[i] = e & PAGEMAP_FRAME;
		if (!o->frames[i])
			return cr_err_set(err, CR_ERR_KERNEL, EPERM,
					  "frames are not told: needs CAP_SYS_ADMIN");
	}
	return 0;
}

/* The struct file of a descriptor of ours. */
static int find_file(const struct btf *btf, int fd, uint64_t *ret, struct cr_err *err)
{
	const union bpf_iter_link_info info = {.task = {.pid = (uint32_t)getpid()}};
	_cleanup_fd_ int prog = -1;
	struct bpf_code p = {.n = 0};
	size_t bytes = 0;
	void *buf = NULL;
	struct record {
		uint64_t fd, file;
	};

	/* struct bpf_iter__task_file { meta; task; u32 fd; file; } */
	bpf_emit(&p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_8, BPF_REG_1, 0, 0);
	bpf_emit_begin(&p, 3);
	bpf_emit_load(&p, BPF_REG_2, BPF_REG_8, 16, 4);
	bpf_emit(&p, BPF_STX | BPF_MEM | BPF_DW, BPF_REG_10, BPF_REG_2, -16, 0);
	bpf_emit(&p, BPF_STX | BPF_MEM | BPF_DW, BPF_REG_10, BPF_REG_6, -8, 0);
	bpf_emit_write(&p, sizeof(struct record));
	int r = bpf_iter_load(btf, "task_file", &p, &prog, err);
	if (!r)
		r = bpf_iter_read(prog, &info, NULL, 0, &buf, &bytes, err);
	_cleanup_free_ struct record *v = buf;
	for (size_t i = 0; !r && i < bytes / sizeof(*v); i++)
		if (v[i].fd == (uint64_t)fd) {
			*ret = v[i].file;
			return 0;
		}
	return r ? r : cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "a pipe is not listed");
}

/* What the pipe holds: struct file, pipe_inode_info, pipe_buffer, page. */
static int find_pages(const struct kread *k, const struct btf *btf, struct own *o,
		      struct cr_err *err)
{
	int32_t data = 0, bufs = 0, page = 0;
	size_t size;
	uint64_t at = 0;
	int id = btf__find_by_name_kind(btf, "pipe_buffer", BTF_KIND_STRUCT);
	int r = bpf_find_member(btf, "file", "private_data", &data, &size, err);

	if (!r)
		r = bpf_find_member(btf, "pipe_inode_info", "bufs", &bufs, &size, err);
	if (!r)
		r = bpf_find_member(btf, "pipe_buffer", "page", &page, &size, err);
	if (!r)
		r = kread_at(k, o->file + (uint64_t)data, &at, 8, err);
	if (!r)
		r = kread_at(k, at + (uint64_t)bufs, &at, 8, err);
	for (size_t i = 0; i < PAGES && !r; i++)
		r = kread_at(
		    k, at + i * (uint64_t)btf__resolve_size(btf, (uint32_t)id) + (uint64_t)page,
		    &o->page[i], 8, err);
	return r;
}

/* It begins somewhere below what is allocated in it, at a whole GiB. */
static int find_direct(struct kread *k, const struct own *o, struct cr_err *err)
{
	enum { TRIES = 65536 };
	uint8_t got[MAGIC_BYTES];
	struct cr_err ignored = {0};

	for (uint64_t i = 0; i < TRIES; i++) {
		uint64_t start = (o->file & ~(GIB - 1)) - i * GIB;

		if (!kread_at(k, start + o->frames[0] * PAGE, got, sizeof(got), &ignored) &&
		    !memcmp(got, o->at, sizeof(got))) {
			k->direct = start;
			return 0;
		}
	}
	return cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "where memory is mapped is not found");
}

static int find_all(struct kread *k, const struct btf *btf, struct own *o, struct cr_err *err)
{
	uint8_t got[PAGE];
	int id = btf__find_by_name_kind(btf, "page", BTF_KIND_STRUCT);
	int r = find_pages(k, btf, o, err);

	if (!r)
		r = find_direct(k, o, err);
	k->page_size = id > 0 ? (uint64_t)btf__resolve_size(btf, (uint32_t)id) : 1;
	k->pages = o->page[0] - o->frames[0] * k->page_size;
	for (size_t i = 0; i < PAGES && !r; i++) { /* all as it is told */
		r = kread_page(k, o->page[i], 0, got, PAGE, err);
		if (!r && (frame_of(k, o->page[i]) != o->frames[i] ||
			   memcmp(got, o->at + i * PAGE, PAGE)))
			r = cr_err_set(err, CR_ERR_KERNEL, ENOTSUP,
				       "this kernel's pages are not where they should be");
	}
	return r;
}

static int calibrate(struct kread *k, const struct btf *btf, struct cr_err *err)
{
	struct own o = {0};
	int fds[2] = {-1, -1};

	if (pipe2(fds, O_CLOEXEC))
		return cr_err_sys(err, "pipe2");
	int r = make_own(&o, fds[1], err);
	if (!r)
		r = find_file(btf, fds[0], &o.file, err);
	if (!r)
		r = find_all(k, btf, &o, err);
	if (o.at)
		munmap(o.at, (size_t)PAGES * PAGE);
	close(fds[0]);
	close(fds[1]);
	return r;
}

static struct kread *new (struct cr_err *err)
{
	struct kread *k = calloc(1, sizeof(*k));

	if (k)
		k->prog = k->map = -1;
	if (k && !load(k, err))
		return k;
	if (!k)
		cr_err_oom(err);
	kread_free(k);
	return NULL;
}

int kread_new(struct kread **ret, const struct btf *btf, struct cr_err *err)
{
	struct kread *k = new (err);
	int r = k ? calibrate(k, btf, err) : -err->code;

	if (!r)
		*ret = k;
	else
		kread_free(k);
	return r;
}

int kread_bytes_new(struct kread **ret, struct cr_err *err)
{
	struct kread *k = new (err);

	if (!k)
		return -err->code;
	*ret = k;
	return 0;
}

int kread_another(struct kread **ret, const struct kread *known, struct cr_err *err)
{
	struct kread *k = new (err);

	if (!k)
		return -err->code;
	k->direct = known->direct;
	k->pages = known->pages;
	k->page_size = known->page_size;
	*ret = k;
	return 0;
}

void kread_free(struct kread *k)
{
	if (!k)
		return;
	if (k->window)
		munmap(k->window, sizeof(*k->window));
	close_fdp(&k->prog);
	close_fdp(&k->map);
	free(k);
}
