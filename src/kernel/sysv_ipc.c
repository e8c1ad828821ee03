#include "kernel/sysv_ipc.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>

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
		i.n = kind == SYSV_SEM ? fourth : fifth;
		r = fn(&i, arg);
	}
	return r;
}

int sysv_ipc_each(int (*fn)(const struct sysv_ipc *i, void *arg), void *arg, struct cr_err *err)
{
	int r = each_line(SYSV_SEM, "/proc/sysvipc/sem", fn, arg, err);

	return r ? r : each_line(SYSV_MSG, "/proc/sysvipc/msg", fn, arg, err);
}

int sysv_ipc_users(const struct sysv_ipc *i, int (*fn)(pid_t pid, void *arg), void *arg)
{
	struct msqid_ds ds;
	int r = 0;

	for (int k = 0; i->kind == SYSV_SEM && k < (int)i->n && !r; k++) {
		int pid = semctl(i->id, k, GETPID);

		r = pid > 0 ? fn(pid, arg) : 0;
	}
	if (i->kind == SYSV_MSG && !msgctl(i->id, IPC_STAT, &ds)) {
		r = ds.msg_lspid > 0 ? fn(ds.msg_lspid, arg) : 0;
		if (!r && ds.msg_lrpid > 0)
			r = fn(ds.msg_lrpid, arg);
	}
	return r;
}
