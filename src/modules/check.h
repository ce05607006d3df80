// `uffda module check`: the contract of uffda-module.h as a suite that runs on a module.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "uffda/module.h"
#include "uffda/result.h"

namespace uffda::modules {

struct CheckResult {
  enum class Outcome : std::uint8_t { passed, failed, skipped };
  Outcome outcome = Outcome::passed;
  std::string what;  ///< "source pattern: the same bytes come in any order"
  std::string why;   ///< of a failure or a skip
};

struct CheckOptions {
  ModuleOptions module{.deadline = std::chrono::seconds(5)};
  std::map<std::string, std::string> arguments;  ///< NAME -> "size=1M": instead of a source's example
};

/// Runs every check on everything that the module has; `tell` hears each result as it comes. True if none failed.
/// Call it once in a process. Requires: no module is loaded.
bool check_module(const std::string& file, const CheckOptions& options,
                  const std::function<void(const CheckResult&)>& tell);

/// The parts. Internal to the suite.
class Suite {
 public:
  explicit Suite(const std::function<void(const CheckResult&)>& tell) : tell_(tell) {}
  /// Runs one check: no error is a pass, Errc::unsupported a skip. False if it failed.
  bool run(const std::string& what, const std::function<Result<void>()>& check);
  [[nodiscard]] bool failed() const { return failed_; }

 private:
  const std::function<void(const CheckResult&)>& tell_;
  bool failed_ = false;
};

/// Descriptors that this process has open: a check compares two counts.
std::size_t open_descriptors();

}  // namespace uffda::modules
