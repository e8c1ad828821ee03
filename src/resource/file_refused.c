/* Everything that no other kind takes: refused by a name that a user can do something with. */
#include "resource/file_kind.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>

enum { MQUEUE_MAGIC = 0x19800202 }; /* ipc/mqueue.c; in no uapi header */

static bool match(const struct fd_probe *p)
{
	(void)p;
	return true;
}

/* By how the link of the descriptor starts. */
static const char *name_by_link(const char *link)
{
	static const struct {
		const char *start, *name;
	} list[] = {
	    {"anon_inode:[io_uring]", "io_uring instance"},
	    {"anon_inode:[fanotify]", "fanotify instance"},
	    {"anon_inode:[userfaultfd]", "userfaultfd"},
	    {"anon_inode:[perf_event]", "perf event"},
	    {"anon_inode:bpf", "bpf object"},
	    {"anon_inode:btf", "bpf object"},
	    {"anon_inode:[bpf", "bpf object"},
	    {"anon_inode:seccomp notify", "seccomp listener"},
	    {"anon_inode:[landlock", "landlock ruleset"},
	    {"anon_inode:[fscontext]", "file system context"},
	    {"anon_inode:kvm", "KVM descriptor"},
	    {"anon_inode:[vfio", "VFIO descriptor"},
	    {"anon_inode:", "anonymous inode"},
	    {"/memfd:", "memfd of a kind that is not known"},
	    {"/secretmem", "secret memory"},
	    {"/dev/zero (deleted)", "shared anonymous memory opened as a file"},
	    {"/SYSV", "System V shared memory opened as a file"},
	    {"/dev/tty", "terminal"},
	    {"/dev/console", "terminal"},
	    {"net:[", "namespace descriptor"},
	    {"mnt:[", "namespace descriptor"},
	    {"pid:[", "namespace descriptor"},
	    {"user:[", "namespace descriptor"},
	    {"ipc:[", "namespace descriptor"},
	    {"uts:[", "namespace descriptor"},
	    {"cgroup:[", "namespace descriptor"},
	    {"time:[", "namespace descriptor"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(list); i++)
		if (!strncmp(link, list[i].start, strlen(list[i].start)))
			return list[i].name;
	return NULL;
}

static const char *name_by_mode(const struct fd_probe *p)
{
	switch (p->st.st_mode & S_IFMT) {
	case S_IFBLK:
		return "block device";
	case S_IFCHR:
		return major(p->st.st_rdev) >= 136 && major(p->st.st_rdev) <= 143
			   ? "terminal"
			   : "character device";
	case S_IFREG:
	case S_IFDIR:
		if (p->fs_magic == MQUEUE_MAGIC)
			return "POSIX message queue";
		return p->st.st_nlink ? "file of a special file system" : "unlinked file";
	default:
		return "unknown kind of descriptor";
	}
}

static void name_socket(const struct fd_probe *p, char *buf, size_t size)
{
	static const char *const types[] = {"?", "stream", "datagram", "raw", "?", "seqpacket"};
	const char *type = (unsigned)p->so_type < ARRAY_SIZE(types) ? types[p->so_type] : "?";

	switch (p->so_domain) {
	case AF_UNIX:
		snprintf(buf, size, "unix %s socket", type);
		break;
	case AF_INET:
	case AF_INET6:
		if (p->so_protocol == IPPROTO_MPTCP) {
			snprintf(buf, size, "MPTCP socket");
			break;
		}
		snprintf(buf, size, "%s %s socket, protocol %d",
			 p->so_domain == AF_INET ? "IPv4" : "IPv6", type, p->so_protocol);
		break;
	case AF_NETLINK:
		snprintf(buf, size, "netlink socket, protocol %d", p->so_protocol);
		break;
	case AF_PACKET:
		snprintf(buf, size, "packet socket");
		break;
	default:
		snprintf(buf, size, "%s socket of family %d", type, p->so_domain);
	}
}

static int capture(struct files_ctx *x, const struct fd_probe *p, struct file *f,
		   struct cr_err *err)
{
	char socket_name[80];
	const char *name = name_by_link(p->link);

	(void)err;
	if (p->so_domain) {
		name_socket(p, socket_name, sizeof(socket_name));
		name = socket_name;
	}
	if (!name)
		name = name_by_mode(p);
	if (p->link[0] == '/')
		files_refuse(x, p->pid, p->fd, "%.160s: %s: not supported; close it first", p->link,
			     name);
	else if (!strncmp(p->link, "anon_inode:", 11) && !strcmp(name, "anonymous inode"))
		files_refuse(x, p->pid, p->fd, "%.80s: not supported; close it first", p->link);
	else
		files_refuse(x, p->pid, p->fd, "%s: not supported; close it first", name);
	f->kind = 0;
	return 0;
}

const struct file_ops file_ops_refused = {
    .name = "unsupported",
    .match = match,
    .capture = capture,
};
