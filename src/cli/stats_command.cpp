#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/operate_commands.h"
#include "cli/table.h"
#include "server/client.h"

namespace uffda::cli {
namespace {

using Json = nlohmann::json;

constexpr Duration kStatsWait = std::chrono::seconds(10);

/// Throws if it is no such number: get() would convert any, and a large fraction has no defined value then.
std::uint64_t count(const Json& value) { return value.get_ref<const Json::number_unsigned_t&>(); }
std::string number(const Json& value) { return std::to_string(count(value)); }
std::string bytes(const Json& value) { return size_text({count(value)}); }
/// Microseconds; nothing where nothing was measured.
std::string latency(const Json& stage, const char* field) {
  return count(stage.at("count")) == 0 ? "-" : fmt::format("{:.1f}", stage.at(field).get<double>());
}

void align_right(Table& table, std::size_t from, std::size_t to) {
  for (std::size_t i = from; i < to; ++i) table.align(i, Align::right);
}

std::string clients_text(const Json& clients) {
  if (clients.at("list").empty()) return "  none\n";
  Table table({"client", "pid", "cached", "missing", "p50 us", "p99 us", "missing p50", "p99", "mapped", "deferred",
               "poisoned"});
  align_right(table, 1, 11);
  for (const Json& client : clients.at("list")) {
    const Json& faults = client.at("faults");
    const Json& cached = client.at("latency_us").at("cached");
    const Json& missing = client.at("latency_us").at("missing");
    table.add({client.at("name").get<std::string>(), client.at("pid").is_null() ? "-" : number(client.at("pid")),
               number(faults.at("cached")), number(faults.at("missing")), latency(cached, "p50"),
               latency(cached, "p99"), latency(missing, "p50"), latency(missing, "p99"),
               bytes(client.at("mapped_bytes")), number(client.at("wakes_deferred")), number(faults.at("poisoned"))});
  }
  return table.text();
}

std::string exports_text(const Json& exports) {
  Table table({"export", "size", "present", "fetches", "fetched", "source"});
  align_right(table, 1, 5);
  for (const Json& one : exports) {
    const std::uint64_t present = count(one.at("folios_present")) * count(one.at("folio_size"));
    table.add({one.at("name").get<std::string>(), bytes(one.at("size")), size_text({present}),
               number(one.at("fetches")), bytes(one.at("bytes")), one.at("source").get<std::string>()});
  }
  return table.text();
}

std::string latencies_text(const Json& latencies) {
  Table table({"stage", "count", "p50 us", "p90 us", "p99 us", "max us"});
  align_right(table, 1, 6);
  for (const auto& [name, stage] : latencies.items()) {
    table.add({name, number(stage.at("count")), latency(stage, "p50"), latency(stage, "p90"), latency(stage, "p99"),
               latency(stage, "max")});
  }
  return table.text();
}

std::string left_out(const char* what, const Json& how_many) {
  if (count(how_many) == 0) return "";
  return fmt::format("  and {} {} for which there was no room\n", number(how_many), what);
}

}  // namespace

Result<std::string> stats_text(std::string_view json) {
  const Json report = Json::parse(json, nullptr, false);
  try {
    const Json& clients = report.at("clients");
    const Json& resident = report.at("resident");
    std::string text = fmt::format("Clients: {} address spaces, {} connections\n{}{}",
                                   number(clients.at("address_spaces")), number(clients.at("connections")),
                                   clients_text(clients), left_out("clients", clients.at("left_out")));
    text += fmt::format("\nExports\n{}{}", exports_text(report.at("exports")),
                        left_out("exports", report.at("exports_left_out")));
    text += fmt::format("\nCache: {} of {}, and {} that cannot be evicted\n", bytes(resident.at("budget_used_bytes")),
                        bytes(resident.at("budget_bytes")), bytes(resident.at("apart_bytes")));
    text += fmt::format("\nLatencies\n{}", latencies_text(report.at("latency_us")));
    return text;
  } catch (const Json::exception& error) {
    return fail(Errc::protocol, fmt::format("that is no report of this version; --json shows it ({})", error.what()));
  }
}

Result<int> run_stats(const StatsCommand& command) {
  HandoffClient client = UFFDA_TRY(HandoffClient::connect(command.socket, kStatsWait));
  const std::string report = UFFDA_TRY(client.stats());
  const std::string text = command.json ? report : UFFDA_TRY(stats_text(report));
  fmt::print("{}", text);
  return std::fflush(stdout) == 0 ? 0 : 1;
}

}  // namespace uffda::cli
