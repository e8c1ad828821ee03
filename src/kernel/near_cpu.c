#include "kernel/near_cpu.h"

#include <sys/socket.h>

void near_cpu_init(struct near_cpu *n)
{
	int policy = sched_getscheduler(0) & ~SCHED_RESET_ON_FORK;

	*n = (struct near_cpu){.at = -1};
	/* more processors than the set has room for: EINVAL, sched_getaffinity(2) */
	n->on = (policy == SCHED_FIFO || policy == SCHED_RR) &&
		!sched_getaffinity(0, sizeof(n->all), &n->all) && CPU_COUNT(&n->all) > 1;
}

void near_cpu_follow(struct near_cpu *n, int fd, unsigned int patience)
{
	socklen_t len = sizeof(int);
	int cpu = -1;
	cpu_set_t one;

	/* a unix socket says -1 */
	if (!n->on || getsockopt(fd, SOL_SOCKET, SO_INCOMING_CPU, &cpu, &len) || cpu < 0 ||
	    cpu >= CPU_SETSIZE || !CPU_ISSET(cpu, &n->all))
		return;
	if (cpu == n->at) {
		n->elsewhere = 0;
		return;
	}
	if (n->at >= 0 && ++n->elsewhere < patience)
		return;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	n->elsewhere = 0;
	/* if it is not allowed, that is only slower */
	n->at = sched_setaffinity(0, sizeof(one), &one) ? n->at : cpu;
}

void near_cpu_leave(const struct near_cpu *n)
{
	if (n->on && sched_setaffinity(0, sizeof(n->all), &n->all))
		return;
}
