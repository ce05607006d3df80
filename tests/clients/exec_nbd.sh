#!/bin/bash
# `uffda exec` over NBD: unmodified programs on an export of nbdkit, of nbdkit over TLS, and of qemu-nbd, and what they see
# when the server is killed.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
for program in nbdkit qemu-nbd qemu-img; do
  command -v $program >/dev/null || skip "needs $program"
done
make_data "$work/data" 9000000
sum=$(sha256sum < "$work/data")
: > "$work/shown"
socket=$work/nbd.sock
server=

# serve ARGUMENTS...: nbdkit on $socket, in the foreground.
serve() {
  rm -f "$socket"
  nbdkit --foreground --readonly --unix "$socket" "$@" 2>> "$work/nbdkit.log" &
  server=$!
  background+=($server)
  wait_until test -S "$socket"
}
stop() { kill -KILL $server; wait $server 2>/dev/null; }
run() { timeout 100 "$UFFDA" exec --map "$work/shown=$uri" "$@"; }

# --- what programs read -------------------------------------------------------------------------------------------------
serve file "$work/data"
uri="nbd+unix:///?socket=$socket"
same "sha256sum" "$sum" "$(run -- sh -c "sha256sum < $work/shown")"
run -- cmp "$work/shown" "$work/data"
same "cmp" 0 $?
same "a mapping" "$sum" "$(run -- python3 -c "
import hashlib, mmap
with open('$work/shown', 'rb') as file:
    print(hashlib.sha256(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)).hexdigest(), '-', sep='  ')")"
stop

echo "alice:6bc2a1f4c9d2b6f0a1b2c3d4e5f60718" > "$work/keys"
serve --tls=require --tls-psk="$work/keys" file "$work/data"
uri="nbds+unix://alice@/?socket=$socket&tls-psk-file=$work/keys"
run -- cmp "$work/shown" "$work/data"
same "cmp over TLS" 0 $?
stop

qemu-img convert -O qcow2 "$work/data" "$work/data.qcow2"
rm -f "$socket"
qemu-nbd --read-only --persistent --format qcow2 --socket "$socket" --export-name disk "$work/data.qcow2" &
server=$!
background+=($server)
wait_until test -S "$socket"
uri="nbd+unix:///disk?socket=$socket"
run -- cmp -n 9000000 "$work/shown" "$work/data"
same "cmp with qemu-nbd" 0 $?
run -- true
uri="nbd+unix:///dsik?socket=$socket"
run -- true 2> "$work/errors"
contains "an export that is not there" "there is no export 'dsik'; the server has 'disk'" "$work/errors"
stop

# --- a server that goes -------------------------------------------------------------------------------------------------
serve file "$work/data"
uri="nbd+unix:///?socket=$socket"
# The program reads half, says so, and reads the rest when it is told that the server is another one.
mkfifo "$work/half" "$work/go"
cat > "$work/reader.py" <<'PY'
import hashlib, mmap, sys
with open(sys.argv[1], "rb") as file:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    digest = hashlib.sha256(data[:4500000])
    open(sys.argv[2], "w").close()
    open(sys.argv[3]).close()
    digest.update(data[4500000:])
    print(digest.hexdigest(), "-", sep="  ")
PY
run -- python3 "$work/reader.py" "$work/shown" "$work/half" "$work/go" > "$work/digest" &
reader=$!
: < "$work/half"
stop
: > "$work/go" &
serve file "$work/data"
wait $reader
same "a server that comes back" "$sum" "$(cat "$work/digest")"
stop

uri="nbd+unix:///?socket=$socket"
rm -f "$socket"
run -- true 2> "$work/errors"
contains "nobody listens" "nobody listens there" "$work/errors"
contains "and what to do" "start the server" "$work/errors"
conclude
