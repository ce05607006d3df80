// The kernel's userfaultfd, by its ioctls.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>

#include "conformance/real_world.h"
#include "os/guest_memory.h"
#include "os/kernel_abi.h"
#include "os/memory.h"
#include "os/userfault.h"

namespace uffda::conformance {
namespace {

constexpr std::int64_t kUntouched = 0x5ca1ab1e;

class KernelWorld final : public RealWorld {
 public:
  KernelWorld(const Kind& kind, os::UniqueFd memory, std::unique_ptr<os::Userfault> userfault)
      : RealWorld(kind), memory_(std::move(memory)), userfault_(std::move(userfault)) {
    const ByteCount length = unit() * kPages;
    const int fd = memory_.get();
    const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : kind.access == Access::private_ ? MAP_PRIVATE : MAP_SHARED;
    mapping_ = *os::map_memory(length, PROT_READ | PROT_WRITE, flags, fd);
    monitors(mapping_.bytes());
    if (fd < 0) {
      // Parts of it merge again only if they have the anon_vma of one mapping, which the first write makes.
      mapping_.bytes().front() = std::byte{1};
      ::madvise(mapping_.bytes().data(), length.value, MADV_DONTNEED);
      return;
    }
    copies_ = kind.access == Access::private_;
    tracked_only_ = std::string_view(kind.type) == "guest_memfd";
    second_ = *os::map_memory(length, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    other_ = second_.address();
  }

  Registered register_range(Address start, ByteCount length, std::uint64_t modes) override {
    uffdio_register request{.range = {start.value, length.value}, .mode = modes, .ioctls = 0};
    if (::ioctl(userfault_->fd(), UFFDIO_REGISTER, &request) != 0) return {.error = errno, .ioctls = 0};
    // It names what it then refuses, where it is asked to track writes of memory that it does not know.
    if (tracked_only_) request.ioctls &= 1U << _UFFDIO_WAKE | 1U << _UFFDIO_WRITEPROTECT;
    return {.error = 0, .ioctls = request.ioctls};
  }
  int unregister_range(Address start, ByteCount length) override {
    uffdio_range request{start.value, length.value};
    return ::ioctl(userfault_->fd(), UFFDIO_UNREGISTER, &request) == 0 ? 0 : errno;
  }
  UffdOutcome copy(Address to, const void* from, ByteCount length, ResolveFlags flags) override {
    uffdio_copy request{.dst = to.value,
                        .src = reinterpret_cast<std::uintptr_t>(from),
                        .len = length.value,
                        .mode = mode_of(flags, {ResolveFlag::wp}),
                        .copy = kUntouched};
    return run(UFFDIO_COPY, request, request.copy);
  }
  UffdOutcome zeropage(Address start, ByteCount length, ResolveFlags flags) override {
    uffdio_zeropage request{.range = {start.value, length.value}, .mode = mode_of(flags, {}), .zeropage = kUntouched};
    return run(UFFDIO_ZEROPAGE, request, request.zeropage);
  }
  UffdOutcome continue_(Address start, ByteCount length, ResolveFlags flags) override {
    uffdio_continue request{
        .range = {start.value, length.value}, .mode = mode_of(flags, {ResolveFlag::wp}), .mapped = kUntouched};
    return run(UFFDIO_CONTINUE, request, request.mapped);
  }
  UffdOutcome poison(Address start, ByteCount length, ResolveFlags flags) override {
    uffdio_poison request{.range = {start.value, length.value}, .mode = mode_of(flags, {}), .updated = kUntouched};
    return run(UFFDIO_POISON, request, request.updated);
  }
  UffdOutcome move(Address to, Address from, ByteCount length, ResolveFlags flags) override {
    uffdio_move request{.dst = to.value,
                        .src = from.value,
                        .len = length.value,
                        .mode = mode_of(flags, {ResolveFlag::allow_src_holes}),
                        .move = kUntouched};
    return run(UFFDIO_MOVE, request, request.move);
  }
  UffdOutcome writeprotect(Address start, ByteCount length, ResolveFlags flags) override {
    uffdio_writeprotect request{.range = {start.value, length.value}, .mode = writeprotect_mode_of(flags)};
    return {.error = ::ioctl(userfault_->fd(), UFFDIO_WRITEPROTECT, &request) == 0 ? 0 : errno, .done = {}};
  }
  UffdOutcome wake(Address start, ByteCount length) override {
    uffdio_range request{start.value, length.value};
    return {.error = ::ioctl(userfault_->fd(), UFFDIO_WAKE, &request) == 0 ? 0 : errno, .done = {}};
  }
  Written written(Address start, ByteCount length, Rearm rearm) override {
    Written result;
    const os::UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
    std::vector<page_region> found(32);
    pm_scan_arg request{};
    request.size = sizeof request;
    request.flags = PM_SCAN_CHECK_WPASYNC | (rearm == Rearm::yes ? PM_SCAN_WP_MATCHING : 0);
    request.start = start.value;
    request.end = (start + length).value;
    request.vec = reinterpret_cast<std::uintptr_t>(found.data());
    request.vec_len = found.size();
    request.category_mask = PAGE_IS_WRITTEN;
    request.return_mask = PAGE_IS_WRITTEN;
    const int count = ::ioctl(pagemap.get(), PAGEMAP_SCAN, &request);
    if (count < 0) result.error = errno;
    for (int i = 0; i < count; ++i) {
      const page_region& region = found.at(static_cast<std::size_t>(i));
      result.ranges.push_back({.start = {region.start}, .length = {region.end - region.start}});
    }
    return result;
  }
  [[nodiscard]] int descriptor() const override { return memory_.get(); }
  std::vector<uffd_msg> read() override {
    std::vector<uffd_msg> messages(32);
    const ssize_t size = ::read(userfault_->fd(), messages.data(), messages.size() * sizeof(uffd_msg));
    messages.resize(size > 0 ? static_cast<std::size_t>(size) / sizeof(uffd_msg) : 0);
    return messages;
  }
  void settle() override {}

 private:
  template <typename Request>
  UffdOutcome run(unsigned long number, Request& request, const __s64& field) {
    const int error = ::ioctl(userfault_->fd(), number, &request) == 0 ? 0 : errno;
    return {.error = error, .done = field == kUntouched ? std::nullopt : std::optional<std::int64_t>(field)};
  }

  bool tracked_only_ = false;
  os::UniqueFd memory_;
  os::MappedMemory mapping_;
  os::MappedMemory second_;
  std::unique_ptr<os::Userfault> userfault_;  // goes first: unmapping would wait for its events to be read
};

Result<os::UniqueFd> make_memory(const Kind& kind) {
  const std::string_view type(kind.type);
  const ByteCount length = kind.unit * kPages;
  if (type == "anon") return os::UniqueFd();
  if (type == "guest_memfd") return os::create_guest_memfd(length, os::kThrowAwayMachine);
  return type == "hugetlb" ? os::create_hugetlb_memfd("conformance", length, kind.unit)
                           : os::create_memfd("conformance", length);
}

}  // namespace

std::vector<Kind> kinds_with(UffdFeature feature, const std::string& suffix) {
  std::vector<Kind> all = kinds();
  for (Kind& kind : all) {
    kind.name += suffix;
    kind.features = kind.features | feature;
  }
  return all;
}

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> kKinds{{"anon", "anon", kPageSize, Access::private_},
                                        {"shmem", "shmem", kPageSize, Access::shared},
                                        {"shmem_private", "shmem", kPageSize, Access::private_},
                                        {"hugetlb", "hugetlb", 2_MiB, Access::shared},
                                        {"hugetlb_private", "hugetlb", 2_MiB, Access::private_}};
  return kKinds;
}

namespace {
constexpr const char* kPool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
}

Pages::Pages(const Kind& kind) {
  if (kind.unit == kPageSize) return;
  constexpr std::uint64_t kNeeded = 4 * kPages;
  std::uint64_t before = 0;
  std::ifstream(kPool) >> before;
  before_ = std::to_string(before);
  std::ofstream(kPool) << before + kNeeded << std::flush;
  std::uint64_t now = 0;
  std::ifstream(kPool) >> now;
  if (now < before + kNeeded)
    why = fmt::format("{} more huge pages of 2 MiB cannot be had ({} says {})", kNeeded, kPool, now);
}

Pages::~Pages() {
  if (!before_.empty()) std::ofstream(kPool) << before_;
}

std::unique_ptr<World> kernel_world(const Kind& kind, std::string& why) {
  auto userfault = os::open_userfault({.features = kind.features.bits()});
  auto memory = make_memory(kind);
  if (!userfault || !memory) {
    why = userfault ? memory.error().message() : userfault.error().message();
    return nullptr;
  }
  return std::make_unique<KernelWorld>(kind, std::move(*memory), std::move(*userfault));
}

}  // namespace uffda::conformance
