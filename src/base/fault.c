#include "base/fault.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char fault_name[64]; /* "" if none */
static int fault_signal;

void fault_init(const char *spec)
{
	const char *colon = spec ? strchr(spec, ':') : NULL;

	if (!colon || (size_t)(colon - spec) >= sizeof(fault_name))
		return;
	memcpy(fault_name, spec, (size_t)(colon - spec));
	fault_name[colon - spec] = 0;
	fault_signal = !strcmp(colon + 1, "stop") ? SIGSTOP : SIGKILL;
}

void fault_point(const char *name)
{
	if (!fault_name[0] || strcmp(fault_name, name))
		return;
	fault_name[0] = 0; /* a point may be passed for every task: once is enough */
	kill(getpid(), fault_signal);
}
