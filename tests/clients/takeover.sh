#!/bin/bash
# The server is killed at random moments, and sometimes another one takes over, while a program writes, stores, maps, moves, unmaps
# and forks with a quarter of its data as budget: it notices nothing, and what was stored is stored.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
worker=$UFFDA_BUILD/tests/clients/takeover_worker
[ -x "$worker" ] || skip "no $worker"
kills=${UFFDA_TAKEOVER_KILLS:-50} seed=${UFFDA_TAKEOVER_SEED:-1}
python3 -c '
import struct, sys
with open(sys.argv[1], "wb") as out:
  for page in range(2048): out.write(struct.pack("<Q", page) * 512)' "$work/disk"
: > "$work/shown"
head -c 4096 /dev/zero > "$work/progress"
socket=$work/server.sock
serve=("$UFFDA" serve --export "disk=file:$work/disk,rw" --budget 2M --socket "$socket" --report "$work/report.json")
mkfifo "$work/ready"
"${serve[@]}" --holder --ready-fd 3 3> "$work/ready" 2> "$work/serve.log" &
holder=$!
read -r _ < "$work/ready"
"$UFFDA" exec --server "$socket" --map "$work/shown=disk,rw" -- "$worker" "$work/shown" "$work/disk" "$work/progress" \
  > "$work/out" 2> "$work/errors" &
program=$!
background=($holder $program)
python3 "$here/takeover.py" "$holder" "$work/progress" "$kills" "$seed" "${serve[@]}" > "$work/kills" 2> "$work/driver.log"
same "every thread goes on after each of $kills kills and takeovers" 0 $?
[ -s "$work/progress.holder" ] && background+=("$(cat "$work/progress.holder")")
if [ ! -s "$work/kills" ]; then tail -n 3 "$work/driver.log" "$work/errors" "$work/serve.log"; kill "$program"; fi
wait "$program"
same "the program ends well" 0 $?
same "no byte was wrong, and what was stored is there" right "$(cat "$work/out")"
same "nobody was told of anything" "" "$(grep -v 'not told' "$work/errors" | head -n 3)"
cat "$work/kills"
conclude
