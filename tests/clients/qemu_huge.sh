#!/bin/bash
# A QEMU whose RAM is huge pages is saved, and restored into one whose RAM is, too: 2 MiB at a time.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$here/_qemu.sh"
mib=128
pool=/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
before=$(cat $pool 2> /dev/null || echo 0)
wanted=$((before + mib / 2))
[ -w $pool ] || skip "no right to reserve huge pages ($pool)"
trap 'echo "$before" > $pool; finish' EXIT
echo $wanted > $pool
[ "$(cat $pool)" -ge $wanted ] || skip "there are no $((mib / 2)) huge pages of 2 MiB"
scenario qemu_huge.py $mib
exit $failed
