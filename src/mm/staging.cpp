#include "mm/staging.h"

#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "base/thread.h"

namespace uffda {
namespace {

constexpr ByteCount kLargePart = kLargeBuffer * StagingPool::kLargeBuffers;
constexpr ByteCount kSmallPart = kSmallBuffer * StagingPool::kSmallBuffers;
// The buffers given out first are at the end.
constexpr std::size_t kWarm = (kSmallBuffer * 8).value;
// A step holds the lock of the process's memory, which a thread that starts has to wait for.
constexpr std::size_t kWarmStep = (256_KiB).value;

}  // namespace

Result<StagingPool> StagingPool::create() {
  StagingPool pool(
      UFFDA_TRY(os::map_memory(kLargePart + kSmallPart, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)));
  if (!kSimulated) UFFDA_TRY_VOID(os::populate_memory(pool.arena().last(kWarm)));
  pool.cold_ = kSimulated ? 0 : pool.arena().size() - kWarm;
  return pool;
}

bool StagingPool::warm_up() {
  if (cold_ == 0) return false;
  const std::size_t part = std::min(cold_, kWarmStep);
  cold_ -= part;
  // Without memory for it the first use says so.
  if (!os::populate_memory(arena().subspan(cold_, part))) cold_ = 0;
  return cold_ != 0;
}

StagingPool::StagingPool(os::MappedMemory memory) : memory_(std::move(memory)) {
  std::byte* at = memory_.bytes().data();
  for (const auto& [size, count] : {std::pair{kLargeBuffer, kLargeBuffers}, {kSmallBuffer, kSmallBuffers}}) {
    std::vector<std::byte*>& buffers = list_of(size.value).buffers;
    buffers.reserve(count);
    for (std::size_t i = 0; i < count; ++i, at += size.value) buffers.push_back(at);
  }
}

StagingPool::FreeList& StagingPool::list_of(std::size_t size) {
  return *std::ranges::find(lists_, ByteCount{size}, &FreeList::size);
}

Result<void> StagingPool::add_huge() {
  const MutexLock lock(*mutex_);
  if (!huge_.bytes().empty()) return {};
  huge_ = UFFDA_TRY(
      os::map_memory(kHugeBuffer * kHugeBuffers, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE));
  std::vector<std::byte*>& buffers = list_of(kHugeBuffer.value).buffers;
  buffers.reserve(kHugeBuffers);
  for (std::size_t i = 0; i < kHugeBuffers; ++i) buffers.push_back(huge_.bytes().data() + i * kHugeBuffer.value);
  return {};
}

std::span<std::byte> StagingPool::acquire(ByteCount size, BufferUse use) {
  const MutexLock lock(*mutex_);
  for (FreeList& list : lists_) {
    // A large one is good for a small read; a huge one is kept for the folios that need it.
    if (list.size < size || list.buffers.size() <= (use == BufferUse::ahead ? list.for_demand : 0)) continue;
    if (list.size == kHugeBuffer && size <= kLargeBuffer) return {};
    std::byte* buffer = list.buffers.back();
    list.buffers.pop_back();
    return {buffer, list.size.value};
  }
  return {};
}

void StagingPool::release(std::span<std::byte> buffer) {
  const MutexLock lock(*mutex_);
  list_of(buffer.size()).buffers.push_back(buffer.data());
}

void StagingPool::replace(std::span<std::byte> lost) {
  const MutexLock lock(*mutex_);
  FreeList& list = list_of(lost.size());
  if (list.surplus > 0) {
    --list.surplus;
    return;
  }
  auto memory = os::map_memory({lost.size()}, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE);
  if (!memory) return;
  list.buffers.push_back(memory->bytes().data());
  replacements_.push_back(std::move(*memory));
}

void StagingPool::release_replaced(std::span<std::byte> buffer) {
  const MutexLock lock(*mutex_);
  FreeList& list = list_of(buffer.size());
  list.buffers.push_back(buffer.data());
  ++list.surplus;
}

std::size_t StagingPool::in_use() const {
  const MutexLock lock(*mutex_);
  std::size_t all = kSmallBuffers + kLargeBuffers + (huge_.bytes().empty() ? 0 : kHugeBuffers) + replacements_.size();
  for (const FreeList& list : lists_) all -= list.buffers.size();
  return all;
}

}  // namespace uffda
