"""main_job.py --dir DIR --json FILE [--quick]: the main job (scripts/demo.sh) over a source that answers 2 ms late.

The first run records its working set; then runs that prefetch it, runs that know nothing, and runs from the local file
in the page cache take turns. A ratio is the median of the ratios of the rounds. Every result is compared with sqlite3's
own. The database is that of scripts/demo.sh.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "demo"))
import compare  # noqa: E402

UFFDA = str(pathlib.Path(os.environ.get("UFFDA_BUILD", ROOT / "build/release")) / "uffda")
DATABASE = ROOT / "build/demo/usr.db"


def option(name, fallback):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else fallback


def without_times(output):
    return [line for line in output.splitlines() if not line.startswith(b"Run Time:")]


def run(command, script):
    """Seconds, and what was printed."""
    start = time.monotonic()
    done = subprocess.run(command, input=script, stdout=subprocess.PIPE, check=True)
    return time.monotonic() - start, without_times(done.stdout)


def main():
    directory = option("--dir", ".")
    rounds = 3 if "--quick" in sys.argv else 7
    result = {"program": "main_job", "comparisons": [], "figures": [], "skipped": []}
    if not DATABASE.exists():
        result["skipped"].append({"what": "the main job over 2 ms", "why": "make run makes its database"})
    else:
        measure(directory, rounds, result)
    path = option("--json", None)
    text = json.dumps(result, indent=2) + "\n"
    if path:
        pathlib.Path(path).write_text(text, encoding="utf-8")
    else:
        print(text, end="")


def measure(directory, rounds, result):
    script = compare.session(compare.read_queries(ROOT / "scripts/demo/queries.sql")).encode()
    shown = os.path.join(os.path.abspath(directory), "shown.db")
    recorded = os.path.join(os.path.abspath(directory), "main_job.ws")
    database = str(DATABASE)
    subprocess.run(["cat", database], stdout=subprocess.DEVNULL, check=True)  # into the page cache
    far = f"delay+file:{database}?delay=2ms"

    def served(source, *options):
        return [UFFDA, "exec", "--map", f"{shown}={source}", *options, "--", "sqlite3", shown]

    ways = {
        "prefetched": served(far, "--prefetch", recorded),
        "far": served(far),
        "near": served(f"file:{database}"),
        "direct": ["sqlite3", database],
    }
    times = {name: [] for name in ways}
    _, wanted = run(ways["direct"], script)
    _, first = run(served(far, "--record", recorded), script)
    outputs = [first]
    names = list(ways)
    for number in range(rounds):
        print(f"  main job over 2 ms: round {number + 1} of {rounds}", file=sys.stderr)
        for name in names[number % len(names):] + names[:number % len(names)]:
            seconds, output = run(ways[name], script)
            times[name].append(seconds)
            outputs.append(output)
    if any(output != wanted for output in outputs):
        sys.exit("bench: a result of the main job differs")

    def against(name, peer, peer_name, what, target=None):
        ratios = [a / b for a, b in zip(times[name], times[peer])]
        row = {"name": what, "unit": "s", "uffda": statistics.median(times[name]), "peer": peer_name,
               "peer_value": statistics.median(times[peer]), "ratio": statistics.median(ratios)}
        if target:
            row.update({"at_most": target, "ok": row["ratio"] <= target})
        result["comparisons"].append(row)

    against("prefetched", "near", "local cached file", "main job over 2 ms, working set known", 1.3)
    against("far", "near", "local cached file", "main job over 2 ms, nothing known")
    against("prefetched", "direct", "sqlite3 directly", "main job over 2 ms, working set known")


if __name__ == "__main__":
    main()
