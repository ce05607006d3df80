# rados_writes.py SHOWN MODEL SECONDS: writes to a mapping of SHOWN at random and reads what it wrote, until SECONDS are over;
# says "half" when everything was stored once. In the end all of it is stored, and MODEL is what it must be.
import mmap, os, random, sys, time
shown, model_path, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
rng = random.Random(5)
size = os.stat(shown).st_size
memory = mmap.mmap(os.open(shown, os.O_RDWR), size)
model = bytearray(open(model_path, "rb").read())
end = time.monotonic() + seconds
steps = 0
while time.monotonic() < end:
    for _ in range(200):
        at = rng.randrange(size)
        some = rng.randbytes(rng.randrange(1, 20000))[: size - at]
        memory[at : at + len(some)] = some
        model[at : at + len(some)] = some
        at = rng.randrange(size)
        if memory[at : at + 500] != model[at : at + 500]: sys.exit(f"wrong bytes at {at} after {steps} steps")
    memory.flush()
    steps += 1
    if steps == 1: print("half", flush=True)
    time.sleep(0.01)
memory.flush()
open(model_path, "wb").write(model)
print("stored")
print(f"{steps} rounds", file=sys.stderr)
