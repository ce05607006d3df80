#!/usr/bin/env bash
# A lazy restore of one process, with CRIU's own daemon and with uffda in its place: the time until criu restore returns, and
# until all pages are there. UFFDA_BENCH_MIB (default 1024) of pattern; medians of UFFDA_BENCH_RUNS (default 5) interleaved runs.
# The ratios are what counts: at most 1.15 and 0.8 are wanted. JSON goes to build/bench/clients/criu.json.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$root/tests/clients/lib.sh"
. "$root/tests/clients/_criu.sh"
can_criu
mib=${UFFDA_BENCH_MIB:-1024} runs=${UFFDA_BENCH_RUNS:-5} dir=$work/dump
dump_lazy_task "$dir" || exit 1

theirs() {
  rm -f "$dir/images/lazy-pages.socket"
  "$criu" lazy-pages -D "$dir/images" -W "$dir/images" -o lazy.log < /dev/null > /dev/null 2>&1 &
  daemon=$!
  wait_until test -S "$dir/images/lazy-pages.socket"
}
ours() { serve_lazily "$dir"; }

# measure WHO: seconds until the restore has returned, and until the daemon has ended.
measure() {
  local from back
  "$1"
  from=$EPOCHREALTIME
  restore_lazily "$dir" || exit 1
  back=$EPOCHREALTIME
  wait "$daemon" || { bad "$1"; exit 1; }
  echo "$1 $(python3 -c 'import sys; a, b, c = map(float, sys.argv[1:]); print(b - a, c - a)' "$from" "$back" "$EPOCHREALTIME")" \
    >> "$work/times"
  check "$1" "$dir" 1 "parent right;" > /dev/null
  [ "$failed" = 0 ] || { echo "wrong pages with $1"; exit 1; }
  kill -KILL "$pid"
  wait_until gone "$pid"
}
for ((run = 0; run < runs; run++)); do
  measure theirs
  measure ours
done
mkdir -p "$root/build/bench/clients"
python3 - "$work/times" "$mib" "$root/build/bench/clients/criu.json" <<'PY'
import json, statistics, sys
times = {"theirs": ([], []), "ours": ([], [])}
for line in open(sys.argv[1]):
    who, back, filled = line.split()
    times[who][0].append(float(back))
    times[who][1].append(float(filled))
median = {who: [statistics.median(part) for part in parts] for who, parts in times.items()}
result = {"mib": int(sys.argv[2])}
print(f"lazy restore of {sys.argv[2]} MiB   CRIU's daemon   uffda   ratio (wanted)")
for i, (name, limit) in enumerate([("restore returns", 1.15), ("all pages in", 0.8)]):
    ratio = median["ours"][i] / median["theirs"][i]
    print(f"  {name:<26} {median['theirs'][i]:>9.3f} s {median['ours'][i]:>7.3f} s   {ratio:.2f} ({limit})")
    result[name] = {"theirs_s": median["theirs"][i], "ours_s": median["ours"][i], "ratio": ratio, "wanted": limit}
json.dump(result, open(sys.argv[3], "w"), indent=1)
PY
