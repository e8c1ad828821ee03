#!/bin/bash
# System V semaphores with SEM_UNDO: the end of a process that has moved undoes what it would have undone before.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed
# shellcheck source=tests/e2e/steps.sh
. "$e2e/steps.sh"

move_case "moved: SEM_UNDO" -- semundo --
move_case "moved: SEM_UNDO, post-copy" -- semundo -- --mode postcopy

back_case() {
	start_workload alpha semundo && runs_on && moves_there_and_back
}
ok "moved there and back" back_case
kill_workload

rehearsed_case() {
	start_workload alpha semundo && runs_on && rehearse_workload && finish_workload
}
ok "all is as it was after a rehearsal" rehearsed_case
kill_workload

image_case() {
	start_workload alpha semundo && runs_on && verb alpha dump --pid "$wl_pid" --dir "$work/image" &&
		restored beta "$work/image" && finish_workload
}
ok "dumped and restored" image_case
kill_workload

# refused_case PATTERN ARGS… -- WORKLOAD'S
refused_case() {
	local pattern=$1
	local -a args=()
	shift
	while [ "$1" != -- ]; do
		args+=("$1")
		shift
	done
	shift
	start_workload alpha semundo "$@" && runs_on || return 1
	migrate alpha beta --pid "$wl_pid" "${args[@]}"
	{ [ "$mig_status" = 4 ] && grep '"event":"refused"' "$work/events" | grep -q "$pattern"; } || {
		say_migration
		return 1
	}
	progress_is_from alpha && runs_on && finish_workload
}
ok "refused without BPF" refused_case "without BPF nobody can tell" --no-bpf --
kill_workload
ok "refused: a thread that shares it with no other" refused_case "SEM_UNDO of which threads share" -- --foreign
kill_workload
done_testing
