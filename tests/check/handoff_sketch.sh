#!/usr/bin/env bash
# The C client in docs/protocols/handoff.md compiles without a warning and does what the document says.
set -euo pipefail
cd "$(dirname "$0")/../.."
uffda=${UFFDA:-build/release/uffda}
scratch=$(mktemp -d)
server=
cleanup() {
  [[ -z $server ]] || kill "$server" 2>/dev/null || true
  rm -rf "$scratch"
}
trap cleanup EXIT

awk '/^```c$/ {inside = 1; next} /^```$/ {inside = 0} inside' docs/protocols/handoff.md >"$scratch/client.c"
grep -q 'int main' "$scratch/client.c"
"${CC:-gcc}" -std=c11 -Wall -Wextra -Werror -O2 -o "$scratch/client" "$scratch/client.c"

[[ -x $uffda ]] || { echo "skipped: $uffda was not built, so the client was compiled and not run" && exit 77; }
if [[ $(id -u) != 0 && $(cat /proc/sys/vm/unprivileged_userfaultfd 2>/dev/null || echo 0) != 1 ]]; then
  echo 'skipped: userfaultfd needs CAP_SYS_PTRACE here, so the client was compiled and not run'
  exit 77
fi

head -c 3000001 /dev/urandom >"$scratch/disk"
mkfifo "$scratch/ready"
"$uffda" serve --export "disk=file:$scratch/disk" --socket "$scratch/socket" --ready-fd 9 9>"$scratch/ready" &
server=$!
read -r -t 30 line <"$scratch/ready" && [[ $line == ready ]]
"$scratch/client" "$scratch/socket" disk >"$scratch/copy"
cmp "$scratch/disk" "$scratch/copy"
if "$scratch/client" "$scratch/socket" other >/dev/null 2>"$scratch/refusal"; then exit 1; fi
grep -q "no export is named 'other'" "$scratch/refusal"
kill "$server"
wait "$server"
server=
[[ ! -e $scratch/socket ]]
echo 'the C client of docs/protocols/handoff.md copies an export'
