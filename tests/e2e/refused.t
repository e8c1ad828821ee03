#!/bin/bash
# What cannot be moved is refused by name before anything is stopped, and the task runs on untouched.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed

# refuses WHAT PATTERN: exit 4, and a refusal that matches PATTERN.
refuses() {
	local st=0
	start_workload alpha refused --what "$1" || {
		[ "$(result_text)" != SKIP ] || echo "ok $((++tap_count)) - $1 # SKIP not on this kernel"
		return
	}
	migrate alpha beta --pid "$wl_pid"
	if [ $mig_status != 4 ]; then
		st=1
		diag "expected exit status 4"
		say_migration
	elif ! grep '"event":"refused"' "$work/events" | grep -qiE "$2"; then
		st=1
		diag "no refusal matches '$2':" "$(cat "$work/events")"
	fi
	if [ $mig_status != 0 ]; then
		{ progress_is_from alpha && runs_on && finish_workload; } || st=1
	fi
	gone_from beta || st=1
	result $st "refused: $1"
	kill_workload
	rm -rf "$wl_dir"
}

while read -r what pattern; do
	[ -z "$what" ] || refuses "$what" "$pattern"
done <<'LIST'
io_uring io_uring
inotify inotify: watch 1 is of a file that was removed
fanotify fanotify
udplite datagram socket
unixpeer unix stream socket
unixdgram unix datagram socket connected to @.*its peer is outside
netlink netlink|socket
packet packet|socket
raw raw|socket
deletedmap shared memory that process [0-9]*, which does not move
pty terminal /dev/pts
userfaultfd userfaultfd
perf perf
perfmap perf
bpf bpf
mptcp MPTCP socket
ktls connection .*kTLS
md5listener TCP listener with signed segments
ebpffilter eBPF filter .*that has maps
ebpfreuseport eBPF program chooses
ebpfconnection TCP connection to .* eBPF filter .*that has maps
udpmore UDP socket: a datagram is being put together.*again
udpzerocopy UDP socket that has sent with MSG_ZEROCOPY
tcpzerocopy TCP connection to .* that has sent with MSG_ZEROCOPY
pidfd pidfd of a process outside the tree
mqueue mqueue|message queue|file system
fifo named pipe is also held by process
procfile proc
device kmsg|device
secretmem secretmem|memfd_secret|secret
opath O_PATH
lease lease|lock
sysvpart System V shared memory
sysvsem System V semaphores.*SEM_UNDO
sysvmsg System V message queue.*process [0-9]*, which is outside the tree
aio aio
hugetlb private mapping of a file of huge pages
droppable droppable
pkey pkey|protection key
traced traced|ptrace|tracer|debug
seccomp supervisor
mountns namespace
netns namespace
utsns namespace
ipcns namespace
cgroupns namespace
userns namespace
pidns namespace
deadline deadline
sharedmm address space|memory|mm|vfork|CLONE_VM
sharedfds descriptor|CLONE_FILES|fd table
sharedfs CLONE_FS|working directory|cwd
fdsoutside descriptor table.*shared with process [0-9]*, which is outside
fsoutside working directory.*shared with process [0-9]*, which is outside
threadfds descriptor|CLONE_FILES|fd table
threadfs CLONE_FS|working directory|cwd
threadcreds credential|uid
LIST

# Without any of these the same program moves.
move_case "moved: the same program with nothing of these" -- refused --what nothing --

# What short-lived children have as well is not somebody else's.
forks_case() {
	start_workload alpha forks && runs_on || return 1
	for ((i = 0; i < 8; i++)); do
		rehearse_workload || return 1
	done
	finish_workload
}
ok "not refused: shared memory of a program that forks all the time" forks_case

# A file that is different at the destination: alpha sees another one by the same name.
different_case() {
	on alpha sh -c 'echo here >/tmp/data'
	on beta sh -c "$1"
	new_dir different
	# shellcheck disable=SC2016
	on alpha setsid sh -c 'exec 7</tmp/data; echo $$ >"$1/pid"; exec sleep 1000' sh "$wl_dir" </dev/null >"$wl_dir/log" 2>&1
	until_true 30 test -s "$wl_dir/pid" || return 1
	wl_pid=$(<"$wl_dir/pid")
	migrate alpha beta --pid "$wl_pid"
	local st=$mig_status
	on alpha kill "$wl_pid"
	[ "$st" = 4 ] && grep '"event":"refused"' "$work/events" | grep -q /tmp/data && return 0
	say_migration
	return 1
}
ok "refused: a file that is missing at the destination" different_case 'rm -f /tmp/data'
ok "refused: a file of another size at the destination" different_case 'echo elsewhere >/tmp/data'

# The destination has a semaphore set or a queue of that id.
taken_case() {
	local id
	start_workload alpha sysvipc && runs_on || return 1
	# shellcheck disable=SC2016
	id=$(on alpha awk 'END { print $2 }' "/proc/sysvipc/$1" </dev/null)
	on beta sh -c "echo $id >/proc/sys/kernel/$1_next_id; ipcmk $2" </dev/null >"$work/made" || return 1
	migrate alpha beta --pid "$wl_pid"
	on beta ipcrm "$3" "$id" </dev/null
	{ [ "$mig_status" = 4 ] && grep '"event":"refused"' "$work/events" | grep -q "$4 $id.*taken at the destination"; } || {
		say_migration
		return 1
	}
	runs_on && finish_workload
}
ok "refused: an id of a semaphore set that is taken" taken_case sem '-S 1' -s 'System V semaphore set'
ok "refused: an id of a message queue that is taken" taken_case msg -Q -q 'System V message queue'

# And a segment: of that id, and of that key.
segment_case() {
	local id key made
	start_workload alpha sysvshm && runs_on || return 1
	# shellcheck disable=SC2016
	read -r key id < <(on alpha awk 'NR > 1 && $1 { print $1, $2 }' /proc/sysvipc/shm </dev/null)
	case $1 in
	id) on beta sh -c "echo $id >/proc/sys/kernel/shm_next_id; ipcmk -M 4096" </dev/null >"$work/made" ;;
	key) on beta sh -c "echo $((id + 100)) >/proc/sys/kernel/shm_next_id" </dev/null && on beta /usr/bin/python3 -c "import ctypes
raise SystemExit(ctypes.CDLL(None).shmget($key, 4096, 0o1600) < 0)" </dev/null ;;
	esac || return 1
	# shellcheck disable=SC2016
	made=$(on beta awk 'NR > 1 { print $2 }' /proc/sysvipc/shm </dev/null)
	migrate alpha beta --pid "$wl_pid"
	on beta ipcrm -m "$made" </dev/null
	{ [ "$mig_status" = 4 ] && grep '"event":"refused"' "$work/events" |
		grep -q "System V shared memory $id, key.*the $1 is taken at the destination"; } || {
		diag "the destination had $made"
		say_migration
		return 1
	}
	runs_on && finish_workload
}
ok "refused: an id of a segment that is taken" segment_case id
ok "refused: a key of a segment that is taken" segment_case key
kill_workload

# Both sides have something to say: one list tells all.
both_case() {
	on alpha sh -c 'echo here >/tmp/data'
	on beta sh -c 'rm -f /tmp/data'
	new_dir both
	# shellcheck disable=SC2016
	on alpha setsid sh -c 'exec 7</tmp/data 8</dev/kmsg; echo $$ >"$1/pid"; exec sleep 1000' sh "$wl_dir" </dev/null >"$wl_dir/log" 2>&1
	until_true 30 test -s "$wl_dir/pid" || return 1
	wl_pid=$(<"$wl_dir/pid")
	migrate alpha beta --pid "$wl_pid"
	local st=$mig_status
	on alpha kill "$wl_pid"
	[ "$st" = 4 ] && grep '"event":"refused"' "$work/events" | grep '"host":"alpha"' | grep -q kmsg &&
		grep '"event":"refused"' "$work/events" | grep '"host":"beta"' | grep -q /tmp/data && return 0
	say_migration
	return 1
}
ok "refused: what both sides find, in one list" both_case
done_testing
