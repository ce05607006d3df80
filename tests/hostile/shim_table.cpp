// The shim's table of served ranges against a plain model: byte-exact after any sequence of inserts, cuts and splits,
// also when it is full.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "preload/mappings.cpp"  // NOLINT(bugprone-suspicious-include): the shim is no library that a test could link

namespace uffda::shim {
namespace {

constexpr uintptr_t kSmallPage = 4096;
constexpr uintptr_t kArea = 200;  // pages

using Model = std::map<uintptr_t, uint64_t>;  // page -> offset that it shows

Model table() {
  Model pages;
  for (size_t i = 0; i < range_count(); ++i) {
    const Range& range = range_at(i);
    EXPECT_LT(range.start, range.end);
    if (i > 0) {
      EXPECT_LE(range_at(i - 1).end, range.start);
    }
    for (uintptr_t at = range.start; at < range.end; at += kSmallPage) pages[at] = range.offset + (at - range.start);
  }
  return pages;
}

void forget_in(Model& model, uintptr_t start, uintptr_t end) {
  model.erase(model.lower_bound(start), model.lower_bound(end));
}

TEST(ShimTable, RandomChangesEqualTheModel) {
  std::mt19937_64 random(20);
  Model model;
  forget_ranges(0, UINTPTR_MAX);
  for (int step = 0; step < 20000; ++step) {
    const uintptr_t start = (1 + random() % kArea) * kSmallPage;
    const uintptr_t end = start + (1 + random() % 20) * kSmallPage;
    switch (random() % 4) {
      case 0:
      case 1: {
        const uint64_t offset = random() % 1000 * kSmallPage;
        ASSERT_TRUE(insert_range({.start = start, .end = end, .offset = offset}));
        forget_in(model, start, end);
        for (uintptr_t at = start; at < end; at += kSmallPage) model[at] = offset + (at - start);
        break;
      }
      case 2:
        forget_ranges(start, end);
        forget_in(model, start, end);
        break;
      default:
        ASSERT_TRUE(split_range_at(start));
    }
    ASSERT_EQ(table(), model) << "step " << step;
    const auto touched = model.lower_bound(start);
    if (touched != model.end() && touched->first < end) {
      ASSERT_TRUE(may_overlap(start, end - start)) << "step " << step;
    }
  }
  forget_ranges(0, UINTPTR_MAX);
  EXPECT_EQ(range_count(), 0u);
  EXPECT_FALSE(may_overlap(0, UINTPTR_MAX));
}

TEST(ShimTable, FullRefusesAndStaysSound) {
  forget_ranges(0, UINTPTR_MAX);
  uintptr_t at = kSmallPage;
  while (insert_range({.start = at, .end = at + 4 * kSmallPage, .offset = at})) at += 8 * kSmallPage;
  EXPECT_EQ(range_count(), kMaxRanges - 1);
  // One cut out of the middle still fits; for another the table has no room, and what lies behind it goes, too.
  forget_ranges(2 * kSmallPage, 3 * kSmallPage);
  EXPECT_EQ(range_count(), kMaxRanges);
  forget_ranges(10 * kSmallPage, 11 * kSmallPage);
  EXPECT_EQ(range_count(), kMaxRanges);
  const Model pages = table();
  EXPECT_TRUE(pages.contains(9 * kSmallPage));
  EXPECT_FALSE(pages.contains(10 * kSmallPage));
  EXPECT_FALSE(pages.contains(11 * kSmallPage));
  EXPECT_FALSE(split_range_at(18 * kSmallPage));
  forget_ranges(0, UINTPTR_MAX);
  EXPECT_EQ(range_count(), 0u);
}

}  // namespace
}  // namespace uffda::shim
