#!/bin/bash
# `uffda mount`: a file for programs that nobody starts through exec; it ends by a signal, by umount, and with its server.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
[ "$(id -u)" = 0 ] || skip "needs root"
can_exec
# Mounts of this test stay in a namespace of its own.
if [ -z "${UFFDA_TEST_INSIDE-}" ]; then
  UFFDA_TEST_INSIDE=1 unshare -m --propagation private bash "$0"
  exit $?
fi
make_data "$work/data" 4194427
wanted=$(sha256sum < "$work/data")
: > "$work/shown"

# start ARGUMENTS...: returns when the file is there.
start() {
  "$UFFDA" mount "$@" 2> "$work/log" &
  mounter=$!
  background=($mounter)
  shown() { grep -q ' shows ' "$work/log" || ! kill -0 $mounter 2> /dev/null; }
  wait_until shown
}

start "$work/shown=file:$work/data"
same "read" "$wanted" "$(sha256sum < "$work/shown")"
same "size" 4194427 "$(stat -c %s "$work/shown")"
same "mapped, by a program without shim" "$wanted" \
  "$(python3 -c 'import mmap,hashlib,sys; f=open(sys.argv[1],"rb"); m=mmap.mmap(f.fileno(),0,mmap.MAP_SHARED,mmap.PROT_READ); print(hashlib.sha256(m).hexdigest()+"  -")' "$work/shown")"
(echo x > "$work/shown") 2> /dev/null
same "writing is refused" 1 $?
same "eight readers at once" "$(yes "$wanted" | head -n 8)" "$(seq 8 | xargs -P 8 -I % sh -c "sha256sum < $work/shown")"
same "another user reads it, too" "$wanted" "$(setpriv --reuid 65534 --clear-groups sha256sum < "$work/shown")"
kill -TERM $mounter
wait $mounter
same "SIGTERM ends it with status" 0 $?
same "and unmounts" 0 "$(stat -c %s "$work/shown")"

start "$work/new=file:$work/data"
same "a PATH that did not exist" "$wanted" "$(sha256sum < "$work/new")"
umount "$work/new"
wait $mounter
same "umount ends it with status" 0 $?
same "and nothing stays" "no" "$([ -e "$work/new" ] && echo yes || echo no)"

start "$work/shown=file:$work/data"
kill -KILL "$(pgrep -P $mounter -f 'serve --export')"
wait $mounter
same "a killed server ends it with status" 1 $?
contains "a killed server: a message" "was killed by signal 9" "$work/log"
same "and unmounts, too" 0 "$(stat -c %s "$work/shown")"

"$UFFDA" mount "$work/shown=file:$work/nothing" 2> "$work/log"
same "a source that is not there: status" 1 $?
same "nothing is left among the sockets" "" "$(ls -A "$XDG_RUNTIME_DIR")"
conclude
