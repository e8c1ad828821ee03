#!/bin/bash
# Hybrid and post-copy: shared huge pages to which no descriptor leads stay behind as well, over several
# processes that have them mapped.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
# shellcheck source=tests/e2e/pool.sh
. "$e2e/pool.sh"
take_pool 48 # 16 for either host; what a task has removed is reserved for nobody
# shellcheck source=tests/e2e/breaks.sh
. "$e2e/breaks.sh"
# shellcheck source=tests/e2e/fetched.sh
. "$e2e/fetched.sh"

for mode in hybrid postcopy; do
	for name in "shared --of huge" "shared --of huge --steady --pause-us 0" "shared --of huge --workers 0" \
		"shared --of huge --mib 4 --workers 8" "shared --of huge-memfd --pause-us 500" \
		"shared --of huge-memfd --steady" "shared --of open-huge-memfd"; do
		# shellcheck disable=SC2086
		ok "$mode: $name" fetched_case $mode $name
		kill_workload
	done
done

for name in "shared --of huge" "shared --of huge-memfd --steady"; do
	# shellcheck disable=SC2086
	ok "moved there, back, there and back again: $name" back_case $name
	kill_workload
done

# lazy_is BETWEEN AND: so many pages have stayed behind.
lazy_is() {
	local lazy
	lazy=$(postcopied .pages_lazy)
	((lazy >= $1 && lazy < $2)) || { diag "$lazy pages stayed behind, not $1 to $2"; return 1; }
}

# In post-copy all of it, slowly, while the processes run.
behind_case() {
	start_workload alpha shared --mib 8 --pause-us 1000 --steady "$@" && runs_on || return 1
	move_workload beta --mode postcopy --max-bandwidth 4M && right && lazy_is 1800 5000 && finish_workload
}
for of in huge huge-memfd; do
	ok "postcopy: it stays behind, --of $of" behind_case --of $of
	kill_workload
done

# Slowly pushed, so that they have not arrived when the tasks want them.
absent_case() {
	local absent of all
	start_workload alpha huge_absent --shared && runs_on || return 1
	migrate alpha beta --pid "$wl_pid" --mode postcopy --max-bandwidth 4M || { say_migration; return 1; }
	wl_host=beta
	wait_for "$wl_dir/absent" 40 || { diag "$(result_text)" "$(tail -n 3 "$wl_dir/log")"; return 1; }
	read -r absent of all <"$wl_dir/absent"
	((absent >= all * 3 / 4)) || { diag "in $absent $of $all steps only pages were missing"; return 1; }
	right && finish_workload
}
ok "postcopy: what a task may do with them while they are missing" absent_case
kill_workload

# read(2) would not wait for what is missing.
open_case() {
	start_workload alpha shared --mib 8 --pause-us 1000 --of open-huge-memfd && runs_on || return 1
	move_workload beta --mode postcopy && right && lazy_is 0 1000 && finish_workload
}
ok "postcopy: what a descriptor leads to does not stay behind" open_case
kill_workload

# What pre-copy has brought, and nobody has written since, is not sent again: told by pages of 4 KiB.
unchanged_case() {
	start_workload alpha shared --of huge --mib 32 --workers 2 --pause-us 20000 && runs_on || return 1
	move_workload beta --mode hybrid && right && lazy_is 1 2000 && finish_workload
}
ok "hybrid: pages that were delivered and not written since are not sent again" unchanged_case
kill_workload

# --- something breaks ------------------------------------------------------------------------------------

RATE=1G SLOW=8mbit SLOWER=2mbit
for name in "shared --of huge --steady --pause-us 1000" "shared --of huge-memfd --pause-us 2000"; do
	# shellcheck disable=SC2086
	ok "the fetcher is killed five times: $name" struck_case fetcher 5 $name
	kill_workload
	# shellcheck disable=SC2086
	ok "supervisor and fetcher are killed at once, three times: $name" struck_case "supervisor fetcher" 3 $name
	kill_workload
done
ok "the source's page-server is killed five times" server_case alpha shared --of huge --pause-us 2000
kill_workload
SLOWER=''
ok "the link is cut and restored ten times" cut_case shared --of huge --steady --pause-us 2000
kill_workload
SLOW=4mbit
ok "the source's worker is killed" source_worker_case shared --of huge --pause-us 2000
kill_workload
ok "cr-migrate is killed" cli_case shared --of huge --pause-us 2000
kill_workload

lost_said() {
	grep -q 'pages are lost with the source' "$state/beta/agent.log"
}

nobody_fetches() {
	! named cr-fetcher >/dev/null
}

lost_case() {
	local lost all
	: >"$state/beta/agent.log"
	start_workload alpha shared --of huge --pause-us 500 --bus && runs_on || return 1
	PATIENCE=2s begin_slow || { say_migration; return 1; }
	wl_host=beta
	until_true 20 progress_is_from beta || { diag "not there: $(progress)"; return 1; }
	"$testbed" agent alpha kill
	# shellcheck disable=SC2016
	on alpha sh -c 'kill -KILL $(pgrep -x cr-agent) $(pgrep -x shared)' 2>/dev/null
	end_slow
	until_true 30 lost_said || { diag "$(tail -n 5 "$state/beta/agent.log")"; return 1; }
	{ runs_on && strike fetcher && until_true 10 three_again && runs_on && finish_workload; } || {
		diag "$(tail -n 5 "$state/beta/agent.log")"
		return 1
	}
	lost=$(<"$wl_dir/lost") all=$(postcopied .lost)
	# whole ones, in status and warning; what has been removed since is not lost any more
	{ [ "$mig_status" = 5 ] && ((all > 0 && all % 512 == 0 && lost > 0 && lost <= all)); } || {
		diag "exit $mig_status, $all pages lost; SIGBUS for $lost"
		return 1
	}
	until_true 20 nobody_fetches || { diag "$(on beta ps -e -o pid,comm | grep cr-)"; return 1; }
}
SLOW=8mbit
ok "the source is lost: SIGBUS for whole huge pages of which something is missing, all else is right" lost_case
kill_workload
"$testbed" agent alpha restart

ok "none is left behind" until_true 30 all_free
done_testing
