#!/bin/bash
# A real guest over KVM, restored by both protocols: it reads, writes and gives back memory, and every byte it sees is right, also
# when the server is killed while it runs. UFFDA_KVM_KILLS: how often.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
program=$UFFDA_BUILD/tests/clients/kvm-restore
[ -x "$program" ] || skip "no $program"
[ -r /dev/kvm ] && [ -w /dev/kvm ] || skip "needs /dev/kvm"
kills=${UFFDA_KVM_KILLS:-10} mib=32
"$program" make "$work/memory" $mib || exit 1

# serve NAME OPTION...: its pid is $server; VMs connect at $work/NAME.sock, and uffda's clients at $work/NAME.control.
serve() {
  local name=$1
  shift
  rm -f "$work/ready"
  mkfifo "$work/ready"
  "$UFFDA" serve --protocol firecracker --socket "$work/$name.sock" --control "$work/$name.control" \
    --export "vm=file:$work/memory" --ready-fd 3 "$@" 3> "$work/ready" 2> "$work/$name.log" &
  server=$!
  background+=("$server")
  read -r _ < "$work/ready"
}
guest() { timeout 120 "$program" "$@" < /dev/null > "$work/out" 2>&1; }
# well NAME STATUS: the guest ended so.
well() { same "$1: $(cat "$work/out")" 0 "$2"; }

serve plain
for memory in anon memfd; do
  guest firecracker "$work/plain.sock" $mib memory=$memory balloon=8
  well "Firecracker's protocol, $memory" $?
done
guest handoff "$work/plain.control" vm
well "uffda's protocol" $?
kill "$server"

if huge_pages $((mib / 2)); then
  serve huge --hugepages
  guest firecracker "$work/huge.sock" $mib huge balloon=8
  well "huge pages" $?
  kill "$server"
else
  echo "no huge pages: not tested"
fi
huge_pages_back

# --- a server that is killed ----------------------------------------------------------------------------------------------
serve held --holder
held() { cut -d ' ' -f 1 "/proc/$server/task/$server/children"; }
for ((kill = 0; kill < kills; ++kill)); do
  if ((kill % 2 == 0)); then
    guest firecracker "$work/held.sock" $mib balloon=8 &
  else
    guest handoff "$work/held.control" vm &
  fi
  running=$!
  for ((i = 0; i < RANDOM; ++i)); do :; done  # a random moment
  kill -KILL "$(held)" 2> /dev/null
  wait $running
  well "the server is killed" $?
done
kill "$server"
conclude
