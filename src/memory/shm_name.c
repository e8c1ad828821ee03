#include "memory/shm_name.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include "base/cleanup.h"

static const char shm_dir[] = "/dev/shm/", deleted[] = " (deleted)";

static bool lost_its_name(const struct proc_map *m)
{
	size_t n = strlen(m->name), tail = sizeof(deleted) - 1;

	return m->shared && n > tail && !strncmp(m->name, shm_dir, sizeof(shm_dir) - 1) &&
	       !strcmp(m->name + n - tail, deleted);
}

static const char *name_of(const struct proc_map *m, struct arena *a)
{
	_cleanup_dir_ DIR *d = opendir(shm_dir);
	char path[sizeof(shm_dir) + NAME_MAX];

	for (struct dirent *e; d && (e = readdir(d));) {
		struct stat st;

		if (e->d_ino != m->ino || fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) ||
		    st.st_ino != m->ino || st.st_dev != m->dev)
			continue;
		snprintf(path, sizeof(path), "%s%s", shm_dir, e->d_name);
		return arena_strdup(a, path);
	}
	return NULL;
}

void shm_names_find(struct proc_maps *maps)
{
	vec_foreach (m, &maps->list) {
		const char *name = lost_its_name(m) ? name_of(m, maps->names) : NULL;

		if (name)
			m->name = name;
	}
}
