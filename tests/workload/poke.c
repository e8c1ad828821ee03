/* Breaks a running workload on purpose, to prove that it notices.
 *
 *   poke range PID LO HI   flip a byte in the middle of every present, writable page there
 * (hexadecimal) poke anon PID          the same for the largest private anonymous mapping poke
 * gpr|xstate|gs PID flip a bit of r15, of the last xmm/ymm bytes, change the GS base
 *
 * Registers are only worth changing while the task holds them (regs_hold() in regs.c): it tries
 * until it stops there. Exit 0 if something was changed. */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static int die(const char *what)
{
	fprintf(stderr, "poke: %s: %s\n", what, strerror(errno));
	return 1;
}

static int flip_range(int pid, uint64_t lo, uint64_t hi)
{
	char path[64];
	int mem, pagemap, n = 0;
	uint64_t entry;

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	mem = open(path, O_RDWR);
	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	pagemap = open(path, O_RDONLY);
	if (mem < 0 || pagemap < 0)
		return die("open");
	for (uint64_t va = lo; va < hi; va += 4096) {
		uint8_t byte;

		if (pread(pagemap, &entry, 8, va / 4096 * 8) != 8 || !(entry >> 63) ||
		    pread(mem, &byte, 1, va + 2048) != 1)
			continue;
		byte ^= 0x10;
		n += pwrite(mem, &byte, 1, va + 2048) == 1;
	}
	printf("%d pages of %lx-%lx\n", n, lo, hi);
	return !n;
}

static int flip_largest(int pid)
{
	char path[64], line[512];
	uint64_t lo, hi, best_lo = 0, best_hi = 0, ino;
	FILE *in;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	in = fopen(path, "r");
	if (!in)
		return die(path);
	while (fgets(line, sizeof(line), in))
		if (sscanf(line, "%lx-%lx rw-p %*s %*s %lu", &lo, &hi, &ino) == 3 && !ino &&
		    !strchr(line, '[') && hi - lo > best_hi - best_lo) {
			best_lo = lo;
			best_hi = hi;
		}
	fclose(in);
	return flip_range(pid, best_lo, best_hi);
}

static int change(int pid, const char *what)
{
	static uint8_t xstate[32768];
	struct user_regs_struct r;
	struct iovec gp = {&r, sizeof(r)}, x = {xstate, sizeof(xstate)};

	if (ptrace(PTRACE_GETREGSET, pid, NT_PRSTATUS, &gp))
		return die("GETREGSET");
	if (!strcmp(what, "gpr"))
		r.r15 ^= 1 << 13;
	else if (!strcmp(what, "gs"))
		r.gs_base += 64;
	if (strcmp(what, "xstate"))
		return ptrace(PTRACE_SETREGSET, pid, NT_PRSTATUS, &gp) ? die("SETREGSET") : 0;
	if (ptrace(PTRACE_GETREGSET, pid, NT_X86_XSTATE, &x))
		return die("GETREGSET of the xstate");
	xstate[160 + 15 * 16 + 3] ^= 0x20; /* xmm15 */
	return ptrace(PTRACE_SETREGSET, pid, NT_X86_XSTATE, &x) ? die("SETREGSET of the xstate")
								: 0;
}

/* Within `1: pause; loop 1b`, wherever that is. */
static bool holds(int pid, uint64_t rip)
{
	static const uint8_t loop[] = {0xf3, 0x90, 0xe2, 0xfc};
	const long at = ptrace(PTRACE_PEEKTEXT, pid, rip, 0);

	return !memcmp(&at, loop, 4) || !memcmp(&at, loop + 2, 2);
}

static int change_registers(int pid, const char *what)
{
	struct user_regs_struct r;
	int status, st;

	if (ptrace(PTRACE_SEIZE, pid, 0, 0))
		return die("SEIZE");
	for (int tries = 0; tries < 2000; tries++) {
		ptrace(PTRACE_INTERRUPT, pid, 0, 0);
		if (waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status))
			return die("wait");
		if (!ptrace(PTRACE_GETREGS, pid, 0, &r) && holds(pid, r.rip)) {
			st = change(pid, what);
			ptrace(PTRACE_DETACH, pid, 0, 0);
			return st;
		}
		ptrace(PTRACE_CONT, pid, 0, 0);
		usleep(3000);
	}
	return 1;
}

int main(int argc, char **argv)
{
	const int pid = argc > 2 ? atoi(argv[2]) : 0;

	if (argc == 5 && !strcmp(argv[1], "range"))
		return flip_range(pid, strtoull(argv[3], NULL, 16), strtoull(argv[4], NULL, 16));
	if (argc == 3 && !strcmp(argv[1], "anon"))
		return flip_largest(pid);
	if (argc == 3)
		return change_registers(pid, argv[1]);
	fprintf(stderr, "usage: poke anon|gpr|xstate|gs PID, poke range PID LO HI\n");
	return 2;
}
