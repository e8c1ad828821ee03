/* The system calls that are left once everything is set up, seccomp(2). What is not listed fails
 * with ENOSYS, which libraries know how to live with; what only an intruder would want ends the
 * process. A thread that is made later has the same filter. */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <seccomp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/log.h"
#include "pageserver/server.h"

#define CALL(name) SCMP_SYS(name)

/* Threads, memory, descriptors that are there. */
static const int always[] = {
    CALL(read),
    CALL(write),
    CALL(recvfrom),
    CALL(recvmsg),
    CALL(sendto),
    CALL(sendmsg),
    CALL(shutdown),
    CALL(getsockopt),
    CALL(setsockopt),
    CALL(close),
    CALL(fcntl),
    CALL(poll),
    CALL(ppoll),
    CALL(mmap),
    CALL(munmap),
    CALL(mprotect),
    CALL(mremap),
    CALL(madvise),
    CALL(brk),
    CALL(futex),
    CALL(set_robust_list),
    CALL(rseq),
    CALL(rt_sigaction),
    CALL(rt_sigprocmask),
    CALL(rt_sigreturn),
    CALL(clock_gettime),
    CALL(clock_nanosleep),
    CALL(nanosleep),
    CALL(getpid),
    CALL(gettid),
    CALL(exit),
    CALL(exit_group),
    CALL(restart_syscall),
    CALL(sched_yield),
    CALL(sched_getaffinity),
    CALL(getrandom),
};
/* The loop, and who comes to it. */
static const int looping[] = {
    CALL(readv),       CALL(writev),       CALL(recvmmsg),      CALL(accept),     CALL(accept4),
    CALL(getsockname), CALL(getpeername),  CALL(dup),           CALL(dup2),       CALL(dup3),
    CALL(fstat),       CALL(lseek),        CALL(epoll_create1), CALL(epoll_ctl),  CALL(epoll_wait),
    CALL(epoll_pwait), CALL(epoll_pwait2), CALL(eventfd2),      CALL(pipe2),      CALL(futex_waitv),
    CALL(sigaltstack), CALL(gettimeofday), CALL(time),          CALL(getuid),     CALL(geteuid),
    CALL(tgkill),      CALL(prlimit64),    CALL(uname),         CALL(membarrier),
};
/* Images: what reads them (openat(2) besides), and what makes and changes them. */
static const int reading[] = {
    CALL(newfstatat), CALL(statx),     CALL(stat),       CALL(pread64),   CALL(preadv),
    CALL(preadv2),    CALL(fstatfs),   CALL(flock),      CALL(fadvise64), CALL(getdents64),
    CALL(access),     CALL(faccessat), CALL(faccessat2), CALL(readlink),
};
static const int writing[] = {
    CALL(openat),    CALL(open),      CALL(pwrite64), CALL(pwritev),   CALL(pwritev2),
    CALL(ftruncate), CALL(fallocate), CALL(fsync),    CALL(fdatasync), CALL(sync_file_range),
    CALL(renameat),  CALL(renameat2), CALL(rename),   CALL(unlinkat),  CALL(unlink),
    CALL(mkdirat),
};
/* Tasks being rebuilt, and the socket that agents come to. */
static const int tasks[] = {
    CALL(process_vm_writev), CALL(process_vm_readv),  CALL(pread64),   CALL(pwrite64),
    CALL(pidfd_open),        CALL(pidfd_send_signal), CALL(kill),      CALL(unlink),
    CALL(unlinkat),          CALL(newfstatat),        CALL(fallocate), CALL(ftruncate),
    CALL(getdents64),
};
/* Pages of stopped tasks. */
static const int handed[] = {
    CALL(pread64),
    CALL(sched_getscheduler),
};
static const int deadly[] = {
    CALL(execve),
    CALL(execveat),
    CALL(ptrace),
    CALL(fork),
    CALL(vfork),
    CALL(connect),
    CALL(bind),
    CALL(mount),
    CALL(umount2),
    CALL(pivot_root),
    CALL(chroot),
    CALL(setns),
    CALL(unshare),
    CALL(bpf),
    CALL(io_uring_setup),
    CALL(perf_event_open),
    CALL(keyctl),
    CALL(init_module),
    CALL(finit_module),
    CALL(kexec_load),
    CALL(open_by_handle_at),
    CALL(setuid),
    CALL(setgid),
    CALL(setresuid),
    CALL(setresgid),
    CALL(userfaultfd),
    CALL(process_madvise),
};
static const unsigned long requests[] = {FIONBIO, FIOCLEX, FIONREAD};
static const unsigned long task_requests[] = {UFFDIO_COPY, UFFDIO_ZEROPAGE, UFFDIO_WAKE,
					      UFFDIO_UNREGISTER, UFFDIO_WRITEPROTECT};

static int add(scmp_filter_ctx f, uint32_t action, const int *v, size_t n)
{
	int r = 0;

	for (size_t i = 0; i < n && !r; i++)
		r = seccomp_rule_add(f, action, v[i], 0);
	return r;
}

static int add_requests(scmp_filter_ctx f, const unsigned long *v, size_t n)
{
	int r = 0;

	for (size_t i = 0; i < n && !r; i++)
		r = seccomp_rule_add(f, SCMP_ACT_ALLOW, CALL(ioctl), 1,
				     SCMP_A1(SCMP_CMP_MASKED_EQ, 0xffffffff, v[i]));
	return r;
}

/* clone(2) for threads only; clone3's arguments are out of a filter's sight, and glibc falls back
 * to the former when it is not there. */
static int add_threads(scmp_filter_ctx f)
{
	return seccomp_rule_add(f, SCMP_ACT_ALLOW, CALL(clone), 1,
				SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
}

/* What exists, for reading. (O_TMPFILE goes with writing only.) */
static int add_open_to_read(scmp_filter_ctx f)
{
	return seccomp_rule_add(
	    f, SCMP_ACT_ALLOW, CALL(openat), 1,
	    SCMP_A2(SCMP_CMP_MASKED_EQ, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY));
}

static int add_images(scmp_filter_ctx f, bool write)
{
	int r = add(f, SCMP_ACT_ALLOW, reading, ARRAY_SIZE(reading));

	if (r)
		return r;
	return write ? add(f, SCMP_ACT_ALLOW, writing, ARRAY_SIZE(writing)) : add_open_to_read(f);
}

/* Where a thread runs is its own affair (near_cpu.h); a signal may end the process itself,
 * abort(3). */
static int fill_tasks(scmp_filter_ctx f)
{
	int r = add(f, SCMP_ACT_ALLOW, always, ARRAY_SIZE(always));

	if (!r)
		r = add(f, SCMP_ACT_ALLOW, handed, ARRAY_SIZE(handed));
	if (!r)
		r = add(f, SCMP_ACT_KILL_PROCESS, deadly, ARRAY_SIZE(deadly));
	if (!r)
		r = seccomp_rule_add(f, SCMP_ACT_ALLOW, CALL(sched_setaffinity), 1,
				     SCMP_A0(SCMP_CMP_EQ, 0));
	if (!r)
		r = seccomp_rule_add(f, SCMP_ACT_ALLOW, CALL(tgkill), 1,
				     SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)getpid()));
	return r ? r : add_threads(f);
}

static int fill(scmp_filter_ctx f, enum sandbox_for what)
{
	if (what == SANDBOX_TASKS)
		return fill_tasks(f);

	bool live = what == SANDBOX_LIVE;
	int r = add(f, SCMP_ACT_ALLOW, always, ARRAY_SIZE(always));

	if (!r)
		r = add(f, SCMP_ACT_ALLOW, looping, ARRAY_SIZE(looping));
	if (!r)
		r = live ? add(f, SCMP_ACT_ALLOW, tasks, ARRAY_SIZE(tasks))
			 : add_images(f, what == SANDBOX_TAKE);
	if (!r)
		r = add(f, SCMP_ACT_KILL_PROCESS, deadly, ARRAY_SIZE(deadly));
	if (!r)
		r = add_requests(f, requests, ARRAY_SIZE(requests));
	if (!r && live)
		r = add_requests(f, task_requests, ARRAY_SIZE(task_requests));
	if (!r && live) /* down only: priority_lower() */
		r = seccomp_rule_add(f, SCMP_ACT_ALLOW, CALL(sched_setscheduler), 1,
				     SCMP_A1(SCMP_CMP_EQ, SCHED_OTHER));
	return r ? r : add_threads(f);
}

int sandbox_enter(enum sandbox_for what, struct cr_err *err)
{
	scmp_filter_ctx f = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));
	int r = f ? fill(f, what) : -ENOMEM;

	if (!r)
		r = seccomp_attr_set(f, SCMP_FLTATR_CTL_TSYNC, 1);
	if (!r)
		r = seccomp_load(f);
	seccomp_release(f);
	return r ? cr_err_set(err, CR_ERR_KERNEL, -r, "filter of system calls: %s", strerror(-r))
		 : 0;
}
