// Source URIs from anywhere: parsing never crashes, and what was accepted reads back by every getter.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "uffda/source_registry.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

/// An error must have words, and none of them control bytes.
template <typename T>
void check(const uffda::Result<T>& result) {
  if (result) return;
  require(!result.error().context().empty());
  for (const char c : result.error().context()) require(static_cast<unsigned char>(c) >= 0x20);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace uffda;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  check(parse_size(text));
  check(parse_duration(text));
  const auto uri = SourceUri::parse(text);
  check(uri);
  if (!uri) return 0;
  require(!uri->scheme().empty());
  require(uri->rest().find('\0') == std::string::npos);
  for (const SourceUri::Parameter& parameter : uri->parameters()) {
    require(uri->find(parameter.key) == uri->find(parameter.key) && *uri->find(parameter.key) == parameter.value);
    check(uri->number(parameter.key, 0));
    check(uri->duration(parameter.key, std::chrono::nanoseconds(0)));
    check(uri->choice(parameter.key, {"on", "off"}, "on"));
    const auto fraction = uri->fraction(parameter.key, 0);
    check(fraction);
    require(!fraction || (*fraction >= 0 && *fraction <= 1));
    const auto range = uri->range(parameter.key);
    check(range);
    require(!range || (*range && !(*range)->empty()));
  }
  return 0;
}
