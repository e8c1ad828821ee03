#!/bin/bash
# cr-migrate for its user: exit statuses, the shape of --json, options, and what it refuses of the hosts.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed

# json FILTER: of the last event, true or not.
json() {
	jq -e "$1" <<<"$mig_done" >/dev/null || {
		diag "last event: $mig_done"
		return 1
	}
}

# --- migrated: 0 ------------------------------------------------------------------------------------

start_workload alpha dirty --mib 32 --rate 20
migrate alpha beta --pid "$wl_pid"
is $mig_status 0 "migrated: exit status 0" || say_migration
all_events() {
	jq -s -e 'all(type == "object" and (.event | type == "string"))' "$work/events" >/dev/null
}
ok "every line is a JSON object with an event" all_events
is "$(grep -c '"event":"done"' "$work/events")" 1 "one event is the last: done"
ok "done: outcome, migration and error" \
	json '.event == "done" and .outcome == "migrated" and (.migration | type == "string" and length > 0) and .error == null'
ok "done: downtime and total" json '.downtime_us > 0 and .total_us > .downtime_us'
ok "done: rounds, numbered from 1" json '.rounds | length > 0 and ([.[].round] == [range(1; length + 1)])'
ok "done: each round's figures" json \
	'.rounds | all([.pages_written, .pages_sent, .bytes_wire, .duration_us] | all(type == "number" and . >= 0))'
ok "done: phases of the downtime" json \
	'.phases_us | [.freeze, .last_pages, .capture, .rebuild, .launch, .commit] | all(type == "number" and . >= 0)'
ok "done: the phases do not exceed the downtime by more than a tenth" \
	json '([.phases_us[]] | add) <= .downtime_us * 1.1 + 200'
ok "done: memory" json '.memory_bytes > 32 * 1048576'
ok "the first round sent about the memory" json '.rounds[0].pages_sent > 8000'
ok "the workload is in beta" moved_to beta
ok "the workload is well" finish_workload

# --- rehearsed, left running ------------------------------------------------------------------------

start_workload alpha forktree --procs 8
migrate alpha beta --pid "$wl_pid" --rehearse
is $mig_status 0 "rehearsed: exit status 0" || say_migration
ok "rehearsed: said so" json '.outcome == "rehearsed" and .error == null'
ok "rehearsed: nothing is in beta" gone_from beta
ok "rehearsed: it runs on in alpha" progress_is_from alpha
ok "rehearsed: it runs on" runs_on
migrate alpha beta --pid "$wl_pid"
is $mig_status 0 "then migrated" || say_migration
ok "then well" moved_to beta
ok "to the end" finish_workload
kill_workload

# --- wrong use: 2 -----------------------------------------------------------------------------------

usage() {
	local what=$1 st=0
	shift
	"$build/cr-migrate" --hosts "$hosts_file" "$@" >"$work/out" 2>&1 </dev/null || st=$?
	is $st 2 "usage: $what" || diag "$(cat "$work/out")"
}
usage "no arguments"
usage "no endpoints" --pid 1
usage "no pid and no cgroup" 'alpha->beta'
usage "an option that is not there" 'alpha->beta' --pid 1 --no-such-option
usage "a pid that is not a number" 'alpha->beta' --pid x
usage "a limit that is not a time" 'alpha->beta' --pid 1 --downtime-limit soon
usage "no streams" 'alpha->beta' --pid 1 --streams 0
usage "another launch" 'alpha->beta' --pid 1 --launch magic

# --- failed: 1, refused: 4 --------------------------------------------------------------------------

migrate alpha beta --pid 999999
isnt $mig_status 0 "a pid that is not there is no success"
ok "a pid that is not there: said so" json '.outcome != "migrated" and (.error.message // "" | test("999999"))'

# The pid is taken at the destination: one of beta's own processes has it.
start_workload alpha regs
take_pid beta "$wl_pid"
migrate alpha beta --pid "$wl_pid"
is $mig_status 4 "a pid that is taken: exit status 4" || say_migration
ok "a pid that is taken: refused by name" grep -q "\"pid\":$wl_pid" "$work/events"
ok "a pid that is taken: it runs on" runs_on
on beta kill "$taker"
ok "with the pid free" move_workload beta
ok "well" finish_workload

# Both spellings, several refusals in one list, and in words for people.
start_workload alpha refused --what raw
st=0
"$build/cr-migrate" --hosts "$hosts_file" alpha beta --pid "$wl_pid" >"$work/out" 2>&1 </dev/null || st=$?
is $st 4 "two endpoints as two words"
ok "in words: the socket is named" grep -qiE 'udp|socket' "$work/out"
ok "it runs on" runs_on
touch "$wl_dir/stop"
CR_MIGRATE_HOSTS=$hosts_file "$build/cr-migrate" 'alpha->gamma' --pid 1 >"$work/out" 2>&1 </dev/null
isnt $? 0 "a host that nobody knows"
ok "is named" grep -q gamma "$work/out"

ok "cr-agent check says what the kernel offers, as JSON" sh -c "'$build/cr-agent' check --json | jq -e 'type == \"object\"'"
ok "and in words" sh -c "'$build/cr-agent' check | grep -qi userfaultfd"
done_testing
