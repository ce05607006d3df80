// QEMU's migration stream: what is read of one, what is refused, and what is written is read back.
#include "qemu/stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "qemu/bytes.h"
#include "qemu/words.h"

namespace uffda::qemu {
namespace {

using ::testing::HasSubstr;

/// Keeps what it hears.
struct Kept final : StreamSink {
  Result<void> blocks(std::span<const RamBlock> all) override {
    table.assign(all.begin(), all.end());
    return {};
  }
  Result<void> page(std::size_t block, ByteOffset offset, std::span<const std::byte> bytes) override {
    pages[{block, offset.value}] = bytes.front();
    EXPECT_EQ(bytes.size(), kTargetPage.value);
    return {};
  }
  Result<void> zero_page(std::size_t block, ByteOffset offset) override {
    pages[{block, offset.value}] = std::byte{0};
    return {};
  }
  std::vector<RamBlock> table;
  std::map<std::pair<std::size_t, std::uint64_t>, std::byte> pages;
};

/// A precopy stream, part by part.
class Written {
 public:
  Written() {
    out.number(kStreamMagic);
    out.number(kStreamVersion);
  }
  Written& configuration(std::string_view machine) {
    out.number(std::uint8_t{7});
    out.number(static_cast<std::uint32_t>(machine.size()));
    out.bytes(std::as_bytes(std::span(machine)));
    return *this;
  }
  Written& capability(std::string_view name) {
    out.number(std::uint8_t{5});
    out.name("configuration/capabilities");
    out.number(std::uint32_t{1});
    out.number(std::uint32_t{1});
    out.name(name);
    return *this;
  }
  Written& start(std::string_view name = "ram", std::uint32_t version = 4) {
    out.number(std::uint8_t{1});
    out.number(std::uint32_t{3});
    out.name(name);
    out.number(std::uint32_t{0});
    out.number(version);
    return *this;
  }
  Written& table(std::initializer_list<RamBlock> blocks, bool placed = false) {
    std::uint64_t total = 0;
    for (const RamBlock& block : blocks) total += block.length.value;
    out.number(total | kTable);
    for (const RamBlock& block : blocks) {
      out.name(block.name);
      out.number(block.length.value);
      if (placed) out.number(std::uint64_t{0});
    }
    return end_records();
  }
  Written& section(std::uint8_t mark) {
    out.number(mark);
    out.number(std::uint32_t{3});
    return *this;
  }
  Written& page(std::uint64_t offset, std::string_view block, std::uint8_t value) {
    out.number(offset | kPage | (block.empty() ? kSameBlock : 0));
    if (!block.empty()) out.name(block);
    bytes.insert(bytes.end(), kTargetPage.value, std::byte{value});
    return *this;
  }
  Written& record(std::uint64_t word) {
    out.number(word);
    return *this;
  }
  Written& end_records() {
    out.number(kEndOfRecords);
    out.number(std::uint8_t{0x7e});
    out.number(std::uint32_t{3});
    return *this;
  }
  Written& devices(std::string_view text, std::string_view description = "{}") {
    out.bytes(std::as_bytes(std::span(text)));
    out.number(std::uint8_t{0});
    if (description.empty()) return *this;
    out.number(std::uint8_t{6});
    out.number(static_cast<std::uint32_t>(description.size()));
    out.bytes(std::as_bytes(std::span(description)));
    return *this;
  }
  std::vector<std::byte> bytes;
  ByteWriter out{bytes};
};

std::string text(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// Parsed in pieces of that size.
Result<MachineState> parse(std::span<const std::byte> bytes, Kept& kept, std::size_t piece = 1U << 20U) {
  StreamParser parser(kept);
  while (!bytes.empty()) {
    const auto part = bytes.first(std::min(piece, bytes.size()));
    UFFDA_TRY_VOID(parser.push(part));
    bytes = bytes.subspan(part.size());
  }
  return parser.finish();
}

std::string why(const Written& written) {
  Kept kept;
  const auto parsed = parse(written.bytes, kept);
  return parsed ? "parsed" : parsed.error().message();
}

Written two_blocks() {
  Written stream;
  stream.configuration("pc-q35").start().table(
      {{.name = "pc.ram", .length = {8192}}, {.name = "vga", .length = {4096}}});
  return stream;
}

TEST(QemuStream, PagesComeOutOfItInAnyPieces) {
  Written stream = two_blocks();
  stream.section(2).page(0, "pc.ram", 1).page(4096, "", 2);
  stream.record(0 | kZeroPage).out.name("vga");
  stream.out.number(std::uint8_t{0});
  stream.end_records();
  stream.section(3).page(4096, "pc.ram", 9).end_records().devices("timer state");
  for (const std::size_t piece : {std::size_t{1}, std::size_t{7}, std::size_t{4096}, stream.bytes.size()}) {
    Kept kept;
    const auto state = parse(stream.bytes, kept, piece);
    ASSERT_TRUE(state) << state.error().message();
    EXPECT_EQ(state->machine, "pc-q35");
    EXPECT_EQ(text(state->devices), "timer state");
    ASSERT_EQ(kept.table.size(), 2U);
    EXPECT_EQ(kept.pages.at({0, 0}), std::byte{1});
    EXPECT_EQ(kept.pages.at({0, 4096}), std::byte{9}) << "the last one that came is right";
    EXPECT_EQ(kept.pages.at({1, 0}), std::byte{0});
  }
}

TEST(QemuStream, APageOfOneByteIsFilledWithIt) {
  Written stream = two_blocks();
  stream.section(3).record(0 | kZeroPage).out.name("vga");
  stream.out.number(std::uint8_t{0x41});
  stream.end_records().devices("x");
  Kept kept;
  ASSERT_TRUE(parse(stream.bytes, kept));
  EXPECT_EQ(kept.pages.at({1, 0}), std::byte{0x41});
}

TEST(QemuStream, TheBlockOfTheLastRecordSpansSections) {
  Written stream = two_blocks();
  stream.section(2).page(0, "pc.ram", 1).end_records().section(3).page(4096, "", 5).end_records().devices("x");
  Kept kept;
  ASSERT_TRUE(parse(stream.bytes, kept));
  EXPECT_EQ(kept.pages.at({0, 4096}), std::byte{5});
}

TEST(QemuStream, DevicesEndWithoutADescriptionOrWithOneOfAnyLength) {
  for (const std::string& description : {std::string(), std::string("{}"), "{" + std::string(70'000, 'x') + "}"}) {
    Written stream = two_blocks();
    stream.section(3).end_records().devices("dev", description);
    Kept kept;
    const auto state = parse(stream.bytes, kept);
    ASSERT_TRUE(state) << description.size();
    EXPECT_EQ(text(state->devices), "dev");
  }
}

TEST(QemuStream, SharedBlocksMayBeLeftOut) {
  Written stream;
  stream.configuration("q35").capability("x-ignore-shared").start();
  stream.table({{.name = "m0", .length = {8192}}, {.name = "vga", .length = {4096}}}, true);
  stream.section(3).page(0, "vga", 3).end_records().devices("x");
  Kept kept;
  StreamParser parser(kept);
  ASSERT_TRUE(parser.push(stream.bytes));
  EXPECT_TRUE(parser.ignores_shared());
  EXPECT_EQ(kept.pages.size(), 1U);
}

TEST(QemuStream, WhatCouldNotBeRestoredIsRefusedByName) {
  EXPECT_THAT(why(Written().configuration("q").capability("multifd")), HasSubstr("capability multifd"));
  EXPECT_THAT(why(Written().start("block")), HasSubstr("'block'"));
  EXPECT_THAT(why(Written().start("ram", 5)), HasSubstr("version 5"));
  EXPECT_THAT(why(two_blocks().section(2).record(0x40)), HasSubstr("xbzrle"));
  EXPECT_THAT(why(two_blocks().section(2).record(0x100)), HasSubstr("compress"));
  EXPECT_THAT(why(two_blocks().section(2).record(0x200)), HasSubstr("multifd"));
  Written early;
  early.out.number(std::uint8_t{4});
  early.out.number(std::uint32_t{1});
  early.out.name("virtio-mem");
  EXPECT_THAT(why(early), HasSubstr("'virtio-mem'"));
  Written command;
  command.out.number(std::uint8_t{8});
  command.out.number(std::uint16_t{1});
  command.out.number(std::uint16_t{0});
  EXPECT_THAT(why(command), HasSubstr("return-path"));
}

TEST(QemuStream, WhatIsDamagedIsRefused) {
  Written other;
  other.bytes[0] = std::byte{1};
  EXPECT_THAT(why(other), HasSubstr("no migration stream"));
  EXPECT_THAT(why(two_blocks().section(2).page(0, "nobody", 1)), HasSubstr("nobody"));
  EXPECT_THAT(why(two_blocks().section(2).page(8192, "pc.ram", 1)), HasSubstr("outside"));
  EXPECT_THAT(why(two_blocks().section(2).page(0, "", 1)), HasSubstr("no block"));
  EXPECT_THAT(why(Written().start().table({{.name = "a", .length = {100}}, {.name = "b", .length = {3996}}})),
              HasSubstr("100 bytes"));
  EXPECT_THAT(why(two_blocks()), HasSubstr("ends too early"));
  Written cut = two_blocks();
  cut.section(3).end_records().out.name("devices");
  EXPECT_THAT(why(cut), HasSubstr("do not end"));
}

TEST(QemuStream, WhatASourceSendsNamesEveryBlockAndPage) {
  std::vector<std::byte> out;
  {
    PageSection section(out, "pc.ram");
    const std::vector<std::byte> page(kTargetPage.value, std::byte{7});
    const std::vector<std::byte> zeroes(kTargetPage.value);
    section.page({0}, page);
    section.page({4096}, zeroes);
  }
  EXPECT_EQ(out.size(), 1 + 4 + (8 + 7 + 4096) + (8 + 1) + 8 + 1 + 4) << "zeroes take one byte, the name is said once";
  const auto start = to_start({.machine = "q35", .devices = {std::byte{1}}}, std::vector<RamBlock>{{"m", {4096}}});
  EXPECT_THAT(text(start), HasSubstr("q35"));
  EXPECT_FALSE(to_ask_received(std::vector<RamBlock>{{"m", {4096}}}).empty());
}

}  // namespace
}  // namespace uffda::qemu
