// Random scripts, each run on the kernel's userfaultfd and on the one that tests/sim simulates: what the core is tested
// over behaves as what it runs over.
//
// UFFDA_CONFORMANCE_SCRIPTS: how many for each kind of memory (300). UFFDA_CONFORMANCE_SEED: the first seed (1).
#include <gtest/gtest.h>

#include "sim_conformance/world_simulated.h"

namespace uffda::conformance {
namespace {

class SimulatedKernel : public testing::TestWithParam<Kind> {};

TEST_P(SimulatedKernel, IsLikeTheKernel) {
  std::string why;
  if (!kernel_world(GetParam(), why)) GTEST_SKIP() << why;
  const std::uint64_t first = setting("UFFDA_CONFORMANCE_SEED", 1);
  const std::uint64_t count = setting("UFFDA_CONFORMANCE_SCRIPTS", 300);
  for (const std::string& text : compare(first, count, GetParam(), run_simulated, "simulated")) ADD_FAILURE() << text;
}

/// Huge pages are not simulated.
std::vector<Kind> simulated(std::vector<Kind> kinds) {
  std::erase_if(kinds, [](const Kind& kind) { return kind.unit != kPageSize; });
  return kinds;
}

std::string name_of(const testing::TestParamInfo<Kind>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Types, SimulatedKernel, testing::ValuesIn(simulated(kinds())), name_of);
INSTANTIATE_TEST_SUITE_P(TypesWithSigbus, SimulatedKernel,
                         testing::ValuesIn(simulated(kinds_with(UffdFeature::sigbus, "_with_sigbus"))), name_of);
INSTANTIATE_TEST_SUITE_P(TypesWithWpAsync, SimulatedKernel,
                         testing::ValuesIn(simulated(kinds_with(UffdFeature::wp_async, "_with_wp_async"))), name_of);

}  // namespace
}  // namespace uffda::conformance
