#include <nlohmann/json.hpp>

#include "cli/probe_report.h"

namespace uffda::cli {
namespace {

using Json = nlohmann::ordered_json;

Json checks_json(const std::vector<os::Check>& checks) {
  Json json = Json::object();
  for (const os::Check& check : checks)
    json[check.name] = {{"yes", check.yes}, {"found", check.found}, {"remedy", check.remedy}};
  return json;
}

Json machine_json(const os::Machine& machine) {
  Json json{{"kernel", machine.kernel},
            {"architecture", machine.architecture},
            {"user", machine.user},
            {"cpus", machine.cpus},
            {"page_bytes", machine.page_size.value},
            {"memory_bytes", machine.memory.value},
            {"memory_available_bytes", machine.memory_available.value},
            {"descriptor_limit", machine.descriptor_limit}};
  const bool limited = machine.locked_memory_limit.value != UINT64_MAX;
  json["locked_memory_limit_bytes"] = limited ? Json(machine.locked_memory_limit.value) : Json(nullptr);
  return json;
}

Json features_json(const std::vector<os::FeatureCheck>& features) {
  Json json = Json::object();
  for (const os::FeatureCheck& feature : features) {
    json[feature.name] = {{"yes", feature.yes}, {"bit", feature.bit}, {"since", feature.since}};
  }
  return json;
}

Json memory_json(const std::vector<os::MemoryCheck>& memories) {
  Json json = Json::object();
  for (const os::MemoryCheck& memory : memories) {
    Json modes = Json::object();
    for (const os::ModeCheck& mode : memory.modes) {
      modes[mode.mode] = {{"yes", mode.yes}, {"ioctls", names_of(mode.ioctls)}, {"errno", mode.error}};
    }
    json[memory.name] = {
        {"mapped", memory.mapped}, {"found", memory.found}, {"remedy", memory.remedy}, {"modes", modes}};
  }
  return json;
}

Json types_json(const std::vector<OfferedType>& types) {
  Json json = Json::object();
  for (const OfferedType& type : types) {
    json[type.name] = {{"folio_bytes", type.folio_size.value},
                       {"modes", names_of(type.ops.modes)},
                       {"ioctls", names_of(type.ops.ioctls)},
                       {"wp_async_only", type.ops.wp_async_only},
                       {"raises_faults", raises_faults(type.ops)}};
  }
  return json;
}

Json comparison_json(const std::vector<Comparison>& comparisons) {
  Json json = Json::object();
  for (const Comparison& comparison : comparisons) {
    Json items = Json::object();
    for (const Item& item : comparison.items)
      items[item.name] = {{"kernel", item.kernel}, {"uffda", item.uffda}, {"reason", item.reason}};
    json[comparison.kernel.name] = {{"type", comparison.type.empty() ? Json(nullptr) : Json(comparison.type)},
                                    {"why_no_type", comparison.why_no_type},
                                    {"items", std::move(items)}};
  }
  return json;
}

Json hugepages_json(const std::vector<os::HugepagePool>& pools) {
  Json json = Json::array();
  for (const os::HugepagePool& pool : pools) {
    json.push_back({{"page_bytes", pool.page_size.value},
                    {"total", pool.total},
                    {"free", pool.free},
                    {"reserved", pool.reserved}});
  }
  return json;
}

}  // namespace

std::string probe_json(const os::Probe& probe, const std::vector<OfferedType>& types) {
  const Json json{{"machine", machine_json(probe.machine)},
                  {"summary", checks_json(probe.summary)},
                  {"creation", checks_json(probe.creation)},
                  {"features", features_json(probe.features)},
                  {"unknown_features", probe.unknown_features},
                  {"memory", memory_json(probe.memory)},
                  {"types", types_json(types)},
                  {"comparison", comparison_json(compare(probe.memory, types))},
                  {"privileges", checks_json(probe.privileges)},
                  {"hugepages", hugepages_json(probe.hugepages)}};
  return json.dump(2) + "\n";
}

}  // namespace uffda::cli
