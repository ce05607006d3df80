#!/bin/bash
# The server behind a lazy restore is killed at random moments, from before CRIU connects until all pages are there: no page
# is wrong, and nobody hangs. UFFDA_CRIU_KILLS: how often (default 10). UFFDA_CRIU_SEED: of the moments.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/_criu.sh"
can_criu
kills=${UFFDA_CRIU_KILLS:-10} mib=${UFFDA_CRIU_MIB:-32}
seed=${UFFDA_CRIU_SEED:-1}
mkfifo "$work/never"  # nobody writes to it: what reads it waits

# kill_some: up to three servers of $daemon, until it is through: the first up to 100 ms after CRIU was started, when it hands
# the tasks over; the others up to 250 ms after they were started. (Of five that never come to serve the holder despairs.)
# Their number goes to $work/killed.
kill_some() {
  local killed=0 server last= within=100
  while [ -e "/proc/$daemon" ] && [ $killed -lt 3 ]; do
    server=$(cat "/proc/$daemon/task/$daemon/children" 2> /dev/null)
    if [ -z "$server" ] || [ "$server" = "$last" ]; then continue; fi
    read -r -t "0.$(printf %03d $(((RANDOM << 15 | RANDOM) % within)))" _ <> "$work/never" || true
    last=$server within=250
    if kill -KILL $server 2> /dev/null; then killed=$((killed + 1)); fi
  done
  echo $killed > "$work/killed"
}

# one NUMBER WHAT READY RESULTS WANTED
one() {
  local dir=$work/$1 what=$2 killer
  start "$dir" "$task" "$what" "$mib" "$dir"
  wait_until lines "$dir/ready" "$3" || return
  dump "$dir" && serve_lazily "$dir" --pages "delay+criu:$dir/images?delay=0ms&bandwidth=${mib}M" || return
  RANDOM=$((seed * 1009 + $1 * 7919))  # a subshell has the same one every time
  kill_some &
  killer=$!
  restore_lazily "$dir" || { sed 's/^/     /' "$dir/lazy.log"; return; }
  check "$1, $what: every page is right" "$dir" "$4" "$5"
  ended "$1, $what: the daemon ends when all are there"
  wait "$killer"
  total=$((total + $(cat "$work/killed")))
  kill -KILL "$pid" $(cat "/proc/$pid/task/$pid/children" 2> /dev/null) 2> /dev/null
  [ "$failed" = 0 ] || sed 's/^/     /' "$dir/lazy.log"
  rm -rf "$dir"
}
total=0
for ((round = 0; total < kills && failed == 0; round++)); do
  case $((round % 4)) in
    0) one "$round" plain 1 1 "parent right;" ;;
    1) one "$round" tree 3 3 "child right;child right;parent right;" ;;
    2) one "$round" changes 1 1 "changes right;" ;;
    3) one "$round" forks 1 2 "child right;parent right;" ;;
  esac
done
echo "$total kills in $round restores"
conclude
