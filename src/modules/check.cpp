#include "modules/check.h"

#include <fmt/format.h>

#include <filesystem>

#include "modules/check_parts.h"
#include "modules/loader.h"

namespace uffda::modules {

bool Suite::run(const std::string& what, const std::function<Result<void>()>& check) {
  const unsigned before = complaints();
  Result<void> result = check();
  if (result && complaints() != before) result = fail(Errc::protocol, "it broke the contract: see the message above");
  CheckResult told{.outcome = CheckResult::Outcome::passed, .what = what, .why = {}};
  if (!result) {
    const bool skipped = result.error().code() == Errc::unsupported && result.error().sys_errno() == 0;
    told.outcome = skipped ? CheckResult::Outcome::skipped : CheckResult::Outcome::failed;
    told.why = result.error().context();
    failed_ = failed_ || !skipped;
  }
  tell_(told);
  return told.outcome != CheckResult::Outcome::failed;
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

bool check_module(const std::string& file, const CheckOptions& options,
                  const std::function<void(const CheckResult&)>& tell) {
  Suite suite(tell);
  std::optional<Offers> offers;
  suite.run("the module loads, and what it registers holds together", [&]() -> Result<void> {
    offers = UFFDA_TRY(read_offers(file, options.module));
    return {};
  });
  if (!offers) return false;
  const std::string label = label_of(file);
  for (const auto& [name, text] : options.arguments) {
    suite.run(fmt::format("source {}", name), [&]() -> Result<void> {
      for (const auto& source : offers->sources) {
        if (source->about().name == name) return {};
      }
      return fail(Errc::not_found, "the module has no source of this name");
    });
  }
  for (const auto& source : offers->sources) {
    const auto given = options.arguments.find(source->about().name);
    const std::string& text = given != options.arguments.end() ? given->second : source->about().example;
    check_source_contract(suite, source, label, text, options.module.deadline);
  }
  for (const auto& type : offers->types) check_type_contract(suite, type, label, options.module.deadline);
  return !suite.failed();
}

}  // namespace uffda::modules
