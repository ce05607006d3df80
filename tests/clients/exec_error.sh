#!/bin/bash
# A source that fails: SIGBUS (mapped) or EIO (read) at exactly the failed range, everything else right, one message; --on-error=kill.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
crawl=$UFFDA_BUILD/tests/clients/exec_mmap
[ -x "$crawl" ] || skip "no $crawl"
pages=600
make_data "$work/data" $((pages * 4096 - 100))
: > "$work/shown"
# Bytes 1,000,000 to 1,008,000 lie in the pages 244, 245 and 246.
source="error+file:$work/data?range=1000000-1008000"
run() { timeout 100 "$UFFDA" exec --map "$work/shown=$source" "$@"; }
"$crawl" "$work/data" --crawl | sed -E 's/^page (244|245|246) .*/bus \1/' > "$work/wanted"

# --- memory -----------------------------------------------------------------------------------------------------------
run -- "$crawl" "$work/shown" --crawl > "$work/got" 2> "$work/errors"
same "mapped: the program's status" 0 $?
same "mapped: SIGBUS at the failed pages, bytes elsewhere" "" "$(diff "$work/wanted" "$work/got" | head -n 5)"
contains "mapped: a message with PATH" "uffda: $work/shown: [" "$work/errors"
same "mapped: each range once" "" "$(grep -o 'uffda: .*: \[[^)]*)' "$work/errors" | sort | uniq -d)"
run --no-preload -- "$crawl" "$work/shown" --crawl > "$work/got" 2> "$work/errors"
same "mapped through FUSE: the same" "" "$(diff "$work/wanted" "$work/got" | head -n 5)"

# --- system calls -----------------------------------------------------------------------------------------------------
head -c $((244 * 4096)) "$work/data" > "$work/before"
tail -c +$((247 * 4096 + 1)) "$work/data" > "$work/after"
run -- cat "$work/shown" > "$work/got" 2> "$work/errors"
same "read: the program fails" 1 $?
contains "read: with EIO" "Input/output error" "$work/errors"
same "read: the bytes before are right" "same" "$(cmp "$work/before" "$work/got" && echo same)"
run -- tail -c +$((247 * 4096 + 1)) "$work/shown" > "$work/got" 2> "$work/errors"
same "read: the bytes after are right" "same" "$(cmp "$work/after" "$work/got" && echo same)"
for page in 243 244 245 246 247; do
  run -- dd if="$work/shown" bs=4096 skip=$page count=1 status=none > "$work/got" 2> "$work/errors"
  status=$?
  case $page in
    243 | 247) same "read of page $page" "0 same" "$status $(dd if="$work/data" bs=4096 skip=$page count=1 status=none | cmp - "$work/got" && echo same)" ;;
    *) same "read of page $page" "1 0" "$status $(stat -c %s "$work/got")" ;;
  esac
done

# --- kill -------------------------------------------------------------------------------------------------------------
mkfifo "$work/never"
python3 - "$UFFDA" "$work" "$source" "$crawl" <<'PY' > "$work/killed" 2> "$work/errors"
import subprocess, sys
uffda, work, source, crawl = sys.argv[1:]
done = subprocess.run([uffda, "exec", "--on-error", "kill", "--map", f"{work}/shown={source}", "--",
                       crawl, f"{work}/shown", "--crawl", "--pause", f"{work}/never"], stdout=subprocess.DEVNULL)
print("status", done.returncode)
PY
same "--on-error=kill: killed, as uffda is" "status -9" "$(cat "$work/killed")"
contains "--on-error=kill: a message" "uffda: $work/shown: [" "$work/errors"

# --- a source that never answers --------------------------------------------------------------------------------------
source="$source&mode=never"
run --warn-after 100ms --deadline 1s -- "$crawl" "$work/shown" --crawl > "$work/got" 2> "$work/errors"
# The whole fetch that has no answer is given up: more pages than asked for may fail, but no byte is wrong.
same "no answer: SIGBUS at the deadline" 3 "$(grep -cxE 'bus (244|245|246)' "$work/got")"
same "no answer: no wrong byte" "" "$(grep '^page' "$work/got" | grep -vxFf "$work/wanted" | head -n 5)"
same "no answer: every page is accounted for" $pages "$(wc -l < "$work/got")"
contains "no answer: a message" "uffda: $work/shown: [" "$work/errors"
conclude
