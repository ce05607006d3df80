#!/bin/bash
# --record, --prefetch and --populate: what a first run touched is there before a second one asks, and everything is after
# --populate; the bytes are right each time.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
make_data "$work/data" 8388608
# Pages 5, 1000 to 1099 and 300, in this order.
cat > "$work/touch.py" <<'PY'
import hashlib, mmap, sys
with open(sys.argv[1], "rb") as f:
    data = mmap.mmap(f.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
pages = [5, *range(1000, 1100), 300]
print(hashlib.sha256(b"".join(data[p * 4096:p * 4096 + 4096] for p in pages)).hexdigest())
PY
wanted=$(python3 "$work/touch.py" "$work/data")
json() { python3 -c 'import json, sys; r = json.load(open(sys.argv[1])); print(eval(sys.argv[2]))' "$1" "$2"; }
source=delay+file:$work/data?delay=2ms

same "recording changes nothing" "$wanted" \
  "$("$UFFDA" exec --map "$work/shown=$source" --record "$work/ws" -- python3 "$work/touch.py" "$work/shown")"
python3 - "$work/ws" > "$work/listed" <<'PY'
import struct, sys, zlib
data = open(sys.argv[1], "rb").read()
magic, version, objects, size, checksum, zero = struct.unpack_from("<8sIIQII", data)
assert magic == b"uffda-ws" and version == 1 and size == len(data) and checksum == zlib.crc32(data[32:])
length, folio, flags, name_bytes, runs = struct.unpack_from("<QQIIQ", data, 32)
at = 64 + (name_bytes + 7) // 8 * 8
pages = [p for first, count, ms in struct.iter_unpack("<QII", data[at:at + 16 * runs]) for p in range(first, first + count)]
print(pages[0], 300 in pages, all(p in pages for p in range(1000, 1100)), 4000 in pages, len(pages) == len(set(pages)))
PY
same "the file has what was touched, in order" "5 True True False True" "$(cat "$work/listed")"

same "a second run reads the same" "$wanted" \
  "$("$UFFDA" exec --map "$work/shown=$source" --prefetch "$work/ws" --report "$work/report" -- \
    python3 "$work/touch.py" "$work/shown")"
same "its report counts" True "$(json "$work/report" 'r["exports"][0]["prefetch"]["wanted_bytes"] >= 102 * 4096')"

# start ARGUMENTS...: a server of "it".
start() {
  "$UFFDA" serve --export "it=$source" --socket "$work/socket" "$@" 2> "$work/log" &
  background=($!)
  wait_until test -S "$work/socket"
}
stop() { kill -TERM "${background[0]}"; wait "${background[0]}"; }
# client FILE PROGRAM...: runs it, and has the server's report in FILE.
client() {
  local report=$1
  shift
  "$UFFDA" exec --server "$work/socket" --map "$work/shown=it" --report "$report" -- "$@"
}
prefetched() { client "$work/report" true && [ "$(json "$work/report" 'r["exports"][0]["prefetch"]["end"]')" = complete ]; }
start --prefetch "$work/ws"
wait_until prefetched
same "what was prefetched is right" "$wanted" "$(client "$work/report" python3 "$work/touch.py" "$work/shown")"
same "all of what was recorded was found" True "$(json "$work/report" 'r["exports"][0]["prefetch"]["hit_bytes"] >= 102 * 4096')"
same "nobody waited for the source" 0 "$(json "$work/report" 'r["faults"]["missing"]')"
stop

# In a pack: found without a word, unless one does not want it.
"$UFFDA" pack "$work/data" "$work/with.pack" --working-set "$work/ws" > "$work/said"
same "a pack that is made with a recording" 0 $?
"$UFFDA" pack "$work/data" "$work/data.pack" > "$work/said" && "$UFFDA" pack --working-set "$work/ws" "$work/data.pack" > "$work/said"
same "a pack that gets one" 0 $?
contains "says so" "keeps the working set" "$work/said"
same "they are the same" 0 "$(cmp "$work/with.pack" "$work/data.pack"; echo $?)"
source="delay+pack:$work/data.pack?delay=2ms"
start
wait_until prefetched
same "what the pack's recording brought is right" "$wanted" "$(client "$work/report" python3 "$work/touch.py" "$work/shown")"
same "nobody waited for the pack" 0 "$(json "$work/report" 'r["faults"]["missing"]')"
stop
start --no-prefetch
same "--no-prefetch: right, too" "$wanted" "$(client "$work/report" python3 "$work/touch.py" "$work/shown")"
same "and nothing is prefetched" False "$(json "$work/report" '"prefetch" in r["exports"][0]')"
stop
"$UFFDA" pack --working-set "$work/ws" "$work/touch.py" "$work/other.pack" 2> "$work/log"
same "a recording of something else is refused" 1 $?
contains "with what is needed" "has no working sets of" "$work/log"
cp "$work/data" "$work/copy"
"$UFFDA" exec --map "$work/a=file:$work/data" --map "$work/b=file:$work/copy" --record "$work/two" -- cmp "$work/a" "$work/b"
"$UFFDA" pack --working-set "$work/two" "$work/data.pack" 2> "$work/log"
same "of two recordings that fit none is chosen" 1 $?
contains "with the reason" "has several working sets of" "$work/log"
# The recording is the last of the pack's file: its damage costs the prefetch, and no byte.
printf x | dd of="$work/data.pack" bs=1 seek=$(($(stat -c %s "$work/data.pack") - 5)) conv=notrunc status=none
same "a damaged recording in a pack changes nothing" "$wanted" \
  "$("$UFFDA" exec --map "$work/shown=pack:$work/data.pack" -- python3 "$work/touch.py" "$work/shown" 2> "$work/log")"
contains "but is told" "nothing of it is prefetched" "$work/log"
source=delay+file:$work/data?delay=2ms

same "a damaged recording is refused" 1 "$(printf x | dd of="$work/ws" bs=1 seek=40 conv=notrunc status=none
  "$UFFDA" exec --map "$work/shown=$source" --prefetch "$work/ws" -- true 2> "$work/log"; echo $?)"
contains "with the reason" "checksum" "$work/log"
"$UFFDA" exec --map "$work/shown=$source" --record /nonexistent/ws -- true 2> "$work/log"
same "a recording that cannot be written is refused at the start" 1 $?
contains "with the file's name" "/nonexistent/ws" "$work/log"

# A server: populated while nobody asks, with a limit that is kept.
start --populate --populate-rate 64M --record "$work/served" --report "$work/report"
same "a client of a server that populates" "$wanted" \
  "$(client "$work/client" python3 "$work/touch.py" "$work/shown")"
all_there='r["populate"]["end"] == "complete" and r["exports"][0]["folios_present"] == r["exports"][0]["folios"]'
populated() { client "$work/client" true && [ "$(json "$work/client" "$all_there")" = True ]; }
wait_until populated && ok "all of it is there in the end"
stop
same "the server recorded what its clients touched" "uffda-ws" "$(head -c 8 "$work/served")"
same "and ended well" 0 "$(json "$work/report" 'r["populate"]["left_bytes"]')"

"$UFFDA" exec --server "$work/socket" --map "$work/shown=it" --populate -- true 2> "$work/log"
same "with --server it is that server's business: status" 2 $?
"$UFFDA" serve --export "it=$source" --socket "$work/socket" --populate-rate 1M 2> "$work/log"
same "a rate without --populate: status" 2 $?
conclude
