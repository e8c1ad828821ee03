/* libFuzzer target: a frame's bytes; what is accepted must encode again. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include "wire/msg.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cr_err err = {0};
	struct msg m;
	uint8_t *again = NULL;
	size_t len;

	if (msg_decode(data, size, &m, &err) < 0)
		return 0;
	if (msg_encode(&m, &again, &len, &err) < 0)
		abort();
	free(again);
	msg_free(&m);
	return 0;
}
