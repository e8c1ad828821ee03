#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include "agent/agent.h"
#include "kernel/features.h"

static int usage(FILE *f)
{
	fputs("usage: cr-agent check [--json]\n\n"
	      "What this kernel and the agent's privileges offer, and what each missing thing "
	      "costs.\n"
	      "Exit status: 0 when tasks can be moved, 1 when something required is missing.\n",
	      f);
	return f == stdout ? 0 : 2;
}

static json_t *feature_json(const struct feature *x)
{
	json_t *o = json_pack("{s:s, s:b, s:b, s:s}", "name", x->name, "present", x->present,
			      "required", x->required, "without", x->without);

	if (o && x->detail[0])
		json_object_set_new(o, "detail", json_string(x->detail));
	return o;
}

static int print_json(const struct features *f, const char *release)
{
	json_t *list = json_array();
	json_t *root = json_pack("{s:s, s:b, s:o}", "kernel", release, "enough", features_enough(f),
				 "features", list);

	for (size_t i = 0; i < f->n; i++)
		json_array_append_new(list, feature_json(&f->list[i]));
	int r = root ? json_dumpf(root, stdout, JSON_INDENT(2)) : -1;
	putchar('\n');
	json_decref(root);
	return r || fflush(stdout) ? 1 : 0;
}

static void print_text(const struct features *f, const char *release)
{
	printf("Linux %s\n", release);
	for (size_t i = 0; i < f->n; i++) {
		const struct feature *x = &f->list[i];
		const char *word = x->present ? "yes" : x->required ? "NO" : "no";

		printf("  %-24s %-4s%s\n", x->name, word, x->detail);
		if (!x->present)
			printf("  %-24s     %s\n", "", x->without);
	}
	puts(features_enough(f) ? "Tasks can be moved from and to this host."
				: "Tasks cannot be moved: what is marked NO is required.");
}

int verb_check(int argc, char **argv)
{
	static const struct option options[] = {
	    {"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {0}};
	struct features f;
	bool json = false;
	struct utsname u;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'h')
			return usage(stdout);
		if (c != 'j')
			return usage(stderr);
		json = true;
	}
	if (optind < argc)
		return usage(stderr);
	uname(&u);
	features_probe(&f);
	if (json && print_json(&f, u.release))
		return 1;
	if (!json)
		print_text(&f, u.release);
	return features_enough(&f) ? 0 : 1;
}
