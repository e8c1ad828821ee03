/* Threads across a move: ids, thread-local storage, names, masks, alternate stacks, mutexes,
 * condition variables with absolute timeouts, robust mutexes, blocked system calls, what only the
 * thread itself can tell (another thing each turn), and creating and joining threads afterwards.
 *
 * --threads N (default 8) */
#include "workload.h"
#include <pthread.h>
#include <semaphore.h>
#include <sys/prctl.h>

enum { ALT_BYTES = 16384, LATE_MS = 5000 };

struct worker {
	pthread_t thread;
	int index;
	pid_t tid;
	_Atomic uint64_t turns;
	uint64_t turns_seen, moved_at_ns;
	char *alt;
	sigset_t mask;
	void *robust_head;
	bool handler_ran;
};

static struct worker *workers;
static int n_workers;
static _Atomic bool stopping;
static pthread_barrier_t barrier;

static __thread struct {
	int index;
	uint64_t turns;
	char fill[200];
} tls = {.index = -1};

/* ---- things shared by the threads ---- */

static pthread_mutex_t pair_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t pair[2];
static pthread_mutex_t ball_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ball_cond; /* CLOCK_MONOTONIC */
static uint64_t ball;
static pthread_mutex_t never_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never_cond; /* CLOCK_MONOTONIC */
static pthread_mutex_t robust;    /* held by worker 3 until it ends */

/* ---- what each thread can say about itself ---- */

static void on_usr1(int sig)
{
	struct worker *w = &workers[tls.index];
	char here;

	(void)sig;
	wl_check(&here >= w->alt && &here < w->alt + ALT_BYTES,
		 "handler of thread %d not on its stack: %p", tls.index, (void *)&here);
	w->handler_ran = true;
}

/* What only the thread itself can tell is another thing each turn: what was told some time ago is
 * not believed. */
static size_t alt_bytes(const struct worker *w)
{
	return ALT_BYTES - w->turns % 3 * 1024;
}

static int parent_death_signal(const struct worker *w)
{
	return w->turns % 2 ? SIGUSR2 : SIGRTMIN + w->index % 28; /* both are blocked */
}

static unsigned long timer_slack(const struct worker *w)
{
	return 60000 + w->turns % 5 * 1000;
}

static void change_self(const struct worker *w)
{
	const stack_t alt = {.ss_sp = w->alt, .ss_size = alt_bytes(w)};

	wl_must(!sigaltstack(&alt, NULL), "sigaltstack");
	prctl(PR_SET_PDEATHSIG, parent_death_signal(w));
	prctl(PR_SET_TIMERSLACK, timer_slack(w));
}

static void check_changed(const struct worker *w)
{
	int pdeathsig = 0;
	stack_t alt;

	wl_must(!sigaltstack(NULL, &alt), "sigaltstack");
	wl_same("alternate stack's size", alt_bytes(w), alt.ss_size);
	prctl(PR_GET_PDEATHSIG, &pdeathsig);
	wl_same("parent death signal", parent_death_signal(w), pdeathsig);
	wl_same("timer slack", timer_slack(w), prctl(PR_GET_TIMERSLACK));
}

static void check_self(struct worker *w)
{
	char name[16], want[16];
	void *head = NULL;
	size_t len = 0;
	stack_t alt;
	sigset_t mask;

	wl_same("thread-local index", w->index, tls.index);
	wl_same("thread-local turns", w->turns, tls.turns);
	for (size_t i = 0; i < sizeof(tls.fill); i++)
		wl_same("thread-local bytes", (char)(w->index + i), tls.fill[i]);
	wl_same("thread id", w->tid, syscall(SYS_gettid));
	prctl(PR_GET_NAME, name);
	snprintf(want, sizeof(want), "wl-thread-%d", w->index);
	wl_check(!strcmp(name, want), "thread name: expected %s, got %s", want, name);
	wl_must(!sigaltstack(NULL, &alt), "sigaltstack");
	wl_same("alternate stack", (uintptr_t)w->alt, (uintptr_t)alt.ss_sp);
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	for (int s = 1; s < 65; s++)
		wl_check(sigismember(&mask, s) == sigismember(&w->mask, s),
			 "mask of thread %d, signal %d: expected %d", w->index, s,
			 sigismember(&w->mask, s));
	syscall(SYS_get_robust_list, 0, &head, &len);
	wl_same("robust list", (uintptr_t)w->robust_head, (uintptr_t)head);
}

static void set_up_self(struct worker *w)
{
	const stack_t alt = {.ss_sp = w->alt, .ss_size = ALT_BYTES};
	char name[16];
	size_t len;

	tls.index = w->index;
	for (size_t i = 0; i < sizeof(tls.fill); i++)
		tls.fill[i] = w->index + i;
	w->tid = syscall(SYS_gettid);
	snprintf(name, sizeof(name), "wl-thread-%d", w->index);
	prctl(PR_SET_NAME, name);
	sigaltstack(&alt, NULL);
	sigemptyset(&w->mask);
	sigaddset(&w->mask, SIGRTMIN + w->index % 28);
	sigaddset(&w->mask, SIGUSR2);
	pthread_sigmask(SIG_SETMASK, &w->mask, NULL);
	syscall(SYS_get_robust_list, 0, &w->robust_head, &len);
}

/* ---- what they do all the time ---- */

static uint64_t deadline_in(struct timespec *ts, long ms)
{
	const uint64_t t = wl_ns(CLOCK_MONOTONIC) + ms * 1000000ull;

	*ts = wl_timespec(t);
	return t;
}

static void check_on_time(const char *what, uint64_t deadline)
{
	const uint64_t now = wl_ns(CLOCK_MONOTONIC);

	wl_check(now >= deadline, "%s: woke %lu us early", what, (deadline - now) / 1000);
	wl_check(now - deadline < LATE_MS * 1000000ull, "%s: woke %lu ms late", what,
		 (now - deadline) / 1000000);
}

static void do_cond_timeout(long ms)
{
	struct timespec ts;
	const uint64_t t = deadline_in(&ts, ms);
	int r;

	pthread_mutex_lock(&never_lock);
	do
		r = pthread_cond_timedwait(&never_cond, &never_lock, &ts);
	while (!r); /* spurious wake-ups are allowed */
	pthread_mutex_unlock(&never_lock);
	wl_same("pthread_cond_timedwait", ETIMEDOUT, r);
	check_on_time("condition variable", t);
}

static void do_pair(long ms)
{
	for (int i = 0; i < 100; i++) {
		pthread_mutex_lock(&pair_lock);
		wl_same("counters under one mutex", pair[0], pair[1]);
		pair[0]++;
		if (i % 10 == 0)
			sched_yield();
		pair[1]++;
		pthread_mutex_unlock(&pair_lock);
	}
	wl_sleep_us(ms * 100);
}

/* Any two threads play; each only waits for the ball to change or for its time to be over. */
static void do_ball(long ms)
{
	struct timespec ts;
	uint64_t was;

	deadline_in(&ts, ms);
	pthread_mutex_lock(&ball_lock);
	was = ball++;
	pthread_cond_signal(&ball_cond);
	while (ball == was + 1)
		if (pthread_cond_timedwait(&ball_cond, &ball_lock, &ts) == ETIMEDOUT)
			break;
	pthread_mutex_unlock(&ball_lock);
}

static void do_sleep(long ms)
{
	struct timespec ts;
	const uint64_t t = deadline_in(&ts, ms);
	int r;

	/* A signal handler that ran would be EINTR; without one an absolute sleep is restarted. */
	r = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
	wl_same("clock_nanosleep until an absolute time", 0, r);
	check_on_time("clock_nanosleep", t);
}

static void do_relative_sleep(long ms)
{
	const uint64_t t = wl_ns(CLOCK_MONOTONIC) + ms * 1000000ull;
	struct timespec ts = wl_timespec(ms * 1000000ull), rest = {0};
	int r;

	while ((r = nanosleep(&ts, &rest)) < 0 && errno == EINTR)
		ts = rest;
	wl_must(!r, "nanosleep");
	check_on_time("nanosleep", t);
}

static void do_signal(struct worker *w, long ms)
{
	w->handler_ran = false;
	syscall(SYS_tgkill, getpid(), w->tid, SIGUSR1);
	wl_check(w->handler_ran, "signal to thread %d itself was not handled", w->index);
	do_sleep(ms);
}

static void do_semaphore(long ms)
{
	struct timespec ts;
	sem_t sem;
	int r;

	sem_init(&sem, 0, 0);
	const uint64_t t = deadline_in(&ts, ms);
	do
		r = sem_clockwait(&sem, CLOCK_MONOTONIC, &ts);
	while (r < 0 && errno == EINTR);
	wl_check(r < 0 && errno == ETIMEDOUT, "sem_clockwait: expected ETIMEDOUT, got %d (%s)", r,
		 strerror(errno));
	check_on_time("semaphore", t);
	sem_destroy(&sem);
}

static void take_turn(struct worker *w)
{
	const long ms = 20 + w->index % 37;

	switch (w->index % 8) {
	case 0:
		return do_cond_timeout(ms);
	case 1:
		return do_pair(ms);
	case 2:
	case 5:
		return do_ball(ms);
	case 3:
		return do_sleep(ms);
	case 4:
		return do_relative_sleep(ms);
	case 6:
		return do_signal(w, ms);
	case 7:
		return do_semaphore(ms);
	}
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;

	set_up_self(w);
	if (w->index == 3)
		pthread_mutex_lock(&robust);
	pthread_barrier_wait(&barrier);
	while (!stopping) {
		change_self(w);
		take_turn(w);
		check_changed(w);
		tls.turns++;
		w->turns++;
		check_self(w);
	}
	return (void *)(w->turns * 2 + 1); /* the robust mutex is left held */
}

/* ---- the main thread ---- */

static int count_threads(void)
{
	char buf[2048];
	int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC), n = -1;
	ssize_t len = read(fd, buf, sizeof(buf) - 1);

	close(fd);
	buf[len < 0 ? 0 : len] = 0;
	char *p = strstr(buf, "\nThreads:");
	wl_check(p && sscanf(p, "\nThreads: %d", &n) == 1, "no thread count in /proc/self/status");
	return n;
}

static void init_locks(void)
{
	pthread_condattr_t ca;
	pthread_mutexattr_t ma;

	pthread_condattr_init(&ca);
	pthread_condattr_setclock(&ca, CLOCK_MONOTONIC);
	pthread_cond_init(&ball_cond, &ca);
	pthread_cond_init(&never_cond, &ca);
	pthread_mutexattr_init(&ma);
	pthread_mutexattr_setrobust(&ma, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&robust, &ma);
}

static void start_workers(void)
{
	pthread_attr_t attr;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 128 * 1024);
	pthread_barrier_init(&barrier, NULL, n_workers + 1);
	workers = calloc(n_workers, sizeof(*workers));
	for (int i = 0; i < n_workers; i++) {
		workers[i].index = i;
		workers[i].alt = mmap(NULL, ALT_BYTES, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		wl_must(workers[i].alt != MAP_FAILED, "mmap");
		wl_must(
		    !(errno = pthread_create(&workers[i].thread, &attr, worker_main, &workers[i])),
		    "pthread_create");
	}
	pthread_barrier_wait(&barrier);
}

/* No thread stands still for long, unless all of us do. */
static void check_progress(void)
{
	static uint64_t last;
	const uint64_t now = wl_ns(CLOCK_MONOTONIC);
	const bool stalled = now - last > 2000000000ull;

	last = now;

	for (int i = 0; i < n_workers; i++) {
		struct worker *w = &workers[i];

		if (w->turns != w->turns_seen || !w->moved_at_ns || stalled) {
			w->turns_seen = w->turns;
			w->moved_at_ns = now;
		}
		wl_check(now - w->moved_at_ns < 10000000000ull,
			 "thread %d (tid %d) stands still after %lu turns", i, w->tid, w->turns);
	}
}

static void *echo(void *arg)
{
	return arg;
}

static void finish(void)
{
	pthread_t t[4];
	void *ret;

	wl_same("threads", n_workers + 1, count_threads());
	stopping = true;
	for (int i = 0; i < n_workers; i++) {
		wl_must(!(errno = pthread_join(workers[i].thread, &ret)), "pthread_join");
		wl_same("a thread's return value", workers[i].turns * 2 + 1, (uintptr_t)ret);
	}
	if (n_workers > 3)
		wl_same("robust mutex of a thread that ended", EOWNERDEAD,
			pthread_mutex_lock(&robust));
	for (uintptr_t i = 0; i < 4; i++)
		wl_must(!(errno = pthread_create(&t[i], NULL, echo, (void *)i)),
			"pthread_create afterwards");
	for (uintptr_t i = 0; i < 4; i++) {
		wl_must(!(errno = pthread_join(t[i], &ret)), "pthread_join afterwards");
		wl_same("a new thread's return value", i, (uintptr_t)ret);
	}
	/* a joined thread has let go of its memory, and may be listed for a moment more */
	for (int i = 0; i < 1000 && count_threads() != 1; i++)
		sched_yield();
	wl_same("threads after all ended", 1, count_threads());
	wl_same("counters under one mutex", pair[0], pair[1]);
}

int main(int argc, char **argv)
{
	struct sigaction sa = {.sa_handler = on_usr1, .sa_flags = SA_ONSTACK};

	wl_init(argc, argv);
	n_workers = wl_opt("threads", 8);
	sigaction(SIGUSR1, &sa, NULL);
	init_locks();
	start_workers();
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		check_progress();
		wl_sleep_us(10000);
	}
	finish();
	wl_done();
}
