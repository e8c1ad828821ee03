#!/bin/bash
# Every named fault point of the agents: whoever dies there, or stalls there for a while, exactly one copy
# runs in the end, with nothing lost, and nobody has to be told what to do.
#
# SWEEP_POINTS="NAME…" tries these only.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/../e2e/lib.sh"
start_testbed

# restart_with HOST FAULT: the agent of HOST, with CR_FAULT set to FAULT ("" for none).
restart_with() {
	CR_FAULT=$2 "$testbed" agent "$1" restart
}

# The host of the agent that passes a fault point, by the point's name.
host_of() {
	case $1 in
	source-*) echo alpha ;;
	dest-*) echo beta ;;
	*) return 1 ;;
	esac
}

runs_in() {
	[ -n "$(workload_pids "$1")" ]
}

# Exactly one of the hosts has it, and it is not merely there but works.
one_copy() {
	if runs_in alpha && runs_in beta; then
		return 1
	fi
	runs_in alpha || runs_in beta
}

works() {
	local p
	p=$(progress)
	sleep 0.3
	progress_differs "$p"
}

settled() {
	one_copy && works
}

# Processes of an agent that are stopped, by SIGSTOP, are let go again.
continue_agent() {
	local pid state
	for pid in $("$testbed" agent "$1" pid) $(agent_children "$1"); do
		state=$(on "$1" ps -o stat= -p "$pid" </dev/null)
		[[ $state != T* ]] || on "$1" kill -CONT "$pid"
	done
}

agent_children() {
	on "$1" pgrep -x cr-agent </dev/null
}

sweep_case() {
	local point=$1 how=$2 host
	host=$(host_of "$point") || { diag "no host known for $point"; return 1; }
	restart_with "$host" "$point:$how"
	start_workload alpha forktree --procs 6 || return 1
	note_logs
	MIGRATE_TIMEOUT=15 migrate alpha beta --pid "$wl_pid" 2>/dev/null
	[ "$how" = kill ] || continue_agent "$host"
	restart_with "$host" ""
	until_true 30 settled || {
		diag "in alpha: $(workload_pids alpha | xargs), in beta: $(workload_pids beta | xargs);" \
			"progress $(progress); $(result_text)"
		say_migration
		return 1
	}
	sleep 0.5 # a second copy that comes late
	one_copy || { diag "two copies in the end"; return 1; }
	# Whoever is told that it was migrated, or that it was not, can rely on that.
	case $mig_status in
	0) progress_is_from beta || { diag "said to be migrated"; return 1; } ;;
	1) progress_is_from alpha || { diag "said to have failed"; return 1; } ;;
	esac
	finish_workload
}

mapfile -t points < <(grep -rhoE 'fault_point\([^)]*\)' "$tree/src" "$tree/pageserver" --include='*.c' |
	grep -oE '"[a-z-]+"' | tr -d '"' | sort -u)
ok "there are fault points" [ ${#points[@]} -gt 0 ]
[ -z "${SWEEP_POINTS:-}" ] || read -ra points <<<"$SWEEP_POINTS"
for point in "${points[@]}"; do
	for how in kill stop; do
		ok "$point: $how" sweep_case "$point" $how
		kill_workload
		rm -rf "$wl_dir"
	done
done

# A destination that stalls while the tasks are stopped is given up long before the wait for an answer ends.
stalled_case() {
	local us st=0
	restart_with beta "$1:stop"
	start_workload alpha forktree --procs 6 || return 1
	note_logs
	MIGRATE_TIMEOUT=20 migrate alpha beta --pid "$wl_pid" 2>/dev/null
	continue_agent beta
	restart_with beta ""
	us=$(jq 'select(.event == "done").downtime_us' "$work/events")
	{ [ "$mig_status" = 1 ] && [ "${us:-99999999}" -lt 8000000 ] && until_true 30 settled && progress_is_from alpha; } || {
		diag "exit status $mig_status, stopped for $us us;" \
			"in alpha: $(workload_pids alpha | xargs), in beta: $(workload_pids beta | xargs)"
		diag "progress $(progress); $(result_text)"
		say_migration
		st=1
	}
	[ $st = 0 ] && finish_workload
}
if [ -z "${SWEEP_POINTS:-}" ]; then
	for point in dest-final dest-prepared; do
		ok "$point: a stall is cut short" stalled_case $point
		kill_workload
		rm -rf "$wl_dir"
	done
fi
done_testing
