// Ceph's radosgw on loopback, a real S3 server: started by the first test that asks for it (it takes a while), and one
// for all tests of a process.
#pragma once

#include <string>

#include "uffda/result.h"

namespace uffda::test {

class Radosgw {
 public:
  /// Errors: unsupported (ceph or radosgw is not here, or does not start; says why).
  static Result<Radosgw*> shared();

  static constexpr const char* kKey = "uffda";
  static constexpr const char* kSecret = "uffdasecret";
  static constexpr const char* kBucket = "bucket";
  [[nodiscard]] const std::string& endpoint() const { return endpoint_; }
  /// Stores a file under bucket/`path`, which is escaped as in a URL. Errors: io.
  [[nodiscard]] Result<void> put(const std::string& file, const std::string& path) const;

 private:
  explicit Radosgw(std::string endpoint) : endpoint_(std::move(endpoint)) {}
  static Result<Radosgw*> start();
  std::string endpoint_;
};

}  // namespace uffda::test
