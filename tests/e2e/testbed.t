#!/bin/bash
# Two testbeds side by side; each host is what it should be, and afterwards nothing is left.
# shellcheck disable=SC2016 # scripts in single quotes are for the hosts' shells
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=tests/e2e/tap.sh
. "$here/tap.sh"
testbed=$here/../../tools/testbed
[ "$(id -u)" = 0 ] || skip_all "needs root"

one=t1-$$
two=t2-$$
t1() { "$testbed" --name $one "$@"; }
t2() { "$testbed" --name $two "$@"; }
bin=
trap 't1 down; t2 down; [ -z "$bin" ] || rm -r "$bin"' EXIT

# All that a testbed could leave behind on the machine, as far as it bears the testbeds' names; links,
# mounts and the machine's network as a whole.
machine_state() {
	ip -o link | sed 's/^[0-9]*: //; s/ state .*//'
	ip -o addr | awk '{ print $2, $4 }'
	awk '{ print $1, $2, $3 }' /proc/mounts
	find /sys/fs/cgroup -type d \( -name "*$one*" -o -name "*$two*" \)
	ls -d /run/testbed/*-$$ 2>/dev/null
}

# The namespaces of all hosts and switches that are up here.
own_namespaces() {
	local init
	for init in /run/testbed/{$one,$two}/{.switch,alpha,beta,client}/init; do
		[ ! -e "$init" ] || readlink "/proc/$(cat "$init")"/ns/{net,pid,mnt,uts,ipc,time}
	done | sort -u | comm -23 - <(readlink /proc/self/ns/* | sort)
}

# Every process in a namespace listed, with its start: the numbers of namespaces are used again, by whoever makes some.
inhabitants() {
	local p ns
	for p in /proc/[0-9]*; do
		ns=$(readlink "$p"/ns/{net,pid,mnt,uts,ipc,time} 2>/dev/null) || continue
		[ -z "$(comm -12 <(sort <<<"$ns") <(echo "$1"))" ] || started "$p"
	done
}

# "PID START" by its directory in /proc; nothing if it is gone.
started() {
	sed 's/^\([0-9]*\) .*) /\1 /' "$1/stat" 2>/dev/null | awk '{ print $1, $21 }'
}

still_there() {
	local pid start
	while read -r pid start; do
		[ "$(started "/proc/$pid")" != "$pid $start" ] || echo "$pid"
	done <<<"$1"
}

# Which of the namespaces listed some process is still in.
inhabited() {
	readlink /proc/[0-9]*/ns/{net,pid,mnt,uts,ipc,time} 2>/dev/null | sort -u | comm -12 - <(echo "$1")
}

uptime_seconds() {
	"$1" exec "$2" cut -d. -f1 /proc/uptime
}

monotonic() {
	"$1" exec "$2" perl -MTime::HiRes=clock_gettime,CLOCK_MONOTONIC -e 'printf "%d\n", clock_gettime(CLOCK_MONOTONIC)'
}

# Says on which port it listens, and hello to whoever connects.
# shellcheck disable=SC2016
greeter='my $l = IO::Socket::INET->new(Listen => 1, LocalAddr => $ARGV[0]) or die;
	$| = 1; print $l->sockport, "\n"; print { $l->accept } "hello\n"'

# reaches TESTBED FROM TO [SECONDS]: a TCP connection, to a port that the kernel chooses.
reaches() {
	local tb=$1 from=$2 to=$3 ip port fd pid st=0
	ip=$("$tb" addr "$to")
	coproc "$tb" exec "$to" timeout 20 perl -MIO::Socket::INET -e "$greeter" "$ip"
	fd=${COPROC[0]} pid=$COPROC_PID
	read -r port <&"$fd"
	"$tb" exec "$from" timeout "${4:-15}" bash -c "read -r line </dev/tcp/$ip/$port && [ \$line = hello ]" || st=1
	[ $st = 0 ] || kill "$pid"
	wait "$pid" 2>/dev/null
	return $st
}

before=$(machine_state)

is "$(t1 up --bare alpha beta client | tail -n 1)" /run/testbed/$one/hosts "up ends with the path of the hosts file"
ok "a second testbed comes up beside it" t2 up --bare alpha beta
is "$(cut -d' ' -f1 /run/testbed/$one/hosts | paste -sd' ')" "alpha beta" "the hosts file names the hosts with agents"
is "$(t1 status | wc -l)" 3 "status lists the hosts"
t1 up --bare alpha >/dev/null 2>&1
is $? 1 "up refuses a name that is up"

is "$(t1 exec alpha hostname)" alpha "the host's name is its own"
is "$(t1 exec beta sh -c 'set -- /proc/[0-9]*; echo $#')" 2 "a host sees its own processes only"
is "$(t1 exec alpha cat /proc/1/comm)" testbed-init "pid 1 is the init"
t1 exec alpha touch /tmp/mine
is "$(t1 exec beta ls -A /tmp | grep -c mine)" 0 "/tmp is the host's own"
for kind in net pid mnt uts ipc time; do
	is "$(for h in alpha beta client; do t1 exec $h readlink /proc/self/ns/$kind; done | sort -u | wc -l)" 3 \
		"each host has its own $kind namespace"
done
ok "the root of the file system is shared" t1 exec alpha test -e "$here/testbed.t"

d=$(($(uptime_seconds t1 beta) - $(uptime_seconds t1 alpha)))
ok "the boot clocks differ by days" test $d -gt 100000
d=$(($(monotonic t1 beta) - $(monotonic t1 alpha)))
ok "the monotonic clocks differ, by something else" test $d -gt 90000 -a $d -lt 110000

t1 exec alpha sh -c 'exit 7'
is $? 7 "exec keeps the exit status"
is "$(echo in | t1 exec alpha cat)" in "exec passes stdin and stdout"
is "$(t1 exec alpha sh -c 'test $(ps -o sid= -p $$) = $$ && echo leader')" leader "exec starts a session"
is "$(t1 exec alpha sh -c 'ls /proc/$$/fd' 9</dev/null | paste -sd' ')" "0 1 2" "exec passes three descriptors"
is "$(t1 exec alpha sh -c 'test $$ -gt 1000 && echo yes')" yes "pids of alpha begin at 1000"
is "$(t1 exec alpha cat /proc/self/cgroup |
	grep -cE "(freezer|^0:).*:/testbed-$one/alpha$")" \
	"$(awk '$3 == "cgroup2" || $4 ~ /freezer/ && $3 == "cgroup"' /proc/mounts | wc -l)" \
	"commands are in the host's cgroups"
for dir in /sys/fs/cgroup/"testbed-$one/alpha" /sys/fs/cgroup/*/"testbed-$one/alpha"; do
	[ ! -d "$dir" ] || ok "a host makes cgroups of its own in $dir" t1 exec alpha sh -c "mkdir -p $dir/app/sub"
done

ok "alpha reaches beta" reaches t1 alpha beta
ok "client reaches alpha" reaches t1 client alpha
ok "the second testbed has the same addresses" reaches t2 alpha beta
t1 link beta down
reaches t1 alpha beta 3
is $? 1 "a cut link"
ok "the other testbed's link is not cut" reaches t2 alpha beta
t1 link beta up
ok "a link that is up again" reaches t1 alpha beta

t1 addr alpha add 10.77.0.100
t1 addr beta hold 10.77.0.100
# The link-layer addresses: of who answers for the service address, and of a host.
where() {
	t1 exec client bash -c ': </dev/tcp/10.77.0.100/9' 2>/dev/null
	t1 exec client ip neigh show to 10.77.0.100 | awk '{ print $5 }'
}
mac() {
	t1 exec "$1" ip -o link show eth0 | sed 's/.*ether //; s/ .*//'
}
is "$(where)" "$(mac alpha)" "an address that both hold leads to the one that announces it"
t1 addr alpha del 10.77.0.100
t1 addr beta add 10.77.0.100
is "$(where)" "$(mac beta)" "and moves"

# Orphans, a frozen group and a process that ignores signals do not keep it up.
t1 exec alpha sh -c 'trap "" TERM HUP; sleep 1000 >/dev/null 2>&1 </dev/null &'
freezer=$(awk '$3 == "cgroup" && $4 ~ /freezer/ { print $2; exit }' /proc/mounts)
if [ -n "$freezer" ]; then
	t1 exec alpha sh -c "sleep 1000 >/dev/null 2>&1 </dev/null & echo \$! >$freezer/testbed-$one/alpha/app/sub/cgroup.procs
		echo FROZEN >$freezer/testbed-$one/alpha/app/freezer.state"
fi
namespaces=$(own_namespaces)
is "$(inhabited "$namespaces" | wc -l)" 32 "five hosts and two switches have namespaces of their own"
residents=$(inhabitants "$namespaces")
ok "down" t1 down
ok "down of the second" t2 down
ok "down again" t1 down
is "$(machine_state)" "$before" "no link, address, mount, cgroup or state is left"
ok "there were processes" [ "$(wc -l <<<"$residents")" -ge 7 ]
is "$(still_there "$residents")" "" "no process, and so no namespace, is left"

# Daemons: stand-ins that listen where they are told to, and write down how they were called.
bin=$(mktemp -d /tmp/testbed-bin.XXXXXX)
cat >"$bin/cr-agent" <<'PERL'
#!/usr/bin/perl
use IO::Socket::UNIX;
my ($path) = "@ARGV" =~ /--control unix:(\S+)/;
my $l = IO::Socket::UNIX->new(Local => $path, Listen => 1) or die "$path: $!";
open my $f, '>>', "$path.called"; print $f "@ARGV\n"; close $f;
close $_ while $_ = $l->accept;
PERL
cp "$bin/cr-agent" "$bin/page-server"
chmod +x "$bin"/*
t1 --bin "$bin" up alpha client >/dev/null
is $? 0 "up with daemons"
s=/run/testbed/$one/alpha
is "$(cat $s/agent.sock.called)" "serve --name alpha --control unix:$s/agent.sock --peer-listen 10.77.0.1:7710 --page-server unix:$s/page-server.sock --state $s/state" "the agent's arguments"
is "$(cat $s/page-server.sock.called)" "--listen 10.77.0.1:7711 --control unix:$s/page-server.sock" "the page-server's arguments"
is "$(t1 status | grep -cE '(agent|page-server)=[0-9]+')" 1 "daemons run in alpha, not in client"
pid=$(t1 agent alpha pid)
is "$(t1 exec alpha ps -o ppid=,sid= -p "$pid" | xargs)" "1 $pid" "the agent is a child of pid 1 in a session of its own"
is "$(cat "/proc/$(t1 pid alpha "$pid")/comm" 2>/dev/null)" cr-agent "pid translates to the machine's"
t1 agent alpha kill
is "$(t1 status | grep -o 'agent=[a-z]*' | head -n 1)" agent=dead "status tells a dead agent"
ok "restart" t1 agent alpha restart
isnt "$(t1 agent alpha pid)" "$pid" "it is another process"
ok "restart of a living one" t1 page-server alpha restart
ok "down" t1 down

# A daemon that does not come up: said with its log, and nothing left.
printf '#!/bin/sh\necho cannot listen on the moon >&2\nexit 1\n' | tee "$bin/cr-agent" >"$bin/page-server"
chmod +x "$bin"/*
out=$("$testbed" --name $one --bin "$bin" up alpha 2>&1)
is $? 1 "up fails when a daemon dies"
is "$(grep -c 'on the moon' <<<"$out")" 1 "its log is shown"
is "$(machine_state)" "$before" "nothing is left of the half-failed up"
done_testing
