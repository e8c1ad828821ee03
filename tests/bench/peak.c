/* peak CGROUP…: the peak memory of the agents and page-servers in some cgroups (directories of the
 * v2 hierarchy) from now until standard input ends; then one JSON array on standard output.
 *
 * The kernel keeps each process's peak (VmHWM in /proc/PID/status, proc(5)), but it is gone with
 * the process, and a migration's process ends with the migration: so it is read every few
 * milliseconds. The peak only grows, so what the last reading can miss is what was allocated in the
 * last moments of the process's life. Tasks that are being rebuilt begin as copies of the agent and
 * end up as another program: they are left out, whatever they were when they were seen first. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EVERY_MS = 4, MAX_PROCS = 4096 };

struct proc {
	const char *cgroup;
	char program[16];
	int pid, status; /* status: /proc/PID/status, kept open: a pid used again is another file */
	long peak_kb;
};
static struct proc procs[MAX_PROCS];
static int n_procs;

static bool is_ours(const char *program)
{
	return !strcmp(program, "cr-agent") || !strcmp(program, "page-server");
}

static bool read_program(int pid, char program[16])
{
	char path[64], exe[PATH_MAX];
	const char *base;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/exe", pid);
	n = readlink(path, exe, sizeof(exe) - 1);
	if (n < 0)
		return false;
	exe[n] = 0;
	base = strrchr(exe, '/');
	snprintf(program, 16, "%.15s", base ? base + 1 : exe);
	program[strcspn(program, " ")] = 0; /* " (deleted)": built anew meanwhile */
	return true;
}

static bool read_peak(struct proc *p)
{
	char text[4096], *at;
	ssize_t n = pread(p->status, text, sizeof(text) - 1, 0);

	if (n <= 0)
		return false;
	text[n] = 0;
	at = strstr(text, "\nVmHWM:");
	if (at && atol(at + 7) > p->peak_kb)
		p->peak_kb = atol(at + 7);
	return true;
}

/* What ended keeps its last reading; what has become another program counts no more. */
static void read_known(void)
{
	for (int i = 0; i < n_procs; i++) {
		struct proc *p = &procs[i];
		char program[16];

		if (p->status < 0)
			continue;
		if (read_program(p->pid, program) && strcmp(program, p->program))
			p->program[0] = 0;
		if (!p->program[0] || !read_peak(p)) {
			close(p->status);
			p->status = -1;
		}
	}
}

static bool is_known(int pid)
{
	for (int i = 0; i < n_procs; i++)
		if (procs[i].pid == pid && procs[i].status >= 0)
			return true;
	return false;
}

static void forget_peak(int pid)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/clear_refs", pid);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (write(fd, "5", 1) != 1) /* resets the peak, proc(5) */
		fprintf(stderr, "peak: %s: %s\n", path, strerror(errno));
	close(fd);
}

static void meet(const char *cgroup, int pid, bool first)
{
	struct proc p = {.cgroup = cgroup, .pid = pid};
	char path[64];

	if (is_known(pid) || n_procs == MAX_PROCS || !read_program(pid, p.program) ||
	    !is_ours(p.program))
		return;
	if (first)
		forget_peak(pid);
	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	p.status = open(path, O_RDONLY | O_CLOEXEC);
	if (p.status >= 0 && read_peak(&p))
		procs[n_procs++] = p;
}

static void find_new(const char *cgroup, bool first)
{
	char path[PATH_MAX];
	FILE *f;

	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
	f = fopen(path, "re");
	if (!f)
		return;
	for (int pid; fscanf(f, "%d", &pid) == 1;)
		meet(cgroup, pid, first);
	fclose(f);
}

static void print_all(void)
{
	const char *comma = "";

	printf("[");
	for (int i = 0; i < n_procs; i++) {
		const struct proc *p = &procs[i];
		const char *host = strrchr(p->cgroup, '/');

		if (!p->program[0])
			continue;
		printf("%s{\"host\":\"%s\",\"program\":\"%s\",\"pid\":%d,\"peak_kb\":%ld}", comma,
		       host ? host + 1 : p->cgroup, p->program, p->pid, p->peak_kb);
		comma = ",";
	}
	printf("]\n");
}

int main(int argc, char **argv)
{
	struct pollfd in = {.fd = 0, .events = POLLIN};
	bool first = true;
	char buf[64];

	do {
		read_known();
		for (int i = 1; i < argc; i++)
			find_new(argv[i], first);
		if (first && write(2, "watching\n", 9) != 9)
			return 1;
		first = false;
	} while (!poll(&in, 1, EVERY_MS) || read(0, buf, sizeof(buf)) > 0);
	print_all();
	return 0;
}
