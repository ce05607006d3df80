// A ticket is answered exactly once, whatever becomes of it.
#include <gtest/gtest.h>

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "uffda/page_source.h"

namespace uffda {
namespace {

class Owner final : public FetchOwner {
 public:
  void fetched(void* request, Result<ByteCount> result) noexcept override {
    requests.push_back(request);
    results.push_back(std::move(result));
  }
  FetchTicket ticket(void* request = nullptr) {
    return {*this, request, {{4096}, {bytes.size()}}, bytes, Deadline::after(std::chrono::seconds(1))};
  }

  std::vector<void*> requests;
  std::vector<Result<ByteCount>> results;
  std::array<std::byte, 64> bytes{};
};

TEST(FetchTicket, tells_its_owner_what_was_read) {
  Owner owner;
  int request = 0;
  owner.ticket(&request).complete({64});
  ASSERT_EQ(owner.results.size(), 1U);
  EXPECT_EQ(owner.results[0]->value, 64U);
  EXPECT_EQ(owner.requests[0], &request);
}

TEST(FetchTicket, passes_a_short_read_on_for_the_owner_to_judge) {
  Owner owner;
  owner.ticket().complete({10});
  EXPECT_EQ(owner.results.at(0)->value, 10U);
}

TEST(FetchTicket, fails_when_more_is_reported_than_was_asked_for) {
  Owner owner;
  owner.ticket().complete({65});
  EXPECT_EQ(owner.results.at(0).error().code(), Errc::io);
}

TEST(FetchTicket, fails_when_it_is_dropped) {
  Owner owner;
  {
    const FetchTicket dropped = owner.ticket();
  }
  ASSERT_EQ(owner.results.size(), 1U);
  EXPECT_EQ(owner.results[0].error().code(), Errc::io);
}

TEST(FetchTicket, is_answered_once_however_often_it_moves) {
  Owner owner;
  {
    FetchTicket first = owner.ticket();
    FetchTicket second = std::move(first);
    std::optional<FetchTicket> third(std::move(second));
    std::move(*third).fail(Error(Errc::timed_out, "late"));
  }
  ASSERT_EQ(owner.results.size(), 1U);
  EXPECT_EQ(owner.results[0].error().code(), Errc::timed_out);
}

TEST(FetchTicket, fails_when_another_one_is_moved_over_it) {
  Owner owner;
  int old_request = 0;
  int new_request = 0;
  FetchTicket ticket = owner.ticket(&old_request);
  ticket = owner.ticket(&new_request);
  ASSERT_EQ(owner.requests, std::vector<void*>{&old_request});
  EXPECT_FALSE(owner.results[0].has_value());
  std::move(ticket).complete({64});
  EXPECT_EQ(owner.requests.at(1), &new_request);
}

TEST(FetchTicket, survives_being_moved_onto_itself) {
  Owner owner;
  FetchTicket ticket = owner.ticket();
  FetchTicket& same = ticket;
  ticket = std::move(same);
  EXPECT_TRUE(owner.results.empty());
  std::move(ticket).complete({64});
  EXPECT_EQ(owner.results.size(), 1U);
}

}  // namespace
}  // namespace uffda
