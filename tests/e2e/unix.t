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

for what in reset peekoff makers empty; do
	ok "unix sockets: $what, there and back" there_and_back $what
	kill_workload
done

# Who made a pair has ended, and somebody has his number at the destination: that is said, and the ids are as before.
taken_case() {
	start_workload alpha unixstate --what makers --taken || return 1
	take_pid beta "$(<"$wl_dir/maker")" || return 1
	on beta sh -c 'echo 20000 >/proc/sys/kernel/ns_last_pid' # the numbers behind are the other makers'
	move_workload beta || return 1
	on beta kill "$taker"
	grep '"event":"warning"' "$work/events" | grep -q "SO_PEERCRED tells process $taker, .*taken" || {
		say_migration
		return 1
	}
	finish_workload
}
ok "unix sockets: the number of who made a pair is taken" taken_case
kill_workload
done_testing
