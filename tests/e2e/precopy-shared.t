#!/bin/bash
# Shared memory in pre-copy mode: what is sent of it, and when.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed

# round N FILTER: what jq(1) says of it.
round() {
	jq -e ".rounds[$(($1 - 1))] | $2" <<<"$mig_done" >"$work/jq" ||
		{ diag "$(jq -c .rounds <<<"$mig_done")"; return 1; }
}

# Digests of it are kept from the first round on, whatever private memory has taken of the room for them.
sent_once() {
	start_workload alpha dirty --shared --mib 64 && runs_on && move_workload beta || return 1
	round 1 '.pages_sent >= 16384' && round 2 '.pages_sent < 1000' && finish_workload
}
ok "what is shared and not written is sent once" sent_once
kill_workload
done_testing
