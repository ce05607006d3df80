#include "cli/type_table.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "memtypes/builtin.h"

namespace uffda::cli {
namespace {

constexpr std::array<std::pair<UffdIoctl, const char*>, 6> kIoctls{{{UffdIoctl::copy, "copy"},
                                                                    {UffdIoctl::zeropage, "zeropage"},
                                                                    {UffdIoctl::move, "move"},
                                                                    {UffdIoctl::writeprotect, "writeprotect"},
                                                                    {UffdIoctl::continue_, "continue"},
                                                                    {UffdIoctl::poison, "poison"}}};
constexpr std::array<std::pair<UffdMode, const char*>, 3> kModes{
    {{UffdMode::missing, "missing"}, {UffdMode::minor, "minor"}, {UffdMode::wp, "wp"}}};
constexpr std::string_view kAsync = "wp-async";

/// Which of uffda's types holds its pages in a kind of memory that the probe tries, or why none does.
struct Kinship {
  std::string_view memory;
  std::string_view type;
  std::string_view why_no_type;
};
constexpr std::array<Kinship, 10> kKinships{
    {{os::kAnonymousRow, "anon", ""},
     {os::kShmemRow, "shmem", ""},
     {"shmem, private", "shmem", ""},
     {"hugetlb 2 MiB", "hugetlb", ""},
     {"hugetlb 2 MiB, private", "hugetlb", ""},
     {"hugetlb 1 GiB", "hugetlb-1g", ""},
     {"hugetlb 1 GiB, private", "hugetlb-1g", ""},
     {"guest_memfd", "guest_memfd", ""},
     {"file", "", "the kernel registers none of its faults; its bytes are a page source, whose pages any type holds"},
     {"memfd_secret", "",
      "left to types out of tree; it has no faults, so such a type is populated before it is mapped"}}};

/// Why uffda does not offer what the kernel names.
std::string why_not_offered(std::string_view item, const os::MemoryCheck& memory) {
  const bool raises_faults =
      std::ranges::any_of(memory.modes, [](const os::ModeCheck& mode) { return mode.yes && mode.mode != kAsync; });
  if (!raises_faults && item != kAsync)
    return "the kernel names it for whatever it registers, but has no way to fill this memory (EINVAL)";
  if (item == "move") return "the kernel names it for all but huge pages; UFFDIO_MOVE is for anonymous memory (EINVAL)";
  return "this type has no use for it";
}

/// Why uffda offers what the kernel did not grant on this machine.
std::string why_not_granted(std::string_view item, const os::MemoryCheck& memory) {
  if (!memory.mapped) return memory.remedy;
  const auto mode = std::ranges::find(memory.modes, item, &os::ModeCheck::mode);
  if (mode != memory.modes.end() && mode->error != EINVAL) return "no userfaultfd: see the ways to one";
  return "this kernel is older than it: mappings of this type are refused here";
}

bool granted(std::string_view mode, const os::MemoryCheck& memory) {
  const auto check = std::ranges::find(memory.modes, mode, &os::ModeCheck::mode);
  return check != memory.modes.end() && check->yes;
}

/// What the kernel returned for any of the modes.
UffdIoctls granted_ioctls(const os::MemoryCheck& memory) {
  UffdIoctls all;
  for (const os::ModeCheck& mode : memory.modes) all = all | mode.ioctls;
  return all;
}

Item compare_item(std::string_view name, bool kernel, bool uffda, const os::MemoryCheck& memory) {
  Item item{.name = std::string(name), .kernel = kernel, .uffda = uffda, .reason = {}};
  if (kernel && !uffda) item.reason = why_not_offered(name, memory);
  if (!kernel && uffda) item.reason = why_not_granted(name, memory);
  return item;
}

Comparison compare_one(const os::MemoryCheck& memory, const std::vector<OfferedType>& types) {
  Comparison comparison{.kernel = memory, .type = {}, .why_no_type = "this version has no type for it", .items = {}};
  const auto* const kinship = std::ranges::find(kKinships, memory.name, &Kinship::memory);
  const auto type =
      kinship == kKinships.end() ? types.end() : std::ranges::find(types, kinship->type, &OfferedType::name);
  std::optional<UffdOps> ops;
  if (type != types.end()) {
    ops = type->ops;
    comparison.type = type->name;
    comparison.why_no_type.clear();
  } else if (kinship != kKinships.end() && !kinship->why_no_type.empty()) {
    comparison.why_no_type = kinship->why_no_type;
  }
  const auto add = [&](std::string_view name, bool kernel, bool offered) {
    // Without a type there is nothing to differ from.
    comparison.items.push_back(ops ? compare_item(name, kernel, offered, memory)
                                   : Item{.name = std::string(name), .kernel = kernel, .uffda = false, .reason = {}});
  };
  for (const auto& [mode, name] : kModes) {
    const bool offered = ops && ops->modes.has(mode) && !(mode == UffdMode::wp && ops->wp_async_only);
    add(name, granted(name, memory), offered);
  }
  add(kAsync, granted(kAsync, memory), ops && ops->modes.has(UffdMode::wp));
  const UffdIoctls ioctls = granted_ioctls(memory);
  for (const auto& [ioctl, name] : kIoctls) add(name, ioctls.has(ioctl), ops && ops->ioctls.has(ioctl));
  return comparison;
}

}  // namespace

std::vector<Comparison> compare(const std::vector<os::MemoryCheck>& memory, const std::vector<OfferedType>& types) {
  std::vector<Comparison> comparisons;
  for (const os::MemoryCheck& check : memory) comparisons.push_back(compare_one(check, types));
  return comparisons;
}

std::vector<OfferedType> offered_types() {
  MemoryTypes types;
  std::vector<OfferedType> offered;
  if (!register_builtin_types(types)) return offered;
  for (const auto& type : types.all())
    offered.push_back({.name = std::string(type->name()), .folio_size = type->folio_size(), .ops = *type->ops()});
  return offered;
}

std::vector<std::string> names_of(UffdIoctls ioctls) {
  std::vector<std::string> names;
  for (const auto& [bit, name] : kIoctls) {
    if (ioctls.has(bit)) names.emplace_back(name);
  }
  return names;
}

std::vector<std::string> names_of(UffdModes modes) {
  std::vector<std::string> names;
  for (const auto& [bit, name] : kModes) {
    if (modes.has(bit)) names.emplace_back(name);
  }
  return names;
}

}  // namespace uffda::cli
