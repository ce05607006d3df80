#include "qemu/channel.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <bit>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string_view>

#include "os/socket.h"
#include "qemu/stream.h"

namespace uffda::qemu {
namespace {

/// What changes the stream into one that is not spoken here.
constexpr std::array<std::string_view, 15> kNotSpoken = {
    "xbzrle",      "rdma-pin-all",     "compress",      "postcopy-ram",    "x-colo",
    "return-path", "multifd",          "dirty-bitmaps", "x-ignore-shared", "background-snapshot",
    "block",       "postcopy-preempt", "mapped-ram",    "zero-copy-send",  "switchover-ack"};

}  // namespace

Result<os::UniqueFd> give_end(Qmp& qmp, const std::string& name) {
  os::SocketPair ends = UFFDA_TRY(os::make_stream_pair());
  const auto given = qmp.execute("getfd", {{"fdname", name}}, Deadline::after(Qmp::kPatience), ends.second.get());
  if (given) return std::move(ends.first);
  if (!given.error().message().contains("SCM_RIGHTS")) return std::unexpected(given.error());
  return fail(Errc::unsupported,
              "descriptors do not reach QEMU by this monitor (a multiplexed character device passes none): give it a "
              "monitor of its own, -qmp unix:PATH,server=on,wait=off");
}

Result<os::UniqueFd> open_stream(Qmp& qmp, const std::string& command) {
  constexpr const char* kName = "uffda";
  os::UniqueFd end = UFFDA_TRY(give_end(qmp, kName));
  UFFDA_TRY(qmp.execute(command, {{"uri", fmt::format("fd:{}", kName)}}));
  return end;
}

Result<void> refuse_capabilities(const nlohmann::json& capabilities, const std::vector<std::string>& may_be_on) {
  for (const auto& one : capabilities) {
    const std::string name = text_of(one, "capability");
    const auto state = one.find("state");
    if (state == one.end() || !state->is_boolean() || !state->get<bool>()) continue;
    if (std::ranges::find(kNotSpoken, name) == kNotSpoken.end() ||
        std::ranges::find(may_be_on, name) != may_be_on.end())
      continue;
    return fail(Errc::unsupported, fmt::format("this QEMU has the migration capability {} on: switch it off "
                                               "(migrate-set-capabilities), for its stream is another one",
                                               name));
  }
  return {};
}

Result<void> check_capabilities(Qmp& qmp, const std::vector<std::string>& may_be_on) {
  return refuse_capabilities(UFFDA_TRY(qmp.execute("query-migrate-capabilities")), may_be_on);
}

std::map<std::string, ByteCount> parse_page_sizes(const std::string& table) {
  std::map<std::string, ByteCount> sizes;
  std::istringstream lines(table);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string name;
    std::uint64_t number = 0;
    std::string unit;
    if (!(words >> name >> number >> unit)) continue;
    const unsigned shift = unit == "KiB" ? 10U : unit == "MiB" ? 20U : unit == "GiB" ? 30U : 0U;
    const ByteCount size{number << shift};
    if (shift == 0 || number > kLargestPage.value >> shift || size < kTargetPage || !std::has_single_bit(number))
      continue;
    sizes[name] = size;
  }
  return sizes;
}

Result<MigrationState> migration_state(Qmp& qmp) {
  const auto answer = UFFDA_TRY(qmp.execute("query-migrate"));
  return MigrationState{.status = text_of(answer, "status"), .error = text_of(answer, "error-desc")};
}

Result<void> wait_for_migration(Qmp& qmp, std::string_view status) {
  constexpr Duration kNoticed = std::chrono::seconds(30);
  constexpr int kAskEvery = 5;  // ms
  const Deadline deadline = Deadline::after(kNoticed);
  for (;;) {
    const MigrationState state = UFFDA_TRY(migration_state(qmp));
    if (state.status == status) return {};
    if (state.status == "failed") return fail(Errc::io, fmt::format("QEMU's migration failed: {}", state.error));
    if (deadline.passed()) return fail(Errc::timed_out, fmt::format("QEMU's migration stays '{}'", state.status));
    (void)::poll(nullptr, 0, kAskEvery);
  }
}

}  // namespace uffda::qemu
