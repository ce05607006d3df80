#!/bin/bash
# uffda is killed at random moments of a restore, and started again: QEMU waits meanwhile, and every page is right.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$here/_qemu.sh"
scenario qemu_kill.py "${UFFDA_QEMU_KILLS:-10}" "${UFFDA_QEMU_SEED:-1}"
exit $failed
