#include "source/serve_objects.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
#include "base/cleanup.h"

int serve_files_add(struct serve_files *f, pid_t id, int fd, struct cr_err *err)
{
	struct serve_file *e = vec_push(&f->list);

	if (!e) {
		close(fd);
		return cr_err_oom(err);
	}
	*e = (struct serve_file){id, fd};
	return 0;
}

int serve_files_open(struct serve_files *f, const struct journal *j, struct cr_err *err)
{
	int r = 0;

	vec_foreach (o, &j->objects) {
		char path[96];

		if (r)
			break;
		snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", o->pid,
			 (unsigned long long)o->start, (unsigned long long)o->end);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		r = fd < 0 ? cr_err_sys(err, "opening %s", path)
			   : serve_files_add(f, LAZY_OBJECT + (pid_t)o->index, fd, err);
	}
	return r;
}

void serve_files_done(struct serve_files *f)
{
	vec_foreach (e, &f->list)
		close_fdp(&e->fd);
	vec_done(&f->list);
}
