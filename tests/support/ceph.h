// A real Ceph cluster for tests: tests/clients/_ceph.sh, one for the process.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "support/child_process.h"
#include "uffda/result.h"

namespace uffda::test {

class CephCluster {
 public:
  /// Started when it is first asked for, gone with the process: a monitor, an OSD in memory, a pool named uffda.
  /// Errors: unsupported (why it cannot be had here).
  static Result<CephCluster*> shared();
  CephCluster(const CephCluster&) = delete;
  CephCluster& operator=(const CephCluster&) = delete;
  ~CephCluster();

  /// rados:uffda/OBJECT, with what it takes to get there.
  [[nodiscard]] std::string uri(const std::string& object) const;
  /// A name that no other call returns.
  [[nodiscard]] std::string fresh_name();

  /// For a cluster that hangs: when this returns, no thread of the OSD runs.
  void stop_osd() const;
  void continue_osd() const;
  /// Runs `rados -p uffda WORD...`; its output.
  [[nodiscard]] Result<std::string> rados(const std::vector<std::string>& words) const;
  /// The objects whose names start with this.
  [[nodiscard]] std::vector<std::string> objects(const std::string& prefix) const;
  /// Requests of this process that the cluster has not answered, by librados' own count.
  [[nodiscard]] std::uint64_t requests_under_way() const;
  /// Requests that this process' open sources have sent so far.
  [[nodiscard]] std::uint64_t requests_sent() const;

 private:
  CephCluster(std::string directory, ChildProcess shell) : directory_(std::move(directory)), shell_(std::move(shell)) {}
  static Result<std::unique_ptr<CephCluster>> start();
  /// The sum of `measure` over what each connection of this process answers.
  [[nodiscard]] std::uint64_t sum(const std::string& command,
                                  const std::function<std::uint64_t(const std::string&)>& measure) const;

  std::string directory_;
  ChildProcess shell_;
  int names_ = 0;
};

}  // namespace uffda::test
