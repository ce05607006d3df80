#include "cli/assignment.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "uffda/source_registry.h"

namespace uffda::cli {
namespace {

/// What stands behind the last comma of a source, if it is a mode.
MapMode take_mode(std::string& source) {
  const auto ends = [&](std::string_view suffix) {
    if (!source.ends_with(suffix)) return false;
    source.resize(source.size() - suffix.size());
    return true;
  };
  if (ends(",rw")) return MapMode::writable;
  if (ends(",grow")) return MapMode::growable;
  return ends(",cow") ? MapMode::cow : MapMode::read_only;
}

Error ill_written(std::string_view option, const std::string& text, std::string_view right) {
  return Error(Errc::invalid_argument, fmt::format("{} {}: write it as {}", option, text, right));
}

}  // namespace

Result<void> check_source(const std::string& uri) {
  const SourceUri parsed = UFFDA_TRY(parse_source_uri(uri));
  std::vector<std::string> names;
  for (const SourceScheme& scheme : source_schemes()) names.push_back(scheme.name);
  if (std::ranges::find(names, parsed.scheme()) != names.end()) return {};
  return fail(Errc::invalid_argument,
              fmt::format("{}: no source is called '{}'; there are {}", uri, parsed.scheme(), fmt::join(names, ", ")));
}

Result<Assignment> split_assignment(std::string_view option, const std::string& text, std::string_view right) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size())
    return std::unexpected(ill_written(option, text, right));
  return Assignment{text.substr(0, equals), text.substr(equals + 1)};
}

Result<Assignment> parse_assignment(std::string_view option, const std::string& text, std::string_view right,
                                    bool is_uri) {
  Assignment result = UFFDA_TRY(split_assignment(option, text, right));
  result.mode = take_mode(result.source);
  if (result.source.empty()) return std::unexpected(ill_written(option, text, right));
  if (is_uri) {
    if (auto checked = check_source(result.source); !checked)
      return std::unexpected(checked.error().within(fmt::format("{} {}", option, text)));
  }
  return result;
}

}  // namespace uffda::cli
