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
moves memory
moves memory --quiet
moves memory --vmas 10000
moves files
moves files --chroot
for variant in root user mixed; do
	moves creds --variant $variant
done
moves dirty --mib 64 --rate 100 --threads 4
moves dirty --mib 64 --rate 50 --incompressible

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
moves sockets --connected
ok "a broken connection is warned of" grep -q '"event":"warning".*TCP' "$work/events"

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
