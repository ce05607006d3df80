#include "sources/http/values.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <limits>

#include <fmt/format.h>

namespace uffda::sources::http {
namespace {

constexpr std::size_t kMaxEtagBytes = 1024;

/// A decimal number at the start of `text`, which is taken off it. Files and objects have signed 64-bit sizes.
std::optional<std::uint64_t> take_number(std::string_view& text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || value > std::numeric_limits<std::int64_t>::max()) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return value;
}

bool take(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

bool take_unit(std::string_view& text) {
  constexpr std::string_view kUnit = "bytes";
  if (text.size() <= kUnit.size() || text[kUnit.size()] != ' ') return false;
  const auto same = [](char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == b; };
  if (!std::ranges::equal(text.substr(0, kUnit.size()), kUnit, same)) return false;
  text = trimmed(text.substr(kUnit.size()));
  return true;
}

bool is_hex(char c) { return std::isxdigit(static_cast<unsigned char>(c)) != 0; }

void append_escape(std::string& out, char c) {
  fmt::format_to(std::back_inserter(out), "%{:02X}", static_cast<unsigned char>(c));
}

}  // namespace

std::string_view trimmed(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return text;
}

Result<ContentRange> parse_content_range(std::string_view text) {
  std::string_view left = trimmed(text);
  const auto bad = [&] { return fail(Errc::protocol, "bad Content-Range '" + printable(text) + "'"); };
  if (!take_unit(left)) return bad();
  const auto first = take_number(left);
  if (!first || !take(left, "-")) return bad();
  const auto last = take_number(left);
  if (!last || !take(left, "/")) return bad();
  const auto total = take_number(left);
  if (!total || !left.empty() || *first > *last || *last >= *total) return bad();
  return ContentRange{{{*first}, {*last - *first + 1}}, {*total}};
}

std::optional<ByteCount> parse_unsatisfied_range(std::string_view text) {
  std::string_view left = trimmed(text);
  if (!take_unit(left) || !take(left, "*/")) return std::nullopt;
  const auto total = take_number(left);
  if (!total || !left.empty()) return std::nullopt;
  return ByteCount{*total};
}

bool is_strong_etag(std::string_view text) {
  if (text.size() < 2 || text.size() > kMaxEtagBytes || text.front() != '"' || text.back() != '"') return false;
  return std::ranges::all_of(text.substr(1, text.size() - 2), [](char c) { return c > ' ' && c < '\x7f' && c != '"'; });
}

std::string printable(std::string_view text, std::size_t most) {
  std::string out;
  for (const char c : text.substr(0, most)) out += std::isprint(static_cast<unsigned char>(c)) != 0 ? c : '?';
  if (text.size() > most) out += "...";
  return out;
}

std::string xml_value(std::string_view body, std::string_view key) {
  const std::string open = fmt::format("<{}>", key);
  const std::size_t start = body.find(open);
  if (start == std::string_view::npos) return {};
  body.remove_prefix(start + open.size());
  const std::size_t end = body.find('<');
  if (end == std::string_view::npos) return {};
  return printable(trimmed(body.substr(0, end)));
}

std::string store_error(std::string_view body) {
  const std::string code = xml_value(body, "Code");
  const std::string message = xml_value(body, "Message");
  if (code.empty() || message.empty()) return code + message;
  return code + ": " + message;
}

std::string encoded_url(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const bool escape = c == '%' && i + 2 < text.size() && is_hex(text[i + 1]) && is_hex(text[i + 2]);
    const bool plain = c > ' ' && c < '\x7f' && std::string_view("#%\"<>\\^`{|}").find(c) == std::string_view::npos;
    if (escape || plain) {
      out += c;
    } else {
      append_escape(out, c);
    }
  }
  return out;
}

std::string encoded_key(std::string_view key) {
  std::string out;
  for (const char c : key) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (letter || c == '-' || c == '.' || c == '_' || c == '~' || c == '/') {
      out += c;
    } else {
      append_escape(out, c);
    }
  }
  return out;
}

}  // namespace uffda::sources::http
