#!/bin/bash
# Children: fork before and after mapping, over generations, and what programs do to their mappings: right bytes after each, with
# CAP_SYS_PTRACE and without, with pages evicted all the time, and through FUSE alone. (shim_exec.sh goes into every corner.)
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
clients=$UFFDA_BUILD/tests/clients
[ -x "$clients/exec_mmap" ] || skip "no $clients/exec_mmap"
make_data "$work/data" $((16 * 1024 * 1024 + 2129))
: > "$work/shown"
"$clients/exec_mmap" "$work/data" > "$work/wanted"
cat > "$work/fork.py" << 'PY'
# Each generation of processes maps, reads half of it, forks, and reads the other half.
import hashlib, mmap, os, sys
def read(m, start, end):
    return hashlib.sha256(m[start:end]).hexdigest()
def generation(depth):
    file = open(sys.argv[1], "rb")
    m = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    half = len(m) // 2
    first = read(m, 0, half)
    children = []
    for _ in range(2 if depth else 0):
        child = os.fork()
        if child == 0:
            os._exit(0 if (read(m, 0, half), read(m, half, len(m))) == expected and generation(depth - 1) else 1)
        children.append(child)
    second = read(m, half, len(m))
    return (first, second) == expected and all(os.waitpid(c, 0)[1] == 0 for c in children)
whole = open(sys.argv[1], "rb").read()
expected = (read(whole, 0, len(whole) // 2), read(whole, len(whole) // 2, len(whole)))
print(expected[1], generation(3))
PY
python3 "$work/fork.py" "$work/data" > "$work/wanted.fork"

without_ptrace=(setpriv --bounding-set -sys_ptrace --inh-caps -sys_ptrace)
"${without_ptrace[@]}" true 2> /dev/null || without_ptrace=()

# all_of NAME [exec's options...]: `prefix` is what the program runs under.
all_of() {
  local name=$1
  shift
  local run=(timeout 200 "$UFFDA" exec --report "$work/report" --map "$work/shown=file:$work/data" "$@" --
    ${prefix[@]+"${prefix[@]}"})
  "${run[@]}" "$clients/exec_mmap" "$work/shown" > "$work/got" 2> "$work/errors"
  same "$name: every way to map" "" "$(diff "$work/wanted" "$work/got" | head -n 6)$(cat "$work/errors")"
  spaces=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["exec"]["address_spaces"])' "$work/report")
  same "$name: generations of children" "$(cat "$work/wanted.fork")" "$("${run[@]}" python3 "$work/fork.py" "$work/shown" 2>&1)"
}

prefix=()
all_of "with every privilege"
# Without access to userfaultfd FUSE is all there is, and uffda has said so above.
[ "$spaces" = 0 ] || same "the program and its child handed over their memory" 2 "$spaces"
all_of "evicting all the time" --budget 4M
prefix=(${without_ptrace[@]+"${without_ptrace[@]}"})
[ -z "${prefix[*]}" ] || all_of "without CAP_SYS_PTRACE"
prefix=()
all_of "through FUSE alone" --no-preload
same "through FUSE alone: no memory was handed over" 0 "$spaces"
conclude
