/* Pre-dumps with --track: between two of them the tasks stay tracked, so that the next one reads
 * and sends only what was written since. The engine's process waits; nothing is connected. What the
 * receiver says of its image must be what was left there: if somebody else has written to it, or it
 * began anew, the pre-dump is one like the first. */
#include <poll.h>
#include "source/source.h"

void source_rest(struct source *s)
{
	s->kept = (struct source_kept){
	    .there = true, .writer = s->rq->id, .rounds = s->image_is.rounds + 1};
	reader_free(s->reader);
	s->reader = NULL;
	page_tx_free(s->tx);
	s->tx = NULL;
	link_free(s->peer);
	s->peer = NULL;
}

void source_again(struct source *s, const struct msg_migrate *rq, struct link *client)
{
	refusals_done(&s->notes);
	tree_free(s->checked);
	s->checked = NULL;
	s->aborted = s->asked_to_prepare = s->stalled = s->learned = false;
	s->moved_bytes = s->moved_us = s->looked_us = 0;
	s->stops = 0;
	s->longest_stop_us = 0;
	s->done = (struct msg_done){0};
	s->journal.pids.n = 0;
	source_take_request(s, rq, client);
}

static void forget(struct source *s)
{
	vec_foreach (spp, &s->procs) {
		if ((*spp)->has_tracker)
			tracker_done(&(*spp)->tracker);
		close_fdp(&(*spp)->pidfd);
		free(*spp);
	}
	s->procs.n = 0;
	source_objects_done(s);
	object_fds_done(&s->object_fds);
	vec_foreach (t, &s->newcomers)
		tree_free(*t);
	s->newcomers.n = 0;
	tree_free(s->tree);
	s->tree = NULL;
	s->kept = (struct source_kept){0};
}

void source_check_kept(struct source *s)
{
	if (!s->kept.there || (s->kept.rounds == s->image_is.rounds &&
			       mig_id_equal(&s->kept.writer, &s->image_is.writer)))
		return;
	source_event(s, "warning",
		     "the image is not as the last pre-dump left it: all memory is compared anew");
	forget(s);
}

bool source_all_ended(const struct source *s)
{
	vec_foreach (spp, &s->procs) {
		struct pollfd p = {.fd = (*spp)->pidfd, .events = POLLIN};

		if (poll(&p, 1, 0) == 0)
			return false;
	}
	return true;
}
