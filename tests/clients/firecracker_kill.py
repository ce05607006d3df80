# firecracker_kill.py HOLDER KILLS SEED VMM...: kills the holder's server at random moments while VMs (the program VMM,
# four at once) come, run and end, and tells how many came to their end. Each kill waits for a VM that began after the
# one before.
import os, random, select, signal, subprocess, sys, time
holder, kills, seed, vmm = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
rng, limit, at_once = random.Random(seed), 120, 4
versions = ["1.1", "1.7", "1.12", "fork"]
running, ended = {}, 0
def start():
    number = ended + len(running) + 1
    words = [f"version={versions[number % 4]}", f"seed={number}", f"regions={1 + number % 3}"]
    if number % 5 == 0: words += ["memory=memfd", "race"]
    process = subprocess.Popen(vmm + words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    running[os.pidfd_open(process.pid)] = (process, time.monotonic())
def collect(milliseconds):
    """Of those that have ended: when the last one of them began."""
    global ended
    poll, latest = select.poll(), 0.0
    for pidfd in running: poll.register(pidfd, select.POLLIN)
    for pidfd, _ in poll.poll(milliseconds):
        process, began = running.pop(pidfd)
        os.close(pidfd)
        said = process.communicate()[0].strip()
        if process.returncode != 0: sys.exit(f"a VM ended with {process.returncode}: {said}; {process.args}")
        ended, latest = ended + 1, max(latest, began)
    return latest
def server():
    children = open(f"/proc/{holder}/task/{holder}/children").read().split()
    return int(children[0]) if children else None
done = 0
while done < kills:
    while len(running) < at_once: start()
    for _ in range(rng.randrange(200000)): pass  # a random moment
    pid = server()
    if pid is None: continue
    os.kill(pid, signal.SIGKILL)
    killed, done = time.monotonic(), done + 1
    while collect(1000) < killed:
        if time.monotonic() > killed + limit: sys.exit(f"no VM has come to its end for {limit} s after kill {done}")
        while len(running) < at_once: start()
end = time.monotonic() + limit
while running:
    if time.monotonic() > end: sys.exit(f"{len(running)} VMs hang after {done} kills")
    collect(1000)
print(f"{done} kills, {ended} VMs")
