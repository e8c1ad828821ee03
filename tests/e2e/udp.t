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
done_testing
