#!/bin/bash
# Filters that a program has put on its sockets and locked: afterwards they drop what they dropped before, and nobody can
# take them off. (tcp.t has them under load, and with migrations that are undone.)
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed
# shellcheck source=tests/e2e/peers.sh
. "$e2e/peers.sh"

start_filtered() {
	new_dir filtered
	server=$wl_dir asked=0 pid='' ask=''
	on alpha setsid "$e2e/filtered.py" serve "$server" 10.77.0.100 </dev/null >"$server/log" 2>&1 &
	wait_for "$server/pid" 20 || return 1
	pid=$(<"$server/pid")
	mkfifo "$server/ask"
	on client setsid "$e2e/filtered.py" ask "$server" 10.77.0.100 "$(<"$server/port")" <"$server/ask" \
		>>"$server/log" 2>&1 &
	exec {ask}>"$server/ask"
}

end_filtered() {
	[ -z "$ask" ] || exec {ask}>&-
	[ -z "$pid" ] || on alpha kill -KILL "$pid" 2>/dev/null || on beta kill -KILL "$pid" 2>/dev/null
	wait
}

filters_work() {
	local said=$server/said$asked
	asked=$((asked + 1))
	echo >&"$ask"
	if wait_for "$said" 40 && [ "$(<"$said")" = well ]; then
		return 0
	fi
	diag "$1: $(cat "$said" 2>/dev/null) $(<"$server/log")"
	return 1
}

filtered_moves() {
	local host from=alpha
	filters_work before || return 1
	for host in beta alpha beta; do
		migrate $from $host --pid "$pid" --move-address "$service" || {
			say_migration
			return 1
		}
		filters_work "in $host" || return 1
		from=$host
	done
}
filtered_stays() {
	filters_work before || return 1
	migrate alpha beta --pid "$pid" --move-address "$service" --rehearse || {
		say_migration
		return 1
	}
	filters_work "after a rehearsal"
}
filtered_case() {
	local st=0
	start_filtered && "$@" || st=1
	end_filtered
	return $st
}
case_of "locked filters: TCP, UDP, unix" filtered_case filtered_moves
case_of "locked filters: TCP, UDP, unix, rehearsed" filtered_case filtered_stays

done_testing
