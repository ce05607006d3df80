#!/bin/bash
# Clones of one virtual machine over KVM share every page that none of them has written: one copy of what they touch, and what each
# writes. UFFDA_CLONES, UFFDA_CLONES_MIB: how many, of how much memory.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
program=$UFFDA_BUILD/tests/clients/kvm-restore
[ -x "$program" ] || skip "no $program"
[ -r /dev/kvm ] && [ -w /dev/kvm ] || skip "needs /dev/kvm"
clones=${UFFDA_CLONES:-32} mib=${UFFDA_CLONES_MIB:-1024} part=12 write=16
"$program" make "$work/memory" "$mib" || exit 1
mkfifo "$work/ready"
"$UFFDA" serve --socket "$work/sock" --export "vm=file:$work/memory" --ready-fd 3 3> "$work/ready" 2> "$work/log" &
server=$!
background+=("$server")
read -r _ < "$work/ready"
python3 "$here/kvm_clones.py" "$server" "$work/sock" "$program" "$clones" part=$part write=$write words=4 > "$work/counts" 2> "$work/errors"
same "$clones clones of $mib MiB restore and see the right bytes" 0 $?
[ -s "$work/errors" ] && head -n 3 "$work/errors"
value() { sed -n "s/^$1 //p" "$work/counts"; }
same "all of them" "$clones" "$(value right)"
same "the second one needs no byte of the source" 0 "$(value second_read)"
same "nor do the others" 0 "$(value all_read)"
# What the guest touches: the last part of its memory, of which one page in $write is written; and its page tables and code.
pages=$((mib * part / 100 / 2 * 512))
written=$(((pages + write - 1) / write))
wanted=$(((pages + 3 + (mib + 1023) / 1024 + written * clones) * 4096))
got=$(($(value cache) + $(value private)))
echo "     one copy and $clones times what each wrote: $wanted bytes; there are $got ($(value cache) cached, $(value private) private)"
if [ "$got" -le $((wanted / 100 * 110)) ]; then ok "no more than 1.10 of that is resident"; else bad "resident" "$got bytes, 1.10 of $wanted allowed"; fi
if [ "$(value pss)" -le $((wanted / 100 * 110)) ]; then ok "nor by the share that /proc counts for each"; else bad "pss" "$(value pss) bytes"; fi
kill "$server"
conclude
