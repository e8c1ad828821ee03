#!/bin/bash
# The sources are formatted, layered and free of what the checkers find.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/.." || exit 1
# shellcheck source=tests/e2e/tap.sh
. tests/e2e/tap.sh
for step in format layers shell cppcheck; do
	out=$(tools/lint $step 2>&1)
	result $? "lint: $step"
	[ -z "$out" ] || diag "$out"
done
done_testing
