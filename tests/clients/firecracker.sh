#!/bin/bash
# VMs that restore by Firecracker's words: every version of them, several on one server, balloons, huge pages, death; and what is refused.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
vmm=$UFFDA_BUILD/tests/clients/firecracker_vmm
[ -x "$vmm" ] || skip "no $vmm"
size=$((8 << 20))
make_data "$work/memory" $size

# serve NAME OPTION...: a server of $work/memory; its VMs' socket is $work/NAME.sock, and its pid $server.
serve() {
  local name=$1
  shift
  rm -f "$work/ready"
  mkfifo "$work/ready"
  "$UFFDA" serve --protocol firecracker --socket "$work/$name.sock" --report "$work/$name.json" --ready-fd 3 "$@" \
    3> "$work/ready" 2>> "$work/$name.log" &
  server=$!
  background+=("$server")
  read -r _ < "$work/ready"
}
# vm NAME OPTION...: runs one to its end.
vm() {
  local name=$1
  shift
  timeout 120 "$vmm" "$work/$name.sock" "$work/memory" "$@" < /dev/null > "$work/out" 2>&1
  local status=$?
  [ $status = 0 ] || cat "$work/out" >&2
  return $status
}
end() {
  kill "$server"
  wait "$server"
}
# counted NAME FIELD...: a number of the server's report.
counted() {
  python3 - "$work/$1.json" "${@:2}" <<'PY'
import json, sys
value = json.load(open(sys.argv[1]))
for field in sys.argv[2:]: value = value[int(field) if field.isdigit() else field]
print(value)
PY
}

serve plain --export "vm=file:$work/memory"
for version in 1.1 1.7 1.12 fork; do
  for memory in anon memfd; do
    vm plain version=$version memory=$memory regions=3 seed=$RANDOM
    same "version $version, $memory" 0 $?
  done
done
vm plain race threads=3 drop=40
same "pages are dropped while others touch them" 0 $?
vm plain race threads=3 drop=40 memory=memfd
same "the same with a memfd" 0 $?
if [ "$(< /proc/sys/vm/max_map_count)" -le 1048576 ]; then
  timeout 120 "$vmm" "$work/plain.sock" "$work/memory" crowded < /dev/null > "$work/out" 2>&1
  same "a page that is dropped where no mapping can be divided: SIGBUS" 135 $?
  contains "and the server says what to raise" "(raise vm.max_map_count)" "$work/plain.log"
else
  echo "skip mappings that cannot be divided: vm.max_map_count is too large to use up"
fi
vm plain
same "and the next one does not notice" 0 $?
vms=()
for seed in 1 2 3 4 5 6 7 8; do
  timeout 120 "$vmm" "$work/plain.sock" "$work/memory" seed=$seed < /dev/null > "$work/out.$seed" 2>&1 &
  vms+=($!)
done
ended=""
for one in "${vms[@]}"; do wait "$one" || ended="$ended $one"; done
same "eight at once" "" "$ended"

# One that dies in the middle of everything is forgotten, and the others do not notice.
mkfifo "$work/go"
"$vmm" "$work/plain.sock" "$work/memory" race steps=100000000 wait < "$work/go" > "$work/dying" 2>&1 &
dying=$!
background+=("$dying")
exec 4> "$work/go"
wait_until grep -q started "$work/dying"
echo go >&4
exec 4>&-
vm plain steps=2000
kill -KILL "$dying"
wait "$dying" 2> /dev/null
vm plain
same "one is killed, and the next is served" 0 $?
end
same "nothing got SIGBUS" 0 "$(counted plain faults poisoned)"
same "all of them shared one cache: every page was read once" "$size" "$(counted plain exports 0 bytes)"

# --- less room than pages -------------------------------------------------------------------------------------------------
serve small --export "vm=file:$work/memory" --budget 1M
vm small drop=0
same "a budget that holds an eighth of it" 0 $?
end

# --- huge pages -------------------------------------------------------------------------------------------------------------
if huge_pages 12; then
  serve huge --export "vm=file:$work/memory" --hugepages
  for memory in anon memfd; do
    vm huge huge memory=$memory steps=200
    same "huge pages, $memory" 0 $?
  done
  vm huge huge race steps=200 drop=40 version=1.7
  same "huge pages that are dropped while others touch them" 0 $?
  timeout 20 "$vmm" "$work/huge.sock" "$work/memory" steps=1 < /dev/null > /dev/null 2>&1 &
  background+=($!)
  wait_until grep -q "without --hugepages" "$work/huge.log"
  contains "small pages are refused there, with the remedy" "start another one without --hugepages" "$work/huge.log"
  huge_pages 1
  timeout 60 "$vmm" "$work/huge.sock" "$work/memory" huge steps=50 drop=0 threads=1 < /dev/null > /dev/null 2>&1
  same "no huge page is free: SIGBUS, as from the kernel" 135 $?
  contains "and the server says why" "no huge page is free" "$work/huge.log"
  end
else
  echo "no huge pages: not tested"
fi
huge_pages_back

# --- without a privilege ----------------------------------------------------------------------------------------------------
if [ "$(id -u)" = 0 ] && command -v setpriv > /dev/null; then
  mkdir "$work/bin" "$work/jail"
  cp "$UFFDA" "$work/bin/"  # the build may lie where that user cannot look
  chmod 644 "$work/memory"
  chown 65534:65534 "$work/jail"
  rm -f "$work/ready"
  mkfifo "$work/ready"
  setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs "$work/bin/uffda" serve \
    --protocol firecracker --socket "$work/jail/vm.sock" --export "vm=file:$work/memory" --allow-uid 0 --holder --ready-fd 3 \
    3> "$work/ready" 2> "$work/jail.log" &
  server=$!
  background+=("$server")
  read -r _ < "$work/ready"
  timeout 120 "$vmm" "$work/jail/vm.sock" "$work/memory" < /dev/null > "$work/out" 2>&1
  same "a server without any privilege" 0 $?
  kill -KILL "$(cut -d ' ' -f 1 "/proc/$server/task/$server/children")"
  timeout 120 "$vmm" "$work/jail/vm.sock" "$work/memory" < /dev/null > "$work/out" 2>&1
  same "and the one after it" 0 $?
  end
else
  echo "not root: a server of another user is not tested"
fi

# --- what is refused ----------------------------------------------------------------------------------------------------------
serve refusing --export "vm=file:$work/memory"
# refused NAME TEXT PYTHON: connects as `s`, runs the lines, and waits for the server's end of the connection.
refused() {
  timeout 60 python3 - "$work/refusing.sock" > "$work/out" 2>&1 <<PY
import array, os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
def send(text, fds=[]): s.sendmsg([text.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])
region = '{"base_host_virt_addr":1048576,"size":%d,"offset":0}'
$3
try:
  while s.recv(100): pass
except ConnectionResetError: pass
PY
  same "refused: $1" 0 $?
  contains "and said" "$2" "$work/refusing.log"
  : > "$work/refusing.log"
}
refused "no descriptor" "carries no userfaultfd" 'send("[" + region % 4096 + "]")'
refused "another descriptor" "not a userfaultfd" 'send("[" + region % 4096 + "]", [0])'
refused "too many" "more than 3 descriptors" 'send("[" + region % 4096 + "]", [0, 0, 0, 0])'
refused "words that end too early" "no whole handshake" 'send("[{", [0]); s.shutdown(socket.SHUT_WR)'
refused "nothing" "no whole handshake" 's.shutdown(socket.SHUT_WR)'
refused "too many words" "more than 65536 bytes" 'send("[" + " " * 70000, [0])'
refused "no regions" "no JSON array" 'send("[]", [0])'
refused "more memory than there is" "not all within the export" 'send("[" + region % (1 << 30) + "]", [0])'
end
"$UFFDA" serve --protocol firecracker --socket "$work/x" --export "a=file:$work/memory" --export "b=zero:4K" 2> "$work/log"
same "two exports are a mistake" 2 $?
contains "with a remedy" "start one for each snapshot" "$work/log"
conclude
