import random, sys
from qemu_machine import *

MIB, FILLED = 128, 48
kills, rng = int(sys.argv[2]), random.Random(int(sys.argv[3]))


def random_moment(machine, longest):
    """Time is counted in answers of the monitor."""
    for _ in range(rng.randrange(longest)):
        try: machine.monitor.status()
        except (RuntimeError, OSError, ValueError, EOFError): return


def ended(machine): return machine.process.poll() is not None


def body(work):
    pack = f"{work}/machine.pack"
    first = Machine("first", work, MIB)
    first.fill(FILLED)
    run("qemu", "save", "--qmp", first.uffda_qmp, pack)
    first.end()
    killed = gave_up = machines_done = silent = 0
    wrong = []
    while killed < kills:
        machine = Machine(f"m{machines_done + gave_up}", work, MIB, incoming=True)
        asked, found, planned = False, "waits", rng.randrange(1, 7)
        while found in ("waits", "paused", "silent"):
            served = start("qemu", "restore", "--qmp", machine.uffda_qmp, f"delay+pack:{pack}?delay=3ms")
            planned -= 1
            if planned >= 0 and killed < kills:
                if not asked and rng.randrange(4):  # else at the very start, when QEMU still gives up
                    until("it to run", lambda: ended(machine) or machine.monitor.ask("query-status")["status"] == "running")
                    machine.serial.write(b"verify\n")
                    asked = True
                random_moment(machine, 400)
                served.kill()
            status, _, errors = finish(served)
            if status == 0: break
            if status != -9 and not (found == "waits" and killed and machine.after_the_end() == "ended"):
                wrong.append(errors)
                break
            killed += status == -9
            found = machine.after_the_end()
            silent += found == "silent"
        if ended(machine):
            gave_up += 1
            continue
        machines_done += 1
        if asked: bad = int(machine.expect("bad")[1])
        else: bad = machine.bad()
        if bad: wrong.append(f"{bad} bad words")
        if machine.monitor.status() != "completed": wrong.append(machine.monitor.status())
        machine.keeper_ends()
        machine.end()
    same(f"{killed} kills: every page of {machines_done} machines is right", [], wrong)
    print(f"     {gave_up} were killed before their machine ran; {silent} times QEMU's monitor did not answer then")
    check("some machine went on after a kill", machines_done > 0)


scenario(body)
