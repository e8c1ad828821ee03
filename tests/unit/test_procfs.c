#include "kernel/procfs.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <signal.h>
#include <cmocka.h>
#include <pthread.h>
#include "base/clock.h"
#include "model/tree.h"

static const char maps_text[] =
    "00400000-00401000 r-xp 00000000 fe:00 247498                             /usr/bin/with space\n"
    "00401000-00403000 rw-s 00002000 fe:00 247498                             /usr/bin/with space\n"
    "7f0000000000-7f0000001000 ---p 00000000 00:00 0 \n"
    "7f0000001000-7f0000002000 rw-p 00000000 00:00 0                          [anon:my arena]\n"
    "7f0000002000-7f0000003000 rw-s 00000000 00:01 1234                       /memfd:x y "
    "(deleted)\n"
    "7f0000003000-7f0000004000 r--p 00010000 103:1f 18446744073709551615      /a\\012b\n"
    "7fff00000000-7fff00021000 rw-p 00000000 00:00 0                          [stack]\n"
    "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";

static void maps_golden(void **state)
{
	struct proc_maps m = {0};
	struct cr_err err = {0};

	(void)state;
	assert_int_equal(proc_maps_parse(maps_text, &m, &err), 0);
	assert_int_equal(m.list.n, 8);
	const struct proc_map *v = m.list.v;
	assert_int_equal(v[0].start, 0x400000);
	assert_int_equal(v[0].end, 0x401000);
	assert_int_equal(v[0].prot, PROT_READ | PROT_EXEC);
	assert_false(v[0].shared);
	assert_int_equal(v[0].dev, makedev(0xfe, 0));
	assert_int_equal(v[0].ino, 247498);
	assert_string_equal(v[0].name, "/usr/bin/with space");
	assert_int_equal(v[1].offset, 0x2000);
	assert_true(v[1].shared);
	assert_string_equal(v[1].name, "/usr/bin/with space");
	assert_int_equal(v[2].prot, PROT_NONE);
	assert_string_equal(v[2].name, "");
	assert_string_equal(v[3].name, "[anon:my arena]");
	assert_string_equal(v[4].name, "/memfd:x y (deleted)");
	assert_int_equal(v[5].dev, makedev(0x103, 0x1f));
	assert_true(v[5].ino == UINT64_MAX);
	assert_string_equal(v[5].name, "/a\nb");
	assert_true(v[7].end == 0xffffffffff601000ull);
	proc_maps_done(&m);
	proc_maps_done(&m);
}

static void maps_rejects(void **state)
{
	static const char *const bad[] = {
	    "garbage\n",
	    "1000-2000 rwxp 0 00:00 0",           /* no newline */
	    "1000-1000 rwxp 00000000 00:00 0 \n", /* empty */
	    "2000-1000 rwxp 00000000 00:00 0 \n", /* backwards */
	    "1001-2000 rwxp 00000000 00:00 0 \n", /* not a page */
	    "1000-2000 rwxq 00000000 00:00 0 \n", /* neither shared nor private */
	    "1000-2000 rwx 00000000 00:00 0 \n",
	    "1000-2000 rwxp 00000000 0000 0 \n",
	    "1000-2000 rwxp 00000000 00:00 x\n",
	    "1000-2000 rwxp 00000000 00:00 99999999999999999999\n",
	    "11111111111111000-22222222222222000 rwxp 00000000 00:00 0 \n", /* over 64 bits */
	    "1000-3000 rwxp 00000000 00:00 0 \n2000-4000 rwxp 00000000 00:00 0 \n",
	    "\n",
	    "Size:  4 kB\n",
	};
	struct cr_err err;
	struct proc_maps m;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		cr_err_clear(&err);
		assert_int_equal(proc_maps_parse(bad[i], &m, &err), -EBADMSG);
		assert_true(err.msg[0]);
	}
	assert_int_equal(proc_maps_parse("", &m, &err), 0);
	assert_int_equal(m.list.n, 0);
	proc_maps_done(&m);
}

static const char smaps_text[] =
    "00400000-00401000 rw-p 00000000 00:00 0                                  [heap]\n"
    "Size:                  4 kB\n"
    "AnonHugePages:         0 kB\n"
    "FilePmdMapped:         0 kB\n"
    "VmFlags: rd wr mr mw me ac sd hg \n"
    "7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n"
    "Rss:                   4 kB\n"
    "ProtectionKey:         0\n"
    "VmFlags: gd dc dd nh mg nr wf sr rr lo gu uw zz\n"
    "7f0000001000-7f0000002000 rw-p 00000000 00:00 0 \n"
    "ProtectionKey:        15\n"
    "VmFlags: rd wr dp \n"
    "7f0000002000-7f0000003000 rw-p 00000000 00:00 0 \n"
    "VmFlags: \n"
    "7f0000200000-7f0001000000 rw-p 00000000 00:0f 1234       /anon_hugepage (deleted)\n"
    "KernelPageSize:     2048 kB\n"
    "MMUPageSize:        2048 kB\n"
    "Shared_Hugetlb:     4096 kB\n"
    "Private_Hugetlb:    2048 kB\n"
    "VmFlags: rd wr mr mw me de ht \n";

static void smaps_golden(void **state)
{
	struct proc_maps m = {0};
	struct cr_err err = {0};

	(void)state;
	assert_int_equal(proc_smaps_parse(smaps_text, &m, &err), 0);
	assert_int_equal(m.list.n, 5);
	assert_int_equal(m.list.v[0].vmflags, VMA_F_HUGEPAGE);
	assert_int_equal(m.list.v[1].vmflags, VMA_F_GROWSDOWN | VMA_F_DONTFORK | VMA_F_DONTDUMP |
						  VMA_F_NOHUGEPAGE | VMA_F_MERGEABLE |
						  VMA_F_NORESERVE | VMA_F_WIPEONFORK | VMA_F_SEQ |
						  VMA_F_RAND | VMA_F_LOCKED | VMA_F_GUARD);
	assert_int_equal(m.list.v[3].vmflags, 0);
	assert_int_equal(m.list.v[1].pkey, 0);
	assert_null(m.list.v[1].special);
	assert_int_equal(m.list.v[2].pkey, 15);
	assert_non_null(strstr(m.list.v[2].special, "DROPPABLE"));
	assert_int_equal(m.list.v[4].page_bytes, 2 << 20);
	assert_int_equal(m.list.v[4].all_huge, 6 << 20);
	assert_int_equal(m.list.v[4].own_huge, 2 << 20);
	proc_maps_done(&m);
	assert_int_equal(proc_smaps_parse("VmFlags: rd\n", &m, &err), -EBADMSG);
}

/* What smaps leaves is what maps says, byte by byte: digests of both can be compared. */
static void smaps_to_maps(void **state)
{
	_cleanup_free_ char *maps = NULL, *smaps = NULL;
	char text[sizeof(smaps_text)];
	struct cr_err err = {0};
	pid_t pid = fork();

	(void)state;
	if (!pid)
		for (;;)
			pause();
	ssize_t n = proc_read(pid, "maps", &maps, &err);
	assert_true(n > 0);
	assert_true(proc_read(pid, "smaps", &smaps, &err) > n);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	assert_int_equal(proc_smaps_to_maps(smaps), n);
	assert_string_equal(smaps, maps);

	memcpy(text, smaps_text, sizeof(text));
	text[strlen(text) - 1] = 0; /* cut off */
	size_t left = proc_smaps_to_maps(text);
	assert_int_equal(left, strlen(text));
	assert_null(strstr(text, "Vm"));
	text[0] = 0;
	assert_int_equal(proc_smaps_to_maps(text), 0);
}

static const char stat_text[] =
    "4242 (a) (b c) R) S 17 4240 4239 34816 4242 4194560 1 2 3 4 5 6 7 8 20 -5 3 0 123456 9 10 "
    "18446744073709551615 94000000000000 94000000000100 140736000000000 0 0 0 0 0 0 0 0 0 17 1 50 "
    "2 0 0 0 111 222 333 444 555 666 777 256\n";

static void stat_golden(void **state)
{
	struct proc_stat st;
	struct cr_err err = {0};

	(void)state;
	assert_int_equal(proc_stat_parse(stat_text, &st, &err), 0);
	assert_int_equal(st.pid, 4242);
	assert_string_equal(st.comm, "a) (b c) R");
	assert_int_equal(st.state, 'S');
	assert_int_equal(st.ppid, 17);
	assert_int_equal(st.pgrp, 4240);
	assert_int_equal(st.session, 4239);
	assert_int_equal(st.flags, 4194560);
	assert_int_equal(st.nice, -5);
	assert_int_equal(st.num_threads, 3);
	assert_int_equal(st.starttime, 123456);
	assert_int_equal(st.start_code, 94000000000000);
	assert_int_equal(st.start_stack, 140736000000000);
	assert_int_equal(st.exit_signal, 17);
	assert_int_equal(st.rt_priority, 50);
	assert_int_equal(st.policy, 2);
	assert_int_equal(st.start_data, 111);
	assert_int_equal(st.end_data, 222);
	assert_int_equal(st.start_brk, 333);
	assert_int_equal(st.arg_start, 444);
	assert_int_equal(st.arg_end, 555);
	assert_int_equal(st.env_start, 666);
	assert_int_equal(st.env_end, 777);
	assert_int_equal(st.exit_code, 256);
}

static const char status_text[] =
    "Name:\tUid:\\n x\nUmask:\t0027\nState:\tt (tracing stop)\nTgid:\t10\nNgid:\t0\nPid:\t12\n"
    "PPid:\t3\nTracerPid:\t77\nUid:\t0\t1\t2\t4294967294\nGid:\t5\t6\t7\t8\nFDSize:\t64\n"
    "Groups:\t4 24 1000 \nNStgid:\t10\t1\nNSpid:\t12\t3\t1\nTHP_enabled:\t0\nThreads:\t9\n"
    "SigQ:\t0/96365\nSigPnd:\t0000000000000001\nShdPnd:\t0000000000000002\n"
    "SigBlk:\tfffffffe7ffbfeff\nSigIgn:\t0000000000001000\nSigCgt:\t0000000180000002\n"
    "CapInh:\t0000000000000001\nCapPrm:\t000001fffeffffff\nCapEff:\t0000000000000003\n"
    "CapBnd:\t0000000000000004\nCapAmb:\t0000000000000005\nNoNewPrivs:\t1\nSeccomp:\t2\n"
    "Seccomp_filters:\t1\n";

static void status_golden(void **state)
{
	struct proc_status st;
	struct cr_err err = {0};

	(void)state;
	assert_int_equal(proc_status_parse(status_text, &st, &err), 0);
	assert_int_equal(st.umask, 027);
	assert_int_equal(st.state, 't');
	assert_int_equal(st.tgid, 10);
	assert_int_equal(st.ppid, 3);
	assert_int_equal(st.tracer, 77);
	assert_int_equal(st.uid[3], 4294967294u);
	assert_int_equal(st.gid[2], 7);
	assert_int_equal(st.groups.n, 3);
	assert_int_equal(st.groups.v[2], 1000);
	assert_int_equal(st.nspid.n, 3);
	assert_int_equal(st.nspid.v[1], 3);
	assert_int_equal(st.threads, 9);
	assert_int_equal(st.sig_pnd, 1);
	assert_int_equal(st.shd_pnd, 2);
	assert_true(st.sig_blk == 0xfffffffe7ffbfeffull);
	assert_int_equal(st.sig_cgt, 0x180000002);
	assert_int_equal(st.cap_prm, 0x1fffeffffff);
	assert_int_equal(st.cap_amb, 5);
	assert_true(st.no_new_privs);
	assert_false(st.thp_enabled);
	assert_int_equal(st.seccomp, 2);
	proc_status_done(&st);
	proc_status_done(&st);
}

static const char limits_text[] =
    "Limit                     Soft Limit           Hard Limit           Units     \n"
    "Max cpu time              unlimited            unlimited            seconds   \n"
    "Max file size             1                    2                    bytes     \n"
    "Max data size             unlimited            unlimited            bytes     \n"
    "Max stack size            8388608              unlimited            bytes     \n"
    "Max core file size        0                    unlimited            bytes     \n"
    "Max resident set          unlimited            unlimited            bytes     \n"
    "Max processes             96365                96365                processes \n"
    "Max open files            20000                20001                files     \n"
    "Max locked memory         8388608              8388608              bytes     \n"
    "Max address space         unlimited            unlimited            bytes     \n"
    "Max file locks            unlimited            unlimited            locks     \n"
    "Max pending signals       96365                96365                signals   \n"
    "Max msgqueue size         819200               819200               bytes     \n"
    "Max nice priority         3                    4                    \n"
    "Max realtime priority     0                    0                    \n"
    "Max realtime timeout      unlimited            18446744073709551614 us        \n";

static void limits_golden(void **state)
{
	struct proc_rlimit l[16];
	struct cr_err err = {0};

	(void)state;
	assert_int_equal(proc_limits_parse(limits_text, l, &err), 0);
	assert_true(l[RLIMIT_CPU].cur == RLIM_INFINITY);
	assert_int_equal(l[RLIMIT_FSIZE].cur, 1);
	assert_int_equal(l[RLIMIT_FSIZE].max, 2);
	assert_int_equal(l[RLIMIT_STACK].cur, 8388608);
	assert_true(l[RLIMIT_STACK].max == RLIM_INFINITY);
	assert_int_equal(l[RLIMIT_NOFILE].max, 20001);
	assert_int_equal(l[RLIMIT_NICE].cur, 3);
	assert_int_equal(l[RLIMIT_NICE].max, 4);
	assert_true(l[RLIMIT_RTTIME].max == RLIM_INFINITY - 1);
}

static const char timers_text[] =
    "ID: 0\nsignal: 60/00007fff86e452a8\nnotify: signal/pid.2634\nClockID: 0\n"
    "ID: 7\nsignal: 34/0000000000000001\nnotify: signal/tid.99\nClockID: -6\n"
    "ID: 8\nsignal: 0/0000000000000000\nnotify: none/pid.0\nClockID: 1\n"
    "ID: 9\nsignal: 14/0000000000000000\nnotify: thread/pid.4\nClockID: 1\n";

static void timers_golden(void **state)
{
	struct proc_timers t;
	struct cr_err err = {0};

	(void)state;
	assert_int_equal(proc_timers_parse(timers_text, &t, &err), 0);
	assert_int_equal(t.list.n, 4);
	assert_int_equal(t.list.v[0].signo, 60);
	assert_int_equal(t.list.v[0].sigval, 0x7fff86e452a8);
	assert_int_equal(t.list.v[0].notify, SIGEV_SIGNAL);
	assert_int_equal(t.list.v[1].id, 7);
	assert_int_equal(t.list.v[1].notify, SIGEV_SIGNAL | SIGEV_THREAD_ID);
	assert_int_equal(t.list.v[1].notify_tid, 99);
	assert_int_equal(t.list.v[1].clockid, -6);
	assert_int_equal(t.list.v[2].notify, SIGEV_NONE);
	assert_int_equal(t.list.v[3].notify, SIGEV_THREAD);
	vec_done(&t.list);
	assert_int_equal(proc_timers_parse("", &t, &err), 0);
	assert_int_equal(t.list.n, 0);
}

/* ---- every truncation is an error or a shorter list, and never a read beyond the end ---- */

static int try_maps(const char *t)
{
	struct proc_maps m;
	struct cr_err err;
	int r = proc_maps_parse(t, &m, &err);

	proc_maps_done(&m);
	return r;
}

static int try_smaps(const char *t)
{
	struct proc_maps m;
	struct cr_err err;
	int r = proc_smaps_parse(t, &m, &err);

	proc_maps_done(&m);
	return r;
}

static int try_stat(const char *t)
{
	struct proc_stat st;
	struct cr_err err;

	return proc_stat_parse(t, &st, &err);
}

static int try_status(const char *t)
{
	struct proc_status st;
	struct cr_err err;
	int r = proc_status_parse(t, &st, &err);

	proc_status_done(&st);
	return r;
}

static int try_limits(const char *t)
{
	struct proc_rlimit l[16];
	struct cr_err err;

	return proc_limits_parse(t, l, &err);
}

static int try_timers(const char *t)
{
	struct proc_timers p;
	struct cr_err err;
	int r = proc_timers_parse(t, &p, &err);

	vec_done(&p.list);
	return r;
}

/* What is left when a text is cut at an end of line. */
enum at_eol { SHORTER, /* a valid, shorter text */ BROKEN, SHORTER_EVERY_4 };

static void truncations(void **state)
{
	static const struct {
		const char *text;
		int (*parse)(const char *);
		enum at_eol at_eol;
	} cases[] = {
	    {maps_text, try_maps, SHORTER},    {smaps_text, try_smaps, SHORTER},
	    {stat_text, try_stat, BROKEN},     {status_text, try_status, BROKEN},
	    {limits_text, try_limits, BROKEN}, {timers_text, try_timers, SHORTER_EVERY_4},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const char *text = cases[i].text, *optional = strstr(text, "Seccomp:");
		size_t len = strlen(text), lines = 0;

		for (size_t n = 0; n < len; n++) {
			lines += n && text[n - 1] == '\n';
			bool ok = (!n || text[n - 1] == '\n') &&
				  (cases[i].at_eol == SHORTER ||
				   (cases[i].at_eol == SHORTER_EVERY_4 && lines % 4 == 0) ||
				   (optional && text + n >= optional));
			char *cut = strndup(text, n); /* exact size: ASan sees what reads on */
			int r = cases[i].parse(cut);

			assert_int_equal(r, ok ? 0 : -EBADMSG);
			free(cut);
		}
		assert_int_equal(cases[i].parse(text), 0);
	}
}

static void maps_fast(void **state)
{
	enum { LINES = 60000 };
	size_t cap = (size_t)LINES * 110, len = 0;
	char *text = malloc(cap);
	struct proc_maps m;
	struct cr_err err;

	(void)state;
	assert_non_null(text);
	for (uint64_t i = 0; i < LINES; i++)
		len += (size_t)snprintf(
		    text + len, cap - len,
		    "%08lx-%08lx r%cxp 00000000 fe:00 %-26lu /usr/lib/libsome-%lu.so\n",
		    (i + 1) << 20, ((i + 1) << 20) + 4096, i & 1 ? 'w' : '-', i, i / 4);
	uint64_t t0 = now_us();
	assert_int_equal(proc_maps_parse(text, &m, &err), 0);
	uint64_t us = now_us() - t0;
	assert_int_equal(m.list.n, LINES);
	assert_string_equal(m.list.v[LINES - 1].name, "/usr/lib/libsome-14999.so");
	print_message("60,000 mappings: %lu us\n", (unsigned long)us);
	proc_maps_done(&m);
	free(text);
}

/* ---- real tasks ---- */

static void *wait_thread(void *arg)
{
	char c;

	return read(*(int *)arg, &c, 1) < 0 ? arg : NULL;
}

static void own_files(void **state)
{
	struct cr_err err = {0};
	_cleanup_free_ char *text = NULL, *link = NULL;
	struct proc_maps m, sm;
	struct proc_stat st;
	struct proc_status status;
	struct proc_rlimit l[16];
	struct rlimit rl;
	char odd[16] = "a) b (\n\\";

	(void)state;
	assert_true(proc_read(getpid(), "maps", &text, &err) > 0);
	assert_int_equal(proc_maps_parse(text, &m, &err), 0);
	free(take_ptr(text));
	assert_true(proc_read(getpid(), "smaps", &text, &err) > 0);
	assert_int_equal(proc_smaps_parse(text, &sm, &err), 0);
	free(take_ptr(text));
	bool stack = false;
	vec_foreach (v, &sm.list) {
		stack |= !strcmp(v->name, "[stack]") && v->vmflags & VMA_F_GROWSDOWN;
	}
	assert_true(stack);
	proc_maps_done(&m);
	proc_maps_done(&sm);

	prctl(PR_SET_NAME, odd);
	assert_int_equal(proc_stat_read(getpid(), 0, &st, &err), 0);
	assert_string_equal(st.comm, odd);
	assert_int_equal(st.pid, getpid());
	assert_int_equal(st.ppid, getppid());
	assert_int_equal(st.state, 'R');
	assert_int_equal(proc_status_read(getpid(), getpid(), &status, &err), 0);
	assert_int_equal(status.tgid, getpid());
	assert_int_equal(status.uid[1], geteuid());
	proc_status_done(&status);
	assert_true(proc_read(getpid(), "limits", &text, &err) > 0);
	assert_int_equal(proc_limits_parse(text, l, &err), 0);
	for (int i = 0; i < 16; i++) {
		assert_int_equal(getrlimit(i, &rl), 0);
		assert_true(l[i].cur == rl.rlim_cur && l[i].max == rl.rlim_max);
	}
	assert_int_equal(proc_readlink(getpid(), "exe", &link, &err), 0);
	assert_non_null(strstr(link, "test_procfs"));
}

static void own_timers(void **state)
{
	struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
	struct cr_err err = {0};
	_cleanup_free_ char *text = NULL;
	struct proc_timers t;
	timer_t id;

	(void)state;
	ev.sigev_value.sival_ptr = &id;
	assert_int_equal(timer_create(CLOCK_MONOTONIC, &ev, &id), 0);
	if (proc_read(getpid(), "timers", &text, &err) == -ENOENT)
		skip();
	assert_int_equal(proc_timers_parse(text, &t, &err), 0);
	assert_int_equal(t.list.n, 1);
	assert_int_equal(t.list.v[0].signo, SIGUSR1);
	assert_int_equal(t.list.v[0].clockid, CLOCK_MONOTONIC);
	assert_true(t.list.v[0].sigval == (uintptr_t)&id);
	vec_done(&t.list);
	timer_delete(id);
}

static void lists(void **state)
{
	struct cr_err err = {0};
	int pipefd[2];
	pid_t *ids, kids[3];
	pthread_t th;
	int *fds;

	(void)state;
	assert_int_equal(pipe(pipefd), 0);
	for (int i = 0; i < 3; i++) {
		kids[i] = fork();
		if (!kids[i]) {
			close(pipefd[1]);
			wait_thread(&pipefd[0]);
			_exit(0);
		}
	}
	assert_int_equal(proc_children(getpid(), &ids, &err), 3);
	for (int i = 0; i < 2; i++)
		assert_true(ids[i] < ids[i + 1]);
	free(ids);
	assert_int_equal(proc_children(kids[0], &ids, &err), 0);
	assert_non_null(ids);
	free(ids);
	assert_int_equal(pthread_create(&th, NULL, wait_thread, &pipefd[0]), 0);
	assert_int_equal(proc_threads(getpid(), &ids, &err), 2);
	assert_int_equal(ids[0], getpid());
	free(ids);
	ssize_t n = proc_fds(getpid(), &fds, &err);
	bool found = false;
	for (ssize_t i = 0; i < n; i++)
		found |= fds[i] == pipefd[1];
	assert_true(found);
	free(fds);
	close(pipefd[1]);
	pthread_join(th, NULL);
	for (int i = 0; i < 3; i++)
		assert_int_equal(waitpid(kids[i], NULL, 0), kids[i]);
	close(pipefd[0]);
}

static void gone_and_zombie(void **state)
{
	struct cr_err err = {0};
	struct proc_status status;
	struct proc_stat st;
	char *text;
	pid_t *ids;
	int *fds;
	uint64_t start;
	siginfo_t si;

	(void)state;
	pid_t pid = fork();
	if (!pid)
		_exit(3);
	assert_int_equal(waitid(P_PID, (id_t)pid, &si, WEXITED | WNOWAIT), 0);
	/* a zombie: no mm, but stat, status and its place in the tree */
	assert_int_equal(proc_read(pid, "maps", &text, &err), -ESRCH);
	assert_int_equal(err.pid, pid);
	assert_int_equal(proc_stat_read(pid, 0, &st, &err), 0);
	assert_int_equal(st.state, 'Z');
	assert_int_equal(proc_status_read(pid, 0, &status, &err), 0);
	proc_status_done(&status);
	assert_int_equal(proc_readlink(pid, "exe", &text, &err), -ENOENT);
	assert_int_equal(proc_read(pid, "no-such-file", &text, &err), -ENOENT);

	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_int_equal(proc_read(pid, "maps", &text, &err), -ESRCH);
	assert_int_equal(proc_readlink(pid, "exe", &text, &err), -ESRCH);
	assert_int_equal(proc_stat_read(pid, pid, &st, &err), -ESRCH);
	assert_int_equal(proc_threads(pid, &ids, &err), -ESRCH);
	assert_int_equal(proc_children(pid, &ids, &err), -ESRCH);
	assert_int_equal(proc_fds(pid, &fds, &err), -ESRCH);
	assert_int_equal(proc_starttime(pid, &start, &err), -ESRCH);
	assert_int_equal(proc_starttime(getpid(), &start, &err), 0);
	assert_true(start > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(maps_golden),   cmocka_unit_test(maps_rejects),
	    cmocka_unit_test(smaps_golden),  cmocka_unit_test(stat_golden),
	    cmocka_unit_test(smaps_to_maps), cmocka_unit_test(status_golden),
	    cmocka_unit_test(limits_golden), cmocka_unit_test(timers_golden),
	    cmocka_unit_test(truncations),   cmocka_unit_test(maps_fast),
	    cmocka_unit_test(own_files),     cmocka_unit_test(own_timers),
	    cmocka_unit_test(lists),         cmocka_unit_test(gone_and_zombie),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
