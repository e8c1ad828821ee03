/* What a migration's process left when it died: journals, held tasks, a cgroup. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include "agent/agent.h"
#include "dest/lazy.h"
#include "source/serve_objects.h"
#include "source/serve_peer.h"
#include "base/log.h"
#include "kernel/cgroup.h"
#include "kernel/netdev.h"
#include "kernel/procfs.h"
#include "kernel/sysv_ipc.h"
#include "resource/carried.h"
#include "resource/resource.h"
#include "wire/tree_codec.h"

enum {
	CONNECT_TIMEOUT_MS = 2000,
	ANSWER_TIMEOUT_MS = 10000,
	KILL_ROUNDS = 50,
	KEEP_DONE_S = 600,
	SERVE_TIMEOUT_MS = 60000
};

void journal_warn(const struct cr_err *why)
{
	log_warn("%s", why->msg);
}

static bool is_source(const struct journal *j)
{
	return !strcmp(j->role, "source");
}

static void drop(const struct agent_config *cfg, const struct journal *j)
{
	struct cr_err err = {0};
	char path[512];

	tidy_up(cfg, j);
	if (!is_source(j)) {
		lazy_stats_path(path, sizeof(path), cfg->state_dir, j->id);
		unlink(path);
	}
	if (journal_remove(cfg->state_dir, j, &err))
		log_warn("%s", err.msg);
	journal_lock_path(path, sizeof(path), cfg->state_dir, j->id, j->role);
	unlink(path);
}

/* ---- source ---- */

/* A pid may belong to another by now. */
static bool is_same_task(const struct journal_pid *p)
{
	struct cr_err err = {0};
	uint64_t start;

	return !proc_starttime(p->pid, &start, &err) && start == p->starttime;
}

static void kill_tasks(const struct journal *j)
{
	/* Children first: a stopped child whose parent's death leaves its group without anybody to
	 * look after it gets SIGCONT from the kernel (setpgid(2)), and would run. */
	for (size_t i = j->pids.n; i-- > 0;)
		if (is_same_task(&j->pids.v[i]))
			kill(j->pids.v[i].pid, SIGKILL);
}

static void continue_tasks(const struct journal *j)
{
	vec_foreach (p, &j->pids)
		if (!p->stopped && is_same_task(p))
			kill(p->pid, SIGCONT);
}

bool journal_token(const struct journal *j, struct mig_token *ret)
{
	for (size_t i = 0; i < sizeof(ret->b); i++) {
		unsigned int byte;

		if (sscanf(j->token + 2 * i, "%2x", &byte) != 1)
			return false;
		ret->b[i] = (uint8_t)byte;
	}
	return true;
}

int settle_ask_peer(const struct agent_config *cfg, const struct journal *j, enum msg_type what,
		    enum msg_type want, int timeout_ms, struct msg *reply, struct cr_err *err)
{
	_cleanup_(link_freep) struct link *l = NULL;
	struct msg_hello hello = {.version = MSG_VERSION, .role = MSG_ROLE_PEER, .host = cfg->host};
	struct msg m = msg_of(what), answer = {0};

	if (!mig_id_parse(j->id, &hello.id) || !journal_token(j, &hello.token))
		return cr_err_set(err, CR_ERR_IO, EBADMSG, "journal without an id or a token");
	if (what == MSG_QUERY)
		m.query.id = hello.id;
	int r = link_connect(&l, j->peer, CONNECT_TIMEOUT_MS, err);
	if (!r)
		r = link_hello(l, &hello, timeout_ms, &answer, err);
	msg_free(&answer);
	if (!r)
		r = link_call(l, &m, want, timeout_ms, &answer, err);
	if (!r && reply)
		*reply = answer;
	else
		msg_free(&answer);
	return r;
}

bool settle_peer_forgot(int r, const struct cr_err *err)
{
	return r == -ENOENT && err->kind == CR_ERR_PEER;
}

/* They go with their last attachment. */
static void remove_segments(const struct journal *j)
{
	vec_foreach (s, &j->shms)
		sysv_ipc_remove(s->kind, s->id, s->cpid);
}

/* ---- destination ---- */

static int open_cgroup(const struct journal *j, struct cgroup **ret, struct cr_err *err)
{
	return cgroup_open(ret, CGROUP_ANY, j->cgroup, err);
}

static int kill_cgroup(const struct journal *j, struct cr_err *err)
{
	_cleanup_(cgroup_closep) struct cgroup *cg = NULL;

	remove_rename_dirs(j);
	remove_segments(j);
	carried_undo(j);
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

/* ---- the network ---- */

/* The destination's: addresses and connections, of which the tree tells that was kept for this. */
static int run_network(const struct agent_config *cfg, const struct journal *j, struct cr_err *err)
{
	_cleanup_free_ uint8_t *bytes = NULL;
	_cleanup_fd_ int fd = -1;
	struct tree *t = NULL;
	size_t len;
	int r = journal_kept(cfg->state_dir, j, &bytes, &len, err);

	if (r == -ENOENT)
		return 0;
	if (!r)
		r = tree_decode(bytes, len, &t, err);
	if (!r)
		r = net_take_addresses(t, &fd, err);
	if (!r)
		r = net_finish_launch(t, err);
	tree_free(t);
	return r;
}

/* The source's, before its tasks run on: what was taken out of their terminals. */
static void mend_ttys(const struct agent_config *cfg, const struct journal *j)
{
	_cleanup_free_ uint8_t *bytes = NULL;
	struct tree *t = NULL;
	struct cr_err err = {0};
	size_t len;
	int r = journal_kept(cfg->state_dir, j, &bytes, &len, &err);

	if (r == -ENOENT)
		return;
	if (!r)
		r = tree_decode(bytes, len, &t, &err);
	if (!r)
		r = ttys_put_back(t, &err);
	if (r)
		log_warn("terminals of migration %s: %s", j->id, err.msg);
	else
		journal_forget_kept(cfg->state_dir, j);
	tree_free(t);
}

/* The source's, before its tasks run on: they had no part in the network. */
static void mend_network(const struct journal *j)
{
	vec_foreach (p, &j->pids) {
		struct cr_err err = {0};

		if (is_same_task(p) && net_unlock_process(p->pid, &err))
			log_warn("sockets of %d: %s", p->pid, err.msg);
	}
	vec_foreach (a, &j->moved) {
		_cleanup_fd_ int fd = -1;
		struct cr_err err = {0};
		bool has = true;

		if (!netdev_has_address(a, &has, NULL, &err) && !has &&
		    (netdev_add_address(a, &err) || netdev_announce(a, &fd, &err)))
			log_warn("%s", err.msg);
	}
}

/* The source's, after the decision: may have been done. */
static void leave_network(const struct journal *j)
{
	vec_foreach (a, &j->moved) {
		struct cr_err err = {0};

		if (netdev_del_address(a, &err))
			log_warn("%s", err.msg);
	}
}

/* ---- decisions ---- */

int settle_launch(const struct agent_config *cfg, const struct journal *j, struct cr_err *err)
{
	_cleanup_(cgroup_closep) struct cgroup *cg = NULL;

	/* whoever launched them before us may have got so far that they have ended since */
	if (j->state == JOURNAL_COMMIT && access(j->cgroup, F_OK))
		return 0;
	int r = open_cgroup(j, &cg, err);
	if (r)
		return r;
	vec_foreach (m, &j->renames) /* those that are done already are gone */
		if (rename(m->from, m->to) && errno != ENOENT)
			return cr_err_sys(err, "putting a socket at %s", m->to);
	remove_rename_dirs(j);
	r = run_network(cfg, j, err);
	if (!r)
		r = cgroup_thaw(cg, err);
	if (!r)
		carried_keep(j);
	return r;
}

static int write_state(const struct agent_config *cfg, struct journal *j, enum journal_state state,
		       struct cr_err *err)
{
	j->state = state;
	j->since_sec = (int64_t)time(NULL);
	return journal_write(cfg->state_dir, j, err);
}

/* What fetched its pages is gone, and with it what kept the tasks from reading zeros where pages
 * are missing. Unless nothing was missing any more, they must not go on: what the source holds is
 * whole.
 */
static int end_incomplete(const struct agent_config *cfg, struct journal *j, struct cr_err *err)
{
	char path[512];
	struct lazy_stats st;

	lazy_stats_path(path, sizeof(path), cfg->state_dir, j->id);
	if (j->state == JOURNAL_COMMIT && lazy_stats_read(path, &st) && st.ended_us)
		return 0;
	bool ran = j->state == JOURNAL_COMMIT;
	int r = kill_cgroup(j, err);
	if (!r && !ran) /* the source may take that for an answer, and go on by itself */
		r = write_state(cfg, j, JOURNAL_ABORTED, err);
	if (r)
		return r;
	log_error(
	    "migration %s: the processes that fetched pages from the source died: the tasks "
	    "were ended here%s",
	    j->id,
	    ran ? "; `cr-migrate resolve --abort` at the source lets them go on there as they "
		  "were at the switch-over"
		: " before they ran");
	if (ran)
		drop(cfg, j);
	return cr_err_set(err, CR_ERR_PEER, EOWNERDEAD,
			  "pages were missing, and what fetched them died: the tasks were ended "
			  "here");
}

static int run_here(const struct agent_config *cfg, struct journal *j, char *text, size_t n,
		    struct cr_err *err)
{
	if (j->state == JOURNAL_DONE) {
		snprintf(text, n, "the tasks run here already");
		return 0;
	}
	if (j->state < JOURNAL_PREPARED || j->state == JOURNAL_ABORTED)
		return cr_err_set(
		    err, CR_ERR_INPUT, EINVAL,
		    "the destination was not prepared: there is nothing whole to run");
	int r = j->lazy ? end_incomplete(cfg, j, err) : 0;
	if (!r)
		r = settle_launch(cfg, j, err);
	if (!r)
		r = write_state(cfg, j, JOURNAL_DONE, err);
	if (r)
		return cr_err_ctx(err, "letting the tasks run");
	journal_forget_kept(cfg->state_dir, j);
	tidy_up(cfg, j);
	snprintf(text, n, "the tasks run here now");
	return 0;
}

int settle_commit(const struct agent_config *cfg, struct journal *j, char *text, size_t n,
		  struct cr_err *err)
{
	if (!is_source(j))
		return run_here(cfg, j, text, n, err);
	/* in every other state they may be the only copy */
	if (j->state != JOURNAL_COMMIT && j->state != JOURNAL_DONE)
		return cr_err_set(
		    err, CR_ERR_INPUT, EINVAL,
		    "the destination was never told to run the tasks: they stay here");
	kill_tasks(j);
	remove_segments(j);
	carried_give(j);
	snprintf(text, n, "the source's tasks were ended%s",
		 j->lazy && j->state == JOURNAL_COMMIT ? ": no more pages come from here" : "");
	drop(cfg, j);
	return 0;
}

/* They are what they were; then the destination is to hear of it, for as long as it takes. */
static int run_on(const struct agent_config *cfg, struct journal *j, struct cr_err *err)
{
	if (j->state == JOURNAL_DONE)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "the tasks run at the destination");
	if (j->state != JOURNAL_ABORTED) {
		/* from PREPARED on they were held by SIGSTOP; a program that handles SIGCONT does
		 * not see one without need. In the executor they leave it by themselves, once they
		 * notice that its agent is gone. */
		if (j->state == JOURNAL_PREPARED || j->state == JOURNAL_COMMIT) {
			mend_network(j);
			mend_ttys(cfg, j);
			continue_tasks(j);
		}
		if (*j->peer)
			return write_state(cfg, j, JOURNAL_ABORTED, err);
	}
	drop(cfg, j);
	return 0;
}

int settle_abort(const struct agent_config *cfg, struct journal *j, char *text, size_t n,
		 struct cr_err *err)
{
	int r;

	if (is_source(j)) {
		r = run_on(cfg, j, err);
		snprintf(text, n, "the source's tasks run on");
		return r;
	}
	if (j->state == JOURNAL_DONE)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "the tasks run here already");
	if (j->state == JOURNAL_COMMIT)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL,
				  "the source has given the tasks up: they run here, or nowhere");
	r = kill_cgroup(j, err);
	if (r)
		return r;
	snprintf(text, n, "nothing of the tasks is left here");
	drop(cfg, j);
	return 0;
}

/* ---- all of them ---- */

/* The destination runs the tasks, or is about to, and needs pages of those that are stopped here:
 * they are served in the place of the process that died. */
static int settle_serve(const struct agent_config *cfg, struct journal *j, struct cr_err *err)
{
	_cleanup_free_ pid_t *pids = calloc(j->pids.n + 1, sizeof(*pids));
	_cleanup_free_ uint64_t *starts = calloc(j->pids.n + 1, sizeof(*starts));
	_cleanup_(serve_files_done) struct serve_files files = {0};
	struct serve_peer peer = {
	    .address = j->peer, .host = cfg->host, .timeout_ms = SERVE_TIMEOUT_MS};
	struct serve sv = {.pids = pids, .starts = starts};
	struct serve_child child = {0};
	char text[200];

	if (!pids || !starts)
		return cr_err_oom(err);
	if (!mig_id_parse(j->id, &peer.id) || !journal_token(j, &peer.token))
		return cr_err_set(err, CR_ERR_IO, EBADMSG, "journal without an id or a token");
	vec_foreach (p, &j->pids) {
		starts[sv.n_pids] = p->starttime;
		pids[sv.n_pids++] = p->pid;
	}
	/* it may not have heard of the decision */
	int r = settle_ask_peer(cfg, j, MSG_COMMIT, MSG_RUNNING, ANSWER_TIMEOUT_MS, NULL, err);
	if (!r)
		r = serve_files_open(&files, j, err);
	sv.files = files.list.v;
	sv.n_files = files.list.n;
	if (!r)
		r = serve_run(&sv, &peer, &child, err);
	return r ? r : settle_commit(cfg, j, text, sizeof(text), err);
}

static int settle_source(const struct agent_config *cfg, struct journal *j, struct cr_err *err)
{
	char text[200];
	int r = 0;

	if (j->state == JOURNAL_COMMIT)
		leave_network(j);
	if (j->state == JOURNAL_COMMIT && j->lazy)
		return settle_serve(cfg, j, err);
	if (j->state == JOURNAL_COMMIT) {
		/* the destination has to be asked again, until it has them */
		r = settle_ask_peer(cfg, j, MSG_COMMIT, MSG_RUNNING, ANSWER_TIMEOUT_MS, NULL, err);
		return r ? r : settle_commit(cfg, j, text, sizeof(text), err);
	}
	if (j->state == JOURNAL_DONE)
		return settle_commit(cfg, j, text, sizeof(text), err);
	if (j->state < JOURNAL_COMMIT)
		/* never decided: the tasks run on here, whatever the other side holds is undone */
		r = settle_abort(cfg, j, text, sizeof(text), err);
	if (r || j->state != JOURNAL_ABORTED) /* or nobody there ever heard of it */
		return r;
	r = settle_ask_peer(cfg, j, MSG_ABORT, MSG_ABORTED, ANSWER_TIMEOUT_MS, NULL, err);
	if (r && !settle_peer_forgot(r, err))
		return r;
	drop(cfg, j);
	return 0;
}

static int settle_dest(const struct agent_config *cfg, struct journal *j, struct cr_err *err)
{
	char text[200];

	if (j->state == JOURNAL_PREPARING || j->state == JOURNAL_ABORTED)
		return settle_abort(cfg, j, text, sizeof(text), err);
	if (j->state == JOURNAL_COMMIT)
		return settle_commit(cfg, j, text, sizeof(text), err);
	if (j->lazy && j->state == JOURNAL_PREPARED)
		return end_incomplete(cfg, j, err);
	if (j->state == JOURNAL_DONE) {
		drop(cfg, j);
		return 0;
	}
	return cr_err_set(err, CR_ERR_PEER, EAGAIN, "prepared: waits for the source's word");
}

/* In a process of its own: one that waits for its peer keeps no other from being settled. */
static enum settled settle_journal(const struct agent_config *cfg, const struct journal *known)
{
	struct cr_err err = {0};
	struct journal j;
	int lock = journal_lock(cfg->state_dir, known->id, known->role, HOLDER_SETTLES, 0, &err);

	if (lock < 0)
		return SETTLED_NOT;
	if (journal_read(cfg->state_dir, known->id, known->role, &j, &err))
		return SETTLED_ALL; /* meanwhile */
	int r = is_source(&j) ? settle_source(cfg, &j, &err) : settle_dest(cfg, &j, &err);
	if (r)
		log_info("migration %s (%s, %s): %s", j.id, j.role, journal_state_name(j.state),
			 err.msg);
	else
		log_info("migration %s (%s): settled", j.id, j.role);
	enum settled s = r ? SETTLED_NOT : j.state == JOURNAL_DONE ? SETTLED_LATER : SETTLED_ALL;
	journal_done(&j);
	return s;
}

struct settling {
	const struct agent_config *cfg;
	int undecided, kept;
	unsigned int children;
};

/* One of another daemon's children, which has not noticed yet: nobody will tell us when it ends. */
static bool is_stranger(const struct journal_holder *h)
{
	struct proc_stat st;
	struct cr_err ignored = {0};

	return !h->pid || proc_stat_read(h->pid, h->pid, &st, &ignored) || st.ppid != getppid();
}

static int settle_one(struct journal *j, void *arg)
{
	struct settling *s = arg;
	struct journal_holder h;

	if (journal_is_held(s->cfg->state_dir, j->id, j->role, &h)) {
		s->undecided += is_stranger(&h);
		return 0;
	}
	if (!is_source(j) && j->state == JOURNAL_DONE && time(NULL) - j->since_sec < KEEP_DONE_S) {
		s->kept++;
		return 0;
	}
	pid_t pid = fork();
	if (pid == 0)
		_exit((int)settle_journal(s->cfg, j));
	if (pid > 0)
		s->children++;
	else
		s->undecided++;
	return 0;
}

enum settled settle_all(const struct agent_config *cfg)
{
	struct settling s = {.cfg = cfg};
	struct cr_err err = {0};

	if (journal_each(cfg->state_dir, settle_one, &s, journal_warn, &err))
		log_warn("%s", err.msg);
	for (; s.children; s.children--) {
		int st;

		if (wait(&st) < 0)
			break;
		s.undecided += !WIFEXITED(st) || WEXITSTATUS(st) == SETTLED_NOT;
		s.kept += WIFEXITED(st) && WEXITSTATUS(st) == SETTLED_LATER;
	}
	sweep_locks(cfg);
	sweep_cgroups();
	return s.undecided ? SETTLED_NOT : s.kept ? SETTLED_LATER : SETTLED_ALL;
}
