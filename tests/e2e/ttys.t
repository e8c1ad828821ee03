#!/bin/bash
# Terminals: what waits in them is there after the move, and after a move that is undone, whoever undoes it.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed

move_case "moved: tty" -- tty --

undone_case() {
	start_workload alpha tty && runs_on && rehearse_workload && "$@"
}
ok "as before after a rehearsal" undone_case finish_workload
kill_workload
ok "moved after a rehearsal, and back" undone_case moves_there_and_back
kill_workload

# Killed right after what waits was taken out.
killed_case() {
	CR_FAULT=source-drained:kill "$testbed" agent alpha restart
	start_workload alpha tty && runs_on || return 1
	MIGRATE_TIMEOUT=15 migrate alpha beta --pid "$wl_pid"
	CR_FAULT='' "$testbed" agent alpha restart
	until_true 20 progresses && progress_is_from alpha && finish_workload
}
ok "as before when the agent is killed" killed_case
kill_workload

# Each of the terminals has its number there, or the move is refused.
taken_case() {
	local st=0 number
	start_workload alpha tty || return 1
	number=$(on alpha sh -c "ls /dev/pts" | grep -E '^[0-9]+$' | sort -n | head -n 1)
	[ "$number" = 0 ] || return 1
	# shellcheck disable=SC2016
	on beta setsid sh -c 'exec 7<>/dev/ptmx; : >"$1/taken"; exec sleep 1000' sh "$wl_dir" </dev/null >/dev/null 2>&1 &
	until_true 30 test -e "$wl_dir/taken" || return 1
	migrate alpha beta --pid "$wl_pid"
	{ [ "$mig_status" = 4 ] && grep '"event":"refused"' "$work/events" | grep -q '/dev/pts/0 is in use'; } || {
		say_migration
		st=1
	}
	# shellcheck disable=SC2016
	on beta sh -c 'for p in /proc/[0-9]*; do readlink "$p/exe" | grep -q /sleep && kill "${p#/proc/}"; done'
	{ runs_on && finish_workload; } || st=1
	return $st
}
ok "refused: a terminal's number is taken" taken_case
kill_workload
done_testing
