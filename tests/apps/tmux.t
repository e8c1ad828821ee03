#!/bin/bash
# tmux with a shell and top in it, used through a terminal from another host: pairs of ptys, sessions, process groups in
# the foreground and the background, descriptors that were passed through a socket.
set -uo pipefail
# shellcheck source=tests/apps/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
need /usr/bin/python3 tmux top
start_hosts
start_server $python "$apps/tmux_server.py" $service 7002 "$work"
{ server_listens 7002 && start_client screen tmux_peer $service 7002; } || give_up "tmux answers"
move_server "$@" && finish_clients
done_testing
