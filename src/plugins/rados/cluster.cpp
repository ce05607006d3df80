#include "plugins/rados/cluster.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>

#include "os/signals.h"

namespace uffda::sources::rados {
namespace {

constexpr std::chrono::seconds kDefaultTimeout{30};
constexpr std::size_t kMaxNameBytes = 1024;  ///< an OSD takes 2048, and pieces have longer names

Result<std::pair<std::string, std::string>> pool_and_object(const std::string& rest) {
  const std::size_t slash = rest.find('/');
  if (slash == std::string::npos || slash == 0 || slash + 1 == rest.size())
    return fail(Errc::invalid_argument, "rados:" + rest + ": write it as rados:POOL/OBJECT");
  if (rest.size() > kMaxNameBytes) return fail(Errc::invalid_argument, "rados: a name of more than 1024 bytes");
  return std::pair(rest.substr(0, slash), rest.substr(slash + 1));
}

}  // namespace

Error error_of(int status, std::string_view what) {
  if (status == -ETIMEDOUT)
    return Error(Errc::timed_out, fmt::format("{}: no answer of the cluster in time", what), ETIMEDOUT);
  if (status == -ESHUTDOWN)
    return Error(Errc::io, fmt::format("{}: another writer has taken the image over", what), ESHUTDOWN);
  if (status == -ECANCELED) return Error(Errc::cancelled, std::string(what), ECANCELED);
  if (status == -EDQUOT || status == -ENOSPC) {
    return Error(Errc::no_memory, fmt::format("{}: the pool or the cluster is full", what), -status);
  }
  return Error::from_errno(-status, what);
}

Result<Generation> random_generation() {
  Generation generation;
  if (::getrandom(generation.data(), generation.size(), 0) != static_cast<ssize_t>(generation.size()))
    return fail_errno(errno, "getrandom");
  return generation;
}

Result<std::shared_ptr<Cluster>> Cluster::connect(const SourceUri& uri) {
  auto [pool, object] = UFFDA_TRY(pool_and_object(uri.rest()));
  const std::shared_ptr<Cluster> cluster(new Cluster);
  cluster->pool_ = std::move(pool);
  cluster->object_ = std::move(object);
  const auto timeout = UFFDA_TRY(uri.duration("timeout", kDefaultTimeout));
  cluster->timeout_ = std::max(std::chrono::ceil<std::chrono::seconds>(timeout), std::chrono::seconds(1));

  const os::BlockedSignals blocked;  // librados' threads handle none of the program's signals
  UFFDA_TRY_VOID(cluster->configure(uri));
  if (const int status = ::rados_connect(cluster->handle_); status < 0) {
    const std::string what = cluster->name() + ": connecting to the cluster";
    if (status == -ETIMEDOUT) {
      return fail(Errc::timed_out,
                  fmt::format("{}: no monitor answered in {} s; are they up, and are these their addresses (ceph.conf, "
                              "conf=, mon_host=)?",
                              what, cluster->timeout_.count()),
                  ETIMEDOUT);
    }
    return std::unexpected(error_of(status, what));
  }
  const int status = ::rados_ioctx_create(cluster->handle_, cluster->pool_.c_str(), &cluster->io_);
  if (status == -ENOENT) {
    return fail(Errc::not_found,
                fmt::format("{0}: there is no pool '{1}': ceph osd pool create {1}", cluster->name(), cluster->pool_));
  }
  if (status < 0) return std::unexpected(error_of(status, cluster->name() + ": opening the pool"));
  if (const std::string* name = uri.find("namespace")) ::rados_ioctx_set_namespace(cluster->io_, name->c_str());
  return cluster;
}

Cluster::~Cluster() {
  if (io_ != nullptr) ::rados_ioctx_destroy(io_);
  if (handle_ != nullptr) ::rados_shutdown(handle_);
}

Result<void> Cluster::configure(const SourceUri& uri) {
  const std::string* const id = uri.find("id");
  const std::string who = "client." + (id != nullptr ? *id : "admin");
  if (const int status = ::rados_create2(&handle_, "ceph", who.c_str(), 0); status < 0)
    return std::unexpected(error_of(status, name() + ": preparing " + who));
  UFFDA_TRY_VOID(read_conf(uri));
  if (const std::string* keyring = uri.find("keyring")) UFFDA_TRY_VOID(set("keyring", *keyring));
  if (const std::string* monitors = uri.find("mon_host")) UFFDA_TRY_VOID(set("mon_host", *monitors));
  // Without these a request to a cluster that is down waits for ever.
  const std::string seconds = std::to_string(timeout_.count());
  for (const char* const option : {"rados_osd_op_timeout", "rados_mon_op_timeout", "client_mount_timeout"})
    UFFDA_TRY_VOID(set(option, seconds));
  // Past these a request would make its caller wait. What is under way is bounded by Reads and by the writer.
  for (const char* const option : {"objecter_inflight_ops", "objecter_inflight_op_bytes"})
    UFFDA_TRY_VOID(set(option, "0"));
  return {};
}

Result<void> Cluster::read_conf(const SourceUri& uri) {
  const std::string* const conf = uri.find("conf");
  const int status = ::rados_conf_read_file(handle_, conf != nullptr ? conf->c_str() : nullptr);
  if (status >= 0) return {};
  if (conf == nullptr && status == -ENOENT) {
    if (uri.find("mon_host") != nullptr) return {};
    return fail(Errc::not_found, name() + ": there is no ceph.conf: name one with conf=, or monitors with mon_host=");
  }
  return std::unexpected(error_of(status, name() + ": reading " + (conf != nullptr ? *conf : "ceph.conf")));
}

Result<void> Cluster::set(const char* option, const std::string& value) {
  const int status = ::rados_conf_set(handle_, option, value.c_str());
  if (status < 0) return std::unexpected(error_of(status, fmt::format("{}: option {} of Ceph", name(), option)));
  return {};
}

Result<Cluster::Found> Cluster::read_header() const {
  std::vector<std::byte> bytes(kMaxHeaderBytes.value + 1);
  const int status = ::rados_read(io_, object_.c_str(), reinterpret_cast<char*>(bytes.data()), bytes.size(), 0);
  if (status == -ENOENT)
    return fail(Errc::not_found, fmt::format("{}: there is no such object: uffda put stores one", name()));
  if (status < 0) return std::unexpected(error_of(status, name() + ": reading the header"));
  bytes.resize(static_cast<std::size_t>(status));
  Result<Header> header = parse_header(bytes);
  if (!header) return std::unexpected(header.error().within(name()));
  return Found{*std::move(header), ::rados_get_last_version(io_)};
}

}  // namespace uffda::sources::rados
