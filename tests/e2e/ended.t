#!/bin/bash
# Sockets whose connection is over, and others in states that programs seldom keep them in, come as they were: with what
# nobody has read, and with the error that nobody has asked for.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed
# shellcheck source=tests/e2e/peers.sh
. "$e2e/peers.sh"

# looks N: as it finds them now.
looks() {
	touch "$wl_dir/look.$1"
	wait_for "$wl_dir/found.$1" 20 && [ "$(<"$wl_dir/found.$1")" = OK ] && return 0
	diag "look $1: $(cat "$wl_dir/found.$1" "$wl_dir/log" 2>/dev/null)"
	return 1
}

# there_and_back MOVES ARGS…
there_and_back() {
	local moves=$1 n=1 st=0 from=alpha to=beta pid
	shift
	new_dir ended
	# shellcheck disable=SC2034 # for peers.sh
	server=$wl_dir
	on alpha setsid "$e2e/ended.py" "$wl_dir" 10.77.0.100 $((moves + 1)) </dev/null >"$wl_dir/log" 2>&1 &
	wait_for "$wl_dir/pid" 20 || { diag "$(<"$wl_dir/log")"; return 1; }
	pid=$(<"$wl_dir/pid")
	looks 1 || st=1
	while [ $st = 0 ] && [ $n -le "$moves" ]; do
		migrate "$from" "$to" --pid "$pid" --move-address "$service" "$@" || { say_migration; st=1; }
		n=$((n + 1)) from=$to to=$(other "$to")
		[ $st != 0 ] || looks $n || st=1
	done
	[ $st = 0 ] || { on alpha kill -KILL "$pid"; on beta kill -KILL "$pid"; } 2>/dev/null
	return $st
}
case_of "connections that are over" there_and_back 1
case_of "connections that are over, there and back" there_and_back 2
case_of "connections that are over: no BPF" there_and_back 1 --no-bpf
done_testing
