#!/bin/bash
# uffda stats asks a running server: a table for people, JSON for programs, and each client apart.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
vmm=$UFFDA_BUILD/tests/clients/firecracker_vmm
[ -x "$vmm" ] || skip "no $vmm"
make_data "$work/memory" $((4 << 20))
mkfifo "$work/ready" "$work/go1" "$work/go2"
"$UFFDA" serve --protocol firecracker --socket "$work/fc.sock" --control "$work/control.sock" --export "vm=file:$work/memory" \
  --ready-fd 3 3> "$work/ready" 2> "$work/serve.log" &
background+=("$!")
read -r _ < "$work/ready"
"$vmm" "$work/fc.sock" "$work/memory" half steps=4000 drop=10 < "$work/go1" > "$work/one" 2>&1 &
one=$!
"$vmm" "$work/fc.sock" "$work/memory" wait < "$work/go2" > "$work/two" 2>&1 &
two=$!
background+=("$one" "$two")
exec 4> "$work/go1" 5> "$work/go2"
wait_until grep -q half "$work/one"
wait_until grep -q started "$work/two"
two_clients() { "$UFFDA" stats --socket "$work/control.sock" --json > "$work/json" && grep -q '"address_spaces": 2' "$work/json"; }
wait_until two_clients
same "programs get JSON" 0 $?
python3 - "$work/json" "$one" "$two" > "$work/told" 2>&1 <<'PY'
import json, sys
report, one, two = json.load(open(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
clients = {client["pid"]: client for client in report["clients"]["list"]}
assert set(clients) == {one, two}, clients.keys()
busy, idle = clients[one], clients[two]
assert idle["faults"] == {"cached": 0, "missing": 0, "poisoned": 0, "unknown": 0} and idle["mapped_bytes"] == 0, idle
assert busy["faults"]["missing"] > 0 and busy["mapped_bytes"] > 0 and busy["events"] > 0, busy
# The only one who did anything: what it has is all there is.
for field in "cached", "missing", "poisoned", "unknown": assert busy["faults"][field] == report["faults"][field], (field, busy, report)
assert busy["events"] == report["events"] and busy["wakes_deferred"] == report["wakes_deferred"]
missing = busy["latency_us"]["missing"]
assert 0 < missing["count"] and 0 < missing["p50"] <= missing["p99"] <= missing["max"], missing
assert busy["latency_us"]["cached"]["count"] == busy["faults"]["cached"]
PY
same "each client has its own counts" "" "$(cat "$work/told")"
"$UFFDA" stats --socket "$work/control.sock" > "$work/table"
same "people get tables" 0 $?
contains "with the clients" "missing p50" "$work/table"
contains "by their process" " $one " "$work/table"
contains "and the exports" "file:$work/memory" "$work/table"
"$UFFDA" stats --socket "$work/nobody" 2> "$work/errors"
same "no server there" 1 $?
"$UFFDA" stats 2> "$work/errors"
same "no socket named" 2 $?
echo >&4
echo >&5
exec 4>&- 5>&-
wait "$one"
same "the first client is right" 0 $?
wait "$two"
same "the second client is right" 0 $?
conclude
