#include "migrate/report_json.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Paths and names of processes may be any bytes; JSON is UTF-8. */
static json_t *text(const char *s)
{
	json_t *j = json_string(s);

	if (j)
		return j;
	_cleanup_free_ char *ascii = strdup(s);
	if (!ascii)
		return json_null();
	for (char *c = ascii; *c; c++)
		if ((unsigned char)*c >= 0x80)
			*c = '?';
	return json_string(ascii);
}

static json_t *number(uint64_t v)
{
	return json_integer(v > INT64_MAX ? INT64_MAX : (json_int_t)v);
}

/* Out of memory: the line is left out, the migration goes on. */
static void print(json_t *j)
{
	if (!j)
		return;
	_cleanup_free_ char *line = json_dumps(j, JSON_COMPACT);
	json_decref(j);
	if (line)
		puts(line);
}

void report_json_event(const struct msg_event *e)
{
	print(json_pack("{s:s, s:o, s:o}", "event", "phase", "name", text(e->name), "text",
			text(e->text)));
}

static json_t *round_of(const struct msg_round *m)
{
	return json_pack("{s:o, s:o, s:o, s:o, s:o}", "round", number(m->round), "pages_written",
			 number(m->pages_written), "pages_sent", number(m->pages_sent),
			 "bytes_wire", number(m->bytes_wire), "duration_us",
			 number(m->duration_us));
}

void report_json_round(const struct msg_round *m)
{
	json_t *j = json_pack("{s:s}", "event", "round");
	json_t *r = round_of(m);

	if (j && r) {
		json_object_update(j, r);
		json_object_set_new(j, "rate", number(m->rate));
		json_object_set_new(j, "predicted_downtime_us", number(m->predicted_downtime_us));
	}
	json_decref(r);
	print(j);
}

void report_json_note(const char *event, const struct msg_note *n)
{
	print(json_pack("{s:s, s:o, s:i, s:o, s:o}", "event", event, "host", text(n->host), "pid",
			n->pid, "what", text(n->what), "why", text(n->why)));
}

static json_t *error_of(const struct cr_err *e)
{
	if (e->kind == CR_ERR_NONE)
		return json_null();
	return json_pack("{s:s, s:i, s:o, s:i, s:o}", "kind", cr_err_kind_name(e->kind), "code",
			 e->code, "stage", text(e->stage), "pid", e->pid, "message", text(e->msg));
}

static json_t *phases_of(const struct msg_phases *p)
{
	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "freeze", number(p->freeze),
			 "last_pages", number(p->last_pages), "capture", number(p->capture),
			 "rebuild", number(p->rebuild), "launch", number(p->launch), "commit",
			 number(p->commit));
}

static json_t *postcopy_of(const struct msg_postcopy *p)
{
	return json_pack("{s:o, s:o, s:{s:o, s:o, s:o}, s:o, s:o, s:o, s:o, s:o, s:o}",
			 "pages_lazy", number(p->pages_lazy), "faults", number(p->faults),
			 "fault_us", "p50", number(p->p50_us), "p99", number(p->p99_us), "max",
			 number(p->max_us), "duration_us", number(p->duration_us), "reconnects",
			 number(p->reconnects), "asked_again", number(p->asked_again),
			 "asked_clean", number(p->asked_clean), "pushed", number(p->pushed), "lost",
			 number(p->lost));
}

void report_json_done(const struct mig_id *id, const struct msg_round *rounds, size_t n,
		      const struct msg_done *d)
{
	char hex[MIG_ID_HEX];
	json_t *list = json_array();

	mig_id_format(id, hex);
	for (size_t i = 0; i < n; i++)
		json_array_append_new(list, round_of(&rounds[i]));
	print(json_pack("{s:s, s:o, s:o}", "event", "stops", "count", number(d->stops),
			"longest_us", number(d->longest_stop_us)));
	json_t *j =
	    json_pack("{s:s, s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "event", "done",
		      "outcome", msg_outcome_name(d->outcome), "migration", hex, "downtime_us",
		      number(d->downtime_us), "total_us", number(d->total_us), "rounds", list,
		      "phases_us", phases_of(&d->phases), "memory_bytes", number(d->memory_bytes),
		      "stop_pages", number(d->stop_pages), "error", error_of(&d->error));
	if (j && d->postcopied)
		json_object_set_new(j, "postcopy", postcopy_of(&d->postcopy));
	print(j);
}

void report_json_status(const char *host, const struct msg_status *s)
{
	char hex[MIG_ID_HEX];
	json_t *pids = json_array();

	mig_id_format(&s->id, hex);
	for (size_t i = 0; i < s->n_pids; i++)
		json_array_append_new(pids, json_integer(s->pids[i]));
	json_t *j =
	    json_pack("{s:s, s:o, s:s, s:o, s:o, s:o, s:o, s:o}", "event", "status", "host",
		      text(host), "migration", hex, "role", text(s->role), "state", text(s->state),
		      "pids", pids, "peer", text(s->peer), "since", number(s->since_sec));
	json_t *p = j && s->postcopying ? postcopy_of(&s->postcopy) : NULL;
	json_t *h = p && s->histogram ? json_array() : NULL;
	for (size_t i = 0; h && i < MSG_HISTOGRAM; i++)
		json_array_append_new(h, number(s->histogram[i]));
	if (h)
		json_object_set_new(p, "fault_us_log2", h);
	json_t *losses = p && s->n_losses ? json_array() : NULL;
	for (size_t i = 0; losses && i < s->n_losses; i++)
		json_array_append_new(
		    losses, json_pack("{s:i, s:o, s:o, s:o}", "pid", s->losses[i].pid, "start",
				      number(s->losses[i].start), "end", number(s->losses[i].end),
				      "pages", number(s->losses[i].pages)));
	if (losses)
		json_object_set_new(p, "losses", losses);
	if (p) {
		json_object_set_new(p, "pages_left", number(s->pages_left));
		json_object_set_new(j, "postcopy", p);
	}
	print(j);
}
