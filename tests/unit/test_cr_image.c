/* cr-image as a user runs it, on images made here: what it prints, what it finds, how it exits. */
#include "tree_fill.h"

#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "image/image.h"
#include "proto/tree.pb-c.h"
#include "wire/le.h"
#include "wire/tree_codec.h"

enum { ANON_VA = 0x400000, OUT_BYTES = 8 << 20 };

static char dir[64], program[512];
static char out[OUT_BYTES]; /* of the last run, standard output and error */
static size_t out_len;

static int begin(void **state)
{
	char self[400];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	(void)state;
	self[n > 0 ? n : 0] = 0;
	snprintf(program, sizeof(program), "%s/../../cr-image", dirname(self));
	snprintf(dir, sizeof(dir), "/tmp/cr-image.XXXXXX");
	return !mkdtemp(dir);
}

static int end(void **state)
{
	char cmd[128];

	(void)state;
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd);
}

/* Returns the exit status. Every "@" of args is the directory of the images. */
static int run(const char *args)
{
	char with_dir[512] = "", cmd[1200];

	size_t n = 0;
	for (const char *c = args; *c; c++)
		n += (size_t)snprintf(with_dir + n, sizeof(with_dir) - n, *c == '@' ? "%s" : "%.1s",
				      *c == '@' ? dir : c);
	snprintf(cmd, sizeof(cmd), "%s %s 2>&1", program, with_dir);
	FILE *f = popen(cmd, "r");
	assert_non_null(f);
	out_len = fread(out, 1, sizeof(out) - 1, f);
	out[out_len] = 0;
	int st = pclose(f);
	assert_true(WIFEXITED(st));
	return WEXITSTATUS(st);
}

static void says(const char *text)
{
	if (!strstr(out, text))
		fail_msg("not said: %s\nin: %.2000s", text, out);
}

/* ---- an image ---- */

static void fill_page_with(uint8_t page[CR_PAGE_SIZE], uint64_t va, unsigned int generation)
{
	for (size_t i = 0; i < CR_PAGE_SIZE; i += 8)
		le_put64(page + i, va + i + generation);
}

static void put_page(struct image *im, pid_t pid, uint64_t va, unsigned int generation)
{
	uint8_t page[CR_PAGE_SIZE];
	struct cr_err err = {0};
	uint32_t n;

	assert_int_equal(image_target_for(im, pid, 0, 0, &n, &err), 0);
	fill_page_with(page, va, generation);
	XXH128_hash_t h = page_hash(page, n, va);
	assert_int_equal(image_pages_write(&image_target(im, n)->pages, va, 1, page, &h, &err), 0);
}

/* Of the tree of tree_fill.h: a page of each of its living processes, one in an object. */
static void make_image(const char *name, unsigned int generation, enum image_state state)
{
	_cleanup_fd_ int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_free_ uint8_t *b = NULL;
	struct tree *t = fill_tree();
	struct cr_err err = {0};
	struct image *im;
	uint32_t n;
	size_t len;

	assert_int_equal(image_receive(&im, fd, name, NULL, &err), 0);
	put_page(im, 4242, ANON_VA, generation);
	put_page(im, 300, ANON_VA, 0);
	for (size_t i = 0; i < t->n_objects; i++)
		assert_int_equal(
		    image_target_for(im, 0, t->objects[i].ino, t->objects[i].dev, &n, &err), 0);
	t->procs[2].umask = 022 + generation;
	assert_int_equal(tree_encode(t, &b, &len, &err), 0);
	assert_int_equal(image_adopt_tree(im, t, b, len, &err), 0);
	tree_free(t);
	assert_int_equal(image_save(im, state, false, &err), 0);
	image_free(im);
}

static int open_file(const char *file)
{
	char path[160];

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

static void flip(const char *file, off_t at)
{
	_cleanup_fd_ int fd = open_file(file);
	uint8_t c;

	assert_int_equal(pread(fd, &c, 1, at), 1);
	c ^= 0x20;
	assert_int_equal(pwrite(fd, &c, 1, at), 1);
}

/* ---- */

static void test_usage(void **state)
{
	static const char *const verbs[] = {"ls", "show", "verify", "diff", "mem", "tree"};
	char args[64];

	(void)state;
	assert_int_equal(run("--help"), 0);
	assert_int_equal(run(""), 2);
	assert_int_equal(run("nonsense @"), 2);
	assert_int_equal(run("--version"), 0);
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		snprintf(args, sizeof(args), "%s --help", verbs[i]);
		assert_int_equal(run(args), 0);
		assert_int_equal(run(verbs[i]), 2);
		snprintf(args, sizeof(args), "%s --nonsense @", verbs[i]);
		assert_int_equal(run(args), 2);
		snprintf(args, sizeof(args), "%s @/none @/none", verbs[i]);
		assert_in_range(run(args), 2, 3);
	}
}

static void test_ls(void **state)
{
	(void)state;
	make_image("ls-a", 0, IMAGE_SEALED);
	make_image("ls-b", 0, IMAGE_PARTIAL);
	assert_int_equal(run("ls @"), 0);
	says("ls-a                     sealed");
	says("ls-b                     partial");
	assert_int_equal(run("ls @/ls-a"), 0);
	says("sealed, version 1, 1 round");
	says("1 pages, 0 of zeros: process 4242 (thread 4242)");
	says("memfd");
	says("index-3");
	flip("ls-b/manifest", 20);
	assert_int_equal(run("ls @"), 3);
	says("manifest: damaged: the digest of bytes 0 to");
	run("verify @/ls-b");
	flip("ls-b/manifest", 20);
}

static json_t *parsed(void)
{
	json_error_t e;
	json_t *j = json_loads(out, 0, &e);

	if (!j)
		fail_msg("no JSON: %s", e.text);
	return j;
}

static void has_all_fields(const json_t *o, const ProtobufCMessageDescriptor *d)
{
	for (unsigned int i = 0; i < d->n_fields; i++)
		if (!json_object_get(o, d->fields[i].name))
			fail_msg("%s has no %s", d->short_name, d->fields[i].name);
}

static void test_show(void **state)
{
	(void)state;
	make_image("show", 0, IMAGE_SEALED);
	assert_int_equal(run("show @/show tree"), 0);
	json_t *j = parsed();
	const json_t *p = json_array_get(json_object_get(j, "procs"), 0);
	assert_int_equal(json_integer_value(json_object_get(p, "pid")), 4242);
	const json_t *vmas = json_object_get(json_object_get(p, "mm"), "vmas");
	assert_int_equal(json_array_size(vmas), 6);
	assert_string_equal(json_string_value(json_object_get(json_array_get(vmas, 0), "start")),
			    "0x400000");
	assert_string_equal(json_string_value(json_object_get(json_array_get(vmas, 0), "prot")),
			    "r-x");
	const json_t *fds = json_object_get(p, "fds");
	assert_int_equal(json_integer_value(json_object_get(json_array_get(fds, 2), "fd")), 1023);
	assert_int_equal(json_array_size(json_object_get(p, "sigactions")), 64);
	const json_t *threads = json_object_get(p, "threads");
	assert_string_equal(json_string_value(json_object_get(json_array_get(threads, 1), "comm")),
			    "thread 4243");
	json_decref(j);

	/* with --all, whatever a message has, by its own name */
	assert_int_equal(run("show --all @/show tree"), 0);
	j = parsed();
	has_all_fields(j, &tree__tree__descriptor);
	p = json_array_get(json_object_get(j, "procs"), 0);
	has_all_fields(p, &tree__process__descriptor);
	has_all_fields(json_object_get(p, "mm"), &tree__mm__descriptor);
	const json_t *files = json_object_get(j, "files");
	assert_int_equal(json_array_size(files), FILL_FILES);
	for (size_t i = 0; i < FILL_FILES; i++)
		has_all_fields(json_array_get(files, i), &tree__file__descriptor);
	json_decref(j);

	assert_int_equal(run("show @/show"), 0);
	j = parsed();
	assert_string_equal(
	    json_string_value(json_object_get(json_object_get(j, "manifest"), "state")), "SEALED");
	json_decref(j);
	assert_int_equal(run("show --all @/show index-0"), 0);
	j = parsed();
	const json_t *chunk = json_array_get(json_object_get(j, "chunks"), 0);
	assert_string_equal(json_string_value(json_object_get(chunk, "va")), "0x400000");
	assert_int_equal(json_array_size(json_object_get(chunk, "hashes")), 1);
	json_decref(j);
	assert_int_equal(run("show @/show index-9"), 3);
	assert_int_equal(run("show @/show nonsense"), 3);
}

static void test_verify(void **state)
{
	(void)state;
	make_image("v", 0, IMAGE_SEALED);
	assert_int_equal(run("verify @/v"), 0);
	says("sealed, all is well: 10 files, 2 pages");
	/* two things at once: both are said */
	flip("v/pages-0", 100);
	flip("v/index-1", 30);
	assert_int_equal(run("verify @/v"), 1);
	says("pages-0: damaged at byte 0: the page of address 0x400000 has hash ");
	says("index-1: damaged: the digest of bytes 0 to ");
	says("2 things are wrong");
	flip("v/pages-0", 100);
	flip("v/index-1", 30);
	flip("v/tree", 50);
	assert_int_equal(run("verify @/v"), 1);
	says("tree: damaged: the digest of");
	flip("v/tree", 50);
	assert_int_equal(run("verify @/v"), 0);
	/* newer: not damaged, but nothing that this program can judge */
	flip("v/manifest", 4);
	assert_int_equal(run("verify @/v"), 3);
	says("manifest: version 33 of the format (at byte 4), this program knows 1; use a newer "
	     "one");
	flip("v/manifest", 4);
	assert_int_equal(run("verify @/none"), 3);
}

static void test_verify_lengths(void **state)
{
	(void)state;
	make_image("l", 0, IMAGE_SEALED);
	_cleanup_fd_ int fd = open_file("l/pages-0");
	assert_int_equal(ftruncate(fd, 4096), 0);
	assert_int_equal(run("verify @/l"), 1);
	says("pages-0: damaged: 4096 bytes long where index-0 tells of 2097152");
	assert_int_equal(run("mem @/l 4242 400000+8"), 3);
}

static void test_diff(void **state)
{
	(void)state;
	make_image("a", 0, IMAGE_SEALED);
	make_image("b", 0, IMAGE_SEALED);
	make_image("c", 1, IMAGE_SEALED);
	assert_int_equal(run("diff @/a @/b"), 0);
	assert_int_equal(out_len, 0);
	assert_int_equal(run("diff @/a @/c"), 1);
	says("tree.procs[pid=300].umask: 18, then 19");
	says("process 4242 (thread 4242): 0x400000-0x401000: other bytes");
	says("1 pages have other bytes, 0 are only in the first, 0 only in the second");
	assert_int_equal(run("diff --quiet @/a @/c"), 1);
	assert_int_equal(out_len, 0);
	assert_int_equal(run("diff --pages @/a @/c"), 1);
	assert_null(strstr(out, "umask"));
	assert_int_equal(run("diff --tree @/a @/c"), 1);
	assert_null(strstr(out, "0x400000"));
	assert_int_equal(run("diff --tree --pages @/a @/c"), 2);
	assert_int_equal(run("diff @/a @/none"), 3);
}

static void test_mem(void **state)
{
	uint8_t page[CR_PAGE_SIZE];

	(void)state;
	make_image("m", 3, IMAGE_SEALED);
	fill_page_with(page, ANON_VA, 3);
	assert_int_equal(run("mem @/m 4242 400000-401000"), 0);
	assert_int_equal(out_len, CR_PAGE_SIZE);
	assert_memory_equal(out, page, CR_PAGE_SIZE);
	assert_int_equal(run("mem @/m 4242 400ffd+3"), 0);
	assert_int_equal(out_len, 3);
	assert_memory_equal(out, page + 0xffd, 3);
	assert_int_equal(run("mem --hex @/m 4242 400010+12"), 0);
	says("000000400010  13 00 40 00");
	says("000000400020  23 00");
	assert_int_equal(run("mem @/m 4242"), 0);
	says("000000400000-");
	/* a mapped file has it, the image does not */
	assert_int_equal(run("mem @/m 4242 1000000+8"), 3);
	says("not in the image: the mapped file has it");
	assert_int_equal(run("mem --zeros @/m 4242 1000000+8"), 0);
	assert_memory_equal(out, "\0\0\0\0\0\0\0", 8);
	assert_int_equal(run("mem @/m 4242 100000+8"), 3);
	says("no memory there");
	assert_int_equal(run("mem @/m 4250"), 3); /* a zombie */
	assert_int_equal(run("mem @/m 7"), 3);
	assert_int_equal(run("mem @/m 4242 nonsense"), 3);
	assert_int_equal(run("mem @/m 4242 400000-3000"), 3);
}

static void test_tree(void **state)
{
	(void)state;
	make_image("t", 0, IMAGE_SEALED);
	assert_int_equal(run("tree --threads @/t"), 0);
	says("4242 thread 4242  2 threads  3 descriptors  4.1 kB\n");
	says("│ thread 4243 thread 4243\n");
	says("├─ 4250 (a zombie, status 0xb00)\n");
	says("└─ 300 thread 300");
}

static void test_not_complete(void **state)
{
	(void)state;
	make_image("r", 0, IMAGE_RECEIVING);
	assert_int_equal(run("ls @/r"), 0);
	says("receiving");
	assert_int_equal(run("verify @/r"), 0);
	says("nobody knows what its pages are");
	assert_int_equal(run("tree @/r"), 3);
	assert_int_equal(run("mem @/r 4242"), 3);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_usage),
	    cmocka_unit_test(test_ls),
	    cmocka_unit_test(test_show),
	    cmocka_unit_test(test_verify),
	    cmocka_unit_test(test_verify_lengths),
	    cmocka_unit_test(test_diff),
	    cmocka_unit_test(test_mem),
	    cmocka_unit_test(test_tree),
	    cmocka_unit_test(test_not_complete),
	};

	return cmocka_run_group_tests(tests, begin, end);
}
