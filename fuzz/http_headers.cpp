// What the http source reads of servers and of credentials files, from any bytes: the first byte says which.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "sources/http/headers.h"
#include "sources/http/ini.h"
#include "sources/http/values.h"

namespace {

using namespace uffda::sources::http;

void require(bool holds) {
  if (!holds) std::abort();
}

void read_range(std::string_view text) {
  const auto range = parse_content_range(text);
  if (range) require(!range->range.empty() && range->range.end().value <= range->total.value);
  (void)parse_unsatisfied_range(text);
}

void read_header(std::string_view text) {
  Headers headers;
  bool more = true;
  for (std::size_t at = 0; more && at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size() - 1);
    more = headers.take(text.substr(at, end + 1 - at));
    at = end + 1;
  }
  require(headers.status() == 0 || (headers.status() >= 100 && headers.status() <= 999));
  require(headers.find("etag").find('\n') == std::string_view::npos || !is_strong_etag(headers.find("etag")));
  read_range(headers.find("content-range"));
}

void write_names(std::string_view text) {
  for (const char c : encoded_url(text)) require(c > ' ' && c < '\x7f' && c != '#');
  for (const char c : encoded_key(text)) require(c > ' ' && c < '\x7f' && c != '?' && c != '#');
  for (const char c : printable(text)) require(c >= ' ' && c < '\x7f');
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 5) {
    case 0:
      read_range(text);
      break;
    case 1:
      read_header(text);
      break;
    case 2:
      (void)read_ini_section(text, "default");
      break;
    case 3:
      for (const char c : store_error(text)) require(c >= ' ' && c < '\x7f');
      break;
    default:
      write_names(text);
  }
  return 0;
}
