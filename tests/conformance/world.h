// The two worlds that a conformance script runs in: the kernel's own userfaultfd, and uffda's. Each is a few pages of
// memory of one type, a second mapping of the same memory where the type has one, and a monitor of the first.
#pragma once

#include <linux/userfaultfd.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "uffda/userfault.h"

namespace uffda::conformance {

inline constexpr std::uint64_t kPages = 8;

/// What both worlds know.
struct Kind {
  std::string name;
  const char* type;  ///< of uffda
  ByteCount unit;    ///< of the pages that a script counts
  Access access;
};
const std::vector<Kind>& kinds();
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

/// What a register call said.
struct Registered {
  int error = 0;
  std::uint64_t ioctls = 0;
};

class World {
 public:
  virtual ~World() = default;
  [[nodiscard]] ByteCount unit() const { return unit_; }
  /// The monitored memory. Follows mremap by moved().
  [[nodiscard]] std::byte* base() const { return base_; }
  /// The same memory, unmonitored; null if the type has no second mapping.
  [[nodiscard]] std::byte* other() const { return other_; }
  [[nodiscard]] Address page(std::int64_t index) const {
    return {reinterpret_cast<std::uintptr_t>(base_) + static_cast<std::uint64_t>(index) * unit_.value};
  }
  void moved(std::byte* to) { base_ = to; }
  /// Whether what is written becomes the mapping's own copy.
  [[nodiscard]] bool copies() const { return copies_; }

  virtual Registered register_range(Address start, ByteCount length, std::uint64_t modes) = 0;
  virtual int unregister_range(Address start, ByteCount length) = 0;
  virtual UffdOutcome copy(Address to, const void* from, ByteCount length, ResolveFlags flags) = 0;
  virtual UffdOutcome zeropage(Address start, ByteCount length, ResolveFlags flags) = 0;
  virtual UffdOutcome continue_(Address start, ByteCount length, ResolveFlags flags) = 0;
  virtual UffdOutcome poison(Address start, ByteCount length, ResolveFlags flags) = 0;
  virtual UffdOutcome move(Address to, Address from, ByteCount length, ResolveFlags flags) = 0;
  virtual UffdOutcome writeprotect(Address start, ByteCount length, ResolveFlags flags) = 0;
  virtual UffdOutcome wake(Address start, ByteCount length) = 0;
  /// What is there now.
  virtual std::vector<uffd_msg> read() = 0;
  /// Returns when every event that was raised before can be read.
  virtual void settle() = 0;

 protected:
  explicit World(ByteCount unit) : unit_(unit) {}
  std::byte* base_ = nullptr;
  std::byte* other_ = nullptr;
  bool copies_ = false;

 private:
  ByteCount unit_;
};

/// Null where userfaultfd cannot be had; `why` says so.
std::unique_ptr<World> kernel_world(const Kind& kind, std::string& why);
std::unique_ptr<World> uffda_world(const Kind& kind, std::string& why);

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

}  // namespace uffda::conformance
