#!/bin/bash
# The server of Firecracker's VMs needs no privilege: here as a user without rights, in a root directory that has the program, its
# libraries, /proc, one socket and one memory file.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
vmm=$UFFDA_BUILD/tests/clients/firecracker_vmm
[ -x "$vmm" ] || skip "no $vmm"
[ "$(id -u)" = 0 ] || skip "needs root, to make a root directory and become another user"
unshare --mount --ipc --net --uts true 2> /dev/null || skip "needs the right to make namespaces"
make_data "$work/memory" $((4 << 20))
jail=$work/jail
mkdir -p "$jail/run" "$jail/bin" "$jail/data" "$jail/proc"
cp "$UFFDA" "$jail/bin/uffda"
# What it is linked with, and the loader.
ldd "$UFFDA" | grep -o '/[^ ]*' | while read -r library; do
  mkdir -p "$jail$(dirname "$library")"
  cp -L "$library" "$jail$library"
done
cp "$work/memory" "$jail/data/vm.mem"
chmod 755 "$jail" "$jail/bin" "$jail/data" "$work"
chmod 444 "$jail/data/vm.mem"
chown 65534:65534 "$jail/run"
mkfifo "$work/ready"
chroot "$jail" /bin/uffda version > "$work/version" 2>&1 || skip "the program does not run in the jail: $(head -n 1 "$work/version")"
unshare --mount --ipc --net --uts bash -c '
  mount -t proc proc "$1/proc" && cd "$1" && exec chroot --userspec=65534:65534 --groups= "$1" /bin/uffda serve --protocol firecracker --socket /run/vm.sock \
    --control /run/control.sock --export vm=file:/data/vm.mem --allow-uid 0 --holder --ready-fd 3' bash "$jail" 3> "$work/ready" 2> "$work/log" &
server=$!
background+=("$server")
read -r _ < "$work/ready" || true
cat "$work/log"
same "the server is the user without rights" 65534 "$(awk '/^Uid:/ {print $2}' "/proc/$server/status")"
same "without any capability" 0000000000000000 "$(awk '/^CapEff:/ {print $2}' "/proc/$server/status")"
same "in its jail" "$jail" "$(readlink "/proc/$server/root")"
for memory in anon memfd; do
  timeout 60 "$vmm" "$jail/run/vm.sock" "$work/memory" memory=$memory < /dev/null > "$work/vm" 2>&1
  same "a VM outside is served, $memory" 0 $?
done
"$UFFDA" stats --socket "$jail/run/control.sock" > "$work/table"
same "and the server can be asked from outside" 0 $?
conclude
