#!/bin/bash
# UDP sockets move: what waits in them, their options and multicast groups.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed
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
	start_workload alpha tcp_server "$@" || return 1
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

# case_of DESCRIPTION FUNCTION ARGS…
case_of() {
	local what=$1 st=0
	shift
	server='' peers=()
	addresses_to_alpha
	"$@" || st=1
	result $st "$what"
	[ $st = 0 ] || { diag "peers' logs: $(tail -qn 2 "${peers[@]/%//log}" 2>/dev/null)"; say_logs; }
	clean_case
}

v4_address=10.77.0.100
v6_address='[fd77::100]'

# udp_moved ADDRESS LISTEN MOVE SERVER-OPTS -- PEER-OPTS
udp_moved() {
	local address=$1 listen=$2 move=$3
	local -a opts=()
	shift 3
	while [ "$1" != -- ]; do
		opts+=("$1")
		shift
	done
	shift
	start_workload alpha udp_server --listen "$listen" "${opts[@]}" || return 1
	server=$wl_dir server_pid=$wl_pid port=$(<"$wl_dir/port") peers=()
	start_workload client udp_peer --connect "$address:$port" "$@" || return 1
	peers+=("$wl_dir")
	move_server beta --move-address "$move" && finish_all
}

for family in 4 6; do
	address=$v4_address listen=10.77.0.100 any=0.0.0.0 move=$service group=239.1.2.3
	[ $family = 4 ] || address=$v6_address listen=fd77::100 any=:: move=$service6 group=ff05::1234
	case_of "IPv$family UDP: bound" udp_moved "$address" "$listen" "$move" --
	case_of "IPv$family UDP: 100 datagrams wait to be read" udp_moved "$address" "$listen" "$move" --late -- --late 100
	case_of "IPv$family UDP: the same, any address" udp_moved "$address" "$any" "$move" --late -- --late 100
	case_of "IPv$family UDP: a multicast group" udp_moved "$address" "$any" "$move" --group $group -- --group $group
done
case_of "UDP: connected" udp_moved $v4_address 10.77.0.100 "$service" --connected 10.77.0.3:4777 -- --bind 4777
done_testing
