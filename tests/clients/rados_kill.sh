#!/bin/bash
# Two OSDs with every object on both: one is killed in the middle of a restore and comes back. No error, no wrong byte.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$here/_ceph.sh"
can_exec
crawl=$UFFDA_BUILD/tests/clients/exec_mmap
[ -x "$crawl" ] || skip "no $crawl"
[ -e "$UFFDA_BUILD/plugins/uffda-rados.so" ] || skip "uffda was built without librados"
ceph_can_run || skip "$ceph_why"
ceph_start "$work/ceph" bluestore 2 2 || { bad "start of Ceph" "$ceph_why"; conclude; }

make_data "$work/data" $((48 * 1024 * 1024 + 4321))
"$UFFDA" put "$work/data" rados:uffda/disk > "$work/said" 2> "$work/errors"
same "put: status" 0 $?
"$crawl" "$work/data" --crawl > "$work/wanted"
: > "$work/shown"
mkfifo "$work/go"

# restore NAME OPTION...: reads every page, and stops in the middle until somebody writes to `go`.
restore() {
  # How long an OSD takes to come back is the machine's business: a warning is not what this asks for.
  "$UFFDA" exec --warn-after 29s --map "$work/shown=rados:uffda/disk" "$@" -- "$crawl" "$work/shown" --crawl --pause "$work/go" \
    > "$work/got" 2> "$work/errors" &
  reader=$!
  background+=($reader)
  wait_until grep -q half "$work/got"
}
finished_right() {
  wait $reader
  same "$1: status" 0 $?
  same "$1: every page is right" "" "$(grep -v half "$work/got" | diff "$work/wanted" - | head -n 5)"
  same "$1: no message" "" "$(cat "$work/errors")"
}

for way in mapped through-FUSE; do
  option=()
  [ $way = mapped ] || option=(--no-preload)
  restore ${option[@]+"${option[@]}"}
  ceph_kill osd.0
  echo > "$work/go"  # the second half is asked for while it is down
  ceph_start_osd 0
  finished_right "$way, one killed and restarted"
  ceph_wait_up || bad "the OSD came back"
done
ceph_stop
conclude
