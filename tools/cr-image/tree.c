/* tree: the processes of an image, drawn. */
#include <getopt.h>
#include <string.h>
#include "migrate/units.h"
#include "tools/cr-image/cr_image.h"

enum { INDENT_MAX = 400 };

static int usage(FILE *f)
{
	fputs(
	    "usage: cr-image tree [--threads] DIR\n\n"
	    "Draws the process tree: pid and name of each, its threads, open descriptors, and how "
	    "much memory\nof it the image has.\n\n"
	    "  --threads   each thread as well\n",
	    f);
	return f == stdout ? ST_OK : ST_USAGE;
}

struct drawing {
	const struct view *v;
	bool threads;
	char indent[INDENT_MAX]; /* of the children of what is drawn just now */
};

static void print_name(const char *name)
{
	for (; *name; name++)
		putchar((unsigned char)*name < ' ' || *name == 0x7f ? '?' : *name);
}

static void print_process(const struct drawing *d, const struct process *p)
{
	const struct image_target *it = image_find(d->v->im, p->pid, 0, 0);
	char text[UNITS_TEXT];

	printf("%d ", p->pid);
	if (p->zombie) {
		printf("(a zombie, status %#x)\n", (unsigned int)p->exit_status);
		return;
	}
	print_name(process_name(p));
	if (p->n_threads > 1)
		printf("  %zu threads", p->n_threads);
	printf("  %zu descriptors  %s\n", p->n_fds,
	       units_format_bytes((it ? it->data_pages : 0) * CR_PAGE_SIZE, text));
}

static void print_threads(const struct drawing *d, const struct process *p, bool children)
{
	for (size_t i = 1; d->threads && !p->zombie && i < p->n_threads; i++) {
		printf("%s%s thread %d ", d->indent, children ? "│" : " ", p->threads[i].tid);
		print_name(p->threads[i].comm);
		putchar('\n');
	}
}

static size_t next_child(const struct tree *t, pid_t of, size_t from)
{
	while (from < t->n_procs && (t->procs[from].ppid != of || t->procs[from].pid == of))
		from++;
	return from;
}

/* Parents come before children: no process is its own descendant. */
static void draw(struct drawing *d, const struct process *p)
{
	const struct tree *t = d->v->tree;
	size_t n = strlen(d->indent), i = next_child(t, p->pid, 0);

	print_process(d, p);
	print_threads(d, p, i < t->n_procs);
	while (i < t->n_procs) {
		size_t next = next_child(t, p->pid, i + 1);
		bool last = next == t->n_procs;

		printf("%s%s", d->indent, last ? "└─ " : "├─ ");
		if (n + 8 < INDENT_MAX) {
			strcpy(d->indent + n, last ? "   " : "│  ");
			draw(d, &t->procs[i]);
			d->indent[n] = 0;
		} else {
			puts("…");
		}
		i = next;
	}
}

/* Those whose parent is not in the image. */
static void draw_all(struct drawing *d)
{
	const struct tree *t = d->v->tree;

	for (size_t i = 0; i < t->n_procs; i++)
		if (!tree_find_process(t, t->procs[i].ppid) || t->procs[i].ppid == t->procs[i].pid)
			draw(d, &t->procs[i]);
}

int verb_tree(int argc, char **argv)
{
	static const struct option options[] = {
	    {"threads", no_argument, NULL, 't'}, {"help", no_argument, NULL, 'h'}, {0}};
	_cleanup_(view_donep) struct view v = {0};
	struct drawing d = {.v = &v};
	struct cr_err err = {0};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c != 't')
			return usage(c == 'h' ? stdout : stderr);
		d.threads = true;
	}
	if (argc - optind != 1)
		return usage(stderr);
	if (view_open(&v, argv[optind], &err))
		return trouble(&err);
	draw_all(&d);
	return ST_OK;
}
