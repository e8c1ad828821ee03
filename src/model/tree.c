#include "model/tree.h"

struct tree *tree_new(void)
{
	struct arena *a = arena_new();

	if (!a)
		return NULL;
	struct tree *t = arena_new_of(a, struct tree);
	if (!t) {
		arena_free(a);
		return NULL;
	}
	t->arena = a;
	return t;
}

void tree_free(struct tree *t)
{
	if (t)
		arena_free(t->arena);
}

struct process *tree_find_process(const struct tree *t, pid_t pid)
{
	for (size_t i = 0; i < t->n_procs; i++)
		if (t->procs[i].pid == pid)
			return &t->procs[i];
	return NULL;
}

struct thread *process_find_thread(const struct process *p, pid_t tid)
{
	for (size_t i = 0; i < p->n_threads; i++)
		if (p->threads[i].tid == tid)
			return &p->threads[i];
	return NULL;
}

size_t tree_count_threads(const struct tree *t)
{
	size_t n = 0;

	for (size_t i = 0; i < t->n_procs; i++)
		n += t->procs[i].n_threads;
	return n;
}

struct tty *tree_find_tty(const struct tree *t, uint32_t number)
{
	for (size_t i = 0; i < t->n_ttys; i++)
		if (t->ttys[i].number == number)
			return &t->ttys[i];
	return NULL;
}
