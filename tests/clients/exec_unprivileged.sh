#!/bin/bash
# A user without rights: `uffda exec` in a user namespace, with and without access to userfaultfd, and where no namespace can be made.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$here/_unprivileged.sh"
crawl=$UFFDA_BUILD/tests/clients/exec_mmap
[ -x "$crawl" ] || skip "no $crawl"
cp "$crawl" "$work/bin/"
make_data "$work/data" 4194427
"$crawl" "$work/data" > "$work/wanted"
: > "$work/home/shown"
chown 65534 "$work/home/shown"
uffda=("$work/bin/uffda" exec --report "$work/home/report" --map "$work/home/shown=file:$work/data")
spaces() { python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["exec"]["address_spaces"])' "$work/home/report"; }

# --- with userfaultfd -------------------------------------------------------------------------------------------------
as_user fuse userfaultfd "${uffda[@]}" -- "$work/bin/exec_mmap" "$work/home/shown" > "$work/got" 2> "$work/errors"
same "with userfaultfd: status" 0 $?
same "with userfaultfd: bytes" "" "$(diff "$work/wanted" "$work/got" | head -n 5)"
same "with userfaultfd: nothing to complain of" "" "$(cat "$work/errors")"
same "with userfaultfd: memory was handed over" 2 "$(spaces)"
same "the user is the same inside" "65534 65534" "$(as_user fuse - "${uffda[@]}" -- sh -c 'echo $(id -u) $(id -g)')"
same "without new privileges" "0000000000000000" "$(as_user fuse - "${uffda[@]}" -- sed -n 's/^CapEff:\t//p' /proc/self/status)"
same "the file is the user's" "65534 444" "$(as_user fuse - "${uffda[@]}" -- stat -c '%u %a' "$work/home/shown")"
as_user fuse - "${uffda[@]}" -- sh -c 'exit 9'
same "exit status" 9 $?

# --- without ----------------------------------------------------------------------------------------------------------
as_user fuse closed "${uffda[@]}" -- "$work/bin/exec_mmap" "$work/home/shown" > "$work/got" 2> "$work/errors"
same "without userfaultfd: status" 0 $?
same "without userfaultfd: bytes" "" "$(diff "$work/wanted" "$work/got" | head -n 5)"
same "without userfaultfd: said once" 1 "$(grep -c 'userfaultfd' "$work/errors")"
contains "without userfaultfd: says what follows" "through FUSE" "$work/errors"
same "without userfaultfd: no memory was handed over" 0 "$(spaces)"

# --- PATH that does not exist -----------------------------------------------------------------------------------------
same "PATH in a directory of the user" "$(sha256sum < "$work/data")" \
  "$(as_user fuse - "$work/bin/uffda" exec --map "new/dir/file=file:$work/data" -- sh -c 'sha256sum < new/dir/file')"
same "nothing stays" "report shown" "$(echo $(ls "$work/home"))"
mkdir "$work/rootonly"
: > "$work/rootonly/there"
same "PATH that is somebody else's file" "$(sha256sum < "$work/data")" \
  "$(as_user fuse - "$work/bin/uffda" exec --map "$work/rootonly/there=file:$work/data" -- sh -c "sha256sum < $work/rootonly/there")"

# --- no namespace, or no /dev/fuse ------------------------------------------------------------------------------------
as_user closed - "${uffda[@]}" -- true 2> "$work/errors"
same "/dev/fuse closed: status" 125 $?
contains "/dev/fuse closed: advice" "chmod 0666 /dev/fuse" "$work/errors"
# Without a namespace fusermount3 mounts for everybody, and unmounts.
if command -v fusermount3 > /dev/null; then
  as_user_without "${uffda[@]}" -- "$work/bin/exec_mmap" "$work/home/shown" > "$work/got" 2> "$work/errors"
  same "no namespace, fusermount3: status" 0 $?
  same "no namespace, fusermount3: bytes" "" "$(diff "$work/wanted" "$work/got" | head -n 5)$(grep -v userfaultfd "$work/errors")"
  same "no namespace, fusermount3: nothing stays mounted" 0 "$(stat -c %s "$work/home/shown")"
  as_user_without "$work/bin/uffda" exec --map "$work/rootonly/there=file:$work/data" -- true 2> "$work/errors"
  same "no namespace, somebody else's file: status" 125 $?
  contains "no namespace, somebody else's file: why" "user namespace" "$work/errors"
fi
conclude
