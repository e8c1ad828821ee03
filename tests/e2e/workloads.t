#!/bin/bash
# The workloads themselves: each ends well where it is left alone, and each notices what is done to it.
# Without this, a test that moves them proves nothing.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_work

# alone NAME OPTS…
alone() {
	local st=0
	{ local_workload "$@" && runs_on && finish_workload; } || st=1
	result $st "left alone: $*"
	reap
}

# All processes that run a workload in wl_dir's name.
reap() {
	local pid
	for pid in $(pgrep -f -- "--dir $wl_dir"); do
		kill -KILL "$pid" 2>/dev/null
	done
	wait 2>/dev/null
	rm -rf "$wl_dir"
}

# notices PATTERN NAME OPTS… -- CMD…: after CMD, in which PID and DIR stand for the workload's, its result
# is a failure that matches PATTERN.
notices() {
	local pattern=$1 st=0
	local -a name=() cmd=()
	shift
	while [ "$1" != -- ]; do
		name+=("$1")
		shift
	done
	shift
	local_workload "${name[@]}" && runs_on || st=1
	cmd=("${@//PID/$wl_pid}")
	cmd=("${cmd[@]//DIR/$wl_dir}")
	"${cmd[@]}" >"$work/cmd" 2>&1 || { diag "$(cat "$work/cmd")"; st=1; }
	# Some things only show in the last check.
	until_true 2 test -e "$wl_dir/result" || touch "$wl_dir/stop"
	wait_for "$wl_dir/result" 20
	grep -qE "^FAIL.*($pattern)" "$wl_dir/result" || {
		diag "$(result_text)"
		st=1
	}
	result $st "${name[*]} notices: ${*##*/}"
	reap
}

kill_a_child() {
	kill -KILL "$(pgrep -P "$1" forktree-child | head -n 1)"
}

sh_c() {
	bash -c "$1"
}

# The workload goes on from DIR/progress, and finds an older one there.
restore() {
	cp -P "$1/progress" "$1/old"
	until_true 5 is_newer "$1"
	mv -T "$1/old" "$1/progress"
}
is_newer() {
	[ "$(readlink "$1/progress")" != "$(readlink "$1/old")" ] || [ -e "$1/result" ]
}

# repeatedly DIR CMD…: CMD until the workload of DIR has a result. A link that is replaced between the workload's look
# at it and its own replacement of it is lost, and nobody can see that it was there.
repeatedly() {
	local dir=$1
	shift
	struck() {
		"$@" && test -e "$dir/result"
	}
	until_true 5 struck "$@"
}

alone regs
alone regs --rseq
alone threads --threads 200
alone forktree
for trap in default ignored blocked handled; do
	alone signals --sigtrap $trap --once-ms 500
done
alone memory --vmas 10000
alone churn
alone dirty --mib 32 --rate 50 --threads 4
alone files --chroot
alone sockets
alone unixsock
alone unixstate
for what in errors peekoff notices; do
	alone udpstate --what $what
done
alone messages --dense
alone fifo
alone messages --quiet-clients
alone unlinked
alone mapgone
alone sysvshm
alone sysvipc
alone seccomp
alone locks
alone inotify
alone pidfd
alone tty
for variant in root user mixed; do
	alone creds --variant $variant
done

poke=$workloads/poke
notices 'r15' regs -- "$poke" gpr PID
notices 'xmm' regs -- "$poke" xstate PID
notices 'GS base|gs:8' regs -- "$poke" gs PID
notices 'handler of thread' threads -- kill -USR1 PID
notices 'exit status|question|answer|stands still' forktree -- kill_a_child PID
notices 'signal 1 was delivered' signals -- kill -HUP PID
notices 'page' dirty -- "$poke" anon PID
notices 'churn' churn --no-fork -- "$poke" range PID 100000000000 100004000000
notices 'shared file' memory --quiet -- dd if=/dev/zero of=DIR/file.shared bs=1 seek=50000 count=8 conv=notrunc
notices 'second mapping|page id' memory --quiet -- "$poke" anon PID
notices 'file content|read' files -- truncate -s 400 DIR/file.a
notices 'oom_score_adj' creds -- sh_c 'echo 400 >/proc/PID/oom_score_adj'
notices 'limit 4' creds -- prlimit --pid PID --core=0:512
notices 'nice|policy' creds -- renice -n 9 -p PID
notices 'someone else' regs -- repeatedly DIR ln -sfn 'nobody 1' DIR/progress
notices 'someone else|another copy' dirty -- repeatedly DIR restore DIR
done_testing
