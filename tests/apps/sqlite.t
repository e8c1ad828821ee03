#!/bin/bash
# SQLite in WAL mode: four processes write into one file, with its locks and its shared memory.
set -uo pipefail
# shellcheck source=tests/apps/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
need /usr/bin/python3 sqlite3
start_hosts
start_server $python "$apps/sqlite_server.py" $service 7001 "$work/db"
{ server_listens 7001 && start_client rows sqlite_peer $service 7001 4; } || give_up "SQLite answers"
move_server "$@" && finish_clients
is "$(grep -c . "$work/server.log")" 0 "SQLite has nothing to complain about"
done_testing
