#!/bin/bash
# Established TCP connections go on: a server is moved with its address while a peer in the third host
# checks every byte that it gets, never connects anew, and takes a reset for a failure.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed
# shellcheck source=tests/e2e/peers.sh
. "$e2e/peers.sh"

# moved ADDRESS LISTEN MOVE PEER-OPTS…
moved() {
	local address=$1 listen=$2 move=$3
	shift 3
	start_server --listen "$listen" --options && start_peer "$address" "$@" && peers_run_on &&
		move_server beta --move-address "$move" && has_address beta "$move" &&
		! has_address alpha "$move" && finish_all
}

case_of "IPv4: echo" moved $v4_address 10.77.0.100 "$service"
case_of "IPv6: echo" moved "$v6_address" fd77::100 "$service6"
case_of "IPv4 over an IPv6 socket: echo" moved $v4_address :: "$service"
for use in B S K; do
	case_of "IPv4: full load, use $use" moved $v4_address 0.0.0.0 "$service" --use $use --conns 4
	case_of "IPv6: full load, use $use" moved "$v6_address" :: "$service6" --use $use --conns 4
done
# so many that they are seen to side by side
case_of "400 connections" moved $v4_address 10.77.0.100 "$service" --conns 400 --rate 2000

# Options that change until the stop, each connection's unlike the others'. With BPF most are not asked
# at the stop, but told apart.
varied() {
	local address=$1 listen=$2 move=$3
	shift 3
	start_server --listen "$listen" --vary && start_peer "$address" --conns 150 --rate 1000 && peers_run_on &&
		move_server beta --move-address "$move" "$@" && move_server alpha --move-address "$move" "$@" &&
		finish_all
}
case_of "IPv4: options that change all the time" varied $v4_address 0.0.0.0 "$service"
case_of "IPv6: options that change all the time" varied "$v6_address" :: "$service6"
case_of "IPv4 over an IPv6 socket: options that change all the time" varied $v4_address :: "$service"
case_of "options that change all the time: no BPF" varied "$v6_address" :: "$service6" --no-bpf

# --- states -----------------------------------------------------------------------------------------

# in_state HOST STATE N: so many of the server's connections are in that state.
in_state() {
	[ "$(on "$1" ss -tnH state "$2" sport = ":$port" | wc -l)" = "$3" ]
}

# What the server sent and ended, the peers have got.
all_got() {
	local p sum=0
	for p in "${peers[@]}"; do
		wait_for "$p/got" 30 || { diag "a peer does not end"; return 1; }
		sum=$((sum + $(<"$p/got")))
	done
	[ "$sum" = "$(<"$server/sent")" ] || { diag "$(<"$server/sent") bytes sent, $sum came"; return 1; }
}

urgent_came() {
	[ "$(cat "$server/marked" 2>/dev/null)" = 3 ]
}

# state_moved ADDRESS MOVE STATE PEER-OPTS…: connections in a state; STATE "": any.
state_moved() {
	local address=$1 move=$2 state=$3
	shift 3
	start_server --listen :: && start_peer "$address" --conns 3 "$@" || return 1
	touch "$server/states"
	case $* in
	*G* | *H*) until_true 30 in_state alpha fin-wait-1 3 || { diag "not in FIN_WAIT1"; return 1; } ;;
	esac
	case $* in
	*U* | *u) until_true 30 urgent_came || { diag "no urgent data"; return 1; } ;;
	esac
	touch "$wl_dir/shut"
	[ -z "$state" ] || until_true 30 in_state alpha "$state" 3 || { diag "not in $state"; return 1; }
	move_server beta --move-address "$move" || return 1
	touch "${peers[@]/%//read}"
	[ ! -e "$server/sent" ] || all_got || return 1
	finish_all
}
for family in 4 6; do
	address=$v4_address move=$service
	[ $family = 4 ] || address=$v6_address move=$service6
	case_of "IPv$family: half-closed by the peer (CLOSE_WAIT)" state_moved "$address" "$move" close-wait --use C
	case_of "IPv$family: half-closed by the peer, send queue full" state_moved "$address" "$move" close-wait \
		--use C --late
	case_of "IPv$family: half-closed by the server (FIN_WAIT2)" state_moved "$address" "$move" fin-wait-2 --use F
	case_of "IPv$family: FIN_WAIT1" state_moved "$address" "$move" fin-wait-1 --use G --late
	case_of "IPv$family: CLOSING" state_moved "$address" "$move" closing --use H --late
	case_of "IPv$family: LAST_ACK" state_moved "$address" "$move" last-ack --use A --late
	case_of "IPv$family: an urgent byte" state_moved "$address" "$move" "" --use U
	case_of "IPv$family: an urgent byte that was read" state_moved "$address" "$move" "" --use u
	case_of "IPv$family: zero window, receive queue full" state_moved "$address" "$move" "" --use N
	case_of "IPv$family: corked" state_moved "$address" "$move" "" --use Q
	case_of "IPv$family: send queue full" state_moved "$address" "$move" "" --use S --late
done

# dials ADDRESS THEIRS MOVE: a program that connects is moved before it has an answer (SYN_SENT).
dials() {
	local there=$work/there.$RANDOM st=0
	mkdir "$there"
	on client setsid "$e2e/dialled.py" "${2//[\[\]]/}" "$there" </dev/null >"$there/log" 2>&1 &
	wait_for "$there/port" 10 || return 1
	start_workload alpha tcp_dial --from "$1" --connect "$2:$(<"$there/port")" &&
		move_workload beta --move-address "$3" && touch "$there/accept" && wait_for "$wl_dir/through" 30 &&
		finish_workload || st=1
	kill %% 2>/dev/null
	wait
	return $st
}
case_of "IPv4: a program that connects (SYN_SENT)" dials 10.77.0.100 10.77.0.3 "$service"
case_of "IPv6: a program that connects (SYN_SENT)" dials fd77::100 "[fd77::3]" "$service6"

# Connections that their program has closed, while the peer takes nothing more: nobody has them any more. The peer gets
# all of it nevertheless. Where that cannot be, it is said ahead, and once more when they are lost.
gives_up() {
	[ "$(on alpha ss -tnoH state "$1" | grep -c 'timer:(persist')" = 3 ]
}
closed_peers() {
	start_server --listen :: && start_peer "$1" --conns 3 --late --use "$2" || return 1
	touch "$wl_dir/shut"
	until_true 30 gives_up "$3" || { diag "not in $3"; return 1; }
}
closed_moved() {
	local to
	closed_peers "$1" "$3" "$4" || return 1
	for to in beta alpha beta; do
		move_server $to --move-address "$2" || return 1
	done
	touch "${peers[@]/%//read}"
	all_got && finish_all
}
for use in "O fin-wait-1" "o last-ack"; do
	case_of "IPv4: closed by its program, in ${use#* }" closed_moved $v4_address "$service" "${use% *}" "${use#* }"
	case_of "IPv6: closed by its program, in ${use#* }" closed_moved "$v6_address" "$service6" "${use% *}" "${use#* }"
done
closed_said() {
	closed_peers $v4_address O fin-wait-1 && start_peer $v4_address --conns 3 || return 1
	at_server
	migrate alpha beta --pid "$wl_pid" --move-address "$service" --no-bpf || { say_migration; return 1; }
	if ! grep -q '"event":"warning".*10.77.0.100:.*closed, with [0-9]* bytes that 10.77.0.3:' "$work/events" ||
		! grep -q "3 connections that the program has closed are reset" "$work/events"; then
		diag "not said: $(cat "$work/events")"
		return 1
	fi
}
case_of "closed by its program: named without BPF" closed_said

# --- nobody has accepted them -------------------------------------------------------------------------

# Of each kind one; echoes is what those of the first peer have to have got.
waiting_peers() {
	start_server --listen :: --accept-late && start_peer "$1" --conns 20 --rate 200 && start_peer "$1" --use K \
		--mib 2 && start_peer "$1" --use C --conns 2 && start_peer "$1" --use S && start_peer "$1" --use U
}
echoes_came() {
	local _ echoes
	read -r _ echoes 2>/dev/null <"${peers[0]}/stall" && [ "$echoes" -ge 20 ]
}
waiting_moved() {
	waiting_peers "$1" && move_server beta --move-address "$2" &&
		until_true 20 echoes_came && peers_run_on && finish_all
}
case_of "IPv4: connections that nobody has accepted" waiting_moved $v4_address "$service"
case_of "IPv6: connections that nobody has accepted" waiting_moved "$v6_address" "$service6"

# A peer that connects again from the same port, after the server had closed its connection on the host to which it comes
# back: that is in TIME_WAIT there.
cat >"$work/closes.py" <<EOF
import os, socket, sys, time
d = sys.argv[1]
def say(name, text):
    with open(d + "/." + name, "w") as f:
        f.write(text)
    os.rename(d + "/." + name, d + "/" + name)
s = socket.create_server(("0.0.0.0", 0), backlog=8)
say("pid", str(os.getpid()))
say("port", str(s.getsockname()[1]))
s.accept()[0].close()
while not os.path.exists(d + "/accept"):
    time.sleep(0.01)
c = s.accept()[0]
c.sendall(c.recv(5))
EOF
cat >"$work/comes-back.py" <<EOF
import os, socket, sys, time
d, address = sys.argv[1], (sys.argv[2], int(sys.argv[3]))
def ours():
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return s
s = ours()
s.bind(("", 0))  # a port that no other connection has, as one that connect(2) chooses may
s.connect(address)
us = s.getsockname()
assert s.recv(1) == b""
s.close()
# until the server has acknowledged that
while any(line.split()[1].endswith(":%04X" % us[1]) for line in list(open("/proc/net/tcp"))[1:]):
    time.sleep(0.01)
open(d + "/closed", "w").close()
while not os.path.exists(d + "/again"):
    time.sleep(0.01)
s = ours()
s.bind(us)
s.connect(address)
s.sendall(b"hello")
open(d + "/connected", "w").close()
assert s.recv(5) == b"hello"
open(d + "/answered", "w").close()
EOF
same_port() {
	local pid
	new_dir closes
	server=$wl_dir
	on alpha setsid python3 "$work/closes.py" "$wl_dir" </dev/null >"$wl_dir/log" 2>&1 &
	wait_for "$wl_dir/port" 20 || return 1
	pid=$(<"$wl_dir/pid")
	on client setsid python3 "$work/comes-back.py" "$wl_dir" 10.77.0.100 "$(<"$wl_dir/port")" </dev/null >>"$wl_dir/log" 2>&1 &
	wait_for "$wl_dir/closed" 20 && migrate alpha beta --pid "$pid" --move-address "$service" && touch "$wl_dir/again" &&
		wait_for "$wl_dir/connected" 20 && migrate beta alpha --pid "$pid" --move-address "$service" &&
		touch "$wl_dir/accept" && wait_for "$wl_dir/answered" 20 && return 0
	say_migration
	diag "$(<"$wl_dir/log")"
	on alpha kill -KILL "$pid" 2>/dev/null || on beta kill -KILL "$pid" 2>/dev/null
	return 1
}
case_of "a connection that nobody has accepted, where one of the same ends was closed" same_port

# Handshakes that are under way when the move comes: the client has connected, and nothing that it says
# gets through (its own firewall sees to that) until the tasks run at the destination.
muffle() {
	on client nft -f - <<EOF
table inet muffled { chain out { type filter hook output priority 0; tcp flags & (syn | ack) == ack drop; }; }
EOF
}
unmuffle() {
	on client nft delete table inet muffled 2>/dev/null
}
cat >"$work/at-lock" <<EOF
#!/bin/bash
echo >"$work/connect"
read -r _ <"$work/connected"
EOF
mkfifo "$work/connect" "$work/connected"
chmod 755 "$work/at-lock"

connect_late() {
	read -r -t 60 _ <>"$work/connect" && muffle || return 1
	start_peer "$1" --conns 20 --rate 200 && echo "$wl_dir" >"$work/late-peer"
	echo >"$work/connected"
}
under_way() {
	local address=$1 move=$2 listen=$3 late st
	rm -f "$work/late-peer"
	start_server --listen "$listen" || return 1
	connect_late "$address" &
	late=$!
	at_server
	migrate alpha beta --pid "$wl_pid" --move-address "$move" --hook "network-lock=$work/at-lock"
	st=$mig_status
	[ "$st" != 0 ] || { on beta ss -tnHa sport = ":$port" | grep -c ESTAB >"$work/made"; }
	wait $late || st=1
	unmuffle
	if [ "$st" != 0 ] || ! peers+=("$(<"$work/late-peer")"); then
		say_migration
		return 1
	fi
	wl_host=beta
	[ "$(<"$work/made")" = 20 ] || diag "$(<"$work/made") of 20 have come about"
	moved_to beta && until_true 20 echoes_came && peers_run_on && finish_all
}
case_of "IPv4: handshakes that are under way" under_way $v4_address "$service" 0.0.0.0
case_of "IPv6: handshakes that are under way" under_way "$v6_address" "$service6" ::
case_of "IPv4 at an IPv6 socket: handshakes that are under way" under_way $v4_address "$service" ::

# Both of their ends are in the tree.
own_address() {
	start_workload alpha queued --listen 10.77.0.100 --listen6 fd77::100 && move_workload beta --move-address "$service" \
		--move-address "$service6" && finish_workload
}
case_of "a program's connections to itself that it has not accepted" own_address
own_undone() {
	start_workload alpha queued --listen 10.77.0.100 --listen6 fd77::100 || return 1
	server=$wl_dir
	wl_host=alpha
	fails_at beta dest-held
	moved_to alpha && finish_workload
}

# Connections come and go all the time: none is refused, reset, or gets an answer that is not its own.
busy_moved() {
	start_server --listen :: && start_peer "$1" --churn --conns 8 && peers_run_on || return 1
	local to
	for to in beta alpha beta; do
		move_server $to --move-address "$2" || return 1
	done
	finish_all
}
case_of "IPv4: connections come and go" busy_moved $v4_address "$service"
case_of "IPv6: connections come and go" busy_moved "$v6_address" "$service6"

# There, back and there again, with several uses at once.
there_and_back() {
	start_server --listen :: && start_peer $v4_address --conns 5 && start_peer $v4_address --use B --conns 2 &&
		start_peer "$v6_address" --use B && peers_run_on || return 1
	local to
	for to in beta alpha beta; do
		move_server $to --move-address "$service" --move-address "$service6" || return 1
	done
	finish_all
}
case_of "there, back and there again" there_and_back

# The source goes on with its connections when the move is undone.
undone() {
	start_server --listen :: && start_peer $v4_address --conns "${conns:-5}" && start_peer "$v6_address" --use B --conns 2 &&
		peers_run_on || return 1
	at_server
	wl_host=alpha
	"$@" || return 1
	has_address alpha "$service" && ! has_address beta "$service" && moved_to alpha && peers_run_on &&
		finish_all
}
rehearse() {
	migrate alpha beta --pid "$wl_pid" --move-address "$service" --move-address "$service6" --rehearse ||
		{ say_migration; return 1; }
}

# fails_at HOST POINT: the agent's process dies there.
fails_at() {
	CR_FAULT=$2:kill "$testbed" agent "$1" restart
	migrate alpha beta --pid "$wl_pid" --move-address "$service" --move-address "$service6"
	"$testbed" agent "$1" restart
	[ "$mig_status" != 0 ]
}
# What waits to be accepted goes on waiting, and new connections come.
waiting_undone() {
	waiting_peers $v4_address || return 1
	at_server
	wl_host=alpha
	"$@" || return 1
	has_address alpha "$service" && moved_to alpha && start_peer $v4_address --conns 3 || return 1
	touch "$server/accept"
	until_true 20 echoes_came && peers_run_on && finish_all
}
case_of "rehearsed: the source's connections go on" undone rehearse
case_of "rehearsed: connections that wait to be accepted go on waiting" waiting_undone rehearse
case_of "the source's agent dies with listeners locked" waiting_undone fails_at alpha source-locked
case_of "the source's agent dies with the sockets locked" undone fails_at alpha source-locked
conns=400 case_of "the source's agent dies with hundreds of sockets locked" undone fails_at alpha source-locked
conns=400 case_of "rehearsed: hundreds of connections go on" undone rehearse
case_of "the source's agent dies before the decision" undone fails_at alpha source-prepared
case_of "the destination's agent dies: a program's connections to itself that it has not accepted" own_undone
case_of "the destination's agent dies before it is prepared" undone fails_at beta dest-held
case_of "the destination's agent dies prepared, and nobody knows" undone fails_at beta dest-prepared

# Decided: somebody else brings it to its end.
decided() {
	start_server --listen :: && start_peer $v4_address --conns "${conns:-5}" && start_peer "$v6_address" --use B --conns 2 &&
		peers_run_on || return 1
	at_server
	CR_FAULT=$2:kill "$testbed" agent "$1" restart
	migrate alpha beta --pid "$wl_pid" --move-address "$service" --move-address "$service6"
	"$testbed" agent "$1" restart
	wl_host=beta
	moved_to beta && has_address beta "$service" && ! has_address alpha "$service" && peers_run_on &&
		finish_all
}
case_of "the source's agent dies with the decision" decided alpha source-commit
case_of "the destination's agent dies with the decision" decided beta dest-commit
conns=400 case_of "the destination's agent dies before hundreds of connections run" decided beta dest-launched
case_of "the destination's agent dies before the tasks run" decided beta dest-launched

# --- filters that the program has locked: nobody can put another one in their place, neither can we ---

for with in --locked --locked-listener; do
	case_of "$with: there, back and there again" there_and_back
	case_of "$with: connections come and go" busy_moved $v4_address "$service"
	case_of "$with: handshakes that are under way" under_way $v4_address "$service" 0.0.0.0
	case_of "$with: connections that nobody has accepted" waiting_moved "$v6_address" "$service6"
	conns=400 case_of "$with: rehearsed" undone rehearse
	case_of "$with: rehearsed, connections that wait to be accepted" waiting_undone rehearse
	case_of "$with: the source's agent dies with the sockets locked" undone fails_at alpha source-locked
	case_of "$with: the source's agent dies before the decision" undone fails_at alpha source-prepared
	case_of "$with: the destination's agent dies prepared" undone fails_at beta dest-prepared
	case_of "$with: the source's agent dies with the decision" decided alpha source-commit
	case_of "$with: the destination's agent dies with the decision" decided beta dest-commit
	case_of "$with: the destination's agent dies before the tasks run" decided beta dest-launched
done
with=--locked
conns=400 case_of "$with: hundreds of connections" decided beta dest-launched
with=

# --- addresses that somebody else moves -----------------------------------------------------------------

# What --hook runs: on this machine, as whoever looks after addresses would. fail-switch: it fails when it is done.
cat >"$work/switch" <<EOF
#!/bin/bash
[ "\$CR_UNDO" = 0 ] && from=alpha to=beta || from=beta to=alpha
for a in ${service%\%*} ${service6%\%*}; do
	"$testbed" exec \$from ip addr del \$a dev eth0
	"$testbed" exec \$to ip addr add \$a dev eth0 nodad 2>/dev/null || "$testbed" exec \$to ip addr add \$a dev eth0
done
"$testbed" exec client ip neigh flush all
echo "\$CR_UNDO" >>"$work/switched"
[ "\$CR_UNDO" = 1 ] || [ ! -e "$work/fail-switch" ]
EOF
chmod 755 "$work/switch"

switch_peers() {
	start_server --listen :: && start_peer $v4_address --conns 5 && start_peer "$v6_address" --conns 5 &&
		start_peer "$v6_address" --use B --conns 2 && start_peer $v4_address --use C --conns 2 && peers_run_on
}
switched() {
	rm -f "$work/switched" "$work/fail-switch"
	switch_peers && move_server beta --tcp established --hook "network-switch=$work/switch" &&
		[ "$(<"$work/switched")" = 0 ] && has_address beta "$service" && finish_all
}
case_of "addresses that a hook moves" switched

switched_waiting() {
	waiting_peers $v4_address && move_server beta --tcp established --hook "network-switch=$work/switch" &&
		until_true 20 echoes_came && peers_run_on && finish_all
}
case_of "addresses that a hook moves: connections that nobody has accepted" switched_waiting
with=--locked case_of "addresses that a hook moves: locked filters" switched
with=--locked-listener case_of "addresses that a hook moves: a listener's locked filter" switched

# It has moved them and fails: nothing that came to the destination meanwhile is lost.
switched_back() {
	rm -f "$work/switched"
	touch "$work/fail-switch"
	switch_peers || return 1
	at_server
	migrate alpha beta --pid "$wl_pid" --tcp established --hook "network-switch=$work/switch"
	if [ "$mig_status" != 1 ] || [ "$(tr -d '\n' <"$work/switched")" != 01 ]; then
		say_migration
		return 1
	fi
	wl_host=alpha
	has_address alpha "$service" && moved_to alpha && peers_run_on && finish_all
}
case_of "addresses that a hook moves, and moves back" switched_back
switched_decided() {
	rm -f "$work/fail-switch"
	switch_peers || return 1
	at_server
	CR_FAULT=$2:kill "$testbed" agent "$1" restart
	migrate alpha beta --pid "$wl_pid" --tcp established --hook "network-switch=$work/switch"
	"$testbed" agent "$1" restart
	wl_host=beta
	moved_to beta && peers_run_on && start_peer $v4_address --conns 3 && finish_all
}
case_of "addresses that a hook moves: the destination's agent dies with the decision" switched_decided beta dest-commit

# --- what is not moved ------------------------------------------------------------------------------

refused() {
	start_server --listen :: && start_peer "${1}" && peers_run_on || return 1
	at_server
	migrate alpha beta --pid "$wl_pid" "${@:3}"
	[ "$mig_status" = 4 ] && grep -q "\"event\":\"refused\".*$2" "$work/events" && peers_run_on && finish_all
}
case_of "--tcp refuse names the connection" refused $v4_address "TCP connection to 10.77.0.3" --tcp refuse
case_of "--tcp established: an address that the destination does not have" refused $v4_address \
	"local address does not move" --tcp established
case_of "an address that the source does not have" refused $v4_address \
	"does not have that address" --move-address 10.77.0.99/24%eth0
case_of "a device that is not there" refused $v4_address "eth9" --move-address 10.77.0.100/24%eth9

done_testing
