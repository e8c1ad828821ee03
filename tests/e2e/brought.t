#!/bin/bash
# Files that the destination does not have: named, or brought along (--copy-files); POSIX shared memory is, in any
# case. Each host has a /tmp and a /dev/shm of its own.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed
place=/tmp/brought/bin # what is there only alpha has

# The program itself is one of the files.
start_private() {
	on alpha sh -c "mkdir -p $place && chmod 2750 $place && chown 12:34 $place && cp $workloads/brought $place/" </dev/null
	new_dir brought
	wl_host=alpha
	on alpha setsid $place/brought --files $place --dir "$wl_dir" </dev/null >"$wl_dir/log" 2>&1
	workload_is_up brought
}

# What a host has for itself; the program's own tree may lie there, and is seen by all.
private_files() {
	on "$1" find /tmp /dev/shm -mindepth 1 -path "$tree" -prune -o -print </dev/null | sort
}
untouched=$(private_files beta)

# What a host has of it: nothing.
nothing_in() {
	local found
	found=$(private_files "$1")
	[ "$found" = "$untouched" ] || { diag "in $1: $found"; return 1; }
}

end_private() {
	local host
	for host in alpha beta; do
		on $host sh -c "kill -KILL $wl_pid 2>/dev/null; rm -rf /tmp/brought /dev/shm/*" </dev/null
	done
	rm -rf "$wl_dir"
}

# case_of DESCRIPTION FUNCTION ARGS…
case_of() {
	local what=$1 st=0
	shift
	"$@" || st=1
	result $st "$what"
	[ $st = 0 ] || { say_migration; diag "its log: $(tail -n 3 "$wl_dir/log")"; }
	end_private
}

names_them() {
	local name
	start_private && runs_on || return 1
	migrate alpha beta --pid "$wl_pid"
	[ "$mig_status" = 4 ] || return 1
	for name in brought log data map sizes quiet work open of_pipe/p of_socket/s; do
		grep -q "\"event\":\"refused\".*$place/$name.*--copy-files" "$work/events" || { diag "not named: $name"; return 1; }
	done
	runs_on && nothing_in beta && finish_workload
}
case_of "without --copy-files they are named" names_them

moves() {
	start_private && runs_on && move_workload beta --copy-files || return 1
	[ "$(on beta stat -c '%a %u %g' $place </dev/null)" = "2750 12 34" ] || { diag "the directory has another mode"; return 1; }
	[ -z "$(on beta find /tmp /dev/shm -name '.cr-*' </dev/null)" ] && [ -z "$(on alpha ls /dev/shm </dev/null)" ] &&
		runs_on && finish_workload
}
case_of "--copy-files brings all of them, and the program" moves

rehearsed() {
	start_private && runs_on || return 1
	migrate alpha beta --pid "$wl_pid" --copy-files --rehearse || return 1
	nothing_in beta && runs_on && finish_workload
}
case_of "rehearsed: nothing stays there" rehearsed

# dies HOST POINT: the agent's process does; the source goes on.
dies() {
	start_private && runs_on || return 1
	CR_FAULT=$2:kill "$testbed" agent "$1" restart
	migrate alpha beta --pid "$wl_pid" --copy-files
	"$testbed" agent "$1" restart
	[ "$mig_status" != 0 ] && moved_to alpha && until_true 30 nothing_in beta && finish_workload
}
case_of "the destination's agent dies while it builds: nothing stays there" dies beta dest-built
case_of "the destination's agent dies prepared: nothing stays there" dies beta dest-prepared
case_of "the source's agent dies: nothing stays there" dies alpha source-prepared

no_traces() {
	[ -z "$(on beta find /tmp /dev/shm -name '.cr-*' </dev/null)" ] && [ -z "$(on alpha ls /dev/shm </dev/null)" ]
}

# What the one that was undone had made there is in nobody's way: directories above all.
again() {
	start_private && runs_on || return 1
	CR_FAULT=$2:kill "$testbed" agent "$1" restart
	migrate alpha beta --pid "$wl_pid" --copy-files
	"$testbed" agent "$1" restart
	{ [ "$mig_status" != 0 ] && moved_to alpha && until_true 30 nothing_in beta; } || return 1
	runs_on && move_workload beta --copy-files || return 1
	[ "$(on beta stat -c '%a %u %g' $place </dev/null)" = "2750 12 34" ] || { diag "the directory has another mode"; return 1; }
	no_traces && runs_on && finish_workload
}
case_of "the destination's agent dies prepared, and it moves the next time" again beta dest-prepared
case_of "the source's agent dies, and it moves the next time" again alpha source-prepared

decided() {
	start_private && runs_on || return 1
	CR_FAULT=$2:kill "$testbed" agent "$1" restart
	migrate alpha beta --pid "$wl_pid" --copy-files
	"$testbed" agent "$1" restart
	wl_host=beta
	moved_to beta && until_true 30 no_traces && finish_workload
}
case_of "the destination's agent dies with the decision" decided beta dest-commit
case_of "the source's agent dies with the decision" decided alpha source-commit

other_there() {
	start_private && runs_on || return 1
	on beta sh -c "mkdir -p $place && echo mine >$place/data" </dev/null
	migrate alpha beta --pid "$wl_pid" --copy-files
	[ "$mig_status" = 4 ] && grep -q "\"event\":\"refused\".*$place/data" "$work/events" &&
		[ "$(on beta cat $place/data </dev/null)" = mine ] && runs_on && finish_workload
}
case_of "a file that is there, and is another one, is not replaced" other_there

# What alpha keeps of them is in the way of coming back, until it is said that it may be replaced.
there_and_back() {
	start_private && runs_on && move_workload beta --copy-files || return 1
	migrate beta alpha --pid "$wl_pid" --copy-files
	{ [ "$mig_status" = 4 ] && grep -q '"event":"refused".*--copy-files=replace' "$work/events"; } || { say_migration; return 1; }
	runs_on && move_workload alpha --copy-files=replace || return 1
	[ -z "$(on alpha find /tmp /dev/shm -name '.cr-*' </dev/null)" ] && runs_on && finish_workload
}
case_of "there and back: with =replace what was left behind makes way" there_and_back

# As it is in the way of coming back, so does it stay if that fails, and if somebody has it open or has changed it.
replace_undone() {
	local before
	start_private && runs_on && move_workload beta --copy-files || return 1
	before=$(on alpha sh -c "cd $place && md5sum data && stat -c '%i %y' data" </dev/null)
	CR_FAULT=dest-prepared:kill "$testbed" agent alpha restart
	migrate beta alpha --pid "$wl_pid" --copy-files=replace
	"$testbed" agent alpha restart
	{ [ "$mig_status" != 0 ] && moved_to beta && until_true 30 no_traces_of_replacing; } || return 1
	is "$(on alpha sh -c "cd $place && md5sum data && stat -c '%i %y' data" </dev/null)" "$before" "what was there is there again"
	migrate beta alpha --pid "$wl_pid" --copy-files=replace --rehearse || { say_migration; return 1; }
	is "$(on alpha sh -c "cd $place && md5sum data && stat -c '%i %y' data" </dev/null)" "$before" "and after a rehearsal"
	on alpha sh -c "setsid sleep 1000 <$place/data >/dev/null 2>&1 & echo \$! >$wl_dir/other"
	migrate beta alpha --pid "$wl_pid" --copy-files=replace
	on alpha kill "$(<"$wl_dir/other")" </dev/null
	{ [ "$mig_status" = 4 ] && grep -q "\"event\":\"refused\".*$place/data" "$work/events"; } || { say_migration; return 1; }
	on alpha sh -c "echo mine >>$place/data" </dev/null
	migrate beta alpha --pid "$wl_pid" --copy-files=replace
	[ "$mig_status" = 4 ] && grep -q "\"event\":\"refused\".*$place/data" "$work/events" && runs_on && finish_workload
}
no_traces_of_replacing() {
	[ -z "$(on alpha find /tmp /dev/shm -name '.cr-*' </dev/null)" ]
}
case_of "with =replace: undone, in use, changed since" replace_undone

# The program is on a file system that both hosts share.
shm_alone() {
	start_workload alpha brought && runs_on && move_workload beta || return 1
	[ -z "$(on alpha ls /dev/shm </dev/null)" ] && move_workload alpha && [ -z "$(on beta ls /dev/shm </dev/null)" ] &&
		finish_workload
}
case_of "shared memory and semaphores come along, there and back" shm_alone

shm_shared() {
	start_workload alpha brought && runs_on || return 1
	on alpha sh -c "setsid sleep 1000 </dev/shm/cr-brought-$wl_pid >/dev/null 2>&1 & echo \$! >$wl_dir/other"
	migrate alpha beta --pid "$wl_pid"
	on alpha kill "$(<"$wl_dir/other")" </dev/null
	[ "$mig_status" = 4 ] && grep -q "\"event\":\"refused\".*/dev/shm/cr-brought.*process $(<"$wl_dir/other")" "$work/events" &&
		runs_on && finish_workload
}
case_of "shared memory that somebody else has as well is refused" shm_shared


# Streamed: neither agent nor page-server could hold it.
larger_case() {
	local host
	for host in alpha beta; do
		prlimit --pid "$("$testbed" pid $host "$("$testbed" agent $host pid)")" --data=$((48 << 20)):
		prlimit --pid "$("$testbed" pid $host "$("$testbed" page-server $host pid)")" --data=$((48 << 20)):
	done
	start_workload alpha unlinked --mib 256 && runs_on && move_workload beta && finish_workload
}
ok "moved: a removed file that is larger than the agents' memory" larger_case
kill_workload
done_testing
