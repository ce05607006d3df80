// The worlds that a conformance script runs in: the kernel's own userfaultfd, uffda's, and the one that is simulated
// (tests/sim_conformance). Each is a few pages of memory of one type, a second mapping of the same memory where the
// type has one, a monitor of the first, and threads.
#pragma once

#include <linux/userfaultfd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "uffda/userfault.h"

namespace uffda::conformance {

inline constexpr std::uint64_t kPages = 8;
inline constexpr int kThreads = 3;  ///< that touch; one more changes mappings and waits until its event is read

/// The features that both are opened with.
inline constexpr UffdFeatures kFeatures{UffdFeature::pagefault_flag_wp,
                                        UffdFeature::event_remap,
                                        UffdFeature::event_remove,
                                        UffdFeature::missing_shmem,
                                        UffdFeature::event_unmap,
                                        UffdFeature::thread_id,
                                        UffdFeature::minor_shmem,
                                        UffdFeature::exact_address,
                                        UffdFeature::missing_hugetlbfs,
                                        UffdFeature::minor_hugetlbfs,
                                        UffdFeature::wp_hugetlbfs_shmem,
                                        UffdFeature::wp_unpopulated,
                                        UffdFeature::poison,
                                        UffdFeature::move};

/// What both worlds know.
struct Kind {
  std::string name;
  const char* type;  ///< of uffda
  ByteCount unit;    ///< of the pages that a script counts
  Access access;
  UffdFeatures features = kFeatures;
};
const std::vector<Kind>& kinds();
/// The same, with one feature more.
std::vector<Kind> kinds_with(UffdFeature feature, const std::string& suffix);
/// Takes the huge pages that the kind needs, and gives them back at its end. Empty; or why they cannot be had.
class Pages {
 public:
  explicit Pages(const Kind& kind);
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  std::string why;

 private:
  std::string before_;
};

/// The mode of a resolution that knows no flags but `known` and dontwake; others are bits that nobody knows.
inline std::uint64_t mode_of(ResolveFlags flags, ResolveFlags known) {
  std::uint64_t mode = 0;
  if (flags.has(ResolveFlag::dontwake)) mode |= 1U;  // the same bit in all of them
  if (flags.has(ResolveFlag::wp)) mode |= known.has(ResolveFlag::wp) ? 2U : 1ULL << 40U;
  if (flags.has(ResolveFlag::allow_src_holes)) mode |= known.has(ResolveFlag::allow_src_holes) ? 2U : 1ULL << 41U;
  return mode;
}

inline std::uint64_t writeprotect_mode_of(ResolveFlags flags) {
  std::uint64_t mode = 0;
  if (flags.has(ResolveFlag::wp)) mode |= UFFDIO_WRITEPROTECT_MODE_WP;
  if (flags.has(ResolveFlag::dontwake)) mode |= UFFDIO_WRITEPROTECT_MODE_DONTWAKE;
  if (flags.has(ResolveFlag::allow_src_holes)) mode |= 1ULL << 41U;
  return mode;
}

/// What a register call said.
struct Registered {
  int error = 0;
  std::uint64_t ioctls = 0;
};

/// What a search for written pages said.
struct Written {
  int error = 0;
  std::vector<WrittenRange> ranges;
};

/// How a byte is touched: a load, a store, or a store of what is there.
enum class How : std::uint8_t { load, store, rewrite };

/// What the program around a monitor does to its mappings.
enum class Change : std::uint8_t {
  dontneed,  ///< madvise
  remove,    ///< madvise(MADV_REMOVE)
  replace,   ///< mmap: nothing, and no access
};

/// Threads that do what they are told, one thing at a time: 0 to kThreads.
class Workers {
 public:
  using Duration = std::chrono::microseconds;
  using Task = std::function<std::string()>;

  virtual ~Workers() = default;
  /// As messages name it.
  [[nodiscard]] virtual std::uint32_t id(int thread) = 0;
  [[nodiscard]] virtual bool busy(int thread) = 0;
  /// Once it is idle.
  virtual void start(int thread, Task task) = 0;
  /// True if it becomes idle within the time.
  virtual bool idle_within(int thread, Duration time) = 0;
  /// What its task returned, once.
  virtual std::string outcome(int thread) = 0;
  [[nodiscard]] virtual std::chrono::steady_clock::time_point now() = 0;
};

class World {
 public:
  virtual ~World() = default;
  [[nodiscard]] ByteCount unit() const { return unit_; }
  /// The monitored memory. Follows mremap by move_to().
  [[nodiscard]] Address base() const { return base_; }
  /// The same memory, unmonitored; 0 if the type has no second mapping.
  [[nodiscard]] Address other() const { return other_; }
  [[nodiscard]] bool has_other() const { return other_.value != 0; }
  [[nodiscard]] Address page(std::int64_t index) const {
    return {base_.value + static_cast<std::uint64_t>(index) * unit_.value};
  }
  /// Other memory of the process, private and anonymous: kPages to move from.
  [[nodiscard]] Address aside() const { return aside_; }
  /// Whether what is written becomes the mapping's own copy.
  [[nodiscard]] bool copies() const { return copies_; }
  /// Whether writes are tracked, and raise no faults: then there is written().
  [[nodiscard]] bool tracks() const { return tracks_; }
  /// Of the memory's file; -1 if it has none.
  [[nodiscard]] virtual int descriptor() const { return -1; }

  virtual Workers& workers() = 0;
  /// Of one byte, by a worker. Its outcome: the byte, "stored", or the signal.
  virtual std::string touch(Address at, How how, std::uint8_t value) = 0;
  /// By a worker. "done", or the errno.
  virtual std::string change(Change what, Address at, ByteCount length) = 0;
  /// By a worker: mremap of the whole memory to another place; nothing may come to lie where it was. "moved", or the
  /// errno.
  virtual std::string remap() = 0;
  /// By a worker: a child that ends at once. "done", or the errno.
  virtual std::string fork() { return "done"; }
  /// It was moved, and its messages are read.
  void move_to_target() { base_ = target_; }

  virtual Registered register_range(Address start, ByteCount length, std::uint64_t modes) = 0;
  virtual int unregister_range(Address start, ByteCount length) = 0;
  virtual UffdOutcome copy(Address to, const void* from, ByteCount length, ResolveFlags flags) = 0;
  virtual UffdOutcome zeropage(Address start, ByteCount length, ResolveFlags flags) = 0;
  virtual UffdOutcome continue_(Address start, ByteCount length, ResolveFlags flags) = 0;
  virtual UffdOutcome poison(Address start, ByteCount length, ResolveFlags flags) = 0;
  virtual UffdOutcome move(Address to, Address from, ByteCount length, ResolveFlags flags) = 0;
  virtual UffdOutcome writeprotect(Address start, ByteCount length, ResolveFlags flags) = 0;
  virtual UffdOutcome wake(Address start, ByteCount length) = 0;
  virtual Written written(Address, ByteCount, Rearm) { return {}; }
  /// What is there now.
  virtual std::vector<uffd_msg> read() = 0;
  /// Returns when every event that was raised before can be read.
  virtual void settle() = 0;

 protected:
  explicit World(ByteCount unit, bool tracks = false) : tracks_(tracks), unit_(unit) {}
  Address base_;
  Address other_;
  Address aside_;
  Address target_;  ///< where remap() went
  bool copies_ = false;

 private:
  bool tracks_;
  ByteCount unit_;
};

/// Null where userfaultfd cannot be had; `why` says so.
std::unique_ptr<World> kernel_world(const Kind& kind, std::string& why);
std::unique_ptr<World> uffda_world(const Kind& kind, std::string& why);

}  // namespace uffda::conformance
