/* A child that is replaced again and again by another with the same pid, whose memory is another at
 * the same addresses: a page that one has written is zeros for the next. Needs root: clone3(2),
 * set_tid.
 *
 * --ms N: how long each lives (default 150); --mib N: what each writes half of (default 4) */
#include "workload.h"
#include <linux/sched.h>
#include <sys/prctl.h>

static struct {
	uint8_t *memory; /* mapped before the first, written by the children alone */
	size_t pages;
	pid_t child;
	uint64_t generation;
} s;

static uint64_t generation_of(size_t page)
{
	return (page + s.generation) % 2 ? s.generation : 0;
}

static void check(void)
{
	for (size_t i = 0; i < s.pages; i++)
		wl_page_check(s.memory + i * WL_PAGE, i, generation_of(i),
			      "memory of a child with a used pid");
}

static void __attribute__((noreturn)) child(pid_t parent, int up)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (size_t i = 0; i < s.pages; i++)
		if (generation_of(i))
			wl_page_fill(s.memory + i * WL_PAGE, i, s.generation);
	wl_same("write", 1, write(up, "u", 1));
	while (getppid() == parent) {
		check();
		wl_sleep_us(1000);
	}
	_exit(0);
}

static void begin(void)
{
	pid_t set = s.child, parent = getpid();
	struct clone_args a = {.exit_signal = SIGCHLD,
			       .set_tid = s.child ? (uint64_t)&set : 0,
			       .set_tid_size = s.child ? 1 : 0};
	int up[2];
	char c;

	s.generation++;
	wl_must(!pipe2(up, O_CLOEXEC), "pipe2");
	pid_t pid = (pid_t)syscall(SYS_clone3, &a, sizeof(a));
	wl_must(pid >= 0, "clone3");
	if (!pid)
		child(parent, up[1]);
	wl_check(!s.child || pid == s.child, "pid: expected %d, got %d", s.child, pid);
	s.child = pid;
	close(up[1]);
	wl_same("read", 1, read(up[0], &c, 1));
	close(up[0]);
}

static void end(void)
{
	int status;

	/* one that has found something wrong has said so, and has ended by itself */
	wl_same("waitpid", 0, waitpid(s.child, &status, WNOHANG));
	wl_must(!kill(s.child, SIGKILL), "kill");
	wl_same("waitpid", s.child, waitpid(s.child, &status, 0));
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	uint64_t life_ns = (uint64_t)wl_opt("ms", 150) * 1000000, began;

	s.pages = (size_t)wl_opt("mib", 4) * 256;
	s.memory = mmap(NULL, s.pages * WL_PAGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	wl_must(s.memory != MAP_FAILED, "mmap");
	begin();
	began = wl_ns(CLOCK_MONOTONIC);
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		if (wl_ns(CLOCK_MONOTONIC) - began > life_ns) {
			end();
			begin();
			began = wl_ns(CLOCK_MONOTONIC);
		}
		wl_sleep_us(2000);
	}
	end();
	wl_done();
}
