/* System V semaphore sets and message queues.
 *
 * A process that uses one holds nothing of it. What tells is who did something with a semaphore
 * last (GETPID, semctl(2)), who sent or received last: one that the tree has used so, and nobody
 * else who still lives, moves with it. Messages are read without being taken out by MSG_COPY (3.8,
 * msgrcv(2)). At the destination each value is set by the process that is to be the last to have
 * used it, so that it is found again.
 *
 * What the kernel would undo at a process's end (SEM_UNDO) a BPF task iterator tells
 * (kernel/undoview.h). At the destination each process does the contrary with SEM_UNDO. */
#include "kernel/sysv_ipc.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include "kernel/taskview.h"
#include "kernel/undoview.h"
#include "resource/file_kind.h"
#include "resource/inside.h"

#ifndef MSG_COPY
#define MSG_COPY 040000
#endif
_Static_assert((int)SYSV_SEM == (int)SYSV_IPC_SEM && (int)SYSV_MSG == (int)SYSV_IPC_MSG,
	       "one kind");
enum { MESSAGE_MAX = 16 << 20, MARK_TYPE = 0x63724d61726b };

union semun { /* semctl(2): the caller has to define it */
	int val;
	struct semid_ds *buf;
	unsigned short *array;
};

static const char *kind_name(int kind)
{
	return kind == SYSV_SEM ? "semaphore set" : "message queue";
}

static void say(struct capture *c, pid_t pid, const struct sysv_ipc *i, const char *why)
{
	char what[64];

	snprintf(what, sizeof(what), "System V %s %d", kind_name((int)i->kind), i->id);
	refuse(c->refused, pid, what, "key %#x: %s", (unsigned int)i->key, why);
}

/* ---- capture: whose is it? ---- */

struct looking {
	struct capture *c;
	pid_t inside, outside;
	struct cr_err *err;
};

static int look_at_user(pid_t pid, void *arg)
{
	struct looking *l = arg;

	if (files_pid_in_tree(l->c->tree, pid, false) || inside_tree(l->c->tree, l->c->exact, pid))
		l->inside = pid;
	else if (!kill(pid, 0) || errno == EPERM)
		l->outside = pid;
	return 0;
}

/* ---- capture: what is in it ---- */

static int read_semaphores(struct capture *c, struct sysv_set *s, uint32_t n, struct cr_err *err)
{
	struct semid_ds ds;
	_cleanup_free_ unsigned short *values = calloc(n + 1, sizeof(*values));

	s->values = arena_array(c->tree->arena, uint32_t, n);
	s->pids = arena_array(c->tree->arena, int32_t, n);
	if (!values || !s->values || !s->pids)
		return cr_err_oom(err);
	if (semctl(s->id, 0, IPC_STAT, (union semun){.buf = &ds}) ||
	    semctl(s->id, 0, GETALL, (union semun){.array = values}))
		return cr_err_sys(err, "System V semaphore set %d", s->id);
	s->uid = ds.sem_perm.uid;
	s->gid = ds.sem_perm.gid;
	s->mode = ds.sem_perm.mode & 0777;
	s->n = n;
	for (uint32_t k = 0; k < n; k++) {
		int pid = semctl(s->id, (int)k, GETPID);

		s->values[k] = values[k];
		s->pids[k] = pid > 0 ? pid : 0;
	}
	return 0;
}

/* 1: there are no more. */
static int read_message(struct capture *c, const struct sysv_set *s, size_t nth, long *buf,
			struct sysv_message *m, struct cr_err *err)
{
	ssize_t n = msgrcv(s->id, buf, MESSAGE_MAX, (long)nth, MSG_COPY | IPC_NOWAIT);

	if (n < 0 && errno == ENOMSG)
		return 1;
	if (n < 0)
		return cr_err_sys(err, "looking into System V message queue %d", s->id);
	m->type = buf[0];
	m->len = (size_t)n;
	m->data = arena_memdup(c->tree->arena, buf + 1, (size_t)n + 1);
	return m->data ? 0 : cr_err_oom(err);
}

static int read_queue(struct capture *c, struct sysv_set *s, struct cr_err *err)
{
	struct msqid_ds ds;

	if (msgctl(s->id, IPC_STAT, &ds))
		return cr_err_sys(err, "System V message queue %d", s->id);
	s->uid = ds.msg_perm.uid;
	s->gid = ds.msg_perm.gid;
	s->mode = ds.msg_perm.mode & 0777;
	s->max_bytes = ds.msg_qbytes;
	s->sender = ds.msg_lspid;
	s->receiver = ds.msg_lrpid;
	if (!c->exact || !ds.msg_qnum)
		return 0;
	_cleanup_free_ long *buf = malloc(MESSAGE_MAX + sizeof(*buf));
	s->messages = arena_array(c->tree->arena, struct sysv_message, ds.msg_qnum);
	if (!buf || !s->messages)
		return cr_err_oom(err);
	int r = 0;
	while (!r && s->n_messages < ds.msg_qnum) {
		r = read_message(c, s, s->n_messages, buf, &s->messages[s->n_messages], err);
		s->n_messages += !r;
	}
	return r < 0 ? r : 0;
}

static int add(struct capture *c, const struct sysv_ipc *i, struct cr_err *err)
{
	struct tree *t = c->tree;
	struct sysv_set *list = arena_array(t->arena, struct sysv_set, t->n_sets + 1);

	if (!list)
		return cr_err_oom(err);
	if (t->n_sets)
		memcpy(list, t->sets, t->n_sets * sizeof(*list));
	t->sets = list;
	struct sysv_set *s = &t->sets[t->n_sets++];
	*s = (struct sysv_set){.kind = (enum sysv_kind)i->kind, .id = i->id, .key = i->key};
	return i->kind == SYSV_IPC_SEM ? read_semaphores(c, s, i->n, err) : read_queue(c, s, err);
}

static int look_at(const struct sysv_ipc *i, void *arg)
{
	struct looking *l = arg;
	char why[160];

	l->inside = l->outside = 0;
	sysv_ipc_users(i, look_at_user, l);
	if (!l->inside)
		return 0;
	if (l->outside) {
		snprintf(why, sizeof(why),
			 "process %d, which is outside the tree, uses it as well: not supported; "
			 "move that process, too",
			 l->outside);
		say(l->c, l->inside, i, why);
		return 0;
	}
	return add(l->c, i, l->err);
}

/* ---- capture: what would be undone at the end of a process ---- */

static void refuse_undo(struct capture *c, pid_t pid, const char *why)
{
	refuse(c->refused, pid, "System V semaphores", "%s", why);
}

static int add_undo(struct capture *c, struct sysv_set *s, pid_t pid, const struct undo_fact *f,
		    struct cr_err *err)
{
	struct sysv_undo *list = arena_array(c->tree->arena, struct sysv_undo, s->n_undo + s->n);

	if (!list)
		return cr_err_oom(err);
	if (s->n_undo)
		memcpy(list, s->undo, s->n_undo * sizeof(*list));
	s->undo = list;
	for (uint32_t k = 0; k < s->n; k++)
		if (f->by[k])
			list[s->n_undo++] = (struct sysv_undo){pid, k, f->by[k]};
	for (size_t k = 0; k < s->n_undo; k++)
		if (list[k].by < -SHRT_MAX)
			refuse_undo(c, pid, "SEM_UNDO by more than 32767: not supported");
	return 0;
}

static struct sysv_set *find_semaphores(const struct tree *t, int id)
{
	for (size_t i = 0; i < t->n_sets; i++)
		if (t->sets[i].kind == SYSV_SEM && t->sets[i].id == id)
			return &t->sets[i];
	return NULL;
}

static int take_undo(struct capture *c, pid_t pid, const struct undo_facts *facts,
		     struct cr_err *err)
{
	int r = 0;

	vec_foreach (f, &facts->list) {
		struct sysv_set *s = f->semid < 0 ? NULL : find_semaphores(c->tree, f->semid);

		if (f->semid < 0) /* the set was removed */
			continue;
		if (!s)
			refuse_undo(
			    c, pid,
			    "it has used a set with SEM_UNDO that somebody outside the tree "
			    "was the last to use: not supported");
		else if (s->n > UNDO_SEMS)
			refuse_undo(c, pid,
				    "it has used a set of more than 64 semaphores with SEM_UNDO: "
				    "not supported");
		else if (!r)
			r = add_undo(c, s, pid, f, err);
	}
	return r;
}

/* Of one process. */
struct undo_look {
	uint64_t list; /* its first thread's */
	bool told;     /* the rest is known */
	bool any;      /* it has, or had, something to undo */
	bool shared;   /* by all its threads */
};

static void look_for_undo(const struct capture *c, size_t proc, struct undo_look *ret)
{
	struct task_facts_list l = {0};
	struct cr_err ignored = {0};

	/* ahead it may have ended meanwhile */
	ret->told = c->view && !taskview_read(c->view, c->procs[proc].p->pid, &l, &ignored) &&
		    (l.list.n || !c->exact);
	ret->shared = true;
	vec_foreach (f, &l.list) {
		if (f == l.list.v)
			ret->list = f->undo_list;
		ret->shared &= f->undo_list == ret->list;
		ret->any |= f->sem_undo;
	}
	task_facts_done(&l);
}

/* A shell's threads share one list, and with nobody. */
static bool have_one_list(const struct undo_look *looks, size_t n, size_t proc)
{
	for (size_t i = 0; i < n; i++)
		if (i != proc && looks[i].list == looks[proc].list)
			return false;
	return looks[proc].shared;
}

static int read_undo(struct capture *c, const struct undo_look *looks, size_t proc,
		     struct cr_err *err)
{
	const struct undoview *view = taskview_undo(c->view);
	struct undo_facts facts = {0};
	struct cr_err why = {0};
	pid_t pid = c->procs[proc].p->pid;
	int r = 0;

	if (!view) {
		refuse_undo(c, pid, "what it has used with SEM_UNDO cannot be read here");
		return 0;
	}
	if (undoview_read(view, pid, &facts, &why)) {
		refuse_undo(c, pid, why.msg);
		return 0;
	}
	if (facts.list.n && !have_one_list(looks, c->tree->n_procs, proc))
		refuse_undo(c, pid,
			    "SEM_UNDO of which threads share something else than one list for all "
			    "of the process: not supported");
	else
		r = take_undo(c, pid, &facts, err);
	vec_done(&facts.list);
	return r;
}

static int find_semaphore_set(const struct sysv_ipc *i, void *arg)
{
	(void)arg;
	return i->kind == SYSV_IPC_SEM;
}

static int capture_undo(struct capture *c, struct cr_err *err)
{
	size_t n = c->tree->n_procs;
	bool sets = false;
	int r = sysv_ipc_each(find_semaphore_set, NULL, err);

	if (r <= 0)
		return r;
	_cleanup_free_ struct undo_look *looks = calloc(n + 1, sizeof(*looks));
	if (!looks)
		return cr_err_oom(err);
	for (size_t i = 0; i < c->tree->n_sets; i++)
		sets |= c->tree->sets[i].kind == SYSV_SEM;
	for (size_t i = 0; i < n; i++)
		if (!c->procs[i].p->zombie)
			look_for_undo(c, i, &looks[i]);
	r = 0;
	for (size_t i = 0; i < n && !r; i++) {
		if (c->procs[i].p->zombie)
			continue;
		if (sets && !looks[i].told)
			refuse_undo(c, c->procs[i].p->pid,
				    "without BPF nobody can tell whether it uses SEM_UNDO: not "
				    "supported");
		if (looks[i].any)
			r = read_undo(c, looks, i, err);
	}
	return r;
}

int sysv_ipc_capture(struct capture *c, struct cr_err *err)
{
	struct looking l = {.c = c, .err = err};
	int r = sysv_ipc_each(look_at, &l, err);

	return r ? r : capture_undo(c, err);
}

/* ---- destination ---- */

static int find_taken(const struct sysv_ipc *i, void *arg)
{
	const struct sysv_set *s = arg;

	return (int)i->kind == (int)s->kind &&
	       (i->id == s->id || (s->key != IPC_PRIVATE && i->key == s->key));
}

void sysv_ipc_check(const struct tree *t, struct refusals *refused)
{
	for (size_t i = 0; i < t->n_sets; i++) {
		struct sysv_set s = t->sets[i];
		struct cr_err why = {0};
		char what[80];
		int r = sysv_ipc_each(find_taken, &s, &why);

		snprintf(what, sizeof(what), "System V %s %d, key %#x", kind_name((int)s.kind),
			 s.id, (unsigned int)s.key);
		if (r)
			refuse(refused, 0, what, "%s",
			       r < 0 ? why.msg : "the id or the key is taken at the destination");
	}
}

/* In the process that is to have done it; in our own if that cannot be. */
static int call_as(const struct fileset_tasks *tasks, pid_t pid, const char *what, long nr,
		   const uint64_t args[5], struct cr_err *err)
{
	struct rtask *rt;
	int slot;

	if (pid > 0 && !tasks->enter(tasks->arg, pid, &rt, &slot)) {
		rqueue(rt, what, nr, args[0], args[1], args[2], args[3], args[4]);
		return rtask_run(rt, err);
	}
	return syscall(nr, args[0], args[1], args[2], args[3], args[4]) < 0
		   ? cr_err_sys(err, "%s", what)
		   : 0;
}

static int operate_as(const struct fileset_tasks *tasks, pid_t pid, int id, struct sembuf *ops,
		      size_t n, struct cr_err *err)
{
	uint64_t va = (uint64_t)(uintptr_t)ops;
	struct rtask *rt;
	int slot, r = 0;

	if (pid > 0 && !tasks->enter(tasks->arg, pid, &rt, &slot))
		r = rtask_put(rt, ops, n * sizeof(*ops), &va, err);
	else
		pid = 0;
	return r ? r
		 : call_as(tasks, pid, "semop", SYS_semop, (uint64_t[]){(uint64_t)id, va, n, 0, 0},
			   err);
}

static bool has_undo(const struct sysv_set *s, size_t sem)
{
	for (size_t i = 0; i < s->n_undo; i++)
		if (s->undo[i].sem == sem)
			return true;
	return false;
}

/* Values are set by SETVAL no more once there is something to undo: that would clear it. */
static int set_level(const struct sysv_set *s, unsigned short sem, int from, int to,
		     struct cr_err *err)
{
	struct sembuf op = {sem, (short)(to - from), IPC_NOWAIT};

	if (from != to && semop(s->id, &op, 1))
		return cr_err_sys(err, "semop of System V semaphore set %d", s->id);
	return 0;
}

/* What is to be undone comes about by having done the contrary. */
static int fill_with_undo(const struct sysv_set *s, unsigned short sem,
			  const struct fileset_tasks *tasks, struct cr_err *err)
{
	int level = 0, r = 0;

	for (size_t i = 0; i < s->n_undo && !r; i++) {
		const struct sysv_undo *u = &s->undo[i];
		struct sembuf op = {sem, (short)-u->by, SEM_UNDO | IPC_NOWAIT};
		struct rtask *rt;
		int slot, before = u->by > 0 ? u->by : 0;

		if (u->sem != sem)
			continue;
		if (tasks->enter(tasks->arg, u->pid, &rt, &slot)) /* never as ours */
			return cr_err_set(err, CR_ERR_PEER, ESRCH,
					  "SEM_UNDO of process %d, which is not there", u->pid);
		r = set_level(s, sem, level, before, err);
		if (!r)
			r = operate_as(tasks, u->pid, s->id, &op, 1, err);
		level = before - u->by;
	}
	/* the last one to have used it: two operations that leave it as it is */
	struct sembuf last[] = {{sem, 1, IPC_NOWAIT}, {sem, -1, IPC_NOWAIT}};
	int value = (int)s->values[sem];
	if (value == SHRT_MAX)
		last[0].sem_op = -1, last[1].sem_op = 1;
	if (!r)
		r = set_level(s, sem, level, value, err);
	return r ? r : operate_as(tasks, s->pids[sem], s->id, last, 2, err);
}

static int fill_semaphores(const struct sysv_set *s, const struct fileset_tasks *tasks,
			   struct cr_err *err)
{
	struct semid_ds ds;
	int r = 0;

	for (size_t k = 0; k < s->n && !r; k++)
		r = has_undo(s, k)
			? fill_with_undo(s, (unsigned short)k, tasks, err)
			: call_as(tasks, s->pids[k], "semctl", SYS_semctl,
				  (uint64_t[]){(uint64_t)s->id, k, SETVAL, s->values[k], 0}, err);
	if (r)
		return r;
	if (semctl(s->id, 0, IPC_STAT, (union semun){.buf = &ds}))
		return cr_err_sys(err, "System V semaphore set %d", s->id);
	ds.sem_perm.uid = s->uid;
	ds.sem_perm.gid = s->gid;
	ds.sem_perm.mode = (unsigned short)s->mode;
	return semctl(s->id, 0, IPC_SET, (union semun){.buf = &ds})
		   ? cr_err_sys(err, "owner of System V semaphore set %d", s->id)
		   : 0;
}

/* An empty message of a type of its own, which changes nothing of the others. */
static int mark_users(const struct sysv_set *s, const struct fileset_tasks *tasks,
		      struct cr_err *err)
{
	struct rtask *rt;
	uint64_t va = 0;
	int slot, r = 0;
	long type = MARK_TYPE;

	bool send = s->sender > 0 && !tasks->enter(tasks->arg, s->sender, &rt, &slot);
	if (send)
		r = rtask_put(rt, &type, sizeof(type), &va, err);
	if (!r)
		r = call_as(tasks, send ? s->sender : 0, "msgsnd", SYS_msgsnd,
			    (uint64_t[]){(uint64_t)s->id, send ? va : (uint64_t)(uintptr_t)&type, 0,
					 IPC_NOWAIT, 0},
			    err);
	bool receive = !r && s->receiver > 0 && !tasks->enter(tasks->arg, s->receiver, &rt, &slot);
	if (receive)
		r = rtask_put(rt, &type, sizeof(type), &va, err);
	return r ? r
		 : call_as(tasks, receive ? s->receiver : 0, "msgrcv", SYS_msgrcv,
			   (uint64_t[]){(uint64_t)s->id, receive ? va : (uint64_t)(uintptr_t)&type,
					0, MARK_TYPE, IPC_NOWAIT},
			   err);
}

static int fill_queue(const struct sysv_set *s, const struct fileset_tasks *tasks,
		      struct cr_err *err)
{
	struct msqid_ds ds;

	if (msgctl(s->id, IPC_STAT, &ds))
		return cr_err_sys(err, "System V message queue %d", s->id);
	ds.msg_perm.uid = s->uid;
	ds.msg_perm.gid = s->gid;
	ds.msg_perm.mode = (unsigned short)s->mode;
	ds.msg_qbytes = s->max_bytes;
	if (msgctl(s->id, IPC_SET, &ds))
		return cr_err_sys(err, "owner of System V message queue %d", s->id);
	for (size_t k = 0; k < s->n_messages; k++) {
		_cleanup_free_ long *buf = malloc(sizeof(*buf) + s->messages[k].len);

		if (!buf)
			return cr_err_oom(err);
		buf[0] = (long)s->messages[k].type;
		if (s->messages[k].len)
			memcpy(buf + 1, s->messages[k].data, s->messages[k].len);
		if (msgsnd(s->id, buf, s->messages[k].len, IPC_NOWAIT))
			return cr_err_sys(err, "filling System V message queue %d", s->id);
	}
	return mark_users(s, tasks, err);
}

int sysv_ipc_make(const struct sysv_set *s, struct cr_err *err)
{
	const struct sysv_ipc want = {
	    .kind = (enum sysv_ipc_kind)s->kind, .id = s->id, .key = s->key, .n = (uint32_t)s->n};

	return sysv_ipc_create(&want, s->mode, err);
}

int sysv_ipc_fill(const struct sysv_set *s, const struct fileset_tasks *tasks, struct cr_err *err)
{
	return s->kind == SYSV_SEM ? fill_semaphores(s, tasks, err) : fill_queue(s, tasks, err);
}
