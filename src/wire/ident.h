/* Who a migration is: an id that everybody may see, and a token that only its parties know. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

struct mig_id {
	uint8_t b[16];
};
struct mig_token {
	uint8_t b[32];
};

enum { MIG_ID_HEX = 33 }; /* 32 hex digits and NUL */

/* Both from getrandom(2). Errors: KERNEL. */
int mig_id_new(struct mig_id *ret, struct mig_token *ret_token, struct cr_err *err) must_check;

void mig_id_format(const struct mig_id *id, char buf[MIG_ID_HEX]);
/* Exactly 32 hex digits, either case. */
bool mig_id_parse(const char *text, struct mig_id *ret);
bool mig_id_equal(const struct mig_id *a, const struct mig_id *b);
bool mig_id_is_zero(const struct mig_id *id);
/* In time that does not depend on the contents. */
bool mig_token_equal(const struct mig_token *a, const struct mig_token *b);
