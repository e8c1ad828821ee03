/* Pseudoterminals: a session with its controlling terminal, foreground group and traffic; others in
 * which something waits in each way that there is. */
#include "workload.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

struct pty {
	int master, slave; /* slave: ours, or -1 */
	int number;
	char name[32];
};

static struct pty session, lines, raw, packet, stopped, unopened, closed;
static struct termios session_modes;
static const struct winsize size = {.ws_row = 43, .ws_col = 132, .ws_xpixel = 7, .ws_ypixel = 9};

static void pty_open(struct pty *p, bool with_slave)
{
	const int unlock = 0;

	p->master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	wl_must(p->master >= 0, "/dev/ptmx");
	wl_must(!ioctl(p->master, TIOCGPTN, &p->number), "TIOCGPTN");
	snprintf(p->name, sizeof(p->name), "/dev/pts/%d", p->number);
	if (with_slave)
		wl_must(!ioctl(p->master, TIOCSPTLCK, &unlock), "TIOCSPTLCK");
	p->slave = with_slave ? open(p->name, O_RDWR | O_NOCTTY | O_CLOEXEC) : -1;
	wl_must(!with_slave || p->slave >= 0, p->name);
}

static void put(int fd, const char *text)
{
	wl_same("write to a terminal", strlen(text), write(fd, text, strlen(text)));
}

static void no_echo(int fd, bool canonical)
{
	struct termios t;

	wl_must(!tcgetattr(fd, &t), "tcgetattr");
	t.c_lflag &= ~(ECHO | ECHOE | ECHOK | ISIG);
	if (!canonical)
		t.c_lflag &= ~ICANON;
	t.c_cc[VMIN] = 1;
	wl_must(!tcsetattr(fd, TCSANOW, &t), "tcsetattr");
}

static bool readable(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, 0) > 0 && p.revents & POLLIN;
}

static void get(int fd, const char *want, const char *what)
{
	char got[8192] = "";
	ssize_t n;

	wl_check(readable(fd), "%s: nothing there; expected '%s'", what, want);
	n = read(fd, got, sizeof(got) - 1);
	wl_check(n == (ssize_t)strlen(want) && !memcmp(got, want, n),
		 "%s: expected '%s', got %zd bytes '%s'", what, want, n, got);
}

/* All that comes, in as many pieces as it likes. */
static void get_all(int fd, const char *want, size_t len, const char *what)
{
	static char got[65536];
	size_t n = 0;

	while (n < len && n < sizeof(got)) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		/* a move interrupts it, signal(7); its time goes on while the tasks are stopped */
		int ready = poll(&p, 1, 20000);

		if (ready < 0 && errno == EINTR)
			continue;
		wl_check(ready > 0, "%s: %zu of %zu bytes", what, n, len);
		ssize_t r = read(fd, got + n, sizeof(got) - n);

		wl_check(r > 0, "%s: %s after %zu of %zu bytes", what, strerror(errno), n, len);
		n += r;
	}
	wl_check(n == len && !memcmp(got, want, len), "%s: the bytes are others", what);
	wl_check(!readable(fd), "%s: more than was written", what);
}

/* ---- a session: its leader, and a job in the foreground that answers ---- */

static pid_t leader;
static volatile sig_atomic_t ints, winches, others;

static void on_signal(int sig)
{
	if (sig == SIGINT)
		ints++;
	else if (sig == SIGWINCH)
		winches++;
	else
		others++;
}

static void catch_signals(void)
{
	const int sigs[] = {SIGINT, SIGWINCH, SIGHUP, SIGTTIN, SIGTTOU, SIGTSTP};
	struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

	for (size_t i = 0; i < sizeof(sigs) / sizeof(sigs[0]); i++)
		sigaction(sigs[i], &sa, NULL);
}

static void check_place(int tty_fd)
{
	struct termios now = {0};
	struct winsize ws;

	wl_check(isatty(0) && !strcmp(ttyname(0), session.name), "standard input is '%s', not %s",
		 ttyname(0), session.name);
	wl_same("foreground group", getpgrp(), tcgetpgrp(0));
	wl_same("foreground group by /dev/tty", getpgrp(), tcgetpgrp(tty_fd));
	wl_same("session", leader, tcgetsid(0));
	wl_must(!tcgetattr(0, &now), "tcgetattr");
	wl_check(!memcmp(&now, &session_modes, sizeof(now)), "the terminal's modes are others");
	wl_must(!ioctl(tty_fd, TIOCGWINSZ, &ws), "TIOCGWINSZ");
	wl_check(!memcmp(&ws, &size, sizeof(ws)), "the terminal's size is %dx%d", ws.ws_row,
		 ws.ws_col);
	int again = open("/dev/tty", O_RDWR | O_CLOEXEC);
	wl_must(again >= 0, "/dev/tty");
	close(again);
}

/* Answers every line with the number of interrupts, and itself. */
static void job_main(void)
{
	char line[256], answer[300];
	ssize_t n;
	int tty_fd;

	setpgid(0, 0);
	signal(SIGTTOU, SIG_IGN);
	wl_must(!tcsetpgrp(0, getpgrp()), "tcsetpgrp");
	catch_signals();
	tty_fd = open("/dev/tty", O_RDWR | O_CLOEXEC);
	wl_must(tty_fd >= 0, "/dev/tty");
	put(1, "job\n");
	while ((n = read(0, line, sizeof(line) - 1)) > 0) {
		line[n - 1] = 0;
		check_place(tty_fd);
		wl_check(!others && !winches, "signals that nobody sent: %d, SIGWINCH %d", others,
			 winches);
		snprintf(answer, sizeof(answer), "%d:%s\n", ints, line);
		put(tty_fd, answer);
	}
	_exit(0);
}

static void leader_main(void)
{
	pid_t job;

	setsid();
	wl_must(!ioctl(session.slave, TIOCSCTTY, 0), "TIOCSCTTY");
	for (int i = 0; i < 3; i++)
		dup2(session.slave, i);
	close(session.slave);
	leader = getpid();
	catch_signals();
	job = fork();
	if (!job)
		job_main();
	while (waitpid(job, NULL, 0) != job)
		;
	wl_check(!others && !winches && !ints, "the leader got signals: %d, %d, %d", others,
		 winches, ints);
	_exit(0);
}

static void start_session(void)
{
	pty_open(&session, true);
	wl_must(!ioctl(session.master, TIOCSWINSZ, &size), "TIOCSWINSZ");
	wl_must(!fchmod(session.slave, 0622), "fchmod");
	wl_must(!tcgetattr(session.slave, &session_modes), "tcgetattr");
	session_modes.c_lflag &= ~(ECHO | ECHOE);
	session_modes.c_cc[VINTR] = 'T' - 64;
	wl_must(!tcsetattr(session.slave, TCSANOW, &session_modes) &&
		    !tcgetattr(session.slave, &session_modes),
		"tcsetattr");
	leader = fork();
	wl_must(leader >= 0, "fork");
	if (!leader)
		leader_main();
	close(session.slave);
	session.slave = -1;
	get_all(session.master, "job\r\n", 5, "the job's first line");
}

static void ask(uint64_t n, int interrupts)
{
	char q[64], a[64];

	snprintf(q, sizeof(q), "question %lu\n", n);
	put(session.master, q);
	snprintf(a, sizeof(a), "%d:question %lu\r\n", interrupts, n);
	get_all(session.master, a, strlen(a), "the job's answer");
}

/* ---- what waits ---- */

enum { OUTPUT = 3000, RAW_INPUT = 4000 };
static char output[OUTPUT], raw_input[RAW_INPUT];

static void fill_all(void)
{
	const int on = 1;

	for (int i = 0; i < OUTPUT; i++)
		output[i] = (char)(i * 7 + i / 256);
	for (int i = 0; i < RAW_INPUT; i++)
		raw_input[i] = (char)(i * 13 + i / 256);
	pty_open(&lines, true);
	no_echo(lines.slave, true);
	put(lines.master, "one\ntwo \026\003\026\026\n\004three\004\nunfinishee");
	put(lines.slave, "waiting\n");
	pty_open(&raw, true);
	struct termios t;
	wl_must(!tcgetattr(raw.slave, &t), "tcgetattr");
	cfmakeraw(&t);
	wl_must(!tcsetattr(raw.slave, TCSANOW, &t), "tcsetattr");
	wl_same("write", RAW_INPUT, write(raw.master, raw_input, RAW_INPUT));
	wl_same("write", OUTPUT, write(raw.slave, output, OUTPUT));
	pty_open(&packet, true);
	no_echo(packet.slave, true);
	wl_must(!ioctl(packet.master, TIOCPKT, &on), "TIOCPKT");
	put(packet.slave, "in a packet");
	wl_must(!ioctl(packet.slave, TIOCEXCL), "TIOCEXCL");
	pty_open(&stopped, true);
	no_echo(stopped.slave, true);
	put(stopped.slave, "before");
	put(stopped.master, "\023"); /* ^S */
	pty_open(&unopened, false);
	pty_open(&closed, true);
	put(closed.slave, "last words");
	close(closed.slave);
	closed.slave = -1;
}

/* Work that the kernel does in the background is done: ^S has arrived. */
static void wait_for_stop(void)
{
	struct pollfd p = {.fd = stopped.slave, .events = POLLOUT};

	for (int i = 0; i < 1000 && poll(&p, 1, 0) > 0 && p.revents & POLLOUT; i++)
		wl_sleep_us(1000);
	wl_check(!(p.revents & POLLOUT) || poll(&p, 1, 0) == 0, "^S does not stop the output");
}

static void check_waiting(void)
{
	int packet_mode = 0, exclusive = 0, locked = 0, number = -1;
	struct pollfd p = {.fd = closed.master};

	wl_must(!ioctl(packet.master, TIOCGPKT, &packet_mode), "TIOCGPKT");
	wl_must(!ioctl(packet.slave, TIOCGEXCL, &exclusive), "TIOCGEXCL");
	wl_same("packet mode", 1, packet_mode);
	wl_same("exclusive", 1, exclusive);
	wl_must(!ioctl(unopened.master, TIOCGPTLCK, &locked), "TIOCGPTLCK");
	wl_same("locked", 1, locked);
	wl_must(!ioctl(unopened.master, TIOCGPTN, &number), "TIOCGPTN");
	wl_same("number", unopened.number, number);
	wl_check(poll(&p, 1, 0) == 1 && p.revents & POLLHUP, "the other side is open again");
}

static void read_all(void)
{
	/* a line at a time, quoted characters plain; EOF ends a line, or is one */
	get(lines.slave, "one\n", "first line");
	get(lines.slave, "two \003\026\n", "second line");
	get(lines.slave, "", "end of file");
	get(lines.slave, "three", "a line that ends by EOF");
	get(lines.slave, "\n", "an empty line");
	wl_check(!readable(lines.slave), "a line that is not finished can be read");
	put(lines.master, "\177d\n"); /* erases what was typed before */
	for (int i = 0; i < 1000 && !readable(lines.slave); i++)
		wl_sleep_us(1000);
	get(lines.slave, "unfinished\n", "the line that was being typed");
	get_all(lines.master, "waiting\r\n", 9, "output of a line");
	get_all(raw.slave, raw_input, RAW_INPUT, "raw input");
	get_all(raw.master, output, OUTPUT, "raw output");
	char data[64];
	wl_same("packet", 12, read(packet.master, data, sizeof(data)));
	wl_check(!memcmp(data, "\0in a packet", 12), "the packet's bytes are others");
	get_all(stopped.master, "before", 6, "output before the stop");
	put(stopped.master, "\021"); /* ^Q */
	for (int i = 0; i < 1000; i++) {
		struct pollfd w = {.fd = stopped.slave, .events = POLLOUT};

		if (poll(&w, 1, 0) > 0 && w.revents & POLLOUT)
			break;
		wl_check(i < 999, "^Q does not start the output");
		wl_sleep_us(1000);
	}
	put(stopped.slave, "after");
	get_all(stopped.master, "after", 5, "output after the stop");
	get(closed.master, "last words", "output of a side that is closed");
	wl_check(read(closed.master, data, 1) < 0 && errno == EIO, "reading goes on after its end");
}

int main(int argc, char **argv)
{
	uint64_t questions = 0;
	struct stat st;
	int status;

	wl_init(argc, argv);
	start_session();
	fill_all();
	wait_for_stop();
	ask(questions++, 0);
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		ask(questions++, 0);
		check_waiting();
		wl_sleep_us(2000);
	}
	check_waiting();
	wl_check(!stat(session.name, &st) && (st.st_mode & 07777) == 0622, "mode of %s: %o",
		 session.name, st.st_mode);
	put(session.master, "\024"); /* the interrupt character of that terminal */
	for (int i = 0; i < 20; i++)
		wl_sleep_us(1000);
	ask(questions, 1);
	read_all();
	put(session.master, "\004");
	wl_same("waitpid", leader, waitpid(leader, &status, 0));
	wl_same("exit status of the session's leader", 0, status);
	wl_done();
}
