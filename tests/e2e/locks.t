#!/bin/bash
# File locks: what is given up for the move comes back when it is undone, whoever undoes it, and nobody else
# gets it in between.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed

move_case "moved: locks" -- locks --
move_case "moved: locks, without breakpoints" -- locks -- --no-hw-breakpoints
move_case "moved: locks, post-copy" -- locks -- --mode postcopy

# How many locks of the workload the host shows.
count_locks() {
	# shellcheck disable=SC2016
	on "$1" sh -c 'cat /proc/$1/fdinfo/* | grep -a ^lock | sort -u | wc -l' count "$wl_pid"
}

undone_case() {
	local before
	start_workload alpha locks && runs_on || return 1
	before=$(count_locks alpha)
	rehearse_workload && is "$(count_locks alpha)" "$before" "as many locks as before" &&
		move_workload beta && finish_workload
}
ok "kept after a rehearsal" undone_case
kill_workload

# Killed while the tasks have given them up: each takes its own again before it goes on.
killed_case() {
	local before
	CR_FAULT=source-unlocked:kill "$testbed" agent alpha restart
	start_workload alpha locks && runs_on || return 1
	before=$(count_locks alpha)
	touch "$wl_dir/killed"
	MIGRATE_TIMEOUT=15 migrate alpha beta --pid "$wl_pid"
	CR_FAULT='' "$testbed" agent alpha restart
	until_true 20 progresses || return 1
	progress_is_from alpha && is "$(count_locks alpha)" "$before" "as many locks as before" && finish_workload
}
ok "kept when the agent is killed" killed_case
kill_workload

# Who waits outside would get it.
waited_for_case() {
	local waiter st=0
	start_workload alpha locks || return 1
	on alpha setsid flock -x "$wl_dir/whole" true </dev/null >/dev/null 2>&1 &
	waiter=$!
	until_true 30 grep -q -- "-> FLOCK.*:$(stat -c %i "$wl_dir/whole") " /proc/locks || return 1
	migrate alpha beta --pid "$wl_pid"
	{ [ "$mig_status" = 4 ] && grep '"event":"refused"' "$work/events" | grep -q 'file lock.*waits'; } || {
		say_migration
		st=1
	}
	{ progress_is_from alpha && runs_on && finish_workload; } || st=1
	wait "$waiter"
	return $st
}
ok "refused: a lock that somebody else waits for" waited_for_case
kill_workload
done_testing
