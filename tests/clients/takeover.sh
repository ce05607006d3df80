#!/bin/bash
# The server is killed at random moments, and sometimes another one takes over, while a program writes, stores, maps, moves, unmaps
# and forks with a quarter of its data as budget: it notices nothing, and what was stored is stored.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
worker=$UFFDA_BUILD/tests/clients/takeover_worker
[ -x "$worker" ] || skip "no $worker"
kills=${UFFDA_TAKEOVER_KILLS:-50} seed=${UFFDA_TAKEOVER_SEED:-1}
data() {
  python3 -c '
import struct, sys
with open(sys.argv[1], "wb") as out:
  for page in range(2048): out.write(struct.pack("<Q", page) * 512)' "$1"
}

# survive NAME URI STORED OFFSET: of the source at URI, which keeps what is written in the file STORED from byte OFFSET on.
survive() {
  local name=$1 socket=$work/$1.sock holder program
  local serve=("$UFFDA" serve --export "disk=$2,rw" --budget 2M --socket "$socket" --report "$work/report.json")
  : > "$work/shown"
  rm -f "$work/ready" "$work/progress"*
  head -c 4096 /dev/zero > "$work/progress"
  mkfifo "$work/ready"
  "${serve[@]}" --holder --ready-fd 3 3> "$work/ready" 2> "$work/serve.log" &
  holder=$!
  background+=("$holder")
  read -r _ < "$work/ready"
  "$UFFDA" exec --server "$socket" --map "$work/shown=disk,rw" -- "$worker" "$work/shown" "$3" "$4" "$work/progress" \
    > "$work/out" 2> "$work/errors" &
  program=$!
  background+=("$program")
  python3 "$here/takeover.py" "$holder" "$work/progress" "$kills" "$seed" "${serve[@]}" > "$work/kills" 2> "$work/driver.log"
  same "$name: every thread goes on after each of $kills kills and takeovers" 0 $?
  if [ -s "$work/progress.holder" ]; then
    holder=$(cat "$work/progress.holder")
    background+=("$holder")
  fi
  if [ ! -s "$work/kills" ]; then tail -n 3 "$work/driver.log" "$work/errors" "$work/serve.log"; kill "$program"; fi
  wait "$program"
  same "$name: the program ends well" 0 $?
  same "$name: no byte was wrong, and what was stored is there" right "$(cat "$work/out")"
  same "$name: nobody was told of anything" "" "$(head -n 3 "$work/errors")"
  cat "$work/kills"
  kill "$holder"
}
data "$work/disk"
survive "a file" "file:$work/disk" "$work/disk" 0
data "$work/base"
survive "an overlay" "cow+file:$work/base?overlay=$work/overlay" "$work/overlay" 12288
if command -v nbdkit > /dev/null; then
  data "$work/exported"
  nbdkit -U "$work/export.sock" -P "$work/export.pid" -f file "$work/exported" 2> "$work/nbd.log" &
  background+=("$!")
  wait_until test -s "$work/export.pid"
  survive "nbd" "nbd+unix:///?socket=$work/export.sock" "$work/exported" 0
fi

# --- what fails ---------------------------------------------------------------------------------------------------------
# hold NAME OPTION...: a held server of $work/NAME; its holder is $holder.
hold() {
  local name=$1
  shift
  rm -f "$work/ready"
  mkfifo "$work/ready"
  "$UFFDA" serve --export "disk=file:$work/$name" --socket "$work/$name.sock" --ready-fd 3 "$@" 3> "$work/ready" 2> "$work/$name.log" &
  holder=$!
  background+=("$holder")
  read -r _ < "$work/ready"
}
answers() { timeout 20 "$UFFDA" exec --server "$work/$1.sock" --map "$work/shown=disk" -- cmp "$work/shown" "$work/base"; }
take_over() { timeout 60 "$UFFDA" serve --export "$2" --socket "$work/$1.sock" --takeover 2> "$work/taker.log"; }
cp "$work/base" "$work/kept"
hold kept --holder
take_over kept "disk=file:$work/nothing"
same "a successor that cannot open its source" 1 $?
says_so() { grep -q "goes on" "$work/kept.log"; }
wait_until says_so
same "leaves all to the old server" "" "$(answers kept 2>&1)"
mv "$work/kept" "$work/moved"
kill -KILL "$(cut -d ' ' -f 1 "/proc/$holder/task/$holder/children")"
wait "$holder"
same "a holder whose servers do not start ends" 1 $?
contains "and says so" "before it served anybody" "$work/kept.log"
take_over kept "disk=file:$work/base"
same "of nobody nothing is taken over" 1 $?
contains "which is said" "no uffda server is listening" "$work/taker.log"
cp "$work/base" "$work/plain"
hold plain
take_over plain "disk=file:$work/plain"
same "nor of a server without a holder" 1 $?
contains "whose remedy is said" "without --holder" "$work/taker.log"
same "and that one goes on" "" "$(answers plain 2>&1)"
kill "$holder"
conclude
