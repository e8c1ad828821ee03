# shellcheck shell=bash
# TAP from bash: `ok DESCRIPTION CMD…` passes when CMD succeeds; end with `done_testing`.
tap_count=0
tap_failed=0

# result STATUS DESCRIPTION
result() {
	tap_count=$((tap_count + 1))
	if [ "$1" = 0 ]; then
		echo "ok $tap_count - $2"
	else
		echo "not ok $tap_count - $2"
		tap_failed=$((tap_failed + 1))
	fi
}

# CASES=REGEX: only those that it matches.
ok() {
	local what=$1 st=0
	shift
	[[ $what =~ ${CASES:-} ]] || return 0
	"$@" || st=$?
	result $st "$what"
}

# is GOT EXPECTED DESCRIPTION
is() {
	local st=0
	[ "$1" = "$2" ] || st=1
	result $st "$3"
	[ $st = 0 ] || diag "got: $1" "expected: $2"
}

isnt() {
	local st=0
	[ "$1" != "$2" ] || st=1
	result $st "$3"
	[ $st = 0 ] || diag "got: $1"
}

diag() {
	printf '%s\n' "$@" | sed 's/^/# /'
}

# A whole file of tests that cannot run here.
skip_all() {
	echo "1..0 # SKIP $1"
	exit 0
}

done_testing() {
	echo "1..$tap_count"
	[ $tap_failed = 0 ]
}
