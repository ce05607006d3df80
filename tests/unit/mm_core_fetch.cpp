// Fetches of an object: who asks, who waits, and what becomes of answers that are late, short, wrong or missing.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "os/memory.h"
#include "support/mm_core_fixture.h"

namespace uffda {
namespace {

using test::CoreTest;
using test::kBase;
using test::page;
using test::Pattern;
using Page = test::FakeUserfault::Page;

using CoreFetch = CoreTest;

TEST_F(CoreFetch, OneFetchHoweverManyWait) {
  make_object(kPageSize * 64);
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) threads.emplace_back([&] { fault(7); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(tickets_->asked().size(), 1U);
  EXPECT_EQ(fake().page(page(7)), Page::none);
  tickets_->answer_all();
  EXPECT_EQ(fake().page(page(7)), Page::mapped);
  expect_bytes(7);
}

TEST_F(CoreFetch, EveryMappingOfEverySpaceIsServedByIt) {
  make_object(kPageSize * 64);
  const Address other = page(1000);
  ASSERT_TRUE(space().attach(other, kPageSize * 64, object_, {}));
  test::FakeSpace second(core_);
  ASSERT_TRUE(second.space->attach(kBase, kPageSize * 32, object_, {kPageSize.value * 4}));
  fault(6);
  space().handle_fault(other + kPageSize * 6);
  second.space->handle_fault(page(2));
  EXPECT_EQ(tickets_->asked().size(), 1U);
  tickets_->answer_all();
  EXPECT_EQ(fake().page(page(6)), Page::mapped);
  EXPECT_EQ(fake().page(other + kPageSize * 6), Page::mapped);
  EXPECT_EQ(second.userfault->page(page(2)), Page::mapped);
  second.space->close();
}

TEST_F(CoreFetch, AnswersComeInAnyOrder) {
  make_object(kPageSize * 4000);
  for (const std::uint64_t i : {3000, 100, 2000, 1000}) fault(i);
  for (const std::uint64_t i : {1000, 3000, 100, 2000}) {
    auto ticket = tickets_->take({i * kPageSize.value});
    ASSERT_TRUE(ticket);
    EXPECT_EQ(fake().page(page(i)), Page::none);
    test::answer(std::move(*ticket));
    EXPECT_EQ(fake().page(page(i)), Page::mapped);
    expect_bytes(i);
  }
}

TEST_F(CoreFetch, ATicketIsAnsweredOnce) {
  make_object(kPageSize * 8);
  fault(1);
  auto ticket = tickets_->take();
  ASSERT_TRUE(ticket);
  test::answer(std::move(*ticket));
  std::move(*ticket).fail(Error(Errc::io));  // NOLINT(bugprone-use-after-move): that is what is tested
  std::move(*ticket).complete(kPageSize);
  EXPECT_EQ(object_->states().get(1), PageState::clean);
  EXPECT_EQ(failures(), 0U);
}

TEST_F(CoreFetch, ADroppedTicketIsAnErrorAndNotAHang) {
  make_object(kPageSize * 8);
  fault(1);
  (void)tickets_->take();
  EXPECT_EQ(fake().page(page(1)), Page::poisoned);
  EXPECT_EQ(failures(), 1U);
}

TEST_F(CoreFetch, MoreBytesThanAskedForIsAnError) {
  make_object(kPageSize * 8);
  fault(1);
  auto ticket = tickets_->take();
  std::move(*ticket).complete(kPageSize * 2);
  EXPECT_EQ(fake().page(page(1)), Page::poisoned);
}

TEST_F(CoreFetch, AShortReadIsAnErrorAndNeverZeroes) {
  make_object(kPageSize * 8);
  fault(1);
  auto ticket = tickets_->take();
  std::move(*ticket).complete({100});
  EXPECT_EQ(fake().page(page(1)), Page::poisoned);
  EXPECT_EQ(object_->states().get(1), PageState::poisoned);
}

TEST_F(CoreFetch, TheLastPartOfAPageIsAskedForAndNoMore) {
  make_object({kPageSize.value * 3 + 5});
  fault(3);
  ASSERT_EQ(tickets_->asked().size(), 1U);
  EXPECT_EQ(tickets_->asked()[0], (ByteRange{.start = {kPageSize.value * 3}, .length = {5}}));
  tickets_->answer_all();
  EXPECT_EQ(fake().page(page(3)), Page::mapped);
  expect_bytes(3);
}

TEST_F(CoreFetch, BeyondTheEndIsSigbus) {
  make_object({kPageSize.value * 3 + 5}, kPageSize * 8);
  fault(5);
  EXPECT_EQ(fake().page(page(5)), Page::poisoned);
  EXPECT_TRUE(tickets_->asked().empty());
}

TEST_F(CoreFetch, AFailingRangePoisonsExactlyTheFoliosThatCannotBeHad) {
  constexpr std::uint64_t kPages = 300;
  constexpr std::uint64_t kBad = 77;
  std::atomic<int> multi{0};
  make_object_of(test::answering_source(kPageSize * kPages,
                                        [&](FetchTicket ticket) {
                                          const ByteRange range = ticket.range();
                                          if (range.length > kPageSize) ++multi;
                                          const ByteOffset bad{kBad * kPageSize.value};
                                          if (bad >= range.start && bad < range.end())
                                            return std::move(ticket).fail(Error(Errc::io, "a bad block"));
                                          test::answer(std::move(ticket));
                                        }),
                 kPageSize * kPages);
  for (std::uint64_t i = 0; i < kPages; ++i) {
    for (int again = 0; again < 3 && fake().page(page(i)) == Page::none; ++again) fault(i);
    ASSERT_EQ(fake().page(page(i)), i == kBad ? Page::poisoned : Page::mapped) << i;
    if (i != kBad) expect_bytes(i);
  }
  EXPECT_GT(multi, 3) << "ranges of several folios were asked for";
  EXPECT_EQ(failures(), 1U);
}

TEST_F(CoreFetch, AFailedRangeThatSomebodyWaitsForIsTriedAgainFolioByFolio) {
  make_object(kPageSize * 64);
  fault(0);
  tickets_->answer_all();
  fault(1);
  auto range = tickets_->take({kPageSize.value});
  ASSERT_TRUE(range);
  ASSERT_GT(range->range().length, kPageSize) << "a sequential reader asks for more than a folio";
  std::move(*range).fail(Error(Errc::io));
  EXPECT_EQ(failures(), 0U);
  EXPECT_EQ(state(1), PageState::absent);
  EXPECT_EQ(state(2), PageState::absent);
  EXPECT_GT(fake().wakes(page(1)), 0U);
  fault(1);
  range = tickets_->take({kPageSize.value});
  ASSERT_TRUE(range);
  EXPECT_EQ(range->range(), (ByteRange{.start = {kPageSize.value}, .length = kPageSize}));
  std::move(*range).fail(Error(Errc::io));
  EXPECT_EQ(fake().page(page(1)), Page::poisoned);
  EXPECT_EQ(failures(), 1U);
  fault(2);
  tickets_->answer_all();
  EXPECT_EQ(fake().page(page(2)), Page::mapped);
  expect_bytes(2);
}

/// Reads in the calling thread, and fails whatever contains one bad folio.
class BadFolio final : public PageSource {
 public:
  BadFolio(ByteCount size, FolioIndex bad) : bad_{bad * kPageSize.value} {
    opened("bad-folio", {.size = size, .immediate = true});
  }
  std::uint64_t longest_failure = 0;  // bytes of a read in the calling thread

 private:
  void do_fetch(FetchTicket ticket) noexcept override {
    const ByteRange range = ticket.range();
    if (bad_ >= range.start && bad_ < range.end()) return std::move(ticket).fail(Error(Errc::io, "a bad block"));
    test::answer(std::move(ticket));
  }
  Result<void> do_fetch_now(ByteOffset offset, std::span<std::byte> buffer) noexcept override {
    if (bad_ >= offset && bad_ < offset + ByteCount{buffer.size()}) {
      longest_failure = std::max<std::uint64_t>(longest_failure, buffer.size());
      return fail(Errc::io, "a bad block");
    }
    Pattern::fill(buffer, offset.value);
    return {};
  }
  const ByteOffset bad_;
};

TEST_F(CoreFetch, AFailingRangeThatIsReadInTheFaultingThreadPoisonsExactlyOneFolio) {
  constexpr std::uint64_t kPages = 64;
  constexpr FolioIndex kBad = 2;  // in what the second fault of a sequential reader asks for
  auto owned = std::make_unique<BadFolio>(kPageSize * kPages, kBad);
  const BadFolio& source = *owned;
  make_object_of(std::move(owned), kPageSize * kPages);
  for (FolioIndex i = 0; i < kPages; ++i) {
    auto outcome = FaultOutcome::later;
    for (int again = 0; again < 3 && outcome == FaultOutcome::later; ++again) {
      outcome = state(i) == PageState::absent ? object_->fill_now(i, Deadline::after(test::kPatience))
                                              : object_->fault_in(i, {});
    }
    ASSERT_EQ(outcome, i == kBad ? FaultOutcome::poisoned : FaultOutcome::ready) << i;
    if (i != kBad) expect_bytes(i);
  }
  EXPECT_GT(source.longest_failure, kPageSize.value) << "the bad folio was part of a larger range first";
  EXPECT_EQ(failures(), 1U);
}

TEST_F(CoreFetch, ASourceThatNeverAnswersIsReportedAndFailedAtTheDeadline) {
  testing::internal::CaptureStderr();
  make_core({.warn_after = std::chrono::milliseconds(50), .deadline = std::chrono::milliseconds(400)});
  make_object(kPageSize * 64);
  fault(9);
  EXPECT_TRUE(fake().wait_until([&] { return fake().page(page(9)) == Page::poisoned; }));
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("no answer for bytes 36864 to 40960"), std::string::npos) << said;
  EXPECT_EQ(failures(), 1U);
  EXPECT_EQ(object_->states().get(9), PageState::poisoned);
  EXPECT_EQ(object_->states().get(10), PageState::absent);
  // The answer comes after all: its bytes are nobody's, and its buffer is the core's again.
  tickets_->answer_all();
  EXPECT_EQ(fake().page(page(9)), Page::poisoned);
  EXPECT_EQ(object_->states().get(9), PageState::poisoned);
  fault(20);
  tickets_->answer_all();
  EXPECT_EQ(fake().page(page(20)), Page::mapped);
}

TEST_F(CoreFetch, WhatNobodyWaitsForIsGivenUpAtTheDeadlineAndNotPoisoned) {
  make_core({.warn_after = std::chrono::hours(1), .deadline = std::chrono::milliseconds(100)});
  make_object(kPageSize * 4000);
  // A sequential reader: its first requests are answered, what was fetched ahead never is.
  for (std::uint64_t i = 0; i < 3; ++i) {
    fault(i);
    if (auto ticket = tickets_->take({i * kPageSize.value})) test::answer(std::move(*ticket));
  }
  ASSERT_GT(tickets_->held(), 0U) << "something was asked for ahead";
  std::vector<ByteRange> ahead;
  for (const ByteRange& range : tickets_->asked()) {
    if (object_->states().get(range.start.value / kPageSize.value) == PageState::filling) ahead.push_back(range);
  }
  ASSERT_FALSE(ahead.empty());
  for (const ByteRange& range : ahead) {
    const FolioIndex index = range.start.value / kPageSize.value;
    EXPECT_TRUE(fake().wait_until([&] { return object_->states().get(index) != PageState::filling; }));
    EXPECT_EQ(object_->states().get(index), PageState::absent);
  }
  EXPECT_EQ(failures(), 0U);
  // Claimed anew, and only then the old answer comes: it must not be taken for the new one.
  const FolioIndex index = ahead[0].start.value / kPageSize.value;
  fault(index);
  auto old = tickets_->take(ahead[0].start);
  ASSERT_TRUE(old);
  std::ranges::fill(old->buffer(), std::byte{0xBD});
  const ByteCount all = old->range().length;
  std::move(*old).complete(all);
  EXPECT_EQ(fake().page(page(index)), Page::none);
  auto anew = tickets_->take(ahead[0].start);
  ASSERT_TRUE(anew);
  test::answer(std::move(*anew));
  EXPECT_EQ(fake().page(page(index)), Page::mapped);
  expect_bytes(index);
}

TEST_F(CoreFetch, AFullTableMakesFaultsComeAgain) {
  make_object(kPageSize * 100'000);
  std::vector<std::uint64_t> faulted;
  std::uint64_t at = 0;
  // Quadratic steps, which no stride foresees.
  const std::size_t most = SourceProperties{}.parallel;
  for (std::uint64_t i = 0; tickets_->held() < most; ++i) {
    at += 40 + i * 7;
    fault(at);
    faulted.push_back(at);
  }
  at += 5000;
  fault(at);
  EXPECT_TRUE(fake().wait_until([&] { return fake().wakes(page(at)) > 0; }))
      << "a fault that finds no room is parked and woken";
  EXPECT_EQ(tickets_->held(), most);
  tickets_->answer_all();
  fault(at);
  tickets_->answer_all();
  EXPECT_EQ(fake().page(page(at)), Page::mapped);
  for (const std::uint64_t i : faulted) EXPECT_EQ(fake().page(page(i)), Page::mapped) << i;
}

TEST_F(CoreFetch, ExhaustedBuffersMakeFaultsComeAgain) {
  make_object(kPageSize * 64);
  std::vector<std::span<std::byte>> taken;
  for (auto buffer = core_->staging().acquire(kPageSize); !buffer.empty();
       buffer = core_->staging().acquire(kPageSize)) {
    taken.push_back(buffer);
  }
  fault(ByteOffset{kPageSize.value * 3 + 77}, test::Exact::yes);  // WAKE takes whole pages only
  EXPECT_EQ(object_->states().get(3), PageState::absent);
  EXPECT_TRUE(fake().wait_until([&] { return fake().wakes(page(3)) > 0; }));
  for (const auto& buffer : taken) core_->staging().release(buffer);
  fault(3);
  tickets_->answer_all();
  EXPECT_EQ(fake().page(page(3)), Page::mapped);
}

TEST_F(CoreFetch, MoreWaitersThanARequestHasRoomForAreServedInTheEnd) {
  make_object(kPageSize * 8);
  std::vector<std::unique_ptr<test::FakeSpace>> spaces;
  for (std::size_t i = 0; i < FetchRequest::kMaxWaits + 4; ++i) {
    spaces.push_back(std::make_unique<test::FakeSpace>(core_));
    ASSERT_TRUE(spaces.back()->space->attach(kBase, kPageSize * 8, object_, {}));
    spaces.back()->space->handle_fault(page(2));
  }
  tickets_->answer_all();
  for (const auto& each : spaces) {
    if (each->userfault->page(page(2)) == Page::none) {
      EXPECT_TRUE(each->userfault->wait_until([&] { return each->userfault->wakes(page(2)) > 0; }));
      each->space->handle_fault(page(2));
    }
    EXPECT_EQ(each->userfault->page(page(2)), Page::mapped);
    each->space->close();
  }
}

/// The core calls a source with no lock held: whatever the source does meanwhile, events and mappings go on.
TEST_F(CoreFetch, ASourceIsNeverCalledWithALockHeld) {
  std::atomic<int> stuck{0};
  std::atomic<std::uint64_t> turn{0};
  const auto probe = [&](FetchTicket ticket) {
    std::atomic<bool> done{false};
    std::thread other([&] {
      const Address spot = page(100'000 + turn++ * 2);
      (void)space().attach(spot, kPageSize, object_, {});
      space().detach(spot, kPageSize);
      (void)object_->fail_range({.start = {0}, .length = {0}}, Error(Errc::io));
      done = true;
      done.notify_all();
    });
    const TimePoint until = Clock::now() + std::chrono::seconds(5);
    while (!done && Clock::now() < until) std::this_thread::yield();
    if (!done) ++stuck;
    late_threads_.push_back(std::move(other));
    test::answer(std::move(ticket));
  };
  testing::internal::CaptureStderr();
  make_object_of(test::answering_source(kPageSize * 400, probe), kPageSize * 400);
  for (std::uint64_t i = 0; i < 400 && stuck == 0; ++i) fault(i);
  testing::internal::GetCapturedStderr();
  EXPECT_EQ(stuck, 0);
}

TEST_F(CoreFetch, ASpaceMayEndWhileItWaits) {
  make_object(kPageSize * 64);
  fault(1);
  std::weak_ptr<AddressSpace> ended = fake_->space;
  fake_->space->close();
  fake_->space.reset();
  tickets_->answer_all();  // the last reference was the request's
  EXPECT_TRUE(ended.expired());
  EXPECT_EQ(object_->states().get(1), PageState::clean);
}

TEST_F(CoreFetch, AnObjectMayEndWithFetchesInFlight) {
  make_object(kPageSize * 4000);
  for (const std::uint64_t i : {1, 100, 101, 102, 900}) fault(i);
  ASSERT_GT(tickets_->held(), 3U);
  space().detach(kBase, kPageSize * 4000);
  std::weak_ptr<MemoryObject> ended = object_;
  object_.reset();
  EXPECT_TRUE(ended.expired());
  EXPECT_EQ(tickets_->held(), 0U);
  EXPECT_EQ(failures(), 0U) << "nobody lost anything";
  EXPECT_EQ(core_->resident(), ByteCount{0});
}

TEST_F(CoreFetch, AnObjectMayEndWithAShortAnswerOnTheWay) {
  struct Curt final : PageSource {
    explicit Curt(std::shared_ptr<test::Tickets> to) : tickets(std::move(to)) {
      opened("curt", {.size = kPageSize * 8});
    }
    ~Curt() override {
      while (auto ticket = tickets->take()) std::move(*ticket).complete({1});
    }
    void do_fetch(FetchTicket ticket) noexcept override { tickets->add(std::move(ticket)); }
    std::shared_ptr<test::Tickets> tickets;
  };
  make_object_of(std::make_unique<Curt>(tickets_), kPageSize * 8);
  fault(1);
  space().detach(kBase, kPageSize * 8);
  object_.reset();
  EXPECT_EQ(tickets_->held(), 0U);
}

TEST_F(CoreFetch, UncachedObjectsAnswerEveryWaiterAndKeepNothing) {
  const ByteCount size{kPageSize.value * 10 + 9};
  make_object_of(test::ticket_source(tickets_, size), kPageSize * 11, "anon");
  test::FakeSpace second(core_);
  ASSERT_TRUE(second.space->attach(page(500), kPageSize * 11, object_, {}));
  fault(10);
  second.space->handle_fault(page(510));
  ASSERT_EQ(tickets_->asked().size(), 1U);
  tickets_->answer_all();
  for (const auto& bytes : {fake().copied(page(10)), second.userfault->copied(page(510))}) {
    ASSERT_EQ(bytes.size(), kPageSize.value);
    EXPECT_EQ(Pattern::mismatch(std::span(bytes).first(9), kPageSize.value * 10), std::nullopt);
    EXPECT_TRUE(std::all_of(bytes.begin() + 9, bytes.end(), [](std::byte b) { return b == std::byte{0}; }));
  }
  EXPECT_EQ(object_->states().get(10), PageState::absent);
  EXPECT_EQ(core_->resident(), ByteCount{0});
  second.space->close();
}

TEST_F(CoreFetch, NothingIsFetchedForAnUncachedObjectThatNobodyWaitsFor) {
  constexpr std::uint64_t kPages = 2000;
  std::atomic<std::uint64_t> bytes{0};
  make_object_of(test::answering_source(kPageSize * kPages,
                                        [&](FetchTicket ticket) {
                                          bytes += ticket.range().length.value;
                                          test::answer(std::move(ticket));
                                        }),
                 kPageSize * kPages, "anon");
  for (std::uint64_t i = 0; i < kPages; ++i) {
    if (fake().page(page(i)) == Page::none) fault(i);
    ASSERT_EQ(fake().page(page(i)), Page::mapped) << i;
    ASSERT_EQ(Pattern::mismatch(fake().copied(page(i)), i * kPageSize.value), std::nullopt) << i;
  }
  EXPECT_LE(bytes, kPages * kPageSize.value);
}

TEST_F(CoreFetch, APageThatTheKernelLostIsFetchedAgain) {
  make_object(kPageSize * 8);
  fault(2);
  tickets_->answer_all();
  fake().clear();
  std::atomic<bool> refuses{true};
  fake().script([&](const test::FakeUserfault::Call& call) -> std::optional<os::Progress> {
    if (call.kind != test::FakeUserfault::Kind::continue_run || !refuses.exchange(false)) return std::nullopt;
    return os::Progress{.done = {0}, .error = EFAULT};
  });
  ASSERT_TRUE(os::punch_hole(object_->backing().mapping_fd(), object_->bytes_of({.first = 2, .count = 1})));
  fault(2);
  EXPECT_EQ(fake().page(page(2)), Page::none);
  tickets_->answer_all();
  EXPECT_EQ(fake().page(page(2)), Page::mapped);
  EXPECT_EQ(tickets_->asked().size(), 2U);
  EXPECT_EQ(core_->resident(), kPageSize);
}

TEST_F(CoreFetch, APageThatIsThereAgainIsNotLost) {
  make_object(kPageSize * 8);
  fault(2);
  tickets_->answer_all();
  // Whoever heard that it was punched hears it late: it has been fetched and mapped since.
  object_->lost(2);
  EXPECT_EQ(object_->states().get(2), PageState::clean);
  EXPECT_EQ(core_->resident(), kPageSize);
}

TEST_F(CoreFetch, AResolutionThatMustWaitComesAgain) {
  make_object(kPageSize * 8);
  std::atomic<int> refuse{2};
  fake().script([&](const test::FakeUserfault::Call& call) -> std::optional<os::Progress> {
    if (call.kind != test::FakeUserfault::Kind::continue_run || refuse.fetch_sub(1) <= 0) return std::nullopt;
    return os::Progress{.done = {0}, .error = EAGAIN};
  });
  fault(2);
  tickets_->answer_all();
  EXPECT_TRUE(fake().wait_until([&] { return fake().wakes(page(2)) >= 2; }))
      << "at once, and when the reason may be gone";
  const std::size_t before = fake().wakes(page(2));
  fault(ByteOffset{page(2).value + 77 - kBase.value},
        test::Exact::yes);  // an address within the page, as EXACT_ADDRESS has it
  EXPECT_TRUE(fake().wait_until([&] { return fake().wakes(page(2)) > before; }));
  fault(2);
  EXPECT_EQ(fake().page(page(2)), Page::mapped);
}

/// Nothing is mapped that is not present and pinned at that moment.
TEST_F(CoreFetch, WhatIsMappedIsPresentAndPinned) {
  std::atomic<int> wrong{0};
  make_object_of(test::answering_source(kPageSize * 256, test::answer), kPageSize * 256);
  fake().on_continue([&](Address start, ByteCount length) {
    for (std::uint64_t at = 0; at < length.value; at += kPageSize.value) {
      const FolioIndex index = (start.value - kBase.value + at) / kPageSize.value;
      if (!is_present(object_->states().get(index))) ++wrong;
      // A pin refuses the eviction; if it does not, put the folio back.
      if (object_->states().apply(index, PageEvent::evict_started)) {
        ++wrong;
        object_->states().apply(index, PageEvent::evict_aborted);
      }
      std::vector<std::byte> bytes(kPageSize.value);
      if (!object_->backing().read({index * kPageSize.value}, bytes) ||
          Pattern::mismatch(bytes, index * kPageSize.value))
        ++wrong;
    }
  });
  for (std::uint64_t i = 0; i < 256; ++i) fault(i);
  fake().clear();
  for (std::uint64_t i = 0; i < 256; i += 3) fault(i);
  for (std::uint64_t i = 256; i-- > 0;) fault(i);
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace uffda
