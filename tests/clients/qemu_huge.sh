#!/bin/bash
# A QEMU whose RAM is huge pages is saved, and restored into one whose RAM is, too: 2 MiB at a time.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$here/_qemu.sh"
mib=128
huge_pages $((mib / 2)) || skip "no $((mib / 2)) huge pages of 2 MiB can be had ($huge_pool)"
scenario qemu_huge.py $mib
exit $failed
