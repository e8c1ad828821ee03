#!/bin/bash
# A Python server on asyncio: an event loop with a wake-up pair, a thread pool, timers, 20 connections.
set -uo pipefail
# shellcheck source=tests/apps/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
need /usr/bin/python3
start_hosts
start_server $python "$apps/asyncio_server.py" $service 7000
{ server_listens 7000 && start_client lines asyncio_peer $service 7000 20; } || give_up "the server answers"
move_server "$@" && finish_clients
done_testing
