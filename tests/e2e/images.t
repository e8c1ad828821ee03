#!/bin/bash
# Images: dumped, kept, restored; on this host and over the network, step by step and damaged.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed
images=$work/images
mkdir "$images"

# agent HOST VERB ARGS…: a one-shot verb, with a directory for journals of its own.
agent() {
	local host=$1
	shift
	on "$host" "$build/cr-agent" "$@" --state "/tmp/one-shot" >"$work/out" 2>&1
}

say_out() {
	diag "$(cat "$work/out")" "$(result_text)"
	return 1
}

dumped() {
	agent alpha dump --pid "$wl_pid" "$@" || say_out
}

# restored HOST DIR ARGS…: it runs on there, and nowhere else.
restored() {
	local host=$1 dir=$2
	shift 2
	touch "$wl_dir/stored"
	agent "$host" restore --detach --dir "$dir" "$@" || say_out || return 1
	wl_host=$host
	moved_to "$host" || say_out
}

# stored NAME OPTS…: dumped in alpha, restored in beta.
stored() {
	local image=$images/local-$((++count))
	start_workload alpha "$@" && runs_on && dumped --dir "$image" && gone_from alpha &&
		restored beta "$image" && finish_workload
}
count=0

for name in dirty "regs --syscalls" "regs --rseq" "threads --threads 8" forktree "signals --once-ms 4000" memory files \
	"creds --variant mixed" sockets unixsock "messages --quiet-clients" fifo unlinked mapgone sysvshm sysvipc seccomp tty locks stopped; do
	# shellcheck disable=SC2086
	ok "dumped, then restored in another host: $name" stored $name
	kill_workload
done

# --- a page-server for images ------------------------------------------------------------------------

head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$work/token"

# start_server HOST DIR ARGS…: sets server (the host's pid of it) and server_address
start_server() {
	local host=$1 dir=$2 ip
	shift 2
	ip=$("$testbed" addr "$host")
	: >"$work/server.log"
	# shellcheck disable=SC2016
	server=$(on "$host" sh -c 'log=$1; shift; setsid "$@" </dev/null >>"$log" 2>&1 & echo $!' start \
		"$work/server.log" "$build/page-server" --listen "$ip:0" --dir "$dir" --token-file "$work/token" "$@")
	until_true 30 grep -q 'page streams on' "$work/server.log" || { diag "$(cat "$work/server.log")"; return 1; }
	server_address=$(sed -n 's/.*page streams on \([^,]*\),.*/\1/p' "$work/server.log")
}

stop_server() {
	on "$1" kill -TERM "$server"
	until_true 30 server_gone "$1"
}

server_gone() {
	! on "$1" test -d "/proc/$server"
}

remotely() {
	agent alpha "$@" --pid "$wl_pid" --page-server "$server_address" --token-file "$work/token" || say_out
}

step_by_step() {
	mkdir "$work/beta"
	start_server beta "$work/beta" || return 1
	start_workload alpha dirty --mib 32 --rate 20 && runs_on || return 1
	for _ in 1 2 3; do
		remotely pre-dump --id web || return 1
		runs_on || return 1
	done
	remotely dump --id web && gone_from alpha && restored beta "$work/beta/web" && finish_workload
}
ok "pre-dumps, a dump and a restore through a page-server" step_by_step
kill_workload

refused_once_sealed() {
	{ start_workload alpha dirty && ! agent alpha pre-dump --pid "$wl_pid" --page-server "$server_address" \
		--token-file "$work/token" --id web && grep -q 'image web is sealed' "$work/out" && runs_on; } || say_out
}
ok "a sealed image is not written to" refused_once_sealed

wrong_token() {
	head -c 64 /dev/zero | tr '\0' 7 >"$work/other"
	{ ! agent alpha pre-dump --pid "$wl_pid" --page-server "$server_address" --token-file "$work/other" --id x &&
		grep -q 'wrong token' "$work/out" && runs_on && [ ! -e "$work/beta/x" ]; } || say_out
}
ok "a wrong token is refused" wrong_token

leave_running() {
	remotely dump --id copy --leave-running && runs_on
}
ok "dump --leave-running" leave_running

is_stopped() {
	[ "$(on alpha sh -c "sed 's/.*) //' /proc/$wl_pid/stat | cut -c1")" = T ]
}
leave_stopped() {
	remotely dump --id stopped --leave-stopped && until_true 30 is_stopped || say_out || return 1
	on alpha kill -CONT "$wl_pid" && runs_on
}
ok "dump --leave-stopped" leave_stopped

ends_in_a_pre_dump() {
	# shellcheck disable=SC2016 # for the other shell
	on alpha sh -c 'kill -KILL "$1"' kill "$server" 2>/dev/null
	stop_server beta
	runs_on && finish_workload
}
ok "the page-server ends cleanly" ends_in_a_pre_dump
kill_workload
done_testing
