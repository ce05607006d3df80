#include "sources/http/headers.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>

#include "sources/http/values.h"

namespace uffda::sources::http {
namespace {

/// What anybody asks for. The rest is not kept.
constexpr std::array<std::string_view, 7> kKept = {"content-range", "content-encoding", "content-length",     "etag",
                                                   "last-modified", "retry-after",      "x-amz-bucket-region"};

/// "HTTP/1.1 206 Partial Content"; 0 if it is none.
int status_of(std::string_view line) {
  const std::size_t blank = line.find(' ');
  if (blank == std::string_view::npos) return 0;
  const std::string_view code = trimmed(line.substr(blank)).substr(0, 3);
  int status = 0;
  const auto [end, error] = std::from_chars(code.data(), code.data() + code.size(), status);
  return error == std::errc{} && end == code.data() + 3 && status >= 100 ? status : 0;
}

}  // namespace

bool Headers::take(std::string_view line) {
  bytes_ += line.size();
  if (bytes_ > kMaxHeaderBytes) return false;
  if (line.starts_with("HTTP/")) {
    values_.clear();
    status_ = status_of(line);
    ended_ = false;
    return true;
  }
  if (trimmed(line).empty()) ended_ = true;
  const std::size_t colon = line.find(':');
  if (ended_ || colon == std::string_view::npos) return true;
  std::string name(line.substr(0, colon));
  std::ranges::transform(name, name.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (std::ranges::find(kKept, name) == kKept.end()) return true;
  std::string& value = values_[name];
  if (!value.empty()) value += ", ";
  value += trimmed(line.substr(colon + 1));
  return true;
}

std::string_view Headers::find(std::string_view name) const {
  const auto found = values_.find(name);
  return found == values_.end() ? std::string_view{} : found->second;
}

}  // namespace uffda::sources::http
