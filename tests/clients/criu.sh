#!/bin/bash
# Processes that a real CRIU dumps and restores, with uffda in the place of CRIU's own lazy-pages daemon: every word of
# their memory is right, whatever they do to it meanwhile. UFFDA_CRIU_MIB: of each of them (default 64).
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/_criu.sh"
can_criu
mib=${UFFDA_CRIU_MIB:-64}

# one NAME WHAT READY RESULTS WANTED [OPTION...]: restored lazily; checked while it is filled, and once more afterwards.
one() {
  local name=$1 what=$2 ready=$3 results=$4 wanted=$5 dir=$work/$1
  shift 5
  start "$dir" "$task" "$what" "$mib" "$dir"
  wait_until lines "$dir/ready" "$ready" || return
  dump "$dir" && serve_lazily "$dir" "$@" && restore_lazily "$dir" || return
  check "$name: every page is right while they come" "$dir" "$results" "$wanted"
  ended "$name: the daemon ends when all are there"
  if [ "$what" = plain ] || [ "$what" = tree ] || [ "$what" = splits ]; then
    check "$name: and so it is without the daemon" "$dir" "$results" "$wanted"
  fi
  kill -KILL "$pid" $(cat "/proc/$pid/task/$pid/children" 2> /dev/null) 2> /dev/null
  cat "$dir/lazy.log"
}
# slowly NAME WHAT...: from a source so slow that the task does what it does before the fill comes by.
slowly() {
  one "$@" --pages "delay+criu:$work/$1/images?delay=0ms&bandwidth=${mib}M"
}
one plain plain 1 1 "parent right;"
one tree tree 3 3 "child right;child right;parent right;"
one changes changes 1 1 "changes right;"
one forks forks 1 2 "child right;parent right;"
slowly slow_changes changes 1 1 "changes right;"
slowly slow_forks forks 1 2 "child right;parent right;"
slowly splits splits 1 1 "splits right;"

# --- what goes wrong --------------------------------------------------------------------------------------------------
# begin NAME OPTION...: a plain task in $dir that is restored lazily, with a daemon that has these options.
begin() {
  dir=$work/$1
  shift
  dump_lazy_task "$dir" && serve_lazily "$dir" "$@" && restore_lazily "$dir" || conclude
}
# The pattern is in the middle of the dump's memory.
half=$((mib / 2))
begin bad_page --pages "error+criu:$work/bad_page/images?range=$((half << 20))-$(((half << 20) + 4096))"
kill -USR1 "$pid"
wait_until gone "$pid"
same "a page that cannot be had is the end of who reads it, and no zeroes" "" "$(cat "$dir/result" 2> /dev/null)"
wait "$daemon"
same "and the daemon's status" 1 $?

begin ended_early --pages "delay+criu:$work/ended_early/images?delay=0ms&bandwidth=${mib}M"
kill "$daemon"
ended "a daemon that is ended brings everything first"
check "and every page is right" "$dir" 1 "parent right;"
kill -KILL "$pid"

begin ended_twice --pages "delay+criu:$work/ended_twice/images?delay=0ms&bandwidth=4M"
kill "$daemon"
told() { grep -q "is fetched first" "$dir/lazy.log"; }
wait_until told
kill "$daemon"
wait "$daemon"
same "ended twice it gives up" 1 $?
kill -USR1 "$pid"
wait_until gone "$pid"
same "and what is not there is no zeroes" "" "$(cat "$dir/result" 2> /dev/null)"

"$UFFDA" criu lazy-pages --images "$work/nothing" 2> "$work/refused"
same "a dump that is not there" 1 $?
contains "is named" "$work/nothing/pstree.img" "$work/refused"
"$UFFDA" criu lazy-pages 2> "$work/refused"
same "no dump" 2 $?
conclude
