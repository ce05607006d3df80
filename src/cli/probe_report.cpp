#include "cli/probe_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <utility>

#include "cli/table.h"
#include "memtypes/builtin.h"

namespace uffda::cli {
namespace {

const char* yes_or_no(bool yes) { return yes ? "yes" : "no"; }

std::string join(const std::vector<std::string>& words) { return fmt::format("{}", fmt::join(words, " ")); }

/// A no is followed by what to do about it, on its own line, where it can be as long as it needs.
std::string checks_text(const std::vector<os::Check>& checks) {
  std::size_t width = 0;
  for (const os::Check& check : checks) width = std::max(width, check.name.size());
  std::string text;
  for (const os::Check& check : checks) {
    text += fmt::format("  {:<{}}  {:<3}{}{}\n", check.name, width, yes_or_no(check.yes),
                        check.found.empty() ? "" : "  ", check.found);
    if (!check.remedy.empty()) text += fmt::format("  {:<{}}       -> {}\n", "", width, check.remedy);
  }
  return text;
}

std::string machine_text(const os::Machine& machine) {
  const std::string locked =
      machine.locked_memory_limit.value == UINT64_MAX ? "unlimited" : size_text(machine.locked_memory_limit);
  return fmt::format(
      "{} on {}, {} CPUs, {} of memory ({} available), pages of {}, {}\nLimits: {} of locked memory, {} descriptors\n",
      machine.kernel, machine.architecture, machine.cpus, size_text(machine.memory),
      size_text(machine.memory_available), size_text(machine.page_size), machine.user, locked,
      machine.descriptor_limit);
}

std::string features_text(const os::Probe& probe) {
  constexpr std::size_t kColumns = 3;
  Table table({});
  std::vector<std::string> row;
  for (const os::FeatureCheck& feature : probe.features) {
    row.push_back(fmt::format("{:<19}{:<4}{}", feature.name, yes_or_no(feature.yes), "Linux " + feature.since));
    if (row.size() == kColumns) table.add(std::exchange(row, {}));
  }
  if (!row.empty()) table.add(row);
  std::string text = table.text();
  if (probe.unknown_features != 0)
    text += fmt::format("  and bits that this version of uffda does not know: 0x{:x}\n", probe.unknown_features);
  for (const os::FeatureCheck& feature : probe.features) {
    if (!feature.yes) return text + "  -> a feature that says no needs the Linux version beside it\n";
  }
  return text;
}

/// Of the modes that raise faults; wp-async raises none.
UffdIoctls all_ioctls(const os::MemoryCheck& memory) {
  UffdIoctls all;
  for (const os::ModeCheck& mode : memory.modes) {
    if (mode.mode != "wp-async") all = all | mode.ioctls;
  }
  return all;
}

std::string memory_text(const std::vector<os::MemoryCheck>& memories) {
  Table table({"", "missing", "minor", "wp", "wp-async", "resolved by"});
  std::string remedies;
  for (const os::MemoryCheck& memory : memories) {
    std::vector<std::string> row{
        memory.found.empty() || !memory.mapped ? memory.name : fmt::format("{} ({})", memory.name, memory.found)};
    if (!memory.mapped) row.push_back("cannot be mapped: " + memory.found);
    for (const os::ModeCheck& mode : memory.modes) row.emplace_back(yes_or_no(mode.yes));
    if (memory.mapped) row.push_back(join(names_of(all_ioctls(memory))));
    table.add(std::move(row));
    if (!memory.remedy.empty()) remedies += fmt::format("  -> {}: {}\n", memory.name, memory.remedy);
  }
  return table.text() + remedies;
}

std::string types_text(const std::vector<OfferedType>& types) {
  Table table({"", "page", "faults", "resolved by"});
  for (const OfferedType& type : types) {
    table.add({type.name, size_text(type.folio_size), join(names_of(type.modes)), join(names_of(type.ioctls))});
  }
  return table.text();
}

std::string hugepages_text(const std::vector<os::HugepagePool>& pools) {
  if (pools.empty()) return "  none: boot a kernel with CONFIG_HUGETLBFS=y\n";
  std::string text;
  for (const os::HugepagePool& pool : pools) {
    text += fmt::format("  {}: {} pages, {} of them free\n", size_text(pool.page_size), pool.total, pool.free);
    if (pool.total != 0) continue;
    text += fmt::format("  -> echo NUMBER > /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages (root)\n",
                        pool.page_size.value / 1024);
  }
  return text;
}

}  // namespace

std::vector<std::string> names_of(UffdIoctls ioctls) {
  constexpr std::array<std::pair<UffdIoctl, const char*>, 6> kNames{{{UffdIoctl::copy, "copy"},
                                                                     {UffdIoctl::zeropage, "zeropage"},
                                                                     {UffdIoctl::move, "move"},
                                                                     {UffdIoctl::writeprotect, "writeprotect"},
                                                                     {UffdIoctl::continue_, "continue"},
                                                                     {UffdIoctl::poison, "poison"}}};
  std::vector<std::string> names;
  for (const auto& [bit, name] : kNames) {
    if (ioctls.has(bit)) names.emplace_back(name);
  }
  return names;
}

std::vector<std::string> names_of(UffdModes modes) {
  constexpr std::array<std::pair<UffdMode, const char*>, 3> kNames{
      {{UffdMode::missing, "missing"}, {UffdMode::minor, "minor"}, {UffdMode::wp, "wp"}}};
  std::vector<std::string> names;
  for (const auto& [bit, name] : kNames) {
    if (modes.has(bit)) names.emplace_back(name);
  }
  return names;
}

std::vector<OfferedType> offered_types() {
  MemoryTypes types;
  std::vector<OfferedType> offered;
  if (!register_builtin_types(types)) return offered;
  for (const auto& type : types.all()) {
    offered.push_back({.name = std::string(type->name()),
                       .folio_size = type->folio_size(),
                       .modes = type->ops()->modes,
                       .ioctls = type->ops()->ioctls});
  }
  return offered;
}

std::string probe_text(const os::Probe& probe, const std::vector<OfferedType>& types) {
  std::string text = machine_text(probe.machine);
  text += "\nWhat works here\n" + checks_text(probe.summary);
  text += "\nWays to a userfaultfd\n" + checks_text(probe.creation);
  text += "\nFeatures of userfaultfd\n" + features_text(probe);
  text += "\nMemory that the kernel's userfaultfd takes, tried by UFFDIO_REGISTER\n" + memory_text(probe.memory);
  text += "\nMemory types of uffda\n" + types_text(types);
  text += "\nPrivileges\n" + checks_text(probe.privileges);
  text += "\nHuge pages\n" + hugepages_text(probe.hugepages);
  return text;
}

}  // namespace uffda::cli
