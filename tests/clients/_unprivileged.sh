# Sourced behind lib.sh by scripts that run uffda as a user without rights (uid 65534). As root they make themselves a mount
# namespace in which the devices have the modes to test, and become that user in it. $work/bin holds the command and the shim,
# $work/home belongs to the user, $work/fuse and $work/userfaultfd are devices for everybody, $work/closed is one for nobody.
[ "$(id -u)" = 0 ] || skip "needs root, to become a user without rights with devices of chosen modes"
can_exec
command -v setpriv > /dev/null || skip "needs setpriv"

# The build may lie where that user cannot look.
mkdir "$work/bin"
cp "$UFFDA" "$UFFDA_BUILD/libuffda-shim.so" "$work/bin/"
chown 65534 "$work/run"
mkdir "$work/home"
chown 65534:65534 "$work/home"
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

# as_user_without COMMAND...: with FUSE for everybody, but unshare(2) is refused, as container runtimes do it.
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
as_user fuse - true 2> "$work/errors" || skip "cannot bind device nodes: $(cat "$work/errors")"
as_user fuse - unshare -U true 2> /dev/null || skip "needs user namespaces"
