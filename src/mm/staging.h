// Staging buffers: resident memory that sources read into, before one copy publishes it in the page cache.
//
// Reading into a mapping of the page cache would cost a fault and a zeroing per page; a small pool of buffers that
// stays in the CPU's caches does not. Three sizes, last returned first given out; the largest exists only once there is
// a memory type whose folios need it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "os/memory.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda {

inline constexpr ByteCount kSmallBuffer = 64_KiB;
inline constexpr ByteCount kLargeBuffer = 1_MiB;
/// Folios larger than this are not staged: see Backing::in_place.
inline constexpr ByteCount kHugeBuffer = 2_MiB;

/// Who wants a buffer.
enum class BufferUse : std::uint8_t {
  demand,  ///< somebody waits for the bytes
  ahead,   ///< nobody does yet: some buffers of each size are not for it
};

class StagingPool {
 public:
  static constexpr std::size_t kSmallBuffers = 128;
  static constexpr std::size_t kLargeBuffers = 24;
  static constexpr std::size_t kHugeBuffers = 8;
  static constexpr std::size_t kDemandShare = 3;  ///< one in so many buffers is left for demand

  /// The buffers that are given out first are resident from the start, the others soon: warm_up(). To wait for all of
  /// them would cost every start 10 ms. Errors: no_memory.
  static Result<StagingPool> create();
  /// Makes some more of it resident, about 100 us of work. False: there is no more to do. Threads: one.
  bool warm_up();

  /// From now on there are buffers of kHugeBuffer, too. Not in the arena. Errors: no_memory. Threads: any.
  Result<void> add_huge();

  /// A buffer of at least `size` bytes (at most kLargeBuffer; after add_huge() at most kHugeBuffer), or empty if none
  /// is free now. Threads: any. Never waits, never allocates.
  std::span<std::byte> acquire(ByteCount size, BufferUse use = BufferUse::demand);
  void release(std::span<std::byte> buffer);

  /// Puts a new buffer in the place of one that may never come back, so that a source that does not answer starves
  /// nobody else. Without memory for it the pool stays smaller. Not in the arena.
  void replace(std::span<std::byte> lost);
  /// Takes back a buffer that was replaced.
  void release_replaced(std::span<std::byte> buffer);

  /// Buffers that are handed out now, those that were replaced included.
  [[nodiscard]] std::size_t in_use() const;

  /// The small and the large buffers lie in it.
  [[nodiscard]] std::span<std::byte> arena() const { return memory_.bytes(); }

 private:
  explicit StagingPool(os::MappedMemory memory);

  struct FreeList {
    ByteCount size;
    std::size_t for_demand;           // when no more are left, the rest is for demand
    std::vector<std::byte*> buffers;  // capacity reserved for all of them
    std::size_t surplus = 0;          // buffers that were replaced and came back
  };

  FreeList& list_of(std::size_t size);

  os::MappedMemory memory_;
  std::size_t cold_ = 0;  // bytes from the start of it that are not known to be resident
  os::MappedMemory huge_;
  std::unique_ptr<Mutex> mutex_ = std::make_unique<Mutex>();
  std::array<FreeList, 3> lists_{{{.size = kSmallBuffer, .for_demand = kSmallBuffers / kDemandShare, .buffers = {}},
                                  {.size = kLargeBuffer, .for_demand = kLargeBuffers / kDemandShare, .buffers = {}},
                                  {.size = kHugeBuffer, .for_demand = kHugeBuffers / kDemandShare, .buffers = {}}}};
  std::vector<os::MappedMemory> replacements_;
};

}  // namespace uffda
