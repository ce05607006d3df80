#!/usr/bin/env bash
# The main job on real input: a SQLite database of files of /usr (made once, in build/demo/), and an unmodified sqlite3
# that queries it directly and through `uffda exec`. Exits with 1 if any result differs.
set -euo pipefail
cd "$(dirname "$0")/.."
uffda=build/release/uffda
directory=build/demo
database=$directory/usr.db
megabytes=${UFFDA_DEMO_MB:-400} # of file contents

for tool in sqlite3 python3; do
  command -v "$tool" >/dev/null || { printf 'demo: %s is missing: make setup installs it\n' "$tool" >&2 && exit 1; }
done
[[ -x $uffda ]] || { printf 'demo: %s is missing: make build makes it\n' "$uffda" >&2 && exit 1; }

# Under another name until it is whole. The candidates are files of /usr that are small enough to be many.
build_database() {
  rm -rf "$directory"
  mkdir -p "$directory"
  printf 'Building a database of files of /usr, once: about %d MB, less than a minute.\n' "$megabytes"
  find /usr -xdev -type f -size -256k -readable -printf '"%p",%s\n' 2>/dev/null | grep -v '"".*""' >"$directory/list.csv"
  (cd "$directory" && sqlite3 -cmd '.parameter init' -cmd ".parameter set :budget ${megabytes}000000" new.db \
    <../../scripts/demo/build.sql >/dev/null)
  rm "$directory/list.csv"
  mv "$directory/new.db" "$database"
}

[[ -f $database ]] || build_database
exec python3 scripts/demo/compare.py "$uffda" "$database" scripts/demo/queries.sql
