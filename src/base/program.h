/* Other programs of ours. */
#pragma once
#include <stddef.h>
#include "base/err.h"

/* The path of the program of that name in our own program's directory. Errors: KERNEL, when it is
 * not there. */
int program_beside(const char *name, char *buf, size_t size, struct cr_err *err) must_check;
