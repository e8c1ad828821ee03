#include "kernel/boot_id.h"

#include <fcntl.h>
#include <string.h>
#include "base/cleanup.h"

void boot_id_read(char ret[static BOOT_ID_SIZE])
{
	_cleanup_fd_ int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, ret, BOOT_ID_SIZE - 1);

	ret[n == BOOT_ID_SIZE - 1 ? n : 0] = '\0';
}

bool boot_id_matches(const char *theirs, bool *ret_known)
{
	char ours[BOOT_ID_SIZE];

	boot_id_read(ours);
	*ret_known = theirs[0] && ours[0];
	return *ret_known && !strcmp(ours, theirs);
}
