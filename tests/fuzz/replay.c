/* The main function of fuzz targets that are built without libFuzzer: runs each file, and each file
 * of each directory, that it is given. Says how many it ran. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/cleanup.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);

/* What the mutators of our targets call; nobody calls those here. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max)
{
	(void)data;
	(void)max;
	return size;
}

static int run_file(const char *path)
{
	_cleanup_file_ FILE *f = fopen(path, "re");
	struct stat sb;

	if (!f || fstat(fileno(f), &sb)) {
		perror(path);
		return -1;
	}
	/* as long as the input and no longer, so that a read behind it shows */
	_cleanup_free_ uint8_t *b = malloc((size_t)sb.st_size);
	if ((!b && sb.st_size) || fread(b, 1, (size_t)sb.st_size, f) != (size_t)sb.st_size) {
		perror(path);
		return -1;
	}
	printf("# %s\n", path); /* the last one said is the one that crashed */
	fflush(stdout);
	return LLVMFuzzerTestOneInput(b, (size_t)sb.st_size) ? -1 : 1;
}

static int run_path(const char *path)
{
	_cleanup_dir_ DIR *d = opendir(path);
	const struct dirent *e;
	int n = 0;

	if (!d)
		return run_file(path);
	while ((e = readdir(d))) {
		char name[4096];

		if (e->d_name[0] == '.')
			continue;
		snprintf(name, sizeof(name), "%s/%s", path, e->d_name);
		if (run_file(name) < 0)
			return -1;
		n++;
	}
	return n;
}

int main(int argc, char **argv)
{
	int n = 0;

	for (int i = 1; i < argc; i++) {
		int r = run_path(argv[i]);

		if (r < 0)
			return 1;
		n += r;
	}
	printf("ran %d\n", n);
	return n ? 0 : 1;
}
