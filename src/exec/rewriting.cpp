#include "exec/rewriting.h"

#include <fmt/format.h>

#include "exec/child.h"
#include "exec/program.h"

namespace uffda::exec {

namespace {

/// A rule is ASKED=REAL, and rules are joined by semicolons.
bool can_be_told(const std::string& name) { return name.find_first_of("=;") == std::string::npos; }

void add_rule(std::string& rules, const std::string& asked, const std::string& real) {
  if (!rules.empty()) rules += ';';
  rules += asked;
  rules += '=';
  rules += real;
}

}  // namespace

Result<void> check_rewriting(const ResolvedMap& map, const ExecOptions& options, const Error& why) {
  if (!options.preload || find_shim().empty() || !can_be_told(map.path) || !can_be_told(map.asked) ||
      !can_be_told(map.mount_path)) {
    return std::unexpected(why);
  }
  if (const auto file = static_program(options.program[0])) {
    return fail(Errc::invalid_argument, fmt::format("{}: {} is static (or for another machine), so the name cannot be "
                                                    "rewritten for it",
                                                    why.context(), *file));
  }
  return {};
}

std::string rewriting_rules(const std::vector<ResolvedMap>& maps, const char* before) {
  std::string rules;
  for (const ResolvedMap& map : maps) {
    if (map.mount_path == map.path) continue;
    add_rule(rules, map.path, map.mount_path);
    // By its letters, too: a directory that is not there cannot be recognised through links.
    if (map.asked != map.path) add_rule(rules, map.asked, map.mount_path);
  }
  if (!rules.empty() && before != nullptr && *before != 0) rules += fmt::format(";{}", before);
  return rules;
}

}  // namespace uffda::exec
