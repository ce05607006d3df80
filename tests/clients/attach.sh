#!/bin/bash
# A VM whose server was killed, without a holder: `uffda attach` takes its userfaultfd over, and every byte is right. What is refused.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
vmm=$UFFDA_BUILD/tests/clients/firecracker_vmm
[ -x "$vmm" ] || skip "no $vmm"
[ "$(id -u)" = 0 ] || skip "needs the right to trace another process: run it as root"
make_data "$work/memory" $((64 << 20))

# serve URI [OPTION...]: the first server; its pid is $server.
serve() {
  local uri=$1
  shift
  rm -f "$work/ready" "$work/fc.sock"
  mkfifo "$work/ready"
  "$UFFDA" serve --protocol firecracker --socket "$work/fc.sock" --control "$work/control.sock" --export "vm=$uri" --ready-fd 3 "$@" \
    3> "$work/ready" 2>> "$work/serve.log" &
  server=$!
  background+=("$server")
  read -r _ < "$work/ready"
}
# start OPTION...: a VM of $memory_file that says what it does in $work/vm; it goes on when a line is written to 4. Its pid is $vm, and $fd its userfaultfd.
memory_file=$work/memory
start() {
  rm -f "$work/go"
  mkfifo "$work/go"
  : > "$work/vm"
  "$vmm" "$work/fc.sock" "$memory_file" "$@" < "$work/go" > "$work/vm" 2>&1 &
  vm=$!
  exec 4> "$work/go"
  background+=("$vm")
}
find_fd() {
  local one
  for one in /proc/"$vm"/fd/*; do
    [ "$(readlink "$one")" != 'anon_inode:[userfaultfd]' ] || fd=${one##*/}
  done
}
# regions: what is registered, in $work/shown.
regions() {
  "$UFFDA" attach --pid "$vm" --fd "$fd" > "$work/shown"
}
# attach OPTION...: in the background, until it serves.
attach() {
  rm -f "$work/ready"
  mkfifo "$work/ready"
  "$UFFDA" attach --pid "$vm" --fd "$fd" --ready-fd 3 --report "$work/report" "$@" 3> "$work/ready" 2> "$work/attach.log" &
  attached=$!
  background+=("$attached")
  read -r _ < "$work/ready"
}
refused() {
  local name=$1 text=$2
  shift 2
  timeout 60 "$UFFDA" attach "$@" > "$work/out" 2>&1
  same "refused: $name" 1 $?
  contains "and said" "$text" "$work/out"
}
waits() { grep -q "^total:[[:space:]]*[1-9]" "/proc/$vm/fdinfo/$fd"; }
was_read() { waits && grep -q "^pending:[[:space:]]*0" "/proc/$vm/fdinfo/$fd"; }

# --- half of the work under one server, half under another, and the balloon under both -----------------------------------
for memory in anon memfd; do
  serve "file:$work/memory"
  start half steps=600 memory=$memory drop=20
  wait_until grep -q half "$work/vm"
  find_fd
  if [ $memory = anon ]; then
    refused "another handler has it" "open in other processes, too: $server (uffda)" --pid "$vm" --fd "$fd" --map 1000-2000=zero:4K
    refused "another descriptor" "not a userfaultfd; the userfaultfds of process $vm: $fd" --pid "$vm" --fd 1 --map 1000-2000=zero:4K
    refused "no descriptor" "no descriptor 1234" --pid "$vm" --fd 1234 --map 1000-2000=zero:4K
    refused "no process" "there is no process 99999999" --pid 99999999 --fd 3 --map 1000-2000=zero:4K
  fi
  kill -KILL "$server"
  wait "$server" 2> /dev/null
  echo >&4
  exec 4>&-
  wait_until waits
  same "$memory: it stands still" 0 $?
  regions
  contains "$memory: what is registered is shown" "--map START-END=URI@OFFSET" "$work/shown"
  range=$(sed -n 's/^memory //p' "$work/vm")
  if [ $memory = anon ]; then
    refused "nothing named is registered" "nothing of what is named is registered" --pid "$vm" --fd "$fd" --map 1000-2000=zero:4K
    attach --map "$range=file:$work/memory" --socket "$work/stats.sock"
  else
    printf '[{"base_host_virt_addr":%d,"size":%d,"offset":0}]' $((0x${range%-*})) $((64 << 20)) > "$work/regions"
    attach --regions "$work/regions" --source "file:$work/memory" --holder --socket "$work/stats.sock"
  fi
  contains "$memory: what was dropped is told" "named and not registered" "$work/attach.log"
  wait "$vm"
  same "$memory: every byte is right" 0 $?
  contains "$memory: and what was dropped is zeroes" " 0 bad" "$work/vm"
  wait "$attached"
  same "$memory: attach ends with the process" 0 $?
done

# --- faults that the dead server had read, and not answered ----------------------------------------------------------------
serve "delay+file:$work/memory?delay=100s"
start steps=200 drop=0
exec 4>&-
find_fd_until() { fd=""; find_fd; [ -n "$fd" ]; }
wait_until find_fd_until
wait_until was_read
kill -KILL "$server"
wait "$server" 2> /dev/null
regions
range=$(awk '/^[0-9a-f]+-/ {print $1; exit}' "$work/shown")
attach --map "$range=file:$work/memory"
contains "faults that were read come again" "had been read and come again" "$work/attach.log"
wait "$vm"
same "and every byte is right" 0 $?

# --- what is not named ------------------------------------------------------------------------------------------------------
serve "file:$work/memory"
start half steps=20 drop=0 threads=1
wait_until grep -q half "$work/vm"
find_fd
kill -KILL "$server"
wait "$server" 2> /dev/null
regions
range=$(awk '/^[0-9a-f]+-/ {print $1; exit}' "$work/shown")
start_address=${range%-*}
attach --map "$start_address-$(printf '%x' $((0x$start_address + 4096)))=file:$work/memory"
contains "what is registered and not named is told" "registered and not named: SIGBUS" "$work/attach.log"
echo >&4
exec 4>&-
wait "$vm"
same "and gets SIGBUS" 135 $?

# half_way [OPTION...]: a VM that has done half of its work when its server is killed, and stands still; its memory is $range.
half_way() {
  start half drop=20 "$@"
  wait_until grep -q half "$work/vm"
  find_fd
  kill -KILL "$server"
  wait "$server" 2> /dev/null
  range=$(sed -n 's/^memory //p' "$work/vm")
}
go_on() {
  echo >&4
  exec 4>&-
}

# --- the server that attached is killed, too ---------------------------------------------------------------------------------
# another_than PID: the holder has started another server; its pid is $child.
another_than() {
  child=$(cut -d ' ' -f 1 "/proc/$attached/task/$attached/children")
  [ -n "$child" ] && [ "$child" != "$1" ]
}
serve "file:$work/memory"
half_way steps=2000
attach --map "$range=file:$work/memory" --holder
wait_until another_than none
for kill in first second; do
  killed=$child
  kill -KILL "$killed"
  [ $kill = second ] || go_on
  wait_until another_than "$killed"
  same "the $kill kill of the server that attached: there is another one" 0 $?
done
wait "$vm"
same "and every byte is right" 0 $?
contains "and what was dropped is zeroes" " 0 bad" "$work/vm"
wait "$attached"
same "and the last one ends with the process" 0 $?

# --- somebody else has the userfaultfd, and does not read it ------------------------------------------------------------------
serve "file:$work/memory"
half_way steps=200
mkfifo "$work/end"
python3 -c '
import ctypes, os, sys
process = os.pidfd_open(int(sys.argv[1]))
taken = ctypes.CDLL(None, use_errno=True).syscall(438, process, int(sys.argv[2]), 0)
print("has it" if taken >= 0 else os.strerror(ctypes.get_errno()), flush=True)
sys.stdin.read()' "$vm" "$fd" < "$work/end" > "$work/other" 2>&1 &
other=$!
background+=("$other")
exec 5> "$work/end"
wait_until grep -q . "$work/other"
contains "another process has the userfaultfd" "has it" "$work/other"
refused "who does not say --force" "open in other processes, too: $other (python3)" --pid "$vm" --fd "$fd" --map "$range=file:$work/memory"
attach --map "$range=file:$work/memory" --force
contains "who says so is warned" "which had better not read it: $other (python3)" "$work/attach.log"
go_on
wait "$vm"
same "and every byte is right" 0 $?
exec 5>&-
wait "$other" "$attached"

# --- huge pages ---------------------------------------------------------------------------------------------------------------
if huge_pages 12; then
  memory_file=$work/small
  make_data "$memory_file" $((8 << 20))
  for memory in anon memfd; do
    serve "file:$memory_file" --hugepages
    half_way huge steps=20 memory=$memory seed=3
    regions
    contains "huge pages, $memory: they are shown" "2 MiB" "$work/shown"
    attach --map "$range=file:$memory_file"
    go_on
    wait "$vm"
    same "huge pages, $memory: every byte is right" 0 $?
    contains "huge pages, $memory: and what was dropped is zeroes" " 0 bad" "$work/vm"
    wait "$attached"
    same "huge pages, $memory: attach ends with the process" 0 $?
  done
else
  echo "skip huge pages: 12 of 2 MiB cannot be had ($huge_pool)"
fi
conclude
