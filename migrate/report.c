#include "migrate/report.h"

#include <string.h>

#include "migrate/report_json.h"
#include "migrate/units.h"

void report_done_with(struct report *r)
{
	vec_done(&r->rounds);
}

static void flush(void)
{
	fflush(stdout);
}

void report_event(struct report *r, const struct msg_event *e)
{
	if (r->json)
		report_json_event(e);
	else if (*e->text)
		printf("%s: %s\n", e->name, e->text);
	else
		printf("%s\n", e->name);
	flush();
}

void report_notice(struct report *r, const char *name, const char *fmt, ...)
{
	char text[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	struct msg_event e = {.name = name, .text = text};
	report_event(r, &e);
}

static void print_round(const struct report *r, const struct msg_round *m)
{
	char wire[UNITS_TEXT], rate[UNITS_TEXT], time[UNITS_TEXT], down[UNITS_TEXT];

	units_format_bytes(m->bytes_wire, wire);
	units_format_bytes(m->rate, rate);
	units_format_us(m->duration_us, time);
	units_format_us(m->predicted_downtime_us, down);
	if (r->terminal && r->rounds.n == 1)
		printf("round   written      sent       bytes        time          rate  downtime "
		       "if now\n");
	if (r->terminal)
		printf("%5u %9llu %9llu %11s %11s %11s/s %16s\n", m->round,
		       (unsigned long long)m->pages_written, (unsigned long long)m->pages_sent,
		       wire, time, rate, down);
	else
		printf("round %u: %llu pages written, %llu sent, %s in %s, %s/s, predicted "
		       "downtime %s\n",
		       m->round, (unsigned long long)m->pages_written,
		       (unsigned long long)m->pages_sent, wire, time, rate, down);
}

void report_round(struct report *r, const struct msg_round *m)
{
	struct msg_round *kept = vec_push(&r->rounds);

	if (kept)
		*kept = *m;
	if (r->json)
		report_json_round(m);
	else
		print_round(r, m);
	flush();
}

static void print_note(const char *prefix, const struct msg_note *n)
{
	fprintf(stderr, "%s%s: ", prefix, *n->host ? n->host : "?");
	if (n->pid)
		fprintf(stderr, "pid %d: ", n->pid);
	fprintf(stderr, "%s: %s\n", n->what, n->why);
}

void report_refused(struct report *r, const struct msg_notes *n)
{
	for (size_t i = 0; i < n->n; i++) {
		if (r->json)
			report_json_note("refused", &n->v[i]);
		else
			print_note("", &n->v[i]);
	}
	r->n_refused += n->n;
	flush();
}

void report_warning(struct report *r, const struct msg_notes *n)
{
	for (size_t i = 0; i < n->n; i++) {
		if (r->json)
			report_json_note("warning", &n->v[i]);
		else
			print_note("warning: ", &n->v[i]);
	}
	flush();
}

void report_loss(struct report *r, const struct msg_loss *l)
{
	char where[64], why[100];
	struct msg_note note = {r->dest, l->pid, where, why};

	snprintf(where, sizeof(where), "%#llx-%#llx", (unsigned long long)l->start,
		 (unsigned long long)l->end);
	snprintf(why, sizeof(why),
		 "%llu pages are lost with the source: SIGBUS for who touches them",
		 (unsigned long long)l->pages);
	report_warning(r, &(struct msg_notes){&note, 1});
}

/* ---- the end ---- */

static void print_error(const struct cr_err *e)
{
	if (e->kind == CR_ERR_NONE)
		return;
	fputs("cr-migrate: ", stderr);
	if (e->stage[0])
		fprintf(stderr, "%s: ", e->stage);
	/* most messages name the process themselves */
	char name[16];
	snprintf(name, sizeof(name), "%d", e->pid);
	if (e->pid && !strstr(e->msg, name))
		fprintf(stderr, "pid %d: ", e->pid);
	fprintf(stderr, "%s\n", e->msg);
}

static void subject(const struct report *r, char *buf, size_t size)
{
	if (r->pid)
		snprintf(buf, size, "process %d", r->pid);
	else
		snprintf(buf, size, "cgroup %s", r->cgroup);
}

static void print_part(const char *name, uint64_t us)
{
	char text[UNITS_TEXT];

	printf("  %-10s %10s\n", name, units_format_us(us, text));
}

static void print_moved(const struct report *r, const struct msg_done *d, const char *what)
{
	char down[UNITS_TEXT], total[UNITS_TEXT], memory[UNITS_TEXT], stop[UNITS_TEXT];
	char subj[512];

	subject(r, subj, sizeof(subj));
	units_format_us(d->downtime_us, down);
	units_format_us(d->total_us, total);
	units_format_bytes(d->memory_bytes, memory);
	printf("%s %s from %s to %s: %s of memory in %s\n", what, subj, r->source, r->dest, memory,
	       total);
	if (d->stops)
		printf("stopped before the switch-over: %u time%s, %s at the longest\n", d->stops,
		       d->stops == 1 ? "" : "s", units_format_us(d->longest_stop_us, stop));
	if (d->downtime_us) {
		printf("downtime %s, of it\n", down);
		print_part("freeze", d->phases.freeze);
		print_part("last pages", d->phases.last_pages);
		print_part("capture", d->phases.capture);
		print_part("rebuild", d->phases.rebuild);
		print_part("launch", d->phases.launch);
		print_part("commit", d->phases.commit);
	} else { /* the source did not live to tell */
		printf("downtime unknown\n");
	}
	if (d->postcopied && d->postcopy.lost)
		fprintf(stderr,
			"cr-migrate: %llu pages are lost with %s: SIGBUS for who touches them\n",
			(unsigned long long)d->postcopy.lost, r->source);
	if (d->postcopied)
		printf(
		    "fetched after the switch-over: %llu pages in %s; tasks waited for %llu "
		    "(p50 %llu us, p99 %llu us, max %llu us)\n",
		    (unsigned long long)d->postcopy.pages_lazy,
		    units_format_us(d->postcopy.duration_us, total),
		    (unsigned long long)d->postcopy.faults, (unsigned long long)d->postcopy.p50_us,
		    (unsigned long long)d->postcopy.p99_us, (unsigned long long)d->postcopy.max_us);
}

static void print_in_doubt(const struct report *r)
{
	char id[MIG_ID_HEX];

	mig_id_format(&r->id, id);
	fprintf(stderr,
		"cr-migrate: in doubt: the agents did not say where the tasks are. They go on "
		"trying to "
		"settle it by themselves; see\n"
		"  cr-migrate status\n"
		"By hand: if the tasks run at %s,\n"
		"  cr-migrate resolve %s --commit %s\n"
		"if they do not, first at %s, then at %s,\n"
		"  cr-migrate resolve %s --abort %s\n"
		"  cr-migrate resolve %s --abort %s\n"
		"if %s is dead for good,\n"
		"  cr-migrate resolve %s --take-over %s\n",
		r->dest, id, r->source, r->dest, r->source, id, r->dest, id, r->source, r->source,
		id, r->dest);
}

static void print_outcome(const struct report *r, const struct msg_done *d)
{
	char subj[512];

	subject(r, subj, sizeof(subj));
	/* refusals have been told one by one */
	if (d->outcome != MSG_OUTCOME_REFUSED || !r->n_refused)
		print_error(&d->error);
	switch (d->outcome) {
	case MSG_OUTCOME_MIGRATED:
		print_moved(r, d, r->leave_running ? "copied" : "migrated");
		break;
	case MSG_OUTCOME_REHEARSED:
		print_moved(r, d, "rehearsed moving");
		printf("undone: %s runs on at %s\n", subj, r->source);
		break;
	case MSG_OUTCOME_FAILED:
		fprintf(stderr, "cr-migrate: failed: nothing moved, %s is as before\n", r->source);
		break;
	case MSG_OUTCOME_REFUSED:
		fprintf(stderr,
			"cr-migrate: refused: %zu thing%s cannot move; nothing was touched\n",
			r->n_refused, r->n_refused == 1 ? "" : "s");
		break;
	case MSG_OUTCOME_IN_DOUBT:
		print_in_doubt(r);
		break;
	}
}

void report_outcome(struct report *r, const struct msg_done *d)
{
	if (r->json)
		report_json_done(&r->id, r->rounds.v, r->rounds.n, d);
	else
		print_outcome(r, d);
	flush();
}
