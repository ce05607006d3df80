#include "uffda/dirty_log.h"

#include <array>
#include <cstdint>

namespace uffda {

Result<DirtyLog> DirtyLog::start(const Engine& engine, const Memory& memory) {
  auto monitor = Userfault::open(engine, UffdFeature::wp_async);
  if (!monitor)
    return std::unexpected(monitor.error().within("a dirty log needs EngineOptions::monitors with wp_async"));
  const Address start{reinterpret_cast<std::uintptr_t>(memory.bytes().data())};
  const ByteCount length{align_up(memory.bytes().size(), memory.page_size().value)};
  UFFDA_TRY(monitor->register_range(start, length, UffdMode::wp));
  const UffdOutcome armed = monitor->writeprotect(start, length, ResolveFlag::wp);
  if (armed.error != 0) return fail_errno(armed.error, "protecting what a dirty log is kept of");
  return DirtyLog(*std::move(monitor), start, length, {memory.bytes().size()});
}

Result<std::vector<ByteRange>> DirtyLog::collect() { return look(Rearm::yes); }
Result<std::vector<ByteRange>> DirtyLog::peek() { return look(Rearm::no); }

Result<std::vector<ByteRange>> DirtyLog::look(Rearm rearm) {
  constexpr std::size_t kRoom = 256;
  std::array<WrittenRange, kRoom> room{};
  std::vector<ByteRange> found;
  const Address end = start_ + length_;
  for (Address at = start_; at < end;) {
    const auto pages = monitor_.written(at, end - at, room, rearm);
    if (!pages) {
      // What was found and protected again must not be forgotten.
      all_ = all_ || rearm == Rearm::yes;
      return std::unexpected(pages.error());
    }
    for (const WrittenRange& range : std::span(room).first(pages->ranges)) {
      const ByteOffset offset{(range.start - start_).value};
      if (!found.empty() && found.back().end() == offset) {
        found.back().length += range.length;
      } else {
        found.push_back({.start = offset, .length = range.length});
      }
    }
    at = pages->end;
  }
  if (all_) found = {{.start = {}, .length = length_}};
  // The last page may go on behind the end of the memory.
  if (!found.empty() && found.back().end().value > size_.value)
    found.back().length = size_ - ByteCount{found.back().start.value};
  if (rearm == Rearm::yes) all_ = false;
  return found;
}

}  // namespace uffda
