#!/bin/bash
# Redis with 64 MiB of keys, under redis-benchmark with 50 connections, a subscriber, and clients that check.
set -uo pipefail
# shellcheck source=tests/apps/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
need /usr/bin/python3 redis-server redis-benchmark
start_hosts

redis() {
	on client redis-cli -h $service "$@" </dev/null | tr -d '\r'
}

info() {
	redis INFO | sed -n "s/^$1://p"
}

start_benchmark() {
	bench_pid=$(in_background client "$work/benchmark.log" redis-benchmark -h $service -c 50 -t set,get -r 20000 \
		-d 200 -n 100000000 -q)
	until_true 20 benchmark_runs
}

benchmark_runs() {
	local n
	n=$(info connected_clients)
	[ "${n:-0}" -ge 50 ]
}

# It ends at the first error, and so does each of its connections.
benchmark_was_fine() {
	on client test -d "/proc/$bench_pid" </dev/null && ! grep -iE 'error|reset|refused|closed' "$work/benchmark.log"
}

# Sets commands, of a second, and the machine's pace meanwhile.
commands_a_second() {
	local before start
	start=$(now_ms)
	before=$(info total_commands_processed)
	pace=$($python "$apps/pace.py" 1)
	commands=$((($(info total_commands_processed) - before) * 1000 / ($(now_ms) - start)))
}

# As rates_are_back has it.
benchmark_is_back() {
	local back=1 pace_before=$benchmark_pace
	for _ in {1..40}; do
		commands_a_second
		! is_back $commands $commands_before || { back=0; break; }
	done
	diag "redis-benchmark: $commands_before -> $commands commands/s, the machine's pace $pace_before -> $pace"
	return $back
}

start_server redis-server --bind $service --protected-mode no --save "" --dir "$work" --enable-debug-command yes
{ server_listens 6379; } || give_up "Redis answers"
redis DEBUG POPULATE 60000 filled 1000 >/dev/null
digest=$(redis DEBUG DIGEST-VALUE filled:1 filled:59999)
start_client keys redis_peer $service 6379 5 || give_up "clients are answered"
start_benchmark || give_up "redis-benchmark runs"
accepted=$(info total_connections_received)
commands_a_second
commands_before=$commands benchmark_pace=$pace
move_server "$@"
is "$(info total_connections_received)" $((accepted + 3)) "nobody has connected anew, but who asks that"
ok "redis-benchmark: as fast as before" benchmark_is_back
ok "redis-benchmark: no error" benchmark_was_fine
on client kill "$bench_pid"
finish_clients
is "$(redis DEBUG DIGEST-VALUE filled:1 filled:59999)" "$digest" "what was there before is there"
done_testing
