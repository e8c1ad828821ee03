/* Scope-bound release of resources: `_cleanup_(fn)` runs fn on the variable when it leaves scope.
 */
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <dirent.h>
#include <errno.h>
#include <unistd.h>

#define _cleanup_(fn) __attribute__((cleanup(fn)))
#define must_check __attribute__((warn_unused_result))

/* Closes *fd unless negative; keeps errno. */
static inline void close_fdp(int *fd)
{
	int saved = errno;

	if (*fd >= 0)
		close(*fd);
	*fd = -1;
	errno = saved;
}

static inline void free_ptrp(void *p)
{
	free(*(void **)p);
}

static inline void close_filep(FILE **f)
{
	if (*f)
		fclose(*f);
}

static inline void close_dirp(DIR **d)
{
	if (*d)
		closedir(*d);
}

#define _cleanup_fd_ _cleanup_(close_fdp)
#define _cleanup_free_ _cleanup_(free_ptrp)
#define _cleanup_file_ _cleanup_(close_filep)
#define _cleanup_dir_ _cleanup_(close_dirp)

/* Hands ownership of a descriptor out of its scope. */
static inline int take_fd(int *fd)
{
	int r = *fd;

	*fd = -1;
	return r;
}

#define take_ptr(p)                                                                                \
	({                                                                                         \
		__typeof__(p) *_tp = &(p), _tv = *_tp;                                             \
		*_tp = NULL;                                                                       \
		_tv;                                                                               \
	})

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define ALIGN_UP(x, a) (((x) + (a)-1) & ~((__typeof__(x))(a)-1))
#define CR_PAGE_SIZE 4096ul
