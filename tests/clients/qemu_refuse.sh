#!/bin/bash
# What cannot be saved or restored is refused, in words that say what to do, and the machine is as it was.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$here/_qemu.sh"
scenario qemu_refuse.py
exit $failed
