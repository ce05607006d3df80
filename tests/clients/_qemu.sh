# For the scripts qemu_*.sh: a real QEMU, and the guest that scripts/guest makes once.
command -v qemu-system-x86_64 >/dev/null || skip "no qemu-system-x86_64"
export UFFDA_GUEST=${UFFDA_GUEST:-$root/build/guest}
"$root/scripts/guest" "$UFFDA_GUEST" >"$work/guest.log" 2>&1 || skip "no guest: $(tail -n 1 "$work/guest.log")"
export UFFDA
# scenario FILE [ARGUMENT...]: the checks in tests/clients/FILE, whose machines do not outlive it.
scenario() {
  timeout -k 10 280 python3 -u "$here/$1" "$work" "${@:2}" </dev/null
  local status=$?
  [ $status = 0 ] || { failed=1; [ $status -lt 124 ] || bad "$1" "status $status"; }
}
