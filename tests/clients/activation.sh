#!/bin/bash
# A server that a service manager starts, with the sockets on which clients wait already.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
vmm=$UFFDA_BUILD/tests/clients/firecracker_vmm
[ -x "$vmm" ] || skip "no $vmm"
make_data "$work/memory" $((4 << 20))
# A VM connects, and only then there is a server.
cat > "$work/manager.py" <<'PY'
# manager.py DIRECTORY NAMES PROGRAM...: listens at DIRECTORY/NAME.sock, says "listening", and becomes PROGRAM when somebody comes.
import os, select, socket, sys
directory, names, program = sys.argv[1], sys.argv[2].split(":"), sys.argv[3:]
sockets = []
for name in names:
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if name == "firecracker" else socket.SOCK_SEQPACKET)
    one.bind(f"{directory}/{name}.sock")
    one.listen()
    sockets.append(one)
print("listening", flush=True)
if "wait" in os.environ: select.select(sockets, [], [], 60)
high = [os.dup2(one.fileno(), 100 + i) for i, one in enumerate(sockets)]
for i, fd in enumerate(high): os.dup2(fd, 3 + i)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(names)), LISTEN_FDNAMES=":".join(names))
os.execv(program[0], program)
PY
manage() {
  rm -f "$work"/*.sock
  : > "$work/out"  # what the one before said
  python3 "$work/manager.py" "$work" "$1" "$UFFDA" serve --activated --export "vm=file:$work/memory" "${@:2}" > "$work/out" 2> "$work/log" &
  server=$!
  background+=("$server")
  wait_until grep -q listening "$work/out"
}
for holder in "" --holder; do
  wait=1 manage firecracker:handoff $holder
  timeout 60 "$vmm" "$work/firecracker.sock" "$work/memory" < /dev/null > "$work/vm" 2>&1
  same "a VM starts its server ($holder)" 0 $?
  "$UFFDA" stats --socket "$work/handoff.sock" --json > "$work/json"
  same "and the other socket is served, too" 0 $?
  kill "$server"
  wait "$server"
  same "it ends in order" 0 $?
  [ -S "$work/firecracker.sock" ] && [ -S "$work/handoff.sock" ]
  same "the sockets are the manager's, and stay" 0 $?
done
manage other
wait "$server"
same "a socket of another name is a mistake" 1 $?
contains "and the remedy" "FileDescriptorName=handoff" "$work/log"
"$UFFDA" serve --activated --export "vm=file:$work/memory" 2> "$work/log"
same "nothing was passed" 1 $?
contains "and that is said" "no sockets were passed" "$work/log"
"$UFFDA" serve --activated --socket "$work/x" --export "vm=file:$work/memory" 2> "$work/log"
same "both kinds of sockets are a mistake" 2 $?
if command -v systemd-socket-activate > /dev/null; then
  rm -f "$work/real.sock"
  systemd-socket-activate --seqpacket --fdname=handoff -l "$work/real.sock" "$UFFDA" serve --activated --export "vm=file:$work/memory" \
    2> "$work/log" &
  background+=("$!")
  wait_until test -S "$work/real.sock"
  timeout 60 "$UFFDA" stats --socket "$work/real.sock" > "$work/table"
  same "systemd's own starter" 0 $?
  contains "and its server answers" "Exports" "$work/table"
else
  echo "no systemd-socket-activate: not tested"
fi
if command -v systemd-analyze > /dev/null; then
  mkdir "$work/units"
  cp "$root"/contrib/systemd/*.socket "$work/units/"
  sed "s|@UFFDA_BIN@/uffda|$UFFDA|; s|^User=.*|User=daemon|; s|^Group=.*|Group=daemon|" "$root/contrib/systemd/uffda@.service.in" > "$work/units/uffda@.service"
  systemd-analyze verify --man=no "$work"/units/uffda@x.service "$work"/units/uffda@x.socket "$work"/units/uffda-firecracker@x.socket > "$work/verified" 2>&1
  status=$?
  same "the units are valid ($(head -n 2 "$work/verified"))" 0 $status
  same "and nothing in them is unknown" "" "$(grep -F "$work/units" "$work/verified")"
else
  echo "no systemd-analyze: not verified"
fi
conclude
