#!/bin/bash
# The ways of moving: by pid and by cgroup, with either freezer, several page streams, parked by
# hardware breakpoints or by tracing system calls, let go by registers or by sigreturn.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed

# Hardware breakpoints and registers are the default: move.t moves everything by them.
few=(regs "regs --rseq" "signals --sigtrap ignored --once-ms 2000" "threads --threads 8" "forktree --procs 12")
all=("${few[@]}" "signals --once-ms 2000 --sigtrap handled" memory files sockets unlinked unixsock sysvshm "creds --variant user" churn
	"dirty --mib 32 --rate 40")

# shellcheck disable=SC2086
for name in "${few[@]}"; do
	move_case "$name: hardware breakpoints, sigreturn" -- $name -- --launch sigreturn
	move_case "$name: no hardware breakpoints, regsets" -- $name -- --no-hw-breakpoints
done
# shellcheck disable=SC2086
for name in "${all[@]}"; do
	move_case "$name: no hardware breakpoints, sigreturn" -- $name -- --no-hw-breakpoints --launch sigreturn
done
move_case "200 threads: --no-hw-breakpoints, sigreturn" -- threads --threads 200 -- \
	--no-hw-breakpoints --launch sigreturn

# Every thread asked at the stop, where the kernel may not be asked about it.
for name in "threads --threads 30" "signals --once-ms 2000" "creds --variant user" "dirty --threads 20"; do
	# shellcheck disable=SC2086
	move_case "$name: no BPF" -- $name -- --no-bpf
done

for streams in 1 3; do
	for compress in none lz4 auto; do
		move_case "$streams streams, compress $compress" -- dirty --mib 48 --rate 40 --threads 2 -- \
			--streams $streams --compress $compress
	done
	move_case "$streams streams: churn" -- churn -- --streams $streams
	move_case "$streams streams: a tree" -- forktree --mib 4 -- --streams $streams
done

# --- cgroups ---------------------------------------------------------------------------------------

freezer_root() {
	awk '$3 == "cgroup" && $4 ~ /(^|,)freezer(,|$)/ { print $2; exit }' /proc/mounts
}

unified_root() {
	awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts
}

# new_cgroup VERSION: below alpha's own; sets cgroup (in the hierarchy) and cgroup_dir.
new_cgroup() {
	local root
	if [ "$1" = v1 ]; then root=$(freezer_root); else root=$(unified_root); fi
	[ -n "$root" ] || return 1
	cgroup=/testbed-$TESTBED_NAME/alpha/web-$1
	cgroup_dir=$root$cgroup
	mkdir -p "$cgroup_dir/below"
}

# All processes of the workload, some of them in a cgroup below.
enter_cgroup() {
	until_true 30 all_enter
}

# Some end meanwhile, others may be forked by one that was not in it yet.
all_enter() {
	local pid to n=0
	for pid in $(outside_cgroup); do
		n=$((n + 1))
		to=$cgroup_dir/cgroup.procs
		[ $((n % 3)) != 0 ] || to=$cgroup_dir/below/cgroup.procs
		"$testbed" pid alpha "$pid" 2>/dev/null >"$to"
	done
	[ -z "$(outside_cgroup)" ]
}

outside_cgroup() {
	local pid
	for pid in $(workload_pids alpha); do
		on alpha grep -qsE ":$cgroup(/below)?$" "/proc/$pid/cgroup" || echo "$pid"
	done
}

frozen() {
	if [ -e "$cgroup_dir/freezer.state" ]; then
		[ "$(<"$cgroup_dir/freezer.state")" = FROZEN ]
	else
		grep -qx 'frozen 1' "$cgroup_dir/cgroup.events"
	fi
}

set_frozen() {
	if [ -e "$cgroup_dir/freezer.state" ]; then
		case $1 in
		1) echo FROZEN ;;
		0) echo THAWED ;;
		esac >"$cgroup_dir/freezer.state"
	else
		echo "$1" >"$cgroup_dir/cgroup.freeze"
	fi
}

cgroup_case() {
	local version=$1 how=$2
	shift 2
	new_cgroup "$version" && start_workload alpha "$@" && runs_on && enter_cgroup || return 1
	case $how in
	cgroup) move_workload beta --cgroup "$cgroup" ;;
	whole-path) move_workload beta --cgroup "$cgroup_dir" ;;
	freeze) move_workload beta --freeze-cgroup "$cgroup" ;;
	esac && finish_workload
}

for version in v1 v2; do
	for how in cgroup whole-path freeze; do
		for name in "forktree --procs 20" "threads --threads 20" churn; do
			# shellcheck disable=SC2086
			ok "by $how $version: $name" cgroup_case $version $how $name
			kill_workload
		done
	done
done

# Someone else in the cgroup: refused by name with --pid, taken along with --cgroup.
stranger_case() {
	new_cgroup "$1" && start_workload alpha regs && enter_cgroup || return 1
	local first=$wl_dir first_pid=$wl_pid
	start_workload alpha threads || return 1
	"$testbed" pid alpha "$wl_pid" >"$cgroup_dir/below/cgroup.procs"
	local second=$wl_dir second_pid=$wl_pid
	wl_dir=$first wl_pid=$first_pid
	migrate alpha beta --pid "$first_pid" --freeze-cgroup "$cgroup"
	is $mig_status 4 "$1: a stranger in the cgroup is a reason to refuse"
	ok "$1: the stranger is named" grep -q "\"event\":\"refused\".*$second_pid\|$second_pid.*cgroup" "$work/events"
	ok "$1: and the task runs on" runs_on
	migrate alpha beta --cgroup "$cgroup" || { say_migration; return 1; }
	wl_host=beta
	progress_moved "$first" && progress_moved "$second" || return 1
	wl_dir=$first
	finish_workload && { wl_dir=$second; finish_workload; }
}

progress_moved() {
	wl_dir=$1
	until_true 30 progress_is_from beta && runs_on
}
for version in v1 v2; do
	ok "$version: all of a cgroup with two trees is moved" stranger_case $version
	kill_workload
done

# A cgroup that was frozen is frozen again after a migration that was refused or rehearsed.
frozen_case() {
	new_cgroup "$1" && start_workload alpha threads && enter_cgroup || return 1
	set_frozen 1
	until_true 30 frozen || return 1
	local st=0
	migrate alpha beta --pid "$wl_pid" --freeze-cgroup "$cgroup" --rehearse || { say_migration; st=1; }
	ok "$1: frozen again" frozen
	set_frozen 0
	[ $st = 0 ] || return 1
	runs_on && finish_workload
}
for version in v1 v2; do
	ok "$version: a frozen cgroup is rehearsed and stays frozen" frozen_case $version
	kill_workload
done
done_testing
