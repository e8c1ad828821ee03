# shellcheck shell=bash
# What the tests of real programs share. A program runs in alpha on an address that moves along; its clients run
# in the host `client`, connect once, and take whatever breaks for a failure (peer.py).
#
#   start_server CMD…                 in alpha, in the background: sets server_pid
#   start_client NAME PROGRAM ARGS…   PROGRAM.py DIR ARGS… in client; waits until it was answered
#   move_server ARGS…                 alpha to beta under that load, and what is true of all programs afterwards
#   finish_clients                    each client's last checks
apps=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=tests/e2e/lib.sh
. "$apps/../e2e/lib.sh"
# The distribution's, whatever else is installed.
python=/usr/bin/python3
export PYTHONDONTWRITEBYTECODE=1
service=10.77.0.100
START_TIMEOUT=${START_TIMEOUT:-60}
clients=()
server_pid=

# need PROGRAM…: without it there is nothing to test.
need() {
	local p
	for p; do
		command -v "$p" >/dev/null || skip_all "no $p on this machine"
	done
}

start_hosts() {
	start_testbed
	chmod 711 "$work"
	on alpha ip addr add $service/24 dev eth0
	bare_host=$(processes alpha)
}

# How many processes a host has, but for those that ask.
processes() {
	# shellcheck disable=SC2016
	on "$1" sh -c 'n=0; for p in /proc/[0-9]*; do
		case "$(cat "$p/stat" 2>/dev/null)" in *" (sh) "* | *" (cat) "* | "") ;; *) n=$((n + 1)) ;; esac
	done; echo $n'
}

# in_background HOST LOG CMD…: prints the pid. The child of the host's pid 1, in a session of its own.
in_background() {
	local host=$1 log=$2
	shift 2
	# shellcheck disable=SC2016
	on "$host" sh -c 'log=$1; shift; setsid "$@" </dev/null >"$log" 2>&1 & echo $!' start "$log" "$@"
}

start_server() {
	server_pid=$(in_background alpha "$work/server.log" "$@")
}

listens() {
	on alpha ss -Hltn "( sport = :$1 )" </dev/null | grep LISTEN >/dev/null
}

server_listens() {
	until_true "$START_TIMEOUT" listens "$1" || {
		diag "no server on port $1: $(tail -n 5 "$work/server.log")"
		return 1
	}
}

client_ready_or_done() {
	[ -e "$1/ready" ] || [ -e "$1/result" ]
}

start_client() {
	local client=$1 program=$2 dir=$work/$1
	shift 2
	mkdir "$dir"
	in_background client "$dir/log" "$python" "$apps/$program.py" "$dir" "$@" >"$dir/pid"
	clients+=("$client")
	{ until_true "$START_TIMEOUT" client_ready_or_done "$dir" && [ -e "$dir/ready" ]; } || {
		diag "client $client did not start: $(tail -n 3 "$dir/log")"
		return 1
	}
}

# count CLIENT: right answers so far. A client that is another program has a function count_CLIENT.
count() {
	local n _
	if declare -F "count_$1" >/dev/null; then
		"count_$1"
		return
	fi
	read -r n _ <"$work/$1/count"
	echo $((10#$n))
}

# The longest time between two answers.
longest_wait() {
	local us _
	[ ! -e "$work/$1/count" ] || {
		read -r _ us <"$work/$1/count"
		echo ", longest wait $((10#$us / 1000)) ms"
	}
}

now_ms() {
	local t=${EPOCHREALTIME/./}
	echo $((t / 1000))
}

# rates SECONDS: sets rate[CLIENT], answers a second, and what the machine's pace was meanwhile.
declare -A rate=() rate_before=()
rates() {
	local c start
	local -A counted=()
	start=$(now_ms)
	for c in "${clients[@]}"; do counted[$c]=$(count "$c"); done
	pace=$($python "$apps/pace.py" "$1")
	for c in "${clients[@]}"; do
		rate[$c]=$((($(count "$c") - counted[$c]) * 1000 / ($(now_ms) - start)))
	done
}

# is_back NOW BEFORE: three quarters of what it was; of what it would have been, if the machine, which others use as
# well, has become slower than it was at pace_before.
is_back() {
	local slower=$pace
	((slower <= pace_before)) || slower=$pace_before
	(($1 * 4 * pace_before >= $2 * 3 * slower))
}

# As fast as before: each client, in one of several looks.
rates_are_back() {
	local c back
	for _ in {1..40}; do
		rates 1
		back=1
		[ -z "${VERBOSE:-}" ] || diag "now: ${rate[*]}, pace $pace_before -> $pace"
		for c in "${clients[@]}"; do
			is_back "${rate[$c]}" "${rate_before[$c]}" || back=0
		done
		[ $back = 0 ] || return 0
	done
	return 1
}

# Whoever has moved it ends once he has said so.
is_bare() {
	[ "$(processes "$1")" = "$bare_host" ]
}

# Nothing of the server is left in the other host, all of it is in this one, and the address with it.
all_in() {
	local host=$1 left
	left=$(other "$host")
	on "$host" test -d "/proc/$server_pid" </dev/null || { diag "pid $server_pid is not in $host"; return 1; }
	on "$host" ip -o addr show dev eth0 </dev/null | grep -F " $service/" >/dev/null || {
		diag "$service is not in $host"
		return 1
	}
	until_true 10 is_bare "$left" || {
		diag "$left had $bare_host processes without the server: $(on "$left" ps -e -o pid,ppid,stat,args </dev/null)"
		return 1
	}
}

# move_once FROM TO ARGS…
move_once() {
	local from=$1 to=$2 st=0
	shift 2
	MIGRATE_TIMEOUT=${MIGRATE_TIMEOUT:-120} migrate "$from" "$to" --pid "$server_pid" --move-address "$service/24%eth0" \
		"$@" || st=1
	result $st "moves under load"
	[ $st = 0 ] || { say_migration; return 1; }
	diag "$(jq -r '"downtime \(.downtime_us / 1000 | round) ms, \(.memory_bytes / 1048576 | round) MiB, \(.rounds | length) rounds, \(.total_us / 1000 | round) ms in all"' <<<"$mig_done")"
	[ -z "${VERBOSE:-}" ] || diag "$(grep '"event":"warning"' "$work/events")"
	[ -z "${VERBOSE:-}" ] || diag "$(jq -c ".phases_us, .rounds" <<<"$mig_done")"
	ok "all of it is at the destination" all_in "$to"
}

# MOVES: there, back and there again…
move_server() {
	local c i from=alpha to=beta st=0 summary=''
	rates 2
	pace_before=$pace
	for c in "${clients[@]}"; do rate_before[$c]=${rate[$c]}; done
	for ((i = 0; i < ${MOVES:-1}; i++)); do
		move_once "$from" "$to" "$@" || return 1
		from=$to to=$(other "$to")
	done
	rates_are_back || st=1
	result $st "as fast as before"
	for c in "${clients[@]}"; do
		summary+="$c ${rate_before[$c]} -> ${rate[$c]}/s$(longest_wait "$c"); "
	done
	diag "${summary}the machine's pace $pace_before -> $pace"
	diag "the clients' TCP: $(sent_again)"
}

# What clients had to send again, or believed to be lost: a packet that a move loses shows here.
sent_again() {
	on client nstat -asz TcpRetransSegs TcpExtTCPTimeouts TcpExtTCPLossProbes </dev/null |
		awk '/^Tcp/ { printf "%s%s %s", n++ ? ", " : "", $1, $2 }'
}

finish_clients() {
	local c st
	for c in "${clients[@]}"; do touch "$work/$c/stop"; done
	for c in "${clients[@]}"; do
		st=0
		wait_for "$work/$c/result" 60 && [ "$(<"$work/$c/result")" = OK ] || st=1
		result $st "client $c: one connection, every answer right"
		[ $st = 0 ] || diag "$(tail -n 3 "$work/$c/result" "$work/$c/log" 2>/dev/null)"
	done
}

# give_up WHY: a test that cannot begin has failed.
give_up() {
	result 1 "$1"
	[ ! -s "$work/server.log" ] || diag "the server's log: $(tail -n 5 "$work/server.log")"
	done_testing
	exit 1
}
