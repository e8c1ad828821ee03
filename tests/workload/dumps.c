/* Dumps core when DIR/dump exists, into DIR: of itself or of a child, with threads or without. What
 * its memory held is known, and so is what a core must hold:
 *
 *   dumps --check CORE   says "RIGHT LACKING WRONG", numbers of pages; what the core has no bytes
 * for, or zeros, is lacking */
#include "workload.h"
#include <elf.h>
#include <pthread.h>
#include <sys/resource.h>

enum { GEN = 5, THREADS_MAX = 16 };
static const uint64_t AT[] = {0x100000000000, 0x200000000000}; /* private; shared */
static size_t pages[2];

static uint64_t id_of(int region, size_t page)
{
	return (uint64_t)region * 1000000 + page;
}

/* ---- a core ---- */

static size_t n_right, n_lacking, n_wrong;

static void judge(const uint8_t *got, int region, size_t page)
{
	static const uint8_t zero[WL_PAGE];
	uint8_t want[WL_PAGE];

	wl_page_fill(want, id_of(region, page), GEN);
	if (got && !memcmp(got, want, WL_PAGE))
		n_right++;
	else if (!got || !memcmp(got, zero, WL_PAGE))
		n_lacking++;
	else
		n_wrong++;
}

static const uint8_t *find(const uint8_t *core, size_t size, uint64_t va)
{
	const Elf64_Ehdr *h = (const void *)core;
	const Elf64_Phdr *p = (const void *)(core + h->e_phoff);

	for (int i = 0; i < h->e_phnum; i++)
		if (p[i].p_type == PT_LOAD && p[i].p_vaddr <= va &&
		    va + WL_PAGE <= p[i].p_vaddr + p[i].p_filesz &&
		    p[i].p_offset + p[i].p_filesz <= size)
			return core + p[i].p_offset + (va - p[i].p_vaddr);
	return NULL;
}

static int check(const char *path)
{
	int fd = open(path, O_RDONLY);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) || st.st_size < (off_t)sizeof(Elf64_Ehdr)) {
		printf("no core\n");
		return 1;
	}
	const uint8_t *core = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	for (int r = 0; r < 2; r++)
		for (size_t i = 0; i < pages[r]; i++)
			judge(find(core, st.st_size, AT[r] + i * WL_PAGE), r, i);
	printf("%zu %zu %zu\n", n_right, n_lacking, n_wrong);
	return 0;
}

/* ---- what dumps it ---- */

static void *run(void *arg)
{
	for (volatile uint64_t *n = arg; *n != UINT64_MAX; ++*n)
		wl_sleep_us(1000);
	return NULL;
}

static void dump(void)
{
	signal(SIGABRT, SIG_DFL);
	raise(SIGABRT);
	_exit(1);
}

static void dump_in_child(void)
{
	pid_t pid = fork();
	char text[32];
	int st;

	if (!pid)
		dump();
	wl_must(pid > 0 && waitpid(pid, &st, 0) == pid, "waiting for the child");
	snprintf(text, sizeof(text), "%d %d\n", WTERMSIG(st), !!WCOREDUMP(st));
	wl_write("dumped", text);
}

static void set_up(void)
{
	const struct rlimit none = {RLIM_INFINITY, RLIM_INFINITY};
	static uint64_t counters[THREADS_MAX];
	pthread_t t;

	wl_must(!setrlimit(RLIMIT_CORE, &none), "setrlimit");
	wl_must(!chdir(wl.dir), "chdir");
	for (int r = 0; r < 2 && pages[r]; r++) {
		uint8_t *p = mmap(
		    (void *)AT[r], pages[r] * WL_PAGE, PROT_READ | PROT_WRITE,
		    (r ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

		wl_must(p != MAP_FAILED, "memory");
		for (size_t i = 0; i < pages[r]; i++)
			wl_page_fill(p + i * WL_PAGE, id_of(r, i), GEN);
	}
	for (long i = 0; i < wl_opt("threads", 0) && i < THREADS_MAX; i++)
		wl_must(!pthread_create(&t, NULL, run, &counters[i]), "a thread");
}

int main(int argc, char **argv)
{
	char path[256];

	wl.argc = argc;
	wl.argv = argv;
	pages[0] = wl_opt("mib", 16) * 256;
	pages[1] = wl_opt("shared-mib", 0) * 256;
	if (wl_opt_str("check", NULL))
		return check(wl_opt_str("check", NULL));
	wl_init(argc, argv);
	set_up();
	wl_ready();
	for (bool done = false; !wl_stop(); wl_sleep_us(5000)) {
		wl_tick();
		if (wl_flag("chdir") && wl_asked("other"))
			wl_must(!chdir(wl_path(path, "other")), "chdir");
		if (done || !wl_asked("dump"))
			continue;
		if (wl_flag("child"))
			dump_in_child();
		else
			dump();
		done = true;
	}
	for (int r = 0; r < 2; r++)
		for (size_t i = 0; i < pages[r]; i++)
			wl_page_check((uint8_t *)AT[r] + i * WL_PAGE, id_of(r, i), GEN,
				      "in the end");
	wl_done();
}
