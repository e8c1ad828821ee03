#!/bin/bash
# Memory of huge pages moves, shared and private, if there are as many at the destination. Both hosts have them
# from one pool.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"

# shellcheck source=tests/e2e/pool.sh
. "$e2e/pool.sh"
take_pool 48 # 20 for either host, and some more
# shellcheck source=tests/e2e/breaks.sh
. "$e2e/breaks.sh"

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

# Whole ones alone, of at least $1: all stay behind that no other process has and that are reserved.
fetched() {
	local lazy
	lazy=$(postcopied .pages_lazy)
	{ ((lazy >= $1 * 512)) && [ "$(postcopied '| [.lost, .asked_again, .reconnects] | @text')" = '[0,0,0]' ]; } || {
		diag "$mig_done"
		return 1
	}
}

fetched_case() {
	start_workload alpha huge_absent --idle && runs_on && move_workload beta --mode postcopy && fetched 14 && finish_workload
}
ok "post-copy: private huge pages are fetched" fetched_case
kill_workload

# Slowly pushed, so that they have not arrived when the tasks want them.
absent_case() {
	local absent of all
	start_workload alpha huge_absent && runs_on || return 1
	migrate alpha beta --pid "$wl_pid" --mode postcopy --max-bandwidth 4M || { say_migration; return 1; }
	wl_host=beta
	wait_for "$wl_dir/absent" 40 || { diag "$(result_text)" "$(tail -n 3 "$wl_dir/log")"; return 1; }
	read -r absent of all <"$wl_dir/absent"
	((absent >= all * 3 / 4)) || { diag "in $absent $of $all steps only pages were missing"; return 1; }
	fetched 10 && finish_workload
}
ok "post-copy: what a task may do with private huge pages that are missing" absent_case
kill_workload

some_left() {
	local n
	n=$(pages_left)
	((n > 0 && n < $1))
}

RATE=4M # of what is pushed: something can happen meanwhile
broken_case() {
	start_workload alpha huge_absent --idle && runs_on && begin_slow && until_true 30 some_left $((15 * 512)) || return 1
	wl_host=beta
	# in the middle of one, most likely
	strike fetcher || { diag "no fetcher"; return 1; }
	until_true 20 some_left $((12 * 512)) || { diag "$(pages_left) left"; return 1; }
	strike_server alpha || { diag "no page-server"; return 1; }
	until_true 20 some_left $((10 * 512)) || { diag "$(pages_left) left"; return 1; }
	strike_server beta || { diag "no page-server at the destination"; return 1; }
	end_slow || { say_migration; return 1; }
	{ [ "$(postcopied .lost)" = 0 ] && (($(postcopied .reconnects) > 0)); } || { diag "$mig_done"; return 1; }
	moved_to beta && finish_workload
}
ok "post-copy: private huge pages, fetcher and page-servers are killed" broken_case
kill_workload

SLOW=20mbit RATE=1G
ok "the link is cut and restored ten times: private huge pages" cut_case huge_absent --idle
kill_workload
ok "the link is cut and restored ten times: private huge pages that are written" cut_case hugepages_private
kill_workload
SLOW='' RATE=4M

# Whole huge pages alone.
only_huge_left() {
	local n
	n=$(pages_left)
	((n > 0 && n < $1 && n % 512 == 0))
}

lost_said() {
	grep -q 'pages fetched, [0-9]* lost$' "$state/beta/agent.log"
}
lost_case() {
	local lost
	: >"$state/beta/agent.log"
	start_workload alpha huge_absent --bus && runs_on && PATIENCE=2s begin_slow || return 1
	wl_host=beta
	{ wait_for "$wl_dir/resident" 20 && until_true 20 only_huge_left $((13 * 512)); } || {
		diag "$(pages_left) left"
		return 1
	}
	"$testbed" agent alpha kill
	# shellcheck disable=SC2016
	on alpha sh -c 'kill -KILL $(pgrep -x cr-agent) $(pgrep -x huge_absent)' 2>/dev/null
	end_slow
	{ until_true 30 lost_said && finish_workload; } || { diag "$(tail -n 5 "$state/beta/agent.log")"; return 1; }
	lost=$(<"$wl_dir/lost")
	{ ((lost > 0 && lost < 14)) && grep -q "pages fetched, $((lost * 512)) lost$" "$state/beta/agent.log"; } || {
		diag "$lost huge pages were lost" "$(grep lost "$state/beta/agent.log")"
		return 1
	}
}
ok "the source is lost: SIGBUS for private huge pages that are missing, the others are right" lost_case
kill_workload
"$testbed" agent alpha restart

# Some of those that are written all the time were delivered before.
residual_case() {
	try_move_case hugepages_private -- --mode hybrid || return 1
	local lazy
	lazy=$(postcopied .pages_lazy)
	((lazy >= 512 && lazy < 12 * 512)) || {
		diag "of 20 huge pages, of which 6 are written, $lazy pages of 4 KiB were fetched"
		return 1
	}
}
ok "hybrid: private huge pages that were written since are fetched" residual_case
kill_workload

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
	set_pool "$pool_taken"
	start_workload alpha "$1" && runs_on || return 1
	set_pool $(($2 + 3))
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
set_pool "$pool_taken"

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
