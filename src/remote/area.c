#include "remote/area.h"

#include <stddef.h>

#include <string.h>
#include <sys/mman.h>

extern const uint8_t cr_blob_image[], cr_blob_image_end[];

static const struct blob_header *header(void)
{
	return (const struct blob_header *)cr_blob_image;
}

_Static_assert(sizeof(struct blob_slot) == SLOT_BYTES, "a slot is what its name says");
_Static_assert(SLOT_DATA_BYTES == RTASK_SCRATCH_BYTES, "scratch memory is the slot's data area");

size_t rarea_bytes(unsigned int n_slots)
{
	return CR_PAGE_SIZE + (size_t)n_slots * SLOT_BYTES;
}

int rarea_init(struct rarea *a, int memfd, unsigned int n_slots, uint64_t fixed_va,
	       struct cr_err *err)
{
	size_t blob_bytes = (size_t)(cr_blob_image_end - cr_blob_image);

	*a = (struct rarea){.memfd = memfd, .n_slots = n_slots, .bytes = rarea_bytes(n_slots)};
	if (header()->magic != BLOB_MAGIC || blob_bytes > CR_PAGE_SIZE)
		return cr_err_set(err, CR_ERR_BUG, EINVAL, "the embedded blob is damaged");
	if (ftruncate(memfd, (off_t)a->bytes))
		return cr_err_sys(err, "sizing the executor's memory");
	a->local = mmap((void *)fixed_va, a->bytes, PROT_READ | PROT_WRITE,
			MAP_SHARED | (fixed_va ? MAP_FIXED_NOREPLACE : MAP_POPULATE), memfd, 0);
	if (a->local == MAP_FAILED) {
		a->local = NULL;
		return cr_err_sys(err, "mapping the executor's memory");
	}
	memcpy(a->local, cr_blob_image, blob_bytes);
	a->remote = fixed_va;
	return 0;
}

void rarea_done(struct rarea *a)
{
	if (a->local)
		munmap(a->local, a->bytes);
	a->local = NULL;
	close_fdp(&a->memfd);
}

uint64_t rarea_entry_va(const struct rarea *a)
{
	return a->remote + header()->entry;
}

uint64_t rarea_sigreturn_va(const struct rarea *a)
{
	return a->remote + header()->sigreturn_insn;
}

uint64_t rarea_syscall_va(const struct rarea *a)
{
	return a->remote + header()->syscall_insn;
}

int rtask_init(struct rtask *t, struct rarea *a, pid_t tid, struct cr_err *err)
{
	memset(t, 0, sizeof(*t));
	if (a->next_slot >= a->n_slots)
		return cr_err_set(err, CR_ERR_BUG, ENOSPC, "no executor slot left for task %d (%u)",
				  tid, a->n_slots);
	size_t off = CR_PAGE_SIZE + (size_t)a->next_slot++ * SLOT_BYTES;
	t->area = a;
	t->slot = (struct blob_slot *)(a->local + off);
	t->slot_va = a->remote + off;
	rtask_reset(t, tid);
	return 0;
}

void rtask_reset(struct rtask *t, pid_t tid)
{
	t->tid = tid;
	t->queued = t->started = 0;
	t->scratch_used = 0;
	t->dead = t->has_pending_err = false;
	t->slot->head = t->slot->tail = t->slot->agent_waits = 0;
	t->slot->rescue_sp = 0;
	t->slot->n_rescue_calls = 0;
}

uint64_t rtask_stack_va(const struct rtask *t)
{
	return t->slot_va + offsetof(struct blob_slot, stack) + SLOT_STACK_BYTES;
}

uint8_t *rtask_data(struct rtask *t, uint64_t *ret_va)
{
	*ret_va = t->slot_va + offsetof(struct blob_slot, data);
	return t->slot->data;
}

uint8_t *rtask_rescue_area(struct rtask *t, uint64_t *ret_va)
{
	*ret_va = t->slot_va + offsetof(struct blob_slot, rescue);
	return t->slot->rescue;
}

void rtask_arm_rescue(struct rtask *t, uint64_t frame_sp)
{
	t->slot->agent_pid = (unsigned int)getpid();
	t->slot->rescue_sp = frame_sp;
}

bool rtask_arm_rescue_calls(struct rtask *t, const struct rcall *calls, size_t n)
{
	uint64_t va;
	struct blob_call *to = rtask_scratch(t, n * sizeof(*to), &va);

	for (size_t i = 0; to && i < n; i++) {
		to[i].nr = calls[i].nr;
		memcpy(to[i].args, calls[i].args, sizeof(to[i].args));
	}
	t->slot->rescue_calls = va;
	t->slot->n_rescue_calls = to ? (unsigned int)n : 0;
	return to;
}

bool rtask_has_rescue_calls(const struct rtask *t)
{
	return t->slot->n_rescue_calls;
}

void rtask_disarm_rescue_calls(struct rtask *t)
{
	t->slot->n_rescue_calls = 0;
}

uint64_t rtask_rescue_sp(const struct rtask *t)
{
	return t->slot->rescue_sp;
}
