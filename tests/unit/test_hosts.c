/* The hosts file and the units of cr-migrate. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "migrate/hosts.h"
#include "migrate/units.h"

static int parse(struct hosts *h, const char *text, struct cr_err *err)
{
	*h = (struct hosts){0};
	*err = (struct cr_err){0};
	return hosts_parse(h, text, err);
}

static void test_good(void **state)
{
	(void)state;
	struct hosts h;
	struct cr_err err;
	char address[ADDR_TEXT];

	assert_int_equal(
	    parse(&h,
		  "# hosts\n\n  alpha\tunix:/run/a.sock  # here\r\nbeta unix:/run/b.sock\n"
		  "here local\nfar far.example:99\nweb-1.x_y ssh://root@web",
		  &err),
	    0);
	assert_int_equal(h.list.n, 5);
	assert_int_equal(hosts_find(&h, "alpha", address, &err), 0);
	assert_string_equal(address, "unix:/run/a.sock");
	assert_int_equal(hosts_find(&h, "here", address, &err), 0);
	assert_string_equal(address, "unix:" AGENT_LOCAL_SOCKET);
	assert_int_equal(hosts_find(&h, "unix:/other.sock", address, &err), 0);
	assert_string_equal(address, "unix:/other.sock");
	assert_int_equal(hosts_find(&h, "local", address, &err), 0);
	assert_string_equal(address, "unix:" AGENT_LOCAL_SOCKET);
	assert_int_equal(hosts_find(&h, "far", address, &err), -EOPNOTSUPP);
	assert_int_equal(err.kind, CR_ERR_UNSUPPORTED);
	assert_non_null(strstr(err.msg, "unix:/PATH in the hosts file"));
	assert_int_equal(hosts_find(&h, "web-1.x_y", address, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.msg, "ssh -L /PATH:/run/cr-agent/agent.sock root@web"));
	assert_int_equal(hosts_find(&h, "elsewhere", address, &err), -EOPNOTSUPP);
	assert_int_equal(hosts_find(&h, "a b", address, &err), -EINVAL);
	hosts_done(&h);
}

static void test_bad(void **state)
{
	(void)state;
	static const struct {
		const char *text, *says;
	} bad[] = {
	    {"alpha", "hosts, line 1: expected NAME ENDPOINT"},
	    {"\n\nalpha unix:/a b", "hosts, line 3: expected NAME ENDPOINT"},
	    {"alpha unix:/a\nalpha unix:/b", "hosts, line 2: alpha is there twice"},
	    {"a->b unix:/a", "cannot be the name"},
	    {"alpha- unix:/a", "cannot be the name"},
	    {"-alpha unix:/a", "cannot be the name"},
	    {"a:1 unix:/a", "cannot be the name"},
	    {"alpha unix:a", "must begin with '/'"},
	    {"alpha http://a", "expected local, HOST[:PORT]"},
	    {"alpha beta:0", "the port is not a number"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct hosts h;
		struct cr_err err;

		assert_int_equal(parse(&h, bad[i].text, &err), -EINVAL);
		assert_int_equal(err.kind, CR_ERR_INPUT);
		if (!strstr(err.msg, bad[i].says))
			fail_msg("'%s': %s", bad[i].text, err.msg);
		hosts_done(&h);
	}
}

static void test_read(void **state)
{
	(void)state;
	char path[] = "/tmp/hostsXXXXXX";
	_cleanup_fd_ int fd = mkstemp(path);
	struct hosts h = {0};
	struct cr_err err = {0};

	assert_true(fd >= 0);
	assert_int_equal(write(fd, "alpha unix:/a\n", 14), 14);
	setenv("CR_MIGRATE_HOSTS", path, 1);
	assert_int_equal(hosts_read(&h, NULL, &err), 0);
	assert_int_equal(h.list.n, 1);
	hosts_done(&h);
	/* the option goes first */
	assert_int_equal(hosts_read(&h, "/nonexistent", &err), -ENOENT);
	hosts_done(&h);
	unsetenv("CR_MIGRATE_HOSTS");
	h = (struct hosts){0};
	assert_int_equal(hosts_read(&h, NULL, &err), 0);
	assert_int_equal(h.list.n, 0);
	unlink(path);
}

static void test_durations(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		uint64_t us;
	} good[] = {{"500us", 500}, {"20ms", 20000},    {"1s", 1000000},         {"1us", 1},
		    {"0.5ms", 500}, {"1.25s", 1250000}, {"3600s", 3600000000ull}};
	static const char *const bad[] = {"",    "20",    "ms",    "20 ms", "-1ms",
					  "1m",  "20msx", "1e3ms", "0us",   "0.1us",
					  ".5s", "5.s",   "1..5s", "4000s", "+1s"};
	struct cr_err err;
	uint64_t us;

	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		assert_int_equal(units_parse_duration(good[i].text, &us, &err), 0);
		assert_true(us == good[i].us);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(units_parse_duration(bad[i], &us, &err), -EINVAL);
}

static void test_rates(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		uint64_t rate;
	} good[] = {{"100M", 100000000},    {"100MB", 100000000}, {"1Gbit", 125000000},
		    {"512KiB", 524288},     {"1.5G", 1500000000}, {"10Mbit/s", 1250000},
		    {"1GiB/s", 1073741824}, {"64K", 64000}};
	static const char *const bad[] = {"",      "100",  "M",  "-1M", "100 M",    "1Tbit",
					  "1mbit", "1M/h", "0M", "1B",  "1Mbit/sec"};
	struct cr_err err;
	uint64_t rate;

	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		assert_int_equal(units_parse_rate(good[i].text, &rate, &err), 0);
		assert_true(rate == good[i].rate);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(units_parse_rate(bad[i], &rate, &err), -EINVAL);
}

static void test_format(void **state)
{
	(void)state;
	char buf[UNITS_TEXT];

	assert_string_equal(units_format_us(0, buf), "0 us");
	assert_string_equal(units_format_us(999, buf), "999 us");
	assert_string_equal(units_format_us(1500, buf), "1.50 ms");
	assert_string_equal(units_format_us(123456, buf), "123.5 ms");
	assert_string_equal(units_format_us(61500000, buf), "61.50 s");
	assert_string_equal(units_format_bytes(0, buf), "0 B");
	assert_string_equal(units_format_bytes(999, buf), "999 B");
	assert_string_equal(units_format_bytes(1000, buf), "1.0 kB");
	assert_string_equal(units_format_bytes(999999, buf), "1.0 MB");
	assert_string_equal(units_format_bytes(268435456, buf), "268.4 MB");
	assert_string_equal(units_format_bytes(UINT64_MAX, buf), "18446744.1 TB");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_good),  cmocka_unit_test(test_bad),
	    cmocka_unit_test(test_read),  cmocka_unit_test(test_durations),
	    cmocka_unit_test(test_rates), cmocka_unit_test(test_format),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
