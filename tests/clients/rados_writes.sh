#!/bin/bash
# An image on two BlueStore OSDs is written to while one of them is killed and comes back, and while the server is killed and its holder
# starts it again: no error, no byte lost. Without a holder, whoever comes after a killed server has the image at once.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$here/_ceph.sh"
can_exec
[ -e "$UFFDA_BUILD/plugins/uffda-rados.so" ] || skip "uffda was built without librados"
ceph_can_run || skip "$ceph_why"
ceph_start "$work/ceph" bluestore 2 2 || { bad "start of Ceph" "$ceph_why"; conclude; }

make_data "$work/model" $((24 * 1024 * 1024 + 4321))
"$UFFDA" put "$work/model" "rados:uffda/disk?object-size=256K" > "$work/said" 2> "$work/errors"
same "put: status" 0 $?
: > "$work/shown"
mkfifo "$work/ready"

# start_server OPTION...: its pid in $server when it listens.
start_server() {
  "$UFFDA" serve --export "disk=rados:uffda/disk,rw" --budget 3M --socket "$work/server.sock" --ready-fd 3 "$@" \
    3> "$work/ready" 2>> "$work/server.log" &
  server=$!
  background+=($server)
  read -r _ < "$work/ready"
}
held_server() { cut -d ' ' -f 1 "/proc/$server/task/$server/children"; }
writer_record() { rados -c "$CEPH_CONF" -p uffda getxattr disk uffda.writer 2> /dev/null; }
is_written_by_another() { [ "$(writer_record)" != "$1" ]; }
start_writer() {
  "$UFFDA" exec --server "$work/server.sock" --map "$work/shown=disk,rw" -- python3 "$here/rados_writes.py" "$work/shown" "$work/model" "$1" \
    > "$work/got" 2> "$work/errors" &
  writer=$!
  background+=($writer)
  wait_until grep -q half "$work/got"
}
finished_right() {
  wait $writer
  same "$1: status" 0 $?
  same "$1: all is stored" stored "$(tail -n 1 "$work/got")"
  same "$1: no message" "" "$(grep -v ' rounds$' "$work/errors" | head -n 5)"
}
is_stored() {
  : > "$work/readable"
  "$UFFDA" exec --map "$work/readable=rados:uffda/disk" -- cmp "$work/readable" "$work/model" > "$work/compared" 2>&1
  same "$1: another reader finds every byte" "0 " "$? $(head -n 3 "$work/compared")"
}

start_server --holder
start_writer 8
ceph_kill osd.0
read -r -t 2 _ < <(sleep 2)  # written to with one of them
ceph_start_osd 0
finished_right "an OSD killed and restarted"
is_stored "an OSD killed and restarted"
ceph_wait_up || bad "the OSD came back"

start_writer 8
for _ in 1 2 3 4; do
  was=$(writer_record)
  kill -KILL "$(held_server)"
  wait_until is_written_by_another "$was"
  read -r -t 0.5 _ < <(sleep 0.5)  # it goes on for a while
done
finished_right "the server killed four times"
is_stored "the server killed four times"
kill $server
wait $server

start_server
"$UFFDA" serve --export "disk=rados:uffda/disk,rw" --socket "$work/second.sock" > "$work/second" 2>&1
same "a second writer is refused" 1 $?
contains "and told who writes" "process $server on" "$work/second"
start_writer 1000
kill -KILL $server
kill $writer
wait $server 2> /dev/null
began=$(date +%s%N)
start_server
took=$((($(date +%s%N) - began) / 1000000))
echo "opened $took ms after the last one was killed"
[ $took -lt 10000 ] && ok "a killed writer keeps nobody waiting" || bad "a killed writer keeps nobody waiting" "$took ms"
same "each of the five that were killed is kept out" 5 "$(ceph_cli osd blocklist ls 2> /dev/null | grep -c '^[0-9]')"
kill $server
wait $server
status=$?
same "it ends well" 0 $status
[ $status = 0 ] || tail -n 5 "$work/server.log"
ceph_stop
conclude
