/* A process that forks a child once DIR/switch appears, and then removes that. The child has the
 * other ends of pipes and a socket of its parent, and a file of it below /proc; it answers what it
 * is sent. Enough is written all the time for several rounds. */
#include "workload.h"
#include <sys/socket.h>
#include <sys/wait.h>

enum { WRITTEN_PAGES = 256, FILLER_PAGES = 4096 };

static struct {
	int to[2], from[2], sock[2], status;
	pid_t child;
	uint64_t asked;
	uint8_t *written, *filler;
} f;

static void answer(void)
{
	uint64_t n, via_socket;
	char first[16];

	while (read(f.to[0], &n, sizeof(n)) == (ssize_t)sizeof(n)) {
		if (read(f.sock[1], &via_socket, sizeof(via_socket)) != (ssize_t)sizeof(via_socket))
			_exit(2);
		/* its file is the parent's still */
		if (pread(f.status, first, sizeof(first), 0) != (ssize_t)sizeof(first) ||
		    memcmp(first, "Name:", 5))
			_exit(3);
		n ^= via_socket;
		if (write(f.from[1], &n, sizeof(n)) != (ssize_t)sizeof(n))
			_exit(4);
	}
	_exit(0);
}

static void on_switch(void)
{
	char path[256];

	f.child = fork();
	wl_must(f.child >= 0, "fork");
	if (!f.child) {
		close(f.to[1]);
		close(f.from[0]);
		close(f.sock[0]);
		answer();
	}
	close(f.to[0]);
	close(f.from[1]);
	close(f.sock[1]);
	wl_must(!unlink(wl_path(path, "switch")), "unlink");
}

static void ask(void)
{
	uint64_t n = wl_mix(++f.asked), key = wl_mix(n), got = 0;

	wl_same("write", 8, write(f.to[1], &n, 8));
	wl_same("write to the socket", 8, write(f.sock[0], &key, 8));
	wl_same("read", 8, read(f.from[0], &got, 8));
	wl_same("answer", n ^ key, got);
}

static uint8_t *map(size_t pages)
{
	void *p =
	    mmap(NULL, pages * WL_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	wl_must(p != MAP_FAILED, "mmap");
	return p;
}

static void set_up(void)
{
	char path[64];

	wl_must(!pipe(f.to) && !pipe(f.from) && !socketpair(AF_UNIX, SOCK_STREAM, 0, f.sock),
		"pipes");
	snprintf(path, sizeof(path), "/proc/%d/status", getpid());
	f.status = open(path, O_RDONLY);
	wl_must(f.status >= 0, path);
	f.written = map(WRITTEN_PAGES);
	f.filler = map(FILLER_PAGES);
	uint64_t seed = 7;
	for (size_t i = 0; i < FILLER_PAGES * WL_PAGE / 8; i++)
		((uint64_t *)f.filler)[i] = wl_rand(&seed);
}

int main(int argc, char **argv)
{
	char path[256];
	uint64_t gen = 0;
	int status;

	wl_init(argc, argv);
	set_up();
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		gen++;
		for (uint64_t p = 0; p < WRITTEN_PAGES; p++)
			wl_page_fill(f.written + p * WL_PAGE, p, gen);
		if (!f.child && !access(wl_path(path, "switch"), F_OK))
			on_switch();
		if (f.child)
			ask();
		usleep(2000);
	}
	for (uint64_t p = 0; p < WRITTEN_PAGES; p++)
		wl_page_check(f.written + p * WL_PAGE, p, gen, "written");
	if (f.child) {
		close(f.to[1]);
		wl_same("child", f.child, waitpid(f.child, &status, 0));
		wl_same("its exit", 0, status);
	}
	wl_done();
}
