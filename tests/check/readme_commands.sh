#!/usr/bin/env bash
# Every command in the README works: its ```sh blocks run in order, in one scratch directory, with `uffda` on PATH.
# Files that it links to exist. It names every option of the commands, and no other.
set -uo pipefail
build=$(realpath "${UFFDA_BUILD:-build/release}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cmake --install "$build" --prefix "$scratch/installed" >"$scratch/log" 2>&1 || { cat "$scratch/log" && exit 1; }
PKG_CONFIG_PATH=$(find "$scratch/installed" -name uffda.pc -printf '%h')
export PKG_CONFIG_PATH PATH=$build:$PATH
bad=0
wrong() { printf '%s\n' "$*" && bad=1; }

if [[ ! -e /dev/fuse ]]; then
  printf 'there is no /dev/fuse, which exec and mount need\n'
  exit 77
fi

mkdir "$scratch/blocks" "$scratch/run"
awk -v out="$scratch/blocks" '/^```sh$/ {name = sprintf("%s/%03d.sh", out, NR); next} /^```/ {name = ""} name {print > name}' README.md
blocks=("$scratch"/blocks/*.sh)
((${#blocks[@]} >= 6)) || wrong "only ${#blocks[@]} blocks of commands were found"
for block in "${blocks[@]}"; do
  (cd "$scratch/run" && timeout 120 bash -euo pipefail "$block") >"$scratch/log" 2>&1 || {
    line=$(basename "$block" .sh)
    wrong "README.md, the block at line $((10#$line)) failed:"
    sed 's/^/  | /' "$block" "$scratch/log"
  }
done

while IFS= read -r target; do
  [[ -e $target ]] || wrong "README.md links to $target, which does not exist"
done < <(grep -oE '\]\([^)#]+\)' README.md | tr -d '])(' | grep -v '^http')

for command in exec serve attach stats mount criu qemu put module pack unpack inspect verify probe version help; do uffda help "$command"; done >"$scratch/help"
options() { grep -oE '(^|[ `,])--[a-z][a-z-]+' "$1" | grep -oE -e '--[a-z-]+' | sort -u; }
while IFS= read -r option; do
  wrong "README.md names $option, which no command has"
done < <(comm -23 <(options README.md | grep -vxE -e '--(install|cflags|variable|lazy-pages)') <(options "$scratch/help"))
while IFS= read -r option; do
  wrong "README.md does not say what $option is for"
done < <(comm -13 <(options README.md) <(options "$scratch/help" | grep -vxE -e '--(help|version)'))
exit "$bad"
