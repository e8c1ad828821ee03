/* Signals, timers and clocks across a move.
 *
 * Actions, masks, alternate stacks, signals that are pending for the process and for a thread with
 * their values, interval timers, POSIX timers, timerfds, and what the clocks say.
 *
 * --sigtrap default|ignored|blocked|handled (default "default")
 * --once-ms N: when the one-shot absolute timers fire, from the start (default 3000)
 * --late-ms N: how late a timer may be (default 2000)
 * --hold-alarm: SIGALRM is blocked and taken five times a second, so that ITIMER_REAL has nearly
 * always expired and is not armed again yet */
#include "workload.h"
#include <poll.h>
#include <pthread.h>
#include <sys/signalfd.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#define SIG_VALUE (SIGRTMIN + 1)    /* blocked, queued for the process with values */
#define SIG_THREAD (SIGRTMIN + 2)   /* blocked, queued for the second thread */
#define SIG_PERIODIC (SIGRTMIN + 3) /* of a periodic POSIX timer */
#define SIG_TID (SIGRTMIN + 4)      /* of a timer that notifies the second thread */
#define SIG_ONCE (SIGRTMIN + 5)     /* of one-shot absolute timers; the value says which */
#define SIG_WAITED (SIGRTMIN + 6)   /* never sent: the third thread waits for it */
enum { ALT_BYTES = 32768, QUEUED = 5, ONCE = 3 };

static uint64_t late_ns;

/* ---- actions: the kernel's own view of all 64, compared as a whole ---- */

struct kernel_sigaction {
	uint64_t handler, flags, restorer, mask;
};
static struct kernel_sigaction actions[65];
static sigset_t main_mask;

enum { KERNEL_SA_RESTORER = 0x04000000 };

static struct kernel_sigaction action_of(int sig)
{
	struct kernel_sigaction a = {0};

	wl_must(!syscall(SYS_rt_sigaction, sig, NULL, &a, 8), "rt_sigaction");
	if (!a.handler) { /* where to return to from no handler */
		a.flags &= ~(uint64_t)KERNEL_SA_RESTORER;
		a.restorer = 0;
	}
	return a;
}

static void check_actions(void)
{
	sigset_t mask;

	for (int s = 1; s <= 64; s++) {
		const struct kernel_sigaction a = action_of(s);

		wl_check(!memcmp(&a, &actions[s], sizeof(a)),
			 "action of signal %d: expected %lx flags %lx mask %lx, got %lx flags %lx "
			 "mask %lx",
			 s, actions[s].handler, actions[s].flags, actions[s].mask, a.handler,
			 a.flags, a.mask);
	}
	sigprocmask(SIG_SETMASK, NULL, &mask);
	for (int s = 1; s <= 64; s++)
		wl_check(sigismember(&mask, s) == sigismember(&main_mask, s),
			 "mask, signal %d: expected %d", s, sigismember(&main_mask, s));
}

static void never(int sig)
{
	wl_fail("signal %d was delivered, none was sent", sig);
}

static volatile sig_atomic_t traps;

static void on_trap(int sig)
{
	(void)sig;
	traps++;
}

static void set_trap(const char *how)
{
	struct sigaction sa = {.sa_handler = SIG_DFL};

	if (!strcmp(how, "ignored") || !strcmp(how, "blocked"))
		sa.sa_handler = SIG_IGN;
	if (!strcmp(how, "handled"))
		sa.sa_handler = on_trap;
	sigaction(SIGTRAP, &sa, NULL);
}

static void set_up_actions(const char *trap)
{
	struct sigaction sa = {.sa_handler = never};

	set_trap(trap);
	sa.sa_flags = SA_RESTART | SA_NODEFER;
	sigaddset(&sa.sa_mask, SIGWINCH);
	sigaddset(&sa.sa_mask, SIGRTMAX);
	sigaction(SIGHUP, &sa, NULL);
	sa.sa_flags = SA_RESETHAND | SA_ONSTACK;
	sigaction(SIGQUIT, &sa, NULL);
	sa.sa_handler = SIG_IGN;
	sa.sa_flags = 0;
	sigaction(SIGPIPE, &sa, NULL);
	sigaction(SIGRTMAX, &sa, NULL);
	sa.sa_handler = SIG_DFL;
	sa.sa_flags = SA_NOCLDSTOP | SA_NOCLDWAIT;
	sigaction(SIGCHLD, &sa, NULL);
}

/* ---- signals that wait ---- */

static pid_t second_tid;
static pthread_t second, third;
static _Atomic bool stopping;

static void queue_signals(void)
{
	siginfo_t si;

	for (int i = 0; i < QUEUED; i++) {
		wl_must(!sigqueue(getpid(), SIG_VALUE, (union sigval){.sival_int = 1000 + i}),
			"sigqueue");
		memset(&si, 0, sizeof(si));
		si.si_code = SI_QUEUE;
		si.si_pid = getpid();
		si.si_uid = getuid();
		si.si_value.sival_ptr = (void *)(0x123456789abc0000 + i);
		wl_must(!syscall(SYS_rt_tgsigqueueinfo, getpid(), second_tid, SIG_THREAD, &si),
			"tgsigqueueinfo");
	}
	kill(getpid(), SIGUSR2);
	syscall(SYS_tgkill, getpid(), second_tid, SIGUSR1);
}

static void check_pending(bool thread)
{
	const int want[] = {SIG_VALUE, SIGUSR2, thread ? SIG_THREAD : 0, thread ? SIGUSR1 : 0};
	sigset_t set;

	sigpending(&set);
	for (int s = 1; s <= 64; s++) {
		bool expected = false;

		if (s == SIGALRM || s == SIG_PERIODIC || s == SIG_ONCE) /* come and go */
			continue;
		for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++)
			expected |= want[i] == s;
		wl_check(sigismember(&set, s) == expected,
			 "signal %d %s of the %s thread: expected %d", s, "is pending",
			 thread ? "second" : "main", expected);
	}
}

static void take_one(int sig, siginfo_t *si)
{
	const struct timespec now = {0};
	sigset_t set;
	int r;

	sigemptyset(&set);
	sigaddset(&set, sig);
	/* Not sigtimedwait(3), which hides SI_TKILL. */
	while ((r = syscall(SYS_rt_sigtimedwait, &set, si, &now, 8)) < 0 && errno == EINTR)
		;
	wl_check(r == sig, "pending signal %d: expected to be there, got %s", sig, strerror(errno));
}

static void take_queued(int sig, uint64_t first)
{
	siginfo_t si;

	for (int i = 0; i < QUEUED; i++) {
		take_one(sig, &si);
		wl_same("queued signal's code", SI_QUEUE, si.si_code);
		wl_same("queued signal's sender", getpid(), si.si_pid);
		wl_same("queued signal's user", getuid(), si.si_uid);
		wl_same("queued signal's value", first + i, (uintptr_t)si.si_value.sival_ptr);
	}
}

/* ---- timers ---- */

struct periodic {
	const char *name;
	uint64_t interval_ns, started_ns, fired_ns;
	_Atomic uint64_t fired;
};
static struct periodic p_itimer = {.name = "ITIMER_REAL", .interval_ns = 90000000};
static struct periodic p_posix = {.name = "periodic POSIX timer", .interval_ns = 70000000};
static struct periodic p_tid = {.name = "timer for a thread", .interval_ns = 110000000};
static struct periodic p_fd = {.name = "timerfd", .interval_ns = 50000000};

struct once {
	const char *name;
	clockid_t clock;
	uint64_t at_ns;
	timer_t timer;
	_Atomic uint64_t fired_ns; /* by the same clock */
};
static struct once onces[ONCE] = {
    {.name = "one-shot on CLOCK_MONOTONIC", .clock = CLOCK_MONOTONIC},
    {.name = "one-shot on CLOCK_BOOTTIME", .clock = CLOCK_BOOTTIME},
    {.name = "one-shot on CLOCK_REALTIME", .clock = CLOCK_REALTIME},
};
static timer_t t_posix, t_tid, t_silent, t_cpu;
static uint64_t silent_left;
static int fd_once, fd_disarmed;

static void note(struct periodic *p, uint64_t times)
{
	p->fired += times;
	p->fired_ns = wl_ns(CLOCK_MONOTONIC);
}

static char *main_alt;

static void on_main_alt(const char *what)
{
	char here;

	wl_check(&here >= main_alt && &here < main_alt + ALT_BYTES,
		 "handler of %s is not on the alternate stack", what);
}

static bool hold_alarm;

/* Expired many times meanwhile, but pending once: the kernel arms the timer again when it is taken.
 */
static void take_held_alarm(void)
{
	static uint64_t taken_ns;
	const struct timespec now = {0};
	sigset_t set;

	if (!hold_alarm || wl_ns(CLOCK_MONOTONIC) - taken_ns < 200000000)
		return;
	taken_ns = wl_ns(CLOCK_MONOTONIC);
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	if (sigtimedwait(&set, NULL, &now) == SIGALRM)
		note(&p_itimer, 1);
}

static void on_alarm(int sig)
{
	(void)sig;
	on_main_alt("SIGALRM");
	note(&p_itimer, 1);
}

static void on_periodic(int sig, siginfo_t *si, void *ctx)
{
	(void)ctx, (void)sig;
	wl_same("timer signal's code", SI_TIMER, si->si_code);
	wl_same("timer signal's value", 0x7e57, (uintptr_t)si->si_value.sival_ptr);
	note(&p_posix, 1 + si->si_overrun);
}

static void on_tid(int sig, siginfo_t *si, void *ctx)
{
	(void)ctx, (void)sig;
	wl_same("thread that a timer notifies", second_tid, syscall(SYS_gettid));
	note(&p_tid, 1 + si->si_overrun);
}

static void on_once(int sig, siginfo_t *si, void *ctx)
{
	struct once *o = &onces[si->si_value.sival_int];

	(void)ctx, (void)sig;
	wl_check(!o->fired_ns, "%s fired twice", o->name);
	o->fired_ns = wl_ns(o->clock);
	wl_check(o->fired_ns >= o->at_ns, "%s fired %lu us early", o->name,
		 (o->at_ns - o->fired_ns) / 1000);
	wl_check(o->fired_ns - o->at_ns < late_ns, "%s fired %lu ms late", o->name,
		 (o->fired_ns - o->at_ns) / 1000000);
}

static void handle(int sig, void (*fn)(int, siginfo_t *, void *), int flags)
{
	struct sigaction sa = {.sa_sigaction = fn, .sa_flags = SA_SIGINFO | SA_RESTART | flags};

	wl_must(!sigaction(sig, &sa, NULL), "sigaction");
}

static timer_t new_timer(clockid_t clock, int notify, int sig, void *value, pid_t tid)
{
	struct sigevent ev = {
	    .sigev_notify = notify, .sigev_signo = sig, .sigev_value.sival_ptr = value};
	timer_t t;

	ev._sigev_un._tid = tid;
	wl_must(!timer_create(clock, &ev, &t), "timer_create");
	return t;
}

static void arm(timer_t t, uint64_t value_ns, uint64_t interval_ns, int flags)
{
	const struct itimerspec its = {.it_value = wl_timespec(value_ns),
				       .it_interval = wl_timespec(interval_ns)};

	wl_must(!timer_settime(t, flags, &its, NULL), "timer_settime");
}

static void begin(struct periodic *p)
{
	p->started_ns = p->fired_ns = wl_ns(CLOCK_MONOTONIC);
}

static void set_up_timers(void)
{
	const uint64_t once_ns = wl_opt("once-ms", 3000) * 1000000ull;
	const struct itimerval slow = {.it_value = {5000, 0}, .it_interval = {7, 11000}};
	struct itimerval it = {.it_interval.tv_usec = p_itimer.interval_ns / 1000};
	timer_t gone[3];

	handle(SIG_PERIODIC, on_periodic, SA_ONSTACK);
	handle(SIG_TID, on_tid, 0);
	handle(SIG_ONCE, on_once, 0);
	for (int i = 0; i < 3; i++) /* so that ids have holes */
		gone[i] = new_timer(CLOCK_MONOTONIC, SIGEV_NONE, 0, NULL, 0);
	t_posix = new_timer(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIG_PERIODIC, (void *)0x7e57, 0);
	timer_delete(gone[0]);
	timer_delete(gone[2]);
	t_tid = new_timer(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIG_TID, NULL, second_tid);
	t_silent = new_timer(CLOCK_BOOTTIME, SIGEV_NONE, 0, NULL, 0);
	timer_delete(gone[1]);
	t_cpu = new_timer(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGHUP, NULL, 0);
	arm(t_cpu, 5000ull * 1000000000, 0, 0);
	for (uintptr_t i = 0; i < ONCE; i++) {
		struct once *o = &onces[i];

		o->timer = new_timer(o->clock, SIGEV_SIGNAL, SIG_ONCE, (void *)i, 0);
		o->at_ns = wl_ns(o->clock) + once_ns;
		arm(o->timer, o->at_ns, 0, TIMER_ABSTIME);
	}
	begin(&p_itimer);
	it.it_value = it.it_interval;
	wl_must(!setitimer(ITIMER_REAL, &it, NULL), "setitimer");
	begin(&p_posix);
	arm(t_posix, p_posix.interval_ns, p_posix.interval_ns, 0);
	begin(&p_tid);
	arm(t_tid, p_tid.interval_ns, p_tid.interval_ns, 0);
	arm(t_silent, 100000ull * 1000000000, 0, 0);
	wl_must(!setitimer(ITIMER_VIRTUAL, &slow, NULL) && !setitimer(ITIMER_PROF, &slow, NULL),
		"setitimer");
}

static void set_up_timerfds(void)
{
	const struct itimerspec its = {.it_value = wl_timespec(onces[1].at_ns)};

	fd_disarmed = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK);
	fd_once = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC);
	wl_must(fd_disarmed >= 0 && fd_once >= 0, "timerfd_create");
	wl_must(!timerfd_settime(fd_once, TFD_TIMER_ABSTIME, &its, NULL), "timerfd_settime");
}

/* Owned by the main thread: one periodic timerfd that it reads whenever it is ready. */
static int fd_periodic;

static void start_periodic_fd(void)
{
	struct itimerspec its = {.it_interval = wl_timespec(p_fd.interval_ns),
				 .it_value = wl_timespec(p_fd.interval_ns)};

	fd_periodic = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	wl_must(fd_periodic >= 0, "timerfd_create");
	begin(&p_fd);
	wl_must(!timerfd_settime(fd_periodic, 0, &its, NULL), "timerfd_settime");
}

static void read_periodic_fd(void)
{
	uint64_t n;

	if (read(fd_periodic, &n, sizeof(n)) == sizeof(n))
		note(&p_fd, n);
}

/* Not more often than time allows, never silent for long. The phase is kept: a stall costs nothing
 * but the time of the stall, so at most one firing may be missing per move, plus those coalesced.
 */
static void check_periodic(const struct periodic *p)
{
	const uint64_t fired = p->fired, last = p->fired_ns, now = wl_ns(CLOCK_MONOTONIC);
	const uint64_t due = (now - p->started_ns) / p->interval_ns;

	wl_check(fired <= due, "%s fired %lu times in %lu ms, its interval is %lu ms", p->name,
		 fired, (now - p->started_ns) / 1000000, p->interval_ns / 1000000);
	wl_check(now < last + p->interval_ns + late_ns, "%s has not fired for %lu ms", p->name,
		 (now - last) / 1000000);
}

static void check_timer_settings(void)
{
	struct itimerspec its;
	struct itimerval it;

	wl_must(!timer_gettime(t_posix, &its), "timer_gettime");
	wl_same("interval of a POSIX timer", p_posix.interval_ns, its.it_interval.tv_nsec);
	wl_must(!timer_gettime(t_silent, &its), "timer_gettime");
	const uint64_t left = its.it_value.tv_sec * 1000000000ull + its.it_value.tv_nsec;
	wl_check(left <= silent_left, "time left on a timer grew: from %lu to %lu ns", silent_left,
		 left);
	wl_check(silent_left == UINT64_MAX || silent_left - left < late_ns,
		 "time left on a timer: expected about %lu, got %lu ns", silent_left, left);
	silent_left = left;
	wl_must(!timer_gettime(t_cpu, &its), "timer_gettime");
	wl_check(its.it_value.tv_sec >= 4900 && its.it_value.tv_sec <= 5000,
		 "time left on a CPU time timer: expected almost 5000 s, got %ld s",
		 its.it_value.tv_sec);
	getitimer(ITIMER_REAL, &it);
	wl_same("interval of ITIMER_REAL", p_itimer.interval_ns / 1000, it.it_interval.tv_usec);
	for (int which = ITIMER_VIRTUAL; which <= ITIMER_PROF; which++) {
		getitimer(which, &it);
		wl_same("interval of a CPU time itimer", 7011000,
			it.it_interval.tv_sec * 1000000 + it.it_interval.tv_usec);
		wl_check(it.it_value.tv_sec >= 4900 && it.it_value.tv_sec <= 5000,
			 "time left on a CPU time itimer: expected almost 5000 s, got %ld s",
			 it.it_value.tv_sec);
	}
	wl_must(!timerfd_gettime(fd_disarmed, &its), "timerfd_gettime");
	wl_check(!its.it_value.tv_sec && !its.it_value.tv_nsec, "a disarmed timerfd is armed");
}

static void check_timers(void)
{
	read_periodic_fd();
	check_periodic(&p_itimer);
	check_periodic(&p_posix);
	check_periodic(&p_tid);
	check_periodic(&p_fd);
	check_timer_settings();
	for (int i = 0; i < ONCE; i++)
		wl_check(onces[i].fired_ns || wl_ns(onces[i].clock) < onces[i].at_ns + late_ns,
			 "%s did not fire", onces[i].name);
}

/* ---- threads ---- */

static pthread_barrier_t started, queued;

static void *second_main(void *arg)
{
	sigset_t set;

	(void)arg;
	sigemptyset(&set);
	sigaddset(&set, SIG_VALUE);
	sigaddset(&set, SIG_THREAD);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGALRM);
	sigaddset(&set, SIG_PERIODIC);
	sigaddset(&set, SIG_ONCE);
	sigaddset(&set, SIGTRAP);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	second_tid = syscall(SYS_gettid);
	pthread_barrier_wait(&started);
	pthread_barrier_wait(&queued);
	while (!stopping) {
		check_pending(true);
		wl_sleep_us(5000);
	}
	take_queued(SIG_THREAD, 0x123456789abc0000);
	siginfo_t si;
	take_one(SIGUSR1, &si);
	wl_same("code of a signal by tgkill", SI_TKILL, si.si_code);
	return NULL;
}

/* Waits in one system call for all the time. Waking early with EINTR is what sigwaitinfo may do. */
static void *third_main(void *arg)
{
	siginfo_t si;
	sigset_t all;
	int r;

	(void)arg;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	sigemptyset(&all);
	sigaddset(&all, SIG_WAITED);
	pthread_barrier_wait(&started);
	while ((r = sigwaitinfo(&all, &si)) < 0)
		wl_must(errno == EINTR, "sigwaitinfo");
	wl_same("signal waited for", SIG_WAITED, r);
	wl_same("its value", 77, si.si_value.sival_int);
	return NULL;
}

static void block_in_main(bool trap)
{
	sigemptyset(&main_mask);
	sigaddset(&main_mask, SIG_VALUE);
	sigaddset(&main_mask, SIG_THREAD);
	sigaddset(&main_mask, SIG_WAITED);
	sigaddset(&main_mask, SIG_TID);
	sigaddset(&main_mask, SIGUSR2);
	if (trap)
		sigaddset(&main_mask, SIGTRAP);
	if (hold_alarm)
		sigaddset(&main_mask, SIGALRM);
	sigprocmask(SIG_SETMASK, &main_mask, NULL);
}

/* ---- the end ---- */

static void check_trap(const char *how)
{
	if (!strcmp(how, "ignored")) {
		raise(SIGTRAP);
	} else if (!strcmp(how, "handled")) {
		raise(SIGTRAP);
		wl_same("SIGTRAPs handled", 1, traps);
	} else if (!strcmp(how, "blocked")) {
		siginfo_t si;

		raise(SIGTRAP);
		take_one(SIGTRAP, &si);
	}
}

static void wait_for_onces(void)
{
	uint64_t n;

	for (int i = 0; i < ONCE; i++)
		while (!onces[i].fired_ns) {
			check_timers();
			wl_tick();
			wl_sleep_us(5000);
		}
	wl_same("read of a one-shot timerfd", sizeof(n), read(fd_once, &n, sizeof(n)));
	wl_same("its expirations", 1, n);
}

static void finish(const char *trap)
{
	siginfo_t si;
	stack_t alt;

	wait_for_onces();
	check_actions();
	check_pending(false);
	take_queued(SIG_VALUE, 1000);
	take_one(SIGUSR2, &si);
	wl_same("code of a signal by kill", SI_USER, si.si_code);
	stopping = true;
	pthread_join(second, NULL);
	sigqueue(getpid(), SIG_WAITED, (union sigval){.sival_int = 77});
	pthread_join(third, NULL);
	wl_must(!sigaltstack(NULL, &alt), "sigaltstack");
	wl_same("alternate stack", (uintptr_t)main_alt, (uintptr_t)alt.ss_sp);
	wl_same("alternate stack's size", ALT_BYTES, alt.ss_size);
	check_trap(trap);
}

int main(int argc, char **argv)
{
	stack_t alt = {.ss_size = ALT_BYTES};
	struct sigaction sa = {.sa_handler = on_alarm, .sa_flags = SA_ONSTACK};
	const char *trap;

	wl_init(argc, argv);
	trap = wl_opt_str("sigtrap", "default");
	hold_alarm = wl_flag("hold-alarm");
	late_ns = wl_opt("late-ms", 2000) * 1000000ull;
	silent_left = UINT64_MAX;
	main_alt = alt.ss_sp =
	    mmap(NULL, ALT_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	sigaltstack(&alt, NULL);
	block_in_main(!strcmp(trap, "blocked"));
	pthread_barrier_init(&started, NULL, 3);
	pthread_barrier_init(&queued, NULL, 2);
	pthread_create(&second, NULL, second_main, NULL);
	pthread_create(&third, NULL, third_main, NULL);
	pthread_barrier_wait(&started);
	set_up_actions(trap);
	sigaction(SIGALRM, &sa, NULL);
	queue_signals();
	set_up_timers();
	set_up_timerfds();
	start_periodic_fd();
	for (int s = 1; s <= 64; s++)
		actions[s] = action_of(s);
	pthread_barrier_wait(&queued);
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		check_actions();
		check_pending(false);
		take_held_alarm();
		check_timers();
		wl_sleep_us(3000);
	}
	finish(trap);
	wl_done();
}
