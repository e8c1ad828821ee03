/* The kernel's types take much memory, and are wanted for a moment. */
#include "kernel/bpf_iter.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>
#include <cmocka.h>

static long resident_kib(void)
{
	long total, resident = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%ld %ld", &total, &resident), 2);
	fclose(f);
	return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static int look(const struct btf *btf, void *arg, struct cr_err *err)
{
	(void)err;
	*(long *)arg = resident_kib();
	return btf__find_by_name_kind(btf, "task_struct", BTF_KIND_STRUCT) > 0 ? 0 : -ENOENT;
}

/* malloc(3) takes memory from elsewhere the second time. */
static void types_leave_no_memory_behind(void **state)
{
	struct cr_err err = {0};
	long before = resident_kib(), during = 0;

	(void)state;
#ifdef __SANITIZE_ADDRESS__
	skip(); /* it keeps what is freed */
#endif
	if (access("/sys/kernel/btf/vmlinux", R_OK))
		skip();
	for (int i = 0; i < 3; i++) {
		assert_int_equal(bpf_with_types(look, &during, &err), 0);
		assert_true(during > before + 2048);
		assert_true(resident_kib() < before + 1024);
	}
}

static int refuse(const struct btf *btf, void *arg, struct cr_err *err)
{
	(void)btf;
	(void)arg;
	return cr_err_set(err, CR_ERR_KERNEL, EXDEV, "as told");
}

static void what_goes_wrong_is_said(void **state)
{
	struct cr_err err = {0};

	(void)state;
	if (access("/sys/kernel/btf/vmlinux", R_OK))
		skip();
	assert_int_equal(bpf_with_types(refuse, NULL, &err), -EXDEV);
	assert_string_equal(err.msg, "as told");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(types_leave_no_memory_behind),
	    cmocka_unit_test(what_goes_wrong_is_said),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
