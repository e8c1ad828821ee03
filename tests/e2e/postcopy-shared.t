#!/bin/bash
# Hybrid and post-copy: shared anonymous memory stays behind as well, over several processes that have it
# mapped.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed

# postcopied: what the last event says of it, by jq's path.
postcopied() {
	jq -r ".postcopy$1" <<<"$mig_done"
}

right() {
	[ "$(postcopied '| [.lost, .asked_again, .reconnects] | @text')" = '[0,0,0]' ] || { diag "$mig_done"; return 1; }
}

fetched_case() {
	local mode=$1
	shift
	start_workload alpha "$@" && runs_on && move_workload beta --mode "$mode" && right && finish_workload
}
for mode in hybrid postcopy; do
	for name in "shared" "shared --steady --pause-us 0" "shared --workers 0" "shared --mib 2 --workers 8" \
		"shared --workers 6 --pause-us 500"; do
		# shellcheck disable=SC2086
		ok "$mode: $name" fetched_case $mode $name
		kill_workload
	done
done

back_case() {
	start_workload alpha "$@" && runs_on && move_workload beta --mode postcopy && right &&
		move_workload alpha --mode hybrid && right && move_workload beta --mode hybrid && right &&
		move_workload alpha && finish_workload
}
for name in "shared" "shared --steady"; do
	# shellcheck disable=SC2086
	ok "moved there, back, there and back again: $name" back_case $name
	kill_workload
done

# It does stay behind: in post-copy all of it, slowly, while the processes run.
behind_case() {
	start_workload alpha shared --mib 8 --pause-us 1000 --steady && runs_on || return 1
	move_workload beta --mode postcopy --max-bandwidth 4M && right || return 1
	local lazy
	lazy=$(postcopied .pages_lazy)
	((lazy >= 1800)) || { diag "$lazy pages of 2048 stayed behind"; return 1; }
	finish_workload
}
ok "postcopy: it stays behind" behind_case
kill_workload

# What pre-copy has brought, and nobody has written since, is not sent again.
unchanged_case() {
	start_workload alpha shared --mib 32 --workers 2 --pause-us 20000 && runs_on || return 1
	move_workload beta --mode hybrid && right || return 1
	local lazy
	lazy=$(postcopied .pages_lazy)
	((lazy < 2000)) || { diag "$lazy pages of 8192 were fetched"; return 1; }
	finish_workload
}
ok "hybrid: pages that were delivered and not written since are not sent again" unchanged_case
kill_workload
done_testing
