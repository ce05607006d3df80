"""compare.py UFFDA DATABASE QUERIES: runs the queries with sqlite3, directly and under `uffda exec`, and compares.

Each round starts both with the file dropped from the page cache; times are medians of the rounds. Exits with 1 if a
result differs.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time

ROUNDS = 3
MARK = "@@@"


def read_queries(path):
    """The (title, statement) pairs of a file."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    parts = re.split(r"^-- (.*)\n", text, flags=re.MULTILINE)[1:]
    pairs = [(title, sql.strip()) for title, sql in zip(parts[::2], parts[1::2])]
    return [(title, sql) for title, sql in pairs if sql]


def session(queries):
    """What sqlite3 reads: mmap on, each query between marks, with its time."""
    lines = [".bail on", "PRAGMA mmap_size = 2000000000;", ".timer on"]
    for _, sql in queries:
        lines += [f".print {MARK}", sql]
    return "\n".join(lines) + "\n"


def drop_from_page_cache(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def run(command, script, database):
    """Seconds of the whole run, and for each query its rows and seconds."""
    drop_from_page_cache(database)
    start = time.monotonic()
    done = subprocess.run(command, input=script.encode(), stdout=subprocess.PIPE, check=False)
    seconds = time.monotonic() - start
    if done.returncode != 0:
        sys.exit(f"demo: {' '.join(command)} ended with status {done.returncode}")
    results = []
    for part in done.stdout.decode(errors="surrogateescape").split(MARK + "\n")[1:]:
        rows = part.splitlines()
        timing = re.match(r"Run Time: real ([0-9.]+)", rows.pop())
        results.append((rows, float(timing.group(1))))
    return seconds, results


def milliseconds(seconds):
    return f"{seconds * 1000:,.0f} ms"


def mib(number):
    return f"{number / (1 << 20):,.1f} MiB"


def print_times(queries, direct, served):
    """One line for each query: rows, and the median time of both ways."""
    width = max(len(title) for title, _ in queries)
    print(f"  {'query':<{width}} {'rows':>6} {'sqlite3':>10} {'uffda':>10}")
    for index, (title, _) in enumerate(queries):
        times = [statistics.median(results[index][1] for _, results in runs) for runs in (direct, served)]
        rows = len(direct[0][1][index][0])
        print(f"  {title:<{width}} {rows:>6,} {milliseconds(times[0]):>10} {milliseconds(times[1]):>10}")
    whole = [statistics.median(seconds for seconds, _ in runs) for runs in (direct, served)]
    print(f"  {'all of it, start to end':<{width}} {'':>6} {milliseconds(whole[0]):>10} {milliseconds(whole[1]):>10}\n")


def latency(summary):
    return f"{summary['p50']:,.0f} us median, {summary['p99']:,.0f} us p99"


def print_faults(report, size):
    """How much of the file came, in how many faults, at what latency."""
    fetches, faults, folios = report["fetches"], report["faults"], report["folios"]
    served = faults["cached"] + faults["missing"]
    print(f"  fetched   {mib(fetches['bytes'])} of {mib(size)} ({100 * fetches['bytes'] / size:.0f} %), "
          f"in {fetches['count']:,} reads")
    if served == 0:
        print("  faults    none: userfaultfd is refused here, so FUSE served the mapping (uffda probe says why)")
        return
    print(f"  faults    {served:,}: {faults['missing']:,} on pages not fetched yet, "
          f"{faults['cached']:,} on pages that were; {folios['mapped'] / served:.1f} pages mapped per fault")
    stages = report["latency_us"]
    if stages["missing"]["count"]:
        print(f"  latency   not fetched yet: {latency(stages['missing'])}")
    if stages["cached"]["count"]:
        print(f"  {'' if stages['missing']['count'] else 'latency':<9} fetched already: {latency(stages['cached'])}")
    print(f"  source    one read: {latency(stages['fetch'])}")


def main():
    uffda, database, query_file = sys.argv[1:]
    queries = read_queries(query_file)
    script = session(queries)
    served_as = os.path.join(os.path.dirname(database), "served.db")  # does not exist outside of the exec
    report_file = os.path.join(os.path.dirname(database), "report.json")
    size = os.path.getsize(database)
    plain = ["sqlite3", database]
    mapped = [uffda, "exec", "--map", f"{served_as}=file:{database}", "--report", report_file, "--", "sqlite3", served_as]

    direct, served = [], []
    for _ in range(ROUNDS):
        direct.append(run(plain, script, database))
        served.append(run(mapped, script, database))
    expected = [rows for rows, _ in direct[0][1]]
    different = sorted({title for _, results in direct + served
                        for (title, _), (rows, _), wanted in zip(queries, results, expected) if rows != wanted})
    if different or any(len(results) != len(queries) for _, results in direct + served):
        sys.exit(f"demo: results differ: {', '.join(different) or 'a query has no result'}")

    print(f"""
{mib(size)} of files from /usr in one SQLite database, and the sqlite3 of this machine, unmodified.
Under `uffda exec` the database is memory that is empty at first: uffda fetches a page when sqlite3 touches it.
""")
    print_times(queries, direct, served)
    print("  Every result is the same both ways.\n")
    with open(report_file, encoding="utf-8") as file:
        print_faults(json.load(file), size)
    print(f"\n  Times are medians of {ROUNDS} runs, each with the file dropped from the page cache first. Try it yourself:\n"
          f"  {uffda} exec --map /tmp/usr.db=file:{database} -- sqlite3 /tmp/usr.db")


if __name__ == "__main__":
    main()
