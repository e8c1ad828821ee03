/* A migration's source: the connection's process becomes the engine. */
#include <poll.h>
#include <string.h>
#include "agent/agent.h"
#include "base/heap.h"
#include "base/log.h"
#include "source/source.h"

void work_source(const struct agent_config *cfg, struct link *client, const struct msg_migrate *rq,
		 const struct source_image *image, int life_fd)
{
	const struct source_env env = {
	    .host = cfg->host,
	    .state_dir = cfg->state_dir,
	    .life_fd = life_fd,
	};
	char id[MIG_ID_HEX];
	struct source s;
	struct msg m = msg_of(MSG_DONE);
	struct cr_err err = {0};

	mig_id_format(&rq->id, id);
	heap_keep();
	source_init(&s, &env, rq, client);
	s.image = image;
	if (journal_lock(cfg->state_dir, id, "source", HOLDER_WORKS, 0, &err) < 0) {
		s.done.outcome = MSG_OUTCOME_FAILED;
		s.done.error = err;
	} else {
		source_run(&s);
	}
	m.done = s.done;
	if (s.done.error.kind)
		log_info("migration %s: %s: %s", id, msg_outcome_name(s.done.outcome),
			 s.done.error.msg);
	else
		log_info("migration %s: %s, downtime %llu us", id, msg_outcome_name(s.done.outcome),
			 (unsigned long long)s.done.downtime_us);
	if (link_send(client, &m, &err))
		log_debug("%s", err.msg);
	source_done(&s);
	sweep_cgroups(); /* the tasks may have been in one since they came here */
}
