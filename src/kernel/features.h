/* What this kernel and this process's privileges offer, each thing tried rather than looked up. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

struct feature {
	const char *name;
	bool present;
	bool required;       /* nothing can be moved without it */
	char detail[100];    /* what was found, or why it is absent; may be "" */
	const char *without; /* what its absence costs, one sentence */
};

enum { FEATURES_MAX = 64 };

struct features {
	struct feature list[FEATURES_MAX];
	size_t n;
};

/* Takes some milliseconds; forks short-lived children. Not to be called with tasks seized. */
void features_probe(struct features *ret);
/* NULL: no such name. */
const struct feature *features_find(const struct features *f, const char *name);
/* All that is required is there. */
bool features_enough(const struct features *f);
