/* Files that were removed while they are open: one with holes that is written all the time, through
 * two descriptions and by two processes; a log that grows; one that nobody touches; one made
 * without a name.
 *
 * --mib N: size of the first (default 8), of which a quarter is holes */
#include "workload.h"
#include <sys/stat.h>

enum { BLOCK = 4096, MTIME = 1234567890 };

static struct {
	int fd, other, log, quiet, nameless;
	uint64_t blocks, turn, logged;
	uint64_t *gens; /* generation of each block, shared with the child */
	struct stat quiet_st;
	pid_t child;
} f;

static bool is_hole(uint64_t block)
{
	return block % 4 == 3;
}

static void fill(uint8_t *buf, uint64_t block, uint64_t gen)
{
	for (size_t i = 0; i < BLOCK; i++)
		buf[i] = (uint8_t)(block * 31 + gen * 7 + i);
}

static void write_block(int fd, uint64_t block, uint64_t gen)
{
	uint8_t buf[BLOCK];

	fill(buf, block, gen);
	wl_same("pwrite", BLOCK, pwrite(fd, buf, BLOCK, (off_t)(block * BLOCK)));
	f.gens[block] = gen;
}

static void check_block(int fd, uint64_t block)
{
	uint8_t buf[BLOCK], want[BLOCK] = {0};

	wl_same("pread", BLOCK, pread(fd, buf, BLOCK, (off_t)(block * BLOCK)));
	if (!is_hole(block))
		fill(want, block, f.gens[block]);
	wl_check(!memcmp(buf, want, BLOCK), "block %lu of an unlinked file, generation %lu", block,
		 f.gens[block]);
}

/* side: parent 0, child 1; each has every other block. */
static void turn(int side, uint64_t n)
{
	for (uint64_t i = 0; i < 16; i++) {
		uint64_t b = (n * 16 + i) * 2654435761u % (f.blocks / 2) * 2 + (uint64_t)side;

		check_block(i % 2 ? f.fd : f.other, b);
		if (!is_hole(b))
			write_block(i % 2 ? f.other : f.fd, b, n + i);
	}
}

static int removed(const char *name, int flags, mode_t mode)
{
	char path[256];
	int fd = open(wl_path(path, name), O_CREAT | O_EXCL | O_CLOEXEC | flags, mode);

	wl_must(fd >= 0, "open");
	if (!strcmp(name, "big"))
		wl_must((f.other = open(path, O_RDWR | O_CLOEXEC)) >= 0, "open");
	wl_must(!unlink(path), "unlink");
	return fd;
}

static void set_up(void)
{
	const struct timespec times[2] = {{.tv_sec = MTIME}, {.tv_sec = MTIME, .tv_nsec = 5}};

	f.blocks = (uint64_t)wl_opt("mib", 8) << 20 >> 12;
	f.gens = mmap(NULL, f.blocks * sizeof(*f.gens), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	wl_must(f.gens != MAP_FAILED, "mmap");
	f.fd = removed("big", O_RDWR, 0600);
	wl_must(!ftruncate(f.fd, (off_t)(f.blocks * BLOCK)), "ftruncate");
	for (uint64_t b = 0; b < f.blocks; b++)
		if (!is_hole(b))
			write_block(f.fd, b, 0);
	f.log = removed("growing", O_WRONLY | O_APPEND, 0600);
	f.quiet = removed("quiet", O_RDWR, 0640);
	wl_same("write", 5, write(f.quiet, "quiet", 5));
	wl_must(!fchown(f.quiet, 33, 44) && !futimens(f.quiet, times), "owner and times");
	wl_must(!fstat(f.quiet, &f.quiet_st), "fstat");
	f.nameless = open(wl.dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	wl_must(f.nameless >= 0, "O_TMPFILE");
	wl_same("write", 8, write(f.nameless, "nameless", 8));
	f.child = fork();
	wl_must(f.child >= 0, "fork");
	for (uint64_t n = 1; !f.child; n++) {
		char path[256];

		turn(1, n);
		if (!access(wl_path(path, "stop"), F_OK))
			_exit(0);
	}
}

static void check_quiet(void)
{
	char text[16] = {0};
	struct stat st;

	wl_must(!fstat(f.quiet, &st), "fstat");
	wl_same("size", 5, st.st_size);
	wl_same("links", 0, st.st_nlink);
	wl_same("mode", f.quiet_st.st_mode, st.st_mode);
	wl_same("owner", 33, st.st_uid);
	wl_same("group", 44, st.st_gid);
	wl_check(st.st_mtim.tv_sec == MTIME && st.st_mtim.tv_nsec == 5,
		 "modification time: expected %d, got %ld.%09ld", MTIME, st.st_mtim.tv_sec,
		 st.st_mtim.tv_nsec);
	wl_same("position", 5, lseek(f.quiet, 0, SEEK_CUR));
	wl_same("pread", 5, pread(f.quiet, text, sizeof(text), 0));
	wl_check(!strcmp(text, "quiet"), "expected quiet, got %s", text);
	wl_same("pread", 8, pread(f.nameless, text, sizeof(text), 0));
	wl_check(!strcmp(text, "nameless"), "expected nameless, got %s", text);
}

/* Opened once more, for reading, through the descriptor: every number in its place. */
static void check_log(void)
{
	char path[64];
	uint64_t got;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", f.log);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	wl_must(fd >= 0, "open");
	for (uint64_t i = 0; i < f.logged; i++) {
		wl_same("pread of the log", 8, pread(fd, &got, 8, (off_t)(i * 8)));
		wl_same("number in the log", i, got);
	}
	close(fd);
}

static void check_holes(void)
{
	struct stat st;

	wl_must(!fstat(f.fd, &st), "fstat");
	wl_check((uint64_t)st.st_blocks * 512 <= f.blocks * BLOCK * 7 / 8,
		 "the holes are gone: %ld blocks of %ld bytes", st.st_blocks, st.st_size);
}

int main(int argc, char **argv)
{
	int status;

	wl_init(argc, argv);
	set_up();
	wl_ready();
	while (!wl_stop()) {
		wl_tick();
		turn(0, ++f.turn);
		if (f.logged && f.logged % 300 == 0) /* shorter, and as before again */
			wl_must(!ftruncate(f.log, (off_t)(f.logged * 8 - 1000)) &&
				    lseek(f.log, 0, SEEK_END) >= 0,
				"ftruncate");
		if (f.logged && f.logged % 300 == 0)
			for (uint64_t i = f.logged - 125; i < f.logged; i++)
				wl_same("log", 8, write(f.log, &i, 8));
		wl_same("log", 8, write(f.log, &f.logged, 8));
		f.logged++;
		struct stat st;
		wl_must(!fstat(f.log, &st), "fstat");
		wl_same("length of the log", f.logged * 8, (uint64_t)st.st_size);
		check_quiet();
		usleep(500);
	}
	wl_same("child", f.child, waitpid(f.child, &status, 0));
	wl_same("its exit", 0, status);
	for (uint64_t b = 0; b < f.blocks; b++)
		check_block(f.fd, b);
	check_holes();
	check_log();
	wl_done();
}
