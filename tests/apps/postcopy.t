#!/bin/bash
# Each of the real programs once more, moved by --mode hybrid and by --mode postcopy.
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=tests/e2e/tap.sh
. "$here/../e2e/tap.sh"

moved() {
	local out
	out=$(timeout 300 "$here/$2.t" --mode "$1" 2>&1) && ! grep -q '^not ok' <<<"$out" && return 0
	diag "$(tail -n 30 <<<"$out")"
	return 1
}

for app in redis memcached nginx postgresql sqlite node asyncio go java tmux; do
	for mode in hybrid postcopy; do
		ok "$app: $mode" moved $mode $app
	done
done
done_testing
