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
constexpr int kRounds = 32;

/// Gives all its pages back, one by one, each time that it is told to, and looks at all of them afterwards.
int give_back_pages(int socket) {
  const auto memory = client_map(socket, UFFD_FEATURE_EVENT_REMOVE);
  if (!memory) return 10;
  for (int round = 0; round < kRounds; ++round) {
    if (!receive_note(socket)) return 11;
    for (std::uint64_t i = 0; i < kBalloonPages; ++i) {
      if (::madvise(memory->data + i * kPageSize.value, kPageSize.value, MADV_DONTNEED) != 0) return 12;
    }
    if (!send_note(socket, {})) return 13;
  }
  return Pattern::mismatch({memory->data, memory->size}, 0) ? 1 : 0;
}

/// How many of these threads slept, and were woken, more than once in 16 pages since they had slept so often.
std::size_t woken(const std::map<int, std::uint64_t>& before, const std::map<int, std::uint64_t>& now) {
  return static_cast<std::size_t>(std::ranges::count_if(
      now, [&](const auto& one) { return one.second - before.at(one.first) > kBalloonPages / 16; }));
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

  int floods_for_more = 0;
  for (int round = 0; round < kRounds; ++round) {
    const auto before = sleeps(readers);
    ASSERT_TRUE(send_note(child.socket(), {}) && receive_note(child.socket()));
    if (woken(before, sleeps(readers)) > 1) ++floods_for_more;
  }
  // Until it is known for a flood; and again when who reads alone has had no CPU for a while.
  EXPECT_LT(floods_for_more, kRounds / 4) << "of " << readers.size() << " readers";
  EXPECT_EQ(child.wait(), 0);
}

}  // namespace
}  // namespace uffda::test
