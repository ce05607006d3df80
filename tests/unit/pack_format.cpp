// The pack format: what is read back is what was written; what was changed or cut is found, frame by frame.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "sources/pack/blocking_reader.h"
#include "sources/pack/chain.h"
#include "support/pack_files.h"

namespace uffda::pack {
namespace {

using test::Bytes;
using test::mixed_contents;
using test::packed;

constexpr std::size_t kFrame = 4096;

template <typename T>
Bytes with(Bytes bytes, std::size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
  return bytes;
}

std::uint64_t index_at(const Bytes& pack) {
  std::uint64_t at = 0;
  std::memcpy(&at, pack.data() + 32, sizeof at);
  return at;
}

/// Where the entry of a frame is in the file.
std::size_t entry_at(const Bytes& pack, std::size_t frame) {
  return index_at(pack) + kIndexHeadBytes + frame * kEntryBytes;
}

Index index_of(const Bytes& pack) {
  auto opened = open_pack(test::bytes_source(pack));
  EXPECT_TRUE(opened.has_value()) << opened.error().message();
  return std::move(opened->index);
}

/// What is wrong with a pack that has right checksums.
std::string complaint(Bytes pack) {
  EXPECT_TRUE(test::mend_checksums(pack));
  const auto opened = test::open_packed(pack);
  return opened ? "nothing" : opened.error().message();
}

void expect_complaint(Bytes pack, const std::string& words) {
  const std::string said = complaint(std::move(pack));
  EXPECT_NE(said.find(words), std::string::npos) << said;
}

Result<void> read(PageSource& source, std::uint64_t offset, std::span<std::byte> out) {
  return BlockingReader(source, std::chrono::minutes(1)).read({offset}, out);
}

struct Outcome {
  bool opened = false;
  std::vector<std::size_t> failed;  ///< frames
  bool wrong = false;               ///< bytes
};

/// Opens and reads all of it, frame by frame.
Outcome read_all(const Bytes& pack, const Bytes& contents) {
  Outcome outcome;
  const auto source = test::open_packed(pack);
  outcome.opened = source.has_value();
  if (!source) return outcome;
  if ((*source)->properties().size.value != contents.size()) return {.opened = true, .failed = {}, .wrong = true};
  Bytes buffer(kFrame);
  for (std::size_t at = 0; at < contents.size(); at += kFrame) {
    const auto bytes = std::span(buffer).first(std::min(kFrame, contents.size() - at));
    const auto done = read(**source, at, bytes);
    if (!done) {
      EXPECT_EQ(done.error().code(), Errc::io) << done.error().message();
      outcome.failed.push_back(at / kFrame);
    } else if (!std::ranges::equal(bytes, std::span(contents).subspan(at, bytes.size()))) {
      outcome.wrong = true;
    }
  }
  return outcome;
}

TEST(PackFormat, reads_back_what_was_written_with_every_kind_of_frame) {
  const Bytes contents = mixed_contents(43);
  const Bytes pack = packed(contents);
  const Summary summary = summary_of(index_of(pack), {pack.size()});
  for (const FrameKind kind : {FrameKind::zero, FrameKind::zstd, FrameKind::raw, FrameKind::duplicate}) {
    EXPECT_GT(summary.of(kind).frames, 0U) << static_cast<int>(kind);
  }
  const Outcome outcome = read_all(pack, contents);
  EXPECT_TRUE(outcome.opened);
  EXPECT_TRUE(outcome.failed.empty());
  EXPECT_FALSE(outcome.wrong);
}

TEST(PackFormat, takes_contents_of_any_size) {
  for (const std::size_t size : {1U, 2U, 100U, 4095U, 4096U, 4097U, 12288U}) {
    Bytes contents(size, std::byte{7});
    EXPECT_FALSE(read_all(packed(contents), contents).wrong) << size;
    contents.assign(size, std::byte{0});
    const Outcome zeroes = read_all(packed(contents), contents);
    EXPECT_TRUE(zeroes.opened && zeroes.failed.empty() && !zeroes.wrong) << size;
  }
}

TEST(PackFormat, refuses_every_truncation_and_every_appended_byte) {
  const Bytes pack = packed(mixed_contents(7));
  for (std::size_t size = 1; size < pack.size(); ++size) {
    EXPECT_FALSE(test::open_packed({pack.begin(), pack.begin() + static_cast<std::ptrdiff_t>(size)}).has_value())
        << size;
  }
  Bytes longer = pack;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(test::open_packed(longer).has_value());
}

Bytes flipped(Bytes bytes, std::size_t bit) {
  bytes[bit / 8] ^= std::byte{1} << (bit % 8);
  return bytes;
}

TEST(PackFormat, refuses_every_flipped_bit_outside_of_the_frames) {
  const Bytes pack = packed(mixed_contents(9));
  for (std::size_t bit = 0; bit < pack.size() * 8; ++bit) {
    if (bit == kHeaderBytes * 8) bit = index_at(pack) * 8;
    ASSERT_FALSE(test::open_packed(flipped(pack, bit)).has_value()) << "bit " << bit;
  }
}

TEST(PackFormat, unpacks_no_frame_with_a_flipped_bit_to_other_bytes) {
  const Bytes contents = mixed_contents(9);
  const Bytes pack = packed(contents);
  const Index index = index_of(pack);
  auto decompressor = Decompressor::create();
  ASSERT_TRUE(decompressor.has_value());
  std::size_t harmless = 0;  // zstd ignores some bits of a frame's header
  for (std::size_t number = 0; number < index.frames(); ++number) {
    const Frame frame = index.frame(number);
    if (!frame.is_stored()) continue;
    const Bytes stored(pack.begin() + static_cast<std::ptrdiff_t>(frame.place),
                       pack.begin() + static_cast<std::ptrdiff_t>(frame.place + frame.stored));
    const auto wanted = std::span(contents).subspan(number * kFrame, index.range(number).length.value);
    Bytes unpacked(wanted.size());
    ASSERT_TRUE(unpack_frame(frame, stored, unpacked, *decompressor).has_value());
    for (std::size_t bit = 0; bit < stored.size() * 8; ++bit) {
      if (!unpack_frame(frame, flipped(stored, bit), unpacked, *decompressor)) continue;
      ++harmless;
      ASSERT_TRUE(std::ranges::equal(unpacked, wanted)) << "frame " << number << " bit " << bit;
      ASSERT_EQ(frame.kind, FrameKind::zstd);
    }
  }
  EXPECT_LT(harmless, 100U);
}

TEST(PackFormat, fails_a_damaged_frame_and_what_is_a_duplicate_of_it_and_no_other) {
  const Bytes contents = mixed_contents(11);
  const Bytes pack = packed(contents);
  const Index index = index_of(pack);
  for (std::size_t bit = kHeaderBytes * 8; bit < index_at(pack) * 8; bit += 997) {
    const std::size_t byte = bit / 8;
    const Outcome outcome = read_all(flipped(pack, bit), contents);
    ASSERT_TRUE(outcome.opened && !outcome.wrong) << "bit " << bit;
    for (std::size_t frame = 0; frame < index.frames(); ++frame) {
      Frame stored = index.frame(frame);
      if (stored.kind == FrameKind::duplicate) stored = index.frame(stored.place);
      const bool hit = stored.is_stored() && byte >= stored.place && byte < stored.place + stored.stored;
      const bool failed = std::ranges::find(outcome.failed, frame) != outcome.failed.end();
      ASSERT_TRUE(!failed || hit) << "bit " << bit << " failed frame " << frame;
      ASSERT_TRUE(failed || !hit || stored.kind == FrameKind::zstd) << "bit " << bit << " and frame " << frame;
    }
  }
}

TEST(PackFormat, says_which_frame_of_which_pack_is_damaged) {
  const Bytes contents = mixed_contents(9);
  Bytes pack = packed(contents);
  const Frame frame = index_of(pack).frame(6);
  ASSERT_EQ(frame.kind, FrameKind::raw);
  pack[frame.place + 5] ^= std::byte{1};
  const auto source = test::open_packed(pack);
  ASSERT_TRUE(source.has_value());
  Bytes buffer(kFrame);
  const auto done = read(**source, 6 * kFrame, buffer);
  ASSERT_FALSE(done.has_value());
  EXPECT_NE(done.error().context().find("frame 6, bytes 24576 to 28672"), std::string::npos) << done.error().context();
  EXPECT_TRUE(read(**source, 5 * kFrame, buffer).has_value()) << "its neighbours are fine";
  EXPECT_TRUE(read(**source, 7 * kFrame, buffer).has_value()) << "its neighbours are fine";
}

TEST(PackFormat, refuses_a_header_that_contradicts_itself) {
  const Bytes pack = packed(mixed_contents(9));
  const std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();
  EXPECT_EQ(complaint(pack), "nothing");
  expect_complaint(with<std::uint64_t>(pack, 24, 1), "contradicts");
  expect_complaint(with<std::uint8_t>(pack, 200, 1), "contradicts");
  expect_complaint(with<std::uint32_t>(pack, 8, 2), "version 2");
  EXPECT_FALSE(test::open_packed(with<std::uint64_t>(pack, 16, pack.size() + 1)).has_value());
  for (const std::size_t section : {32U, 64U, 96U, 128U}) {
    for (const std::uint64_t value :
         {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{255}, huge, huge - 31, huge / 2}) {
      for (const std::size_t field : {section, section + 8}) {
        Bytes wrong = with(pack, field, value);
        if (wrong == pack) continue;
        const Checksum sum = checksum_of(std::span(wrong).first(kHeaderBytes - 16));
        std::memcpy(wrong.data() + kHeaderBytes - 16, sum.bytes.data(), 16);
        EXPECT_FALSE(test::open_packed(wrong).has_value()) << field << " = " << value;
      }
    }
  }
}

TEST(PackFormat, refuses_an_index_that_contradicts_itself) {
  const Bytes pack = packed(mixed_contents(11));
  const std::size_t index = index_at(pack);
  const std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();
  for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{4096}, huge, huge - 4095, std::uint64_t{1} << 62U})
    expect_complaint(with(pack, index, size), "the index is wrong");
  for (const std::uint32_t frame : {0U, 1U, 2048U, 4097U, 8192U, 1U << 21U, 0xFFFFFFFFU})
    expect_complaint(with(pack, index + 8, frame), "the index is wrong");
  expect_complaint(with<std::uint32_t>(pack, index + 12, 1), "contradicts");
  expect_complaint(with<std::uint8_t>(pack, index + 16, 1), "contradicts");
}

TEST(PackFormat, refuses_frames_that_contradict_each_other) {
  const Bytes pack = packed(mixed_contents(11));  // zstd raw zero . zstd | zstd raw zero duplicate zstd | ...
  const auto entry = [&](std::size_t frame) { return entry_at(pack, frame); };
  const std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();
  const auto kind_of = [&](std::size_t frame) { return index_of(pack).frame(frame).kind; };
  ASSERT_EQ(kind_of(0), FrameKind::zstd);
  ASSERT_EQ(kind_of(1), FrameKind::raw);
  ASSERT_EQ(kind_of(2), FrameKind::zero);
  ASSERT_EQ(kind_of(8), FrameKind::duplicate);
  for (const std::uint64_t place : {std::uint64_t{0}, std::uint64_t{255}, std::uint64_t{257}, huge, huge - 4095}) {
    expect_complaint(with(pack, entry(0), place), "frame 0 does not follow");
    expect_complaint(with(pack, entry(1), place), "frame 1 does not follow");
  }
  for (const std::uint32_t stored : {0U, 4096U, 0xFFFFFFFFU})
    expect_complaint(with(pack, entry(0) + 8, stored), "frame 0 has an impossible");
  expect_complaint(with(pack, entry(1) + 8, 4095U), "frame 1 is stored as it is");
  expect_complaint(with<std::uint32_t>(pack, entry(2) + 8, 1), "frame 2 stores bytes");
  expect_complaint(with<std::uint64_t>(pack, entry(2), 1), "frame 2 is of zeroes");
  expect_complaint(with<std::uint8_t>(pack, entry(2) + 16, 1), "frame 2 is of zeroes");
  for (const std::uint64_t place : {std::uint64_t{8}, std::uint64_t{9}, huge})
    expect_complaint(with(pack, entry(8), place), "frame 8 is a duplicate of a later");
  expect_complaint(with<std::uint64_t>(pack, entry(8), 2), "frame 8 is a duplicate of a frame that is not stored");
  expect_complaint(with<std::uint64_t>(pack, entry(8), 1), "frame 8 is a duplicate of a different");
  expect_complaint(with<std::uint8_t>(pack, entry(2) + 12, 4), "frame 2 is in a base");
  expect_complaint(with<std::uint8_t>(pack, entry(2) + 12, 5), "frame 2 is of an unknown kind");
  expect_complaint(with<std::uint8_t>(pack, entry(2) + 13, 1), "frame 2 is of an unknown kind");
}

TEST(PackFormat, keeps_metadata_and_refuses_what_cannot_be_written_down) {
  WriterOptions options = test::small_frames();
  options.metadata = {{"host", "db1 = \"main\""}, {"a.b-c_D", ""}};
  const auto opened = open_pack(test::bytes_source(packed(mixed_contents(5), options)));
  ASSERT_TRUE(opened.has_value()) << opened.error().message();
  EXPECT_EQ(opened->metadata, options.metadata);
  EXPECT_FALSE(encode_metadata({{"a b", ""}}).has_value());
  EXPECT_FALSE(encode_metadata({{"", ""}}).has_value());
  EXPECT_FALSE(encode_metadata({{"a", "two\nlines"}}).has_value());
  EXPECT_FALSE(encode_metadata({{"a", std::string((1U << 20U) + 1, 'x')}}).has_value());
  for (const char* text : {"a", "a=1", "b=1\na=2\n", "a=1\na=2\n", "=1\n", "a=\x01\n", "\n"})
    EXPECT_FALSE(parse_metadata(text).has_value()) << text;
}

TEST(PackFormat, takes_only_names_of_files_for_a_base) {
  for (const char* name : {"", ".", "..", "a/b", "/a", "../a", "a\nb"}) EXPECT_FALSE(valid_base_name(name)) << name;
  EXPECT_FALSE(valid_base_name(std::string(256, 'a')));
  for (const char* name : {"a", "..a", "monday.pack", "with space"}) EXPECT_TRUE(valid_base_name(name)) << name;
}

}  // namespace
}  // namespace uffda::pack
