/* System V shared memory segments, shmget(2), shmctl(2), in the caller's IPC namespace. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"

struct sysv_shm {
	int32_t id, key;
	uint32_t uid, gid, mode; /* permissions */
	bool removed;            /* IPC_RMID: goes with its last attachment */
	uint64_t size;           /* bytes */
	int huge;                /* to make one: SHM_HUGETLB and which, shmget(2) */
	uint64_t attached;       /* how often, by whomever */
	uint64_t attached_s;     /* when that was done last; seconds since the epoch, 0: never */
	pid_t cpid;              /* who made it, in the caller's pid namespace; 0: nobody there */
};

/* Returns -EINVAL or -EIDRM where there is none of that id. */
int sysv_shm_stat(int id, struct sysv_shm *ret, struct cr_err *err) must_check;
/* Make one of that very id and key (CONFIG_CHECKPOINT_RESTORE, 3.9: kernel.shm_next_id), with its
 * owner and mode. -EEXIST if id or key is taken. Returns a descriptor of its memory, which does not
 * count as an attachment. */
int sysv_shm_create(const struct sysv_shm *want, struct cr_err *err) must_check;
/* Remove it, if cpid made it: it goes with its last attachment. Nothing is no error. */
void sysv_shm_remove(int id, pid_t cpid);
bool sysv_shm_key_taken(int32_t key);
