/* page-server: takes pages from the network and puts them where they belong. */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include "base/log.h"
#include "pageserver/options.h"
#include "pageserver/server.h"
#include "wire/addr.h"

static void close_any(uv_handle_t *h, void *arg)
{
	(void)arg;
	if (!uv_is_closing(h))
		uv_close(h, NULL);
}

static void server_stop(struct server *sv)
{
	if (sv->stopping)
		return;
	sv->stopping = true;
	control_close_all(sv);
	for (struct stream *st = sv->streams, *next; st; st = next) {
		next = stream_next(st);
		stream_close(st);
	}
	uv_close((uv_handle_t *)&sv->listener, NULL);
	uv_close((uv_handle_t *)&sv->sigterm, NULL);
	uv_close((uv_handle_t *)&sv->sigint, NULL);
}

static void on_signal(uv_signal_t *h, int signo)
{
	log_info("signal %d: closing", signo);
	server_stop(h->data);
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
	struct addr a;
	int r = addr_parse(address, &a, err);

	if (r)
		return r;
	if (sv->dir && !sv->dir->guarded && !addr_is_loopback(&a))
		return cr_err_set(
		    err, CR_ERR_INPUT, EPERM,
		    "listen on %s: anybody there could write images; give --token-file, "
		    "or --no-token if that is what you want",
		    address);
	if (a.sa.sa_family == AF_UNIX)
		return cr_err_set(err, CR_ERR_INPUT, EINVAL, "listen on %s: not an IP:PORT",
				  address);
	r = uv_tcp_init(&sv->loop, &sv->listener);
	if (!r)
		r = uv_tcp_bind(&sv->listener, &a.sa, 0);
	sv->listener.data = sv;
	if (!r)
		r = uv_listen((uv_stream_t *)&sv->listener, 64, stream_accept);
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
		r = uv_listen((uv_stream_t *)&sv->listener, 64, stream_accept);
	return r ? uv_failed(err, r, "the socket that was passed") : report_address(sv, err);
}

static int open_dir(struct server *sv, const struct options *o, struct cr_err *err)
{
	struct dir_sink *d = calloc(1, sizeof(*d));

	if (!d)
		return cr_err_oom(err);
	sv->dir = d;
	d->path = o->dir;
	d->token = o->token;
	d->guarded = o->guarded;
	d->sync = !o->no_sync;
	d->limits.memory_max = o->max_memory;
	d->limits.disk_max = o->max_disk;
	d->fd = open(o->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return d->fd < 0 ? cr_err_sys(err, "--dir %s", o->dir) : 0;
}

static int watch_signals(struct server *sv, struct cr_err *err)
{
	signal(SIGPIPE, SIG_IGN);
	sv->sigterm.data = sv->sigint.data = sv;
	int r = uv_signal_init(&sv->loop, &sv->sigterm);
	if (!r)
		r = uv_signal_init(&sv->loop, &sv->sigint);
	if (!r)
		r = uv_signal_start(&sv->sigterm, on_signal, SIGTERM);
	if (!r)
		r = uv_signal_start(&sv->sigint, on_signal, SIGINT);
	return r ? uv_failed(err, r, "signals") : 0;
}

static int server_start(struct server *sv, const struct options *o, struct cr_err *err)
{
	struct rlimit rl;

	/* three descriptors for every process being rebuilt */
	if (!getrlimit(RLIMIT_NOFILE, &rl)) {
		rl.rlim_cur = rl.rlim_max;
		setrlimit(RLIMIT_NOFILE, &rl);
	}
	sv->max_connections = o->max_connections;
	int r = watch_signals(sv, err);
	if (!r && o->dir)
		r = open_dir(sv, o, err);
	if (!r)
		r = o->listen ? listen_tcp(sv, o->listen, err) : listen_given(sv, err);
	if (!r && o->control)
		r = control_listen(sv, o->control, err);
	if (!r)
		r = privilege_drop(o->control != NULL, err);
	return r;
}

int main(int argc, char **argv)
{
	struct options o;
	struct cr_err err = {0};
	int r = options_parse(&o, argc, argv);

	if (r >= 0)
		return r;
	/* zeroed by being mapped, so that the large working areas take memory only once they are
	 * used */
	struct server *sv =
	    mmap(NULL, sizeof(*sv), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (sv == MAP_FAILED) {
		log_error("out of memory");
		return 1;
	}
	r = uv_loop_init(&sv->loop);
	if (!r)
		r = uv_mutex_init(&sv->lock);
	if (!r)
		r = uv_cond_init(&sv->idle);
	if (r) {
		log_error("event loop: %s", uv_strerror(r));
		return 1;
	}
	r = server_start(sv, &o, &err);
	if (r) {
		log_error("%s", err.msg);
		control_close_all(sv);
		uv_walk(&sv->loop, close_any, NULL);
	} else {
		log_info("page streams on %s, %s%s", sv->info.listen,
			 o.control ? "control on unix:" : "images in ",
			 o.control ? o.control : o.dir);
	}
	uv_run(&sv->loop, UV_RUN_DEFAULT);
	uv_loop_close(&sv->loop);
	return r ? 1 : 0;
}
