# takeover.py HOLDER PROGRESS KILLS SEED [PROGRAM...]: kills the holder's server again and again, at random moments, each
# time after every thread of takeover_worker has gone on, and tells how often that was. With PROGRAM, every tenth time a
# new holder takes over instead; its pid is then the one to look at.
import mmap, os, random, signal, subprocess, sys, time
holder, progress, kills, seed = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
words = memoryview(mmap.mmap(os.open(progress, os.O_RDWR), 4096)).cast("Q")
threads, limit = 5, 60
rng = random.Random(seed)
def server():
    children = open(f"/proc/{holder}/task/{holder}/children").read().split()
    return int(children[0]) if children else None
def ended(pid):
    """A zombie, or nothing any more; which it may become while it is looked at."""
    try: return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError): return True
def wait_for(what, test):
    end = time.monotonic() + limit  # a hang detector, not a measure
    while not test():
        if time.monotonic() > end: sys.exit(f"waited {limit} s for {what}; counts {list(words[:threads])}")
        os.sched_yield()
def all_go_on():
    before = list(words[:threads])
    wait_for("every thread to go on", lambda: all(words[i] > before[i] for i in range(threads)))
def note(): print(holder, file=open(progress + ".holder", "w"))  # for whoever cleans up
all_go_on()
done = taken = 0
while done < kills:
    for _ in range(rng.randrange(40000)): pass  # a random moment
    if len(sys.argv) > 5 and done % 10 == 9:
        old = holder
        read, write = os.pipe()
        program = subprocess.Popen(sys.argv[5:] + ["--takeover", "--ready-fd", str(write)], pass_fds=[write], stderr=sys.stderr)
        os.close(write)
        if os.read(read, 1) != b"r": sys.exit("the takeover failed")
        os.close(read)
        holder = program.pid
        note()
        wait_for("the old holder to end", lambda: ended(old))
        taken += 1
    else:
        victim = server()
        if victim is None: sys.exit("the holder has no server")
        os.kill(victim, signal.SIGKILL)
        wait_for("another server", lambda: server() not in (None, victim))
    done += 1
    all_go_on()
print(done - taken, "kills", taken, "takeovers")
words[15] = 1
