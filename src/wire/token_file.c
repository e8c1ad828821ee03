#include "wire/token_file.h"

#include <ctype.h>
#include <fcntl.h>
#include <string.h>

enum { DIGITS = 2 * sizeof(struct mig_token) };

static int digit(char c)
{
	return isdigit((unsigned char)c) ? c - '0' : tolower((unsigned char)c) - 'a' + 10;
}

int token_file_read(const char *path, struct mig_token *ret, struct cr_err *err)
{
	char text[DIGITS + 2];
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text));
	bool good = n >= DIGITS && (n == DIGITS || (n == DIGITS + 1 && text[DIGITS] == '\n'));

	if (n < 0) {
		cr_err_sys(err, "token file %s", path);
		err->kind = CR_ERR_INPUT;
		return -err->code;
	}
	for (size_t i = 0; good && i < DIGITS; i++)
		good = isxdigit((unsigned char)text[i]);
	for (size_t i = 0; good && i < sizeof(ret->b); i++)
		ret->b[i] = (uint8_t)(digit(text[2 * i]) << 4 | digit(text[2 * i + 1]));
	explicit_bzero(text, sizeof(text));
	return good ? 0
		    : cr_err_set(err, CR_ERR_INPUT, EINVAL,
				 "token file %s: 64 hexadecimal digits are expected, as of: od "
				 "-An -N32 -tx1 /dev/urandom | tr -d ' \\n'",
				 path);
}

void token_none(struct mig_token *ret)
{
	static const char text[sizeof(ret->b) + 1] = "cr-migrate: no token was given  ";

	memcpy(ret->b, text, sizeof(ret->b));
}
