// Source URIs are foreign text: what is right is taken apart, what is wrong is refused with words that help.
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "uffda/source_registry.h"

namespace uffda {
namespace {

using namespace std::chrono_literals;

std::string error_of(std::string_view text) {
  const auto uri = SourceUri::parse(text);
  EXPECT_FALSE(uri.has_value()) << text;
  if (uri) return {};
  EXPECT_EQ(uri.error().code(), Errc::invalid_argument);
  return uri.error().context();
}

SourceUri parsed(std::string_view text) {
  auto uri = SourceUri::parse(text);
  EXPECT_TRUE(uri.has_value()) << text << ": " << uri.error().message();
  return uri ? *uri : SourceUri();
}

TEST(SourceUri, takes_a_plain_source_apart) {
  const SourceUri uri = parsed("file:/tmp/disk image.img");
  EXPECT_EQ(uri.scheme(), "file");
  EXPECT_EQ(uri.rest(), "/tmp/disk image.img");
  EXPECT_TRUE(uri.layers().empty());
  EXPECT_TRUE(uri.parameters().empty());
}

TEST(SourceUri, lists_layers_from_the_outside) {
  const SourceUri uri = parsed("delay+error+file:disk.img?delay=2ms&rate=0.01");
  EXPECT_EQ(uri.layers(), (std::vector<std::string>{"delay", "error"}));
  EXPECT_EQ(uri.scheme(), "file");
  ASSERT_NE(uri.find("rate"), nullptr);
  EXPECT_EQ(*uri.find("rate"), "0.01");
  EXPECT_EQ(uri.find("range"), nullptr);
}

TEST(SourceUri, leaves_plus_colon_and_slashes_of_the_name_alone) {
  EXPECT_EQ(parsed("file:a+b:c").rest(), "a+b:c");
  EXPECT_EQ(parsed("file:///x").rest(), "///x");
  EXPECT_EQ(parsed("nbd://host:10809/name").rest(), "//host:10809/name");
}

TEST(SourceUri, decodes_percent_escapes_in_names_and_values) {
  EXPECT_EQ(parsed("file:what%3F%25%20now").rest(), "what?% now");
  EXPECT_EQ(*parsed("log+zero:1?file=a%26b%3dc").find("file"), "a&b=c");
  EXPECT_EQ(*parsed("log+zero:1?file=a=b").find("file"), "a=b");
}

TEST(SourceUri, refuses_what_is_malformed_and_says_how) {
  EXPECT_NE(error_of("disk.img").find("file:disk.img"), std::string::npos);
  EXPECT_NE(error_of("").find("not a source"), std::string::npos);
  EXPECT_NE(error_of(":x").find("bad scheme"), std::string::npos);
  EXPECT_NE(error_of("+file:x").find("bad scheme or layer"), std::string::npos);
  EXPECT_NE(error_of("delay++file:x").find("bad scheme or layer"), std::string::npos);
  EXPECT_NE(error_of("File:x").find("'File'"), std::string::npos);
  EXPECT_NE(error_of("file:100%").find("%25"), std::string::npos);
  EXPECT_NE(error_of("file:%2").find("two hexadecimal digits"), std::string::npos);
  EXPECT_NE(error_of("file:%zz").find("two hexadecimal digits"), std::string::npos);
  EXPECT_NE(error_of("file:a%00b").find("NUL"), std::string::npos);
  EXPECT_NE(error_of("file:x?direct").find("key=value"), std::string::npos);
  EXPECT_NE(error_of("file:x?=on").find("bad parameter name"), std::string::npos);
  EXPECT_NE(error_of("file:x?a=1&a=2").find("twice"), std::string::npos);
}

TEST(SourceUri, bounds_what_it_takes) {
  EXPECT_NE(error_of("file:" + std::string(20000, 'x')).find("longer"), std::string::npos);
  EXPECT_NE(error_of("a+a+a+a+a+a+a+a+a+file:x").find("layers"), std::string::npos);
  std::string many = "file:x?";
  for (int i = 0; i < 100; ++i) many += "k" + std::to_string(i) + "=1&";
  EXPECT_NE(error_of(many).find("parameters"), std::string::npos);
  EXPECT_EQ(parsed("file:x?").parameters().size(), 0U);
  EXPECT_EQ(parsed("file:x?a=1&").parameters().size(), 1U);
}

TEST(SourceUri, keeps_control_bytes_out_of_messages) {
  EXPECT_EQ(error_of("a\x1b[31m\n").find('\x1b'), std::string::npos);
}

TEST(SourceUri, reads_values_by_their_kind) {
  const SourceUri uri = parsed("x:?n=7&f=0.25&d=1.5ms&c=on&r=4K-8K");
  EXPECT_EQ(*uri.number("n", 0), 7U);
  EXPECT_EQ(*uri.fraction("f", 0), 0.25);
  EXPECT_EQ(*uri.duration("d", 0ns), 1500us);
  EXPECT_EQ(*uri.choice("c", {"on", "off"}, "off"), "on");
  EXPECT_EQ(**uri.range("r"), (ByteRange{{4096}, {4096}}));
}

TEST(SourceUri, gives_the_default_for_what_is_absent) {
  const SourceUri uri = parsed("x:");
  EXPECT_EQ(*uri.number("n", 3), 3U);
  EXPECT_EQ(*uri.fraction("f", 0.5), 0.5);
  EXPECT_EQ(*uri.duration("d", 2ms), 2ms);
  EXPECT_EQ(*uri.choice("c", {"on", "off"}, "off"), "off");
  EXPECT_FALSE(uri.range("r")->has_value());
}

TEST(SourceUri, names_key_value_and_what_would_be_right) {
  const SourceUri uri = parsed("x:?n=7x&f=1.5&d=2&c=yes&r=8K-4K&q=5");
  EXPECT_EQ(uri.number("n", 0).error().context(), "parameter n='7x': expected a whole number");
  EXPECT_NE(uri.fraction("f", 0).error().context().find("0 to 1"), std::string::npos);
  EXPECT_NE(uri.duration("d", 0ns).error().context().find("2ms"), std::string::npos);
  EXPECT_EQ(uri.choice("c", {"on", "off"}, "off").error().context(), "parameter c='yes': expected one of on, off");
  EXPECT_NE(uri.range("r").error().context().find("START-END"), std::string::npos);
  EXPECT_FALSE(uri.range("q").has_value());
}

TEST(ParseSize, reads_sizes_as_people_write_them) {
  const std::pair<const char*, std::uint64_t> right[] = {{"0", 0},
                                                         {"4096", 4096},
                                                         {"1B", 1},
                                                         {"64K", 65536},
                                                         {"64k", 65536},
                                                         {"64KiB", 65536},
                                                         {"1.5M", 3U << 19U},
                                                         {"2GiB", std::uint64_t{2} << 30U},
                                                         {"1T", std::uint64_t{1} << 40U},
                                                         {"9007199254740993", 9007199254740993U}};
  for (const auto& [text, bytes] : right) {
    const auto size = parse_size(text);
    ASSERT_TRUE(size.has_value()) << text;
    EXPECT_EQ(size->value, bytes) << text;
  }
}

TEST(ParseSize, refuses_everything_else) {
  for (const char* text :
       {"", " 1", "1 ", "-1", "+1", "K", "1KB", "1KiBs", "0x10", "1e3", "inf", "nan", "1.5", "1..5", "9E"}) {
    const auto size = parse_size(text);
    ASSERT_FALSE(size.has_value()) << text;
    EXPECT_EQ(size.error().code(), Errc::invalid_argument) << text;
  }
  for (const char* text : {"9223372036854775808", "8388608T", "99999999999999999999999"}) {
    const auto size = parse_size(text);
    ASSERT_FALSE(size.has_value()) << text;
    EXPECT_EQ(size.error().code(), Errc::out_of_range) << text;
  }
}

TEST(ParseDuration, reads_durations_with_their_units) {
  EXPECT_EQ(*parse_duration("250us"), 250us);
  EXPECT_EQ(*parse_duration("2ms"), 2ms);
  EXPECT_EQ(*parse_duration("1.5s"), 1500ms);
  EXPECT_EQ(*parse_duration("100ns"), 100ns);
  EXPECT_EQ(*parse_duration("1m"), 60s);
  EXPECT_EQ(*parse_duration("0"), 0ns);
}

TEST(ParseDuration, refuses_everything_else) {
  for (const char* text : {"", "1", "ms", "-1ms", "1 ms", "1msec", "nans", "1e3s"}) {
    EXPECT_FALSE(parse_duration(text).has_value()) << text;
  }
  EXPECT_EQ(parse_duration("10000h").error().code(), Errc::out_of_range);
}

}  // namespace
}  // namespace uffda
