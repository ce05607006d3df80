// Huge pages: a memfd with MFD_HUGETLB, folios of 2 MiB (`hugetlb`) or 1 GiB (`hugetlb-1g`).
//
// The pages of an object are taken from the kernel's pool when it is made, and stay reserved for it: no fault fails for
// want of a page. The last folio is whole; behind the end of the source it is zero.
//
// Folios of 2 MiB are filled by UFFDIO_COPY through a mapping and a userfaultfd of the backing's own, which have
// nothing to do with those that the core resolves faults with: whoever maps the folio sees nothing of it or all of it.
// Nobody can touch that mapping (PROT_NONE), so it raises no faults. The kernel says EEXIST if the cache has a page
// there, which somebody's unregistered mapping has left, and also if the pool is empty: never is that success (pitfall
// 2).
//
// Folios of 1 GiB are filled in place, through a mapping that is not registered: a registered one shows nothing of them
// before the core says CONTINUE, because what it touches there is a MINOR fault.
//
// A hole that is punched takes along what private mappings have copied on write (Linux 6.18; shmem leaves it alone),
// and with the hole goes the reservation of its pages.
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include "memtypes/builtin.h"
#include "mm/memory_object.h"
#include "os/memory.h"
#include "os/probe.h"
#include "os/userfault.h"

namespace uffda {
namespace {

constexpr UffdOps kHugetlbOps{
    .modes = {UffdMode::missing, UffdMode::minor, UffdMode::wp},
    .ioctls = {UffdIoctl::copy, UffdIoctl::writeprotect, UffdIoctl::continue_, UffdIoctl::poison},
    .get_folio = [](MemoryObject& object, FolioIndex index) { return object.find_folio(index); },
};

Error no_pages(ByteCount size, ByteCount page) {
  const std::uint64_t needed = size.value / page.value;
  for (const os::HugepagePool& pool : os::probe_hugepages()) {
    if (pool.page_size != page) continue;
    return Error(Errc::no_memory, fmt::format("{} huge pages of {} MiB are needed, and {} are free: echo {} >{} (root)",
                                              needed, page.value >> 20U, pool.available(),
                                              pool.total + needed - pool.available(), pool.setting));
  }
  return Error(Errc::unsupported, fmt::format("this machine has no huge pages of {} MiB", page.value >> 20U));
}

/// What both sizes have in common. `mapping` is MAP_SHARED and spans the file: it is what reserves the pages.
class HugetlbBacking : public Backing {
 public:
  HugetlbBacking(os::UniqueFd fd, os::MappedMemory mapping, ByteCount folio)
      : fd_(std::move(fd)), mapping_(std::move(mapping)), folio_(folio) {}

  Result<void> drop(ByteRange range) override {
    const std::uint64_t end = align_up(range.end().value, folio_.value);
    const ByteRange folios{.start = range.start, .length = ByteOffset{end} - range.start};
    UFFDA_TRY_VOID(os::punch_hole(fd_.get(), folios));
    // Mapping a shared range reserves its pages, and they stay reserved. If somebody was quicker, filling says so.
    [[maybe_unused]] const auto reserved =
        os::map_memory(folios.length, PROT_NONE, MAP_SHARED, fd_.get(), folios.start);
    return {};
  }
  Result<void> read(ByteOffset offset, std::span<std::byte> bytes) override {
    return os::read_at(fd_.get(), offset, bytes);
  }
  Result<void> write(ByteOffset offset, std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ByteOffset start{align_down(offset.value, folio_.value)};
      const os::MappedMemory memory =
          UFFDA_TRY(os::map_memory(folio_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), start));
      const std::span<std::byte> rest = memory.bytes().subspan(offset.value - start.value);
      const std::span<const std::byte> part = bytes.first(std::min(bytes.size(), rest.size()));
      std::ranges::copy(part, rest.begin());
      offset = offset + ByteCount{part.size()};
      bytes = bytes.subspan(part.size());
    }
    return {};
  }
  Result<os::UniqueFd> share() override { return os::reopen_read_only(fd_.get()); }
  [[nodiscard]] bool private_copies_outlive_drop() const override { return false; }
  [[nodiscard]] int mapping_fd() const override { return fd_.get(); }

 protected:
  [[nodiscard]] ByteCount folio() const { return folio_; }
  [[nodiscard]] const os::MappedMemory& mapping() const { return mapping_; }

 private:
  os::UniqueFd fd_;
  os::MappedMemory mapping_;
  ByteCount folio_;
};

class CopiedBacking final : public HugetlbBacking {
 public:
  static constexpr int kProtection = PROT_NONE;

  static Result<std::unique_ptr<Backing>> create(os::UniqueFd fd, os::MappedMemory mapping, ByteCount folio) {
    auto userfault =
        UFFDA_TRY(os::open_userfault({.features = UFFD_FEATURE_MISSING_HUGETLBFS, .user_mode_fallback = true}));
    const ByteCount length{mapping.bytes().size()};
    UFFDA_TRY(userfault->register_range(mapping.address(), length, UffdMode::missing));
    return std::make_unique<CopiedBacking>(std::move(fd), std::move(mapping), folio, std::move(userfault));
  }
  CopiedBacking(os::UniqueFd fd, os::MappedMemory mapping, ByteCount folio, std::unique_ptr<os::Userfault> userfault)
      : HugetlbBacking(std::move(fd), std::move(mapping), folio), userfault_(std::move(userfault)) {}

  Result<void> publish(ByteRange range, std::span<const std::byte> bytes) override {
    while (bytes.size() >= folio().value) {
      UFFDA_TRY_VOID(copy(range.start, bytes.first(folio().value)));
      range.start = range.start + folio();
      bytes = bytes.subspan(folio().value);
    }
    if (bytes.empty()) return {};
    const os::MappedMemory whole =
        UFFDA_TRY(os::map_memory(folio(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS));
    std::ranges::copy(bytes, whole.bytes().begin());
    return copy(range.start, whole.bytes());
  }

 private:
  static constexpr int kAttempts = 8;  // each means that somebody else put a page there meanwhile

  Result<void> copy(ByteOffset offset, std::span<const std::byte> bytes) {
    const Address to{mapping().address().value + offset.value};
    for (int attempt = 0; attempt < kAttempts;) {
      const os::Progress progress = userfault_->copy(to, bytes, os::Wake::no, os::Protect::no);
      if (progress.error == 0) return {};
      if (progress.error == EAGAIN || progress.error == EINTR) continue;
      if (progress.error != EEXIST && progress.error != ENOMEM) return fail_errno(progress.error, "UFFDIO_COPY");
      ++attempt;
      UFFDA_TRY_VOID(drop({.start = offset, .length = folio()}));
    }
    return std::unexpected(no_pages(folio(), folio()));
  }

  std::unique_ptr<os::Userfault> userfault_;
};

class InPlaceBacking final : public HugetlbBacking {
 public:
  static constexpr int kProtection = PROT_READ | PROT_WRITE;

  static Result<std::unique_ptr<Backing>> create(os::UniqueFd fd, os::MappedMemory mapping, ByteCount folio) {
    return std::make_unique<InPlaceBacking>(std::move(fd), std::move(mapping), folio);
  }
  using HugetlbBacking::HugetlbBacking;

  Result<std::span<std::byte>> in_place(ByteRange range) override {
    UFFDA_TRY_VOID(os::populate_memory(folios_of(range)));
    return mapping().bytes().subspan(range.start.value, range.length.value);
  }

  Result<void> publish(ByteRange range, std::span<const std::byte> bytes) override {
    const std::span<std::byte> memory = UFFDA_TRY(in_place(range));
    if (memory.data() != bytes.data()) std::ranges::copy(bytes, memory.begin());
    std::ranges::fill(folios_of(range).subspan(bytes.size()), std::byte{0});
    return {};
  }

 private:
  [[nodiscard]] std::span<std::byte> folios_of(ByteRange range) const {
    const std::uint64_t length = align_up(range.length.value, folio().value);
    return mapping().bytes().subspan(range.start.value, length);
  }
};

template <typename Kind>
class HugetlbType final : public MemoryType {
 public:
  HugetlbType(std::string_view name, ByteCount folio) : name_(name), folio_(folio) {}

  [[nodiscard]] std::string_view name() const override { return name_; }
  [[nodiscard]] const UffdOps* ops() const override { return &kHugetlbOps; }
  [[nodiscard]] ByteCount folio_size() const override { return folio_; }
  Result<std::unique_ptr<Backing>> create(ByteCount size, const std::string& name) const override {
    const std::string label = "uffda:" + name.substr(0, 200);  // memfd names end at 249 bytes
    const ByteCount whole{align_up(size.value, folio_.value)};
    os::UniqueFd fd = UFFDA_TRY(os::create_hugetlb_memfd(label, whole, folio_));
    auto mapping = os::map_memory(whole, Kind::kProtection, MAP_SHARED, fd.get());
    if (!mapping) {
      return std::unexpected(mapping.error().sys_errno() == ENOMEM ? no_pages(whole, folio_) : mapping.error());
    }
    if (::madvise(mapping->bytes().data(), whole.value, MADV_DONTFORK) != 0) return fail_errno(errno, "madvise");
    return Kind::create(std::move(fd), std::move(*mapping), folio_);
  }

 private:
  std::string_view name_;
  ByteCount folio_;
};

}  // namespace

std::unique_ptr<MemoryType> make_hugetlb_type() {
  return std::make_unique<HugetlbType<CopiedBacking>>("hugetlb", 2_MiB);
}
std::unique_ptr<MemoryType> make_hugetlb_1g_type() {
  return std::make_unique<HugetlbType<InPlaceBacking>>("hugetlb-1g", 1_GiB);
}

}  // namespace uffda
