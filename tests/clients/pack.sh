#!/bin/bash
# `uffda pack`, `unpack`, `inspect`, `verify`: the same bytes come back, the same bytes are written each time, nothing
# stays of what was interrupted, and a damaged frame is an error there and nowhere else.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$work" || exit 1
make_data data 3000123
truncate -s 20M sparse && dd if=data of=sparse bs=4096 seek=2000 conv=notrunc status=none
hash_of() { sha256sum < "$1" | cut -d' ' -f1; }

# --- there and back ---------------------------------------------------------------------------------------------------
for input in data sparse; do
  for frame in 4K 64K 1M; do
    "$UFFDA" pack "$input" "$input.pack" --frame $frame > log 2> errors && "$UFFDA" unpack "$input.pack" out 2>> errors
    same "$input, frames of $frame: unpacked" "$(hash_of "$input")" "$(hash_of out)"
    "$UFFDA" verify "$input.pack" > log 2>> errors
    same "$input, frames of $frame: verified" 0 $?
  done
done
same "unpacked with holes" yes "$([ "$(stat -c %b out)" -lt 9000 ] && echo yes)"
same "a pack of a pack's contents" "$(hash_of sparse)" "$("$UFFDA" pack pack:sparse.pack again.pack > log && "$UFFDA" unpack again.pack out && hash_of out)"
"$UFFDA" pack zero:1G zeroes.pack > log
same "zeroes cost next to nothing" yes "$([ "$(stat -c %s zeroes.pack)" -lt 600000 ] && echo yes)"
same "the mode is that of any new file" "$(touch plain && stat -c %a plain)" "$(stat -c %a data.pack)"

# --- determinism ------------------------------------------------------------------------------------------------------
"$UFFDA" pack sparse one.pack --metadata b=2 --metadata a=1 > log
taskset -c 0 "$UFFDA" pack sparse two.pack --metadata a=1 --metadata b=2 > log
same "the same on one CPU and on all" "$(hash_of one.pack)" "$(hash_of two.pack)"
cp sparse dense && cp --sparse=never sparse dense
"$UFFDA" pack dense two.pack --metadata a=1 --metadata b=2 > log
same "the same with holes and without" "$(hash_of one.pack)" "$(hash_of two.pack)"

# --- a chain ----------------------------------------------------------------------------------------------------------
cp data monday && "$UFFDA" pack monday monday.pack > log
cp monday tuesday && printf 'changed' | dd of=tuesday bs=1 seek=1000000 conv=notrunc status=none
"$UFFDA" pack tuesday tuesday.pack --base monday.pack > log
cp tuesday wednesday && printf 'changed' | dd of=wednesday bs=1 seek=2000000 conv=notrunc status=none
"$UFFDA" pack wednesday wednesday.pack --base tuesday.pack > log
same "an increment is small" yes "$([ "$(stat -c %s wednesday.pack)" -lt 100000 ] && echo yes)"
"$UFFDA" unpack wednesday.pack out
same "a chain of three" "$(hash_of wednesday)" "$(hash_of out)"
"$UFFDA" verify wednesday.pack > log
contains "verify goes through the chain" "through 3 packs" log
mkdir -p old && mv monday.pack old/
"$UFFDA" verify wednesday.pack > log 2> errors
same "without the base: status" 1 $?
contains "without the base: says what to do" "base=PATH" errors
mkdir -p all && cp old/monday.pack tuesday.pack all/
same "bases in a directory of their own" "$(hash_of wednesday)" "$("$UFFDA" unpack "pack:wednesday.pack?base=all" out && hash_of out)"
"$UFFDA" pack data all/tuesday.pack --base all/tuesday.pack > log 2> errors
same "the base is not overwritten" 1 $?

# --- inspect ----------------------------------------------------------------------------------------------------------
"$UFFDA" inspect tuesday.pack --map > log
contains "inspect works without the base" "monday.pack" log
"$UFFDA" inspect one.pack --json > report.json
same "inspect --json" "{'a': '1', 'b': '2'} 20971520 True" \
  "$(python3 -c 'import json; r=json.load(open("report.json")); print(r["metadata"], r["size"], r["kinds"]["zero"]["contents"] > 15 << 20)')"

# --- the reader that knows nothing of uffda ---------------------------------------------------------------------------
if cc -O1 "$root/docs/formats/pack_reader.c" -o reader -lzstd -lxxhash 2> errors; then
  same "it has 150 lines at most" yes "$([ "$(wc -l < "$root/docs/formats/pack_reader.c")" -le 150 ] && echo yes)"
  same "it reads a pack" "$(hash_of sparse)" "$(./reader one.pack | sha256sum | cut -d' ' -f1)"
  same "it reads a chain" "$(hash_of wednesday)" "$(./reader wednesday.pack tuesday.pack old/monday.pack | sha256sum | cut -d' ' -f1)"
  ./reader wednesday.pack old/monday.pack > out 2> errors
  same "it refuses the wrong base" 1 $?
else
  echo "skip pack_reader.c: $(head -n 1 errors)"
fi

# --- nothing half done ------------------------------------------------------------------------------------------------
mkdir clean
echo old > clean/out.pack
has_threads() { [ "$(ls /proc/$packer/task 2> /dev/null | wc -l)" -gt 1 ]; }
# A source that never answers keeps pack in the middle of its work.
"$UFFDA" pack "error+file:$work/sparse?mode=never&range=10M-11M" clean/out.pack > log 2> errors & packer=$!
background=($packer)
wait_until has_threads
kill -KILL $packer && wait $packer 2> /dev/null
same "killed: only the old file is there" "out.pack old" "$(ls -A clean) $(cat clean/out.pack)"
"$UFFDA" pack "error+file:$work/sparse?range=9000K-9100K" clean/out.pack > log 2> errors
same "a source that fails: status" 1 $?
same "a source that fails: only the old file is there" "out.pack old" "$(ls -A clean) $(cat clean/out.pack)"
# One that is slow keeps it there for minutes.
"$UFFDA" pack "delay+file:$work/dense?delay=100ms" clean/out.pack --frame 4K > log 2> errors & packer=$!
background=($packer)
wait_until has_threads
kill -TERM $packer && wait $packer
same "interrupted: status" 143 $?
same "interrupted: only the old file is there" "out.pack old" "$(ls -A clean) $(cat clean/out.pack)"
background=()
"$UFFDA" pack data clean/out.pack > log && "$UFFDA" verify clean/out.pack > log
same "a new pack takes the place of the old file" "0 out.pack" "$? $(ls -A clean)"
"$UFFDA" pack data /dev/null > log 2> errors
same "a device is not overwritten" "1 character special file" "$? $(stat -c %F /dev/null)"

# --- damage -----------------------------------------------------------------------------------------------------------
head -c 100000 data.pack > short.pack
"$UFFDA" verify short.pack > log 2> errors
same "a truncated pack is refused" 1 $?
contains "a truncated pack: says so" "truncated" errors
"$UFFDA" pack data hurt.pack > log && cp hurt.pack good.pack
# Frame 3 of 64 KiB is of random bytes, stored as they are: bytes 196608 to 262144.
printf '\377\0\377\0' | dd of=hurt.pack bs=1 seek=$((256 + 200000)) conv=notrunc status=none
"$UFFDA" verify hurt.pack > log 2> errors
same "verify: status" 1 $?
contains "verify: the frame" "frame 3, bytes 196608 to 262144" log
"$UFFDA" unpack hurt.pack clean/none 2> errors
same "unpack: fails and writes nothing" "1 out.pack" "$? $(ls -A clean)"

# --- memory -----------------------------------------------------------------------------------------------------------
if [ -r /dev/fuse ] && [ -w /dev/fuse ] && unshare -m true 2> /dev/null; then
  : > shown
  run() { timeout 100 "$UFFDA" exec --map "$work/shown=$1" -- "${@:2}"; }
  same "exec: sha256sum" "$(hash_of wednesday)" "$(run "pack:$work/wednesday.pack?base=$work/all" sha256sum "$work/shown" | cut -d' ' -f1)"
  crawl=$UFFDA_BUILD/tests/clients/exec_mmap
  [ -x "$crawl" ] || skip "no $crawl"
  run "pack:$work/good.pack" "$crawl" "$work/shown" --crawl > wanted 2> errors
  run "pack:$work/hurt.pack" "$crawl" "$work/shown" --crawl > got 2> errors
  same "mapped: SIGBUS at the damaged frame, bytes elsewhere" \
    "" "$(sed -E 's/^page (4[89]|5[0-9]|6[0-3]) .*/bus \1/' wanted | diff - got | head -n 5)"
  contains "mapped: a message with the frame" "frame 3" errors
  run "pack:$work/hurt.pack" dd if="$work/shown" bs=4096 skip=50 count=1 status=none > out 2> errors
  contains "read: EIO in the damaged frame" "Input/output error" errors
  run "pack:$work/hurt.pack" dd if="$work/shown" bs=65536 skip=4 count=4 status=none > out 2> errors
  same "read: the frames behind it" "$(dd if=data bs=65536 skip=4 count=4 status=none | sha256sum)" "$(sha256sum < out)"
  if command -v sqlite3 > log; then
    sqlite3 base.db 'create table t as with recursive n(i) as (select 1 union all select i + 1 from n where i < 50000) select i, hex(i * 7919) h from n'
    "$UFFDA" pack base.db base.pack > log
    same "exec: sqlite3" "$(sqlite3 base.db 'select count(*), max(h) from t')" \
      "$(run "pack:$work/base.pack" sqlite3 "$work/shown" 'select count(*), max(h) from t')"
  fi
else
  echo "skip memory: needs /dev/fuse and the right to make a mount namespace"
fi
conclude
