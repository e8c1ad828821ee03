/* Is a mapped file at the destination the one that the source has? */
#include <fcntl.h>
#include <link.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include "kernel/boot_id.h"
#include "kernel/build_id.h"
#include "memory/capture.h"

static char dir[] = "/tmp/test_mapped_files.XXXXXX";
static char path[128];
static uint8_t *image; /* this program's file */
static size_t image_len, id_at;
static uint8_t own_id[BUILD_ID_MAX];
static size_t own_len;

/* The note as the loader has it: another way to it than through the file. */
static int find_note(struct dl_phdr_info *info, size_t size, void *arg)
{
	(void)size;
	(void)arg;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
		const char *p = (const char *)(info->dlpi_addr + ph->p_vaddr),
			   *end = p + ph->p_memsz;

		while (ph->p_type == PT_NOTE && p + sizeof(ElfW(Nhdr)) < end) {
			const ElfW(Nhdr) *n = (const void *)p;
			const char *name = p + sizeof(*n), *desc = name + (n->n_namesz + 3) / 4 * 4;

			if (n->n_type == NT_GNU_BUILD_ID && !strcmp(name, "GNU")) {
				own_len = n->n_descsz;
				memcpy(own_id, desc, own_len);
				return 1;
			}
			p = desc + (n->n_descsz + 3) / 4 * 4;
		}
	}
	return 1; /* the program itself comes first */
}

static void write_file(const void *bytes, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, len), (ssize_t)len);
	close(fd);
}

static int set_up(void **state)
{
	struct stat st;
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

	(void)state;
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/file", dir);
	dl_iterate_phdr(find_note, NULL);
	assert_int_equal(own_len, BUILD_ID_MAX);
	assert_true(fd >= 0 && !fstat(fd, &st));
	image_len = (size_t)st.st_size;
	image = malloc(image_len);
	assert_int_equal(read(fd, image, image_len), (ssize_t)image_len);
	close(fd);
	uint8_t *at = memmem(image, image_len, own_id, own_len);
	assert_non_null(at);
	id_at = (size_t)(at - image);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	free(image);
	unlink(path);
	return rmdir(dir);
}

static void reads_the_build_id(void **state)
{
	uint8_t id[BUILD_ID_MAX];

	(void)state;
	assert_int_equal(build_id_read("/proc/self/exe", id), own_len);
	assert_memory_equal(id, own_id, own_len);
	assert_int_equal(build_id_read("/etc/passwd", id), 0);
	assert_int_equal(build_id_read("/nowhere/at/all", id), 0);
	assert_int_equal(build_id_read("/tmp", id), 0);
}

/* Whatever the file is cut to, the answer is the id or none. */
static void survives_every_truncation(void **state)
{
	uint8_t id[BUILD_ID_MAX];

	(void)state;
	for (size_t len = 0; len < 1024; len += 7) {
		write_file(image, len);
		size_t n = build_id_read(path, id);
		assert_true(!n || (n == own_len && len >= id_at + n && !memcmp(id, own_id, n)));
	}
}

static void survives_damage(void **state)
{
	uint8_t id[BUILD_ID_MAX];

	(void)state;
	for (size_t at = 0; at < id_at; at += 3) {
		uint8_t was = image[at];

		image[at] ^= 0xff;
		write_file(image, 4096);
		assert_true(build_id_read(path, id) <= BUILD_ID_MAX);
		image[at] = was;
	}
}

/* ---- the check at the destination ---- */

static struct tree *tree_of_file(void)
{
	struct tree *t = tree_new();
	struct stat st;

	assert_non_null(t);
	assert_int_equal(stat(path, &st), 0);
	t->n_mapped_files = 1;
	t->mapped_files = arena_new_of(t->arena, struct mapped_file);
	*t->mapped_files = (struct mapped_file){
	    .path = path,
	    .size = (uint64_t)st.st_size,
	    .ino = st.st_ino,
	    .st_dev = st.st_dev,
	    .mtime_ns = (uint64_t)st.st_mtim.tv_sec * 1000000000ull + (uint64_t)st.st_mtim.tv_nsec,
	};
	t->mapped_files->build_id_len = (uint8_t)build_id_read(path, t->mapped_files->build_id);
	boot_id_read(t->boot_id);
	return t;
}

/* What is said of it; "": nothing. */
static const char *said(const struct tree *t)
{
	static char text[300];
	struct refusals notes = {0};

	memory_check(t, &notes);
	assert_true(notes.list.n <= 1);
	snprintf(text, sizeof(text), "%s", notes.list.n ? notes.list.v[0].why : "");
	refusals_done(&notes);
	return text;
}

static void compares_copies(void **state)
{
	(void)state;
	write_file(image, image_len);
	struct tree *t = tree_of_file();
	struct mapped_file *f = t->mapped_files;

	assert_string_equal(said(t), "");
	f->st_dev++; /* a copy from here on */
	assert_string_equal(said(t), "");
	f->build_id[3] ^= 1;
	assert_non_null(strstr(said(t), "build id"));
	f->build_id[3] ^= 1;
	f->mtime_ns++;
	assert_non_null(strstr(said(t), "modification time"));
	f->mtime_ns--;
	f->size++;
	assert_non_null(strstr(said(t), "size"));
	f->size--;
	f->path = "/nowhere/at/all";
	assert_non_null(strstr(said(t), "missing"));
	tree_free(t);
}

/* The one that both hosts see needs to agree in nothing: it may be written all the time. */
static void believes_the_same_file(void **state)
{
	(void)state;
	write_file(image, 4096);
	struct tree *t = tree_of_file();
	struct mapped_file *f = t->mapped_files;

	f->size++;
	f->mtime_ns++;
	f->build_id[0] ^= 1;
	assert_string_equal(said(t), "");
	f->writable = true;
	assert_string_equal(said(t), "");
	tree_free(t);
}

/* A copy does not see what is written through the mapping, however equal it is now. */
static void refuses_a_written_copy(void **state)
{
	(void)state;
	write_file(image, 4096);
	struct tree *t = tree_of_file();
	struct mapped_file *f = t->mapped_files;

	f->writable = true;
	f->st_dev++;
	assert_non_null(strstr(said(t), "not the same file"));
	f->st_dev--;
	f->ino++;
	assert_non_null(strstr(said(t), "not the same file"));
	tree_free(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(reads_the_build_id),     cmocka_unit_test(survives_every_truncation),
	    cmocka_unit_test(survives_damage),        cmocka_unit_test(compares_copies),
	    cmocka_unit_test(believes_the_same_file), cmocka_unit_test(refuses_a_written_copy),
	};
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
