/* The tree has long lists as columns of numbers, each named with what it is short for. Here they
 * become rows: "gap_pages": [4, 0], "prot": [1, 3] … turn into "vmas": [{"start": …, "prot":
 * "r--"}, …]. A column that is in no table here stays as it is. */
#include <string.h>
#include <sys/mman.h>
#include "tools/cr-image/cr_image.h"

enum how { AS_IS, PAGES, PROT, VMA_KIND, ONE_LESS, NAME, RESOURCE, HEX };

struct column {
	const char *field, *as;
	enum how how;
};

/* ---- one value ---- */

static const char *const resources[] = {
    "cpu",     "fsize", "data",  "stack",      "core",     "rss",  "nproc",  "nofile",
    "memlock", "as",    "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime"};

static json_t *prot_text(json_int_t p)
{
	char text[] = {p & PROT_READ ? 'r' : '-', p & PROT_WRITE ? 'w' : '-',
		       p & PROT_EXEC ? 'x' : '-', 0};

	return json_string(text);
}

static json_t *vma_kind(json_int_t k)
{
	static const char *const names[] = {[VMA_ANON] = "anonymous",
					    [VMA_SHARED_OBJ] = "shared-object",
					    [VMA_FILE_PRIVATE] = "file-private",
					    [VMA_FILE_SHARED] = "file-shared",
					    [VMA_VDSO] = "vdso",
					    [VMA_VSYSCALL] = "vsyscall"};

	return (size_t)k < ARRAY_SIZE(names) && names[k] ? json_string(names[k]) : json_integer(k);
}

static uint64_t number(const json_t *j)
{
	return json_is_integer(j)
		   ? (uint64_t)json_integer_value(j)
		   : strtoull(json_string_value(j) ? json_string_value(j) : "0", NULL, 16);
}

static json_t *hex_text(uint64_t n)
{
	char text[24];

	snprintf(text, sizeof(text), "%#llx", (unsigned long long)n);
	return json_string(text);
}

/* NULL: nothing is to be shown. */
static json_t *value(const struct column *c, const json_t *v, const json_t *names)
{
	uint64_t n = number(v);

	switch (c->how) {
	case PAGES:
		return n ? hex_text(n * CR_PAGE_SIZE) : NULL;
	case HEX:
		return n ? hex_text(n) : NULL;
	case PROT:
		return prot_text((json_int_t)n);
	case VMA_KIND:
		return vma_kind((json_int_t)n);
	case ONE_LESS: /* an index that counts from 1 */
		return n ? json_of_number(n - 1) : NULL;
	case NAME:
		return n ? json_incref(json_array_get(names, n - 1)) : NULL;
	case RESOURCE:
	case AS_IS:
		break;
	}
	return json_is_false(v) || (json_is_integer(v) && !n) ? NULL : json_incref((json_t *)v);
}

/* ---- tables ---- */

/* Takes the columns out of o; NULL if they are not there or differ in length. */
static json_t *table(json_t *o, const struct column *cols, size_t n_cols)
{
	const json_t *names = json_object_get(o, "names");
	size_t n = json_array_size(json_object_get(o, cols[0].field));
	json_t *rows;

	for (size_t c = 0; c < n_cols; c++) {
		const json_t *col = json_object_get(o, cols[c].field);

		if (!n || (col && json_array_size(col) != n))
			return NULL;
	}
	rows = json_array();
	for (size_t i = 0; i < n; i++) {
		json_t *row = json_object();

		for (size_t c = 0; c < n_cols; c++) {
			const json_t *v = json_array_get(json_object_get(o, cols[c].field), i);
			json_t *shown = v ? value(&cols[c], v, names) : NULL;

			if (shown)
				json_object_set_new(row, cols[c].as, shown);
		}
		json_array_append_new(rows, row);
	}
	for (size_t c = 0; c < n_cols; c++)
		json_object_del(o, cols[c].field);
	return rows;
}

/* "start" and "end" instead of the distance to the one before and the length, first in the row. */
static void ranges(json_t *rows)
{
	uint64_t at = 0;

	for (size_t i = 0; i < json_array_size(rows); i++) {
		json_t *row = json_array_get(rows, i), *with = json_object();

		at += number(json_object_get(row, "gap"));
		json_object_set_new(with, "start", hex_text(at));
		at += number(json_object_get(row, "length"));
		json_object_set_new(with, "end", hex_text(at));
		json_object_del(row, "gap");
		json_object_del(row, "length");
		json_object_update(with, row);
		json_array_set_new(rows, i, with);
	}
}

static void descriptors(json_t *rows)
{
	json_int_t at = -1;

	for (size_t i = 0; i < json_array_size(rows); i++) {
		json_t *row = json_array_get(rows, i), *with = json_object();

		at += (json_int_t)number(json_object_get(row, "gap")) + 1;
		json_object_set_new(with, "fd", json_integer(at));
		json_object_del(row, "gap");
		json_object_update(with, row);
		json_array_set_new(rows, i, with);
	}
}

/* Rows that are numbered by where they are: the number shows, and those that say nothing go. */
static void numbered(json_t *rows, const char *key, const char *const *names, json_int_t first)
{
	for (size_t i = json_array_size(rows); i-- > 0;) {
		json_t *row = json_array_get(rows, i), *with = json_object();

		if (!json_object_size(row)) {
			json_array_remove(rows, i);
			json_decref(with);
			continue;
		}
		json_object_set_new(
		    with, key, names ? json_string(names[i]) : json_integer(first + (json_int_t)i));
		json_object_update(with, row);
		json_array_set_new(rows, i, with);
	}
}

static void set_rows(json_t *o, const char *name, json_t *rows)
{
	if (rows)
		json_object_set_new(o, name, rows);
}

static void rows_of_mm(json_t *mm)
{
	static const struct column vmas[] = {
	    {"gap_pages", "gap", PAGES},    {"length_pages", "length", PAGES},
	    {"prot", "prot", PROT},         {"kind", "kind", VMA_KIND},
	    {"name", "name", NAME},         {"file", "mapped_file", ONE_LESS},
	    {"object", "object", ONE_LESS}, {"offset_pages", "offset", PAGES},
	    {"flags", "flags", HEX},        {"ino", "ino", AS_IS},
	    {"dev", "dev", AS_IS},
	};
	static const struct column guards[] = {{"guard_gap_pages", "gap", PAGES},
					       {"guard_length_pages", "length", PAGES}};
	json_t *v = table(mm, vmas, ARRAY_SIZE(vmas)), *g = table(mm, guards, ARRAY_SIZE(guards));

	if (v) {
		ranges(v);
		json_object_del(mm, "names");
	}
	if (g)
		ranges(g);
	set_rows(mm, "vmas", v);
	set_rows(mm, "guards", g);
}

static void rows_of_process(json_t *p)
{
	static const struct column signals[] = {{"sig_handler", "handler", AS_IS},
						{"sig_flags", "flags", AS_IS},
						{"sig_restorer", "restorer", AS_IS},
						{"sig_mask", "mask", AS_IS}};
	static const struct column limits[] = {{"rlim_cur", "cur", AS_IS},
					       {"rlim_max", "max", AS_IS}};
	static const struct column itimers[] = {{"itimer_interval_us", "interval_us", AS_IS},
						{"itimer_value_us", "value_us", AS_IS}};
	static const struct column fds[] = {{"fd_gap", "gap", AS_IS},
					    {"fd_file", "file", ONE_LESS},
					    {"fd_cloexec", "cloexec", AS_IS}};
	static const char *const clocks[] = {"real", "virtual", "prof"};
	json_t *s = table(p, signals, ARRAY_SIZE(signals));
	json_t *l = table(p, limits, ARRAY_SIZE(limits));
	json_t *t = table(p, itimers, ARRAY_SIZE(itimers));
	json_t *f = table(p, fds, ARRAY_SIZE(fds));

	if (s)
		numbered(s, "signo", NULL, 1);
	if (l && json_array_size(l) <= ARRAY_SIZE(resources))
		numbered(l, "resource", resources, 0);
	if (t && json_array_size(t) <= ARRAY_SIZE(clocks))
		numbered(t, "clock", clocks, 0);
	if (f)
		descriptors(f);
	set_rows(p, "sigactions", s);
	set_rows(p, "rlimits", l);
	set_rows(p, "itimers", t);
	set_rows(p, "fds", f);
}

static void rows_of_file(json_t *f)
{
	static const struct column targets[] = {{"target_fd", "fd", AS_IS},
						{"target_file", "file", ONE_LESS},
						{"target_events", "events", HEX},
						{"target_data", "data", AS_IS}};

	set_rows(f, "targets", table(f, targets, ARRAY_SIZE(targets)));
}

void rows_of_columns(json_t *tree)
{
	const json_t *procs = json_object_get(tree, "procs"),
		     *files = json_object_get(tree, "files");

	for (size_t i = 0; i < json_array_size(procs); i++) {
		json_t *p = json_array_get(procs, i), *mm = json_object_get(p, "mm");

		rows_of_process(p);
		if (mm)
			rows_of_mm(mm);
	}
	for (size_t i = 0; i < json_array_size(files); i++)
		rows_of_file(json_array_get(files, i));
}
