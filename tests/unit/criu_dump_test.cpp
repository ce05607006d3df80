// The images of a CRIU dump, made by hand: both encodings of a number of pages, dumps that build on others, zombies,
// what stayed with another host, and what is broken.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "criu/dump.h"
#include "criu/dump_source.h"
#include "criu/images.h"
#include "criu/page_server_wire.h"
#include "sources/pack/blocking_reader.h"

namespace uffda::criu {
namespace {

constexpr std::uint32_t kTasksMagic = 0x50273030;
constexpr std::uint32_t kMemoryMagic = 0x57492820;
constexpr std::uint32_t kPagemapMagic = 0x56084025;
constexpr std::uint64_t kStart = 0x10000000;
constexpr std::uint64_t kFlags = MAP_PRIVATE | MAP_ANONYMOUS;

std::string number(std::uint32_t value) { return {reinterpret_cast<const char*>(&value), sizeof value}; }

/// Protobuf: fields with numbers, and fields with messages.
std::string varint(std::uint64_t value) {
  std::string text;
  for (; value >= 0x80; value >>= 7U) text += static_cast<char>(value | 0x80U);
  return text + static_cast<char>(value);
}
std::string field(unsigned key, std::uint64_t value) { return varint(std::uint64_t{key} << 3U) + varint(value); }
std::string field(unsigned key, const std::string& message) {
  return varint(std::uint64_t{key} << 3U | 2U) + varint(message.size()) + message;
}
std::string record(const std::string& message) { return number(static_cast<std::uint32_t>(message.size())) + message; }
std::string image(std::uint32_t magic, const std::string& records) {
  return number(0x54564319) + number(magic) + records;
}

std::string vma(std::uint64_t start, std::uint64_t pages, std::uint64_t flags = kFlags, std::uint64_t status = 0) {
  return field(14, field(1, start) + field(2, start + pages * 4096) + field(3, 0) + field(4, 0) + field(5, 3) +
                       field(6, flags) + field(7, status) + field(8, 0));
}
std::string memory(const std::string& vmas) { return image(kMemoryMagic, record(field(1, 7) + vmas)); }

enum class Encoding : bool { old, wide };
std::string run(std::uint64_t address, std::uint64_t pages, std::uint64_t flags, Encoding encoding = Encoding::old) {
  const std::string count = encoding == Encoding::old ? field(2, pages) : field(2, 0) + field(5, pages);
  return record(field(1, address) + count + field(4, flags));
}
std::string pagemap(unsigned id, const std::string& runs) { return image(kPagemapMagic, record(field(1, id)) + runs); }
constexpr std::uint64_t kInParent = 1;
constexpr std::uint64_t kLazyRemote = 2;
constexpr std::uint64_t kPresent = 4;

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }
std::string page(char what) { return std::string(4096, what); }

/// A directory of images, which goes with its object.
class Directory {
 public:
  Directory() {
    std::string name = (std::filesystem::temp_directory_path() / "uffda-criu-XXXXXX").string();
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  ~Directory() { std::filesystem::remove_all(path_); }
  void put(const std::string& name, const std::string& bytes) const {
    std::ofstream(path_ / name, std::ios::binary) << bytes;
  }
  void builds_on(const Directory& other) const {
    std::filesystem::create_directory_symlink(other.path_, path_ / "parent");
  }
  [[nodiscard]] std::string path() const { return path_.string(); }

  /// One task with one VMA of `pages` pages.
  void put_task(std::uint64_t pages) const {
    put("pstree.img", image(kTasksMagic, record(field(1, 5) + field(2, 0))));
    put("mm-5.img", memory(vma(kStart, pages)));
  }

 private:
  std::filesystem::path path_;
};

std::string contents(const Directory& directory) {
  auto source = open_source(source_uri(directory.path()));
  if (!source) return source.error().message();
  std::string bytes((*source)->properties().size.value, '?');
  pack::BlockingReader reader(**source, std::chrono::seconds(10));
  const auto read = reader.read({}, std::as_writable_bytes(std::span(bytes)));
  return read ? bytes : read.error().message();
}

void expect_says(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text.substr(0, 300);
}

class CriuDump : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    static const bool once = (register_criu_sources(), true);
    (void)once;
  }
};

TEST_F(CriuDump, has_its_tasks_in_order_and_a_zombie_without_memory) {
  const Directory dump;
  dump.put("pstree.img", image(kTasksMagic, record(field(1, 5)) + record(field(1, 6)) + record(field(1, 4))));
  dump.put("mm-5.img", memory(vma(kStart, 2) + vma(kStart + 0x10000, 1)));
  dump.put("mm-4.img", memory(vma(kStart, 3)));
  const auto layout = Layout::read(dump.path());
  ASSERT_TRUE(layout.has_value()) << layout.error().message();
  ASSERT_EQ(layout->tasks().size(), 3U);
  EXPECT_EQ(layout->size(), kPageSize * 6);
  EXPECT_TRUE(layout->find(6)->vmas.empty());
  EXPECT_EQ(layout->find(7), nullptr);
  EXPECT_EQ(layout->find(5)->vmas.at(1).offset.value, 2 * 4096U);
  EXPECT_EQ(layout->place_of({2 * 4096}).address.value, kStart + 0x10000);
  EXPECT_EQ(layout->place_of({4 * 4096}).pid, 4);
  EXPECT_EQ(layout->place_of({4 * 4096}).address.value, kStart + 4096);
}

TEST_F(CriuDump, only_what_criu_restores_lazily_is_its_memory) {
  const auto ranges = parse_lazy_memory(bytes_of(
      memory(vma(0x10000, 1, MAP_SHARED | MAP_ANONYMOUS) + vma(0x20000, 1, MAP_PRIVATE) +
             vma(0x30000, 1, kFlags | MAP_LOCKED) + vma(0x40000, 1, kFlags | MAP_HUGETLB) +
             vma(0x50000, 1, kFlags, 1U << 3U) + vma(0x60000, 1, kFlags, 1U << 12U) + vma(0x70000, 2, kFlags, 0x201))));
  ASSERT_TRUE(ranges.has_value()) << ranges.error().message();
  ASSERT_EQ(ranges->size(), 1U);
  EXPECT_EQ(ranges->front().start.value, 0x70000U);
}

TEST_F(CriuDump, both_encodings_of_a_number_of_pages_say_the_same) {
  for (const Encoding encoding : {Encoding::old, Encoding::wide}) {
    const Directory dump;
    dump.put_task(5);
    dump.put("pagemap-5.img",
             pagemap(9, run(kStart, 2, kPresent, encoding) + run(kStart + 4 * 4096, 1, kPresent, encoding)));
    dump.put("pages-9.img", page('a') + page('b') + page('c'));
    EXPECT_EQ(contents(dump), page('a') + page('b') + page('\0') + page('\0') + page('c'));
  }
}

TEST_F(CriuDump, tells_what_is_zero) {
  const Directory dump;
  dump.put_task(5);
  dump.put("pagemap-5.img", pagemap(1, run(kStart + 4096, 2, kPresent)));
  dump.put("pages-1.img", page('a') + page('b'));
  const auto source = open_source(source_uri(dump.path()));
  ASSERT_TRUE(source.has_value()) << source.error().message();
  const auto extents = (*source)->extents({.start = {}, .length = kPageSize * 5});
  ASSERT_TRUE(extents.has_value());
  const std::vector<Extent> wanted{{.range = {.start = {0}, .length = {4096}}, .kind = Extent::Kind::zero},
                                   {.range = {.start = {4096}, .length = {2 * 4096}}},
                                   {.range = {.start = {3 * 4096}, .length = {2 * 4096}}, .kind = Extent::Kind::zero}};
  EXPECT_EQ(*extents, wanted);
}

TEST_F(CriuDump, what_no_vma_has_any_more_counts_for_its_place_in_the_pages) {
  const Directory dump;
  dump.put_task(2);
  dump.put("pagemap-5.img", pagemap(1, run(kStart - 4096, 2, kPresent) + run(kStart + 4096, 2, kPresent)));
  dump.put("pages-1.img", page('x') + page('a') + page('b') + page('y'));
  EXPECT_EQ(contents(dump), page('a') + page('b'));
}

TEST_F(CriuDump, builds_on_a_dump_that_builds_on_another) {
  const Directory first;
  first.put("pagemap-5.img", pagemap(1, run(kStart, 4, kPresent)));
  first.put("pages-1.img", page('a') + page('b') + page('c') + page('d'));
  const Directory second;
  second.put("pagemap-5.img", pagemap(1, run(kStart, 2, kInParent) + run(kStart + 2 * 4096, 1, kPresent) +
                                             run(kStart + 3 * 4096, 1, kInParent)));
  second.put("pages-1.img", page('C'));
  second.builds_on(first);
  const Directory third;
  third.put_task(4);
  third.put("pagemap-5.img", pagemap(1, run(kStart, 1, kPresent) + run(kStart + 4096, 3, kInParent)));
  third.put("pages-1.img", page('A'));
  third.builds_on(second);
  EXPECT_EQ(contents(third), page('A') + page('b') + page('C') + page('d'));
}

TEST_F(CriuDump, a_page_that_its_parent_lacks_is_refused) {
  const Directory first;
  first.put("pagemap-5.img", pagemap(1, run(kStart, 1, kPresent)));
  first.put("pages-1.img", page('a'));
  const Directory second;
  second.put_task(2);
  second.put("pagemap-5.img", pagemap(1, run(kStart, 2, kInParent)));
  second.builds_on(first);
  expect_says(contents(second), "is not in the dump that it builds on");
}

TEST_F(CriuDump, that_builds_on_itself_is_refused) {
  const Directory dump;
  dump.put_task(1);
  dump.put("pagemap-5.img", pagemap(1, run(kStart, 1, kInParent)));
  dump.builds_on(dump);
  expect_says(contents(dump), "builds on too many dumps, or on itself");
}

TEST_F(CriuDump, pages_that_stayed_elsewhere_are_an_error_and_not_zeroes) {
  const Directory dump;
  dump.put_task(1);
  dump.put("pagemap-5.img", pagemap(1, run(kStart, 1, kLazyRemote)));
  expect_says(contents(dump), "criu-page-server://HOST:PORT");
}

TEST_F(CriuDump, pages_that_end_early_are_an_error_and_not_zeroes) {
  const Directory dump;
  dump.put_task(2);
  dump.put("pagemap-5.img", pagemap(1, run(kStart, 2, kPresent)));
  dump.put("pages-1.img", page('a'));
  expect_says(contents(dump), "its pages end at byte");
}

TEST_F(CriuDump, what_is_missing_is_named) {
  const Directory dump;
  expect_says(contents(dump), "pstree.img");
  dump.put_task(1);
  expect_says(contents(dump), "pagemap-5.img");
  dump.put("pagemap-5.img", pagemap(3, run(kStart, 1, kPresent)));
  expect_says(contents(dump), "pages-3.img");
}

TEST_F(CriuDump, an_image_that_is_cut_is_refused_or_has_fewer_records) {
  const std::string whole = pagemap(1, run(kStart, 1, kPresent) + run(kStart + 8192, 1, kPresent));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const std::string cut = whole.substr(0, size);
    const auto parsed = parse_pagemap(bytes_of(cut));
    if (parsed) EXPECT_LT(parsed->runs.size(), 2U) << size;
  }
}

TEST_F(CriuDump, what_cannot_be_is_refused) {
  const auto refused = [](const std::string& runs) { return !parse_pagemap(bytes_of(pagemap(1, runs))).has_value(); };
  EXPECT_TRUE(refused(run(kStart + 1, 1, kPresent))) << "not aligned";
  EXPECT_TRUE(refused(run(kStart, 0, kPresent))) << "no pages";
  EXPECT_TRUE(refused(run(kStart, 2, kPresent) + run(kStart + 4096, 1, kPresent))) << "overlaps";
  EXPECT_TRUE(refused(run(kStart, ~std::uint64_t{0}, kPresent, Encoding::wide))) << "wraps";
  EXPECT_TRUE(refused(run(std::uint64_t{1} << 60U, 1, kPresent))) << "no process has that";
  EXPECT_FALSE(parse_pagemap(bytes_of(memory(vma(kStart, 1)))).has_value()) << "of another kind";
  EXPECT_FALSE(parse_lazy_memory(bytes_of(memory(vma(kStart, 0)))).has_value()) << "an empty VMA";
  EXPECT_FALSE(parse_tasks(bytes_of(image(kTasksMagic, record(field(1, 0))))).has_value()) << "no such task";
}

TEST_F(CriuDump, a_task_that_comes_twice_is_refused) {
  const Directory dump;
  dump.put_task(1);
  dump.put("pstree.img", image(kTasksMagic, record(field(1, 5)) + record(field(1, 5))));
  expect_says(contents(dump), "has task 5 twice");
}

TEST_F(CriuDump, a_pagemap_that_we_write_is_read_again) {
  std::vector<std::byte> written = pagemap_beginning(3);
  const auto entry = pagemap_entry({kStart}, 7, kPresent);
  written.insert(written.end(), entry.begin(), entry.end());
  const auto read = parse_pagemap(written);
  ASSERT_TRUE(read.has_value()) << read.error().message();
  EXPECT_EQ(read->pages_id, 3U);
  ASSERT_EQ(read->runs.size(), 1U);
  EXPECT_EQ(read->runs.front().range.length, kPageSize * 7);
}

TEST(CriuPageRecord, is_read_as_it_was_written) {
  for (const RecordSize size : {RecordSize::narrow, RecordSize::wide}) {
    const PageRecord record{.command = PageCommand::add_flags, .flags = 4, .pages = 256, .address = kStart, .id = 77};
    std::array<std::byte, PageRecord::kMaxSize> bytes{};
    const auto written = encode_record(record, size, bytes);
    ASSERT_EQ(written.size(), static_cast<std::size_t>(size));
    const auto read = parse_record(written, size);
    ASSERT_TRUE(read.has_value());
    EXPECT_EQ(*read, record);
  }
}

TEST(CriuPageRecord, of_an_unknown_command_is_refused) {
  std::array<std::byte, 24> bytes{};
  EXPECT_FALSE(parse_record(bytes, RecordSize::narrow).has_value());
  bytes[0] = std::byte{99};
  EXPECT_FALSE(parse_record(bytes, RecordSize::narrow).has_value());
}

}  // namespace
}  // namespace uffda::criu
