// What the running kernel and this process's privileges allow, found out by trying: pure data, printed by `uffda
// probe`.
//
// Nothing here is read off a version number. A feature is there if the handshake says so, a mode of a memory type works
// if UFFDIO_REGISTER accepted it on a real mapping, a namespace can be made if a child process made one. Every "no"
// carries what would turn it into a "yes".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "uffda/uffd_ops.h"
#include "uffda/units.h"

namespace uffda::os {

/// One question with its answer.
struct Check {
  std::string name;  ///< short, stable: programs look it up in the JSON
  bool yes = false;
  std::string found;   ///< what was seen, a few words; may be empty
  std::string remedy;  ///< what to do about a no; empty for a yes
};

/// One feature bit of userfaultfd.
struct FeatureCheck {
  std::string name;  ///< without UFFD_FEATURE_
  unsigned bit = 0;
  bool yes = false;
  std::string since;  ///< the kernel version that brought it
};

/// UFFDIO_REGISTER of one memory type in one mode.
struct ModeCheck {
  std::string mode;  ///< "missing", "minor", "wp", "wp-async" (wp on a userfaultfd opened with WP_ASYNC)
  bool yes = false;
  UffdIoctls ioctls;  ///< what the kernel returned; empty for a no
  int error = 0;      ///< errno of a no
};

/// One kind of memory.
struct MemoryCheck {
  std::string name;
  bool mapped = false;  ///< a mapping could be made, and `modes` were tried on it
  std::string found;
  std::string remedy;
  std::vector<ModeCheck> modes;
};

/// The huge pages of one size.
struct HugepagePool {
  ByteCount page_size;
  std::uint64_t total = 0;
  std::uint64_t free = 0;
  std::uint64_t reserved = 0;  ///< free, but promised to somebody
  std::string setting;         ///< the file that takes the number of pages wanted

  [[nodiscard]] std::uint64_t available() const { return free > reserved ? free - reserved : 0; }
};

struct Machine {
  std::string kernel;  ///< "Linux 6.18.1"
  std::string architecture;
  std::string user;  ///< "uid 0"
  unsigned cpus = 0;
  ByteCount page_size;
  ByteCount memory;
  ByteCount memory_available;
  ByteCount locked_memory_limit;  ///< RLIMIT_MEMLOCK; UINT64_MAX: none
  std::uint64_t descriptor_limit = 0;
};

struct Probe {
  Machine machine;
  std::vector<Check> creation;         ///< the ways to a userfaultfd
  std::vector<FeatureCheck> features;  ///< the known ones, by bit
  std::uint64_t unknown_features = 0;  ///< bits that this version has no name for
  std::vector<MemoryCheck> memory;
  std::vector<Check> privileges;
  std::vector<HugepagePool> hugepages;
  std::vector<Check> summary;  ///< what of uffda works here, and what it would take

  /// Whether a check of this name exists and says yes.
  [[nodiscard]] static bool is_yes(const std::vector<Check>& checks, std::string_view name);
};

/// Asks the kernel. Takes a few milliseconds and leaves nothing behind: memory is not touched, descriptors are closed,
/// what needs a namespace is tried in a child. Never fails: what cannot be asked is a no. Threads: any, but it forks.
Probe probe();

/// The parts of it.
Machine probe_machine();
std::vector<Check> probe_creation();
std::vector<FeatureCheck> probe_features(std::uint64_t offered);
std::vector<MemoryCheck> probe_memory();
std::vector<Check> probe_privileges();
std::vector<HugepagePool> probe_hugepages();
std::vector<Check> summarise(const Probe& probe);

/// The name of a memory type's row whose mappings `summarise` looks at.
inline constexpr std::string_view kAnonymousRow = "anonymous";
inline constexpr std::string_view kShmemRow = "shmem";

}  // namespace uffda::os
