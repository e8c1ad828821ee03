#include "kernel/features.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/kcmp.h>
#include <linux/sched.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/capability.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include "base/cleanup.h"
#include "kernel/cgroup.h"
#include "kernel/dump_hold.h"
#include "kernel/features_probe.h"
#include "kernel/pagemap.h"
#include "kernel/taskview.h"
#include "kernel/reqview.h"
#include "kernel/reuseview.h"
#include "kernel/sock_policy.h"
#include "kernel/vmaview.h"
#include "kernel/shmview.h"
#include "kernel/timens.h"
#include "kernel/uffd.h"

#define UNUSED_DETAIL (void)detail, (void)size

int probe_in_child(int (*fn)(void))
{
	int status;
	pid_t pid = fork();

	if (pid < 0)
		return errno;
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(fn());
	}
	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			return errno;
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : EFAULT;
}

/* ---- memory ---- */

static int probe_uffd_wp_async(char *detail, size_t size)
{
	struct cr_err err = {0};

	UNUSED_DETAIL;
	_cleanup_fd_ int fd = (int)syscall(SYS_userfaultfd, uffd_create_flags());
	return fd < 0 ? errno : -uffd_enable_wp_async(fd, &err);
}

static int probe_pagemap_scan(char *detail, size_t size)
{
	const struct pagemap_query q = {
	    .start = 0x10000, .end = PAGEMAP_TOP, .mask = PAGE_CAT_PRESENT, .ret = PAGE_CAT_ALL};
	struct page_extent extent;
	struct cr_err err = {0};
	uint64_t at = q.start;

	UNUSED_DETAIL;
	_cleanup_fd_ int fd = pagemap_open(getpid(), &err);
	if (fd < 0)
		return -fd;
	ssize_t n = pagemap_scan(fd, &q, &at, &extent, 1, &err);
	return n < 0 ? (int)-n : 0;
}

/* A page that was just written must be soft-dirty; without CONFIG_MEM_SOFT_DIRTY the bit is never
 * set. */
static int probe_soft_dirty(char *detail, size_t size)
{
	volatile char *page =
	    mmap(NULL, CR_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct cr_err err = {0};
	uint64_t entry = 0;

	UNUSED_DETAIL;
	if (page == MAP_FAILED)
		return errno;
	page[0] = 1;
	_cleanup_fd_ int fd = pagemap_open(getpid(), &err);
	int r = fd < 0 ? fd : pagemap_entry(fd, (uintptr_t)page, &entry, &err);
	munmap((void *)page, CR_PAGE_SIZE);
	return r < 0 ? -r : entry >> 55 & 1 ? 0 : ENOTSUP;
}

static int probe_guard_pages(char *detail, size_t size)
{
	enum { MADV_GUARD_INSTALL_ = 102 }; /* madvise(2), 6.13 */
	void *page =
	    mmap(NULL, CR_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	UNUSED_DETAIL;
	if (page == MAP_FAILED)
		return errno;
	int r = madvise(page, CR_PAGE_SIZE, MADV_GUARD_INSTALL_) ? errno : 0;
	munmap(page, CR_PAGE_SIZE);
	return r;
}

static int probe_process_vm(char *detail, size_t size)
{
	char from = 1, to = 0;
	struct iovec local = {&from, 1}, remote = {&to, 1};

	UNUSED_DETAIL;
	return process_vm_writev(getpid(), &local, 1, &remote, 1, 0) == 1 && to ? 0 : errno;
}

/* ---- rebuilding ---- */

static int probe_mm_map(char *detail, size_t size)
{
	unsigned int bytes = 0;

	UNUSED_DETAIL;
	return prctl(PR_SET_MM, PR_SET_MM_MAP_SIZE, &bytes, 0, 0) ? errno : 0;
}

static int probe_map_vdso(char *detail, size_t size)
{
	enum { ARCH_MAP_VDSO_64_ = 0x2003 };

	UNUSED_DETAIL;
	/* Ours is mapped already: EEXIST says that the call exists, EINVAL that it does not. */
	return syscall(SYS_arch_prctl, ARCH_MAP_VDSO_64_, 0) == 0 || errno == EEXIST ? 0 : errno;
}

/* As init of a new namespace: the only pid that is free for sure. */
static int probe_set_tid(char *detail, size_t size)
{
	pid_t want = 1;
	struct clone_args args = {
	    .flags = CLONE_NEWPID,
	    .exit_signal = SIGCHLD,
	    .set_tid = (uintptr_t)&want,
	    .set_tid_size = 1,
	};
	int status;

	UNUSED_DETAIL;
	long pid = syscall(SYS_clone3, &args, sizeof(args));
	if (pid < 0)
		return errno;
	if (!pid)
		syscall(SYS_exit_group, syscall(SYS_getpid) == 1 ? 0 : ENOTSUP);
	while (waitpid((pid_t)pid, &status, 0) < 0) {
		if (errno != EINTR)
			return errno;
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : EFAULT;
}

static int enter_timens(void)
{
	const struct timens_offsets o = {.monotonic = 1000000000, .boottime = 1000000000};
	struct cr_err err = {0};

	return -timens_enter(&o, &err);
}

static int probe_timens(char *detail, size_t size)
{
	UNUSED_DETAIL;
	return probe_in_child(enter_timens);
}

static int probe_pidfd_getfd(char *detail, size_t size)
{
	UNUSED_DETAIL;
	_cleanup_fd_ int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (pidfd < 0)
		return errno;
	_cleanup_fd_ int fd = (int)syscall(SYS_pidfd_getfd, pidfd, pidfd, 0);
	return fd < 0 ? errno : 0;
}

static int probe_kcmp(char *detail, size_t size)
{
	UNUSED_DETAIL;
	return syscall(SYS_kcmp, getpid(), getpid(), KCMP_VM, 0, 0) == 0 ? 0 : errno;
}

static int become_realtime(void)
{
	const struct sched_param p = {.sched_priority = 1};

	return sched_setscheduler(0, SCHED_FIFO, &p) ? errno : 0;
}

static int probe_realtime(char *detail, size_t size)
{
	UNUSED_DETAIL;
	return probe_in_child(become_realtime);
}

/* ---- seeing ---- */

static int readable(const char *path)
{
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);

	return fd < 0 ? errno : 0;
}

static int probe_proc_timers(char *detail, size_t size)
{
	UNUSED_DETAIL;
	return readable("/proc/self/timers");
}

static int probe_proc_children(char *detail, size_t size)
{
	UNUSED_DETAIL;
	return readable("/proc/thread-self/children");
}

static int probe_map_files(char *detail, size_t size)
{
	UNUSED_DETAIL;
	return readable("/proc/self/map_files");
}

static int probe_tcp_repair(char *detail, size_t size)
{
	const int on = 1, off = 0;

	UNUSED_DETAIL;
	_cleanup_fd_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on)))
		return errno;
	return setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &off, sizeof(off)) ? errno : 0;
}

static int probe_cgroup(enum cgroup_version version, char *detail, size_t size)
{
	_cleanup_(cgroup_closep) struct cgroup *root = NULL;
	struct cr_err err = {0};

	if (cgroup_open(&root, version, "/", &err) < 0) {
		snprintf(detail, size, "not mounted");
		return ENOENT;
	}
	snprintf(detail, size, "at %s", cgroup_fs_path(root));
	return access(cgroup_fs_path(root), W_OK) ? errno : 0;
}

static int probe_cgroup_v2(char *detail, size_t size)
{
	return probe_cgroup(CGROUP_V2, detail, size);
}

static int probe_cgroup_v1(char *detail, size_t size)
{
	return probe_cgroup(CGROUP_V1, detail, size);
}

static int probe_taskview(char *detail, size_t size)
{
	struct taskview *tv = NULL;
	struct cr_err err = {0};
	int r = taskview_new(&tv, &err);

	taskview_free(tv);
	if (r)
		snprintf(detail, size, "%.99s", err.msg);
	return -r;
}

static int probe_vmaview(char *detail, size_t size)
{
	struct vmaview *vv = NULL;
	struct cr_err err = {0};
	int r = vmaview_new(&vv, &err);

	vmaview_free(vv);
	if (r)
		snprintf(detail, size, "%.99s", err.msg);
	return -r;
}

static int probe_shmview(char *detail, size_t size)
{
	struct shmview *v = NULL;
	struct cr_err err = {0};
	int r = shmview_new(&v, &err);

	shmview_free(v);
	if (r)
		snprintf(detail, size, "%.99s", err.msg);
	return -r;
}

static int probe_reqview(char *detail, size_t size)
{
	struct reqview *rv = NULL;
	struct cr_err err = {0};
	int r = reqview_new(&rv, &err);

	reqview_free(rv);
	if (r)
		snprintf(detail, size, "%.99s", err.msg);
	return -r;
}

static int probe_reuseview(char *detail, size_t size)
{
	struct reuseview *rv = NULL;
	struct cr_err err = {0};
	int r = reuseview_new(&rv, &err);

	reuseview_free(rv);
	if (r)
		snprintf(detail, size, "%.99s", err.msg);
	return -r;
}

static int probe_sock_policy(char *detail, size_t size)
{
	(void)detail;
	(void)size;
	return sock_policy_is_possible() ? 0 : EOPNOTSUPP;
}

static int probe_dump_hold(char *detail, size_t size)
{
	struct cr_err err = {0};
	_cleanup_fd_ int group = dump_hold_open(&err);

	if (group < 0)
		snprintf(detail, size, "%.99s", err.msg);
	return group < 0 ? -group : 0;
}

/* ---- the tables ---- */

static const struct {
	const char *name;
	feature_probe_fn probe;
	bool required;
	const char *without;
} probes[] = {
    {"ptrace", probe_ptrace, true, "No task can be stopped, and so none moved."},
    {"userfaultfd-wp-async", probe_uffd_wp_async, false,
     "Pre-copy cannot track writes (Linux 6.7): every round compares all pages, and the downtime "
     "grows "
     "with the memory."},
    {"pagemap-scan", probe_pagemap_scan, true,
     "Pages that are present or written cannot be told (Linux 6.7)."},
    {"soft-dirty", probe_soft_dirty, false,
     "Only matters where userfaultfd-wp-async is missing: then there is no tracker at all."},
    {"process-vm", probe_process_vm, true, "Memory can be neither read nor placed from outside."},
    {"guard-pages", probe_guard_pages, false,
     "Tasks with guard pages (MADV_GUARD_INSTALL, Linux 6.13) cannot move here."},
    {"hardware-breakpoints", probe_hw_breakpoints, false,
     "Tasks are parked by tracing system calls instead: slower to leave, otherwise the same."},
    {"bpf-task-iterator", probe_taskview, false,
     "Every thread is asked by itself at the switch-over: 0.05 ms more downtime for each."},
    {"bpf-vma-iterator", probe_vmaview, false,
     "An madvise or mlock of a whole mapping of a large process goes unnoticed if it comes during "
     "the "
     "copy and nothing else of its mappings changes."},
    {"bpf-shared-memory", probe_shmview, false,
     "Shared memory is compared as a whole at the switch-over: 0.2 s more downtime for each GiB."},
    {"bpf-tcp-iterator", probe_reqview, false,
     "Connections whose handshake is under way at the switch-over are reset."},
    {"bpf-reuseport", probe_reuseview, false,
     "A program that chooses among sockets that share a port is lost by a move from here."},
    {"sock-policy", probe_sock_policy, false,
     "Sockets with a locked filter (SO_LOCK_FILTER) cannot move from here: CONFIG_XFRM_USER."},
    {"fanotify-permissions", probe_dump_hold, false,
     "A core dump lacks what of its process's memory has not arrived by then (post-copy, "
     "hybrid)."},
    {"ptrace-rseq", probe_rseq, false,
     "Restartable sequences cannot be read (Linux 5.13): threads lose their registration."},
    {"clone3-set-tid", probe_set_tid, true, "Tasks cannot be given their pids here."},
    {"set-mm-map", probe_mm_map, true,
     "The layout of a rebuilt task (brk, arguments, auxv, exe) cannot be set: "
     "CONFIG_CHECKPOINT_RESTORE."},
    {"map-vdso", probe_map_vdso, true,
     "The vdso cannot be put where the tasks have it: CONFIG_CHECKPOINT_RESTORE."},
    {"time-namespaces", probe_timens, false,
     "The tasks' monotonic clocks jump by the difference of the hosts' uptimes."},
    {"pidfd-getfd", probe_pidfd_getfd, true, "Descriptors cannot be passed into or out of tasks."},
    {"kcmp", probe_kcmp, true, "Descriptors that are shared cannot be told from equal ones."},
    {"proc-timers", probe_proc_timers, false, "Tasks with POSIX timers cannot move from here."},
    {"proc-children", probe_proc_children, false,
     "Children are found by reading all of /proc, which takes longer on a busy host."},
    {"map-files", probe_map_files, true,
     "Mapped files that were deleted or shared cannot be opened."},
    {"tcp-repair", probe_tcp_repair, false, "Established TCP connections cannot be moved."},
    {"realtime", probe_realtime, false,
     "The switch-over shares the CPU with everybody: 0.2 to 20 ms more downtime on a busy host."},
    {"cgroup-v2-freezer", probe_cgroup_v2, false,
     "Tasks in v2 cgroups are stopped one by one instead."},
    {"cgroup-v1-freezer", probe_cgroup_v1, false,
     "Tasks in v1 freezer cgroups are stopped one by one instead."},
    {"avx", probe_avx, false, "Tasks that use AVX cannot move here."},
    {"avx-512", probe_avx512, false, "Tasks that use AVX-512 cannot move here."},
    {"amx", probe_amx, false, "Tasks that use AMX cannot move here."},
};

static const struct {
	cap_value_t cap;
	bool required;
	const char *without;
} caps[] = {
    {CAP_SYS_PTRACE, true, "Only tasks of our own user can be stopped and read."},
    {CAP_SYS_ADMIN, true, "No namespaces, no files of other tasks' mappings."},
    {CAP_CHECKPOINT_RESTORE, false, "CAP_SYS_ADMIN is used in its place."},
    {CAP_KILL, true, "The tasks at the source cannot be ended after the move."},
    {CAP_SETUID, true, "Tasks of other users cannot be rebuilt here."},
    {CAP_SETGID, true, "Tasks of other groups cannot be rebuilt here."},
    {CAP_SETPCAP, false, "Tasks with a reduced bounding set cannot be rebuilt here."},
    {CAP_DAC_OVERRIDE, false, "Files that the agent's user may not open cannot be reopened."},
    {CAP_DAC_READ_SEARCH, false, "Files below closed directories cannot be reopened."},
    {CAP_FOWNER, false, "Files of others that need O_NOATIME cannot be reopened."},
    {CAP_SYS_CHROOT, false, "Tasks with a root directory of their own cannot be rebuilt here."},
    {CAP_SYS_RESOURCE, false,
     "Limits and out-of-memory scores can be lowered but not raised to what the tasks had."},
    {CAP_SYS_NICE, false, "Real-time policies and negative nice values cannot be restored."},
    {CAP_NET_ADMIN, false,
     "Socket options such as marks, buffers over the limit and TCP_REPAIR are out."},
    {CAP_NET_BIND_SERVICE, false, "Listeners on ports below 1024 cannot be rebuilt."},
    {CAP_IPC_LOCK, false, "Locked memory above the limit cannot be locked again."},
};

static struct feature *add(struct features *f, bool required, const char *without)
{
	struct feature *x = &f->list[f->n++];

	*x = (struct feature){.required = required, .without = without};
	return x;
}

static void probe_caps(struct features *f)
{
	static const char *const names[] = {
	    [CAP_SYS_PTRACE] = "CAP_SYS_PTRACE",
	    [CAP_SYS_ADMIN] = "CAP_SYS_ADMIN",
	    [CAP_CHECKPOINT_RESTORE] = "CAP_CHECKPOINT_RESTORE",
	    [CAP_KILL] = "CAP_KILL",
	    [CAP_SETUID] = "CAP_SETUID",
	    [CAP_SETGID] = "CAP_SETGID",
	    [CAP_SETPCAP] = "CAP_SETPCAP",
	    [CAP_DAC_OVERRIDE] = "CAP_DAC_OVERRIDE",
	    [CAP_DAC_READ_SEARCH] = "CAP_DAC_READ_SEARCH",
	    [CAP_FOWNER] = "CAP_FOWNER",
	    [CAP_SYS_CHROOT] = "CAP_SYS_CHROOT",
	    [CAP_SYS_RESOURCE] = "CAP_SYS_RESOURCE",
	    [CAP_SYS_NICE] = "CAP_SYS_NICE",
	    [CAP_NET_ADMIN] = "CAP_NET_ADMIN",
	    [CAP_NET_BIND_SERVICE] = "CAP_NET_BIND_SERVICE",
	    [CAP_IPC_LOCK] = "CAP_IPC_LOCK",
	};
	cap_t have = cap_get_proc();

	for (size_t i = 0; i < ARRAY_SIZE(caps); i++) {
		struct feature *x = add(f, caps[i].required, caps[i].without);
		cap_flag_value_t set = CAP_CLEAR;

		x->name = names[caps[i].cap];
		if (have)
			cap_get_flag(have, caps[i].cap, CAP_EFFECTIVE, &set);
		x->present = set == CAP_SET;
	}
	cap_free(have);
}

void features_probe(struct features *ret)
{
	_Static_assert(ARRAY_SIZE(probes) + ARRAY_SIZE(caps) <= FEATURES_MAX, "raise FEATURES_MAX");

	ret->n = 0;
	for (size_t i = 0; i < ARRAY_SIZE(probes); i++) {
		struct feature *x = add(ret, probes[i].required, probes[i].without);

		x->name = probes[i].name;
		int r = probes[i].probe(x->detail, sizeof(x->detail));
		x->present = r == 0;
		if (r && !x->detail[0])
			snprintf(x->detail, sizeof(x->detail), "%s", strerror(r));
	}
	probe_caps(ret);
}

const struct feature *features_find(const struct features *f, const char *name)
{
	for (size_t i = 0; i < f->n; i++) {
		if (!strcmp(f->list[i].name, name))
			return &f->list[i];
	}
	return NULL;
}

bool features_enough(const struct features *f)
{
	for (size_t i = 0; i < f->n; i++) {
		if (f->list[i].required && !f->list[i].present)
			return false;
	}
	return true;
}
