# Shared by criu*.sh: a CRIU that runs on this kernel, tasks, and a lazy restore served by uffda.
task=$UFFDA_BUILD/tests/clients/criu_task
criu=

can_criu() {
  local why
  [ "$(id -u)" = 0 ] || skip "CRIU needs root"
  [ -x "$task" ] || skip "no $task"
  if ! criu=$("$root/scripts/criu" 2> "$work/criu.log"); then skip "no CRIU: $(tail -n 1 "$work/criu.log")"; fi
  why=$("$criu" check --feature uffd-noncoop 2>&1) || skip "CRIU cannot restore lazily here: $(tail -n 1 <<< "$why")"
}

# start DIR PROGRAM...: in a session of its own, with nothing of ours open; its pid is $pid.
start() {
  local dir=$1
  shift
  mkdir -p "$dir/images"
  setsid "$@" < /dev/null > /dev/null 2>&1 &
  pid=$!
  disown
  background+=("$pid")
}
lines() { [ -e "$1" ] && [ "$(wc -l < "$1")" -ge "$2" ]; }
gone() { [ ! -e "/proc/$1" ]; }

# dump DIR [OPTION...]: $pid and its children, which end with that.
dump() {
  local dir=$1 all one
  shift
  all="$pid $(cat "/proc/$pid/task/$pid/children")"
  timeout -k 5 120 "$criu" dump -t "$pid" -D "$dir/images" -o dump.log -v4 "$@" < /dev/null > /dev/null 2>&1 ||
    { bad "dump" "$(grep Error "$dir/images/dump.log" | head -n 2)"; return 1; }
  for one in $all; do wait_until gone "$one"; done  # or their numbers cannot be had again
}
# lazy DIR: CRIU has marked what it dumped as what may come later. Once in 256 times it marks nothing, and then restores all
# of it by itself: a page where its task's stack pointer is may not come later, and CRIU (4.1) compares the places in the page.
lazy() { grep -qs 'buf .* flags: 1 ' "$1/images/dump.log"; }
# dump_lazy_task DIR: a plain task of $mib MiB, and a dump of it of which that is true.
dump_lazy_task() {
  local try
  for try in 1 2 3 4; do
    rm -rf "$1"
    start "$1" "$task" plain "$mib" "$1"
    wait_until lines "$1/ready" 1 && dump "$1" || return
    if lazy "$1"; then return; fi
  done
  bad "a dump that may come later" "CRIU marked nothing in $try dumps, or its dump.log says so in other words"
  return 1
}
# serve_lazily DIR [OPTION...]: the daemon's holder is $daemon.
serve_lazily() {
  local dir=$1
  shift
  rm -f "$dir/ready_to_serve"
  mkfifo "$dir/ready_to_serve"
  "$UFFDA" criu lazy-pages --images "$dir/images" --ready-fd 9 "$@" 9> "$dir/ready_to_serve" 2> "$dir/lazy.log" &
  daemon=$!
  background+=("$daemon")
  read -r _ < "$dir/ready_to_serve" || { bad "the daemon starts" "$(head -n 3 "$dir/lazy.log")"; return 1; }
}
# restore_lazily DIR
restore_lazily() {
  timeout -k 5 120 "$criu" restore -D "$1/images" -W "$1/images" -o restore.log -v4 -d --lazy-pages < /dev/null > /dev/null 2>&1 ||
    { bad "restore" "$(grep Error "$1/images/restore.log" | head -n 2)"; return 1; }
}
# check NAME DIR LINES WANTED: the task is told to check, and every process finds its memory right.
check() {
  kill -USR1 "$pid"
  wait_until lines "$2/result" "$3"
  same "$1" "$4" "$(sort "$2/result" | tr '\n' ';')"
  rm -f "$2/result"
}
# ended NAME: the daemon is through, and did well.
ended() {
  wait_until gone "$daemon"
  wait "$daemon"
  same "$1" 0 $?
}
