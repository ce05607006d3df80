# qemu.py --dir DIR [--json FILE] [--quick]: a guest with 1 GiB of RAM, 128 MiB of it a pattern, restored by an unmodified
# QEMU. What is measured is the time from the word to restore to the guest's first answer, and the RAM that was there by
# then. Beside it: QEMU whose RAM is the same file, paged by the kernel. Medians, and ratios. Each round is in another
# order, and nobody begins before the disk has what others wrote: whoever always came next after the kernel's way, which
# leaves a file of 1 GiB to be written, would pay for that. Beside the monitor's way: QEMU's own postcopy, from another
# QEMU on this machine that has all of the RAM.
import argparse, os, random, shutil, statistics, sys, time
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tests/clients"))
from qemu_machine import *

parser = argparse.ArgumentParser()
parser.add_argument("--dir", default="build/bench")
parser.add_argument("--json")
parser.add_argument("--quick", action="store_true")
options = parser.parse_args()
MIB, FILLED, ROUNDS = (256, 32, 3) if options.quick else (1024, 128, 15)
work = os.path.abspath(f"{options.dir}/qemu")


def in_page_cache(file):
    """Holes, too, as in the copy that the kernel pages."""
    with open(file, "rb") as whole:
        while whole.read(1 << 20): pass


def save():
    machine = Machine("first", work, MIB, ram=f"{work}/ram")
    machine.fill(FILLED)
    run("qemu", "save", "--qmp", machine.uffda_qmp, f"{work}/machine.pack")
    machine.save_state(f"{work}/state")
    machine.end()
    run("unpack", f"{work}/machine.pack", f"{work}/machine")


def first_answer(machine, start_of, begun):
    """Milliseconds from the word to restore, and from the start of QEMU; the share of RAM that is there; bad words."""
    word = time.monotonic()
    served = start_of(machine)
    machine.wait_running()
    machine.ping()
    now = time.monotonic()
    there = sum(machine.guest_ram()) / (MIB << 20)
    if served:
        status, _, errors = finish(served)
        if status: raise RuntimeError(errors)
    bad = machine.bad()
    machine.end()
    return 1000 * (now - word), 1000 * (now - begun), there, bad


def load(machine): machine.load_state(f"{work}/state")


def copy_ram():
    """Of a machine that writes to it."""
    shutil.copyfile(f"{work}/ram", f"{work}/copy")
    os.sync()


def by_kernel():
    copy_ram()
    begun = time.monotonic()
    return first_answer(Machine("kernel", work, MIB, incoming=True, ram=f"{work}/copy"), load, begun)


def by_exec(uri, *words):
    in_page_cache(f"{work}/ram")
    begun = time.monotonic()
    shown = f"{work}/shown"
    wrap = [uffda, "exec", "--map", f"{shown}={uri},cow", *words, "--"]
    return first_answer(Machine("exec", work, MIB, incoming=True, ram=shown, wrap=wrap), load, begun)


def by_monitor(uri, *words):
    in_page_cache(f"{work}/machine")
    begun = time.monotonic()
    machine = Machine("monitor", work, MIB, incoming=True, ram="anonymous")
    return first_answer(machine, lambda m: start("qemu", "restore", "--qmp", m.uffda_qmp, uri, *words), begun)


def by_postcopy():
    copy_ram()
    source = Machine("source", work, MIB, incoming=True, ram=f"{work}/copy")
    source.load_stopped(f"{work}/state")
    source.monitor.capability("x-ignore-shared", False)
    # As little as possible before the guest runs: that is how it answers soonest.
    source.monitor.ask("migrate-set-parameters", **{"max-bandwidth": 1})
    begun = time.monotonic()
    machine = Machine("postcopy", work, MIB, incoming=True, ram="anonymous")
    for one in (source, machine): one.monitor.capability("postcopy-ram")
    socket = f"unix:{work}/migration"
    machine.monitor.ask("migrate-incoming", uri=socket)

    def migrate(_):
        source.monitor.ask("migrate", uri=socket)
        until("the migration to begin", lambda: source.monitor.status() == "active")
        source.monitor.ask("migrate-start-postcopy")
    try: return first_answer(machine, migrate, begun)
    finally: source.end()


def main():
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work)
    save()
    by_exec(f"file:{work}/ram", "--record", f"{work}/exec.ws")
    by_monitor(f"file:{work}/machine", "--record", f"{work}/monitor.ws")
    ways = {
        "kernel": by_kernel,
        "exec": lambda: by_exec(f"file:{work}/ram"),
        "exec, recorded": lambda: by_exec(f"file:{work}/ram", "--prefetch", f"{work}/exec.ws"),
        "exec, 1 ms": lambda: by_exec(f"delay+file:{work}/ram?delay=1ms"),
        "exec, 1 ms, recorded": lambda: by_exec(f"delay+file:{work}/ram?delay=1ms", "--prefetch", f"{work}/exec.ws"),
        "postcopy": by_postcopy,
        "monitor": lambda: by_monitor(f"file:{work}/machine"),
        "monitor, recorded": lambda: by_monitor(f"file:{work}/machine", "--prefetch", f"{work}/monitor.ws"),
        "monitor, 1 ms": lambda: by_monitor(f"delay+file:{work}/machine?delay=1ms"),
        "monitor, 1 ms, recorded": lambda: by_monitor(f"delay+file:{work}/machine?delay=1ms", "--prefetch", f"{work}/monitor.ws"),
    }
    results = {name: [] for name in ways}
    order = random.Random(1)
    for _ in range(ROUNDS):
        for name in order.sample(list(ways), len(ways)):
            os.sync()
            results[name].append(ways[name]())
    base = statistics.median(result[0] for result in results["kernel"])
    print(f"{MIB} MiB of RAM, {FILLED} MiB patterned; medians of {ROUNDS} rounds\n")
    print(f"  {'':<24} {'answers':>9} {'ratio':>7} {'from start':>11} {'of RAM':>8} {'bad':>4}")
    report = {}
    for name, rounds in results.items():
        answer, whole, there = (statistics.median(result[i] for result in rounds) for i in range(3))
        bad = sum(result[3] for result in rounds)
        report[name] = {"answer_ms": answer, "ratio": answer / base, "from_start_ms": whole, "ram_share": there, "bad": bad}
        print(f"  {name:<24} {answer:>6.0f} ms {answer / base:>7.2f} {whole:>8.0f} ms {100 * there:>6.2f} % {bad:>4}")
    print(f"\n  monitor to QEMU's own postcopy: {report['monitor']['answer_ms'] / report['postcopy']['answer_ms']:.2f}")
    if options.json: json.dump({"name": "qemu", "results": report}, open(options.json, "w"), indent=2)
    return any(result["bad"] for result in report.values())


try: sys.exit(main())
finally:
    end_all()
    shutil.rmtree(work, ignore_errors=True)
