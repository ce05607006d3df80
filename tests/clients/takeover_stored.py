# takeover_stored.py SERVED FILE PROGRAM...: a service manager with a store of descriptors, as systemd's: starts PROGRAM, tells it
# to end, keeps what it stores, and starts it again with that, five times. Between them takeover_worker has to go on.
import array, mmap, os, signal, socket, subprocess, sys, threading, time
progress, path, program = sys.argv[1], sys.argv[2], sys.argv[3:]
words = memoryview(mmap.mmap(os.open(progress, os.O_RDWR), 4096)).cast("Q")
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind(path)
store = []  # (name, descriptor): what is passed on stays in it until it is taken out by name
stored_twice = []
all_stored = threading.Event()
def start(*more):
    read, write = os.pipe()
    count = len(store)
    # Everything at once to numbers that nobody has, then to 3, 4, ...
    high = [os.dup2(fd, 2000 + i) for i, (_, fd) in enumerate(store)] + [os.dup2(write, 2000 + count)]
    def place():
        for i, fd in enumerate(high): os.dup2(fd, 3 + i)
        os.closerange(4 + count, 4096)
    environment = dict(os.environ, NOTIFY_SOCKET=path, FDSTORE="1000", LISTEN_FDS=str(count), LISTEN_FDNAMES=":".join(name for name, _ in store))
    words_of = ["sh", "-c", 'export LISTEN_PID=$$; exec "$@"', "sh"] + program + [*more, "--ready-fd", str(3 + count)]
    process = subprocess.Popen(words_of, env=environment, close_fds=False, preexec_fn=place)
    for fd in high: os.close(fd)
    os.close(write)
    ready = os.read(read, 6) == b"ready\n"
    os.close(read)
    return process if ready else None
def hear():
    while True:
        text, control, _, _ = notify.recvmsg(4096, socket.CMSG_SPACE(16))
        fds = array.array("i")
        for _, _, data in control: fds.frombytes(data[:len(data) // 4 * 4])
        lines = text.decode().split("\n")
        if "BARRIER=1" in lines:
            os.close(fds[0])
            all_stored.set()
            continue
        name = next(line[7:] for line in lines if line.startswith("FDNAME="))
        if "FDSTOREREMOVE=1" in lines:
            for gone in [one for one in store if one[0] == name]:
                os.close(gone[1])
                store.remove(gone)
            continue
        if any(name == one[0] for one in store): stored_twice.append(name)
        store.insert(0, (name, fds[0]))
def keep():
    if not all_stored.wait(60): sys.exit("it stores nothing")  # a hang detector
    all_stored.clear()
    if stored_twice: sys.exit(f"stored beside what had the name before: {stored_twice}")
def all_go_on():
    before, end = list(words[:5]), time.monotonic() + 60
    while not all(words[i] > before[i] for i in range(5)):
        if time.monotonic() > end: sys.exit(f"waited for every thread to go on; counts {list(words[:5])}")
        os.sched_yield()
threading.Thread(target=hear, daemon=True).start()
process = start()
print("started", flush=True)
for _ in range(5):
    all_go_on()
    process.send_signal(signal.SIGTERM)
    keep()
    if process.wait(60) != 0: sys.exit(f"it ended with {process.returncode}")
    if start("--export", "none=file:/nonexistent") is not None: sys.exit("it starts without one of its files")
    process = start()
    if process is None: sys.exit("it does not start")
all_go_on()
words[15] = 1
print("restarted 5 times", flush=True)
sys.stdin.read()
process.send_signal(signal.SIGTERM)
keep()
process.wait(60)
