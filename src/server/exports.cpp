#include "server/exports.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "server/handoff_wire.h"
#include "server/kept_state.h"
#include "uffda/page_source.h"

namespace uffda {
namespace {

bool printable(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return c >= ' ' && c != '\x7f'; });
}

Result<void> check_name(std::string_view name) {
  if (!name.empty() && name.size() < handoff::kNameSize && printable(name)) return {};
  return fail(Errc::invalid_argument,
              fmt::format("an export's name has 1 to {} printable bytes, and this one does not: '{}'",
                          handoff::kNameSize - 1, name));
}

Result<std::shared_ptr<MemoryObject>> create_object(Core& core, const ExportSpec& spec, KeptState* kept) {
  auto source = UFFDA_TRY(open_source(spec.uri, spec.what_for));
  const std::string_view type = spec.huge ? "shmem-2m" : "shmem";
  if (kept == nullptr) return core.create_object(std::move(source), type, spec.budget, spec.what_for);
  auto place =
      UFFDA_TRY(kept->find_object(fmt::format("{}\n{}\n{}", spec.uri, std::to_underlying(spec.what_for), type)));
  const bool is_new = !place.kept.has_value();
  auto object = UFFDA_TRY(core.create_object(std::move(source), type, spec.budget, spec.what_for,
                                             {.number = place.number, .kept = std::move(place.kept)}));
  if (is_new) UFFDA_TRY_VOID(kept->keep_object(place.number, object->backing().mapping_fd(), object->states().fd()));
  return object;
}

}  // namespace

Result<Exports> Exports::open(Core& core, std::span<const ExportSpec> specs, KeptState* kept) {
  if (specs.empty()) return fail(Errc::invalid_argument, "nothing to serve: give at least one export, NAME=URI");
  if (specs.size() > kMaxExports) return fail(Errc::invalid_argument, fmt::format("more than {} exports", kMaxExports));
  Exports exports;
  std::map<std::pair<std::string, bool>, std::shared_ptr<MemoryObject>> by_uri;
  for (const ExportSpec& spec : specs) {
    UFFDA_TRY_VOID(check_name(spec.name));
    if (exports.objects_.contains(spec.name)) {
      return fail(Errc::invalid_argument, fmt::format("two exports are named '{}'", spec.name));
    }
    std::shared_ptr<MemoryObject>& object = by_uri[{spec.uri, spec.huge}];
    if (object && spec.budget.value != 0) {
      return fail(Errc::invalid_argument,
                  fmt::format("export '{}' shares the pages of one before it, and their budget: give it to the first",
                              spec.name));
    }
    const bool writable = spec.what_for != OpenFor::reading;
    if (object && object->writes_back() != writable) {
      return fail(
          Errc::invalid_argument,
          fmt::format("export '{}' has the same bytes as one before it: both are writable, or neither is", spec.name));
    }
    if (!object) {
      auto created = create_object(core, spec, kept);
      if (!created) return std::unexpected(created.error().within(fmt::format("export '{}'", spec.name)));
      object = *std::move(created);
    }
    exports.objects_.emplace(spec.name, object);
  }
  return exports;
}

Result<std::shared_ptr<MemoryObject>> Exports::find(std::string_view name) const {
  const auto found = objects_.find(name);
  if (found == objects_.end()) return fail(Errc::not_found, fmt::format("no export is named '{}'", name));
  return found->second;
}

}  // namespace uffda
