// What `uffda probe` prints, from made-up findings; and the JSON of this machine.
#include "cli/probe_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
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
  probe.hugepages = {{.page_size = 2_MiB, .total = 0, .free = 0, .setting = "/sys/nr_hugepages"}};
  return probe;
}

TEST(ProbeText, EveryNoHasItsRemedy) {
  const std::string text = probe_text(made_up(), {});
  EXPECT_THAT(text, HasSubstr("-> do this"));
  EXPECT_THAT(text, HasSubstr("-> guest_memfd: join kvm"));
  EXPECT_THAT(text, HasSubstr("echo NUMBER > /sys/nr_hugepages"));
  EXPECT_THAT(text, HasSubstr("needs the Linux version beside it"));
}

TEST(ProbeText, ShowsWhatUffdaOffers) {
  const std::string text = probe_text(made_up(), offered_types());
  EXPECT_THAT(text, HasSubstr("anon"));
  EXPECT_THAT(text, HasSubstr("missing minor wp"));
}

TEST(Comparison, EveryDifferenceHasItsReason) {
  for (const os::Probe& probe : {made_up(), os::probe()}) {
    const auto comparisons = compare(probe.memory, offered_types());
    ASSERT_EQ(comparisons.size(), probe.memory.size());
    const std::string text = probe_text(probe, offered_types());
    for (const Comparison& comparison : comparisons) {
      EXPECT_EQ(comparison.items.size(), 10U);
      EXPECT_EQ(comparison.type.empty(), !comparison.why_no_type.empty()) << comparison.kernel.name;
      if (comparison.type.empty()) continue;
      for (const Item& item : comparison.items) {
        EXPECT_EQ(item.kernel == item.uffda, item.reason.empty()) << comparison.kernel.name << " " << item.name;
        EXPECT_THAT(text, HasSubstr(item.reason));
      }
    }
  }
}

TEST(Comparison, TellsWhatTheKernelRefusesFromWhatUffdaDoesNotOffer) {
  os::MemoryCheck shmem{.name = "shmem", .mapped = true, .found = "", .remedy = "", .modes = {}};
  shmem.modes.push_back({.mode = "missing", .yes = true, .ioctls = {UffdIoctl::copy, UffdIoctl::move}, .error = 0});
  shmem.modes.push_back({.mode = "minor", .yes = false, .ioctls = {}, .error = EINVAL});
  const Comparison comparison = compare({shmem}, offered_types()).front();
  EXPECT_EQ(comparison.type, "shmem");
  const auto item = [&](std::string_view name) { return *std::ranges::find(comparison.items, name, &Item::name); };
  EXPECT_TRUE(item("missing").reason.empty());
  EXPECT_THAT(item("minor").reason, HasSubstr("older"));
  EXPECT_THAT(item("move").reason, HasSubstr("anonymous"));
  EXPECT_TRUE(item("copy").kernel && item("copy").uffda);
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
  EXPECT_TRUE(json["comparison"]["shmem"]["items"]["missing"]["kernel"]);
}

TEST(Probe, OfThisMachineIsWhole) {
  const os::Probe probe = os::probe();
  EXPECT_EQ(probe.creation.size(), 5U);
  EXPECT_EQ(probe.features.size(), 17U);
  EXPECT_EQ(probe.memory.size(), 10U);
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
