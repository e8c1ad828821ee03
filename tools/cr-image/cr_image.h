/* cr-image: looks into image directories. What its verbs share.
 *
 * A verb parses its own options and returns the program's exit status. Nothing is ever written to
 * an image; it is locked for reading, so a migration that writes to it has to end first. */
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include "image/image.h"

enum status {
	ST_OK = 0,
	ST_DIFFERENT = 1, /* diff: they differ; verify: damaged */
	ST_USAGE = 2,
	ST_TROUBLE = 3, /* not there, in use, damaged, newer: could not be done */
};

int verb_ls(int argc, char **argv);
int verb_show(int argc, char **argv);
int verb_verify(int argc, char **argv);
int verb_diff(int argc, char **argv);
int verb_mem(int argc, char **argv);
int verb_tree(int argc, char **argv);

/* Says what went wrong, on stderr; returns ST_TROUBLE. */
int trouble(const struct cr_err *err);
/* For a verb that takes directories and no options, `how` telling so: do_it for each; the worst
 * status. */
int each_directory(int argc, char **argv, int (*how)(FILE *f), int (*do_it)(const char *path));

/* An image that is complete as far as it goes, with its tree; one that is being received has
 * neither. Errors as image_open(), and INPUT if there is no tree. */
struct view {
	struct image *im;
	struct tree *tree;
};
int view_open(struct view *v, const char *path, struct cr_err *err) must_check;
void view_done(struct view *v);

/* "process 42 (redis-server)", "shared memory /dev/shm/x": whose pages a target has. t may be NULL.
 */
enum { TARGET_TEXT = 128 };
const char *target_text(const struct image_target *it, const struct tree *t, char buf[TARGET_TEXT]);
const char *process_name(const struct process *p); /* its comm */

/* json.c: the tree as it is in the image, whatever its fields are. all: fields with their default
 * values, too. Numbers above 2^53, which readers of JSON round, are strings "0x…"; bytes are
 * hexadecimal digits. Errors: INPUT. */
int json_of_tree(const struct image *im, bool all, json_t **ret, struct cr_err *err) must_check;
int json_of_manifest(const struct image *im, bool all, json_t **ret, struct cr_err *err) must_check;
json_t *json_of_number(uint64_t n);

/* rows.c: columns of numbers, as the tree has them, made to tables that can be read. */
void rows_of_columns(json_t *tree);

static inline void view_donep(struct view *v)
{
	view_done(v);
}
static inline void json_freep(json_t **j)
{
	json_decref(*j);
}
