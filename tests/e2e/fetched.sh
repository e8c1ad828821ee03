# shellcheck shell=bash
# shellcheck disable=SC2154 # those of lib.sh
# What tests of fetching shared memory share, besides lib.sh: moves of which nothing is lost, or asked for twice.
#
#   right                          so it was with the last move
#   fetched_case MODE NAME OPTS…   a workload moves
#   back_case NAME OPTS…           there, back, there and back again, in each mode

: "${work:?is of lib.sh: start_testbed comes first}"

right() {
	[ "$(postcopied '| [.lost, .asked_again, .reconnects] | @text')" = '[0,0,0]' ] || { diag "$mig_done"; return 1; }
}

fetched_case() {
	local mode=$1
	shift
	start_workload alpha "$@" && runs_on && move_workload beta --mode "$mode" && right && finish_workload
}

back_case() {
	start_workload alpha "$@" && runs_on && move_workload beta --mode postcopy && right &&
		move_workload alpha --mode hybrid && right && move_workload beta --mode hybrid && right &&
		move_workload alpha && finish_workload
}
