#!/bin/bash
# Writes the seeds of fuzz/pack.cpp into fuzz/corpus/pack: small packs with every kind of frame.
set -euo pipefail
cd "$(dirname "$0")/.."
uffda=${UFFDA:-build/release/uffda}
corpus=fuzz/corpus/pack
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$corpus"
python3 - "$scratch" <<'PY'
import random, sys
data = b"ab" * 2048 + random.Random(1).randbytes(4096) + bytes(4096) + b"ab" * 2048 + b"tail"
open(sys.argv[1] + "/mixed", "wb").write(data)
open(sys.argv[1] + "/changed", "wb").write(b"ba" * 2048 + data[4096:])
open(sys.argv[1] + "/zeroes", "wb").write(bytes(20000))
PY
pack() { "$uffda" pack "$@" --frame 4K >/dev/null; }
pack "$scratch/mixed" "$scratch/mixed.pack" --metadata host=db1 --metadata time=1
pack "$scratch/changed" "$scratch/changed.pack" --base "$scratch/mixed.pack"
pack "$scratch/zeroes" "$scratch/zeroes.pack"
for name in mixed changed zeroes; do
  { printf '\0' && cat "$scratch/$name.pack"; } >"$corpus/$name"
  { printf '\1' && cat "$scratch/$name.pack"; } >"$corpus/${name}_mended"
done
