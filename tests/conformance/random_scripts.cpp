// Random scripts, each run on the kernel's userfaultfd and on uffda's: nothing that can be seen may differ. A
// difference is shrunk to a script of which every step is needed.
//
// UFFDA_CONFORMANCE_SCRIPTS: how many for each type (2,000). UFFDA_CONFORMANCE_SEED: the first seed (1).
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "conformance/script.h"

namespace uffda::conformance {
namespace {

std::uint64_t setting(const char* name, std::uint64_t otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr ? otherwise : std::strtoull(value, nullptr, 10);
}

class RandomScripts : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    if (!pages_.why.empty()) GTEST_SKIP() << pages_.why;
    std::string why;
    if (!kernel_world(GetParam(), why) || !uffda_world(GetParam(), why)) GTEST_SKIP() << why;
  }

  static Script shrink(Script script) {
    for (bool smaller = true; smaller;) {
      smaller = false;
      for (std::size_t i = script.size(); i-- > 0;) {
        Script shorter = script;
        shorter.erase(shorter.begin() + static_cast<std::ptrdiff_t>(i));
        if (!difference(shorter, GetParam())) continue;
        script = std::move(shorter);
        smaller = true;
      }
    }
    return script;
  }

  Pages pages_{GetParam()};
};

TEST_P(RandomScripts, AreTheSameOnTheKernelAndHere) {
  const std::uint64_t first = setting("UFFDA_CONFORMANCE_SEED", 1);
  const std::uint64_t count = setting("UFFDA_CONFORMANCE_SCRIPTS", 2000);
  int differences = 0;
  for (std::uint64_t seed = first; seed < first + count && differences < 3; ++seed) {
    const Script script = random_script(seed);
    const auto found = difference(script, GetParam());
    if (!found) continue;
    ++differences;
    const auto smallest = difference(shrink(script), GetParam());
    ADD_FAILURE() << "seed " << seed << " differs (! marks where); the smallest script that does:\n"
                  << show(smallest ? smallest : found);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, RandomScripts, testing::ValuesIn(kinds()),
                         [](const testing::TestParamInfo<Kind>& info) { return info.param.name; });

}  // namespace
}  // namespace uffda::conformance
