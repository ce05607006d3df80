#!/bin/bash
# What outlives a restore: QEMU waits with its big lock held and answers nobody, uffda dies at each step of going on, the
# keeper is killed, others come for it; and it never stays behind.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$here/_qemu.sh"
cc -shared -fPIC -O1 -o "$work/die_at.so" "$here/preload/die_at.c" || skip "no C compiler"
scenario qemu_keeper.py
exit $failed
