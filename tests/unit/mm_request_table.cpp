// The table of fetches: one request per range, however many wait.
#include "mm/request_table.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace uffda {
namespace {

class Waiter final : public FolioWaiter {
 public:
  void folios_news(const MemoryObject&, std::uint64_t, FolioRange, FolioNews, std::span<const std::byte>) override {}
  void waited(Duration) noexcept override {}
};

FetchRequest* add(RequestTable& table, FolioRange range) {
  return table.add(range, {}, Clock::now(), Deadline::after(std::chrono::hours(1)));
}

TEST(RequestTables, FindTheRequestThatCoversAFolio) {
  RequestTable table;
  EXPECT_EQ(table.find(3), nullptr);
  FetchRequest* request = add(table, {.first = 2, .count = 3});
  ASSERT_NE(request, nullptr);
  EXPECT_EQ(table.find(1), nullptr);
  EXPECT_EQ(table.find(2), request);
  EXPECT_EQ(table.find(4), request);
  EXPECT_EQ(table.find(5), nullptr);
  (void)table.finish(*request);
  EXPECT_EQ(table.find(2), nullptr);
  EXPECT_EQ(table.in_use(), 0U);
}

TEST(RequestTables, TheSameWaiterIsThereOnce) {
  RequestTable table;
  FetchRequest* request = add(table, {.first = 0, .count = 8});
  const auto waiter = std::make_shared<Waiter>();
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(RequestTable::join(*request, {.waiter = waiter, .base = 0x1000}));
  EXPECT_TRUE(RequestTable::join(*request, {.waiter = waiter, .base = 0x2000})) << "another mapping of the same waiter";
  EXPECT_TRUE(RequestTable::join(*request, {.waiter = std::make_shared<Waiter>(), .base = 0x1000}));
  EXPECT_TRUE(request->wanted());
  EXPECT_EQ(table.finish(*request).size(), 3U);
}

TEST(RequestTables, ARequestHasRoomForSixteenAndSaysWhenItIsFull) {
  RequestTable table;
  FetchRequest* request = add(table, {.first = 0, .count = 1});
  const auto waiter = std::make_shared<Waiter>();
  for (std::size_t i = 0; i < FetchRequest::kMaxWaits; ++i) {
    EXPECT_TRUE(RequestTable::join(*request, {.waiter = waiter, .base = i * 4096}));
  }
  EXPECT_FALSE(RequestTable::join(*request, {.waiter = waiter, .base = 0x9999'0000}));
  EXPECT_TRUE(RequestTable::join(*request, {.waiter = waiter, .base = 0})) << "who is there already stays";
  EXPECT_EQ(table.finish(*request).size(), FetchRequest::kMaxWaits);
}

TEST(RequestTables, AFullTableSaysSoAndASlotThatIsFreeServesAgain) {
  RequestTable table;
  std::vector<FetchRequest*> requests;
  for (std::size_t i = 0; i < RequestTable::kMaxRequests; ++i) {
    EXPECT_EQ(table.room_for(FetchFor::ahead), i < RequestTable::kMaxRequests / 2);
    requests.push_back(add(table, {.first = i * 10, .count = 10}));
    ASSERT_NE(requests.back(), nullptr);
  }
  EXPECT_EQ(add(table, {.first = 10'000, .count = 1}), nullptr);
  const auto waiter = std::make_shared<Waiter>();
  EXPECT_TRUE(RequestTable::join(*requests[7], {.waiter = waiter, .base = 0}));
  requests[7]->sleepers = 3;
  requests[7]->warned = requests[7]->publishing = true;
  EXPECT_EQ(table.finish(*requests[7]).size(), 1U);
  const FetchRequest* again = add(table, {.first = 10'000, .count = 1});
  ASSERT_NE(again, nullptr);
  EXPECT_FALSE(again->wanted() || again->warned || again->publishing || again->abandoned)
      << "nothing of its last use is left";
}

TEST(RequestTables, AnAbandonedRequestKeepsItsSlotButNotItsRange) {
  RequestTable table;
  FetchRequest* late = add(table, {.first = 5, .count = 2});
  const auto waiter = std::make_shared<Waiter>();
  EXPECT_TRUE(RequestTable::join(*late, {.waiter = waiter, .base = 0}));
  EXPECT_EQ(RequestTable::abandon(*late).size(), 1U);
  EXPECT_EQ(table.find(5), nullptr);
  EXPECT_EQ(table.in_use(), 1U);
  FetchRequest* anew = add(table, {.first = 5, .count = 2});
  ASSERT_NE(anew, nullptr);
  EXPECT_NE(anew, late);
  EXPECT_EQ(table.find(6), anew);
  EXPECT_TRUE(table.finish(*late).empty());
  EXPECT_EQ(table.find(6), anew);
  EXPECT_EQ(table.in_use(), 1U);
}

TEST(RequestTables, RandomUseAgreesWithAListOfRanges) {
  RequestTable table;
  std::mt19937_64 random(2);
  std::vector<FetchRequest*> live;
  const auto covered = [&](FolioIndex index) -> FetchRequest* {
    for (FetchRequest* request : live) {
      if (request->range.contains(index)) return request;
    }
    return nullptr;
  };
  for (int step = 0; step < 20'000; ++step) {
    const FolioIndex at = random() % 500;
    ASSERT_EQ(table.find(at), covered(at));
    if (random() % 2 == 0 && covered(at) == nullptr) {
      FolioRange range{.first = at, .count = 1};
      while (range.count < 8 && covered(range.end()) == nullptr) ++range.count;
      FetchRequest* request = add(table, range);
      ASSERT_EQ(request == nullptr, live.size() == RequestTable::kMaxRequests);
      if (request != nullptr) live.push_back(request);
    } else if (!live.empty() && random() % 2 == 0) {
      const std::size_t which = random() % live.size();
      (void)table.finish(*live[which]);
      live.erase(live.begin() + static_cast<std::ptrdiff_t>(which));
    }
    ASSERT_EQ(table.in_use(), live.size());
  }
}

}  // namespace
}  // namespace uffda
