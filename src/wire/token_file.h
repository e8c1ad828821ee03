/* The secret that a page-server with --dir and the source agents share: 64 hexadecimal digits in a
 * file. */
#pragma once
#include "wire/ident.h"

/* Errors: INPUT, saying what is expected. */
int token_file_read(const char *path, struct mig_token *ret, struct cr_err *err) must_check;

/* What is shown where no token was given: everybody knows it. */
void token_none(struct mig_token *ret);
