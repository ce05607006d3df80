// rados: over a real cluster: the contract of every source, through what `uffda put` stores.
#include <gtest/gtest.h>

#include "cli/put.h"
#include "contract/source_contract.h"
#include "support/ceph.h"

namespace uffda::test {
namespace {

class StoredImage final : public SourceServer {
 public:
  explicit StoredImage(std::string uri) : uri_(std::move(uri)) {}
  [[nodiscard]] std::string uri() const override { return uri_; }

 private:
  std::string uri_;
};

/// With pieces so small that reads go across their borders.
Result<std::unique_ptr<SourceServer>> store(const PatternFile& file) {
  CephCluster* const cluster = UFFDA_TRY(CephCluster::shared());
  const std::string uri = cluster->uri(cluster->fresh_name());
  const cli::PutCommand command{.input = file.path(), .uri = uri + "&object-size=64K"};
  UFFDA_TRY(cli::put(command, [](const cli::PutProgress&) { return true; }));
  return std::make_unique<StoredImage>(uri);
}

INSTANTIATE_TEST_SUITE_P(
    Rados, SourceContract,
    testing::Values(SourceCase{.name = "rados", .uri = "#", .serve = store},
                    SourceCase{.name = "error_rados", .uri = "error+#&rate=0", .serve = store},
                    SourceCase{.name = "cache_rados", .uri = "cache+#&dir=@.cache&size=16M", .serve = store},
                    SourceCase{.name = "delay_rados", .uri = "delay+#&delay=1ms", .serve = store}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace uffda::test
