// Folios that are too large to be staged are read in place. What a source that was given up still writes there must
// never be taken for the folio's bytes.
#include <gtest/gtest.h>

#include <vector>

#include "support/mm_core_fixture.h"
#include "support/mm_memory_types.h"

namespace uffda {
namespace {

using test::kBase;
using test::kPatience;
using test::Pattern;

constexpr ByteCount kFolio = 4_MiB;

class InPlace : public test::CoreTest {
 protected:
  void make(ByteCount size, const CoreOptions& options = {}) {
    make_core(options);
    ASSERT_TRUE(core_->types().register_type(test::make_in_place_type()));
    make_object_of(test::ticket_source(tickets_, size), {align_up(size.value, kFolio.value)}, "in-place");
  }
};

TEST_F(InPlace, ASourceReadsStraightIntoTheFolio) {
  make(kFolio * 2 + 9_KiB);
  space().handle_fault(kBase + kFolio);
  ASSERT_TRUE(tickets_->wait_for(1));
  auto ticket = tickets_->take();
  ASSERT_TRUE(ticket);
  EXPECT_EQ(ticket->range(), (ByteRange{.start = {kFolio.value}, .length = kFolio}));
  EXPECT_EQ(ticket->buffer().data(), object_->backing().in_place(ticket->range())->data());
  EXPECT_EQ(fake().page(kBase + kFolio), test::FakeUserfault::Page::none)
      << "nothing of it is shown before it is whole";
  test::answer(std::move(*ticket));
  EXPECT_EQ(fake().page(kBase + kFolio), test::FakeUserfault::Page::mapped);
  std::vector<std::byte> bytes(kFolio.value);
  ASSERT_TRUE(object_->read({kFolio.value}, bytes, Deadline::after(kPatience)));
  EXPECT_EQ(Pattern::mismatch(bytes, kFolio.value), std::nullopt);
  EXPECT_EQ(tickets_->asked().size(), 1U) << "nothing is read ahead";
}

TEST_F(InPlace, AFolioWhoseSourceIsLateStaysPoisonedUntilItAnswers) {
  make(kFolio * 2, {.deadline = std::chrono::milliseconds(1)});
  testing::internal::CaptureStderr();
  space().handle_fault(kBase);
  ASSERT_TRUE(tickets_->wait_for(1));
  ASSERT_TRUE(fake().wait_until([&] { return fake().page(kBase) == test::FakeUserfault::Page::poisoned; }));
  const ByteRange folio{.start = {0}, .length = kFolio};
  ASSERT_TRUE(object_->invalidate(folio));
  EXPECT_EQ(object_->states().get(0), PageState::poisoned) << "the source may still write to it";
  std::vector<std::byte> pushed(kFolio.value);
  ASSERT_TRUE(object_->supply({0}, pushed));
  EXPECT_EQ(object_->states().get(0), PageState::poisoned);
  tickets_->answer_all();
  ASSERT_TRUE(object_->invalidate(folio));
  ASSERT_TRUE(tickets_->wait_for(2)) << "now it is fetched anew";
  tickets_->answer_all();
  testing::internal::GetCapturedStderr();
}

TEST_F(InPlace, AFailedFolioLeavesNothingBehindAndTheNextOneWorks) {
  make(kFolio * 2);
  testing::internal::CaptureStderr();
  space().handle_fault(kBase);
  ASSERT_TRUE(tickets_->wait_for(1));
  auto ticket = tickets_->take();
  Pattern::fill(ticket->buffer(), 99);
  std::move(*ticket).fail(Error(Errc::io));
  EXPECT_EQ(fake().page(kBase), test::FakeUserfault::Page::poisoned);
  std::vector<std::byte> bytes(64);
  ASSERT_TRUE(object_->backing().read({0}, bytes));
  EXPECT_EQ(bytes, std::vector<std::byte>(64)) << "half a folio is not kept";
  space().handle_fault(kBase + kFolio);
  ASSERT_TRUE(tickets_->wait_for(2));
  tickets_->answer_all();
  EXPECT_EQ(fake().page(kBase + kFolio), test::FakeUserfault::Page::mapped);
  testing::internal::GetCapturedStderr();
}

}  // namespace
}  // namespace uffda
