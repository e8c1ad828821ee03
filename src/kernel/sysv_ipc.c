#include "kernel/sysv_ipc.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <unistd.h>
#include "kernel/sysv_shm.h"

/* A line of /proc/sysvipc/sem: "key semid perms nsems …", of msg: "key msqid perms cbytes qnum …"
 */
static int each_line(enum sysv_ipc_kind kind, const char *path,
		     int (*fn)(const struct sysv_ipc *i, void *arg), void *arg, struct cr_err *err)
{
	_cleanup_file_ FILE *f = fopen(path, "re");
	_cleanup_free_ char *line = NULL;
	size_t cap = 0;
	int r = 0;

	if (!f)
		return errno == ENOENT ? 0 : cr_err_sys(err, "%s", path); /* no CONFIG_SYSVIPC */
	while (!r && getline(&line, &cap, f) > 0) {
		struct sysv_ipc i = {.kind = kind};
		unsigned int fourth, fifth;

		if (sscanf(line, "%d %d %*o %u %u", &i.key, &i.id, &fourth, &fifth) != 4)
			continue; /* the heading */
		i.n = kind == SYSV_IPC_SEM ? fourth : fifth;
		r = fn(&i, arg);
	}
	return r;
}

int sysv_ipc_each(int (*fn)(const struct sysv_ipc *i, void *arg), void *arg, struct cr_err *err)
{
	int r = each_line(SYSV_IPC_SEM, "/proc/sysvipc/sem", fn, arg, err);

	return r ? r : each_line(SYSV_IPC_MSG, "/proc/sysvipc/msg", fn, arg, err);
}

int sysv_ipc_users(const struct sysv_ipc *i, int (*fn)(pid_t pid, void *arg), void *arg)
{
	struct msqid_ds ds;
	int r = 0;

	for (int k = 0; i->kind == SYSV_IPC_SEM && k < (int)i->n && !r; k++) {
		int pid = semctl(i->id, k, GETPID);

		r = pid > 0 ? fn(pid, arg) : 0;
	}
	if (i->kind == SYSV_IPC_MSG && !msgctl(i->id, IPC_STAT, &ds)) {
		r = ds.msg_lspid > 0 ? fn(ds.msg_lspid, arg) : 0;
		if (!r && ds.msg_lrpid > 0)
			r = fn(ds.msg_lrpid, arg);
	}
	return r;
}

/* The id that the next one of this IPC namespace gets, if it is free. */
static int wish_id(const char *path, int id, struct cr_err *err)
{
	_cleanup_fd_ int fd = open(path, O_WRONLY | O_CLOEXEC);
	char text[16];
	int n = snprintf(text, sizeof(text), "%d", id);

	return fd < 0 || write(fd, text, (size_t)n) != n ? cr_err_sys(err, "%s", path) : 0;
}

int sysv_ipc_create(const struct sysv_ipc *want, uint32_t mode, struct cr_err *err)
{
	bool sem = want->kind == SYSV_IPC_SEM;
	int flags = IPC_CREAT | IPC_EXCL | (int)mode;
	int r = wish_id(sem ? "/proc/sys/kernel/sem_next_id" : "/proc/sys/kernel/msg_next_id",
			want->id, err);
	if (r)
		return r;
	int id = sem ? semget(want->key, (int)want->n, flags) : msgget(want->key, flags);
	if (id < 0)
		return cr_err_sys(err, "System V %s with key %#x", sem ? "semaphores" : "queue",
				  (unsigned int)want->key);
	if (id == want->id)
		return 0;
	sysv_ipc_remove(want->kind, id, 0);
	return cr_err_set(err, CR_ERR_IO, EEXIST, "System V %s id %d is taken on this host",
			  sem ? "semaphore set" : "message queue", want->id);
}

void sysv_ipc_remove(int kind, int id, pid_t cpid)
{
	if (kind == SYSV_IPC_SEM)
		semctl(id, 0, IPC_RMID);
	else if (kind == SYSV_IPC_MSG)
		msgctl(id, IPC_RMID, NULL);
	else
		sysv_shm_remove(id, cpid);
}
