/* A migration's source: the connection's process becomes the engine. */
#include <poll.h>
#include <string.h>
#include "agent/agent.h"
#include "base/heap.h"
#include "base/log.h"
#include "source/source.h"

void work_source_run(const struct agent_config *cfg, struct source *s)
{
	struct cr_err err = {0};
	_cleanup_fd_ int lock =
	    journal_lock(cfg->state_dir, s->journal.id, "source", HOLDER_WORKS, 0, &err);

	if (lock < 0) {
		s->done.outcome = MSG_OUTCOME_FAILED;
		s->done.error = err;
	} else {
		source_run(s);
	}
	if (s->done.error.kind)
		log_info("migration %s: %s: %s", s->journal.id, msg_outcome_name(s->done.outcome),
			 s->done.error.msg);
	else
		log_info("migration %s: %s, downtime %llu us", s->journal.id,
			 msg_outcome_name(s->done.outcome),
			 (unsigned long long)s->done.downtime_us);
}

void work_source(const struct agent_config *cfg, struct link *client, const struct msg_migrate *rq,
		 const struct source_image *image, int life_fd)
{
	const struct source_env env = {
	    .host = cfg->host,
	    .state_dir = cfg->state_dir,
	    .view = cfg->view,
	    .vmas = cfg->vmas,
	    .requests = cfg->requests,
	    .orphans = cfg->orphans,
	    .socks = cfg->socks,
	    .pending = cfg->pending,
	    .reuse = cfg->reuse,
	    .shared = cfg->shared,
	    .life_fd = life_fd,
	};
	struct source s;
	struct msg m = msg_of(MSG_DONE);
	struct cr_err err = {0};

	heap_keep();
	source_init(&s, &env, rq, client);
	s.image = image;
	work_source_run(cfg, &s);
	m.done = s.done;
	if (link_send(client, &m, &err))
		log_debug("%s", err.msg);
	source_done(&s);
	sweep_cgroups(); /* the tasks may have been in one since they came here */
}
