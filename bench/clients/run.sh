#!/usr/bin/env bash
# Runs the benchmarks of real clients, and prints one table. Figures in full: build/bench/clients/*.json. What is missing here
# (KVM, QEMU, CRIU) is skipped, with the reason. Usage: bench/clients/run.sh [--quick]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${UFFDA_BUILD:-$PWD/build/release}
out=build/bench/clients
mkdir -p "$out"
written=()
# measure NAME COMMAND...: it writes $out/NAME.json.
measure() {
  local name=$1
  shift
  printf '%s\n' "$name" >&2
  "$@" --dir "$out" --json "$out/$name.json"
  written+=("$out/$name.json")
}
if command -v qemu-system-x86_64 >/dev/null && scripts/guest; then
  UFFDA=${UFFDA:-$build/uffda} python3 bench/qemu.py --dir "$out" --json "$out/qemu.json" "$@"  # prints a table of its own
else
  printf 'qemu: skipped: no qemu-system-x86_64, or no guest for it\n'
fi
measure firecracker "$build/bench/firecracker" --uffda "$build/uffda" "$@"
printf '\n'
"$build/bench/table" "$out/results.json" "${written[@]}"
"$PWD/bench/clients/criu.sh" || [ $? = 77 ]
