#!/bin/bash
# The example of a pre-copy by script, over a real ssh between two hosts.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
[ -x /usr/sbin/sshd ] || skip_all "no sshd"
start_testbed
# shellcheck source=tests/e2e/steps.sh
. "$e2e/steps.sh"

# --- ssh from alpha to beta, with keys of its own ---------------------------------------------------------

keys=$work/ssh
mkdir -m 700 "$keys"
ssh-keygen -q -t ed25519 -N '' -f "$keys/host" && ssh-keygen -q -t ed25519 -N '' -f "$keys/user"
cp "$keys/user.pub" "$keys/authorized"
echo "beta $(cut -d' ' -f1,2 <"$keys/host.pub")" >"$keys/known"
cat >"$keys/sshd_config" <<-END
	Port 22
	HostKey $keys/host
	AuthorizedKeysFile $keys/authorized
	PidFile none
	UsePAM no
	StrictModes no
	PermitRootLogin prohibit-password
	PasswordAuthentication no
	SetEnv PATH=$build:/usr/sbin:/usr/bin:/sbin:/bin
END
cat >"$keys/ssh_config" <<-END
	Host beta
	HostName $("$testbed" addr beta)
	HostKeyAlias beta
	User root
	IdentityFile $keys/user
	IdentitiesOnly yes
	UserKnownHostsFile $keys/known
	StrictHostKeyChecking yes
	BatchMode yes
END
# The default places of sshd and cr-agent, for these hosts alone.
for host in alpha beta; do
	on $host sh -c 'mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd'
done
on beta /usr/sbin/sshd -f "$keys/sshd_config" -E "$work/sshd.log" || { echo "Bail out! sshd: $(cat "$work/sshd.log")"; exit 1; }

precopy() {
	on alpha env "PATH=$build:$PATH" "SSH=ssh -F $keys/ssh_config" "$@" >"$work/out" 2>&1 </dev/null
}

script=$tree/tools/examples/precopy.sh

moves() {
	start_workload alpha "$@" && runs_on || return 1
	touch "$wl_dir/stored"
	precopy "$script" "$wl_pid" beta "$work/images" || say_out || return 1
	wl_host=beta
	moved_to beta && finish_workload
}
ok "a process that writes, moved by the example" moves dirty --mib 64 --rate 10
grep -q 'round 2: ' "$work/out" && st=0 || st=1
result "$st" "it took more than one round"
[ "$st" = 0 ] || say_out
kill_workload
ok "a tree of processes, too" moves forktree
kill_workload

no_server_left() {
	# shellcheck disable=SC2016 # for the other shell
	! on beta sh -c 'for p in /proc/[0-9]*; do
		tr "\0" " " <"$p/cmdline" 2>/dev/null; echo; done' | grep 'page-server.*status-fd' >/dev/null
}
ok "its page-server is gone" until_true 30 no_server_left

# A pid that is taken there: nothing is lost.
cannot_be_restored() {
	start_workload alpha dirty --mib 16 && runs_on || return 1
	take_pid beta "$wl_pid" || return 1
	precopy "$script" "$wl_pid" beta "$work/images" && return 1
	grep -q "runs on here" "$work/out" || return 1
	runs_on && on beta kill -KILL "$taker" && finish_workload
}
ok "what cannot be restored there runs on here" cannot_be_restored
kill_workload
done_testing
