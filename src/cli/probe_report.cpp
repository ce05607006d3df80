#include "cli/probe_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "cli/table.h"

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

const char* yes_or_dash(bool yes) { return yes ? "yes" : "-"; }

/// Items that differ for the same reason are named together.
std::string reasons_text(const Comparison& comparison) {
  std::vector<std::pair<std::string, std::string>> reasons;  // of items
  for (const Item& item : comparison.items) {
    if (item.reason.empty()) continue;
    const auto same = std::ranges::find(reasons, item.reason, &std::pair<std::string, std::string>::first);
    if (same == reasons.end()) {
      reasons.emplace_back(item.reason, item.name);
    } else {
      same->second += ", " + item.name;
    }
  }
  std::string text;
  for (const auto& [reason, items] : reasons) {
    if (reason != comparison.kernel.remedy)
      text += fmt::format("  -> {}: {}: {}\n", comparison.kernel.name, items, reason);
  }
  if (comparison.type.empty()) text += fmt::format("  -> {}: {}\n", comparison.kernel.name, comparison.why_no_type);
  if (!comparison.kernel.remedy.empty())
    text += fmt::format("  -> {}: {}\n", comparison.kernel.name, comparison.kernel.remedy);
  return text;
}

std::string comparison_text(const std::vector<Comparison>& comparisons) {
  if (comparisons.empty()) return {};
  std::vector<std::string> heading{"", ""};
  for (const Item& item : comparisons.front().items) heading.push_back(item.name);
  Table table(std::move(heading));
  std::string reasons;
  for (const Comparison& comparison : comparisons) {
    const os::MemoryCheck& memory = comparison.kernel;
    std::vector<std::string> kernel{
        memory.found.empty() || !memory.mapped ? memory.name : fmt::format("{} ({})", memory.name, memory.found),
        "kernel"};
    std::vector<std::string> uffda{"", comparison.type};
    for (const Item& item : comparison.items) {
      kernel.emplace_back(memory.mapped ? yes_or_dash(item.kernel) : "?");
      uffda.emplace_back(yes_or_dash(item.uffda));
    }
    table.add(std::move(kernel));
    if (!comparison.type.empty()) table.add(std::move(uffda));
    reasons += reasons_text(comparison);
  }
  return table.text() + reasons;
}

std::string types_text(const std::vector<OfferedType>& types) {
  Table table({"", "page", "faults", "resolved by", ""});
  for (const OfferedType& type : types) {
    table.add({type.name, size_text(type.folio_size), join(names_of(type.ops.modes)), join(names_of(type.ops.ioctls)),
               raises_faults(type.ops) ? "" : "populated before it is mapped"});
  }
  return table.text();
}

std::string hugepages_text(const std::vector<os::HugepagePool>& pools) {
  if (pools.empty()) return "  none: boot a kernel with CONFIG_HUGETLBFS=y\n";
  std::string text;
  for (const os::HugepagePool& pool : pools) {
    text += fmt::format("  {}: {} pages, {} of them free, {} of those promised\n", size_text(pool.page_size),
                        pool.total, pool.free, pool.reserved);
    if (pool.total != 0) continue;
    text += fmt::format("  -> echo NUMBER > {} (root)\n", pool.setting);
  }
  return text;
}

}  // namespace

std::string probe_text(const os::Probe& probe, const std::vector<OfferedType>& types) {
  std::string text = machine_text(probe.machine);
  text += "\nWhat works here\n" + checks_text(probe.summary);
  text += "\nWays to a userfaultfd\n" + checks_text(probe.creation);
  text += "\nFeatures of userfaultfd\n" + features_text(probe);
  text += "\nMemory types of uffda\n" + types_text(types);
  text += "\nMemory under the kernel's userfaultfd (tried by UFFDIO_REGISTER) and under uffda\n" +
          comparison_text(compare(probe.memory, types));
  text += "\nPrivileges\n" + checks_text(probe.privileges);
  text += "\nHuge pages\n" + hugepages_text(probe.hugepages);
  return text;
}

}  // namespace uffda::cli
