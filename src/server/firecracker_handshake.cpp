#include "server/firecracker_handshake.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

namespace uffda::firecracker {
namespace {

using Json = nlohmann::json;

Result<std::optional<std::uint64_t>> optional_number(const Json& region, const char* field) {
  const auto found = region.find(field);
  if (found == region.end() || found->is_null()) return std::optional<std::uint64_t>{};
  if (!found->is_number_unsigned()) return fail(Errc::protocol, fmt::format("'{}' is no number of bytes", field));
  return std::optional(found->get<std::uint64_t>());
}

Result<std::uint64_t> number(const Json& region, const char* field) {
  const auto value = UFFDA_TRY(optional_number(region, field));
  if (!value) return fail(Errc::protocol, fmt::format("there is no '{}'", field));
  return *value;
}

Result<ByteCount> page_size_of(const Json& region) {
  auto size = UFFDA_TRY(optional_number(region, "page_size"));
  if (!size) size = UFFDA_TRY(optional_number(region, "page_size_kib"));
  const ByteCount page{size.value_or(kPageSize.value)};
  if (page == kPageSize || page == 2_MiB) return page;
  return fail(Errc::protocol, fmt::format("pages of {} bytes; there are those of 4096 and of 2097152", page.value));
}

Result<Region> region_of(const Json& json, ByteCount page) {
  const Region region{.start = {UFFDA_TRY(number(json, "base_host_virt_addr"))},
                      .length = {UFFDA_TRY(number(json, "size"))},
                      .offset = {UFFDA_TRY(number(json, "offset"))}};
  const bool aligned = region.start.value % page.value == 0 && region.length.value % page.value == 0 &&
                       region.offset.value % page.value == 0;
  if (!aligned) return fail(Errc::protocol, fmt::format("it is not in whole pages of {} bytes", page.value));
  constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();
  if (region.length.value == 0) return fail(Errc::protocol, "it is empty");
  if (region.length.value > kMost - region.start.value || region.length.value > kMost - region.offset.value)
    return fail(Errc::protocol, "no memory is that large");
  return region;
}

Result<void> check_apart(const std::vector<Region>& regions) {
  for (std::size_t i = 1; i < regions.size(); ++i) {
    if (regions[i - 1].start + regions[i - 1].length > regions[i].start)
      return fail(Errc::protocol, fmt::format("two regions overlap at {:#x}", regions[i].start.value));
  }
  return {};
}

}  // namespace

bool is_whole(std::string_view text) { return Json::accept(text); }

Result<Handshake> parse_handshake(std::string_view text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_array() || json.empty()) return fail(Errc::protocol, "the handshake is no JSON array of memory regions");
  Handshake handshake;
  handshake.regions.reserve(json.size());
  for (const Json& one : json) {
    const std::string where = fmt::format("region {}", handshake.regions.size());
    if (!one.is_object()) return fail(Errc::protocol, where + " is no object");
    const auto page = page_size_of(one);
    if (!page) return std::unexpected(page.error().within(where));
    if (handshake.page_size.value != 0 && *page != handshake.page_size)
      return fail(Errc::protocol, where + " has pages of another size than those before it");
    handshake.page_size = *page;
    const auto region = region_of(one, *page);
    if (!region) return std::unexpected(region.error().within(where));
    handshake.regions.push_back(*region);
  }
  std::ranges::sort(handshake.regions, {}, &Region::start);
  UFFDA_TRY_VOID(check_apart(handshake.regions));
  return handshake;
}

}  // namespace uffda::firecracker
