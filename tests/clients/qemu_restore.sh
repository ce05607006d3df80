#!/bin/bash
# A running QEMU is saved to a pack and restored from it, page by page; the guest says of every page whether it is right.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$here/_qemu.sh"
scenario qemu_restore.py
exit $failed
