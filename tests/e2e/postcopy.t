#!/bin/bash
# Hybrid and post-copy: the tasks run at the destination while pages are still at the source, whatever
# they do to their memory, and whatever breaks or dies meanwhile.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed

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

# Its owner ends while they are still missing. In order they come at 8 MB/s.
heir_case() {
	start_workload alpha heir && runs_on && move_workload beta --mode postcopy --max-bandwidth 8M && finish_workload
}
ok "a thread ends that holds robust mutexes" heir_case
kill_workload

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

# Whatever a task does to pages that have not arrived. Slowly pushed, so that they have not.
absent_case() {
	start_workload alpha absent && runs_on || return 1
	if ! migrate alpha beta --pid "$wl_pid" --mode postcopy --max-bandwidth 1M; then
		say_migration
		return 1
	fi
	wl_host=beta
	wait_for "$wl_dir/absent" 40 || { diag "$(result_text)" "$(tail -n 3 "$wl_dir/log")"; return 1; }
	local absent of all
	read -r absent of all <"$wl_dir/absent"
	((absent >= all * 3 / 4)) || { diag "in $absent $of $all steps only pages were missing"; return 1; }
	finish_workload
}
ok "system calls, threads, forks, moves, discards, exec, exit and a core dump while pages are missing" absent_case
kill_workload

# ps(1), top(1) and their like read out of every process, and so do away with pages that are not there yet:
# what they are given in their place must not stay.
looked_at_case() {
	local st=0
	rm -f "$work/over"
	# shellcheck disable=SC2016
	on beta sh -c 'while [ ! -e "$1" ]; do ps axeww; done >/dev/null 2>&1' \
		look "$work/over" &
	for _ in 1 2 3; do
		start_workload alpha threads && runs_on && move_workload beta --mode "$1" && finish_workload && continue
		st=1
		break
	done
	touch "$work/over"
	wait
	return $st
}
for mode in postcopy hybrid; do
	ok "$mode: others read the arguments and the environment of whatever there is" looked_at_case $mode
	kill_workload
done

refused_case() {
	verify_errors=$("$build/cr-migrate" --hosts "$hosts_file" --mode hybrid --verify full --pid 1 'alpha->beta' 2>&1)
	[ $? = 2 ] && grep -q 'goes with --mode precopy' <<<"$verify_errors"
}
ok "--verify full is refused where there is nothing to compare" refused_case

done_testing
