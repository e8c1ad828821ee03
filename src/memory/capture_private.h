/* What the files of the capture of address spaces share. */
#pragma once
#include <string.h>
#include <sys/stat.h>
#include "kernel/procfs.h"
#include "memory/capture.h"

#define DELETED " (deleted)"
/* A System V segment's inode number is its id, which a memfd may have as well. */
#define SYSV_INO (1ull << 62)

static inline bool starts_with(const char *s, const char *prefix)
{
	return !strncmp(s, prefix, strlen(prefix));
}

static inline uint64_t capture_mtime_ns(const struct stat *st)
{
	return (uint64_t)st->st_mtim.tv_sec * 1000000000ull + (uint64_t)st->st_mtim.tv_nsec;
}

/* capture_objects.c. What m's name in maps tells. */
bool map_is_sysv(const struct proc_map *m);
bool map_is_unlinked(const struct proc_map *m);
bool map_is_of_object(const struct proc_map *m, const struct vma *v);
/* The object that m is of, as it is now; ahead -EAGAIN if it is gone. */
int capture_add_object(struct capture *c, struct object_fds *o, pid_t pid, const struct proc_map *m,
		       uint32_t *ret, struct cr_err *err) must_check;
/* capture.c. An array of the tree, of n elements, with room for one more. */
void *capture_grow(struct arena *a, const void *old, size_t n, size_t elem);
/* The file that is mapped, or executed (ino 0); -ENOENT: it is not what the path leads to. */
int capture_add_file(struct capture *c, const char *path, uint64_t dev, uint64_t ino, uint32_t *ret,
		     struct cr_err *err) must_check;
