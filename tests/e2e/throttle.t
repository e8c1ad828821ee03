#!/bin/bash
# --on-no-convergence throttle: tasks that write faster than is sent get less CPU time, for as long as the
# rounds take, whoever dies meanwhile.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"

root=$(awk '$3 == "cgroup" && $4 ~ /(^|,)cpu(,|$)/ && $2 !~ "^/run/testbed/" { print $2; exit }' /proc/mounts)
quota=cpu.cfs_quota_us
if [ -z "$root" ]; then
	root=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
	quota=cpu.max
	grep -qw cpu "$root/cgroup.subtree_control" || skip_all "no cgroups with the cpu controller"
fi
start_testbed
group=$root/throttle-$$

remove_group() {
	[ ! -d "$group" ] || rmdir "$group"
}
# after the testbed, which ends what is in it
trap 'clean_up_and_group' EXIT
clean_up_and_group() {
	local st=$?
	(exit $st)
	kill_workload
	until_true 5 remove_group 2>/dev/null
	clean_up
}

# start_in_group OPTS…: a workload that writes as fast as it can, alone in a cgroup that can be limited. It has to be
# faster than pages are sent, on a busy machine as well: they have --max-bandwidth.
start_in_group() {
	[ -d "$group" ] || mkdir "$group"
	start_workload alpha dirty --mib 96 --rate 20000 --incompressible || return 1
	[ "${1:-}" = outside ] || on alpha sh -c "echo $wl_pid >$group/cgroup.procs"
	was=$(<"$group/$quota")
	runs_on
}

limited() {
	[ "$(<"$group/$quota")" != "$was" ]
}

throttled_case() {
	start_in_group && move_workload beta --on-no-convergence throttle --downtime-limit 10ms --max-bandwidth 100M || return 1
	grep -q '"name":"throttle"' "$work/events" || { diag "was not slowed down"; say_migration; return 1; }
	grep -q 'does not converge, [0-9]* MB/s are written, [0-9]* MB/s are sent' "$work/events" || return 1
	! limited || { diag "the quota stayed: $(<"$group/$quota")"; return 1; }
	local first last
	first=$(jq -s 'map(select(.event == "round"))[0].pages_written' "$work/events")
	last=$(jq -s 'map(select(.event == "round"))[-1].pages_written' "$work/events")
	((last < first / 2)) || { diag "$first pages were written at first, $last at last"; return 1; }
	finish_workload
}
ok "slowed down until it converges, and given its time back" throttled_case
kill_workload

has_own_limit_case() {
	mkdir -p "$group"
	case $quota in
	cpu.max) echo "150000 100000" ;;
	*) echo 150000 ;;
	esac >"$group/$quota"
	throttled_case
}
ok "a quota that was there comes back" has_own_limit_case
kill_workload
remove_group

killed_case() {
	start_in_group || return 1
	# slow enough that nobody can miss it
	migrate alpha beta --pid "$wl_pid" --on-no-convergence throttle --downtime-limit 100us --max-bandwidth 100M &
	local mover=$!
	until_true 30 limited || { diag "never slowed down"; return 1; }
	case $1 in
	agent) "$testbed" agent alpha kill ;;
	# all of it but the one who watches
	worker)
		# shellcheck disable=SC2016
		on alpha sh -c 'kill -KILL $(pgrep -x cr-agent)'
		;;
	cr-migrate) kill -KILL "$(pgrep -f "^$build/cr-migrate --hosts $hosts_file --json" | head -n 1)" ;;
	esac
	wait "$mover"
	until_true 20 not_limited || { diag "the quota stayed: $(<"$group/$quota")"; return 1; }
	"$testbed" agent alpha restart
	runs_on && finish_workload
}
not_limited() {
	! limited
}
for who in cr-migrate agent worker; do
	ok "given its time back when $who is killed meanwhile" killed_case $who
	kill_workload
	remove_group
done

# Somebody else is in that cgroup, or it is the root.
shared_case() {
	start_in_group outside && move_workload beta --on-no-convergence throttle --downtime-limit 1ms || return 1
	grep -q '"warning".*cannot be slowed down' "$work/events" || { say_migration; return 1; }
	finish_workload
}
ok "a warning if the cgroup is not the tasks' own" shared_case
kill_workload
done_testing
