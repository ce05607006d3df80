#include "support/mm_memory_types.h"

#include <sys/mman.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "memtypes/builtin.h"
#include "os/memory.h"

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

class WithoutHook final : public MemoryType {
 public:
  explicit WithoutHook(std::unique_ptr<MemoryType> type)
      : type_(std::move(type)), name_(std::string(type_->name()) + "-attributes"), ops_(*type_->ops()) {
    ops_.get_folio = nullptr;
  }
  [[nodiscard]] std::string_view name() const override { return name_; }
  [[nodiscard]] const UffdOps* ops() const override { return &ops_; }
  [[nodiscard]] ByteCount folio_size() const override { return type_->folio_size(); }
  Result<std::unique_ptr<Backing>> create(ByteCount size, const std::string& name) const override {
    return type_->create(size, name);
  }
  Result<std::unique_ptr<Backing>> create_with(ByteCount size, const std::string& name,
                                               std::string_view options) const override {
    return type_->create_with(size, name, options);
  }

 private:
  std::unique_ptr<MemoryType> type_;
  std::string name_;
  UffdOps ops_;
};

constexpr ByteCount kInPlaceFolio = 4_MiB;

class InPlaceBacking final : public Backing {
 public:
  InPlaceBacking(os::UniqueFd fd, os::MappedMemory mapping) : fd_(std::move(fd)), mapping_(std::move(mapping)) {}
  Result<std::span<std::byte>> in_place(ByteRange range) override {
    return mapping_.bytes().subspan(range.start.value, range.length.value);
  }
  Result<void> publish(ByteRange range, std::span<const std::byte> bytes) override {
    const std::span<std::byte> memory = mapping_.bytes().subspan(range.start.value);
    if (memory.data() != bytes.data()) std::ranges::copy(bytes, memory.begin());
    return {};
  }
  Result<void> drop(ByteRange range) override {
    return os::punch_hole(fd_.get(), {.start = range.start, .length = {align_up(range.length.value, kPageSize.value)}});
  }
  Result<void> read(ByteOffset offset, std::span<std::byte> bytes) override {
    return os::read_at(fd_.get(), offset, bytes);
  }
  Result<os::UniqueFd> share() override { return os::reopen_read_only(fd_.get()); }
  [[nodiscard]] int mapping_fd() const override { return fd_.get(); }

 private:
  os::UniqueFd fd_;
  os::MappedMemory mapping_;
};

class InPlaceType final : public MemoryType {
 public:
  [[nodiscard]] std::string_view name() const override { return "in-place"; }
  [[nodiscard]] const UffdOps* ops() const override { return &ops_; }
  [[nodiscard]] ByteCount folio_size() const override { return kInPlaceFolio; }
  Result<std::unique_ptr<Backing>> create(ByteCount size, const std::string& name) const override {
    const ByteCount whole{align_up(size.value, kInPlaceFolio.value)};
    os::UniqueFd fd = UFFDA_TRY(os::create_memfd(name, whole));
    auto mapping = UFFDA_TRY(os::map_memory(whole, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get()));
    return std::make_unique<InPlaceBacking>(std::move(fd), std::move(mapping));
  }

 private:
  UffdOps ops_{.modes = {UffdMode::missing, UffdMode::minor}, .ioctls = {UffdIoctl::continue_, UffdIoctl::poison}};
};

}  // namespace

std::unique_ptr<MemoryType> without_hook(std::unique_ptr<MemoryType> type) {
  return std::make_unique<WithoutHook>(std::move(type));
}

std::unique_ptr<MemoryType> make_in_place_type() { return std::make_unique<InPlaceType>(); }

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
