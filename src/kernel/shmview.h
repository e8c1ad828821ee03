/* What the kernel itself counts of shared memory, by which it shows whether anything happened to it
 * that leaves no mark in page tables: who has it mapped, and whether mappings have come or gone.
 * Read by a BPF iterator over a process's mappings (Documentation/bpf/bpf_iterators.rst; of one
 * task 6.1), made without a compiler. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"

struct shmview;

struct shm_mapping {             /* a shared mapping of whatever file */
	uint64_t start, end;     /* bytes */
	uint64_t first;          /* the page of the file that it begins with */
	uint64_t flags;          /* struct vm_area_struct's; see shm_mapping_* */
	uint64_t inode, mm;      /* the kernel's addresses of them: to be compared only */
	uint64_t ino;            /* as stat(2) tells it */
	uint64_t lock_seq;       /* another after each change of the address space: mmap(2),
				    munmap(2), mremap(2), brk(2), fork(2), … of the process */
	uint64_t writable_maps;  /* mappings by which it can be written, of whatever process */
	uint64_t write_openings; /* open(2) for writing that are not closed; 32 bits */
	/* The open file (open(2)) by which it was mapped: one of these openings, or not; and how
	 * many mappings, descriptors and others there are by which that is reached. */
	uint64_t file, file_mode, file_refs;
};

enum { SHM_WRITE = 2 }; /* VM_WRITE */
/* Linux: FMODE_WRITER, fs.h. */
static inline bool shm_mapping_is_opening(const struct shm_mapping *m)
{
	return m->file_mode & 0x10000;
}
/* Linux: VM_SHARED and VM_MAYWRITE, mm.h. */
static inline bool shm_mapping_can_write(const struct shm_mapping *m)
{
	return (m->flags & 0x28) == 0x28;
}
/* VM_UFFD_WP: somebody tracks writes through it. */
static inline bool shm_mapping_is_tracked(const struct shm_mapping *m)
{
	return m->flags & 0x1000;
}

/* -ENOTSUP: not to be had here, or not to be believed; err says why. The result may be used by
 * processes forked since. */
int shmview_new(struct shmview **ret, struct cr_err *err) must_check;
void shmview_free(struct shmview *v); /* takes NULL */
/* The shared mappings of the main thread's address space, ascending; the caller frees *ret. */
int shmview_read(const struct shmview *v, pid_t pid, struct shm_mapping **ret, size_t *ret_n,
		 struct cr_err *err) must_check;
