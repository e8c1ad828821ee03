# shellcheck shell=bash
# What the tests of servers with peers share: service addresses, IPv4 and IPv6, that move along, a server that has them,
# and peers in the third host. Sourced after start_testbed.
#
#   start_server OPTS…            tcp_server, in alpha; also with what the variable `with` says
#   start_peer ADDRESS OPTS…      tcp_peer, in client, connected to it
#   move_server TO ARGS…          and then all of them run on
#   finish_all                    everybody's last checks
#   case_of DESCRIPTION FUNCTION ARGS…   one test

: "${work:?is of lib.sh: start_testbed comes first}" "${workloads:?}"

service=10.77.0.100/24%eth0
service6=fd77::100/64%eth0
n=1
for host in alpha beta client; do
	on $host ip addr add fd77::$n/64 dev eth0 nodad
	n=$((n + 1))
done

# has_address HOST ADDR/LEN%DEV
has_address() {
	on "$1" ip -o addr show dev "${2#*%}" </dev/null | grep -F " ${2%%/*}/" >/dev/null
}

# The service addresses in alpha, and in no other host.
addresses_to_alpha() {
	local a
	for a in "$service" "$service6"; do
		on beta ip addr del "${a%\%*}" dev eth0 2>/dev/null
		has_address alpha "$a" || on alpha ip addr add "${a%\%*}" dev eth0 nodad 2>/dev/null ||
			on alpha ip addr add "${a%\%*}" dev eth0
	done
	on client ip neigh flush all # nobody has told it
}

# start_server OPTS…: in alpha; sets server, port.
start_server() {
	start_workload alpha tcp_server ${with:+"$with"} "$@" || return 1
	server=$wl_dir server_pid=$wl_pid port=$(<"$wl_dir/port") peers=()
}

# start_peer ADDRESS OPTS…: in client, connected to the server.
start_peer() {
	local address=$1
	shift
	start_workload client tcp_peer --connect "$address:$port" "$@" || return 1
	peers+=("$wl_dir")
}

at_server() {
	wl_dir=$server wl_pid=$server_pid
}

move_server() {
	local to=$1
	shift
	at_server
	# shellcheck disable=SC2034 # for lib.sh
	wl_host=$(other "$to")
	move_workload "$to" "$@" || return 1
	peers_run_on
}

# None of them has anything to complain about, and they still do something.
peers_run_on() {
	local p st=0
	for p in "${peers[@]}"; do
		wl_dir=$p
		[ "$(result_text)" = OK ] || runs_on || st=1
	done
	at_server
	return $st
}

# Peers end first, and then count what came.
finish_all() {
	local st=0 p
	for p in "${peers[@]}"; do
		wl_dir=$p
		finish_workload || st=1
	done
	at_server
	finish_workload || st=1
	return $st
}

clean_case() {
	local host
	for host in alpha beta client; do
		for pid in $(workload_pids $host); do
			on $host kill -KILL "$pid" 2>/dev/null
		done
	done
	[ -n "${KEEP:-}" ] || rm -rf "$server" "${peers[@]}"
}

# case_of DESCRIPTION FUNCTION ARGS…; ONLY=PATTERN in the environment leaves out those that do not match.
case_of() {
	local what=$1 st=0
	shift
	# shellcheck disable=SC2053
	[[ $what == ${ONLY:-*} ]] || return 0
	server='' peers=()
	addresses_to_alpha
	"$@" || st=1
	result $st "$what"
	[ $st = 0 ] || { diag "peers' logs: $(tail -qn 2 "${peers[@]/%//log}" 2>/dev/null)"; say_logs; }
	clean_case
}

# shellcheck disable=SC2034 # for the tests
v4_address=10.77.0.100 v6_address='[fd77::100]'
