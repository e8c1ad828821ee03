#!/bin/bash
# Programs as service managers start them: users and groups of their own, few capabilities, no_new_privs, a seccomp filter.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
start_testbed

# As SystemCallFilter=~ptrace does it: that call fails with EPERM, also if it is made in the 32-bit way.
cat >"$work/filtered.py" <<'PY'
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
LD, JEQ, RET = 0x20, 0x15, 0x06
program = b"".join(struct.pack("HBBI", *i) for i in [
    (LD, 0, 0, 4), (JEQ, 1, 0, 0xc000003e), (RET, 0, 0, 0x50001),  # AUDIT_ARCH_X86_64
    (LD, 0, 0, 0), (JEQ, 0, 1, 101), (RET, 0, 0, 0x50001), (RET, 0, 0, 0x7fff0000)])
held = ctypes.create_string_buffer(program)
fprog = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(held))
if libc.prctl(22, 2, fprog, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    sys.exit(os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[1], sys.argv[1:])
PY

rights() {
	on "$1" grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp)' "/proc/$wl_pid/status"
}

# unit_case USER CAPABILITIES NAME ARGS…
unit_case() {
	local user=$1 caps=$2 prog=$3 before
	shift 3
	new_dir "$prog"
	wl_host=alpha
	on alpha setsid /usr/bin/python3 "$work/filtered.py" setpriv --reuid "$user" --regid "$user" --init-groups \
		--bounding-set="-all$caps" --inh-caps="-all$caps" --ambient-caps="-all$caps" --no-new-privs \
		"$workloads/$prog" "$@" --dir "$wl_dir" </dev/null >"$wl_dir/log" 2>&1
	workload_is_up "$prog" && runs_on || return 1
	before=$(rights alpha)
	[ "$(grep -cxE '(Seccomp:[[:space:]]*2)|(NoNewPrivs:[[:space:]]*1)' <<<"$before")" = 2 ] || {
		diag "not as intended: $before"
		return 1
	}
	move_workload beta || return 1
	[ "$(rights beta)" = "$before" ] || { diag "before: $before" "after: $(rights beta)"; return 1; }
	move_workload alpha && [ "$(rights alpha)" = "$before" ] && finish_workload
}
ok "as www-data, with one capability: sockets" unit_case www-data ,+net_bind_service sockets
kill_workload
ok "as www-data, with none: a tree" unit_case www-data "" forktree --procs 5
kill_workload
ok "as www-data: threads" unit_case www-data ,+net_bind_service,+kill threads --threads 8
kill_workload
ok "as root, with few capabilities: regs" unit_case root ,+setuid,+setgid,+dac_override regs
kill_workload
done_testing
