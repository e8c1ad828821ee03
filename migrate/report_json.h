/* The JSON lines of --json. */
#pragma once
#include "wire/msg.h"

void report_json_event(const struct msg_event *e);
void report_json_round(const struct msg_round *m);
void report_json_note(const char *event, const struct msg_note *n);
/* Two lines: the stops, and "done", whose shape scripts rely on. */
void report_json_done(const struct mig_id *id, const struct msg_round *rounds, size_t n,
		      const struct msg_done *d);
void report_json_status(const char *host, const struct msg_status *s);
