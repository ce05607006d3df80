#!/bin/bash
# The whole cluster goes away and stays away: SIGBUS or EIO at the deadline for what was not there yet, and no wrong byte.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$here/_ceph.sh"
can_exec
crawl=$UFFDA_BUILD/tests/clients/exec_mmap
[ -x "$crawl" ] || skip "no $crawl"
[ -e "$UFFDA_BUILD/plugins/uffda-rados.so" ] || skip "uffda was built without librados"
ceph_can_run || skip "$ceph_why"
ceph_start "$work/ceph" || { bad "start of Ceph" "$ceph_why"; conclude; }

pages=2400  # the core reads 1024 of them ahead
make_data "$work/data" $((pages * 4096 - 10))
"$UFFDA" put "$work/data" rados:uffda/disk > "$work/said" 2> "$work/errors"
same "put: status" 0 $?
"$crawl" "$work/data" --crawl > "$work/wanted"
: > "$work/shown"
mkfifo "$work/go"

"$UFFDA" exec --deadline 300ms --map "$work/shown=rados:uffda/disk" -- "$crawl" "$work/shown" --crawl --pause "$work/go" \
  > "$work/got" 2> "$work/errors" &
reader=$!
background+=($reader)
wait_until grep -q half "$work/got"
ceph_stop
echo > "$work/go"
wait $reader
same "mapped: the program's status" 0 $?
same "mapped: every page is accounted for" $pages "$(grep -vc half "$work/got")"
same "mapped: some raise SIGBUS" yes "$(grep -q '^bus' "$work/got" && echo yes)"
same "mapped: the others are right" "" "$(grep '^page' "$work/got" | grep -vxFf "$work/wanted" | head -n 5)"
contains "mapped: a message" "uffda: $work/shown: [" "$work/errors"

timeout 60 "$UFFDA" exec --map "$work/shown=rados:uffda/disk?timeout=1s" -- true > "$work/said" 2> "$work/errors"
[ $? != 0 ] && ok "opening it fails" || bad "opening it fails"
contains "opening it: with what to look at" "no monitor answered" "$work/errors"
conclude
