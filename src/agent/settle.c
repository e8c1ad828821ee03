/* What a migration's process left when it died: journals, held tasks, a cgroup. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include "agent/agent.h"
#include "base/log.h"
#include "kernel/cgroup.h"
#include "kernel/procfs.h"

enum { CONNECT_TIMEOUT_MS = 2000, ANSWER_TIMEOUT_MS = 10000, KILL_ROUNDS = 50 };

static void lock_path(char *buf, size_t n, const char *dir, const char *id, const char *role)
{
	snprintf(buf, n, "%s/%s.%s.lock", dir, id, role);
}

int journal_lock(const char *dir, const char *id, const char *role, struct cr_err *err)
{
	char path[512];

	lock_path(path, sizeof(path), dir, id, role);
	/* kept open, and with it the lock, until the process ends */
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return cr_err_sys(err, "opening %s", path);
	if (flock(fd, LOCK_EX | LOCK_NB)) {
		close(fd);
		return cr_err_set(err, CR_ERR_INPUT, EBUSY, "migration %s is being worked on already", id);
	}
	return 0;
}

bool journal_is_held(const char *dir, const char *id, const char *role)
{
	char path[512];

	lock_path(path, sizeof(path), dir, id, role);
	_cleanup_fd_ int fd = open(path, O_RDWR | O_CLOEXEC);
	return fd >= 0 && flock(fd, LOCK_EX | LOCK_NB);
}

void journal_warn(const struct cr_err *why)
{
	log_warn("%s", why->msg);
}

static void drop(const struct agent_config *cfg, const struct journal *j)
{
	struct cr_err err = {0};
	char path[512];

	if (journal_remove(cfg->state_dir, j, &err))
		log_warn("%s", err.msg);
	lock_path(path, sizeof(path), cfg->state_dir, j->id, j->role);
	unlink(path);
}

/* ---- source ---- */

static bool is_source(const struct journal *j)
{
	return !strcmp(j->role, "source");
}

/* Only the process that was meant: a pid may belong to another by now. */
static void signal_tasks(const struct journal *j, int sig)
{
	vec_foreach(p, &j->pids) {
		struct cr_err err = {0};
		uint64_t start;

		if (!proc_starttime(p->pid, &start, &err) && start == p->starttime)
			kill(p->pid, sig);
	}
}

static int ask_peer(const struct agent_config *cfg, const struct journal *j, enum msg_type what,
		    enum msg_type want, struct cr_err *err)
{
	_cleanup_(link_freep) struct link *l = NULL;
	struct msg_hello hello = {.version = MSG_VERSION, .role = MSG_ROLE_PEER, .host = cfg->host};
	struct msg m = msg_of(what), reply = {0};

	if (!mig_id_parse(j->id, &hello.id))
		return cr_err_set(err, CR_ERR_IO, EBADMSG, "journal without an id");
	for (size_t i = 0; i < sizeof(hello.token.b); i++) {
		unsigned int byte;

		if (sscanf(j->token + 2 * i, "%2x", &byte) != 1)
			return cr_err_set(err, CR_ERR_IO, EBADMSG, "journal without a token");
		hello.token.b[i] = (uint8_t)byte;
	}
	int r = link_connect(&l, j->peer, CONNECT_TIMEOUT_MS, err);
	if (!r)
		r = link_hello(l, &hello, ANSWER_TIMEOUT_MS, &reply, err);
	msg_free(&reply);
	if (!r)
		r = link_call(l, &m, want, ANSWER_TIMEOUT_MS, &reply, err);
	msg_free(&reply);
	return r;
}

/* ---- destination ---- */

static int open_cgroup(const struct journal *j, struct cgroup **ret, struct cr_err *err)
{
	return cgroup_open(ret, CGROUP_ANY, j->cgroup, err);
}

static int kill_cgroup(const struct journal *j, struct cr_err *err)
{
	_cleanup_(cgroup_closep) struct cgroup *cg = NULL;

	vec_foreach(m, &j->renames) /* the socket that waits for its path, and the directory around it */
		if (!unlink(m->from)) {
			*strrchr(m->from, '/') = 0;
			rmdir(m->from);
		}
	if (!*j->cgroup || access(j->cgroup, F_OK))
		return 0;
	int r = open_cgroup(j, &cg, err);
	for (int i = 0; i < KILL_ROUNDS && !r; i++) {
		_cleanup_free_ pid_t *pids = NULL;
		ssize_t n = cgroup_procs(cg, &pids, err);

		if (n < 0)
			return (int)n;
		if (n == 0)
			break;
		for (ssize_t k = 0; k < n; k++)
			kill(pids[k], SIGKILL);
		r = cgroup_thaw(cg, err);
	}
	return r ? r : cgroup_remove(cg, err);
}

static int thaw_cgroup(const struct journal *j, struct cr_err *err)
{
	_cleanup_(cgroup_closep) struct cgroup *cg = NULL;
	int r = open_cgroup(j, &cg, err);

	vec_foreach(m, &j->renames) { /* those that are done already are gone */
		if (rename(m->from, m->to) && errno != ENOENT)
			return cr_err_sys(err, "putting a socket at %s", m->to);
		*strrchr(m->from, '/') = 0;
		rmdir(m->from);
	}

	return r ? r : cgroup_thaw(cg, err);
}

/* ---- decisions ---- */

int settle_commit(const struct agent_config *cfg, struct journal *j, char *text, size_t n,
		  struct cr_err *err)
{
	if (is_source(j)) {
		signal_tasks(j, SIGKILL);
		snprintf(text, n, "the source's tasks were ended");
	} else {
		if (j->state < JOURNAL_PREPARED)
			return cr_err_set(err, CR_ERR_INPUT, EINVAL,
					  "the destination was not prepared: there is nothing whole to run");
		int r = thaw_cgroup(j, err);

		if (r)
			return cr_err_ctx(err, "letting the tasks run");
		snprintf(text, n, "the tasks run here now");
	}
	drop(cfg, j);
	return 0;
}

int settle_abort(const struct agent_config *cfg, struct journal *j, char *text, size_t n,
		 struct cr_err *err)
{
	if (is_source(j)) {
		signal_tasks(j, SIGCONT);
		snprintf(text, n, "the source's tasks run on");
	} else {
		int r = j->state == JOURNAL_DONE ?
				cr_err_set(err, CR_ERR_INPUT, EINVAL, "the tasks run here already") :
				kill_cgroup(j, err);

		if (r)
			return r;
		snprintf(text, n, "nothing of the tasks is left here");
	}
	drop(cfg, j);
	return 0;
}

struct settling {
	const struct agent_config *cfg;
	int undecided;
};

static int settle_source(const struct agent_config *cfg, struct journal *j, struct cr_err *err)
{
	char text[200];
	int r;

	if (j->state < JOURNAL_COMMIT || j->state == JOURNAL_ABORTED) {
		/* never decided: the tasks run on here, whatever the other side holds is undone */
		r = ask_peer(cfg, j, MSG_ABORT, MSG_ABORTED, err);
		if (r == -ENOENT)
			r = 0;
		if (r && j->state > JOURNAL_PREPARING)
			return r;
		return settle_abort(cfg, j, text, sizeof(text), err);
	}
	if (j->state == JOURNAL_COMMIT) {
		r = ask_peer(cfg, j, MSG_COMMIT, MSG_RUNNING, err);
		if (r)
			return r; /* the destination has to be asked again */
	}
	return settle_commit(cfg, j, text, sizeof(text), err);
}

static int settle_dest(const struct agent_config *cfg, struct journal *j, struct cr_err *err)
{
	char text[200];

	if (j->state == JOURNAL_PREPARING)
		return settle_abort(cfg, j, text, sizeof(text), err);
	if (j->state == JOURNAL_COMMIT || j->state == JOURNAL_DONE)
		return settle_commit(cfg, j, text, sizeof(text), err);
	return cr_err_set(err, CR_ERR_PEER, EAGAIN, "prepared: waits for the source's word");
}

static int settle_one(struct journal *j, void *arg)
{
	struct settling *s = arg;
	struct cr_err err = {0};

	if (journal_is_held(s->cfg->state_dir, j->id, j->role))
		return 0;
	int r = is_source(j) ? settle_source(s->cfg, j, &err) : settle_dest(s->cfg, j, &err);
	if (r) {
		s->undecided++;
		log_info("migration %s (%s, %s): %s", j->id, j->role, journal_state_name(j->state),
			 err.msg);
	} else {
		log_info("migration %s (%s): settled", j->id, j->role);
	}
	return 0;
}

/* Locks of migrations that ended well. */
static void remove_old_locks(const struct agent_config *cfg)
{
	_cleanup_dir_ DIR *d = opendir(cfg->state_dir);
	struct dirent *e;

	while (d && (e = readdir(d))) {
		char path[800], journal[800];
		size_t n = strlen(e->d_name);

		if (n < 6 || strcmp(e->d_name + n - 5, ".lock"))
			continue;
		snprintf(path, sizeof(path), "%s/%s", cfg->state_dir, e->d_name);
		snprintf(journal, sizeof(journal), "%s/%.*s", cfg->state_dir, (int)(n - 5), e->d_name);
		_cleanup_fd_ int fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd >= 0 && !flock(fd, LOCK_EX | LOCK_NB) && access(journal, F_OK))
			unlink(path);
	}
}

enum settled settle_all(const struct agent_config *cfg)
{
	struct settling s = {.cfg = cfg};
	struct cr_err err = {0};

	if (journal_each(cfg->state_dir, settle_one, &s, journal_warn, &err))
		log_warn("%s", err.msg);
	remove_old_locks(cfg);
	return s.undecided ? SETTLED_NOT : SETTLED_ALL;
}
