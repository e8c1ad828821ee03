#!/bin/bash
# precopy.sh PID HOST [DIR]: moves a process and all below it to HOST, step by step, over ssh.
#
# An example, to be read and changed. cr-migrate does the same by itself, and better: here the tasks stand
# still until the whole image has been read again. What you gain are the steps: look at the image between
# them, decide by a rule of your own when to stop, keep the image.
#
# Needs root at both ends, an ssh that asks no questions, cr-agent and page-server in the PATH of both, the
# tasks' files in both, and jq here. Environment: SSH, how to call ssh (ssh); ENOUGH, switch over once a round
# found no more pages written than that (2000); ROUNDS, at the latest after so many (8).
set -euo pipefail

pid=${1:?usage: precopy.sh PID HOST [DIR]} host=${2:?which host?} dir=${3:-/var/lib/cr-migrate}
name=precopy-$(uname -n)-$pid-$(date +%s)
port=$((20000 + RANDOM % 10000))
read -ra ssh <<<"${SSH:-ssh}"

say() {
	echo "precopy: $*" >&2
}

remote() {
	"${ssh[@]}" "$host" "$@" </dev/null
}

# A process and all below it.
family() {
	local child
	echo "$1"
	for child in $(ps -o pid= --ppid "$1"); do
		family "$child"
	done
}

# --- a page-server there, which lives as long as this script; ssh carries what goes to it -------------------

coproc server {
	exec "${ssh[@]}" -o ExitOnForwardFailure=yes -L "$port:127.0.0.1:$port" "$host" \
		"mkdir -p '$dir' && { page-server --listen 127.0.0.1:$port --dir '$dir' --status-fd 1 &
		cat >/dev/null; kill \$! && wait; }"
}
# shellcheck disable=SC2154 # set by coproc
end_server() {
	local to_server=${server[1]} pid=$server_PID
	exec {to_server}>&-
	wait "$pid" || true
}
trap end_server EXIT
until read -r line <&"${server[0]}" && [[ $line == *'"ready"'* ]]; do
	[ -n "$line" ] || { say "no page-server at $host"; exit 1; }
done

# --- pre-copy: until little is left, or it does not get less --------------------------------------------------

rounds() {
	local n before="" written
	for ((n = 1; n <= ${ROUNDS:-8}; n++)); do
		written=$(cr-agent pre-dump --track --pid "$pid" --page-server "127.0.0.1:$port" --id "$name" --json |
			jq -r 'select(.event == "round") | .pages_written' | tail -n 1)
		say "round $n: $written pages written"
		((written > ${ENOUGH:-2000})) || return 0
		[ -z "$before" ] || ((written * 4 < before * 3)) || return 0
		before=$written
	done
}
rounds

# --- the switch: the tasks stay here, stopped, until they run there -------------------------------------------

cr-agent dump --leave-stopped --pid "$pid" --page-server "127.0.0.1:$port" --id "$name" >&2
mapfile -t tasks < <(family "$pid")
if remote "cr-agent restore --detach --dir '$dir/$name'" >&2; then
	kill -KILL "${tasks[@]}"
	say "$pid runs at $host; its image is $dir/$name there"
else
	kill -CONT "${tasks[@]}"
	say "not restored at $host: $pid runs on here"
	exit 1
fi
