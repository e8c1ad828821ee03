# shellcheck shell=bash
# What the end-to-end tests share: a testbed, workloads in it, migrations of them.
#
#   start_testbed                     hosts alpha, beta, client; goes away with the script
#   start_workload HOST NAME OPTS…    sets wl_dir, wl_pid, wl_host
#   migrate FROM TO ARGS…             sets mig_status, mig_done (the last event); events in $work/events
#   rehearse_workload                 that the workload would move, and goes on
#   moved_to HOST                     the workload runs there, and only there
#   finish_workload                   makes it do its last checks
#   move_case DESCRIPTION -- NAME OPTS… -- ARGS…   all of it, as one test
e2e=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
tree=$(readlink -f "$e2e/../..")
# shellcheck source=tests/e2e/tap.sh
. "$e2e/tap.sh"
testbed=${TESTBED:-$tree/tools/testbed}
build=${CR_BUILD:-$tree/build} # another one to test a build with sanitizers
workloads=$(readlink -f "$build/tests/workload")
work=

[ "$(id -u)" = 0 ] || skip_all "needs root"

# --- a place to work in, and its end --------------------------------------------------------------

clean_up() {
	local st=$?
	trap - EXIT
	[ -z "${TESTBED_NAME:-}" ] || "$testbed" down || st=1
	if [ -n "$work" ]; then
		if [ "$st" != 0 ] && [ -n "${KEEP:-}" ]; then
			diag "kept: $work"
		else
			rm -rf "$work"
		fi
	fi
	exit "$st"
}

# All hosts see /var/tmp; /tmp they have for themselves.
start_work() {
	work=$(mktemp -d "/var/tmp/cr-e2e.XXXXXX")
	chmod 755 "$work"
	trap clean_up EXIT
	trap 'exit 130' INT TERM
}

start_testbed() {
	local prog out
	for prog in cr-agent page-server cr-migrate; do
		[ -x "$build/$prog" ] || {
			echo "Bail out! $build/$prog is not built"
			exit 1
		}
	done
	start_work
	TESTBED_NAME=$(basename "$0" .t)-$$
	export TESTBED_NAME
	out=$("$testbed" --bin "$build" up alpha beta client) || { diag "$out"; exit 1; }
	hosts_file=$(tail -n 1 <<<"$out")
	# Far apart: a pid of a workload must not be one that is in use at the other host.
	on alpha sh -c 'echo 5000 >/proc/sys/kernel/ns_last_pid'
	on beta sh -c 'echo 20000 >/proc/sys/kernel/ns_last_pid'
	state=$(dirname "$hosts_file")
}

on() {
	"$testbed" exec "$@"
}

# until_true SECONDS CMD…: waits for CMD to succeed.
until_true() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@"; do
		((SECONDS < deadline)) || return 1
		sleep 0.02
	done
}

wait_for() {
	until_true "$2" test -e "$1"
}

# --- workloads --------------------------------------------------------------------------------------

# new_dir NAME: a directory that every host and every user can write to.
new_dir() {
	wl_dir=$(mktemp -d "$work/$1.XXXX")
	chmod 777 "$wl_dir"
}

# The workload ends up as a child of the host's pid 1 and leads a session of its own.
start_workload() {
	local host=$1 name=$2
	shift 2
	new_dir "$name"
	wl_host=$host
	on "$host" setsid "$workloads/$name" "$@" --dir "$wl_dir" </dev/null >"$wl_dir/log" 2>&1
	workload_is_up "$name"
}

# local_workload NAME OPTS…: on this machine, without a testbed.
local_workload() {
	local name=$1
	shift
	new_dir "$name"
	setsid "$workloads/$name" "$@" --dir "$wl_dir" </dev/null >"$wl_dir/log" 2>&1 &
	workload_is_up "$name"
}

ready_or_done() {
	[ -e "$wl_dir/ready" ] || [ -e "$wl_dir/result" ]
}

workload_is_up() {
	if ! until_true "${START_TIMEOUT:-40}" ready_or_done || [ ! -e "$wl_dir/ready" ]; then
		diag "$1 did not start: $(cat "$wl_dir/result" "$wl_dir/log" 2>/dev/null)"
		wl_pid=
		return 1
	fi
	wl_pid=$(<"$wl_dir/pid")
}

# progress: "TICKS HOST PID REALTIME_MS MOVES"
progress() {
	readlink "$wl_dir/progress"
}

progress_is_from() {
	local _ host
	read -r _ host _ <<<"$(progress)"
	[ "$host" = "$1" ]
}

progress_from_or_result() {
	progress_is_from "$1" || [ -e "$wl_dir/result" ]
}

progress_differs() {
	[ "$(progress)" != "$1" ]
}

progress_or_result() {
	progress_differs "$1" || [ -e "$wl_dir/result" ]
}

# It goes on: two changes, the second of which began after we asked.
runs_on() {
	progresses && progresses
}

progresses() {
	local p
	p=$(progress)
	{ until_true 30 progress_or_result "$p" && progress_differs "$p"; } || {
		diag "no progress since: $p; $(result_text)"
		return 1
	}
}

result_text() {
	cat "$wl_dir/result" 2>/dev/null || echo "no result"
}

# Its last checks; says what was wrong.
finish_workload() {
	touch "$wl_dir/stop"
	if ! wait_for "$wl_dir/result" 60; then
		diag "the workload does not end; last progress: $(progress)"
		return 1
	fi
	[ "$(result_text)" = OK ] && return 0
	diag "$(result_text)"
	return 1
}

# For what is left over after a failure.
kill_workload() {
	local host pid
	for host in alpha beta; do
		for pid in $(workload_pids "$host"); do
			on "$host" kill -KILL "$pid" 2>/dev/null
		done
	done
}

# Pids, as the host sees them, of processes that run a workload.
workload_pids() {
	# shellcheck disable=SC2016
	on "$1" sh -c 'for p in /proc/[0-9]*; do
		case "$(readlink "$p/exe" 2>/dev/null)" in "$1"/*) echo "${p#/proc/}" ;; esac
	done' pids "$workloads"
}

# take_pid HOST PID: somebody else has it there; sets taker. Whoever forks just then may be the one who is given it.
take_pid() {
	for _ in {1..20}; do
		# shellcheck disable=SC2016
		taker=$(on "$1" sh -c 'echo $(($1 - 1)) >/proc/sys/kernel/ns_last_pid
			sleep 1000 </dev/null >/dev/null 2>&1 & echo $!' take "$2")
		[ "$taker" != "$2" ] || return 0
		on "$1" kill "$taker"
	done
	diag "pid $2 is not to be had in $1"
	return 1
}

# --- migrations -------------------------------------------------------------------------------------

note_logs() {
	local log
	for log in "$state"/{alpha,beta}/{agent,page-server}.log; do
		log_sizes[$log]=$(stat -c %s "$log" 2>/dev/null || echo 0)
	done
}
declare -A log_sizes=()

# What the daemons logged since note_logs, for a failure's diagnosis.
say_logs() {
	local log
	for log in "$state"/{alpha,beta}/{agent,page-server}.log; do
		[ -s "$log" ] || continue
		tail -c "+$((${log_sizes[$log]:-0} + 1))" "$log" | tail -n "${LOG_LINES:-15}" |
			sed "s|^|$(basename "$(dirname "$log")") $(basename "$log" .log): |" | while IFS= read -r line; do
			diag "$line"
		done
	done
}

# migrate FROM TO ARGS…; a migration that takes too long counts as one that hangs.
migrate() {
	local from=$1 to=$2
	shift 2
	note_logs
	mig_status=0
	# where pages come after the switch-over there is nothing to be compared at it
	local -a verify=(--verify full)
	case " $* " in
	*' --mode hybrid '* | *' --mode postcopy '* | *' --on-no-convergence postcopy '*) verify=() ;;
	esac
	timeout -k 5 "${MIGRATE_TIMEOUT:-60}" "$build/cr-migrate" --hosts "$hosts_file" --json "${verify[@]}" \
		"$from->$to" "$@" </dev/null >"$work/events" 2>"$work/errors" || mig_status=$?
	# shellcheck disable=SC2034 # for the tests
	mig_done=$(tail -n 1 "$work/events")
	return $mig_status
}

# postcopied: what the last event says of it, by jq's path.
postcopied() {
	jq -r ".postcopy$1" <<<"$mig_done"
}

say_migration() {
	diag "cr-migrate exited with $mig_status"
	diag "$(grep -v '"event":"round"' "$work/events" | tail -n 6)" "$(tail -n 6 "$work/errors")"
	say_logs
}

gone_from() {
	local pids
	pids=$(workload_pids "$1")
	[ -z "$pids" ] || {
		diag "still in $1: $pids"
		return 1
	}
}

other() {
	if [ "$1" = alpha ]; then echo beta; else echo alpha; fi
}

# It runs on HOST under its pid, and the other host has nothing of it.
moved_to() {
	{ until_true 30 progress_from_or_result "$1" && progress_is_from "$1"; } || {
		diag "no progress from $1: $(progress); $(result_text)"
		return 1
	}
	runs_on && gone_from "$(other "$1")"
}

# wire_mib: what the last migration sent, in whole MiB.
wire_mib() {
	jq '[.rounds[].bytes_wire] | add / 1048576 | floor' <<<"$mig_done"
}

# move_workload TO ARGS…: the one that was started, by its pid unless ARGS says --cgroup.
move_workload() {
	local to=$1
	shift
	case " $* " in
	*' --cgroup '*) ;;
	*) set -- --pid "$wl_pid" "$@" ;;
	esac
	if ! migrate "$wl_host" "$to" "$@"; then
		diag "$(result_text)"
		say_migration
		return 1
	fi
	wl_host=$to
	moved_to "$to" || {
		say_migration
		return 1
	}
}

# It goes on where it is, and nothing of it is at the other host.
rehearse_workload() {
	migrate "$wl_host" "$(other "$wl_host")" --pid "$wl_pid" --rehearse || { say_migration; return 1; }
	progress_is_from "$wl_host" && runs_on && gone_from "$(other "$wl_host")"
}

moves_there_and_back() {
	local home=$wl_host
	move_workload "$(other "$home")" && move_workload "$home" && finish_workload
}

try_move_case() {
	local -a name=()
	while [ "$1" != -- ]; do
		name+=("$1")
		shift
	done
	shift
	start_workload alpha "${name[@]}" && runs_on && move_workload beta "$@" && finish_workload
}

# move_case DESCRIPTION -- NAME OPTS… -- ARGS…
move_case() {
	local what=$1 st=0
	shift 2
	try_move_case "$@" || st=1
	result $st "$what"
	[ $st = 0 ] || {
		[ ! -s "$wl_dir/log" ] || diag "its log: $(tail -n 5 "$wl_dir/log")"
		kill_workload
	}
	[ -n "${KEEP:-}" ] || rm -rf "$wl_dir"
}
