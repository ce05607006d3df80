#!/usr/bin/env bash
# A Linux guest in a real QEMU: saved to a pack, and restored by four clones that share its RAM, by one that uffda has
# nothing of but its monitor, and by QEMU itself. Exits with 1 if any byte differs.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v qemu-system-x86_64 >/dev/null || { printf 'demo-vm: no qemu-system-x86_64: make setup installs it\n' >&2 && exit 1; }
[[ -x build/release/uffda ]] || { printf 'demo-vm: make build makes build/release/uffda\n' >&2 && exit 1; }
scripts/guest
exec python3 scripts/demo/vm.py build/demo-vm
