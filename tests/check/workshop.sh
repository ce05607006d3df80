#!/usr/bin/env bash
# The scripts around the build: they parse, setup has nothing to do where it was run, help names every door, and every
# package has its reason.
set -uo pipefail
bad=0
wrong() { printf '%s\n' "$*" && bad=1; }
for script in .ci/run $(grep -lE '^#!.*bash' scripts/* tests/*/*.sh bench/*.sh 2>/dev/null); do
  bash -n "$script" || wrong "$script does not parse"
  [[ $script == tests/* || -x $script ]] || wrong "$script is not executable"
done
help=$(make --no-print-directory help)
for door in setup build run test bench check full format help; do
  grep -qE "^ *make $door +[a-z]" <<<"$help" || wrong "make help does not say what make $door does"
done
grep -vE '^(#|$)' scripts/packages.txt | awk 'NF < 2 {print "no reason for " $1; bad = 1} END {exit bad}' || bad=1
duplicates=$(awk '!/^#/ {print $1}' scripts/packages.txt | sort | uniq -d)
[[ -z $duplicates ]] || wrong "listed twice: $duplicates"
grep -q 'make test' .ci/run || wrong ".ci/run does not run the tests"
exit "$bad"
