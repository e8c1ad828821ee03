/* Of shared memory: what is known to have been written, and when that cannot be known. */
#include "memory/shared_tracker.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "kernel/openwatch.h"
#include "kernel/uffd.h"
#include "memory/witness.h"

enum { PAGES = 1024 };
#define BYTES (PAGES * CR_PAGE_SIZE)

static struct shmview *view; /* NULL: not to be had here */
static struct cr_err err;

static int set_up(void **state)
{
	(void)state;
	if (shmview_new(&view, &err))
		print_message("%s\n", err.msg);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	shmview_free(view);
	return 0;
}

/* ---- the decision ---- */

/* Two processes that have it, and a mapping of ours. */
static struct shared_look a_look(struct tracker *t)
{
	struct shared_look l = {.size = BYTES, .openings = 1, .maps_of_ours = 1, .when_s = 1000};

	*t = (struct tracker){.uffd = 3};
	for (pid_t pid = 10; pid < 12; pid++)
		*vec_push(&l.maps) = (struct shared_mapping){.pid = pid,
							     .tracker = t,
							     .m = {.start = 0x10000,
								   .end = 0x10000 + BYTES,
								   .flags = 0x102a,
								   .inode = 77,
								   .mm = 100 + (uint64_t)pid,
								   .lock_seq = 4,
								   .writable_maps = 3,
								   .write_openings = 1}};
	return l;
}

static bool known(struct shared_look *l)
{
	const struct shared_look nothing = {0};

	shared_look_judge(l, &nothing);
	return l->known;
}

/* As all is that has been moved here: by an open file whose descriptors are closed. */
static void what_maps_it_by_a_closed_descriptor(void **state)
{
	struct tracker t;
	struct shared_look l = a_look(&t);

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		l.maps.v[i].m.write_openings = 2;
		l.maps.v[i].m.file = 5;
		l.maps.v[i].m.file_mode = 0x10003;
		l.maps.v[i].m.file_refs = 2; /* both by the same, inherited */
	}
	assert_true(known(&l));
	l.maps.v[0].m.file_refs = l.maps.v[1].m.file_refs = 3; /* a descriptor is left */
	assert_false(known(&l));
	l.maps.v[1].m.file = 6; /* each by its own, of which one is not the mappings' alone */
	l.maps.v[0].m.write_openings = l.maps.v[1].m.write_openings = 3;
	l.maps.v[0].m.file_refs = 1;
	assert_false(known(&l));
	l.maps.v[1].m.file_refs = 1;
	assert_true(known(&l));
	l.maps.v[0].m.write_openings = l.maps.v[1].m.write_openings = 4; /* somebody else's */
	assert_false(known(&l));
	l.maps.v[0].m.write_openings = l.maps.v[1].m.write_openings = 1;
	assert_false(known(&l));
	l.maps.v[0].m.file_mode = l.maps.v[1].m.file_mode = 3; /* mmap(2) without a file: none */
	assert_true(known(&l));
	shared_look_done(&l);
}

static void every_writer_has_to_be_tracked(void **state)
{
	const struct addr_range unsettled = {0x10000 + BYTES - CR_PAGE_SIZE, 0x20000 + BYTES};
	struct tracker t;
	struct shared_look l = a_look(&t), empty = {0};
	struct shared_mapping *m = &l.maps.v[1];

	(void)state;
	assert_true(known(&l));
	assert_false(known(&empty));
	l.maps.n = 1; /* the other is somewhere outside */
	assert_false(known(&l));
	l.maps.n = 2;
	m->tracker = NULL;
	assert_false(known(&l));
	m->tracker = &t;
	t.uffd = -1;
	assert_false(known(&l));
	t.uffd = 3;
	t.always_full = true;
	assert_false(known(&l));
	t.always_full = false;
	*vec_push(&t.unsettled) = unsettled;
	assert_false(known(&l));
	vec_done(&t.unsettled);
	m->m.flags = 0x2a; /* not registered */
	assert_false(known(&l));
	m->m.flags = 0x28; /* it may not write, as things are */
	assert_true(known(&l));
	m->m.flags = 0x102a;
	m->m.write_openings = 2;
	assert_false(known(&l));
	m->m.write_openings = 1;
	m->m.inode = 78;
	assert_false(known(&l));
	m->m.inode = 77;
	m->m.mm = l.maps.v[0].m.mm; /* clone(2), CLONE_VM: it is one mapping */
	assert_false(known(&l));
	m->m.mm++;
	assert_true(known(&l));
	vec_done(&l.maps);
}

static bool follows(const struct shared_look *a, const struct shared_look *b)
{
	return shared_look_follows(a, b);
}

static void nothing_may_come_and_go(void **state)
{
	struct tracker t;
	struct shared_look a = a_look(&t), b = a_look(&t);
	struct shm_mapping *m = &b.maps.v[1].m;

	(void)state;
	assert_false(follows(&a, &b)); /* not judged yet */
	assert_true(known(&a) && known(&b) && follows(&a, &b));
	m->lock_seq++;
	assert_false(follows(&a, &b));
	m->lock_seq--;
	m->mm++;
	assert_false(follows(&a, &b));
	m->mm--;
	m->first++;
	assert_false(follows(&a, &b));
	m->first--;
	b.opened = true;
	assert_false(follows(&a, &b));
	b.opened = false;
	b.size += CR_PAGE_SIZE;
	assert_false(follows(&a, &b));
	b.size = a.size;
	a.known = false;
	assert_false(follows(&a, &b));
	a.known = true;
	b.known = false;
	assert_false(follows(&a, &b));
	b.known = true;
	b.maps.n = 1;
	assert_false(follows(&a, &b));
	b.maps.n = 2;
	assert_true(follows(&a, &b));
	vec_done(&a.maps);
	vec_done(&b.maps);
}

static void use_of_a_descriptor_shows(void **state)
{
	const struct filemark quiet = {true, true, 5};
	struct tracker t;
	struct shared_look a = a_look(&t), b = a_look(&t);

	(void)state;
	a.by_descriptor = b.by_descriptor = true;
	a.marks = b.marks = quiet;
	a.marks.kept = false; /* that was before */
	a.maps.v[0].m.write_openings = b.maps.v[1].m.write_openings = 7;
	assert_true(known(&a) && known(&b) && follows(&a, &b));
	b.marks.kept = false;
	assert_false(follows(&a, &b));
	b.marks = quiet;
	b.marks.accessed_ns++;
	assert_false(follows(&a, &b));
	b.marks = quiet;
	b.marks.accesses_show = false; /* of what comes next, perhaps */
	assert_true(follows(&a, &b));
	a.marks.accesses_show = false;
	assert_false(follows(&a, &b));
	a.marks.accesses_show = true;
	a.by_descriptor = false;
	assert_false(follows(&a, &b));
	a.by_descriptor = true;
	b.by_descriptor = false;
	b.maps.v[1].m.write_openings = b.maps.v[0].m.write_openings;
	assert_true(known(&b));
	assert_false(follows(&a, &b));
	vec_done(&a.maps);
	vec_done(&b.maps);
}

static void an_attachment_shows_by_its_second(void **state)
{
	struct tracker t;
	struct shared_look a = a_look(&t), b = a_look(&t);

	(void)state;
	assert_true(known(&a) && known(&b));
	a.attached_s = b.attached_s = a.when_s - 1;
	assert_true(follows(&a, &b));
	b.attached_s = a.when_s + 5;
	assert_false(follows(&a, &b));
	a.attached_s = b.attached_s = a.when_s; /* perhaps once more within it */
	assert_false(follows(&a, &b));
	vec_done(&a.maps);
	vec_done(&b.maps);
}

/* ---- what the kernel tells ---- */

static const size_t none = 0;

struct fixture {
	uint8_t *map;
	struct tracker t;
	struct shared_look look;
	struct witness witness;
	int fd;
};

static void look(struct fixture *f)
{
	struct shm_mapping *list = NULL;
	size_t n = 0;

	assert_int_equal(shmview_read(view, getpid(), &list, &n, &err), 0);
	shared_look_done(&f->look);
	f->look = (struct shared_look){.size = BYTES, .openings = 1, .maps_of_ours = 1};
	for (size_t i = 0; i < n; i++)
		if (list[i].start == (uintptr_t)f->map)
			*vec_push(&f->look.maps) = (struct shared_mapping){
			    .pid = getpid(), .tracker = &f->t, .m = list[i]};
	free(list);
	assert_true(known(&f->look));
}

/* All of it is written, protected, and seen. */
static void begin(struct fixture *f)
{
	struct shared_pages pages;
	char path[96];

	*f = (struct fixture){.witness = WITNESS_NONE};
	f->map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(f->map != MAP_FAILED);
	snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", (unsigned long)f->map,
		 (unsigned long)f->map + BYTES);
	f->fd = open(path, O_RDWR | O_CLOEXEC);
	f->t.uffd = (int)syscall(SYS_userfaultfd, uffd_create_flags());
	f->t.pagemap = pagemap_open(getpid(), &err);
	assert_true(f->fd >= 0 && f->t.uffd >= 0 && f->t.pagemap >= 0);
	assert_int_equal(uffd_enable_wp_async(f->t.uffd, &err), 0);
	assert_int_equal(uffd_register(f->t.uffd, (uintptr_t)f->map, (uintptr_t)f->map + BYTES), 0);
	assert_int_equal(witness_begin(&f->witness, f->fd, BYTES, &err), 0);
	memset(f->map, 1, BYTES / 2); /* the rest has no page table */
	look(f);
	assert_int_equal(shared_look_collect(&f->look, true, &pages, &err), 0);
	assert_int_equal(pages.marked, PAGES);
	shared_pages_done(&pages);
	witness_see(&f->witness, 0, BYTES);
}

static void end(struct fixture *f)
{
	witness_done(&f->witness);
	shared_look_done(&f->look);
	close(f->fd);
	close(f->t.uffd);
	close(f->t.pagemap);
	munmap(f->map, BYTES);
}

static void assert_written(struct fixture *f, bool protect, size_t n, const size_t *which)
{
	struct shared_pages pages;
	size_t at = 0, stop, k = 0;

	assert_int_equal(shared_look_collect(&f->look, protect, &pages, &err), 0);
	for (; shared_pages_next(&pages, &at, &stop); at = stop)
		for (; at < stop; at++)
			assert_true(k < n && which[k++] == at);
	assert_int_equal(k, n);
	assert_int_equal(pages.marked, n);
	shared_pages_done(&pages);
}

static void writes_show_and_nothing_hides_them(void **state)
{
	const size_t written[] = {3, 4, 600, 700};
	struct fixture f;

	(void)state;
	if (!view)
		skip();
	begin(&f);
	assert_written(&f, false, 0, &none);
	f.map[3 * CR_PAGE_SIZE] = 9;
	f.map[4 * CR_PAGE_SIZE] = 9;
	f.map[600 * CR_PAGE_SIZE] = 9; /* never touched before */
	assert_int_equal(pread(f.t.pagemap, f.map + 700 * CR_PAGE_SIZE, 8, 0), 8);
	assert_written(&f, false, 4, written);
	/* what reads does not, nor what takes its entries away */
	assert_int_equal(f.map[800 * CR_PAGE_SIZE] + f.map[0], 1);
	assert_int_equal(madvise(f.map, BYTES, MADV_DONTNEED), 0);
	assert_written(&f, true, 4, written);
	assert_written(&f, false, 0, &none);
	end(&f);
}

/* As MADV_DONTNEED may leave it, of a mapping all of which was written. */
static void a_page_table_that_is_gone_counts_as_written(void **state)
{
	struct shared_pages pages;
	struct fixture f;

	(void)state;
	if (!view)
		skip();
	begin(&f);
	memset(f.map, 2, BYTES);
	assert_int_equal(madvise(f.map, BYTES, MADV_DONTNEED), 0);
	assert_int_equal(shared_look_collect(&f.look, true, &pages, &err), 0);
	assert_int_equal(pages.marked, PAGES);
	shared_pages_done(&pages);
	assert_written(&f, false, 0, &none);
	end(&f);
}

static void in_a_child(struct fixture *f)
{
	pid_t child = fork();
	int st;

	assert_true(child >= 0);
	if (!child) {
		f->map[0] = 5;
		_exit(0);
	}
	assert_int_equal(waitpid(child, &st, 0), child);
}

static void what_came_and_went_shows(void **state)
{
	struct shared_look before;
	struct fixture f;

	(void)state;
	if (!view)
		skip();
	begin(&f);
	for (int what = 0; what < 4; what++) {
		look(&f);
		before = f.look;
		f.look = (struct shared_look){0};
		f.map[0]++; /* a write alone is none of it */
		if (what == 1)
			in_a_child(&f);
		if (what == 2) {
			uint8_t *q = mremap(f.map, 0, BYTES, MREMAP_MAYMOVE);

			assert_true(q != MAP_FAILED);
			q[CR_PAGE_SIZE] = 1;
			munmap(q, BYTES);
		}
		look(&f);
		assert_int_equal(follows(&before, &f.look), what == 0 || what == 3);
		shared_look_done(&before);
	}
	end(&f);
}

static int count(const struct page_extent *e, void *arg, struct cr_err *ignored)
{
	size_t *n = arg;

	(void)ignored;
	*n += (e->end - e->start) / CR_PAGE_SIZE;
	return 0;
}

static size_t missing(const struct fixture *f)
{
	size_t n = 0;

	assert_int_equal(witness_missing(&f->witness, count, &n, &err), 0);
	return n;
}

static void pages_that_were_taken_out_show(void **state)
{
	struct fixture f;
	struct stat st;

	(void)state;
	if (!view)
		skip();
	begin(&f);
	assert_int_equal(missing(&f), PAGES / 2);
	assert_int_equal(madvise(f.map + 5 * CR_PAGE_SIZE, 3 * CR_PAGE_SIZE, MADV_REMOVE), 0);
	/* back, with zeros, and no page table says that it was written */
	assert_int_equal(f.map[5 * CR_PAGE_SIZE] + f.map[7 * CR_PAGE_SIZE], 0);
	assert_written(&f, false, 0, &none);
	assert_int_equal(missing(&f), PAGES / 2 + 3);
	/* the hole is left one */
	witness_see(&f.witness, 0, BYTES);
	assert_int_equal(missing(&f), PAGES / 2 + 1);
	assert_int_equal(fstat(f.fd, &st), 0);
	assert_int_equal(st.st_blocks, (PAGES / 2 - 1) * 8);
	end(&f);
}

static void note(int watch, void *arg)
{
	*(int *)arg = watch;
}

static void whoever_opens_it_shows(void **state)
{
	int inotify = openwatch_new(), seen = 0;
	char path[64];
	struct fixture f;

	(void)state;
	if (!view || inotify < 0)
		skip();
	begin(&f);
	int watch = openwatch_add(inotify, f.fd);
	assert_true(watch > 0);
	openwatch_read(inotify, note, &seen);
	assert_int_equal(seen, 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", f.fd);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	close(fd);
	openwatch_read(inotify, note, &seen);
	assert_int_equal(seen, watch);
	close(inotify);
	end(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(what_maps_it_by_a_closed_descriptor),
	    cmocka_unit_test(every_writer_has_to_be_tracked),
	    cmocka_unit_test(nothing_may_come_and_go),
	    cmocka_unit_test(use_of_a_descriptor_shows),
	    cmocka_unit_test(an_attachment_shows_by_its_second),
	    cmocka_unit_test(writes_show_and_nothing_hides_them),
	    cmocka_unit_test(a_page_table_that_is_gone_counts_as_written),
	    cmocka_unit_test(what_came_and_went_shows),
	    cmocka_unit_test(pages_that_were_taken_out_show),
	    cmocka_unit_test(whoever_opens_it_shows),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
