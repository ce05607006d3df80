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

# setup, over a pretended package database: it lacks one package, then none.
stubs=$(mktemp -d)
trap 'rm -rf "$stubs"' EXIT
listed=$(sed -nE 's/^([a-z0-9+.-]+)(\|[a-z]+)? .*/\1/p' scripts/packages.txt)
pretend() { # NAME BODY
  printf '#!/bin/sh\n%s\n' "$2" >"$stubs/$1" && chmod +x "$stubs/$1"
}
pretend apt-get "echo \"\$*\" >>$stubs/calls"
pretend sudo 'exit 1'
database() { printf 'installed %s\n' "$@" >"$stubs/database" && pretend dpkg-query "cat $stubs/database"; }
# shellcheck disable=SC2086  # a list of words
database $listed
said=$(PATH=$stubs:$PATH scripts/setup 2>&1) || wrong "setup fails with everything installed: $said"
[[ -z $said && ! -e $stubs/calls ]] || wrong "setup is not quiet when nothing is missing: $said"
# shellcheck disable=SC2046
database $(grep -vx fio <<<"$listed")
if ((EUID == 0)); then
  said=$(PATH=$stubs:$PATH scripts/setup 2>&1) || wrong "setup fails where apt-get works: $said"
  grep -q 'install.* fio$' "$stubs/calls" || wrong "setup installs something else than what is missing: $(<"$stubs/calls")"
  [[ $(wc -l <"$stubs/calls") == 2 ]] || wrong "setup calls apt-get more than twice: $(<"$stubs/calls")"
else
  said=$(PATH=$stubs:$PATH scripts/setup 2>&1) && wrong "setup succeeds without root, though fio is missing"
  [[ $said == *'apt-get install fio'* ]] || wrong "setup does not say what to install: $said"
fi
exit "$bad"
