#!/bin/bash
# One workload after the other goes to and fro between two hosts, through images and by migrations, each time in another
# way, and is checked all the while. What serves all that takes no more memory, descriptors or processes in the end than
# at the beginning.
#
# SOAK_ROUNDS=N: so many times each; SOAK_ONLY="NAME…": these workloads; SEED=N chooses the ways.
set -uo pipefail
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
RANDOM=${SEED:=$RANDOM}
echo "# SEED=$SEED"
start_testbed
# shellcheck source=tests/e2e/steps.sh
. "$e2e/steps.sh"
images=$work/images
mkdir -m 777 "$images"
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$work/token"

# Those that take images, at the hosts that they come to, and one that gives them out.
declare -A takes=() server_of=()
for host in alpha beta; do
	start_server $host --listen "$("$testbed" addr $host):0" --dir "$images" --token-file "$work/token" --no-sync || exit 1
	takes[$host]=$server_address server_of[$host]=$server
done
start_server client --serve --listen "$("$testbed" addr client):0" --dir "$images" --token-file "$work/token" || exit 1
gives=$server_address server_of[client]=$server

# --- what must not grow -----------------------------------------------------------------------------------------

# pid_of HOST WHO
pid_of() {
	if [ "$2" = images ]; then echo "${server_of[$1]}"; else "$testbed" "$2" "$1" pid; fi
}
servers=("alpha images" "beta images" "client images" "alpha agent" "beta agent" "alpha page-server" "beta page-server")

descriptors() {
	local s
	for s in "${servers[@]}"; do
		# shellcheck disable=SC2086
		echo "$s: $(on "${s% *}" ls "/proc/$(pid_of $s)/fd" | wc -l)"
	done
}

# KiB of each.
memory() {
	local s
	for s in "${servers[@]}"; do
		# shellcheck disable=SC2016,SC2086
		on "${s% *}" awk '/^VmRSS/ { print $2 }' "/proc/$(pid_of $s)/status"
	done
}

# All other processes, and mounts.
rest() {
	local host
	for host in alpha beta; do
		# shellcheck disable=SC2016
		on $host sh -c 'for p in /proc/[0-9]*; do readlink "$p/exe"; done; cat /proc/mounts; ls /dev/shm' </dev/null 2>/dev/null |
			grep -v '/[a-z]*sh$\|/readlink$' | sort
	done
}

# Cgroups of tasks that have gone, and locks of journals, the next call removes.
little_is_left() {
	local host n
	for host in alpha beta; do
		n=$( { find /sys/fs/cgroup -path "*testbed-$TESTBED_NAME/$host*" -name 'cr-*'; on $host ls /tmp/one-shot; } </dev/null | wc -l)
		[ "$n" -le 6 ] || { diag "in $host: $n"; return 1; }
	done
}

same() {
	[ "$("$1")" = "$2" ]
}

no_more() {
	local what=$1 before=$2
	until_true 40 same "$what" "$before" || { diag "$what before:" "$before" "now:" "$("$what")"; return 1; }
}

# --- ways ---------------------------------------------------------------------------------------------------------

pick() {
	local -a of=("$@")
	way=${of[RANDOM % $#]}
}

# The image, $image, is filled by some pre-dumps and a dump: here, or by the page-server at the host where it goes.
dump_it() {
	local to=$1 i track
	local -a place
	pick here there
	said+=" $way"
	if [ "$way" = here ]; then
		place=(--dir "$images/$image")
	else
		place=(--page-server "${takes[$to]}" --id "$image" --token-file "$work/token")
	fi
	for ((i = RANDOM % 4; i > 0; i--)); do
		pick '' --track
		track=$way
		said+=" pre-dump$track"
		# shellcheck disable=SC2086
		verb "$wl_host" pre-dump --pid "$wl_pid" "${place[@]}" $track && runs_on || return 1
	done
	verb "$wl_host" dump --pid "$wl_pid" "${place[@]}" && gone_from "$wl_host"
}

restore_it() {
	local to=$1
	pick now lazy served
	said+=" restore-$way"
	case $way in
	now) restored "$to" "$images/$image" ;;
	lazy) restored "$to" "$images/$image" --lazy ;;
	served) restored "$to" "$images/$image" --lazy="$gives" --token-file "$work/token" ;;
	esac
}

fetched() {
	# shellcheck disable=SC2016
	! on "$wl_host" sh -c 'for p in /proc/[0-9]*; do
		case "$(readlink "$p/exe")" in */cr-agent) tr "\0" " " <"$p/cmdline"; echo ;; esac; done' 2>/dev/null | grep ' restore ' >/dev/null
}

# there_and_on: an image or a migration to the other host.
there_and_on() {
	local to way
	to=$(other "$wl_host")
	said+=" | to $to:"
	if ((RANDOM % 3 == 0)); then
		pick precopy hybrid postcopy
		said+=" $way"
		move_workload "$to" --mode "$way"
		return
	fi
	image=$((++count))
	dump_it "$to" && restore_it "$to" && until_true 60 fetched || return 1
	rm -rf "${images:?}/$image"
}

soaked() {
	local i
	said=
	start_workload alpha "$@" && runs_on || return 1
	for ((i = 0; i < ${SOAK_ROUNDS:-3}; i++)); do
		there_and_on || { diag "$said"; return 1; }
	done
	finish_workload || { diag "$said"; return 1; }
	kill_workload
}

names=(churn memory forktree files threads "messages --quiet-clients" "dirty --mib 24 --rate 20" prefork alike unixsock)
[ -z "${SOAK_ONLY:-}" ] || mapfile -t names <<<"$SOAK_ONLY"
# Each time some of them: all in the long form.
[ -n "${SOAK_ROUNDS:-}${SOAK_ONLY:-}" ] || mapfile -t names < <(printf '%s\n' "${names[@]}" | shuf -n 4 --random-source=<(yes "$SEED"))
count=0
# once ahead, for what is made at the first use and kept
soaked "regs" || diag "it does not begin well"
before=$(rest) fds=$(descriptors)
mapfile -t kib < <(memory)
for name in "${names[@]}"; do
	# shellcheck disable=SC2086
	ok "to and fro: $name" soaked $name
	kill_workload
	ok "no process or mount is left" no_more rest "$before"
	ok "few cgroups and journals are left" until_true 40 little_is_left
	ok "no descriptor is left open" no_more descriptors "$fds"
done

memory_is_bounded() {
	local i st=0
	local -a now
	mapfile -t now < <(memory)
	for i in "${!now[@]}"; do
		diag "${servers[i]}: ${kib[i]} KiB, then ${now[i]} KiB"
		((now[i] <= kib[i] + 16384)) || st=1
	done
	return $st
}
ok "memory is bounded" memory_is_bounded
done_testing
