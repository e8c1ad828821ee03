/* Who a task is and what it may: ids, groups, capabilities, limits, priorities, and the other
 * attributes of processes and threads, as told by the kernel before and after a move.
 *
 * Starts as root. --variant
 *   root    stays root with all it has (default)
 *   user    uid and gid 1000, supplementary groups, no capability
 *   mixed   different real, effective and saved ids, some capabilities in every set, no_new_privs
 */
#include "workload.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <sched.h>
#include <sys/fsuid.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>

enum { TEXT = 4096, THREADS = 4 };

/* One attribute a line: "name value". */
struct look {
	char text[TEXT];
	size_t n;
};

__attribute__((format(printf, 2, 3))) static void say(struct look *l, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	l->n += vsnprintf(l->text + l->n, TEXT - l->n, fmt, ap);
	va_end(ap);
	wl_check(l->n < TEXT, "too many attributes");
}

static void say_groups(struct look *l)
{
	gid_t groups[64];
	const int n = getgroups(64, groups);

	say(l, "groups");
	for (int i = 0; i < n; i++)
		say(l, " %u", groups[i]);
	say(l, "\n");
}

static void say_caps(struct look *l)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {0};
	uint64_t bounding = 0, ambient = 0;

	wl_must(!syscall(SYS_capget, &h, d), "capget");
	for (int c = 0; c < 64; c++) {
		bounding |= (uint64_t)(prctl(PR_CAPBSET_READ, c, 0, 0, 0) == 1) << c;
		ambient |= (uint64_t)(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, c, 0, 0) == 1)
			   << c;
	}
	say(l, "permitted %x %x\neffective %x %x\ninheritable %x %x\n", d[1].permitted,
	    d[0].permitted, d[1].effective, d[0].effective, d[1].inheritable, d[0].inheritable);
	say(l, "bounding %lx\nambient %lx\n", bounding, ambient);
}

/* By system calls alone: an open file below /proc would be one more thing to move. */
static void say_credentials(struct look *l)
{
	uid_t r, e, s;
	char name[16] = {0};

	getresuid(&r, &e, &s);
	say(l, "uid %u %u %u file system %d\n", r, e, s,
	    setfsuid(-1)); /* -1 changes nothing and tells */
	getresgid(&r, &e, &s);
	say(l, "gid %u %u %u file system %d\n", r, e, s, setfsgid(-1));
	say_groups(l);
	say_caps(l);
	prctl(PR_GET_NAME, name);
	say(l, "name %s\n", name);
	say(l, "no_new_privs %d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	say(l, "seccomp %d\n", prctl(PR_GET_SECCOMP, 0, 0, 0, 0));
}

static long read_number(const char *path)
{
	char buf[32] = {0};
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, buf, sizeof(buf) - 1) < 0)
		snprintf(buf, sizeof(buf), "-%d", errno);
	close(fd);
	return strtol(buf, NULL, 0);
}

struct attr { /* sched_getattr(2) */
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
};

static void say_scheduling(struct look *l)
{
	struct attr a = {.size = sizeof(a)};
	uint64_t cpus[16] = {0};

	wl_must(!syscall(SYS_sched_getattr, 0, &a, sizeof(a), 0), "sched_getattr");
	say(l, "policy %u\nflags %lx\nnice %d\npriority %u\n", a.policy, a.flags, a.nice,
	    a.priority);
	syscall(SYS_sched_getaffinity, 0, sizeof(cpus), cpus);
	say(l, "affinity %lx\n", cpus[0]);
	say(l, "timer slack %d\n", prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0));
	say(l, "io priority %lx\n", syscall(SYS_ioprio_get, 1, 0));
}

static void say_process(struct look *l)
{
	struct rlimit rl;
	int subreaper = 0;

	for (int i = 0; i < 16; i++) {
		wl_must(!getrlimit(i, &rl), "getrlimit");
		say(l, "limit %d %lx %lx\n", i, rl.rlim_cur, rl.rlim_max);
	}
	say(l, "dumpable %d\n", prctl(PR_GET_DUMPABLE, 0, 0, 0, 0));
	prctl(PR_GET_CHILD_SUBREAPER, &subreaper, 0, 0, 0);
	say(l, "subreaper %d\n", subreaper);
	say(l, "personality %x\n", personality(0xffffffff));
	say(l, "huge pages off %d\n", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
	say(l, "session %d group %d\n", getsid(0), getpgrp());
}

static void look_take(struct look *l)
{
	int pdeathsig = 0;

	l->n = 0;
	say_credentials(l);
	say(l, "securebits %x\n", prctl(PR_GET_SECUREBITS, 0, 0, 0, 0));
	say(l, "keepcaps %d\n", prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0));
	prctl(PR_GET_PDEATHSIG, &pdeathsig, 0, 0, 0);
	say(l, "pdeathsig %d\n", pdeathsig);
	say_scheduling(l);
	say_process(l);
}

static void look_compare(const struct look *want, const struct look *got, const char *who)
{
	const char *a = want->text, *b = got->text;

	while (*a || *b) {
		const int na = strcspn(a, "\n"), nb = strcspn(b, "\n");

		wl_check(na == nb && !memcmp(a, b, na), "%s: expected '%.*s', got '%.*s'", who, na,
			 a, nb, b);
		a += na + !!a[na];
		b += nb + !!b[nb];
	}
}

/* ---- changing who we are ---- */

static void set_caps(uint64_t prm, uint64_t eff, uint64_t inh)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {
	    {.permitted = prm, .effective = eff, .inheritable = inh},
	    {.permitted = prm >> 32, .effective = eff >> 32, .inheritable = inh >> 32},
	};

	wl_must(!syscall(SYS_capset, &h, d), "capset");
}

static void set_groups(void)
{
	const gid_t groups[] = {10, 20, 1234, 70000};

	wl_must(!setgroups(4, groups), "setgroups");
}

static void become_user(void)
{
	set_groups();
	wl_must(!setresgid(1000, 1000, 1000) && !setresuid(1000, 1000, 1000), "setresuid");
}

static void become_mixed(void)
{
	const uint64_t chown_ = 1ull << CAP_CHOWN, bind = 1ull << CAP_NET_BIND_SERVICE,
		       nice_ = 1ull << CAP_SYS_NICE;

	wl_must(!prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE) && !prctl(PR_CAPBSET_DROP, CAP_MKNOD),
		"PR_CAPBSET_DROP");
	set_groups();
	wl_must(!prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NOROOT),
		"PR_SET_SECUREBITS");
	wl_must(!setresgid(1000, 1001, 1002) && !setresuid(1000, 1001, 1002), "setresuid");
	set_caps(chown_ | bind | nice_, chown_ | bind, bind | nice_);
	wl_must(!prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0),
		"PR_CAP_AMBIENT_RAISE");
	wl_must(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
	wl_must(!prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "PR_SET_DUMPABLE");
}

/* ---- attributes set while we still may ---- */

/* Only down from what we have: CAP_SYS_RESOURCE may be missing. */
static void limit(int what, rlim_t cur, rlim_t max)
{
	struct rlimit now;

	wl_must(!getrlimit(what, &now), "getrlimit");
	max = now.rlim_max < max ? now.rlim_max : max;
	cur = cur < max ? cur : max;
	wl_must(!setrlimit(what, &(struct rlimit){.rlim_cur = cur, .rlim_max = max}), "setrlimit");
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	wl_check(fd >= 0 && write(fd, text, strlen(text)) > 0, "%s: %s", path, strerror(errno));
	close(fd);
}

static void set_up_process(void)
{
	limit(RLIMIT_NOFILE, 512, 1024);
	limit(RLIMIT_CORE, 0, 4096);
	limit(RLIMIT_STACK, 4 << 20, 64 << 20);
	limit(RLIMIT_MEMLOCK, 65536, 131072);
	limit(RLIMIT_SIGPENDING, 100, 200);
	limit(RLIMIT_CPU, 3600, 7200);
	limit(RLIMIT_RTPRIO, 10, 20); /* SCHED_FIFO also without privilege, where we may */
	write_file("/proc/self/oom_score_adj", "321");
	write_file("/proc/self/coredump_filter", "0x7");
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	personality(personality(0xffffffff) | ADDR_NO_RANDOMIZE);
	umask(037);
}

static void set_policy(int policy, int prio, uint64_t flags, int nice_)
{
	struct attr a = {
	    .size = sizeof(a), .policy = policy, .priority = prio, .flags = flags, .nice = nice_};

	if (syscall(SYS_sched_setattr, 0, &a, 0))
		dprintf(2, "not here: scheduling policy %d: %s\n", policy, strerror(errno));
}

static void set_up_thread(int i)
{
	cpu_set_t one;
	char name[16];

	snprintf(name, sizeof(name), "odd (%d) name", i);
	prctl(PR_SET_NAME, name);
	switch (i) {
	case 0:
		set_policy(SCHED_OTHER, 0, 0, 5);
		break;
	case 1:
		set_policy(SCHED_FIFO, 7, 1, 0); /* SCHED_FLAG_RESET_ON_FORK */
		break;
	case 2:
		set_policy(SCHED_BATCH, 0, 0, 11);
		break;
	case 3:
		set_policy(SCHED_IDLE, 0, 0, 0);
		break;
	}
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	if (i % 2)
		wl_must(!sched_setaffinity(0, sizeof(one), &one), "sched_setaffinity");
	prctl(PR_SET_TIMERSLACK, 70000 + i, 0, 0, 0);
	syscall(SYS_ioprio_set, 1, 0, 2 << 13 | (i + 1)); /* best effort, level i + 1 */
}

/* ---- threads ---- */

static struct look looks[THREADS];
static pthread_t threads[THREADS];
static pthread_barrier_t looked;
static _Atomic bool stopping;
static _Atomic uint64_t turns[THREADS];

static void check_self(int i)
{
	static __thread struct look now;
	char who[32];

	snprintf(who, sizeof(who), "thread %d", i);
	look_take(&now);
	look_compare(&looks[i], &now, who);
	turns[i]++;
}

/* The C library's setresuid() and the like change all threads; set-up happens before, looking
 * after. */

static void *thread_main(void *arg)
{
	const int i = (intptr_t)arg;

	set_up_thread(i);
	look_take(&looks[i]);
	pthread_barrier_wait(&looked);
	while (!stopping) {
		check_self(i);
		wl_sleep_us(20000);
	}
	return NULL;
}

/* ---- a grandchild that is told when its parent dies ---- */

static int orphan_says, middle_wait;
static pid_t middle;

static void orphan_main(int out)
{
	sigset_t set;
	int sig = 0, parent = getppid();

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	prctl(PR_SET_PDEATHSIG, SIGUSR1);
	wl_same("ready", 1, write(out, "r", 1));
	while (sigwaitinfo(&set, NULL) < 0)
		wl_must(errno == EINTR, "sigwaitinfo");
	sig = getppid() == parent ? 'e' : 's'; /* early, or when it should */
	_exit(write(out, &sig, 1) != 1);
}

static void start_orphan(void)
{
	int out[2], hold[2];
	char c;

	wl_must(!pipe2(out, O_CLOEXEC) && !pipe2(hold, O_CLOEXEC), "pipe2");
	middle = fork();
	if (!middle) {
		close(hold[1]);
		if (!fork())
			orphan_main(out[1]);
		while (read(hold[0], &c, 1) < 0)
			;
		_exit(0);
	}
	close(hold[0]);
	close(out[1]);
	wl_same("grandchild", 1, read(out[0], &c, 1));
	orphan_says = out[0];
	middle_wait = hold[1];
}

static void finish_orphan(void)
{
	char c = 0;

	close(middle_wait);
	wl_same("waitpid", middle, waitpid(middle, NULL, 0));
	wl_same("grandchild's answer", 1, read(orphan_says, &c, 1));
	wl_check(c == 's', "the signal for a parent's death came before its death");
	waitpid(-1, NULL, 0); /* ours by subreaper */
}

/* ---- the main thread ---- */

static void check_files(void)
{
	wl_same("oom_score_adj", 321, read_number("/proc/self/oom_score_adj"));
	wl_same("coredump_filter", 7, read_number("/proc/self/coredump_filter"));
	wl_same("umask", 037, umask(037));
}

static void check_powers(const char *variant)
{
	const bool root = !strcmp(variant, "root");

	wl_same("setuid(0)", root ? 0 : -1, setuid(0));
	if (!root)
		wl_check(access("/proc/1/environ", R_OK) < 0, "may read what is root's");
	if (!strcmp(variant, "mixed")) {
		char path[256];
		int fd = open(wl_path(path, "owned"), O_CREAT | O_WRONLY, 0600);

		wl_must(!fchown(fd, 1234, 1234), "fchown with CAP_CHOWN");
		close(fd);
	}
}

int main(int argc, char **argv)
{
	static struct look mine, now;
	const char *variant;

	wl_init(argc, argv);
	variant = wl_opt_str("variant", "root");
	pthread_barrier_init(&looked, NULL, THREADS + 1);
	set_up_process();
	start_orphan();
	/* Before there are threads: some of these calls change the calling thread only. */
	if (!strcmp(variant, "user"))
		become_user();
	else if (!strcmp(variant, "mixed"))
		become_mixed();
	for (intptr_t i = 0; i < THREADS; i++)
		wl_must(!(errno = pthread_create(&threads[i], NULL, thread_main, (void *)i)),
			"pthread_create");
	pthread_barrier_wait(&looked);
	look_take(&mine);
	dprintf(2, "%s", mine.text);
	wl_ready();
	while (!wl_stop()) {
		if (wl_tick())
			check_files();
		look_take(&now);
		look_compare(&mine, &now, "main thread");
		wl_sleep_us(10000);
	}
	check_files();
	for (int i = 0; i < THREADS; i++)
		wl_check(turns[i] > 0, "thread %d never ran", i);
	stopping = true;
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	finish_orphan();
	check_powers(variant);
	wl_done();
}
