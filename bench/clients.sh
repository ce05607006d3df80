#!/usr/bin/env bash
# Real clients restored through uffda, beside what they do without it. One part for each client; a part that cannot run here
# says why. Figures: build/bench/NAME.json. Usage: bench/clients.sh [--quick]
set -euo pipefail
cd "$(dirname "$0")/.."
export UFFDA=${UFFDA:-$PWD/build/release/uffda}
out=build/bench
mkdir -p "$out"
status=0

qemu() {
  command -v qemu-system-x86_64 >/dev/null || { printf 'qemu: skipped: no qemu-system-x86_64\n'; return 0; }
  scripts/guest || { printf 'qemu: skipped: no guest\n'; return 0; }
  python3 bench/qemu.py --dir "$out" --json "$out/qemu.json" "$@"
}

for part in qemu; do
  printf '%s\n' "$part" >&2
  "$part" "$@" || status=1
done
exit "$status"
