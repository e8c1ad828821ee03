/* What a forked process still shares with its donor need not be sent; everything else is. The donor
 * is this process, the copy a child of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "kernel/pagemap.h"
#include "kernel/uffd.h"
#include "memory/donor.h"

enum { PAGES = 1500 };

struct stage {
	char *p;
	struct tracker donor, copy;
	size_t budget;
	pid_t child;
	int link; /* to the child */
	bool rest[PAGES];
};

static int start_donor(struct stage *s)
{
	struct cr_err err = {0};
	int uffd = (int)syscall(SYS_userfaultfd, uffd_create_flags());
	uint64_t own = 0;

	if (uffd < 0 || uffd_enable_wp_async(uffd, &err)) {
		close(uffd);
		return -1;
	}
	s->p = mmap(NULL, PAGES * CR_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		    -1, 0);
	assert_ptr_not_equal(s->p, MAP_FAILED);
	madvise(s->p, PAGES * CR_PAGE_SIZE, MADV_NOHUGEPAGE);
	assert_int_equal(tracker_init(&s->donor, getpid(), 0, uffd, &s->budget, &err), 0);
	memset(s->p, 1, PAGES * CR_PAGE_SIZE);
	assert_int_equal(pagemap_entry(s->donor.pagemap, (uint64_t)s->p, &own, &err), 0);
	return own & ((1ull << 55) - 1) ? 0 : -1; /* frames are shown to CAP_SYS_ADMIN only */
}

static int nothing(const struct page_extent *e, void *arg, struct cr_err *err)
{
	(void)e, (void)arg, (void)err;
	return 0;
}

/* A round of the donor: all of it is registered, protected, and has been sent. */
static void donors_round(struct stage *s)
{
	uint64_t start = (uint64_t)s->p, end = start + PAGES * CR_PAGE_SIZE;
	const struct pagemap_query q = {.start = start,
					.end = end,
					.mask = PAGE_CAT_WRITTEN,
					.anyof = PAGE_CAT_PRESENT,
					.ret = PAGE_CAT_ALL,
					.protect = true};
	struct cr_err err = {0};

	assert_int_equal(uffd_register(s->donor.uffd, start, end), 0);
	assert_int_equal(pagemap_walk(s->donor.pagemap, &q, nothing, NULL, &err), 0);
	for (uint64_t va = start; va < end; va += CR_PAGE_SIZE)
		chunk_set(sentmap_chunk(&s->donor.sent, va, true)->sent, chunk_index(va));
	s->donor.vmas = calloc(1, sizeof(*s->donor.vmas));
	s->donor.vmas[0] = (struct vma){.start = start, .end = end, .kind = VMA_ANON};
	s->donor.n_vmas = 1;
	s->donor.rounds = 1;
}

/* The child writes to, or discards, the pages that it is told. */
static void child_life(const char *p, int link)
{
	int page;

	while (read(link, &page, sizeof(page)) == sizeof(page)) {
		char *at = (char *)p + (size_t)(page < 0 ? -page : page) * CR_PAGE_SIZE;

		if (page < 0)
			madvise(at, CR_PAGE_SIZE, MADV_DONTNEED);
		else
			*at = 2;
		if (write(link, &page, sizeof(page)) != sizeof(page))
			break;
	}
	_exit(0);
}

static void fork_copy(struct stage *s)
{
	struct cr_err err = {0};
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	s->child = fork();
	if (!s->child) {
		close(pair[0]);
		child_life(s->p, pair[1]);
	}
	assert_true(s->child > 0);
	close(pair[1]);
	s->link = pair[0];
	assert_int_equal(tracker_init(&s->copy, s->child, 1, -1, &s->budget, &err), 0);
}

static void child_does(struct stage *s, int page)
{
	assert_int_equal(write(s->link, &page, sizeof(page)), sizeof(page));
	assert_int_equal(read(s->link, &page, sizeof(page)), sizeof(page));
}

static int on_rest(uint64_t start, uint64_t end, void *arg, struct cr_err *err)
{
	struct stage *s = arg;

	(void)err;
	for (uint64_t va = start; va < end; va += CR_PAGE_SIZE) {
		size_t i = (va - (uint64_t)s->p) / CR_PAGE_SIZE;

		assert_true(i < PAGES && !s->rest[i]);
		s->rest[i] = true;
	}
	return 0;
}

/* How many have to be sent. */
static size_t count_rest(struct stage *s)
{
	struct cr_err err = {0};
	size_t n = 0;

	memset(s->rest, 0, sizeof(s->rest));
	assert_int_equal(donor_look(&s->copy, &err), 0);
	if (!s->copy.donor)
		return PAGES;
	assert_int_equal(donor_for_rest(&s->copy, (uint64_t)s->p,
					(uint64_t)s->p + PAGES * CR_PAGE_SIZE, on_rest, s, &err),
			 0);
	for (size_t i = 0; i < PAGES; i++)
		n += s->rest[i];
	vec_done(&s->copy.donor_bare);
	return n;
}

static int set_up(void **state)
{
	struct stage *s = calloc(1, sizeof(*s));

	*state = s;
	s->link = -1;
	s->donor.uffd = s->donor.pagemap = s->donor.mem = -1;
	s->copy.uffd = s->copy.pagemap = s->copy.mem = -1;
	return 0;
}

static int tear_down(void **state)
{
	struct stage *s = *state;

	tracker_done(&s->copy);
	tracker_done(&s->donor);
	if (s->child > 0) {
		kill(s->child, SIGKILL);
		waitpid(s->child, NULL, 0);
	}
	close_fdp(&s->link);
	munmap(s->p, PAGES * CR_PAGE_SIZE);
	free(s);
	return 0;
}

static void begin(struct stage *s, const uint64_t *va, size_t n)
{
	struct cr_err err = {0};

	assert_int_equal(donor_begin(&s->copy, &s->donor, va, n, &err), 0);
}

static void test_what_differs_is_sent(void **state)
{
	struct stage *s = *state;

	if (start_donor(s))
		skip();
	donors_round(s);
	fork_copy(s);
	begin(s, NULL, 0);
	assert_int_equal(count_rest(s), 0);
	child_does(s, 3);
	child_does(s, 700);
	child_does(s, -701); /* absent: whoever sends knows that without us, and says zeros */
	s->p[900 * CR_PAGE_SIZE] = 3;
	madvise(s->p + 901 * CR_PAGE_SIZE, CR_PAGE_SIZE, MADV_DONTNEED);
	assert_int_equal(count_rest(s), 5);
	assert_true(s->rest[3] && s->rest[700] && s->rest[701] && s->rest[900] && s->rest[901]);
	/* a claim of what the destination has, also where it has to be mended */
	assert_true(sentmap_test(&s->copy.sent, (uint64_t)s->p + 701 * CR_PAGE_SIZE));
}

/* Written in place after it was sent, then shared: the same frame, but not what was sent. */
static void test_written_before_the_fork(void **state)
{
	struct stage *s = *state;

	if (start_donor(s))
		skip();
	donors_round(s);
	s->p[10 * CR_PAGE_SIZE] = 3;
	s->p[1400 * CR_PAGE_SIZE] = 3;
	fork_copy(s);
	begin(s, NULL, 0);
	assert_int_equal(count_rest(s), 2);
	assert_true(s->rest[10] && s->rest[1400]);
}

/* What was never sent of the donor, and what the destination itself writes to. */
static void test_not_sent_or_volatile(void **state)
{
	struct stage *s = *state;

	if (start_donor(s))
		skip();
	const uint64_t rseq = (uint64_t)s->p + 20 * CR_PAGE_SIZE + 64;
	donors_round(s);
	sentmap_forget(&s->donor.sent, (uint64_t)s->p, (uint64_t)s->p + CR_PAGE_SIZE);
	fork_copy(s);
	begin(s, &rseq, 1);
	assert_int_equal(count_rest(s), 2);
	assert_true(s->rest[0] && s->rest[20]);
}

/* Protection bits without a registration mean nothing: writes are not seen. */
static void test_not_registered(void **state)
{
	struct stage *s = *state;

	if (start_donor(s))
		skip();
	donors_round(s);
	fork_copy(s);
	begin(s, NULL, 0);
	struct addr_range *r = vec_push(&s->donor.unsettled); /* perhaps of who was there before */
	*r = (struct addr_range){(uint64_t)s->p + 5 * CR_PAGE_SIZE,
				 (uint64_t)s->p + 9 * CR_PAGE_SIZE};
	assert_int_equal(count_rest(s), 4);
	assert_true(s->rest[5] && s->rest[8]);
	close_fdp(&s->donor.uffd);
	assert_int_equal(count_rest(s), PAGES);
}

/* The donor's next round protects another state than the one that was copied. */
static void test_only_until_the_donors_next_round(void **state)
{
	struct stage *s = *state;

	if (start_donor(s))
		skip();
	donors_round(s);
	fork_copy(s);
	begin(s, NULL, 0);
	s->donor.rounds++;
	assert_int_equal(count_rest(s), PAGES);
}

/* madvise(2): what a child does not get. */
static void test_not_inherited(void **state)
{
	struct stage *s = *state;

	if (start_donor(s))
		skip();
	donors_round(s);
	s->donor.vmas[0].flags = VMA_F_WIPEONFORK;
	fork_copy(s);
	begin(s, NULL, 0);
	assert_int_equal(count_rest(s), PAGES);
	assert_false(sentmap_test(&s->copy.sent, (uint64_t)s->p));
	assert_int_equal(s->copy.n_vmas, 1);
}

static void test_a_child_of_a_copy(void **state)
{
	struct stage *s = *state;
	struct cr_err err = {0};
	struct tracker grandchild;

	if (start_donor(s))
		skip();
	donors_round(s);
	fork_copy(s);
	begin(s, NULL, 0);
	assert_int_equal(tracker_init(&grandchild, s->child, 2, -1, &s->budget, &err), 0);
	assert_int_equal(donor_begin(&grandchild, &s->copy, NULL, 0, &err), 0);
	assert_ptr_equal(grandchild.donor, &s->donor);
	/* too late, or nonsense: a destination that says so is not believed */
	assert_int_equal(donor_begin(&grandchild, &s->copy, NULL, 0, &err), -EPROTO);
	assert_int_equal(donor_begin(&s->donor, &s->donor, NULL, 0, &err), -EPROTO);
	tracker_done(&grandchild);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    TEST(test_what_differs_is_sent),
	    TEST(test_written_before_the_fork),
	    TEST(test_not_sent_or_volatile),
	    TEST(test_not_registered),
	    TEST(test_only_until_the_donors_next_round),
	    TEST(test_not_inherited),
	    TEST(test_a_child_of_a_copy),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
