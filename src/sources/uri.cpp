// Parser of source URIs: foreign text, so every byte is checked and every limit is named.
#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>

#include "uffda/source_registry.h"

namespace uffda {

namespace {

constexpr std::size_t kMaxUriBytes = 16384;
constexpr std::size_t kMaxLayers = 8;
constexpr std::size_t kMaxParameters = 64;

using namespace std::string_literals;

std::string in_quotes(std::string_view text) {
  // Foreign text goes into messages: no control bytes, and not without end.
  constexpr std::size_t kMaxQuoted = 200;
  std::string out = "'";
  for (const char c : text.substr(0, kMaxQuoted)) out += std::isprint(static_cast<unsigned char>(c)) != 0 ? c : '?';
  if (text.size() > kMaxQuoted) out += "...";
  return out + "'";
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

Result<std::string> percent_decode(std::string_view text, std::string_view part) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '%') {
      const int high = i + 2 < text.size() ? hex_digit(text[i + 1]) : -1;
      const int low = i + 2 < text.size() ? hex_digit(text[i + 2]) : -1;
      if (high < 0 || low < 0) {
        return fail(Errc::invalid_argument,
                    "bad escape in the " + std::string(part) + " " + in_quotes(text) +
                        ": '%' must be followed by two hexadecimal digits (a '%' itself is %25)");
      }
      c = static_cast<char>(high * 16 + low);
      i += 2;
    }
    if (c == '\0') return fail(Errc::invalid_argument, "the " + std::string(part) + " contains a NUL byte");
    out += c;
  }
  return out;
}

bool is_name(std::string_view text) {
  const auto letter = [](char c) { return c >= 'a' && c <= 'z'; };
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  return !text.empty() && letter(text.front()) &&
         std::ranges::all_of(text, [&](char c) { return letter(c) || digit(c) || c == '-' || c == '.' || c == '_'; });
}

Result<SourceUri::Parameter> parse_parameter(std::string_view text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string_view::npos) {
    return fail(Errc::invalid_argument,
                "parameter " + in_quotes(text) + " has no value: parameters are written key=value");
  }
  const std::string_view key = text.substr(0, equals);
  if (!is_name(key)) return fail(Errc::invalid_argument, "bad parameter name " + in_quotes(key));
  return SourceUri::Parameter{std::string(key), UFFDA_TRY(percent_decode(text.substr(equals + 1), "parameter"))};
}

Error bad_value(std::string_view key, std::string_view value, std::string_view expected) {
  return Error(Errc::invalid_argument,
               "parameter " + std::string(key) + "=" + in_quotes(value) + ": expected " + std::string(expected));
}

struct Suffix {
  std::string_view text;
  double factor;
};

/// A non-negative decimal number and what follows it. Fails if there is no number.
Result<std::pair<double, std::string_view>> leading_number(std::string_view text, std::string_view expected) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed);
  if (error != std::errc{} || text.front() == '-' || !std::isfinite(value)) {
    return fail(Errc::invalid_argument, in_quotes(text) + " is not " + std::string(expected));
  }
  return std::pair{value, text.substr(static_cast<std::size_t>(end - text.data()))};
}

}  // namespace

Result<SourceUri> SourceUri::parse(std::string_view text) {
  if (text.size() > kMaxUriBytes) return fail(Errc::invalid_argument, "the URI is longer than 16384 bytes");
  const std::size_t colon = text.find(':');
  if (colon == std::string_view::npos) {
    return fail(Errc::invalid_argument,
                in_quotes(text) + " is not a source: expected SCHEME:..., such as file:disk.img");
  }
  SourceUri uri;
  for (std::string_view head = text.substr(0, colon); uri.scheme_.empty();) {
    const std::size_t plus = head.find('+');
    const std::string_view name = head.substr(0, plus);
    if (!is_name(name))
      return fail(Errc::invalid_argument, "bad scheme or layer name " + in_quotes(name) + " in " + in_quotes(text));
    if (plus == std::string_view::npos) {
      uri.scheme_ = name;
    } else {
      uri.layers_.emplace_back(name);
      if (uri.layers_.size() > kMaxLayers)
        return fail(Errc::invalid_argument, "more than 8 layers in " + in_quotes(text));
      head.remove_prefix(plus + 1);
    }
  }
  const std::string_view tail = text.substr(colon + 1);
  const std::size_t question = tail.find('?');
  uri.rest_ = UFFDA_TRY(percent_decode(tail.substr(0, question), "name"));
  if (question == std::string_view::npos) return uri;

  for (std::string_view query = tail.substr(question + 1); !query.empty();) {
    const std::size_t ampersand = query.find('&');
    Parameter parameter = UFFDA_TRY(parse_parameter(query.substr(0, ampersand)));
    if (uri.find(parameter.key) != nullptr) {
      return fail(Errc::invalid_argument, "parameter " + in_quotes(parameter.key) + " is given twice");
    }
    uri.parameters_.push_back(std::move(parameter));
    if (uri.parameters_.size() > kMaxParameters) return fail(Errc::invalid_argument, "more than 64 parameters");
    if (ampersand == std::string_view::npos) break;
    query.remove_prefix(ampersand + 1);
  }
  return uri;
}

void SourceUri::merge_scheme() {
  scheme_ = layers_.back() + "+" + scheme_;
  layers_.pop_back();
}

const std::string* SourceUri::find(std::string_view key) const {
  const auto found = std::ranges::find(parameters_, key, &Parameter::key);
  return found == parameters_.end() ? nullptr : &found->value;
}

Result<std::string> SourceUri::choice(std::string_view key, std::initializer_list<std::string_view> allowed,
                                      std::string_view absent) const {
  const std::string* value = find(key);
  if (value == nullptr) return std::string(absent);
  if (std::ranges::find(allowed, *value) != allowed.end()) return *value;
  std::string expected;
  for (const std::string_view one : allowed) expected += (expected.empty() ? ""s : ", "s).append(one);
  return std::unexpected(bad_value(key, *value, "one of " + expected));
}

Result<std::uint64_t> SourceUri::number(std::string_view key, std::uint64_t absent) const {
  const std::string* value = find(key);
  if (value == nullptr) return absent;
  std::uint64_t number = 0;
  const char* const last = value->data() + value->size();
  const auto [end, error] = std::from_chars(value->data(), last, number);
  if (error != std::errc{} || end != last) return std::unexpected(bad_value(key, *value, "a whole number"));
  return number;
}

Result<double> SourceUri::fraction(std::string_view key, double absent) const {
  const std::string* value = find(key);
  if (value == nullptr) return absent;
  const auto number = leading_number(*value, "a number");
  if (!number || !number->second.empty() || number->first > 1) {
    return std::unexpected(bad_value(key, *value, "a probability from 0 to 1, such as 0.01"));
  }
  return number->first;
}

Result<std::chrono::nanoseconds> SourceUri::duration(std::string_view key, std::chrono::nanoseconds absent) const {
  const std::string* value = find(key);
  if (value == nullptr) return absent;
  auto parsed = parse_duration(*value);
  if (!parsed) return std::unexpected(parsed.error().within("parameter " + std::string(key)));
  return *parsed;
}

Result<std::optional<ByteRange>> SourceUri::range(std::string_view key) const {
  const std::string* value = find(key);
  if (value == nullptr) return std::optional<ByteRange>{};
  const std::size_t dash = value->find('-');
  if (dash != std::string::npos) {
    const auto start = parse_size(std::string_view(*value).substr(0, dash));
    const auto end = parse_size(std::string_view(*value).substr(dash + 1));
    if (start && end && *start < *end) return ByteRange{{start->value}, *end - *start};
  }
  return std::unexpected(bad_value(key, *value, "START-END in bytes, END after START, such as 1M-1028K"));
}

Result<ByteCount> parse_size(std::string_view text) {
  static constexpr std::string_view kExpected =
      "a size: expected a number with an optional unit, such as 4096, 64K, 1.5GiB";
  static constexpr std::string_view kUnits = "KMGTP";
  auto [number, unit] = UFFDA_TRY(leading_number(text, kExpected));
  unsigned shift = 0;
  if (!unit.empty()) {
    const std::size_t index = kUnits.find(static_cast<char>(std::toupper(static_cast<unsigned char>(unit.front()))));
    const std::string_view after = unit.substr(1);
    const bool plain_bytes = unit == "B";
    const bool known = index != std::string_view::npos && (after.empty() || after == "iB");
    if (!plain_bytes && !known)
      return fail(Errc::invalid_argument, in_quotes(text) + " is not " + std::string(kExpected));
    if (!plain_bytes) shift = 10U * (static_cast<unsigned>(index) + 1);
  }
  // Sizes and offsets of files are signed 64-bit numbers in the kernel.
  const double bytes = std::ldexp(number, static_cast<int>(shift));
  if (bytes >= std::ldexp(1.0, 63)) return fail(Errc::out_of_range, in_quotes(text) + " is more than 2^63 - 1 bytes");
  if (bytes != std::floor(bytes))
    return fail(Errc::invalid_argument, in_quotes(text) + " is not a whole number of bytes");
  if (text.find('.') == std::string_view::npos) {
    // Exact for numbers beyond 2^53, which a double would round.
    std::uint64_t whole = 0;
    std::from_chars(text.data(), text.data() + text.size(), whole);
    return ByteCount{whole << shift};
  }
  return ByteCount{static_cast<std::uint64_t>(bytes)};
}

Result<std::chrono::nanoseconds> parse_duration(std::string_view text) {
  static constexpr std::string_view kExpected = "a duration: expected a number with a unit, such as 250us, 2ms, 1.5s";
  static constexpr Suffix kUnits[] = {{"ns", 1}, {"us", 1e3}, {"ms", 1e6}, {"s", 1e9}, {"m", 60e9}, {"h", 3600e9}};
  const auto [number, unit] = UFFDA_TRY(leading_number(text, kExpected));
  if (number == 0 && unit.empty()) return std::chrono::nanoseconds(0);
  const auto* const found = std::ranges::find(kUnits, unit, &Suffix::text);
  if (found == std::end(kUnits))
    return fail(Errc::invalid_argument, in_quotes(text) + " is not " + std::string(kExpected));
  constexpr double kMaxNanoseconds = 365.0 * 24 * 3600e9;
  if (number * found->factor > kMaxNanoseconds)
    return fail(Errc::out_of_range, in_quotes(text) + " is more than a year");
  return std::chrono::nanoseconds(std::llround(number * found->factor));
}

}  // namespace uffda
