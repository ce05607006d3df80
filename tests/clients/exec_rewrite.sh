#!/bin/bash
# PATH in a directory that the user cannot write: the names that programs use are rewritten, with and without a namespace. What
# would not notice, a static program, is refused.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$here/_unprivileged.sh"
command -v sqlite3 > /dev/null || skip "needs sqlite3"
crawl=$UFFDA_BUILD/tests/clients/exec_mmap
[ -x "$crawl" ] || skip "no $crawl"
cp "$crawl" "$work/bin/"

make_data "$work/data" 1200321
sqlite3 "$work/db" "create table t(n integer primary key, s); with recursive c(n) as (select 1 union all select n + 1 from c where n < 20000)
  insert into t select n, hex(n * n) from c"
mkdir -m 755 "$work/locked" "$work/locked/inner"
ln -s "$work/locked" "$work/link"
echo neighbour > "$work/locked/neighbour"
path=/nonexistent/dir/data.img
[ -e /nonexistent ] && path=$work/locked/other/data.img
base=$work/locked/base.db

# The same commands on real files, and under exec.
uffda=("$work/bin/uffda" exec --map "$path=file:$work/data" --map "$base=file:$work/db" --map "$work/link/gone/data.img=file:$work/data")
commands=(
  'cat "$F" | sha256sum' 'sha256sum < "$F"' 'wc -c "$F"' 'head -c 5000 "$F" | md5sum' 'dd if="$F" bs=4k skip=3 count=2 status=none | md5sum'
  'stat -c "%s %F" "$F"' 'test -r "$F" && echo yes' 'test -e "$F.no" || echo no' 'cp "$F" copy && md5sum < copy && rm -f copy'
  'python3 -c "import mmap,sys; f=open(sys.argv[1],\"rb\"); m=mmap.mmap(f.fileno(),0,access=1); print(hash(m[:])==hash(f.read()), m[70000:70010])" "$F"'
  'python3 -c "import os,sys; p=sys.argv[1]; print(os.path.realpath(p)==p, os.path.getsize(p), os.access(p,4), os.access(p,2))" "$F"'
  'python3 -c "import subprocess,sys; print(subprocess.run([\"sha256sum\",sys.argv[1]],capture_output=True).stdout)" "$F"'
  'python3 -c "import os,sys; os.waitpid(os.posix_spawnp(\"md5sum\",[\"md5sum\"],os.environ,file_actions=[(os.POSIX_SPAWN_OPEN,0,sys.argv[1],os.O_RDONLY,0)]),0)" "$F"'
  'bash -c "sh -c \"md5sum < \$F\"; cat \$F | (sleep 0; wc -c)"' 'cd / && md5sum "${F#/}"' 'cat "${F%/*}/./data.img" | md5sum'
  'sqlite3 "$D" "select count(*), sum(n), max(s) from t"' 'sqlite3 -readonly "$D" "pragma mmap_size=100000000; select s from t where n in (5, 777, 19999)"'
  'sqlite3 "$D" "insert into t values(0, 0)" 2>&1 | grep -o "readonly database"'
  'cat "${D%/*}/neighbour"' 'ls "${D%/*}"' '"$BIN/exec_mmap" "$F" --crawl | md5sum')
export BIN=$work/bin
run_all() { for command in "${commands[@]}"; do echo "\$ $command"; bash -c "$command" 2>&1; echo "status $?"; done; }
export -f run_all
export commands_text="$(declare -p commands)"
everything='eval "$commands_text"; run_all'

mkdir "$work/plain" && cp -r "$work/locked/." "$work/plain/"
mkdir "$work/plain/real"
cp "$work/data" "$work/plain/real/data.img"
cp "$work/db" "$work/plain/real/base.db"
echo neighbour > "$work/plain/real/neighbour"
mkdir "$work/plain/real/inner"
chmod 444 "$work/plain/real/"*.*
# What the same commands say of real files of an ordinary user. Names, and the listing (which shows no rewritten name), are made equal.
plain() {
  (cd "$work/home" && F=$work/plain/real/data.img D=$work/plain/real/base.db setpriv --reuid 65534 --regid 65534 --clear-groups \
    --inh-caps=-all --bounding-set=-all bash -c "$everything") | sed "s|$work/plain/real/data.img|PATH|g; s|${work#/}/plain/real/data.img|PATH|g; /^base.db$/d; /^data.img$/d"
}
equal() { sed "s|$path|PATH|g; s|${path#/}|PATH|g" | grep -v '^uffda: '; }
plain > "$work/wanted"

# compare NAME COMMAND...: everything, run by the command.
compare() {
  local name=$1
  shift
  F=$path D=$base "$@" "${uffda[@]}" --report "$work/home/report" -- bash -c "$everything" 2> "$work/errors" | equal > "$work/got"
  same "$name: ${#commands[@]} commands" "" "$(diff "$work/wanted" "$work/got")"
  contains "$name: said" "$path cannot be made" "$work/errors"
  same "$name: nothing stays" "report" "$(echo $(ls "$work/home"))"
  same "$name: no private directory stays" "" "$(ls "$work/run")"
  same "$name: PATH is as it was" "no no" "$([ -e "$path" ] || echo no) $([ -e "$base" ] || echo no)"
}
spaces() { python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["exec"]["address_spaces"] > 0)' "$work/home/report"; }

compare "namespace" as_user fuse userfaultfd
same "namespace: memory was handed over" True "$(spaces)"
compare "namespace, no userfaultfd" as_user fuse closed
if command -v fusermount3 > /dev/null; then
  compare "no namespace" as_user_without
  same "no namespace: nothing stays mounted" "" "$(grep "$work/run" /proc/mounts)"
fi
same "through a link to a directory that is not there" "$(md5sum < "$work/data")" \
  "$(as_user fuse - "${uffda[@]}" -- sh -c "md5sum < $work/link/gone/data.img" 2> /dev/null)"
as_user fuse - "${uffda[@]}" -- sh -c 'exit 9' 2> /dev/null
same "exit status" 9 $?

# --- what the shim does not reach -------------------------------------------------------------------------------------
refused() {
  as_user fuse - "${uffda[@]}" "${@:2}" > "$work/got" 2> "$work/errors"
  same "$1: status" 2 $?
  contains "$1: advice" "create $path (an empty file) first" "$work/errors"
  same "$1: it did not run" "" "$(cat "$work/got")"
  same "$1: nothing stays" "" "$(ls "$work/run")"
}
static=/sbin/ldconfig
if [ "$(python3 -c 'import sys; print(b"ld-linux" in open(sys.argv[1],"rb").read(4096))' $static)" = False ]; then
  refused "a static program" -- "$static" --version
  printf '#! %s --version\n' "$static" > "$work/bin/script"
  printf '#!%s\n' "$work/bin/script" > "$work/bin/script-of-script"
  chmod 755 "$work/bin/script" "$work/bin/script-of-script"
  refused "a script whose interpreter is static" -- "$work/bin/script"
  refused "a script whose interpreter is such a script" -- "$work/bin/script-of-script"
  PATH=$work/bin:$PATH refused "one that is found through \$PATH" -- script
else
  echo "skip a static program: $static is none here"
fi
as_user fuse - "${uffda[@]}" --no-preload -- true 2> "$work/errors"
same "--no-preload: status" 125 $?
contains "--no-preload: advice" "create $path (an empty file) first" "$work/errors"
as_user fuse - "${uffda[@]}" -- /no/such/program 2> /dev/null
same "no such program: status" 127 $?
printf '#!/usr/bin/env python3\nimport sys\nprint(len(open(sys.argv[1],"rb").read()))\n' > "$work/bin/size"
chmod 755 "$work/bin/size"
same "a script by env" "$(stat -c %s "$work/data")" "$(as_user fuse - "${uffda[@]}" -- "$work/bin/size" "$path" 2> /dev/null)"

# --- root, on a file system that is read-only --------------------------------------------------------------------------
if mkdir "$work/full" && mount -t tmpfs -o ro none "$work/full" 2> /dev/null; then
  same "a read-only file system" "$(md5sum < "$work/data")" \
    "$("$UFFDA" exec --map "$work/full/new=file:$work/data" -- sh -c "md5sum < $work/full/new" 2> /dev/null)"
  umount "$work/full"
fi
conclude
