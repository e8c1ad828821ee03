#!/bin/bash
# Shared memory of huge pages moves, if there are as many at the destination. Both hosts have them from one pool.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"

pool=/proc/sys/vm/nr_hugepages
had=$(<$pool)
WANTED=40 # three times 4 for either host, and what is moved next
restore_pool() {
	echo "$had" >$pool
	clean_up
}
echo $((had + WANTED)) >$pool
[ "$(<$pool)" = $((had + WANTED)) ] || {
	echo "$had" >$pool
	skip_all "no huge pages to be had here"
}
start_testbed
trap restore_pool EXIT

move_case "moved: huge pages" -- hugepages --
move_case "moved: huge pages, post-copy" -- hugepages -- --mode postcopy
move_case "moved: huge pages, three streams" -- hugepages -- --streams 3 --max-bandwidth 60M

back_case() {
	start_workload alpha hugepages && runs_on && move_workload beta && move_workload alpha && finish_workload
}
ok "moved there and back: huge pages" back_case
kill_workload

free_pages() {
	awk '/^HugePages_Free/ { print $2 }' /proc/meminfo
}
all_free() {
	[ "$(free_pages)" = $((had + WANTED)) ]
}
ok "none is left behind" until_true 10 all_free

rehearsed_case() {
	start_workload alpha hugepages && runs_on || return 1
	migrate alpha beta --pid "$wl_pid" --rehearse || { say_migration; return 1; }
	progress_is_from alpha && runs_on && finish_workload
}
ok "nothing is left of a rehearsal" rehearsed_case
kill_workload
ok "all are free again" until_true 10 all_free

image_case() {
	start_workload alpha hugepages && runs_on || return 1
	on alpha "$build/cr-agent" dump --pid "$wl_pid" --state /tmp/one-shot --dir "$work/image" >"$work/out" 2>&1 || {
		diag "$(cat "$work/out")"
		return 1
	}
	touch "$wl_dir/stored"
	on beta "$build/cr-agent" restore --detach --state /tmp/one-shot --dir "$work/image" >"$work/out" 2>&1 || {
		diag "$(cat "$work/out")"
		return 1
	}
	wl_host=beta
	moved_to beta && finish_workload
}
ok "dumped and restored: huge pages" image_case
kill_workload

# Not as many as are needed.
too_few_case() {
	start_workload alpha hugepages && runs_on || return 1
	echo $((had + 15)) >$pool
	migrate alpha beta --pid "$wl_pid"
	{ [ "$mig_status" = 4 ] && grep '"event":"refused"' "$work/events" |
		grep -q 'huge pages of 2048 KiB.*12 are needed at the destination and [0-3] are free'; } || {
		say_migration
		return 1
	}
	progress_is_from alpha && runs_on && finish_workload
}
ok "refused: there are not enough at the destination" too_few_case
kill_workload
done_testing
