#!/bin/bash
# memcached, as its own user, with four threads: every acknowledged key, and a counter, are there afterwards.
set -uo pipefail
# shellcheck source=tests/apps/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
need /usr/bin/python3 memcached
start_hosts
start_server memcached -u memcache -l $service -p 11211 -m 64 -t 4
{ server_listens 11211 && start_client keys memcached_peer $service 11211 10; } || give_up "memcached answers"
move_server "$@" && finish_clients
done_testing
