# shellcheck shell=bash
# What tests with huge pages share, besides lib.sh: the machine's pool of them, from which all hosts take.
#
#   take_pool N       N more than there were; instead of start_testbed, and gives them back in the end
#   set_pool N        so many more than there were, from now on
#   all_free          nobody has any
pool=/proc/sys/vm/nr_hugepages

set_pool() {
	echo $((pool_had + $1)) >$pool
	[ "$(<$pool)" = $((pool_had + $1)) ]
}

restore_pool() {
	echo "$pool_had" >$pool
	clean_up
}

take_pool() {
	# one for the machine: whoever else tests with it waits
	local turn
	exec {turn}<$pool
	flock -w 1800 "$turn" || {
		echo "Bail out! the pool of huge pages is in use"
		exit 1
	}
	pool_had=$(<$pool)
	pool_taken=$1
	set_pool "$1" || {
		echo "$pool_had" >$pool
		skip_all "no huge pages to be had here"
	}
	start_testbed
	trap restore_pool EXIT
}

free_pages() {
	awk '/^HugePages_Free/ { print $2 }' /proc/meminfo
}

all_free() {
	[ "$(free_pages)" = $((pool_had + pool_taken)) ]
}
