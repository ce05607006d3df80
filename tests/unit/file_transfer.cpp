// How one read of a file proceeds, outcome by outcome, without a file: short reads, interruptions, ends.
#include <gtest/gtest.h>

#include <fcntl.h>

#include <cerrno>
#include <cstdlib>
#include <memory>
#include <vector>

#include "sources/file_engine.h"

namespace uffda::sources {
namespace {

class Owner final : public FetchOwner {
 public:
  void fetched(void*, Result<ByteCount> result) noexcept override { results.push_back(std::move(result)); }
  std::vector<Result<ByteCount>> results;
};

/// One read of `length` bytes at `offset` of a pretended file of 10000 bytes.
struct Reading {
  Reading(std::uint64_t offset, std::uint64_t length, bool direct, Duration until_deadline = std::chrono::minutes(1))
      : read(FetchTicket(owner, nullptr, {{offset}, {length}}, {memory.get(), length}, Deadline::after(until_deadline)),
             {0}, {length}) {
    file.size = {10000};
    file.name = "file:pretended";
    if (!direct) return;
    file.direct.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    file.direct_align = 512;
    file.memory_align = 512;
  }

  std::unique_ptr<std::byte, void (*)(void*)> memory{static_cast<std::byte*>(std::aligned_alloc(4096, 16384)),
                                                     &std::free};
  Owner owner;
  FileAccess file;
  FileTransfer read;
};

using Step = FileTransfer::Step;

TEST(FileTransfer, goes_on_after_a_short_read_where_it_stopped) {
  Reading r(4096, 4096, false);
  EXPECT_EQ(r.read.advance(r.file, 1000), Step::more);
  const FileTransfer::Part rest = r.read.next(r.file);
  EXPECT_EQ(rest.offset, 5096U);
  EXPECT_EQ(rest.buffer.data(), r.memory.get() + 1000);
  EXPECT_EQ(rest.buffer.size(), 3096U);
  EXPECT_EQ(r.read.advance(r.file, 3096), Step::finished);
  ASSERT_EQ(r.owner.results.size(), 1U);
  EXPECT_EQ(r.owner.results[0]->value, 4096U);
}

TEST(FileTransfer, tries_again_when_it_was_interrupted) {
  Reading r(0, 4096, false);
  EXPECT_EQ(r.read.advance(r.file, -EINTR), Step::more);
  EXPECT_EQ(r.read.advance(r.file, -EAGAIN), Step::more);
  EXPECT_EQ(r.read.next(r.file).offset, 0U);
  EXPECT_TRUE(r.owner.results.empty());
  EXPECT_EQ(r.read.advance(r.file, 4096), Step::finished);
}

TEST(FileTransfer, stops_trying_at_the_deadline) {
  Reading r(0, 4096, false, std::chrono::seconds(-1));
  EXPECT_EQ(r.read.advance(r.file, -EAGAIN), Step::finished);
  EXPECT_EQ(r.owner.results.at(0).error().code(), Errc::timed_out);
}

TEST(FileTransfer, fails_at_an_end_that_came_too_early) {
  Reading r(4096, 4096, false);
  EXPECT_EQ(r.read.advance(r.file, 904), Step::more);
  EXPECT_EQ(r.read.advance(r.file, 0), Step::finished);
  EXPECT_EQ(r.owner.results.at(0).error().code(), Errc::io);
  EXPECT_NE(r.owner.results[0].error().context().find("shrank"), std::string::npos);
}

TEST(FileTransfer, calls_every_failure_of_a_read_io_and_keeps_its_errno) {
  Reading r(0, 4096, false);
  EXPECT_EQ(r.read.advance(r.file, -EINVAL), Step::finished);
  EXPECT_EQ(r.owner.results.at(0).error().code(), Errc::io);
  EXPECT_EQ(r.owner.results[0].error().sys_errno(), EINVAL);
}

TEST(FileTransfer, reads_whole_blocks_directly_and_the_tail_through_the_page_cache) {
  Reading r(8192, 1808, true);
  const FileTransfer::Part blocks = r.read.next(r.file);
  EXPECT_TRUE(blocks.direct);
  EXPECT_EQ(blocks.buffer.size(), 1536U);
  EXPECT_EQ(r.read.advance(r.file, 1536), Step::more);
  const FileTransfer::Part tail = r.read.next(r.file);
  EXPECT_FALSE(tail.direct);
  EXPECT_EQ(tail.offset, 9728U);
  EXPECT_EQ(tail.buffer.size(), 272U);
  EXPECT_EQ(r.read.advance(r.file, 272), Step::finished);
  EXPECT_EQ(r.owner.results.at(0)->value, 1808U);
}

TEST(FileTransfer, leaves_the_direct_way_when_a_short_read_ends_within_a_block) {
  Reading r(0, 4096, true);
  EXPECT_TRUE(r.read.next(r.file).direct);
  EXPECT_EQ(r.read.advance(r.file, 1000), Step::more);
  const FileTransfer::Part rest = r.read.next(r.file);
  EXPECT_FALSE(rest.direct);
  EXPECT_EQ(rest.buffer.size(), 3096U);
}

}  // namespace
}  // namespace uffda::sources
