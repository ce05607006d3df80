#!/bin/bash
# The server of Firecracker's VMs is killed at random moments, in the middle of handshakes, of faults and of balloons: every VM that
# came goes on, and not one byte is wrong. UFFDA_FIRECRACKER_KILLS: how often.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
vmm=$UFFDA_BUILD/tests/clients/firecracker_vmm
[ -x "$vmm" ] || skip "no $vmm"
kills=${UFFDA_FIRECRACKER_KILLS:-10} seed=${UFFDA_FIRECRACKER_SEED:-1}
make_data "$work/memory" $((8 << 20))
mkfifo "$work/ready"
"$UFFDA" serve --protocol firecracker --socket "$work/fc.sock" --export "vm=file:$work/memory" --holder --ready-fd 3 \
  3> "$work/ready" 2> "$work/serve.log" &
holder=$!
background+=("$holder")
read -r _ < "$work/ready"
timeout 280 python3 "$here/firecracker_kill.py" "$holder" "$kills" "$seed" "$vmm" "$work/fc.sock" "$work/memory" \
  steps=6000 > "$work/out" 2> "$work/errors"
same "every VM comes to its end, with the right bytes" 0 $?
cat "$work/out" "$work/errors"
same "it was killed as often as that" "$kills" "$(grep -c "was killed by signal 9" "$work/serve.log")"
same "no VM was refused" 0 "$(grep -c "is not served" "$work/serve.log")"
[ "$failed" = 0 ] || tail -n 5 "$work/serve.log"
kill "$holder"
conclude
