// A dump of CRIU: a directory of images.
//
// The memory of a dump, as a source or a pack has it, is that of its tasks in the order of pstree.img, and of each task
// what CRIU restores lazily: its private anonymous VMAs, one behind the other, by address. What a task never touched
// reads as zeroes.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "criu/images.h"
#include "os/fd.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::criu {

/// Memory of a task, and where that is in the dump's.
struct Vma {
  MemoryRange range;
  ByteOffset offset;
};

struct Task {
  pid_t pid = 0;          ///< in the task's own PID namespace
  std::vector<Vma> vmas;  ///< by address; none: a zombie
};

/// Which task has which memory. Constant.
class Layout {
 public:
  /// Reads pstree.img and every mm-PID.img. Errors: not_found, protocol, io.
  static Result<Layout> read(const std::string& directory);

  [[nodiscard]] const std::vector<Task>& tasks() const { return tasks_; }
  /// Null: there is none.
  [[nodiscard]] const Task* find(pid_t pid) const;
  [[nodiscard]] ByteCount size() const { return size_; }
  /// Whose memory is at `offset`, which lies below size().
  struct Place {
    pid_t pid;
    Address address;
  };
  [[nodiscard]] Place place_of(ByteOffset offset) const;

 private:
  std::vector<Task> tasks_;
  ByteCount size_;
};

/// A part of the dump's memory whose bytes are in a file, or with the process that made the dump.
struct Run {
  static constexpr std::uint32_t kRemote = ~std::uint32_t{0};
  ByteRange range;         ///< of the dump's memory
  std::uint32_t file = 0;  ///< of Pages::files, or kRemote
  ByteOffset at;           ///< in that file
};

/// Where the bytes of a dump's memory are. Constant.
class Pages {
 public:
  /// Reads every pagemap-PID.img, and opens the pages; of the dumps that this one builds on (`parent`), too. Errors:
  /// not_found, protocol, io.
  static Result<Pages> open(const std::string& directory, const Layout& layout);

  /// By offset, disjoint; between them are zeroes.
  [[nodiscard]] const std::vector<Run>& runs() const { return runs_; }
  [[nodiscard]] std::span<const os::UniqueFd> files() const { return files_; }
  /// The runs from the first that ends behind `offset` on.
  [[nodiscard]] std::span<const Run> from(ByteOffset offset) const;

 private:
  struct Located {
    MemoryRange range;
    std::uint32_t file = 0;
    ByteOffset at;
  };
  Result<std::vector<Located>> locate(const std::string& directory, pid_t pid, unsigned depth);
  Result<std::uint32_t> open_pages(const std::string& directory, std::uint32_t id);

  std::vector<Run> runs_;
  std::vector<os::UniqueFd> files_;
  std::vector<std::string> names_;  // of the files
};

}  // namespace uffda::criu
