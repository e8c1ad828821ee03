/* While tasks wait for their last pages the agent has us run at real-time priority: on a busy host
 * a page-server that waits for its turn is the longest part of the downtime. Up takes a capability,
 * which the agent has; down takes none (sched(7)), and is up to us: agents may die. */
#include <dirent.h>
#include <sched.h>
#include "base/log.h"
#include "pageserver/server.h"

void priority_lower(struct server *sv)
{
	const struct sched_param p = {0};

	if (!sv->threads)
		return;
	rewinddir(sv->threads);
	for (struct dirent *e; (e = readdir(sv->threads));)
		if (e->d_name[0] != '.' && sched_setscheduler(atoi(e->d_name), SCHED_OTHER, &p))
			log_debug("priority of thread %s: %s", e->d_name, strerror(errno));
}
