#!/bin/bash
# How `uffda exec` ends: with the program's status or by the program's signal; what it refuses; what the program inherits.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
make_data "$work/data" 300001
: > "$work/shown"
run() { timeout 100 "$UFFDA" exec --map "$work/shown=file:$work/data" "$@"; }

# --- the program's end ------------------------------------------------------------------------------------------------
for wanted in 0 1 7 255; do
  run -- sh -c "exit $wanted"
  same "exit status $wanted" $wanted $?
done
run -- no-such-program 2> "$work/errors"
same "a program that does not exist" 127 $?
contains "is named" "no-such-program" "$work/errors"
run -- "$work/data" 2> "$work/errors"
same "a program that cannot be run" 126 $?
run -- /etc 2> "$work/errors"
same "a directory as program" 126 $?

# A program that has ended before its start was heard of: the supervisor sleeps from the moment it has two children until
# one of them is dead.
python3 - "$UFFDA" "$work" <<'PY' > "$work/ended"
import os, pathlib, signal, subprocess, sys, time
uffda, work = sys.argv[1:]
def children(pid): return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
def dead(pid):
    try: return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError: return True
statuses = set()
for _ in range(20):
    supervisor = subprocess.Popen([uffda, "exec", "--map", f"{work}/shown=file:{work}/data", "--", "sh", "-c", "exit 9"])
    limit, started = time.monotonic() + 60, []
    while supervisor.poll() is None and len(started) < 2: started = children(supervisor.pid)
    if len(started) == 2:
        os.kill(supervisor.pid, signal.SIGSTOP)
        while not dead(started[1]) and not dead(supervisor.pid) and time.monotonic() < limit: pass
        os.kill(supervisor.pid, signal.SIGCONT)
    try: statuses.add(supervisor.wait(60))
    except subprocess.TimeoutExpired:
        statuses.add("hangs")
        supervisor.kill()  # the host hears of it and ends
        supervisor.wait()
        break
print(statuses)
PY
same "a program that ended before it was heard of" "{9}" "$(cat "$work/ended")"

# The signal itself, not 128 + its number: asked from the parent, as wait(2) says it.
python3 - "$UFFDA" "$work" <<'PY' > "$work/signals"
import signal, subprocess, sys
uffda, work = sys.argv[1:]
for name in "TERM", "KILL", "SEGV", "INT", "USR1", "ABRT", "PIPE":
    number = getattr(signal, "SIG" + name)
    done = subprocess.run([uffda, "exec", "--map", f"{work}/shown=file:{work}/data", "--",
                           "bash", "-c", f"kill -{name} $$; exec tail -f /dev/null"], cwd=work, restore_signals=True)
    print(name, done.returncode == -number)
PY
for name in TERM KILL SEGV INT USR1 ABRT PIPE; do
  contains "killed by SIG$name" "$name True" "$work/signals"
done

# Signals that somebody sends to uffda reach the program, once, and uffda waits for what the program makes of it.
python3 - "$UFFDA" "$work" <<'PY' > "$work/signals"
import signal, subprocess, sys
uffda, work = sys.argv[1:]
program = """
import signal, sys
count = 0
def handler(number, frame):
    global count
    count += 1
    print('heard', flush=True)
number = getattr(signal, 'SIG' + sys.argv[1])
signal.signal(number, handler)
print('ready', flush=True)
sys.stdin.read()
sys.exit(40 + count)
"""
for name in "TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "ALRM":
    run = subprocess.Popen([uffda, "exec", "--map", f"{work}/shown=file:{work}/data", "--", "python3", "-c", program, name],
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    run.stdout.readline()
    run.send_signal(getattr(signal, "SIG" + name))
    heard = run.stdout.readline().strip()
    run.stdin.close()
    print(name, heard, run.wait())
PY
for name in TERM INT HUP QUIT USR1 USR2 ALRM; do
  contains "SIG$name is passed on, once" "$name heard 41" "$work/signals"
done

# ^C of a terminal reaches the program by itself: once, and uffda outlives it.
python3 - "$UFFDA" "$work" <<'PY' > "$work/signals"
import os, pty, sys
uffda, work = sys.argv[1:]
program = """
import signal, sys
count = 0
def handler(number, frame):
    global count
    count += 1
    print('heard', flush=True)
signal.signal(signal.SIGINT, handler)
print('ready', flush=True)
sys.stdin.read()
sys.exit(40 + count)
"""
child, terminal = pty.fork()
if child == 0:
    os.execv(uffda, [uffda, "exec", "--map", f"{work}/shown=file:{work}/data", "--", "python3", "-c", program])
def await_text(text, seen=b""):
    while text not in seen:
        seen += os.read(terminal, 100)
await_text(b"ready")
os.write(terminal, b"\x03")
await_text(b"heard")
os.write(terminal, b"\x04")
print("terminal", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
PY
contains "^C reaches the program once" "terminal 41" "$work/signals"

# --- what it refuses --------------------------------------------------------------------------------------------------
refused() {
  local name=$1 status=$2 text=$3
  shift 3
  timeout 100 "$UFFDA" exec "$@" > "$work/out" 2> "$work/errors"
  same "$name" "$status" $?
  contains "$name: says why" "$text" "$work/errors"
}
refused "PATH is a directory" 2 "is a directory" --map "$work=file:$work/data" -- true
refused "PATH is a device" 2 "not a regular file" --map "/dev/null=file:$work/data" -- true
refused "PATH twice" 2 "mapped twice" --map "$work/shown=file:$work/data" --map "$work/./shown=file:$work/data" -- true
ln -s nowhere "$work/dangling"
refused "PATH is a link to nothing" 2 "symbolic link" --map "$work/dangling=file:$work/data" -- true
refused "no such server" 125 "uffda serve --socket" --server "$work/no.sock" --map "$work/shown=name" -- true
timeout 100 "$UFFDA" exec --map "$work/shown=file:$work/nothing" -- true 2> "$work/errors"
same "a source that is not there" 1 $?
contains "is named" "$work/nothing" "$work/errors"
same "refusals leave nothing behind" "" "$(ls -A "$XDG_RUNTIME_DIR")"

# --- what the program inherits ----------------------------------------------------------------------------------------
ls -l /proc/self/fd < /dev/null 2> /dev/null | sed -n 's/.* \([0-9]* -> .*\)/\1/p' | grep -v /proc/ | cut -d ' ' -f 1 | sort > "$work/wanted"
run -- ls -l /proc/self/fd < /dev/null 2> /dev/null | sed -n 's/.* \([0-9]* -> .*\)/\1/p' | grep -v /proc/ | cut -d ' ' -f 1 | sort > "$work/got"
same "descriptors" "$(cat "$work/wanted")" "$(cat "$work/got")"
python3 -c 'print(open("/proc/self/status").read())' | grep -E '^Sig(Blk|Ign|Cgt)' > "$work/wanted"
run -- python3 -c 'print(open("/proc/self/status").read())' | grep -E '^Sig(Blk|Ign|Cgt)' > "$work/got"
same "signal masks and dispositions" "$(cat "$work/wanted")" "$(cat "$work/got")"
(trap '' HUP CHLD; "$UFFDA" exec --map "$work/shown=file:$work/data" -- python3 -c 'print(open("/proc/self/status").read())' | grep '^SigIgn') > "$work/got"
(trap '' HUP CHLD; python3 -c 'print(open("/proc/self/status").read())' | grep '^SigIgn') > "$work/wanted"
same "ignored signals stay ignored" "$(cat "$work/wanted")" "$(cat "$work/got")"
same "working directory" "$work" "$(cd "$work" && run -- pwd)"
same "user and groups" "$(id)" "$(run -- id)"
same "standard input" "hello" "$(echo hello | run -- cat)"
same "LD_PRELOAD of the user is kept" "yes" "$(LD_PRELOAD=libm.so.6 run -- sh -c 'case $LD_PRELOAD in *:libm.so.6) echo yes;; esac')"

# --- what is left behind ----------------------------------------------------------------------------------------------
# A child that outlives the program is served on; uffda returns the program's status meanwhile.
rm -f "$work/late"
mkfifo "$work/go"
run -- bash -c "(exec 0< '$work/go' > '$work/late' 2> /dev/null; read -r _; cat '$work/shown' | sha256sum) & exit 3"
same "the program's status, with a child left" 3 $?
echo now > "$work/go"
finished() { [ -s "$work/late" ]; }
wait_until finished
same "a child that outlives the program reads on" "$(sha256sum < "$work/data")" "$(cat "$work/late")"
gone() { ! pgrep -f "$work/shown=file" > /dev/null; }
wait_until gone && ok "everything ends with the last user"
conclude
