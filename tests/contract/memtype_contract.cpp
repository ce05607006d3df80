// What every memory type has to keep, whichever way it answers CONTINUE; and what the registry refuses.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "memtypes/builtin.h"
#include "mm/core.h"
#include "mm/memory_object.h"
#include "support/huge_pages.h"
#include "support/mm_core_fixture.h"
#include "support/mm_memory_types.h"

namespace uffda {
namespace {

using test::kBase;
using test::kPatience;
using test::page;
using test::Pattern;
using Page = test::FakeUserfault::Page;

// --- the registry ----------------------------------------------------------------------------------------------------

struct Refused {
  const char* name;
  UffdOps ops;
  const char* rule;
};

class Contradictions : public testing::TestWithParam<Refused> {};

TEST_P(Contradictions, AreRefusedWithTheRule) {
  MemoryTypes types;
  const auto registered = types.register_type(test::make_type("bad", GetParam().ops));
  ASSERT_FALSE(registered);
  EXPECT_EQ(registered.error().code(), Errc::invalid_argument);
  EXPECT_NE(registered.error().message().find(GetParam().rule), std::string::npos) << registered.error().message();
  EXPECT_NE(registered.error().message().find("bad"), std::string::npos) << "the message names the type";
  EXPECT_TRUE(types.all().empty());
}

INSTANTIATE_TEST_SUITE_P(
    Rules, Contradictions,
    testing::Values(Refused{"NoFaults", {.modes = {}, .ioctls = UffdIoctl::copy}, "at least one kind of fault"},
                    Refused{"MinorWithoutContinue",
                            {.modes = UffdMode::minor, .ioctls = UffdIoctl::copy},
                            "minor faults need CONTINUE"},
                    Refused{"MissingWithoutCopyOrContinue",
                            {.modes = UffdMode::missing, .ioctls = UffdIoctl::zeropage},
                            "missing faults need COPY or CONTINUE"},
                    Refused{"WpWithoutWriteprotect",
                            {.modes = {UffdMode::missing, UffdMode::wp}, .ioctls = UffdIoctl::copy},
                            "write-protect faults need WRITEPROTECT"},
                    Refused{"AsyncWpWithoutWp",
                            {.modes = UffdMode::missing, .ioctls = UffdIoctl::copy, .wp_async_only = true},
                            "asynchronous write-protection needs mode wp"},
                    Refused{
                        "GetFolioWithoutContinue",
                        {.modes = UffdMode::missing,
                         .ioctls = UffdIoctl::copy,
                         .get_folio = [](MemoryObject& object, FolioIndex index) { return object.find_folio(index); }},
                        "get_folio needs CONTINUE"}),
    [](const auto& refused) { return std::string(refused.param.name); });

TEST(Registry, RefusesATypeWithoutATable) {
  MemoryTypes types;
  const auto registered = types.register_type(test::make_type_without_ops("plain"));
  ASSERT_FALSE(registered);
  EXPECT_NE(registered.error().message().find("UffdOps"), std::string::npos);
}

TEST(Registry, RefusesANameTwiceAndListsWhatThereIs) {
  MemoryTypes types;
  ASSERT_TRUE(register_builtin_types(types));
  const auto again = types.register_type(make_shmem_type());
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code(), Errc::already_exists);
  const auto unknown = types.find("tape");
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code(), Errc::not_found);
  for (const char* name : {"tape", "anon", "shmem"})
    EXPECT_NE(unknown.error().message().find(name), std::string::npos) << name;
  ASSERT_TRUE(types.find("anon"));
  EXPECT_EQ((*types.find("anon"))->name(), "anon");
}

// --- every type -----------------------------------------------------------------------------------------------------

struct Type {
  const char* name;
  std::unique_ptr<MemoryType> (*make)();
  std::uint64_t huge_pages = 0;  ///< of the type's folio size, that the suite needs
};

class EveryType : public testing::TestWithParam<Type> {
 protected:
  void SetUp() override {
    auto core = Core::create({});
    ASSERT_TRUE(core);
    core_ = *core;
    ASSERT_TRUE(core_->types().register_type(GetParam().make()));
    type_ = core_->types().all().front().get();
    folio_ = type_->folio_size();
    fake_.emplace(core_);
    if (GetParam().huge_pages != 0) huge_pages_ = test::HugePages(folio_, GetParam().huge_pages);
    if (!huge_pages_.refused().empty()) GTEST_SKIP() << huge_pages_.refused();
    const auto possible = type_->create(folio_, "possible");
    if (!possible && possible.error().code() != Errc::no_memory) GTEST_SKIP() << possible.error().message();
  }
  void TearDown() override {
    fake_->space->close();
    object_.reset();
    fake_.reset();
    core_.reset();
  }
  void make_object(ByteCount size, std::function<void(FetchTicket)> answer = test::answer) {
    auto object = core_->create_object(test::answering_source(size, std::move(answer)), type_->name());
    ASSERT_TRUE(object) << object.error().message();
    object_ = *object;
    ASSERT_TRUE(fake_->space->attach(kBase, {align_up(size.value, folio_.value)}, object_, {}));
  }
  [[nodiscard]] Address folio(std::uint64_t index) const { return kBase + folio_ * index; }
  /// What a thread that touches the folio gets to see.
  std::vector<std::byte> shown(std::uint64_t index) {
    if (!object_->cached()) return fake_->userfault->copied(folio(index));
    const ByteRange range = object_->bytes_of({.first = index, .count = 1});
    std::vector<std::byte> bytes(range.length.value);
    EXPECT_TRUE(object_->backing().read(range.start, bytes));
    return bytes;
  }

  test::HugePages huge_pages_;
  std::shared_ptr<Core> core_;
  const MemoryType* type_ = nullptr;
  ByteCount folio_;
  std::shared_ptr<MemoryObject> object_;
  std::optional<test::FakeSpace> fake_;
};

TEST_P(EveryType, ATableThatHoldsTogether) {
  ASSERT_NE(type_->ops(), nullptr);
  EXPECT_TRUE(validate(*type_->ops()));
  EXPECT_FALSE(type_->name().empty());
  EXPECT_GE(folio_, kPageSize);
  EXPECT_EQ(folio_.value & (folio_.value - 1), 0U);
}

TEST_P(EveryType, ATouchedPageShowsTheSourcesBytes) {
  make_object({folio_.value * 10 + 77});
  if (!object_->faults()) GTEST_SKIP() << "a type that raises no faults";
  for (std::uint64_t i = 0; i < 11; ++i) {
    fake_->space->handle_fault(folio(i));
    ASSERT_EQ(fake_->userfault->page(folio(i)), Page::mapped) << i;
    const auto bytes = shown(i);
    const std::uint64_t valid = i == 10 ? 77 : folio_.value;
    EXPECT_EQ(Pattern::mismatch(std::span(bytes).first(valid), i * folio_.value), std::nullopt) << i;
  }
}

TEST_P(EveryType, ContinueLooksUpAndNeverFetches) {
  std::atomic<int> fetches{0};
  make_object(folio_ * 8, [&](FetchTicket ticket) {
    ++fetches;
    test::answer(std::move(ticket));
  });
  if (!object_->cached()) GTEST_SKIP() << "a type without CONTINUE";
  EXPECT_FALSE(object_->get_folio(3));
  EXPECT_EQ(object_->states().get(3), PageState::absent);
  EXPECT_EQ(fetches, 0) << "looking a folio up starts nothing";
  ASSERT_TRUE(object_->populate({.start = {folio_.value * 3}, .length = folio_}, Deadline::after(kPatience)));
  {
    const auto folio = object_->get_folio(3);
    ASSERT_TRUE(folio);
    EXPECT_EQ(folio->index(), 3U);
    EXPECT_EQ(folio->owner(), &object_->states());
    EXPECT_FALSE(object_->states().apply(3, PageEvent::evict_started)) << "what it returned is pinned";
  }
  ASSERT_TRUE(object_->states().apply(3, PageEvent::evict_started)) << "and no longer than it is held";
  EXPECT_FALSE(object_->get_folio(3)) << "a folio that is being evicted is not there";
  ASSERT_TRUE(object_->states().apply(3, PageEvent::evict_aborted));
  EXPECT_FALSE(object_->get_folio(8)) << "beyond the end";
  EXPECT_FALSE(object_->get_folio(~0ULL));
}

TEST_P(EveryType, AFolioThatIsDroppedIsGoneAndComesBackRight) {
  make_object({folio_.value * 8 + 9});
  if (!object_->cached()) GTEST_SKIP() << "a type without a page cache";
  const ByteRange all{.start = {0}, .length = {folio_.value * 8 + 9}};
  ASSERT_TRUE(object_->populate(all, Deadline::after(kPatience)));
  std::uint64_t evicted = 0;
  for (std::uint64_t chunk = 0; chunk < 9; ++chunk) evicted += object_->evict_chunk(chunk);
  EXPECT_EQ(evicted, object_->faults() ? 9U : 0U) << "what cannot be fetched again stays";
  std::vector<std::byte> bytes(all.length.value);
  ASSERT_TRUE(object_->read({0}, bytes, Deadline::after(kPatience)));
  EXPECT_EQ(Pattern::mismatch(bytes, 0), std::nullopt);
}

TEST_P(EveryType, PublishOverwritesWhateverWasThere) {
  make_object(folio_ * 4);
  if (!object_->cached()) GTEST_SKIP() << "a type without a page cache";
  // As a mapping that nobody registered leaves it (pitfall 1).
  std::vector<std::byte> zeroes(folio_.value * 4);
  ASSERT_TRUE(object_->backing().publish({.start = {0}, .length = folio_ * 4}, zeroes));
  std::vector<std::byte> bytes(folio_.value * 4);
  ASSERT_TRUE(object_->read({0}, bytes, Deadline::after(kPatience)));
  EXPECT_EQ(Pattern::mismatch(bytes, 0), std::nullopt);
}

TEST_P(EveryType, BytesThatComeUnaskedAreShownAndWhatIsPresentStays) {
  make_object({folio_.value * 3 + 5});
  if (!object_->cached()) GTEST_SKIP() << "a type without a page cache";
  ASSERT_TRUE(object_->populate({.start = {0}, .length = folio_}, Deadline::after(kPatience)));
  std::vector<std::byte> pushed(folio_.value * 3 + 5, std::byte{7});
  ASSERT_TRUE(object_->supply({0}, pushed));
  std::vector<std::byte> bytes(pushed.size());
  ASSERT_TRUE(object_->read({0}, bytes, Deadline::after(kPatience)));
  EXPECT_EQ(Pattern::mismatch(std::span(bytes).first(folio_.value), 0), std::nullopt) << "present wins";
  EXPECT_TRUE(
      std::ranges::all_of(std::span(bytes).subspan(folio_.value), [](std::byte b) { return b == std::byte{7}; }));
}

TEST_P(EveryType, WhatIsSharedIsReadOnly) {
  make_object(folio_ * 4);
  auto shared = object_->share();
  if (!object_->type().ops()->ioctls.has(UffdIoctl::continue_)) {
    ASSERT_FALSE(shared);
    EXPECT_EQ(shared.error().code(), Errc::unsupported);
    return;
  }
  ASSERT_TRUE(shared);
  const std::byte one{1};
  EXPECT_LT(::pwrite(shared->get(), &one, 1, 0), 0);
}

TEST_P(EveryType, WithoutACacheNothingCanBePopulated) {
  make_object(folio_ * 4);
  const auto populated = object_->populate({.start = {0}, .length = folio_}, Deadline::after(kPatience));
  EXPECT_EQ(populated.has_value(), object_->cached());
}

TEST_P(EveryType, ManyThreadsOnOneObject) {
  const std::uint64_t count = std::min<std::uint64_t>(256, (64_MiB).value / folio_.value);
  make_object(folio_ * count);
  if (!object_->faults()) GTEST_SKIP() << "a type that raises no faults";
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t i = 0; i < count; ++i) fake_->space->handle_fault(folio(t % 2 == 0 ? i : count - 1 - i));
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::uint64_t i = 0; i < count; ++i) {
    fake_->space->handle_fault(folio(i));
    ASSERT_EQ(fake_->userfault->page(folio(i)), Page::mapped) << i;
    EXPECT_EQ(Pattern::mismatch(shown(i), i * folio_.value), std::nullopt) << i;
  }
}

TEST_P(EveryType, OptionsThatItDoesNotKnowAreRefused) {
  const auto object =
      core_->create_object(test::answering_source(folio_, test::answer), std::string(type_->name()) + "?colour=red");
  ASSERT_FALSE(object);
  EXPECT_EQ(object.error().code(), Errc::invalid_argument);
  EXPECT_NE(object.error().message().find("colour=red"), std::string::npos) << object.error().message();
}

// Each type by both routes to CONTINUE: its hook, and fault() with userfault_continue.
INSTANTIATE_TEST_SUITE_P(
    Types, EveryType,
    testing::Values(Type{"anon", make_anon_type}, Type{"shmem", make_shmem_type},
                    Type{"shmem_attributes", [] { return test::without_hook(make_shmem_type()); }},
                    Type{"hugetlb", make_hugetlb_type, 32},
                    Type{"hugetlb_attributes", [] { return test::without_hook(make_hugetlb_type()); }, 32},
                    Type{"guest_memfd", make_guest_memfd_type}, Type{"in_place", test::make_in_place_type},
                    Type{"attributes_only", test::make_attributes_only_type}),
    [](const auto& type) { return std::string(type.param.name); });

// --- types that lie --------------------------------------------------------------------------------------------------

TEST(LyingTypes, AnotherFolioThanTheOneAskedForFailsThatFaultOnly) {
  auto core = Core::create({});
  ASSERT_TRUE(core);
  ASSERT_TRUE(
      (*core)->types().register_type(test::make_type("liar", {.modes = {UffdMode::missing, UffdMode::minor},
                                                              .ioctls = {UffdIoctl::continue_, UffdIoctl::poison},
                                                              .get_folio = [](MemoryObject& object, FolioIndex index) {
                                                                return object.find_folio(index == 2 ? 3 : index);
                                                              }})));
  auto object = (*core)->create_object(test::answering_source(kPageSize * 8, test::answer), "liar");
  ASSERT_TRUE(object);
  ASSERT_TRUE((*object)->populate({.start = {0}, .length = kPageSize * 8}, Deadline::after(kPatience)));
  testing::internal::CaptureStderr();
  EXPECT_FALSE((*object)->get_folio(2));
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("liar"), std::string::npos) << said;
  EXPECT_TRUE((*object)->get_folio(4));
  EXPECT_TRUE((*object)->states().apply(3, PageEvent::evict_started)) << "the wrong folio is not left pinned";
}

TEST(LyingTypes, AFolioThatNobodyPinnedFailsThatFaultOnly) {
  auto core = Core::create({});
  ASSERT_TRUE(core);
  ASSERT_TRUE((*core)->types().register_type(
      test::make_type("unpinner", {.modes = {UffdMode::missing, UffdMode::minor},
                                   .ioctls = {UffdIoctl::continue_, UffdIoctl::poison},
                                   .get_folio = [](MemoryObject& object, FolioIndex index) {
                                     if (index != 2) return object.find_folio(index);
                                     return Result<FolioRef>(FolioRef(object.states(), index));
                                   }})));
  auto object = (*core)->create_object(test::answering_source(kPageSize * 8, test::answer), "unpinner");
  ASSERT_TRUE(object);
  ASSERT_TRUE((*object)->populate({.start = {0}, .length = kPageSize * 8}, Deadline::after(kPatience)));
  test::FakeSpace fake(*core);
  ASSERT_TRUE(fake.space->attach(kBase, kPageSize * 8, *object, {}));
  testing::internal::CaptureStderr();
  const auto folio = (*object)->get_folio(2);
  fake.space->handle_fault(page(2));
  const std::string said = testing::internal::GetCapturedStderr();
  ASSERT_FALSE(folio);
  EXPECT_EQ(folio.error().code(), Errc::protocol);
  EXPECT_NE(said.find("unpinner"), std::string::npos) << said;
  EXPECT_EQ(fake.userfault->page(page(2)), Page::poisoned);
  fake.space->handle_fault(page(6));
  EXPECT_EQ(fake.userfault->page(page(6)), Page::mapped);
  EXPECT_TRUE((*object)->states().apply(2, PageEvent::evict_started)) << "nothing is left pinned";
  fake.space->close();
}

}  // namespace
}  // namespace uffda
