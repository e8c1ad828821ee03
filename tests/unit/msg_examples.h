/* One message of each kind, and a comparison of every field. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include <errno.h>
#include <stddef.h>

#include "wire/msg.h"

/* ---- one message of each kind, with a value of its own in every field ---- */

static inline struct mig_id an_id(void)
{
	struct mig_id id;

	for (size_t i = 0; i < sizeof(id.b); i++)
		id.b[i] = (uint8_t)(0xa0 + i);
	return id;
}

static inline struct mig_token a_token(void)
{
	struct mig_token t;

	for (size_t i = 0; i < sizeof(t.b); i++)
		t.b[i] = (uint8_t)(0x10 + i);
	return t;
}

static const struct msg_opts some_opts = {.downtime_limit_us = 5000,
					  .max_rounds = 7,
					  .max_bandwidth = 125000000,
					  .streams = 3,
					  .compress = MSG_COMPRESS_NONE,
					  .verify = MSG_VERIFY_FULL,
					  .launch = MSG_LAUNCH_SIGRETURN,
					  .leave_running = true,
					  .rehearse = true,
					  .no_hw_breakpoints = true,
					  .no_bpf = true,
					  .mode = MSG_MODE_HYBRID,
					  .no_convergence = MSG_NO_CONVERGENCE_ABORT,
					  .postcopy_timeout_ms = 700,
					  .tcp = MSG_TCP_CLOSE,
					  .n_move = 2,
					  .move = {"192.0.2.7/24%eth0", "2001:db8::1/64%bond0"},
					  .copy_files = true,
					  .copy_replace = true};

static struct msg_note some_notes[] = {{"alpha", 4242, "fd 7 (redis-server)", "io_uring instance"},
				       {"beta", 0, "the host", "no userfaultfd"}};
static struct msg_digest some_digests[] = {{4242, UINT32_MAX, 100, {1, 2, 3}},
					   {0, 0, 7, {4, 5, 6}}};
static struct msg_target some_targets[] = {{4242, UINT32_MAX, 0, 4241}, {0, 3, 1, 0}};
static struct msg_range some_ranges[] = {{0x7f0000000000, 0x7f0000002000}, {0x1000, 0x3000}};
static struct msg_packet some_packets[] = {
    {1, 4, 40, 1448, 20, 16, (const uint8_t *)"a header of forty bytes: IPv4 and TCP, data", 43},
    {.data = (const uint8_t *)"another", .len = 7}};
static struct msg_part some_parts[] = {{"files", 120}, {"registers", 80}};
static const pid_t some_pids[] = {4242, 4243};
static const uint64_t some_histogram[MSG_HISTOGRAM] = {1, 2, [MSG_HISTOGRAM - 1] = 3};
static const struct msg_loss some_losses[] = {{4242, 0x1000, 0x3000, 2}, {4243, 0, 1, 1}};
static struct msg_status some_status = {.role = "source",
					.state = "in doubt",
					.pids = some_pids,
					.n_pids = 2,
					.peer = "beta",
					.since_sec = 1700000000,
					.postcopying = true,
					.postcopy = {10, 9, 8, 7, 6, 5, 4, 3, 2, 1},
					.pages_left = 77,
					.histogram = some_histogram,
					.losses = some_losses,
					.n_losses = 2};
static const char *some_paths[] = {"/opt/program", "/tmp/x y"};
static uint32_t some_wanted[] = {1, 0};
static struct msg_xattr some_xattrs[] = {{"user.a", (const uint8_t *)"1", 1},
					 {"user.b", (const uint8_t *)"", 0}};
static struct msg_directory some_dirs[] = {{01777, 7, 8}};
static const struct cr_err some_err = {.code = ENOSPC,
				       .kind = CR_ERR_KERNEL,
				       .pid = 4242,
				       .stage = "rebuild",
				       .msg = "pipe: no space"};

static inline struct msg example(enum msg_type type)
{
	struct msg m = {.type = type};

	switch (type) {
	case MSG_HELLO:
		m.hello =
		    (struct msg_hello){MSG_VERSION, MSG_ROLE_PEER, an_id(), a_token(), "alpha", 5};
		break;
	case MSG_ERROR:
		m.error = some_err;
		break;
	case MSG_RECEIVE:
		m.receive = (struct msg_receive){an_id(), a_token(), "alpha", some_opts};
		break;
	case MSG_RECEIVE_READY:
		m.receive_ready =
		    (struct msg_receive_ready){"10.0.0.2:40000", "10.0.0.2:40001", "beta"};
		break;
	case MSG_MIGRATE:
		m.migrate = (struct msg_migrate){
		    an_id(), a_token(), "10.0.0.2:40000", "10.0.0.2:40001", "beta",
		    4242,    "/web",    "/web/1",         some_opts,        0x101};
		break;
	case MSG_EVENT:
		m.event = (struct msg_event){"freeze", "freezing 3 processes"};
		break;
	case MSG_ROUND:
		m.round = (struct msg_round){2, 1000, 900, 3686400, 12000, 307200000, 1500};
		break;
	case MSG_REFUSED:
		m.refused = (struct msg_notes){some_notes, 2};
		break;
	case MSG_WARNING:
		m.warning = (struct msg_notes){some_notes, 1};
		break;
	case MSG_DONE:
		m.done = (struct msg_done){MSG_OUTCOME_FAILED,
					   1,
					   2,
					   {3, 4, 5, 6, 7, 8},
					   9,
					   some_err,
					   10,
					   11,
					   12,
					   true,
					   {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}};
		break;
	case MSG_STATUS_LIST:
		some_status.id = an_id();
		m.status_list = (struct msg_status_list){&some_status, 1};
		break;
	case MSG_RESOLVE:
		m.resolve = (struct msg_resolve){an_id(), MSG_ACTION_TAKE_OVER};
		break;
	case MSG_RESOLVED:
		m.resolved.text = "the tasks run here";
		break;
	case MSG_TREE:
		m.tree = (struct msg_tree){MSG_STAGE_FINAL, (const uint8_t *)"\0tree", 5, true};
		break;
	case MSG_TREE_OK:
		m.tree_ok = (struct msg_tree_ok){{some_notes, 1},
						 {some_notes + 1, 1},
						 0x10000,
						 0x20000,
						 some_targets,
						 2,
						 true,
						 true};
		break;
	case MSG_RESET:
		m.reset = (struct msg_reset){4242, UINT32_MAX, some_ranges, 2};
		break;
	case MSG_CLOCK_REPLY:
		m.clock_reply = (struct msg_clock_reply){123456789, UINT64_MAX};
		break;
	case MSG_VERIFY:
		m.verify = (struct msg_digests){some_digests, 2};
		break;
	case MSG_PREPARED:
		m.prepared = (struct msg_prepared){true, some_parts, 2};
		break;
	case MSG_RUNNING:
		m.running.us = 345;
		break;
	case MSG_QUERY:
		m.query.id = an_id();
		break;
	case MSG_STATE:
		m.state = (struct msg_state){MSG_STATE_PREPARED, "waiting for alpha"};
		break;
	case MSG_IMAGE:
		m.image.name = "web";
		break;
	case MSG_RUN_HOOK:
		m.run_hook = (struct msg_run_hook){MSG_HOOK_NETWORK_SWITCH, 4242, true};
		break;
	case MSG_IMAGE_OK:
		m.image_ok.rounds = 3;
		m.image_ok.writer = an_id();
		break;
	case MSG_KNOWN:
		m.known = (struct msg_known){7, 0x7f0000001000};
		break;
	case MSG_KNOWN_OK:
		m.known_ok = (struct msg_known_ok){(const uint8_t *)"chunks", 6, 0x7f0000200000};
		break;
	case MSG_LAZY:
		m.lazy = (struct msg_lazy){MSG_LAZY_BULK, "web", 77};
		break;
	case MSG_FILES:
		m.files = (struct msg_files){some_paths, 2};
		break;
	case MSG_FILES_OK:
		m.files_ok = (struct msg_files_ok){some_wanted, 2};
		break;
	case MSG_FILE:
		m.file = (struct msg_file){"/opt/program", 1, 02755,     3, 4, 5, 6,
					   some_xattrs,    2, some_dirs, 1};
		break;
	case MSG_FILE_DATA:
		m.file_data = (struct msg_file_data){4096, 0, (const uint8_t *)"bytes", 5};
		break;
	case MSG_WAITING:
		m.waiting = (struct msg_waiting){(const uint8_t *)"connections", 11};
		break;
	case MSG_PACKETS:
		m.packets = (struct msg_packets){some_packets, 2};
		break;
	default: /* says all by its type */
		break;
	}
	return m;
}

/* ---- comparison ---- */

#define SAME(f) assert_true(a->f == b->f)
#define SAME_STR(f) assert_string_equal(a->f, b->f)
#define SAME_ID(f) assert_memory_equal(&a->f, &b->f, sizeof(a->f))

static inline void same_packet(const struct msg_packet *a, const struct msg_packet *b)
{
	SAME(flags), SAME(gso_type), SAME(hdr_len), SAME(gso_size), SAME(csum_start);
	SAME(csum_offset), SAME(len);
	assert_memory_equal(a->data, b->data, a->len);
}

static inline void same_err(const struct cr_err *a, const struct cr_err *b)
{
	SAME(code), SAME(kind), SAME(pid);
	SAME_STR(stage), SAME_STR(msg);
}

static inline void same_opts(const struct msg_opts *a, const struct msg_opts *b)
{
	SAME(downtime_limit_us), SAME(max_rounds), SAME(max_bandwidth), SAME(streams);
	SAME(compress), SAME(verify), SAME(launch), SAME(leave_running);
	SAME(rehearse), SAME(no_hw_breakpoints), SAME(mode), SAME(no_convergence);
	SAME(postcopy_timeout_ms), SAME(no_bpf);
	SAME(tcp), SAME(n_move), SAME(copy_files), SAME(copy_replace);
	for (uint32_t i = 0; i < a->n_move; i++)
		assert_string_equal(a->move[i], b->move[i]);
}

static inline void same_notes(const struct msg_notes *x, const struct msg_notes *y)
{
	assert_int_equal(x->n, y->n);
	for (size_t i = 0; i < x->n; i++) {
		const struct msg_note *a = &x->v[i], *b = &y->v[i];

		SAME_STR(host), SAME(pid), SAME_STR(what), SAME_STR(why);
	}
}

static inline void same_digests(const struct msg_digests *x, const struct msg_digests *y)
{
	assert_int_equal(x->n, y->n);
	for (size_t i = 0; i < x->n; i++) {
		const struct msg_digest *a = &x->v[i], *b = &y->v[i];

		SAME(pid), SAME(object), SAME(pages), SAME_ID(digest);
	}
}

static inline void same_status(const struct msg_status *a, const struct msg_status *b)
{
	SAME_ID(id), SAME_STR(role), SAME_STR(state), SAME_STR(peer);
	SAME(since_sec), SAME(n_pids), SAME(postcopying), SAME(pages_left), SAME(n_losses);
	SAME_ID(postcopy);
	for (size_t i = 0; i < a->n_losses; i++) {
		const struct msg_loss *x = &a->losses[i], *y = &b->losses[i];

		assert_true(x->pid == y->pid && x->start == y->start && x->end == y->end &&
			    x->pages == y->pages);
	}
	assert_memory_equal(a->histogram, b->histogram, sizeof(some_histogram));
	assert_memory_equal(a->pids, b->pids, a->n_pids * sizeof(pid_t));
}

static inline void same_control(const struct msg *a, const struct msg *b)
{
	switch (a->type) {
	case MSG_HELLO:
		SAME(hello.version), SAME(hello.role), SAME(hello.capabilities);
		SAME_ID(hello.id), SAME_ID(hello.token), SAME_STR(hello.host);
		break;
	case MSG_ERROR:
		same_err(&a->error, &b->error);
		break;
	case MSG_RECEIVE:
		SAME_ID(receive.id), SAME_ID(receive.token), SAME_STR(receive.source_name);
		same_opts(&a->receive.opts, &b->receive.opts);
		break;
	case MSG_RECEIVE_READY:
		SAME_STR(receive_ready.peer_address), SAME_STR(receive_ready.pages_address);
		SAME_STR(receive_ready.host);
		break;
	case MSG_MIGRATE:
		SAME_ID(migrate.id), SAME_ID(migrate.token), SAME_STR(migrate.peer_address);
		SAME_STR(migrate.pages_address), SAME_STR(migrate.dest_name), SAME(migrate.pid),
		    SAME(migrate.hooks);
		SAME_STR(migrate.cgroup), SAME_STR(migrate.freeze_cgroup);
		same_opts(&a->migrate.opts, &b->migrate.opts);
		break;
	case MSG_EVENT:
		SAME_STR(event.name), SAME_STR(event.text);
		break;
	case MSG_ROUND:
		assert_memory_equal(&a->round.pages_written, &b->round.pages_written,
				    sizeof(a->round) - offsetof(struct msg_round, pages_written));
		SAME(round.round);
		break;
	case MSG_REFUSED:
		same_notes(&a->refused, &b->refused);
		break;
	case MSG_WARNING:
		same_notes(&a->warning, &b->warning);
		break;
	case MSG_DONE:
		SAME(done.outcome), SAME(done.downtime_us), SAME(done.total_us);
		SAME(done.memory_bytes), SAME(done.stops), SAME(done.longest_stop_us),
		    SAME(done.stop_pages);
		SAME_ID(done.phases), SAME(done.postcopied), SAME_ID(done.postcopy);
		same_err(&a->done.error, &b->done.error);
		break;
	case MSG_STATUS_LIST:
		assert_int_equal(b->status_list.n, 1);
		same_status(a->status_list.v, b->status_list.v);
		break;
	case MSG_RESOLVE:
		SAME_ID(resolve.id), SAME(resolve.action);
		break;
	case MSG_RESOLVED:
		SAME_STR(resolved.text);
		break;
	default:
		break;
	}
}

static inline void same_peer(const struct msg *a, const struct msg *b)
{
	switch (a->type) {
	case MSG_TREE:
		SAME(tree.stage), SAME(tree.tree_len), SAME(tree.in_turns);
		assert_memory_equal(a->tree.tree, b->tree.tree, a->tree.tree_len);
		break;
	case MSG_TREE_OK:
		same_notes(&a->tree_ok.refusals, &b->tree_ok.refusals);
		same_notes(&a->tree_ok.warnings, &b->tree_ok.warnings);
		SAME(tree_ok.hole_start), SAME(tree_ok.hole_end), SAME(tree_ok.n_targets);
		SAME(tree_ok.more), SAME(tree_ok.lazy_objects), SAME(tree_ok.lazy_huge);
		SAME(tree_ok.lazy_memfds), SAME(tree_ok.lazy_huge_objects);
		SAME(tree_ok.lazy_unlinked), SAME(tree_ok.lazy_clean), SAME(tree_ok.lazy_holes);
		assert_memory_equal(a->tree_ok.targets, b->tree_ok.targets, sizeof(some_targets));
		break;
	case MSG_FILES:
		SAME(files.n);
		for (size_t i = 0; i < a->files.n; i++)
			SAME_STR(files.paths[i]);
		break;
	case MSG_FILES_OK:
		SAME(files_ok.n);
		assert_memory_equal(a->files_ok.wanted, b->files_ok.wanted, sizeof(some_wanted));
		break;
	case MSG_FILE:
		SAME_STR(file.path), SAME(file.size), SAME(file.mode), SAME(file.uid);
		SAME(file.gid), SAME(file.atime_ns), SAME(file.mtime_ns);
		SAME(file.n_xattrs), SAME(file.n_parents);
		for (size_t i = 0; i < a->file.n_xattrs; i++) {
			SAME_STR(file.xattrs[i].name), SAME(file.xattrs[i].len);
			assert_memory_equal(a->file.xattrs[i].value, b->file.xattrs[i].value,
					    a->file.xattrs[i].len);
		}
		assert_memory_equal(a->file.parents, b->file.parents, sizeof(some_dirs));
		break;
	case MSG_FILE_DATA:
		SAME(file_data.offset), SAME(file_data.hole), SAME(file_data.len);
		assert_memory_equal(a->file_data.data, b->file_data.data, a->file_data.len);
		break;
	case MSG_RESET:
		SAME(reset.pid), SAME(reset.object), SAME(reset.n_ranges);
		SAME(reset.taken_back);
		assert_memory_equal(a->reset.ranges, b->reset.ranges, sizeof(some_ranges));
		break;
	case MSG_CLOCK_REPLY:
		SAME_ID(clock_reply);
		break;
	case MSG_VERIFY:
		same_digests(&a->verify, &b->verify);
		break;
	case MSG_PREPARED:
		SAME(prepared.takes_closed);
		SAME(prepared.n_parts);
		for (size_t i = 0; i < a->prepared.n_parts; i++) {
			SAME_STR(prepared.parts[i].name);
			SAME(prepared.parts[i].us);
		}
		break;
	case MSG_RUNNING:
		SAME(running.us);
		break;
	case MSG_QUERY:
		SAME_ID(query.id);
		break;
	case MSG_STATE:
		SAME(state.state), SAME_STR(state.text);
		break;
	case MSG_IMAGE:
		SAME_STR(image.name);
		break;
	case MSG_RUN_HOOK:
		SAME(run_hook.stage), SAME(run_hook.pid), SAME(run_hook.undo);
		break;
	case MSG_IMAGE_OK:
		SAME(image_ok.rounds), SAME_ID(image_ok.writer);
		break;
	case MSG_KNOWN:
		SAME(known.target), SAME(known.from);
		break;
	case MSG_KNOWN_OK:
		SAME(known_ok.len), SAME(known_ok.next);
		assert_memory_equal(a->known_ok.chunks, b->known_ok.chunks, a->known_ok.len);
		break;
	case MSG_LAZY:
		SAME(lazy.kind), SAME_STR(lazy.image), SAME(lazy.pair);
		break;
	case MSG_WAITING:
		SAME(waiting.len);
		assert_memory_equal(a->waiting.list, b->waiting.list, a->waiting.len);
		break;
	case MSG_PACKETS:
		SAME(packets.n);
		for (size_t i = 0; i < a->packets.n; i++)
			same_packet(&a->packets.v[i], &b->packets.v[i]);
		break;
	default:
		break;
	}
}
