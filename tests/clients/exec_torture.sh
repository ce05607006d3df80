#!/bin/bash
# Four programs of four threads each that write, read and msync one file of a server, of which an eighth has room, whose
# source delays, fails writes and takes pages away all the time. UFFDA_TORTURE_STEPS: how many steps in all.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
torture=$UFFDA_BUILD/tests/clients/exec_torture
[ -x "$torture" ] || skip "no $torture"
steps=$((${UFFDA_TORTURE_STEPS:-40000} / 16))
"$torture" make "$work/disk" "$work/model" || skip "no room for the data"
socket=$work/server.sock
mkfifo "$work/ready"
uri="evict+delay+error+file:$work/disk?what=writes&rate=0.002&delay=20us&jitter=200us&every=200us"
"$UFFDA" serve --export "disk=$uri,rw" --budget 1M --socket "$socket" --ready-fd 3 --report "$work/report.json" \
  3> "$work/ready" 2> "$work/serve.log" &
server=$!
background=($server)
read -r _ < "$work/ready"
for i in 0 1 2 3; do
  "$UFFDA" exec --server "$socket" --map "$work/shown$i=disk,rw" -- \
    "$torture" run "$work/shown$i" "$work/disk" "$work/model" $((i * 4)) "$steps" 1 > "$work/out$i" 2>&1 &
  background+=($!)
done
for pid in "${background[@]:1}"; do wait "$pid"; done
for i in 0 1 2 3; do same "program $i" right "$(cat "$work/out$i")"; done
# All have written: a reader of the memory finds the newest, and so does who looks at the file after the end.
same "the memory holds what was written last" right \
  "$("$UFFDA" exec --server "$socket" --map "$work/shown=disk" -- "$torture" check "$work/shown" "$work/model" 2>&1)"
kill "$server"
wait "$server"
same "the server ends well" 0 $?
same "the file holds what was written last" right "$("$torture" check "$work/disk" "$work/model")"
contains "writes have failed meanwhile" "injected failure" "$work/serve.log"
evicted=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["folios"]["evicted"])' "$work/report.json")
if [ "$evicted" -gt 0 ]; then ok "$evicted pages were evicted"; else bad "nothing was evicted"; fi
conclude
