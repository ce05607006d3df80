import errno, json, mmap
from qemu_machine import *

MIB, FILLED, CLONES = 128, 48, 3

# A program that does with its memory what vhost-user does: it writes, and gives the descriptor to another process, which
# maps it.
PASSES_IT_ON = """
import array, mmap, os, socket, sys
memory = os.open(sys.argv[1], os.O_RDWR)
mmap.mmap(memory, 4096)[:4] = b"mine"
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[2])
peer.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory]))])
peer.recv(1)
"""


def peer_maps(work):
    """What the other process is told that maps such a descriptor."""
    door = socket.socket(socket.AF_UNIX)
    door.bind(f"{work}/peer")
    door.listen()
    door.settimeout(LIMIT)
    program = start("exec", "--map", f"{work}/passed=file:{work}/ram,cow", "--", "/usr/bin/python3", "-c", PASSES_IT_ON,
                    f"{work}/passed", f"{work}/peer")
    end, _ = door.accept()
    _, descriptors, _, _ = socket.recv_fds(end, 1, 1)
    try:
        mmap.mmap(descriptors[0], 4096)
        return "the mapping"
    except OSError as error: return errno.errorcode[error.errno]
    finally:
        end.close()
        finish(program)


def body(work):
    first = Machine("first", work, MIB, ram=f"{work}/ram")
    first.fill(FILLED)
    first.save_state(f"{work}/state")
    first.end()
    same("a descriptor that is passed on, as vhost-user does, cannot be mapped shared", "ENODEV", peer_maps(work))
    run("pack", f"{work}/ram", f"{work}/ram.pack")

    served = start("serve", "--export", f"ram=pack:{work}/ram.pack", "--socket", f"{work}/sock", "--report", f"{work}/report.json")
    until("the server", lambda: os.path.exists(f"{work}/sock"))
    clones = []
    for i in range(CLONES):
        shown = f"{work}/ram{i}"
        clone = Machine(f"clone{i}", work, MIB, incoming=True, ram=shown,
                        wrap=[uffda, "exec", "--server", f"{work}/sock", "--map", f"{shown}=ram,cow", "--"])
        clone.load_state(f"{work}/state")
        clone.ping()
        same(f"clone {i}: every page is right", 0, clone.bad())
        clones.append(clone)
    for i, clone in enumerate(clones): clone.tell(f"write {1000 * (i + 1)} {i}", "wrote")
    clones[0].fill(FILLED, seed=7)
    for i, clone in enumerate(clones): same(f"clone {i}: what the others wrote is not there", 0, clone.bad())
    for clone in clones: clone.end()
    served.terminate()
    status, _, errors = finish(served)
    same("the server ends well", 0, status)
    report = json.load(open(f"{work}/report.json"))
    fetched = report["fetches"]["bytes"]
    check("each page was fetched once, for all of them", fetched <= (MIB << 20) * 1.01, f"{fetched} bytes")


scenario(body)
