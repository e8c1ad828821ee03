/* Huge pages (Documentation/admin-guide/mm/hugetlbpage.rst) that are shared: shared anonymous
 * memory, System V segments, memfds. They are objects like any other shared memory, and compared
 * whole. */
#include <stdio.h>
#include <sys/vfs.h>
#include <linux/magic.h>
#include "memory/capture.h"

uint64_t huge_page_bytes(int fd)
{
	struct statfs fs;

	return !fstatfs(fd, &fs) && fs.f_type == HUGETLBFS_MAGIC ? (uint64_t)fs.f_bsize : 0;
}

static uint64_t read_count(uint64_t page_bytes, const char *what)
{
	char path[96];
	unsigned long long n = 0;

	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%llukB/%s",
		 (unsigned long long)page_bytes >> 10, what);
	FILE *f = fopen(path, "re");
	if (!f)
		return 0;
	if (fscanf(f, "%llu", &n) != 1)
		n = 0;
	fclose(f);
	return n;
}

/* Free ones that nobody else has been promised, and those that the host makes on demand. */
static uint64_t available(uint64_t page_bytes)
{
	uint64_t unused = read_count(page_bytes, "free_hugepages");
	uint64_t promised = read_count(page_bytes, "resv_hugepages");
	uint64_t more = read_count(page_bytes, "nr_overcommit_hugepages");
	uint64_t surplus = read_count(page_bytes, "surplus_hugepages");

	return (unused > promised ? unused - promised : 0) + (more > surplus ? more - surplus : 0);
}

void huge_check(const struct tree *t, struct refusals *refused)
{
	for (size_t i = 0; i < t->n_objects; i++) {
		uint64_t size = t->objects[i].page_bytes, wanted = 0, there;
		bool before = false; /* has that size been looked at? */
		char label[64];

		for (size_t k = 0; size && k < t->n_objects; k++) {
			if (t->objects[k].page_bytes != size)
				continue;
			before |= k < i;
			wanted += t->objects[k].size / size + !!(t->objects[k].size % size);
		}
		if (!size || before || (there = available(size)) >= wanted)
			continue;
		snprintf(label, sizeof(label), "huge pages of %llu KiB",
			 (unsigned long long)size >> 10);
		refuse(refused, 0, label,
		       "%llu are needed at the destination and %llu are free there; raise its "
		       "vm.nr_hugepages",
		       (unsigned long long)wanted, (unsigned long long)there);
	}
}
