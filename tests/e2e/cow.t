#!/bin/bash
# What parent and children share copy-on-write crosses once, and is shared again afterwards.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"

# pss HOST: KiB that the workload's processes have in all, each shared page counted once. smaps_rollup, proc(5).
pss() {
	local pid total=0 kb
	for pid in $(workload_pids "$1"); do
		# shellcheck disable=SC2016
		kb=$(on "$1" awk '$1 == "Pss_Anon:" { print $2 }' "/proc/$pid/smaps_rollup") || return 1
		total=$((total + kb))
	done
	echo "$total"
}

# shares MIB -- NAME OPTS… -- ARGS…: moved there and back; at most MIB crosses each time, and hardly more memory is
# taken than before.
shares() {
	local most=$1 before after mib st=0
	local -a name=()
	shift 2
	while [ "$1" != -- ]; do
		name+=("$1")
		shift
	done
	shift
	start_workload alpha "${name[@]}" && runs_on || st=1
	for to in beta alpha; do
		[ $st = 0 ] || break
		before=$(pss "$wl_host")
		move_workload "$to" "$@" || { st=1; break; }
		mib=$(wire_mib)
		after=$(pss "$wl_host")
		diag "to $to: $((before / 1024)) MiB before, $((after / 1024)) MiB after, $mib MiB sent"
		[ "$mib" -le "$most" ] && [ "$after" -gt 0 ] && [ "$after" -le $((before * 5 / 4 + 4096)) ] || st=1
	done
	[ $st != 0 ] || finish_workload || st=1
	result $st "shared copy-on-write again: ${name[*]}${*:+ (}$*${*:+)}"
	[ $st = 0 ] || kill_workload
	rm -rf "$wl_dir"
}

start_testbed

# 64 MiB, of which each of 10 has written 1 MiB. What the first has written since it forked is shared by its children
# alone: at the destination each has it for itself.
shares 100 -- prefork --
shares 100 -- prefork -- --streams 3 --compress none
shares 64 -- prefork --mib 16 --workers 20 --depth 8 -- --no-hw-breakpoints

# Forked at any moment, also right before the switch-over.
for i in 1 2 3; do
	move_case "children forked meanwhile ($i)" -- prefork --mib 32 --workers 2 --depth 1 --rate 30 --snapshots --
done
move_case "hybrid" -- prefork --rate 50 -- --mode hybrid
move_case "post-copy" -- prefork --mib 32 -- --mode postcopy

done_testing
