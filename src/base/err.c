#include "base/err.h"

#include <stdio.h>
#include <string.h>

static int err_vset(struct cr_err *err, enum cr_err_kind kind, int code, const char *fmt,
		    va_list ap)
{
	err->kind = kind;
	err->code = code > 0 ? code : EIO;
	vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
	return -err->code;
}

int cr_err_set(struct cr_err *err, enum cr_err_kind kind, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	int r = err_vset(err, kind, code, fmt, ap);
	va_end(ap);
	return r;
}

int cr_err_sys(struct cr_err *err, const char *fmt, ...)
{
	int code = errno;
	va_list ap;

	va_start(ap, fmt);
	int r = err_vset(err, CR_ERR_KERNEL, code, fmt, ap);
	va_end(ap);
	size_t len = strlen(err->msg);
	snprintf(err->msg + len, sizeof(err->msg) - len, ": %s", strerror(code));
	return r;
}

int cr_err_ctx(struct cr_err *err, const char *fmt, ...)
{
	char old[sizeof(err->msg)];
	va_list ap;

	memcpy(old, err->msg, sizeof(old));
	va_start(ap, fmt);
	int n = vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
	va_end(ap);
	if (n >= 0 && (size_t)n < sizeof(err->msg)) {
		int room = (int)sizeof(err->msg) - n;
		snprintf(err->msg + n, room, ": %.*s", room, old);
	}
	return -err->code;
}

int cr_err_oom(struct cr_err *err)
{
	return cr_err_set(err, CR_ERR_KERNEL, ENOMEM, "out of memory");
}

const char *cr_err_kind_name(enum cr_err_kind kind)
{
	static const char *const names[] = {"none", "unsupported", "kernel", "peer",
					    "io",   "input",       "bug"};

	return (unsigned)kind < ARRAY_SIZE(names) ? names[kind] : "unknown";
}

void cr_err_clear(struct cr_err *err)
{
	memset(err, 0, sizeof(*err));
}
