# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # those of lib.sh
# What tests that break a post-copy share, besides lib.sh: a move that takes long enough for something to happen, and
# who is struck meanwhile.
#
#   begin_slow          in the background: SLOW, a rate of the link; RATE, of what is pushed; MODE; PATIENCE
#   end_slow, after_slow   the rest comes fast; and the workload is right
#   struck_case WHO TIMES NAME OPTS…, server_case HOST NAME OPTS…, cut_case, cli_case, source_worker_case NAME OPTS…

: "${work:?is of lib.sh: start_testbed comes first}" "${build:?}" "${testbed:?}" "${hosts_file:?}"

# What fetches all of its memory within milliseconds gets it over a slow link: SLOW, a rate of tc-tbf(8).
# The rest then comes fast (end_slow). SLOWER: once the tasks are there, so that it is not over before all has been tried,
# however busy the machine is.
slow_link() {
	[ -z "$1" ] || on alpha tc qdisc replace dev eth0 root tbf rate "$1" burst 16k latency 50ms
}

fast_link() {
	on alpha tc qdisc del dev eth0 root 2>/dev/null
}

# A move that takes long enough for something to happen: pages are pushed slowly. In the background.
begin_slow() {
	slow_link "${SLOW:-}" || return 1
	migrate alpha beta --pid "$wl_pid" --mode "${MODE:-postcopy}" --max-bandwidth "${RATE:-10M}" \
		--postcopy-timeout "${PATIENCE:-30s}" &
	mover=$!
	until_true 30 fetching_or_over || { diag "no pages are fetched after 30 s"; return 1; }
}

# Some workloads have touched all of their memory before anybody has looked.
fetching_or_over() {
	fetching || ! kill -0 "$mover" 2>/dev/null
}

fetching() {
	[ "$(pages_left)" -gt 0 ]
}

# 0 if no pages are being fetched.
pages_left() {
	"$build/cr-migrate" status --hosts "$hosts_file" --json beta 2>/dev/null |
		jq -s 'map(select(.state == "fetching pages") | .postcopy.pages_left) | max // 0'
}

# goes_on LEFT PROGRESS: fewer pages are missing than that, or the workload has gone on.
goes_on() {
	(($(pages_left) < $1)) || progress_differs "$2"
}

end_slow() {
	local st=0
	fast_link
	wait "$mover" || st=$?
	mig_status=$st mig_done=$(tail -n 1 "$work/events")
	return $st
}

after_slow() {
	end_slow || { say_migration; return 1; }
	wl_host=beta
	moved_to beta || { say_migration; return 1; }
	[ "$(postcopied '| [.lost, .asked_again] | @text')" = '[0,0]' ] || { diag "$mig_done"; return 1; }
	finish_workload
}

# Up to $1 ms.
random_pause() {
	local ms=$((RANDOM % $1 + 1))
	sleep "$((ms / 1000)).$(printf %03d $((ms % 1000)))"
}

named() {
	on beta pgrep -x "$1"
}

# The supervisor: the fetcher's parent.
supervisor() {
	on beta ps -o ppid= -p "$(named cr-fetcher)" 2>/dev/null | tr -d ' '
}

# server HOST: the page-server that serves the stopped tasks at alpha, and takes what is pushed at beta.
server() {
	on "$1" pgrep -f '^[^ ]*/page-server --tasks'
}

server_there() {
	[ "$(server "$1" | wc -l)" = 1 ]
}

server_or_over() {
	server_there "$1" || over
}

strike_server() {
	local pid
	pid=$(server "$1") && on "$1" kill -KILL "$pid" 2>/dev/null
}

# strike WHO…: kills them, all at once; fails if one of them was not there any more. Whoever takes over
# may be faster than kill(1) with the second.
strike() {
	local -a pids=()
	local who
	for who in "$@"; do
		case $who in
		fetcher) pids+=("$(named cr-fetcher)") ;;
		keeper) pids+=("$(named cr-keeper)") ;;
		supervisor) pids+=("$(supervisor)") ;;
		esac
	done
	on beta kill -0 "${pids[@]}" 2>/dev/null || return 1
	on beta chrt -f 90 kill -KILL "${pids[@]}" 2>/dev/null
	return 0
}

# server_case HOST NAME OPTS…
server_case() {
	local host=$1 struck=0 n
	shift
	start_workload alpha "$@" && runs_on && begin_slow && slow_link "$SLOWER" || return 1
	for n in 1 2 3 4 5; do
		until_true 30 server_or_over "$host" || { diag "no page-server: $(on "$host" ps -e -o pid,ppid,args | grep page-server)"; return 1; }
		! over || break
		strike_server "$host" || break
		struck=$n
		until_true 30 goes_on "$(pages_left)" "$(progress)" || { diag "nothing arrives, and no progress"; return 1; }
		random_pause 300
	done
	after_slow || return 1
	((struck == 5)) || { diag "all had arrived after $struck strikes"; return 1; }
	(($(postcopied .reconnects) > 0)) || { diag "it was not that one that served"; return 1; }
}

three_again() {
	[ "$(named cr-fetcher | wc -l)" = 1 ] && [ "$(named cr-keeper | wc -l)" = 1 ] && [ "$(supervisor)" != 1 ]
}

three_or_over() {
	three_again || ! fetching
}

# strike_or_over WHO…: sets struck. One that was killed before shows for a moment longer: then it is looked again.
strike_or_over() {
	struck=1
	three_again && strike "$@" && return
	struck=0
	over
}

# A status that does not come, as the agents are busy, is no end.
over() {
	! kill -0 "$mover" 2>/dev/null && ! fetching && ! fetching
}

# struck_case WHO TIMES NAME OPTS…
struck_case() {
	local who=$1 times=$2 struck n=0
	shift 2
	start_workload alpha "$@" && runs_on && begin_slow && slow_link "${SLOWER:-}" || return 1
	for ((; times > 0; times--)); do
		# shellcheck disable=SC2086
		until_true 30 strike_or_over $who || { diag "not three processes: $(on beta ps -e -o pid,ppid,comm | grep cr-)"; return 1; }
		[ "$struck" = 1 ] || break
		n=$((n + 1))
		# tasks that want much of their memory at once go on when nearly all of it is there
		until_true 30 goes_on "$(pages_left)" "$(progress)" || { diag "nothing arrives, and no progress"; return 1; }
		random_pause 300
	done
	after_slow || return 1
	((times == 0)) || { diag "all had arrived after $n strikes"; return 1; }
}

cut_case() {
	start_workload alpha "$@" && runs_on && begin_slow || return 1
	local cuts=0
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		random_pause 400
		fetching || break
		cuts=$((cuts + 1))
		"$testbed" link beta down
		random_pause 500
		"$testbed" link beta up
	done
	((cuts == 10)) || { diag "only $cuts cuts: all had arrived"; return 1; }
	after_slow
}

another_server() {
	! fetching || { server_there alpha && [ "$(server alpha)" != "$1" ]; }
}

settled_everywhere() {
	! fetching && gone_from alpha >/dev/null
}

kill_cli() {
	kill -KILL "$(pgrep -f "^$build/cr-migrate --hosts $hosts_file --json" | head -n 1)" 2>/dev/null
}

cli_case() {
	start_workload alpha "$@" && runs_on && begin_slow && kill_cli || return 1
	end_slow
	wl_host=beta
	until_true 60 settled_everywhere || { say_logs; return 1; }
	moved_to beta && finish_workload
}

# The source's worker: then the daemon there serves, and nobody is left to tell cr-migrate.
source_worker_case() {
	start_workload alpha "$@" && runs_on && begin_slow || return 1
	local worker was
	was=$(server alpha)
	# shellcheck disable=SC2016
	worker=$(on alpha sh -c 'for p in $(pgrep -x cr-agent); do grep -qs "^TracerPid:[[:space:]]*$p$" /proc/[0-9]*/status && echo $p; done')
	on alpha kill -KILL "$worker" || return 1
	until_true 30 another_server "$was" || { diag "its page-server lives on, or no other comes"; return 1; }
	end_slow
	wl_host=beta
	until_true 60 settled_everywhere || { say_logs; return 1; }
	moved_to beta && finish_workload
}
