#!/bin/bash
# Whoever dies before the switch-over, and whenever: the source runs on untouched, the destination has no
# trace, and afterwards the same migration works.
#
# UNDO_REPEAT=N does all of it N times, at other moments; UNDO_SEED=N chooses them.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed
RANDOM=${UNDO_SEED:-$$}
diag "UNDO_SEED=${UNDO_SEED:-$$}"

# --- what must be as before ---------------------------------------------------------------------------

# Every process of the workload, as the machine sees it.
machine_pids() {
	local pid
	for pid in $(workload_pids alpha); do
		"$testbed" pid alpha "$pid"
	done
}

# Neighbours that only differ in being one VMA or two count as one.
mappings() {
	awk '{ split($1, a, "-"); look = $2 " " $6
		if (look == last && a[1] == end) { end = a[2]; next }
		if (NR > 1) print start, end, last
		start = a[1]; end = a[2]; last = look }
		END { print start, end, last }' "/proc/$1/maps"
}

descriptors() {
	find "/proc/$1/fd" -type l -printf '%f %l\n' | sort -n
}

source_state() {
	local pid
	for pid in $(machine_pids); do
		echo "process $pid"
		mappings "$pid" | grep -v '\[stack\]'
		descriptors "$pid"
		grep -E '^(TracerPid|SigBlk|SigIgn|SigCgt|NoNewPrivs|Threads|Uid|CapEff)' "/proc/$pid/status"
	done
}

untracked() {
	local pid
	for pid in $(machine_pids); do
		if grep -q '^VmFlags:.* u[wm]\b' "/proc/$pid/smaps"; then
			diag "process $pid is still tracked"
			return 1
		fi
		if grep -qE '^State:[[:space:]]+[Tt]' "/proc/$pid/task"/*/status; then
			diag "process $pid is stopped"
			return 1
		fi
		if grep -qE '^TracerPid:[[:space:]]+[1-9]' "/proc/$pid/task"/*/status; then
			diag "process $pid is traced"
			return 1
		fi
	done
}

# No cgroup of the testbed is frozen, or on its way.
thawed() {
	! find /sys/fs/cgroup -path "*testbed-$TESTBED_NAME*" \( -name freezer.state -o -name cgroup.events \) \
		-exec grep -sxE 'FROZEN|FREEZING|frozen 1' {} +
}

# Processes and cgroups of beta but for the daemons (which the test kills and starts itself).
beta_state() {
	local agent server
	agent=$("$testbed" agent beta pid)
	server=$("$testbed" page-server beta pid)
	on beta ps -e -o pid=,ppid=,comm= | awk -v a="$agent" -v s="$server" \
		'$1 != a && $1 != s && $3 != "ps" { print $1, $3 }'
	find /sys/fs/cgroup -path "*testbed-$TESTBED_NAME/beta*" -type d | sort
	on beta cat /proc/mounts | awk '{ print $1, $2 }'
}

same_as() {
	[ "$("$2")" = "$1" ]
}

# is_again BEFORE FUNCTION DESCRIPTION: within some seconds the function says the same as before.
is_again() {
	local st=0
	until_true 30 same_as "$1" "$2" || st=1
	result $st "$3"
	[ $st = 0 ] || diag "$(diff <(echo "$1") <("$2") | head -n 20)"
}

# What an earlier migration left to be cleared up, an empty cgroup, may go meanwhile; nothing may come.
nothing_new() {
	[ -z "$(comm -13 <(sort <<<"$1") <("$2" | sort))" ]
}

nothing_came() {
	local st=0
	until_true 30 nothing_new "$1" "$2" || st=1
	result $st "$3"
	[ $st = 0 ] || diag "$(comm -13 <(sort <<<"$1") <("$2" | sort) | head -n 20)"
}

# --- striking -------------------------------------------------------------------------------------------

# The agent's own children: what does the work of one migration.
kill_workers() {
	local pid
	for pid in $(on "$1" pgrep -P "$("$testbed" agent "$1" pid)"); do
		on "$1" kill -KILL "$pid"
	done
}

strike() {
	case $1 in
	cr-migrate) kill -KILL "$migrate_pid" ;;
	"source agent") "$testbed" agent alpha kill ;;
	"destination agent") "$testbed" agent beta kill ;;
	"source worker") kill_workers alpha ;;
	"destination worker") kill_workers beta ;;
	"page-server") "$testbed" page-server beta kill ;;
	"link of the source") "$testbed" link alpha down ;;
	"link of the destination") "$testbed" link beta down ;;
	interrupt) kill -INT "$migrate_pid" ;;
	esac
}

mend() {
	case $1 in
	"source agent") "$testbed" agent alpha restart ;;
	"destination agent") "$testbed" agent beta restart ;;
	"page-server") "$testbed" page-server beta restart ;;
	"link of the source") link_up alpha ;;
	"link of the destination") link_up beta ;;
	esac
}

# A neighbour that was not there is not asked again at once.
link_up() {
	"$testbed" link "$1" up
	until_true 30 reach beta "$("$testbed" addr alpha)" && until_true 30 reach alpha "$("$testbed" addr beta)"
}

reach() {
	# shellcheck disable=SC2016
	on "$1" timeout 2 bash -c ': >"/dev/tcp/$1/7710"' reach "$2" 2>/dev/null
}

migration_ends() {
	! kill -0 "$migrate_pid" 2>/dev/null
}

# Exit statuses that each strike may lead to: the source runs on, or (the source's agent being gone)
# cr-migrate cannot know.
allowed() {
	case $1 in
	cr-migrate) [ "$2" = 137 ] ;;
	"source agent") [ "$2" = 1 ] || [ "$2" = 3 ] ;;
	interrupt) [ "$2" = 1 ] || [ "$2" = 130 ] ;;
	*) [ "$2" = 1 ] ;;
	esac
}

random_ms() {
	printf '0.%03d' $((RANDOM % $1))
}

# The first round takes about a second and a half: early is before it or at its start, late in it or after it.
wait_for_moment() {
	if [ "$1" = late ]; then
		until_true 20 grep -qs '"event"' "$work/events"
		sleep $((RANDOM % 2))
	fi
	sleep "$(random_ms 600)"
}

# A migration that is under way at the moment; sets before, beta_before, migrate_pid. On a machine that is busy it may be
# over by then.
begin_migration() {
	start_workload alpha dirty --incompressible --mib 24 --rate 8 --threads 3 || return 1
	before=$(source_state)
	beta_before=$(beta_state)
	note_logs
	"$build/cr-migrate" --hosts "$hosts_file" --json --verify full 'alpha->beta' --pid "$wl_pid" \
		--max-bandwidth 16M --downtime-limit 1ms </dev/null >"$work/events" 2>"$work/errors" &
	migrate_pid=$!
	wait_for_moment "$1"
	! migration_ends
}

undo_case() {
	local who=$1 when=$2 before beta_before tries=3 st=0
	until begin_migration "$when"; do
		[ $((--tries)) -gt 0 ] || { diag "over before the strike: $(tail -n 1 "$work/events")"; return 1; }
		kill_workload
	done
	strike "$who"
	until_true 40 migration_ends || { diag "cr-migrate does not end"; kill -KILL $migrate_pid; }
	wait $migrate_pid 2>/dev/null || st=$?
	mig_status=$st
	ok "$scene: exit status" allowed "$who" $st || diag "it was $st"
	ok "$scene: the source runs on in alpha" runs_on
	ok "$scene: it is in alpha" progress_is_from alpha
	ok "$scene: nothing is frozen" until_true 30 thawed
	ok "$scene: neither tracked, traced nor stopped" until_true 30 untracked
	is_again "$before" source_state "$scene: mappings, descriptors and attributes as before"
	nothing_came "$beta_before" beta_state "$scene: no trace in beta"
	mend "$who"
	ok "$scene: afterwards it migrates" move_workload beta
	finish_workload
}

for ((i = 0; i < ${UNDO_REPEAT:-1}; i++)); do
	for who in cr-migrate "source agent" "destination agent" "source worker" "destination worker" \
		page-server "link of the destination" "link of the source" interrupt; do
		for when in early late; do
			scene="$who, $when"
			failed=$tap_failed
			ok "$scene: and is well to the end" undo_case "$who" $when
			[ "$tap_failed" = "$failed" ] || say_migration
			mend "$who" 2>/dev/null
			kill_workload
			rm -rf "$wl_dir"
		done
	done
done

# A tree and a cgroup: everything in it goes on.
scene="a tree, destination agent"
start_workload alpha forktree --procs 20 --mib 8
before=$(source_state)
"$build/cr-migrate" --hosts "$hosts_file" --json 'alpha->beta' --pid "$wl_pid" --max-bandwidth 8M \
	</dev/null >"$work/events" 2>"$work/errors" &
migrate_pid=$!
until_true 20 grep -qs '"event"' "$work/events"
sleep "$(random_ms 400)"
strike "destination agent"
st=0
wait $migrate_pid || st=$?
is $st 1 "$scene: exit status"
ok "$scene: it runs on" runs_on
is_again "$before" source_state "$scene: as before"
mend "destination agent"
ok "$scene: then migrated" move_workload beta
ok "$scene: and well" finish_workload
done_testing
