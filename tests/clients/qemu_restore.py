import json, os
from qemu_machine import *

MIB, FILLED = 160, 64


def restored(name, work, *words, **how):
    """A machine that runs, and the uffda that serves it."""
    machine = Machine(name, work, MIB, incoming=True, **how)
    served = start("qemu", "restore", "--qmp", machine.uffda_qmp, *words)
    machine.wait_running()
    return machine, served


def complete(what, machine, served):
    status, _, errors = finish(served)
    same(f"{what}: uffda ends well", (0, ""), (status, errors))
    same(f"{what}: QEMU needs it no more", "completed", machine.monitor.status())
    same(f"{what}: every page is right without it", 0, machine.bad())
    machine.keeper_ends()
    machine.end()


def body(work):
    pack = f"{work}/machine.pack"
    first = Machine("first", work, MIB)
    first.fill(FILLED)
    bandwidth = first.monitor.ask("query-migrate-parameters")["max-bandwidth"]
    first.serial.write(b"write 60000 1\n")  # it writes all the while
    done = run("qemu", "save", "--qmp", first.uffda_qmp, pack)
    check("a running machine is saved", "stood still for" in done.stdout, done.stdout)
    first.expect("wrote")
    same("and goes on", 0, first.bad())
    same("with what it was told of migrations before", bandwidth, first.monitor.ask("query-migrate-parameters")["max-bandwidth"])
    run("verify", pack)
    check("most of the pack is not zeroes that were stored", os.path.getsize(pack) < (FILLED + 64) << 20)
    again = f"{work}/again.pack"
    run("qemu", "save", "--qmp", first.uffda_qmp, again, "--stay-stopped")
    same("it is saved again, and stays stopped", "postmigrate", first.monitor.ask("query-status")["status"])
    first.end()

    machine, served = restored("plain", work, pack, "--report", f"{work}/report.json", "--record", f"{work}/touched")
    machine.expect("wrote")  # what it was doing when it was saved
    same("a pack: the guest's memory is right", 0, machine.bad())
    complete("a pack", machine, served)
    report = json.load(open(f"{work}/report.json"))
    unasked = report["pushed_pages"]
    check("pages were asked for, and others sent unasked", report["asked_pages"] > 0 and unasked > 0, report)
    check("each once", (MIB << 8) < report["asked_pages"] + unasked < (MIB + 32 << 8), report)
    recorded = report["asked_pages"]

    machine, served = restored("again", work, again)
    machine.ping()
    complete("a machine that was saved while it stood still", machine, served)

    machine, served = restored("slow", work, f"delay+pack:{again}?delay=2ms", "--no-prefetch")
    same("a source that takes long: every page is right when it is asked for", 0, machine.bad())
    machine.ping()
    complete("a source that takes long", machine, served)

    run("pack", "--working-set", f"{work}/touched", pack)
    machine, served = restored("known", work, f"delay+pack:{pack}?delay=2ms", "--report", f"{work}/report.json")
    machine.expect("wrote")
    complete("a recorded working set", machine, served)
    asked = json.load(open(f"{work}/report.json"))["asked_pages"]
    check("is sent before it is asked for", asked < recorded / 2, f"{asked} of {recorded} pages asked for")

    # Pages of the kernel's code, of what it allocated, of programs: with some of them QEMU's monitor does not answer then.
    for place in ("16M-17M", "32M-60M", "64M-100M", "120M-128M"):
        broken, served = restored(f"broken{place}", work, f"error+pack:{again}?range={place}")
        status, _, errors = finish(served)
        check(f"a page of {place} that cannot be had ends the restore", status == 1 and "run this restore again" in errors, errors)
        check("and the machine waits", broken.after_the_end() in ("paused", "silent"))
        served = start("qemu", "restore", "--qmp", broken.uffda_qmp, again, "--report", f"{work}/report.json")
        broken.ping()
        complete("another restore goes on with it", broken, served)
        report = json.load(open(f"{work}/report.json"))
        check("where the first one ended", report["resumed"] and report["earlier_pages"] > 0, report)

    shared = Machine("shared", work, MIB, ram=f"{work}/ram")
    shared.fill(FILLED)
    shared.save_state(f"{work}/state")
    shared.end()
    machine, served = restored("joined", work, "--state", f"{work}/state", "--ram", f"file:{work}/ram",
                               ram="anonymous")
    machine.ping()
    complete("a stream of QEMU and a file of RAM", machine, served)


scenario(body)
