#!/bin/bash
# nginx, a master and two workers of another user: keep-alive requests, and a large download under way.
set -uo pipefail
# shellcheck source=tests/apps/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
need /usr/bin/python3 nginx
start_hosts
root=$work/www
mkdir -p "$root/files" "$work/logs" "$work/tmp"
for i in {1..50}; do head -c $((i * 700)) /dev/urandom >"$root/files/$i"; done
head -c 400M /dev/urandom >"$root/large"
cat >"$work/nginx.conf" <<CONF
user www-data;
daemon off;
worker_processes 2;
pid $work/nginx.pid;
error_log $work/logs/error.log;
events { worker_connections 256; }
http {
	access_log $work/logs/access.log;
	client_body_temp_path $work/tmp/body;
	proxy_temp_path $work/tmp/proxy;
	fastcgi_temp_path $work/tmp/fastcgi;
	uwsgi_temp_path $work/tmp/uwsgi;
	scgi_temp_path $work/tmp/scgi;
	keepalive_requests 1000000000;
	keepalive_timeout 600;
	sendfile on;
	server {
		listen $service:80 backlog=64;
		root $root/files;
		location = /large { root $root; }
	}
}
CONF
start_server nginx -c "$work/nginx.conf" -p "$work"
{ server_listens 80 && start_client requests http_peer $service 80 10 "$root/files" &&
	start_client download download_peer $service 80 /large "$root/large" 12000000; } || give_up "nginx answers"
move_server "$@" && finish_clients
is "$(grep -cv ' \[notice\] ' "$work/logs/error.log")" 0 "nginx has nothing to complain about"
done_testing
