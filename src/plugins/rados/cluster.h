// A connection to a Ceph cluster, for one image in one pool.
#pragma once

#include <rados/librados.h>

#include <chrono>
#include <memory>
#include <string>

#include "sources/rados_header.h"
#include "uffda/source_registry.h"

namespace uffda::sources::rados {

/// An error of librados (a negative errno) as ours; `what` says what was tried.
Error error_of(int status, std::string_view what);

Result<Generation> random_generation();

/// Every request of it is given up by librados itself after timeout(). Threads: any.
class Cluster {
 public:
  /// Of rados:POOL/OBJECT and its parameters. Errors: invalid_argument (the URI, ceph.conf), not_found (ceph.conf, the
  /// pool), permission_denied, timed_out (no monitor answers), io.
  static Result<std::shared_ptr<Cluster>> connect(const SourceUri& uri);
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;
  /// No request may be under way.
  ~Cluster();

  [[nodiscard]] rados_t handle() const { return handle_; }
  [[nodiscard]] rados_ioctx_t io() const { return io_; }
  [[nodiscard]] const std::string& pool() const { return pool_; }
  [[nodiscard]] const std::string& object() const { return object_; }  ///< the header's
  [[nodiscard]] std::string name() const { return "rados:" + pool_ + "/" + object_; }
  [[nodiscard]] std::chrono::seconds timeout() const { return timeout_; }

  struct Found {
    Header header;
    std::uint64_t version;  ///< the object's, for replacing just this one
  };
  /// Reads the header object. May wait for timeout(). Errors: not_found (no such object), invalid_argument (not of
  /// uffda, damaged), unsupported (a later version), timed_out, io.
  [[nodiscard]] Result<Found> read_header() const;

 private:
  Cluster() = default;
  Result<void> configure(const SourceUri& uri);
  Result<void> read_conf(const SourceUri& uri);
  Result<void> set(const char* option, const std::string& value);

  std::string pool_;
  std::string object_;
  std::chrono::seconds timeout_{};
  rados_t handle_ = nullptr;
  rados_ioctx_t io_ = nullptr;
};

}  // namespace uffda::sources::rados
