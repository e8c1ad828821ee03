/* What an agent has decided about a migration, where it survives the agent: one small file for each
 * migration and role below a directory under /run (a host that dies takes its tasks with it, which
 * settles the question). Each record is written over the last, in one write. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/err.h"
#include "base/devaddr.h"
#include "base/vec.h"

enum journal_state {
	JOURNAL_NONE,
	JOURNAL_PREPARING, /* nothing decided: whoever finds it undoes */
	JOURNAL_PREPARED,  /* destination: has promised; source: the tasks are held by SIGSTOP */
	JOURNAL_COMMIT, /* source: decided, the tasks never run here again; destination: told so */
	JOURNAL_DONE, /* the tasks run at the destination, which keeps this for a while to say so */
	JOURNAL_ABORTED, /* the tasks run at the source; the destination may not have been told yet
			  */
};

struct journal_pid {
	pid_t pid;
	uint64_t starttime; /* clock ticks since boot: tells a reused pid */
	bool stopped;       /* source: by a signal, before the migration: it stays so */
};

struct journal_rename { /* to be done before the tasks run; both owned */
	char *from, *to;
};

struct journal_shm { /* a System V object */
	int id;
	pid_t cpid; /* shared memory: who made it: one of that id that somebody else made is another
		     */
	int kind;   /* 0: shared memory; else as kernel/sysv_ipc.h has it */
};

struct journal_object { /* source: shared memory that stays behind, by a mapping of it */
	uint32_t index;
	pid_t pid;
	uint64_t start, end;
};

struct journal {
	char id[40];    /* of the migration, hex */
	char token[80]; /* hex */
	char role[16];  /* "source", "destination" */
	enum journal_state state;
	char peer[128];    /* the other agent's peer address */
	char cgroup[256];  /* destination: the cgroup that holds the tasks; "" if none */
	bool lazy;         /* pages are fetched from the source after the commit: until the
			    * destination is done, both are needed */
	int64_t since_sec; /* CLOCK_REALTIME: of its begin; once done, of its end */
	VEC(struct journal_pid) pids;
	VEC(struct journal_object) objects;
	VEC(struct journal_rename) renames;
	/* source: goes with the tasks, once they are the destination's; destination: was made for
	 * them, goes with the shells */
	VEC(struct journal_shm) shms;
	VEC(struct journal_carried) carried;
	VEC(char *) dirs;          /* destination: directories that were made for them; owned */
	VEC(struct devaddr) moved; /* source: addresses that the commit takes from this host */
};

struct journal_carried { /* a file that came along; all owned */
	/* destination: the name beside it by which it is known that path is ours; NULL at the
	 * source */
	char *temp;
	char *path;
	uint64_t dev, ino; /* source: of the file that goes, once the tasks are gone */
};

/* Errors: memory; INPUT for paths that do not fit on a line. */
int journal_add_rename(struct journal *j, const char *from, const char *to,
		       struct cr_err *err) must_check;
/* temp: NULL at the source. */
int journal_add_carried(struct journal *j, const char *temp, const char *path, uint64_t dev,
			uint64_t ino, struct cr_err *err) must_check;
int journal_add_dir(struct journal *j, const char *path, struct cr_err *err) must_check;
const char *journal_state_name(enum journal_state s);
int journal_write(const char *dir, const struct journal *j, struct cr_err *err) must_check;
/* -ENOENT if there is none. */
int journal_read(const char *dir, const char *id, const char *role, struct journal *ret,
		 struct cr_err *err) must_check;
int journal_remove(const char *dir, const struct journal *j, struct cr_err *err) must_check;
/* Calls fn for every journal in dir, until it returns something else than 0, which is then
 * returned. One that cannot be read does not keep the others from being seen: it is told to bad
 * (may be NULL). */
int journal_each(const char *dir, int (*fn)(struct journal *j, void *arg), void *arg,
		 void (*bad)(const struct cr_err *why), struct cr_err *err) must_check;
/* All of it out of *from, which is as if done. */
struct journal journal_take(struct journal *from);
void journal_done(struct journal *j);

/* A file beside the journal, gone with it: what whoever settles needs and does not fit on lines. */
int journal_keep(const char *dir, const struct journal *j, const void *data, size_t len,
		 struct cr_err *err) must_check;
/* *ret is malloc'ed; -ENOENT if nothing was kept. */
int journal_kept(const char *dir, const struct journal *j, uint8_t **ret, size_t *ret_len,
		 struct cr_err *err) must_check;
void journal_forget_kept(const char *dir, const struct journal *j);
