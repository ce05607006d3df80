#include "support/mm_memory_types.h"

#include <optional>
#include <utility>

#include "memtypes/builtin.h"

namespace uffda::test {
namespace {

class TestType final : public MemoryType {
 public:
  TestType(std::string name, std::optional<UffdOps> ops) : name_(std::move(name)), ops_(ops) {}
  [[nodiscard]] std::string_view name() const override { return name_; }
  [[nodiscard]] const UffdOps* ops() const override { return ops_ ? &*ops_ : nullptr; }
  [[nodiscard]] ByteCount folio_size() const override { return kPageSize; }
  Result<std::unique_ptr<Backing>> create(ByteCount size, const std::string& name) const override {
    return shmem_->create(size, name);
  }

 private:
  std::string name_;
  std::optional<UffdOps> ops_;
  std::unique_ptr<MemoryType> shmem_ = make_shmem_type();
};

}  // namespace

std::unique_ptr<MemoryType> make_attributes_only_type() {
  return make_type(kAttributesOnly, {.modes = {UffdMode::missing, UffdMode::minor},
                                     .ioctls = {UffdIoctl::continue_, UffdIoctl::poison}});
}

std::unique_ptr<MemoryType> make_type(std::string name, const UffdOps& ops) {
  return std::make_unique<TestType>(std::move(name), ops);
}

std::unique_ptr<MemoryType> make_type_without_ops(std::string name) {
  return std::make_unique<TestType>(std::move(name), std::nullopt);
}

}  // namespace uffda::test
