/* The memory that the blob and the agent share: one slot per thread. Shared between freestanding
 * code and the agent; nothing but fixed-width integers in it.
 *
 * The agent writes calls[], then head; the blob runs calls tail..head-1, stores results, then tail,
 * and sleeps on head by futex(2). head and tail count calls; a call's place is its count modulo
 * SLOT_CALLS. */
#pragma once

#define SLOT_CALLS 48u
#define SLOT_BYTES 24576u /* six pages */
#define SLOT_STACK_BYTES 2048u
#define SLOT_DATA_BYTES 12288u
#define SLOT_RESCUE_BYTES 4096u
#define SLOT_RESCUE_SECONDS 1 /* between looks at whether the agent lives */

/* Call numbers that are no system calls. */
#define BLOB_OP_CLONE (-1l)     /* args: struct clone_args *, its size, the child's slot */
#define BLOB_OP_SIGRETURN (-2l) /* args: stack pointer that rt_sigreturn(2) shall see */

struct blob_call {
	long nr;
	unsigned long args[6];
	long ret;
};

struct blob_slot {
	unsigned int head; /* written by the agent */
	unsigned int tail; /* written by the blob */
	unsigned int agent_waits;
	unsigned int agent_pid; /* for the rescue */
	/* Where rt_sigreturn(2) finds the task as it was before: if the agent is gone, the blob
	 * leaves by it. 0: no rescue, the task is nothing without the agent. */
	unsigned long rescue_sp;
	unsigned long rescue_calls; /* struct blob_call: before it leaves by that */
	unsigned int n_rescue_calls;
	unsigned int pad[7];
	struct blob_call calls[SLOT_CALLS];
	unsigned char spare[SLOT_BYTES - 64 - SLOT_CALLS * 64 - SLOT_DATA_BYTES - SLOT_STACK_BYTES -
			    SLOT_RESCUE_BYTES];
	unsigned char
	    stack[SLOT_STACK_BYTES]; /* grows down towards calls[]: overruns spare first */
	unsigned char data[SLOT_DATA_BYTES];
	unsigned char rescue[SLOT_RESCUE_BYTES]; /* the frame for rescue_sp */
};

/* At offset 0 of the blob: where its entry points are, bytes from its start. */
struct blob_header {
	unsigned int magic;
	unsigned int entry;          /* blob_entry(slot): rdi = slot, rsp = end of slot->stack */
	unsigned int sigreturn_insn; /* the syscall instruction of rt_sigreturn */
	unsigned int syscall_insn;   /* a bare syscall instruction, for injection by ptrace */
	unsigned int size;
	unsigned int pad[3];
};
#define BLOB_MAGIC 0x314c4243u /* "CBL1" */
