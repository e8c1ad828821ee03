#!/bin/bash
# Every workload, moved from alpha to beta: each kind of resource goes on as if nothing had happened.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed

# moves NAME OPTS… [-- ARGS…]
moves() {
	local -a name=()
	local what="moved: $*"
	while [ $# -gt 0 ] && [ "$1" != -- ]; do
		name+=("$1")
		shift
	done
	[ $# = 0 ] || shift
	move_case "$what" -- "${name[@]}" -- "$@"
}

moves dirty
moves regs
moves regs --syscalls
moves regs --rseq
moves threads --threads 1
moves threads --threads 8
moves threads --threads 200
moves forktree --procs 2 --zombies 0
moves forktree
moves forktree --procs 12 --fan 1 --zombies 12
for trap in default ignored blocked handled; do
	moves signals --sigtrap $trap --once-ms 2000
done
moves signals --hold-alarm --once-ms 2000
moves memory
moves memory --advise
moves memory --quiet
moves memory --vmas 10000
moves files
moves files --chroot

# ids_of HOST: process group and session of the workload.
ids_of() {
	on "$1" ps -o pgid=,sid= -p "$wl_pid"
}

# A job of a shell: its group is led by a process that is not in the tree, and has ended.
job_case() {
	local before
	new_dir job
	wl_host=alpha
	# shellcheck disable=SC2016
	on alpha setsid bash -c 'set -m; sh -c "\"\$@\" &" sh "$@"; true' bash "$workloads/forktree" --procs 4 --dir "$wl_dir" \
		</dev/null >"$wl_dir/log" 2>&1
	workload_is_up forktree || return 1
	before=$(ids_of alpha)
	[ "$(awk '{ print ($1 == p || $2 == p || $1 == $2) }' p="$wl_pid" <<<"$before")" = 0 ] || {
		diag "not as intended: $wl_pid, $before"
		return 1
	}
	move_workload beta && is "$(ids_of beta)" "$before" "the same group and session" && finish_workload
}
ok "moved: a job whose group's leader has ended" job_case
kill_workload
for variant in root user mixed; do
	moves creds --variant $variant
done
moves dirty --mib 64 --rate 100 --threads 4
moves dirty --mib 64 --rate 50 --incompressible

# looks HOST: its writable anonymous mappings, and flags of userfaultfd wherever they are.
looks() {
	on "$1" grep -E '^[0-9a-f]+-[0-9a-f]+ rw-p 00000000 00:00 0 |^VmFlags:.* u[wmi]( |$)' "/proc/$wl_pid/smaps"
}

# Of what looks() says: the same with neighbours as one. What was two, by the order of its making, may be one.
joined() {
	sed 's/^\([0-9a-f]*\)-\([0-9a-f]*\) \(.*\)$/\1 \2 \3/' | awk '
		$1 "" == end "" { end = $2; next }
		{ if (end) print start, end; start = $1; end = $2 }
		/^VmFlags/ { print; end = "" }
		END { if (end) print start, end }'
}

# No mapping is split or keeps a flag of the move.
same_looks_case() {
	local before after
	start_workload alpha "$@" && runs_on || return 1
	before=$(looks alpha)
	move_workload beta || return 1
	after=$(looks beta)
	if [ "$(joined <<<"$after")" != "$(joined <<<"$before")" ] || [ "$(wc -l <<<"$after")" -gt "$(wc -l <<<"$before")" ]; then
		diag "before: $before" "after: $after"
		return 1
	fi
	finish_workload
}
ok "mappings look as before: dirty" same_looks_case dirty --mib 64 --threads 4 --rate 20
kill_workload
ok "mappings look as before: memory" same_looks_case memory --quiet
kill_workload

# Something changes while pages are copied: DIR/switch tells the workload to do it.
switched_case() {
	start_workload alpha "$@" || return 1
	(
		until_true 30 grep -q '"name":"pre-copy"' "$work/events" && touch "$wl_dir/switch"
	) &
	: >"$work/events"
	move_workload beta --max-bandwidth 8M --max-rounds 30 || return 1
	wait $!
	[ ! -e "$wl_dir/switch" ] || { diag "it has not been switched"; return 1; }
	finish_workload
}
moves joins
ok "moved: joins, switched during the copy" switched_case joins
ok "moved: a child that is forked during the copy" switched_case latefork

# Many rounds, so that the layout changes under way.
for seed in 1 2 3; do
	moves churn --seed $seed -- --max-bandwidth 20M --downtime-limit 1ms
done
moves churn --threads 6 --ops 5000 --no-fork
moves churn --threads 1 --ops 500 -- --max-rounds 1

# Whoever connects afterwards is answered by beta, also on an address that both hosts have.
sockets_case() {
	local service=10.77.0.100 port line
	"$testbed" addr alpha add $service
	"$testbed" addr beta hold $service
	start_workload alpha sockets --listen $service || return 1
	port=$(<"$wl_dir/port")
	is "$(ask $service "$port" before)" "before alpha 627" "a listening socket answers in alpha" || return 1
	move_workload beta || return 1
	"$testbed" addr alpha del $service
	"$testbed" addr beta add $service
	line=$(ask $service "$port" after)
	is "$line" "after beta 530" "a listening socket answers in beta" && finish_workload
}

ask() {
	# shellcheck disable=SC2016
	on client timeout 10 bash -c 'exec 3<>"/dev/tcp/$1/$2"; echo "$3" >&3; read -r line <&3; echo "$line"' \
		ask "$@"
}
ok "moved: sockets on an address that both hosts have" sockets_case
moves sockets
moves sockets --connected -- --tcp close
ok "a broken connection is warned of" grep -q '"event":"warning".*TCP' "$work/events"
moves queued
moves queued -- --tcp established
moves inner
moves inner --conns 40 -- --tcp established
moves talk
moves seccomp
moves seccomp -- --launch sigreturn
moves seccomp -- --no-hw-breakpoints
moves sysvshm
moves sysvipc
segments() {
	on "$1" ipcs -m | grep -c "^0x"
}
is "$(segments alpha) $(segments beta)" "0 0" "no System V segment is left behind"
moves inotify
moves pidfd
moves unlinked
moves mapgone
moves unlinked -- --streams 3 --max-bandwidth 30M
moves unixsock
moves messages
moves fifo --dense
moves runs
moves runs --fork
moves messages --dense
moves messages --dense --quiet-clients -- --mode postcopy
moves unixsock --uid 65534

# Flags of mappings that change right before the stop; without BPF those of a small process.
for i in 1 2 3; do
	move_case "madvise and mlock up to the stop ($i)" -- advice --
done
move_case "the same, a small process without BPF" -- advice --mib 8 -- --no-bpf

# A child that is replaced by another with its pid: moved right, or not at all and told why.
samepid_case() {
	start_workload alpha samepid --ms "$1" && runs_on || return 1
	if ! migrate alpha beta --pid "$wl_pid"; then
		jq -e '.error.message | test("was used again by another process")' <<<"$mig_done" >/dev/null || {
			say_migration
			return 1
		}
	else
		wl_host=beta
	fi
	runs_on && finish_workload
}
for ms in 20 100 400; do
	ok "a pid that has another process every $ms ms" samepid_case $ms
	kill_workload
done

# Running in alpha again afterwards, then in beta once more.
back_case() {
	start_workload alpha "$@" && runs_on && move_workload beta && move_workload alpha && move_workload beta &&
		finish_workload
}
for name in "regs" "threads" "forktree" "signals --once-ms 4000" "memory" "files" "creds --variant mixed" churn; do
	# shellcheck disable=SC2086
	ok "moved there, back and there again: $name" back_case $name
	kill_workload
done
done_testing
