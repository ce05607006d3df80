# vm.py DIR: boots the guest, saves it, and restores it in every way; prints what each costs.
import os, shutil, sys, time
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/clients"))
from qemu_machine import *

MIB, FILLED, CLONES = 512, 128, 4
rows = []


def row(name, seconds, faults, fetched, shared, own):
    mib = lambda size: "-" if size is None else f"{size / 2**20:.1f}"
    rows.append((name, f"{1000 * seconds:.0f} ms", "-" if faults is None else f"{faults:,}", mib(fetched), mib(shared), mib(own)))


def answered(machine, since):
    machine.wait_running()
    machine.ping()
    return time.monotonic() - since


def save(work):
    print(f"A guest with {MIB} MiB of RAM boots under TCG; it fills {FILLED} MiB with a pattern.", flush=True)
    machine = Machine("first", work, MIB, ram=f"{work}/ram")
    machine.fill(FILLED)
    print("uffda qemu save, while it runs:\n  " + run("qemu", "save", "--qmp", machine.uffda_qmp, f"{work}/machine.pack").stdout.strip())
    machine.monitor.ask("stop")
    machine.monitor.ask("migrate", uri=f"exec:cat >{work}/stream")
    until("the stream", lambda: machine.monitor.status() == "completed")
    machine.monitor.ask("cont")
    machine.ping()
    machine.save_state(f"{work}/state")
    machine.end()
    print("its RAM file, for clones that share it:\n  " + run("pack", f"{work}/ram", f"{work}/ram.pack").stdout.strip())
    os.unlink(f"{work}/ram")


def clones(work):
    socket_path = f"{work}/sock"
    served = start("serve", "--export", f"ram=pack:{work}/ram.pack", "--socket", socket_path)
    until("the server", lambda: os.path.exists(socket_path))
    running, before = [], server_counts(socket_path)
    for i in range(CLONES):
        shown = f"{work}/ram{i}"
        since = time.monotonic()
        clone = Machine(f"clone{i}", work, MIB, incoming=True, ram=shown,
                        wrap=[uffda, "exec", "--server", socket_path, "--map", f"{shown}=ram,cow", "--"])
        clone.load_state(f"{work}/state")
        seconds = answered(clone, since)
        now = server_counts(socket_path)
        faults = sum(now["faults"][kind] - before["faults"][kind] for kind in ("cached", "missing"))
        row(f"clone {i + 1}, shared RAM", seconds, faults, now["fetches"]["bytes"] - before["fetches"]["bytes"], *clone.guest_ram())
        before = now
        running.append(clone)
    bad = [clone.bad() for clone in running]
    for clone in running: clone.end()
    served.terminate()
    finish(served)
    return bad


def by_monitor(work):
    since = time.monotonic()
    machine = Machine("qmp", work, MIB, incoming=True, ram="anonymous")  # its RAM has the same name
    served = start("qemu", "restore", "--qmp", machine.uffda_qmp, f"{work}/machine.pack", "--report", f"{work}/report")
    seconds = answered(machine, since)
    shared, own = machine.guest_ram()
    status, _, errors = finish(served)
    if status: raise RuntimeError(errors)
    report = json.load(open(f"{work}/report"))
    row("by its monitor alone", seconds, report["asked_pages"], None, shared, own)
    bad = machine.bad()
    machine.end()
    return bad


def eager(work):
    since = time.monotonic()
    machine = Machine("eager", work, MIB, incoming=True, ram="anonymous")
    machine.monitor.ask("migrate-incoming", uri=f"exec:cat {work}/stream")
    until("the stream", lambda: machine.monitor.status() == "completed")
    machine.monitor.ask("cont")
    seconds = answered(machine, since)
    row("eager: QEMU reads it all", seconds, None, os.path.getsize(f"{work}/stream"), *machine.guest_ram())
    bad = machine.bad()
    machine.end()
    return bad


def show():
    titles = ("", "answers after", "faults", "fetched MiB", "shared MiB", "own MiB")
    widths = [max(len(line[i]) for line in [titles, *rows]) for i in range(len(titles))]
    for line in [titles, *rows]:
        print("  " + "  ".join(text.ljust(widths[0]) if i == 0 else text.rjust(widths[i]) for i, text in enumerate(line)))


def main(work):
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work)
    save(work)
    bad = [*clones(work), by_monitor(work), eager(work)]
    print("\nFrom the start of QEMU to the guest's first answer, and what was there by then:\n")
    show()
    print(f"\nThen each guest looked at all of its {FILLED} MiB: {sum(bad)} words were wrong.")
    return sum(bad) != 0


try: sys.exit(main(sys.argv[1]))
finally: end_all()
