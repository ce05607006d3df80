// rados:POOL/OBJECT, an image in a Ceph cluster. What opens and stores it is a plugin (src/plugins/rados).
#include "sources/builtin.h"
#include "sources/plugin.h"

namespace uffda::sources {

SourceScheme rados_scheme() {
  return {
      .name = "rados",
      .syntax = "rados:POOL/OBJECT",
      .help = "an image in a Ceph cluster, stored there by uffda put",
      .parameters = {{"conf", "file of the cluster's addresses and options (default: $CEPH_CONF, /etc/ceph/ceph.conf)"},
                     {"mon_host", "addresses of monitors, instead of those of conf"},
                     {"id", "who we are: client.ID (default admin)"},
                     {"keyring", "file of the key of id (default: as conf says)"},
                     {"namespace", "of the pool (default: none)"},
                     {"timeout", "how long the cluster may take to answer one request (default 30s)"},
                     {"object-size", "uffda put: bytes of a piece, a power of two (default 4M)"}},
      .open = open_in_plugin("rados"),
      .parameters_of = nullptr,
      .create = create_in_plugin("rados")};
}

}  // namespace uffda::sources
