#!/bin/bash
# Shared memory in pre-copy mode: what is sent of it, and when.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed

# round N FILTER: what jq(1) says of it.
round() {
	jq -e ".rounds[$(($1 - 1))] | $2" <<<"$mig_done" >"$work/jq" ||
		{ diag "$(jq -c .rounds <<<"$mig_done")"; return 1; }
}

# Digests of it are kept from the first round on, whatever private memory has taken of the room for them.
sent_once() {
	start_workload alpha dirty --shared --mib 64 && runs_on && move_workload beta "$@" || return 1
	round 1 '.pages_sent >= 16384' && round 2 '.pages_sent < 1000' && finish_workload
}
ok "what is shared and not written is sent once" sent_once
kill_workload
ok "also where it cannot be tracked" sent_once --no-bpf
kill_workload

# stopped_for FILTER: what jq(1) says of the pages that were looked into at the stop.
stopped_for() {
	jq -e ".stop_pages | $1" <<<"$mig_done" >"$work/jq" || { diag "stop_pages $(jq -c .stop_pages <<<"$mig_done")"; return 1; }
}

# Another try where something else came in between: whether it did is a matter of chance.
few_at_a_stop() {
	for _ in 1 2 3 4 5 6; do
		move_workload "$(other "$wl_host")" || return 1
		! stopped_for '. < 10000' || { finish_workload; return; }
	done
	return 1
}
few_at_the_stop() {
	start_workload alpha "$@" && runs_on && few_at_a_stop
}
few_once_moved() {
	start_workload alpha "$@" && runs_on && move_workload beta && few_at_a_stop
}
ok "at the stop few pages of 512 MiB are looked into" few_at_the_stop dirty --shared --mib 512 --rate 2
kill_workload
ok "likewise of several processes that have it" few_at_the_stop shared --mib 128 --workers 6 --steady --pause-us 2000 --seldom 100000
kill_workload

ok "likewise of what has been moved before" few_once_moved dirty --shared --mib 128 --rate 2
kill_workload
ok "also of several processes" few_once_moved shared --mib 64 --workers 6 --steady --pause-us 2000 --seldom 100000
kill_workload

ok "likewise of a memfd that stays open" few_at_the_stop dirty --shared --of memfd --mib 256 --rate 2
kill_workload
ok "and of a removed file in /dev/shm" few_at_the_stop dirty --shared --of removed --mib 256 --rate 2
kill_workload
ok "and of POSIX shared memory" few_at_the_stop dirty --shared --of shm --mib 256 --rate 2
kill_workload

all_at_the_stop() {
	start_workload alpha dirty --shared --mib 64 && runs_on && move_workload beta --no-bpf && stopped_for '. >= 16384' && finish_workload
}
ok "all of it without BPF" all_at_the_stop
kill_workload

# Whatever processes do to it and to their mappings, often or seldom, or while they end and others come.
for name in "shared" "shared --steady" "shared --seldom 20 --steady" "shared --seldom 200 --steady --workers 6" \
	"shared --seldom 2000 --steady --pause-us 0" "shared --seldom 100000 --steady --mib 4" \
	"shared --seldom 100 --workers 8 --mib 2" "shared --seldom 100000 --workers 2" \
	"shared --of zero --seldom 1000" "shared --of memfd --seldom 1000" "shared --of open-memfd --seldom 1000" \
	"sysvshm" "sysvshm --mib 32" forktree churn; do
	for mode in precopy hybrid; do
		# shellcheck disable=SC2086
		move_case "$mode: $name" -- $name -- --mode $mode
	done
done
# And by descriptors and names, right before the stop, too.
for of in memfd removed shm; do
	for seldom in 4 400; do
		for mode in precopy hybrid; do
			move_case "$mode: reached, $of, one of $seldom" -- reached --of $of --seldom $seldom -- --mode $mode
		done
	done
done

leaves_nothing() {
	start_workload alpha reached --seldom 400 && runs_on && rehearse_workload && finish_workload
}
ok "a rehearsal leaves no mark" leaves_nothing
kill_workload
done_testing
