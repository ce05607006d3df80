// What a QEMU that is being restored sends back; the image of a machine; and which pages are sent in which order.
#include "qemu/replies.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "qemu/bytes.h"
#include "qemu/image.h"
#include "qemu/push_plan.h"
#include "qemu/words.h"

namespace uffda::qemu {
namespace {

struct Answer {
  std::vector<std::byte> bytes;
  Answer& message(ReplyWord word, const std::vector<std::byte>& body) {
    ByteWriter out(bytes);
    out.number(static_cast<std::uint16_t>(word));
    out.number(static_cast<std::uint16_t>(body.size()));
    out.bytes(body);
    return *this;
  }
  static std::vector<std::byte> request(std::uint64_t start, std::uint32_t length, std::string_view name = {}) {
    std::vector<std::byte> body;
    ByteWriter out(body);
    out.number(start);
    out.number(length);
    if (!name.empty()) out.name(name);
    return body;
  }
};

std::vector<Reply> replies(std::span<const std::byte> bytes, std::size_t piece) {
  ReplyParser parser;
  std::vector<Reply> all;
  while (!bytes.empty()) {
    const auto part = bytes.first(std::min(piece, bytes.size()));
    parser.push(part);
    bytes = bytes.subspan(part.size());
    for (;;) {
      auto next = parser.next();
      EXPECT_TRUE(next);
      if (!next || !*next) break;
      all.push_back(**std::move(next));
    }
  }
  return all;
}

TEST(QemuReplies, APongAmongTheOthersIsFoundByItsBytes) {
  Answer answer;
  answer.message(ReplyWord::resumed, {4, std::byte{0}});
  answer.message(ReplyWord::pong, {std::byte{0x12}, std::byte{0x34}, std::byte{0x56}, std::byte{0x78}});
  const std::vector<std::byte> wanted = pong(0x12345678);
  EXPECT_EQ(std::ranges::search(answer.bytes, wanted).begin() - answer.bytes.begin(), 8);
  EXPECT_TRUE(std::ranges::search(answer.bytes, pong(0x12345679)).empty());
}

TEST(QemuReplies, AreCutOutOfTheBytesInAnyPieces) {
  Answer answer;
  answer.message(ReplyWord::pong, {4, std::byte{0}});
  answer.message(ReplyWord::request_named, Answer::request(4096, 8192, "pc.ram"));
  answer.message(ReplyWord::request, Answer::request(0, 4096));
  std::vector<std::byte> name;
  ByteWriter(name).name("vga");
  answer.message(ReplyWord::received, name);
  ByteWriter out(answer.bytes);
  out.number(std::uint64_t{8});
  out.number(std::uint64_t{0x0300000000000000});
  out.number(kBitmapEnd);
  answer.message(ReplyWord::resumed, {4, std::byte{1}});
  answer.message(ReplyWord::closed, {4, std::byte{0}});
  for (const std::size_t piece : {std::size_t{1}, std::size_t{5}, answer.bytes.size()}) {
    const auto all = replies(answer.bytes, piece);
    ASSERT_EQ(all.size(), 5U);
    EXPECT_EQ(std::get<PageRequest>(all[0]), (PageRequest{"pc.ram", {4096}, {8192}}));
    EXPECT_EQ(std::get<PageRequest>(all[1]), (PageRequest{"pc.ram", {0}, {4096}})) << "of the block of the last one";
    EXPECT_EQ(std::get<ReceivedPages>(all[2]).block, "vga");
    EXPECT_EQ(std::get<ReceivedPages>(all[2]).bits.front(), std::byte{3});
    EXPECT_TRUE(std::holds_alternative<Resumed>(all[3]));
    EXPECT_FALSE(std::get<Closed>(all[4]).failed);
  }
}

TEST(QemuReplies, WhatMakesNoSenseIsRefused) {
  for (const Answer& answer :
       {Answer().message(static_cast<ReplyWord>(99), {}), Answer().message(ReplyWord::request, {}),
        Answer().message(ReplyWord::received, {}), Answer().message(ReplyWord::closed, {})}) {
    ReplyParser parser;
    parser.push(answer.bytes);
    EXPECT_EQ(parser.next().error().code(), Errc::protocol);
  }
}

ImageHead some_head() {
  const std::vector<RamBlock> ram = {{"pc.ram", {128 * 4096}}, {"huge", {4_MiB}, {2_MiB}}, {"rom", {8192}}};
  ImageHead head{.machine = "pc-q35-7.2", .blocks = place_blocks(ram), .devices = {}};
  head.devices = {.start = end_of(head.blocks), .length = {1000}};
  return head;
}

TEST(QemuImage, AHeadIsReadBackAndItsBlocksDoNotOverlap) {
  const ImageHead head = some_head();
  const auto bytes = encode_head(head);
  ASSERT_TRUE(bytes);
  const auto parsed = parse_head(*bytes, {head.devices.end().value});
  ASSERT_TRUE(parsed) << parsed.error().message();
  EXPECT_EQ(*parsed, head);
}

TEST(QemuImage, WhatDoesNotLieWithinTheImageIsRefused) {
  const ImageHead head = some_head();
  const auto bytes = encode_head(head);
  EXPECT_FALSE(parse_head(*bytes, {head.devices.end().value - 1})) << "devices";
  EXPECT_FALSE(parse_head(std::span(*bytes).first(60), {head.devices.end().value})) << "cut off";
  for (const auto& spoil : std::initializer_list<void (*)(ImageHead&)>{
           [](ImageHead& bad) { bad.blocks[1].place = bad.blocks[0].place; },
           [](ImageHead& bad) { bad.blocks[1].block.page_size = {3 * 4096}; },
           [](ImageHead& bad) { bad.blocks[0].block.length = {5000}; },
           [](ImageHead& bad) { bad.blocks[2].block.name.clear(); }, [](ImageHead& bad) { bad.blocks.clear(); },
           [](ImageHead& bad) { bad.devices.start = {0}; }}) {
    ImageHead bad = head;
    spoil(bad);
    EXPECT_FALSE(parse_head(*encode_head(bad), {head.devices.end().value}));
  }
}

TEST(QemuPlan, UnitsCountThroughAllBlocks) {
  const std::vector<RamBlock> ram = {{"a", {8192}}, {"huge", {4_MiB}, {2_MiB}}, {"c", {4096}}};
  const Units units(ram);
  EXPECT_EQ(units.count(), 5U);
  EXPECT_EQ(units.place(1).offset.value, 4096U);
  EXPECT_EQ(units.place(3).block, 1U);
  EXPECT_EQ(units.place(3).offset.value, ByteCount{2_MiB}.value);
  EXPECT_EQ(units.place(4).block, 2U);
  EXPECT_EQ(units.at(1, {3'000'000}), 3U);
}

TEST(QemuPlan, AUnitThatIsZeroesInPartIsData) {
  const std::vector<RamBlock> ram = {{"huge", {8_MiB}, {2_MiB}}};
  const Units units(ram);
  const ByteRange range{.start = {1U << 20U}, .length = 4_MiB};
  EXPECT_EQ(units_of(units, 0, range, Extent::Kind::data), (PushRun{0, 3, false}));
  EXPECT_EQ(units_of(units, 0, range, Extent::Kind::zero), (PushRun{1, 1, true}));
  EXPECT_EQ(units_of(units, 0, {{4096}, {4096}}, Extent::Kind::zero).count, 0U);
}

}  // namespace
}  // namespace uffda::qemu
