#!/usr/bin/env bash
# Runs the benchmarks of build/release/bench and prints one table. Figures in full: build/bench/*.json, and all of them in
# build/bench/results.json. Needs 3 GiB of disk and 4 GiB of memory, and a machine with nothing else to do.
# Usage: bench/run.sh [--quick]
set -euo pipefail
cd "$(dirname "$0")/.."
programs=${UFFDA_BUILD:-build/release}/bench
export UFFDA_PLUGINS=${UFFDA_PLUGINS:-$PWD/${programs%/bench}/plugins}
out=build/bench
mkdir -p "$out"
trap 'fusermount3 -u -z "$out/fuse" 2>/dev/null || true' EXIT

read -r load _ </proc/loadavg
if awk -v load="$load" -v cpus="$(nproc)" 'BEGIN { exit !(load > cpus / 2) }'; then
  printf 'bench: this machine is busy (load %s): ratios hold better than figures do\n' "$load" >&2
fi

written=()
for name in fault_path scan cold budget stages latency pack http nbd; do
  printf '%s\n' "$name" >&2
  "$programs/$name" --dir "$out" --json "$out/$name.json" "$@"
  written+=("$out/$name.json")
done
printf 'main_job\n' >&2
python3 bench/main_job.py --dir "$out" --json "$out/main_job.json" "$@"
written+=("$out/main_job.json")
printf 'rados\n' >&2
bench/rados.sh --json "$PWD/$out/rados.json" "$@"
written+=("$out/rados.json")
printf '\n'
"$programs/table" "$out/results.json" "${written[@]}"
