# A private Ceph cluster on loopback, for tests: one monitor and some OSDs of Debian's packages, in one directory, as the user
# who runs it. Nothing of the host's is read (no /etc/ceph) and nothing stays: the daemons get SIGKILL from the kernel when the
# shell that started them ends.
#
#   . _ceph.sh
#   ceph_can_run || skip "$ceph_why"
#   ceph_start DIR [memstore|bluestore [OSDS [SIZE]]]    # DIR/ceph.conf, a pool named uffda, ready for I/O when it returns
#   ceph_cli osd tree; rados -c "$CEPH_CONF" -p uffda ls # CEPH_CONF is exported: plain ceph, rados and radosgw work too
#   ceph_kill osd.0; ceph_start_osd 0; ceph_wait_up; ceph_signal STOP osd.0
#   ceph_stop
#
# memstore is up in about five seconds and loses everything with its OSD; bluestore lies on a sparse file of 2 GiB an OSD.
# SIZE is the number of copies (default: 1). Or, for a program: `bash _ceph.sh DIR ...` starts a cluster, makes the file DIR/ready
# (or DIR/failed, with the reason) and stays until it is killed; pids are in DIR/osd.N.pid and DIR/mon.a.pid.

ceph_can_run() {
  local command
  for command in ceph ceph-mon ceph-osd monmaptool rados setpriv; do
    command -v "$command" > /dev/null || { ceph_why="needs $command (ceph-mon, ceph-osd and ceph-common): make setup"; return 1; }
  done
}

ceph_free_ports() {
  /usr/bin/python3 -c '
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in sockets: s.bind(("127.0.0.1", 0))
print(*[s.getsockname()[1] for s in sockets])' "$1"
}

ceph_write_conf() {
  local store=$1 size=$2 port=$3
  cat > "$CEPH_CONF" <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = v2:127.0.0.1:$port
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
ms client mode = crc
ms service mode = crc
ms cluster mode = crc
keyring = $ceph_directory/keyring
admin socket = $ceph_directory/\$name.\$pid.asok
run dir = $ceph_directory
crash dir = $ceph_directory
log file = $ceph_directory/\$name.log
mon cluster log file = $ceph_directory/cluster.log
pid file =
mon data = $ceph_directory/mon
mon allow pool size one = true
mon allow pool delete = true
mon osd min down reporters = 1
mon data avail crit = 1
osd data = $ceph_directory/osd.\$id
osd objectstore = $store
osd crush chooseleaf type = 0
osd pool default size = $size
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd heartbeat interval = 1
osd heartbeat grace = 4
osd class load list = *
osd memory target = 939524096
memstore device bytes = 4294967296
bluestore block size = 2147483648
bluestore block db size = 0
bluestore block wal size = 0
bluestore fsck on mount = false
[client]
log file =
log to stderr = false
admin socket = $ceph_directory/\$name.\$pid.\$cctid.asok
CONF
}

# ceph_daemon NAME COMMAND...: started, its pid kept; gone with this shell.
ceph_daemon() {
  local name=$1
  shift
  setpriv --pdeathsig KILL "$@" --conf "$CEPH_CONF" < /dev/null > "$ceph_directory/$name.out" 2>&1 &
  echo $! > "$ceph_directory/$name.pid"
  background+=($!)  # of lib.sh, which stops them at the end
}
ceph_start_osd() { ceph_daemon "osd.$1" ceph-osd --id "$1" -f; }
ceph_start_mon() { ceph_daemon mon.a ceph-mon --id a -f --public-addr "v2:127.0.0.1:$ceph_port"; }
ceph_cli() { ceph --conf "$CEPH_CONF" --connect-timeout 30 "$@"; }
ceph_signal() { kill "-$1" "$(cat "$ceph_directory/$2.pid")"; }  # ceph_signal SIGNAL osd.0
ceph_kill() {
  local pid
  pid=$(cat "$ceph_directory/$1.pid")
  kill -KILL "$pid" 2> /dev/null
  wait "$pid" 2> /dev/null
}

# All of them, as the monitor sees it. Its answer is the only event there is to wait for.
ceph_wait_up() {
  local limit=$((SECONDS + 60))
  until ceph_cli osd stat 2> /dev/null | grep -q " $ceph_osds up"; do
    [ $SECONDS -lt $limit ] || return 1
  done
}

ceph_make_mon() {
  local made=$ceph_directory/mkfs.out
  : > "$ceph_directory/keyring"
  monmaptool --create --addv a "[v2:127.0.0.1:$ceph_port]" --fsid "$(sed -n 's/^fsid = //p' "$CEPH_CONF")" \
    "$ceph_directory/monmap" > "$made" 2>&1 &&
    ceph-mon --conf "$CEPH_CONF" --mkfs --id a --monmap "$ceph_directory/monmap" >> "$made" 2>&1
}

ceph_make_osd() {
  local id=$1 uuid
  uuid=$(cat /proc/sys/kernel/random/uuid)
  mkdir "$ceph_directory/osd.$id"
  ceph_cli osd new "$uuid" "$id" > /dev/null 2>> "$ceph_directory/mkfs.out" &&
    ceph-osd --conf "$CEPH_CONF" --mkfs --id "$id" --osd-uuid "$uuid" >> "$ceph_directory/mkfs.out" 2>&1
}

# ceph_start DIR [STORE [OSDS [SIZE]]]; on failure the reason is in ceph_why.
ceph_start() {
  local store=${2:-memstore} osds=${3:-1} size=${4:-1} id
  ceph_can_run || return 1
  mkdir -p "$1" && ceph_directory=$(cd "$1" && pwd)
  export CEPH_CONF=$ceph_directory/ceph.conf CEPH_ARGS=
  ceph_port=$(ceph_free_ports 1)
  ceph_osds=$osds
  ceph_write_conf "$store" "$size" "$ceph_port"
  ceph_why="the monitor does not start: $ceph_directory/mkfs.out"
  ceph_make_mon || return 1
  ceph_start_mon
  ceph_why="no OSD can be made: $ceph_directory/mkfs.out"
  local making=()
  for ((id = 0; id < osds; id++)); do
    ceph_make_osd "$id" &
    making+=($!)
  done
  for id in "${making[@]}"; do wait "$id" || return 1; done
  for ((id = 0; id < osds; id++)); do ceph_start_osd "$id"; done
  ceph_why="an OSD does not come up: $ceph_directory/osd.*.log"
  ceph_wait_up || return 1
  ceph_why="no pool can be made: $ceph_directory/mkfs.out"
  ceph_cli osd pool create uffda 8 8 > /dev/null 2>> "$ceph_directory/mkfs.out" || return 1
  # The first write waits until the OSDs are there and agree.
  ceph_why="the cluster takes no writes: $ceph_directory/mkfs.out"
  timeout 60 rados --conf "$CEPH_CONF" -p uffda put ready "$CEPH_CONF" 2>> "$ceph_directory/mkfs.out" &&
    timeout 60 rados --conf "$CEPH_CONF" -p uffda rm ready
}

ceph_stop() {
  local id
  for ((id = 0; id < ${ceph_osds:-0}; id++)); do ceph_kill "osd.$id"; done
  [ ! -e "$ceph_directory/mon.a.pid" ] || ceph_kill mon.a
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -u
  if ceph_start "$@" < /dev/null; then
    trap 'ceph_stop; exit 0' TERM
    : > "$ceph_directory/ready"
    wait
  else
    echo "$ceph_why" > "$1/failed"
    exit 1
  fi
fi
