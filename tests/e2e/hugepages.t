#!/bin/bash
# Memory of huge pages moves, shared and private, if there are as many at the destination. Both hosts have them
# from one pool.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"

pool=/proc/sys/vm/nr_hugepages
had=$(<$pool)
WANTED=48 # 20 for either host, and some more
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

# back_case WORKLOAD TIMES MODE…
back_case() {
	local i times=$2
	start_workload alpha "$1" && runs_on || return 1
	for ((i = 0; i < times; i++)); do
		move_workload beta "${@:3}" && move_workload alpha "${@:3}" || return 1
	done
	finish_workload
}
ok "moved there and back: huge pages" back_case hugepages 1
kill_workload

# Of 20 huge pages 6 are written all the time.
private_case() {
	try_move_case hugepages_private -- || return 1
	jq -e '.rounds | length > 1 and (.[1:] | all(.pages_written < 8 * 512))' <<<"$mig_done" >/dev/null || {
		diag "sent again: $(jq -c .rounds <<<"$mig_done")"
		return 1
	}
}
ok "moved: private huge pages, what was written alone is sent again" private_case
kill_workload
move_case "moved: private huge pages, copy-on-write" -- hugepages_private --sharing --
move_case "moved: private huge pages, hybrid" -- hugepages_private -- --mode hybrid
move_case "moved: private huge pages, post-copy" -- hugepages_private -- --mode postcopy
ok "moved there and back: private huge pages" back_case hugepages_private 3
kill_workload
ok "moved there and back: private huge pages, hybrid" back_case hugepages_private 3 --mode hybrid
kill_workload

free_pages() {
	awk '/^HugePages_Free/ { print $2 }' /proc/meminfo
}
all_free() {
	[ "$(free_pages)" = $((had + WANTED)) ]
}
ok "none is left behind" until_true 30 all_free

rehearsed_case() {
	start_workload alpha "$1" && runs_on || return 1
	migrate alpha beta --pid "$wl_pid" --rehearse || { say_migration; return 1; }
	progress_is_from alpha && runs_on && finish_workload
}
for what in hugepages hugepages_private; do
	ok "nothing is left of a rehearsal: $what" rehearsed_case "$what"
	kill_workload
	ok "all are free again" until_true 30 all_free
done

image_case() {
	start_workload alpha "$1" && runs_on || return 1
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
for what in hugepages hugepages_private; do
	ok "dumped and restored: $what" image_case "$what"
	kill_workload
	rm -rf "$work/image"
done

# Not as many as are needed.
# too_few_case WORKLOAD NEEDED
too_few_case() {
	echo $((had + WANTED)) >$pool
	start_workload alpha "$1" && runs_on || return 1
	echo $((had + $2 + 3)) >$pool
	migrate alpha beta --pid "$wl_pid"
	{ [ "$mig_status" = 4 ] && grep '"event":"refused"' "$work/events" |
		grep -q "huge pages of 2048 KiB.*$2 are needed at the destination and [0-3] are free"; } || {
		say_migration
		return 1
	}
	progress_is_from alpha && runs_on && finish_workload
}
ok "refused: there are not enough at the destination" too_few_case hugepages 12
kill_workload
ok "refused: there are not enough private ones at the destination" too_few_case hugepages_private 20
kill_workload
echo $((had + WANTED)) >$pool

read_only_case() {
	start_workload alpha hugepages_private --read-only && runs_on || return 1
	migrate alpha beta --pid "$wl_pid"
	{ [ "$mig_status" = 4 ] && grep '"event":"refused"' "$work/events" |
		grep -q "private huge pages without PROT_WRITE"; } || {
		say_migration
		return 1
	}
	progress_is_from alpha && runs_on && finish_workload
}
ok "refused: private huge pages that cannot be written" read_only_case
kill_workload
ok "none is left behind" until_true 30 all_free
done_testing
