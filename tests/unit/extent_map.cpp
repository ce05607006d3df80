#include "sources/extent_map.h"

#include <gtest/gtest.h>

#include <array>
#include <optional>
#include <random>

namespace uffda::sources {
namespace {

using Kind = Extent::Kind;

Extent extent(std::uint64_t start, std::uint64_t end, Kind kind) { return {{{start}, {end - start}}, kind}; }

TEST(ExtentMap, knows_what_it_was_told_and_nothing_else) {
  ExtentMap map(100);
  EXPECT_TRUE(map.known({{0}, {10}}).empty());
  map.record(extent(10, 20, Kind::zero));
  map.record(extent(20, 30, Kind::data));
  map.record(extent(40, 50, Kind::zero));
  EXPECT_FALSE(map.knows({9}));
  EXPECT_TRUE(map.knows({10}));
  EXPECT_FALSE(map.knows({30}));
  EXPECT_TRUE(map.known({{9}, {100}}).empty()) << "its start is not known";
  EXPECT_EQ(map.known({{12}, {100}}), (std::vector{extent(12, 20, Kind::zero), extent(20, 30, Kind::data)}));
  EXPECT_TRUE(map.zero({{11}, {9}}));
  EXPECT_FALSE(map.zero({{11}, {10}}));
  EXPECT_FALSE(map.zero({{20}, {1}}));
}

TEST(ExtentMap, is_right_after_any_history) {
  constexpr std::uint64_t kSize = 64;
  for (unsigned seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    ExtentMap map(1000);
    std::array<std::optional<Kind>, kSize> model{};
    for (int step = 0; step < 60; ++step) {
      const std::uint64_t start = random() % kSize;
      const std::uint64_t end = start + random() % (kSize - start + 1);
      const Kind kind = random() % 2 == 0 ? Kind::zero : Kind::data;
      map.record(extent(start, end, kind));
      std::fill(model.begin() + static_cast<long>(start), model.begin() + static_cast<long>(end), kind);
      for (std::uint64_t at = 0; at < kSize; ++at) {
        ASSERT_EQ(map.knows({at}), model.at(at).has_value()) << seed;
        std::uint64_t expected = at;
        const std::vector<Extent> known = map.known({{at}, {kSize - at}});
        for (std::size_t i = 0; i < known.size(); ++i) {
          ASSERT_EQ(known[i].range.start.value, expected);
          ASSERT_TRUE(i == 0 || known[i].kind != known[i - 1].kind) << "neighbours of one kind are one";
          for (; expected < known[i].range.end().value; ++expected) ASSERT_EQ(model.at(expected), known[i].kind);
        }
        ASSERT_TRUE(expected == kSize || !model.at(expected).has_value()) << "it stops where it could go on";
      }
    }
  }
}

TEST(ExtentMap, forgets_rather_than_grows) {
  ExtentMap map(4);
  for (std::uint64_t i = 0; i < 4; ++i) map.record(extent(i * 10, i * 10 + 5, Kind::zero));
  EXPECT_TRUE(map.knows({0}));
  map.record(extent(100, 101, Kind::data));
  EXPECT_FALSE(map.knows({0}));
}

}  // namespace
}  // namespace uffda::sources
