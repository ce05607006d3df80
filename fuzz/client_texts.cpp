// Text that a client, an operator or the system around them wrote: what /proc tells of a process that is to be attached
// to, and the ranges that are named of it; descriptors that a service manager passed; --map; the command line of
// `uffda attach`; what QEMU's monitor answers; the report of a server. It is refused in words, or what is made of it is
// possible.
//
// Input: a byte that says which, and the text. A text of several parts has a 0 between them.
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "cli/assignment.h"
#include "cli/operate_commands.h"
#include "os/other_process.h"
#include "qemu/channel.h"
#include "qemu/qmp.h"
#include "qemu/stream.h"
#include "server/activation.h"
#include "server/attach.h"
#include "server/fd_store.h"

namespace {

using namespace uffda;

void require(bool holds) {
  if (!holds) std::abort();
}

template <typename T>
bool is_good(const Result<T>& result) {
  require(result || !result.error().context().empty());
  return result.has_value();
}

/// The part before the separator, which is taken away.
std::string take_part(std::string_view& text, char separator = '\0') {
  const std::string_view part = text.substr(0, text.find(separator));
  text.remove_prefix(std::min(text.size(), part.size() + 1));
  return std::string(part);
}

template <typename Range>
std::uint64_t sum_of(const std::vector<Range>& ranges) {
  std::uint64_t sum = 0;
  for (const Range& range : ranges) sum += range.length.value;
  return sum;
}

/// The kernel tells mappings in order, and none twice.
std::vector<os::TrappedRange> in_order(std::vector<os::TrappedRange> all) {
  Address last;
  std::erase_if(all, [&](const os::TrappedRange& range) {
    if (range.start < last) return true;
    last = range.end();
    return false;
  });
  return all;
}

void read_memory(std::string_view text) {
  const auto trapped = in_order(os::parse_trapped_ranges(take_part(text)));
  for (const os::TrappedRange& range : trapped) require(range.end() > range.start);
  std::vector<NamedRange> named;
  while (!text.empty()) {
    const auto map = cli::parse_attach_map(take_part(text));
    if (is_good(map))
      named.push_back({.start = map->start, .length = map->length, .name = map->uri, .offset = map->offset});
  }
  const auto plan = plan_attach(named, trapped);
  if (!is_good(plan)) return;
  require(!plan->served.empty());
  require(sum_of(plan->served) + sum_of(plan->left) == sum_of(named));
  require(sum_of(plan->served) + sum_of(plan->unnamed) == sum_of(trapped));
  for (const NamedRange& served : plan->served) {
    const auto is_around = [&](const auto& range) {
      return range.start <= served.start && served.end() <= range.end();
    };
    const auto name = std::ranges::find_if(named, is_around);
    require(std::ranges::any_of(trapped, is_around) && name != named.end());
    require(served.offset.value - name->offset.value == (served.start - name->start).value);
  }
}

void read_userfault(std::string_view text) {
  const auto info = os::parse_userfault_info(text);
  require(!info || info->forgotten <= info->waiting);
}

void read_passed(std::string_view text) {
  constexpr pid_t kSelf = 42;
  const std::string pid = take_part(text);
  const std::string count = take_part(text);
  const auto passed = passed_descriptors(kSelf, pid, count, text);
  require(passed.size() <= text.size() + 1);
  const auto is_passed = [&](int fd) { return std::ranges::find(passed, fd, &PassedDescriptor::fd) != passed.end(); };
  if (const auto sockets = parse_passed(passed); is_good(sockets)) {
    require(!sockets->empty() && sockets->size() <= kProtocols);
    for (const PassedSocket& socket : *sockets) require(socket.fd >= 3 && is_passed(socket.fd));
  }
  if (const auto stored = parse_stored(passed); is_good(stored)) {
    for (const StoredDescriptor& one : *stored) require(one.number > 2 && one.number + 1 > 3 && is_passed(one.fd));
  }
}

void read_map(std::string_view text) {
  for (const bool is_uri : {true, false}) {
    const auto map = cli::parse_assignment("--map", std::string(text), "PATH=URI", is_uri);
    if (!is_good(map)) continue;
    require(!map->name.empty() && !map->source.empty() && text.starts_with(map->name + "=" + map->source));
    require((map->mode == MapMode::read_only) == (map->name.size() + 1 + map->source.size() == text.size()));
  }
}

void read_attach(std::string_view text) {
  cli::OperateTexts texts;
  for (std::string* field : {&texts.pid, &texts.fd, &texts.on_error, &texts.regions, &texts.source, &texts.ready_fd})
    *field = take_part(text);
  while (!text.empty()) texts.maps.push_back(take_part(text));
  const auto command = cli::attach_process_command(texts, cli::Limits{});
  if (!is_good(command)) return;
  require(command->pid >= 0 && command->fd >= 0 && command->maps.size() == texts.maps.size());
  for (const cli::AttachMap& map : command->maps) require(!map.uri.empty() && map.start + map.length > map.start);
}

void read_answers(std::string_view text) {
  std::string input(text);
  for (;;) {
    auto answer = qemu::take_object(input);
    if (!is_good(answer) || !*answer) return;
    for (const char* field : {"status", "running", "QMP"}) {
      (void)qemu::text_of(**answer, field);
      (void)qemu::number_of(**answer, field);
      (void)qemu::truth_of(**answer, field);
    }
    const auto value = qemu::returned_by(std::move(**answer), "query-status");
    if (!is_good(value) || !*value) continue;
    (void)qemu::text_of(**value, "status");
    (void)is_good(qemu::refuse_capabilities(**value, {}));
    if (!(*value)->is_string()) continue;
    for (const auto& [name, size] : qemu::parse_page_sizes((*value)->get<std::string>()))
      require(!name.empty() && std::has_single_bit(size.value) && size >= qemu::kTargetPage);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 7) {
    case 0:
      read_memory(text);
      break;
    case 1:
      read_userfault(text);
      break;
    case 2:
      read_passed(text);
      break;
    case 3:
      read_map(text);
      break;
    case 4:
      read_attach(text);
      break;
    case 5:
      read_answers(text);
      break;
    default:
      (void)is_good(cli::stats_text(text));
  }
  return 0;
}
