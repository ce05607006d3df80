#!/bin/bash
# A planned restart: what a held server has is kept by the service manager's store of descriptors, and the next one goes on with it.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
worker=$UFFDA_BUILD/tests/clients/takeover_worker
[ -x "$worker" ] || skip "no $worker"
python3 -c '
import struct, sys
with open(sys.argv[1], "wb") as out:
  for page in range(2048): out.write(struct.pack("<Q", page) * 512)' "$work/disk"
: > "$work/shown"
head -c 4096 /dev/zero > "$work/progress"
coproc manager { exec python3 "$here/takeover_stored.py" "$work/progress" "$work/notify" \
  "$UFFDA" serve --export "disk=file:$work/disk,rw" --budget 2M --socket "$work/server.sock" --holder 2> "$work/log"; }
manager_pid=$! manager_in=${manager[1]} manager_out=${manager[0]}
read -r line <&"$manager_out"
same "it starts" started "$line"
"$UFFDA" exec --server "$work/server.sock" --map "$work/shown=disk,rw" -- "$worker" "$work/shown" "$work/disk" 0 "$work/progress" \
  > "$work/out" 2> "$work/errors" &
program=$!
background=($program $manager_pid)
read -r line <&"$manager_out"
same "every thread goes on after each restart" "restarted 5 times" "$line"
[ -n "$line" ] || { tail -n 5 "$work/log"; kill "$program"; }
wait "$program"
same "the program ends well" 0 $?
same "no byte was wrong, and what was stored is there" right "$(cat "$work/out")"
same "nobody was told of anything" "" "$(head -n 3 "$work/errors")"
exec {manager_in}>&-
wait "$manager_pid"
same "and the manager, too" 0 $?
conclude
