/* Journals: written, read back, listed, and one that is damaged. */
#include "base/journal.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

struct fixture {
	char dir[64];
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	strcpy(f->dir, "/tmp/test_journal.XXXXXX");
	*state = f;
	return mkdtemp(f->dir) ? 0 : -1;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	_cleanup_dir_ DIR *d = opendir(f->dir);
	struct dirent *e;

	while (d && (e = readdir(d)))
		unlinkat(dirfd(d), e->d_name, 0);
	int r = rmdir(f->dir);
	free(f);
	return r;
}

static struct journal a_journal(const char *id, const char *role, enum journal_state s)
{
	struct journal j = {.state = s, .since_sec = 1700000000};

	snprintf(j.id, sizeof(j.id), "%s", id);
	snprintf(j.role, sizeof(j.role), "%s", role);
	strcpy(j.token, "00ff");
	return j;
}

static void put(const struct fixture *f, const char *id, enum journal_state s)
{
	struct journal j = a_journal(id, "source", s);
	struct cr_err err = {0};

	assert_int_equal(journal_write(f->dir, &j, &err), 0);
}

static void write_text(const struct fixture *f, const char *name, const char *text)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", f->dir, name);
	_cleanup_file_ FILE *out = fopen(path, "we");
	assert_non_null(out);
	assert_true(fputs(text, out) >= 0);
}

static void reads_back_what_was_written(void **state)
{
	const struct fixture *f = *state;
	struct journal j = a_journal("0123", "destination", JOURNAL_PREPARED), k;
	struct cr_err err = {0};

	strcpy(j.peer, "10.0.0.1:7710");
	strcpy(j.cgroup, "/sys/fs/cgroup/with a blank");
	*vec_push(&j.pids) = (struct journal_pid){17, 1234567890123ull};
	assert_int_equal(journal_add_rename(&j, "/run/x y/.cr-a/s", "/run/x y/s", &err), 0);
	assert_int_equal(journal_add_dir(&j, "/opt/a dir", &err), 0);
	assert_int_equal(journal_add_carried(&j, "/opt/a dir/.cr-1", "/opt/a dir/x y", 0, 0, &err),
			 0);
	assert_int_equal(journal_add_carried(&j, NULL, "/dev/shm/s", 7, 8, &err), 0);
	assert_int_equal(journal_add_carried(&j, NULL, "/tab\there", 7, 8, &err), -EINVAL);
	assert_int_equal(journal_write(f->dir, &j, &err), 0);
	assert_int_equal(journal_read(f->dir, "0123", "destination", &k, &err), 0);
	assert_string_equal(k.id, "0123");
	assert_string_equal(k.token, j.token);
	assert_string_equal(k.role, "destination");
	assert_string_equal(k.peer, j.peer);
	assert_string_equal(k.cgroup, j.cgroup);
	assert_int_equal(k.state, JOURNAL_PREPARED);
	assert_int_equal(k.since_sec, j.since_sec);
	assert_int_equal(k.pids.n, 1);
	assert_int_equal(k.pids.v[0].pid, 17);
	assert_int_equal(k.pids.v[0].starttime, 1234567890123ull);
	assert_int_equal(k.renames.n, 1);
	assert_string_equal(k.renames.v[0].from, "/run/x y/.cr-a/s");
	assert_string_equal(k.renames.v[0].to, "/run/x y/s");
	assert_int_equal(k.dirs.n, 1);
	assert_string_equal(k.dirs.v[0], "/opt/a dir");
	assert_int_equal(k.carried.n, 2);
	assert_string_equal(k.carried.v[0].temp, "/opt/a dir/.cr-1");
	assert_string_equal(k.carried.v[0].path, "/opt/a dir/x y");
	assert_null(k.carried.v[1].temp);
	assert_string_equal(k.carried.v[1].path, "/dev/shm/s");
	assert_int_equal(k.carried.v[1].dev, 7);
	assert_int_equal(k.carried.v[1].ino, 8);
	journal_done(&k);
	assert_int_equal(journal_remove(f->dir, &j, &err), 0);
	assert_int_equal(journal_read(f->dir, "0123", "destination", &k, &err), -ENOENT);
	journal_done(&j);
}

static void refuses_half_a_record(void **state)
{
	const struct fixture *f = *state;
	struct journal j;
	struct cr_err err = {0};

	write_text(f, "1.source", "state commit\nid 1\nrole source\n");
	assert_int_equal(journal_read(f->dir, "1", "source", &j, &err), -EBADMSG);
	write_text(f, "2.source", "state commit\npid x\nend\n");
	assert_int_equal(journal_read(f->dir, "2", "source", &j, &err), -EBADMSG);
	write_text(f, "3.source", "state whatever\nend\n");
	assert_int_equal(journal_read(f->dir, "3", "source", &j, &err), -EBADMSG);
	write_text(f, "4.source", "");
	assert_int_equal(journal_read(f->dir, "4", "source", &j, &err), -EBADMSG);
}

static int count(struct journal *j, void *arg)
{
	assert_int_equal(j->state, JOURNAL_COMMIT);
	++*(int *)arg;
	return 0;
}

static void complain(const struct cr_err *why)
{
	assert_int_equal(why->code, EBADMSG);
	assert_non_null(strstr(why->msg, "damaged"));
	function_called();
}

/* Wherever readdir(3) shows it: before, between or after the others. */
static void lists_the_others_beside_a_damaged_one(void **state)
{
	const struct fixture *f = *state;
	struct cr_err err = {0};
	int n = 0;

	for (int i = 0; i < 20; i++) {
		char id[16];

		snprintf(id, sizeof(id), "%02d", i);
		put(f, id, JOURNAL_COMMIT);
	}
	write_text(f, "damaged1.source", "state comm");
	write_text(f, "damaged2.destination", "\n");
	write_text(f, "00.source.lock", "not a journal");
	expect_function_calls(complain, 2);
	assert_int_equal(journal_each(f->dir, count, &n, complain, &err), 0);
	assert_int_equal(n, 20);
	n = 0;
	assert_int_equal(journal_each(f->dir, count, &n, NULL, &err), 0);
	assert_int_equal(n, 20);
}

static int stop(struct journal *j, void *arg)
{
	(void)j;
	++*(int *)arg;
	return -EINTR;
}

static void stops_when_told_to(void **state)
{
	const struct fixture *f = *state;
	struct cr_err err = {0};
	int n = 0;

	put(f, "a", JOURNAL_COMMIT);
	put(f, "b", JOURNAL_COMMIT);
	assert_int_equal(journal_each(f->dir, stop, &n, NULL, &err), -EINTR);
	assert_int_equal(n, 1);
	assert_int_equal(journal_each("/nonexistent", stop, &n, NULL, &err), 0);
	assert_int_equal(n, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(reads_back_what_was_written, setup, teardown),
	    cmocka_unit_test_setup_teardown(refuses_half_a_record, setup, teardown),
	    cmocka_unit_test_setup_teardown(lists_the_others_beside_a_damaged_one, setup, teardown),
	    cmocka_unit_test_setup_teardown(stops_when_told_to, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
