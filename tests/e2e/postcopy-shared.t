#!/bin/bash
# Hybrid and post-copy: shared anonymous memory stays behind as well, over several processes that have it
# mapped.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed
# shellcheck source=tests/e2e/fetched.sh
. "$e2e/fetched.sh"

for mode in hybrid postcopy; do
	for name in "shared" "shared --steady --pause-us 0" "shared --workers 0" "shared --mib 2 --workers 8" \
		"shared --workers 6 --pause-us 500" "shared --of memfd" "shared --of memfd --steady --pause-us 0" \
		"shared --of zero" "shared --of open-memfd" "shared --of removed" "shared --of removed --steady --pause-us 0" \
		"shared --of open-removed" "shared --mib 256 --one-in 16" "shared --mib 256 --one-in 16 --steady --pause-us 0" \
		"shared --mib 128 --one-in 50 --of removed" "shared --mib 128 --one-in 50 --of memfd"; do
		# shellcheck disable=SC2086
		ok "$mode: $name" fetched_case $mode $name
		kill_workload
	done
done

for name in "shared" "shared --steady"; do
	# shellcheck disable=SC2086
	ok "moved there, back, there and back again: $name" back_case $name
	kill_workload
done

# It does stay behind: in post-copy all of it, slowly, while the processes run.
behind_case() {
	start_workload alpha shared --mib 8 --pause-us 1000 --steady "$@" && runs_on || return 1
	move_workload beta --mode postcopy --max-bandwidth 4M && right || return 1
	local lazy
	lazy=$(postcopied .pages_lazy)
	((lazy >= 1800)) || { diag "$lazy pages of 2048 stayed behind"; return 1; }
	finish_workload
}
ok "postcopy: it stays behind" behind_case
kill_workload
for of in memfd zero removed; do
	ok "postcopy: it stays behind, of $of that was closed" behind_case --of $of
	kill_workload
done

# blocks HOST: what memory the object takes there, in units of 512 bytes; its holes take none.
blocks() {
	# shellcheck disable=SC2016
	on "$1" sh -c 'stat -Lc %b "/proc/$0/map_files/$(sed -n "s/^\($1-[^ ]*\) .*/\1/p" "/proc/$0/maps")"' \
		"$wl_pid" "$(<"$wl_dir/memory")"
}

fits() {
	((${1:-0} <= $2)) || { diag "$3: $1 blocks; at the source it were $2 at most"; return 1; }
}

# What is mostly holes takes no more memory at the destination than here, also while it is fetched.
holes_case() {
	local lazy had during
	start_workload alpha shared --of memfd --mib 256 --one-in 32 --workers 0 --pause-us 20000 && runs_on || return 1
	had=$(blocks alpha)
	migrate alpha beta --pid "$wl_pid" --mode "$1" --max-bandwidth "$2" &
	until_true 30 progress_is_from beta
	during=$(blocks beta)
	mig_status=0
	wait $! || mig_status=$?
	mig_done=$(tail -n 1 "$work/events")
	wl_host=beta
	if [ $mig_status != 0 ] || ! moved_to beta || ! right; then
		say_migration
		return 1
	fi
	lazy=$(postcopied .pages_lazy)
	((lazy >= had * $3 / 800)) || { diag "$lazy pages of $((had / 8)) stayed behind"; return 1; }
	# seldom it fills a hole
	fits "$during" $((had + 512)) "while it is fetched" && fits "$(blocks beta)" $((had + 512)) "afterwards" && finish_workload
}
ok "postcopy: what is mostly holes stays behind without them" holes_case postcopy 4M 90
kill_workload
ok "hybrid: what is mostly holes stays behind without them" holes_case hybrid 16M 0
kill_workload

# What has some holes only has them again in the end, also where the source tells which pages nobody has written (CLEAN):
# for that their mapping has to stay as it is.
few_holes_case() {
	local had
	start_workload alpha shared --of "$2" --mib 64 --workers 0 --pause-us 20000 --seldom 100000 && runs_on || return 1
	had=$(blocks alpha)
	((had < 126000)) || { diag "$had blocks of 131072: hardly a hole"; return 1; }
	move_workload beta --mode "$1" && right && fits "$(blocks beta)" $((had + 512)) "afterwards" && finish_workload
}
for of in memfd zero; do
	ok "hybrid: holes of $of are holes again" few_holes_case hybrid $of
	kill_workload
	ok "postcopy: holes of $of are holes again" few_holes_case postcopy $of
	kill_workload
done

# lazy_is_below N: so many pages have stayed behind, at most.
lazy_is_below() {
	local lazy
	lazy=$(postcopied .pages_lazy)
	((lazy < $1)) || { diag "$lazy pages stayed behind, not less than $1"; return 1; }
}

# read(2) would not wait for what is missing.
open_case() {
	start_workload alpha shared --mib 8 --pause-us 1000 --of open-memfd && runs_on || return 1
	move_workload beta --mode postcopy && right && lazy_is_below 1000 && finish_workload
}
ok "postcopy: what a descriptor leads to does not stay behind" open_case
kill_workload

# The destination was told that it stays behind. Right before the stop huge pages are asked for: then it may not.
stands_still() {
	# shellcheck disable=SC2016
	sleeper=$(on alpha sh -c 'for p in $(pgrep -x cr-agent); do grep -qs "^State:[[:space:]]*T" /proc/$p/status && echo $p; done')
	[ -n "$sleeper" ]
}

taken_back_case() {
	local st=0
	start_workload alpha shared --mib 8 --pause-us 1000 --steady && runs_on || return 1
	CR_FAULT=source-stopping:stop "$testbed" agent alpha restart
	migrate alpha beta --pid "$wl_pid" --mode "$1" &
	if until_true 30 stands_still; then
		touch "$wl_dir/advise"
		wait_for "$wl_dir/advised" 30 || st=1
		on alpha kill -CONT "$sleeper"
	else
		diag "the source's agent does not come there"
		st=1
	fi
	mig_status=0
	wait $! || mig_status=$?
	CR_FAULT='' "$testbed" agent alpha restart
	mig_done=$(tail -n 1 "$work/events")
	wl_host=beta
	if [ $st$mig_status != 00 ] || ! moved_to beta || ! right; then
		say_migration
		return 1
	fi
	lazy_is_below 1000 && finish_workload
}
for mode in postcopy hybrid; do
	ok "$mode: what stays behind is taken back if that changes before the stop" taken_back_case $mode
	kill_workload
done

# What pre-copy has brought, and nobody has written since, is not sent again.
unchanged_case() {
	start_workload alpha shared --mib 32 --workers 2 --pause-us 20000 && runs_on || return 1
	move_workload beta --mode hybrid && right && lazy_is_below 2000 && finish_workload
}
ok "hybrid: pages that were delivered and not written since are not sent again" unchanged_case
kill_workload

# Nor are they asked for, but in the first moments: that they are as they were is told before all that is pushed.
clean_case() {
	local clean faults
	start_workload alpha shared --mib 32 --workers 4 --pause-us 5000 && runs_on || return 1
	move_workload beta --mode hybrid --max-bandwidth 8M && right || return 1
	read -r clean faults < <(postcopied '| [.asked_clean, .faults] | @tsv')
	# nearly 1,000 pages are touched each second; pushed with the others, the last of them would come after four
	((clean < 200)) || { diag "$clean of $faults that were asked for had not been written: $mig_done"; return 1; }
	finish_workload
}
ok "hybrid: hardly any page is asked for that was not written since" clean_case
kill_workload

# Where the kernel tells which pages were written, the destination hears of it before it asks for any: only those
# are missing there, and asked for.
only_written_case() {
	local home=$1 mib=$2 part=$3 most clean lazy
	shift 3
	start_workload alpha partly --mib "$mib" --part "$part" "$@" && runs_on || return 1
	[ "$home" = alpha ] || move_workload beta || return 1
	move_workload "$(other "$home")" --mode hybrid --max-bandwidth 8M && right || return 1
	read -r clean lazy < <(postcopied '| [.asked_clean, .pages_lazy] | @tsv')
	most=$((mib * 256 / part + 500)) # of each process's own some are written, too
	((clean == 0 && lazy <= most)) || { diag "$clean were asked for that had not been written, $lazy of at most $most were missing: $mig_done"; return 1; }
	finish_workload
}
for name in "alpha 128 16 --workers 3" "alpha 64 8 --workers 0" "alpha 64 64 --workers 7 --pause-us 1000" "beta 64 16 --workers 3"; do
	# shellcheck disable=SC2086
	ok "hybrid: no page is asked for, or missing, that was not written since: from $name" only_written_case $name
	kill_workload
done
done_testing
