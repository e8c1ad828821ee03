/* A tree of processes across a move: ids, groups and sessions, pipes between parent and child,
 * memory shared copy-on-write and for real, orphans adopted by a subreaper, and zombies that are
 * reaped only afterwards.
 *
 * --procs N (default 50), --zombies N (default 4), --fan N (default 3), --mib N shared by fork
 * (default 1) */
#include "workload.h"
#include <poll.h>
#include <sys/prctl.h>

enum { MAX_PROCS = 400, MAX_FAN = 8, STILL_NS = 2000000000 };

struct node { /* what a process of the tree is; in memory that all share */
	pid_t pid, ppid, pgid, sid;
	_Atomic uint64_t turns;
	_Atomic uint64_t echoed;
	_Atomic bool up;
};
static struct {
	struct node nodes[MAX_PROCS];
	_Atomic int n_up;
	_Atomic uint64_t together; /* incremented by all: the sum of what each says it added */
	_Atomic uint64_t added[MAX_PROCS];
} * shared;

struct child {
	int index, to, from;
	pid_t pid;
	uint64_t sent;
	bool waiting;
};

static int n_procs, fan;
static uint8_t *cow; /* written before the fork, then some pages by each process */
static size_t cow_pages;
static uint64_t cow_gen, *cow_sums;

/* ---- memory ---- */

/* Every process owns the pages with (page % 16) == (index % 15); page % 16 == 15 is nobody's. */
static bool owns(int index, size_t page)
{
	return page % 16 == (size_t)index % 15;
}

static void write_own(int index)
{
	cow_gen++;
	for (size_t p = 0; p < cow_pages; p++)
		if (owns(index, p))
			wl_page_fill(cow + p * WL_PAGE, p + ((uint64_t)index << 32), cow_gen);
}

/* Pages of others are as they were at the fork, whatever those others do with theirs. */
static uint64_t page_sum(size_t p)
{
	const uint64_t *w = (uint64_t *)(cow + p * WL_PAGE);
	uint64_t sum = 0;

	for (size_t i = 0; i < WL_PAGE / 8; i++)
		sum = sum * 31 + w[i];
	return sum;
}

static void note_memory(void)
{
	cow_sums = malloc(cow_pages * sizeof(*cow_sums));
	wl_must(cow_sums, "malloc");
	for (size_t p = 0; p < cow_pages; p++)
		cow_sums[p] = page_sum(p);
}

static void check_memory(int index)
{
	for (size_t p = 0; p < cow_pages; p++) {
		const uint64_t *w = (uint64_t *)(cow + p * WL_PAGE);

		if (owns(index, p))
			wl_page_check(w, p + ((uint64_t)index << 32), cow_gen,
				      "page unshared after fork");
		else
			wl_check(page_sum(p) == cow_sums[p],
				 "page %zu as shared by fork with process %d changed: it says id "
				 "0x%lx generation %lu",
				 p, index, w[0], w[1]);
	}
}

/* ---- one process of the tree ---- */

static void check_ids(int index)
{
	const struct node *n = &shared->nodes[index];

	wl_same("pid", n->pid, getpid());
	if (index || getppid() != 1) /* who started the first may end at any time */
		wl_same("parent", n->ppid, getppid());
	wl_same("process group", n->pgid, getpgrp());
	wl_same("session", n->sid, getsid(0));
}

static void take_ids(int index)
{
	struct node *n = &shared->nodes[index];

	if (index && index % 7 == 3)
		wl_must(setsid() == getpid(), "setsid");
	else if (index && index % 5 == 2)
		wl_must(!setpgid(0, 0), "setpgid");
	n->pid = getpid();
	n->ppid = getppid();
	n->pgid = getpgrp();
	n->sid = getsid(0);
	n->up = true;
	shared->n_up++;
}

/* Answer a question of the parent: the number, plus the index. False once the parent closed the
 * pipe. */
static bool answer(int index, int in, int out)
{
	struct pollfd pfd = {.fd = in, .events = POLLIN};
	uint64_t v;
	ssize_t n;

	if (poll(&pfd, 1, 20) <= 0) /* EINTR and timeout alike */
		return true;
	n = read(in, &v, sizeof(v));
	if (!n)
		return false;
	wl_same("question on a pipe", sizeof(v), n);
	v += index;
	wl_same("answer on a pipe", sizeof(v), write(out, &v, sizeof(v)));
	shared->nodes[index].echoed++;
	return true;
}

static void ask(struct child *c)
{
	struct pollfd pfd = {.fd = c->from, .events = POLLIN};
	uint64_t v;

	if (!c->waiting) {
		c->sent = c->sent * 3 + 1;
		wl_same("question to a child", sizeof(v), write(c->to, &c->sent, sizeof(c->sent)));
		c->waiting = true;
	} else if (poll(&pfd, 1, 0) > 0) {
		wl_same("answer of a child", sizeof(v), read(c->from, &v, sizeof(v)));
		wl_same("a child's answer", c->sent + c->index, v);
		c->waiting = false;
	}
}

static void run_node(int index, int in, int out);

/* earlier: the children started before, whose pipes the new one must not hold open. */
static void start_child(int index, struct child *c, const struct child *earlier)
{
	int down[2], up[2];

	wl_must(!pipe2(down, O_CLOEXEC) && !pipe2(up, O_CLOEXEC), "pipe2");
	*c = (struct child){.index = index, .to = down[1], .from = up[0], .sent = index};
	c->pid = fork();
	wl_must(c->pid >= 0, "fork");
	if (!c->pid) {
		close(down[1]);
		close(up[0]);
		for (; earlier < c; earlier++) {
			close(earlier->to);
			close(earlier->from);
		}
		run_node(index, down[0], up[1]);
		_exit(0);
	}
	close(down[0]);
	close(up[1]);
}

static int start_children(int index, struct child *kids)
{
	int n = 0;

	for (int i = 0; i < fan && index * fan + 1 + i < n_procs; i++)
		start_child(index * fan + 1 + i, &kids[n++], kids);
	return n;
}

static void turn(int index, struct child *kids, int n_kids)
{
	struct node *n = &shared->nodes[index];

	n->turns++;
	shared->added[index]++;
	shared->together++;
	check_ids(index);
	for (int i = 0; i < n_kids; i++)
		ask(&kids[i]);
	if (n->turns % 8 == 0)
		check_memory(index);
	if (n->turns % 16 == 0)
		write_own(index);
}

/* A child ends when its parent closes the question pipe; the exit status says who it was. */
static void end_children(struct child *kids, int n_kids)
{
	int status;

	for (int i = 0; i < n_kids; i++) {
		close(kids[i].to);
		wl_same("waitpid", kids[i].pid, waitpid(kids[i].pid, &status, 0));
		wl_check(WIFEXITED(status) && WEXITSTATUS(status) == kids[i].index % 100,
			 "exit status of process %d: expected %d, got 0x%x", kids[i].index,
			 kids[i].index % 100, status);
		close(kids[i].from);
	}
}

static void run_node(int index, int in, int out)
{
	struct child kids[MAX_FAN];
	int n_kids;

	prctl(PR_SET_NAME, "forktree-child");
	take_ids(index);
	note_memory();
	write_own(index);
	n_kids = start_children(index, kids);
	while (answer(index, in, out)) {
		turn(index, kids, n_kids);
		if (getppid() != shared->nodes[index].ppid)
			_exit(1); /* the parent failed and said so */
	}
	check_memory(index);
	end_children(kids, n_kids);
	_exit(index % 100);
}

/* ---- zombies and orphans ---- */

struct zombie {
	pid_t pid;
	int status;
};

static struct zombie make_zombie(int i)
{
	struct zombie z = {.pid = fork()};
	siginfo_t si;

	wl_must(z.pid >= 0, "fork");
	if (!z.pid) {
		prctl(PR_SET_NAME, "forktree-dead");
		if (i % 2)
			raise(SIGKILL);
		_exit(40 + i);
	}
	z.status = i % 2 ? SIGKILL : (40 + i) << 8;
	wl_must(!waitid(P_PID, z.pid, &si, WEXITED | WNOWAIT), "waitid");
	return z;
}

static void reap(const struct zombie *z)
{
	siginfo_t si = {0};
	int status;

	wl_must(!waitid(P_PID, z->pid, &si, WEXITED | WNOWAIT), "waitid for a zombie");
	wl_same("zombie's si_code", z->status & 0x7f ? CLD_KILLED : CLD_EXITED, si.si_code);
	wl_same("waitpid for a zombie", z->pid, waitpid(z->pid, &status, 0));
	wl_check(status == z->status, "zombie %d: expected status 0x%x, got 0x%x", z->pid,
		 z->status, status);
}

/* A grandchild whose parent is gone: ours since we are a subreaper. */
static pid_t make_orphan(int *ret_release)
{
	int p[2], ids[2];
	pid_t middle, orphan;
	char c;

	wl_must(!prctl(PR_SET_CHILD_SUBREAPER, 1), "PR_SET_CHILD_SUBREAPER");
	wl_must(!pipe2(p, O_CLOEXEC) && !pipe2(ids, O_CLOEXEC), "pipe2");
	middle = fork();
	if (!middle) {
		orphan = fork();
		if (orphan)
			_exit(write(ids[1], &orphan, sizeof(orphan)) != sizeof(orphan));
		close(p[1]);
		while (read(p[0], &c, 1) < 0 && errno == EINTR)
			;
		_exit(77);
	}
	wl_same("waitpid", middle, waitpid(middle, NULL, 0));
	wl_same("orphan's pid", sizeof(orphan), read(ids[0], &orphan, sizeof(orphan)));
	close(ids[0]);
	close(ids[1]);
	close(p[0]);
	*ret_release = p[1];
	return orphan;
}

/* ---- the root ---- */

/* Where all of us stood still together, nobody is to blame. */
static void check_progress(uint64_t *seen, uint64_t *since)
{
	static uint64_t last;
	const uint64_t now = wl_ns(CLOCK_MONOTONIC);
	const bool stalled = now - last > STILL_NS;

	last = now;

	for (int i = 0; i < n_procs; i++) {
		const uint64_t t = shared->nodes[i].turns;

		if (t != seen[i] || !since[i] || stalled) {
			seen[i] = t;
			since[i] = now;
		}
		wl_check(now - since[i] < 5ull * STILL_NS,
			 "process %d (pid %d) stands still after %lu turns", i,
			 shared->nodes[i].pid, t);
	}
}

static void set_up_memory(void)
{
	shared =
	    mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cow_pages = wl_opt("mib", 1) * 256;
	cow = mmap(NULL, cow_pages * WL_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		   -1, 0);
	wl_must(shared != MAP_FAILED && cow != MAP_FAILED, "mmap");
	for (size_t p = 0; p < cow_pages; p++)
		wl_page_fill(cow + p * WL_PAGE, p, 1);
}

static void finish(struct child *kids, int n_kids, struct zombie *z, int n_z, pid_t orphan,
		   int release)
{
	uint64_t sum = 0;
	int status;

	check_memory(0);
	end_children(kids, n_kids);
	for (int i = 0; i < n_z; i++)
		reap(&z[i]);
	close(release);
	wl_same("waitpid for the orphan", orphan, waitpid(orphan, &status, 0));
	wl_same("orphan's exit status", 77 << 8, status);
	wl_check(waitpid(-1, &status, WNOHANG) < 0 && errno == ECHILD, "children are left");
	for (int i = 0; i < n_procs; i++)
		sum += shared->added[i];
	wl_same("counter that all increment", sum, shared->together);
}

int main(int argc, char **argv)
{
	static uint64_t seen[MAX_PROCS], since[MAX_PROCS];
	struct child kids[MAX_FAN];
	struct zombie zombies[64];
	int n_kids, n_zombies, release;

	wl_init(argc, argv);
	signal(SIGPIPE, SIG_IGN); /* a child that died is to be told by what it says */
	n_procs = wl_opt("procs", 50);
	fan = wl_opt("fan", 3);
	n_zombies = wl_opt("zombies", 4);
	wl_check(n_procs <= MAX_PROCS && fan <= MAX_FAN && n_zombies <= 64,
		 "too many processes asked for");
	set_up_memory();
	take_ids(0);
	note_memory();
	write_own(0);
	/* The orphan first: it must not inherit the pipes to the children. */
	const pid_t orphan = make_orphan(&release);
	n_kids = start_children(0, kids);
	for (int i = 0; i < n_zombies; i++)
		zombies[i] = make_zombie(i);
	while (shared->n_up < n_procs)
		wl_sleep_us(1000);
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		turn(0, kids, n_kids);
		check_progress(seen, since);
		wl_sleep_us(10000);
	}
	finish(kids, n_kids, zombies, n_zombies, orphan, release);
	wl_done();
}
