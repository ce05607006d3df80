// Writeback: what a source is asked to store, when, and what becomes of the folio.
#include <gtest/gtest.h>

#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "support/mm_core_fixture.h"

namespace uffda {
namespace {

using test::kPatience;
using test::Pattern;

/// Writes that the test answers, or that are stored at once.
class Writes {
 public:
  std::atomic<bool> at_once{false};
  std::atomic<bool> no_space{false};
  std::atomic<unsigned> flushes{0};

  void add(WriteTicket ticket) {
    if (at_once) return std::move(ticket).complete();
    {
      const std::scoped_lock lock(mutex_);
      held_.push_back(std::move(ticket));
      ++ever_;
    }
    changed_.notify_all();
  }
  /// The next one that nobody has answered.
  WriteTicket take() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, kPatience, [&] { return !held_.empty(); }));
    WriteTicket ticket = std::move(held_.front());
    held_.pop_front();
    return ticket;
  }
  /// The source does not end before this has returned, as one does whose own threads answer.
  void complete(WriteTicket ticket) {
    const std::scoped_lock lock(answering_);
    std::move(ticket).complete();
  }
  void wait_while_answering() { const std::scoped_lock lock(answering_); }
  [[nodiscard]] std::size_t ever() const {
    const std::scoped_lock lock(mutex_);
    return ever_;
  }
  void fail_all() {
    std::deque<WriteTicket> left;
    {
      const std::scoped_lock lock(mutex_);
      left.swap(held_);
    }
  }

 private:
  std::mutex answering_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<WriteTicket> held_;
  std::size_t ever_ = 0;
};

class WritableSource final : public PageSource {
 public:
  WritableSource(std::shared_ptr<Writes> writes, ByteCount size) : writes_(std::move(writes)) {
    opened("writable", {.size = size, .writable = true, .reserves = true});
  }
  ~WritableSource() override {
    writes_->fail_all();
    writes_->wait_while_answering();
  }

 private:
  void do_fetch(FetchTicket ticket) noexcept override { test::answer(std::move(ticket)); }
  void do_write_back(WriteTicket ticket) noexcept override { writes_->add(std::move(ticket)); }
  Result<void> do_flush() override {
    ++writes_->flushes;
    return {};
  }
  Result<void> do_reserve(ByteRange) override {
    if (writes_->no_space) return uffda::fail(Errc::no_memory, "full", ENOSPC);
    return {};
  }
  std::shared_ptr<Writes> writes_;
};

class WritebackTest : public testing::Test {
 protected:
  void make(ByteCount size, const CoreOptions& options = {}) {
    core_ = *Core::create(options);
    ASSERT_TRUE(register_builtin_types(core_->types()));
    auto object = core_->create_object(std::make_unique<WritableSource>(writes_, size), "shmem", {}, OpenFor::writing);
    ASSERT_TRUE(object) << object.error().message();
    object_ = *object;
  }
  void TearDown() override {
    writes_->at_once = true;
    writes_->fail_all();
    object_.reset();
    core_.reset();
  }
  Result<void> write(FolioIndex index, unsigned char value, Duration wait = kPatience) {
    const std::byte byte{value};
    return object_->write({index * kPageSize.value}, std::span(&byte, 1), Deadline::after(wait));
  }
  Result<void> sync(Duration wait = kPatience) {
    return object_->sync({.start = {0}, .length = object_->size()}, Deadline::after(wait), seen_);
  }
  PageState state(FolioIndex index) { return object_->states().get(index); }

  std::shared_ptr<Writes> writes_ = std::make_shared<Writes>();
  std::shared_ptr<Core> core_;
  std::shared_ptr<MemoryObject> object_;
  std::uint64_t seen_ = 0;
};

TEST_F(WritebackTest, NeighboursGoInOneWriteAndAreCleanAfterItsAnswer) {
  make(64_KiB);
  for (const FolioIndex index : {3, 4, 5, 9}) ASSERT_TRUE(write(index, 1));
  EXPECT_EQ(object_->dirty_folios(), 4U);
  std::thread syncing([&] { EXPECT_TRUE(sync()); });
  WriteTicket first = writes_->take();
  WriteTicket second = writes_->take();
  EXPECT_EQ(first.range(), (ByteRange{{3 * 4096}, {3 * 4096}}));
  EXPECT_EQ(second.range(), (ByteRange{{9 * 4096}, {4096}}));
  EXPECT_EQ(first.bytes()[0], std::byte{1});
  EXPECT_EQ(first.bytes()[1], Pattern::at(3 * 4096 + 1));
  EXPECT_EQ(state(4), PageState::awaiting_clean);
  writes_->complete(std::move(second));
  writes_->complete(std::move(first));
  syncing.join();
  EXPECT_EQ(state(4), PageState::clean);
  EXPECT_EQ(object_->dirty_folios(), 0U);
  EXPECT_EQ(writes_->flushes, 1U);
  EXPECT_EQ(writes_->ever(), 2U);
}

TEST_F(WritebackTest, AFolioHasOneWriteUnderWayAndTheNextHasItsNewestBytes) {
  make(64_KiB);
  ASSERT_TRUE(write(0, 1));
  std::thread first_sync([&] { EXPECT_TRUE(sync()); });
  WriteTicket first = writes_->take();
  ASSERT_TRUE(write(0, 2));
  EXPECT_EQ(state(0), PageState::dirty);
  EXPECT_FALSE(object_->states().start_writeback(0)) << "the older write has no answer yet";
  std::uint64_t seen = 0;
  std::thread second_sync(
      [&] { EXPECT_TRUE(object_->sync({.start = {0}, .length = {1}}, Deadline::after(kPatience), seen)); });
  EXPECT_EQ(first.bytes()[0], std::byte{1}) << "a buffer does not change";
  writes_->complete(std::move(first));
  WriteTicket second = writes_->take();
  EXPECT_EQ(second.bytes()[0], std::byte{2});
  EXPECT_EQ(state(0), PageState::awaiting_clean);
  writes_->complete(std::move(second));
  first_sync.join();
  second_sync.join();
  EXPECT_EQ(state(0), PageState::clean);
}

TEST_F(WritebackTest, APinnedFolioIsNotTaken) {
  make(64_KiB);
  writes_->at_once = true;
  ASSERT_TRUE(write(0, 1));
  ASSERT_TRUE(object_->states().pin(0));
  const auto refused = sync(std::chrono::milliseconds(20));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Errc::timed_out);
  EXPECT_EQ(state(0), PageState::dirty);
  object_->states().unpin(0);
  EXPECT_TRUE(sync());
  EXPECT_EQ(state(0), PageState::clean);
}

TEST_F(WritebackTest, ADroppedOrFailedWriteLeavesTheFolioDirtyAndIsToldOnce) {
  make(64_KiB);
  ASSERT_TRUE(write(0, 1));
  Result<void> told;
  std::thread syncing([&] { told = sync(); });
  {
    const WriteTicket dropped = writes_->take();
  }
  syncing.join();
  ASSERT_FALSE(told);
  EXPECT_EQ(told.error().code(), Errc::io);
  EXPECT_EQ(state(0), PageState::dirty);
  writes_->at_once = true;
  EXPECT_TRUE(sync()) << "told once, and stored now";
  std::uint64_t another = 0;
  EXPECT_FALSE(object_->sync({.start = {0}, .length = {1}}, Deadline::after(kPatience), another));
}

TEST_F(WritebackTest, ALateSourceIsAFailureAndTheFolioWaitsForItsAnswer) {
  make(64_KiB, {.deadline = std::chrono::milliseconds(50)});
  ASSERT_TRUE(write(0, 1));
  const auto late = sync(std::chrono::milliseconds(50));
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code(), Errc::timed_out);
  WriteTicket ticket = writes_->take();
  const TimePoint until = Clock::now() + kPatience;
  while (core_->stats().writeback_failures == 0 && Clock::now() < until) std::this_thread::yield();
  EXPECT_EQ(state(0), PageState::dirty);
  EXPECT_FALSE(object_->states().start_writeback(0));
  writes_->at_once = true;
  writes_->complete(std::move(ticket));
  EXPECT_FALSE(sync()) << "that it was late is told";
  EXPECT_TRUE(sync());
  EXPECT_EQ(state(0), PageState::clean);
}

TEST_F(WritebackTest, HalfOfTheBudgetMayBeDirtyAndWhoWritesMoreWaits) {
  make(64_KiB, {.budget = 32_KiB});
  for (FolioIndex index = 0; index < 4; ++index) ASSERT_TRUE(write(index, 1));
  std::thread writer([&] { EXPECT_TRUE(write(4, 1)); });
  // That it waits shows in what is written for it.
  std::vector<WriteTicket> tickets;
  tickets.push_back(writes_->take());
  EXPECT_LE(object_->dirty_folios(), 4U);
  EXPECT_EQ(tickets[0].range(), (ByteRange{{0}, {4 * 4096}}));
  writes_->complete(std::move(tickets[0]));
  writer.join();
  // Its own write may have begun by now, and has no answer.
  EXPECT_TRUE(object_->states().unwritten(4));
  EXPECT_EQ(state(0), PageState::clean);
}

TEST_F(WritebackTest, WithoutSpaceNothingBecomesDirtyUntilThereIsSome) {
  make(64_KiB);
  writes_->no_space = true;
  const auto refused = write(0, 1);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().sys_errno(), ENOSPC);
  EXPECT_EQ(state(0), PageState::clean);
  EXPECT_EQ(object_->dirty_folios(), 0U);
  writes_->no_space = false;
  EXPECT_TRUE(write(0, 1)) << "asked anew";
}

TEST_F(WritebackTest, ACountOfFailuresThatNeverWereIsNoError) {
  make(64_KiB);
  writes_->at_once = true;
  std::uint64_t invented = 7;
  EXPECT_TRUE(object_->sync({.start = {0}, .length = {1}}, Deadline::after(kPatience), invented));
  EXPECT_EQ(invented, 0U);
  EXPECT_EQ(object_->failures_told(), 0U);
}

TEST_F(WritebackTest, TheEndOfTheObjectStoresWhatIsDirty) {
  make(64_KiB);
  ASSERT_TRUE(write(7, 9));
  std::thread ending([&] { object_.reset(); });
  WriteTicket ticket = writes_->take();
  EXPECT_EQ(ticket.bytes()[0], std::byte{9});
  writes_->complete(std::move(ticket));
  ending.join();
  EXPECT_GE(writes_->flushes, 1U);
}

/// A mapping that somebody else writes through, or that cannot be protected.
class ScriptedMapper final : public FolioMapper {
 public:
  std::atomic<bool> refuses{false};
  std::function<void(FolioRange)> meanwhile;
  std::vector<FolioRange> asked;

  Protected protect_folios(const MemoryObject&, FolioRange folios) override {
    asked.push_back(folios);
    if (meanwhile) meanwhile(folios);
    return refuses ? Protected::again : Protected::done;
  }
  void unmap_folios(const MemoryObject&, std::span<const FolioRange>) override {}
};

class WriteLogTest : public WritebackTest {
 protected:
  void start() {
    make(1_MiB);
    writes_->at_once = true;
    mapper_ = std::make_shared<ScriptedMapper>();
    object_->add_mapper(mapper_);
    ASSERT_TRUE(write(100, 1));  // Dirty before
    auto log = object_->start_log(Deadline::after(kPatience));
    ASSERT_TRUE(log) << log.error().message();
    log_ = *log;
    EXPECT_EQ(mapper_->asked, (std::vector<FolioRange>{{100, 1}})) << "what is clean is protected";
    mapper_->asked.clear();
  }
  std::vector<FolioRange> collect() {
    auto found = log_->collect(Deadline::after(kPatience));
    EXPECT_TRUE(found) << found.error().message();
    return found ? *found : std::vector<FolioRange>{};
  }

  using Ranges = std::vector<FolioRange>;
  std::shared_ptr<ScriptedMapper> mapper_;
  WriteLog* log_ = nullptr;
};

TEST_F(WriteLogTest, NamesWhatIsWrittenOnceAndProtectsItInRuns) {
  start();
  for (const FolioIndex index : {100, 63, 64, 3}) ASSERT_TRUE(write(index, 2));
  const Ranges written{{3, 1}, {63, 2}, {100, 1}};
  EXPECT_EQ(log_->peek(), written);
  EXPECT_EQ(collect(), written);
  EXPECT_EQ(mapper_->asked, (Ranges{{3, 1}, {63, 1}, {64, 1}, {100, 1}})) << "word by word";
  EXPECT_EQ(collect(), Ranges{});
  ASSERT_TRUE(write(3, 3)) << "it is Dirty already";
  EXPECT_EQ(collect(), (Ranges{{3, 1}}));
}

TEST_F(WriteLogTest, AFolioThatStaysPinnedIsNamedAgain) {
  start();
  ASSERT_TRUE(write(5, 1));
  ASSERT_TRUE(object_->states().pin(5));
  EXPECT_EQ(collect(), (Ranges{{5, 1}}));
  EXPECT_TRUE(mapper_->asked.empty()) << "the protection would go again, unseen";
  object_->states().unpin(5);
  EXPECT_EQ(collect(), (Ranges{{5, 1}}));
  EXPECT_EQ(mapper_->asked, (Ranges{{5, 1}}));
  EXPECT_EQ(collect(), Ranges{});
}

TEST_F(WriteLogTest, APinThatGoesIsWaitedFor) {
  start();
  ASSERT_TRUE(write(5, 1));
  ASSERT_TRUE(object_->states().pin(5));
  std::thread collecting([&] { EXPECT_EQ(collect(), (Ranges{{5, 1}})); });
  const TimePoint until = Clock::now() + kPatience;
  while (!log_->peek().empty() && Clock::now() < until) std::this_thread::yield();  // its bit is taken
  object_->states().unpin(5);
  collecting.join();
  EXPECT_EQ(mapper_->asked, (Ranges{{5, 1}}));
  EXPECT_EQ(collect(), Ranges{});
}

TEST_F(WriteLogTest, WhatIsWrittenDuringTheCallIsInTheNextAnswer) {
  start();
  ASSERT_TRUE(write(5, 1));
  mapper_->meanwhile = [&](FolioRange) { EXPECT_TRUE(write(5, 2)); };
  EXPECT_EQ(collect(), (Ranges{{5, 1}}));
  mapper_->meanwhile = nullptr;
  EXPECT_EQ(collect(), (Ranges{{5, 1}}));
  EXPECT_EQ(collect(), Ranges{});
}

TEST_F(WriteLogTest, WhereProtectingFailsNothingIsForgotten) {
  start();
  for (const FolioIndex index : {5, 200}) ASSERT_TRUE(write(index, 1));
  mapper_->meanwhile = [&](FolioRange folios) { mapper_->refuses = folios.first == 200; };
  const auto failed = log_->collect(Deadline::after(std::chrono::milliseconds(5)));
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code(), Errc::timed_out);
  mapper_->meanwhile = nullptr;
  mapper_->refuses = false;
  EXPECT_EQ(collect(), (Ranges{{5, 1}, {200, 1}}));
}

TEST_F(WriteLogTest, AnotherOneIsRefusedUntilItEnds) {
  start();
  const auto another = object_->start_log(Deadline::after(kPatience));
  ASSERT_FALSE(another);
  EXPECT_EQ(another.error().code(), Errc::busy);
  object_->end_log();
  ASSERT_TRUE(write(7, 1)) << "in no log";
  ASSERT_TRUE(object_->start_log(Deadline::after(kPatience)));
  EXPECT_EQ(collect(), Ranges{});
}

}  // namespace
}  // namespace uffda
