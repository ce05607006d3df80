#!/bin/bash
# Programs that write to PATH: what they write, by mappings and by system calls, is one, and is the source's when msync,
# fsync or the end say so. With a quarter of their data as budget: fio, sqlite3, LMDB and numpy.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
make_data "$work/disk" 8000000
cp "$work/disk" "$work/before"
cat > "$work/mixed.py" <<'PY'
import mmap, os, signal, sys
shown, disk = sys.argv[1], sys.argv[2]
before = open(disk, "rb").read()
stored = lambda: open(disk, "rb").read()
fd = os.open(shown, os.O_RDWR)
memory = mmap.mmap(fd, 0)
assert memory[:] == before
memory[5000:5010] = b"0123456789"
assert os.pread(fd, 10, 5000) == b"0123456789", "a read sees what the mapping wrote"
os.pwrite(fd, b"ABCDEFGHIJ", 9000)
assert memory[9000:9010] == b"ABCDEFGHIJ", "the mapping sees what was written"
memory.flush()
assert stored()[5000:5010] == b"0123456789" and stored()[9000:9010] == b"ABCDEFGHIJ", "msync stores"
assert stored()[20000:] == before[20000:] and len(stored()) == len(before), "and nothing else changes"
private = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE)
private[0:4] = b"mine"
assert memory[0:4] == before[0:4] and private[5000:5010] == b"0123456789"
child = os.fork()
if child == 0:
    memory[100:105] = b"child"
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert memory[100:105] == b"child", "a child's write is seen"
child = os.fork()
if child == 0:
    memory[300:305] = b"crash"
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
os.fsync(fd)
assert stored()[100:105] == b"child" and stored()[300:305] == b"crash", "fsync stores what others wrote, alive or not"
os.ftruncate(fd, len(before))
try:
    os.ftruncate(fd, len(before) + 1)
    raise SystemExit("a fixed size grew")
except OSError as error:
    assert error.errno == 27, error  # EFBIG
assert os.fstat(fd).st_size == len(before)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
for i in range(100):
    memory[i * 4096] = i
    memory.flush()  # signals do not disturb it
signal.setitimer(signal.ITIMER_REAL, 0)
for i in range(100): memory[i * 4096] = before[i * 4096]
memory[100:105] = b"child"
memory[-10:] = b"z" * 10
memory[200:206] = b"at end"
print("mixed")
PY
same "mapping, read, write, fork and crash are one" mixed \
  "$(timeout 60 "$UFFDA" exec --map "$work/shown=file:$work/disk,rw" -- /usr/bin/python3 "$work/mixed.py" "$work/shown" "$work/disk" 2>&1)"
same "the end stores the rest" "at endzzzzzzzzzz" "$(head -c 206 "$work/disk" | tail -c 6)$(tail -c 10 "$work/disk")"
same "what nobody wrote is as before" same \
  "$(cmp <(tail -c +20000 "$work/disk" | head -c -10) <(tail -c +20000 "$work/before" | head -c -10) && echo same)"

# Two programs over one server.
cp "$work/before" "$work/disk"
socket=$work/server.sock
mkfifo "$work/ready"
"$UFFDA" serve --export "disk=file:$work/disk,rw" --socket "$socket" --ready-fd 3 3> "$work/ready" 2> "$work/serve.log" &
server=$!
background=($server)
read -r _ < "$work/ready"
cat > "$work/bump.py" <<'PY'
import fcntl, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(fd, 0)
lock = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
for i in range(2000):
    fcntl.flock(lock, fcntl.LOCK_EX)
    at = i % 50 * 4096
    memory[at:at + 8] = (int.from_bytes(memory[at:at + 8], "little") + 1).to_bytes(8, "little")
    if i % 500 == 0: memory.flush()
    fcntl.flock(lock, fcntl.LOCK_UN)
PY
cat > "$work/zero.py" <<'PY'
import sys
with open(sys.argv[1], "r+b") as f:
    for i in range(50):
        f.seek(i * 4096)
        f.write(bytes(8))
PY
python3 "$work/zero.py" "$work/disk"
for name in a b; do
  timeout 60 "$UFFDA" exec --server "$socket" --map "$work/$name=disk,rw" -- /usr/bin/python3 "$work/bump.py" "$work/$name" "$work/lock" \
    > "$work/$name.out" 2>&1 &
  background+=($!)
done
wait "${background[1]}" "${background[2]}"
same "two programs count in one memory, and it is stored" "80 80" "$(python3 -c '
import sys
words = [int.from_bytes(open(sys.argv[1], "rb").read()[i * 4096:i * 4096 + 8], "little") for i in range(50)]
print(min(words), max(words))' "$work/disk")"
same "a program that does not say rw cannot write" "Permission denied" \
  "$(timeout 60 "$UFFDA" exec --server "$socket" --map "$work/shown=disk" -- bash -c "echo x 2>&1 1<> '$work/shown'" 2>&1 | grep -o 'Permission denied')"
kill "$server"
wait "$server"
same "the server ends well" 0 $?

# Its end is the end of storing, also where that takes longer than a program's clean-up.
cp "$work/before" "$work/disk"
timeout 60 "$UFFDA" exec --map "$work/shown=delay+file:$work/disk?delay=1500ms,rw" -- \
  /usr/bin/python3 -c 'import os, sys; os.pwrite(os.open(sys.argv[1], os.O_RDWR), b"slowly", 0)' "$work/shown"
same "exec returns when what was written is stored" slowly "$(head -c 6 "$work/disk")"

# Over a pack, into a file of its own; which then is an increment.
"$UFFDA" pack "$work/before" "$work/base.pack" > /dev/null
over="cow+pack:$work/base.pack?overlay=$work/overlay"
timeout 60 "$UFFDA" exec --map "$work/shown=$over,rw" -- \
  /usr/bin/python3 -c 'import mmap, os, sys; mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 0)[5000:5004] = b"over"' "$work/shown"
same "an overlay over a pack keeps what was written" over \
  "$(timeout 60 "$UFFDA" exec --map "$work/shown=$over" -- dd if="$work/shown" bs=1 skip=5000 count=4 status=none)"
"$UFFDA" pack "$over" "$work/increment.pack" --base "$work/base.pack" > /dev/null
"$UFFDA" unpack "$work/increment.pack" "$work/unpacked" > /dev/null
same "and makes an increment" "5001 5002 5003 5004" "$(cmp -l "$work/before" "$work/unpacked" | awk '{printf "%s%s", n++ ? " " : "", $1}')"

# Copy on write, and what is refused.
cp "$work/before" "$work/disk"
same "cow: opens for writing, maps shared and writable, and changes nothing" "1 0" "$(timeout 60 "$UFFDA" exec --map "$work/shown=file:$work/disk,cow" -- \
  /usr/bin/python3 -c '
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.ftruncate(fd, os.fstat(fd).st_size)
memory = mmap.mmap(fd, 0)
memory[0:3] = b"own"
print(int(memory[0:3] == b"own"), int(os.pread(fd, 3, 0) == b"own"))' "$work/shown" 2>&1)"
same "cow: the source is as it was" same "$(cmp "$work/disk" "$work/before" && echo same)"
"$UFFDA" exec --map "$work/shown=zero:1M,rw" -- true 2> "$work/errors"
same "a source that can only be read" 1 $?
contains "is refused" "this source can only be read" "$work/errors"
chmod 600 "$work/disk"
"$UFFDA" serve --export "a=file:$work/disk,rw" --export "b=file:$work/disk" --socket "$socket" 2> "$work/errors"
same "one file, writable and not" 1 $?
contains "is refused" "both are writable, or neither is" "$work/errors"

# The server is killed: what msync returned for is in the file.
cat > "$work/count.py" <<'PY'
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(fd, 0)
for i in range(1, 100000):
    memory[i % 100 * 4096:i % 100 * 4096 + 8] = i.to_bytes(8, "little")
    try:
        memory.flush()
    except OSError:
        break
    print(i, flush=True)
PY
lost=0
for round in $(seq 5); do
  python3 "$work/zero.py" "$work/disk"
  timeout -k 5 60 "$UFFDA" exec --map "$work/shown=file:$work/disk,rw" -- /usr/bin/python3 "$work/count.py" "$work/shown" > "$work/synced" 2> "$work/errors" &
  supervisor=$!
  some() { [ "$(wc -l < "$work/synced")" -ge $((round * 37)) ]; }
  wait_until some
  kill -KILL "$(pgrep -f "serve --export map0=file:$work/disk" | head -n 1)"
  wait $supervisor 2> /dev/null
  last=$(tail -n 1 "$work/synced")
  found=$(python3 -c '
import sys
data = open(sys.argv[1], "rb").read()
print(int.from_bytes(data[int(sys.argv[2]) % 100 * 4096:][:8], "little"))' "$work/disk" "$last")
  [ "$found" -ge "$last" ] || lost=$((lost + 1))
done
same "what msync returned for outlives a killed server" 0 "$lost"
cat > "$work/orphan.py" <<'PY'
import mmap, os, signal, sys
fd = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(fd, 0)
memory[0:4] = b"sync"
memory.flush()  # from now on it is there, and protected
print("ready", flush=True)
sys.stdin.readline()
memory[0:4] = b"late"
print(memory[0:4].decode(), flush=True)
try:
    memory.flush()
except OSError as error:
    print(error.errno, flush=True)
child = os.fork()
if child == 0:
    memory[4096 * 1500] = 1
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
PY
mkfifo "$work/go" "$work/out"
timeout 60 "$UFFDA" exec --map "$work/shown=file:$work/disk,rw" -- /usr/bin/python3 "$work/orphan.py" "$work/shown" \
  < "$work/go" > "$work/out" 2> "$work/errors" &
supervisor=$!
exec 6> "$work/go" 5< "$work/out"
read -r _ <&5
kill -KILL "$(pgrep -f "serve --export map0=file:$work/disk" | head -n 1)"
told() { grep -q 'uffda: the server' "$work/errors"; }
wait_until told
echo go >&6
got=$(tr '\n' ' ' <&5)
exec 6>&- 5<&-
wait $supervisor
case $got in
  "late 5 -7 " | "late 5 -11 ") ok "after it, writes stay in memory, msync says EIO, and what is absent is a signal" ;;
  *) bad "after it: $got" ;;
esac

# Real programs, each with a quarter of its data.
sqlite3 "$work/db" 'create table t(a integer primary key, b text); insert into t values(1, "x")'
rows='pragma mmap_size=268435456; with recursive c(x) as (select 2 union all select x+1 from c where x<20000)
insert into t select x, hex(randomblob(50)) from c; pragma integrity_check; delete from t where a>10000; vacuum;
select count(*), sum(length(b)) from t; pragma integrity_check;'
same "sqlite3 grows a mapped database, and shrinks it" "268435456 ok 10000|999901 ok" \
  "$(timeout 100 "$UFFDA" exec --budget 512K --map "$work/db.shown=file:$work/db,grow" -- sqlite3 "$work/db.shown" "$rows" 2>&1 | tr '\n' ' ' | sed 's/ $//')"
same "and the file holds it" "10000|999901 ok" "$(sqlite3 "$work/db" 'select count(*), sum(length(b)) from t; pragma integrity_check' | tr '\n' ' ' | sed 's/ $//')"

if /usr/bin/python3 -c 'import lmdb' 2> /dev/null; then
  lmdb_open='lmdb.open(sys.argv[1], subdir=False, writemap=True, map_size=16 << 20, lock=False)'
  /usr/bin/python3 -c "import lmdb, sys; $lmdb_open.close()" "$work/lmdb"
  same "LMDB in a writable map" fine "$(timeout 100 "$UFFDA" exec --budget 4M --map "$work/lmdb.shown=file:$work/lmdb,rw" -- /usr/bin/python3 -c "
import lmdb, sys
store = $lmdb_open
for r in range(20):
    with store.begin(write=True) as t:
        for i in range(2000): t.put(b'%d-%d' % (r, i), b'v%d ' % (r * i) * 12)
with store.begin() as t:
    assert all(t.get(b'%d-%d' % (r, i)) == b'v%d ' % (r * i) * 12 for r in range(20) for i in range(2000))
store.sync(True)
store.close()
print('fine')" "$work/lmdb.shown" 2>&1)"
  same "and the file holds it" "40000 True" "$(/usr/bin/python3 -c "
import lmdb, sys
t = lmdb.open(sys.argv[1], subdir=False, readonly=True, lock=False).begin()
print(t.stat()['entries'], all(t.get(b'%d-%d' % (r, i)) == b'v%d ' % (r * i) * 12 for r in range(20) for i in range(2000)))" "$work/lmdb")"
else
  echo "skip LMDB: no python3-lmdb"
fi

if /usr/bin/python3 -c 'import numpy' 2> /dev/null; then
  /usr/bin/python3 -c 'import numpy, sys; numpy.arange(1000000, dtype="u8").tofile(sys.argv[1])' "$work/array"
  same "numpy.memmap" fine "$(timeout 100 "$UFFDA" exec --budget 2M --map "$work/array.shown=file:$work/array,rw" -- /usr/bin/python3 -c '
import numpy, sys
array = numpy.memmap(sys.argv[1], dtype="u8", mode="r+")
assert (array == numpy.arange(len(array), dtype="u8")).all()
array[:] = array * 3 + 1
array.flush()
print("fine")' "$work/array.shown" 2>&1)"
  same "and the file holds it" True "$(/usr/bin/python3 -c '
import numpy, sys
array = numpy.fromfile(sys.argv[1], dtype="u8")
print((array == numpy.arange(len(array), dtype="u8") * 3 + 1).all())' "$work/array")"
else
  echo "skip numpy: no python3-numpy"
fi

if command -v fio > /dev/null; then
  head -c 67108864 /dev/zero > "$work/fio"
  timeout 200 "$UFFDA" exec --budget 16M --map "$work/fio.shown=file:$work/fio,rw" -- fio --name=mapped --filename="$work/fio.shown" \
    --rw=randwrite --bs=4k --size=64m --ioengine=mmap --verify=crc32c --verify_fatal=1 --verify_state_save=0 --do_verify=1 \
    --fsync=500 > "$work/fio.out" 2>&1
  same "fio verifies what it wrote at random through a mapping" 0 $?
else
  echo "skip fio: it is not installed"
fi
conclude
