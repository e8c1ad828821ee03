#!/bin/bash
# A Go HTTP server: its own scheduler on threads, preempted by signals, epoll, timers.
set -uo pipefail
# shellcheck source=tests/apps/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
need /usr/bin/python3 go
start_hosts
GOCACHE=$work/cache HOME=$work go build -o "$work/go_server" "$apps/go_server.go" || give_up "it compiles"
start_server "$work/go_server" $service:8080
{ server_listens 8080 && start_client requests http_peer $service 8080 8 digest; } || give_up "the Go server answers"
move_server "$@" && finish_clients
done_testing
