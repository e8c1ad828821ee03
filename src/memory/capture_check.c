/* Destination preflight: what the mappings need is there, and the same. */
#include "memory/capture_private.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>
#include "kernel/boot_id.h"
#include "kernel/build_id.h"
#include "kernel/sysv_shm.h"

static void check_sysv(const struct shared_object *so, struct refusals *refused)
{
	struct sysv_shm s;
	struct cr_err ignored = {0};
	char label[80];

	snprintf(label, sizeof(label), "System V shared memory %d, key %#x", so->ipc_id,
		 (unsigned int)so->ipc_key);
	if (!sysv_shm_stat(so->ipc_id, &s, &ignored) || ignored.code == EACCES)
		refuse(refused, 0, label, "the id is taken at the destination");
	else if (sysv_shm_key_taken(so->ipc_key))
		refuse(refused, 0, label, "the key is taken at the destination");
}

static void check_unlinked(const struct shared_object *so, struct refusals *refused)
{
	char dir[PATH_MAX];
	struct stat st;

	snprintf(dir, sizeof(dir), "%s", so->name);
	char *slash = strrchr(dir, '/');
	if (slash)
		slash[slash == dir] = 0;
	if (stat(dir, &st) || !S_ISDIR(st.st_mode) || access(dir, W_OK))
		refuse(
		    refused, 0, so->name,
		    "was removed while it is in use: its directory is missing at the destination "
		    "or cannot be written");
}

/* The one file that both hosts see, by the devices and inodes of one kernel. Two kernels have no
 * number in common for a device: there the inode of a shared file system has to do. */
static bool is_the_file(const struct tree *t, const struct mapped_file *f, const struct stat *st)
{
	bool known, same_kernel = boot_id_matches(t->boot_id, &known);

	if (st->st_ino != f->ino)
		return false;
	return known && same_kernel ? st->st_dev == f->st_dev : st->st_size == (off_t)f->size;
}

static const char *copy_differs(const struct mapped_file *f, const struct stat *st)
{
	uint8_t id[BUILD_ID_MAX];

	if ((uint64_t)st->st_size != f->size)
		return "has another size";
	if (capture_mtime_ns(st) != f->mtime_ns)
		return "has another modification time";
	if (f->build_id_len && (build_id_read(f->path, id) != f->build_id_len ||
				memcmp(id, f->build_id, f->build_id_len)))
		return "is another build (its build id differs)";
	return NULL;
}

static void check_mapped_file(const struct tree *t, const struct mapped_file *f,
			      struct refusals *refused)
{
	struct stat st;

	if (f->carried)
		return;
	if (stat(f->path, &st)) {
		refuse(refused, 0, f->path, "mapped file is missing at the destination: %s%s",
		       strerror(errno), errno == ENOENT ? "; --copy-files brings it along" : "");
		return;
	}
	bool same = is_the_file(t, f, &st);
	if (f->writable) {
		/* written through the mapping, whose writes reach no copy; times move */
		if (!same)
			refuse(refused, 0, f->path,
			       "mapped shared and written, and not the same file at the "
			       "destination; put it on a file system that both hosts share");
		return;
	}
	const char *why = same ? NULL : copy_differs(f, &st);
	if (why)
		refuse(refused, 0, f->path,
		       "mapped file %s at the destination; install the same version there", why);
}

void memory_check(const struct tree *t, struct refusals *refused)
{
	huge_check(t, refused);
	for (size_t i = 0; i < t->n_objects; i++)
		if (t->objects[i].kind == OBJ_SYSV_SHM)
			check_sysv(&t->objects[i], refused);
		else if (t->objects[i].kind == OBJ_UNLINKED)
			check_unlinked(&t->objects[i], refused);
	for (size_t i = 0; i < t->n_mapped_files; i++)
		check_mapped_file(t, &t->mapped_files[i], refused);
}
