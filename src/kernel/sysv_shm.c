#include "kernel/sysv_shm.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <unistd.h>

#ifndef SHM_HUGE_SHIFT
#define SHM_HUGE_SHIFT 26 /* include/uapi/linux/shm.h: the page size in SHM_HUGETLB's flags */
#endif
#ifndef SHM_DEST
#define SHM_DEST 01000 /* shmctl(2): in the mode of a segment that was removed */
#endif

int sysv_shm_stat(int id, struct sysv_shm *ret, struct cr_err *err)
{
	struct shmid_ds ds;

	if (shmctl(id, IPC_STAT, &ds))
		return cr_err_sys(err, "System V shared memory %d", id);
	*ret = (struct sysv_shm){
	    .id = id,
	    .key = ds.shm_perm.__key,
	    .uid = ds.shm_perm.uid,
	    .gid = ds.shm_perm.gid,
	    .mode = ds.shm_perm.mode & 0777,
	    .removed = ds.shm_perm.mode & SHM_DEST,
	    .size = ds.shm_segsz,
	    .attached = ds.shm_nattch,
	    .attached_s = (uint64_t)ds.shm_atime,
	    .cpid = ds.shm_cpid,
	};
	return 0;
}

/* The id that the next segment of this IPC namespace gets, if it is free. */
static int wish_id(int id, struct cr_err *err)
{
	_cleanup_fd_ int fd = open("/proc/sys/kernel/shm_next_id", O_WRONLY | O_CLOEXEC);
	char text[16];
	int n = snprintf(text, sizeof(text), "%d", id);

	return fd < 0 || write(fd, text, (size_t)n) != n
		   ? cr_err_sys(err, "choosing the id of a System V shared memory segment "
				     "(kernel.shm_next_id)")
		   : 0;
}

/* As with shared anonymous memory, the way to a descriptor leads through a mapping, proc(5)
 * map_files. */
static int open_memory(int id, uint64_t size, int huge, struct cr_err *err)
{
	char path[80];
	void *p = shmat(id, NULL, 0);

	if (p == (void *)-1)
		return cr_err_sys(err, "attaching System V shared memory %d", id);
	uint64_t page = huge ? 1ull << (huge >> SHM_HUGE_SHIFT) : CR_PAGE_SIZE;
	uint64_t bytes = ALIGN_UP(size, page);
	snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", (unsigned long)p,
		 (unsigned long)p + bytes);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	int r = fd < 0 ? cr_err_sys(err, "opening %s", path) : fd;
	shmdt(p);
	return r;
}

static int set_owner(int id, const struct sysv_shm *want, struct cr_err *err)
{
	struct shmid_ds ds;

	if (shmctl(id, IPC_STAT, &ds))
		return cr_err_sys(err, "System V shared memory %d", id);
	ds.shm_perm.uid = want->uid;
	ds.shm_perm.gid = want->gid;
	ds.shm_perm.mode = want->mode;
	return shmctl(id, IPC_SET, &ds) ? cr_err_sys(err, "owner of System V shared memory %d", id)
					: 0;
}

int sysv_shm_create(const struct sysv_shm *want, struct cr_err *err)
{
	int r = wish_id(want->id, err);

	if (r)
		return r;
	int id = shmget(want->key, want->size, IPC_CREAT | IPC_EXCL | want->huge | (int)want->mode);
	if (id < 0)
		return cr_err_sys(err, "System V shared memory with key %#x", want->key);
	if (id != want->id) {
		shmctl(id, IPC_RMID, NULL);
		return cr_err_set(err, CR_ERR_IO, EEXIST,
				  "System V shared memory id %d is taken on this host", want->id);
	}
	r = set_owner(id, want, err);
	int fd = r ? r : open_memory(id, want->size, want->huge, err);
	if (fd < 0)
		shmctl(id, IPC_RMID, NULL);
	return fd;
}

void sysv_shm_remove(int id, pid_t cpid)
{
	struct sysv_shm s = {0};
	struct cr_err ignored = {0};

	if (!sysv_shm_stat(id, &s, &ignored) && s.cpid == cpid)
		shmctl(id, IPC_RMID, NULL);
}

bool sysv_shm_key_taken(int32_t key)
{
	return key != IPC_PRIVATE && (shmget(key, 0, 0) >= 0 || errno != ENOENT);
}
