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
  if [ "$what" = plain ] || [ "$what" = tree ]; then
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
conclude
