#!/bin/bash
# A user without rights: `uffda exec` in a user namespace, with and without access to userfaultfd, and where no namespace can be made.
# As root the script makes itself a mount namespace in which the devices have the modes to test, and becomes uid 65534 in it.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
[ "$(id -u)" = 0 ] || skip "needs root, to become a user without rights with devices of chosen modes"
can_exec
command -v setpriv > /dev/null || skip "needs setpriv"
crawl=$UFFDA_BUILD/tests/clients/exec_mmap
[ -x "$crawl" ] || skip "no $crawl"

# The build may lie where that user cannot look.
mkdir "$work/bin"
cp "$UFFDA" "$UFFDA_BUILD/libuffda-shim.so" "$crawl" "$work/bin/"
make_data "$work/data" 4194427
"$crawl" "$work/data" > "$work/wanted"
chown 65534 "$work/run"
mkdir "$work/home"
chown 65534:65534 "$work/home"
: > "$work/home/shown"
chown 65534 "$work/home/shown"
mknod -m 666 "$work/fuse" c 10 229 || skip "cannot make device nodes"
mknod -m 666 "$work/userfaultfd" c "$(cut -d : -f 1 /sys/class/misc/userfaultfd/dev)" "$(cut -d : -f 2 /sys/class/misc/userfaultfd/dev)"
mknod -m 600 "$work/closed" c 10 229

# as_user FUSE-NODE USERFAULTFD-NODE COMMAND...: "-" leaves the node as it is.
as_user() {
  local fuse=$1 faults=$2
  shift 2
  [ "$fuse" = - ] || fuse="mount --bind $work/$fuse /dev/fuse;"
  [ "$faults" = - ] || faults="mount --bind $work/$faults /dev/userfaultfd;"
  (cd "$work/home" && unshare -m --propagation private bash -c "${fuse#-} ${faults#-} exec \"\$@\"" bash \
    setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all "$@")
}
uffda=("$work/bin/uffda" exec --report "$work/home/report" --map "$work/home/shown=file:$work/data")
spaces() { python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["exec"]["address_spaces"])' "$work/home/report"; }
as_user fuse - true 2> "$work/errors" || skip "cannot bind device nodes: $(cat "$work/errors")"
as_user fuse - unshare -U true 2> /dev/null || skip "needs user namespaces"

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
as_user fuse - "$work/bin/uffda" exec --map "$work/rootonly/new=file:$work/data" -- true 2> "$work/errors"
same "PATH in somebody else's directory: status" 125 $?
contains "PATH in somebody else's directory: advice" "create $work/rootonly/new" "$work/errors"
: > "$work/rootonly/there"
same "PATH that is somebody else's file" "$(sha256sum < "$work/data")" \
  "$(as_user fuse - "$work/bin/uffda" exec --map "$work/rootonly/there=file:$work/data" -- sh -c "sha256sum < $work/rootonly/there")"

# --- no namespace, or no /dev/fuse ------------------------------------------------------------------------------------
as_user closed - "${uffda[@]}" -- true 2> "$work/errors"
same "/dev/fuse closed: status" 125 $?
contains "/dev/fuse closed: advice" "chmod 0666 /dev/fuse" "$work/errors"
# unshare(2) refused, as container runtimes do it: fusermount3 mounts for everybody, and unmounts.
if command -v fusermount3 > /dev/null; then
  no_namespace=(python3 -c '
import ctypes, os, struct, sys
def op(code, jt, jf, k): return struct.pack("HBBI", code, jt, jf, k)
# seccomp: unshare -> EPERM, all else allowed (x86-64)
program = op(0x20, 0, 0, 0) + op(0x15, 0, 1, 272) + op(0x06, 0, 0, 0x00050001) + op(0x06, 0, 0, 0x7fff0000)
text = ctypes.create_string_buffer(program)
class Fprog(ctypes.Structure): _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
fprog = Fprog(len(program) // 8, ctypes.addressof(text))
if libc.prctl(22, 2, ctypes.byref(fprog), 0, 0) != 0: sys.exit(99)
os.execvp(sys.argv[1], sys.argv[1:])
')
  # Without no_new_privs (fusermount3 is setuid) only root may install such a filter: before becoming the user.
  as_user_without() {
    (cd "$work/home" && unshare -m --propagation private bash -c "mount --bind $work/fuse /dev/fuse; exec \"\$@\"" bash \
      "${no_namespace[@]}" setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all "$@")
  }
  as_user_without "${uffda[@]}" -- "$work/bin/exec_mmap" "$work/home/shown" > "$work/got" 2> "$work/errors"
  same "no namespace, fusermount3: status" 0 $?
  same "no namespace, fusermount3: bytes" "" "$(diff "$work/wanted" "$work/got" | head -n 5)$(grep -v userfaultfd "$work/errors")"
  same "no namespace, fusermount3: nothing stays mounted" 0 "$(stat -c %s "$work/home/shown")"
  as_user_without "$work/bin/uffda" exec --map "$work/rootonly/there=file:$work/data" -- true 2> "$work/errors"
  same "no namespace, somebody else's file: status" 125 $?
  contains "no namespace, somebody else's file: why" "user namespace" "$work/errors"
fi
conclude
