#!/bin/bash
# A page that cannot be had: SIGBUS for who touches it, or SIGKILL for its process; and uffda stats says whose it was.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
vmm=$UFFDA_BUILD/tests/clients/firecracker_vmm
[ -x "$vmm" ] || skip "no $vmm"
make_data "$work/memory" $((4 << 20))

# serve OPTION...: every read fails.
serve() {
  rm -f "$work/ready"
  mkfifo "$work/ready"
  "$UFFDA" serve --protocol firecracker --socket "$work/fc.sock" --control "$work/control.sock" \
    --export "vm=error+file:$work/memory?rate=1" --ready-fd 3 "$@" 3> "$work/ready" 2> "$work/serve.log" &
  server=$!
  background+=("$server")
  read -r _ < "$work/ready"
}
end() {
  kill "$server"
  wait "$server"
}
serve
timeout 60 "$vmm" "$work/fc.sock" "$work/memory" threads=1 < /dev/null > /dev/null 2>&1
same "poison: SIGBUS" 135 $?
end
serve --on-error kill
timeout 60 bash -c '"$@"; exit' bash "$vmm" "$work/fc.sock" "$work/memory" threads=1 < /dev/null > /dev/null 2>&1
same "kill: SIGKILL" 137 $?
end  # which says what it does once it is done
contains "the log says who and why" "touched what cannot be had of" "$work/serve.log"
serve --on-error kill --on-error vm=poison
timeout 60 "$vmm" "$work/fc.sock" "$work/memory" threads=1 < /dev/null > /dev/null 2>&1
same "the last word on an export counts" 135 $?
end
# The server that kills is not the one that the process came to, and knows it all the same.
serve --on-error kill --holder
mkfifo "$work/go"
(exec timeout 60 bash -c '"$@"; exit' bash "$vmm" "$work/fc.sock" "$work/memory" threads=1 wait < "$work/go" > /dev/null 2>&1) &
client=$!
exec 8> "$work/go"
knows_pid() { "$UFFDA" stats --socket "$work/control.sock" --json 2> /dev/null | grep -q '"pid": [1-9]'; }
wait_until knows_pid
kill -KILL "$(cat "/proc/$server/task/$server/children")"
wait_until knows_pid
echo go >&8
wait "$client"
same "kill: by a server that was started again, too" 137 $?
exec 8>&-
end
for wrong in vm=what what other=kill; do
  "$UFFDA" serve --socket "$work/x" --export "vm=zero:4K" --on-error $wrong 2> "$work/log"
  same "--on-error $wrong is a mistake" 2 $?
done
conclude
