/* A program whose file was removed or replaced while it runs, by an upgrade of its package most
 * often: an object as other removed files that are mapped are (the program's own mappings are of
 * it), which nobody writes as long as it runs. The destination makes a file of it
 * (dest/exe_file.c).
 */
#include "memory/capture.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define DELETED " (deleted)"

static const char *trouble(const struct stat *st)
{
	if (!S_ISREG(st->st_mode))
		return "is not a regular file";
	return st->st_mode & 0111 ? NULL : "was deleted and may not be executed any more";
}

static int add_object(struct capture *c, struct object_fds *o, int fd, const char *exe,
		      const struct stat *st, struct cr_err *err)
{
	struct tree *t = c->tree;
	bool memfd = !strncmp(exe, "/memfd:", 7);
	size_t len = strlen(exe), tail = strlen(DELETED);
	char *name = arena_strdup(t->arena, memfd ? exe + 7 : exe);
	int *slot = name && memory_objects_grow(t) ? vec_push(&o->list) : NULL;

	if (!slot)
		return cr_err_oom(err);
	*slot = fd;
	if (len > tail && !strcmp(exe + len - tail, DELETED))
		name[strlen(name) - tail] = 0;
	int seals = memfd ? fcntl(fd, F_GET_SEALS) : 0;
	t->objects[t->n_objects++] = (struct shared_object){
	    .kind = memfd ? OBJ_MEMFD : OBJ_UNLINKED,
	    .name = name,
	    .size = (uint64_t)st->st_size,
	    .seals = seals > 0 ? (uint32_t)seals : 0,
	    .ino = st->st_ino,
	    .dev = st->st_dev,
	    .uid = st->st_uid,
	    .gid = st->st_gid,
	    .mode = st->st_mode & 07777,
	};
	return 0;
}

int exe_capture(struct capture *c, struct object_fds *o, struct process *p, const char *exe,
		struct cr_err *err)
{
	char path[40];
	struct stat st;
	uint32_t i = 0;

	snprintf(path, sizeof(path), "/proc/%d/exe", p->pid);
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT) /* as proc_readlink() says of one that ends */
		errno = ESRCH;
	if (fd < 0 || fstat(fd, &st))
		return cr_err_sys(err, "opening %s", path);
	p->mm.exe_file = UINT32_MAX;
	const char *why = trouble(&st);
	if (why) {
		refuse(c->refused, p->pid, "executable", "%s %s: not supported", exe, why);
		return 0;
	}
	while (i < c->tree->n_objects &&
	       (c->tree->objects[i].ino != st.st_ino || c->tree->objects[i].dev != st.st_dev))
		i++;
	p->mm.exe_object = i + 1;
	if (i < c->tree->n_objects)
		return 0;
	int r = add_object(c, o, fd, exe, &st, err);
	if (!r)
		take_fd(&fd);
	return r;
}
