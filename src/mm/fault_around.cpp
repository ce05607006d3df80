#include "mm/fault_around.h"

#include <algorithm>

namespace uffda {
namespace {

// Bit 0: backward, bits 1-7: log2 of the window, the rest: the edge plus one, so that an all-zero word is no stream.
constexpr unsigned kEdgeShift = 8;

}  // namespace

std::uint64_t FaultStream::pack() const {
  return (edge + 1) << kEdgeShift | static_cast<std::uint64_t>(window_log2) << 1U | (backward ? 1U : 0U);
}

FaultStream FaultStream::unpack(std::uint64_t packed) {
  return {.edge = (packed >> kEdgeShift) - 1,
          .window_log2 = static_cast<unsigned>(packed >> 1U & 0x7FU),
          .backward = (packed & 1U) != 0};
}

bool continues(const FaultStream& stream, FolioIndex index) {
  const std::uint64_t distance = index > stream.edge ? index - stream.edge : stream.edge - index;
  return distance <= kStreamReach;
}

FaultAroundDecision fault_around(const FaultStream* stream, FolioIndex index, std::uint64_t folios) {
  if (stream == nullptr) {
    return {.window = {.first = index, .count = 1}, .stream = {.edge = index + 1, .window_log2 = 1, .backward = false}};
  }
  const bool backward = index + 1 < stream->edge || (stream->backward && index < stream->edge + 1);
  const std::uint64_t wanted = std::uint64_t{1} << stream->window_log2;
  const FolioIndex first = backward ? index - std::min(index, wanted - 1) : index;
  const FolioIndex end = backward ? index + 1 : std::min(folios, index + wanted);
  return {.window = {.first = first, .count = end - first},
          .stream = {.edge = backward ? first - std::min<FolioIndex>(first, 1) : end,
                     .window_log2 = std::min(stream->window_log2 + 1, kMaxAroundLog2),
                     .backward = backward}};
}

FolioRange FaultStreams::decide(FolioIndex index, std::uint64_t folios, bool clusters) {
  const std::uint64_t around = clusters ? clusters_.note(index) : 1;
  for (auto& slot : streams_) {
    const std::uint64_t packed = slot.load(std::memory_order_relaxed);
    if (packed == 0) continue;
    const FaultStream stream = FaultStream::unpack(packed);
    if (!continues(stream, index)) continue;
    const FaultAroundDecision decision = fault_around(&stream, index, folios);
    slot.store(decision.stream.pack(), std::memory_order_relaxed);
    return decision.window.count < around ? group_of(index, around, folios) : decision.window;
  }
  const FaultAroundDecision decision = fault_around(nullptr, index, folios);
  const std::uint32_t victim = victim_.fetch_add(1, std::memory_order_relaxed);
  streams_.at(victim % kStreams).store(decision.stream.pack(), std::memory_order_relaxed);
  return group_of(index, around, folios);
}

}  // namespace uffda
