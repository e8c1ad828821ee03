/* The first round's pace: it rests on a host that is busy without it, and only there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <unistd.h>
#include "base/clock.h"
#include "source/pace.h"

static void rest_where_others_work(void **state)
{
	struct pace p = {.idle_beside = 0.02};

	(void)state;
	/* how it is without us is not known yet */
	assert_int_equal(pace_rest_us(&p), PACE_LOOK_US);
	p.known = true;
	p.idle_alone = 0.2;
	assert_int_equal(pace_rest_us(&p), PACE_REST_US);
	/* it is us alone who are at work */
	p.idle_alone = 0.95;
	assert_int_equal(pace_rest_us(&p), 0);
	/* which may have changed since */
	p.unseen = 10;
	assert_int_equal(pace_rest_us(&p), PACE_LOOK_US);
}

static void none_where_processors_idle(void **state)
{
	struct pace p = {.idle_beside = 0.3};

	(void)state;
	assert_int_equal(pace_rest_us(&p), 0);
	p.known = true;
	p.idle_alone = 0;
	p.unseen = 100;
	assert_int_equal(pace_rest_us(&p), 0);
}

static void the_line(void **state)
{
	struct pace_ticks t;

	(void)state;
	assert_true(pace_parse("cpu  10 20 30 400 50 6 7 8 0 0\ncpu0 1 2", &t));
	assert_int_equal(t.idle, 450);
	assert_int_equal(t.all, 531);
	assert_false(pace_parse("cpu0 1 2", &t));
	assert_false(pace_parse("", &t));
}

/* Against the host, whatever it does meanwhile: no step takes longer than the longest rest, what
 * was rested is said, and nothing happens after the end. */
static void steps_come_back(void **state)
{
	struct pace p;
	uint64_t end_us, rested_us = 0;

	(void)state;
	pace_begin(&p);
	assert_true(p.stat >= 0);
	end_us = now_us() + 10 * PACE_WORK_US;
	while (now_us() < end_us) {
		uint64_t before_us = p.rested_us, t0 = now_us();

		pace_step(&p);
		assert_true(p.rested_us - before_us <= PACE_REST_US);
		assert_true(now_us() - t0 >= p.rested_us - before_us);
		rested_us += p.rested_us - before_us;
	}
	pace_end(&p);
	assert_int_equal(p.rested_us, rested_us);
	assert_int_equal(p.stat, -1);
	usleep(PACE_WORK_US);
	pace_step(&p);
	assert_int_equal(p.rested_us, rested_us);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(rest_where_others_work),
	    cmocka_unit_test(none_where_processors_idle),
	    cmocka_unit_test(the_line),
	    cmocka_unit_test(steps_come_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
