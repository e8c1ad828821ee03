/* The small text files of a task: stat, status, limits, timers. */
#include "kernel/procfs.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/resource.h>

/* ---- stat ---- */

/* comm is escaped (newline as \n, backslash doubled) since 4.18; ')' and spaces stand as they are.
 */
static void copy_comm(char comm[64], const char *from, const char *to)
{
	size_t n = 0;

	while (from < to && n < 63) {
		if (*from == '\\' && to - from >= 2 && (from[1] == 'n' || from[1] == '\\')) {
			comm[n++] = from[1] == 'n' ? '\n' : '\\';
			from += 2;
		} else {
			comm[n++] = *from++;
		}
	}
	comm[n] = '\0';
}

enum {
	STAT_FIRST = 4,
	STAT_LAST = 52
}; /* fields after the state, numbered as in proc_pid_stat(5) */

static bool stat_numbers(const char *p, uint64_t f[STAT_LAST + 1])
{
	for (int i = STAT_FIRST; i <= STAT_LAST; i++) {
		char *end;

		if (*p != ' ')
			return false;
		/* strtoull takes a minus sign and wraps: what a signed field is cast back from */
		f[i] = strtoull(p, &end, 10);
		if (end == p + 1 || end == p)
			return false;
		p = end;
	}
	return *p == '\n' || *p == ' ';
}

int proc_stat_parse(const char *text, struct proc_stat *out, struct cr_err *err)
{
	const char *open = strchr(text, '('), *close = strrchr(text, ')');
	uint64_t f[STAT_LAST + 1];

	if (!open || !close || close < open || close[1] != ' ' || !close[2] ||
	    !stat_numbers(close + 3, f))
		return cr_err_set(err, CR_ERR_KERNEL, EBADMSG, "stat: not understood: %.100s",
				  text);
	*out = (struct proc_stat){
	    .pid = (pid_t)strtol(text, NULL, 10),
	    .state = close[2],
	    .ppid = (pid_t)f[4],
	    .pgrp = (pid_t)f[5],
	    .session = (pid_t)f[6],
	    /* minor in bits 31 to 20 and 7 to 0, major in 15 to 8 */
	    .tty =
		f[7] ? (uint32_t)makedev(f[7] >> 8 & 0xfff, (f[7] >> 12 & 0xfff00) | (f[7] & 0xff))
		     : 0,
	    .flags = f[9],
	    .nice = (int32_t)f[19],
	    .num_threads = f[20],
	    .starttime = f[22],
	    .rss = f[24],
	    .start_code = f[26],
	    .end_code = f[27],
	    .start_stack = f[28],
	    .exit_signal = (int32_t)f[38],
	    .rt_priority = (int32_t)f[40],
	    .policy = (int32_t)f[41],
	    .start_data = f[45],
	    .end_data = f[46],
	    .start_brk = f[47],
	    .arg_start = f[48],
	    .arg_end = f[49],
	    .env_start = f[50],
	    .env_end = f[51],
	    .exit_code = (int32_t)f[52],
	};
	copy_comm(out->comm, open + 1, close);
	return 0;
}

/* ---- status ---- */

enum field_type { F_HEX64, F_DEC32, F_OCT32, F_BOOL, F_STATE, F_IDS4, F_GROUPS, F_NSPID };

#define AT(m) offsetof(struct proc_status, m)
static const struct status_field {
	const char *key;
	enum field_type type;
	size_t at;
	bool always; /* every task has it, zombies included, on every kernel from 6.1 */
} status_fields[] = {
    {"Umask", F_OCT32, AT(umask), false}, /* not without fs */
    {"State", F_STATE, AT(state), true},
    {"Tgid", F_DEC32, AT(tgid), true},
    {"PPid", F_DEC32, AT(ppid), true},
    {"TracerPid", F_DEC32, AT(tracer), true},
    {"Uid", F_IDS4, AT(uid), true},
    {"Gid", F_IDS4, AT(gid), true},
    {"Groups", F_GROUPS, 0, true},
    {"NSpid", F_NSPID, 0, false},                    /* CONFIG_PID_NS */
    {"THP_enabled", F_BOOL, AT(thp_enabled), false}, /* not without mm */
    {"Threads", F_DEC32, AT(threads), true},
    {"SigPnd", F_HEX64, AT(sig_pnd), true},
    {"ShdPnd", F_HEX64, AT(shd_pnd), true},
    {"SigBlk", F_HEX64, AT(sig_blk), true},
    {"SigIgn", F_HEX64, AT(sig_ign), true},
    {"SigCgt", F_HEX64, AT(sig_cgt), true},
    {"CapInh", F_HEX64, AT(cap_inh), true},
    {"CapPrm", F_HEX64, AT(cap_prm), true},
    {"CapEff", F_HEX64, AT(cap_eff), true},
    {"CapBnd", F_HEX64, AT(cap_bnd), true},
    {"CapAmb", F_HEX64, AT(cap_amb), true},
    {"NoNewPrivs", F_BOOL, AT(no_new_privs), true},
    {"Seccomp", F_DEC32, AT(seccomp), false}, /* CONFIG_SECCOMP */
};
#undef AT

/* The next decimal number of the line; false at its end. */
static bool next_number(const char **p, long long *ret)
{
	char *end;

	while (**p == ' ' || **p == '\t')
		++*p;
	if (**p == '\n' || !**p)
		return false;
	*ret = strtoll(*p, &end, 10);
	if (end == *p)
		return false;
	*p = end;
	return true;
}

static bool take_ids4(const char *p, uint32_t ids[4])
{
	long long v;

	for (int i = 0; i < 4; i++) {
		if (!next_number(&p, &v))
			return false;
		ids[i] = (uint32_t)v;
	}
	return true;
}

static int take_list(struct proc_status *out, enum field_type type, const char *p)
{
	long long v;

	while (next_number(&p, &v)) {
		if (type == F_GROUPS) {
			uint32_t *g = vec_push(&out->groups);

			if (!g)
				return -ENOMEM;
			*g = (uint32_t)v;
		} else {
			int32_t *id = vec_push(&out->nspid);

			if (!id)
				return -ENOMEM;
			*id = (int32_t)v;
		}
	}
	return *p == '\n' ? 0 : -EBADMSG;
}

/* p: after "Key:"; the line is known to end in a newline. */
static int take_field(const struct status_field *f, const char *p, struct proc_status *out)
{
	void *at = (char *)out + f->at;
	char *end;

	while (*p == ' ' || *p == '\t')
		p++;
	switch (f->type) {
	case F_STATE:
		*(char *)at = *p;
		return *p == '\n' ? -EBADMSG : 0;
	case F_IDS4:
		return take_ids4(p, at) ? 0 : -EBADMSG;
	case F_GROUPS:
	case F_NSPID:
		return take_list(out, f->type, p);
	case F_HEX64:
		*(uint64_t *)at = strtoull(p, &end, 16);
		break;
	case F_OCT32:
		*(uint32_t *)at = (uint32_t)strtoul(p, &end, 8);
		break;
	case F_DEC32:
		*(int32_t *)at = (int32_t)strtol(p, &end, 10);
		break;
	case F_BOOL:
	default:
		*(bool *)at = strtol(p, &end, 10) != 0;
		break;
	}
	return end != p && *end == '\n' ? 0 : -EBADMSG;
}

static int parse_status(const char *text, struct proc_status *out, struct cr_err *err)
{
	uint64_t seen = 0;

	for (const char *p = text; *p;) {
		const char *eol = strchr(p, '\n'),
			   *colon = eol ? memchr(p, ':', (size_t)(eol - p)) : NULL;

		if (!eol)
			return cr_err_set(err, CR_ERR_KERNEL, EBADMSG, "status: cut off at: %.60s",
					  p);
		for (size_t i = 0; colon && i < ARRAY_SIZE(status_fields); i++) {
			const struct status_field *f = &status_fields[i];

			if (seen & 1ull << i || strlen(f->key) != (size_t)(colon - p) ||
			    memcmp(f->key, p, (size_t)(colon - p)) != 0)
				continue;
			int r = take_field(f, colon + 1, out);
			if (r == -ENOMEM)
				return cr_err_oom(err);
			if (r < 0)
				return cr_err_set(err, CR_ERR_KERNEL, EBADMSG,
						  "status: not understood: %.*s",
						  eol - p < 100 ? (int)(eol - p) : 100, p);
			seen |= 1ull << i;
			break;
		}
		p = eol + 1;
	}
	for (size_t i = 0; i < ARRAY_SIZE(status_fields); i++) {
		if (status_fields[i].always && !(seen & 1ull << i))
			return cr_err_set(err, CR_ERR_KERNEL, EBADMSG, "status: no %s line",
					  status_fields[i].key);
	}
	return 0;
}

int proc_status_parse(const char *text, struct proc_status *out, struct cr_err *err)
{
	memset(out, 0, sizeof(*out));
	out->thp_enabled = true;
	int r = parse_status(text, out, err);
	if (r < 0)
		proc_status_done(out);
	return r;
}

void proc_status_done(struct proc_status *s)
{
	vec_done(&s->groups);
	vec_done(&s->nspid);
}

/* ---- limits ---- */

static const char *const limit_names[16] = {
    [RLIMIT_CPU] = "Max cpu time",
    [RLIMIT_FSIZE] = "Max file size",
    [RLIMIT_DATA] = "Max data size",
    [RLIMIT_STACK] = "Max stack size",
    [RLIMIT_CORE] = "Max core file size",
    [RLIMIT_RSS] = "Max resident set",
    [RLIMIT_NPROC] = "Max processes",
    [RLIMIT_NOFILE] = "Max open files",
    [RLIMIT_MEMLOCK] = "Max locked memory",
    [RLIMIT_AS] = "Max address space",
    [RLIMIT_LOCKS] = "Max file locks",
    [RLIMIT_SIGPENDING] = "Max pending signals",
    [RLIMIT_MSGQUEUE] = "Max msgqueue size",
    [RLIMIT_NICE] = "Max nice priority",
    [RLIMIT_RTPRIO] = "Max realtime priority",
    [RLIMIT_RTTIME] = "Max realtime timeout",
};

static bool take_limit(const char **p, uint64_t *ret)
{
	static const char unlimited[] = "unlimited";
	char *end;

	while (**p == ' ')
		++*p;
	if (!strncmp(*p, unlimited, sizeof(unlimited) - 1)) {
		*ret = RLIM_INFINITY;
		*p += sizeof(unlimited) - 1;
	} else {
		if (**p < '0' || **p > '9')
			return false;
		*ret = strtoull(*p, &end, 10);
		*p = end;
	}
	return **p == ' ' || **p == '\n';
}

int proc_limits_parse(const char *text, struct proc_rlimit out[16], struct cr_err *err)
{
	unsigned int seen = 0;

	for (const char *p = text; *p;) {
		const char *eol = strchr(p, '\n');

		if (!eol)
			return cr_err_set(err, CR_ERR_KERNEL, EBADMSG, "limits: cut off at: %.60s",
					  p);
		for (size_t i = 0; i < ARRAY_SIZE(limit_names); i++) {
			size_t len = strlen(limit_names[i]);
			const char *v = p + len;

			if (strncmp(p, limit_names[i], len) != 0 || *v != ' ')
				continue;
			if (!take_limit(&v, &out[i].cur) || !take_limit(&v, &out[i].max))
				return cr_err_set(err, CR_ERR_KERNEL, EBADMSG,
						  "limits: not understood: %.100s", p);
			seen |= 1u << i;
		}
		p = eol + 1;
	}
	for (size_t i = 0; i < ARRAY_SIZE(limit_names); i++) {
		if (!(seen & 1u << i))
			return cr_err_set(err, CR_ERR_KERNEL, EBADMSG, "limits: no line \"%s\"",
					  limit_names[i]);
	}
	return 0;
}

/* ---- timers ---- */

enum { TIMER_LINE_MAX = 96 };

static bool take_notify(const char *p, struct proc_timer *t)
{
	static const struct {
		const char *name;
		int value;
	} kinds[] = {{"signal/", SIGEV_SIGNAL}, {"none/", SIGEV_NONE}, {"thread/", SIGEV_THREAD}};

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		size_t len = strlen(kinds[i].name);
		int id;
		char who[4];

		if (strncmp(p, kinds[i].name, len) != 0)
			continue;
		if (sscanf(p + len, "%3[a-z].%d", who, &id) != 2)
			return false;
		t->notify = kinds[i].value;
		if (!strcmp(who, "tid")) {
			t->notify |= SIGEV_THREAD_ID;
			t->notify_tid = id;
		}
		return !strcmp(who, "tid") || !strcmp(who, "pid");
	}
	return false;
}

/* A timer is four lines: ID, signal, notify, ClockID; the last one completes it. */
static bool take_timer_line(const char *p, struct proc_timer *t, unsigned int *have)
{
	unsigned long long sigval;

	if (!strncmp(p, "signal: ", 8) && *have == 1) {
		*have = 2;
		if (sscanf(p + 8, "%d/%llx", &t->signo, &sigval) != 2)
			return false;
		t->sigval = sigval;
	} else if (!strncmp(p, "notify: ", 8) && *have == 2) {
		*have = 3;
		return take_notify(p + 8, t);
	} else if (!strncmp(p, "ClockID: ", 9) && *have == 3) {
		*have = 0;
		return sscanf(p + 9, "%d", &t->clockid) == 1;
	} else {
		return false;
	}
	return true;
}

/* One line of the text at p, without its newline; false when it is longer than any of them or cut
 * off. */
static bool copy_line(const char *p, const char *eol, char line[TIMER_LINE_MAX])
{
	if (!eol || eol - p >= TIMER_LINE_MAX)
		return false;
	memcpy(line, p, (size_t)(eol - p));
	line[eol - p] = '\0';
	return true;
}

static int parse_timers(const char *text, struct proc_timers *out, struct cr_err *err)
{
	struct proc_timer *t = NULL;
	unsigned int have = 0; /* lines of the current timer */

	for (const char *p = text, *eol; *p; p = eol + 1) {
		char line[TIMER_LINE_MAX];

		eol = strchr(p, '\n');
		bool ok = copy_line(p, eol, line);
		if (ok && !have) {
			t = vec_push(&out->list);
			if (!t)
				return cr_err_oom(err);
			have = 1;
			ok = sscanf(line, "ID: %d", &t->id) == 1;
		} else if (ok) {
			ok = take_timer_line(line, t, &have);
		}
		if (!ok)
			return cr_err_set(err, CR_ERR_KERNEL, EBADMSG,
					  "timers: not understood: %.60s", p);
	}
	if (have)
		return cr_err_set(err, CR_ERR_KERNEL, EBADMSG, "timers: cut off");
	return 0;
}

int proc_timers_parse(const char *text, struct proc_timers *out, struct cr_err *err)
{
	memset(out, 0, sizeof(*out));
	int r = parse_timers(text, out, err);
	if (r < 0)
		vec_done(&out->list);
	return r;
}
