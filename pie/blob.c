/* The executor that runs inside other tasks: as parasite in a seized task, as restorer in a task
 * being rebuilt. Freestanding: no libc, no relocations, no state but the slot. All decisions are
 * the agent's. */
#include "pie/slot.h"
#include "pie/arch/x86_64.h"

void blob_entry(struct blob_slot *slot);

static void run_call(struct blob_call *c)
{
	if (c->nr == BLOB_OP_CLONE)
		c->ret = arch_clone3(c->args[0], c->args[1], (struct blob_slot *)c->args[2]);
	else if (c->nr == BLOB_OP_SIGRETURN)
		arch_sigreturn(c->args[0]);
	else
		c->ret = arch_syscall(c->nr, c->args[0], c->args[1], c->args[2], c->args[3],
				      c->args[4], c->args[5]);
}

/* A task of the source must not wait for ever for an agent that was killed: it goes back to what it
 * was doing. What stays of us is a mapping that nobody uses. */
static void wait_for_agent(struct blob_slot *slot, unsigned int tail)
{
	long r = arch_futex(&slot->head, ARCH_FUTEX_WAIT, tail,
			    slot->rescue_sp ? SLOT_RESCUE_SECONDS : 0);

	if (r != -110 /* ETIMEDOUT */ || !slot->rescue_sp || !arch_process_is_gone(slot->agent_pid))
		return;
	for (unsigned int i = 0; i < slot->n_rescue_calls; i++)
		run_call((struct blob_call *)slot->rescue_calls + i);
	arch_sigreturn(slot->rescue_sp);
}

__attribute__((noreturn, used)) void blob_entry(struct blob_slot *slot)
{
	for (;;) {
		unsigned int tail = slot->tail;

		while (__atomic_load_n(&slot->head, __ATOMIC_ACQUIRE) == tail)
			wait_for_agent(slot, tail);
		run_call(&slot->calls[tail % SLOT_CALLS]);
		__atomic_store_n(&slot->tail, tail + 1, __ATOMIC_SEQ_CST);
		/* the agent sleeps on tail only after it has said so, and looks again after that */
		if (__atomic_load_n(&slot->head, __ATOMIC_SEQ_CST) == tail + 1 &&
		    __atomic_load_n(&slot->agent_waits, __ATOMIC_SEQ_CST))
			arch_futex(&slot->tail, ARCH_FUTEX_WAKE, 1, 0);
	}
}
