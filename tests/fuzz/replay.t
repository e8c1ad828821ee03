#!/bin/bash
# Every input that the fuzzers have kept, under ASan and UBSan: none crashes, hangs or leaks any more.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.." || exit 1
# shellcheck source=tests/e2e/tap.sh
. tests/e2e/tap.sh
programs=${CR_FUZZ:-build-asan/tests/fuzz}
export UBSAN_OPTIONS=print_stacktrace=1
out=$(mktemp)
trap 'rm -f "$out"' EXIT

replay() {
	timeout 120 "$programs/fuzz_$1" "tests/fuzz/corpus/$1" >"$out" 2>&1 && return
	diag "$(grep -v '^# ' "$out" | head -n 30)" "the input: $(grep '^# ' "$out" | tail -n 1)"
	return 1
}

for source in tests/fuzz/fuzz_*.c; do
	target=$(basename "$source" .c)
	ok "the corpus of ${target#fuzz_}" replay "${target#fuzz_}"
done
done_testing
