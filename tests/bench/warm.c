/* warm MIB: touch as much memory and give it back.
 *
 * A virtual machine's memory may have nothing behind it until it is touched, and lose it again some
 * time after it was freed. The first to touch it then waits for the hypervisor, at a tenth of the
 * speed of memory, whatever it does. What was freed last is handed out first: who allocates right
 * after this gets memory that is there.
 *
 * Prints what the last of its two passes took, in GB/s. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Huge pages, where they can be had: it is the memory that is wanted, not its page tables. */
static double pass(size_t bytes)
{
	double start = seconds();
	char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED) {
		perror("warm");
		exit(1);
	}
	madvise(p, bytes, MADV_HUGEPAGE);
	for (size_t i = 0; i < bytes; i += 4096)
		p[i] = 1;
	munmap(p, bytes);
	return (double)bytes / (seconds() - start) / 1e9;
}

int main(int argc, char **argv)
{
	size_t bytes = argc == 2 ? strtoul(argv[1], NULL, 10) << 20 : 0;

	if (!bytes) {
		fputs("usage: warm MIB\n", stderr);
		return 2;
	}
	pass(bytes);
	printf("%.1f\n", pass(bytes));
	return 0;
}
