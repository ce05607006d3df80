// What a cached fault may cost in memory: nothing. One million of them, by handler threads and in the faulting thread,
// with every allocation of every thread of this program counted; and what an object needs for each of its folios.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

#include "memtypes/builtin.h"
#include "mm/core.h"
#include "mm/memory_object.h"
#include "monitors/prefetch_tracker.h"
#include "monitors/working_set_recorder.h"
#include "support/test_support.h"
#include "uffda/uffda.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<std::uint64_t> allocations{0};
std::atomic<std::uint64_t> allocated_bytes{0};

[[maybe_unused]] void count(std::size_t size) {
  if (!counting.load(std::memory_order_relaxed)) return;
  allocations.fetch_add(1, std::memory_order_relaxed);
  allocated_bytes.fetch_add(size, std::memory_order_relaxed);
}

/// Counts while it lives.
struct Counting {
  Counting() {
    allocations = 0;
    allocated_bytes = 0;
    counting = true;
  }
  ~Counting() { counting = false; }
  Counting(const Counting&) = delete;
  Counting& operator=(const Counting&) = delete;
};

}  // namespace

// The program's malloc is ours, for operator new and for the C library alike. Sanitizers bring their own.
#if !defined(UFFDA_SANITIZED)
constexpr bool kCounted = true;
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

void* malloc(std::size_t size) {
  count(size);
  return __libc_malloc(size);
}
void* calloc(std::size_t members, std::size_t size) {
  count(members * size);
  return __libc_calloc(members, size);
}
void* realloc(void* old, std::size_t size) {
  count(size);
  return __libc_realloc(old, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  count(size);
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** result, std::size_t alignment, std::size_t size) {
  count(size);
  *result = __libc_memalign(alignment, size);
  return *result == nullptr ? ENOMEM : 0;
}
}
#else
constexpr bool kCounted = false;
#endif

namespace uffda {
namespace {

constexpr std::uint64_t kFaults = 1'000'000;
constexpr std::uint64_t kFolios = 8192;
constexpr ByteCount kSize{kFolios * 4096};

class CachedFaults : public testing::TestWithParam<HandlerPolicy> {};

TEST_P(CachedFaults, AMillionOfThemAllocateNothing) {
  if (!kCounted) GTEST_SKIP() << "a sanitizer's malloc cannot be counted";
  auto engine = Engine::create({.handlers = GetParam()});
  if (!engine && engine.error().code() == Errc::permission_denied) GTEST_SKIP() << engine.error().message();
  ASSERT_TRUE(engine) << engine.error().message();
  auto memory = engine->map(test::pattern_source(kSize));
  ASSERT_TRUE(memory) << memory.error().message();
  ASSERT_TRUE(memory->populate({.start = {0}, .length = kSize}, Deadline::after(std::chrono::minutes(2))));
  const std::byte* const data = memory->bytes().data();

  const std::uint64_t before = engine->report().faults_cached;
  std::uint64_t wrong = 0;
  std::uint64_t passes = 0;
  {
    const Counting here;
    while (engine->report().faults_cached - before < kFaults) {
      ASSERT_EQ(::madvise(const_cast<std::byte*>(data), kSize.value, MADV_DONTNEED), 0);
      // Far apart, so that each touch is a fault of its own; every 64th pass in order, for the faults that map
      // neighbours.
      const std::uint64_t step = ++passes % 64 == 0 ? 1 : 3001;
      for (std::uint64_t i = 0; i < kFolios; ++i) {
        const std::uint64_t at = i * step % kFolios * 4096;
        wrong += static_cast<std::uint64_t>(data[at] != test::Pattern::at(at));
      }
    }
  }
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(allocations.load(), 0U) << allocated_bytes.load() << " bytes, in " << passes << " passes";
}

INSTANTIATE_TEST_SUITE_P(Policies, CachedFaults, testing::Values(HandlerPolicy::per_cpu, HandlerPolicy::in_thread),
                         [](const auto& policy) {
                           return policy.param == HandlerPolicy::per_cpu ? "per_cpu" : "in_thread";
                         });

TEST(Observers, RecordingATouchAndCountingAHitAllocateNothing) {
  if (!kCounted) GTEST_SKIP() << "a sanitizer's malloc cannot be counted";
  auto core = Core::create({});
  ASSERT_TRUE(core) << core.error().message();
  ASSERT_TRUE(register_builtin_types((*core)->types()));
  const auto object = (*core)->create_object(test::pattern_source(kSize));
  ASSERT_TRUE(object) << object.error().message();
  const auto recorder = WorkingSetRecorder::create(**object, "it");
  const std::vector<FolioRange> wanted{{0, kFolios / 2}};
  const auto tracker = PrefetchTracker::create(kFolios, wanted);
  ASSERT_TRUE(recorder && tracker);
  ASSERT_TRUE((*object)->observe(*recorder));
  ASSERT_TRUE((*object)->observe(*tracker));
  {
    const Counting here;
    (*tracker)->prefetched(wanted.front());
    for (std::uint64_t i = 0; i < kFaults; ++i)
      (*object)->note_touched({.first = i * 3001 % kFolios, .count = 1 + i % 64});
  }
  EXPECT_EQ(allocations.load(), 0U) << allocated_bytes.load() << " bytes";
  EXPECT_GT((*recorder)->runs(), 100U);
  EXPECT_EQ((*tracker)->counts().hits, kFolios / 2);
}

/// Bytes of the memfds that hold folio states. Their size, not what of it is resident: the bound must hold for a full
/// object.
std::uint64_t state_memfd_bytes() {
  std::uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;  // the iterator's own descriptor
    const std::string target = std::filesystem::read_symlink(entry.path(), gone).string();
    if (target.find("memfd:uffda-states") == std::string::npos) continue;
    struct stat status{};
    if (::stat(entry.path().c_str(), &status) == 0) bytes += static_cast<std::uint64_t>(status.st_size);
  }
  return bytes;
}

TEST(MemoryOfAnObject, IsTwoBytesAFolioAndAFixedPart) {
  if (!kCounted) GTEST_SKIP() << "a sanitizer's malloc cannot be counted";
  auto core = Core::create({});
  ASSERT_TRUE(core) << core.error().message();
  ASSERT_TRUE(register_builtin_types((*core)->types()));
  constexpr std::uint64_t kMany = std::uint64_t{1} << 24U;  // 64 GiB of 4 KiB
  constexpr std::uint64_t kFixed = std::uint64_t{128} << 10U;
  const std::uint64_t states_before = state_memfd_bytes();
  std::optional<Counting> here(std::in_place);
  const auto object = (*core)->create_object(test::pattern_source({kMany * 4096}));
  const std::uint64_t heap = allocated_bytes.load();
  here.reset();
  ASSERT_TRUE(object) << object.error().message();
  const std::uint64_t states = state_memfd_bytes() - states_before;
  EXPECT_EQ(states, 2 * kMany + 4096) << "and a page of counts";
  EXPECT_LE(states + heap, 2 * kMany + kFixed) << heap << " bytes on the heap";
}

}  // namespace
}  // namespace uffda
