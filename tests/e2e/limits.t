#!/bin/bash
# The page-server among many: limits that hold, peers that mean no good, its options and signals.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed
# shellcheck source=tests/e2e/steps.sh
. "$e2e/steps.sh"
mkdir -m 777 "$work/images"
ip=$("$testbed" addr beta)
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$work/token"

to_server() {
	silent_verb alpha "$@" --pid "$wl_pid" --page-server "$server_address"
}

# --- who it is ----------------------------------------------------------------------------------------------

status_of() {
	on beta sed -n "s/^$1:[[:space:]]*//p" "/proc/$server/status"
}

as_nobody() {
	mkdir "$work/nobody" && chown nobody "$work/nobody" || return 1
	server_log=$work/server-beta.log
	: >"$server_log"
	# shellcheck disable=SC2016
	server=$(on beta sh -c 'log=$1; shift; setsid setpriv --reuid nobody --regid nogroup --clear-groups "$@" \
		</dev/null >>"$log" 2>&1 & echo $!' start "$server_log" "$build/page-server" --listen "$ip:0" \
		--dir "$work/nobody" --no-token)
	until_true 30 grep -q 'page streams on' "$server_log" || return 1
	server_address=$(sed -n 's/.*page streams on \([^,]*\),.*/\1/p' "$server_log")
	start_workload alpha dirty --mib 16 && runs_on || return 1
	to_server pre-dump --id web && to_server dump --id web && gone_from alpha || return 1
	restored beta "$work/nobody/web" && finish_workload && stop_server beta
}
ok "it takes images as an ordinary user" as_nobody
kill_workload

has_nothing() {
	start_server beta --listen "$ip:0" --dir "$work/images" --user nobody --token-file "$work/token" || return 1
	is "$(status_of CapEff) $(status_of CapPrm) $(status_of CapBnd)" \
		"0000000000000000 0000000000000000 0000000000000000" "started by root: no capability is left"
	is "$(status_of NoNewPrivs) $(status_of Seccomp) $(status_of Uid | cut -f1)" "1 2 $(id -u nobody)" \
		"nor other system calls, nor root"
	stop_server beta
}
has_nothing

cat >"$work/notify.py" <<'EOP'
import os, socket, subprocess, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
s.settimeout(10)
l = socket.socket()
l.bind(("127.0.0.1", 0))
l.listen()
r, w = os.pipe()
p = subprocess.Popen(["sh", "-c", 'LISTEN_PID=$$ exec "$0" --dir "$1" --status-fd 4 3<&%d 4>&%d' % (l.fileno(), w),
    sys.argv[2], sys.argv[3]], pass_fds=(l.fileno(), w),
    env={**os.environ, "NOTIFY_SOCKET": sys.argv[1], "LISTEN_FDS": "1"}, stderr=subprocess.DEVNULL)
os.close(w)
def said(what):
    while True:
        t = s.recv(1000).decode()
        if what in t:
            return
said("READY=1")
p.send_signal(1)
said("RELOADING=1")
said("READY=1")
p.send_signal(15)
said("STOPPING=1")
assert p.wait(10) == 0
lines = os.read(r, 10000).decode()
assert '"event":"ready","listen":"127.0.0.1:%d"' % l.getsockname()[1] in lines, lines
assert '"event":"stopping"' in lines, lines
print("ok")
EOP
notifies() {
	[ "$(on beta python3 "$work/notify.py" "$work/notify" "$build/page-server" "$work/images" 2>"$work/out")" = ok ] || say_out
}
ok "it takes a socket that is passed, and tells a service manager and --status-fd" notifies

# --- limits -------------------------------------------------------------------------------------------------

# fails_with TEXT: the last verb did, and the tasks run on
fails_with() {
	{ grep -q "$1" "$work/out" && runs_on; } || say_out
}

reloads() {
	printf '# for a test\nmax-disk = 4M\ntoken-file = %s\nno-sync\n' "$work/token" >"$work/config"
	start_server beta --listen "$ip:0" --dir "$work/images" --config "$work/config" || return 1
	start_workload alpha dirty --mib 16 && runs_on || return 1
	to_server dump --id disk --token-file "$work/token" && return 1
	fails_with 'disk limit (4194304 bytes) is reached' || return 1
	sed -i 's/4M/1G/' "$work/config"
	on beta kill -HUP "$server" && until_true 30 grep -q 'options read again' "$server_log" || return 1
	{ to_server dump --id disk --token-file "$work/token" && gone_from alpha; } || say_out || return 1
	echo nonsense >>"$work/config"
	on beta kill -HUP "$server" && until_true 30 grep -q 'all stays as it was' "$server_log" || return 1
	restored beta "$work/images/disk" && finish_workload && stop_server beta
}
ok "a full disk limit fails one dump; SIGHUP reads the file again" reloads
kill_workload

memory_limit() {
	start_server beta --listen "$ip:0" --dir "$work/images" --no-token --max-memory 1M || return 1
	start_workload alpha dirty --mib 16 && runs_on || return 1
	to_server dump --id memory && return 1
	fails_with 'memory limit (1048576 bytes) is reached' && stop_server beta && finish_workload
}
ok "a full memory limit fails the dump, and the tasks run on" memory_limit
kill_workload

full_disk() {
	mkdir "$work/tmpfs" && on beta mount -t tmpfs -o size=8M tmpfs "$work/tmpfs" || return 1
	start_server beta --listen "$ip:0" --dir "$work/tmpfs" --no-token || return 1
	start_workload alpha dirty --mib 64 --incompressible && runs_on || return 1
	to_server dump --id big && return 1
	fails_with 'No space left' && finish_workload || return 1
	on beta rm -r "$work/tmpfs/big"
	start_workload alpha dirty --mib 2 && to_server dump --id small && gone_from alpha &&
		restored beta "$work/tmpfs/small" && finish_workload && stop_server beta
}
ok "a full disk fails the dump; the next one fits" full_disk
kill_workload

# --- bandwidth ------------------------------------------------------------------------------------------------

# Dumps of incompressible memory, at the same time: MIB each. Sets took_ms.
timed_dumps() {
	local mib=$1 start id st=0
	local -a pids=() dirs=() jobs=()
	shift
	for id; do
		start_workload alpha dirty --mib "$mib" --incompressible && runs_on || return 1
		pids+=("$wl_pid") dirs+=("$wl_dir")
	done
	start=${EPOCHREALTIME/./}
	for id; do
		on alpha "$build/cr-agent" dump --pid "${pids[${#jobs[@]}]}" --page-server "$server_address" --id "$id" \
			--state "/tmp/$id" >"$work/$id.out" 2>&1 </dev/null &
		jobs+=($!)
	done
	for id in "${!jobs[@]}"; do
		wait "${jobs[id]}" || { diag "$(tail -n 3 "$work"/*.out)"; st=1; }
	done
	took_ms=$(((${EPOCHREALTIME/./} - start) / 1000))
	# only whether all came: restored elsewhere it is in other tests
	for id in "$@"; do
		on beta "$build/cr-image" verify "$work/images/$id" >"$work/out" || { say_out; st=1; }
	done
	return $st
}

# What a fifth less than the rate takes: the first moment's bytes are free.
bandwidth() {
	start_server beta --listen "$ip:0" --dir "$work/images" --no-token --max-bandwidth 8M || return 1
	timed_dumps 24 alone || return 1
	diag "24 MiB at 8 MiB/s: $took_ms ms"
	((took_ms >= 2400)) || return 1
	timed_dumps 16 both-1 both-2 || return 1
	diag "twice 16 MiB, together at 8 MiB/s: $took_ms ms"
	((took_ms >= 3200)) && stop_server beta
}
ok "--max-bandwidth holds, for all together" bandwidth
kill_workload

# It would take more than half a minute.
bandwidth_is_changed() {
	local dump start=$SECONDS
	printf 'no-token\nmax-bandwidth = 512K\n' >"$work/config"
	start_server beta --listen "$ip:0" --dir "$work/images" --config "$work/config" || return 1
	timed_dumps 24 faster &
	dump=$!
	until_true 30 test -s "$work/images/faster/pages-0" || return 1
	start=$SECONDS
	sed -i 's/512K/8Gbit/' "$work/config"
	on beta kill -HUP "$server" && until_true 30 grep -q 'options read again' "$server_log" || return 1
	wait $dump || return 1
	diag "after $((SECONDS - start)) s"
	((SECONDS - start < 30)) && stop_server beta
}
ok "SIGHUP changes it, also for what is under way" bandwidth_is_changed
kill_workload

# --- the end --------------------------------------------------------------------------------------------------

ended_half_way() {
	local dump
	start_server beta --listen "$ip:0" --dir "$work/images" --no-token --max-bandwidth 4M || return 1
	start_workload alpha dirty --mib 64 --incompressible && runs_on || return 1
	to_server dump --id ended &
	dump=$!
	until_true 20 test -s "$work/images/ended/pages-0" || return 1
	stop_server beta || return 1
	wait $dump && return 1
	fails_with 'is being stopped' || return 1
	# what had come is good to go on from
	start_server beta --listen "$ip:0" --dir "$work/images" --no-token && to_server dump --id ended &&
		gone_from alpha && restored beta "$work/images/ended" && finish_workload && stop_server beta
}
ok "SIGTERM in the middle of a dump: told, undone, gone on from" ended_half_way
kill_workload

# --- twenty at once ---------------------------------------------------------------------------------------------

cat >"$work/hostile.py" <<'EOP'
# ADDRESS SECONDS: everything that is wrong, over and over: noise, floods of connections, and a peer that knows what to say.
import os, random, struct, sys
from mallory import NO_TOKEN, Target, attack, frame, put
import mallory
target = Target(sys.argv[1], 5)
def hello():
    return mallory.hello(NO_TOKEN, os.urandom(16))
def image(name):
    return frame(put(40, put(1, name)))
last = None # half of them stay until the next has come
def say(what, hear=False):
    global last
    s = target.connect()
    s.sendall(what)
    if hear:
        s.recv(1000)
    last = s if random.random() < .5 else s.close()
def noise():
    say(mallory.noise())
def huge():
    say(struct.pack("<I", 0x7fffffff) + b"x" * 100)
def stream():
    say(b"CRPS" + os.urandom(200))
def peer_noise():
    say(hello() + frame(os.urandom(5000)))
def peer_tree():
    say(hello() + image(b"mallory%d" % random.randrange(5)) + frame(put(18, b"\x08\x02" + put(2, os.urandom(3000)))), True)
def peer_path():
    say(hello() + image(random.choice([b"../../etc", b"/tmp/x", b".", b"a/b", b"x" * 5000])), True)
def peer_length():
    say(hello() + struct.pack("<I", 500 << 20) + b"y" * 300000)
def flood():
    held = []
    try:
        for _ in range(150):
            held.append(target.connect())
    finally:
        for h in held:
            h.close()
attack(float(sys.argv[2]), [noise, huge, stream, peer_noise, peer_tree, peer_path, peer_length, flood])
EOP

one_of_many() {
	local i=$1 pid=$2 verb slow=
	[ "$i" != 7 ] || slow="--max-bandwidth 100K" # it would take minutes: so it is under way when it dies
	for verb in "pre-dump --track $slow" dump; do
		# shellcheck disable=SC2086
		on alpha "$build/cr-agent" $verb --pid "$pid" --page-server "$server_address" --id "many-$i" --streams 1 \
			--state "/tmp/many-$i" >>"$work/many-$i.out" 2>&1 </dev/null || return 1
	done
}

twenty_at_once() {
	local -a pids=() dirs=() jobs=()
	local i mallory dying st=0
	start_server beta --listen "$ip:0" --dir "$work/images" --no-token --max-memory 96M --max-connections 128 \
		--max-half-open 32 || return 1
	for i in {1..19}; do
		start_workload alpha dirty --mib 8 --rate 1 --incompressible || return 1
		pids[i]=$wl_pid
		dirs[i]=$wl_dir
	done
	hostile client "$server_address" 25 &
	mallory=$!
	for i in {1..19}; do
		one_of_many "$i" "${pids[i]}" &
		jobs[i]=$!
	done
	# The one that dies: its engine, in the middle, with all that belongs to it.
	until_true 60 test -d "$work/images/many-7" || st=1
	# shellcheck disable=SC2016
	dying=$(on alpha sh -c 'for p in /proc/[0-9]*; do
		{ tr "\0" " " <"$p/cmdline"; } 2>/dev/null | grep -q "id many-7 .*many-7" && echo "${p#/proc/}"; done')
	# shellcheck disable=SC2086
	on alpha kill -KILL $dying 2>/dev/null
	for i in {1..19}; do
		if wait "${jobs[i]}"; then
			[ "$i" != 7 ] || { diag "many-7 was not stopped half way"; st=1; }
		elif [ "$i" != 7 ]; then
			diag "many-$i: $(tail -n 2 "$work/many-$i.out")"
			st=1
		fi
	done
	wait $mallory
	diag "page-server: $(status_of VmHWM) at the most; $(grep -c . "$server_log") lines in its log"
	[ "$(status_of VmHWM | tr -dc 0-9)" -lt $((120 * 1024)) ] || st=1
	for i in {1..19}; do
		wl_pid=${pids[i]} wl_dir=${dirs[i]}
		if [ "$i" = 7 ]; then
			# the next call settles what was left
			wl_host=alpha
			{ on alpha "$build/cr-agent" pre-dump --pid "$wl_pid" --dir "$work/seven" --state /tmp/many-7 \
				>"$work/out" 2>&1 && runs_on && finish_workload; } || { say_out; st=1; }
			continue
		fi
		touch "$wl_dir/stored"
		{ verb beta restore --detach --dir "$work/images/many-$i" && until_true 30 progress_is_from beta && runs_on &&
			finish_workload; } || { diag "many-$i"; st=1; }
	done
	[ -z "$(find "$work/images" -path '*etc*')" ] || st=1
	stop_server beta || st=1
	return $st
}
ok "twenty at once: one hostile, one dies; all others are right, and memory is bounded" twenty_at_once
kill_workload
done_testing
