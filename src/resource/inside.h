/* Who belongs to a tree, and who outside it has the same memory. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "model/tree.h"

/* A process of the tree. Unless exact (the tasks are stopped), also one that was forked below it
 * since the tree was listed. Not who has ended meanwhile. */
bool inside_tree(const struct tree *t, bool exact, pid_t pid);
/* A process outside that has it mapped (inode, and how its name begins, as in proc_pid_maps(5)) or,
 * if dev is not 0, open. 0: none that this pid namespace shows; negative errno: /proc cannot be
 * read. */
pid_t outside_holder(const struct tree *t, bool exact, const char *name, uint64_t dev,
		     uint64_t ino);
