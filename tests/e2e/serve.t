#!/bin/bash
# A page-server that gives images out (--serve): what it may do, and peers that mean no good.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed
# shellcheck source=tests/e2e/steps.sh
. "$e2e/steps.sh"
ip=$("$testbed" addr client)
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$work/token"

status_of() {
	on client sed -n "s/^$1:[[:space:]]*//p" "/proc/$server/status"
}

# An image that nobody's own page-server has taken, its small files where it will be restored.
image=$work/images/web small=$work/small/web
taken() {
	mkdir -m 777 "$work/images" && mkdir -p "$small" || return 1
	start_server client --listen "$ip:0" --dir "$work/images" --user nobody --token-file "$work/token" &&
		start_workload alpha dirty --mib 48 --rate 20 && runs_on || return 1
	verb alpha dump --pid "$wl_pid" --page-server "$server_address" --id web --token-file "$work/token" && gone_from alpha && first_progress=$(progress) &&
		stop_server client && find "$image" -type f ! -name 'pages-*' -exec cp -t "$small" {} +
}
ok "an image is taken by a page-server that runs as nobody" taken

find "$image" -type f -exec sha1sum {} + | sort >"$work/before"
start_server client --serve --listen "$ip:0" --dir "$work/images" --user nobody --token-file "$work/token" --max-memory 32M \
	--max-connections 64 --max-half-open 16 || exit 1
is "$(status_of CapEff) $(status_of CapPrm) $(status_of CapBnd)" "0000000000000000 0000000000000000 0000000000000000" \
	"one that gives it out, started by root, has no capability"
is "$(status_of NoNewPrivs) $(status_of Seccomp) $(status_of Uid | cut -f1)" "1 2 $(id -u nobody)" \
	"nor other system calls, nor root"
filters() {
	local t n=0
	for t in $(on client ls "/proc/$server/task"); do
		[ "$(on client sed -n 's/^Seccomp:[[:space:]]*//p' "/proc/$server/task/$t/status")" = 2 ] || return 1
		n=$((n + 1))
	done
	[ $n -gt 0 ]
}
ok "so it is with each of its threads" filters

# --- hostile ------------------------------------------------------------------------------------------------

cat >"$work/hostile.py" <<'EOP'
# ADDRESS SECONDS TOKEN ID: strangers, and one who has the token and knows the image.
import os, random, struct, sys
from mallory import Target, attack, frame, length, put
import mallory
connect = Target(sys.argv[1], 2).connect
token, ident = bytes.fromhex(sys.argv[3]), bytes.fromhex(sys.argv[4])
def hello(t=token, i=ident):
    return mallory.hello(t, i)
def lazy(kind, name, pair):
    return frame(put(33, b"\x08" + bytes([kind]) + put(180, name) + length(181 << 3 | 1) + struct.pack("<Q", pair)))
def frames(s, n):
    for _ in range(n):
        b = b""
        while len(b) < 4:
            got = s.recv(4 - len(b))
            if not got:
                return False
            b += got
        n = struct.unpack("<I", b)[0]
        while n:
            got = s.recv(n)
            if not got:
                return False
            n -= len(got)
    return True
def head(kind, pid, n, addr, payload, magic=0x31595a4c):
    return struct.pack("<IBBHIIQQII", magic, kind, 0, 0, pid, n, addr, 0, payload, 0)
def served(kinds=(1, 2)):
    pair = random.getrandbits(64)
    socks = []
    for k in kinds:
        s = connect()
        s.sendall(hello() + lazy(k, b"web", pair))
        frames(s, 2)
        socks.append(s)
    return socks
def noise():
    connect().sendall(mallory.noise())
def no_token():
    s = connect(); s.sendall(hello(os.urandom(32)) + lazy(1, b"web", 1)); s.recv(1000)
def names():
    s = connect()
    s.sendall(hello() + lazy(1, random.choice([b"../../etc", b"/etc", b".", b"", b"a/b", b"x" * 4000, b"nothing"]), 1))
    s.recv(1000)
def stale():
    s = connect(); s.sendall(hello(i=os.urandom(16)) + lazy(1, b"web", 1)); s.recv(1000)
def kinds():
    s = connect(); s.sendall(hello() + lazy(random.choice([0, 3, 100]), b"web", 1)); s.recv(1000)
def half():
    served((random.choice([1, 2]),))
def twice():
    served((1, 1)); served((2, 2))
def other_words():
    s = connect()
    s.sendall(hello() + frame(random.choice([put(40, put(1, b"mine")), put(18, b"\x08\x02"), os.urandom(3000)])))
    s.recv(1000)
def requests():
    s, bulk = served()
    for _ in range(random.randrange(20)):
        s.sendall(random.choice([
            head(4, random.getrandbits(16), random.randrange(1, 65), random.getrandbits(47) & ~4095, 0),
            head(4, 1, 1, 0x7ffffffff000, 0), head(4, 1, 65, 0, 0), head(4, 1, 0, 4096, 0),
            head(2, 1, 1, 0, 72) + struct.pack("<Q", random.getrandbits(40) << 21) + b"\xff" * 64,
            head(2, 1, 1024, 0, 1024 * 72) + os.urandom(1024 * 72), head(2, 1, 1024, 0, 1 << 31),
            head(3, 0, 0, 0, 0), head(8, 0, 0, 0, 80) + os.urandom(80), head(5, 1, 64, 0, 64 * 4096) + b"z" * 100,
            os.urandom(40)]))
    bulk.recv(100)
def stalls():
    s, bulk = served()
    s.sendall(head(2, 1, 1, 0, 72)[:20])
    held.append((s, bulk))
    del held[:-4]
held = []
counts = attack(float(sys.argv[2]), [noise, no_token, names, stale, kinds, half, twice, other_words, requests, stalls])
print(counts)
assert all(counts.values())
EOP

# Tasks fetch their memory all the while.
beside_hostile() {
	local mallory id memory
	id=$(on client "$build/cr-image" show "$image" manifest | jq -re .migration) || return 1
	hostile alpha "$server_address" 15 "$(<"$work/token")" "$id" >"$work/mallory" 2>&1 &
	mallory=$!
	restored beta "$small" --lazy="$server_address" --token-file "$work/token" && runs_on || return 1
	wait $mallory || { diag "$(tail -n 5 "$work/mallory")"; return 1; }
	diag "$(<"$work/mallory")"
	runs_on && finish_workload || return 1
	memory=$(status_of VmHWM | tr -dc 0-9)
	diag "at most $memory kB"
	[ "$memory" -lt $((64 * 1024)) ]
}
ok "hostile peers, some of whom know all secrets: tasks get their pages beside them" beside_hostile
untouched() {
	find "$image" -type f -exec sha1sum {} + | sort | cmp - "$work/before" && [ "$(ls "$work/images")" = web ]
}
ok "the images are as they were" untouched
serves_on() {
	rm -f "$wl_dir"/{result,stop}
	ln -sfn "$first_progress" "$wl_dir/progress" # which it looks for
	on client test -d "/proc/$server" && [ "$(status_of Seccomp)" = 2 ] &&
		restored beta "$small" --lazy="$server_address" --token-file "$work/token" && finish_workload
}
ok "it serves on" serves_on
kill_workload
ok "and ends cleanly" stop_server client

# Its limit of memory is for what it knows of images, too.
memory_limit() {
	start_server client --serve --listen "$ip:0" --dir "$work/images" --user nobody --token-file "$work/token" --max-memory 64K || return 1
	silent_verb beta restore --detach --dir "$small" --lazy="$server_address" --token-file "$work/token" && return 1
	grep -q 'memory limit (65536 bytes) is reached' "$work/out" || say_out || return 1
	stop_server client
}
ok "an image that is over --max-memory is not served, and why is told" memory_limit
done_testing
