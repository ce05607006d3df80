#!/bin/bash
# The server is killed while a program runs: whatever the program still sees is right, the rest is SIGBUS or EIO, a message says why,
# and nothing hangs.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
crawl=$UFFDA_BUILD/tests/clients/exec_mmap
[ -x "$crawl" ] || skip "no $crawl"
pages=5000
make_data "$work/data" $((pages * 4096 - 100))
: > "$work/shown"
mkfifo "$work/go" "$work/out" "$work/sync"
"$crawl" "$work/data" --crawl > "$work/wanted"
server_of() { pgrep -f "serve --export map0=.*$work/data" | head -n 1; }

# crawl_over NAME OPTIONS...: kills the server when the program is half way through, and looks at what the program saw.
crawl_over() {
  local name=$1 line pid
  shift
  "$UFFDA" exec --map "$work/shown=file:$work/data" "$@" -- "$crawl" "$work/shown" --crawl --pause "$work/go" \
    > "$work/out" 2> "$work/errors" &
  local supervisor=$!
  exec 5< "$work/out"
  : > "$work/got"
  while read -r line <&5 && [ "$line" != half ]; do echo "$line" >> "$work/got"; done
  pid=$(server_of)
  kill -KILL "$pid"
  told() { grep -q 'uffda: the server' "$work/errors"; }
  wait_until told
  echo go > "$work/go"
  cat <&5 >> "$work/got"
  exec 5<&-
  wait $supervisor
  same "$name: the program's status" 0 $?
  contains "$name: a message names the server and the signal" "the server (pid $pid) was killed by signal 9" "$work/errors"
  same "$name: no wrong byte" "" "$(grep '^page' "$work/got" | grep -vxFf "$work/wanted" | head -n 3)"
  same "$name: every page is accounted for" $pages "$(wc -l < "$work/got")"
  if grep -q '^bus' "$work/got"; then ok "$name: what is not there raises SIGBUS"; else bad "$name: no SIGBUS at all"; fi
}
crawl_over "mapped"
crawl_over "mapped through FUSE" --no-preload

# Reads: what was read is right, then EIO.
"$UFFDA" exec --map "$work/shown=file:$work/data" -- \
  bash -c "exec 6< '$work/shown'; dd bs=65536 count=3 status=none <&6; echo > '$work/sync'; read -r _ < '$work/go'; cat <&6" \
  > "$work/got" 2> "$work/errors" &
supervisor=$!
read -r _ < "$work/sync"
kill -KILL "$(server_of)"
told() { grep -q 'uffda: the server' "$work/errors"; }
wait_until told
echo go > "$work/go"
wait $supervisor
same "read: the program fails" 1 $?
contains "read: with EIO" "Input/output error" "$work/errors"
same "read: a right beginning" "same" "$(cmp <(head -c "$(stat -c %s "$work/got")" "$work/data") "$work/got" && echo same)"

# Killed while pages are being fetched: faults that the server had read, and not answered, do not hang.
for round in 1 2 3 4; do
  "$UFFDA" exec --map "$work/shown=delay+file:$work/data?delay=20ms" -- "$crawl" "$work/shown" --crawl > "$work/out" 2> "$work/errors" &
  supervisor=$!
  exec 5< "$work/out"
  for ((i = 0; i < 100 * round; i++)); do read -r line <&5 && echo "$line"; done > "$work/got"
  kill -KILL "$(server_of)"
  cat <&5 >> "$work/got"
  exec 5<&-
  wait $supervisor
  same "in the middle of a fetch, $round: status" 0 $?
  same "in the middle of a fetch, $round: no wrong byte" "" "$(grep '^page' "$work/got" | grep -vxFf "$work/wanted" | head -n 3)"
  same "in the middle of a fetch, $round: every page" $pages "$(wc -l < "$work/got")"
done

# A program with threads and children, all of them waiting.
"$UFFDA" exec --map "$work/shown=delay+file:$work/data?delay=10s" -- \
  bash -c "for i in 1 2 3; do '$crawl' '$work/shown' --crawl & done; cat '$work/shown' & echo > '$work/sync'; wait" \
  > "$work/got" 2> "$work/errors" &
supervisor=$!
read -r _ < "$work/sync"
kill -KILL "$(server_of)"
wait $supervisor
same "many processes that wait all end" 0 $?

# --on-error=kill.
python3 - "$UFFDA" "$work" "$crawl" <<'PY' > "$work/killed" 2> "$work/errors"
import os, signal, subprocess, sys
uffda, work, crawl = sys.argv[1:]
run = subprocess.Popen([uffda, "exec", "--on-error", "kill", "--map", f"{work}/shown=file:{work}/data", "--",
                        crawl, f"{work}/shown", "--crawl", "--pause", f"{work}/go"], stdout=subprocess.PIPE, text=True)
while run.stdout.readline() not in ("half\n", ""):
    pass
server = subprocess.run(["pgrep", "-f", f"serve --export map0=.*{work}/data"], capture_output=True, text=True).stdout
os.kill(int(server.split()[0]), signal.SIGKILL)
print("status", run.wait())
PY
same "--on-error=kill: killed, as uffda is" "status -9" "$(cat "$work/killed")"
contains "--on-error=kill: a message" "was killed by signal 9" "$work/errors"
gone() { ! pgrep -f "$work/shown=" > /dev/null; }
wait_until gone && ok "no process is left"
same "nothing is left in the directory of sockets" "" "$(ls -A "$XDG_RUNTIME_DIR")"
conclude
