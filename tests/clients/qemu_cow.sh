#!/bin/bash
# Clones of one machine whose RAM is uffda's page cache: unmodified QEMUs under `uffda exec --map PATH=EXPORT,cow`, with
# x-ignore-shared. They share what none of them wrote.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
. "$here/_qemu.sh"
scenario qemu_cow.py
exit $failed
