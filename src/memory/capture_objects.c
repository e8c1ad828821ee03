/* Shared objects: shared anonymous memory, memfds, System V segments, files that were removed. */
#include "memory/capture_private.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include "kernel/sysv_shm.h"
#include "kernel/tmpfs.h"
#include "resource/carried.h"

void object_fds_done(struct object_fds *o)
{
	vec_foreach (fd, &o->list)
		close_fdp(fd);
	vec_done(&o->list);
}

static bool ends_with(const char *s, const char *suffix)
{
	size_t n = strlen(s), m = strlen(suffix);

	return n >= m && !strcmp(s + n - m, suffix);
}

bool memory_objects_grow(struct tree *t)
{
	t->objects = capture_grow(t->arena, t->objects, t->n_objects, sizeof(*t->objects));
	return t->objects;
}

static const char *map_file_path(char buf[static 96], pid_t pid, const struct proc_map *m)
{
	snprintf(buf, 96, "/proc/%d/map_files/%llx-%llx", pid, (unsigned long long)m->start,
		 (unsigned long long)m->end);
	return buf;
}

static int open_map_file(pid_t pid, const struct proc_map *m)
{
	char buf[96];
	const char *path = map_file_path(buf, pid, m);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	return fd >= 0 ? fd : open(path, O_RDONLY | O_CLOEXEC);
}

static int reopen(int fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	int own = open(path, O_RDWR | O_CLOEXEC);
	return own >= 0 ? own : open(path, O_RDONLY | O_CLOEXEC);
}

bool map_is_sysv(const struct proc_map *m)
{
	return starts_with(m->name, "/SYSV");
}

/* A file that was removed: a temporary one, a library that was upgraded meanwhile, shared memory
 * whose name is gone. The kernel's own mounts show memfds and such by names that end so as well. */
bool map_is_unlinked(const struct proc_map *m)
{
	return *m->name == '/' && m->ino && ends_with(m->name, DELETED) &&
	       !starts_with(m->name, "/memfd:") && !map_is_sysv(m) &&
	       !starts_with(m->name, "/dev/zero" DELETED) &&
	       !starts_with(m->name, "/anon_hugepage") && !starts_with(m->name, "/[aio]");
}

bool map_is_of_object(const struct proc_map *m, const struct vma *v)
{
	return v->kind == VMA_SHARED_OBJ || starts_with(m->name, "/memfd:") || map_is_unlinked(m);
}

static int refresh_sysv(struct shared_object *so, struct cr_err *err)
{
	struct sysv_shm s;
	int r = sysv_shm_stat((int)(so->ino & ~SYSV_INO), &s, err);

	if (r)
		return r;
	so->size = s.size;
	so->ipc_id = s.id;
	so->ipc_key = s.key;
	so->uid = s.uid;
	so->gid = s.gid;
	so->mode = s.mode;
	so->ipc_removed = s.removed;
	so->ipc_cpid = s.cpid;
	return 0;
}

static int refresh_object(struct shared_object *so, int fd, struct cr_err *err)
{
	struct stat st;

	if (so->kind != OBJ_UNLINKED && !so->page_bytes)
		so->page_bytes = huge_page_bytes(fd);
	if (so->kind == OBJ_SYSV_SHM)
		return refresh_sysv(so, err);

	if (fstat(fd, &st))
		return cr_err_sys(err, "looking at a shared memory object");
	so->size = (uint64_t)st.st_size;
	so->in_memory = so->kind == OBJ_UNLINKED && !st.st_nlink && tmpfs_has(fd);
	int seals = so->kind == OBJ_MEMFD ? fcntl(fd, F_GET_SEALS) : 0;
	so->seals = seals > 0 ? (uint32_t)seals : 0;
	return 0;
}

static int find_object(const struct tree *t, uint64_t dev, uint64_t ino)
{
	for (size_t i = 0; i < t->n_objects; i++)
		if (t->objects[i].ino == ino && t->objects[i].dev == dev)
			return (int)i;
	return -1;
}

/* Of a file that was removed: as whoever has it open sees it, too (file_unlinked.c). */
static int describe_unlinked(struct capture *c, const struct proc_map *m, int fd,
			     struct shared_object *so, struct cr_err *err)
{
	struct stat st;
	char *name = arena_strdup(c->tree->arena, m->name);

	if (!name)
		return cr_err_oom(err);
	if (fstat(fd, &st))
		return cr_err_sys(err, "%s", name);
	name[strlen(name) - strlen(DELETED)] = 0;
	*so = (struct shared_object){.kind = OBJ_UNLINKED,
				     .name = name,
				     .dev = st.st_dev,
				     .ino = st.st_ino,
				     .uid = st.st_uid,
				     .gid = st.st_gid,
				     .mode = st.st_mode & 07777};
	if (m->shared && !c->exact)
		carried_refuse_shared(c->tree, false, m->name, st.st_dev, st.st_ino, c->refused);
	return 0;
}

/* The device as stat(2) tells it, which may be another than in maps. Not opened: who opens it is
 * watched (kernel/openwatch.h). */
static uint64_t device_of(pid_t pid, const struct proc_map *m)
{
	char path[96];
	struct stat st;

	return map_is_unlinked(m) && !stat(map_file_path(path, pid, m), &st) ? st.st_dev : m->dev;
}

int capture_add_object(struct capture *c, struct object_fds *o, pid_t pid, const struct proc_map *m,
		       uint32_t *ret, struct cr_err *err)
{
	struct tree *t = c->tree;
	uint64_t ino = m->ino | (map_is_sysv(m) ? SYSV_INO : 0);
	int i = find_object(t, device_of(pid, m), ino);

	if (i < 0) {
		int fd = open_map_file(pid, m);
		int *slot = fd < 0 ? NULL : vec_push(&o->list);

		if (fd < 0)
			return cr_err_set(err, CR_ERR_KERNEL, c->exact ? errno : EAGAIN,
					  "opening shared memory of %d", pid);
		if (!slot) {
			close(fd);
			return cr_err_oom(err);
		}
		*slot = fd;
		if (!memory_objects_grow(t))
			return cr_err_oom(err);
		i = (int)t->n_objects++;
		bool memfd = starts_with(m->name, "/memfd:");
		t->objects[i] = (struct shared_object){.kind = memfd            ? OBJ_MEMFD
							       : map_is_sysv(m) ? OBJ_SYSV_SHM
										: OBJ_SHARED_ANON,
						       .ino = ino,
						       .dev = m->dev};
		if (memfd) {
			char *name = arena_strdup(t->arena, m->name + strlen("/memfd:"));

			if (!name)
				return cr_err_oom(err);
			if (ends_with(name, DELETED))
				name[strlen(name) - strlen(DELETED)] = 0;
			t->objects[i].name = name;
		}
		if (map_is_unlinked(m)) {
			int r = describe_unlinked(c, m, fd, &t->objects[i], err);

			if (r)
				return r;
		}
	}
	*ret = (uint32_t)i;
	return refresh_object(&t->objects[i], o->list.v[i], err);
}

int memory_capture_objects(struct capture *c, struct object_fds *o, struct cr_err *err)
{
	struct tree *t = c->tree;

	for (size_t i = o->list.n; i < t->n_objects; i++) {
		int fd = -1;

		for (size_t k = 0; k < t->n_procs && fd < 0; k++)
			for (size_t j = 0; j < t->procs[k].n_fds && fd < 0; j++) {
				const struct fd_entry *e = &t->procs[k].fds[j];

				if ((t->files[e->file].kind == FILE_MEMFD ||
				     t->files[e->file].kind == FILE_UNLINKED) &&
				    t->files[e->file].object == i)
					fd = (int)syscall(SYS_pidfd_getfd, c->procs[k].pidfd, e->fd,
							  0);
			}
		if (fd < 0)
			return cr_err_set(err, CR_ERR_KERNEL, ESTALE,
					  "a memfd or unlinked file went away meanwhile");
		/* a description of our own: the task's position is not ours to move */
		int own = reopen(fd);
		close(fd);
		fd = own;
		if (fd < 0)
			return cr_err_sys(err, "opening a memfd or unlinked file");
		int *slot = vec_push(&o->list);
		if (!slot) {
			close(fd);
			return cr_err_oom(err);
		}
		*slot = fd;
	}
	for (size_t i = 0; i < t->n_objects; i++) {
		int r = refresh_object(&t->objects[i], o->list.v[i], err);

		if (r)
			return r;
	}
	return 0;
}
