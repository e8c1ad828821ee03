/* A host's name, looked up. */
#pragma once
#include "wire/addr.h"

/* "HOST:PORT", "[V6]:PORT" to "IP:PORT". Errors: INPUT. */
int addr_resolve(const char *text, char ret[ADDR_TEXT], struct cr_err *err) must_check;
