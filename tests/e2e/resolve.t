#!/bin/bash
# The source's host dies, with its tasks, its agent and its journal. What the destination has by then decides: what was
# PREPARED is the only copy, and a person says what becomes of it.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed

fresh_hosts() {
	{ "$testbed" down && "$testbed" --bin "$build" up alpha beta client >"$work/up"; } || { diag "$(cat "$work/up")"; return 1; }
	on alpha sh -c 'echo 5000 >/proc/sys/kernel/ns_last_pid'
	on beta sh -c 'echo 20000 >/proc/sys/kernel/ns_last_pid'
}

agent_stalls() {
	local pid
	for pid in $(on alpha pgrep -x cr-agent </dev/null); do
		[[ $(on alpha ps -o stat= -p "$pid" </dev/null) != T* ]] || return 0
	done
	return 1
}

# dies_at POINT NAME OPTS…: a migration to beta whose source stalls there, and whose host then ends.
dies_at() {
	local point=$1
	shift
	fresh_hosts && CR_FAULT=$point:stop "$testbed" agent alpha restart && start_workload alpha "$@" && runs_on || return 1
	"$build/cr-migrate" --hosts "$hosts_file" --json --verify full 'alpha->beta' --pid "$wl_pid" </dev/null \
		>"$work/events" 2>"$work/errors" &
	migration=$!
	until_true 30 agent_stalls || { diag "the source does not come to $point"; return 1; }
	kill -KILL "$("$testbed" pid alpha 1)" || return 1
	wait "$migration"
	mig_status=$?
	wl_host=beta
}

resolve() {
	"$build/cr-migrate" resolve --hosts "$hosts_file" "$@" >"$work/resolved" 2>&1
}

# The tasks go on where they stopped, at the destination: exactly one copy, with all that it had.
taken_over() {
	dies_at source-prepared "$@" || return 1
	[ "$mig_status" != 0 ] || { diag "cr-migrate said 0 though nothing was decided"; return 1; }
	progress_is_from alpha || { diag "it runs before anybody decided: $(progress)"; return 1; }
	resolve --take-over beta || { diag "$(cat "$work/resolved")"; return 1; }
	{ until_true 30 progress_from_or_result beta && progress_is_from beta; } || { diag "$(progress) $(result_text)"; return 1; }
	runs_on && finish_workload
}

# Given up by a person: nothing of it stays.
given_up() {
	dies_at source-prepared "$@" || return 1
	[ -n "$(workload_pids beta)" ] || { diag "nothing was prepared in beta"; return 1; }
	resolve --abort beta || { diag "$(cat "$work/resolved")"; return 1; }
	until_true 30 gone_from beta
}

# Not prepared yet: there is nothing to take over, and it does not pretend to.
nothing_there() {
	dies_at source-stopped "$@" || return 1
	until_true 30 gone_from beta || return 1
	if resolve --take-over beta; then
		diag "resolve said that it took over: $(cat "$work/resolved")"
		return 1
	fi
}

case_of() {
	local st=0
	"${@:2}" || st=1
	result $st "$1"
	kill_workload 2>/dev/null
	rm -rf "$wl_dir"
}

for name in "regs --rseq" "forktree --procs 6" "files" "dirty --mib 64 --rate 20"; do
	# shellcheck disable=SC2086
	case_of "the source's host dies, taken over: $name" taken_over $name
done
case_of "the source's host dies, given up" given_up forktree --procs 6
case_of "the source's host dies before anything is prepared" nothing_there forktree --procs 6
done_testing
