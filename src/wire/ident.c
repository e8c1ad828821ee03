#include "wire/ident.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

int mig_id_new(struct mig_id *ret, struct mig_token *ret_token, struct cr_err *err)
{
	uint8_t random[sizeof(ret->b) + sizeof(ret_token->b)];

	/* never short below 256 bytes once the pool is ready, getrandom(2) */
	if (getrandom(random, sizeof(random), 0) != sizeof(random))
		return cr_err_sys(err, "getrandom");
	memcpy(ret->b, random, sizeof(ret->b));
	memcpy(ret_token->b, random + sizeof(ret->b), sizeof(ret_token->b));
	return 0;
}

void mig_id_format(const struct mig_id *id, char buf[MIG_ID_HEX])
{
	for (size_t i = 0; i < sizeof(id->b); i++)
		snprintf(buf + 2 * i, 3, "%02x", id->b[i]);
}

bool mig_id_parse(const char *text, struct mig_id *ret)
{
	struct mig_id id;

	if (strlen(text) != 2 * sizeof(id.b))
		return false;
	for (size_t i = 0; i < sizeof(id.b); i++) {
		const char digits[3] = {text[2 * i], text[2 * i + 1], 0};

		if (!isxdigit((unsigned char)digits[0]) || !isxdigit((unsigned char)digits[1]))
			return false;
		id.b[i] = (uint8_t)strtoul(digits, NULL, 16);
	}
	*ret = id;
	return true;
}

static bool equal(const uint8_t *a, const uint8_t *b, size_t n)
{
	volatile uint8_t differ = 0;

	for (size_t i = 0; i < n; i++)
		differ |= a[i] ^ b[i];
	return !differ;
}

bool mig_id_equal(const struct mig_id *a, const struct mig_id *b)
{
	return equal(a->b, b->b, sizeof(a->b));
}

bool mig_id_is_zero(const struct mig_id *id)
{
	static const struct mig_id zero;

	return mig_id_equal(id, &zero);
}

bool mig_token_equal(const struct mig_token *a, const struct mig_token *b)
{
	return equal(a->b, b->b, sizeof(a->b));
}
