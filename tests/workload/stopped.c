/* Children that signals have stopped: they stay stopped across a move, their parent has heard of it
 * as it had, and at the end they go on by SIGCONT.
 *
 *   told    stopped by SIGTSTP, in a process group of its own; waited for
 *   fresh   stopped by SIGSTOP, with several threads; not waited for
 *   reader  stopped by SIGTTIN; not waited for
 *   orphan  stopped by SIGSTOP, in a session of its own that nobody looks after; waited for
 *
 * --again N: each is let go on, and stopped again, every N ms. Each counts while it runs. */
#include "workload.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { KIDS = 4, THREADS = 3 };
static const struct kid {
	const char *name;
	int signal;
	bool waited_for, session;
	int threads;
} kinds[KIDS] = {
    {"told", SIGTSTP, true, false, 0},
    {"fresh", SIGSTOP, false, false, THREADS},
    {"reader", SIGTTIN, false, false, 0},
    {"orphan", SIGSTOP, true, true, 0},
};

struct counts {
	_Atomic uint64_t runs[THREADS + 1];
	_Atomic uint64_t continued; /* SIGCONTs that were handled */
};
static struct counts *counts; /* KIDS of them, shared */
static pid_t pids[KIDS];
static _Atomic int children_told;
static int signals_then;

static void on_child(int sig)
{
	(void)sig;
	children_told++;
}

/* ---- a child ---- */

static _Thread_local int own_slot;
static struct counts *own;

static void on_cont(int sig)
{
	(void)sig;
	own->continued++;
}

static void *count(void *arg)
{
	own_slot = (int)(intptr_t)arg;
	for (;;) {
		own->runs[own_slot]++;
		wl_sleep_us(500);
	}
	return NULL;
}

static void child_main(const struct kid *k, struct counts *c)
{
	struct sigaction sa = {.sa_handler = on_cont};
	pthread_t t;

	own = c;
	if (k->session)
		wl_must(setsid() > 0, "setsid");
	else
		wl_must(!setpgid(0, 0), "setpgid");
	sigaction(SIGCONT, &sa, NULL);
	signal(SIGCHLD, SIG_DFL);
	for (int i = 1; i <= k->threads; i++)
		wl_must(!pthread_create(&t, NULL, count, (void *)(intptr_t)i), "pthread_create");
	count(NULL);
}

/* ---- the parent ---- */

static char state_of(pid_t pid)
{
	char path[64], text[300] = "";
	const char *p;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	wl_must(fd >= 0, path);
	wl_check(read(fd, text, sizeof(text) - 1) > 0, "%s: %s", path, strerror(errno));
	close(fd);
	p = strrchr(text, ')');
	return p ? p[2] : '?';
}

/* All of its threads have counted. */
static bool has_run(int i, const struct counts *since)
{
	for (int k = 0; k <= kinds[i].threads; k++)
		if (counts[i].runs[k] == since->runs[k])
			return false;
	return true;
}

static struct counts seen[KIDS];

static void stop_kid(int i)
{
	int told = children_told;
	siginfo_t si = {0};

	wl_must(!kill(pids[i], kinds[i].signal), "kill");
	while (state_of(pids[i]) != 'T' || children_told == told)
		wl_sleep_us(200);
	if (kinds[i].waited_for) {
		wl_must(!waitid(P_PID, pids[i], &si, WSTOPPED), "waitid");
		wl_same("the stopping signal", kinds[i].signal, si.si_status);
	}
	seen[i] = counts[i];
}

static void check_stopped(int i)
{
	siginfo_t si = {0};
	uint64_t since = wl_ns(CLOCK_MONOTONIC);

	/* other states for a moment, while it is looked at from within */
	while (state_of(pids[i]) != 'T') {
		wl_check(wl_ns(CLOCK_MONOTONIC) - since < 5000000000, "%s is in state %c",
			 kinds[i].name, state_of(pids[i]));
		wl_sleep_us(200);
	}
	for (int k = 0; k <= kinds[i].threads; k++)
		wl_same("a stopped thread's count", seen[i].runs[k], counts[i].runs[k]);
	wl_must(!waitid(P_PID, pids[i], &si, WSTOPPED | WCONTINUED | WNOHANG | WNOWAIT), "waitid");
	if (kinds[i].waited_for)
		wl_same("a stop that was waited for", 0, si.si_pid);
	else
		wl_same("the stop that waits to be told", kinds[i].signal, si.si_status);
}

static void continue_kid(int i)
{
	siginfo_t si = {0};

	if (!kinds[i].waited_for) {
		wl_must(!waitid(P_PID, pids[i], &si, WSTOPPED | WNOHANG), "waitid");
		wl_same("told at last", kinds[i].signal, si.si_status);
		si.si_pid = 0;
		wl_must(!waitid(P_PID, pids[i], &si, WSTOPPED | WNOHANG), "waitid");
		wl_same("told twice", 0, si.si_pid);
	}
	wl_must(!kill(pids[i], SIGCONT), "kill");
	wl_must(!waitid(P_PID, pids[i], &si, WCONTINUED), "waitid");
	wl_same("continued", CLD_CONTINUED, si.si_code);
	while (!has_run(i, &seen[i]) || counts[i].continued == seen[i].continued)
		wl_sleep_us(200);
	wl_same("SIGCONTs handled", seen[i].continued + 1, counts[i].continued);
}

int main(int argc, char **argv)
{
	struct sigaction sa = {.sa_handler = on_child};
	uint64_t since;
	long again;

	wl_init(argc, argv);
	again = wl_opt("--again", 0);
	counts = mmap(NULL, KIDS * sizeof(*counts), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	wl_must(counts != MAP_FAILED, "mmap");
	sigaction(SIGCHLD, &sa, NULL);
	for (int i = 0; i < KIDS; i++) {
		pids[i] = fork();
		wl_must(pids[i] >= 0, "fork");
		if (!pids[i])
			child_main(&kinds[i], &counts[i]);
		while (!has_run(i, &seen[i]))
			wl_sleep_us(200);
		stop_kid(i);
	}
	signals_then = children_told;
	since = wl_ns(CLOCK_MONOTONIC);
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		for (int i = 0; i < KIDS; i++)
			check_stopped(i);
		wl_same("signals of children", signals_then, children_told);
		if (again && wl_ns(CLOCK_MONOTONIC) - since > (uint64_t)again * 1000000) {
			for (int i = 0; i < KIDS; i++) {
				continue_kid(i);
				stop_kid(i);
			}
			signals_then = children_told;
			since = wl_ns(CLOCK_MONOTONIC);
		}
		wl_sleep_us(2000);
	}
	for (int i = 0; i < KIDS; i++) {
		check_stopped(i);
		continue_kid(i);
		kill(pids[i], SIGKILL);
		waitpid(pids[i], NULL, 0);
	}
	wl_done();
}
