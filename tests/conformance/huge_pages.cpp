// Page tables with entries of 2 MiB: MOVE of a whole one and of parts (the kernel's move-pmd and move-pmd-split), and
// MADV_COLLAPSE of memory that is watched (minor-collapse). What can be seen must be the same on the kernel's
// userfaultfd and on uffda's.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <array>
#include <cerrno>
#include <functional>
#include <future>

#include "conformance/real_world.h"
#include "os/kernel_abi.h"
#include "os/memory.h"

#ifndef MADV_COLLAPSE  // 6.1
#define MADV_COLLAPSE 25
#endif

namespace uffda::conformance {
namespace {

using Lines = std::vector<std::string>;
constexpr ByteCount kHuge = 2_MiB;

Address aligned(Address address) { return {align_up(address.value, kHuge.value)}; }

/// How much of a range the page table holds in entries of 2 MiB.
ByteCount huge_part(Address start, ByteCount length) {
  constexpr std::uint64_t kIsHuge = 1U << 6U;
  const os::UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  std::array<page_region, 16> found{};
  pm_scan_arg request{};
  request.size = sizeof request;
  request.start = start.value;
  request.end = (start + length).value;
  request.vec = reinterpret_cast<std::uintptr_t>(found.data());
  request.vec_len = found.size();
  request.category_mask = kIsHuge;
  request.return_mask = kIsHuge;
  const int count = ::ioctl(pagemap.get(), PAGEMAP_SCAN, &request);
  ByteCount sum;
  for (int i = 0; i < count; ++i)
    sum += ByteCount{found.at(static_cast<std::size_t>(i)).end - found.at(static_cast<std::size_t>(i)).start};
  return sum;
}

std::byte pattern(std::uint64_t page) { return static_cast<std::byte>(page * 7 + 1); }

/// What the pages from `start` on say of which page of the pattern they are; where it changes.
std::string contents(Address start, std::uint64_t pages, std::uint64_t first) {
  for (std::uint64_t page = 0; page < pages; ++page) {
    const std::byte* const at = pointer(start + kPageSize * page);
    if (at[5] != pattern(first + page) || at[4000] != pattern(first + page)) return fmt::format("wrong at {}", page);
  }
  return "right";
}

void write_pattern(Address start, std::uint64_t pages) {
  for (std::uint64_t page = 0; page < pages; ++page)
    std::fill_n(pointer(start + kPageSize * page), kPageSize.value, pattern(page));
}

std::string said(const UffdOutcome& outcome) {
  return fmt::format("error {} field {}", outcome.error, outcome.done.value_or(-9999));
}

class HugePages : public testing::Test {
 protected:
  /// Both must say the same. Skipped where either cannot be had.
  static void compare(const Kind& kind, const std::function<Lines(World&)>& act) {
    std::string why;
    const auto kernel = kernel_world(kind, why);
    const auto here = uffda_world(kind, why);
    if (!kernel || !here) GTEST_SKIP() << why;
    const Lines expected = act(*kernel);
    if (expected.empty()) GTEST_SKIP() << "no transparent huge pages (/sys/kernel/mm/transparent_hugepage/enabled)";
    EXPECT_EQ(act(*here), expected);
  }
};

TEST_F(HugePages, MoveTakesThemWholeAndInParts) {
  compare({"anon", "anon", kHuge, Access::private_}, [](World& world) -> Lines {
    constexpr ResolveFlags kHoles = ResolveFlag::allow_src_holes;
    const auto area = *os::map_memory(kHuge * 5, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    const Address from = aligned(area.address());
    const Address to = aligned(world.page(0));
    ::madvise(pointer(from), (kHuge * 4).value, MADV_HUGEPAGE);
    ::madvise(pointer(to), (kHuge * 4).value, MADV_HUGEPAGE);
    write_pattern(from, 4 * 512);
    if (huge_part(from, kHuge * 4) != kHuge * 4) return {};
    Lines lines;
    const Registered registered = world.register_range(world.page(0), kHuge * kPages, UFFDIO_REGISTER_MODE_MISSING);
    lines.push_back(fmt::format("register: {}", registered.error));
    const auto move = [&](ByteCount at, ByteCount source, ByteCount length, ResolveFlags flags) {
      lines.push_back(said(world.move(to + at, from + source, length, flags)));
    };
    move({}, {}, kHuge, {});
    lines.push_back(fmt::format("whole: {} stay huge", huge_part(to, kHuge).value));
    lines.push_back(contents(to, 512, 0));
    move({}, kHuge, kHuge, {});                     // there is something
    move(kHuge * 2 + kPageSize, kHuge, kHuge, {});  // to where no huge page can be
    lines.push_back(contents(to + kHuge * 2 + kPageSize, 512, 512));
    for (std::uint64_t part = 0; part < 4; ++part)
      move(kHuge + 512_KiB * part, kHuge * 2 + 512_KiB * part, 512_KiB, {});
    lines.push_back(fmt::format("parts: {} are huge", huge_part(to + kHuge, kHuge).value));
    lines.push_back(contents(to + kHuge, 512, 1024));
    move(kHuge * 4, kHuge * 2, kHuge, {});      // nothing is left there
    move(kHuge * 4, kHuge * 2, kHuge, kHoles);  // which does not matter
    move(kHuge * 4, kHuge * 2, kHuge * 2, kHoles);
    lines.push_back(contents(to + kHuge * 5, 512, 1536));
    lines.push_back(fmt::format("source: {}", static_cast<int>(*pointer(from + kHuge * 3 + ByteCount{5}))));
    return lines;
  });
}

/// Touches a page; what a monitor that maps everything anew hears.
void touch_and_continue(World& world, Address start, Address page, Lines& lines) {
  auto touched =
      std::async(std::launch::async, [page] { return *const_cast<const volatile std::byte*>(pointer(page)); });
  while (touched.wait_for(std::chrono::microseconds(100)) != std::future_status::ready) {
    for (const uffd_msg& message : world.read()) {
      lines.push_back(fmt::format("fault at {} flags {:#x}", message.arg.pagefault.address - start.value,
                                  message.arg.pagefault.flags));
      lines.push_back(said(world.continue_(start, kHuge, {})));
    }
  }
  lines.push_back(fmt::format("reads {}", static_cast<int>(touched.get())));
}

class Collapse : public HugePages, public testing::WithParamInterface<Access> {
 protected:
  static Kind kind() { return {"shmem", "shmem", kHuge, GetParam()}; }
  /// Another mapping of the first huge page, aligned as one must be.
  static std::byte* alias(World& world) {
    const Address at = aligned(aside().address());
    void* const mapped =
        ::mmap(pointer(at), kHuge.value, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, world.descriptor(), 0);
    return mapped == MAP_FAILED ? nullptr : static_cast<std::byte*>(mapped);
  }
  static os::MappedMemory& aside() {
    static os::MappedMemory memory = *os::map_memory(kHuge * 2, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
    return memory;
  }
  static std::string collapse(std::byte* at) {
    return fmt::format("collapse: {}", ::madvise(at, kHuge.value, MADV_COLLAPSE) == 0 ? 0 : errno);
  }
};

TEST_P(Collapse, IsAMinorFaultMoreAndTheSameBytes) {
  compare(kind(), [](World& world) -> Lines {
    const Address start = world.page(0);
    for (std::uint64_t page = 0; page < 512; ++page)
      std::fill_n(pointer(world.other() + kPageSize * page), kPageSize.value, pattern(page));
    Lines lines;
    const auto registered = world.register_range(start, kHuge * kPages, UFFDIO_REGISTER_MODE_MINOR);
    lines.push_back(fmt::format("register: {}", registered.error));
    touch_and_continue(world, start, start + kPageSize * 3, lines);
    std::byte* const other = alias(world);
    if (other == nullptr) return {};
    lines.push_back(collapse(other));
    lines.push_back(fmt::format(
        "huge: {}",
        (other[0] == pattern(0) ? huge_part({reinterpret_cast<std::uintptr_t>(other)}, kHuge) : ByteCount{}).value));
    touch_and_continue(world, start, start + kPageSize * 3, lines);
    lines.push_back(contents(start, 512, 0));
    return lines;
  });
}

TEST_P(Collapse, DoesNotFillWhatIsAbsent) {
  compare(kind(), [](World& world) -> Lines {
    const Address start = world.page(0);
    for (std::uint64_t page = 0; page < 512; page += 2)
      std::fill_n(pointer(world.other() + kPageSize * page), kPageSize.value, pattern(page));
    Lines lines;
    const auto registered =
        world.register_range(start, kHuge * kPages, UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_MISSING);
    lines.push_back(fmt::format("register: {}", registered.error));
    std::byte* const other = alias(world);
    if (other == nullptr) return {};
    lines.push_back(collapse(other));
    auto touched = std::async(std::launch::async,
                              [at = pointer(start + kPageSize)] { return *const_cast<const volatile std::byte*>(at); });
    const std::vector<std::byte> bytes(kPageSize.value, pattern(1));
    while (touched.wait_for(std::chrono::microseconds(100)) != std::future_status::ready) {
      for (const uffd_msg& message : world.read()) {
        lines.push_back(fmt::format("flags {:#x}", message.arg.pagefault.flags));
        lines.push_back(said(world.copy(start + kPageSize, bytes.data(), kPageSize, {})));
      }
    }
    lines.push_back(fmt::format("reads {}", static_cast<int>(touched.get())));
    return lines;
  });
}

INSTANTIATE_TEST_SUITE_P(Shmem, Collapse, testing::Values(Access::shared, Access::private_),
                         [](const auto& info) { return info.param == Access::shared ? "shared" : "private"; });

}  // namespace
}  // namespace uffda::conformance
