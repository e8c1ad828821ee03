#!/bin/bash
# Pages that hold what others hold are not sent as data: not within a process, nor among several.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"

# crosses MIB -- OPTS… -- ARGS…: moved there and back; at most MIB crosses each time.
crosses() {
	local most=$1 mib st=0
	local -a options=()
	shift 2
	while [ "$1" != -- ]; do
		options+=("$1")
		shift
	done
	shift
	start_workload alpha alike "${options[@]}" && runs_on || st=1
	for to in beta alpha; do
		[ $st = 0 ] || break
		move_workload "$to" "$@" || { st=1; break; }
		mib=$(wire_mib)
		diag "to $to: $mib MiB sent"
		[ "$mib" -le "$most" ] || st=1
	done
	[ $st != 0 ] || finish_workload || st=1
	result $st "pages that are alike cross once${options[*]:+, ${options[*]}}${*:+ (}$*${*:+)}"
	[ $st = 0 ] || kill_workload
	rm -rf "$wl_dir"
}

start_testbed

# 48 and 64 MiB of memory; beside it libc's pages, and 32 bytes for each page that is like another.
crosses 2 -- -- --compress none
crosses 2 -- --procs 1 --mib 64 -- --compress none --streams 1
crosses 2 -- -- --compress none --streams 4
crosses 2 -- -- --streams 3 --no-hw-breakpoints
# one content for each eight pages: written all the time, so that pages come again with others
for i in 1 2 3; do
	move_case "alike, and written meanwhile ($i)" -- alike --contents 512 --rate 100 -- --streams "$i"
done
move_case "alike, hybrid" -- alike --contents 512 --rate 100 -- --mode hybrid

done_testing
