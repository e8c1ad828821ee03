#include "kernel/thp.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/cleanup.h"

#define THP_DIR "/sys/kernel/mm/transparent_hugepage"

static bool says(const char *path, const char *what)
{
	char text[128];
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (n < 0)
		return false;
	text[n] = '\0';
	return strstr(text, what);
}

static bool says_always(const char *path)
{
	return says(path, "[always]");
}

bool thp_always(void)
{
	char path[512];
	_cleanup_dir_ DIR *dir = opendir(THP_DIR);

	if (says_always(THP_DIR "/enabled"))
		return true;
	/* since 6.8 each size has a setting of its own */
	for (struct dirent *e; dir && (e = readdir(dir));) {
		snprintf(path, sizeof(path), THP_DIR "/%s/enabled", e->d_name);
		if (!strncmp(e->d_name, "hugepages-", 10) && says_always(path))
			return true;
	}
	return false;
}

bool thp_shared(void)
{
	static const char path[] = THP_DIR "/shmem_enabled";
	char other[512];
	_cleanup_dir_ DIR *dir = opendir(THP_DIR);

	if (!dir) /* a kernel without any */
		return false;
	if (!says(path, "[never]") && !says(path, "[deny]"))
		return true;
	/* since 6.11 each size has a setting of its own */
	for (struct dirent *e; (e = readdir(dir));) {
		snprintf(other, sizeof(other), THP_DIR "/%s/shmem_enabled", e->d_name);
		if (!strncmp(e->d_name, "hugepages-", 10) && !access(other, F_OK) &&
		    !says(other, "[never]") && !says(other, "[inherit]"))
			return true;
	}
	return false;
}
