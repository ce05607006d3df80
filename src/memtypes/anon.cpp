// Private anonymous memory. Like Linux's anon_uffd_ops: built in, but in a file of its own like the rest.
#include "memtypes/builtin.h"

namespace uffda {
namespace {

constexpr UffdOps kAnonOps{
    .modes = {UffdMode::missing, UffdMode::wp},
    .ioctls = {UffdIoctl::copy, UffdIoctl::zeropage, UffdIoctl::move, UffdIoctl::writeprotect, UffdIoctl::poison},
};

Error no_cache() {
  return Error(Errc::unsupported, "anonymous memory has no page cache; use type shmem to share pages");
}

class AnonBacking final : public Backing {
 public:
  Result<void> publish(ByteRange, std::span<const std::byte>) override { return std::unexpected(no_cache()); }
  Result<void> drop(ByteRange) override { return std::unexpected(no_cache()); }
  Result<void> read(ByteOffset, std::span<std::byte>) override { return std::unexpected(no_cache()); }
  Result<os::UniqueFd> share() override { return std::unexpected(no_cache()); }
  [[nodiscard]] int mapping_fd() const override { return -1; }
};

class AnonType final : public MemoryType {
 public:
  [[nodiscard]] std::string_view name() const override { return "anon"; }
  [[nodiscard]] const UffdOps* ops() const override { return &kAnonOps; }
  [[nodiscard]] ByteCount folio_size() const override { return kPageSize; }
  Result<std::unique_ptr<Backing>> create(ByteCount, const std::string&) const override {
    return std::make_unique<AnonBacking>();
  }
};

}  // namespace

std::unique_ptr<MemoryType> make_anon_type() { return std::make_unique<AnonType>(); }

}  // namespace uffda
