/* restore --lazy: the tasks run at once, and fetch their memory from the image's directory or from
 * a page-server that serves it.
 *
 * The engine is that of post-copy (dest/lazy.h). In the source's place there is a child of ours
 * that reads the directory, or the page-server; a connection that ends is replaced by another for
 * as long as pages are missing. */
#pragma once
#include "dest/lazy.h"
#include "image/image.h"
#include "wire/addr.h"
#include "wire/lazy_stream.h"

struct lazy_source {
	const char *dir;         /* of the image; absolute; owned */
	const char *name;        /* of the image at the page-server */
	char address[ADDR_TEXT]; /* of the page-server; "": the directory */
	const char *host;        /* ours */
	struct mig_id id; /* the migration that wrote the image: there and here it is the same */
	struct mig_token token;
	pid_t server;      /* the child; 0: none */
	uint64_t given_us; /* when connections were handed on last */
	int urgent, bulk;  /* of lazy_source_read() */
	VEC(uint8_t) in;
};

/* address: "HOST:PORT", or NULL for the directory. token_file: may be NULL. */
int lazy_source_init(struct lazy_source *ls, const struct image *im, const char *dir,
		     const char *address, const char *token_file, const char *host,
		     struct cr_err *err) must_check;
void lazy_source_done(struct lazy_source *ls);
/* Pages that the tasks cannot do without, from a page-server. Of replay_from. */
int lazy_source_read(void *ls, pid_t pid, uint32_t target, uint64_t va, uint32_t n, uint8_t *buf,
		     struct cr_err *err) must_check;
/* Connections for the fetcher. */
int lazy_source_feed(struct lazy_source *ls, struct lazy *l, struct cr_err *err) must_check;
/* Until nothing is missing. root: of the tree, a child of ours whose end is noted in *status
 * (waitpid(2)); 0: no child of ours. cgroup: the tasks'. */
int lazy_source_supervise(struct lazy_source *ls, struct lazy *l, const char *cgroup, pid_t root,
			  int *status, struct cr_err *err) must_check;
