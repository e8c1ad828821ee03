#include "migrate/units.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double HOUR_US = 3600e6;
static const double RATE_MAX = 1e15;

struct unit {
	const char *name;
	double factor;
};

/* A decimal number without sign or exponent; *end is what follows it. False if there is none. */
static bool parse_decimal(const char *text, double *ret, const char **end)
{
	char number[32];
	size_t n = strspn(text, "0123456789.");

	if (!n || n >= sizeof(number) || text[0] == '.' || text[n - 1] == '.')
		return false;
	snprintf(number, sizeof(number), "%.*s", (int)n, text);
	if (strchr(number, '.') != strrchr(number, '.'))
		return false;
	*ret = strtod(number, NULL);
	*end = text + n;
	return true;
}

static double factor_of(const char *unit, const struct unit *units, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!strcmp(unit, units[i].name))
			return units[i].factor;
	return 0;
}

int units_parse_duration(const char *text, uint64_t *ret_us, struct cr_err *err)
{
	static const struct unit units[] = {{"us", 1}, {"ms", 1e3}, {"s", 1e6}};
	const char *unit;
	double v;

	if (!parse_decimal(text, &v, &unit))
		return cr_err_set(err, CR_ERR_INPUT, EINVAL,
				  "'%s' is not a duration: expected one like 500us, 20ms, 1s",
				  text);
	if (!*unit)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL,
				  "'%s' has no unit: say %sus, %sms or %ss", text, text, text,
				  text);
	double f = factor_of(unit, units, ARRAY_SIZE(units));
	if (f == 0)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL,
				  "'%s': unknown unit '%s': expected us, ms or s", text, unit);
	v *= f;
	if (v < 1 || v > HOUR_US)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "'%s' is not from 1us to 3600s", text);
	*ret_us = (uint64_t)v;
	return 0;
}

int units_parse_rate(const char *text, uint64_t *ret, struct cr_err *err)
{
	static const struct unit units[] = {
	    {"K", 1e3},        {"KB", 1e3},       {"M", 1e6},        {"MB", 1e6},
	    {"G", 1e9},        {"GB", 1e9},       {"Ki", 0x1p10},    {"KiB", 0x1p10},
	    {"Mi", 0x1p20},    {"MiB", 0x1p20},   {"Gi", 0x1p30},    {"GiB", 0x1p30},
	    {"Kbit", 1e3 / 8}, {"Mbit", 1e6 / 8}, {"Gbit", 1e9 / 8},
	};
	const char *rest;
	char unit[8];
	double v, f = 0;

	if (parse_decimal(text, &v, &rest)) {
		size_t n = strlen(rest);

		if (n > 2 && !strcmp(rest + n - 2, "/s"))
			n -= 2;
		if (n < sizeof(unit)) {
			snprintf(unit, sizeof(unit), "%.*s", (int)n, rest);
			f = factor_of(unit, units, ARRAY_SIZE(units));
		}
	}
	if (f == 0)
		return cr_err_set(
		    err, CR_ERR_INPUT, EINVAL,
		    "'%s' is not a rate: expected one like 100M, 512KiB (bytes a second), "
		    "1Gbit (bits a second)",
		    text);
	v *= f;
	if (v < 1 || v > RATE_MAX)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "'%s' is out of range", text);
	*ret = (uint64_t)v;
	return 0;
}

int units_parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *ret,
		       struct cr_err *err)
{
	char *end;

	errno = 0;
	unsigned long long v = strtoull(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || *end || errno || v < min || v > max)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL,
				  "'%s' is not a number from %llu to %llu", text,
				  (unsigned long long)min, (unsigned long long)max);
	*ret = v;
	return 0;
}

const char *units_format_us(uint64_t us, char buf[UNITS_TEXT])
{
	if (us < 1000)
		snprintf(buf, UNITS_TEXT, "%u us", (unsigned)us);
	else if (us < 1000000)
		snprintf(buf, UNITS_TEXT, us < 100000 ? "%.2f ms" : "%.1f ms", (double)us / 1e3);
	else
		snprintf(buf, UNITS_TEXT, "%.2f s", (double)us / 1e6);
	return buf;
}

const char *units_format_bytes(uint64_t bytes, char buf[UNITS_TEXT])
{
	static const char *const names[] = {"B", "kB", "MB", "GB", "TB"};
	double v = (double)bytes;
	size_t i = 0;

	for (; v >= 999.95 && i + 1 < ARRAY_SIZE(names); i++)
		v /= 1000;
	snprintf(buf, UNITS_TEXT, i ? "%.1f %s" : "%.0f %s", v, names[i]);
	return buf;
}
