/* Has one thing that cannot be moved, and goes on living with it: the migration must be refused by
 * name before anything is stopped.
 *
 * --what NAME (see the table at the end; "nothing" has nothing and can be moved), --list */
#include "workload.h"
#include <grp.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/netlink.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <sys/fanotify.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/un.h>

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08 /* 6.11 */
#endif
#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif

static char queue_name[32]; /* to be unlinked at the end */
static int ipc_id = -1;     /* to be removed at the end */
static pid_t kid;           /* a process that some of the things need */

static int file_in_dir(int flags)
{
	char path[256];

	return open(wl_path(path, "file"), O_RDWR | O_CREAT | flags, 0644);
}

/* Each returns >= 0 if the thing is there, else -1 with errno. */

static int do_nothing(void)
{
	return 0;
}

/* ---- descriptors ---- */

static int do_io_uring(void)
{
	uint8_t params[120] = {0};

	return syscall(SYS_io_uring_setup, 4, params);
}

static int do_inotify(void)
{
	char path[256];
	const int fd = inotify_init1(0);

	/* of a file that is there, but has no name any more */
	if (fd < 0 || file_in_dir(0) < 0 ||
	    inotify_add_watch(fd, wl_path(path, "file"), IN_MODIFY) < 0)
		return -1;
	return unlink(path);
}

static int do_fanotify(void)
{
	return fanotify_init(FAN_CLASS_NOTIF, O_RDONLY);
}

static int do_udplite(void)
{
	return socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE);
}

/* The other end is in a process that is in no tree of ours: its parent is pid 1. */
static int do_unixpeer(void)
{
	int p[2], status;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, p))
		return -1;
	pid_t child = fork();
	if (child == 0) {
		if (fork())
			_exit(0);
		close(p[0]);
		char c;
		if (read(p[1], &c, 1) == 0) /* until the other end goes */
			_exit(0);
		_exit(1);
	}
	close(p[1]);
	return waitpid(child, &status, 0) == child ? 0 : -1;
}

/* A process in no tree of ours has fd until the workload ends. */
static int keep_outside(int fd)
{
	char path[256];
	int status;
	pid_t child = fork();

	if (child == 0) {
		if (fork())
			_exit(0);
		while (access(wl_path(path, "stop"), F_OK) && access(wl_path(path, "result"), F_OK))
			usleep(20000);
		_exit(0);
	}
	return waitpid(child, &status, 0) == child ? fd : -1;
}

/* Connected to a name that somebody outside has. */
static int do_unixdgram(void)
{
	const struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct sockaddr_un name;
	socklen_t len = sizeof(name);
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0), server = socket(AF_UNIX, SOCK_DGRAM, 0);

	if (bind(server, (const void *)&un, sizeof(sa_family_t)) || keep_outside(server) < 0 ||
	    getsockname(server, (void *)&name, &len) || connect(fd, (void *)&name, len))
		return -1;
	close(server);
	return fd;
}

static int do_netlink(void)
{
	return socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
}

static int do_packet(void)
{
	return socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
}

static int do_raw(void)
{
	return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
}

static int do_deleted(void)
{
	char path[256];
	const int fd = file_in_dir(0);

	return fd < 0 ? fd : unlink(wl_path(path, "file")) ? -1 : fd;
}

/* Somebody else has it as well. */
static int do_deletedmap(void)
{
	const int fd = do_deleted();

	if (fd < 0 || ftruncate(fd, WL_PAGE) || keep_outside(fd) < 0)
		return -1;
	char *p = mmap(NULL, WL_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return p == MAP_FAILED ? -1 : 0;
}

/* The other side is in a process that is in no tree of ours. */
static int do_pty(void)
{
	int master = posix_openpt(O_RDWR | O_NOCTTY), status;

	if (master < 0 || grantpt(master) || unlockpt(master))
		return -1;
	int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
	pid_t child = fork();
	if (child == 0) {
		char c;

		if (fork())
			_exit(0);
		close(slave);
		while (read(master, &c, 1) == 1) /* until the other side goes */
			;
		_exit(0);
	}
	close(master);
	return slave < 0 || waitpid(child, &status, 0) != child ? -1 : 0;
}

static int do_userfaultfd(void)
{
	return syscall(SYS_userfaultfd, O_CLOEXEC | 1);
}

static int do_perf(void)
{
	struct perf_event_attr a = {
	    .type = PERF_TYPE_SOFTWARE, .size = sizeof(a), .config = PERF_COUNT_SW_TASK_CLOCK};

	return syscall(SYS_perf_event_open, &a, 0, -1, -1, 0);
}

static int do_bpf(void)
{
	union bpf_attr a = {
	    .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1};

	return syscall(SYS_bpf, BPF_MAP_CREATE, &a, sizeof(a));
}

/* ---- sockets ---- */

/* A connection to ourselves over loopback. */
static int connection(int protocol)
{
	struct sockaddr_in sa = {AF_INET, 0, {htonl(INADDR_LOOPBACK)}, {0}};
	socklen_t len = sizeof(sa);
	int l = socket(AF_INET, SOCK_STREAM, protocol), fd = socket(AF_INET, SOCK_STREAM, protocol);

	if (l < 0 || bind(l, (void *)&sa, len) || listen(l, 1) ||
	    getsockname(l, (void *)&sa, &len) || connect(fd, (void *)&sa, len) ||
	    accept(l, NULL, NULL) < 0)
		return -1;
	return fd;
}

static int do_mptcp(void)
{
	return connection(IPPROTO_MPTCP);
}

static int do_ktls(void)
{
	int fd = connection(0);

	return fd < 0 || setsockopt(fd, IPPROTO_TCP, 31 /* TCP_ULP */, "tls", 4) ? -1 : fd;
}

static int listener(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	return fd < 0 || listen(fd, 1) ? -1 : fd;
}

static int do_md5listener(void)
{
	enum { MD5SIG = 14 }; /* as <linux/tcp.h> has it, and the structure */
	struct {
		struct sockaddr_storage addr;
		uint8_t flags, prefix;
		uint16_t len;
		int ifindex;
		uint8_t key[80];
	} sig = {.addr = {.ss_family = AF_INET}, .len = 6, .key = "secret"};
	int fd = listener();

	((struct sockaddr_in *)&sig.addr)->sin_addr.s_addr = htonl(0x0a4d0003);
	return fd < 0 || setsockopt(fd, IPPROTO_TCP, MD5SIG, &sig, sizeof(sig)) ? -1 : fd;
}

static int ebpf_on(int fd, int how)
{
	union bpf_attr array = {
	    .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
	int map = syscall(SYS_bpf, BPF_MAP_CREATE, &array, sizeof(array));
	const struct bpf_insn pass[] = {
	    {.code = BPF_LD | BPF_IMM | BPF_DW,
	     .dst_reg = BPF_REG_1,
	     .src_reg = BPF_PSEUDO_MAP_FD,
	     .imm = map},
	    {.code = 0},
	    {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = INT32_MAX},
	    {.code = BPF_JMP | BPF_EXIT},
	};
	union bpf_attr a = {.prog_type = BPF_PROG_TYPE_SOCKET_FILTER,
			    .insns = (uintptr_t)pass,
			    .insn_cnt = sizeof(pass) / sizeof(*pass),
			    .license = (uintptr_t) "GPL"};
	int prog = syscall(SYS_bpf, BPF_PROG_LOAD, &a, sizeof(a));

	if (fd < 0 || prog < 0 || setsockopt(fd, SOL_SOCKET, how, &prog, sizeof(prog)))
		return -1;
	close(prog);
	close(map);
	return fd;
}

static int do_ebpffilter(void)
{
	return ebpf_on(listener(), SO_ATTACH_BPF);
}

static int do_ebpfreuseport(void)
{
	const int one = 1;
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	return setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one))
		   ? -1
		   : ebpf_on(fd, SO_ATTACH_REUSEPORT_EBPF);
}

static int do_ebpfconnection(void)
{
	return ebpf_on(connection(0), SO_ATTACH_BPF);
}

/* To itself. */
static int udp_connected(void)
{
	struct sockaddr_in sa = {AF_INET, 0, {htonl(INADDR_LOOPBACK)}, {0}};
	socklen_t len = sizeof(sa);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	return bind(fd, (void *)&sa, len) || getsockname(fd, (void *)&sa, &len) ||
		       connect(fd, (void *)&sa, len)
		   ? -1
		   : fd;
}

static int do_udpmore(void)
{
	return send(udp_connected(), "part", 4, MSG_MORE);
}

static int send_zerocopy(int fd)
{
	static char page[WL_PAGE];
	const int on = 1;

	return setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on))
		   ? -1
		   : send(fd, page, 100, MSG_ZEROCOPY);
}

static int do_udpzerocopy(void)
{
	return send_zerocopy(udp_connected());
}

static int do_tcpzerocopy(void)
{
	return send_zerocopy(connection(0));
}

static int do_pidfd(void)
{
	return syscall(SYS_pidfd_open, 1, 0);
}

static int do_mqueue(void)
{
	snprintf(queue_name, sizeof(queue_name), "/wl-%d", getpid());
	return mq_open(queue_name, O_RDWR | O_CREAT, 0600, NULL);
}

static int do_fifo(void)
{
	char path[256];

	if (mkfifo(wl_path(path, "fifo"), 0600))
		return -1;
	return keep_outside(open(path, O_RDWR));
}

static int do_procfile(void)
{
	return open("/proc/1/stat", O_RDONLY); /* a file of its own can be opened again */
}

static int do_device(void)
{
	return open("/dev/kmsg", O_RDONLY);
}

static int do_secretmem(void)
{
	return syscall(SYS_memfd_secret, 0);
}

static int do_opath(void)
{
	char path[256];

	if (symlink("nowhere", wl_path(path, "link")))
		return -1;
	return open(path, O_PATH | O_NOFOLLOW);
}

static int do_lease(void)
{
	return fcntl(file_in_dir(0), F_SETLEASE, F_WRLCK);
}

/* ---- memory ---- */

/* Only its first page is mapped. */
static int do_sysvpart(void)
{
	const int id = shmget(IPC_PRIVATE, 2 * WL_PAGE, IPC_CREAT | 0600);
	char *p = shmat(id, NULL, 0);

	shmctl(id, IPC_RMID, NULL);
	return p == (void *)-1 ? -1 : munmap(p + WL_PAGE, WL_PAGE);
}

static int do_sysvsem(void)
{
	struct sembuf op = {1, 1, SEM_UNDO};

	ipc_id = semget(IPC_PRIVATE, 100, IPC_CREAT | 0600);

	return semop(ipc_id, &op, 1);
}

/* Somebody outside the tree has received from it. */
static int do_sysvmsg(void)
{
	struct {
		long type;
		char text[4];
	} m = {1, "abc"};
	int status;

	ipc_id = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
	if (msgsnd(ipc_id, &m, sizeof(m.text), 0))
		return -1;
	pid_t child = fork();
	if (child == 0) {
		char path[256];

		if (fork())
			_exit(0);
		if (msgrcv(ipc_id, &m, sizeof(m.text), 0, 0) < 0)
			_exit(1);
		while (access(wl_path(path, "stop"), F_OK) && access(wl_path(path, "result"), F_OK))
			usleep(20000);
		_exit(0);
	}
	if (waitpid(child, &status, 0) != child)
		return -1;
	for (struct msqid_ds ds = {.msg_qnum = 1}; ds.msg_qnum;)
		if (msgctl(ipc_id, IPC_STAT, &ds))
			return -1;
	return 0;
}

static int do_aio(void)
{
	static unsigned long ctx;

	return syscall(SYS_io_setup, 4, &ctx);
}

static int mapped(int prot, int flags)
{
	return mmap(NULL, 2 << 20, prot, MAP_ANONYMOUS | flags, -1, 0) == MAP_FAILED ? -1 : 0;
}

static int do_hugetlb(void)
{
	const int fd = memfd_create("huge", MFD_HUGETLB);

	return ftruncate(fd, 2 << 20) || mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE,
					      MAP_PRIVATE | MAP_NORESERVE, fd, 0) == MAP_FAILED
		   ? -1
		   : 0;
}

static int do_droppable(void)
{
	return mapped(PROT_READ | PROT_WRITE, MAP_DROPPABLE);
}

static int do_pkey(void)
{
	const int key = pkey_alloc(0, 0);
	void *p = mmap(NULL, WL_PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return key < 0 ? -1 : pkey_mprotect(p, WL_PAGE, PROT_READ, key);
}

static int do_perfmap(void)
{
	const int fd = do_perf();
	void *p = fd < 0 ? MAP_FAILED
			 : mmap(NULL, 2 * WL_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	close(fd);
	return p == MAP_FAILED ? -1 : 0;
}

/* ---- processes and threads ---- */

static void idle(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		pause();
}

static int do_traced(void)
{
	kid = fork();
	if (!kid)
		idle();
	return ptrace(PTRACE_SEIZE, kid, 0, 0);
}

static int do_seccomp(void)
{
	/* a supervisor decides about one call that nobody makes */
	struct sock_filter ask[] = {
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_acct, 0, 1),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {.len = 4, .filter = ask};

	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog);
}

static int do_mountns(void)
{
	return unshare(CLONE_NEWNS);
}

static int do_netns(void)
{
	return unshare(CLONE_NEWNET);
}

static int do_utsns(void)
{
	return unshare(CLONE_NEWUTS);
}

static int do_ipcns(void)
{
	return unshare(CLONE_NEWIPC);
}

static int do_cgroupns(void)
{
	return unshare(CLONE_NEWCGROUP);
}

static int do_userns(void)
{
	return unshare(CLONE_NEWUSER);
}

static int do_pidns(void)
{
	if (unshare(CLONE_NEWPID))
		return -1;
	kid = fork();
	if (!kid)
		idle();
	return kid;
}

static int do_deadline(void)
{
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t prio;
		uint64_t runtime, deadline, period;
	} a = {48, SCHED_DEADLINE, 0, 0, 0, 10000000, 30000000, 30000000};

	return syscall(SYS_sched_setattr, 0, &a, 0);
}

static long raw_clone(unsigned long flags)
{
	return syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
}

/* The child of a CLONE_VM without a stack of its own must not return: it runs below our frame. */
static int clone_child(void *arg)
{
	(void)arg;
	for (;;)
		syscall(SYS_pause);
	return 0;
}

static int do_sharedmm(void)
{
	static char stack[65536] __attribute__((aligned(16)));

	return kid = clone(clone_child, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL);
}

static int do_sharedfds(void)
{
	kid = raw_clone(CLONE_FILES);
	if (!kid)
		idle();
	return kid;
}

static int do_sharedfs(void)
{
	kid = raw_clone(CLONE_FS);
	if (!kid)
		idle();
	return kid;
}

/* The one between ends: its child, which shares with us, is in no tree of ours then. */
static int shared_outside(unsigned long flags)
{
	int status;
	pid_t between = raw_clone(flags);

	if (between == 0) {
		if (raw_clone(flags))
			_exit(0);
		char path[256];

		while (access(wl_path(path, "stop"), F_OK) && access(wl_path(path, "result"), F_OK))
			usleep(20000);
		_exit(0);
	}
	return waitpid(between, &status, 0) == between ? 0 : -1;
}

static int do_fdsoutside(void)
{
	return shared_outside(CLONE_FILES);
}

static int do_fsoutside(void)
{
	return shared_outside(CLONE_FS);
}

static int in_thread_result;
static pthread_barrier_t in_thread_done;

static void *in_thread(void *arg)
{
	in_thread_result = ((int (*)(void))arg)();
	pthread_barrier_wait(&in_thread_done);
	for (;;)
		pause();
	return NULL;
}

static int with_thread(int (*fn)(void))
{
	pthread_t t;

	pthread_barrier_init(&in_thread_done, NULL, 2);
	if (pthread_create(&t, NULL, in_thread, (void *)fn))
		return -1;
	pthread_barrier_wait(&in_thread_done);
	return in_thread_result;
}

static int unshare_files(void)
{
	return unshare(CLONE_FILES);
}

static int unshare_fs(void)
{
	return unshare(CLONE_FS);
}

static int change_uid(void)
{
	return syscall(SYS_setresuid, 1000, 1000, 0);
}

static int do_threadfds(void)
{
	return with_thread(unshare_files);
}

static int do_threadfs(void)
{
	return with_thread(unshare_fs);
}

static int do_threadcreds(void)
{
	return with_thread(change_uid);
}

/* ---- the table ---- */

static const struct {
	const char *name;
	int (*set_up)(void);
} things[] = {
    {"nothing", do_nothing},
    {"io_uring", do_io_uring},
    {"inotify", do_inotify},
    {"fanotify", do_fanotify},
    {"udplite", do_udplite},
    {"unixpeer", do_unixpeer},
    {"unixdgram", do_unixdgram},
    {"netlink", do_netlink},
    {"packet", do_packet},
    {"raw", do_raw},
    {"deletedmap", do_deletedmap},
    {"pty", do_pty},
    {"userfaultfd", do_userfaultfd},
    {"perf", do_perf},
    {"perfmap", do_perfmap},
    {"bpf", do_bpf},
    {"mptcp", do_mptcp},
    {"ktls", do_ktls},
    {"md5listener", do_md5listener},
    {"ebpffilter", do_ebpffilter},
    {"ebpfreuseport", do_ebpfreuseport},
    {"ebpfconnection", do_ebpfconnection},
    {"udpmore", do_udpmore},
    {"udpzerocopy", do_udpzerocopy},
    {"tcpzerocopy", do_tcpzerocopy},
    {"pidfd", do_pidfd},
    {"mqueue", do_mqueue},
    {"fifo", do_fifo},
    {"procfile", do_procfile},
    {"device", do_device},
    {"secretmem", do_secretmem},
    {"opath", do_opath},
    {"lease", do_lease},
    {"sysvpart", do_sysvpart},
    {"sysvsem", do_sysvsem},
    {"sysvmsg", do_sysvmsg},
    {"aio", do_aio},
    {"hugetlb", do_hugetlb},
    {"droppable", do_droppable},
    {"pkey", do_pkey},
    {"traced", do_traced},
    {"seccomp", do_seccomp},
    {"mountns", do_mountns},
    {"netns", do_netns},
    {"utsns", do_utsns},
    {"ipcns", do_ipcns},
    {"cgroupns", do_cgroupns},
    {"userns", do_userns},
    {"pidns", do_pidns},
    {"deadline", do_deadline},
    {"sharedmm", do_sharedmm},
    {"sharedfds", do_sharedfds},
    {"sharedfs", do_sharedfs},
    {"fdsoutside", do_fdsoutside},
    {"fsoutside", do_fsoutside},
    {"threadfds", do_threadfds},
    {"threadfs", do_threadfs},
    {"threadcreds", do_threadcreds},
};
enum { THINGS = sizeof(things) / sizeof(things[0]) };

static void set_up(const char *what)
{
	for (int i = 0; i < THINGS; i++) {
		if (strcmp(things[i].name, what))
			continue;
		if (things[i].set_up() >= 0)
			return;
		dprintf(2, "%s: %s\n", what, strerror(errno));
		wl_write("result", "SKIP\n");
		exit(77);
	}
	wl_fail("%s: no such thing", what);
}

int main(int argc, char **argv)
{
	wl.argc = argc;
	wl.argv = argv;
	if (wl_flag("list")) {
		for (int i = 0; i < THINGS; i++)
			puts(things[i].name);
		return 0;
	}
	wl_init(argc, argv);
	signal(SIGTRAP, SIG_DFL);
	set_up(wl_opt_str("what", "nothing"));
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		wl_sleep_us(10000);
	}
	if (kid > 0)
		kill(kid, SIGKILL);
	if (queue_name[0])
		mq_unlink(queue_name);
	if (ipc_id >= 0 && semctl(ipc_id, 0, IPC_RMID))
		msgctl(ipc_id, IPC_RMID, NULL);
	wl_done();
}
