// A memfd as page cache, in folios of a page, or (`shmem-2m`) of 2 MiB for clients whose own pages are huge: those get
// copies, and never map it. Filled by one pwrite of whole folios from a resident buffer (pitfall 2): cheaper than
// copying through a mapping, atomic for whoever reads, and it overwrites zero pages that an unregistered mapping may
// have left.
#include "memtypes/builtin.h"
#include "mm/memory_object.h"
#include "os/memory.h"

namespace uffda {
namespace {

constexpr UffdOps kShmemOps{
    .modes = {UffdMode::missing, UffdMode::minor, UffdMode::wp},
    .ioctls = {UffdIoctl::copy, UffdIoctl::zeropage, UffdIoctl::writeprotect, UffdIoctl::continue_, UffdIoctl::poison},
    .get_folio = [](MemoryObject& object, FolioIndex index) { return object.find_folio(index); },
};

class ShmemBacking final : public Backing {
 public:
  ShmemBacking(os::UniqueFd fd, ByteCount size, ByteCount folio) : fd_(std::move(fd)), size_(size), folio_(folio) {}

  Result<void> publish(ByteRange range, std::span<const std::byte> bytes) override {
    return os::write_at(fd_.get(), range.start, bytes);
  }

  Result<void> drop(ByteRange range) override {
    // A hole frees whole pages only; the last one ends with the object.
    if (range.end().value == size_.value)
      range.length.value = align_up(range.end().value, kPageSize.value) - range.start.value;
    return os::punch_hole(fd_.get(), range);
  }

  Result<void> read(ByteOffset offset, std::span<std::byte> bytes) override {
    return os::read_at(fd_.get(), offset, bytes);
  }
  Result<void> write(ByteOffset offset, std::span<const std::byte> bytes) override {
    return os::write_at(fd_.get(), offset, bytes);
  }
  Result<os::UniqueFd> share() override {
    UFFDA_TRY_VOID(check_shareable());
    return os::reopen_read_only(fd_.get());
  }
  Result<os::UniqueFd> share_writable() override {
    UFFDA_TRY_VOID(check_shareable());
    return os::reopen_writable(fd_.get());
  }
  [[nodiscard]] int mapping_fd() const override { return fd_.get(); }

 private:
  /// The kernel's pages are smaller than such a folio: what maps them maps parts of it.
  [[nodiscard]] Result<void> check_shareable() const {
    if (folio_ == kPageSize) return {};
    return fail(Errc::unsupported, "folios of 2 MiB in ordinary pages are for copies, and cannot be mapped");
  }

  os::UniqueFd fd_;
  ByteCount size_;
  ByteCount folio_;
};

class ShmemType final : public MemoryType {
 public:
  ShmemType(std::string_view name, ByteCount folio) : name_(name), folio_(folio) {}

  [[nodiscard]] std::string_view name() const override { return name_; }
  [[nodiscard]] const UffdOps* ops() const override { return &kShmemOps; }
  [[nodiscard]] ByteCount folio_size() const override { return folio_; }
  Result<std::unique_ptr<Backing>> create(ByteCount size, const std::string& name) const override {
    const std::string label = "uffda:" + name.substr(0, 200);  // memfd names end at 249 bytes
    return std::make_unique<ShmemBacking>(UFFDA_TRY(os::create_memfd(label, size)), size, folio_);
  }
  Result<std::unique_ptr<Backing>> adopt(ByteCount size, os::UniqueFd fd) const override {
    return std::make_unique<ShmemBacking>(std::move(fd), size, folio_);
  }

 private:
  std::string_view name_;
  ByteCount folio_;
};

}  // namespace

std::unique_ptr<MemoryType> make_shmem_type() { return std::make_unique<ShmemType>("shmem", kPageSize); }
std::unique_ptr<MemoryType> make_shmem_2m_type() { return std::make_unique<ShmemType>("shmem-2m", 2_MiB); }

}  // namespace uffda
