#!/bin/bash
# Filters that a program has put on its sockets and locked: afterwards they drop what they dropped before, and nobody can
# take them off. (tcp.t has them under load, and with migrations that are undone.) eBPF programs as filters. Programs that choose among sockets
# that share a port: they choose the same ones.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed
# shellcheck source=tests/e2e/peers.sh
. "$e2e/peers.sh"

# start_asked PROGRAM [ROLE]: it serves in alpha, and another in client asks it.
start_asked() {
	new_dir asked
	server=$wl_dir asked=0 pid='' ask=''
	on alpha setsid "$e2e/$1" "${2:-serve}" "$server" 10.77.0.100 </dev/null >"$server/log" 2>&1 &
	wait_for "$server/pid" 20 || return 1
	pid=$(<"$server/pid")
	mkfifo "$server/ask"
	on client setsid "$e2e/$1" ask "$server" 10.77.0.100 "$(<"$server/port")" <"$server/ask" \
		>>"$server/log" 2>&1 &
	exec {ask}>"$server/ask"
}

end_asked() {
	[ -z "$ask" ] || exec {ask}>&-
	[ -z "$pid" ] || on alpha kill -KILL "$pid" 2>/dev/null || on beta kill -KILL "$pid" 2>/dev/null
	wait
}

all_is_well() {
	local said=$server/said$asked
	asked=$((asked + 1))
	echo >&"$ask"
	if wait_for "$said" 40 && [ "$(<"$said")" = well ]; then
		return 0
	fi
	diag "$1: $(cat "$said" 2>/dev/null) $(<"$server/log")"
	return 1
}

asked_moves() {
	local host from=alpha
	all_is_well before || return 1
	for host in beta alpha beta; do
		migrate $from $host --pid "$pid" --move-address "$service" || {
			say_migration
			return 1
		}
		all_is_well "in $host" || return 1
		from=$host
	done
}
asked_stays() {
	all_is_well before || return 1
	migrate alpha beta --pid "$pid" --move-address "$service" --rehearse || {
		say_migration
		return 1
	}
	all_is_well "after a rehearsal"
}
# asked_case PROGRAM FUNCTION ARGS…; $role, if set, is what the program does
asked_case() {
	local st=0
	start_asked "$1" "${role:-serve}" && "${@:2}" || st=1
	end_asked
	return $st
}
case_of "locked filters: TCP, UDP, unix" asked_case filtered.py asked_moves
case_of "locked filters: TCP, UDP, unix, rehearsed" asked_case filtered.py asked_stays

for role in ebpf ebpf-locked; do
	case_of "$role filters: TCP, UDP, unix" asked_case filtered.py asked_moves
	case_of "$role filters: TCP, UDP, unix, rehearsed" asked_case filtered.py asked_stays
done

# dies_at HOST POINT WHERE: the agent's process dies there; the sockets, then in WHERE, have their filters.
dies_at() {
	all_is_well before || return 1
	CR_FAULT=$2:kill "$testbed" agent "$1" restart
	migrate alpha beta --pid "$pid" --move-address "$service"
	"$testbed" agent "$1" restart
	# who learned of the decision says that it is done
	[ "$mig_status" != 4 ] && { [ "$mig_status" != 0 ] || [ "$3" = beta ]; } || return 1
	until_true 20 has_address "$3" "$service" && all_is_well "in $3, after $1 died at $2"
}
role=ebpf
case_of "eBPF filters: the source's agent dies with the sockets locked" asked_case filtered.py dies_at alpha source-locked alpha
case_of "eBPF filters: the source's agent dies with the decision" asked_case filtered.py dies_at alpha source-commit beta
case_of "eBPF filters: the destination's agent dies prepared" asked_case filtered.py dies_at beta dest-prepared alpha
case_of "eBPF filters: the destination's agent dies with the decision" asked_case filtered.py dies_at beta dest-commit beta
role=ebpf-map

with_map() {
	all_is_well before || return 1
	migrate alpha beta --pid "$pid" --move-address "$service"
	if [ "$mig_status" != 4 ] || ! grep -q '"event":"refused".*eBPF filter.*that has maps' "$work/events"; then
		say_migration
		return 1
	fi
	all_is_well "after it was refused"
}
case_of "eBPF filters with a map: refused" asked_case filtered.py with_map
role=

case_of "a program that chooses among sockets" asked_case chosen.py asked_moves
case_of "a program that chooses among sockets, rehearsed" asked_case chosen.py asked_stays

# It is said where it cannot be seen, and refused where it cannot come along.
unseen() {
	migrate alpha beta --pid "$pid" --move-address "$service" --no-bpf --rehearse || {
		say_migration
		return 1
	}
	grep -q '"event":"warning".*chooses among the sockets.*is lost' "$work/events" && all_is_well "after a rehearsal"
}
case_of "a program that chooses among sockets: warned of without BPF" asked_case chosen.py unseen

outside() {
	start_asked chosen.py part && wait_for "$server/outside" 20 || return 1
	migrate alpha beta --pid "$pid" --move-address "$service"
	if [ "$mig_status" != 4 ] ||
		! grep -q '"event":"refused".*chooses among.*some are outside the tree' "$work/events"; then
		say_migration
		return 1
	fi
}
outside_case() {
	local st=0
	outside || st=1
	end_asked
	return $st
}
case_of "a program that chooses among sockets, some of them outside the tree: refused" outside_case

done_testing
