#!/bin/bash
# Java 17, com.sun.net.httpserver: some thirty threads, compiled code, a large reservation for the heap.
set -uo pipefail
# shellcheck source=tests/apps/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
need /usr/bin/python3 java javac
start_hosts
javac -d "$work" "$apps/HttpServerOfTest.java" || give_up "it compiles"
# the connection that asks for the total is idle until the end: the server would close it after 30 s
start_server java -Xmx256m -Dsun.net.httpserver.nodelay=true -Dsun.net.httpserver.idleInterval=3600 -cp "$work" HttpServerOfTest $service 8080
{ server_listens 8080 && start_client requests http_peer $service 8080 8 digest; } || give_up "Java answers"
# it keeps figures about itself in a mapped file in /tmp, which each host has for itself: back again (MOVES), what it left
# there makes way
move_server --copy-files=replace "$@" && finish_clients
done_testing
