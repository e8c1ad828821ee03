#!/bin/bash
# A task dumps core while pages are missing: the core has them all, whatever else happens.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
# It is the whole machine's: no test writes it meanwhile.
exec {pattern_fd}</proc/sys/kernel/core_pattern
flock -s "$pattern_fd"
pattern=$(</proc/sys/kernel/core_pattern)
case $pattern in
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
lacks_some() {
	local right lacking wrong
	read -r right lacking wrong <<<"$(judged)"
	{ [ "$((right + lacking)) $wrong" = "$1 0" ] && ((lacking > 0)); } || { diag "$right right, $lacking lack, $wrong wrong"; return 1; }
}

opens() {
	timeout 10 cat "$wl_dir/pid" >/dev/null || { diag "a file beside a core cannot be read"; return 1; }
}

meanwhile_case() {
	{ begin_dump --mib 16 && until_true 20 dumping; } || { diag "no dump"; return 1; }
	opens && on beta kill -KILL "$(named cr-dumps)" || return 1
	until_true 5 gone_from_beta || { diag "it waits on"; return 1; }
	after_dump && lacks_some 4096
}
ok "who holds it back is killed meanwhile: it has what had arrived" meanwhile_case
kill_workload

# another_than PID: there is another who looks after the directory.
another_than() {
	local now
	now=$(named cr-dumps) && [ "$now" != "$1" ] && watched "$wl_dir"
}

# begin_struck SIGNAL: who holds dumps back gets it, and another one takes its place.
begin_struck() {
	local first said
	first=$(named cr-dumps) || return 1
	said=$(grep -c 'the holder of dumps .*: core dumps of now lack' "$state/beta/agent.log")
	on beta kill "-$1" "$first" && opens || return 1
	until_true 10 another_than "$first" || { diag "no other after $first: $(named cr-dumps)"; return 1; }
	(($(grep -c 'the holder of dumps .*: core dumps of now lack' "$state/beta/agent.log") == said + 1)) || { diag "not said"; return 1; }
}

begin_held() {
	wl_opts=(--mib 16)
	start_workload alpha dumps "${wl_opts[@]}" && runs_on && begin_slow || return 1
	wl_host=beta
	until_true 20 progress_is_from beta || { diag "not there: $(progress)"; return 1; }
	until_true 20 watched "$wl_dir" || { diag "nobody holds dumps"; return 1; }
}

held_on() {
	touch "$wl_dir/dump"
	until_true 20 dumping || { diag "no dump"; return 1; }
	(($(pages_left) > 256)) || { diag "only $(pages_left) pages were missing"; return 1; }
	after_dump && until_true 20 gone_from_beta && whole 4096
}

another_case() {
	begin_held && begin_struck "$1" && held_on
}
for signal in KILL STOP; do
	ok "who holds it back gets SIG$signal: nobody waits for that, and another takes its place" another_case "$signal"
	kill_workload
done

nobody_is() {
	! on beta kill -0 "$1" 2>/dev/null
}

# The one that was stopped is ended.
stopped_meanwhile_case() {
	local first
	{ begin_held && touch "$wl_dir/dump" && until_true 20 dumping; } || { diag "no dump"; return 1; }
	first=$(named cr-dumps) && on beta kill -STOP "$first" && opens || return 1
	until_true 5 gone_from_beta || { diag "it waits on"; return 1; }
	until_true 5 nobody_is "$first" || { diag "$first is still there"; return 1; }
	after_dump && lacks_some 4096
}
ok "who holds it back gets SIGSTOP meanwhile: it has what had arrived" stopped_meanwhile_case
kill_workload

keeper_sees_case() {
	begin_held && strike supervisor && until_true 20 three_again && begin_struck STOP && held_on
}
ok "the supervisor is killed, and who holds it back gets SIGSTOP" keeper_sees_case
kill_workload

nobody_holds() {
	! named cr-dumps >/dev/null && grep -q 'no other takes its place' "$state/beta/agent.log"
}

too_often_case() {
	begin_held && begin_struck KILL && begin_struck KILL && begin_struck KILL || return 1
	on beta kill -KILL "$(named cr-dumps)" || return 1
	until_true 10 nobody_holds || { diag "another one"; return 1; }
	touch "$wl_dir/dump"
	until_true 5 gone_from_beta || { diag "it waits on"; return 1; }
	after_dump && lacks_some 4096
}
ok "who holds it back is killed four times: dumps go on as they are" too_often_case
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
	local pages=$1
	shift
	SLOW=4mbit PATIENCE=2s
	{ begin_dump "$@" && until_true 20 dumping; } || { diag "no dump"; return 1; }
	"$testbed" link beta down
	end_slow
	"$testbed" link beta up
	until_true 30 gone_from_beta || { diag "it waits on"; return 1; }
	lacks_some "$pages" && until_true 20 nobody_left
}
ok "the source is lost: it ends, and lacks what is lost" lost_case 4096 --mib 16
kill_workload
ok "the source is lost, and shared memory: it ends, and lacks what is lost" lost_case 5120 --mib 16 --shared-mib 4
kill_workload

# --- a program takes them -------------------------------------------------------------------------------

# Executed by the kernel, for whoever dumps on this machine. The core is where it would be without it.
cat >"$work/take" <<'EOF'
#!/bin/sh
case $(readlink "/proc/$1/exe") in
*/workload/dumps) ;;
*) exit ;;
esac
dir=$(readlink "/proc/$1/cwd")
cat >"$dir/taken" && mv "$dir/taken" "$dir/core"
EOF
chmod 755 "$work/take"

take_cores() {
	flock -x "$pattern_fd"
	setsid "$e2e/cores.py" "|$work/take %P" $$ >"$work/cores" 2>"$work/cores.log" &
	setter=$!
	until_true 10 grep -q set "$work/cores"
}
take_cores || {
	diag "core_pattern cannot be written: $(tail -n 1 "$work/cores.log")"
	done_testing
	exit
}

taken() {
	until_true 20 test -e "$wl_dir/core"
}

piped_case() {
	local pages=$1
	shift
	{ begin_dump "$@" && until_true 20 dumping; } || { diag "no dump: $(tail -n 3 "$wl_dir/log")"; return 1; }
	(($(pages_left) > pages / 4)) || { diag "only $(pages_left) pages were missing"; return 1; }
	after_dump && until_true 20 gone_from_beta && taken && whole "$pages"
}
SLOW=30mbit RATE=1G PATIENCE=''
ok "a program takes it: of a process" piped_case 4096 --mib 16
kill_workload
ok "a program takes it: of one with eight threads, and shared memory" piped_case 6144 --mib 16 --shared-mib 8 --threads 8
kill_workload

piped_child_case() {
	{ begin_dump --child "$@" && until_true 60 dumped_by_abort; } || { diag "$(cat "$wl_dir/dumped")"; return 1; }
	after_dump && taken && whole 6144 && runs_on && finish_workload
}
ok "a program takes it: of a child that was forked since" piped_child_case --mib 16 --shared-mib 8
kill_workload

# While none of ours dumps, nobody waits.
others_case() {
	begin_held_by_program || return 1
	# shellcheck disable=SC2016
	timeout 5 bash -c 'kill -ABRT $$'
	[ $? = 134 ] || { diag "a dump of another waits"; return 1; }
	touch "$wl_dir/dump"
	until_true 20 dumping || { diag "no dump"; return 1; }
	after_dump && until_true 20 gone_from_beta && taken && whole 4096
}

# The pattern was another one when the tasks came.
begin_held_by_program() {
	wl_opts=(--mib 16)
	kill -TERM "$setter" && wait "$setter"
	start_workload alpha dumps "${wl_opts[@]}" && runs_on && begin_slow || return 1
	wl_host=beta
	until_true 20 progress_is_from beta || { diag "not there: $(progress)"; return 1; }
	{ take_cores && until_true 20 watched "$work/take"; } || { diag "nobody looks after the program"; return 1; }
}
SLOW=8mbit
ok "a program takes it, from now on; dumps of others go on" others_case
kill_workload

piped_killed_case() {
	{ begin_dump --mib 16 && until_true 20 dumping; } || { diag "no dump"; return 1; }
	on beta kill -KILL "$(named cr-dumps)" || return 1
	until_true 5 gone_from_beta || { diag "it waits on"; return 1; }
	after_dump && taken && lacks_some 4096
}
SLOW=4mbit
ok "a program takes it, and who holds it back is killed: it has what had arrived" piped_killed_case
kill_workload

restored() {
	kill -TERM "$setter" && wait "$setter"
	[ "$(</proc/sys/kernel/core_pattern)" = "$pattern" ]
}
ok "core_pattern is what it was" restored

done_testing
