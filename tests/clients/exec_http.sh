#!/bin/bash
# A program under exec over http and s3: nginx, and Ceph's radosgw. The server dies and comes back while the program reads.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
command -v nginx > /dev/null || skip "no nginx here"
. "$here/_radosgw.sh"
make_data "$work/data" 3000001
: > "$work/shown"
port=$(ceph_free_ports 1)
cat > "$work/nginx.conf" <<CONF
daemon off; master_process off; pid $work/pid; error_log $work/error.log;
events { worker_connections 256; }
http {
  access_log off;
  client_body_temp_path $work/b; proxy_temp_path $work/p; fastcgi_temp_path $work/f; uwsgi_temp_path $work/u; scgi_temp_path $work/s;
  server { listen 127.0.0.1:$port; root $work; location /slow { alias $work/data; limit_rate 2m; } }
}
CONF
start_nginx() {
  nginx -p "$work" -e "$work/error.log" -c "$work/nginx.conf" > "$work/nginx.out" 2>&1 &
  nginx=$!
  background+=($nginx)
}
kill_nginx() { { kill -KILL "$nginx"; wait "$nginx"; } 2> /dev/null; }
answers() { (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null; }
start_nginx
wait_until answers

# --- http -------------------------------------------------------------------------------------------------------------
same "http: every byte" "$(sha256sum < "$work/data")" \
  "$(timeout 100 "$UFFDA" exec --map "$work/shown=http://127.0.0.1:$port/data" -- cat "$work/shown" | sha256sum)"
same "http: a part" "$(tail -c 70000 "$work/data" | sha256sum)" \
  "$(timeout 100 "$UFFDA" exec --map "$work/shown=http://127.0.0.1:$port/data" -- tail -c 70000 "$work/shown" | sha256sum)"
timeout 100 "$UFFDA" exec --map "$work/shown=http://127.0.0.1:$port/none" -- cat "$work/shown" > "$work/got" 2> "$work/errors"
same "http: no such object, nothing runs" "" "$(cat "$work/got")"
contains "http: and it is said" "there is no such object" "$work/errors"

# --- the server dies while the program reads -----------------------------------------------------------------------------
mkfifo "$work/first"
timeout 100 "$UFFDA" exec --map "$work/shown=http://127.0.0.1:$port/slow" -- \
  sh -c 'head -c 4096 "$1" > "$2"; cat "$1"' sh "$work/shown" "$work/first" > "$work/got" 2> "$work/errors" &
reader=$!
cat "$work/first" > "$work/begun"
kill_nginx
start_nginx
wait $reader
same "killed and restarted: the program's status" 0 $?
same "killed and restarted: every byte" "same" "$(cmp "$work/data" "$work/got" && echo same)"

mkfifo "$work/go"
timeout 100 "$UFFDA" exec --deadline 2s --map "$work/shown=http://127.0.0.1:$port/data" -- \
  sh -c 'echo > "$2"; read -r _ < "$3"; cat "$1"' sh "$work/shown" "$work/first" "$work/go" > "$work/got" 2> "$work/errors" &
reader=$!
cat "$work/first" > /dev/null
kill_nginx
echo > "$work/go"
wait $reader
same "killed for good: the program fails and does not hang" 1 $?
contains "killed for good: with EIO" "Input/output error" "$work/errors"

# --- s3 ---------------------------------------------------------------------------------------------------------------
if ! radosgw_can_run; then
  echo "skip s3: $ceph_why"
elif ! radosgw_start "$work/ceph"; then
  bad "s3: a cluster" "$ceph_why"
else
  radosgw_put "$work/data" "bucket/dir/data%20one"
  export AWS_ENDPOINT_URL=$radosgw_endpoint AWS_ACCESS_KEY_ID=$radosgw_key AWS_SECRET_ACCESS_KEY=$radosgw_secret
  same "s3: every byte" "$(sha256sum < "$work/data")" \
    "$(timeout 100 "$UFFDA" exec --map "$work/shown=s3://bucket/dir/data one" -- cat "$work/shown" | sha256sum)"
  AWS_SECRET_ACCESS_KEY=wrong timeout 100 "$UFFDA" exec --map "$work/shown=s3://bucket/dir/data one" -- cat "$work/shown" 2> "$work/errors"
  contains "s3: a wrong secret is told" "SignatureDoesNotMatch" "$work/errors"
  ceph_stop
fi
conclude
