#!/bin/bash
# The demo, as a reader of the README runs it.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/.." || exit 1
# shellcheck source=tests/e2e/tap.sh
. tests/e2e/tap.sh
[ "$(id -u)" = 0 ] || skip_all "needs root"
out=$(tools/demo 2>&1)
result $? "a Redis under load moves from alpha to beta"
diag "$out"
done_testing
