#include <getopt.h>
#include <string.h>
#include "base/version.h"
#include "tools/cr-image/cr_image.h"
#include "wire/tree_codec.h"

static const struct verb {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *help;
} verbs[] = {
    {"ls", verb_ls, "what an image holds, or which images a directory holds"},
    {"show", verb_show, "a record as JSON"},
    {"verify", verb_verify, "check every digest"},
    {"diff", verb_diff, "what differs between two images"},
    {"mem", verb_mem, "memory of a process"},
    {"tree", verb_tree, "the processes"},
};

static int usage(FILE *f)
{
	fputs("usage: cr-image VERB [OPTION…] DIR…\n\n"
	      "Looks into image directories; never writes to them.\n\n",
	      f);
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		fprintf(f, "  %-8s %s\n", verbs[i].name, verbs[i].help);
	fputs("\n  cr-image VERB --help tells more.\n\n"
	      "Exit status: 0 fine, 1 diff: they differ, verify: damaged, 2 usage, 3 could not be "
	      "done:\nnot there, in use, damaged, or of a newer version of the format.\n",
	      f);
	return f == stdout ? ST_OK : ST_USAGE;
}

int trouble(const struct cr_err *err)
{
	fprintf(stderr, "cr-image: %s\n", err->msg);
	return ST_TROUBLE;
}

int each_directory(int argc, char **argv, int (*how)(FILE *f), int (*do_it)(const char *path))
{
	static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {0}};
	int c, status = ST_OK;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
		return how(c == 'h' ? stdout : stderr);
	if (optind == argc)
		return how(stderr);
	for (int i = optind; i < argc; i++) {
		int r = do_it(argv[i]);

		status = r > status ? r : status;
	}
	return status;
}

int view_open(struct view *v, const char *path, struct cr_err *err)
{
	*v = (struct view){0};
	int r = image_open(&v->im, path, err);

	if (r)
		return r;
	if (v->im->state == IMAGE_RECEIVING)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL,
				  "image %s: left while it was received: nobody knows what its "
				  "pages are",
				  path);
	if (!v->im->tree)
		return cr_err_set(err, CR_ERR_INPUT, ENODATA, "image %s: no tree yet", path);
	r = tree_decode(v->im->tree, v->im->tree_len, &v->tree, err);
	return r ? cr_err_ctx(err, "image %s: tree", path) : 0;
}

void view_done(struct view *v)
{
	image_free(v->im);
	tree_free(v->tree);
	*v = (struct view){0};
}

const char *process_name(const struct process *p)
{
	return p->n_threads ? p->threads[0].comm : "";
}

static const struct shared_object *object_of(const struct image_target *it, const struct tree *t)
{
	for (size_t i = 0; t && i < t->n_objects; i++)
		if (t->objects[i].ino == it->ino && t->objects[i].dev == it->dev)
			return &t->objects[i];
	return NULL;
}

const char *target_text(const struct image_target *it, const struct tree *t, char buf[TARGET_TEXT])
{
	static const char *const kinds[] = {[OBJ_SHARED_ANON] = "shared memory",
					    [OBJ_MEMFD] = "memfd",
					    [OBJ_SYSV_SHM] = "System V segment",
					    [OBJ_UNLINKED] = "removed file"};
	const struct process *p = it->pid && t ? tree_find_process(t, it->pid) : NULL;
	const struct shared_object *o = it->pid ? NULL : object_of(it, t);

	if (it->pid && p)
		snprintf(buf, TARGET_TEXT, "process %d (%s)", it->pid, process_name(p));
	else if (it->pid)
		snprintf(buf, TARGET_TEXT, "process %d", it->pid);
	else if (o)
		snprintf(buf, TARGET_TEXT, "%s %.80s",
			 o->kind < ARRAY_SIZE(kinds) && kinds[o->kind] ? kinds[o->kind] : "object",
			 o->name ? o->name : "");
	else
		snprintf(buf, TARGET_TEXT, "shared memory, inode %llu",
			 (unsigned long long)it->ino);
	for (char *c = buf; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = '?';
	return buf;
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return usage(stderr);
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "help"))
		return usage(stdout);
	if (!strcmp(argv[1], "--version")) {
		puts("cr-image " CR_VERSION);
		return ST_OK;
	}
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (!strcmp(argv[1], verbs[i].name))
			return verbs[i].run(argc - 1, argv + 1);
	fprintf(stderr, "cr-image: unknown verb '%s'\n", argv[1]);
	return usage(stderr);
}
