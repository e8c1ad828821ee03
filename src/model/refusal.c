#include "model/refusal.h"

#include <stdarg.h>
#include <stdio.h>

static void fill(struct refusal *e, pid_t pid, const char *what, const char *fmt, va_list ap)
{
	e->pid = pid;
	snprintf(e->what, sizeof(e->what), "%s", what);
	vsnprintf(e->why, sizeof(e->why), fmt, ap);
}

void refuse(struct refusals *r, pid_t pid, const char *what, const char *fmt, ...)
{
	vec_foreach (e, &r->list)
		if (e->pid == pid && !strcmp(e->what, what))
			return;
	struct refusal *e = vec_push(&r->list);
	va_list ap;

	if (!e && r->list.n) {
		e = &r->list.v[r->list.n - 1];
		what = "the list of refusals";
		fmt = "out of memory: there are more";
	}
	if (!e)
		abort(); /* nothing at all can be reported: 16 entries could not be allocated */
	va_start(ap, fmt);
	fill(e, pid, what, fmt, ap);
	va_end(ap);
}

void refuse_warn(struct refusals *r, pid_t pid, const char *what, const char *fmt, ...)
{
	vec_foreach (e, &r->warnings)
		if (e->pid == pid && !strcmp(e->what, what))
			return;
	struct refusal *e = vec_push(&r->warnings);
	va_list ap;

	if (!e)
		return; /* a warning may be lost, a refusal not */
	va_start(ap, fmt);
	fill(e, pid, what, fmt, ap);
	va_end(ap);
}

void refusals_done(struct refusals *r)
{
	vec_done(&r->list);
	vec_done(&r->warnings);
	r->passing = false;
}
