#!/bin/bash
# The page-server by itself: pre-dumps step by step, tracked between them, with hooks.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed
# shellcheck source=tests/e2e/steps.sh
. "$e2e/steps.sh"

# Hosts know each other by name.
for host in alpha beta client; do
	echo "$("$testbed" addr $host) $host"
done >"$work/hosts"
for host in alpha beta client; do
	on $host mount --bind "$work/hosts" /etc/hosts
done

# --- as the README writes it ----------------------------------------------------------------------------

mkdir "$work/beta"
start_server beta --listen beta:7712 --dir "$work/beta"

as_written() {
	start_workload alpha dirty --mib 32 --rate 20 && runs_on || return 1
	for _ in 1 2; do
		verb alpha pre-dump --pid "$wl_pid" --page-server beta:7712 --id web --track || return 1
		runs_on || return 1
	done
	verb alpha dump --pid "$wl_pid" --page-server beta:7712 --id web || return 1
	gone_from alpha && restored beta "$work/beta/web" && finish_workload
}
ok "pre-dump --track twice, dump, restore, by host name" as_written
kill_workload

# --- what --track saves ---------------------------------------------------------------------------------

# written FILE: pages that the last round of a --json log reports as written
written() {
	sed -n 's/.*"event":"round".*"pages_written":\([0-9]*\).*/\1/p' "$work/out" | tail -n 1
}
stops() {
	sed -n 's/.*"event":"stops","count":\([0-9]*\).*/\1/p' "$work/out" | tail -n 1
}
tracker_of() {
	# shellcheck disable=SC2016 # for the other shell
	on alpha sh -c 'test -S "/tmp/one-shot/track-$1"' test "$wl_pid"
}
no_tracker() {
	! tracker_of
}

# 64 MiB that a slow writer touches a little of: the second round must look at what was written alone.
sends_little() {
	local first second
	start_workload alpha dirty --mib 64 --rate 1 && runs_on || return 1
	verb alpha pre-dump --json --pid "$wl_pid" --page-server beta:7712 --id little --track || return 1
	first=$(written)
	tracker_of && runs_on || return 1
	verb alpha pre-dump --json --pid "$wl_pid" --page-server beta:7712 --id little --track || return 1
	second=$(written)
	diag "pages written: $first, then $second"
	[ "$first" -gt 16000 ] && [ "$second" -lt 8000 ] && runs_on
}
ok "the second pre-dump --track reads what was written" sends_little

without_track() {
	verb alpha pre-dump --json --pid "$wl_pid" --page-server beta:7712 --id little || return 1
	[ "$(written)" -lt 8000 ] && until_true 30 no_tracker || return 1
	verb alpha pre-dump --json --pid "$wl_pid" --page-server beta:7712 --id little || return 1
	[ "$(written)" -gt 16000 ] && runs_on
}
ok "a pre-dump without it ends the tracking" without_track

# Somebody else has written to the image meanwhile: nothing that was tracked may be believed.
image_changed() {
	verb alpha pre-dump --json --pid "$wl_pid" --page-server beta:7712 --id swap --track || return 1
	rm -rf "$work/beta/swap"
	verb alpha pre-dump --json --pid "$wl_pid" --page-server beta:7712 --id swap --track || return 1
	grep -q 'not as the last pre-dump left it' "$work/out" && [ "$(written)" -gt 16000 ] || return 1
	verb alpha dump --pid "$wl_pid" --page-server beta:7712 --id swap && gone_from alpha &&
		restored beta "$work/beta/swap" && finish_workload
}
ok "an image that has changed since is compared anew" image_changed
kill_workload

other_image() {
	start_workload alpha dirty --mib 16 && runs_on || return 1
	verb alpha pre-dump --pid "$wl_pid" --page-server beta:7712 --id one --track || return 1
	verb alpha pre-dump --pid "$wl_pid" --page-server beta:7712 --id two --track || return 1
	verb alpha pre-dump --pid "$wl_pid" --dir "$work/three" --track || return 1
	verb alpha pre-dump --pid "$wl_pid" --dir "$work/three" --track || return 1
	verb alpha dump --pid "$wl_pid" --dir "$work/three" && gone_from alpha && no_tracker &&
		restored beta "$work/three" && finish_workload
}
ok "a tree is tracked for one image at a time" other_image
kill_workload

with_children() {
	start_workload alpha forktree && runs_on || return 1
	for _ in 1 2 3; do
		verb alpha pre-dump --pid "$wl_pid" --page-server beta:7712 --id kids --track || return 1
		runs_on || return 1
	done
	verb alpha dump --pid "$wl_pid" --page-server beta:7712 --id kids && gone_from alpha &&
		restored beta "$work/beta/kids" && finish_workload
}
ok "a tree whose processes come and go, tracked" with_children
kill_workload

# Two who track one memory would clear each other's marks of writes.
tracked_by_another() {
	start_workload alpha dirty --mib 32 --rate 10 && runs_on || return 1
	verb alpha pre-dump --pid "$wl_pid" --page-server beta:7712 --id taken --track || return 1
	migrate alpha beta --pid "$wl_pid" && return 1
	{ [ "$mig_status" = 4 ] && grep -q 'somebody else tracks its memory' "$work/events"; } || { say_migration; return 1; }
	runs_on && verb alpha pre-dump --pid "$wl_pid" --page-server beta:7712 --id taken &&
		move_workload beta && finish_workload
}
ok "while a tree is tracked it is not migrated" tracked_by_another
kill_workload

tracker_dies() {
	local pid
	start_workload alpha dirty --mib 16 && runs_on || return 1
	verb alpha pre-dump --pid "$wl_pid" --page-server beta:7712 --id killed --track || return 1
	# shellcheck disable=SC2016 # for the other shell
	pid=$(on alpha sh -c 'for p in /proc/[0-9]*; do
		case "$(readlink "$p/exe")" in */cr-agent) tr "\0" " " <"$p/cmdline" | grep -q "pre-dump.* --id killed" && echo "${p#/proc/}" ;; esac; done')
	[ -n "$pid" ] && on alpha kill -KILL "$pid" && runs_on || return 1
	verb alpha dump --pid "$wl_pid" --page-server beta:7712 --id killed && gone_from alpha &&
		restored beta "$work/beta/killed" && finish_workload
}
ok "who tracks is killed: the dump goes without" tracker_dies
kill_workload

ends_with_the_tasks() {
	start_workload alpha dirty --mib 16 && runs_on || return 1
	verb alpha pre-dump --pid "$wl_pid" --page-server beta:7712 --id gone --track || return 1
	finish_workload && until_true 30 no_tracker
}
ok "the tracking ends with the tasks" ends_with_the_tasks
kill_workload

# --- hooks ----------------------------------------------------------------------------------------------

# shellcheck disable=SC2016 # for the hook's shell
note='echo "$CR_HOOK_STAGE $CR_PID $CR_UNDO $CR_SOURCE $CR_DESTINATION" >>'
all_hooks() {
	hooks=()
	local stage
	for stage in "$@"; do
		hooks+=(--hook "$stage=$note $work/stages")
	done
	: >"$work/stages"
}

hooks_of_a_dump() {
	start_workload alpha dirty --mib 16 && runs_on || return 1
	# shellcheck disable=SC2016 # for the hook's shell
	verb alpha pre-dump --pid "$wl_pid" --page-server beta:7712 --id hooks \
		--hook 'post-dump=echo "$CR_HOOK_STAGE of $CR_IMAGE" >'"$work/stages" || return 1
	[ "$(<"$work/stages")" = "post-dump of hooks" ] || { diag "$(<"$work/stages")"; return 1; }
	all_hooks pre-dump network-lock network-unlock post-dump
	verb alpha dump --pid "$wl_pid" --page-server beta:7712 --id hooks "${hooks[@]}" || return 1
	all_hooks_said "pre-dump network-lock post-dump" && gone_from alpha || return 1
	all_hooks pre-restore network-switch pre-resume post-resume post-restore
	restored beta "$work/beta/hooks" "${hooks[@]}" &&
		all_hooks_said "pre-restore network-switch pre-resume post-resume post-restore" && finish_workload
}
all_hooks_said() {
	local stage want=
	for stage in $1; do
		want+="$stage $wl_pid 0"$'\n'
	done
	[ "$(sed 's/ *$//; s/ alpha beta$//' "$work/stages")" = "${want%$'\n'}" ] || { diag "$(cat "$work/stages")"; return 1; }
}
ok "hooks of dump and restore, in order, know their stage" hooks_of_a_dump
kill_workload

hooks_that_fail() {
	local stage
	start_workload alpha dirty --mib 16 && runs_on || return 1
	for stage in pre-dump network-lock post-dump; do
		! silent_verb alpha dump --pid "$wl_pid" --page-server beta:7712 --id "no-$stage" --hook "$stage=exit 7" &&
			grep -q "hook $stage (exit 7) exited with 7" "$work/out" && runs_on || return 1
	done
	verb alpha dump --pid "$wl_pid" --page-server beta:7712 --id fails || return 1
	for stage in pre-restore network-switch pre-resume; do
		! silent_verb beta restore --detach --dir "$work/beta/fails" --hook "$stage=exit 7" &&
			grep -q "hook $stage (exit 7) exited with 7" "$work/out" && gone_from beta || return 1
	done
	restored beta "$work/beta/fails" && finish_workload
}
ok "a hook that fails: the tasks run on, the image can be restored still" hooks_that_fail
kill_workload

hooks_of_a_migration() {
	start_workload alpha dirty --mib 16 && runs_on || return 1
	all_hooks pre-dump pre-restore network-lock network-unlock post-dump network-switch pre-resume post-resume \
		post-restore
	move_workload beta "${hooks[@]}" && all_hooks_said "pre-dump pre-restore network-lock post-dump network-switch \
		pre-resume post-resume post-restore" && finish_workload
}
ok "hooks of a migration" hooks_of_a_migration
kill_workload

switch_fails() {
	local stage
	start_workload alpha dirty --mib 16 && runs_on || return 1
	for stage in pre-dump pre-restore network-lock post-dump network-switch pre-resume; do
		all_hooks network-switch network-unlock
		migrate alpha beta --pid "$wl_pid" "${hooks[@]}" --hook "$stage=exit 3" && return 1
		{ [ "$mig_status" = 1 ] && runs_on && gone_from beta; } || { say_migration; return 1; }
		case $stage in
		network-switch | pre-resume)
			grep -q "^network-switch $wl_pid 0" "$work/stages" &&
				grep -q "^network-switch $wl_pid 1" "$work/stages" &&
				grep -q "^network-unlock" "$work/stages" || return 1
			;;
		post-dump) grep -q "^network-unlock" "$work/stages" || return 1 ;;
		*) [ ! -s "$work/stages" ] || return 1 ;;
		esac
	done
	move_workload beta && finish_workload
}
ok "a hook that fails aborts a migration; what was switched is asked to be switched back" switch_fails
kill_workload

wrong_stage() {
	! silent_verb alpha dump --pid 1 --dir "$work/x" --hook post-restore=true && grep -q 'STAGE being one of pre-dump' "$work/out"
}
ok "a stage that never comes is refused" wrong_stage

# --- lazy restores ----------------------------------------------------------------------------------------

# Nothing is missing any more: who fetched has ended.
nobody_fetches() {
	# shellcheck disable=SC2016 # for the other shell
	! on beta sh -c 'for p in /proc/[0-9]*; do
		case "$(readlink "$p/exe")" in */cr-agent) tr "\0" " " <"$p/cmdline" ;; esac; done' | grep restore >/dev/null
}

lazily() {
	local image=$work/beta/lazy-$((++count))
	start_workload alpha "${workload[@]}" && runs_on || return 1
	verb alpha dump --pid "$wl_pid" --dir "$image" && gone_from alpha || return 1
	restored beta "$image" --lazy "$@" && grep -q 'to be fetched' "$work/out" &&
		until_true 30 nobody_fetches && finish_workload
}
count=0
for name in "dirty --mib 64 --rate 20" "threads --threads 8" forktree memory; do
	read -ra workload <<<"$name"
	ok "restored lazily from its directory: $name" lazily
	kill_workload
done

in_foreground() {
	local image=$work/beta/lazy-$((++count)) st
	start_workload alpha dirty --mib 32 && runs_on || return 1
	verb alpha dump --pid "$wl_pid" --dir "$image" && gone_from alpha || return 1
	touch "$wl_dir/stored"
	silent_verb beta restore --lazy --dir "$image" &
	wl_host=beta
	moved_to beta && finish_workload || return 1
	wait $!
	st=$?
	[ $st = 0 ] || { say_out; return 1; }
}
ok "restored lazily in the foreground: exits as the task does" in_foreground
kill_workload

# The small files are at beta, the pages at client, behind a page-server that serves them.
mkdir "$work/served" "$work/small"
serve_images() {
	start_server client --serve --listen client:7711 --dir "$work/served" --token-file "$work/token" "$@"
}
from_a_server() {
	local image=$work/served/remote-$((++count)) small=$work/small/remote-$count
	start_workload alpha "$@" && runs_on || return 1
	verb alpha dump --pid "$wl_pid" --dir "$image" && gone_from alpha || return 1
	mkdir "$small" && find "$image" -type f ! -name 'pages-*' -exec cp -t "$small" {} + || return 1
	restored beta "$small" --lazy=client:7711 --token-file "$work/token" || return 1
}
remotely_lazy() {
	from_a_server "$@" && until_true 30 nobody_fetches && finish_workload
}
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$work/token"
beta_server=$server
serve_images
for name in "dirty --mib 64 --rate 20" memory forktree; do
	read -ra workload <<<"$name"
	ok "restored lazily from a page-server: $name" remotely_lazy "${workload[@]}"
	kill_workload
done

# It is ended and started again while pages are missing: it was told to be slow.
server_restarts() {
	stop_server client && serve_images --max-bandwidth 10M && from_a_server dirty --mib 128 || return 1
	stop_server client && runs_on && serve_images && runs_on && until_true 60 nobody_fetches && finish_workload &&
		grep -q 'has all' "$server_log"
}
ok "the serving page-server is replaced while pages are missing" server_restarts
kill_workload

# What is missing would be taken for zeros.
refused_meanwhile() {
	local verb
	stop_server client && serve_images --max-bandwidth 2M && from_a_server dirty --mib 64 || return 1
	for verb in pre-dump "pre-dump --track" dump "dump --leave-running"; do
		# shellcheck disable=SC2086
		! silent_verb beta $verb --pid "$wl_pid" --dir "$work/early" && grep -q 'still to be fetched' "$work/out" || return 1
	done
	! migrate beta alpha --pid "$wl_pid" && [ "$mig_status" = 4 ] && grep -q 'still to be fetched' "$work/events" || return 1
	stop_server client && serve_images && runs_on && until_true 60 nobody_fetches && move_workload alpha && finish_workload
}
ok "while pages are missing it is neither dumped nor moved on" refused_meanwhile
kill_workload

refuses_to_be_written() {
	start_workload alpha dirty --mib 16 && runs_on || return 1
	! silent_verb alpha pre-dump --pid "$wl_pid" --page-server client:7711 --id x --token-file "$work/token" &&
		grep -q 'takes none' "$work/out" && runs_on && finish_workload
}
ok "a page-server that serves takes no images" refuses_to_be_written
kill_workload

wrong_image() {
	local image=$work/beta/lazy-1
	! silent_verb beta restore --detach --dir "$image" --lazy=client:7711 --token-file "$work/token" &&
		grep -q "page-server .*: " "$work/out" && gone_from beta
}
ok "an image that the page-server does not have" wrong_image
ok "the serving page-server ends cleanly" stop_server client
server=$beta_server

ok "the page-server ends cleanly" stop_server beta
done_testing
