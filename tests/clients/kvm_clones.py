# kvm_clones.py SERVER SOCKET KVM_RESTORE CLONES OPTION...: starts clones of the export `vm` one after the other, each of
# which touches and writes the same pages, and counts while all of them are there. Prints NAME VALUE lines.
import json, os, re, signal, socket, struct, subprocess, sys
server, path, program, clones, options = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5:]
signal.alarm(280)  # a hang detector
def source_bytes():
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.connect(path)
        s.send(struct.pack("=IHHII", 0x41444655, 1, 8, 16, 0))
        return json.loads(s.recv(1 << 20)[16:])["exports"][0]["bytes"]
def start():
    process = subprocess.Popen([program, "handoff", path, "vm", "wait"] + options, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    said = process.stdout.readline()
    if said != "ready\n": sys.exit(f"a clone said '{said.strip()}' and ended with {process.wait()}")
    return process
def cache_blocks():
    """Of the server's page cache."""
    for fd in os.listdir(f"/proc/{server}/fd"):
        name = f"/proc/{server}/fd/{fd}"
        if os.readlink(name).startswith("/memfd:uffda:file:"): return os.stat(name).st_blocks * 512
    sys.exit("the server has no page cache")
def guest_memory(pid):
    """What /proc says of the mapping of the page cache: private pages and its share of all."""
    counted, here = {"Anonymous": 0, "Pss": 0}, False
    for line in open(f"/proc/{pid}/smaps"):
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line): here = "/memfd:uffda:" in line
        field, _, value = line.partition(":")
        if here and field in counted: counted[field] += int(value.split()[0]) * 1024
    return counted
running = [start()]
first = source_bytes()
running.append(start())
second = source_bytes()
running += [start() for _ in range(clones - 2)]
memories = [guest_memory(process.pid) for process in running]
print("cache", cache_blocks())
print("private", sum(memory["Anonymous"] for memory in memories))
print("pss", sum(memory["Pss"] for memory in memories))
print("first_read", first)
print("second_read", second - first)
print("all_read", source_bytes() - first)
for process in running:
    said = process.communicate("go\n")[0].strip()
    if process.returncode != 0: sys.exit(f"a clone ended with {process.returncode}: {said}")
print("right", len(running))
