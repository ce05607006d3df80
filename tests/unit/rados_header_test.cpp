// The header of an image in a cluster: what is written is read again, and what was changed on the way is refused.
#include "sources/rados_header.h"

#include <gtest/gtest.h>

#include <cstring>

namespace uffda::sources::rados {
namespace {

constexpr Generation kGeneration{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
                                 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};

Header example() {
  Header header = *Header::make({(9 * kDefaultObjectSize.value) + 5}, kDefaultObjectSize, kGeneration);
  header.set_stored(0);
  header.set_stored(9);
  return header;
}

template <typename T>
std::vector<std::byte> with(std::vector<std::byte> bytes, std::size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
  seal(bytes);
  return bytes;
}

void expect_refused(const std::vector<std::byte>& bytes, Errc code, const std::string& why) {
  const auto header = parse_header(bytes);
  ASSERT_FALSE(header.has_value()) << why;
  EXPECT_EQ(header.error().code(), code);
  EXPECT_NE(header.error().message().find(why), std::string::npos) << header.error().message();
}

TEST(RadosHeader, is_read_as_it_was_written) {
  const Header written = example();
  const auto read = parse_header(encode(written));
  ASSERT_TRUE(read.has_value()) << read.error().message();
  EXPECT_EQ(read->size, written.size);
  EXPECT_EQ(read->object_size, written.object_size);
  EXPECT_EQ(read->generation, written.generation);
  EXPECT_EQ(read->stored, written.stored);
  EXPECT_TRUE(read->is_stored(0));
  EXPECT_FALSE(read->is_stored(1));
  EXPECT_TRUE(read->is_stored(9));
}

TEST(RadosHeader, pieces_make_up_the_image) {
  const Header header = example();
  EXPECT_EQ(header.pieces(), 10U);
  std::uint64_t at = 0;
  for (std::uint64_t piece = 0; piece < header.pieces(); ++piece) {
    EXPECT_EQ(header.range_of(piece).start.value, at);
    EXPECT_EQ(header.piece_of({at}), piece);
    at = header.range_of(piece).end().value;
    EXPECT_EQ(header.piece_of({at - 1}), piece);
  }
  EXPECT_EQ(at, header.size.value);
  EXPECT_EQ(header.piece_name("disk", 9), "disk.00112233445566778899aabbccddeeff.0000000000000009");
}

TEST(RadosHeader, is_refused_with_any_bit_changed_or_cut_anywhere) {
  const std::vector<std::byte> bytes = encode(example());
  for (std::size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::vector<std::byte> changed = bytes;
    changed[bit / 8] ^= std::byte(1U << (bit % 8));
    EXPECT_FALSE(parse_header(changed).has_value()) << "bit " << bit;
  }
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(parse_header(std::span(bytes).first(size)).has_value()) << size;
    std::vector<std::byte> sealed(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    if (size >= 64) seal(sealed);
    EXPECT_FALSE(parse_header(sealed).has_value()) << size;
  }
}

TEST(RadosHeader, is_refused_where_its_numbers_cannot_be_though_the_checksum_is_right) {
  const std::vector<std::byte> bytes = encode(example());
  constexpr std::size_t kVersion = 8;
  constexpr std::size_t kSize = 16;
  constexpr std::size_t kObjectSize = 24;
  constexpr std::size_t kReserved = 28;
  constexpr std::size_t kStored = 48;
  expect_refused(with(bytes, kVersion, std::uint32_t{2}), Errc::unsupported, "version 2");
  expect_refused(with(bytes, kSize, std::uint64_t{0}), Errc::invalid_argument, "no bytes");
  expect_refused(with(bytes, kSize, ~std::uint64_t{0}), Errc::invalid_argument, "more than 16777216 pieces");
  expect_refused(with(bytes, kSize, std::uint64_t{1} << 30U), Errc::invalid_argument, "not that of its pieces");
  expect_refused(with(bytes, kObjectSize, std::uint32_t{0}), Errc::invalid_argument, "power of two");
  expect_refused(with(bytes, kObjectSize, std::uint32_t{3} << 20U), Errc::invalid_argument, "power of two");
  expect_refused(with(bytes, kReserved, std::uint32_t{1}), Errc::invalid_argument, "reserved");
  expect_refused(with(bytes, kStored + 1, std::uint8_t{4}), Errc::invalid_argument, "behind the last one");
}

TEST(RadosHeader, something_else_is_not_called_damaged) {
  const std::vector<std::byte> bytes(100);
  expect_refused(bytes, Errc::invalid_argument, "not what uffda put stores");
  EXPECT_FALSE(looks_like_header(bytes));
  EXPECT_TRUE(looks_like_header(encode(example())));
}

TEST(RadosHeader, there_is_an_end_to_what_can_be_stored) {
  EXPECT_TRUE(Header::make({kMaxPieces * kMinObjectSize.value}, kMinObjectSize, kGeneration).has_value());
  EXPECT_FALSE(Header::make({(kMaxPieces * kMinObjectSize.value) + 1}, kMinObjectSize, kGeneration).has_value());
  EXPECT_FALSE(Header::make({0}, kMinObjectSize, kGeneration).has_value());
  EXPECT_FALSE(Header::make({1}, {kMinObjectSize.value / 2}, kGeneration).has_value());
  EXPECT_FALSE(Header::make({1}, {kMaxObjectSize.value * 2}, kGeneration).has_value());
}

}  // namespace
}  // namespace uffda::sources::rados
