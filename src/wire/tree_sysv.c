/* System V semaphore sets and message queues. */
#include "wire/tree_priv.h"

/* semget(2): SEMMSL, SEMVMX; msgget(2): MSGMAX may be anything, a queue of a million is none. */
enum { SEMS_MAX = 32000, VALUE_MAX = 32767, MESSAGES_MAX = 1 << 20, PID_LIMIT = 1 << 22 };

/* On the wire: who does not know of undo values must not take the set for one without any. */
enum { KIND_SEM_UNDO = 3 };
_Static_assert(KIND_SEM_UNDO > (int)SYSV_MSG, "a kind of its own");

/* clang-format off */
#define SET_NUMBERS(X) X(id) X(key) X(uid) X(gid) X(mode) X(max_bytes) X(sender) X(receiver)
/* clang-format on */

static bool put_undo(struct arena *a, Tree__SysvSet *pb, const struct sysv_set *in)
{
	pb->undo_pids = arena_array(a, int32_t, in->n_undo);
	pb->undo_sems = arena_array(a, uint32_t, in->n_undo);
	pb->undo_by = arena_array(a, int32_t, in->n_undo);
	if (!pb->undo_pids || !pb->undo_sems || !pb->undo_by)
		return false;
	for (size_t i = 0; i < in->n_undo; i++) {
		pb->undo_pids[i] = in->undo[i].pid;
		pb->undo_sems[i] = in->undo[i].sem;
		pb->undo_by[i] = in->undo[i].by;
	}
	pb->n_undo_pids = pb->n_undo_sems = pb->n_undo_by = in->n_undo;
	return true;
}

static int get_undo(struct arena *a, const Tree__SysvSet *pb, struct sysv_set *out,
		    struct cr_err *err)
{
	size_t n = pb->n_undo_pids;

	if (pb->n_undo_sems != n || pb->n_undo_by != n || !!n != (pb->kind == KIND_SEM_UNDO))
		return tree_bad(err, "undo values of semaphore set %d", pb->id);
	if (n)
		out->kind = SYSV_SEM;
	out->undo = arena_array(a, struct sysv_undo, n);
	if (!out->undo)
		return cr_err_oom(err);
	for (; out->n_undo < n; out->n_undo++) {
		size_t i = out->n_undo;

		out->undo[i] =
		    (struct sysv_undo){pb->undo_pids[i], pb->undo_sems[i], pb->undo_by[i]};
	}
	return 0;
}

Tree__SysvSet *tree_put_set(struct arena *a, const struct sysv_set *in)
{
	Tree__SysvSet *pb = pb_new(a, &tree__sysv_set__descriptor);

	if (!pb || !put_undo(a, pb, in))
		return NULL;
	SET_NUMBERS(TREE_PUT)
	pb->kind = in->n_undo ? KIND_SEM_UNDO : in->kind;
	pb->values = in->values;
	pb->pids = in->pids;
	pb->n_values = pb->n_pids = in->n;
	pb->messages = arena_array(a, Tree__SysvMessage *, in->n_messages);
	for (size_t i = 0; pb->messages && i < in->n_messages; i++) {
		Tree__SysvMessage *m = pb_new(a, &tree__sysv_message__descriptor);

		if (!m)
			return NULL;
		m->type = in->messages[i].type;
		m->data = pb_bytes(in->messages[i].data, in->messages[i].len);
		pb->messages[pb->n_messages++] = m;
	}
	return pb->messages ? pb : NULL;
}

int tree_get_set(struct arena *a, const Tree__SysvSet *pb, struct sysv_set *out, struct cr_err *err)
{
	SET_NUMBERS(TREE_GET)
	out->kind = (enum sysv_kind)pb->kind;
	int r = get_undo(a, pb, out, err);
	if (r)
		return r;
	if (pb->n_values != pb->n_pids)
		return tree_bad(err, "columns of a semaphore set differ in length");
	out->n = pb->n_values;
	out->values = arena_array(a, uint32_t, out->n);
	out->pids = arena_array(a, int32_t, out->n);
	out->messages = arena_array(a, struct sysv_message, pb->n_messages);
	if (!out->values || !out->pids || !out->messages)
		return cr_err_oom(err);
	for (size_t i = 0; i < out->n; i++) {
		out->values[i] = pb->values[i];
		out->pids[i] = pb->pids[i];
	}
	for (size_t i = 0; i < pb->n_messages && !r; i++) {
		struct sysv_message *m = &out->messages[out->n_messages++];

		m->type = pb->messages[i]->type;
		r = tree_get_bytes(a, &pb->messages[i]->data, &m->data, &m->len, err);
	}
	return r;
}

int tree_check_set(const struct sysv_set *s, size_t i, struct cr_err *err)
{
	if ((s->kind != SYSV_SEM && s->kind != SYSV_MSG) || s->id < 0 || s->mode > 0777 ||
	    s->n > SEMS_MAX || s->n_messages > MESSAGES_MAX || (s->kind == SYSV_SEM && !s->n))
		return tree_bad(err, "System V object %zu: kind %u, id %d, %zu semaphores", i,
				s->kind, s->id, s->n);
	for (size_t k = 0; k < s->n; k++)
		if (s->values[k] > VALUE_MAX || s->pids[k] < 0 || s->pids[k] > PID_LIMIT)
			return tree_bad(err, "semaphore %zu of set %d: value %u", k, s->id,
					s->values[k]);
	for (size_t k = 0; k < s->n_undo; k++) {
		const struct sysv_undo *u = &s->undo[k];

		if (s->kind != SYSV_SEM || u->sem >= s->n || u->pid <= 0 || u->pid > PID_LIMIT ||
		    !u->by || u->by < -VALUE_MAX || u->by > VALUE_MAX)
			return tree_bad(err, "set %d: undo of semaphore %u by %d", s->id, u->sem,
					u->by);
	}
	for (size_t k = 0; k < s->n_messages; k++)
		if (s->messages[k].type < 1)
			return tree_bad(err, "message %zu of queue %d: type %lld", k, s->id,
					(long long)s->messages[k].type);
	return 0;
}
