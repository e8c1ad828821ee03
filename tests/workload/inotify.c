/* inotify: watches with their numbers and masks, on what they were on; events that come after the
 * move. */
#include "workload.h"

#include <poll.h>
#include <sys/inotify.h>

static int fd, dir_wd, file_wd, once_wd, link_wd;

static void touch(const char *name)
{
	char path[256];
	int f = open(wl_path(path, name), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

	wl_check(f >= 0 && write(f, "x", 1) == 1, "%s: %s", path, strerror(errno));
	close(f);
}

static int watch(const char *name, uint32_t mask)
{
	char path[256];
	int wd = inotify_add_watch(fd, wl_path(path, name), mask);

	wl_check(wd > 0, "watching %s: %s", path, strerror(errno));
	return wd;
}

static void expect(int wd, uint32_t mask, const char *name)
{
	static char buf[4096];
	static ssize_t n, at;
	struct pollfd p = {.fd = fd, .events = POLLIN};

	if (at >= n) {
		wl_check(poll(&p, 1, 5000) == 1, "no event; expected %#x of watch %d", mask, wd);
		n = read(fd, buf, sizeof(buf));
		at = 0;
		wl_check(n > 0, "read: %s", strerror(errno));
	}
	const struct inotify_event *e = (const void *)(buf + at);
	at += sizeof(*e) + e->len;
	wl_check(e->wd == wd && e->mask == mask && !strcmp(e->len ? e->name : "", name),
		 "expected event %#x of watch %d on '%s', got %#x of %d on '%s'", mask, wd, name,
		 e->mask, e->wd, e->len ? e->name : "");
}

static void use_all(void)
{
	char path[256];

	touch("watched/new");
	expect(dir_wd, IN_CREATE, "new");
	unlink(wl_path(path, "watched/new"));
	expect(dir_wd, IN_DELETE, "new");
	touch("file");
	expect(file_wd, IN_MODIFY, "");
}

int main(int argc, char **argv)
{
	char path[256];

	wl_init(argc, argv);
	wl_must(!mkdir(wl_path(path, "watched"), 0755), path);
	wl_must(!symlink("nowhere", wl_path(path, "link")), path);
	touch("file");
	fd = inotify_init1(IN_CLOEXEC);
	wl_must(fd >= 0, "inotify_init1");
	for (int i = 0; i < 40; i++) /* numbers that nobody has any more */
		inotify_rm_watch(fd, watch("file", IN_OPEN));
	dir_wd = watch("watched", IN_CREATE | IN_DELETE | IN_ONLYDIR);
	inotify_rm_watch(fd, watch(".", IN_OPEN));
	file_wd = watch("file", IN_MODIFY);
	once_wd = watch("watched/..", IN_DELETE_SELF | IN_ONESHOT);
	link_wd = watch("link", IN_ATTRIB | IN_DONT_FOLLOW);
	for (struct pollfd p = {.fd = fd, .events = POLLIN}; poll(&p, 1, 0) == 1;) {
		char buf[4096]; /* IN_IGNORED of the numbers that went */

		wl_must(read(fd, buf, sizeof(buf)) > 0, "read");
	}
	use_all();
	wl_ready();
	while (!wl_stop()) {
		/* not all the time: a switch-over at which an event waits is undone */
		if (wl_tick())
			use_all();
		wl_sleep_us(3000);
	}
	use_all();
	wl_same("another watch", link_wd + 1, watch("stop", IN_OPEN));
	wl_must(!lchown(wl_path(path, "link"), -1, -1) || 1, "lchown");
	wl_must(!inotify_rm_watch(fd, once_wd), "inotify_rm_watch");
	expect(once_wd, IN_IGNORED, "");
	wl_must(!unlink(wl_path(path, "link")), "unlink");
	expect(link_wd, IN_ATTRIB, "");
	wl_done();
}
