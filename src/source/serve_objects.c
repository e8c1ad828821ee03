#include "source/serve_objects.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "kernel/procfs.h"

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

static const struct proc_map *mapping_at(const struct proc_maps *maps, uint64_t va)
{
	vec_foreach (m, &maps->list)
		if (m->start <= va && va < m->end)
			return m;
	return NULL;
}

/* The task has not run since the journal was written, but its mappings may have become others: the
 * kernel merges what only a userfaultfd kept apart, which went with whoever died. What is mapped at
 * an address is the same file as before. */
static int open_mapping(const struct journal_object *o, struct cr_err *err)
{
	_cleanup_free_ char *text = NULL;
	struct proc_maps maps = {0};
	char path[96];
	int r = proc_read(o->pid, "maps", &text, err) < 0 ? -err->code : 0;

	if (!r)
		r = proc_maps_parse(text, &maps, err);
	const struct proc_map *m = r ? NULL : mapping_at(&maps, o->start);
	snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", o->pid,
		 (unsigned long long)(m ? m->start : o->start),
		 (unsigned long long)(m ? m->end : o->end));
	proc_maps_done(&maps);
	if (r)
		return r;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? cr_err_sys(err, "opening %s", path) : fd;
}

int serve_files_open(struct serve_files *f, const struct journal *j, struct cr_err *err)
{
	int r = 0;

	vec_foreach (o, &j->objects) {
		int fd = r ? -1 : open_mapping(o, err);

		if (r)
			break;
		r = fd < 0 ? fd : serve_files_add(f, LAZY_OBJECT + (pid_t)o->index, fd, err);
	}
	return r;
}

void serve_files_done(struct serve_files *f)
{
	vec_foreach (e, &f->list)
		close_fdp(&e->fd);
	vec_done(&f->list);
}
