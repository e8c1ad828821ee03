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
# shellcheck source=tests/e2e/steps.sh
. "$e2e/steps.sh"

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

# in_image HOST -- NAME OPTS…: dumped, restored in HOST; sharing_in_image: with hardly more memory than before.
in_image() {
	local host=$1 image=$work/image-$((++count))
	shift 2
	start_workload alpha "$@" && runs_on || return 1
	before=$(pss alpha)
	verb alpha pre-dump --pid "$wl_pid" --dir "$image" && runs_on && verb alpha dump --pid "$wl_pid" --dir "$image" &&
		gone_from alpha && restored "$host" "$image" || return 1
	after=$(pss "$host")
	diag "$((before / 1024)) MiB before, $((after / 1024)) MiB after"
	runs_on && finish_workload
}
sharing_in_image() {
	local before after
	in_image "$@" && [ "$after" -gt 0 ] && [ "$after" -le $((before * 5 / 4 + 4096)) ]
}
count=0
ok "shared copy-on-write again, restored from an image: children that have written" sharing_in_image beta -- prefork
kill_workload
ok "a tree of eight generations" sharing_in_image beta -- prefork --mib 16 --workers 20 --depth 8
kill_workload
for i in 1 2 3; do
	ok "children forked meanwhile ($i)" in_image alpha -- prefork --mib 32 --workers 2 --depth 1 --rate 30
	kill_workload
done
ok "processes that come and go" in_image beta -- forktree
kill_workload

done_testing
