/* Connections that a program has closed while what it sent last was not acknowledged: the kernel
 * sees them to their end, and nobody has a descriptor by which they could be taken along
 * (resource/net_closed.h, which needs BPF, a destination that knows of it, and to move the address
 * ourselves). Left behind without their address they would never be, and the destination, which
 * knows nothing of them, would answer their peers by a reset.
 *
 * So without that the switch-over waits for those that are just ending, which takes them a round
 * trip. Those whose peer does not answer, or takes nothing more, are named: ahead, and if they are
 * left. */
#include "source/source.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include "base/clock.h"
#include "base/log.h"
#include "kernel/tcp_diag.h"
#include "resource/file_kind.h"
#include "resource/net_closed.h"

enum {
	PATIENCE_MS = 25, /* for a peer far away; who is near takes less than one */
	PAUSE_NS = 500000,
	SAID_MAX = 8,
	ADDR_TEXT = 128,
};

/* Where others move an address, the destination has it before the decision: too early. */
static bool could_take(const struct source *s, const struct tree *t)
{
	return s->env->orphans && !s->rq->opts.no_bpf && !t->switched;
}

bool source_takes_closed(const struct source *s, const struct tree *t)
{
	return could_take(s, t) && s->takes_closed;
}

static bool concerns(const struct source *s, const struct tree *t)
{
	return !s->image && (t->n_moved || t->switched) && net_has_closed();
}

/* Those that lose their address; *ret_ending: of them, those that are just ending. */
static size_t count(const struct tree *t, size_t *ret_ending)
{
	_cleanup_(tcp_unowned_done) struct tcp_unowned_list l = {0};
	struct cr_err ignored = {0};
	size_t n = 0;

	*ret_ending = 0;
	if (tcp_diag_unowned(&l, &ignored))
		return 0;
	vec_foreach (u, &l.list)
		if (net_loses_address(t, &u->us)) {
			n++;
			*ret_ending += !u->stuck;
		}
	return n;
}

void source_warn_unowned(struct source *s, const struct tree *t)
{
	_cleanup_(tcp_unowned_done) struct tcp_unowned_list l = {0};
	struct cr_err ignored = {0};
	char us[ADDR_TEXT], peer[ADDR_TEXT];
	size_t n = 0;

	if (could_take(s, t) || !concerns(s, t) || tcp_diag_unowned(&l, &ignored))
		return;
	vec_foreach (u, &l.list) {
		if (!u->stuck || !net_loses_address(t, &u->us) || n++ >= SAID_MAX)
			continue;
		sockaddr_text(&u->us, sizeof(u->us), us, sizeof(us));
		refuse_warn(&s->notes, 0, us,
			    "a connection that its program has closed, with %u bytes that %s has "
			    "not acknowledged: if they are not by the switch-over, it is reset",
			    u->bytes, sockaddr_text(&u->peer, sizeof(u->peer), peer, sizeof(peer)));
	}
	if (n > SAID_MAX)
		refuse_warn(&s->notes, 0, "connections", "%zu more such connections", n - SAID_MAX);
}

void source_wait_unowned(struct source *s, const struct tree *t)
{
	const struct timespec pause = {.tv_nsec = PAUSE_NS};
	uint64_t end = clock_ns(CLOCK_MONOTONIC) + PATIENCE_MS * 1000000ull;
	size_t left, ending;
	char text[128];

	if (source_takes_closed(s, t) || !concerns(s, t))
		return;
	while ((left = count(t, &ending)) && ending && clock_ns(CLOCK_MONOTONIC) < end)
		nanosleep(&pause, NULL);
	if (!left)
		return;
	snprintf(text, sizeof(text),
		 "%zu connections that the program has closed are reset: their peers have not "
		 "acknowledged everything",
		 left);
	source_event(s, "warning", text);
}
