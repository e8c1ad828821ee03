/* copy MIB: what memcpy(3) into memory that was never touched does, in bytes a second: the median
 * of three passes. The source is in memory, and the memory that is copied to was there a moment ago
 * (see warm.c). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static char *map(size_t bytes)
{
	char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED) {
		perror("copy");
		exit(1);
	}
	return p;
}

static double pass(const char *from, size_t bytes)
{
	char *to = map(bytes);
	double start = seconds();

	memcpy(to, from, bytes);
	double took = seconds() - start;
	munmap(to, bytes);
	return (double)bytes / took;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	size_t bytes = (argc > 1 ? strtoul(argv[1], NULL, 10) : 1024) << 20;
	char *from = map(bytes);
	double v[3];

	for (size_t i = 0; i < bytes; i++)
		from[i] = (char)(i * 7 + (i >> 12));
	pass(from, bytes); /* so that the memory is there */
	for (int i = 0; i < 3; i++)
		v[i] = pass(from, bytes);
	qsort(v, 3, sizeof(v[0]), compare);
	printf("%.0f\n", v[1]);
	return 0;
}
