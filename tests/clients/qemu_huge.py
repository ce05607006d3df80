import json, sys
from qemu_machine import *

MIB, FILLED = int(sys.argv[2]), 48
OTHERS = 16 << 8  # pages at most of all that is no huge page: firmware and tables


def machine(name, work, pages, **how):
    """`pages`: words of the backend of its RAM."""
    return Machine(name, work, MIB, extra=["-machine", "memory-backend=m0", "-object", f"memory-backend-memfd,id=m0,size={MIB}M,{pages}"], **how)


def body(work):
    huge, small = "hugetlb=on,hugetlbsize=2M", "hugetlb=off"
    pack = f"{work}/machine.pack"
    first = machine("first", work, huge)
    first.fill(FILLED)
    run("qemu", "save", "--qmp", first.uffda_qmp, pack)
    same("a machine of huge pages is saved, and goes on", 0, first.bad())
    first.end()

    for name, source, words in (("restored", f"pack:{pack}", []), ("slow", f"delay+pack:{pack}?delay=2ms", ["--no-prefetch"])):
        second = machine(name, work, huge, incoming=True)
        served = start("qemu", "restore", "--qmp", second.uffda_qmp, source, "--report", f"{work}/report.json", *words)
        second.wait_running()
        same(f"{name}: its memory is right", 0, second.bad())
        status, _, errors = finish(served)
        same(f"{name}: uffda ends well", (0, ""), (status, errors))
        same(f"{name}: QEMU needs it no more", "completed", second.monitor.status())
        same(f"{name}: and its memory is right without it", 0, second.bad())
        second.end()
        report = json.load(open(f"{work}/report.json"))
        sent = report["asked_pages"] + report["pushed_pages"]
        check(f"{name}: RAM is sent 2 MiB at a time", report["asked_pages"] > 0 and MIB // 2 < sent < MIB // 2 + OTHERS, report)

    other = machine("other", work, small, incoming=True)
    done = run("qemu", "restore", "--qmp", other.uffda_qmp, pack, check=False)
    says("a machine of small pages does not take it", "QEMU", done)
    other.process.wait(LIMIT)
    check("and says why", "page" in open(other.path("log")).read(), open(other.path("log")).read())


scenario(body)
