#!/bin/bash
# Hybrid and post-copy: the tasks run at the destination while pages are still at the source, whatever
# they do to their memory, and whatever breaks or dies meanwhile.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed

# postcopied: what the last event says of it, by jq's path.
postcopied() {
	jq -r ".postcopy$1" <<<"$mig_done"
}

# fetched_case MODE NAME OPTS…: moved, and what was fetched adds up.
fetched_case() {
	local mode=$1
	shift
	start_workload alpha "$@" && runs_on && move_workload beta --mode "$mode" || return 1
	if [ "$(postcopied '| [.lost, .asked_again, .reconnects] | @text')" != '[0,0,0]' ]; then
		diag "$mig_done"
		return 1
	fi
	finish_workload
}

for mode in hybrid postcopy; do
	for name in "dirty --mib 64 --rate 100 --threads 2" memory "memory --vmas 3000" forktree \
		"forktree --procs 12 --fan 1 --zombies 12" "threads --threads 8" "regs --rseq" \
		"signals --once-ms 2000" files "creds --variant user" sockets; do
		# shellcheck disable=SC2086
		ok "$mode: $name" fetched_case $mode $name
		kill_workload
	done
	for seed in 1 2 3; do
		ok "$mode: churn, seed $seed" fetched_case $mode churn --seed $seed
		kill_workload
	done
done

# Only what pre-copy did not bring, or what was written since, is left.
residual_case() {
	start_workload alpha dirty --mib 64 && runs_on || return 1
	move_workload beta --mode hybrid || return 1
	local lazy
	lazy=$(postcopied .pages_lazy)
	((lazy < 1000)) || {
		diag "$lazy pages of an idle task were fetched"
		return 1
	}
	finish_workload
}
ok "hybrid: pages that were delivered and not written since are not fetched" residual_case
kill_workload

back_case() {
	start_workload alpha "$@" && runs_on && move_workload beta --mode postcopy &&
		move_workload alpha --mode hybrid && move_workload beta --mode postcopy && finish_workload
}
for name in memory forktree churn; do
	ok "moved there, back and there again: $name" back_case $name
	kill_workload
done

refused_case() {
	verify_errors=$("$build/cr-migrate" --hosts "$hosts_file" --mode hybrid --verify full --pid 1 'alpha->beta' 2>&1)
	[ $? = 2 ] && grep -q 'goes with --mode precopy' <<<"$verify_errors"
}
ok "--verify full is refused where there is nothing to compare" refused_case

# --- what breaks ------------------------------------------------------------------------------------

# A move that takes long enough for something to happen: pages are pushed slowly. In the background.
begin_slow() {
	migrate alpha beta --pid "$wl_pid" --mode postcopy --max-bandwidth "${RATE:-10M}" --postcopy-timeout 30s &
	mover=$!
}

fetching() {
	"$build/cr-migrate" status --hosts "$hosts_file" --json beta 2>/dev/null |
		jq -se 'any(.state == "fetching pages" and .postcopy.pages_left > 0)' >/dev/null
}

end_slow() {
	local st=0
	wait "$mover" || st=$?
	mig_done=$(tail -n 1 "$work/events")
	return $st
}

fetchers() {
	local pid
	for pid in $(on beta pgrep -x cr-agent); do
		! on beta grep -qs '^Uid:.65534' "/proc/$pid/status" || echo "$pid"
	done
}

after_slow() {
	end_slow || { say_migration; return 1; }
	wl_host=beta
	moved_to beta || { say_migration; return 1; }
	[ "$(postcopied .lost)" = 0 ] && finish_workload
}

killed_fetcher_case() {
	start_workload alpha "$@" && runs_on || return 1
	begin_slow
	until_true 30 fetching || return 1
	local pid
	for _ in 1 2 3 4 5; do
		for pid in $(fetchers); do
			on beta kill -KILL "$pid"
		done
		progresses
	done
	after_slow
}
for name in "dirty --mib 64 --rate 20" "churn --seed 5" forktree; do
	# shellcheck disable=SC2086
	ok "the fetcher is killed five times: $name" killed_fetcher_case $name
	kill_workload
done
ok "others took over" grep -q 'another one takes over' "$state/beta/agent.log"
done_testing
