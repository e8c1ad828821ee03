#!/bin/bash
# Images that are damaged, cut off or newer, in any file: refused by name, and nothing of the attempt is left. And
# disks that are full: the dump fails and says so, the tasks run on.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed
# shellcheck source=tests/e2e/steps.sh
. "$e2e/steps.sh"
images=$work/images
mkdir "$images"

# --- damage -----------------------------------------------------------------------------------------------------

# What beta has that a restore might leave: processes, journals, cgroups, mounts.
traces() {
	# shellcheck disable=SC2016
	on beta sh -c 'for p in /proc/[0-9]*; do readlink "$p/exe"; done 2>/dev/null
		ls /tmp/one-shot 2>/dev/null; wc -l </proc/mounts' </dev/null | sort
	find /sys/fs/cgroup -path "*$TESTBED_NAME/beta*" -name 'cr-*' 2>/dev/null
}

# flip FILE OFFSET, set_byte FILE OFFSET OCTAL
flip() {
	perl -e 'open my $f, "+<", $ARGV[0] or die; seek $f, $ARGV[1], 0; read $f, my $c, 1; seek $f, $ARGV[1], 0;
		print $f chr(ord($c) ^ 4)' "$1" "$2"
}
set_byte() {
	# shellcheck disable=SC2059
	printf "\\$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

damage() {
	local how=$1 file=$2 size
	size=$(stat -c %s "$file")
	case $how in
	flipped) flip "$file" $((size * 2 / 3)) ;;
	flipped-page) flip "$file" "$(page_offset "$file")" ;;
	cut) truncate -s $((size / 2)) "$file" ;;
	empty) truncate -s 0 "$file" ;;
	longer) truncate -s $((size + 4096)) "$file" ;;
	newer) set_byte "$file" 4 2 ;;
	gone) rm "$file" ;;
	esac
}

# In the middle of a page that the image has.
page_offset() {
	local index=${1/pages-/index-} at
	at=$("$build/cr-image" show "$(dirname "$1")" "$(basename "$index")" |
		jq '.chunks | map(select(.data_pages != []))[-1] | .slot * 512 + .data_pages[-1][0]')
	echo $((at * 4096 + 2048))
}

# refused HOW FILE: by restore and cr-image, which name the file; nothing is left.
refused() {
	local how=$1 file=$2 bad=$images/bad st=0 before
	rm -rf "$bad"
	cp -a --sparse=always "$images/good" "$bad"
	damage "$how" "$bad/$file" || return 1
	before=$(traces)
	silent_verb beta restore --detach --dir "$bad" || st=$?
	{ [ $st = 1 ] && grep -q "$file" "$work/out"; } || { diag "exit status $st: $(cat "$work/out")"; return 1; }
	if [ "$how" = newer ]; then
		grep -q 'version 2 of the format' "$work/out" || say_out || return 1
	fi
	st=0
	"$build/cr-image" verify "$bad" >"$work/verify" 2>&1 || st=$?
	{ [ $st != 0 ] && grep -q "$file" "$work/verify"; } || { diag "verify: $st: $(cat "$work/verify")"; return 1; }
	is_as_before "$before"
}

is_as_before() {
	until_true 30 same_traces "$1" || { diag "before: $1" "now: $(traces)"; return 1; }
}
same_traces() {
	[ "$(traces)" = "$1" ]
}

make_good() {
	start_workload alpha forktree --mib 4 && runs_on && verb alpha dump --pid "$wl_pid" --dir "$images/good" && gone_from alpha
}
ok "an image of a tree" make_good
for file in manifest tree index-3 pages-3; do
	for how in flipped cut empty longer newer gone; do
		[ "$file" = "${file#pages}" ] || case $how in
			flipped) how=flipped-page ;;
			newer) continue ;; # it has no header
		esac
		ok "$file $how: refused by name, nothing is left" refused $how $file
	done
done
last_is_good() {
	restored beta "$images/good" && finish_workload
}
ok "and the image itself is restored after all that" last_is_good
kill_workload

# --- full disks -------------------------------------------------------------------------------------------------

small_disk() {
	on "$1" sh -c 'mkdir -p /tmp/small && mount -t tmpfs -o size=8m none /tmp/small'
}

# refused_for_space VERB ARGS…
fails_for_space() {
	local st=0
	silent_verb alpha "$@" --pid "$wl_pid" || st=$?
	{ [ $st = 1 ] && grep -qi 'no space left' "$work/out" && grep -q 'run on as before' "$work/out"; } || {
		diag "exit status $st: $(cat "$work/out")"
		return 1
	}
	runs_on
}

full_disk() {
	small_disk alpha && start_workload alpha dirty --mib 32 --incompressible && runs_on || return 1
	fails_for_space dump --dir /tmp/small/image && fails_for_space pre-dump --dir /tmp/small/image || return 1
	# what is left there is no image to restore
	silent_verb alpha restore --detach --dir /tmp/small/image && return 1
	grep -q 'not sealed\|no such\|No such' "$work/out" || say_out
}
ok "a full disk: dump and pre-dump fail and say so, the tasks run on" full_disk

room_again() {
	on alpha mount -o remount,size=200m /tmp/small && verb alpha dump --pid "$wl_pid" --dir /tmp/small/image &&
		gone_from alpha && on alpha "$build/cr-image" verify /tmp/small/image >/dev/null &&
		touch "$wl_dir/stored" && verb alpha restore --detach --dir /tmp/small/image && runs_on
}
ok "with room again the same dump succeeds, and is restored" room_again

full_remote_disk() {
	small_disk beta && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$work/token" &&
		start_server beta --listen "$("$testbed" addr beta):0" --dir /tmp/small --token-file "$work/token" || return 1
	fails_for_space dump --page-server "$server_address" --id web --token-file "$work/token" || return 1
	stop_server beta && finish_workload
}
ok "a full disk of a page-server elsewhere" full_remote_disk
kill_workload
done_testing
