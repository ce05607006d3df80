import os
from qemu_machine import *

MIB = 128


def refused(name, text, *words, status=1): says(name, text, run("qemu", *words, check=False), status)


def body(work):
    pack = f"{work}/machine.pack"
    refused("save without a monitor", "write: uffda qemu save", "save", pack, status=2)
    refused("restore with half of a machine", "give both", "restore", "--qmp", "q", "--state", "s", status=2)
    refused("an option of the other command", "--state is not for", "save", "--qmp", "q", pack, "--state", "s", status=2)
    refused("nobody listens", "start it with -qmp", "save", "--qmp", f"{work}/nobody", pack)

    machine = Machine("running", work, MIB)
    machine.fill(16)
    for capability, why in (("multifd", "multifd"), ("xbzrle", "xbzrle"), ("x-ignore-shared", "x-ignore-shared")):
        machine.monitor.capability(capability)
        refused(f"save with {capability}", f"capability {why} on: switch it off", "save", "--qmp", machine.uffda_qmp, pack)
        machine.monitor.capability(capability, False)
    refused("a place that cannot be written", "No such file", "save", "--qmp", machine.uffda_qmp, f"{work}/nowhere/m.pack")
    open(f"{work}/text", "w").write("not a machine\n" * 9999)
    run("pack", f"{work}/text", f"{work}/text.pack")
    same("no pack was made", False, os.path.exists(pack))
    same("and the machine runs", 0, machine.bad())
    run("qemu", "save", "--qmp", machine.uffda_qmp, pack)
    refused("restore into a machine that runs", "waits for no machine", "restore", "--qmp", machine.uffda_qmp, pack)
    same("which goes on", 0, machine.bad())
    machine.end()

    shared = f"{work}/shared.qmp"
    waiting = Machine("waiting", work, MIB, incoming=True, extra=["-chardev", f"socket,id=shared,path={shared},server=on,wait=off,mux=on", "-mon", "chardev=shared,mode=control"])
    refused("save of a machine that waits", "there is none to save", "save", "--qmp", waiting.uffda_qmp, f"{work}/other")
    refused("a pack of something else", "no machine that `uffda qemu save` stored", "restore", "--qmp", waiting.uffda_qmp,
            f"{work}/text.pack")
    refused("no migration stream", "no migration stream", "restore", "--qmp", waiting.uffda_qmp, "--state", f"{work}/text",
            "--ram", "zero:128M")
    waiting.monitor.capability("multifd")
    refused("restore with multifd", "capability multifd on", "restore", "--qmp", waiting.uffda_qmp, pack)
    waiting.monitor.capability("multifd", False)
    refused("restore by a monitor that passes no descriptors", "a multiplexed character device passes none", "restore", "--qmp", shared, pack)
    served = start("qemu", "restore", "--qmp", waiting.uffda_qmp, pack)
    same("after all that it can be restored", 0, finish(served)[0])
    same("and every page is right", 0, waiting.bad())

    other = Machine("other", work, 2 * MIB, incoming=True)
    done = run("qemu", "restore", "--qmp", other.uffda_qmp, pack, check=False)
    says("a machine of another size", "QEMU", done)
    other.process.wait(LIMIT)
    check("of which QEMU says why", "mismatch" in open(other.path("log")).read(), open(other.path("log")).read())


scenario(body)
