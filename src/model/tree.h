/* The process tree as plain data: everything an image says except the pages.
 *
 * A tree is filled by the capture half of the resources, crosses the wire (wire/tree_codec), and is
 * read by the rebuild half. It holds no descriptor and makes no system call. All of it lives in one
 * arena: tree_free() frees everything. Arrays are (pointer, n). Pids are as the host's pid
 * namespace shows them. A uint64_t named *_va is an address in the task. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/arena.h"
#include "base/devaddr.h"

enum { TREE_NSIG = 64 };

/* ---- memory ---- */

enum vma_kind {
	VMA_ANON = 1,     /* private anonymous, heap and stack included */
	VMA_SHARED_OBJ,   /* shared anonymous or memfd: contents in a shared object */
	VMA_FILE_PRIVATE, /* private mapping of a file (or of a memfd: then object is set) */
	VMA_FILE_SHARED,  /* shared mapping of a regular file: contents in the file */
	VMA_VDSO,         /* vdso and its data pages: mapped by the kernel, never copied */
	VMA_VSYSCALL,
};

enum vma_flag {                            /* from the VmFlags line of smaps, proc_pid_smaps(5) */
		VMA_F_GROWSDOWN = 1 << 0,  /* gd */
		VMA_F_DONTFORK = 1 << 1,   /* dc */
		VMA_F_DONTDUMP = 1 << 2,   /* dd */
		VMA_F_HUGEPAGE = 1 << 3,   /* hg */
		VMA_F_NOHUGEPAGE = 1 << 4, /* nh */
		VMA_F_MERGEABLE = 1 << 5,  /* mg */
		VMA_F_NORESERVE = 1 << 6,  /* nr */
		VMA_F_WIPEONFORK = 1 << 7, /* wf */
		VMA_F_SEQ = 1 << 8,        /* sr */
		VMA_F_RAND = 1 << 9,       /* rr */
		VMA_F_LOCKED = 1 << 10,    /* lo */
		VMA_F_GUARD = 1 << 11,     /* gu: may hold guard pages, 6.14+ */
};

struct vma {
	uint64_t start, end, offset; /* bytes; page aligned */
	uint32_t prot;               /* PROT_READ|WRITE|EXEC */
	enum vma_kind kind;
	uint32_t flags;   /* enum vma_flag */
	uint32_t file;    /* index into tree.mapped_files, for FILE_*; UINT32_MAX if none */
	uint32_t object;  /* index into tree.objects, for SHARED_OBJ; UINT32_MAX if none */
	const char *name; /* [heap], [stack], [anon:…] name without brackets' "anon:" prefix kept,
			     or NULL */
	uint64_t ino;     /* identity as seen at the source, for telling remaps apart */
	uint64_t dev;
	/* ANON: of huge pages, hugetlbpage.rst; 0: ordinary ones. How many of them are there, and
	 * how many of those no other process has, when the mapping was first seen; and whether they
	 * may stay behind at the source. */
	uint64_t page_bytes, huge_there, huge_own;
	bool huge_stays;
};

struct mapped_file { /* a regular file that is mapped or is an executable */
	const char *path;
	uint64_t size, ino, mtime_ns;
	uint64_t dev;    /* as maps shows it, for telling mappings apart; 0 of an executable */
	uint64_t st_dev; /* as stat(2) does: some file systems show two */
	bool writable;   /* some shared mapping of it may be written: open read-write */
	bool carried;    /* the source brings it along: the destination does not have it */
	uint8_t build_id[20];
	uint8_t build_id_len; /* 0: not an ELF file with a note */
};

enum object_kind { OBJ_SHARED_ANON = 1, OBJ_MEMFD, OBJ_SYSV_SHM, OBJ_UNLINKED };

/* memory shared by several mappings, or by a mapping and a descriptor; or a file without a name */
struct shared_object {
	enum object_kind kind;
	const char *name;    /* memfd: name given to memfd_create; UNLINKED: the path that it had */
	uint64_t size;       /* bytes */
	uint32_t seals;      /* F_SEAL_* */
	uint64_t page_bytes; /* of huge pages, hugetlbpage.rst; 0: ordinary ones */
	uint64_t ino, dev;
	uint32_t uid, gid, mode; /* SYSV_SHM, UNLINKED: owner and permissions */
	bool in_memory;          /* UNLINKED: of a tmpfs, and no name leads to it any more */
	/* SYSV_SHM: shmget(2) */
	int32_t ipc_id, ipc_key;
	bool ipc_removed; /* IPC_RMID: goes with its last attachment */
	pid_t ipc_cpid;   /* who made it, at the source */
};

struct addr_range {
	uint64_t start, end; /* page aligned */
};

struct mm { /* one address space */
	struct vma *vmas;
	size_t n_vmas;
	struct addr_range *guards; /* MADV_GUARD_INSTALL, 6.13: ascending, disjoint */
	size_t n_guards;
	/* Pages with robust mutexes that threads hold, ascending: whoever exits with one has the
	 * kernel mark it, which then serves no page fault. Known where pages may be missing. */
	uint64_t *held;
	size_t n_held;
	uint64_t start_code, end_code, start_data, end_data, start_brk, brk, start_stack;
	uint64_t arg_start, arg_end, env_start, env_end;
	const uint8_t *auxv;
	size_t auxv_len;
	uint32_t exe_file;   /* index into tree.mapped_files; UINT32_MAX: see exe_object */
	uint32_t exe_object; /* a program that was removed: index into tree.objects plus 1; 0 */
	int dumpable;        /* PR_GET_DUMPABLE */
	bool thp_disable;
	uint64_t layout_digest; /* of maps and flags: equal means nothing to do; 0: not known */
};

/* ---- threads ---- */

struct siginfo_rec { /* one queued signal, as the kernel hands it out: 128 bytes of siginfo_t */
	uint8_t info[128];
};

struct thread {
	pid_t tid;
	char comm[16];
	/* registers: NT_PRSTATUS (user_regs_struct, 27 u64) and NT_X86_XSTATE, as ptrace gives
	 * them; already mended for an interrupted system call. Filled at the final stop only. */
	const uint8_t *gpregs;
	size_t gpregs_len;
	const uint8_t *xstate;
	size_t xstate_len;
	uint64_t sigmask;
	struct siginfo_rec *pending;
	size_t n_pending;
	uint64_t altstack_sp, altstack_size;
	int32_t altstack_flags;
	uint64_t clear_tid_va;
	uint64_t robust_list_va, robust_list_len;
	uint64_t rseq_va;
	uint32_t rseq_len, rseq_sig, rseq_flags;
	int sched_policy, sched_prio, nice;
	uint64_t sched_runtime, sched_deadline, sched_period; /* SCHED_DEADLINE: refused */
	uint32_t sched_flags;
	const uint8_t *affinity; /* cpu mask bytes; none: not restricted */
	size_t affinity_len;
	int pdeathsig;
	uint64_t timer_slack_ns;
	uint32_t io_prio;
	bool no_new_privs;
	uint32_t seccomp_mode;     /* SECCOMP_MODE_*, seccomp(2) */
	uint32_t *seccomp_filters; /* indexes into tree.seccomp, the oldest first; read at stops */
	size_t n_seccomp_filters;
};

struct seccomp_filter {
	const uint8_t *insns; /* struct sock_filter, 8 bytes each */
	size_t insns_len;
	uint32_t flags; /* SECCOMP_FILTER_FLAG_LOG */
};

/* ---- per-process attributes ---- */

struct sigaction_rec { /* kernel's struct sigaction, rt_sigaction(2) */
	uint64_t handler, flags, restorer, mask;
};

struct creds {
	uint32_t uid, euid, suid, fsuid, gid, egid, sgid, fsgid;
	uint32_t *groups;
	size_t n_groups;
	uint64_t cap_inh, cap_prm, cap_eff, cap_bnd, cap_amb;
	uint32_t securebits;
};

struct rlimit_rec {
	uint64_t cur, max;
};

struct itimer_rec {                     /* ITIMER_REAL, VIRTUAL, PROF: microseconds */
	uint64_t interval_us, value_us; /* remaining at tree.clock_monotonic_ns; 0: disarmed */
};

struct posix_timer_rec { /* timer_create(2); remaining time at tree.clock_monotonic_ns */
	int32_t id;
	int32_t clockid;
	int32_t notify; /* SIGEV_* */
	int32_t signo;
	pid_t notify_tid;
	uint64_t sigval;
	uint64_t interval_ns, value_ns;
	int32_t overrun;
};

enum lock_kind { LOCK_FLOCK = 1, LOCK_OFD, LOCK_POSIX };

struct file_lock {
	int32_t fd; /* by which it is held; FLOCK, OFD: the description's, told once */
	enum lock_kind kind;
	bool write;
	uint64_t start, end; /* bytes, end included; UINT64_MAX: to the end */
};

struct fd_entry {
	int32_t fd;
	uint32_t file; /* index into tree.files */
	bool cloexec;
};

/* Those that stop a process by default, signal(7). */
static inline bool is_stop_signal(int sig)
{
	return sig == 19 || (sig >= 20 && sig <= 22); /* SIGSTOP; SIGTSTP, SIGTTIN, SIGTTOU */
}

struct process {
	pid_t pid, ppid, pgid, sid;
	bool zombie;         /* exited and not reaped: only pid, ids and exit_status are valid */
	int32_t exit_status; /* as wait(2) will report */
	uint32_t exit_signal;
	uint32_t stop_sig; /* in a group stop by this signal, until SIGCONT (signal(7)); 0: not */
	bool stop_told;    /* the parent has waited for that stop, wait(2) WUNTRACED */
	struct thread *threads; /* [0] is the leader */
	size_t n_threads;
	struct mm mm;
	struct sigaction_rec sigactions[TREE_NSIG]; /* [signo - 1] */
	struct siginfo_rec *pending;                /* process-directed */
	size_t n_pending;
	struct creds creds;
	struct rlimit_rec rlimits[16];
	struct itimer_rec itimers[3];
	struct posix_timer_rec *timers;
	size_t n_timers;
	struct fd_entry *fds;
	size_t n_fds;
	struct file_lock *locks;
	size_t n_locks;
	const char *cwd, *root;
	bool cwd_carried; /* the source has it made, as file.carried */
	uint32_t umask;
	int32_t oom_score_adj;
	uint32_t coredump_bits; /* coredump_filter, core(5), exclusive-or 0x33, the default */
	bool child_subreaper;
	uint32_t personality;
	uint32_t ctty; /* its controlling terminal: number plus 1; 0: none that moves */
};

/* ---- open file descriptions ---- */

enum file_kind {
	FILE_REGULAR = 1, /* and directories */
	FILE_CHARDEV,
	FILE_PIPE,
	FILE_EVENTFD,
	FILE_EPOLL,
	FILE_TIMERFD,
	FILE_SIGNALFD,
	FILE_MEMFD,
	FILE_TCP_LISTEN,
	FILE_UNIX_LISTEN,
	FILE_TCP_CLOSED, /* was connected; data: what was not read yet */
	FILE_TCP_IDLE,   /* neither listening nor connected, perhaps bound */
	FILE_UNIX_CONN,  /* does not listen: an end of a connection or pair, or not connected */
	FILE_UDP,
	FILE_UNLINKED, /* a regular file that was removed while it is open */
	FILE_TCP_CONN, /* connected, or on the way there or back: goes on at the destination */
	FILE_PTY_MASTER,
	FILE_PTY_SLAVE,
	FILE_TTY,     /* /dev/tty: the controlling terminal of who opened it */
	FILE_PIDFD,   /* file_pidfd.c */
	FILE_INOTIFY, /* opts: its watches, file_inotify.c */
};

static inline bool file_is_terminal(enum file_kind k)
{
	return k == FILE_PTY_MASTER || k == FILE_PTY_SLAVE || k == FILE_TTY;
}

struct epoll_target {
	int32_t fd;    /* number under which the target was added */
	uint32_t file; /* index into tree.files */
	uint32_t events;
	uint64_t data;
};

struct sockopt_rec {
	int32_t level, name;
	const uint8_t *value;
	uint32_t len;
};

/* A connection while nothing reaches it and nothing leaves it: what TCP_REPAIR tells
 * (resource/tcp_*.c).
 */
enum tcp_end {                /* how a connection has ended: */
	       TCP_END_RESET, /* ECONNRESET waits; also one that the move closes */
	       TCP_END_CLEAN, /* no error waits */
	       TCP_END_REFUSED,
};

struct tcp_conn {
	uint32_t state;   /* TCP_ESTABLISHED … */
	uint32_t options; /* TCPI_OPT_*, tcp(7): as negotiated */
	uint32_t snd_wscale, rcv_wscale, mss;
	uint32_t rcv_seq, snd_seq; /* of the first byte of each queue */
	uint32_t unsent;           /* that many bytes at the end of out were never sent */
	uint32_t timestamp;        /* our clock for RFC 7323 … */
	uint64_t timestamp_ns;     /* … at this reading of the tasks' CLOCK_MONOTONIC */
	bool has_window;           /* struct tcp_repair_window: */
	uint32_t snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup;
	uint32_t sndbuf, rcvbuf, buf_lock; /* as getsockopt(2) tells them */
	const uint8_t *in, *out;           /* not read yet; not acknowledged yet */
	size_t in_len, out_len;
	bool has_urgent;    /* one of in is urgent … */
	uint32_t urgent_at; /* … this one … */
	bool urgent_read;   /* … and was read out of band */
	bool read_shut;     /* shutdown(2) with SHUT_RD; not by the peer's end */
};

struct datagram {            /* that waits to be read */
	const uint8_t *from; /* struct sockaddr_in or in6 */
	uint32_t from_len;
	uint8_t to[16]; /* address, IPv4 as a mapped one; all zero: not known */
	uint32_t ttl, tos;
	const uint8_t *data;
	size_t len;
};

struct unix_message { /* that waits in a unix socket; of a stream, bytes that came together */
	const uint8_t *data;
	size_t len;
	bool has_cred; /* SCM_CREDENTIALS, unix(7): */
	int32_t cred_pid;
	uint32_t cred_uid, cred_gid;
	uint32_t *files; /* SCM_RIGHTS: indexes into tree.files */
	size_t n_files;
	const uint8_t *from; /* datagram: the name of who sent it, struct sockaddr_un; none: 0 */
	uint32_t from_len;
};

struct membership { /* of a socket in a multicast group */
	char dev[16];
	int family;
	uint8_t group[16];
	bool include; /* only from these sources; else from all but these */
	const uint8_t (*sources)[16];
	size_t n_sources;
};

struct file { /* one open file description: what dup and fork share */
	enum file_kind kind;
	uint32_t flags; /* F_GETFL, with O_PATH, O_DIRECT etc. */
	uint64_t pos;
	int32_t owner_type, owner_pid, owner_sig; /* F_GETOWN_EX, F_GETSIG */
	/* REGULAR, CHARDEV, UNIX_LISTEN */
	const char *path;
	uint64_t size, ino, dev, mtime_ns, rdev;
	uint32_t mode;
	/* REGULAR: the source brings it along. PIPE, UNIX_*: the directory of its name */
	bool carried;
	uint32_t tty; /* PTY_*, TTY: the terminal's number */
	/* PIPE: both ends carry the pipe's inode; the contents travel with the first file of it */
	uint64_t pipe_ino;
	bool pipe_has_data; /* this entry carries data and capacity */
	const uint8_t *data;
	size_t data_len;
	uint32_t pipe_capacity; /* bytes */
	bool pipe_packet;       /* O_DIRECT pipe */
	/* a reading end of a named one that nobody has had open for writing since it was opened: it
	 * does not tell of a hang-up */
	bool pipe_unwritten;
	/* EVENTFD */
	uint64_t counter;
	bool semaphore;
	/* EPOLL */
	struct epoll_target *targets;
	size_t n_targets;
	/* TIMERFD: value_ns is the next expiry as a reading of clockid as the tasks see that clock
	 * (their clocks go on across the move, so it holds there too); 0: disarmed */
	int32_t clockid;
	uint32_t settime_flags; /* TFD_TIMER_* */
	uint64_t value_ns, interval_ns, ticks;
	/* SIGNALFD */
	uint64_t sigmask;
	/* MEMFD, UNLINKED */
	uint32_t object; /* index into tree.objects */
	/* TCP_*, UNIX_*, UDP */
	int32_t sock_family, sock_type, sock_protocol, backlog;
	const uint8_t *sockaddr;
	uint32_t sockaddr_len;
	struct sockopt_rec *opts;
	size_t n_opts;
	/* UDP */
	struct datagram *datagrams;
	size_t n_datagrams;
	struct membership *groups;
	size_t n_groups;
	uint64_t *filter; /* classic, attached by the program: resource/sock_filter.h */
	size_t n_filter;
	/* TCP_LISTEN, TCP_IDLE, UDP: of one of a group that a program chooses from:
	 * resource/reuseport.h
	 */
	uint32_t reuse_group, reuse_place; /* from 1 on, 0: none; from 0 on */
	uint64_t *reuse_code;              /* as filter */
	size_t n_reuse_code;
	bool filter_locked; /* SO_LOCK_FILTER; also if there is none */
	/* its filter is an eBPF program: resource/sock_program.h */
	uint64_t *program; /* struct bpf_insn each */
	size_t n_program;
	const char *program_name;
	bool program_gpl;
	uint32_t program_id; /* at the source, as long as the socket has it; not sent */
	uint32_t uid, gid;   /* owner: of the socket (TCP_*), of the path's inode (UNIX_LISTEN) */
	/* UNIX_CONN, TCP_CONN */
	uint32_t waits_at; /* index of the listener that has not accepted it (TCP: its other end);
			    * UINT32_MAX: none. UNIX_CONN: at stops only */
	/* UNIX_CONN */
	struct unix_message *messages; /* wait to be read; at stops only */
	size_t n_messages;
	uint32_t peer; /* index into tree.files; UINT32_MAX: none, or closed. Datagrams: to which it
			* is connected, which need not be connected to this one */
	uint64_t peer_ino;           /* the peer's; 0: there is none */
	bool connected;              /* has, or had, a peer */
	uint32_t sock_shutdown;      /* bit 0: for reading, bit 1: for writing */
	int32_t sock_error;          /* errno that the next call is to be told */
	uint64_t name_ino, name_dev; /* UNIX_*: of the path that it is bound to */
	bool bound;                  /* its name is its own; an accepted end has its listener's */
	uint32_t waits_nth;          /* its place among those that wait there */
	/* TCP_CONN; UDP, connected; UNIX_CONN, datagrams, connected */
	const uint8_t *peeraddr;
	uint32_t peeraddr_len;
	/* TCP_CONN */
	struct tcp_conn *tcp; /* NULL until the final stop */
	enum tcp_end tcp_end; /* TCP_CLOSED */
	/* UNIX_LISTEN: what a client reads by SO_PEERCRED; UNIX_CONN: what is read here */
	int32_t cred_pid;
	uint32_t cred_uid, cred_gid;
};

/* Connections that nobody has accepted: files of kind TCP_CONN that have their state and belong to
 * no process, and of kind UNIX_CONN with what waits in them. */
struct waiting {
	struct file *list;
	size_t n;
	/* And those that their program has closed, while their peer has not acknowledged
	 * everything: TCP_CONN, in FIN_WAIT1, CLOSING or LAST_ACK. */
	struct file *closed;
	size_t n_closed;
};

/* ---- terminals ---- */

enum { TTY_TERMIOS_BYTES = 44 };

/* A pseudoterminal whose master is in the tree. */
struct tty {
	uint32_t number;         /* /dev/pts/… */
	uint32_t uid, gid, mode; /* of that */
	bool locked, packet, exclusive;
	bool opened;     /* somebody has, or had, opened the slave … */
	bool closed;     /* … and nobody has any more */
	bool stopped;    /* output, as by ^S */
	pid_t sid, pgrp; /* whose controlling terminal it is; the foreground group; 0: none */
	uint8_t termios[TTY_TERMIOS_BYTES]; /* struct termios2 */
	uint32_t rows, cols, xpixel, ypixel;
	/* What waits, final stop only. Input to be read from the slave: of each line its length,
	 * times 2, plus 1 if it was ended by the EOF character; what is left over is no whole line.
	 */
	const uint8_t *input, *output;
	size_t input_len, output_len;
	uint32_t *lines;
	size_t n_lines;
};

/* ---- System V semaphores and message queues ---- */

enum sysv_kind { SYSV_SHM, SYSV_SEM, SYSV_MSG };

struct sysv_message {
	int64_t type;
	const uint8_t *data;
	size_t len;
};

struct sysv_undo { /* SEM_UNDO, semop(2): at the end of pid sem is changed by that much */
	int32_t pid;
	uint32_t sem;
	int32_t by;
};

struct sysv_set {            /* semget(2), msgget(2) */
	enum sysv_kind kind; /* SEM or MSG */
	int32_t id, key;
	uint32_t uid, gid, mode;
	/* SEM: of each its value, and who did something with it last */
	uint32_t *values;
	int32_t *pids;
	size_t n;
	struct sysv_undo *undo;
	size_t n_undo;
	/* MSG */
	struct sysv_message *messages;
	size_t n_messages;
	uint64_t max_bytes;
	int32_t sender, receiver; /* the last ones */
};

/* ---- the whole ---- */

struct tree {
	struct arena *arena;
	pid_t root_pid;
	struct process *procs; /* parents before children */
	size_t n_procs;
	struct file *files;
	size_t n_files;
	struct mapped_file *mapped_files;
	size_t n_mapped_files;
	struct shared_object *objects;
	size_t n_objects;
	struct seccomp_filter *seccomp; /* each once */
	size_t n_seccomp;
	struct tty *ttys;
	size_t n_ttys;
	struct sysv_set *sets;
	size_t n_sets;
	struct devaddr *moved; /* addresses that move along */
	size_t n_moved;
	bool switched;      /* other addresses of connections are moved by somebody else */
	uint64_t xfeatures; /* union of the xsave components that the tasks use or may use */
	uint64_t xcr0;      /* the source CPU's enabled features */
	uint8_t vdso_digest[16];
	uint64_t clock_monotonic_ns, clock_boottime_ns; /* as the tasks read them, at capture */
	/* the tasks' clocks less those of the source's agent: of a time namespace of their own */
	int64_t task_monotonic_offset_ns, task_boottime_offset_ns;
	char kernel_release[65];
	char hostname[65];
	char boot_id[37]; /* /proc/sys/kernel/random/boot_id: equal means one kernel, so (dev, ino)
			   * are comparable; "": not known */
};

struct tree *tree_new(void);
void tree_free(struct tree *t); /* takes NULL */

/* NULL when absent. */
struct process *tree_find_process(const struct tree *t, pid_t pid);
size_t tree_count_threads(const struct tree *t);
struct tty *tree_find_tty(const struct tree *t, uint32_t number);
struct thread *process_find_thread(const struct process *p, pid_t tid);
