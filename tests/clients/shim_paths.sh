#!/bin/bash
# UFFDA_SHIM_PATHS: a name that does not exist works as if it did, in every spelling; its neighbours are not touched; and
# without the variable nothing changes.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
shim=${UFFDA_BUILD:-$root/build/release}/libuffda-shim.so
[ -f "$shim" ] || { echo "skipped: no $shim"; exit 77; }
nm -D "$shim" | grep -qw fopen64 || { echo "skipped: this shim rewrites no names"; exit 77; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/real" "$work/dir/sub" "$work/mirror"
python3 -c 'import random; print(random.Random(1).randbytes(300001).hex())' > "$work/real/object"
chmod 444 "$work/real/object"
ln -s dir "$work/link"
echo neighbour > "$work/dir/asked-journal"
echo other > "$work/dir/sub/asked"
asked=$work/dir/asked
gone=$work/none/at/all/asked

failed=0
count=0
# The output of a command with the shim and asked, and without the shim and the real file, must be the same.
same() {
  local plain shimmed
  count=$((count + 1))
  plain=$(cd "$work/dir" && F="$work/real/object" bash -c "$1" 2>&1 | sed "s|$work/real/object|X|g")
  shimmed=$(cd "$work/dir" && F="$2" LD_PRELOAD="$shim" UFFDA_SHIM_PATHS="$asked=$work/real/object;$gone=$work/real/object" \
    bash -c "$1" 2>&1 | sed "s|$2|X|g")
  [ "$plain" = "$shimmed" ] && return
  echo "FAIL $1 with $2"
  printf '  wanted %s\n  got    %s\n' "${plain:0:300}" "${shimmed:0:300}"
  failed=1
}

names=("$asked" "$gone" asked ./asked sub/../asked "$work/link/asked" "$work//dir/./asked" "$work/dir/sub/../asked"
  "$work/none/at/../at/all//asked" ../../../../../../../../../../"$asked")
commands=('cat "$F" | sha256sum' 'sha256sum < "$F"' 'wc -c "$F"' 'test -r "$F" && test -f "$F" && ! test -w "$F.no" && echo yes'
  'stat -c "%s %a %i %F" "$F"' 'ls -l "$F"' 'head -c 99 "$F"' 'tail -c 99 "$F"' 'cmp "$F" "$F" && echo equal'
  'dd if="$F" bs=4k skip=3 count=2 status=none | md5sum' 'cp "$F" "$TMPDIR/copy" && md5sum < "$TMPDIR/copy"'
  'perl -ne "print length" "$F"' 'grep -c abc "$F"' 'file -b "$F"' 'gzip -c < "$F" | wc -c' 'xz -0 -c "$F" | wc -c'
  'python3 -c "import os,sys; p=sys.argv[1]; print(os.path.exists(p), os.access(p,4), os.stat(p).st_size, len(open(p).read()))" "$F"'
  'python3 -c "import mmap,sys; f=open(sys.argv[1],\"rb\"); print(mmap.mmap(f.fileno(),0,access=1)[5000:5010])" "$F"'
  'sort "$F" | md5sum' 'awk "{print length}" "$F"' 'sed -n "1s/^\(.....\).*/\1/p" "$F"' 'od -An -tx1 -N16 "$F"' 'split -n 3/5 "$F" | md5sum')
mkdir "$work/tmp"
export TMPDIR=$work/tmp
for name in "${names[@]}"; do same "${commands[0]}" "$name"; done
for command in "${commands[@]}"; do
  same "$command" "$asked"
  same "$command" "$gone"
done

expect() {
  count=$((count + 1))
  [ "$2" = "$3" ] && return
  echo "FAIL $1: wanted '$2', got '$3'"
  failed=1
}
shimmed=(env "LD_PRELOAD=$shim" "UFFDA_SHIM_PATHS=$asked=$work/real/object;$gone=$work/real/object")
expect "a neighbour" neighbour "$("${shimmed[@]}" cat "$asked-journal")"
expect "the same name elsewhere" other "$("${shimmed[@]}" cat "$work/dir/sub/asked")"
expect "no such name elsewhere" 1 "$("${shimmed[@]}" cat "$work/mirror/asked" > /dev/null 2>&1; echo $?)"
expect "realpath" "$asked" "$("${shimmed[@]}" /usr/bin/python3 -c 'import ctypes,sys
c=ctypes.CDLL(None); c.realpath.restype=ctypes.c_char_p; print(c.realpath(sys.argv[1].encode(),None).decode())' "$work/link/asked")"
expect "openat" 5 "$("${shimmed[@]}" /usr/bin/python3 -c 'import os,sys
d=os.open(sys.argv[1],os.O_RDONLY); print(len(os.read(os.open("asked",os.O_RDONLY,dir_fd=d),5)))' "$work/link")"
expect "a new file gets its mode" 640 "$(cd "$work/tmp" && umask 0 && "${shimmed[@]}" /usr/bin/python3 -c '
import os; os.open("new",os.O_CREAT|os.O_WRONLY,0o640)' && stat -c %a new)"
expect "without the variable" 1 "$(LD_PRELOAD=$shim cat "$asked" > /dev/null 2>&1; echo $?)"
expect "a malformed variable is told" 1 \
  "$(LD_PRELOAD=$shim UFFDA_SHIM_PATHS=nonsense /bin/true 2>&1 | grep -c malformed)"
[ $failed = 0 ] && echo "$count checks right"
exit $failed
