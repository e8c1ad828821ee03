#!/bin/bash
# Unix sockets move with what shows only when it is used.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed

# there_and_back THING: two moves, so that what the destination has made can be told once more. Before them a rehearsal:
# a look takes nothing away.
there_and_back() {
	start_workload alpha unixstate --what "$1" && runs_on && rehearse_workload && moves_there_and_back
}

for what in reset peekoff empty; do
	ok "unix sockets: $what, there and back" there_and_back $what
	kill_workload
done
done_testing
