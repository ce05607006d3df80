// Readers that poll a client's userfaultfd: a flood of one kind of event does not wake all of them.
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>

#include <algorithm>

#include "memtypes/builtin.h"
#include "support/kernel_threads.h"
#include "support/mm_kernel.h"
#include "support/test_support.h"

namespace uffda::test {
namespace {

constexpr std::uint64_t kBalloonPages = 1024;
constexpr std::uint64_t kRemoves = 16'384;

/// Gives back page after page when it is told to, and looks at all of them afterwards.
int give_back_pages(int socket) {
  const auto memory = client_map(socket, UFFD_FEATURE_EVENT_REMOVE);
  if (!memory || !receive_note(socket)) return 10;
  for (std::uint64_t i = 0; i < kRemoves; ++i) {
    if (::madvise(memory->data + i % kBalloonPages * kPageSize.value, kPageSize.value, MADV_DONTNEED) != 0) return 11;
  }
  if (!send_note(socket, {}) || !receive_note(socket)) return 12;
  return Pattern::mismatch({memory->data, memory->size}, 0) ? 1 : 0;
}

TEST(SoloPollers, AFloodOfPagesGivenBackWakesOneReader) {
  if (const std::string refused = userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  Child child(give_back_pages);
  const auto core = Core::create({});
  ASSERT_TRUE(core && register_builtin_types((*core)->types()));
  const auto object = (*core)->create_object(pattern_source(kPageSize * kBalloonPages), "shmem");
  ASSERT_TRUE(object);
  const std::set<int> others = threads();
  const auto served = serve(*core, *object, child);
  ASSERT_TRUE(served);
  std::set<int> readers = threads();
  for (const int other : others) readers.erase(other);
  if (readers.size() < 2) GTEST_SKIP() << "needs two CPUs";

  const auto before = sleeps(readers);
  ASSERT_TRUE(send_note(child.socket(), {}) && receive_note(child.socket()));
  std::size_t woken = 0;
  for (const auto& [reader, count] : sleeps(readers)) woken += count - before.at(reader) > kRemoves / 16 ? 1 : 0;
  EXPECT_LE(woken, 1U) << "of " << readers.size() << " readers";
  ASSERT_TRUE(send_note(child.socket(), {}));
  EXPECT_EQ(child.wait(), 0);
}

}  // namespace
}  // namespace uffda::test
