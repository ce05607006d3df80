#!/bin/bash
# A server keeps within its budget, and an export within its own, while programs read much more than that: measured by
# what the memory files of the page cache hold.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
make_data "$work/big" 67108864
make_data "$work/small" 16777216
socket=$work/server.sock
mkfifo "$work/ready"
"$UFFDA" serve --export "big=file:$work/big" --export "small=file:$work/small" --budget 8M --export-budget small=1M \
  --report "$work/report.json" --socket "$socket" --ready-fd 3 3> "$work/ready" 2> "$work/serve.log" &
server=$!
background=($server)
read -r _ < "$work/ready"
cat > "$work/sampler.py" <<'PY'
# The most bytes that the cached files ever held: in all, and of the small one. Until the pipe on stdin is closed. The
# server is stopped while both are looked at: one after the other they would be of two moments.
import os, select, signal, sys
server = int(sys.argv[1])
files = {}
for fd in os.listdir(f"/proc/{server}/fd"):
    path = f"/proc/{server}/fd/{fd}"
    target = os.readlink(path)
    size = os.stat(path).st_size
    if target.startswith("/memfd:") and size in (67108864, 16777216): files[os.stat(path).st_ino] = (path, size)
assert len(files) == 2, files
def stopped():
    for task in os.listdir(f"/proc/{server}/task"):
        try: state = open(f"/proc/{server}/task/{task}/stat").read().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError): continue  # a thread that has ended
        if state not in "tTXZ": return False
    return True
most = most_small = samples = 0
while not select.select([sys.stdin], [], [], 0.001)[0]:
    os.kill(server, signal.SIGSTOP)
    while not stopped(): pass
    held = {size: os.stat(path).st_blocks * 512 for path, size in files.values()}
    os.kill(server, signal.SIGCONT)
    most, most_small, samples = max(most, sum(held.values())), max(most_small, held[16777216]), samples + 1
print(most, most_small, samples)
PY
coproc sampler { python3 "$work/sampler.py" "$server" 2> "$work/sampler.log"; }
sampler_in=${sampler[1]} sampler_out=${sampler[0]}
maps='import mmap,hashlib,sys
for name in sys.argv[1:]:
  f=open(name,"rb"); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ); print(hashlib.sha256(m).hexdigest())'
wanted=$(sha256sum "$work/big" "$work/small" | cut -d' ' -f1)
read_both() {
  timeout 200 "$UFFDA" exec --server "$socket" --map "$work/$1.big=big" --map "$work/$1.small=small" -- \
    python3 -c "$maps" "$work/$1.big" "$work/$1.small"
}
read_both a > "$work/a" &
reader=$!
same "one program's bytes" "$wanted" "$(read_both b)"
wait "$reader"
same "another's at the same time" "$wanted" "$(cat "$work/a")"
exec {sampler_in}>&-
read -r most most_small samples <&"$sampler_out"
same "the server's budget was kept in every sample" yes "$([ "${most:-0}" -gt 0 ] && [ "$most" -le 8388608 ] && echo yes || echo "$most of $samples")"
same "and the export's" yes "$([ "${most_small:-0}" -gt 0 ] && [ "$most_small" -le 1048576 ] && echo yes || echo "$most_small of $samples")"
kill "$server"
wait "$server"
same "the report says what the budget is" "8388608 1048576 0" "$(python3 -c '
import json, sys
report = json.load(open(sys.argv[1]))
small = next(e for e in report["exports"] if e["name"] == "small")
print(report["resident"]["budget_bytes"], small["budget_bytes"], report["resident"]["apart_bytes"])' "$work/report.json")"
"$UFFDA" serve --export "a=file:$work/small" --export "b=file:$work/small" --export-budget b=1M --socket "$work/other" 2> "$work/errors"
same "two exports share one budget" 1 $?
contains "and the message says what to do" "give it to the first" "$work/errors"
"$UFFDA" serve --export "a=file:$work/small" --budget 4K --socket "$work/other" 2> "$work/errors"
same "a budget that holds no two pages" 1 $?
contains "is refused with the least one" "give at least 8192" "$work/errors"
conclude
