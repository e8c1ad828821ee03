/* Pages out of stopped tasks, or out of an image: what the destination asks for at once, everything
 * else in between. Needs neither privilege nor network: all that it works with is handed to it. */
#pragma once
#include "base/err.h"
#include "wire/lazy_stream.h"
#include "wire/msg.h"
#include "wire/ps_serve.h"

/* Shared memory: id LAZY_OBJECT and its index; or, with SERVE_KNOWN besides, what was sent of it
 * (serve_known.h). */
struct serve_file {
	pid_t id;
	int fd;
};
enum { SERVE_KNOWN = 1 << 25 };

struct serve {
	const pid_t *pids; /* those whose memory may be asked for; stopped */
	/* NULL, or when each was started, proc_pid_stat(5): nobody else by that pid is asked */
	const uint64_t *starts;
	const int *mems; /* of each: /proc/PID/mem. Not used if there is read */
	size_t n_pids;
	const struct serve_file *files;
	size_t n_files;
	/* All that may be said to be missing: whole chunks (LAZY_CHUNK_SPAN), those of one pid, or
	 * file, in a row and ascending. The destination can make us take memory for no more: of
	 * anything else no note is taken, and if it is much, that is the end. */
	const struct serve_range *has;
	size_t n_has;
	uint64_t max_bandwidth; /* bytes/s of what is pushed; 0: no limit */
	const struct serve_range
	    *recent; /* what was written last, the latest first: pushed first */
	size_t n_recent;
	int lifeline; /* once it is readable all ends, -ECANCELED; -1: none */
	/* NULL, or told about once a second */
	void (*progress)(void *arg, uint64_t left);
	/* NULL: the tasks' own memory. Else where the pages are; returns how many of n it has read
	 */
	uint32_t (*read)(void *arg, pid_t pid, uint64_t va, uint32_t n, uint8_t *buf);
	void *arg;
	/* as the destination has it; asked_again, asked_clean: all that were */
	struct msg_postcopy result;
};

struct serve_links { /* connections on which LAZY was answered by OK */
	int urgent;
	int bulk[LAZY_BULK_MAX];
	size_t n_bulk;
};

void serve_links_close(struct serve_links *links);

/* Until the destination has everything (0), or the connections break. They become ours. Needs
 * nothing from a connection before: what is missing, the destination says. */
int serve_on(struct serve *sv, struct serve_links *links, struct cr_err *err) must_check;
