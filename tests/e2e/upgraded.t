#!/bin/bash
# Programs whose file was removed or replaced while they run, as by an upgrade of their package.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed
# shellcheck source=tests/e2e/steps.sh
. "$e2e/steps.sh"
built=$workloads

# start_copy NAME ARGS…: from a file of its own, $program. workloads: so that the library finds its processes.
start_copy() {
	local prog=$1
	shift
	new_dir "$prog"
	workloads=$wl_dir/bin program=$wl_dir/bin/$prog
	mkdir "$workloads"
	cp "$built/$prog" "$program"
	wl_host=alpha
	on alpha setsid "$program" "$@" --dir "$wl_dir" </dev/null >"$wl_dir/log" 2>&1
	workload_is_up "$prog" && runs_on
}

# Every process says at HOST that it runs from a file that is gone, which matches PATTERN, and the file is the program.
runs_from() {
	local pid link n=0
	for pid in $(workload_pids "$1"); do
		link=$(on "$1" readlink "/proc/$pid/exe")
		[ -n "$link" ] || continue # it has ended
		[[ $link =~ $2 ]] || { diag "process $pid runs from $link"; return 1; }
		n=$((n + 1))
		[ "$pid" = "$wl_pid" ] || continue
		on "$1" cmp "/proc/$pid/exe" "$built/$(basename "$program")" || return 1
		[ "$(on "$1" stat -Lc '%a %u %g' "/proc/$pid/exe")" = "755 0 0" ] || {
			diag "mode and owner: $(on "$1" stat -Lc '%a %u %g' "/proc/$pid/exe")"
			return 1
		}
	done
	[ $n -gt 0 ]
}

removed_case() {
	start_copy "$@" || return 1
	chmod 755 "$program"
	rm "$program"
	move_workload beta && runs_from beta "^$program \(deleted\)$" && [ ! -e "$program" ] &&
		move_workload alpha && runs_from alpha "^$program \(deleted\)$" && finish_workload
}
for name in regs "forktree --procs 6" "threads --threads 8" "creds --variant user" churn; do
	# shellcheck disable=SC2086
	ok "moved there and back, its program was removed: $name" removed_case $name
	kill_workload
done

# Another version has the name: it is left alone.
replaced_case() {
	start_copy "$@" || return 1
	echo another >"$program.new"
	mv "$program.new" "$program"
	move_workload beta && runs_from beta "^$wl_dir/bin/.* \(deleted\)$" && [ "$(<"$program")" = another ] &&
		move_workload alpha && runs_from alpha "^$wl_dir/bin/.* \(deleted\)$" && finish_workload
}
ok "moved there and back, its program was replaced" replaced_case forktree --procs 6
kill_workload

# Files never stay behind.
postcopy_case() {
	start_copy dirty --mib 16 --rate 20 && rm "$program" || return 1
	move_workload beta --mode postcopy && runs_from beta "^$program \(deleted\)$" && finish_workload
}
ok "moved by post-copy, its program was removed" postcopy_case
kill_workload

rehearsed_case() {
	start_copy forktree --procs 3 && rm "$program" || return 1
	rehearse_workload || return 1
	[ -z "$(find "$wl_dir/bin" -type f)" ] || { diag "left: $(find "$wl_dir/bin")"; return 1; }
	finish_workload
}
ok "nothing is left of it after a rehearsal" rehearsed_case
kill_workload

# The image has it.
image_case() {
	start_copy forktree --procs 4 && rm "$program" && verb alpha dump --pid "$wl_pid" --dir "$work/image" &&
		restored beta "$work/image" && runs_from beta "^$program \(deleted\)$" && finish_workload
}
ok "dumped and restored, its program was removed" image_case
kill_workload

# A program without any file: fexecve(3) of memory.
memory_case() {
	new_dir memory
	wl_host=alpha
	# shellcheck disable=SC2016
	on alpha setsid python3 -c 'import os, sys
m = os.memfd_create("program")
os.write(m, open(sys.argv[1], "rb").read())
r = os.open(f"/proc/self/fd/{m}", os.O_RDONLY)
os.close(m)
os.execve(r, ["regs", "--dir", sys.argv[2]], os.environ)' "$built/regs" "$wl_dir" </dev/null >"$wl_dir/log" 2>&1
	workload_is_up regs && runs_on || return 1
	migrate alpha beta --pid "$wl_pid" || { say_migration; return 1; }
	wl_host=beta
	until_true 20 progress_is_from beta && runs_on &&
		[ "$(on beta readlink "/proc/$wl_pid/exe")" = "/memfd:program (deleted)" ] && finish_workload
}
ok "moved: a program that runs from a memfd" memory_case
done_testing
