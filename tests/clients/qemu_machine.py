# A QEMU with the guest of tests/clients/guest in it, for tests, the demo and the benchmark: its monitor, its serial
# line, and the commands of uffda against it. Nothing here waits for ever.
import json, os, signal, socket, struct, subprocess, sys, time

LIMIT = 120  # seconds: a hang detector, not a measure
SILENT = 3  # seconds without a word of the monitor, which else answers in milliseconds
here = os.path.dirname(os.path.abspath(__file__))
root = os.path.dirname(os.path.dirname(here))
uffda = os.environ.get("UFFDA") or os.path.join(root, "build/release/uffda")
guest = os.environ.get("UFFDA_GUEST") or os.path.join(root, "build/guest")


def until(what, test, limit=LIMIT):
    end = time.monotonic() + limit
    while True:
        found = test()
        if found: return found
        if time.monotonic() > end: raise TimeoutError(f"waited {limit} s for {what}")
        time.sleep(0.001)


def connected(path, process):
    def attempt():
        if process.poll() is not None: raise RuntimeError(f"QEMU ended with {process.returncode}")
        end = socket.socket(socket.AF_UNIX)
        try: end.connect(path)
        except OSError:
            end.close()
            return None
        end.settimeout(LIMIT)
        return end
    return until(f"QEMU to listen at {path}", attempt)


class Monitor:
    """What is not answered in time may be answered later: each request has an id."""
    def __init__(self, path, process):
        self.socket = connected(path, process)
        self.unread, self.requests = b"", 0
        self.answer(lambda one: "QMP" in one)
        self.ask("qmp_capabilities")

    def answer(self, is_it, limit=LIMIT):
        end = time.monotonic() + limit
        while True:
            while b"\n" not in self.unread:
                self.socket.settimeout(max(0.001, end - time.monotonic()))
                come = self.socket.recv(1 << 16)
                if not come: raise EOFError("QEMU closed its monitor")
                self.unread += come
            line, self.unread = self.unread.split(b"\n", 1)
            answer = json.loads(line)
            if is_it(answer): return answer

    def ask(self, command, limit=LIMIT, **arguments):
        self.requests += 1
        id = self.requests
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments, "id": id}).encode() + b"\n")
        answer = self.answer(lambda one: one.get("id") == id, limit)
        if "error" in answer: raise RuntimeError(answer["error"]["desc"])
        return answer["return"]

    def capability(self, name, on=True):
        self.ask("migrate-set-capabilities", capabilities=[{"capability": name, "state": on}])

    def status(self, limit=LIMIT): return self.ask("query-migrate", limit).get("status", "none")


class Machine:
    """`ram`: a file for the guest's RAM, mapped shared; or "anonymous", of the same name. `wrap`: words in front of the command. Two monitors: one is ours,
    one uffda's."""
    def __init__(self, name, directory, mib=256, incoming=False, ram=None, wrap=(), extra=()):
        self.name, self.directory, self.mib = name, directory, mib
        self.uffda_qmp = self.path("uffda.qmp")
        machine = "q35,accel=tcg" + (",memory-backend=m0" if ram else "")
        command = [*wrap, "qemu-system-x86_64", "-nodefaults", "-machine", machine, "-cpu", "max", "-m", str(mib),
                   "-display", "none", "-kernel", f"{guest}/vmlinux", "-initrd", f"{guest}/initrd",
                   "-append", "console=ttyS0 quiet loglevel=0 nokaslr mitigations=off tsc=reliable",
                   "-serial", f"unix:{self.path('serial')},server=on,wait=off",
                   "-qmp", f"unix:{self.path('qmp')},server=on,wait=off",
                   "-qmp", f"unix:{self.uffda_qmp},server=on,wait=off"]
        if ram == "anonymous": command += ["-object", f"memory-backend-ram,id=m0,size={mib}M"]
        elif ram: command += ["-object", f"memory-backend-file,id=m0,size={mib}M,mem-path={ram},share=on"]
        if incoming: command += ["-incoming", "defer"]
        for one in ("serial", "qmp", "uffda.qmp"):
            if os.path.exists(self.path(one)): os.unlink(self.path(one))
        self.log = open(self.path("log"), "wb")
        self.process = subprocess.Popen([*command, *extra], stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        machines.append(self)
        self.monitor = Monitor(self.path("qmp"), self.process)
        self.serial = connected(self.path("serial"), self.process).makefile("rwb", buffering=0)
        if not incoming: self.expect("ready")

    def path(self, what): return f"{self.directory}/{self.name}.{what}"

    def expect(self, word):
        while True:
            line = self.serial.readline()
            if not line: raise RuntimeError(f"{self.name}: the guest's line is closed, waiting for {word}")
            text = line.decode(errors="replace").strip()
            if text.startswith(word): return text.split()
            if text.startswith("error"): raise RuntimeError(f"{self.name}: the guest says: {text}")

    def tell(self, command, answer):
        self.serial.write(command.encode() + b"\n")
        return self.expect(answer)

    def wait_running(self):
        """What is written to the serial line before would be lost when the devices are restored."""
        until("the guest to run", lambda: self.monitor.ask("query-status")["status"] == "running")
    def ping(self): self.tell("ping", "pong")
    def fill(self, mib, seed=1): return int(self.tell(f"fill {mib} {seed}", "filled")[1])
    def scan(self): return int(self.tell("scan", "scanned")[2])
    def bad(self): return int(self.tell("verify", "bad")[1])

    def after_the_end(self):
        """Of who restored it: "paused", "completed", "waits" (for a machine: nothing had begun), "ended" (the process), or "silent": its main
        thread waits for a page that is missing, and its monitor answers nobody (docs/clients/qemu.md)."""
        def look():
            if self.process.poll() is not None: return "ended"
            try: status = self.monitor.status(SILENT)
            except TimeoutError: return "silent"
            except (OSError, EOFError): return None  # it is about to end
            if status == "none": return "waits"
            # A keeper holds the stream of one that was killed while it told QEMU to go on: the next one settles that.
            return {"postcopy-paused": "paused", "postcopy-recover": "paused", "completed": "completed"}.get(status)
        return until("QEMU to notice", look)

    def keeper(self):
        """Of its monitor: the process; None if there is none."""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if open(f"/proc/{pid}/comm").read() != "uffda-keeper\n": continue
                is_zombie = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] == "Z"
                if not is_zombie and self.uffda_qmp.encode() in open(f"/proc/{pid}/cmdline", "rb").read().split(b"\0"): return int(pid)
            except OSError: continue  # it has ended
        return None

    def keeper_ends(self): return until("the keeper to end", lambda: self.keeper() is None)

    def qemu_pid(self):
        """Of QEMU itself, which may run under another program."""
        pid = self.process.pid
        while open(f"/proc/{pid}/comm").read().strip() == "uffda":
            pid = int(open(f"/proc/{pid}/task/{pid}/children").read().split()[-1])
        return pid

    def guest_ram(self):
        """Bytes of the guest's RAM that are there: those of a page cache that others share, and those of its own."""
        there = own = 0
        wanted = False
        for line in open(f"/proc/{self.qemu_pid()}/smaps"):
            words = line.split()
            if words[0] == "Size:": wanted = int(words[1]) == self.mib << 10
            elif wanted and words[0] == "Rss:": there += int(words[1]) << 10
            elif wanted and words[0] == "Anonymous:": own += int(words[1]) << 10
        return there - own, own

    def end(self):
        if self.process.poll() is None:
            try: self.monitor.ask("quit", SILENT)  # so that a QEMU under uffda exec goes, too
            except (OSError, ValueError, RuntimeError, EOFError): pass
            try: self.process.wait(20)
            except subprocess.TimeoutExpired: self.process.kill()
        self.process.wait()
        self.log.close()

    def save_state(self, file):
        """What is not RAM, to `file`; the RAM is in the file that it maps, and the machine stays stopped."""
        self.monitor.ask("stop")
        self.monitor.capability("x-ignore-shared")
        self.monitor.ask("migrate", uri=f"exec:cat >{file}")
        until("its state", lambda: self.monitor.status() == "completed")

    def load_stopped(self, file):
        self.monitor.capability("x-ignore-shared")
        self.monitor.ask("migrate-incoming", uri=f"exec:cat {file}")
        until("its state", lambda: self.monitor.status() == "completed")

    def load_state(self, file):
        self.load_stopped(file)
        self.monitor.ask("cont")


def server_counts(path):
    """What `uffda serve` has counted until now."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end.settimeout(LIMIT)
    end.connect(path)
    end.send(struct.pack("<IHHII", 0x41444655, 1, 8, 16, 0))
    answer = end.recv(1 << 20)
    end.close()
    return json.loads(answer[16:].rstrip(b"\0"))


machines = []


def end_all():
    for machine in machines: machine.end()


def run(*words, check=True, **options):
    done = subprocess.run([uffda, *words], capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL, **options)
    if check and done.returncode != 0: raise RuntimeError(f"uffda {' '.join(words)}: {done.stderr.strip()}")
    return done


def start(*words): return subprocess.Popen([uffda, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)


def finish(process):
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


failures = 0


def check(name, holds, got=""):
    global failures
    if not holds: failures += 1
    print(f"{'ok  ' if holds else 'FAIL'} {name}{'' if holds else f': {got}'}")


def same(name, wanted, got): check(name, wanted == got, f"wanted {wanted!r}, got {got!r}")


def says(name, text, done, status=1):
    """A command that failed with `status` and says so in these words."""
    check(name, done.returncode == status and text in done.stderr, f"status {done.returncode}: {done.stderr.strip()!r}")


def scenario(body):
    """Runs the checks, whose machines are gone afterwards, and ends with their result."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try: body(sys.argv[1])
    except Exception as error:
        check("the scenario goes through", False, f"{type(error).__name__}: {error}")
        for machine in machines: print(f"  {machine.name}: {open(machine.path('log'), errors='replace').read().strip()}")
    finally: end_all()
    sys.exit(failures != 0)
