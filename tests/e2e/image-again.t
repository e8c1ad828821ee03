#!/bin/bash
# An image more than once: rounds that end in what a single dump is, byte for byte; restored in two hosts, on the
# host that it is of, and after that was down.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed
# shellcheck source=tests/e2e/steps.sh
. "$e2e/steps.sh"
images=$work/images
mkdir "$images"

cr_image() {
	"$build/cr-image" "$@" >"$work/cr-image.out" 2>&1 || { diag "cr-image $*" "$(head -n 20 "$work/cr-image.out")"; return 1; }
}

# --- rounds ------------------------------------------------------------------------------------------------

# take_step: the workload changes its memory, and waits for a signal again.
take_step() {
	local before
	before=$(<"$wl_dir/step")
	on "$wl_host" kill -USR1 "$wl_pid"
	until_true 20 step_differs "$before" && until_true 30 waits_for_signal
}

step_differs() {
	local now
	now=$(cat "$wl_dir/step" 2>/dev/null)
	[ -n "$now" ] && [ "$now" != "$1" ]
}

# rt_sigtimedwait(2)
waits_for_signal() {
	[ "$(on "$wl_host" cut -d' ' -f1 "/proc/$wl_pid/syscall")" = 128 ]
}

# same_as_the_task IMAGE: each mapping that the image has a page of, if the image has all of it.
same_as_the_task() {
	local image=$1 range n=0
	"$build/cr-image" mem "$image" "$wl_pid" >"$work/mappings" || return 1
	while read -r range _; do
		"$build/cr-image" mem "$image" "$wl_pid" "$range" >"$work/mem.image" 2>/dev/null || continue
		on "$wl_host" dd if="/proc/$wl_pid/mem" bs=4096 iflag=skip_bytes,count_bytes skip=$((16#${range%-*})) \
			count=$((16#${range#*-} - 16#${range%-*})) 2>/dev/null >"$work/mem.task" || return 1
		cmp "$work/mem.image" "$work/mem.task" >"$work/cmp" || { diag "$range: $(<"$work/cmp")"; return 1; }
		n=$((n + 1))
	done <"$work/mappings"
	[ $n -ge 5 ] || { diag "only $n mappings compared"; return 1; }
}

same_as_a_single_dump() {
	local rounds=$images/rounds single=$images/single
	start_workload alpha steps || return 1
	for _ in 1 2 3 4; do
		verb alpha pre-dump --pid "$wl_pid" --dir "$rounds" && take_step || return 1
	done
	verb alpha dump --pid "$wl_pid" --dir "$rounds" --leave-running && until_true 30 waits_for_signal &&
		verb alpha dump --pid "$wl_pid" --dir "$single" --leave-running && until_true 30 waits_for_signal &&
		cr_image verify "$rounds" "$single" && cr_image diff --pages "$rounds" "$single" &&
		same_as_the_task "$rounds"
}
ok "four pre-dumps and a dump: the same bytes as a single dump, and as the task has" same_as_a_single_dump

no_larger() {
	local rounds single
	rounds=$(du -B1 -s "$images/rounds" | cut -f1)
	single=$(du -B1 -s "$images/single" | cut -f1)
	# what was discarded between rounds may leave a directory block, nothing else
	[ "$rounds" -le $((single * 102 / 100)) ] || { diag "after rounds $rounds bytes, at once $single"; return 1; }
}
ok "and take no more of the disk" no_larger

# The task has checked all its memory before each step; it ends with a last look.
ends_well() {
	on "$wl_host" kill -TERM "$wl_pid"
	{ wait_for "$wl_dir/result" 30 && [ "$(result_text)" = OK ]; } || { diag "$(result_text)"; return 1; }
}
restored_rounds() {
	ends_well || return 1
	rm "$wl_dir/result"
	verb beta restore --detach --dir "$images/rounds" || return 1
	wl_host=beta
	until_true 30 waits_for_signal && take_step && take_step && ends_well
}
ok "what the rounds left is restored, goes on, and finds its memory right" restored_rounds
kill_workload

# Mappings come and go between the rounds, at the same addresses: what was there once must not come back.
churned() {
	local image=$images/churn-$1
	start_workload alpha churn --seed "$1" && runs_on || return 1
	for _ in 1 2 3; do
		verb alpha pre-dump --pid "$wl_pid" --dir "$image" && runs_on || return 1
	done
	verb alpha dump --pid "$wl_pid" --dir "$image" && gone_from alpha && cr_image verify "$image" &&
		restored beta "$image" && finish_workload
}
for seed in 1 2; do
	ok "an address space that changes all the time: three pre-dumps, dumped, restored" churned $seed
	kill_workload
done

# A child that is replaced, between rounds and between dumps, by another with the same pid.
same_pid() {
	local image=$images/samepid-$1$2
	start_workload alpha samepid --ms "$1" && runs_on || return 1
	# shellcheck disable=SC2086 # perhaps none
	verb alpha pre-dump --pid "$wl_pid" --dir "$image" --max-bandwidth 4M --compress none $2 && runs_on &&
		verb alpha dump --pid "$wl_pid" --dir "$image" --max-bandwidth 4M --compress none --max-rounds 6 &&
		gone_from alpha && cr_image verify "$image" && restored beta "$image" && finish_workload
}
for ms in 150 700; do
	ok "a pid that has another process every $ms ms: none has pages of one before" same_pid $ms ""
	kill_workload
done
ok "the same, tracked" same_pid 700 --track
kill_workload

# What is special about a page shows to a second tracking as to the first.
tracked_before() {
	local image=$images/before
	start_workload alpha memory && runs_on || return 1
	verb alpha pre-dump --pid "$wl_pid" --dir "$image" && runs_on && verb alpha dump --pid "$wl_pid" --dir "$image" &&
		gone_from alpha && restored beta "$image" && finish_workload
}
ok "special memory, after a pre-dump: dumped, restored" tracked_before
kill_workload
rehearsed_before() {
	start_workload alpha memory && runs_on && migrate alpha beta --pid "$wl_pid" --rehearse && runs_on &&
		move_workload beta && finish_workload
}
ok "special memory, after a rehearsal: moved" rehearsed_before
kill_workload

# --- established TCP connections: those between two tasks wait in an image, others cannot ---------------------

tcp_refused() {
	local st=0
	start_workload alpha sockets --connected && runs_on || return 1
	silent_verb alpha dump --pid "$wl_pid" --dir "$images/tcp" --tcp refuse || st=$?
	{ [ $st = 4 ] && grep -q 'TCP connection to 127.0.0.1:.*close it first' "$work/out"; } || { diag "status $st: $(cat "$work/out")"; return 1; }
	runs_on
}
ok "--tcp refuse: refused by name, the task runs on" tcp_refused
tcp_closed() {
	verb alpha dump --pid "$wl_pid" --dir "$images/tcp2" --tcp close && gone_from alpha || return 1
	grep -q 'warning.*connection to 127.0.0.1:.* is closed' "$work/out" || say_out || return 1
	restored beta "$images/tcp2" && finish_workload
}
ok "--tcp close: a warning names each; they are found broken when it is restored" tcp_closed
kill_workload

# talk_in_image HOST OPTS…: of the restore
talk_in_image() {
	local host=$1 image=$images/talk-$((++count))
	shift
	start_workload alpha talk && runs_on || return 1
	for _ in 1 2; do
		verb alpha pre-dump --pid "$wl_pid" --dir "$image" --track && runs_on || return 1
	done
	verb alpha dump --pid "$wl_pid" --dir "$image" --leave-running && runs_on || return 1
	! grep 'is closed' "$work/out" || return 1
	image=$image-2
	verb alpha dump --pid "$wl_pid" --dir "$image" && gone_from alpha && restored "$host" "$image" "$@" && runs_on &&
		finish_workload
}
count=0
ok "a connection between two tasks goes on at the source, and where it is restored" talk_in_image beta
kill_workload
ok "the same, restored lazily" talk_in_image beta --lazy
kill_workload
ok "the same, restored where it was" talk_in_image alpha
kill_workload
no_loopback() {
	local st=0
	on beta ip link set lo down
	silent_verb beta restore --detach --dir "$images/talk-1-2" || st=$?
	on beta ip link set lo up
	{ [ $st = 4 ] && grep -q 'TCP connection from .* this host does not have that address' "$work/out" && gone_from beta; } || { diag "status $st"; say_out; }
}
ok "a host where such a connection cannot be: refused by name" no_loopback

# --- in two hosts ----------------------------------------------------------------------------------------------

# Each host has a /tmp of its own, so that the two copies do not meet.
progress_of() {
	on "$1" readlink /tmp/twice/progress
}
progress_of_differs() {
	local p
	p=$(progress_of "$1")
	[ -n "$p" ] && [ "$p" != "$2" ]
}
copy_runs() {
	{ until_true 20 progress_of_differs "$1" "$(progress_of "$1")" &&
		until_true 20 progress_of_differs "$1" "$(progress_of "$1")"; } || { diag "$(on "$1" cat /tmp/twice/result 2>&1)"; return 1; }
}
copy_ends() {
	on "$1" touch /tmp/twice/stop
	{ until_true 30 on "$1" test -e /tmp/twice/result && [ "$(on "$1" cat /tmp/twice/result)" = OK ]; } || {
		diag "$1: $(on "$1" cat /tmp/twice/result 2>&1)"
		return 1
	}
}

restored_twice() {
	local pid host
	on alpha mkdir -m 777 /tmp/twice
	on alpha setsid "$workloads/dirty" --mib 24 --rate 20 --dir /tmp/twice </dev/null >"$work/twice.log" 2>&1
	until_true 20 on alpha test -e /tmp/twice/ready || return 1
	pid=$(on alpha cat /tmp/twice/pid)
	verb alpha dump --pid "$pid" --dir "$images/twice" || return 1
	on alpha touch /tmp/twice/stored
	on alpha tar -C /tmp -cf - twice | on beta tar -C /tmp -xf - || return 1
	for host in alpha beta; do
		verb $host restore --detach --dir "$images/twice" || return 1
	done
	copy_runs alpha && copy_runs beta && copy_ends alpha && copy_ends beta
}
ok "one image restored in two hosts: both copies run" restored_twice
kill_workload

# --- on the host that it is of --------------------------------------------------------------------------------

# back NAME OPTS…: dumped, restored on the same host.
back() {
	local image=$images/back-$((++count))
	start_workload alpha "$@" && runs_on && verb alpha dump --pid "$wl_pid" --dir "$image" && gone_from alpha &&
		touch "$wl_dir/stored" && verb alpha restore --detach --dir "$image" && runs_on && finish_workload
}
count=0
for name in dirty "regs --rseq" threads forktree "signals --once-ms 4000" memory files "creds --variant mixed" sockets unixsock unlinked \
	sysvshm; do
	# shellcheck disable=SC2086
	ok "dumped and restored on the same host: $name" back $name
	kill_workload
done

# --- after the host was down -----------------------------------------------------------------------------------

restart_hosts() {
	{ "$testbed" down && "$testbed" --bin "$build" up alpha beta client >"$work/up"; } || { diag "$(cat "$work/up")"; return 1; }
}

# Everything that ran there is gone, the clocks begin at other times, and pids anew.
after_restart() {
	local from=$1 to=$2 image=$images/down-$1 before
	shift 2
	start_workload "$from" "$@" && runs_on && verb "$from" dump --pid "$wl_pid" --dir "$image" && gone_from "$from" || return 1
	before=$(progress)
	touch "$wl_dir/stored"
	restart_hosts && [ "$(progress)" = "$before" ] && verb "$to" restore --detach --dir "$image" && runs_on || return 1
	# it counts on from where it was
	[ "$(cut -d' ' -f1 <<<"$(progress)")" -gt "${before%% *}" ] && finish_workload
}
ok "the host goes down and up again: restored there, counters go on" after_restart alpha alpha threads --threads 6
kill_workload
ok "the same, in a host whose clocks are behind" after_restart beta alpha dirty --mib 20 --rate 30
kill_workload
done_testing
