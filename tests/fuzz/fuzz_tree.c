/* libFuzzer target: a process tree's bytes; what is accepted must encode again. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include "wire/tree_codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cr_err err = {0};
	struct tree *t = NULL;
	uint8_t *again = NULL;
	size_t len;

	if (tree_decode(data, size, &t, &err) < 0)
		return 0;
	if (tree_encode(t, &again, &len, &err) < 0)
		abort();
	free(again);
	tree_free(t);
	return 0;
}
