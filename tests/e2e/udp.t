#!/bin/bash
# UDP sockets move: what waits in them, their options and multicast groups.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed
# shellcheck source=tests/e2e/peers.sh
. "$e2e/peers.sh"

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

# state_moves THING OPTS…: a rehearsal takes nothing away.
state_moves() {
	local -a moved=(--move-address "$service" --move-address "$service6")
	start_workload alpha udpstate --what "$@" || return 1
	server=$wl_dir
	migrate alpha beta --pid "$wl_pid" --rehearse "${moved[@]}" || { say_migration; return 1; }
	progress_is_from alpha && runs_on && move_workload beta "${moved[@]}" && finish_workload
}
case_of "UDP: errors that nobody has asked for" state_moves errors --from 10.77.0.100 --to 10.77.0.3 --from6 '[fd77::100]' --to6 '[fd77::3]'
case_of "UDP: SO_PEEK_OFF" state_moves peekoff

# The same interface by name has another number.
for host in alpha beta; do
	[ $host = alpha ] || on $host ip link add other0 type veth peer name other1
	on $host ip link add group0 type veth peer name group1
	on $host ip link set group1 up
	on $host ip addr add 10.99.0.1/24 dev group0
	on $host ip addr add fd99::1/64 dev group0 nodad
	on $host ip link set group0 multicast on up
done
isnt "$(on alpha ip -o link show group0 | cut -d: -f1)" "$(on beta ip -o link show group0 | cut -d: -f1)" \
	"an interface has different numbers"
case_of "UDP: multicast by an interface that was chosen by its number" state_moves interfaces --dev group0
on beta ip link del group0
no_interface() {
	start_workload alpha udpstate --what interfaces --dev group0 || return 1
	server=$wl_dir
	migrate alpha beta --pid "$wl_pid"
	local option
	for option in IP_MULTICAST_IF IPV6_MULTICAST_IF; do
		grep '"event":"refused"' "$work/events" | grep -q "$option: there is no interface group0" || { say_migration; return 1; }
	done
	[ "$mig_status" = 4 ] && finish_workload
}
case_of "UDP: an interface that the destination does not have" no_interface

notices() {
	start_workload alpha udpstate --what notices || return 1
	server=$wl_dir
	move_workload beta || return 1
	grep '"event":"warning"' "$work/events" | grep -q '1 messages that wait in its error queue' || {
		say_migration
		return 1
	}
	finish_workload
}
case_of "UDP: what waits in the error queue is warned of" notices
done_testing
