#include "base/program.h"

#include <libgen.h>
#include <stdio.h>
#include <unistd.h>

int program_beside(const char *name, char *buf, size_t size, struct cr_err *err)
{
	char self[512];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (n < 0)
		return cr_err_sys(err, "/proc/self/exe");
	self[n] = 0;
	snprintf(buf, size, "%s/%s", dirname(self), name);
	return access(buf, X_OK) ? cr_err_sys(err, "%s", buf) : 0;
}
