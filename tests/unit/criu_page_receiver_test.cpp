// A dump that somebody sends, record by record.
#include "server/criu_page_receiver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <map>
#include <vector>

#include "criu/images.h"
#include "os/socket.h"
#include "os/tcp.h"

namespace uffda {
namespace {

using criu::PageCommand;
using criu::PageRecord;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Key;

constexpr std::uint64_t kId = 5U << 8U | 1U;

class PageReceiver : public testing::Test {
 protected:
  PageReceiver() : ends_(os::make_stream_pair().value()) {}

  Result<bool> tell(const PageRecord& record, std::size_t pages = 0) {
    const std::vector<std::byte> bytes(pages * kPageSize.value, std::byte{0x5a});
    EXPECT_TRUE(os::send_all(ends_.first.get(), bytes, Deadline::after(std::chrono::seconds(10))));
    return receiver_.handle(ends_.second.get(), record);
  }
  std::vector<std::byte> contents(const std::string& name) {
    struct stat status{};
    const int file = files_.at(name).get();
    EXPECT_EQ(::fstat(file, &status), 0);
    std::vector<std::byte> bytes(static_cast<std::size_t>(status.st_size));
    EXPECT_EQ(::pread(file, bytes.data(), bytes.size(), 0), status.st_size);
    return bytes;
  }

  os::SocketPair ends_;
  std::map<std::string, os::UniqueFd> files_;
  CriuPageReceiver receiver_{[this](const std::string& name) -> Result<os::UniqueFd> {
    os::UniqueFd file(::memfd_create(name.c_str(), MFD_CLOEXEC));
    os::UniqueFd copy(::dup(file.get()));
    files_[name] = std::move(file);
    return copy;
  }};
};

TEST_F(PageReceiver, StoresWhatItsReaderFinds) {
  EXPECT_EQ(tell({.command = PageCommand::open, .id = kId}), true);
  EXPECT_EQ(
      tell(
          {.command = PageCommand::add_flags, .flags = PageRecord::kPresent, .pages = 2, .address = 0x10000, .id = kId},
          2),
      true);
  EXPECT_EQ(
      tell({.command = PageCommand::add_flags, .flags = PageRecord::kLazy, .pages = 3, .address = 0x20000, .id = kId}),
      true);
  EXPECT_EQ(tell({.command = PageCommand::add, .pages = 1, .address = 0x30000, .id = kId}, 1), true);
  EXPECT_EQ(tell({.command = PageCommand::close}), false);
  EXPECT_THAT(files_, ElementsAre(Key("pagemap-5.img"), Key("pages-1.img")));
  EXPECT_EQ(contents("pages-1.img").size(), 3 * kPageSize.value);
  const auto pagemap = criu::parse_pagemap(contents("pagemap-5.img"));
  ASSERT_TRUE(pagemap) << pagemap.error().message();
  ASSERT_EQ(pagemap->runs.size(), 3U);
  EXPECT_EQ(pagemap->runs[0].where, criu::PagemapRun::Where::here);
  EXPECT_EQ(pagemap->runs[1].where, criu::PagemapRun::Where::remote);
  EXPECT_EQ(pagemap->runs[2].where, criu::PagemapRun::Where::here);
}

TEST_F(PageReceiver, RefusesPagesThatAreNowhere) {
  ASSERT_EQ(tell({.command = PageCommand::open, .id = kId}), true);
  for (const std::uint32_t flags : {0U, 8U, PageRecord::kInParent, PageRecord::kInParent | PageRecord::kPresent}) {
    const auto added = tell({.command = PageCommand::add_flags,
                             .flags = static_cast<std::uint16_t>(flags),
                             .pages = 1,
                             .address = 0x10000,
                             .id = kId});
    ASSERT_FALSE(added) << flags;
    EXPECT_THAT(added.error().message(), HasSubstr("--prev-images-dir")) << flags;
  }
}

TEST_F(PageReceiver, RefusesPagesOfWhatIsNotOpen) {
  const PageRecord page{.command = PageCommand::add, .pages = 1, .address = 0x10000, .id = kId};
  EXPECT_FALSE(tell(page));
  ASSERT_EQ(tell({.command = PageCommand::open, .id = kId + 256}), true);
  EXPECT_FALSE(tell(page));
  EXPECT_FALSE(tell({.command = PageCommand::add, .pages = 0, .address = 0x10000, .id = kId + 256}));
  EXPECT_FALSE(tell({.command = PageCommand::open, .id = ~std::uint64_t{0}}));
}

}  // namespace
}  // namespace uffda
