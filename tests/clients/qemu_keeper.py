import os
from qemu_machine import *

MIB, FILLED, SPARES, NOBODY = 160, 64, 16, 65534
EVERYTHING = "1M-159M"  # that a kernel needs


def broken(work, name, pack, place="120M-128M", **how):
    """A machine whose restore ended because its source did."""
    machine = Machine(name, work, MIB, incoming=True, **how)
    served = start("qemu", "restore", "--qmp", machine.uffda_qmp, f"error+pack:{pack}?range={place}", "--no-prefetch")
    same(f"{name}: its source ends", 1, finish(served)[0])
    check(f"{name}: a keeper stays", machine.keeper() is not None)
    return machine


def paused(work, name, pack):
    """One that answers, and goes on doing so: its guest touches nothing before it is told to run."""
    machine = broken(work, name, pack, extra=["-S"])
    same(f"{name}: it answers", "paused", machine.after_the_end())
    return machine


def stuck(work, name, packs):
    """One that answers nobody, and its pack. A guest that stood idle when it was saved first of all takes an interrupt: QEMU waits for the
    page that this needs with its big lock held. A guest that was doing something may wait for another page first."""
    for i, pack in enumerate(packs):
        machine = broken(work, f"{name}{i}", pack, EVERYTHING)
        if machine.after_the_end() == "silent": return machine, pack
        machine.serial.write(b"ping\n")
        if any(machine.after_the_end() == "silent" for _ in range(300)): return machine, pack
        machine.end()
    raise RuntimeError("no QEMU waits with its big lock held")


def dies_at(step, machine, pack):
    environment = dict(os.environ, LD_PRELOAD=f"{os.path.dirname(pack)}/die_at.so", DIE_AT=str(step))
    return run("qemu", "restore", "--qmp", machine.uffda_qmp, pack, check=False, env=environment)


def sockets(machine):
    directory = f"/proc/{machine.process.pid}/fd"
    return sum(os.readlink(f"{directory}/{fd}").startswith("socket:") for fd in os.listdir(directory))


def goes_on(what, machine, pack):
    done = run("qemu", "restore", "--qmp", machine.uffda_qmp, pack, check=False)
    same(f"{what}: the next restore ends well", (0, ""), (done.returncode, done.stderr))
    if machine.monitor.ask("query-status")["status"] != "running": machine.monitor.ask("cont")
    same(f"{what}: every page is right", 0, machine.bad())
    same(f"{what}: QEMU needs nobody", "completed", machine.monitor.status())
    machine.keeper_ends()


def at_each_step(what, steps, machine, pack):
    for step in range(1, steps + 1):
        done = dies_at(step, machine, pack)
        if done.returncode != -9 or machine.process.poll() is not None: break
    same(f"{what}: killed {steps} times while it told QEMU to go on", (steps, -9, ""), (step, done.returncode, done.stderr))
    goes_on(what, machine, pack)
    machine.end()


def has_ended(machine):
    """Of one whose guest never ran. QEMU 7.2 says that it ends then; now and then it stops on the way, its main thread waiting for a page."""
    state = machine.after_the_end()
    if state == "silent" and "loadvm failed" in open(machine.path("log")).read():
        machine.process.kill()
        machine.process.wait()
        return True
    return state == "ended"


def from_the_start(work, pack):
    """Until the machine runs QEMU 7.2 ends when its source does. Nothing stays then; and if nothing had begun nothing is lost."""
    ended = 0
    for step in (1, 2, 3, 5, 6, 7, *range(36, 48)):  # most between are those of one spare after the other
        machine = Machine(f"young{step}", work, MIB, incoming=True)
        same(f"killed at step {step} of a restore", -9, dies_at(step, machine, pack).returncode)
        if has_ended(machine) or (step > 38 and dies_at(1, machine, pack) and has_ended(machine)):
            ended += 1
            machine.keeper_ends()
        else: goes_on(f"step {step}", machine, pack)
        machine.end()
    check("at most steps it can be restored again", ended < 6, ended)


def as_nobody(action):
    """What `action` returns to a process of another user: a word."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(NOBODY)
            os.write(write, action().encode())
        finally: os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as told: return told.read()


def keeper_names(): return {line.split()[-1] for line in open("/proc/net/unix") if "@uffda-keeper/" in line}


def borrow(name):
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end.settimeout(LIMIT)
    end.connect("\0" + name[1:])
    data, descriptors, _, _ = socket.recv_fds(end, 1 << 10, 8)
    return f"{len(data)} bytes and {len(descriptors)} descriptors"


def strangers(work, pack):
    before = keeper_names()
    machine = paused(work, "watched", pack)
    name, = keeper_names() - before
    if os.geteuid() == 0:
        same("another user gets nothing of it", "0 bytes and 0 descriptors", as_nobody(lambda: borrow(name)))
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end.connect("\0" + name[1:])
    says("while somebody has it, others hear so", "another uffda qemu restore has the machine",
         run("qemu", "restore", "--qmp", machine.uffda_qmp, pack, check=False))
    end.close()
    os.kill(machine.keeper(), signal.SIGKILL)
    machine.keeper_ends()
    if os.geteuid() == 0:
        squatter = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        squatter.bind("\0" + name[1:])
        os.seteuid(NOBODY)  # who listens is who did so
        squatter.listen()
        os.seteuid(0)
        says("who sits on its name is found out", f"the user with uid {NOBODY} listens where a keeper of uid 0",
             run("qemu", "restore", "--qmp", machine.uffda_qmp, f"error+pack:{pack}?range=1M-159M", "--no-prefetch", check=False))
        check("and no keeper is there", machine.keeper() is None)
        squatter.close()
    goes_on("a keeper that was killed", machine, pack)
    says("what is complete is not restored", "nothing is left to do", run("qemu", "restore", "--qmp", machine.uffda_qmp, pack, check=False))
    machine.keeper_ends()
    machine.end()


def takes_interrupts(process):
    caught = [line for line in open(f"/proc/{process.pid}/status") if line.startswith("SigCgt:")]
    return int(caught[0].split()[1], 16) >> (signal.SIGINT - 1) & 1


def interrupted(what, machine, pack):
    """While a QEMU that says nothing is waited for."""
    os.kill(machine.process.pid, signal.SIGSTOP)
    waiting = start("qemu", "restore", "--qmp", machine.uffda_qmp, pack)
    until("the restore to heed interrupts", lambda: takes_interrupts(waiting))
    waiting.send_signal(signal.SIGINT)
    status, _, errors = finish(waiting)
    check(f"{what}: Ctrl-C ends the wait for a silent QEMU", status == 128 + signal.SIGINT and "interrupted" in errors, f"{status}: {errors}")
    os.kill(machine.process.pid, signal.SIGCONT)
    goes_on(f"{what}, after Ctrl-C", machine, pack)
    machine.end()


def body(work):
    packs = [f"{work}/machine{i}.pack" for i in range(5)]
    first = Machine("first", work, MIB)
    first.fill(FILLED)
    for pack in packs: run("qemu", "save", "--qmp", first.uffda_qmp, pack)
    first.end()

    machine, its_pack = stuck(work, "stuck", packs)
    goes_on("a QEMU that answered nobody", machine, its_pack)
    machine.end()
    at_each_step("a QEMU that answers nobody", SPARES - 4, *stuck(work, "deep", packs))
    at_each_step("a QEMU that answers, and is given more streams", SPARES + 2, paused(work, "paused", pack), pack)
    from_the_start(work, pack)
    strangers(work, pack)
    interrupted("a machine that has not begun", Machine("hasty", work, MIB, incoming=True), pack)
    interrupted("a machine to go on with", paused(work, "hastier", pack), pack)

    machine = paused(work, "quits", pack)
    machine.end()
    machine.keeper_ends()
    check("when QEMU ends so does the keeper", machine.keeper() is None)
    machine, _ = stuck(work, "thrown", packs)
    machine.process.kill()
    machine.process.wait()
    machine.keeper_ends()
    check("and when QEMU is killed", machine.keeper() is None)
    machine = Machine("refused", work, MIB, incoming=True)
    says("a restore that fails before anything has begun", "No such file",
         run("qemu", "restore", "--qmp", machine.uffda_qmp, f"{work}/nothing", check=False))
    machine.keeper_ends()
    before = sockets(machine)
    goes_on("leaves no keeper", machine, pack)
    until("QEMU to have no spare stream left", lambda: sockets(machine) <= before)


scenario(body)
