/* A program that runs from a file without a name (memory/exe.c). Who executes a file denies others
 * to write it, and the object that its mappings are of is written from here: the executable is a
 * copy, made once the contents are in place, and open for reading only. */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sendfile.h>
#include "dest/layout.h"

/* Under its name, if that is free, for as long as it takes to open it: /proc/PID/exe shows that
 * name. Where another version has it by now, whatever make_unlinked gives it. */
static int make_file(const struct shared_object *so, struct cr_err *err)
{
	if (so->kind == OBJ_MEMFD) {
		int fd = memfd_create(so->name ? so->name : "", MFD_CLOEXEC);

		return fd < 0 ? cr_err_sys(err, "creating memfd \"%s\"", so->name) : fd;
	}
	_cleanup_fd_ int fd =
	    open(so->name, O_CREAT | O_EXCL | O_NOFOLLOW | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0)
		return layout_make_unlinked(so, err);
	unlink(so->name);
	if (fchown(fd, so->uid, so->gid) || fchmod(fd, so->mode))
		return cr_err_sys(err, "making an unlinked file for %s", so->name);
	return take_fd(&fd);
}

static int copy(int from, int to, uint64_t bytes, struct cr_err *err)
{
	off_t at = 0;

	while ((uint64_t)at < bytes) {
		ssize_t n = sendfile(to, from, &at, bytes - (uint64_t)at);

		if (n <= 0)
			return n ? cr_err_sys(err, "copying an executable")
				 : cr_err_set(err, CR_ERR_IO, EIO,
					      "copying an executable: it ends early");
	}
	return 0;
}

int object_exe(struct object *o, const struct shared_object *so, int *ret, struct cr_err *err)
{
	char path[40];

	if (o->exe_fd < 0) {
		_cleanup_fd_ int fd = make_file(so, err);
		int r = fd < 0 ? fd : copy(o->fd, fd, so->size, err);

		if (r)
			return r;
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		o->exe_fd = open(path, O_RDONLY | O_CLOEXEC);
		if (o->exe_fd < 0)
			return cr_err_sys(err, "opening the copy of %s", so->name);
	}
	*ret = o->exe_fd;
	return 0;
}
