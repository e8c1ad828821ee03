/* page-server: takes pages from the network and puts them where they belong. */
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "kernel/background.h"
#include "pageserver/options.h"
#include "pageserver/server.h"
#include "wire/addr.h"
#include "wire/addr_resolve.h"

enum { BACKLOG = 256, STOP_TIMEOUT_MS = 10000, STOP_LOOK_MS = 50 };

enum { THREADS_CPUS = 3 }; /* one each for the loop, a thread, and what else there is */
enum { LIVE_NICE = 10 };

static void close_any(uv_handle_t *h, void *arg)
{
	(void)arg;
	if (!uv_is_closing(h))
		uv_close(h, NULL);
}

/* ---- the end ---- */

static void close_connections(struct server *sv)
{
	for (struct stream *st = sv->streams, *next; st; st = next) {
		next = stream_next(st);
		stream_close(st);
	}
	if (!uv_is_closing((uv_handle_t *)&sv->stop_timer))
		uv_close((uv_handle_t *)&sv->stop_timer, NULL);
}

static void on_stop_timeout(uv_timer_t *t)
{
	close_connections(t->data);
}

/* When the last connection is gone, so is the loop's last handle but the timer. */
static void on_stop_look(uv_timer_t *t)
{
	struct server *sv = t->data;

	if (!sv->streams)
		close_connections(sv);
	else if (now_us() - sv->stopped_us > STOP_TIMEOUT_MS * 1000ull)
		on_stop_timeout(t);
}

/* Who is about to be told that it is decided, or to say so, gets the time for it: it would be in
 * doubt else. The others are told, so that their tasks run on. */
static void server_stop(struct server *sv)
{
	struct cr_err why = {0};

	if (sv->stopping)
		return;
	sv->stopping = true;
	sv->stopped_us = now_us();
	notify_stopping(&sv->notify);
	cr_err_set(&why, CR_ERR_PEER, ESHUTDOWN, "the page-server is being stopped");
	control_close_all(sv);
	serving_stop(sv);
	for (struct stream *st = sv->streams, *next; st; st = next) {
		next = stream_next(st);
		if (!stream_is_deciding(st) && !stream_has_decider(st))
			stream_fail(st, &why);
	}
	uv_close((uv_handle_t *)&sv->listener, NULL);
	uv_close((uv_handle_t *)&sv->sigterm, NULL);
	uv_close((uv_handle_t *)&sv->sigint, NULL);
	uv_close((uv_handle_t *)&sv->sighup, NULL);
	uv_close((uv_handle_t *)&sv->sweep, NULL);
	uv_close((uv_handle_t *)&sv->throttle, NULL);
	sv->stop_timer.data = sv;
	if (uv_timer_init(&sv->loop, &sv->stop_timer) ||
	    uv_timer_start(&sv->stop_timer, on_stop_look, STOP_LOOK_MS, STOP_LOOK_MS))
		close_connections(sv);
}

static void on_signal(uv_signal_t *h, int signo)
{
	log_info("signal %d: closing", signo);
	server_stop(h->data);
}

/* ---- options ---- */

static void apply(struct server *sv)
{
	const struct options *o = &sv->options;

	log_set_level(o->verbose ? LOG_LVL_DEBUG : LOG_LVL_INFO);
	sv->max_connections = o->max_connections;
	sv->max_half_open =
	    o->max_half_open < o->max_connections ? o->max_half_open : o->max_connections;
	sv->idle_timeout_us = o->idle_timeout_us;
	server_set_bandwidth(sv, o->max_bandwidth);
	if (!sv->dir)
		return;
	sv->dir->token = o->token;
	sv->dir->guarded = o->guarded;
	sv->dir->sync = !o->no_sync;
	sv->dir->limits.memory_max = o->max_memory;
	sv->dir->limits.disk_max = o->serve ? 0 : o->max_disk;
}

static bool differ(const char *a, const char *b)
{
	return (a && b) ? strcmp(a, b) : a != b;
}

/* What is bound to how it started stays as it was. */
static void on_reload(uv_signal_t *h, int signo)
{
	struct server *sv = h->data;
	struct options o, *was = &sv->options;

	(void)signo;
	notify_reloading(&sv->notify);
	if (options_parse(&o, sv->argc, sv->argv) >= 0) {
		log_warn("SIGHUP: all stays as it was");
		options_done(&o);
	} else {
		if (differ(o.listen, was->listen) || differ(o.control, was->control) ||
		    differ(o.dir, was->dir) || o.serve != was->serve)
			log_warn("SIGHUP: listen, control, dir and serve change by a restart only");
		struct options keep = *was;

		o.listen = keep.listen ? sv->first_listen : NULL;
		*was = o;
		options_done(&keep);
		apply(sv);
		log_info("SIGHUP: options read again");
	}
	notify_ready(&sv->notify, sv->info.listen);
}

static int uv_failed(struct cr_err *err, int code, const char *what)
{
	return cr_err_set(err, CR_ERR_KERNEL, -code, "%s: %s", what, uv_strerror(code));
}

static int report_address(struct server *sv, struct cr_err *err)
{
	struct addr a = {.len = sizeof(a.un)};
	char text[ADDR_TEXT];
	int len = (int)a.len;
	int r = uv_tcp_getsockname(&sv->listener, &a.sa, &len);

	if (r)
		return uv_failed(err, r, "address of the listener");
	a.len = (socklen_t)len;
	sv->info.port = ntohs(a.sa.sa_family == AF_INET6 ? a.v6.sin6_port : a.v4.sin_port);
	sv->info.caps = PAGE_CAPS;
	addr_format(&a, text);
	snprintf(sv->info.listen, sizeof(sv->info.listen), "%.63s", text);
	return 0;
}

static int listen_tcp(struct server *sv, const char *address, struct cr_err *err)
{
	char text[ADDR_TEXT];
	struct addr a;
	int r = addr_resolve(address, text, err);

	if (!r)
		r = addr_parse(text, &a, err);
	if (r)
		return r;
	if (sv->dir && sv->options.serve && !sv->options.guarded && !addr_is_loopback(&a))
		return cr_err_set(
		    err, CR_ERR_INPUT, EPERM,
		    "listen on %s: anybody there could read the memory in the images; give "
		    "--token-file, or --no-token if that is what you want",
		    address);
	if (sv->dir && !sv->options.guarded && !addr_is_loopback(&a))
		log_warn("%s: whoever can connect can write images; --token-file FILE keeps "
			 "others out, --no-token says that it is meant so",
			 address);
	if (a.sa.sa_family == AF_UNIX)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "listen on %s: not an IP:PORT",
				  address);
	r = uv_tcp_init(&sv->loop, &sv->listener);
	if (!r)
		r = uv_tcp_bind(&sv->listener, &a.sa, 0);
	sv->listener.data = sv;
	if (!r)
		r = uv_listen((uv_stream_t *)&sv->listener, BACKLOG, stream_accept);
	if (r)
		return cr_err_set(err, CR_ERR_IO, -r, "listen on %s: %s", address, uv_strerror(r));
	return report_address(sv, err);
}

/* A socket that whoever started us listens on: sd_listen_fds(3). */
static int listen_given(struct server *sv, struct cr_err *err)
{
	int r = uv_tcp_init(&sv->loop, &sv->listener);

	if (!r)
		r = uv_tcp_open(&sv->listener, OPTIONS_FIRST_FD);
	sv->listener.data = sv;
	if (!r)
		r = uv_listen((uv_stream_t *)&sv->listener, BACKLOG, stream_accept);
	return r ? uv_failed(err, r, "the socket that was passed") : report_address(sv, err);
}

static int open_dir(struct server *sv, const struct options *o, struct cr_err *err)
{
	struct dir_sink *d = calloc(1, sizeof(*d));

	if (!d)
		return cr_err_oom(err);
	sv->dir = d;
	d->path = strdup(o->dir); /* the options may be read again */
	if (!d->path)
		return cr_err_oom(err);
	d->fd = open(o->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return d->fd < 0 ? cr_err_sys(err, "--dir %s", o->dir) : 0;
}

static int watch_signals(struct server *sv, struct cr_err *err)
{
	signal(SIGPIPE, SIG_IGN);
	sv->sigterm.data = sv->sigint.data = sv->sighup.data = sv;
	int r = uv_signal_init(&sv->loop, &sv->sigterm);
	if (!r)
		r = uv_signal_init(&sv->loop, &sv->sighup);
	if (!r)
		r = uv_signal_start(&sv->sighup, on_reload, SIGHUP);
	if (!r)
		r = uv_signal_init(&sv->loop, &sv->sigint);
	if (!r)
		r = uv_signal_start(&sv->sigterm, on_signal, SIGTERM);
	if (!r)
		r = uv_signal_start(&sv->sigint, on_signal, SIGINT);
	return r ? uv_failed(err, r, "signals") : 0;
}

/* Where there are no processors to spare the loop had better place: a batch is in its cache, and
 * handing it over takes time. But disks make wait, and the loop serves others, too. */
static bool want_threads(const struct server *sv, const struct options *o)
{
	struct statfs st;

	if (o->threads != THREADS_AUTO)
		return o->threads == THREADS_YES;
	if (sv->dir && (fstatfs(sv->dir->fd, &st) || st.f_type != TMPFS_MAGIC))
		return true;
	return uv_available_parallelism() >= THREADS_CPUS;
}

/* What places pages beside running tasks leaves them the CPU; when they wait for the last ones, the
 * agent sees to it (priority.c). */
static void be_nice(void)
{
	if (setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + LIVE_NICE))
		log_debug("priority: %s", strerror(errno));
}

static int server_start(struct server *sv, const struct options *o, struct cr_err *err)
{
	struct rlimit rl;

	if (o->control)
		be_nice();
	/* three descriptors for every process being rebuilt */
	if (!getrlimit(RLIMIT_NOFILE, &rl)) {
		rl.rlim_cur = rl.rlim_max;
		setrlimit(RLIMIT_NOFILE, &rl);
	}
	int r = watch_signals(sv, err);
	if (!r)
		r = server_start_timers(sv, err);
	if (!r && o->dir)
		r = open_dir(sv, o, err);
	sv->by_threads = want_threads(sv, o);
	if (!r)
		r = o->listen ? listen_tcp(sv, o->listen, err) : listen_given(sv, err);
	if (!r && o->control)
		r = control_listen(sv, o->control, err);
	if (!r)
		r = privilege_drop(o->control != NULL, o->user, err);
	notify_init(&sv->notify, o->status_fd);
	sv->threads = opendir("/proc/self/task"); /* NULL: priority_lower() does nothing */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* they need more */
	if (!r && !o->no_sandbox)
		r = sandbox_enter(o->control ? SANDBOX_LIVE
				  : o->serve ? SANDBOX_GIVE
					     : SANDBOX_TAKE,
				  err);
#endif
	if (!r)
		apply(sv);
	return r;
}

/* What it held to its end. */
static void server_done(struct server *sv)
{
	if (sv->threads)
		closedir(sv->threads);
	if (!sv->dir)
		return;
	close_fdp(&sv->dir->fd);
	free((char *)sv->dir->path);
	free(sv->dir);
}

int main(int argc, char **argv)
{
	struct options first;
	struct cr_err err = {0};
	int r = options_parse(&first, argc, argv);

	if (r >= 0)
		return r;
	if (first.tasks >= 0)
		return tasks_serve(first.tasks, !first.no_sandbox);
	/* whoever runs here, or on the source if that is the same machine, has work to do */
	background_short_turns();
	/* zeroed by being mapped, so that the large working areas take memory only once they are
	 * used */
	struct server *sv =
	    mmap(NULL, sizeof(*sv), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (sv == MAP_FAILED) {
		log_error("out of memory");
		return 1;
	}
	sv->options = first;
	sv->first_listen = first.listen;
	sv->argc = argc;
	sv->argv = argv;
	struct options *o = &sv->options;
	r = uv_loop_init(&sv->loop);
	if (!r)
		r = uv_mutex_init(&sv->lock);
	if (!r)
		r = uv_cond_init(&sv->idle);
	if (r) {
		log_error("event loop: %s", uv_strerror(r));
		return 1;
	}
	r = server_start(sv, o, &err);
	if (r) {
		log_error("%s", err.msg);
		control_close_all(sv);
		uv_walk(&sv->loop, close_any, NULL);
	} else {
		log_info("page streams on %s, %s%s", sv->info.listen,
			 o->control ? "control on unix:" : "images in ",
			 o->control ? o->control : o->dir);
		notify_ready(&sv->notify, sv->info.listen);
	}
	uv_run(&sv->loop, UV_RUN_DEFAULT);
	uv_loop_close(&sv->loop);
	server_done(sv);
	return r ? 1 : 0;
}
