#include "kernel/vmaview.h"

#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <xxhash.h>
#include "kernel/bpf_iter.h"
#include "kernel/uffd.h"

struct vmaview {
	int prog;
	uint64_t ours; /* bits that userfaultfd sets */
};

struct record {
	uint64_t start, end, flags;
};

/* ---- the program ---- */

static int emit_all(struct bpf_code *p, const struct btf *btf, struct cr_err *err)
{
	static const struct {
		const char *member; /* of struct vm_area_struct */
		size_t to;
	} fields[] = {
	    {"vm_start", offsetof(struct record, start)},
	    {"vm_end", offsetof(struct record, end)},
	    {"vm_flags", offsetof(struct record, flags)},
	};

	/* struct bpf_iter__task_vma { meta; task; vma; } */
	bpf_emit_begin(p, 2);
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
		int32_t off;
		size_t size;
		int r = bpf_find_member(btf, "vm_area_struct", fields[i].member, &off, &size, err);

		if (r)
			return r;
		bpf_emit_load(p, BPF_REG_2, BPF_REG_6, off, size);
		bpf_emit(p, BPF_STX | BPF_MEM | BPF_DW, BPF_REG_10, BPF_REG_2,
			 (int)fields[i].to - (int)sizeof(struct record), 0);
	}
	bpf_emit_write(p, sizeof(struct record));
	return 0;
}

/* ---- reading ---- */

static int read_records(const struct vmaview *vv, pid_t pid, struct record **ret, size_t *ret_n,
			struct cr_err *err)
{
	void *v = NULL;
	int r = bpf_iter_read_vmas(vv->prog, pid, sizeof(**ret), &v, ret_n, err);

	*ret = v;
	return r;
}

int vmaview_digest(const struct vmaview *vv, pid_t pid, uint64_t *ret, struct cr_err *err)
{
	_cleanup_free_ struct record *v = NULL;
	size_t n;
	int r = read_records(vv, pid, &v, &n, err);

	if (r)
		return r;
	for (size_t i = 0; i < n; i++)
		v[i].flags &= ~vv->ours;
	*ret = XXH3_64bits(v, n * sizeof(*v));
	*ret += !*ret;
	return 0;
}

/* ---- is it true? ---- */

static int flags_at(const struct vmaview *vv, const void *at, uint64_t *ret, struct cr_err *err)
{
	_cleanup_free_ struct record *v = NULL;
	size_t n;
	int r = read_records(vv, getpid(), &v, &n, err);

	for (size_t i = 0; i < n && !r; i++)
		if (v[i].start <= (uintptr_t)at && (uintptr_t)at < v[i].end) {
			*ret = v[i].flags;
			return 0;
		}
	return r ? r
		 : cr_err_set(err, CR_ERR_KERNEL, ENOTSUP,
			      "BPF does not tell of a mapping that is there");
}

static int register_page(int uffd, const char *page, struct cr_err *err)
{
	int r = uffd_enable_wp_async(uffd, err);

	if (!r)
		r = uffd_register(uffd, (uintptr_t)page, (uintptr_t)page + 4096);
	return r ? cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "userfaultfd cannot be tried") : 0;
}

/* A page is registered, and each piece of advice that there is no other sign of has to show. */
static int try_page(struct vmaview *vv, char *page, int uffd, struct cr_err *err)
{
	static const int ADVICE[] = {MADV_DONTFORK, MADV_DOFORK,     MADV_DONTDUMP,
				     MADV_DODUMP,   MADV_WIPEONFORK, MADV_KEEPONFORK};
	uint64_t before, after, was, now;
	int r = flags_at(vv, page, &before, err);

	if (!r)
		r = register_page(uffd, page, err);
	if (!r)
		r = flags_at(vv, page, &after, err);
	if (r)
		return r;
	vv->ours = before ^ after;
	if (!vv->ours || before & vv->ours)
		return cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "BPF does not show userfaultfd");
	r = vmaview_digest(vv, getpid(), &was, err);
	for (size_t i = 0; i < ARRAY_SIZE(ADVICE) && !r; i++, was = now) {
		if (madvise(page, 4096, ADVICE[i]))
			return cr_err_sys(err, "madvise");
		r = vmaview_digest(vv, getpid(), &now, err);
		if (!r && now == was)
			r = cr_err_set(err, CR_ERR_KERNEL, ENOTSUP,
				       "BPF does not show what madvise(2) sets");
	}
	return r;
}

static int check(struct vmaview *vv, struct cr_err *err)
{
	/* its neighbours have other rights, so it stays a mapping of its own */
	char *area = mmap(NULL, 3 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	_cleanup_fd_ int uffd = (int)syscall(SYS_userfaultfd, uffd_create_flags());
	int r = 0;

	if (area == MAP_FAILED || mprotect(area + 4096, 4096, PROT_READ | PROT_WRITE))
		r = cr_err_sys(err, "a page to look at");
	else if (uffd < 0)
		r = cr_err_sys(err, "userfaultfd");
	if (!r)
		r = try_page(vv, area + 4096, uffd, err);
	if (area != MAP_FAILED)
		munmap(area, 3 * 4096);
	return r;
}

static int load(const struct btf *btf, void *arg, struct cr_err *err)
{
	struct vmaview *vv = arg;
	struct bpf_code p = {.n = 0};
	int r = emit_all(&p, btf, err);

	return r ? r : bpf_iter_load(btf, "task_vma", &p, &vv->prog, err);
}

int vmaview_new(struct vmaview **ret, struct cr_err *err)
{
	struct vmaview *vv = calloc(1, sizeof(*vv));

	if (!vv)
		return cr_err_oom(err);
	vv->prog = -1;
	int r = bpf_with_types(load, vv, err);
	if (!r)
		r = check(vv, err);
	if (!r)
		*ret = vv;
	else
		vmaview_free(vv);
	return r;
}

void vmaview_free(struct vmaview *vv)
{
	if (!vv)
		return;
	close_fdp(&vv->prog);
	free(vv);
}
