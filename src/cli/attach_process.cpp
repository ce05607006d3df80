#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>

#include "cli/operate_commands.h"
#include "cli/table.h"
#include "server/firecracker_handshake.h"
#include "server/serve.h"
#include "uffda/source_registry.h"

namespace uffda::cli {
namespace {

Result<std::uint64_t> hexadecimal(std::string_view text) {
  if (text.starts_with("0x")) text.remove_prefix(2);
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (text.empty() || error != std::errc() || end != text.data() + text.size())
    return fail(Errc::invalid_argument, fmt::format("'{}' is no hexadecimal address", text));
  return value;
}

Result<std::vector<AttachMap>> maps_of_regions(const AttachProcessCommand& command) {
  std::ifstream file(command.regions, std::ios::binary);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  if (!file) return fail(Errc::not_found, fmt::format("{} cannot be read", command.regions));
  if (text.size() > firecracker::kMaxHandshake)
    return fail(Errc::invalid_argument, fmt::format("{} has more than 64 KiB", command.regions));
  auto handshake = firecracker::parse_handshake(text);
  if (!handshake) return std::unexpected(handshake.error().within(command.regions));
  std::vector<AttachMap> maps;
  for (const firecracker::Region& region : handshake->regions)
    maps.push_back({.start = region.start, .length = region.length, .uri = command.source, .offset = region.offset});
  return maps;
}

/// Says what could be named, and changes nothing.
Result<int> show_registered(pid_t pid) {
  const auto ranges = UFFDA_TRY(os::trapped_ranges(pid));
  Table table({"registered", "size", "page", "faults", "mapping of"});
  for (const os::TrappedRange& range : ranges) {
    table.add({fmt::format("{:x}-{:x}", range.start.value, range.end().value), size_text(range.length),
               size_text(range.page_size),
               fmt::format("{}{}", range.minor ? "minor " : "missing ", range.write_protect ? "wp" : ""),
               range.name.empty() ? "(anonymous)" : range.name});
  }
  fmt::print("{}", table.text(0));
  if (ranges.empty()) fmt::print("Nothing of process {} is registered with a userfaultfd.\n", pid);
  if (!ranges.empty())
    fmt::print("Say what they show to serve process {}: --map START-END=URI@OFFSET, once for each.\n", pid);
  return 0;
}

/// Exports by source, and the ranges by the exports' names.
std::vector<NamedRange> name_exports(const std::vector<AttachMap>& maps, ServeOptions& options, bool kill) {
  std::map<std::string, std::string> names;
  std::vector<NamedRange> ranges;
  for (const AttachMap& map : maps) {
    const auto [at, is_new] = names.try_emplace(map.uri, fmt::format("source-{}", names.size() + 1));
    if (is_new) options.exports.push_back({.name = at->second, .uri = map.uri, .kill = kill});
    ranges.push_back({.start = map.start, .length = map.length, .name = at->second, .offset = map.offset});
  }
  return ranges;
}

}  // namespace

Result<AttachMap> parse_attach_map(const std::string& text) {
  const auto unclear = [&] {
    return fail(Errc::invalid_argument, fmt::format("--map {}: write it as START-END=URI[@OFFSET]", text));
  };
  const std::size_t dash = text.find('-');
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || dash > equals || equals + 1 == text.size()) return unclear();
  const std::uint64_t start = UFFDA_TRY(hexadecimal(std::string_view(text).substr(0, dash)));
  const std::uint64_t end = UFFDA_TRY(hexadecimal(std::string_view(text).substr(dash + 1, equals - dash - 1)));
  if (end <= start) return fail(Errc::invalid_argument, fmt::format("--map {}: END is behind START", text));
  AttachMap map{.start = {start}, .length = {end - start}, .uri = text.substr(equals + 1), .offset = {}};
  const std::size_t at = map.uri.rfind('@');
  if (at == std::string::npos) return map;
  // A host may have a user's name in front of it.
  const auto offset = parse_size(std::string_view(map.uri).substr(at + 1));
  if (!offset) return map;
  if (at == 0) return unclear();
  map.offset = {offset->value};
  map.uri.resize(at);
  return map;
}

Result<int> run_attach_process(const AttachProcessCommand& command) {
  if (command.maps.empty() && command.regions.empty()) return show_registered(command.pid);
  const std::vector<AttachMap> maps = command.regions.empty() ? command.maps : UFFDA_TRY(maps_of_regions(command));
  ServeOptions options;
  std::vector<NamedRange> named = name_exports(maps, options, command.kill_on_error);
  auto attachment = UFFDA_TRY(take_attachment(command.pid, command.fd, std::move(named),
                                              command.force ? OtherHandlers::allow : OtherHandlers::refuse));
  for (ExportSpec& spec : options.exports) spec.huge = attachment.plan.page_size > kPageSize;
  for (const std::string& line : tell_plan(attachment)) fmt::print(stderr, "uffda attach: {}\n", line);
  options.attachment = std::make_shared<const Attachment>(std::move(attachment));
  options.socket_path = command.socket;
  options.ready_fd = command.ready_fd;
  options.until_idle = true;
  options.quiet = true;
  options.holder = command.holder;
  options.report_path = command.report;
  set_limits(options, command.limits);
  return run_serve(std::move(options));
}

}  // namespace uffda::cli
