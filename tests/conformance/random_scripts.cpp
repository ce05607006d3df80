// Random scripts, each run on the kernel's userfaultfd and on uffda's: nothing that can be seen may differ. A
// difference is shrunk to a script of which every step is needed.
//
// UFFDA_CONFORMANCE_SCRIPTS: how many for each type (2,000), and a quarter of that with sigbus and with wp_async.
// UFFDA_CONFORMANCE_SEED: the first seed (1).
#include <gtest/gtest.h>

#include <string>

#include "conformance/script.h"

namespace uffda::conformance {
namespace {

class RandomScripts : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    if (!pages_.why.empty()) GTEST_SKIP() << pages_.why;
    std::string why;
    if (!kernel_world(GetParam(), why) || !uffda_world(GetParam(), why)) GTEST_SKIP() << why;
  }

  Pages pages_{GetParam()};
};

TEST_P(RandomScripts, AreTheSameOnTheKernelAndHere) {
  const std::uint64_t first = setting("UFFDA_CONFORMANCE_SEED", 1);
  const bool plain = GetParam().features == kFeatures;
  const std::uint64_t count = setting("UFFDA_CONFORMANCE_SCRIPTS", 2000) / (plain ? 1 : 4);
  for (const std::string& text : compare(first, count, GetParam(), run_uffda, "uffda")) ADD_FAILURE() << text;
}

std::string name_of(const testing::TestParamInfo<Kind>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Types, RandomScripts, testing::ValuesIn(kinds()), name_of);
INSTANTIATE_TEST_SUITE_P(TypesWithSigbus, RandomScripts,
                         testing::ValuesIn(kinds_with(UffdFeature::sigbus, "_with_sigbus")), name_of);
INSTANTIATE_TEST_SUITE_P(TypesWithWpAsync, RandomScripts,
                         testing::ValuesIn(kinds_with(UffdFeature::wp_async, "_with_wp_async")), name_of);

}  // namespace
}  // namespace uffda::conformance
