/* Shared memory that stays behind, for whoever serves pages. */
#pragma once
#include "base/err.h"
#include "base/journal.h"
#include "base/vec.h"
#include "source/serve.h"

struct serve_files {
	VEC(struct serve_file) list;
};
/* fd becomes f's, also on failure. */
int serve_files_add(struct serve_files *f, pid_t id, int fd, struct cr_err *err) must_check;
/* All that the journal lists, through mappings of the tasks, which are stopped. */
int serve_files_open(struct serve_files *f, const struct journal *j, struct cr_err *err) must_check;
void serve_files_done(struct serve_files *f);
