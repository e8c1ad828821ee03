/* System V semaphores and message queues: a parent and its child take turns by a semaphore each and
 * send each other numbered messages of every length; a set and a queue that nobody touches
 * meanwhile, with values and messages in them; owners, modes, keys and ids as they were.
 *
 * --undo: with SEM_UNDO, which cannot move */
#include "workload.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>

enum { PING = 1, PONG, TEXT_MAX = 500, QUIET = 5 };

struct packet {
	long type;
	uint64_t number;
	uint8_t text[TEXT_MAX];
};

static struct {
	int turns, quiet, queue, quiet_queue;
	key_t key;
	uint64_t number;
	pid_t child;
} f;

union semun {
	int val;
	struct semid_ds *buf;
	unsigned short *array;
};

static size_t text_len(uint64_t number)
{
	return number * 37 % TEXT_MAX;
}

static void change(unsigned short sem, short by)
{
	struct sembuf op = {sem, by, wl_flag("undo") ? SEM_UNDO : 0};

	while (semop(f.turns, &op, 1))
		wl_check(errno == EINTR, "semop: %s", strerror(errno));
}

static void say(int queue, long type, uint64_t number)
{
	struct packet p = {.type = type, .number = number};

	memset(p.text, (int)number, sizeof(p.text));
	while (msgsnd(queue, &p, sizeof(p.number) + text_len(number), 0))
		wl_check(errno == EINTR, "msgsnd: %s", strerror(errno));
}

static void hear(int queue, long type, uint64_t number)
{
	struct packet p = {0};
	ssize_t n;

	while ((n = msgrcv(queue, &p, sizeof(p) - sizeof(p.type), type, 0)) < 0)
		wl_check(errno == EINTR, "msgrcv: %s", strerror(errno));
	wl_same("number of a message", number, p.number);
	wl_same("length of a message", sizeof(p.number) + text_len(number), n);
	for (size_t i = 0; i < text_len(number); i++)
		wl_same("a byte of a message", (uint8_t)number, p.text[i]);
}

static void child_main(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (uint64_t n = 0;; n++) {
		change(1, -1);
		hear(f.queue, PING, n);
		say(f.queue, PONG, n);
		change(0, 1);
	}
}

static void set_up(void)
{
	unsigned short values[QUIET] = {3, 0, 32767, 1, 0};
	struct semid_ds ds;
	struct msqid_ds mds;

	f.key = 0x660000 + getpid();
	f.turns = semget(IPC_PRIVATE, 2, 0600);
	f.quiet = semget(f.key, QUIET, IPC_CREAT | IPC_EXCL | 0640);
	f.queue = msgget(IPC_PRIVATE, 0600);
	f.quiet_queue = msgget(f.key, IPC_CREAT | IPC_EXCL | 0620);
	wl_must(f.turns >= 0 && f.quiet >= 0 && f.queue >= 0 && f.quiet_queue >= 0,
		"semget and msgget");
	wl_must(!semctl(f.turns, 0, SETVAL, (union semun){.val = 0}), "SETVAL");
	wl_must(!semctl(f.quiet, 0, SETALL, (union semun){.array = values}), "SETALL");
	wl_must(!semctl(f.quiet, 0, IPC_STAT, (union semun){.buf = &ds}), "IPC_STAT");
	ds.sem_perm.uid = 4321;
	wl_must(!semctl(f.quiet, 0, IPC_SET, (union semun){.buf = &ds}), "IPC_SET");
	wl_must(!msgctl(f.quiet_queue, IPC_STAT, &mds), "IPC_STAT");
	mds.msg_perm.gid = 1234;
	mds.msg_qbytes = 12000;
	wl_must(!msgctl(f.quiet_queue, IPC_SET, &mds), "IPC_SET");
	for (uint64_t n = 0; n < 10; n++)
		say(f.quiet_queue, (long)(n % 3) + 1, n);
	f.child = fork();
	wl_must(f.child >= 0, "fork");
	if (!f.child)
		child_main();
}

static void turn(void)
{
	say(f.queue, PING, f.number);
	change(1, 1);
	change(0, -1);
	hear(f.queue, PONG, f.number++);
}

static void check_quiet(void)
{
	static const unsigned short want[QUIET] = {3, 0, 32767, 1, 0};
	unsigned short values[QUIET] = {0};
	struct semid_ds ds;
	struct msqid_ds mds;

	wl_must(!semctl(f.quiet, 0, GETALL, (union semun){.array = values}), "GETALL");
	for (int i = 0; i < QUIET; i++) {
		wl_same("value of a semaphore", want[i], values[i]);
		wl_same("who set it", getpid(), semctl(f.quiet, i, GETPID));
	}
	wl_must(!semctl(f.quiet, 0, IPC_STAT, (union semun){.buf = &ds}), "IPC_STAT");
	wl_check(ds.sem_perm.uid == 4321 && (ds.sem_perm.mode & 0777) == 0640 &&
		     ds.sem_perm.__key == f.key && semget(f.key, 0, 0) == f.quiet,
		 "set: owner %u, mode %o, key %x", ds.sem_perm.uid, ds.sem_perm.mode,
		 ds.sem_perm.__key);
	wl_must(!msgctl(f.quiet_queue, IPC_STAT, &mds), "IPC_STAT");
	wl_check(mds.msg_perm.gid == 1234 && (mds.msg_perm.mode & 0777) == 0620 &&
		     mds.msg_qbytes == 12000 && mds.msg_qnum == 10 && mds.msg_lspid == getpid() &&
		     msgget(f.key, 0) == f.quiet_queue,
		 "queue: group %u, mode %o, %lu bytes, %lu messages, by %d", mds.msg_perm.gid,
		 mds.msg_perm.mode, mds.msg_qbytes, mds.msg_qnum, mds.msg_lspid);
}

static void finish(void)
{
	static const uint64_t order[10] = {1, 4, 7, 0, 3, 6, 9, 2, 5, 8};

	for (int i = 0; i < 10; i++)
		hear(f.quiet_queue, (long)(order[i] % 3) + 1, order[i]);
	kill(f.child, SIGKILL);
	waitpid(f.child, NULL, 0);
	wl_must(!semctl(f.turns, 0, IPC_RMID) && !semctl(f.quiet, 0, IPC_RMID) &&
		    !msgctl(f.queue, IPC_RMID, NULL) && !msgctl(f.quiet_queue, IPC_RMID, NULL),
		"IPC_RMID");
}

int main(int argc, char **argv)
{
	wl_init(argc, argv);
	set_up();
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		turn();
		check_quiet();
		usleep(300);
	}
	finish();
	wl_done();
}
