#!/bin/bash
# A task dumps core while pages are missing: the core has them all, whatever else happens.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
case $(</proc/sys/kernel/core_pattern) in
[\|@/]* | */*) skip_all "cores are not files in the directory of who dumps them: core_pattern" ;;
esac
start_testbed
# shellcheck source=tests/e2e/breaks.sh
. "$e2e/breaks.sh"

# judged: what of the core is right, lacks, is wrong, in pages.
judged() {
	local -a cores=("$wl_dir"/core*)
	"$workloads/dumps" --check "${cores[0]}" "${wl_opts[@]}" --dir "$wl_dir"
}

# whole N: all N pages are in the core.
whole() {
	[ "$(judged)" = "$1 0 0" ] || { diag "of $1 pages right, lacking, wrong: $(judged)"; return 1; }
}

dumping() {
	on beta grep -q 'CoreDumping:[[:space:]]*1' "/proc/$wl_pid/status" 2>/dev/null
}

gone_from_beta() {
	gone_from beta >/dev/null
}

# begin_dump OPTS…: moved, and told to dump when most is missing.
begin_dump() {
	wl_opts=("$@")
	start_workload alpha dumps "$@" && runs_on && begin_slow || return 1
	wl_host=beta
	until_true 20 progress_is_from beta || { diag "not there: $(progress)"; return 1; }
	touch "$wl_dir/dump"
}

# Nothing is left over of what holds dumps back.
nobody_left() {
	! named cr-dumps >/dev/null
}

after_dump() {
	end_slow || { say_migration; return 1; }
	until_true 20 nobody_left || { diag "somebody still holds dumps"; return 1; }
}

# own_case PAGES OPTS…: the dump begins, waits, and has everything.
own_case() {
	local pages=$1
	shift
	{ begin_dump "$@" && until_true 20 dumping; } || { diag "no dump: $(tail -n 3 "$wl_dir/log")"; return 1; }
	(($(pages_left) > pages / 4)) || { diag "only $(pages_left) pages were missing"; return 1; }
	after_dump && until_true 20 gone_from_beta && whole "$pages"
}
SLOW=30mbit RATE=1G
ok "of a process" own_case 4096 --mib 16
kill_workload
ok "of one with eight threads, and shared memory" own_case 6144 --mib 16 --shared-mib 8 --threads 8
kill_workload

dumped_by_abort() {
	[ "$(cat "$wl_dir/dumped" 2>/dev/null)" = '6 1' ]
}

child_case() {
	{ begin_dump --child "$@" && until_true 60 dumped_by_abort; } || { diag "$(cat "$wl_dir/dumped")"; return 1; }
	after_dump && whole 6144 && runs_on && finish_workload
}
ok "of a child that was forked since" child_case --mib 16 --shared-mib 8
kill_workload

# It was not in that directory when it came.
watched() {
	local ino
	ino=$(printf 'ino:%x ' "$(stat -c %i "$1")")
	# shellcheck disable=SC2016
	on beta sh -c 'cat /proc/$1/fdinfo/*' fds "$(named cr-dumps)" 2>/dev/null | grep -q "^fanotify $ino"
}

elsewhere_case() {
	wl_opts=(--mib 16)
	start_workload alpha dumps "${wl_opts[@]}" --chdir && runs_on && begin_slow || return 1
	wl_host=beta
	until_true 20 progress_is_from beta || { diag "not there: $(progress)"; return 1; }
	{ mkdir "$wl_dir/other" && until_true 20 watched "$wl_dir/other"; } || { diag "it does not follow"; return 1; }
	touch "$wl_dir/dump"
	until_true 20 dumping || { diag "no dump"; return 1; }
	(($(pages_left) > 1024)) || { diag "only $(pages_left) pages were missing"; return 1; }
	after_dump && until_true 20 gone_from_beta && mv "$wl_dir"/other/core* "$wl_dir" && whole 4096
}
ok "of a process that has changed its directory" elsewhere_case
kill_workload

killed_case() {
	{ begin_dump --mib 16 --threads 2 && until_true 20 dumping; } || { diag "no dump"; return 1; }
	(($(pages_left) > 1024)) || { diag "only $(pages_left) pages were missing"; return 1; }
	{ on beta kill -KILL "$wl_pid" && until_true 5 gone_from_beta; } || { diag "it stays"; return 1; }
	after_dump
}
SLOW=4mbit
ok "SIGKILL ends it at once" killed_case
kill_workload

# Others open files there as ever, and nobody waits for one that is gone.
holder_case() {
	local right lacking wrong
	wl_opts=(--mib 16)
	start_workload alpha dumps "${wl_opts[@]}" && runs_on && begin_slow || return 1
	wl_host=beta
	until_true 20 progress_is_from beta || { diag "not there: $(progress)"; return 1; }
	[ "$1" = before ] || touch "$wl_dir/dump"
	[ "$1" = before ] || until_true 20 dumping || { diag "no dump"; return 1; }
	timeout 5 cat "$wl_dir/pid" >/dev/null || { diag "a file beside it cannot be read"; return 1; }
	on beta kill -KILL "$(named cr-dumps)" || return 1
	touch "$wl_dir/dump"
	until_true 5 gone_from_beta || { diag "it waits on"; return 1; }
	after_dump
	read -r right lacking wrong <<<"$(judged)"
	{ [ "$((right + lacking)) $wrong" = "4096 0" ] && ((lacking > 0)); } || { diag "$right right, $lacking lack, $wrong wrong"; return 1; }
}
ok "who holds it back is killed before: it has what had arrived" holder_case before
kill_workload
ok "who holds it back is killed meanwhile: it has what had arrived" holder_case meanwhile
kill_workload
supervisor_case() {
	SLOW=8mbit
	{ begin_dump --mib 16 --shared-mib 4 && until_true 20 dumping; } || { diag "no dump"; return 1; }
	{ strike supervisor && until_true 20 three_again; } || { diag "nobody takes over"; return 1; }
	dumping || { diag "it goes on"; return 1; }
	end_slow
	until_true 60 gone_from_beta && whole 5120 && until_true 20 nobody_left
}
ok "the supervisor is killed meanwhile" supervisor_case
kill_workload

lost_case() {
	local pages=$1 right lacking wrong
	shift
	SLOW=4mbit PATIENCE=2s
	{ begin_dump "$@" && until_true 20 dumping; } || { diag "no dump"; return 1; }
	"$testbed" link beta down
	end_slow
	"$testbed" link beta up
	until_true 30 gone_from_beta || { diag "it waits on"; return 1; }
	read -r right lacking wrong <<<"$(judged)"
	{ [ "$((right + lacking)) $wrong" = "$pages 0" ] && ((lacking > 0)); } || { diag "$right right, $lacking lack, $wrong wrong"; return 1; }
	until_true 20 nobody_left
}
ok "the source is lost: it ends, and lacks what is lost" lost_case 4096 --mib 16
kill_workload
ok "the source is lost, and shared memory: it ends, and lacks what is lost" lost_case 5120 --mib 16 --shared-mib 4
kill_workload

done_testing
