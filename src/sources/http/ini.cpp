#include "sources/http/ini.h"

#include <cctype>

#include <fmt/format.h>

#include "sources/http/values.h"

namespace uffda::sources::http {
namespace {

std::string lower(std::string_view text) {
  std::string out;
  for (const char c : text) out += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

}  // namespace

Result<IniSection> read_ini_section(std::string_view text, std::string_view name) {
  IniSection section;
  bool inside = false;
  for (std::size_t number = 1; !text.empty(); ++number) {
    const std::size_t end = text.find('\n');
    const std::string_view whole = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    const std::string_view line = trimmed(whole);
    if (line.empty() || line.front() == '#' || line.front() == ';') continue;
    const auto bad = [&](const char* what) {
      return fail(Errc::invalid_argument, fmt::format("line {}: {}", number, what));
    };
    if (line.front() == '[') {
      if (line.back() != ']') return bad("a section has no closing bracket");
      inside = trimmed(line.substr(1, line.size() - 2)) == name;
      continue;
    }
    if (whole.front() == ' ' || whole.front() == '\t') continue;
    const std::size_t equals = line.find('=');
    if (equals == std::string_view::npos) return bad("expected KEY = VALUE");
    if (inside) section[lower(trimmed(line.substr(0, equals)))] = trimmed(line.substr(equals + 1));
  }
  return section;
}

}  // namespace uffda::sources::http
