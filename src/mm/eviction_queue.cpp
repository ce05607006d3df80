#include "mm/eviction_queue.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <utility>

namespace uffda {

Result<FolioQueue> FolioQueue::create(std::uint64_t folios, std::uint64_t block_folios) {
  FolioBits bits = UFFDA_TRY(FolioBits::create(folios));
  const std::uint64_t blocks = align_up(folios, block_folios) / block_folios;
  const ByteCount size{align_up(blocks * sizeof(Block), kPageSize.value)};
  return FolioQueue(
      std::move(bits),
      UFFDA_TRY(os::map_memory(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)),
      block_folios);
}

FolioQueue::FolioQueue(FolioBits bits, os::MappedMemory memory, std::uint64_t block_folios)
    : bits_(std::move(bits)),
      memory_(std::move(memory)),
      blocks_(reinterpret_cast<Block*>(memory_.bytes().data()), memory_.bytes().size() / sizeof(Block)),
      block_folios_(block_folios) {}

void FolioQueue::push(FolioRange run) {
  bits_.set(run);
  for (FolioIndex at = run.first; at < run.end();) {
    const auto block = static_cast<std::uint32_t>(at / block_folios_);
    const FolioIndex end = std::min(run.end(), (block + std::uint64_t{1}) * block_folios_);
    if (blocks_[block].folios == 0) {
      (folios_ == 0 ? oldest_ : blocks_[newest_].next) = block;
      newest_ = block;
    }
    blocks_[block].folios += static_cast<std::uint32_t>(end - at);
    folios_ += end - at;
    at = end;
  }
}

FolioRange FolioQueue::pop(std::uint64_t most) {
  if (folios_ == 0 || most == 0) return {};
  Block& block = blocks_[oldest_];
  const FolioRange run = bits_.take_run({.first = oldest_ * block_folios_, .count = block_folios_}, most);
  block.folios -= static_cast<std::uint32_t>(run.count);
  folios_ -= run.count;
  if (block.folios == 0) oldest_ = block.next;
  return run;
}

Result<EvictionQueue> EvictionQueue::create(std::uint64_t folios, std::uint64_t most) {
  // As many as one page table maps; fewer where that would be much of all that is cached.
  constexpr std::uint64_t kPageTable = 512;
  constexpr std::uint64_t kShare = 128;
  const std::uint64_t block = std::bit_floor(std::clamp(std::min(folios, most) / kShare, std::uint64_t{1}, kPageTable));
  EvictionQueue queue;
  for (FolioQueue* const list : {&queue.fresh_, &queue.probation_, &queue.kept_}) {
    *list = UFFDA_TRY(FolioQueue::create(folios, block));
  }
  return queue;
}

FolioQueue& EvictionQueue::first_to_watch() {
  const bool many_fresh = fresh_.folios() > folios() / kFreshShare;
  return kept_.folios() == 0 || (many_fresh && fresh_.folios() != 0) ? fresh_ : kept_;
}

EvictionQueue::Candidate EvictionQueue::next_to_go(std::uint64_t most) {
  if (probation_.folios() != 0) return {.run = probation_.pop(most), .was_watched = true};
  return {.run = first_to_watch().pop(most), .was_watched = false};
}

}  // namespace uffda
