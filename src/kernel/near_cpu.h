/* To be where the packets come in.
 *
 * Who waits for a message is woken by the processor that has received it. If that is another than
 * the one where the waiting thread was last, it has to be interrupted: some microseconds, in a
 * virtual machine 15 and more, each way. socket(7) SO_INCOMING_CPU tells which it was. For threads
 * at a real-time priority alone: others could not get away from a busy processor. */
#pragma once
#include <sched.h>
#include <stdbool.h>

struct near_cpu {
	cpu_set_t all; /* where the thread might run before */
	bool on;
	int at; /* where it was put; -1: nowhere yet */
	unsigned int elsewhere;
};

/* Of the calling thread, as it is now. */
void near_cpu_init(struct near_cpu *n);
/* The calling thread goes where fd's last packet came in, once that was another processor
 * `patience` times in a row; at first at once. Both ends of a connection within one machine may do
 * that if their patience differs. */
void near_cpu_follow(struct near_cpu *n, int fd, unsigned int patience);
/* The calling thread may run anywhere again: also one that was started by another meanwhile. */
void near_cpu_leave(const struct near_cpu *n);
