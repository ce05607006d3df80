#!/bin/bash
# Everyday commands (exec_everyday.table), each on the real files and on the same files under `uffda exec`: the output and the status
# must be the same. Arguments: names of rows, to run only those. Environment: UFFDA_EVERYDAY_OPTIONS, more options of uffda exec.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
export CLIENTS=$UFFDA_BUILD/tests/clients

mkdir "$work/real" "$work/shown" "$work/out"
cd "$work/real" || exit 1
make_data data.bin 4194427
python3 - <<'PY'
import random
r = random.Random(7)
words = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()
with open("data.txt", "w") as f:
    for i in range(20000):
        f.write(f"line {r.randrange(100000)} {' '.join(r.choices(words, k=5))}\n")
PY
python3 - <<'PY'
import sqlite3
d = sqlite3.connect("data.db")
d.execute("create table lines(number integer primary key, text)")
d.executemany("insert into lines(text) values(?)", ((l,) for l in open("data.txt")))
d.commit()
PY
xz -0 -k -c --block-size=300000 data.txt > data.xz
tar -cf data.tar --mtime=@0 data.txt
cd "$work" || exit 1

maps=()
for name in data.bin data.txt data.db data.xz data.tar; do maps+=(--map "shown/$name=file:$work/real/$name"); done

have() {
  case $1 in
    exec_*) [ -x "$CLIENTS/$1" ] ;;
    numpy) /usr/bin/python3 -c 'import numpy' 2> /dev/null ;;
    *) command -v "$1" > /dev/null ;;
  esac
}

# run DIRECTORY COMMAND PREFIX...: output and status of a row; its scratch directory is new each time.
run() {
  local directory=$1 command=$2
  shift 2
  rm -rf "$work/out"
  mkdir "$work/out"
  OUT=$work/out RO=$RO timeout 100 "$@" bash -c "cd '$work/$directory' && $command" 2> "$work/errors"
  echo "status $?"
}

ran=0
skipped=0
while IFS= read -r row; do
  [[ $row == \#* || -z $row ]] && continue
  name=${row%% | *}
  rest=${row#* | }
  tool=${rest%% | *}
  command=${rest#* | }
  if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then continue; fi
  if ! have "$tool"; then
    echo "skip $name: no $tool here"
    skipped=$((skipped + 1))
    continue
  fi
  ran=$((ran + 1))
  # For the real run a copy without the right to write, for which even root is refused: a directory.
  RO=/ run real "$command" env > "$work/wanted" 2>&1
  mv "$work/errors" "$work/real-errors"
  RO=data.bin run shown "$command" "$UFFDA" exec ${UFFDA_EVERYDAY_OPTIONS-} "${maps[@]}" -- > "$work/got" 2>&1
  if ! grep -qx 'status 0' "$work/wanted"; then
    bad "$name" "fails on the real files, too: $(cat "$work/wanted" "$work/real-errors" | head -n 5)"
  elif ! cmp -s "$work/wanted" "$work/got"; then
    bad "$name"
    diff -a "$work/wanted" "$work/got" | cut -c 1-200 | head -n 8
    head -n 5 "$work/errors"
  elif grep -q '^uffda' "$work/errors"; then
    bad "$name" "uffda complained"
    head -n 5 "$work/errors"
  else
    ok "$name"
  fi
done < "$here/exec_everyday.table"

same "nothing is left behind" "" "$(ls -A shown)"
[ $# -gt 0 ] || [ $ran -ge 45 ] || bad "rows" "only $ran could run here"
echo "$ran rows ran, $skipped were skipped"
conclude
