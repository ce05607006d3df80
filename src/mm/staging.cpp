#include "mm/staging.h"

#include <sys/mman.h>

#include <memory>

namespace uffda {
namespace {

constexpr ByteCount kLargePart = kLargeBuffer * StagingPool::kLargeBuffers;
constexpr ByteCount kSmallPart = kSmallBuffer * StagingPool::kSmallBuffers;

}  // namespace

Result<StagingPool> StagingPool::create() {
  return StagingPool(UFFDA_TRY(
      os::map_memory(kLargePart + kSmallPart, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE)));
}

StagingPool::StagingPool(os::MappedMemory memory) : memory_(std::move(memory)) {
  std::byte* at = memory_.bytes().data();
  large_.buffers.reserve(kLargeBuffers);
  small_.buffers.reserve(kSmallBuffers);
  for (std::size_t i = 0; i < kLargeBuffers; ++i, at += kLargeBuffer.value) large_.buffers.push_back(at);
  for (std::size_t i = 0; i < kSmallBuffers; ++i, at += kSmallBuffer.value) small_.buffers.push_back(at);
}

std::span<std::byte> StagingPool::acquire(ByteCount size) {
  const MutexLock lock(*mutex_);
  const bool small = size <= kSmallBuffer && !small_.buffers.empty();
  FreeList& list = small ? small_ : large_;
  if (list.buffers.empty()) return {};
  std::byte* buffer = list.buffers.back();
  list.buffers.pop_back();
  return {buffer, small ? kSmallBuffer.value : kLargeBuffer.value};
}

void StagingPool::release(std::span<std::byte> buffer) {
  const MutexLock lock(*mutex_);
  FreeList& list = buffer.size() == kSmallBuffer.value ? small_ : large_;
  list.buffers.push_back(buffer.data());
}

void StagingPool::replace(std::span<std::byte> lost) {
  const MutexLock lock(*mutex_);
  FreeList& list = lost.size() == kSmallBuffer.value ? small_ : large_;
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
  FreeList& list = buffer.size() == kSmallBuffer.value ? small_ : large_;
  list.buffers.push_back(buffer.data());
  ++list.surplus;
}

std::size_t StagingPool::in_use() const {
  const MutexLock lock(*mutex_);
  const std::size_t all = kSmallBuffers + kLargeBuffers + replacements_.size();
  return all - small_.buffers.size() - large_.buffers.size();
}

}  // namespace uffda
