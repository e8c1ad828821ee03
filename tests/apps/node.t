#!/bin/bash
# Node.js: HTTP requests and WebSockets; compiled code, garbage collection, a thread pool.
set -uo pipefail
# shellcheck source=tests/apps/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
need /usr/bin/python3 node
start_hosts
start_server node "$apps/node_server.js" $service 8080
{ server_listens 8080 && start_client requests http_peer $service 8080 8 digest &&
	start_client websocket websocket_peer $service 8080 4; } || give_up "Node.js answers"
move_server "$@" && finish_clients
done_testing
