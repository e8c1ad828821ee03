/* Numbers as a user writes them. All: -EINVAL (INPUT) and a message that says what is expected. */
#pragma once
#include <stdint.h>
#include "base/err.h"

/* "500us", "20ms", "1.5s"; never without a unit. *ret_us is at least 1, at most an hour. */
int units_parse_duration(const char *text, uint64_t *ret_us, struct cr_err *err) must_check;

/* "100M", "512KiB", "1Gbit", each with or without "/s"; never without a unit. *ret: bytes a second.
 */
int units_parse_rate(const char *text, uint64_t *ret, struct cr_err *err) must_check;

/* A whole number from min to max. */
int units_parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *ret,
		       struct cr_err *err) must_check;

/* "1.2 ms", "3.40 s"; "1.5 MB"; for the user. */
enum { UNITS_TEXT = 32 };
const char *units_format_us(uint64_t us, char buf[UNITS_TEXT]);
const char *units_format_bytes(uint64_t bytes, char buf[UNITS_TEXT]);
