#include "kernel/shmview.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include "kernel/bpf_iter.h"
#include "kernel/uffd.h"

struct shmview {
	int prog;
	bool counts_less; /* file_refs as the kernel has it is one less */
};

enum { PAGE = 4096, VM_SHARED = 8 };

/* ---- the program ---- */

struct way { /* from one structure to the next, by the members' names; NULL: that is all */
	size_t to;
	const char *type[4], *member[4];
};

#define TO(field) offsetof(struct shm_mapping, field)
static const struct way ways[] = {
    {TO(start), {"vm_area_struct"}, {"vm_start"}},
    {TO(end), {"vm_area_struct"}, {"vm_end"}},
    {TO(first), {"vm_area_struct"}, {"vm_pgoff"}},
    {TO(flags), {"vm_area_struct"}, {"vm_flags"}},
    {TO(inode), {"vm_area_struct", "file"}, {"vm_file", "f_inode"}},
    {TO(mm), {"vm_area_struct"}, {"vm_mm"}},
    {TO(ino), {"vm_area_struct", "file", "inode"}, {"vm_file", "f_inode", "i_ino"}},
    {TO(lock_seq), {"vm_area_struct", "mm_struct"}, {"vm_mm", "mm_lock_seq"}},
    {TO(writable_maps),
     {"vm_area_struct", "file", "inode", "address_space"},
     {"vm_file", "f_inode", "i_mapping", "i_mmap_writable"}},
    {TO(write_openings),
     {"vm_area_struct", "file", "inode"},
     {"vm_file", "f_inode", "i_writecount"}},
    {TO(file), {"vm_area_struct"}, {"vm_file"}},
    {TO(file_mode), {"vm_area_struct", "file"}, {"vm_file", "f_mode"}},
    {TO(file_refs), {"vm_area_struct", "file"}, {"vm_file", "f_ref"}},
};

/* 6.13: a file_ref_t, 0 for one; before, f_count, 1 for one. */
static const struct way refs_before = {
    TO(file_refs), {"vm_area_struct", "file"}, {"vm_file", "f_count"}};

static const struct way *way_here(const struct shmview *v, const struct way *w)
{
	return w->to == TO(file_refs) && !v->counts_less ? &refs_before : w;
}

/* Register 1 = what is at the end of the way from the mapping in register 6. */
static int emit_way(struct bpf_code *p, const struct btf *btf, const struct way *w,
		    struct cr_err *err)
{
	unsigned int from = BPF_REG_6;

	for (size_t i = 0; i < ARRAY_SIZE(w->type) && w->type[i]; i++) {
		int32_t off;
		size_t size;
		int r = bpf_find_member(btf, w->type[i], w->member[i], &off, &size, err);

		if (r)
			return r;
		if (size != 4 && size != 8)
			return cr_err_set(err, CR_ERR_KERNEL, ENOTSUP,
					  "this kernel's %s of struct %s has %zu bytes",
					  w->member[i], w->type[i], size);
		bpf_emit_load(p, BPF_REG_1, from, off, size);
		from = BPF_REG_1;
	}
	return 0;
}

static int emit_all(const struct shmview *v, struct bpf_code *p, const struct btf *btf,
		    struct cr_err *err)
{
	int r = 0;

	/* struct bpf_iter__task_vma { meta; task; vma; } */
	bpf_emit_begin(p, 2);
	for (size_t i = 0; i < ARRAY_SIZE(ways) && !r; i++) {
		const int at = (int)ways[i].to - (int)sizeof(struct shm_mapping);

		r = emit_way(p, btf, way_here(v, &ways[i]), err);
		bpf_emit(p, BPF_STX | BPF_MEM | BPF_DW, BPF_REG_10, BPF_REG_1, at, 0);
		if (ways[i].to != TO(flags))
			continue;
		/* most mappings are private: not told */
		bpf_emit(p, BPF_ALU64 | BPF_AND | BPF_K, BPF_REG_1, 0, 0, VM_SHARED);
		bpf_emit(p, BPF_JMP | BPF_JNE | BPF_K, BPF_REG_1, 0, 2, 0);
		bpf_emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 0);
		bpf_emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
	}
	bpf_emit_write(p, sizeof(struct shm_mapping));
	return r;
}

static int load(const struct btf *btf, void *arg, struct cr_err *err)
{
	struct shmview *v = arg;
	struct bpf_code p = {.n = 0};
	struct cr_err ignored = {0};
	int32_t off;
	size_t size;

	v->counts_less = !bpf_find_member(btf, "file", "f_ref", &off, &size, &ignored);
	int r = emit_all(v, &p, btf, err);

	return r ? r : bpf_iter_load(btf, "task_vma", &p, &v->prog, err);
}

int shmview_read(const struct shmview *v, pid_t pid, struct shm_mapping **ret, size_t *ret_n,
		 struct cr_err *err)
{
	void *list = NULL;
	int r = bpf_iter_read_vmas(v->prog, pid, sizeof(**ret), &list, ret_n, err);

	*ret = list;
	for (size_t i = 0; !r && i < *ret_n; i++)
		(*ret)[i].file_refs += v->counts_less;
	return r;
}

/* ---- is it true? ---- */

static int look_at(const struct shmview *v, const void *at, struct shm_mapping *ret,
		   struct cr_err *err)
{
	_cleanup_free_ struct shm_mapping *list = NULL;
	size_t n = 0;
	int r = shmview_read(v, getpid(), &list, &n, err);

	for (size_t i = 0; i < n && !r; i++)
		if (list[i].start == (uintptr_t)at) {
			*ret = list[i];
			return 0;
		}
	return r ? r : cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "BPF does not tell of a mapping");
}

static int disbelieve(const char *what, struct cr_err *err)
{
	return cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "BPF does not show %s", what);
}

static int double_it(char *page)
{
	void *copy = mremap(page, 0, PAGE, MREMAP_MAYMOVE);

	return copy == MAP_FAILED ? -1 : munmap(copy, PAGE);
}

static int open_it(const char *page)
{
	char path[96];

	snprintf(path, sizeof(path), "/proc/self/map_files/%llx-%llx",
		 (unsigned long long)(uintptr_t)page, (unsigned long long)(uintptr_t)page + PAGE);
	return open(path, O_RDWR | O_CLOEXEC);
}

static int try_register(const struct shmview *v, char *page, struct cr_err *err)
{
	_cleanup_fd_ int uffd = (int)syscall(SYS_userfaultfd, uffd_create_flags());
	struct shm_mapping m = {0};

	if (uffd < 0)
		return cr_err_sys(err, "userfaultfd");
	int r = uffd_enable_wp_async(uffd, err);
	if (!r && uffd_register(uffd, (uintptr_t)page, (uintptr_t)page + PAGE))
		r = cr_err_set(err, CR_ERR_KERNEL, ENOTSUP, "shared memory cannot be tracked");
	if (!r)
		r = look_at(v, page, &m, err);
	return r || shm_mapping_is_tracked(&m) ? r : disbelieve("userfaultfd", err);
}

/* A mapping by an opening for writing, twice and with its descriptor, and alone. */
static int try_opening(const struct shmview *v, const char *page, struct cr_err *err)
{
	struct shm_mapping with = {0}, alone = {0};
	_cleanup_fd_ int fd = open_it(page);

	if (fd < 0) /* nobody may, nor does the destination map by one */
		return 0;
	char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return cr_err_sys(err, "mapping shared memory");
	int r = look_at(v, p, &with, err);
	close_fdp(&fd);
	if (!r)
		r = look_at(v, p, &alone, err);
	munmap(p, PAGE);
	if (r)
		return r;
	return shm_mapping_is_opening(&alone) && alone.write_openings == 1 &&
		       with.file == alone.file && with.file_refs == 2 && alone.file_refs == 1
		   ? 0
		   : disbelieve("by which file shared memory is mapped", err);
}

/* Each thing that is to show does, and a write alone shows nothing. */
static int try_page(const struct shmview *v, char *page, struct cr_err *err)
{
	struct shm_mapping was = {0}, now = {0};
	int r = look_at(v, page, &was, err);

	page[0] = 1;
	if (!r)
		r = look_at(v, page, &now, err);
	if (!r && memcmp(&was, &now, sizeof(now)) != 0)
		return disbelieve("the same twice", err);
	if (!r && (!shm_mapping_can_write(&now) || shm_mapping_is_tracked(&now) ||
		   shm_mapping_is_opening(&now) || now.writable_maps != 1 || now.write_openings))
		return disbelieve("who can write to shared memory", err);
	if (!r && double_it(page))
		return cr_err_sys(err, "mremap");
	if (!r)
		r = look_at(v, page, &now, err);
	if (!r && now.lock_seq == was.lock_seq)
		return disbelieve("a mapping that came and went", err);
	if (!r)
		r = try_opening(v, page, err);
	_cleanup_fd_ int fd = open_it(page);
	if (!r)
		r = look_at(v, page, &now, err);
	if (!r && fd >= 0 && now.write_openings != 1)
		return disbelieve("who has shared memory open", err);
	return r ? r : try_register(v, page, err);
}

static int check(const struct shmview *v, struct cr_err *err)
{
	char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		return cr_err_sys(err, "a page to look at");
	int r = try_page(v, page, err);
	munmap(page, PAGE);
	return r;
}

int shmview_new(struct shmview **ret, struct cr_err *err)
{
	struct shmview *v = calloc(1, sizeof(*v));

	if (!v)
		return cr_err_oom(err);
	v->prog = -1;
	int r = bpf_with_types(load, v, err);
	if (!r)
		r = check(v, err);
	if (!r)
		*ret = v;
	else
		shmview_free(v);
	return r;
}

void shmview_free(struct shmview *v)
{
	if (!v)
		return;
	close_fdp(&v->prog);
	free(v);
}
