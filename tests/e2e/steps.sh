# shellcheck shell=bash
# What the tests of the steps for scripts share: cr-agent's verbs, and page-servers that keep images.
#
#   verb HOST VERB ARGS…          cr-agent VERB there; what it says is in $work/out; silent_verb: no more than that
#   restored HOST DIR ARGS…       it runs on there, and nowhere else
#   start_server HOST ARGS…       sets server (its pid in HOST) and server_address
#   stop_server HOST              by SIGTERM; fails if it does not end well
#   hostile HOST ARGS…            $work/hostile.py there, with mallory.py

: "${build:?is of lib.sh}" "${work:?is of lib.sh: start_testbed comes first}"

# Journals of its own, beside those of the host's agent.
silent_verb() {
	local host=$1
	shift
	on "$host" "$build/cr-agent" "$@" --state /tmp/one-shot >"$work/out" 2>&1 </dev/null
}

verb() {
	silent_verb "$@" || say_out
}

say_out() {
	diag "$(tail -n 12 "$work/out")" "$(result_text)"
	return 1
}

hostile() {
	on "$1" env PYTHONPATH="${e2e:?}" PYTHONDONTWRITEBYTECODE=1 python3 "$work/hostile.py" "${@:2}"
}

restored() {
	local host=$1 dir=$2
	shift 2
	touch "${wl_dir:?}/stored"
	verb "$host" restore --detach --dir "$dir" "$@" || return 1
	# shellcheck disable=SC2034 # for lib.sh
	wl_host=$host
	moved_to "$host" || say_out
}

start_server() {
	local host=$1
	shift
	server_log=$work/server-$host.log
	: >"$server_log"
	# shellcheck disable=SC2016
	server=$(on "$host" sh -c 'log=$1; shift; setsid "$@" </dev/null >>"$log" 2>&1 & echo $!' start \
		"$server_log" "$build/page-server" "$@")
	until_true 30 grep -q 'page streams on' "$server_log" || {
		diag "$(cat "$server_log")"
		return 1
	}
	# shellcheck disable=SC2034 # for the tests
	server_address=$(sed -n 's/.*page streams on \([^,]*\),.*/\1/p' "$server_log")
}

server_gone() {
	! on "$1" test -d "/proc/$server"
}

stop_server() {
	on "$1" kill -TERM "$server"
	until_true 30 server_gone "$1"
}
