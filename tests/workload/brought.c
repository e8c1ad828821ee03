/* Files that only this host has: POSIX shared memory and a named semaphore, shared with a child;
 * with
 * --files DIR, files there of every use: appended, written at random with holes, mapped shared, one
 * that shrinks and grows, one that is only read, with an owner, a mode, times and attributes of its
 * own; and directories there: one to work in, one that is open, those of a named pipe and of a
 * socket. All are checked all the time, against what this process remembers. */
#include "workload.h"
#include <semaphore.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/xattr.h>

enum { BLOCK = 4096, BLOCKS = 1024, WORDS = 1 << 18, OLD = 1234567890 };

static struct {
	char name[64], dir[160];
	uint64_t *shm, *map;
	sem_t *turn, *answer;
	int log, data, sizes, quiet;
	int directory, pipe, listener;
	uint64_t n, logged, size;
	uint64_t gens[BLOCKS], words[WORDS]; /* what has to be in data and map */
	pid_t child;
} f;

/* ---- shared memory ---- */

static sem_t *open_sem(const char *what)
{
	char name[80];

	snprintf(name, sizeof(name), "%s-%s", f.name, what);
	sem_t *s = sem_open(name, O_CREAT, 0600, 0);
	wl_must(s != SEM_FAILED, "sem_open");
	return s;
}

/* Answers each turn with its square, and notes it. */
static void child(void)
{
	while (!sem_wait(f.turn) || errno == EINTR) {
		uint64_t n = f.shm[0];

		if (n == UINT64_MAX)
			break;
		f.shm[1] = n * n;
		f.shm[2 + n % (WORDS - 2)] = n;
		sem_post(f.answer);
	}
	_exit(0);
}

static void set_up_shm(void)
{
	snprintf(f.name, sizeof(f.name), "/cr-brought-%d", getpid());
	int fd = shm_open(f.name, O_RDWR | O_CREAT | O_EXCL, 0640);
	wl_must(fd >= 0 && !ftruncate(fd, WORDS * 8), "shm_open");
	f.shm = mmap(NULL, WORDS * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	wl_must(f.shm != MAP_FAILED, "mmap");
	close(fd);
	f.turn = open_sem("turn");
	f.answer = open_sem("answer");
	f.child = fork();
	wl_must(f.child >= 0, "fork");
	if (!f.child)
		child();
}

static void use_shm(void)
{
	uint64_t n = ++f.n;

	f.shm[0] = n;
	sem_post(f.turn);
	while (sem_wait(f.answer))
		wl_must(errno == EINTR, "sem_wait");
	wl_same("answer in shared memory", n * n, f.shm[1]);
	wl_same("word of shared memory", n, f.shm[2 + n % (WORDS - 2)]);
	if (n > 700)
		wl_same("older word of shared memory", n - 700, f.shm[2 + (n - 700) % (WORDS - 2)]);
}

/* The name still leads to what is mapped. */
static void check_shm(void)
{
	int fd = shm_open(f.name, O_RDWR, 0);
	struct stat st;

	wl_must(fd >= 0 && !fstat(fd, &st), "shm_open again");
	wl_same("mode of shared memory", 0100640, st.st_mode);
	uint64_t *p = mmap(NULL, WORDS * 8, PROT_READ, MAP_SHARED, fd, 0);
	wl_must(p != MAP_FAILED, "mmap");
	wl_same("shared memory by its name", f.n, p[0]);
	close(fd);
	munmap(p, WORDS * 8);
}

/* ---- files ---- */

static int open_file(const char *name, int flags)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", f.dir, name);
	int fd = open(path, flags | O_CREAT, 0644);
	wl_must(fd >= 0, path);
	return fd;
}

static bool is_hole(uint64_t block)
{
	return block % 4 == 3;
}

static void fill(uint8_t *buf, uint64_t block, uint64_t gen)
{
	for (size_t i = 0; i < BLOCK; i++)
		buf[i] = (uint8_t)(block * 31 + gen * 7 + i);
}

static void write_block(uint64_t block, uint64_t gen)
{
	uint8_t buf[BLOCK];

	fill(buf, block, gen);
	wl_same("pwrite", BLOCK, pwrite(f.data, buf, BLOCK, (off_t)(block * BLOCK)));
	f.gens[block] = gen;
}

static void check_block(uint64_t block)
{
	uint8_t buf[BLOCK], want[BLOCK] = {0};

	wl_same("pread", BLOCK, pread(f.data, buf, BLOCK, (off_t)(block * BLOCK)));
	if (!is_hole(block))
		fill(want, block, f.gens[block]);
	wl_check(!memcmp(buf, want, BLOCK), "block %lu, generation %lu", block, f.gens[block]);
}

static void set_up_files(void)
{
	const struct timespec old[2] = {{OLD, 5}, {OLD, 7}};

	f.log = open_file("log", O_RDWR | O_APPEND);
	f.data = open_file("data", O_RDWR);
	wl_must(!ftruncate(f.data, BLOCKS * BLOCK), "ftruncate");
	for (uint64_t b = 0; b < BLOCKS; b++)
		if (!is_hole(b))
			write_block(b, b);
	int fd = open_file("map", O_RDWR);
	wl_must(!ftruncate(fd, WORDS * 8), "ftruncate");
	f.map = mmap(NULL, WORDS * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	wl_must(f.map != MAP_FAILED, "mmap");
	close(fd);
	f.sizes = open_file("sizes", O_RDWR);
	fd = open_file("quiet", O_RDWR);
	wl_must(write(fd, "quiet", 5) == 5 && !fsetxattr(fd, "user.colour", "green", 5, 0) &&
		    !fchown(fd, 1234, 4321) && !fchmod(fd, 04711) && !futimens(fd, old),
		"a quiet file");
	close(fd);
	f.quiet = open_file("quiet", O_RDONLY | O_NOATIME);
}

static void check_quiet(void)
{
	char buf[16], colour[16];
	struct stat st;

	wl_same("quiet file", 5, pread(f.quiet, buf, sizeof(buf), 0));
	wl_check(!memcmp(buf, "quiet", 5), "quiet file: %.5s", buf);
	wl_must(!fstat(f.quiet, &st), "fstat");
	wl_same("owner", 1234, st.st_uid);
	wl_same("group", 4321, st.st_gid);
	wl_same("mode", 0104711, st.st_mode);
	wl_same("atime", OLD * 1000000000l + 5,
		st.st_atim.tv_sec * 1000000000l + st.st_atim.tv_nsec);
	wl_same("mtime", OLD * 1000000000l + 7,
		st.st_mtim.tv_sec * 1000000000l + st.st_mtim.tv_nsec);
	wl_same("attribute", 5, fgetxattr(f.quiet, "user.colour", colour, sizeof(colour)));
	wl_check(!memcmp(colour, "green", 5), "attribute: %.5s", colour);
}

/* Cut, and longer again: zeros where something was. */
static void change_size(void)
{
	uint64_t got, size = (f.n * 7919) % 300000 + 8;

	wl_must(!ftruncate(f.sizes, (off_t)size), "ftruncate");
	if (size > f.size) {
		uint64_t at = (f.size + size) / 2 & ~7ull;

		if (at >= f.size && at + 8 <= size) {
			wl_same("pread", 8, pread(f.sizes, &got, 8, (off_t)at));
			wl_same("what was cut off", 0, got);
		}
	}
	got = f.n;
	wl_same("pwrite", 8, pwrite(f.sizes, &got, 8, (off_t)size - 8));
	f.size = size;
}

static void use_files(void)
{
	uint64_t b = f.n * 2654435761u % BLOCKS, w = f.n * 40503 % WORDS, got;
	struct stat st;

	check_block(b);
	if (!is_hole(b))
		write_block(b, f.n);
	wl_same("word of the mapped file", f.words[w], f.map[w]);
	f.map[w] = f.words[w] = f.n;
	wl_same("log", 8, write(f.log, &f.logged, 8));
	f.logged++;
	wl_must(!fstat(f.log, &st), "fstat");
	wl_same("length of the log", f.logged * 8, (uint64_t)st.st_size);
	wl_must(!fstat(f.sizes, &st), "fstat");
	wl_same("size", f.size, (uint64_t)st.st_size);
	if (f.size) {
		wl_same("pread", 8, pread(f.sizes, &got, 8, (off_t)f.size - 8));
		wl_same("end of a file that shrinks and grows", f.n - 1, got);
	}
	change_size();
	check_quiet();
}

static void check_names(void)
{
	static const char *const names[] = {"log", "data", "sizes", "quiet"};
	const int fds[] = {f.log, f.data, f.sizes, f.quiet};

	for (size_t i = 0; i < 4; i++) {
		char path[256];
		struct stat a, b;

		snprintf(path, sizeof(path), "%s/%s", f.dir, names[i]);
		wl_must(!stat(path, &a) && !fstat(fds[i], &b), path);
		wl_check(a.st_ino == b.st_ino && a.st_dev == b.st_dev && b.st_nlink == 1,
			 "%s is another file, or has %lu names", path, (unsigned long)b.st_nlink);
	}
}

static void check_files(void)
{
	struct stat st;
	uint64_t got;

	for (uint64_t b = 0; b < BLOCKS; b++)
		check_block(b);
	for (uint64_t w = 0; w < WORDS; w++)
		wl_same("word of the mapped file", f.words[w], f.map[w]);
	for (uint64_t i = 0; i < f.logged; i++) {
		wl_same("pread", 8, pread(f.log, &got, 8, (off_t)(i * 8)));
		wl_same("number in the log", i, got);
	}
	wl_must(!fstat(f.data, &st), "fstat");
	wl_check((uint64_t)st.st_blocks * 512 <= BLOCKS * BLOCK * 7ul / 8,
		 "the holes are gone: %ld blocks of %ld bytes", st.st_blocks, st.st_size);
	check_names();
}

/* ---- directories ---- */

static char *place(char path[256], const char *name)
{
	snprintf(path, 256, "%s/%s", f.dir, name);
	return path;
}

static struct sockaddr_un socket_name(void)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};

	snprintf(un.sun_path, sizeof(un.sun_path), "%.90s/of_socket/s", f.dir);
	return un;
}

static void set_up_directories(void)
{
	static const char *const names[] = {"work", "open", "of_pipe", "of_socket"};
	struct sockaddr_un un = socket_name();
	char path[256];

	for (size_t i = 0; i < 4; i++)
		wl_must(!mkdir(place(path, names[i]), 0700) && !chown(path, 12, 34) &&
			    !chmod(path, 02751),
			path);
	wl_must(!chdir(place(path, "work")), path);
	f.directory = open(place(path, "open"), O_RDONLY | O_DIRECTORY);
	wl_must(f.directory >= 0, path);
	wl_must(!mkfifo(place(path, "of_pipe/p"), 0640), path);
	f.pipe = open(path, O_RDWR);
	wl_must(f.pipe >= 0, path);
	f.listener = socket(AF_UNIX, SOCK_STREAM, 0);
	wl_must(!bind(f.listener, (struct sockaddr *)&un, sizeof(un)) && !listen(f.listener, 5),
		un.sun_path);
}

static void use_directories(void)
{
	uint64_t got;

	wl_same("write to the pipe", 8, write(f.pipe, &f.n, 8));
	wl_same("read from the pipe", 8, read(f.pipe, &got, 8));
	wl_same("what was in the pipe", f.n, got);
}

static void check_directory(const char *name, const struct stat *is)
{
	char path[256];
	struct stat st;

	wl_must(!stat(place(path, name), &st), path);
	wl_check(st.st_ino == is->st_ino && st.st_dev == is->st_dev, "%s is another one", path);
	wl_same("mode of a directory", 042751, st.st_mode);
	wl_same("its owner", 12, st.st_uid);
	wl_same("its group", 34, st.st_gid);
}

static void check_directories(void)
{
	struct sockaddr_un un = socket_name();
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	char path[256], cwd[256];
	struct stat st, name;

	wl_must(getcwd(cwd, sizeof(cwd)) && !stat(".", &st), "getcwd");
	wl_check(!strcmp(cwd, place(path, "work")), "working in %s", cwd);
	check_directory("work", &st);
	wl_must(!fstat(f.directory, &st), "fstat");
	check_directory("open", &st);
	wl_must(!fstat(f.pipe, &st) && !stat(place(path, "of_pipe/p"), &name), path);
	wl_check(st.st_ino == name.st_ino && st.st_dev == name.st_dev, "%s is another pipe", path);
	wl_must(!connect(fd, (struct sockaddr *)&un, sizeof(un)), un.sun_path);
	wl_must(accept(f.listener, NULL, NULL) >= 0, "accept");
	wl_must(!stat(place(path, "of_pipe"), &st), path);
	check_directory("of_pipe", &st);
}

int main(int argc, char **argv)
{
	int status;

	wl_init(argc, argv);
	snprintf(f.dir, sizeof(f.dir), "%s", wl_opt_str("files", ""));
	set_up_shm();
	if (*f.dir) {
		set_up_files();
		set_up_directories();
	}
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		use_shm();
		if (*f.dir) {
			use_files();
			use_directories();
		}
		usleep(500);
	}
	check_shm();
	if (*f.dir) {
		check_files();
		check_directories();
	}
	f.shm[0] = UINT64_MAX;
	sem_post(f.turn);
	wl_same("child", f.child, waitpid(f.child, &status, 0));
	wl_same("its exit", 0, status);
	wl_done();
}
