#!/bin/bash
# Several programs on one server share one page cache: what one has read costs the other nothing.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
make_data "$work/data" 8388707
wanted=$(sha256sum < "$work/data")
socket=$work/server.sock
mkfifo "$work/ready"
"$UFFDA" serve --export "disk=file:$work/data" --socket "$socket" --ready-fd 3 3> "$work/ready" 2> "$work/serve.log" &
background=($!)
read -r _ < "$work/ready"
fetched() { python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["fetches"]["bytes"])' "$1"; }
maps='import mmap,hashlib,sys; f=open(sys.argv[1],"rb"); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ); print(hashlib.sha256(m).hexdigest()+"  -")'

run() { timeout 100 "$UFFDA" exec --server "$socket" "$@"; }
same "the first program" "$wanted" "$(run --report "$work/1.json" --map "$work/one=disk" -- python3 -c "$maps" "$work/one")"
same "all bytes were fetched once" 8388707 "$(fetched "$work/1.json")"
same "a second program, another PATH" "$wanted" "$(run --report "$work/2.json" --map "$work/two=disk" -- python3 -c "$maps" "$work/two")"
same "it fetched nothing" 8388707 "$(fetched "$work/2.json")"
same "a third one, by read(2)" "$wanted" "$(run --report "$work/3.json" --map "$work/three=disk" -- sh -c "cat $work/three | sha256sum")"
same "it fetched nothing either" 8388707 "$(fetched "$work/3.json")"

# At the same time, and several processes each.
for i in 1 2 3; do
  run --map "$work/p$i=disk" -- sh -c "for j in 1 2; do python3 -c '$maps' $work/p$i & done; wait" > "$work/sum$i" &
  background+=($!)
done
for pid in "${background[@]:1}"; do wait "$pid"; done
same "six processes of three programs at once" "$(yes "$wanted" | head -n 6)" "$(cat "$work/sum1" "$work/sum2" "$work/sum3")"

# Several PATHs of one export, and names that the server does not have.
same "one export twice in one program" "same" "$(run --map "$work/a=disk" --map "$work/b=disk" -- sh -c "cmp $work/a $work/b && echo same")"
run --map "$work/a=tape" -- true 2> "$work/errors"
same "an export that is not there: status" 125 $?
contains "an export that is not there: is named" "tape" "$work/errors"
same "the server lives on" "yes" "$(kill -0 "${background[0]}" && echo yes)"
conclude
