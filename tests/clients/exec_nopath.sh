#!/bin/bash
# PATH need not exist: a placeholder is made and goes again, also when the program or the supervisor is killed; what was there stays.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
make_data "$work/data" 200001
wanted=$(sha256sum < "$work/data")
mkdir "$work/place"
cd "$work/place" || exit 1
run() { timeout 100 "$UFFDA" exec "$@"; }
empty() { [ -z "$(ls -A "$work/place")" ]; }

same "in an existing directory" "$wanted" "$(run --map "new=file:$work/data" -- sha256sum new | sed 's/ new/ -/')"
same "nothing stays" "" "$(ls -A)"
same "in directories that do not exist" "$wanted" "$(run --map "a/b/c/new=file:$work/data" -- sh -c 'sha256sum < a/b/c/new')"
same "nothing stays of them" "" "$(ls -A)"
same "two in one new directory" "$wanted" \
  "$(run --map "a/one=file:$work/data" --map "a/two=file:$work/data" -- sh -c 'cmp a/one a/two && sha256sum < a/two')"
same "nothing stays of two" "" "$(ls -A)"
run --map "a/new=file:$work/data" -- touch a/mine
same "a file of the program's own beside PATH stays" "a/mine" "$(find a -type f)"
rm -r a

run --map "new=file:$work/data" -- sh -c 'kill -KILL $$' 2> /dev/null
wait_until empty && ok "nothing stays after the program was killed"
run --map "new=file:$work/nothing" -- true 2> /dev/null
same "nothing stays after a refusal" "" "$(ls -A)"

# The supervisor is killed while the program runs: the program keeps what it has, and the placeholder goes with it.
mkfifo "$work/told" "$work/go"
"$UFFDA" exec --map "new=file:$work/data" -- \
  bash -c "echo ready > '$work/told'; read -r _ < '$work/go'; sha256sum < new > '$work/sum'" &
supervisor=$!
read -r _ < "$work/told"
kill -KILL $supervisor
wait $supervisor 2> /dev/null
echo go > "$work/go"
wait_until empty && ok "nothing stays after the supervisor was killed"
same "and the program read on" "$wanted" "$(cat "$work/sum")"

# A placeholder that a killed host could not remove is taken over.
: > left && chmod 1644 left
run --map "left=file:$work/data" -- true
same "an abandoned placeholder goes" "" "$(ls -A)"

# Two programs on the same missing PATH: the first one's end does not take it from the second.
"$UFFDA" exec --map "new=file:$work/data" -- bash -c "echo ready > '$work/told'; read -r _ < '$work/go'" &
first=$!
read -r _ < "$work/told"
mkfifo "$work/told2" "$work/go2"
"$UFFDA" exec --map "new=file:$work/data" -- \
  bash -c "echo ready > '$work/told2'; read -r _ < '$work/go2'; sha256sum < new > '$work/sum'" &
second=$!
read -r _ < "$work/told2"
echo go > "$work/go"
wait $first
echo go > "$work/go2"
wait $second
same "two programs on one missing PATH" "$wanted" "$(cat "$work/sum")"
wait_until empty && ok "nothing stays of both"

# What exists is only covered.
echo mine > file
ln -s file link
same "an existing file is covered" "$wanted" "$(run --map "file=file:$work/data" -- sh -c 'sha256sum < file')"
same "and stays" "mine" "$(cat file)"
same "a symbolic link is followed" "$wanted" "$(run --map "link=file:$work/data" -- sh -c 'sha256sum < file')"
: > void
run --map "void=file:$work/data" -- true
same "an empty file that was there stays" "yes" "$([ -f void ] && echo yes)"
same "a file over itself" "$wanted" "$(run --map "$work/data=file:$work/data" -- sh -c "sha256sum < $work/data")"

conclude
