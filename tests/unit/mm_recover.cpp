// A successor takes an object over: page cache and states of a server that died in the middle of everything.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <random>

#include "memtypes/builtin.h"
#include "mm/memory_object.h"
#include "os/memory.h"
#include "support/mm_core_fixture.h"

namespace uffda {
namespace {

using namespace test;

constexpr std::uint64_t kKeptFolios = 200;

/// Takes what is written; has nothing to read.
class TakingSource final : public PageSource {
 public:
  explicit TakingSource(ByteCount size) { opened("writable", {.size = size, .writable = true}); }

 private:
  void do_fetch(FetchTicket ticket) noexcept override { std::move(ticket).fail(Error(Errc::io, "nothing to read")); }
  void do_write_back(WriteTicket ticket) noexcept override { std::move(ticket).complete(); }
  Result<void> do_flush() override { return {}; }
};

class Recover : public CoreTest {
 protected:
  void SetUp() override {
    make_object(kPageSize * kKeptFolios);
    for (FolioIndex i = 0; i < kKeptFolios; ++i) put(i);
  }
  /// Bytes that no source has.
  void put(FolioIndex index) {
    const std::vector<std::byte> bytes(kPageSize.value, mark(index));
    ASSERT_TRUE(os::write_at(object_->backing().mapping_fd(), {index * kPageSize.value}, bytes));
  }
  static std::byte mark(FolioIndex index) { return static_cast<std::byte>(index + 1); }
  void apply(FolioIndex index, std::initializer_list<PageEvent> events) {
    for (const PageEvent event : events) ASSERT_TRUE(object_->states().apply(index, event));
  }
  static os::UniqueFd copy_of(int fd) { return os::UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)); }
  /// Of another core: that of the dead server is still there, as the test cannot kill it.
  Result<std::shared_ptr<MemoryObject>> adopt(OpenFor what_for, ByteCount budget = {}) {
    after_ = *Core::create({});
    EXPECT_TRUE(register_builtin_types(after_->types()));
    auto source = std::make_unique<TakingSource>(kPageSize * kKeptFolios);
    return after_->create_object(std::move(source), "shmem", budget, what_for,
                                 {.number = 7,
                                  .kept = KeptFolios{.cache = copy_of(object_->backing().mapping_fd()),
                                                     .states = copy_of(object_->states().fd())}});
  }
  bool cached(FolioIndex index) { return os::has_page(object_->backing().mapping_fd(), {index * kPageSize.value}); }

  std::shared_ptr<Core> after_;
};

TEST_F(Recover, EachStateBecomesWhatASuccessorMayBelieve) {
  using E = PageEvent;
  apply(0, {E::fetch_started});
  apply(1, {E::fetch_started, E::filled});
  apply(2, {E::fetch_started, E::filled, E::evict_started});
  apply(3, {E::fetch_started, E::failed});
  apply(100, {E::fetch_started, E::filled, E::written});
  apply(101, {E::fetch_started, E::filled, E::written});
  ASSERT_TRUE(object_->states().start_writeback(101));
  apply(102, {E::fetch_started, E::filled});
  ASSERT_TRUE(object_->states().pin(102));
  auto adopted = adopt(OpenFor::writing);
  ASSERT_TRUE(adopted) << adopted.error().message();
  FolioStates& states = (*adopted)->states();
  EXPECT_EQ((*adopted)->number(), 7U);
  EXPECT_EQ(states.get(0), PageState::absent);
  EXPECT_FALSE(cached(0)) << "half filled";
  EXPECT_EQ(states.get(1), PageState::clean);
  EXPECT_EQ(states.get(2), PageState::absent);
  EXPECT_FALSE(cached(2));
  EXPECT_EQ(states.get(3), PageState::poisoned);
  EXPECT_EQ(states.get(100), PageState::dirty);
  EXPECT_EQ(states.get(101), PageState::dirty) << "nobody knows whether it is stored";
  EXPECT_TRUE(states.unwritten(101));
  EXPECT_EQ(states.pins(102), 0U) << "who pinned it is dead";
  EXPECT_EQ((*adopted)->folios_present(), 4U);
  EXPECT_EQ((*adopted)->dirty_folios(), 2U);
  EXPECT_EQ(after_->budget().used(), kPageSize * 4U);
  std::vector<std::byte> bytes(kPageSize.value);
  ASSERT_TRUE((*adopted)->read({kPageSize.value}, bytes, Deadline::after(kPatience)));
  EXPECT_EQ(bytes[0], mark(1)) << "from the cache: no source was asked";
}

TEST_F(Recover, WhatHasNoRoomAnyMoreGoesUnlessItIsDirty) {
  using E = PageEvent;
  for (FolioIndex i = 0; i < 20; ++i) apply(i, {E::fetch_started, E::filled});
  for (FolioIndex i = 15; i < 20; ++i) apply(i, {E::written});
  const auto refused = adopt(OpenFor::writing, kPageSize * 4);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Errc::no_memory);
  const auto adopted = adopt(OpenFor::writing, kPageSize * 8);
  ASSERT_TRUE(adopted) << adopted.error().message();
  EXPECT_EQ((*adopted)->folios_present(), 8U);
  EXPECT_EQ((*adopted)->dirty_folios(), 5U);
}

TEST_F(Recover, MemoryOfAnotherSizeIsRefused) {
  after_ = *Core::create({});
  ASSERT_TRUE(register_builtin_types(after_->types()));
  auto other = after_->create_object(
      std::make_unique<TakingSource>(kPageSize * (kKeptFolios + 3000)), "shmem", {}, OpenFor::reading,
      {.number = 1,
       .kept =
           KeptFolios{.cache = copy_of(object_->backing().mapping_fd()), .states = copy_of(object_->states().fd())}});
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().code(), Errc::invalid_argument);
}

}  // namespace
}  // namespace uffda
