/* Seccomp: filters in their order, with flags, shared by threads or not, with and without
 * no_new_privs; children in which nearly every system call ends the process; strict mode. */
#include "workload.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>

enum { THREADS = 2, LONG_FILTER = 4000 };
enum { NR_OFF = offsetof(struct seccomp_data, nr) };

static int install(const struct sock_filter *f, size_t n, unsigned int flags)
{
	struct sock_fprog prog = {.len = n, .filter = (struct sock_filter *)f};

	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &prog);
}

/* One call fails with that error, all others are allowed. */
static int deny(int nr, int error, unsigned int flags)
{
	const struct sock_filter f[] = {
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, NR_OFF),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};

	return install(f, 4, flags);
}

/* As long as they get. */
static int allow_at_length(void)
{
	static struct sock_filter f[LONG_FILTER + 2] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, NR_OFF)};

	for (int i = 1; i <= LONG_FILTER; i++)
		f[i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 100000 + i, 0, 0);
	f[LONG_FILTER + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	return install(f, LONG_FILTER + 2, SECCOMP_FILTER_FLAG_TSYNC);
}

static void denied(const char *what, int nr, long arg, int error)
{
	errno = 0;
	long r = syscall(nr, arg);

	wl_check(r == -1 && errno == error, "%s: expected error %d, got %ld, error %d", what, error,
		 r, errno);
}

/* ---- children: answer each byte with the next one ---- */

struct child {
	const char *name;
	void (*confine)(void);
	pid_t pid;
	int ask, answer;
};

static void answer_all(int in, int out)
{
	unsigned char c;

	while (wl_raw(SYS_read, in, (long)&c, 1, 0) == 1) {
		if (c == 'x')
			wl_raw(SYS_getpid, 0, 0, 0, 0);
		if (c == 'n')
			c = (unsigned char)(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) +
					    (wl_raw(SYS_getppid, 0, 0, 0, 0) == -17 ? 10 : 0));
		c++;
		wl_raw(SYS_write, out, (long)&c, 1, 0);
	}
	wl_raw(SYS_exit, 0, 0, 0, 0);
}

static void be_strict(void)
{
	wl_must(!syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 0, NULL), "strict mode");
}

static void be_caged(void)
{
	const struct sock_filter f[] = {
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, NR_OFF),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 3, 0),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 2, 0),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit, 1, 0),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};

	wl_must(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
	signal(SIGSYS, SIG_DFL);
	wl_must(!install(f, 6, 0), "a filter that allows three calls");
}

/* Set while it was allowed to without no_new_privs. */
static void be_dropped(void)
{
	wl_must(!deny(SYS_getppid, 17, 0), "a filter without no_new_privs");
	wl_must(!setresgid(1000, 1000, 1000) && !setresuid(1000, 1000, 1000), "setresuid");
}

static struct child children[] = {
    {.name = "strict", .confine = be_strict},
    {.name = "caged", .confine = be_caged},
    {.name = "dropped", .confine = be_dropped},
};
enum { STRICT, CAGED, DROPPED, CHILDREN };

static void start_child(struct child *c)
{
	int in[2], out[2];

	wl_must(!pipe2(in, O_CLOEXEC) && !pipe2(out, O_CLOEXEC), "pipe2");
	c->pid = fork();
	wl_must(c->pid >= 0, "fork");
	if (!c->pid) {
		close(in[1]);
		close(out[0]);
		for (int i = 0; i < CHILDREN; i++)
			if (children[i].pid) {
				close(children[i].ask);
				close(children[i].answer);
			}
		c->confine();
		answer_all(in[0], out[1]);
	}
	close(in[0]);
	close(out[1]);
	c->ask = in[1];
	c->answer = out[0];
}

static void check_child(const struct child *c, unsigned char question, unsigned char want)
{
	unsigned char got = 0;

	wl_check(write(c->ask, &question, 1) == 1 && read(c->answer, &got, 1) == 1,
		 "the %s child does not answer", c->name);
	wl_check(got == want, "the %s child answers %d instead of %d", c->name, got, want);
}

static void check_end(const struct child *c, int sig)
{
	char x = 'x';
	int st = 0;

	wl_same("asking for a forbidden call", 1, write(c->ask, &x, 1));
	wl_same("waitpid", c->pid, waitpid(c->pid, &st, 0));
	wl_check(WIFSIGNALED(st) && WTERMSIG(st) == sig,
		 "a forbidden call ends the %s child with status %#x instead of signal %d", c->name,
		 st, sig);
}

/* ---- threads ---- */

static pthread_barrier_t barrier;
static _Atomic int stopping; /* 1: thread 1 ends, 2: all do */
static _Atomic bool denied_late;
static _Atomic uint64_t turns[THREADS];
static pid_t tids[THREADS];

/* Not while it may be moved: a thread's file in /proc is not. */
static int count_filters(void)
{
	char text[4096], *at;
	int fd = open("/proc/thread-self/status", O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, text, sizeof(text) - 1);

	close(fd);
	wl_check(n > 0, "status: %s", strerror(errno));
	text[n] = 0;
	at = strstr(text, "Seccomp_filters:");
	return at ? atoi(at + 16) : -1;
}

static void check_shared(void)
{
	denied("getppid", SYS_getppid, 0, 12); /* of two filters that say something, the younger */
	denied("getsid", SYS_getsid, 0, 13);
}

static void *thread_main(void *arg)
{
	const int i = (intptr_t)arg;

	tids[i] = gettid();
	pthread_barrier_wait(&barrier); /* filters are set for all */
	pthread_barrier_wait(&barrier);
	if (i == 1) {
		wl_must(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
		wl_must(!deny(SYS_getpgid, 14, 0), "a filter of a thread's own");
	}
	pthread_barrier_wait(&barrier);
	while (stopping < 2 - i) {
		if (!denied_late)
			check_shared();
		if (i == 1)
			denied("getpgid in thread 1", SYS_getpgid, 0, 14);
		else
			wl_check(getpgid(0) > 0, "getpgid in thread 0: %s", strerror(errno));
		wl_same("no_new_privs of a thread", i == 1, prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
		turns[i]++;
		wl_sleep_us(2000);
	}
	wl_same("number of filters of a thread", 5, count_filters());
	if (i == 0)
		denied("getpriority in thread 0", SYS_getpriority, 0, 15);
	return NULL;
}

static void check_all(void)
{
	check_shared();
	wl_check(getpgid(0) > 0, "getpgid: %s", strerror(errno));
	wl_same("no_new_privs", 0, prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	wl_same("PR_GET_SECCOMP", 2, prctl(PR_GET_SECCOMP));
	check_child(&children[STRICT], 5, 6);
	check_child(&children[CAGED], 7, 8);
	check_child(&children[DROPPED], 'n', 11); /* no_new_privs 0, and the call denied */
}

/* What is shared must be known to be: a filter for all threads goes where theirs are the same. */
static void check_sharing(pthread_t threads[])
{
	denied_late = true;
	wl_same("a filter for all, of which one has another", tids[1],
		deny(SYS_getpriority, 15, SECCOMP_FILTER_FLAG_TSYNC));
	stopping = 1;
	pthread_join(threads[1], NULL);
	wl_same("a filter for all", 0, deny(SYS_getpriority, 15, SECCOMP_FILTER_FLAG_TSYNC));
	denied("getpriority", SYS_getpriority, 0, 15);
	stopping = 2;
	pthread_join(threads[0], NULL);
}

int main(int argc, char **argv)
{
	pthread_t threads[THREADS];

	wl_init(argc, argv);
	for (int i = 0; i < CHILDREN; i++)
		start_child(&children[i]);
	pthread_barrier_init(&barrier, NULL, THREADS + 1);
	wl_must(!deny(SYS_getppid, 11, SECCOMP_FILTER_FLAG_LOG), "the first filter");
	for (intptr_t i = 0; i < THREADS; i++)
		wl_must(!(errno = pthread_create(&threads[i], NULL, thread_main, (void *)i)),
			"pthread_create");
	pthread_barrier_wait(&barrier);
	wl_must(!deny(SYS_getppid, 12, SECCOMP_FILTER_FLAG_TSYNC), "the second");
	wl_must(!deny(SYS_getsid, 13, SECCOMP_FILTER_FLAG_TSYNC), "the third");
	wl_must(!allow_at_length(), "a long one");
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	check_all();
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		check_all();
		wl_sleep_us(5000);
	}
	check_all();
	wl_same("number of filters", 4, count_filters());
	for (int i = 0; i < THREADS; i++)
		wl_check(turns[i] > 0, "thread %d never ran", i);
	check_sharing(threads);
	check_end(&children[STRICT], SIGKILL);
	check_end(&children[CAGED], SIGSYS);
	wl_done();
}
