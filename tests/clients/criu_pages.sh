#!/bin/bash
# Where the memory of a restored process may come from and go to, with a real CRIU at the other end: a pack of the dump; a
# page server of uffda's for CRIU's daemon; a page server of CRIU's for uffda's; a dump sent to uffda. And a python3 process.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/_criu.sh"
can_criu
mib=${UFFDA_CRIU_MIB:-32}

# dumped NAME [OPTION...]: a task whose memory is checked by one line, and the dump of it.
dumped() {
  dir=$work/$1
  shift
  start "$dir" "$task" plain "$mib" "$dir"
  wait_until lines "$dir/ready" 1 && dump "$dir" "$@"
}
right() { check "$1" "$dir" 1 "parent right;"; }
end_task() { kill -KILL "$pid"; wait_until gone "$pid"; }

# --- a pack -----------------------------------------------------------------------------------------------------------
dumped pack
"$UFFDA" pack --criu "$dir/images" "$dir/dump.pack" > "$dir/pack.log" 2>&1
same "a dump is packed" 0 $?
"$UFFDA" verify "$dir/dump.pack" > /dev/null
same "and verified" 0 $?
serve_lazily "$dir" --pages "pack:$dir/dump.pack" && restore_lazily "$dir"
right "restored from the pack"
ended "the daemon ends"
end_task
head -c 100000 /dev/urandom > "$dir/other"
"$UFFDA" criu lazy-pages --images "$dir/images" --pages "file:$dir/other" 2> "$dir/refused.log"
same "another dump's memory is refused" 1 $?
contains "and why is said" "is not the memory of this dump" "$dir/refused.log"

# --- uffda's page server, CRIU's daemon -------------------------------------------------------------------------------
port_of() { sed -n 's/.*://p' "$1"; }
# page_server ARGUMENT...: uffda's, on a free port: $port, $server.
page_server() {
  "$UFFDA" criu page-server --port 0 "$@" > "$dir/listening" 2> "$dir/server.log" &
  server=$!
  background+=("$server")
  wait_until lines "$dir/listening" 1 && port=$(port_of "$dir/listening")
}
dumped served
page_server --images "$dir/images"
"$criu" lazy-pages -D "$dir/images" -W "$dir/images" -o lazy.log -v4 --page-server --address 127.0.0.1 --port "$port" \
  < /dev/null > /dev/null 2>&1 &
daemon=$!
background+=("$daemon")
wait_until test -S "$dir/images/lazy-pages.socket" && restore_lazily "$dir"
right "CRIU's daemon restores from uffda's page server"
ended "and ends well"
wait "$server"
same "and so does the page server" 0 $?
end_task

# --- CRIU's page server, uffda's daemon -------------------------------------------------------------------------------
# CRIU's server needs larger pipes than most systems allow it, and dies of smaller ones: allowed while this test runs.
allow_pipes() {
  pipe_size=$(cat /proc/sys/fs/pipe-max-size) pipe_pages=$(cat /proc/sys/fs/pipe-user-pages-soft)
  [ "$pipe_size" -lt 4194304 ] || return 0
  { echo 4194304 > /proc/sys/fs/pipe-max-size && echo 0 > /proc/sys/fs/pipe-user-pages-soft; } 2> /dev/null || return 1
  trap 'forbid_pipes; finish' EXIT
}
forbid_pipes() {
  echo "$pipe_size" > /proc/sys/fs/pipe-max-size
  echo "$pipe_pages" > /proc/sys/fs/pipe-user-pages-soft
}
from_criu() {
  dir=$work/remote
  start "$dir" "$task" plain "$mib" "$dir"
  wait_until lines "$dir/ready" 1
  local old=$pid
  mkdir -p "$dir/source"
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  timeout -k 5 120 "$criu" dump -t "$pid" -D "$dir/source" -o dump.log -v4 --lazy-pages --address 127.0.0.1 --port "$port" \
    --status-fd 9 9> "$dir/dumped" < /dev/null > /dev/null 2>&1 &
  background+=("$!")
  wait_until test -s "$dir/dumped"
  cp "$dir/source"/*.img "$dir/images/"
  serve_lazily "$dir" --pages "criu-page-server://127.0.0.1:$port?images=$dir/images" || return
  # The old process is frozen until its pages are gone: the new one needs a namespace of its own for its number.
  unshare -p -f --mount-proc --kill-child timeout -k 5 120 "$criu" restore -D "$dir/images" -W "$dir/images" -o restore.log \
    -v4 --lazy-pages < /dev/null > /dev/null 2>&1 &
  background+=("$!")
  wait_until gone "$old"
  inside() { pid=$(pgrep -f "^$task plain $mib $dir\$" | head -n 1); [ -n "$pid" ]; }
  wait_until inside
  right "restored from CRIU's page server"
  ended "the daemon ends"
  end_task
}
if allow_pipes; then from_criu; else echo "skipped: CRIU's page server needs fs.pipe-max-size 4194304"; fi

# --- a dump that is sent to uffda -------------------------------------------------------------------------------------
dir=$work/received
mkdir -p "$dir/images" "$dir/pages"
start "$dir" "$task" plain "$mib" "$dir"
wait_until lines "$dir/ready" 1
page_server --images "$dir/pages" --receive
dump "$dir" --page-server --address 127.0.0.1 --port "$port"
wait "$server"
same "a dump is received" 0 $?
cp "$dir/pages"/* "$dir/images/"
serve_lazily "$dir" && restore_lazily "$dir"
right "and restored"
ended "the daemon ends"
end_task

# --- python3 ----------------------------------------------------------------------------------------------------------
dir=$work/python
mkdir -p "$dir"
cat > "$dir/program.py" <<'PY'
import os, random, signal, sys
directory = sys.argv[1]
os.closerange(3, 1000)
data = {i: random.Random(i).randbytes(200) for i in range(100000)}
def check(*_):
    wrong = sum(value != random.Random(i).randbytes(200) for i, value in data.items())
    with open(directory + "/result", "a") as out: out.write(f"{wrong} wrong\n")
signal.signal(signal.SIGUSR1, check)
with open(directory + "/ready", "w") as out: out.write("ready\n")
while True: signal.pause()
PY
start "$dir" python3 "$dir/program.py" "$dir"
wait_until lines "$dir/ready" 1
dump "$dir" && serve_lazily "$dir" && restore_lazily "$dir"
check "python3: every object is right" "$dir" 1 "0 wrong;"
ended "the daemon ends"
cat "$dir/lazy.log"
end_task
conclude
