// What `uffda probe` prints, from made-up findings; and the JSON of this machine.
#include "cli/probe_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "os/probe.h"

namespace uffda::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

os::Probe made_up() {
  os::Probe probe;
  probe.machine = {.kernel = "Linux 5.10.0",
                   .architecture = "x86_64",
                   .user = "uid 7",
                   .cpus = 2,
                   .page_size = kPageSize,
                   .memory = 8_GiB,
                   .memory_available = 1_GiB,
                   .locked_memory_limit = 8_MiB,
                   .descriptor_limit = 1024};
  probe.creation = {{.name = "system call", .yes = false, .found = "EPERM", .remedy = "do this"}};
  probe.features = os::probe_features(1);
  probe.memory = {{.name = "shmem",
                   .mapped = true,
                   .found = "memfd",
                   .remedy = "",
                   .modes = {{.mode = "missing", .yes = true, .ioctls = UffdIoctl::copy, .error = 0}}},
                  {.name = "guest_memfd", .mapped = false, .found = "EACCES", .remedy = "join kvm", .modes = {}}};
  probe.hugepages = {{.page_size = 2_MiB, .total = 0, .free = 0}};
  return probe;
}

TEST(ProbeText, EveryNoHasItsRemedy) {
  const std::string text = probe_text(made_up(), {});
  EXPECT_THAT(text, HasSubstr("-> do this"));
  EXPECT_THAT(text, HasSubstr("-> guest_memfd: join kvm"));
  EXPECT_THAT(text, HasSubstr("hugepages-2048kB/nr_hugepages"));
  EXPECT_THAT(text, HasSubstr("needs the Linux version beside it"));
}

TEST(ProbeText, ShowsWhatUffdaOffers) {
  const std::string text = probe_text(made_up(), offered_types());
  EXPECT_THAT(text, HasSubstr("anon"));
  EXPECT_THAT(text, HasSubstr("missing minor wp"));
}

TEST(ProbeJson, HasTheSameData) {
  const auto json = nlohmann::json::parse(probe_json(made_up(), offered_types()));
  EXPECT_FALSE(json["creation"]["system call"]["yes"]);
  EXPECT_EQ(json["creation"]["system call"]["remedy"], "do this");
  EXPECT_TRUE(json["features"]["PAGEFAULT_FLAG_WP"]["yes"]);
  EXPECT_FALSE(json["features"]["MOVE"]["yes"]);
  EXPECT_EQ(json["features"]["MOVE"]["since"], "6.8");
  EXPECT_EQ(json["memory"]["shmem"]["modes"]["missing"]["ioctls"][0], "copy");
  EXPECT_EQ(json["machine"]["memory_bytes"], (8_GiB).value);
  EXPECT_TRUE(json["types"].contains("shmem"));
}

TEST(Probe, OfThisMachineIsWhole) {
  const os::Probe probe = os::probe();
  EXPECT_EQ(probe.creation.size(), 5U);
  EXPECT_EQ(probe.features.size(), 17U);
  EXPECT_EQ(probe.memory.size(), 8U);
  EXPECT_EQ(probe.privileges.size(), 8U);
  EXPECT_FALSE(probe.machine.kernel.empty());
  for (const auto* checks : {&probe.creation, &probe.privileges, &probe.summary}) {
    for (const os::Check& check : *checks) EXPECT_EQ(check.yes, check.remedy.empty()) << check.name;
  }
  for (const os::MemoryCheck& memory : probe.memory) {
    if (!memory.mapped) EXPECT_FALSE(memory.remedy.empty()) << memory.name;
    for (const os::ModeCheck& mode : memory.modes) {
      EXPECT_EQ(mode.yes, mode.error == 0) << memory.name << " " << mode.mode;
      if (!mode.yes) EXPECT_FALSE(memory.remedy.empty()) << memory.name << " " << mode.mode;
    }
  }
  EXPECT_THAT(probe_text(probe, offered_types()), Not(HasSubstr("no such section")));
}

}  // namespace
}  // namespace uffda::cli
