/* What the files of src/resource/ that deal with open file descriptions share: the operations of a
 * kind, what capture shows them (struct fd_probe) and what rebuild keeps (struct fileset).
 *
 * Adding a kind: a value in enum file_kind (model/tree.h), one file with a struct file_ops, one
 * line in registry.c. Its static properties go into fields that file_identity_cmp() compares. */
#pragma once
#include <sys/stat.h>
#include "base/vec.h"
#include "kernel/pendview.h"
#include "kernel/sockview.h"
#include "kernel/tcp_diag.h"
#include "resource/multicast.h"
#include "resource/resource.h"

/* ---- capture ---- */

/* Head of /proc/PID/fdinfo/N, proc_pid_fdinfo(5). ino: 5.14. */
struct fdinfo {
	uint64_t pos, ino;
	uint32_t flags; /* as F_GETFL, and O_CLOEXEC */
	int32_t mnt_id;
	bool locked; /* a lock or lease hangs on this description */
};

/* *ret_rest (may be NULL): the first line after the head, in text. */
int fdinfo_parse(const char *text, struct fdinfo *out, const char **ret_rest,
		 struct cr_err *err) must_check;
/* Value of the line "key:", leading blanks skipped; NULL if there is none. */
const char *fdinfo_field(const char *text, const char *key);
/* A number of that line; false if there is none. base as in strtoull(3). */
bool fdinfo_u64(const char *text, const char *key, int base, uint64_t *ret);
/* Whole text of DIRFD/NAME, appended to *buf (NUL-terminated), *ret_off: where it starts. */
struct text_buf {
	char *v;
	size_t n, cap;
};
void text_buf_done(struct text_buf *b);
int text_append_file(struct text_buf *b, int dirfd, const char *name, size_t *ret_off);

/* One open file description as its kind's capture sees it, through its first descriptor. */
struct fd_probe {
	pid_t pid;
	int fd;      /* in pid */
	int local;   /* our duplicate of it */
	uint32_t id; /* index into files_ctx.seen of that first descriptor */
	struct fdinfo info;
	const char *text; /* all of fdinfo, or NULL where there is no more than the head */
	struct stat st;
	uint32_t fs_magic;    /* statfs(2) */
	const char *link;     /* readlink of /proc/…/fd/N; "" for pipes and sockets */
	bool link_leads_here; /* link is a path, and was seen to lead to this very inode */
	/* sockets */
	int so_domain, so_type, so_protocol;
	bool so_listening;
	int tcp_state; /* TCP_ESTABLISHED…; 0 if it is no TCP socket */
	/* a TCP connection, as it is listed. Ahead, that is all there is: local is -1 */
	const struct tcp_diag_entry *diag;
	/* one that BPF has told all of: local is -1, too */
	const struct sock_facts *facts;
};

struct fd_seen {       /* one descriptor of one process */
	uint32_t proc; /* index into tree->procs */
	int fd;
	/* Or one that waits in a unix socket, proc's fd, to be received: then this is ours. */
	int in_flight; /* 0: it does not */
	struct fdinfo info;
	size_t text_off; /* in files_ctx.text, SIZE_MAX: none */
	uint64_t tag;    /* tells kinds, and eventfds, apart before kcmp(2) is asked */
	uint32_t leader; /* index of the first descriptor of the same description */
	uint32_t file;   /* index into tree->files; UINT32_MAX: left out */
	uint32_t told;   /* index into files_ctx.facts, plus 1; 0: it has to be asked */
};

struct fd_flight {      /* a descriptor that waits in a unix socket, SCM_RIGHTS */
	int fd;         /* a duplicate of ours */
	uint32_t file;  /* the socket: index into tree->files */
	uint32_t *slot; /* where the index of its description goes */
};

enum watch_kind { WATCH_REFUSE, WATCH_WARN };

/* Something that nobody outside the tree may hold a descriptor of. */
struct fd_watch {
	uint64_t dev, ino;
	uint64_t eventfd_id; /* 0: identified by (dev, ino) */
	uint32_t pty;        /* of a master: its number plus 1, beside (dev, ino) */
	uint32_t file;
	enum watch_kind kind;
};

struct fs_magic {
	uint64_t dev;
	uint32_t magic;
};

struct reference_socket { /* what the options of such a one read if nobody has set them */
	int domain, type, protocol;
	struct sockopt_defaults *defaults;
};

struct sockopt_job { /* the options of a socket, which are read beside those of others */
	struct fd_probe p;
	uint32_t file;
	const struct sockopt_defaults *d;
	struct sockopt_found *found;
};

struct alike { /* a connection whose options are those of others */
	uint32_t facts, file;
};

struct files_ctx {
	struct capture *c;
	VEC(struct fd_seen) seen; /* processes in tree order, descriptors ascending */
	size_t *proc_first;       /* per process: index of its first in seen; n_procs + 1 entries */
	struct text_buf text;
	VEC(uint32_t) leaders; /* per tree->files entry: index into seen */
	VEC(struct fs_magic) magics;
	int self_fds; /* /proc/self/fd */
	VEC(struct reference_socket) references;
	VEC(struct fd_watch) watches;
	struct tcp_diag connections; /* listed after the descriptors; empty where exact … */
	bool connections_listed;     /* … but for those that are on the way there */
	struct tcp_diag listeners;   /* listed for the first one; empty where exact */
	bool listeners_listed;
	struct multicast_host multicast;
	struct pending_list pending; /* in the sockets of process pending_of; 0: of none */
	pid_t pending_of;
	unsigned int n_closed, n_closed_said; /* connections that the move closes */
	VEC(struct fd_flight) flights;
	bool much_waits; /* ahead: there are messages that only a stop lets us look at */
	VEC(struct sockopt_job) options; /* to be read: sockopts_capture_later() */
	struct sock_facts_list facts;    /* at the stop, of processes with many files */
	VEC(struct alike) alike;         /* to be read: sockopts_read_alike() */
	VEC(uint32_t) undecided; /* connections that go on if their other end is in the tree */
};

/* "fd 7 of pid (comm): <why>" into the list of refusals or of warnings. */
void files_refuse(struct files_ctx *x, pid_t pid, int fd, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void files_warn(struct files_ctx *x, pid_t pid, int fd, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* The first descriptor of tree->files[file]. */
const struct fd_seen *files_holder(const struct files_ctx *x, uint32_t file);
pid_t files_holder_pid(const struct files_ctx *x, uint32_t file);
/* Process proc's descriptor fd; NULL if it has none. */
const struct fd_seen *files_seen(const struct files_ctx *x, uint32_t proc, int fd);
/* files_flight.c. fd, taken over in any case, waits in tree->files[file] to be received. *slot gets
 * the index of what it is once all descriptors are known (files_capture_flights). */
int files_in_flight(struct files_ctx *x, int fd, uint32_t file, uint32_t *slot,
		    struct cr_err *err) must_check;
int files_capture_flights(struct files_ctx *x, struct cr_err *err) must_check;
/* tree->files[i] for which our fd is another descriptor; UINT32_MAX: none. */
uint32_t files_find_description(const struct files_ctx *x, int fd);
/* files_list.c: all descriptors of all processes; then, which are the same; and one more, by its
 * fdinfo in dirfd/name. */
int files_list(struct files_ctx *x, struct cr_err *err) must_check;
int files_find_leaders(struct files_ctx *x, struct cr_err *err) must_check;
int files_see(struct files_ctx *x, uint32_t proc, int dirfd, const char *name,
	      struct cr_err *err) must_check;
/* files.c: what the descriptor seen is. */
int files_capture_description(struct files_ctx *x, uint32_t id, struct cr_err *err) must_check;
int files_watch(struct files_ctx *x, const struct fd_watch *w, struct cr_err *err) must_check;
/* A duplicate of that one: negative, errno set. */
int files_dup(const struct files_ctx *x, const struct fd_seen *s);
/* A duplicate of tree->files[file], for the caller to close. */
int files_getfd(struct files_ctx *x, uint32_t file, struct cr_err *err) must_check;
/* A TCP connection as sock_diag(7) lists it; NULL: not listed. */
const struct tcp_diag_entry *files_connection(struct files_ctx *x, const struct fd_probe *p);
/* 0: same description; 1, 2: an order among them; negative errno. kcmp(2) KCMP_FILE. */
/* What waits in that socket, which is a unix or IP socket. NULL: nobody tells. Until the next call.
 */
const struct pending *files_pending(struct files_ctx *x, const struct fd_probe *p);
/* What the previous capture found under that number of that process; NULL if nothing. */
const struct file *files_before(const struct files_ctx *x, const struct fd_probe *p);
/* Does that path lead to the inode that st shows? */
bool files_path_leads_to(const char *path, const struct stat *st);
int files_kcmp(pid_t a, int fda, pid_t b, int fdb);
/* true if pid is a process or thread (or group, if group is set) of the tree. */
bool files_pid_in_tree(const struct tree *t, pid_t pid, bool group);

/* files_scan.c: refuse (warn about) watched things that tasks outside the tree hold as well. */
int files_scan_outside(struct files_ctx *x, struct cr_err *err) must_check;
/* resource/inside.h */
bool files_is_inside(const struct files_ctx *x, pid_t pid);
bool files_is_open(const struct stat *st);
/* True if a task of the tree, or a new child of it, holds an end of pipe f for writing (reading).
 */
bool files_pipe_end_inside(struct files_ctx *x, const struct file *f, bool writing);
/* files_proc.c: cwd, root, umask, namespaces, shared tables. */
int files_capture_places(struct files_ctx *x, struct cr_err *err) must_check;

/* ttys.c */
int ttys_master(const struct ttys *y, uint32_t number); /* -1: there is none */

/* locks.c: what the tasks hold, into the processes of the tree. */
int locks_capture(struct files_ctx *x, struct cr_err *err) must_check;
/* Does that text of /proc/PID/fdinfo speak of a lease? */
bool locks_is_leased(const char *text);

/* file_tcp.c: a connection that the move closes, or that is refused for being one. */
int tcp_closed_capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		       struct cr_err *err) must_check;
/* How the connection of which fd is a duplicate has ended, and what is left of it to be read. Any
 * state in which nothing comes any more. */
int tcp_ended_capture(struct files_ctx *x, int fd, struct file *f, struct cr_err *err) must_check;
/* What of *f is of any TCP socket. */
void tcp_capture_common(const struct fd_probe *p, struct file *f, enum file_kind kind);
bool tcp_is_socket(const struct fd_probe *p);
/* Does it authenticate its segments (TCP-AO, RFC 5925)? */
bool tcp_has_ao_keys(int fd);
/* Does that address move along? */
bool tree_moves_address(const struct tree *t, const void *sockaddr, size_t len);

/* file_sockopt.c: options that differ from those of a fresh socket. Of a listener that the previous
 * capture had, they are not read again at the stop. */
int sockopts_capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		     struct cr_err *err) must_check;
/* The same of the file that is being captured, not at once, but for many sockets side by side.
 * Keeps p->local, which the caller does not close any more. file: in the tree. sockopts_read() ends
 * it. */
int sockopts_capture_later(struct files_ctx *x, const struct fd_probe *p, uint32_t file,
			   struct cr_err *err) must_check;
enum { SOCKOPTS_AT_ONCE = 1024 }; /* descriptors that are kept open for that */
int sockopts_read(struct files_ctx *x, struct cr_err *err) must_check;
/* sockopt_alike.c: the same, where p->facts tell; sockopts_read_alike() ends it. */
int sockopts_capture_alike(struct files_ctx *x, const struct fd_probe *p,
			   struct cr_err *err) must_check;
int sockopts_read_alike(struct files_ctx *x, struct cr_err *err) must_check;
void sockopts_done(struct files_ctx *x);
bool sockopts_keep(const struct files_ctx *x, int fd);
/* IP_MULTICAST_IF, which chose that interface: for sockopts_capture() to have been called for f. */
int sockopts_add_multicast_if(struct files_ctx *x, struct file *f, uint32_t index,
			      struct cr_err *err) must_check;
/* Set them. Returns -errno and names the option in err. */
int sockopts_apply(int fd, const struct file *f, struct cr_err *err) must_check;
/* Of a connection, what has to wait until it is launched. */
int sockopts_apply_late(int fd, const struct file *f, struct cr_err *err) must_check;
/* Of a UDP socket: our lock goes, and what its program had as a filter is in its place. */
int sockopts_unlock(int fd, const struct file *f, struct cr_err *err) must_check;
/* Of an IP socket that is not connected, last, when no lock of ours is on it any more: its filter
 * is locked, if it was. May be repeated. */
int sockopts_lock_filter(int fd, const struct file *f, struct cr_err *err) must_check;
/* 0: the same options with the same values; else an order. */
int sockopts_cmp(const struct file *a, const struct file *b);
/* A recorded option as int; missing if it is not recorded. */
int sockopt_int(const struct file *f, int level, int name, int missing);
/* sockaddr_text.c: "10.77.0.3:4711", "[::1]:80", "@abstract", "/path": for messages. Returns buf.
 */
const char *sockaddr_text(const void *sa, size_t len, char *buf, size_t size);

/* ---- destination preflight ---- */

struct file_check {
	const struct tree *t;
	struct refusals *refused;
	/* who to name: the first descriptor of the file being checked */
	const struct process *p;
	int fd;
	bool same_kernel, same_kernel_known; /* (dev, ino) mean the same here */
};
void file_check_refuse(const struct file_check *k, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void file_check_warn(const struct file_check *k, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- rebuild ---- */

struct epoll_item { /* as it is, or has to be, in the kernel */
	int32_t tfd;
	uint32_t serial; /* of the target's description */
	uint32_t events;
	uint64_t data;
	enum { ITEM_DONE, ITEM_ADD, ITEM_MOD } todo;
};
struct epoll_items {
	VEC(struct epoll_item) list; /* sorted by (tfd, serial) */
};

struct pipe_end {
	uint64_t dev, ino;
	uint32_t file;
};

/* One description that we hold. Same index as in tree->files. */
struct held {
	int fd;          /* ours; -1: not built */
	uint32_t serial; /* never used twice in a fileset */
	struct file
	    id; /* the identity that it was built with; id.path, id.sockaddr are our copies */
	uint32_t flags_set; /* F_GETFL of it */
	uint64_t pos_set;
	uint64_t counter_set; /* EVENTFD: counter; SIGNALFD: mask */
	bool same_file;       /* REGULAR: the very file, not a copy of it */
	bool async_set;       /* O_ASYNC: done, in a task */
	bool listening;       /* UNIX_LISTEN: done, in a task; UNIX_CONN: waits at a listener */
	bool launched;        /* fileset_launch did it: the task's own from then on */
	struct epoll_items items;
	uint32_t capacity_set; /* PIPE */
	bool unwritten;        /* PIPE: as built */
	bool filled;           /* PIPE, UNIX_CONN: settle wrote into it */
	int peer_fd;           /* UNIX_CONN: the other end, until all is prepared; else -1 */
	char *reserved_dir;    /* UNIX_LISTEN: directory that holds the socket until launch */
	char *reserved_path;   /* UNIX_LISTEN: the socket in it */
	bool reserved_stays;   /* UNIX_LISTEN: somebody else may have to finish what fileset_launch
				  does */
};

struct fd_installed { /* a descriptor as it is in a shell */
	int32_t fd;
	uint32_t serial;
	bool cloexec;
};

struct proc_installed {
	pid_t pid;
	VEC(struct fd_installed) fds; /* ascending */
	char *cwd;
	uint32_t umask;
};

struct fileset {
	struct held *held;
	size_t n_held;
	uint32_t next_serial;
	VEC(struct proc_installed) procs;
	bool same_kernel, same_kernel_known;
	int64_t monotonic_off_ns, boottime_off_ns; /* shells' clocks minus ours */
	const int *object_fds;                     /* during fileset_build */
	struct fileset_tasks tasks;
	struct ttys *ttys;          /* the caller's */
	struct pipe_end *pipe_ends; /* during fileset_build */
	size_t n_pipe_ends;
	const struct net_ways *ways; /* for what comes for addresses that move; NULL: none */
	int reset_listener; /* during fileset_build: where connections that get reset are made */
};

/* One kind. NULL: nothing to do. The order of registration is the order in which match is asked. */
struct file_ops {
	const char *name;
	enum file_kind kind;
	bool (*match)(const struct fd_probe *p);
	/* Fill what is the kind's own in *f (kind, flags, pos, ino, dev, mode, owner are set). A
	 * refusal is no error: refuse, set f->kind to 0, return 0. */
	int (*capture)(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		       struct cr_err *err);
	/* Once per capture, when all descriptions are known: what refers to other descriptions. */
	int (*link)(struct files_ctx *x, struct cr_err *err);
	void (*check)(const struct file_check *k, const struct file *f);
	/* Make fs->held[i].fd. May make those of siblings as well. */
	int (*build)(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err);
	/* After build and at the stop, as often as it is called: the volatile state. */
	int (*settle)(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err);
	int (*prepare)(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err);
	int (*launch)(struct fileset *fs, const struct tree *t, uint32_t i, struct cr_err *err);
	/* settle and launch of this one touch nothing else: those of many are called side by side,
	 * before the others'. NULL: of none. */
	bool (*apart)(const struct file *f);
	/* Until called with on false: poll(2) finds something to read. What it changes, settle sets
	 * right. False: failed. */
	bool (*make_ready)(struct held *h, bool on);
	/* Before fs->held[i].fd is closed. */
	void (*drop)(struct held *h);
};

/* Of one that waits to be received, and that nobody has; if it may not, that is refused. */
bool files_may_fly(struct files_ctx *x, const struct fd_probe *p, const struct file_ops *ops);

const struct file_ops *file_ops_match(const struct fd_probe *p);
const struct file_ops *file_ops_of(enum file_kind kind); /* NULL if unknown */
/* All, NULL-terminated. */
const struct file_ops *const *file_ops_all(void);

/* Orders by all static properties: 0 means that a description built for a will do for b. */
int file_identity_cmp(const struct file *a, const struct file *b);

/* Access mode and creation flags that open(2) may be given from a tree. */
uint32_t file_open_flags(const struct file *f);

/* A one-shot entry that has fired, epoll_ctl(2). */
bool epoll_is_disarmed(uint32_t events);
/* A shell whose table is being changed: which of its numbers are in use, so that the number that a
 * new descriptor gets, the lowest free one, is known before the call is run. */
struct shell_fds {
	struct fileset *fs;
	struct rtask *rt;
	const struct tree *t;
	const struct process *p;
	int slot; /* of the agent's pidfd */
	bool *used;
	int n_used; /* entries of used[] */
	int low;    /* no free number below */
};
/* Queues fetching our descriptor. Returns the number that it will have; the caller queues a call on
 * that number with a name, so that a wrong guess is an error, and closes it or calls shell_use().
 */
int shell_fetch(struct shell_fds *sh, int ours);
int shell_lowest(struct shell_fds *sh);
void shell_use(struct shell_fds *sh, int number, bool used);
/* p's entry of that number; NULL if none. */
const struct fd_entry *process_fd(const struct process *p, int fd);
/* The lowest number under which p has the file; -1: none. */
int process_fd_of(const struct process *p, uint32_t file);

/* fileset_epoll.c. plan: after build, what has to be done to which instance. install: what is for
 * this process to do. */
int fileset_epoll_plan(struct fileset *fs, const struct tree *t, struct cr_err *err) must_check;
int fileset_epoll_install(struct shell_fds *sh, struct cr_err *err) must_check;
/* file_unix.c: listen(2) where the process is the one to do it. */
int fileset_unix_install(struct shell_fds *sh, struct cr_err *err) must_check;
/* reserve.c. dir: sets h->reserved_dir, and reserved_path, which the caller makes. check: says if
 * that cannot be done. */
int reserve_dir(struct held *h, const char *path, struct cr_err *err) must_check;
void reserve_remove(const char *dir);
void reserve_drop(struct held *h);
int reserve_launch(struct held *h, const struct file *f, struct cr_err *err) must_check;
bool reserve_check(const struct file_check *k, const struct file *f, const char *what);

/* Scratch memory holding a copy of p; runs what is queued when the area is full. */
int rtask_put(struct rtask *rt, const void *p, size_t bytes, uint64_t *ret_va,
	      struct cr_err *err) must_check;

/* task_as.c: queue a call, with up to four arguments, that runs under these effective ids, for what
 * the kernel notes of who made it. May run what was queued before. The caller runs the batch. */
int rtask_queue_as(struct rtask *rt, uint32_t uid, uint32_t gid, const char *what, long nr,
		   const uint64_t args[4], struct cr_err *err) must_check;

/* A description of ours opened once more, independently, through /proc/self/fd. */
int fd_reopen(int fd, int flags);
