/* An agent that plays a part: a process of its own that speaks the protocol over a unix socket. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "wire/addr.h"
#include "wire/link.h"

/* What the other processes saw; shared memory. */
struct seen {
	int migrates, receives, aborts, resolves, hellos_migrate, hellos_query;
	struct msg_opts opts;
	pid_t pid;
	char cgroup[64], freeze_cgroup[64], dest_name[64], source_name[64];
	char peer_address[ADDR_TEXT], pages_address[ADDR_TEXT];
	enum msg_action action;
	struct mig_id id, resolve_id;
	bool ids_agree;
};

enum { FAKE_LINKS = 16 };

struct fake {
	const char *name;
	char address[ADDR_TEXT];
	int listen_fd;
	pid_t pid;
	struct seen *seen;
	/* Answers m; false ends the link. NULL: the link ends at once. */
	bool (*act)(struct fake *f, struct link *l, const struct msg *m);
	int asked; /* how often, by QUERY */
	struct link *links[FAKE_LINKS];
};

static inline bool fake_send(struct link *l, struct msg m)
{
	struct cr_err err = {0};

	return link_send(l, &m, &err) == 0;
}

static inline bool fake_hello(struct fake *f, struct link *l, const struct msg *m)
{
	struct msg reply = {
	    .type = MSG_HELLO,
	    .hello = {.version = MSG_VERSION, .role = MSG_ROLE_AGENT, .host = f->name}};

	if (m->hello.role == MSG_ROLE_MIGRATE) {
		f->seen->hellos_migrate++;
		f->seen->id = m->hello.id;
	} else {
		f->seen->hellos_query++;
	}
	return fake_send(l, reply);
}

static inline bool fake_event(struct link *l, const char *name, const char *text)
{
	return fake_send(l, (struct msg){.type = MSG_EVENT, .event = {name, text}});
}

static inline bool fake_state(struct link *l, enum msg_peer_state s)
{
	return fake_send(l, (struct msg){.type = MSG_STATE, .state = {s, ""}});
}

/* RECEIVE as every destination here answers it. */
static inline bool fake_receive(struct fake *f, struct link *l, const struct msg *m)
{
	f->seen->receives++;
	f->seen->opts = m->receive.opts;
	snprintf(f->seen->source_name, sizeof(f->seen->source_name), "%s", m->receive.source_name);
	return fake_send(l, (struct msg){.type = MSG_RECEIVE_READY,
					 .receive_ready = {"10.0.0.2:1", "10.0.0.2:2", f->name}});
}

static inline void fake_note_migrate(struct fake *f, const struct msg *m)
{
	struct seen *s = f->seen;

	s->migrates++;
	s->pid = m->migrate.pid;
	snprintf(s->cgroup, sizeof(s->cgroup), "%s", m->migrate.cgroup);
	snprintf(s->freeze_cgroup, sizeof(s->freeze_cgroup), "%s", m->migrate.freeze_cgroup);
	snprintf(s->dest_name, sizeof(s->dest_name), "%s", m->migrate.dest_name);
	snprintf(s->peer_address, sizeof(s->peer_address), "%s", m->migrate.peer_address);
	snprintf(s->pages_address, sizeof(s->pages_address), "%s", m->migrate.pages_address);
	s->ids_agree = mig_id_equal(&s->id, &m->migrate.id);
}

static inline void fake_accept(struct fake *f)
{
	struct cr_err err = {0};

	for (int i = 0; i < FAKE_LINKS; i++)
		if (!f->links[i]) {
			if (link_accept(f->listen_fd, &f->links[i], &err) < 0)
				f->links[i] = NULL;
			return;
		}
	_exit(3);
}

/* All that has come on one link. */
static inline void fake_turn(struct fake *f, int i)
{
	struct cr_err err = {0};
	struct msg m;
	bool go_on;
	int r;

	while ((r = link_recv(f->links[i], 0, &m, &err)) == 0) {
		go_on = m.type == MSG_HELLO ? fake_hello(f, f->links[i], &m)
					    : f->act(f, f->links[i], &m);
		msg_free(&m);
		if (!go_on)
			break;
	}
	if (r != -ETIMEDOUT) {
		link_free(f->links[i]);
		f->links[i] = NULL;
	}
}

static inline void fake_main(struct fake *f)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	for (;;) {
		struct pollfd p[1 + FAKE_LINKS] = {{.fd = f->listen_fd, .events = POLLIN}};

		for (int i = 0; i < FAKE_LINKS; i++)
			p[1 + i] = (struct pollfd){.fd = f->links[i] ? link_fd(f->links[i]) : -1,
						   .events = POLLIN};
		if (poll(p, 1 + FAKE_LINKS, -1) < 0)
			_exit(2);
		for (int i = 0; i < FAKE_LINKS; i++)
			if (p[1 + i].revents)
				fake_turn(f, i);
		if (p[0].revents)
			fake_accept(f);
	}
}

static inline void fake_start(struct fake *f, const char *name, const char *dir,
			      bool (*act)(struct fake *, struct link *, const struct msg *))
{
	struct cr_err err = {0};

	*f = (struct fake){.name = name, .act = act};
	snprintf(f->address, sizeof(f->address), "unix:%s/%s.sock", dir, name);
	f->listen_fd = link_listen(f->address, &err);
	if (f->listen_fd < 0)
		fail_msg("%s", err.msg);
	f->seen =
	    mmap(NULL, sizeof(*f->seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(f->seen, MAP_FAILED);
	f->pid = fork();
	assert_true(f->pid >= 0);
	if (f->pid == 0)
		fake_main(f);
}

static inline void fake_stop(struct fake *f)
{
	if (f->pid <= 0)
		return;
	kill(f->pid, SIGKILL);
	waitpid(f->pid, NULL, 0);
	close(f->listen_fd);
	unlink(f->address + 5);
	munmap(f->seen, sizeof(*f->seen));
	*f = (struct fake){0};
}
