# A real S3 server on loopback, for tests: Ceph's radosgw over the private cluster of _ceph.sh.
#
#   . _radosgw.sh
#   radosgw_can_run || skip "$ceph_why"
#   radosgw_start DIR          # on failure the reason is in ceph_why
#   echo "$radosgw_endpoint"   # http://127.0.0.1:PORT; keys: uffda and uffdasecret; a bucket named "bucket"
#   radosgw_put FILE PATH      # PATH of the URL: bucket/key, escaped
#   ceph_stop
#
# For a program: `bash _radosgw.sh DIR` starts it, writes DIR/endpoint, makes the file DIR/ready (or DIR/failed, with the
# reason) and stays until it is killed.
. "$(dirname "${BASH_SOURCE[0]}")/_ceph.sh"

radosgw_key=uffda radosgw_secret=uffdasecret

radosgw_can_run() {
  local command
  ceph_can_run || return 1
  for command in radosgw radosgw-admin curl; do
    command -v "$command" > /dev/null || { ceph_why="needs $command (radosgw, curl): make setup"; return 1; }
  done
}

radosgw_curl() {
  curl --silent --show-error --fail --max-time 60 --aws-sigv4 aws:amz:us-east-1:s3 --user "$radosgw_key:$radosgw_secret" \
    --header 'x-amz-content-sha256: UNSIGNED-PAYLOAD' "$@"
}
radosgw_put() { radosgw_curl --upload-file "$1" "$radosgw_endpoint/$2"; }

radosgw_start() {
  local port limit
  radosgw_can_run && ceph_start "$1" memstore || return 1
  port=$(ceph_free_ports 1)
  radosgw_endpoint=http://127.0.0.1:$port
  ceph_why="radosgw does not start: $ceph_directory/rgw.out"
  mkdir -p "$ceph_directory/rgw"
  ceph_daemon rgw radosgw -f -n client.rgw --rgw-data "$ceph_directory/rgw" --rgw-frontends "beast endpoint=127.0.0.1:$port" \
    --log-file "$ceph_directory/rgw.log" --rgw-enable-usage-log=false
  radosgw-admin --conf "$CEPH_CONF" user create --uid=uffda --display-name=uffda --access-key="$radosgw_key" \
    --secret-key="$radosgw_secret" > "$ceph_directory/user.out" 2>&1 || return 1
  limit=$((SECONDS + 60))
  until curl --silent --output /dev/null --max-time 10 "$radosgw_endpoint"; do
    [ $SECONDS -lt $limit ] || return 1
    read -r -t 0.1 _ <> <(:) || true
  done
  radosgw_curl --request PUT "$radosgw_endpoint/bucket" > "$ceph_directory/bucket.out" 2>&1
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -u
  if radosgw_start "$1" < /dev/null; then
    trap 'ceph_stop; exit 0' TERM
    echo "$radosgw_endpoint" > "$1/endpoint"
    : > "$1/ready"
    wait
  else
    echo "$ceph_why" > "$1/failed"
    exit 1
  fi
fi
