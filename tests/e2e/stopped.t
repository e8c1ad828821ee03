#!/bin/bash
# Tasks that a signal has stopped: moved they are stopped, and undone, whoever undoes it, they still are.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed

move_case "moved: stopped" -- stopped --
move_case "moved: stopped, by sigreturn" -- stopped -- --no-hw-breakpoints --launch sigreturn
move_case "moved: stopped, no BPF" -- stopped -- --no-bpf
move_case "moved: stopped, post-copy" -- stopped -- --mode postcopy
# continued and stopped by their parent while they are copied
for i in 1 2 3; do
	move_case "moved: stopped again and again ($i)" -- stopped --again $((i * 7)) -- --max-bandwidth 2M
done

back_case() {
	start_workload alpha stopped --again 100 && runs_on && moves_there_and_back
}
ok "moved there and back: stopped" back_case
kill_workload

# The whole tree is stopped, from outside: whoever waits there may continue it.
whole_case() {
	local pid
	start_workload alpha forktree --procs 4 && runs_on || return 1
	for pid in $(workload_pids alpha); do
		on alpha kill -STOP "$pid"
	done
	migrate alpha beta --pid "$wl_pid" || { say_migration; return 1; }
	gone_from alpha || return 1
	for pid in $(workload_pids beta); do
		# shellcheck disable=SC2016
		until_true 30 on beta sh -c 'grep -q "^State:[[:space:]]*T" "/proc/$1/status"' sh "$pid" || {
			diag "$pid is not stopped"
			return 1
		}
	done
	! progress_is_from beta || { diag "it has run before it was continued"; return 1; }
	for pid in $(workload_pids beta); do
		on beta kill -CONT "$pid"
	done
	wl_host=beta
	moved_to beta && finish_workload
}
ok "moved: a tree that is stopped" whole_case
kill_workload

rehearsed_case() {
	start_workload alpha stopped && runs_on && rehearse_workload && finish_workload
}
ok "stopped as before after a rehearsal" rehearsed_case
kill_workload

# The agent dies: with tasks in the executor, with all held, after the decision.
killed_case() {
	CR_FAULT=$1:kill "$testbed" agent alpha restart
	start_workload alpha stopped && runs_on || return 1
	MIGRATE_TIMEOUT=15 migrate alpha beta --pid "$wl_pid"
	CR_FAULT='' "$testbed" agent alpha restart
	until_true 20 progress_is_from "$2" && runs_on && gone_from "$(other "$2")" && finish_workload
}
for point in source-inject source-arm source-cure source-stopped source-held; do
	ok "stopped as before when the agent is killed at $point" killed_case $point alpha
	kill_workload
done
ok "moved: stopped, when the agent is killed at source-commit" killed_case source-commit beta
kill_workload
CR_FAULT=dest-prepared:kill "$testbed" agent beta restart
dest_killed_case() {
	start_workload alpha stopped && runs_on || return 1
	MIGRATE_TIMEOUT=15 migrate alpha beta --pid "$wl_pid"
	CR_FAULT='' "$testbed" agent beta restart
	until_true 20 progresses && finish_workload
}
ok "moved: stopped, or as before, when the destination's agent is killed once it is prepared" dest_killed_case
kill_workload

# The v1 freezer does not let a stopped task be seized, so it is taken after the thaw.
cgroup_case() {
	local root pid dir
	root=$(awk -v v="$1" 'v == "v1" ? $3 == "cgroup" && $4 ~ /(^|,)freezer(,|$)/ : $3 == "cgroup2" { print $2; exit }' /proc/mounts)
	[ -n "$root" ] || return 1
	dir=$root/testbed-$TESTBED_NAME/alpha/web-$1
	mkdir -p "$dir" && start_workload alpha stopped --again 30 && runs_on || return 1
	for pid in $(workload_pids alpha); do
		"$testbed" pid alpha "$pid" >"$dir/cgroup.procs"
	done
	move_workload beta --cgroup "/testbed-$TESTBED_NAME/alpha/web-$1" && finish_workload
}
for version in v1 v2; do
	ok "moved: stopped, from a frozen cgroup, $version" cgroup_case $version
	kill_workload
done

# A shell with a stopped job, in tmux: fg continues it.
tmux_on() {
	local host=$1
	shift
	on "$host" env -u TMUX tmux -f /dev/null -S "$wl_dir/tmux" "$@" </dev/null
}

shell_says() {
	tmux_on "$1" capture-pane -p | grep -q "$2"
}

# Said twice: when it was stopped, and among the jobs.
lists_it() {
	[ "$(tmux_on "$1" capture-pane -p | grep -c Stopped)" = 2 ]
}

job_case() {
	local pid
	new_dir job
	wl_host=alpha
	tmux_on alpha new-session -d -x 100 -y 40 'bash --norc --noprofile' || return 1
	pid=$(tmux_on alpha display-message -p '#{pid}')
	tmux_on alpha send-keys "$workloads/regs --dir $wl_dir" Enter
	workload_is_up regs && runs_on || return 1
	tmux_on alpha send-keys C-z
	until_true 30 shell_says alpha Stopped || { diag "$(tmux_on alpha capture-pane -p)"; return 1; }
	migrate alpha beta --pid "$pid" || { say_migration; return 1; }
	tmux_on beta send-keys jobs Enter
	until_true 30 lists_it beta || { diag "$(tmux_on beta capture-pane -p)"; return 1; }
	tmux_on beta send-keys fg Enter
	until_true 20 progress_is_from beta && runs_on && finish_workload
	local st=$?
	tmux_on beta kill-server
	return $st
}
ok "moved: tmux with a shell with a stopped job" job_case
kill_workload
done_testing
