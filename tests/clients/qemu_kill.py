import random, sys
from qemu_machine import *

MIB, FILLED = 128, 48
kills, rng = int(sys.argv[2]), random.Random(int(sys.argv[3]))


def random_moment(machine, longest):
    """Time is counted in answers of the monitor."""
    for _ in range(rng.randrange(longest)):
        try: machine.monitor.status()
        except (RuntimeError, OSError, ValueError): return


def ended(machine): return machine.process.poll() is not None


def body(work):
    pack = f"{work}/machine.pack"
    first = Machine("first", work, MIB)
    first.fill(FILLED)
    run("qemu", "save", "--qmp", first.uffda_qmp, pack)
    first.end()
    killed = gave_up = machines_done = stuck = 0
    wrong = []
    while killed < kills:
        machine = Machine(f"m{machines_done + gave_up + stuck}", work, MIB, incoming=True)
        asked = silent = False
        while True:
            served = start("qemu", "restore", "--qmp", machine.uffda_qmp, f"delay+pack:{pack}?delay=3ms")
            if killed < kills:
                if not asked and rng.randrange(4):  # else at the very start, when QEMU still gives up
                    until("it to run", lambda: ended(machine) or machine.monitor.ask("query-status")["status"] == "running")
                    machine.serial.write(b"verify\n")
                    asked = True
                random_moment(machine, 400)
                served.kill()
            status, _, errors = finish(served)
            if status == 0: break
            if status != -9:
                wrong.append(errors)
                break
            killed += 1
            silent = not machine.notices_the_end()
            if silent or ended(machine) or machine.monitor.status() == "completed": break
        if silent:
            stuck += 1
            continue
        if ended(machine):
            gave_up += 1
            continue
        machines_done += 1
        if asked: bad = int(machine.expect("bad")[1])
        else: bad = machine.bad()
        if bad: wrong.append(f"{bad} bad words")
        if machine.monitor.status() != "completed": wrong.append(machine.monitor.status())
        machine.end()
    same(f"{killed} kills: every page of {machines_done} machines is right", [], wrong)
    print(f"     {gave_up} were killed before their machine ran, {stuck} QEMUs waited with their big lock held")
    check("few QEMUs wait with their big lock held", stuck <= kills // 10, stuck)
    check("some machine went on after a kill", machines_done > 0)


scenario(body)
