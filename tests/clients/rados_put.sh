#!/bin/bash
# uffda put: to files, and to a real Ceph cluster and back; what is there already, what is interrupted, what is killed.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$here/_ceph.sh"
data=$work/data
make_data "$data" $((21 * 1024 * 1024 + 77))

# --- file: ------------------------------------------------------------------------------------------------------------
"$UFFDA" put "$data" "file:$work/copy" > "$work/said" 2> "$work/errors"
same "file: status" 0 $?
contains "file: what was stored is said" "21 MiB stored" "$work/said"
same "file: the bytes" same "$(cmp "$data" "$work/copy" && echo same)"
smaller=$(($(stat -c %b "$work/copy") * 512 < $(stat -c %s "$data") - 2 * 1024 * 1024))
same "file: zeroes are holes" 1 "$smaller"
"$UFFDA" put "$data" "file:$work/copy" 2> "$work/errors"
same "file: an existing one is refused" 1 $?
contains "file: with the remedy" "--replace" "$work/errors"
head -c 5000 "$data" > "$work/short"
"$UFFDA" put --replace "$work/short" "file:$work/copy" > /dev/null
same "file: --replace" same "$(cmp "$work/short" "$work/copy" && echo same)"
"$UFFDA" put "error+file:$data?after=3" "file:$work/broken" 2> "$work/errors"
same "file: an input that fails" 1 $?
same "file: leaves nothing, under no name" "" "$(find "$work" -name '*broken*')"
"$UFFDA" put "$work/none" "file:$work/broken" 2> "$work/errors"
contains "file: an input that is not there" "No such file" "$work/errors"
"$UFFDA" put "$data" zero:1M 2> "$work/errors"
contains "a source that is read only says so" "can be read and not stored to" "$work/errors"
"$UFFDA" put "$data" 2> "$work/errors"
same "one word is a usage error" 2 $?

# --- rados: -----------------------------------------------------------------------------------------------------------
[ -e "$UFFDA_BUILD/plugins/uffda-rados.so" ] || skip "uffda was built without librados"
ceph_can_run || skip "$ceph_why"
ceph_start "$work/ceph" || { bad "start of Ceph" "$ceph_why"; conclude; }
"$UFFDA" put "$data" rados:uffda/disk > "$work/said" 2> "$work/errors"
same "rados: status" 0 $?
same "rados: a header and six pieces" 6 "$(rados -p uffda ls | grep -c '^disk\.')"
"$UFFDA" put rados:uffda/disk "file:$work/back" > /dev/null 2> "$work/errors"
same "rados: there and back" same "$(cmp "$data" "$work/back" && echo same)"
"$UFFDA" put "$data" rados:uffda/disk 2> "$work/errors"
same "rados: an existing one is refused" 1 $?
contains "rados: with the remedy" "--replace" "$work/errors"
"$UFFDA" put --replace "$work/short" rados:uffda/disk > /dev/null 2> "$work/errors"
same "rados: --replace" 0 $?
same "rados: the old pieces are gone" 1 "$(rados -p uffda ls | grep -c '^disk\.')"
"$UFFDA" put "error+file:$data?after=3" rados:uffda/broken 2> "$work/errors"
same "rados: an input that fails" 1 $?
same "rados: leaves nothing" "" "$(rados -p uffda ls | grep '^broken')"
"$UFFDA" pack "$data" "$work/data.pack" > "$work/said"
"$UFFDA" put "$work/data.pack" rados:uffda/packed > "$work/said" 2> "$work/errors"
same "rados: a pack" 0 $?
same "rados: its contents, through the host cache" same "$("$UFFDA" exec \
  --map "$work/shown=pack+cache+rados:uffda/packed?dir=$work/cache&size=64M" -- cmp "$data" "$work/shown" && echo same)"
contains "rados: verify reads it there" "are right" <("$UFFDA" verify "pack+rados:uffda/packed")

# An input that stops answering in the middle, so that pieces are stored and the end never comes.
has_pieces() { rados -p uffda ls | grep -q "^$1\."; }
put_endlessly() {
  "$UFFDA" put "error+file:$data?mode=never&after=18" "rados:uffda/$1" > "$work/said" 2> "$work/errors" &
  endless=$!
  background+=($endless)
  wait_until has_pieces "$1"
}
put_endlessly interrupted
kill -INT $endless
wait $endless
same "rados: interrupted" 130 $?
contains "rados: and says so" "nothing was stored" "$work/errors"
same "rados: leaves nothing" "" "$(rados -p uffda ls | grep '^interrupted')"
put_endlessly killed
kill -KILL $endless
wait $endless 2> /dev/null
"$UFFDA" put rados:uffda/killed "file:$work/none" 2> "$work/errors"
same "rados: killed, there is nothing to open" 1 $?
contains "rados: as if it had never been" "no such object" "$work/errors"

if can_exec_here=$(can_exec); then
  : > "$work/shown"
  "$UFFDA" put --replace "$data" rados:uffda/disk > /dev/null
  "$UFFDA" exec --map "$work/shown=rados:uffda/disk" -- cat "$work/shown" | cmp - "$data"
  same "rados: under exec" "0 0" "${PIPESTATUS[*]}"
else
  echo "skip rados under exec: ${can_exec_here#skipped: }"
fi
ceph_stop
conclude
