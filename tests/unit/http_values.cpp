// What the http source reads of servers and files, and what it decides.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "sources/http/headers.h"
#include "sources/http/ini.h"
#include "sources/http/policy.h"
#include "sources/http/values.h"

namespace uffda::sources::http {
namespace {

TEST(ContentRange, is_a_range_within_a_total) {
  EXPECT_EQ(*parse_content_range("bytes 0-0/1"), (ContentRange{{{0}, {1}}, {1}}));
  EXPECT_EQ(*parse_content_range(" Bytes  10-19/100 "), (ContentRange{{{10}, {10}}, {100}}));
  EXPECT_EQ(parse_content_range("bytes 0-9223372036854775806/9223372036854775807")->range.length.value,
            9223372036854775807U);
  for (const char* const bad :
       {"", "bytes", "bytes 0-0", "bytes 0-0/*", "bytes */10", "bytes 1-0/10", "bytes 0-10/10", "bytes -1/10",
        "bytes 0-1/10, bytes 2-3/10", "bytes 0-1/10x", "bytes0-1/10", "items 0-1/10", "bytes +0-1/10",
        "bytes 0-18446744073709551615/18446744073709551616", "bytes 0-0/9223372036854775808"}) {
    EXPECT_EQ(parse_content_range(bad).error().code(), Errc::protocol) << bad;
  }
}

TEST(ContentRange, of_a_416_tells_the_total) {
  EXPECT_EQ(parse_unsatisfied_range("bytes */0"), ByteCount{0});
  EXPECT_EQ(parse_unsatisfied_range("bytes */1234"), ByteCount{1234});
  for (const char* const bad : {"", "bytes 0-1/2", "bytes */", "bytes */*", "bytes */1 "}) {
    EXPECT_EQ(parse_unsatisfied_range(bad).has_value(), std::string(bad) == "bytes */1 ") << bad;
  }
}

TEST(Etag, is_strong_if_it_stands_for_these_bytes) {
  EXPECT_TRUE(is_strong_etag("\"abc-123\""));
  EXPECT_TRUE(is_strong_etag("\"\""));
  for (const char* const weak : {"", "\"", "abc", "W/\"abc\"", "\"a\"b\"", "\"a\", \"b\"", "\"a\r\nX: y\""}) {
    EXPECT_FALSE(is_strong_etag(weak)) << weak;
  }
  EXPECT_FALSE(is_strong_etag("\"" + std::string(5000, 'x') + "\""));
}

TEST(StoreError, is_code_and_message_made_printable) {
  EXPECT_EQ(store_error("<?xml?><Error><Code>NoSuchKey</Code><Message>gone\n\x1b</Message></Error>"),
            "NoSuchKey: gone\?\?");
  EXPECT_EQ(store_error("<Code>A</Code>"), "A");
  EXPECT_EQ(store_error("<html>no</html>"), "");
  EXPECT_EQ(store_error("<Code>unterminated"), "");
  EXPECT_LT(store_error("<Code>" + std::string(10000, 'x') + "</Code>").size(), 300U);
}

TEST(EncodedUrl, leaves_what_is_right_and_mends_the_rest) {
  EXPECT_EQ(encoded_url("//h/a%20b?c=d&e=%2F"), "//h/a%20b?c=d&e=%2F");
  EXPECT_EQ(encoded_url("//h/a b#c%d%4\xC3\xA4\x01"), "//h/a%20b%23c%25d%254%C3%A4%01");
}

TEST(EncodedKey, escapes_all_that_is_reserved) {
  EXPECT_EQ(encoded_key("dir/a-b_c.d~e"), "dir/a-b_c.d~e");
  EXPECT_EQ(encoded_key("+ =:%?#\xC3\xA4"), "%2B%20%3D%3A%25%3F%23%C3%A4");
}

TEST(HttpHeaders, are_those_of_the_last_response) {
  Headers headers;
  for (const char* const line :
       {"HTTP/1.1 302 Found\r\n", "ETag: \"old\"\r\n", "Location: /x\r\n", "\r\n", "HTTP/2 206\r\n",
        "eTaG:  \"new\" \r\n", "Content-Range: bytes 0-0/1\r\n", "\r\n", "ETag: \"trailer\"\r\n"}) {
    EXPECT_TRUE(headers.take(line));
  }
  EXPECT_EQ(headers.status(), 206);
  EXPECT_EQ(headers.find("etag"), "\"new\"");
  EXPECT_EQ(headers.find("content-range"), "bytes 0-0/1");
  EXPECT_EQ(headers.find("location"), "") << "not asked for, not kept";
}

TEST(HttpHeaders, that_contradict_each_other_are_kept_as_such) {
  Headers headers;
  for (const char* const line :
       {"HTTP/1.1 206 OK\r\n", "Content-Range: bytes 0-0/1\r\n", "Content-Range: bytes 1-1/2\r\n"})
    EXPECT_TRUE(headers.take(line));
  EXPECT_FALSE(parse_content_range(headers.find("content-range")).has_value());
}

TEST(HttpHeaders, have_an_end) {
  Headers headers;
  std::size_t lines = 0;
  while (headers.take("X-Filler: 0123456789\r\n")) ASSERT_LT(++lines, kMaxHeaderBytes);
  headers.clear();
  EXPECT_TRUE(headers.take("HTTP/1.1 200 OK\r\n"));
}

TEST(Ini, gives_the_keys_of_one_section) {
  const char* const text =
      "# keys\n[default]\naws_access_key_id = AKID\nAWS_SECRET_ACCESS_KEY=se=cret \r\ns3 =\n  addressing_style = "
      "path\n\n"
      "[ other ]\naws_access_key_id=B\n";
  const auto section = read_ini_section(text, "default");
  ASSERT_TRUE(section.has_value());
  EXPECT_EQ(section->at("aws_access_key_id"), "AKID");
  EXPECT_EQ(section->at("aws_secret_access_key"), "se=cret");
  EXPECT_EQ(section->count("addressing_style"), 0U);
  EXPECT_EQ(read_ini_section(text, "other")->at("aws_access_key_id"), "B");
  EXPECT_TRUE(read_ini_section(text, "none")->empty());
}

TEST(Ini, says_which_line_is_wrong_and_not_what_is_in_it) {
  const auto section = read_ini_section("[default]\nsecret\n", "default");
  ASSERT_FALSE(section.has_value());
  EXPECT_EQ(section.error().context(), "line 2: expected KEY = VALUE");
  EXPECT_FALSE(read_ini_section("[default\n", "default").has_value());
}

TEST(Joined, takes_neighbours_up_to_a_bound) {
  const auto page = [](std::uint64_t index) { return ByteRange{{index * 4096}, {4096}}; };
  EXPECT_EQ(joined(std::vector{page(1)}), 1U);
  EXPECT_EQ(joined(std::vector{page(1), page(2), page(3), page(5)}), 3U);
  EXPECT_EQ(joined(std::vector{page(1), page(3)}), 1U);
  EXPECT_EQ(joined(std::vector{page(1), page(1)}), 1U) << "the same again is no neighbour";
  std::vector<ByteRange> many;
  for (std::uint64_t i = 0; i < 1000; ++i) many.push_back(page(i));
  EXPECT_EQ(joined(many), kMaxRequest.value / 4096);
  const ByteRange large{{0}, {kMaxRequest.value * 4}};
  EXPECT_EQ(joined(std::vector{large, ByteRange{large.end(), {1}}}), 1U) << "one ticket is never split";
}

TEST(AskAgain, is_for_states_that_pass) {
  for (const int status : {408, 425, 429, 500, 502, 503, 504, 599})
    EXPECT_EQ(ask_again(status), Again::later) << status;
  for (const int status : {401, 403}) EXPECT_EQ(ask_again(status), Again::with_keys) << status;
  for (const int status : {200, 204, 301, 400, 404, 410, 412, 416, 501, 505, 600})
    EXPECT_EQ(ask_again(status), Again::no) << status;
}

TEST(Backoff, doubles_to_a_bound_and_varies) {
  for (std::uint64_t random = 0; random < 100; ++random) {
    for (unsigned attempt = 1; attempt < 100; ++attempt) {
      const Duration whole = std::min<Duration>(kFirstBackoff * (1U << std::min(attempt - 1, 10U)), kMaxBackoff);
      EXPECT_LE(backoff(attempt, random), whole);
      EXPECT_GE(backoff(attempt, random), whole / 2);
    }
  }
  EXPECT_NE(backoff(3, 1), backoff(3, 2));
}

}  // namespace
}  // namespace uffda::sources::http
