#!/usr/bin/env bash
# `uffda probe` as root, as nobody and with userfaultfd refused: it never fails, its JSON parses, the answers fit.
set -uo pipefail
uffda=${UFFDA:-build/release/uffda}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
bad=0
wrong() { printf '%s\n' "$*" && bad=1; }

# A place that every user can reach.
cp "$uffda" "$scratch/uffda" && chmod 755 "$scratch" "$scratch/uffda"

check() { # NAME COMMAND...
  local name=$1
  shift
  "$@" "$scratch/uffda" probe >"$scratch/text" || wrong "$name: probe ended with $?"
  "$@" "$scratch/uffda" probe --json >"$scratch/$name.json" || wrong "$name: probe --json ended with $?"
  python3 - "$scratch/$name.json" "$scratch/text" <<'PYTHON' || wrong "$name: see above"
import json, sys
probe = json.load(open(sys.argv[1]))
text = open(sys.argv[2]).read()
for part in ("summary", "creation", "privileges"):
    for name, check in probe[part].items():
        assert name in text, f"{name} is not in the table"
        assert check["yes"] == (check["remedy"] == ""), f"{name}: every no has a remedy"
        assert check["remedy"] in text, f"{name}: its remedy is not in the table"
assert len(probe["features"]) == 17
for name, memory in probe["memory"].items():
    assert name in text
    assert memory["mapped"] or memory["remedy"], name
    for mode, found in memory["modes"].items():
        assert found["yes"] == (found["errno"] == 0), (name, mode)
        assert found["yes"] == bool(found["ioctls"]), (name, mode)
assert {"anon", "shmem", "hugetlb", "guest_memfd"} <= probe["types"].keys()
assert probe["comparison"].keys() == probe["memory"].keys()
for name, row in probe["comparison"].items():
    assert bool(row["type"]) != bool(row["why_no_type"]), name
    for what, item in row["items"].items():
        assert (item["kernel"] == item["uffda"]) == (item["reason"] == "") or not row["type"], (name, what)
        assert item["reason"] in text, (name, what)
PYTHON
}

value() { python3 -c 'import json, sys; probe = json.load(open(sys.argv[1])); print(probe[sys.argv[2]][sys.argv[3]]["yes"])' "$scratch/$1.json" "$2" "$3"; }

check own
if ((EUID != 0)); then
  printf 'skip: as nobody: changing the user needs root\n'
  exit "$bad"
fi
nobody=(setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all)
check nobody "${nobody[@]}"
[[ $(value nobody privileges CAP_SYS_PTRACE) == False ]] || wrong "nobody holds CAP_SYS_PTRACE"
check bounded setpriv --bounding-set=-sys_ptrace,-sys_admin --inh-caps=-all
[[ $(value bounded privileges CAP_SYS_ADMIN) == False ]] || wrong "CAP_SYS_ADMIN is held though it was dropped"

# Nothing is left behind.
grep -q uffda-probe /proc/self/mounts && wrong "the probe left a mount behind"
exit "$bad"
