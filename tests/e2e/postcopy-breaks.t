#!/bin/bash
# Post-copy when something breaks or dies while pages are missing: they arrive all the same, and nothing
# is ever read that was not written. Moments are random; SEED=N repeats them.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
RANDOM=${SEED:=$RANDOM}
echo "# SEED=$SEED"
start_testbed
# shellcheck source=tests/e2e/breaks.sh
. "$e2e/breaks.sh"

# --- processes that fetch ------------------------------------------------------------------------------

# confined HOST: it has nothing that it does not need: capabilities, other system calls, a user's files.
confined() {
	local pid name said=''
	pid=$(server "$1") || return 1
	for name in CapEff CapPrm CapBnd NoNewPrivs Seccomp Uid; do
		said+=$(on "$1" sed -n "s/^$name:[[:space:]]*//p" "/proc/$pid/status" | cut -f1)' '
	done
	[ "$said" = "0000000000000000 0000000000000000 0000000000000000 1 2 65534 " ]
}

confined_case() {
	local host
	start_workload alpha "$@" && runs_on && begin_slow || return 1
	for host in alpha beta; do
		until_true 30 confined "$host" || { diag "page-servers at $host: $(on "$host" ps -e -o pid,ppid,user,args | grep page-server)"; return 1; }
	done
	fetching || { diag "all had arrived"; return 1; }
	after_slow || return 1
	! server_there alpha || { diag "there is still one at the source"; return 1; }
	! server_there beta || { diag "there is still one at the destination"; return 1; }
}
SLOW=8mbit RATE=1G
ok "page-servers without any privilege serve at the source, take what is pushed at the destination, and end" \
	confined_case dirty --mib 64 --rate 20
kill_workload

SLOW=8mbit SLOWER=2mbit RATE=1G
ok "the fetcher is killed five times: dirty" struck_case fetcher 5 dirty --mib 64 --rate 2
kill_workload
SLOW=4mbit # it has 6 MiB
ok "the fetcher is killed five times: churn" struck_case fetcher 5 churn --seed 5
kill_workload
SLOW=30mbit SLOWER='' # fifty processes that want their memory
ok "the fetcher is killed three times: forktree" struck_case fetcher 3 forktree
kill_workload
SLOW=8mbit SLOWER=2mbit
ok "the source's page-server is killed five times" server_case alpha dirty --mib 64 --rate 2 --threads 2
kill_workload
ok "the one that takes what is pushed is killed five times: dirty" server_case beta dirty --mib 64 --rate 2 --threads 2
kill_workload
SLOW=4mbit
ok "the one that takes what is pushed is killed five times: churn" server_case beta churn --seed 8
kill_workload
SLOW=8mbit
ok "the one that takes what is pushed is killed five times: shared" server_case beta shared --steady --pause-us 1000
kill_workload
# One that cannot live here is done without at last.
said_without() {
	grep -q 'the page-server died .* times; fetching pages without a page-server' "$state/beta/agent.log"
}

server_or_without() {
	server_or_over beta || said_without
}

keeps_dying_case() {
	local n
	start_workload alpha "$@" && runs_on && begin_slow && slow_link 256kbit || return 1
	for ((n = 0; n < 40; n++)); do
		until_true 30 server_or_without || { diag "no page-server"; return 1; }
		said_without && break
		fetching || break
		strike_server beta
	done
	said_without || { diag "still one after $n"; return 1; }
	after_slow && (($(postcopied .pushed) > 0))
}
SLOW=8mbit
ok "the one that takes what is pushed is killed again and again: it goes without" keeps_dying_case dirty --mib 64 --rate 2
kill_workload
ok "others took over" grep -q 'another one takes over' "$state/beta/agent.log"
ok "the keeper is killed three times" struck_case keeper 3 dirty --mib 64 --rate 2
kill_workload
for name in "dirty --mib 64 --rate 2" "churn --seed 6"; do
	[ "${name%% *}" = churn ] && SLOW=4mbit || SLOW=8mbit
	# shellcheck disable=SC2086
	ok "the supervisor is killed three times: $name" struck_case supervisor 3 $name
	kill_workload
	# shellcheck disable=SC2086
	ok "supervisor and fetcher are killed at once, three times: $name" struck_case "supervisor fetcher" 3 $name
	kill_workload
done
SLOW=8mbit
for name in "shared --steady --pause-us 1000" "shared --pause-us 2000" "shared --of removed --pause-us 1000" \
	"shared --mib 128 --one-in 16 --pause-us 1000"; do
	# shellcheck disable=SC2086
	ok "the fetcher is killed five times: $name" struck_case fetcher 5 $name
	kill_workload
	# shellcheck disable=SC2086
	ok "supervisor and fetcher are killed at once, three times: $name" struck_case "supervisor fetcher" 3 $name
	kill_workload
done
# Hybrid, where what is as it was sent is told over each connection anew.
MODE=hybrid SLOW='' SLOWER=2mbit RATE=8M
ok "hybrid: the fetcher is killed three times: shared" struck_case fetcher 3 shared --seldom 2000 --steady --pause-us 500
kill_workload
ok "hybrid: supervisor and fetcher are killed at once, three times: shared" \
	struck_case "supervisor fetcher" 3 shared --seldom 2000 --steady --pause-us 500
kill_workload
MODE='' SLOW=8mbit SLOWER=2mbit RATE=1G
ok "fetcher and keeper are killed at once, three times" struck_case "fetcher keeper" 3 dirty --mib 64 --rate 2 --threads 4
kill_workload
ok "the keeper took over" grep -q 'its keeper takes over' "$state/beta/agent.log"


# All who fetch at once: the tasks end with them, before they can read a zero that nobody has written.
# At the source they are whole.
gone_from_beta() {
	gone_from beta >/dev/null
}

all_struck_case() {
	local struck
	start_workload alpha "$@" && runs_on || return 1
	begin_slow || { diag "it does not begin"; return 1; }
	wl_host=beta
	until_true 20 progress_is_from beta || { diag "not there: $(progress)"; return 1; }
	slow_link 256kbit
	for _ in 1 2 3 4 5; do # who takes over may be faster than kill(1)
		until_true 30 strike_or_over keeper fetcher supervisor
		until_true 2 gone_from_beta && break
	done
	end_slow && { diag "it came to its end"; return 1; }
	until_true 20 gone_from_beta || { diag "tasks run on at beta"; return 1; }
	[ ! -e "$wl_dir/result" ] || { diag "$(result_text)"; return 1; }
	wl_host=alpha
	touch "$wl_dir/again"
	until_true 30 resolved || { diag "$(cat "$work/resolved")"; return 1; }
	until_true 60 progress_is_from alpha || { diag "not back: $(progress); $(cat "$work/resolved")"; return 1; }
	runs_on && finish_workload
}
resolved() {
	"$build/cr-migrate" resolve --hosts "$hosts_file" --abort alpha >"$work/resolved" 2>&1
}
PATIENCE=3s
for name in "dirty --mib 64 --rate 200 --threads 2" "touch --mib 64 --pattern rewrite" "churn --seed 7" "forktree --procs 20" \
	"shared --steady --pause-us 500"; do
	# shellcheck disable=SC2086
	ok "all who fetch are killed at once: $name" all_struck_case $name
	kill_workload
done
PATIENCE=''

# --- the link, the agents, the rest ---------------------------------------------------------------------

SLOW=8mbit
for name in "dirty --mib 64 --rate 20" "touch --mib 64 --pattern order --work-us 1000" \
	"shared --mib 64 --steady --pause-us 2000"; do
	# shellcheck disable=SC2086
	ok "the link is cut and restored ten times: $name" cut_case $name
	kill_workload
done

# Longer than any connection lives without an answer.
long_cut_case() {
	start_workload alpha "$@" && runs_on && begin_slow || return 1
	"$testbed" link beta down
	sleep 12
	"$testbed" link beta up
	after_slow && (($(postcopied .reconnects) > 0))
}
ok "the link is away for 12 s" long_cut_case dirty --mib 64 --rate 20
kill_workload
SLOW='' RATE=10M

daemon_case() {
	local host
	start_workload alpha "$@" && runs_on && begin_slow || return 1
	for _ in 1 2 3; do
		for host in alpha beta; do
			fetching || break 2
			"$testbed" agent $host kill
			"$testbed" page-server $host kill
			random_pause 200
			"$testbed" page-server $host restart
			"$testbed" agent $host restart
			progresses || return 1
		done
	done
	after_slow
}
ok "the daemons and page-servers are killed and started again" daemon_case dirty --mib 64 --rate 20
kill_workload

# Where no page-server can be started to take it, the fetcher takes what is pushed by itself.
alone_case() {
	local st=0
	on beta mount --bind /bin/true "$build/page-server" || return 1
	start_workload alpha "$@" && runs_on && begin_slow && strike fetcher && after_slow || st=1
	on beta umount "$build/page-server"
	grep -q 'fetching pages without a page-server' "$state/beta/agent.log" || { diag "not said"; st=1; }
	(($(postcopied .pushed) > 0)) || { diag "nothing was pushed"; st=1; }
	return $st
}
ok "no page-server can be started at the destination" alone_case dirty --mib 64 --rate 20
kill_workload

# through_poisoner WHAT CASE…: that, with somebody in between who makes nonsense of it (poisoner.py), three times.
through_poisoner() {
	local st=0 there=$work/mad-$1 what=$1
	shift
	mkdir -p "$there"
	on beta setsid "$e2e/poisoner.py" "$("$testbed" addr beta):7710" 3 "$there" "$what" </dev/null >"$there/log" 2>&1 &
	until_true 10 test -e "$there/port" || { diag "$(<"$there/log")"; return 1; }
	on beta nft -f - <<-EOF
		table ip mad {
			chain in {
				type nat hook prerouting priority dstnat;
				tcp dport 7710 redirect to :$(<"$there/port")
			}
		}
	EOF
	"$@" || st=1
	on beta nft delete table ip mad
	on beta kill "$(<"$there/pid")"
	[ "$(wc -l <"$there/poisoned")" = 3 ] || { diag "not poisoned"; st=1; }
	return $st
}

# seen_case HOST TEXT NAME OPTS…: it moves, and HOST's agent sees the nonsense, each time.
seen_case() {
	local log=$state/$1/agent.log text=$2 before
	shift 2
	before=$(grep -c "$text" "$log")
	start_workload alpha "$@" && runs_on && begin_slow && after_slow || return 1
	(($(grep -c "$text" "$log") - before == 3)) || { diag "not seen"; return 1; }
}
# It is connected to anew, by another page-server.
ok "the destination talks nonsense three times: each time another page-server serves" \
	through_poisoner asked seen_case alpha 'serving tasks: .*Protocol error' dirty --mib 64 --rate 20
kill_workload
ok "what is pushed is damaged on its way, three times: none of it is put in place" \
	through_poisoner pushed seen_case beta 'connection to the source is lost: pages were damaged on their way' dirty --mib 64 --rate 20
kill_workload

ok "the source's worker is killed" source_worker_case dirty --mib 64 --rate 20
kill_workload
ok "the source's worker is killed: shared memory" source_worker_case shared --mib 32 --pause-us 1000
kill_workload
SLOW=4mbit RATE=1G # zombies have nothing to serve, and are there to the end
ok "the source's worker is killed: a tree with zombies" source_worker_case forktree --procs 20
kill_workload
SLOW='' RATE=10M
ok "the source's worker is killed: a file in memory that was removed" source_worker_case shared --mib 32 --pause-us 1000 --of removed
kill_workload
ok "the source's worker is killed: shared memory with holes" source_worker_case shared --mib 512 --one-in 16 --pause-us 1000
kill_workload

ok "cr-migrate is killed" cli_case dirty --mib 64 --rate 20
kill_workload

# Ten times whatever it may be, at moments that nobody has chosen.
restart() {
	random_pause 100
	"$testbed" "$1" "$2" restart
}

strike_them() {
	local struck=0
	until_true 30 strike_or_over "$@" && [ $struck = 1 ]
}

break_something() {
	case $1 in
	0) strike_them fetcher ;;
	1) strike_them keeper ;;
	2) strike_them supervisor ;;
	3) strike_them supervisor fetcher ;;
	4) "$testbed" page-server beta kill && restart page-server beta ;;
	5) "$testbed" page-server alpha kill && restart page-server alpha ;;
	6) "$testbed" agent beta kill && restart agent beta ;;
	7) "$testbed" agent alpha kill && restart agent alpha ;;
	8) "$testbed" link beta down && random_pause 400 && "$testbed" link beta up ;;
	9) ! until_true 30 server_or_over alpha || ! fetching || strike_server alpha ;;
	10) ! until_true 30 server_or_over beta || ! fetching || strike_server beta ;;
	esac
}

any_case() {
	local n said=() without=$((RANDOM % 10))
	start_workload alpha "$@" && runs_on && begin_slow && slow_link 512kbit || return 1
	for ((n = 0; n < 10; n++)); do
		random_pause 300
		until_true 30 three_or_over || break
		fetching || break
		said+=($((RANDOM % 11)))
		break_something "${said[-1]}" || break
		((n != without)) || kill_cli
	done
	end_slow
	wl_host=beta
	((n == 10)) || { diag "only $n times (${said[*]}): all had arrived"; return 1; }
	until_true 60 settled_everywhere || { diag "${said[*]}"; say_logs; return 1; }
	if ! moved_to beta || ! finish_workload || ! grep -q 'pages fetched, 0 lost' "$state/beta/agent.log"; then
		diag "${said[*]}"
		say_logs
		return 1
	fi
}
for name in "dirty --mib 64 --rate 2" "churn --seed $((RANDOM % 1000))"; do
	SLOW=8mbit RATE=1G
	: >"$state/beta/agent.log"
	# shellcheck disable=SC2086
	ok "ten times something is killed, or cut, at random, and once cr-migrate: $name" any_case $name
	kill_workload
done
SLOW='' RATE=10M

# --- the source is lost ---------------------------------------------------------------------------------

poisoned() {
	grep -q 'pages fetched, [1-9][0-9]* lost' "$state/beta/agent.log"
}

# losses_said N: cr-migrate told of a loss of N pages in all: by mapping, as a number, and as its exit status; and
# its status does so afterwards.
losses_said() {
	local by_mapping in_all later
	by_mapping=$(jq -s 'map(select(.event == "warning" and (.why | contains("lost with the source"))) |
		.why | split(" ")[0] | tonumber) | add' "$work/events")
	in_all=$(postcopied .lost)
	later=$("$build/cr-migrate" status --hosts "$hosts_file" --json beta |
		jq -s --arg id "$(jq -r .migration <<<"$mig_done")" \
			'map(select(.migration == $id))[0].postcopy | [.lost, (.losses | map(.pages) | add)] | @text')
	[ "$mig_status $by_mapping $in_all $later" = "5 $1 $1 \"[$1,$1]\"" ] || {
		diag "$1 lost; exit $mig_status, $by_mapping by mapping, $in_all in all, later $later"
		return 1
	}
}

lost_case() {
	MODE=hybrid PATIENCE=2s RATE=8M
	: >"$state/beta/agent.log"
	start_workload alpha touch --mib 64 --pattern rewrite --bus && runs_on || return 1
	begin_slow || { say_migration; return 1; }
	wl_host=beta
	{ until_true 20 progress_is_from beta && runs_on; } || { diag "not there: $(progress)"; return 1; }
	"$testbed" agent alpha kill
	# shellcheck disable=SC2016
	on alpha sh -c 'kill -KILL $(pgrep -x cr-agent) $(pgrep -x touch)' 2>/dev/null
	end_slow
	until_true 30 poisoned || { diag "$(tail -n 5 "$state/beta/agent.log")"; return 1; }
	finish_workload || { diag "$(tail -n 5 "$state/beta/agent.log")"; return 1; }
	local lost said ranges
	lost=$(<"$wl_dir/lost")
	said=$(sed -n 's/.*pages fetched, \([0-9]*\) lost$/\1/p' "$state/beta/agent.log")
	ranges=$(sed -n 's/.*fetching pages: \([0-9]*\) pages of process.*lost with the source.*/\1/p' "$state/beta/agent.log" |
		awk '{ n += $1 } END { print n }')
	if [ "$said" != "$ranges" ] || ((lost == 0 || lost > said || said - lost >= 100)); then
		diag "SIGBUS for $lost pages, $said lost by the log, $ranges by its ranges"
		return 1
	fi
	losses_said "$said" || { say_migration; return 1; }
}
ok "the source is lost: SIGBUS for what is missing, all else is right, and the log says what" lost_case
kill_workload
"$testbed" agent alpha restart

# The source lives, and cannot be reached for longer than it is waited for.
away_case() {
	MODE=hybrid PATIENCE=1s RATE=8M
	: >"$state/beta/agent.log"
	start_workload alpha touch --mib 64 --pattern rewrite --bus && runs_on || return 1
	begin_slow || { say_migration; return 1; }
	wl_host=beta
	until_true 20 progress_is_from beta || { diag "not there: $(progress)"; return 1; }
	"$testbed" link beta down
	end_slow
	"$testbed" link beta up
	until_true 5 poisoned || { diag "$(tail -n 5 "$state/beta/agent.log")"; return 1; }
	losses_said "$(sed -n 's/.*pages fetched, \([0-9]*\) lost$/\1/p' "$state/beta/agent.log")" || { say_migration; return 1; }
	until_true 30 settled_everywhere || { say_logs; return 1; }
	finish_workload
}
ok "the source is away for too long: cr-migrate says what is lost" away_case
kill_workload

# Of shared memory it is SIGBUS for as long as anybody has it mapped, and also for children that come later.
lost_shared() {
	grep -q 'pages are lost with the source' "$state/beta/agent.log"
}

lost_shared_case() {
	MODE=hybrid PATIENCE=2s RATE=4M
	: >"$state/beta/agent.log"
	start_workload alpha shared --mib 64 --pause-us 500 --bus && runs_on || return 1
	begin_slow || { say_migration; return 1; }
	wl_host=beta
	{ until_true 20 progress_is_from beta && runs_on; } || { diag "not there: $(progress)"; return 1; }
	"$testbed" agent alpha kill
	# shellcheck disable=SC2016
	on alpha sh -c 'kill -KILL $(pgrep -x cr-agent) $(pgrep -x shared)' 2>/dev/null
	end_slow
	until_true 30 lost_shared || { diag "$(tail -n 5 "$state/beta/agent.log")"; return 1; }
	{ runs_on && strike fetcher && until_true 10 three_again && runs_on && finish_workload; } || {
		diag "$(tail -n 5 "$state/beta/agent.log")"
		return 1
	}
	losses_told || { say_migration; return 1; }
	local lost said
	lost=$(<"$wl_dir/lost")
	said=$(sed -n 's/.*shared memory of process.*: \([0-9]*\) pages are lost.*/\1/p' "$state/beta/agent.log" | sort -n | tail -n 1)
	# what has been removed since is not lost any more; some are not touched while they are
	if ((lost == 0 || lost > said || said - lost > said / 4)); then
		diag "SIGBUS for $lost pages, $said lost by the log"
		return 1
	fi
	until_true 20 nobody_fetches || { diag "$(on beta ps -e -o pid,comm | grep cr-)"; return 1; }
}
# Each process that has it mapped has lost it.
losses_told() {
	grep -q '"event":"warning".*pages are lost with the source' "$work/events" && [ "$mig_status" = 5 ] &&
		(($(postcopied .lost) > 0))
}
nobody_fetches() {
	! named cr-fetcher >/dev/null
}
ok "the source is lost: SIGBUS for what is missing of shared memory" lost_shared_case
kill_workload
"$testbed" agent alpha restart
done_testing
