// What Firecracker says, in every version's words, and what nobody should say.
#include "server/firecracker_handshake.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace uffda::firecracker {
namespace {

using testing::HasSubstr;

Handshake parsed(const std::string& text) {
  EXPECT_TRUE(is_whole(text));
  auto handshake = parse_handshake(text);
  EXPECT_TRUE(handshake) << handshake.error().message();
  return handshake ? *std::move(handshake) : Handshake{};
}

std::string refusal(const std::string& text) {
  const auto handshake = parse_handshake(text);
  EXPECT_FALSE(handshake) << "was accepted";
  return handshake ? "" : handshake.error().message();
}

constexpr const char* kRegion = R"("base_host_virt_addr":139637976727552,"size":134217728,"offset":0)";

std::string with(const std::string& more) { return std::string("[{") + kRegion + more + "}]"; }

TEST(FirecrackerHandshake, IsUnderstoodInEveryVersionsWords) {
  for (const char* more :
       {"", R"(,"page_size_kib":4096)", R"(,"page_size":4096,"page_size_kib":4096)",
        R"(,"page_size":4096,"gpa_start":0,"is_guest_memfd":true,"x":[{}])", R"(,"page_size":null)"}) {
    const Handshake handshake = parsed(with(more));
    ASSERT_EQ(handshake.regions.size(), 1U) << more;
    EXPECT_EQ(handshake.regions[0].start, Address{139'637'976'727'552});
    EXPECT_EQ(handshake.regions[0].length, 128_MiB);
    EXPECT_EQ(handshake.regions[0].offset, ByteOffset{0});
    EXPECT_EQ(handshake.page_size, kPageSize);
  }
}

TEST(FirecrackerHandshake, PageSizesAreBytesAndTheNewFieldIsTheOneThatCounts) {
  EXPECT_EQ(parsed(with(R"(,"page_size_kib":2097152)")).page_size, 2_MiB);
  EXPECT_EQ(parsed(with(R"(,"page_size_kib":4096,"page_size":2097152)")).page_size, 2_MiB);
  EXPECT_THAT(refusal(with(R"(,"page_size_kib":4)")), HasSubstr("pages of 4 bytes"));
  EXPECT_THAT(refusal(with(R"(,"page_size":1073741824)")), HasSubstr("pages of 1073741824 bytes"));
}

TEST(FirecrackerHandshake, RegionsAreSortedByAddress) {
  const Handshake handshake = parsed(
      R"([{"base_host_virt_addr":1048576,"size":4096,"offset":8192},
          {"base_host_virt_addr":65536,"size":8192,"offset":0}])");
  ASSERT_EQ(handshake.regions.size(), 2U);
  EXPECT_EQ(handshake.regions[0].start, Address{65'536});
  EXPECT_EQ(handshake.regions[1].offset, ByteOffset{8192});
}

TEST(FirecrackerHandshake, SaysWhatIsWrongAndWhere) {
  EXPECT_THAT(refusal("[]"), HasSubstr("no JSON array"));
  EXPECT_THAT(refusal("{}"), HasSubstr("no JSON array"));
  EXPECT_THAT(refusal("[1]"), HasSubstr("region 0 is no object"));
  EXPECT_THAT(refusal(R"([{"size":4096,"offset":0}])"), HasSubstr("region 0: there is no 'base_host_virt_addr'"));
  EXPECT_THAT(refusal(R"([{"base_host_virt_addr":65536,"size":-4096,"offset":0}])"), HasSubstr("'size'"));
  EXPECT_THAT(refusal(R"([{"base_host_virt_addr":65536,"size":"4096","offset":0}])"), HasSubstr("'size'"));
  EXPECT_THAT(refusal(R"([{"base_host_virt_addr":65536,"size":0,"offset":0}])"), HasSubstr("empty"));
  EXPECT_THAT(refusal(R"([{"base_host_virt_addr":65537,"size":4096,"offset":0}])"), HasSubstr("whole pages"));
  EXPECT_THAT(refusal(R"([{"base_host_virt_addr":18446744073709547520,"size":8192,"offset":0}])"),
              HasSubstr("no memory is that large"));
}

TEST(FirecrackerHandshake, RegionsAreApartAndOfOnePageSize) {
  EXPECT_THAT(refusal(R"([{"base_host_virt_addr":65536,"size":8192,"offset":0},
                          {"base_host_virt_addr":69632,"size":4096,"offset":8192}])"),
              HasSubstr("overlap"));
  EXPECT_THAT(refusal(R"([{"base_host_virt_addr":65536,"size":4096,"offset":0},
                          {"base_host_virt_addr":2097152,"size":2097152,"offset":2097152,"page_size":2097152}])"),
              HasSubstr("region 1 has pages of another size"));
}

TEST(FirecrackerHandshake, APartOfOneIsNotWhole) {
  const std::string whole = with(R"(,"x":[1])");
  for (std::size_t length = 0; length < whole.size(); ++length)
    EXPECT_FALSE(is_whole(std::string_view(whole).substr(0, length))) << length;
  EXPECT_TRUE(is_whole(whole));
}

}  // namespace
}  // namespace uffda::firecracker
