#include "server/report.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "os/fd.h"
#include "os/memory.h"

namespace uffda {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kReportVersion = 1;

std::uint64_t value(const Stats::Counter& counter) { return counter.load(std::memory_order_relaxed); }

double share(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
}

Json faults_json(const FaultStats& stats) {
  return {{"cached", value(stats.faults_cached)},
          {"missing", value(stats.faults_missing)},
          {"poisoned", value(stats.faults_poisoned)},
          {"unknown", value(stats.faults_unknown)}};
}

Json fetches_json(const Stats& stats) {
  return {{"count", value(stats.fetches)},
          {"ahead", value(stats.fetches_ahead)},
          {"background", value(stats.fetches_background)},
          {"bytes", value(stats.bytes_fetched)},
          {"failures", value(stats.fetch_failures)},
          {"timeouts", value(stats.fetch_timeouts)},
          {"source_time_us", stats.of(Stage::fetch).summary().total_us}};
}

Json folios_json(const Stats& stats) {
  return {{"mapped", value(stats.folios_mapped)},
          {"around", value(stats.folios_around)},
          {"fault_around_share", share(value(stats.folios_around), value(stats.folios_mapped))},
          {"evicted", value(stats.folios_evicted)}};
}

Json histogram_json(const LatencyHistogram& histogram) {
  const LatencySummary summary = histogram.summary();
  return {{"count", summary.count}, {"p50", summary.p50_us}, {"p90", summary.p90_us},
          {"p99", summary.p99_us},  {"max", summary.max_us}, {"total", summary.total_us}};
}

Json latency_json(const Stats& stats) {
  Json stages = Json::object();
  for (int i = 0; i < kStages; ++i) {
    const auto stage = static_cast<Stage>(i);
    stages[std::string(to_string(stage))] = histogram_json(stats.of(stage));
  }
  return stages;
}

/// As short as it is useful: there may be many.
Json brief_json(const LatencyHistogram& histogram) {
  const LatencySummary summary = histogram.summary();
  return {{"count", summary.count}, {"p50", summary.p50_us}, {"p99", summary.p99_us}, {"max", summary.max_us}};
}

Json client_json(const AddressSpaces::Client& client) {
  const SpaceStats& stats = client.space->stats();
  return {{"name", client.space->name()},
          {"pid", client.pid == 0 ? Json() : Json(client.pid)},
          {"forked", client.forked},
          {"mappings", client.space->mapping_count()},
          {"faults", faults_json(stats)},
          {"mapped_bytes", value(stats.bytes_mapped)},
          {"latency_us", {{"cached", brief_json(stats.cached)}, {"missing", brief_json(stats.missing)}}},
          {"events", value(stats.events)},
          {"wakes_deferred", value(stats.wakes_deferred)}};
}

Json export_json(const std::string& name, const MemoryObject& object, const PageSource& source) {
  return {{"name", name},
          {"source", object.name()},
          {"size", object.size().value},
          {"folio_size", object.folio_size().value},
          {"folios", object.folios()},
          {"folios_present", object.folios_present()},
          {"budget_used_bytes", object.budget().used().value},
          {"budget_bytes", object.budget().limit().value},
          {"fetches", source.counters().fetches.load(std::memory_order_relaxed)},
          {"bytes", source.counters().bytes.load(std::memory_order_relaxed)}};
}

Json fill_json(const FillProgress& progress) {
  return {{"end", to_string(progress.end)},    {"wanted_bytes", progress.wanted.value},
          {"done_bytes", progress.done.value}, {"fetched_bytes", progress.fetched.value},
          {"zero_bytes", progress.zero.value}, {"left_bytes", progress.left.value}};
}

Json prefetch_json(const FillProgress& progress) {
  // What was fetched and neither touched nor evicted may still be touched.
  const std::uint64_t used = progress.hit.value + progress.wasted.value;
  return {{"end", to_string(progress.end)},
          {"wanted_bytes", progress.wanted.value},
          {"done_bytes", progress.done.value},
          {"prefetched_bytes", progress.fetched.value},
          {"hit_bytes", progress.hit.value},
          {"wasted_bytes", progress.wasted.value},
          {"unread_bytes", progress.fetched.value - std::min(used, progress.fetched.value)}};
}

std::string text_of(const Json& json) {
  // A URI may hold bytes that are no UTF-8; they are shown replaced, a report is never lost over them.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

std::string report_json(Core& core, const Exports& exports, const Fills& fills,
                        const std::vector<AddressSpaces::Client>& clients, const ServerCounts& counts,
                        std::size_t max_bytes) {
  const Stats& stats = core.stats();
  Json report = {{"version", kReportVersion},
                 {"faults", faults_json(stats)},
                 {"folios", folios_json(stats)},
                 {"fetches", fetches_json(stats)},
                 {"latency_us", latency_json(stats)},
                 {"events", value(stats.events)},
                 {"wakes_deferred", value(stats.wakes_deferred)},
                 {"resident",
                  {{"bytes", core.resident().value},
                   {"budget_used_bytes", core.budget().used().value},
                   {"budget_bytes", core.budget().limit().value},
                   {"apart_bytes", core.apart().value}}},
                 {"clients",
                  {{"address_spaces", counts.address_spaces},
                   {"connections", counts.connections},
                   {"watchers", counts.watchers},
                   {"list", Json::array()},
                   {"left_out", 0}}},
                 {"exports_left_out", 0}};
  if (fills.populate()) report["populate"] = fill_json(fills.populate()->progress());
  if (fills.recording() != nullptr) report["record"] = {{"runs", fills.recording()->runs()}};
  constexpr std::size_t kMargin = 1024;
  std::size_t size = text_of(report).size() + kMargin;
  constexpr std::size_t kIndentation = 512;
  Json served = Json::array();
  for (const AddressSpaces::Client& client : clients) {
    Json entry = client_json(client);
    const std::size_t more = text_of(entry).size() + kIndentation;
    if (size + more > max_bytes) break;
    size += more;
    served.push_back(std::move(entry));
  }
  report["clients"]["left_out"] = clients.size() - served.size();
  report["clients"]["list"] = std::move(served);
  Json list = Json::array();
  for (const auto& [name, object] : exports.all()) {
    Json entry = export_json(name, *object, object->source());
    for (const Fills::Prefetched& prefetched : fills.prefetches()) {
      if (prefetched.object == object.get()) entry["prefetch"] = prefetch_json(prefetched.fill.progress());
    }
    constexpr std::size_t kExportIndentation = 128;
    size += text_of(entry).size() + kExportIndentation;
    if (size > max_bytes) break;
    list.push_back(std::move(entry));
  }
  report["exports_left_out"] = exports.all().size() - list.size();
  report["exports"] = std::move(list);
  return text_of(report);
}

Result<void> write_report(const std::string& path, const std::string& text) {
  const std::string draft = fmt::format("{}.{}.tmp", path, ::getpid());
  os::UniqueFd file(::open(draft.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (!file) return fail_errno(errno, fmt::format("the report {}", draft));
  auto written = os::write_at(file.get(), {}, std::as_bytes(std::span(text)));
  file.reset();
  if (written && ::rename(draft.c_str(), path.c_str()) != 0)
    written = fail_errno(errno, fmt::format("the report {}", path));
  if (!written) ::unlink(draft.c_str());
  return written;
}

}  // namespace uffda
