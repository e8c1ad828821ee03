#!/bin/bash
# PostgreSQL 15 under pgbench, and a session in an open transaction that has a temporary table and an advisory lock.
set -uo pipefail
# shellcheck source=tests/apps/lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
pg=/usr/lib/postgresql/15/bin
need $pg/postgres $pg/pgbench
start_hosts
data=$work/data
export PGCONNECT_TIMEOUT=10

as_postgres() {
	setpriv --reuid postgres --regid postgres --init-groups env -C / "$@"
}

sql() {
	on client $pg/psql -h $service -U postgres -XAtq -c "$1" bench </dev/null
}

make_database() {
	install -d -o postgres "$data" && as_postgres $pg/initdb -D "$data" -A trust -N >"$work/initdb.log" 2>&1 || return 1
	# not synced: the disk's pace on a shared machine would be what is measured
	cat >>"$data/postgresql.conf" <<-CONF
		listen_addresses = '$service'
		unix_socket_directories = '$data'
		fsync = off
	CONF
	echo "host all all 10.77.0.0/24 trust" >>"$data/pg_hba.conf"
}

fill_database() {
	on client $pg/createdb -h $service -U postgres bench </dev/null &&
		on client $pg/pgbench -h $service -U postgres -i -q -s 4 bench </dev/null >"$work/pgbench.init" 2>&1
}

# count_bench: transactions so far, as the server has them.
count_bench() {
	sql "select count(*) from pgbench_history"
}

start_pgbench() {
	bench_pid=$(in_background client "$work/pgbench.log" $pg/pgbench -h $service -U postgres -c 8 -j 2 -T 600 bench)
	until_true 20 bench_runs && clients+=(bench)
}

bench_runs() {
	[ "$(count_bench)" -gt 100 ]
}

bench_ended() {
	! on client test -d "/proc/$bench_pid" </dev/null
}

# ask SQL: of the session that stays open.
ask() {
	local line
	echo "$1" >&"${session[1]}"
	IFS= read -r -t 30 line <&"${session[0]}" || line="no answer"
	echo "$line"
}

open_session() {
	coproc session { on client $pg/psql -h $service -U postgres -XAtq bench 2>&1; }
	session_pid=$(ask "select pg_backend_pid();")
	# one line each: what gives none gives its count
	is "$(ask "begin; create temp table mine as select generate_series(1, 1000) as n; select count(*) from mine;")" 1000 \
		"a session: a temporary table"
	ask "select pg_advisory_lock(4711) is null;" >/dev/null
}

check_session() {
	is "$(ask "select pg_backend_pid();")" "$session_pid" "the session is the same"
	is "$(ask "insert into mine select 1001; select sum(n) from mine;")" 501501 "its temporary table is there"
	is "$(sql "select pg_try_advisory_lock(4711)")" f "its advisory lock holds"
	is "$(ask "select txid_current_if_assigned() is not null;")" t "its transaction is open"
	is "$(ask "commit; select count(*) from mine;")" 1001 "and is committed"
	is "$(ask "select pg_advisory_unlock(4711);")" t "the lock is given back"
	is "$(sql "select pg_try_advisory_lock(4711)")" t "and can be had"
}

# As when its time is over, whenever that is: SIGALRM is what it has it by. It finishes what is under way, and counts.
end_bench() {
	on client kill -ALRM "$bench_pid" </dev/null && until_true 60 bench_ended
}

# Every transaction moves the same amount in three tables and notes it in a fourth.
check_bench() {
	ok "pgbench ends" end_bench
	is "$(sed -n 's/^number of failed transactions: \([0-9]*\).*/\1/p' "$work/pgbench.log")" 0 "no transaction failed"
	ok "pgbench has no errors" not grep -iE 'error|aborted|fatal' "$work/pgbench.log"
	is "$(count_bench)" "$(sed -n 's/^number of transactions actually processed: \([0-9]*\).*/\1/p' "$work/pgbench.log")" \
		"every transaction that was acknowledged is there, and no other"
	is "$(sql "select count(distinct s) from (select sum(abalance) s from pgbench_accounts
		union all select sum(bbalance) from pgbench_branches union all select sum(tbalance) from pgbench_tellers
		union all select sum(delta) from pgbench_history) x")" 1 "the balances agree"
}

not() {
	! "$@"
}

make_database || give_up "initdb"
start_server setpriv --reuid postgres --regid postgres --init-groups $pg/postgres -D "$data"
{ server_listens 5432 && fill_database; } || give_up "PostgreSQL answers"
open_session
start_pgbench || give_up "pgbench runs"
move_server "$@" && {
	check_session
	check_bench
	there=beta
	[ $((${MOVES:-1} % 2)) = 1 ] || there=alpha
	on $there kill -INT "$server_pid" </dev/null # a fast shutdown: sessions are ended
	ok "it stops in good order" until_true 30 on $there test ! -e "$data/postmaster.pid"
}
done_testing
